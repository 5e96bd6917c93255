"""(f) What the monitors of step sizes and sharpness cost: alternate epochs of one fit, with them and without."""

import tempfile
import time
from itertools import pairwise
from statistics import median

from comparison import Comparison
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from settings import Settings, synchronise

from lit_sphere.callbacks import EffectiveLearningRateMonitor, SharpnessMonitor
from lit_sphere.data import ResidentDataModule
from lit_sphere.modules import SIConvNet

_ELR = 1e-3


def compare_with_unwatched_epochs(settings: Settings) -> list[Comparison]:
    """(f): pairs of neighbouring epochs, so that a machine that grows slower or faster hits both alike."""
    width, images = settings.width, settings.images
    found = [
        Comparison("f1", f"epoch of ConvNet w={width}, {images} images of 32×32", *_SIDES, ("<=", 1.03)),
        Comparison("f2", "epoch of ConvNet w=8, digits", *_SIDES, ("<=", 1.10)),
    ]
    images_fit = (width, 3, settings.images_module(), settings.epochs)
    digits_fit = (8, 1, settings.digits_module(), settings.digits_epochs)
    for comparison, (width, channels, data, factor) in zip(found, (images_fit, digits_fit), strict=True):
        switch = _fit(SIConvNet(width, in_channels=channels, elr=_ELR), data, factor * settings.trials, settings.device)
        comparison.pairs = switch.pairs(0)
        comparison.notes["ratio of processor seconds"] = median(ours / theirs for ours, theirs in switch.pairs(1))
    return found


_SIDES = ("EffectiveLearningRateMonitor and SharpnessMonitor", "neither", "s")


class SwitchMonitors(Callback):
    """Takes the callbacks after itself out of the fit in every other epoch, and notes when epochs begin.

    The first epoch warms up. Of each pair that follows, the first or the second is watched, in turn.
    """

    def __init__(self, pairs: int, device: str) -> None:
        self.watched = [True, *([True, False, False, True] * pairs)[: 2 * pairs]]
        self.device = device
        self.marks: list[tuple[float, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.all = list(trainer.callbacks)  # type: ignore[attr-defined]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watched = self.watched[trainer.current_epoch]
        trainer.callbacks = self.all if watched else [self]  # type: ignore[attr-defined]
        self._mark()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark()
        trainer.callbacks = self.all  # type: ignore[attr-defined]

    def _mark(self) -> None:
        synchronise(self.device)
        self.marks.append((time.perf_counter(), time.process_time()))

    def pairs(self, clock: int) -> list[tuple[float, float]]:
        """Give the seconds of the pairs' epochs, watched ones first."""
        seconds = [end[clock] - start[clock] for start, end in pairwise(self.marks)]
        epochs = list(zip(self.watched, seconds, strict=True))[1:]
        pairs = zip(epochs[::2], epochs[1::2], strict=True)
        return [(first[1], second[1]) if first[0] else (second[1], first[1]) for first, second in pairs]


def _fit(module: SIConvNet, data: ResidentDataModule, pairs: int, device: str) -> SwitchMonitors:
    switch = SwitchMonitors(pairs, device)
    with tempfile.TemporaryDirectory(prefix="lit-sphere-benchmark-") as folder:
        trainer = Trainer(
            accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_epochs=1 + 2 * pairs,
            callbacks=[switch, EffectiveLearningRateMonitor(), SharpnessMonitor()],
            logger=CSVLogger(folder), log_every_n_steps=1, limit_val_batches=0, use_distributed_sampler=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    return switch
