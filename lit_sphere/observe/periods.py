"""The periods of a run with weight decay, found while it trains."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lit_sphere.analysis.epoch_rows import LOSS_KEYS, Row
from lit_sphere.analysis.periods import STEP_WINDOW, PeriodReader, Periods
from lit_sphere.effective import NOT_STEPPED, QUANTITIES, EquilibriumRule, StepTrace, predicted_interval
from lit_sphere.files import write_whole
from lit_sphere.observe.dynamics import callbacks_of, controls_of
from lit_sphere.observe.epoch_curves import CurveCallback, EpochCurves
from lit_sphere.observe.module_groups import GroupNames, GroupOptions, Network
from lit_sphere.observe.publishing import PlannedRun
from lit_sphere.observe.snapshots import Snapshot, snapshot
from lit_sphere.observe.train_loss import samples_in, undivided_loss
from lit_sphere.theory.weight_decay import jump_norm, steps_before_jump

STEP_COLUMNS = ("step", "loss", "norm_squared", "elr", "effective_grad_norm", "distance")
"""What is known of a single step, in the order of columns; of all groups together."""

Resolution = Literal["epoch", "step"]
"""What a value of the curves is."""

SMALL_JUMP = 0.01
"""δ-jumps are looked for from this part of ηλ on, the cosine distance of a step that keeps the norm: a tenth of its
angle. A jump of more than ηλ(ℓ/L)² is never certain, whatever the norm (PB §3)."""


class StepCurves(EpochCurves):
    """Curves by epoch, and beside each row its measured steps: ``row["steps"]``, float64 of shape (steps, columns).

    Within an epoch everything stays on its device.

    Args:
        owner: As of :class:`~lit_sphere.observe.epoch_curves.EpochCurves`.
        every_n_steps: As there.
        loss_keys: As there.

    Attributes:
        rule: What holds norms in equilibrium at the last measured step, where the theory says.
    """

    def __init__(self, owner: Callback, every_n_steps: int, loss_keys: tuple[str, ...]) -> None:
        super().__init__(owner, every_n_steps, loss_keys, kind=StepTrace)
        self.rule: EquilibriumRule | None = None
        self._reset()

    def _reset(self) -> None:
        self._batches: list[tuple[Tensor, int]] = []  # since the last step: sums of losses, and samples
        self._due: list[int] = []  # numbers of measured steps whose loss is not known yet
        self._measured: list[int] = []  # numbers of those whose loss is
        self._losses: list[Tensor] = []  # of these: sums
        self._samples: list[int] = []
        self._taken = 0  # real steps whose batches were seen to the end

    def _begin(self, trainer: Trainer) -> None:
        super()._begin(trainer)
        self._reset()

    def _on_measured(self, trainer: Trainer) -> None:
        super()._on_measured(trainer)
        if self._open and self._watch.means is not None:
            self._due.append(trainer.global_step)
            self.rule = self._watch.means.quantities.equilibrium

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups that train what is watched; none before that is found."""
        return [] if self._watch.means is None else self._watch.means.quantities.param_groups

    def batch_end(self, trainer: Trainer, outputs: Any, batch: Any) -> None:
        """Add up loss and error of the step, on their device."""
        super().batch_end(trainer, outputs, batch)
        if not self._open:
            return
        loss, samples = undivided_loss(trainer, outputs), samples_in(batch)
        if loss is not None:
            self._batches.append((loss.double() * samples, samples))
        if self._watch.steps == self._taken:
            return  # gradients are accumulated
        self._taken = self._watch.steps
        if self._batches:
            for number in self._due:
                self._measured.append(number)
                self._losses.append(torch.stack([loss for loss, _ in self._batches]).sum())
                self._samples.append(sum(samples for _, samples in self._batches))
        self._batches, self._due = [], []

    def _close(self, trainer: Trainer) -> None:
        numbers, losses = self._measured, self._step_losses(trainer)
        super()._close(trainer)
        trace = self._watch.trace()
        self._reset()
        self.rows[-1]["steps"] = None if trace is None else _steps(trace.cpu(), numbers, losses)

    def _step_losses(self, trainer: Trainer) -> Tensor:
        """Mean loss of each measured step over all ranks, which must all call this."""
        if not self._losses:
            return torch.zeros(0, dtype=torch.float64)
        device = trainer.strategy.root_device
        samples = torch.tensor(self._samples, dtype=torch.float64, device=device)
        both = torch.stack([torch.stack([loss.to(device) for loss in self._losses]), samples])
        total = trainer.strategy.reduce(both, reduce_op="sum")
        assert isinstance(total, Tensor)
        return (total[0] / total[1]).cpu()

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load_state` takes: plain values and tensors.

        Returns:
            The rows, and the epoch that is being measured.
        """
        opened = {
            "batches": [list(each) for each in self._batches],
            "due": list(self._due),
            "measured": list(self._measured),
            "losses": list(self._losses),
            "samples": list(self._samples),
            "taken": self._taken,
            "rule": self.rule,
        }
        return super().state() | {"open_steps": opened}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Args:
            state: As given by :meth:`state`.
        """
        super().load_state(state)
        opened = state["open_steps"]
        self._batches = [(loss, samples) for loss, samples in opened["batches"]]
        self._due, self._measured = list(opened["due"]), list(opened["measured"])
        self._losses, self._samples = list(opened["losses"]), list(opened["samples"])
        self._taken, self.rule = opened["taken"], opened["rule"]


def _steps(trace: Tensor, numbers: list[int], losses: Tensor) -> Tensor:
    """Put together what is known of steps; NaN for losses that are not."""
    columns = dict(zip(QUANTITIES, trace.unbind(1), strict=True))
    known = len(numbers) == len(trace)
    at = torch.tensor(numbers, dtype=torch.float64) if known else torch.full_like(columns["elr"], math.nan)
    loss = losses if known else torch.full_like(columns["elr"], math.nan)
    named = (columns[name] for name in STEP_COLUMNS[3:])
    rows = torch.stack([at, loss, columns["norm"].square(), *named], 1)
    return rows[columns["elr"] != NOT_STEPPED]


class PeriodWatch(CurveCallback):
    """Base of callbacks that find the periods of a run by what they saw of it themselves.

    Attributes:
        periods: The :class:`~lit_sphere.analysis.Periods` so far; None before the first epoch's end.
        minima: With ``keep_minima`` the weights at the end of the epoch of least train loss of each finished period.
    """

    def __init__(
        self,
        per: Resolution,
        every_n_steps: int,
        delta: float | None,
        loss_key: str | None,
        keep_minima: bool,
        example_input: Any,
        network: Network,
        groups: GroupNames | None,
    ) -> None:
        self.group_options = GroupOptions(example_input, network, groups)
        super().__init__(None, loss_key, None, None, every_n_steps)
        if per not in get_args(Resolution):
            raise ValueError(f"{type(self).__name__}: per must be epoch or step, got {per!r}")
        if delta is not None and not 0 < delta < 1:
            raise ValueError(f"{type(self).__name__}: delta must be in (0, 1), got {delta:g}")
        self.per, self.delta, self.keep_minima = per, delta, keep_minima
        self._curves: StepCurves = StepCurves(self, every_n_steps, (loss_key,) if loss_key else LOSS_KEYS)
        self._keeps = keep_minima  # or somebody asked for it
        self._norm_is_fixed = False
        self._asked = False  # whether what is watched decays
        self._begin()

    def _begin(self) -> None:
        self.periods: Periods | None = None
        self.minima: list[Snapshot] = []
        self._reader = PeriodReader(STEP_WINDOW if self.per == "step" else 1)
        self._digested = self._read = 0  # rows
        self._lowest: tuple[float, Snapshot] | None = None  # of the present period
        self._put = 0  # periods whose minimum was put aside, if there was one

    @property
    def state_key(self) -> str:
        """Names the options; a second one of the same class is refused, however it is set up."""
        return self._generate_state_key(per=self.per, every=self.every_n_steps, delta=self.delta, key=self.loss_key)

    @property
    def stays_out(self) -> bool:
        """Whether there is nothing to watch in this run."""
        return self._curves.stays_out

    @property
    def rule(self) -> tuple[float, float] | None:
        """Learning rate and weight decay of plain SGD in the whole space at the last step; None for anything else."""
        rule = self._curves.rule
        return rule if isinstance(rule, tuple) and not self._norm_is_fixed else None

    def keep(self) -> None:
        """Keep the weights at minima in this run, whatever the options say; for others who need them."""
        self._keeps = True

    def check_run(self, run: PlannedRun) -> None:
        """Refuse a run that cannot have periods.

        Args:
            run: The run; its callbacks may switch weight decay on.

        Raises:
            ValueError: If no optimizer has a weight decay, and none is switched on.
        """
        super().check_run(run)
        reason = _no_decay(run.trainer, run.optimizers())
        if reason is not None:
            raise ValueError(f"{type(self).__name__}: {reason}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run that cannot have periods, and find the groups before training."""
        self._norm_is_fixed = bool(controls_of(trainer, "norm"))
        super().on_fit_start(trainer, pl_module)
        if self._anew:
            self._begin()
        self._asked = False
        self._warn_of_no_decay(trainer)

    def _warn_of_no_decay(self, trainer: Trainer) -> None:
        """Warn where weight decay leaves the scale-invariant weights out, once these are found."""
        groups = self._curves.param_groups
        if self._asked or not groups:
            return
        self._asked = True
        if not any(group.get("weight_decay", 1.0) for group in groups) and not _decay_may_come(trainer):
            rank_zero_warn(
                f"{type(self).__name__}: only parameters that are not scale-invariant have weight decay, and periods "
                "come from that of the others, whose norm cannot fall here; give them weight_decay > 0, or leave the "
                "callback out"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the last epoch's row with a loss that was only logged."""
        super().on_train_epoch_start(trainer, pl_module)
        self._catch_up()
        self._keep_minimum(trainer, pl_module, trainer.current_epoch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Make up for the end of an epoch whose last batch was the last thing saved, before the first step."""
        rows = len(self._curves.rows)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._warn_of_no_decay(trainer)
        if len(self._curves.rows) > rows:
            self._catch_up()
            self._keep_minimum(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the end of a period, and keep the weights at a new minimum."""
        self._curves.epoch_end(trainer)
        self._catch_up()
        self._keep_minimum(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once more, at the last epoch as a whole."""
        self._curves.settle(trainer)
        self._catch_up()

    def _keep_minimum(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        """Keep the weights between two epochs, if they are the minimum of the period so far; the same a second time."""
        if not self._keeps or not self._curves.rows:
            return
        if self._reader.count > self._put:
            self._put_aside(trainer)
            self._put = self._reader.count
        row = self._curves.rows[-1]
        loss = row["loss"] if row["epoch"] == epochs - 1 else None
        if loss is not None and (self._lowest is None or loss < self._lowest[0]):
            self._lowest = (loss, snapshot(trainer, pl_module, epochs))

    def _put_aside(self, trainer: Trainer) -> None:
        if self._lowest is None:
            return
        kept = self._lowest[1]
        self.minima, self._lowest = [*self.minima, kept], None
        if self.keep_minima and self._folder is not None and trainer.is_global_zero:
            _write_minimum(self._folder / "minima" / f"period-{self._reader.count:02d}.ckpt", kept)

    def _catch_up(self) -> None:
        rows = self._curves.rows
        for row in rows[self._digested :]:
            self._digest(row)
        self._digested = len(rows)
        while self._read < len(rows) and (rows[self._read]["loss"] is not None or self._read < len(rows) - 1):
            row = rows[self._read]
            self._read += 1
            if self.per == "step" and row["steps"] is not None:
                for at, loss, norm_squared, *_ in row["steps"].tolist():
                    if not math.isnan(at):  # steps and losses belong together
                        self._reader.read(loss, math.sqrt(norm_squared))
            elif self.per == "epoch" and row["loss"] is not None and row["taken"]:
                self._reader.read(row["loss"], math.sqrt(row["norm_squared"]))
        self.periods = self._reader.periods(relaxation=self._relaxation(), unit=self.per)

    def _digest(self, row: Row) -> None:
        """Work out what an epoch's steps say, and let go of them where single steps do not count."""
        steps: Tensor | None = row["steps"]
        row["taken"] = 0 if steps is None else len(steps)
        if self.per == "epoch":
            row["steps"] = None
        if steps is None or not row["taken"]:
            return
        _, _, norm_squared, _, grad_norm, distance = steps.unbind(1)
        row |= {"norm_squared": norm_squared.mean().item(), "distance": distance.mean().item()}
        row |= {"grad_low": grad_norm.min().item(), "grad_high": grad_norm.max().item()}
        delta = self.delta
        if delta is None and self.rule is not None:
            delta = SMALL_JUMP * self.rule[0] * self.rule[1]
        if delta is None:
            return
        row |= {"delta": delta, "jumps": int((distance > delta).sum())}
        if self.rule is not None and row["grad_low"] > 0 and math.isfinite(row["grad_high"]):
            lr, decay = self.rule
            least, most = (jump_norm(delta, row[name], lr, decay).square() for name in ("grad_low", "grad_high"))
            row["certain_jumps"] = int((norm_squared < least).sum())
            row["possible_jumps"] = int((norm_squared < most).sum())
            norm = norm_squared[-1].sqrt()
            before = steps_before_jump(norm, delta, row["grad_low"], row["grad_high"], lr, decay)
            row |= {"t_min": before.low.item(), "t_max": before.high.item()}
            row |= predicted_interval(self.rule, row["grad_low"], row["grad_high"])

    def _relaxation(self) -> float | None:
        """Values in which the norm settles: 1/(4ηλ) steps."""
        rows = self._curves.rows
        if self.rule is None or not rows:
            return None
        lr, decay = self.rule
        per_value = 1 if self.per == "step" else max(1, rows[-1]["taken"]) * self.every_n_steps
        return 1 / (4 * lr * decay) / per_value

    def state_dict(self) -> dict[str, Any]:
        """Curves and minima, so that a resumed run continues them."""
        return {
            "curves": self._curves.state(),
            "digested": self._digested,
            "minima": [dict(each) for each in self.minima],
            "lowest": None if self._lowest is None else [self._lowest[0], dict(self._lowest[1])],
            "put": self._put,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._begin()
        self._curves.load_state(state_dict["curves"])
        self.minima = list(state_dict["minima"])
        self._digested, lowest = state_dict["digested"], state_dict["lowest"]
        self._lowest = None if lowest is None else (lowest[0], lowest[1])
        self._put = state_dict.get("put", len(self.minima))
        self._catch_up()


def _decay_may_come(trainer: Trainer) -> bool:
    """Say whether some callback may switch weight decay on."""
    return bool(controls_of(trainer, "weight_decay") or controls_of(trainer, "sphere"))


def _no_decay(trainer: Trainer, optimizers: Sequence[Optimizer]) -> str | None:
    """Say why a run has no periods, before it begins."""
    if _decay_may_come(trainer):
        return None
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    if any(group.get("weight_decay", 1.0) for group in groups if group.get("elr") is None):
        return None
    why = "weights on a sphere have none" if any(group.get("elr") is not None for group in groups) else "this has none"
    return (
        f"periods come from weight decay in the whole space, and {why}; train with SGD and weight_decay > 0, or leave "
        "the callback out"
    )


def _write_minimum(path: Path, kept: Snapshot) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "epoch": kept["epochs"],
        "global_step": kept["step"],
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": kept["weights"],
    }
    write_whole(path, lambda file: torch.save(content, file))


def needed_period_watch(owner: Callback, trainer: Trainer) -> PeriodWatch:
    """Give the first callback of a trainer that looks for periods.

    Args:
        owner: A callback that acts at their minima.
        trainer: Its trainer.

    Returns:
        The callback that looks for them.

    Raises:
        ValueError: If there is none.
    """
    found = next((each for each in callbacks_of(trainer) if isinstance(each, PeriodWatch)), None)
    if found is None:
        name = type(owner).__name__
        raise ValueError(f"{name}: between periods needs PeriodMonitor among the callbacks, which finds them; add it")
    return found
