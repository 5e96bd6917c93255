"""Callbacks by which the benchmark looks into runs of the command line."""

import os
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

MARK_FILE = "LIT_SPHERE_BENCHMARK_MARK"
"""Environment variable that names the file of :class:`FirstStepMark`."""


class EpochClock(Callback):
    """Notes when epochs begin, the last one's end after its evaluation, checkpoint and log, and what was evaluated."""

    # Of the class: the command line makes the instance.
    marks: ClassVar[list[float]] = []
    evaluated: ClassVar[list[int]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.marks.clear()
        self.evaluated.clear()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.evaluated.append(0)
        self._mark()

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self.evaluated[-1] += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark()

    def _mark(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())


class FirstStepMark(Callback):
    """Writes the time of day at which the first training step begins, and ends the process there."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        Path(os.environ[MARK_FILE]).write_text(repr(time.time()))
        os._exit(0)  # nothing after this is of interest, not even W&B's farewell


class SyncGuard(Callback):
    """Makes every host synchronisation an error from the start of the third step to the end of the fifth."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 4:
            torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        torch.cuda.set_sync_debug_mode("default")
