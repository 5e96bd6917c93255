"""Finds the periods of training with weight decay, while it trains and at the end."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_sphere.analysis.epoch_rows import Row
from lit_sphere.analysis.periods import PHASE_NUMBERS
from lit_sphere.observe.module_groups import GroupNames, Network
from lit_sphere.observe.periods import STEP_COLUMNS, PeriodWatch, Resolution
from lit_sphere.observe.publishing import check_single, log_numbers, save_picture
from lit_sphere.report.periods import PeriodCurves, draw_periods

_OF_EPOCHS = ("norm_squared", "distance")
_BOUNDS = ("grad_low", "grad_high", "jumps", "possible_jumps", "certain_jumps", "t_min", "t_max")
_INTERVALS = ("elr_low", "elr_high", "norm_low", "norm_high")


class PeriodMonitor(PeriodWatch):
    """Monitor: finds the periods of training with weight decay, with their phases, and PB's bounds beside them.

    Weight decay shrinks scale-invariant weights, so that their effective learning rate (ELR) rises until training is
    thrown out of where it had converged; the norm rises, and it begins anew (PB). At the end of every epoch
    :func:`~lit_sphere.analysis.segment_periods` looks at train loss and norm so far: a destabilisation is announced
    in one line, and at the end the verdict is: how many periods, too few to tell, not yet, or none. ``periods.png``
    shows loss, norm, ELR and cosine distance of steps in the run's folder, phases shaded: A the loss falls and the norm
    rises, B the norm falls and the ELR rises, C the loss rises, and then the norm.

    | key | quantity |
    |---|---|
    | ``period/count`` | finished periods, each ended by a destabilisation |
    | ``period/phase`` | of the last value: 1 A, 2 B, 3 C |
    | ``period/loss`` | train loss |
    | ``period/norm_squared`` | ρ² of all groups together |
    | ``period/elr`` | their effective learning rate |
    | ``period/effective_grad_norm`` | their effective gradient norm g̃ |
    | ``period/distance`` | cosine distance of consecutive iterates, 1 − cos(x, x′) |
    | ``period/grad_low``, ``period/grad_high`` | ℓ and L: least and greatest g̃ at a measured step of the epoch |
    | ``period/jumps`` | measured steps of the epoch that were δ-jumps, of a distance above δ |
    | ``period/possible_jumps``, ``period/certain_jumps`` | at so many of them a δ-jump was possible, or certain, by \
    ℓ ≤ g̃ ≤ L: ρ² ≲ ηL/√(2δ), ρ² ≲ ηℓ/√(2δ) |
    | ``period/t_min``, ``period/t_max`` | predicted: a first δ-jump comes no earlier than so many steps after the \
    epoch, and no later, as long as ℓ and L hold; not logged where infinite |
    | ``period/elr_low``, ``period/elr_high`` | predicted: between these the ELR stays while g̃ does as in this epoch |
    | ``period/norm_low``, ``period/norm_high`` | the same of ρ |

    Loss, ρ², ELR, g̃ and distance are means over the epoch, or those of each measured step with ``per="step"``, logged
    at the end of the epoch; then periods are counted in steps, by the median loss of five. The loss is what the
    training step returns, ``{"loss": …}`` or a tensor, else the logged ``train/loss`` (or ``train_loss``), by the epoch
    only. Numbers come from where those of :class:`~lit_sphere.callbacks.EffectiveLearningRateMonitor` do, and are the
    same. Bounds and intervals are exact, for ``torch.optim.SGD`` with weight decay and without momentum
    (:mod:`lit_sphere.theory.weight_decay`); with any other optimizer there are none, and periods all the same.

    Works under automatic and manual optimisation, under DDP, with gradient accumulation. Costs one pass over parameters
    and gradients at every n-th step, shared with other monitors; nothing waits for the device within an epoch. Where
    nothing is scale-invariant, or no optimizer trains a group as a whole, it warns and stays out. It warns where weight
    decay leaves the scale-invariant weights out.

    Args:
        per: ``epoch`` or ``step``: what a value of the curves is.
        every_n_steps: Measure at every n-th optimizer step, and at the first of each epoch.
        delta: δ, a cosine distance; a hundredth of ηλ if not given, since steps of a distance above ηλ raise the norm.
        keep_minima: Write the weights at the end of the epoch of least train loss of each finished period to
            ``minima/period-01.ckpt`` and so on in the run's folder; ``lit-sphere interpolate`` takes them.
            :class:`~lit_sphere.callbacks.CheckpointSimilarity` with ``between="periods"`` compares them without files.
        loss_key: Logged key of the train loss, if the training step returns none.
        example_input: Input of the network, in place of the module's ``example_input_array`` and of a batch: a tensor,
            a tuple of inputs by position, or a dictionary of inputs by name.
        network: What is searched for scale-invariant groups: the attribute that is the network, or a function of the
            input. None: the module itself, or where that does not run, its training step.
        groups: Names of the scale-invariant parameters, in place of a search: for each group one name (with ``*``, each
            that fits is a group), or a list of those that are scale-invariant together.

    Raises:
        ValueError: If an argument is out of range; at the start of ``fit``, if no optimizer has weight decay, as on the
            sphere, or there is another ``PeriodMonitor``.

    Attributes:
        periods: The :class:`~lit_sphere.analysis.Periods` so far; None before the first epoch's end.
        minima: Weights at the minima of finished periods, if they are kept.

    Example:
        >>> from functools import partial
        >>> from lightning.pytorch import Trainer
        >>> from torch.optim import SGD
        >>> from lit_sphere.data import Digits
        >>> from lit_sphere.modules import SIConvNet
        >>> monitor = PeriodMonitor()
        >>> options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = Trainer(max_epochs=2, callbacks=[monitor], logger=False, enable_checkpointing=False, **options)
        >>> sgd = partial(SGD, lr=0.1, weight_decay=1e-2)
        >>> trainer.fit(SIConvNet(width=4, in_channels=1, optimizer=sgd), Digits(train_size=64, batch_size=32))
        >>> print(monitor.periods.sentence)
        not yet: only 2 epochs, at least 10 are needed
    """

    def __init__(
        self,
        per: Resolution = "epoch",
        every_n_steps: int = 1,
        delta: float | None = None,
        keep_minima: bool = False,
        loss_key: str | None = None,
        example_input: Any = None,
        network: Network = None,
        groups: GroupNames | None = None,
    ) -> None:
        super().__init__(per, every_n_steps, delta, loss_key, keep_minima, example_input, network, groups)
        self._announced = 0  # destabilisations

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run that cannot have periods, and find the groups before training."""
        check_single(self, PeriodMonitor, trainer, "period/… and periods.png")
        super().on_fit_start(trainer, pl_module)
        self._announced = 0 if self.periods is None else self.periods.count

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the end of a period, and log."""
        if self.stays_out:
            return
        super().on_train_epoch_end(trainer, pl_module)
        periods, rows = self.periods, self._curves.rows
        if not rows or rows[-1]["epoch"] != trainer.current_epoch:
            return
        if periods is not None and periods.count > self._announced:
            self._announced = periods.count
            rank_zero_info(f"period {periods.count} has ended: {periods.evidence}")
        row = rows[-1]
        if self.per == "step" and row["steps"] is not None:
            for number, *values in row["steps"].tolist():
                known = zip(STEP_COLUMNS[1:], values, strict=True)
                metrics = {f"period/{name}": value for name, value in known if not math.isnan(value)}
                log_numbers(trainer, {**metrics, "epoch": trainer.current_epoch}, int(number))
        metrics = _metrics(row, self.per)
        if periods is not None and periods.phase is not None:
            metrics |= {"period/count": float(periods.count), "period/phase": float(PHASE_NUMBERS[periods.phase])}
        log_numbers(trainer, {**metrics, "epoch": trainer.current_epoch}, trainer.global_step - 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the verdict, and draw."""
        if self.stays_out:
            return
        super().on_train_end(trainer, pl_module)
        if self.periods is None or self.periods.unfinished is None:
            rank_zero_warn(
                "PeriodMonitor saw no train loss: return it from training_step, or log it and name its key (loss_key)"
                + (", which gives periods by the epoch only (per)" if self.per == "step" else "")
            )
            return
        rank_zero_info(f"periods at the end: {self.periods.sentence}{self._prediction()}")
        found, curves = self.periods, self._drawn()
        if len(curves.at) > 1:
            save_picture(trainer, self._folder, "periods", lambda: draw_periods(curves, found, self.per))

    def _prediction(self) -> str:
        row = self._curves.rows[-1]
        t_min, t_max = row.get("t_min"), row.get("t_max")
        if t_min is None or not t_max:
            return ""
        if not math.isfinite(t_min):
            when = "cannot come"
        else:
            earliest = "at once" if t_min < 1 else f"after {t_min:.0f} steps"
            when = f"may come {earliest}" + (f", and comes within {t_max:.0f}" if math.isfinite(t_max) else "")
        return f"; with g̃ as in the last epoch, the next step of a distance above {row['delta']:.2g} {when}"

    def _drawn(self) -> PeriodCurves:
        """The curves that periods were found in."""
        delta = next((row["delta"] for row in reversed(self._curves.rows) if row.get("delta") is not None), None)
        if self.per == "step":
            parts = [row["steps"].tolist() for row in self._curves.rows if row["steps"] is not None]
            at, loss, norm_squared, elr, _, distance = zip(*(step for part in parts for step in part), strict=True)
            return PeriodCurves(at, loss, [math.sqrt(each) for each in norm_squared], elr, distance, delta=delta)
        rows = [row for row in self._curves.rows if row["loss"] is not None and row["taken"]]
        bounds = [[row.get(name, math.nan) for row in rows] for name in ("elr_low", "elr_high")]
        known = any(not math.isnan(bound) for bound in bounds[0])
        return PeriodCurves(
            [row["epoch"] for row in rows],
            [row["loss"] for row in rows],
            [math.sqrt(row["norm_squared"]) for row in rows],
            [row["elr"][0] for row in rows],
            [row["distance"] for row in rows],
            bounds[0] if known else (),
            bounds[1] if known else (),
            delta,
        )


def _metrics(row: Row, per: Resolution) -> dict[str, float]:
    """Numbers of an epoch by key."""
    names = (*_BOUNDS, *_INTERVALS) if per == "step" else (*_OF_EPOCHS, *_BOUNDS, *_INTERVALS)
    numbers = {name: row.get(name) for name in names}
    if per == "epoch":
        numbers["loss"] = row["loss"]
        numbers |= {name: row[name][0] for name in ("elr", "effective_grad_norm") if row[name] is not None}
    return {f"period/{name}": float(each) for name, each in numbers.items() if each is not None and math.isfinite(each)}
