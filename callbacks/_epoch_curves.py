"""Curves of a run by epoch, measured by a callback itself: loss, error, learning rate, effective quantities."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lit_sphere.analysis.regimes import CONVERGED_LOSS, converged_mse
from lit_sphere.callbacks._module_groups import groups_of, short_names
from lit_sphere.effective import QUANTITIES, EffectiveQuantities, StepMeans

Row = dict[str, Any]
"""An epoch: numbers ``epoch``, ``step`` (before it), ``loss``, ``error``, ``lr``, and lists ``elr``, ``ess``,
``effective_grad_norm``: the total first, then each group. What is not known is None."""

_QUANTITIES = ("elr", "ess", "effective_grad_norm")
LOSS_KEYS = ("train/loss", "train_loss")
ERROR_KEYS = ("train/error", "train_error")
ACCURACY_KEYS = ("train/acc", "train_acc", "train/accuracy", "train_accuracy")


class EpochCurves:
    """Collects a row for each epoch; the owner passes its hooks on.

    Loss and error are the means over training steps of what the training step returns, ``{"loss": …, "error": …}``.
    Where it returns none, they are read from what the module logs. Nothing waits for the device within an epoch.

    Args:
        asks: The callback, to be named in errors.
        every_n_steps: Effective quantities are measured at the first and then every n-th optimizer step of an epoch.
        loss_keys: Logged keys of the train loss, the first found is taken.
        error_keys: Logged keys of the train error.
        accuracy_keys: Logged keys of its complement.

    Attributes:
        rows: The rows so far.
        group_names: Short names of the groups, once they are found.
    """

    def __init__(
        self,
        asks: Callback,
        every_n_steps: int,
        loss_keys: tuple[str, ...] = LOSS_KEYS,
        error_keys: tuple[str, ...] = ERROR_KEYS,
        accuracy_keys: tuple[str, ...] = ACCURACY_KEYS,
    ) -> None:
        self._asks, self._every = asks, every_n_steps
        self._loss_keys, self._error_keys, self._accuracy_keys = loss_keys, error_keys, accuracy_keys
        self.rows: list[Row] = []
        self.group_names: list[str] = []
        self._means: StepMeans | None = None
        self._hooks: list[Any] = []
        self._depth = 0  # of nested steps: that of a subclass which calls its parent's runs the hooks of both
        self._due = False
        self._open: dict[str, Any] = {}  # the epoch that is being measured
        self._restored: dict[str, Any] = {}

    def fit_start(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Find the groups before training, where the module says what its input looks like.

        Args:
            trainer: The trainer.
            pl_module: Its module.

        Returns:
            Whether this is another run than the last: the curves begin anew.
        """
        anew = trainer.ckpt_path is None and trainer.current_epoch == 0
        if anew:
            self.rows, self._open, self._restored = [], {}, {}
        self._means = None
        self._find(trainer, pl_module, None)
        return anew

    def batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Find the groups from the first batch otherwise; open the epoch."""
        if self._means is None:
            self._find(trainer, pl_module, batch)
        if self._open.get("epoch") != trainer.current_epoch:
            if self._open:
                self._close(trainer)  # an epoch whose last batch was in the checkpoint is not ended again
            step = trainer.global_step
            self._open = {"epoch": trainer.current_epoch, "step": step, "lr": 0.0, "lrs": 0, "sums": {}, "batches": 0}
            assert self._means is not None
            self._means.load_state({})

    def _find(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        groups = groups_of(self._asks, pl_module, batch)
        if groups is None:
            return
        for optimizer in trainer.optimizers:
            trained = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
            mine = [group for group in groups if trained.keys() >= set(group.parameters)]
            if mine:
                break
        else:
            raise ValueError(
                f"{type(self._asks).__name__}: no optimizer trains a scale-invariant group as a whole; give all "
                "parameters of a group to one optimizer"
            )
        self._optimizer, self._index = optimizer, trained[mine[0].parameters[0]]
        self.group_names = short_names(mine)
        altered = bool(trainer.gradient_clip_val) or getattr(trainer.precision_plugin, "scaler", None) is not None
        self._quantities = EffectiveQuantities(mine, optimizer, altered=altered)
        self._means = StepMeans(self._quantities)
        self._means.load_state(self._restored)
        self._restored = {}
        self.detach()
        self._hooks = [
            optimizer.register_step_pre_hook(self._at_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def before_step(self, optimizer: Optimizer) -> None:
        """Read the learning rate, and observe or prepare to."""
        if self._means is None or getattr(optimizer, "optimizer", optimizer) is not self._optimizer or not self._open:
            return
        group = self._optimizer.param_groups[self._index]
        self._open["lr"] += float(group["elr"] if group.get("elr") is not None else group["lr"])
        self._due = self._open["lrs"] % self._every == 0  # the first step of each epoch, so that none is left out
        self._open["lrs"] += 1
        if self._due and self._quantities.before:
            self._means.add()
            self._due = False
        elif self._due:
            self._quantities.keep_gradients()
            self._quantities.keep_weights()

    def _at_step(self, *args: Any) -> None:
        self._depth += 1

    def _after_step(self, *args: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and self._due and self._means is not None:
            self._means.add()
            self._due = False

    def batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any) -> None:
        """Add up loss and error of the step, on their device."""
        if not self._open:
            return
        found = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        # Lightning divides the loss that it hands out under automatic optimisation.
        scale = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
        sums = self._open["sums"]
        for name, factor in (("loss", scale), ("error", 1)):
            value = found.get(name)
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.detach().double().reshape(()) * factor
                sums[name] = sums[name].to(value.device) + value if name in sums else value
        self._open["batches"] += 1

    def epoch_end(self, trainer: Trainer) -> None:
        """Make the epoch's row."""
        if self._open:
            self._close(trainer)

    def blow_up(self) -> None:
        """End the curves with the present epoch, as one whose loss is not a number."""
        opened, self._open = self._open, {}
        known = self.rows[-1] if self.rows else {}
        self.rows.append(
            {
                "epoch": opened["epoch"],
                "step": opened["step"],
                "loss": math.nan,
                "error": known.get("error"),
                "lr": opened["lr"] / opened["lrs"] if opened["lrs"] else known.get("lr"),
                **{quantity: [math.nan] for quantity in _QUANTITIES},
            }
        )

    def _close(self, trainer: Trainer) -> None:
        opened, self._open = self._open, {}
        row: Row = {"epoch": opened["epoch"], "step": opened["step"], "loss": None, "error": None}
        row["lr"] = opened["lr"] / opened["lrs"] if opened["lrs"] else None
        names = [name for name in ("loss", "error") if name in opened["sums"]]
        if names:
            mean = torch.stack([opened["sums"][name] for name in names]) / opened["batches"]
            row.update(zip(names, trainer.strategy.reduce(mean.to(trainer.strategy.root_device)).tolist(), strict=True))
        measured = None if self._means is None else self._means.mean()
        for quantity in _QUANTITIES:
            row[quantity] = None if measured is None else measured[QUANTITIES.index(quantity)].tolist()
        self.rows.append(row)

    def settle(self, trainer: Trainer) -> None:
        """Complete the last row with what the module logged at the end of its epoch, after callbacks were called."""
        if not self.rows:
            return
        row, logged = self.rows[-1], trainer.callback_metrics
        if row["loss"] is None:
            row["loss"] = self._logged(trainer, logged, self._loss_keys)
        if row["error"] is None:
            row["error"] = self._logged(trainer, logged, self._error_keys)
        if row["error"] is None:
            accuracy = self._logged(trainer, logged, self._accuracy_keys)
            row["error"] = None if accuracy is None else 1 - accuracy

    @staticmethod
    def _logged(trainer: Trainer, logged: Mapping[str, Tensor], keys: tuple[str, ...]) -> float | None:
        for key in keys:
            if key in logged:
                value = logged[key].detach().double().to(trainer.strategy.root_device)
                return float(trainer.strategy.reduce(value))
        return None

    @property
    def open(self) -> bool:
        """Whether an epoch is being measured."""
        return bool(self._open)

    def detach(self) -> None:
        """Take the hooks off the optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._depth = [], 0

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load_state` takes: plain values and tensors.

        Returns:
            The rows, and the epoch that is being measured.
        """
        means = self._restored if self._means is None else self._means.state()
        opened = {**self._open, "sums": dict(self._open["sums"])} if self._open else {}
        return {"rows": [dict(row) for row in self.rows], "open": opened, "means": means}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Args:
            state: As given by :meth:`state`.
        """
        self.rows = [dict(row) for row in state["rows"]]
        self._open, self._restored = dict(state["open"]), state["means"]


def known_rows(rows: list[Row]) -> list[Row]:
    """Leave out epochs whose loss is not known, and the last one where only its error is not known yet.

    Args:
        rows: Rows of :class:`EpochCurves`.

    Returns:
        Rows with a loss; an epoch that Lightning did not end, so that its error was never logged, has that of the
        epoch before.
    """
    rows = [row for row in rows if row["loss"] is not None]
    if rows and rows[-1]["error"] is None and any(row["error"] is not None for row in rows):
        rows = rows[:-1]
    known: list[Row] = []
    for row in rows:
        known.append({**row, "error": known[-1]["error"]} if row["error"] is None and known else row)
    return known


def classes_and_threshold(
    trainer: Trainer, pl_module: LightningModule, num_classes: int | None, converged_loss: float | None
) -> tuple[int | None, float]:
    """Find the number of classes, and the loss below which a run counts as converged.

    Args:
        trainer: Its data module may have ``num_classes``.
        pl_module: May have ``num_classes``, and ``loss`` "mse".
        num_classes: The user's choice, if any.
        converged_loss: The user's choice, if any.

    Returns:
        Number of classes, None if not known, and the threshold.
    """
    sources = (getattr(trainer, "datamodule", None), pl_module)
    asked = [num_classes, *(getattr(source, "num_classes", None) for source in sources)]
    classes = next((each for each in asked if isinstance(each, int) and each >= 2), None)
    if converged_loss is None:
        mse = getattr(pl_module, "loss", None) == "mse" and classes is not None
        converged_loss = converged_mse(classes) if mse and classes else CONVERGED_LOSS
    return classes, converged_loss
