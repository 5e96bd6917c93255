"""(f) What the monitors of step sizes, of their equilibrium and of sharpness cost: alternate epochs of one fit."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import median

from comparison import Comparison
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from settings import Settings, synchronise
from torch.optim import AdamW

from lit_sphere.callbacks import EffectiveLearningRateMonitor, SharpnessMonitor
from lit_sphere.data import ResidentDataModule
from lit_sphere.modules import SIConvNet, SIResNet18, SphereModule

_ELR = 1e-3
_ADAMW = partial(AdamW, lr=1e-3, weight_decay=0.1)


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
        monitors = [EffectiveLearningRateMonitor(), SharpnessMonitor()]
        module = SIConvNet(width, in_channels=channels, elr=_ELR)
        _measure(comparison, module, data, factor * settings.trials, settings.device, monitors)
    return [*found, *_compare_predictions(settings)]


def _compare_predictions(settings: Settings) -> list[Comparison]:
    """(f3, f4): under AdamW, whose steps are read from its state, and whose equilibrium is predicted in every epoch."""
    width, images = max(1, settings.width // 2), settings.images
    sides = ("EffectiveLearningRateMonitor under AdamW", "none", "s")
    found = [
        Comparison("f3", f"epoch of ResNet-18 w={width}, {images} images of 32×32", *sides),
        Comparison("f4", "epoch of ConvNet w=8, digits", *sides),
    ]
    resnet, conv_net = SIResNet18(width, optimizer=_ADAMW), SIConvNet(8, in_channels=1, optimizer=_ADAMW)
    fits = ((resnet, settings.images_module(), 1), (conv_net, settings.digits_module(), settings.digits_epochs))
    for comparison, (module, data, factor) in zip(found, fits, strict=True):
        monitor = _TimedPrediction()
        _measure(comparison, module, data, factor * settings.trials, settings.device, [monitor])
        comparison.notes["of these the prediction, ms an epoch"] = 1e3 * median(monitor.seconds)
    return found


class _TimedPrediction(EffectiveLearningRateMonitor):
    """Times what comes of foretelling the equilibrium, and of seeing whether it is reached."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def _predict(self, trainer: Trainer, means: Mapping[str, Sequence[float]]) -> dict[str, float]:
        began = time.process_time()
        found = super()._predict(trainer, means)
        self.seconds.append(time.process_time() - began)
        return found


def _measure(
    comparison: Comparison,
    module: SphereModule,
    data: ResidentDataModule,
    pairs: int,
    device: str,
    monitors: Sequence[Callback],
) -> None:
    switch = _fit(module, data, pairs, device, monitors)
    comparison.pairs = switch.pairs(0)
    comparison.notes["ratio of processor seconds"] = median(ours / theirs for ours, theirs in switch.pairs(1))


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


def _fit(
    module: SphereModule, data: ResidentDataModule, pairs: int, device: str, monitors: Sequence[Callback]
) -> SwitchMonitors:
    switch = SwitchMonitors(pairs, device)
    with tempfile.TemporaryDirectory(prefix="lit-sphere-benchmark-") as folder:
        trainer = Trainer(
            accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_epochs=1 + 2 * pairs,
            callbacks=[switch, *monitors],
            logger=CSVLogger(folder), log_every_n_steps=1, limit_val_batches=0, use_distributed_sampler=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    return switch
