"""Checkpoints of a run: the last one, and on request all."""

import math
import time
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """Monitor: saves ``last.ckpt`` at the end of epochs and of the run, atomically; ``keep_all`` keeps every one.

    Lightning's ``ModelCheckpoint`` with the options that a run on the sphere needs; there is no best
    checkpoint, since regimes are told by where a run stays. Of epochs that take milliseconds only some are saved:
    to save each would cost a tenth of the run.

    Args:
        dirpath: Folder; on the command line the run's ``checkpoints``.
        every_n_epochs: Epochs between two checkpoints.
        every_n_steps: Optimizer steps between two checkpoints, instead of epochs.
        keep_all: Keep all checkpoints, named by epoch and step, for interpolation and similarity.
        least_seconds: Leave the checkpoint of an epoch out if the last one was saved less than this many seconds
            ago; not with ``keep_all`` or ``every_n_steps``. The end of a run is always saved.

    Raises:
        ValueError: If an interval is less than 1, or ``least_seconds`` negative.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RunCheckpoint("checkpoints", every_n_epochs=10)], logger=False)
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        keep_all: bool = False,
        least_seconds: float = 1.0,
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if least_seconds < 0:
            raise ValueError(f"least_seconds must not be negative, got {least_seconds}")
        self.least_seconds = 0.0 if keep_all or every_n_steps else least_seconds
        self._saved_at = -math.inf
        super().__init__(
            dirpath=dirpath,
            filename="epoch{epoch:04d}-step{step:06d}" if keep_all else "last",
            auto_insert_metric_name=False,
            # With save_top_k=0 Lightning would save nothing before the run's end, whatever save_last says.
            save_last=keep_all or None,
            save_top_k=-1 if keep_all else 1,
            enable_version_counter=False,
            every_n_epochs=None if every_n_steps else every_n_epochs,
            every_n_train_steps=every_n_steps,
        )

    @property
    def state_key(self) -> str:
        """The same for all intervals: a resumed run may save more or less often."""
        return "RunCheckpoint"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch, unless one has just been saved."""
        if self._is_due(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch, unless one has just been saved."""
        if self._is_due(trainer):
            super().on_validation_end(trainer, pl_module)

    def _is_due(self, trainer: Trainer) -> bool:
        if not self.least_seconds:
            return True
        # All ranks take part in saving: the first one's clock decides.
        due: bool = trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self.least_seconds)
        return due

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._saved_at = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run where it falls between two checkpoints."""
        if self.dirpath is not None and self._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", weights_only=False)
