"""A user's networks and callbacks, most of which go wrong in known ways; named by import path in other tests."""

from typing import Any

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
