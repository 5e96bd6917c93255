"""The base of callbacks that judge a run by its curves over epochs."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lit_sphere.callbacks._epoch_curves import (
    ACCURACY_KEYS,
    ERROR_KEYS,
    LOSS_KEYS,
    EpochCurves,
    classes_and_threshold,
)
from lit_sphere.callbacks._pictures import run_folder_of


class CurveCallback(Callback):
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
        self._folder = run_folder_of(trainer)
        self._anew = self._curves.fit_start(trainer, pl_module)
        self._classes, self._converged = classes_and_threshold(
            trainer, pl_module, self.num_classes, self.converged_loss
        )

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
        self._curves.batch_end(trainer, pl_module, outputs)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizer alone."""
        self._curves.detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizer alone."""
        self._curves.detach()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Complete the last epoch's row also in what is being saved."""
        if not self._curves.open:
            self._curves.settle(trainer)
            checkpoint["callbacks"][self.state_key] = self.state_dict()
