"""Checkpoints of a run: the last one, and on request all."""

import math
import time
from pathlib import Path
from typing import Any
from weakref import proxy

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_sphere.observe.both_lightnings import put_checkpoints_last
from lit_sphere.observe.checkpoint_files import (
    PendingCheckpoint,
    is_local,
    remove_unfinished,
    write_whole_checkpoints,
)


class RunCheckpoint(ModelCheckpoint):
    """Monitor: saves ``last.ckpt`` at the end of epochs and of the run, atomically; ``keep_all`` keeps every one.

    Lightning's ``ModelCheckpoint`` with the options that a run on the sphere needs; there is no best
    checkpoint, since regimes are told by where a run stays. Of epochs that take milliseconds only some are saved:
    to save each would cost a tenth of the run.

    A file takes its place when it is on the disk and what was logged up to there is in the loggers' tables, so that a
    killed or full machine costs at most the steps since: the checkpoint before stays until then.

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
        self._pending: list[PendingCheckpoint] = []
        self._is_due_at_epoch_end = False
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
            save_on_train_epoch_end=True,  # at the end of validation the epoch is not over yet
        )

    @property
    def state_key(self) -> str:
        """The same for all intervals: a resumed run may save more or less often."""
        return "RunCheckpoint"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over how files are written, and remove what a kill left unfinished."""
        super().setup(trainer, pl_module, stage)
        put_checkpoints_last(trainer)
        write_whole_checkpoints(trainer)
        if stage == "fit" and trainer.is_global_zero and is_local(self.dirpath):
            remove_unfinished(Path(str(self.dirpath)))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put the checkpoint of the last step in its place: that step has been logged."""
        self._put_in_place(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every so many steps; after the last batch when the epoch has ended, so that no run ends it twice."""
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        elif self._every_n_train_steps and trainer.global_step % self._every_n_train_steps == 0:
            self._is_due_at_epoch_end = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the epoch's checkpoint in its place: Lightning has logged the epoch."""
        self._put_in_place(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch, unless one has just been saved."""
        if self._is_due_at_epoch_end and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        elif self._is_due(trainer):
            super().on_train_epoch_end(trainer, pl_module)
        self._is_due_at_epoch_end = False

    def _is_due(self, trainer: Trainer) -> bool:
        if not self.least_seconds:
            return True
        # All ranks take part in saving: the first one's clock decides.
        due: bool = trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self.least_seconds)
        return due

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if is_local(filepath):
            self._pending.append(PendingCheckpoint(trainer, filepath, self.save_weights_only))
            self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, filepath
        else:
            super()._save_checkpoint(trainer, filepath)
        self._saved_at = time.monotonic()

    def _put_in_place(self, trainer: Trainer) -> None:
        if self._pending and trainer.is_global_zero:
            for pending in self._pending:
                pending.put_in_place()
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))
        self._pending = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the checkpoint in its place, unless what ended the run kept the tables from being written."""
        if not isinstance(exception, OSError):
            self._put_in_place(trainer)
        super().on_exception(trainer, pl_module, exception)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run where it falls between two checkpoints."""
        self._put_in_place(trainer)
        if self.dirpath is not None and self._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", weights_only=False)
