"""Two gloo processes on a CPU: one point on one sphere, one gradient, one log."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lit_sphere.callbacks import EffectiveLearningRateMonitor, StopOnNonFinite
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet, SphereModule
from lit_sphere.networks.frozen_head import freeze_head
from lit_sphere.optim import RandomWalk

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")


def layer_norm_mlp() -> nn.Sequential:
    """Scale-invariant, and without batch statistics: two ranks compute what one computes."""
    torch.manual_seed(0)
    head = nn.Linear(16, 10)
    freeze_head(head, 10.0)
    hidden: list[nn.Module] = []
    for width_in in (64, 16):
        hidden += [
            nn.Linear(width_in, 16, bias=False),
            nn.LayerNorm(16, elementwise_affine=False, eps=1e-12),
            nn.ReLU(),
        ]
    return nn.Sequential(nn.Flatten(), *hidden, head)


class CompareRanks(Callback):
    """At the end of training: all ranks hold the same parameters, on the sphere, and the same log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        keys = sorted(trainer.callback_metrics)
        logged = torch.stack([trainer.callback_metrics[key].double() for key in keys])
        if trainer.world_size > 1:
            for mine in (parameters, logged):
                others = [torch.empty_like(mine) for _ in range(trainer.world_size)]
                dist.all_gather(others, mine)
                assert all(torch.equal(mine, other) for other in others)
        group = trainer.optimizers[0].param_groups[0]
        norm = math.sqrt(sum(float(p.detach().double().pow(2).sum()) for p in group["params"]))
        assert abs(norm / group["radius"] - 1) < 1e-6
        if trainer.is_global_zero:
            torch.save(dict(zip(keys, logged.tolist(), strict=True)), self.folder / f"{trainer.world_size}.pt")


def run(module: SphereModule, folder: Path, devices: int, **options: Any) -> dict[str, float]:
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[EffectiveLearningRateMonitor(), StopOnNonFinite(), CompareRanks(folder)],
        **options,
    )
    trainer.fit(module, Digits(train_size=256, batch_size=64, label_noise=0.4))
    logged: dict[str, float] = torch.load(folder / f"{devices}.pt", weights_only=True)
    return logged


@pytest.mark.parametrize("optimizer", [None, pytest.param(RandomWalk, marks=pytest.mark.slow)])
def test_ranks_hold_the_same_point_of_the_sphere_and_log_the_same(optimizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    logged = run(SIConvNet(width=4, in_channels=1, elr=1e-2, optimizer=optimizer), tmp_path, 2)
    assert {"elr/total", "effective_grad_norm/total", "ess/total", "norm/total", "val/error"} <= logged.keys()
    assert logged["elr/total"] == pytest.approx(1e-2, rel=1e-6)


@pytest.mark.parametrize("precision", ["64-true", "32-true"])
def test_two_ranks_take_the_steps_of_one(precision: Any, tmp_path: Path) -> None:
    one, two = (
        run(
            SphereModule(layer_norm_mlp(), elr=1e-2, input_shape=(1, 8, 8)),
            tmp_path,
            devices,
            precision=precision,
        )
        for devices in (1, 2)
    )
    assert one.keys() == two.keys() >= {"train/loss_clean", "train/error_corrupted"}
    # The effective gradient is that of the averaged gradient, not the average of the ranks' own.
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-5 if precision == "64-true" else 1e-3, abs=1e-7), key
