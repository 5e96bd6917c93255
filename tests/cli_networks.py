"""A user's networks and callbacks, most of which go wrong in known ways; named by import path in other tests."""

from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn


class ReLUNet(nn.Sequential):
    """No normalisation: nothing is scale-invariant."""

    def __init__(self, pixels: int = 64) -> None:
        super().__init__(nn.Flatten(), nn.Linear(pixels, 8), nn.ReLU(), nn.Linear(8, 10))


class Break(Callback):
    """Makes the input NaN in the second batch of the second epoch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            batch[0].fill_(torch.nan)


class LogsItsOwn(Callback):
    """Logs keys of sections that are not ours, one through Lightning, one to the loggers without an epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("foreign/value", 1.0)
        for logger in trainer.loggers:
            logger.log_metrics({"foreign/bare": 2.0}, step=trainer.global_step)


class CountBatches(Callback):
    """Counts the batches of each epoch and evaluation, and keeps the Trainer's limits; of the class, for the test."""

    seen: ClassVar[dict[str, int]] = {}
    limits: ClassVar[dict[str, float | int | str]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.seen.clear()
        limits = (*(f"limit_{stage}_batches" for stage in ("train", "val", "test", "predict")), "val_check_interval")
        self.limits.update({name: getattr(trainer, name) for name in limits})

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._count("train")

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._count("val")

    def on_test_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._count("test")

    def _count(self, stage: str) -> None:
        self.seen[stage] = self.seen.get(stage, 0) + 1
