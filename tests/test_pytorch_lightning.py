"""Lightning's other package: all callbacks in a Trainer, a module and a data module of ``pytorch_lightning``."""

import math
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import pytorch_lightning
import torch
from callback_fits import HAS_WANDB, quietly
from callback_registry import REGISTRY
from foreign_modules import BATCH, CLASSES, CountingLoader, ForeignData
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_sphere.callbacks import (
    EffectiveLearningRateMonitor,
    FixedNorm,
    GracefulStop,
    NonFinite,
    OptimizerComparison,
    RunCheckpoint,
    RunProgressBar,
    RunSummary,
    StopOnNonFinite,
)
from lit_sphere.observe.both_lightnings import both, overrides
from lit_sphere.observe.checkpoint_files import WholeCheckpointIO
from lit_sphere.observe.stopping import can_stop
from lit_sphere.optim import SphereSGD
from lit_sphere.rivals.checks import check_run

pytestmark = [quietly, pytest.mark.filterwarnings("ignore:The dirpath has changed")]


class Module(pytorch_lightning.LightningModule):
    """Layer norms, momentum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        body = [nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8), nn.LayerNorm(8)]
        self.model = nn.Sequential(*body, nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Any:
        return self.model(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


class ConvModule(Module):
    """Convolutions and batch norms, Adam."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)]
        self.model = nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=1e-2)


