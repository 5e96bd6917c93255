"""The norm of the scale-invariant parameters, fixed under any optimizer."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_fits import Memory, assert_equal, everything, quietly
from foreign_modules import ForeignData, ForeignLayerNorm, ForeignManual, ForeignResNet
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lit_sphere.callbacks import EffectiveLearningRateMonitor, FixedNorm
from lit_sphere.data import Digits
from lit_sphere.groups import find_groups
from lit_sphere.modules import SIConvNet
from lit_sphere.optim import NormKeeper, joint_norm

pytestmark = quietly
BATCHES = 3
DECAY: dict[str, Any] = {"lr": 0.3, "weight_decay": 1e-2}


class Killed(Exception):
    pass


class SaveAndDie(Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == self.step + 1:
            raise Killed


def ours(**options: Any) -> SIConvNet:
    torch.manual_seed(0)
    return SIConvNet(width=4, in_channels=1, **(options or {"optimizer": partial(torch.optim.SGD, **DECAY)}))


def trainer_of(folder: Path, *callbacks: Callback, epochs: int = 4, **options: Any) -> Trainer:
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(
        **{
            **dict.fromkeys(quiet, False),
            "max_epochs": epochs,
            "accelerator": "cpu",
            "callbacks": list(callbacks),
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "default_root_dir": folder,
            **options,
        }
    )


def fit(folder: Path, *callbacks: Callback, module: LightningModule | None = None, **options: Any) -> Any:
    data = Digits(batch_size=64, train_size=64 * BATCHES) if module is None or isinstance(module, SIConvNet) else None
    ckpt_path = options.pop("ckpt_path", None)
    options.setdefault("use_distributed_sampler", data is None)
    module = ours() if module is None else module
    trainer = trainer_of(folder, *callbacks, **options)
    trainer.fit(module, data or ForeignData(), ckpt_path=ckpt_path)
    return trainer, module


def norms_of(folder: Path, *callbacks: Callback, **options: Any) -> list[float]:
    memory = Memory()
    fit(folder, EffectiveLearningRateMonitor(), *callbacks, logger=memory, **options)
    return [value for (_, key), value in sorted(memory.logged.items()) if key == "norm/total"]


def invariant(module: LightningModule) -> list[nn.Parameter]:
    example = torch.randn(2, 3, 16, 16)
    return list(dict.fromkeys(p for group in find_groups(module, example) for p in group.parameters))


# --- the pure part


def test_a_keeper_keeps_several_norms_against_a_slow_loop() -> None:
    torch.manual_seed(0)
    groups = [[nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(7))], [nn.Parameter(torch.randn(70_000))]]
    params = [p for group in groups for p in group]
    optimizer = torch.optim.AdamW(params, lr=0.1)
    keeper = NormKeeper(groups)
    wanted = [math.sqrt(sum(float(p.detach().double().pow(2).sum()) for p in group)) for group in groups]
    assert keeper.norms == pytest.approx(wanted, rel=1e-6)
    keeper.attach(optimizer)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        before = [p.detach().clone() for p in params]
        optimizer.step()
        assert [joint_norm(group).item() for group in groups] == pytest.approx(wanted, rel=1e-6)
        assert all(float((p.detach() - q).abs().max()) > 0 for p, q in zip(params, before, strict=True))
    keeper.detach()
    optimizer.step()
    assert joint_norm(groups[1]).item() != pytest.approx(wanted[1], rel=1e-4)


def test_a_keeper_of_two_precisions() -> None:
    params = [nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5, dtype=torch.float64))]
    NormKeeper([[params[0]], [params[1]]], [2.0, 3.0]).rescale()
    assert [float(p.detach().norm()) for p in params] == pytest.approx([2.0, 3.0])


@pytest.mark.parametrize(
    ("groups", "norms", "said"),
    [
        ([], None, "at least one parameter"),
        ([[torch.zeros(3)]], None, "positive and finite norms"),
        ([[torch.ones(3)]], [1.0, 2.0], "1 positive and finite norms are needed"),
        ([[torch.ones(3)]], [-1.0], "positive and finite"),
        ([[torch.ones(3)] * 2], None, "none twice"),
    ],
)
def test_keepers_that_are_none(groups: Any, norms: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        NormKeeper(groups, norms)


# --- in training


def test_the_norm_is_flat_from_the_start_or_later(tmp_path: Path) -> None:
    free = norms_of(tmp_path)
    assert len(set(free)) == 4
    fixed = norms_of(tmp_path, FixedNorm())
    assert fixed == pytest.approx([fixed[0]] * 4, rel=1e-6)
    later = norms_of(tmp_path, FixedNorm(from_epoch=2))
    assert later[:2] == free[:2]
    assert later[2] == pytest.approx(later[3], rel=1e-6)
    assert later[2] != pytest.approx(free[2], rel=1e-5)
    assert norms_of(tmp_path, FixedNorm(from_step=2 * BATCHES)) == later
    assert norms_of(tmp_path, FixedNorm(2.5)) == pytest.approx([2.5] * 4, rel=1e-6)


def test_each_group_by_itself(tmp_path: Path) -> None:
    for granularity, same in (("tensor", True), ("joint", False)):
        module = ours()
        start = [float(p.detach().norm()) for p in module.parameters() if p.requires_grad]
        fit(tmp_path, FixedNorm(norm=2.0, granularity=granularity), module=module)  # type: ignore[arg-type]
        end = [float(p.detach().norm()) for p in module.parameters() if p.requires_grad]
        scale = 2.0 / math.hypot(*start)
        assert math.hypot(*end) == pytest.approx(2.0, rel=1e-5)
        assert (end == pytest.approx([scale * norm for norm in start], rel=1e-5)) is same


def test_to_scale_the_start_leaves_the_function_alone(tmp_path: Path) -> None:
    x, module = torch.randn(5, 1, 8, 8), ours(optimizer=partial(torch.optim.SGD, lr=1e-30))
    before = module.network(x).detach()
    fit(tmp_path, FixedNorm(norm=3.0), module=module, epochs=1)
    module.train()
    assert torch.allclose(module.network(x), before, atol=1e-3)


@pytest.mark.parametrize("make", [ForeignResNet, ForeignLayerNorm, ForeignManual])
def test_foreign_modules(make: Callable[[], LightningModule], tmp_path: Path) -> None:
    """AdamW, momentum with a schedule, and two optimizers under manual optimisation."""
    module, free = make(), make()
    params, start = invariant(module), joint_norm(invariant(module)).item()
    fit(tmp_path, FixedNorm(), module=module)
    assert joint_norm(params).item() == pytest.approx(start, rel=1e-6)
    fit(tmp_path, module=free)
    assert joint_norm(invariant(free)).item() != pytest.approx(start, rel=1e-5)


@pytest.mark.parametrize("step", [2, 3, 4, 7])
def test_a_killed_and_resumed_run_is_bit_identical(step: int, tmp_path: Path) -> None:
    whole = everything(*fit(tmp_path, FixedNorm(2.0, from_step=4)))
    with pytest.raises(Killed):
        fit(tmp_path, FixedNorm(2.0, from_step=4), SaveAndDie(tmp_path / "a.ckpt", step))
    resumed = everything(*fit(tmp_path, FixedNorm(2.0, from_step=4), ckpt_path=tmp_path / "a.ckpt"))
    assert_equal(whole, resumed)


class RanksAgree(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mine = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        others = [torch.empty_like(mine) for _ in range(2)]
        torch.distributed.all_gather(others, mine)
        assert torch.equal(others[0], others[1])
        params = [p for p in pl_module.parameters() if p.requires_grad]
        assert joint_norm(params).item() == pytest.approx(2.0, rel=1e-6)


def test_two_ranks_hold_the_same(tmp_path: Path) -> None:
    fit(tmp_path, FixedNorm(2.0), RanksAgree(), devices=2, strategy="ddp_fork", epochs=1)


# --- refused, warned of


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"norm": 0.0}, "norm must be positive"),
        ({"norm": math.nan}, "norm must be positive and finite"),
        ({"from_epoch": -1}, "must begin at 0 or later"),
        ({"from_epoch": 1, "from_step": 1}, "both from_epoch and from_step"),
        ({"granularity": "filter"}, "granularity must be one of joint, tensor"),
    ],
)
def test_arguments(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"FixedNorm: .*{said}"):
        FixedNorm(**options)


def test_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="FixedNorm: SphereSGD keeps the norm already; remove FixedNorm"):
        fit(tmp_path, FixedNorm(), module=ours(elr=1e-3))
    with pytest.raises(ValueError, match="FixedNorm: there are two of them"):
        fit(tmp_path, FixedNorm(), FixedNorm(2.0))

    class HeadOnly(ForeignResNet):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([list(self.parameters())[-1]], lr=0.1)

    with pytest.raises(ValueError, match="FixedNorm: no optimizer trains the scale-invariant group"):
        fit(tmp_path, FixedNorm(), module=HeadOnly())


def test_a_norm_that_was_never_fixed_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="after 1 epochs and 3 steps, before fixing began: it changed nothing"):
        fit(tmp_path, FixedNorm(from_epoch=1), epochs=1)


def periods(losses: list[float]) -> int:
    """How often a loss that has fallen below 0.1 rises above 0.5 again."""
    count, low = 0, False
    for loss in losses:
        count += low and loss > 0.5
        low = loss < 0.1 or (low and loss <= 0.5)
    return count


@pytest.mark.slow
def test_without_a_changing_norm_there_are_no_periods(tmp_path: Path) -> None:
    """PB: with weight decay in the whole space training is periodic; with a fixed norm it is not."""
    counted = []
    for callbacks in ([], [FixedNorm()]):
        memory = Memory()
        torch.manual_seed(0)
        module = SIConvNet(width=8, in_channels=1, optimizer=partial(torch.optim.SGD, **DECAY))
        trainer = trainer_of(tmp_path, *callbacks, epochs=250, logger=memory, use_distributed_sampler=False)
        trainer.fit(module, Digits())
        losses = [value for (_, key), value in sorted(memory.logged.items()) if key == "train/loss"]
        assert len(losses) == 250
        counted.append(periods(losses))
    assert counted[0] >= 3
    assert counted[1] == 0
