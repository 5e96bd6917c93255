"""Networks and a callback that go wrong in known ways, for the command line's tests (by import path)."""

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