class SphereModule(ConvModule):
    """Its convolutions on one sphere, all else frozen."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        for name, p in self.model.named_parameters():
            p.requires_grad_(name in ("0.weight", "3.weight"))
        return SphereSGD([p for p in self.parameters() if p.requires_grad], elr=2e-2)


class Data(pytorch_lightning.LightningDataModule):
    augment = False

    def __init__(self) -> None:
        super().__init__()
        self.sets = ForeignData()

    def train_dataloader(self) -> CountingLoader:
        return CountingLoader(self.sets.train, BATCH)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.sets.val, BATCH)


class Memory(Logger):
    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[tuple[int, str], float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.logged.update({(step, key): value for key, value in metrics.items()})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Wandb(WandbLogger):
    name = version = save_dir = experiment = None

    def __init__(self) -> None:
        self.images: set[str] = set()

    def log_metrics(self, *_: Any, **__: Any) -> None:
        pass

    log_hyperparams = after_save_checkpoint = save = finalize = log_metrics

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.images.add(f"{key.removeprefix('pictures/')}.png")


def trainer_for(callbacks: list[Any], folder: Path, **options: Any) -> Any:
    return pytorch_lightning.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 3,
            "callbacks": callbacks,
            "default_root_dir": folder,
            "logger": False,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks),
            "use_distributed_sampler": False,
            **options,
        }
    )


def fit(name: str, folder: Path, ckpt_path: Path | None = None, epochs: int = 3) -> tuple[Memory, set[str], Any]:
    entry, memory, wandb = REGISTRY[name], Memory(), Wandb()
    random.seed(0)
    np.random.seed(0)
    kind = SphereModule if entry.cases == ("ours",) else Module if "layer_norm" in entry.cases else ConvModule
    module = kind()
    callbacks = [entry.make(folder), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)]
    loggers = [CSVLogger(folder, name="", version=""), memory, *([wandb] if HAS_WANDB else [])]
    trainer = trainer_for(callbacks, folder, logger=loggers, max_epochs=epochs)
    trainer.fit(module, Data(), ckpt_path=ckpt_path)
    return memory, wandb.images, module.state_dict()


@pytest.mark.filterwarnings("ignore:FineTuneSwitch.* (will not take|never took) place")
# fewer epochs than the registry is made for
@pytest.mark.parametrize("name", REGISTRY)
def test_it_runs(name: str, tmp_path: Path) -> None:
    memory, _, _ = fit(name, tmp_path, epochs=2)
    assert "train_loss" in {key for _, key in memory.logged}
    assert (tmp_path / "epoch=0.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTRY)
def test_it_runs_and_resumes(name: str, tmp_path: Path) -> None:
    entry = REGISTRY[name]
    memory, images, end = fit(name, tmp_path / "whole")
    logged = {key for _, key in memory.logged}
    for pattern in entry.logs:
        assert any(re.fullmatch(pattern, key) for key in logged), f"no {pattern} in {sorted(logged)}"
    assert images >= set(entry.pictures) or not HAS_WANDB
    resumed, _, same_end = fit(name, tmp_path / "resumed", tmp_path / "whole" / "epoch=1.ckpt")
    assert resumed.logged
    assert resumed.logged.items() <= memory.logged.items()
    assert all(torch.equal(value, same_end[key]) for key, value in end.items())


class _Clips(Module):
    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        pass


class _LightningClips(lightning.LightningModule):
    configure_gradient_clipping = _Clips.configure_gradient_clipping


def test_methods_of_both_packages() -> None:
    name = "configure_gradient_clipping"
    kinds: list[Any] = [Module, _Clips, lightning.LightningModule, _LightningClips]
    assert [overrides(name, kind()) for kind in kinds] == [False, True, False, True]


def test_classes_of_both_packages() -> None:
    strategies = both(lightning.strategies.FSDPStrategy, lightning.strategies.DDPStrategy)
    assert {kind.__name__ for kind in strategies} == {"FSDPStrategy", "DDPStrategy"}
    assert len(strategies) == 4
    assert issubclass(pytorch_lightning.strategies.FSDPStrategy, strategies)
    assert both(FixedNorm) == (FixedNorm,)


def test_what_cannot_work_is_refused_here_too(tmp_path: Path) -> None:
    trainer = trainer_for([OptimizerComparison({"SGD": partial(torch.optim.SGD, lr=0.1)})], tmp_path)
    trainer.strategy.__class__ = pytorch_lightning.strategies.FSDPStrategy
    with pytest.raises(ValueError, match="FSDPStrategy shards the parameters"):
        check_run(trainer.callbacks[0], trainer, Module())  # type: ignore[arg-type]


def test_a_passes_end_waits_where_its_early_stopping_may_decide(tmp_path: Path) -> None:
    stopping = pytorch_lightning.callbacks.EarlyStopping("train_loss")
    assert can_stop(trainer_for([], tmp_path))
    assert not can_stop(trainer_for([stopping], tmp_path))


def test_checkpoints_are_whole_and_callbacks_that_save_come_last(tmp_path: Path) -> None:
    callbacks = [GracefulStop(tmp_path), RunCheckpoint(tmp_path / "c"), EffectiveLearningRateMonitor()]
    trainer = trainer_for(callbacks, tmp_path, max_epochs=1)
    trainer.fit(Module(), Data())
    assert trainer.callbacks == [callbacks[2], callbacks[0], callbacks[1]]
    assert isinstance(trainer.strategy.checkpoint_io, WholeCheckpointIO)
    saved = torch.load(tmp_path / "c" / "last.ckpt", weights_only=True)
    assert saved["callbacks"].keys() == {each.state_key for each in callbacks[1:]}


class _Explodes(Module):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (math.nan if self.current_epoch else 1.0)


def test_a_stop_names_the_last_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_for([StopOnNonFinite(), ModelCheckpoint(tmp_path, "kept")], tmp_path)
    with pytest.raises(NonFinite, match=r"epoch 1.*kept\.ckpt"):
        trainer.fit(_Explodes(), Data())


def test_one_bar_and_the_curves_of_its_table(tmp_path: Path) -> None:
    callbacks = [RunProgressBar(), EffectiveLearningRateMonitor(), RunSummary(tmp_path)]
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = trainer_for(callbacks, tmp_path, enable_progress_bar=True, logger=logger, max_epochs=1)
    trainer.fit(Module(), Data())
    (theirs,) = [each for each in trainer.callbacks if isinstance(each, ProgressBar)]
    assert theirs.is_disabled  # type: ignore[attr-defined]
    assert (tmp_path / "curves.png").is_file()
