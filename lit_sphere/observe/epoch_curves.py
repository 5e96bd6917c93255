"""Curves of a run by epoch, measured as it trains, and the base of callbacks that judge a run by them."""

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lit_sphere.analysis.epoch_rows import (
    ACCURACY_KEYS,
    ERROR_KEYS,
    LOSS_KEYS,
    Row,
    check_converged_loss,
    default_converged_loss,
)
from lit_sphere.effective import NOT_STEPPED, QUANTITIES, StepMeans
from lit_sphere.observe.module_groups import FindsGroups
from lit_sphere.observe.optimizer_steps import StepWatch
from lit_sphere.observe.publishing import PlannedRun, run_folder_of
from lit_sphere.observe.train_loss import TrainLoss

_QUANTITIES = ("elr", "ess", "effective_grad_norm")


class EpochCurves:
    """Collects a row for each epoch; the owner passes its hooks on.

    Loss and error are the means over the samples of an epoch of what the training step returns,
    ``{"loss": …, "error": …}``. Where it returns none, they are read from what the module logs. Nothing waits for the
    device within an epoch.

    Args:
        owner: The callback, to be named in errors.
        every_n_steps: Effective quantities are measured at the first and then every n-th optimizer step of an epoch.
        loss_keys: Logged keys of the train loss, the first found is taken.
        error_keys: Logged keys of the train error.
        accuracy_keys: Logged keys of its complement.
        kind: What keeps the measured steps.

    Attributes:
        rows: The rows so far.
    """

    def __init__(
        self,
        owner: Callback,
        every_n_steps: int,
        loss_keys: tuple[str, ...] = LOSS_KEYS,
        error_keys: tuple[str, ...] = ERROR_KEYS,
        accuracy_keys: tuple[str, ...] = ACCURACY_KEYS,
        kind: type[StepMeans] = StepMeans,
    ) -> None:
        self._loss_keys, self._error_keys, self._accuracy_keys = loss_keys, error_keys, accuracy_keys
        self.rows: list[Row] = []
        self._watch = StepWatch(owner, self._on_measured, every_n_steps, announces=False, kind=kind)
        self._open: dict[str, Any] = {}  # the epoch that is being measured
        self._loss = TrainLoss()  # of that epoch

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
            self.rows, self._open = [], {}
            self._watch.forget()
        self._watch.fit_start(trainer, pl_module)
        return anew

    def batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Find the groups from the first batch otherwise; open the epoch."""
        self._watch.batch_start(trainer, pl_module, batch)
        if self._watch.stays_out:
            return
        if self._open.get("epoch") != trainer.current_epoch:
            if self._open:
                self._close(trainer)  # an epoch whose last batch was in the checkpoint is not ended again
            self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        self._open = {"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": 0.0, "lrs": 0}
        self._loss.reset()
        self._watch.steps = 0  # the first step of each epoch is measured, so that none is left out
        assert self._watch.means is not None
        self._watch.means.load_state({})

    def before_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Read the learning rate, before a scheduler moves it, and observe or prepare to."""
        if self._open and self._watch.is_watched(optimizer):
            self._open["lr"] += self._watch.learning_rate()
            self._open["lrs"] += 1
            self._watch.before_step(trainer, optimizer)

    def _on_measured(self, trainer: Trainer) -> None:
        if self._open and self._watch.means is not None:
            self._watch.means.add()

    def batch_end(self, trainer: Trainer, outputs: Any, batch: Any) -> None:
        """Add up loss and error of the step, on their device."""
        if self._open:
            self._loss.add(trainer, outputs, batch)

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
        row |= self._loss.means(trainer)
        measured = self._watch.mean()
        for quantity in _QUANTITIES:
            values = None if measured is None else measured[QUANTITIES.index(quantity)].tolist()
            known = values is not None and values[0] != NOT_STEPPED
            row[quantity] = [None if each == NOT_STEPPED else each for each in values or []] if known else None
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
    def equal_steps(self) -> bool:
        """Whether the theory predicts equal effective step sizes of all groups at the last step."""
        return self._watch.means is not None and self._watch.means.quantities.equilibrium is not None

    @property
    def stays_out(self) -> bool:
        """Whether there is nothing to watch in this run."""
        return self._watch.stays_out

    @property
    def open(self) -> bool:
        """Whether an epoch is being measured."""
        return bool(self._open)

    def detach(self) -> None:
        """Take the hooks off the optimizer."""
        self._watch.detach()

    @property
    def group_names(self) -> list[str]:
        """Short names of the groups, once they are found."""
        return self._watch.names

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load_state` takes: plain values and tensors.

        Returns:
            The rows, and the epoch that is being measured.
        """
        opened = {**self._open, "means": self._loss.state()} if self._open else {}
        return {"rows": [dict(row) for row in self.rows], "open": opened, "watch": self._watch.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Args:
            state: As given by :meth:`state`.
        """
        self.rows = [dict(row) for row in state["rows"]]
        opened = dict(state["open"])
        self._loss.load_state(opened.get("means", opened))
        self._open = {name: opened[name] for name in ("epoch", "step", "lr", "lrs")} if opened else {}
        self._watch.load_state(state["watch"])


def classes_and_threshold(
    data: Any, pl_module: LightningModule, num_classes: int | None, converged_loss: float | None
) -> tuple[int | None, float]:
    """Find the number of classes, and the loss below which a run counts as converged.

    Args:
        data: Data module, which may have ``num_classes``.
        pl_module: May have ``num_classes``, and ``loss`` "mse".
        num_classes: The user's choice, if any.
        converged_loss: The user's choice, if any.

    Returns:
        Number of classes, None if not known, and the threshold.

    Raises:
        ValueError: If the user's threshold is one of another loss.
    """  # noqa: DOC502
    sources = (data, pl_module)
    candidates = [num_classes, *(getattr(source, "num_classes", None) for source in sources)]
    classes = next((each for each in candidates if isinstance(each, int) and each >= 2), None)
    loss = getattr(pl_module, "loss", None)
    loss = loss if isinstance(loss, str) else None
    if converged_loss is None:
        return classes, default_converged_loss(loss, classes)
    check_converged_loss(converged_loss, loss, classes)
    return classes, converged_loss


class CurveCallback(FindsGroups):
    """Collects :class:`EpochCurves`; subclasses judge them at the end of epochs and of the run.

    Args:
        num_classes: Number of classes, if not that of the data module or of the module.
        loss_key: Logged key of the train loss, if the training step returns none.
        error_key: Logged key of the train error, if the training step returns none.
        converged_loss: Loss below which a run counts as converged.
        every_n_steps: Optimizer steps between two measurements of effective quantities.

    Raises:
        ValueError: If an argument is out of range; the subclass is named.
    """

    def __init__(
        self,
        num_classes: int | None,
        loss_key: str | None,
        error_key: str | None,
        converged_loss: float | None,
        every_n_steps: int,
    ) -> None:
        name = type(self).__name__
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"{name}: num_classes must be at least 2, got {num_classes}")
        if converged_loss is not None and not (math.isfinite(converged_loss) and converged_loss > 0):
            raise ValueError(f"{name}: converged_loss must be positive and finite, got {converged_loss}")
        if every_n_steps < 1:
            raise ValueError(f"{name}: every_n_steps must be at least 1, got {every_n_steps}")
        self.num_classes, self.converged_loss, self.every_n_steps = num_classes, converged_loss, every_n_steps
        self.loss_key, self.error_key = loss_key, error_key
        self._curves = EpochCurves(
            self,
            every_n_steps,
            (loss_key,) if loss_key else LOSS_KEYS,
            (error_key,) if error_key else ERROR_KEYS,
            () if error_key else ACCURACY_KEYS,
        )
        self._anew = True  # another run than the last one of this callback

    @property
    def state_key(self) -> str:
        """Names the options; a second one of the same class is refused, however it is set up."""
        return self._generate_state_key(
            classes=self.num_classes,
            keys=(self.loss_key, self.error_key),
            converged=self.converged_loss,
            every=self.every_n_steps,
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups before training."""
        self.check_run(PlannedRun.at_fit_start(trainer, pl_module))
        self._folder = run_folder_of(trainer)
        self._anew = self._curves.fit_start(trainer, pl_module)

    def check_run(self, run: PlannedRun) -> None:
        """Find the number of classes and the threshold of the loss; may be called before ``fit``, which does so, too.

        Args:
            run: The run.

        Raises:
            ValueError: If the threshold is one of another loss.
        """  # noqa: DOC502
        found = classes_and_threshold(run.data, run.pl_module, self.num_classes, self.converged_loss)
        self._classes, self._converged = found

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the last epoch's row."""
        self._curves.settle(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Find the groups from the first batch, if they are not known."""
        self._curves.batch_start(trainer, pl_module, batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read the learning rate of this step, before a scheduler moves it, and observe."""
        self._curves.before_step(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up what the step returned."""
        self._curves.batch_end(trainer, outputs, batch)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizer alone."""
        self._curves.detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizer alone."""
        self._curves.detach()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Complete the last epoch's row also in what is being saved."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if not self._curves.open:
            self._curves.settle(trainer)
            checkpoint["callbacks"][self.state_key] = self.state_dict()
