"""The learning rate of a sphere: torch's schedulers set it, Lightning's callbacks read it, checkpoints keep it."""

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from callback_fits import Memory, quietly, trainer_for
from foreign_modules import BATCHES, ForeignData, ForeignLayerNorm
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, StochasticWeightAveraging
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

from lit_sphere.callbacks import EffectiveLearningRateMonitor, RegimeMonitor, SharpnessMonitor
from lit_sphere.groups import find_groups
from lit_sphere.optim import SphereSGD

pytestmark = [quietly, pytest.mark.filterwarnings("ignore:The epoch parameter in")]  # torch 2.4's own SequentialLR
ELR = 0.02

_SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": partial(schedulers.LambdaLR, lr_lambda=lambda epoch: epoch / 4),  # from 0
    "MultiplicativeLR": partial(schedulers.MultiplicativeLR, lr_lambda=lambda epoch: 0.7),
    "StepLR": partial(schedulers.StepLR, step_size=2),
    "MultiStepLR": partial(schedulers.MultiStepLR, milestones=[1, 3]),
    "ConstantLR": partial(schedulers.ConstantLR, total_iters=3),
    "LinearLR": partial(schedulers.LinearLR, total_iters=3),
    "ExponentialLR": partial(schedulers.ExponentialLR, gamma=0.6),
    "PolynomialLR": partial(schedulers.PolynomialLR, total_iters=4),  # to 0
    "CosineAnnealingLR": partial(schedulers.CosineAnnealingLR, T_max=4, eta_min=0.01),
    "CosineAnnealingWarmRestarts": partial(schedulers.CosineAnnealingWarmRestarts, T_0=3),
    "CyclicLR": partial(schedulers.CyclicLR, base_lr=0.1, max_lr=0.5, step_size_up=3, cycle_momentum=False),
    "OneCycleLR": partial(schedulers.OneCycleLR, max_lr=0.5, total_steps=8, cycle_momentum=False),
    "ReduceLROnPlateau": partial(schedulers.ReduceLROnPlateau, patience=0, factor=0.5),
    "SequentialLR": lambda optimizer: schedulers.SequentialLR(
        optimizer,
        [schedulers.ConstantLR(optimizer, 0.5, 10), schedulers.ExponentialLR(optimizer, 0.5)],
        milestones=[2],
    ),
    "ChainedScheduler": lambda optimizer: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(optimizer, 0.5, 2), schedulers.ExponentialLR(optimizer, 0.5)], optimizer
    ),
    "SWALR": partial(SWALR, swa_lr=0.01, anneal_epochs=3),
}


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in ((4, 3), (5, 2))]


def take_step(optimizer: Optimizer, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    optimizer.step()


def advance(scheduler: Any) -> None:
    scheduler.step(1.0) if isinstance(scheduler, schedulers.ReduceLROnPlateau) else scheduler.step()


def test_every_schedule_of_torch_is_tried() -> None:
    public = {
        name
        for name, each in vars(schedulers).items()
        if isinstance(each, type) and issubclass(each, schedulers.LRScheduler) and not name.startswith("_")
    }
    assert public - {"LRScheduler"} - _SCHEDULES.keys() == set()


@pytest.mark.parametrize("granularity", ["joint", "filter"])
@pytest.mark.parametrize("name", _SCHEDULES)
def test_a_schedule_sets_the_learning_rate_of_the_step(name: str, granularity: Literal["joint", "filter"]) -> None:
    sphere = SphereSGD(weights(), ELR, granularity=granularity)
    group = sphere.param_groups[0]
    squared = group.get("radius", 1.0) ** 2
    plain = SGD(weights(), lr=ELR * squared)
    one, other = _SCHEDULES[name](sphere), _SCHEDULES[name](plain)
    rates = set()
    for _ in range(6):
        assert group["lr"] == plain.param_groups[0]["lr"]
        assert group["elr"] == pytest.approx(group["lr"] / squared, rel=1e-15)
        rates.add(group["lr"])
        expected = copy.deepcopy(group["params"])
        if group["elr"] > 0:
            take_step(SphereSGD(expected, group["elr"], granularity=granularity))
        take_step(sphere)
        for p, q in zip(group["params"], expected, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
        plain.step()
        advance(one)
        advance(other)
    assert len(rates) > 1, "a schedule that changes nothing shows nothing"


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_a_schedule_of_momentum_is_refused(name: str) -> None:
    make: Any = partial(getattr(schedulers, name), **{**_SCHEDULES[name].keywords, "cycle_momentum": True})  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="cycle_momentum"):
        make(SphereSGD(weights(), ELR))


def test_either_sets_the_other_at_once() -> None:
    optimizer = SphereSGD(weights(), ELR)
    group = optimizer.param_groups[0]
    squared = group["radius"] ** 2
    assert group["lr"] == ELR * squared
    group["elr"] = 0.3
    assert group["lr"] == 0.3 * squared
    group["lr"] = 0.7
    assert (group["lr"], group["elr"]) == (0.7, 0.7 / squared)
    group.update(elr=0.1)
    assert group["lr"] == 0.1 * squared
    group |= {"lr": torch.tensor(0.25)}
    assert (group["lr"], group["elr"]) == (0.25, 0.25 / squared)
    group["radius"] = 2.0  # as a run that begins at another's weights sets it
    assert group["lr"] == pytest.approx(0.25 / squared * 4)
    for option in ("momentum", "weight_decay"):
        with pytest.raises(ValueError, match=f"{option} must be 0 on a sphere"):
            group[option] = 0.1


def test_plain_groups_take_lr_alone() -> None:
    groups: list[dict[str, Any]] = [{"params": weights()}, {"params": weights(), "elr": None, "lr": 0.1}]
    optimizer = SphereSGD(groups, ELR)
    group = optimizer.param_groups[1]
    group["lr"] = 0.4
    assert group["elr"] is None
    with pytest.raises(ValueError, match="plain SGD has no elr; give it lr"):
        group["elr"] = 0.1
    schedule = schedulers.ExponentialLR(optimizer, 0.5)
    take_step(optimizer)
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == [
        pytest.approx(ELR / 2 * optimizer.param_groups[0]["radius"] ** 2),
        0.2,
    ]


def test_leaving_and_entering_the_sphere_keeps_the_learning_rate() -> None:
    optimizer = SphereSGD(weights(), ELR)
    group = optimizer.param_groups[0]
    rate = group["lr"]
    optimizer.leave_sphere()
    assert (group["elr"], group["lr"]) == (None, rate)
    group["lr"] = 2 * rate
    take_step(optimizer)
    optimizer.enter_sphere()
    assert group["lr"] == pytest.approx(2 * rate, rel=1e-12)
    assert group["elr"] == pytest.approx(2 * rate / group["radius"] ** 2, rel=1e-12)
    assert group["weight_decay"] == 0


def _same(one: SphereSGD, other: SphereSGD) -> None:
    assert len(one.param_groups) == len(other.param_groups)
    for a, b in zip(one.param_groups, other.param_groups, strict=True):
        assert {k: v for k, v in a.items() if k != "params"} == {k: v for k, v in b.items() if k != "params"}
        b["elr"] = 2 * b["elr"]
        assert b["lr"] == pytest.approx(2 * a["lr"]), "they no longer follow each other"
        b["lr"] = a["lr"]
        assert b["elr"] == pytest.approx(a["elr"])


@pytest.mark.parametrize("lr", [0.1, 0.3, 0.7, 1 / 3])
def test_copies_keep_the_numbers_and_the_bond(lr: float, tmp_path: Path) -> None:
    def start() -> SphereSGD:
        optimizer = SphereSGD(weights()[:1], ELR)
        optimizer.add_param_group({"params": weights()[1:], "granularity": "filter"})
        return optimizer

    optimizer = start()
    for group in optimizer.param_groups:
        group["lr"] = lr
    _same(optimizer, copy.deepcopy(optimizer))
    _same(optimizer, pickle.loads(pickle.dumps(optimizer)))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(type(group) is dict for group in loaded["param_groups"])
    other = start()
    other.load_state_dict(loaded)
    _same(optimizer, other)


@pytest.mark.parametrize("granularity", ["joint", "filter"])
def test_states_of_earlier_versions_load(granularity: Literal["joint", "filter"]) -> None:
    old = SphereSGD(weights(), 0.3, granularity=granularity).state_dict()
    for name in ("lr", "weight_decay"):
        del old["param_groups"][0][name]  # as they were
    optimizer = SphereSGD(weights(), ELR, granularity=granularity)
    schedule = schedulers.ExponentialLR(optimizer, 0.5)
    optimizer.load_state_dict(old)
    group = optimizer.param_groups[0]
    squared = group.get("radius", 1.0) ** 2
    assert (group["elr"], group["lr"]) == (0.3, 0.3 * squared)
    take_step(optimizer)
    schedule.step()
    assert group["elr"] == pytest.approx(0.15)


def test_where_a_state_contradicts_itself_elr_is_kept() -> None:
    state = SphereSGD(weights(), 0.3).state_dict()
    state["param_groups"][0]["lr"] *= 2
    optimizer = SphereSGD(weights(), ELR)
    optimizer.load_state_dict(state)
    group = optimizer.param_groups[0]
    assert (group["elr"], group["lr"]) == (0.3, 0.3 * group["radius"] ** 2)


@pytest.mark.parametrize("name", sorted(_SCHEDULES))
def test_a_resumed_schedule_takes_the_same_steps(name: str) -> None:
    def start() -> tuple[list[nn.Parameter], SphereSGD, Any]:
        params = weights()
        optimizer = SphereSGD(params, ELR)
        return params, optimizer, _SCHEDULES[name](optimizer)

    params, optimizer, schedule = start()
    states: dict[str, Any] = {}
    for step in range(6):
        if step == 3:
            states = copy.deepcopy({"p": [p.data for p in params], "o": optimizer.state_dict()})
            states["s"] = copy.deepcopy(schedule.state_dict())
        take_step(optimizer, step)
        advance(schedule)
    resumed, optimizer, schedule = start()
    optimizer.load_state_dict(states["o"])
    schedule.load_state_dict(states["s"])
    for p, saved in zip(resumed, states["p"], strict=True):
        p.data.copy_(saved)
    for step in range(3, 6):
        take_step(optimizer, step)
        advance(schedule)
    assert all(torch.equal(p, q) for p, q in zip(params, resumed, strict=True))


def test_a_distributed_checkpoint_takes_no_step() -> None:
    """It sets every lr to 0, steps, and sets them back, to fill the state."""
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = SphereSGD(model.parameters(), ELR)
    before, rate = copy.deepcopy(model.state_dict()), optimizer.param_groups[0]["lr"]
    get_optimizer_state_dict(model, optimizer)
    assert optimizer.param_groups[0]["lr"] == rate
    assert optimizer.param_groups[0]["elr"] == pytest.approx(ELR, rel=1e-15)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=0)


class OnSphere(ForeignLayerNorm):
    """A stranger's module, automatic optimisation, that trains its scale-invariant weights by SphereSGD."""

    def __init__(self, schedule: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.schedule = schedule

    def configure_optimizers(self) -> Any:
        groups = find_groups(self.model, torch.randn(4, 3, 16, 16))
        sphere = [p for group in groups for p in group.parameters]
        rest = [p for p in self.parameters() if not any(p is q for q in sphere)]
        param_groups: list[dict[str, Any]] = [{"params": sphere}, {"params": rest, "elr": None, "lr": 0.05}]
        optimizer = SphereSGD(param_groups, ELR)
        return optimizer if self.schedule is None else [[optimizer], [self.schedule(optimizer)]]


class _Norms(Callback):
    """Norm of the sphere, and its learning rate, at the end of each epoch."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        group = trainer.optimizers[0].param_groups[0]
        norm = math.sqrt(sum(float(p.detach().double().square().sum()) for p in group["params"]))
        self.seen.append((norm, group["radius"]))


def test_lightnings_monitor_logs_the_learning_rate_of_each_step(tmp_path: Path) -> None:
    memory = Memory()
    module = OnSphere(partial(schedulers.ExponentialLR, gamma=0.5))
    monitor = LearningRateMonitor("epoch", log_momentum=True, log_weight_decay=True)
    with pytest.warns(RuntimeWarning, match="log_momentum"):
        trainer_for("resnet", [monitor], tmp_path, logger=memory).fit(module, ForeignData())
    group = module.trainer.optimizers[0].param_groups[0]
    eta = ELR * group["radius"] ** 2
    rates = [value for (_, key), value in sorted(memory.logged.items()) if key == "lr-SphereSGD/pg1"]
    assert rates == pytest.approx([eta, eta / 2, eta / 4], rel=1e-6)
    assert group["elr"] == pytest.approx(ELR / 8)


def test_our_monitors_follow_a_schedule_down_to_nothing(tmp_path: Path) -> None:
    memory = Memory()
    monitors = [EffectiveLearningRateMonitor(), SharpnessMonitor(curvature_every=1, curvature_batches=1)]
    module = OnSphere(partial(schedulers.PolynomialLR, total_iters=2))
    trainer_for("resnet", [*monitors, RegimeMonitor()], tmp_path, logger=memory).fit(module, ForeignData())
    elr = [value for (_, key), value in sorted(memory.logged.items()) if key == "elr/total"]
    assert elr == pytest.approx([ELR, ELR / 2, 0], rel=1e-5)
    assert module.trainer.optimizers[0].param_groups[0]["elr"] == 0


def test_lightnings_weight_averaging_runs_and_ends_inside_the_sphere(tmp_path: Path) -> None:
    """Scale-invariant weights give the function of the mean's direction."""
    norms = _Norms()
    module = OnSphere()
    averaging = StochasticWeightAveraging(swa_lrs=0.5, swa_epoch_start=1, annealing_epochs=1)
    trainer_for("resnet", [averaging, norms], tmp_path, logger=False, max_epochs=4).fit(module, ForeignData())
    for norm, radius in norms.seen:
        assert norm == pytest.approx(radius, rel=1e-5)
    group = module.trainer.optimizers[0].param_groups[0]
    assert group["lr"] == pytest.approx(0.5)
    mean = math.sqrt(sum(float(p.detach().double().square().sum()) for p in group["params"]))
    assert 0.3 * group["radius"] < mean < 0.999 * group["radius"]
    images = ForeignData().train.tensors[0][: 2 * BATCHES]
    with torch.no_grad():
        logits = module.eval()(images)
        for p in group["params"]:
            p.mul_(group["radius"] / mean)
        torch.testing.assert_close(module(images), logits, rtol=1e-3, atol=1e-4)
