"""The random walk and gradient ascent on the sphere."""

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lit_sphere.analysis.edge_of_stability import descent_rate
from lit_sphere.data import Digits
from lit_sphere.effective import QUANTITIES, EffectiveQuantities
from lit_sphere.groups import Group
from lit_sphere.modules import SIConvNet
from lit_sphere.optim import GradientAscent, RandomWalk, SphereSGD

SHAPES = [(4, 3, 3, 3), (5, 4), (6, 2)]


def parameters(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(scale * torch.randn(s, generator=generator, dtype=dtype)) for s in SHAPES]


def set_gradients(params: list[nn.Parameter], seed: int, scale: float = 1.0) -> None:
    """Random ones, tangent to the joint sphere."""
    generator = torch.Generator().manual_seed(seed)
    grads = [scale * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]
    along = flat(grads) @ flat(params) / flat(params).square().sum()
    for p, g in zip(params, grads, strict=True):
        p.grad = g - along * p.detach()


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def gradients(params: list[nn.Parameter]) -> Tensor:
    return flat([p.grad for p in params])


def tangent(one: Tensor, other: Tensor) -> float:
    """Of the angle between two vectors, without cancellation."""
    a, b = one / one.norm(), other / other.norm()
    half = math.atan2(float((a - b).norm()), float((a + b).norm()))
    return math.tan(2 * half)


def slow_walk(theta: Tensor, tan: float, key: tuple[int, int, int]) -> Tensor:
    """One step of the walk in one long vector."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    z = torch.empty(len(theta), dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(seed))
    z -= (z @ theta) / (theta @ theta) * theta
    hat = theta + tan * theta.norm() * z / z.norm()
    moved: Tensor = hat * theta.norm() / hat.norm()
    return moved


def test_ascent_takes_the_steps_of_descent_of_the_negative() -> None:
    up, down = parameters(0), parameters(0)
    ascent, descent = GradientAscent(up, elr=0.02), SphereSGD(down, elr=0.02)
    for step in range(20):
        set_gradients(up, step)
        for p, q in zip(up, down, strict=True):
            assert p.grad is not None
            q.grad = -p.grad
        ascent.step()
        descent.step()
        assert torch.equal(flat(up), flat(down))


def test_ascent_ascends_beside_the_sphere_too_but_weights_decay() -> None:
    sphere, plain = parameters(0), parameters(1)
    before = [p.detach().clone() for p in plain]
    groups: list[dict[str, Any]] = [
        {"params": sphere},
        {"params": plain, "elr": None, "lr": 0.1, "weight_decay": 0.5},
    ]
    optimizer = GradientAscent(groups, elr=0.1)
    for params in (sphere, plain):
        set_gradients(params, 3)
    optimizer.step()
    for old, new in zip(before, plain, strict=True):
        assert new.grad is not None
        torch.testing.assert_close(new.detach(), old + 0.1 * new.grad - 0.1 * 0.5 * old)


def test_a_hundred_steps_of_the_walk_equal_the_slow_reference() -> None:
    params, others = parameters(0), parameters(1, 3.0)
    groups: list[dict[str, Any]] = [{"params": params}, {"params": others, "elr": 0.3, "seed": 9}]
    optimizer = RandomWalk(groups, elr=0.01, seed=4)
    for step in range(100):
        expected = []
        for number, (mine, elr, seed) in enumerate(((params, 0.01, 4), (others, 0.3, 9))):
            set_gradients(mine, 2 * step + number)
            tan = elr * float(flat(mine).norm() * gradients(mine).norm())
            expected.append(slow_walk(flat(mine), tan, (seed, step, number)))
        optimizer.step()
        for mine, wanted in zip((params, others), expected, strict=True):
            torch.testing.assert_close(flat(mine), wanted, rtol=1e-11, atol=1e-11)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    elr=st.floats(1e-6, 1e2),
    scale=st.floats(1e-3, 1e3),
    gradient=st.floats(1e-3, 1e3),
    step_size=st.none() | st.floats(1e-6, 1e3),
)
def test_the_walk_keeps_the_norm_and_turns_by_the_angle_of_sgd(
    seed: int, elr: float, scale: float, gradient: float, step_size: float | None
) -> None:
    walking, descending = parameters(seed, scale), parameters(seed, scale)
    before = flat(walking)
    for params in (walking, descending):
        set_gradients(params, seed + 1, gradient)
    RandomWalk(walking, elr=elr, step_size=step_size, seed=seed).step()
    SphereSGD(descending, elr=elr).step()
    assert float(flat(walking).norm()) == pytest.approx(float(before.norm()), rel=1e-12)
    wanted = tangent(before, flat(descending)) if step_size is None else step_size
    assert math.atan(tangent(before, flat(walking))) == pytest.approx(math.atan(wanted), rel=1e-6)
    assert not torch.equal(flat(walking), before), "the step must move the point"


def test_the_walk_of_filters_turns_each_by_its_own_gradient() -> None:
    params = parameters(0)
    before = [p.detach().clone() for p in params]
    optimizer = RandomWalk(params, elr=0.02, granularity="filter")
    set_gradients(params, 1)
    optimizer.step()
    for old, new in zip(before, params, strict=True):
        assert new.grad is not None
        for one, other, g in zip(old.flatten(1), new.detach().flatten(1), new.grad.flatten(1), strict=True):
            assert float(other.norm()) == pytest.approx(float(one.norm()), rel=1e-12)
            assert tangent(one, other) == pytest.approx(0.02 * float(one.norm() * g.norm()), rel=1e-9)


def test_all_directions_are_as_likely() -> None:
    # In three dimensions the tangent space is a plane: over seeds the angle in it is uniform.
    start, angles = torch.tensor([0.0, 3.0, 4.0], dtype=torch.float64), []
    for seed in range(600):
        weight = nn.Parameter(start.clone())
        weight.grad = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        RandomWalk([weight], elr=0.01, seed=seed).step()
        step = weight.detach() - start
        angles.append(math.atan2(float(step[0]), float(step @ torch.tensor([0.0, -0.8, 0.6], dtype=torch.float64))))
    values = np.array(angles)
    for k in (1, 2):
        assert abs(np.exp(1j * k * values).mean()) < 4 / math.sqrt(len(values))


def test_the_walk_is_its_seeds_and_leaves_the_generators_of_others_alone() -> None:
    def walk(seed: int) -> Tensor:
        params = parameters(0)
        optimizer = RandomWalk(params, elr=0.1, seed=seed)
        for step in range(3):
            set_gradients(params, step)
            optimizer.step()
        return flat(params)

    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"]
    one = walk(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_state)
    torch.manual_seed(6)
    assert torch.equal(one, walk(1))
    assert not torch.equal(one, walk(2))


@pytest.mark.parametrize("granularity", ["joint", "filter"])
@pytest.mark.parametrize("how", ["state", "copy"])
def test_a_walk_goes_on_as_if_it_had_not_stopped(granularity: Any, how: str, tmp_path: Any) -> None:
    params = parameters(0, dtype=torch.float32)
    optimizer = RandomWalk(params, elr=0.1, granularity=granularity, seed=3)
    for step in range(2):
        set_gradients(params, step)
        optimizer.step()
    if how == "copy":
        resumed, other = copy.deepcopy((params, optimizer))
    else:
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        resumed = [nn.Parameter(p.detach().clone()) for p in params]
        other = RandomWalk(resumed, elr=0.5, granularity=granularity)
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(2, 4):
        for ps, opt in ((params, optimizer), (resumed, other)):
            set_gradients(ps, step)
            opt.step()
    assert torch.equal(flat(resumed), flat(params))
    other.add_param_group({"params": parameters(8, dtype=torch.float32)})


def test_all_of_a_sphere_walks_but_only_where_there_is_a_gradient() -> None:
    params = parameters(0)
    optimizer = RandomWalk(params, elr=0.1)
    optimizer.step()
    assert torch.equal(flat(params), flat(parameters(0)))
    set_gradients(params, 1)
    params[1].grad = None
    optimizer.step()
    assert not torch.equal(params[1], parameters(0)[1])


def test_a_walk_may_leave_its_sphere_and_enter_it_again() -> None:
    params = parameters(0)
    optimizer = RandomWalk(params, elr=0.1)
    optimizer.leave_sphere(lr=0.01)
    before = flat(params)
    set_gradients(params, 1)
    optimizer.step()
    torch.testing.assert_close(flat(params), before - 0.01 * gradients(params))
    optimizer.enter_sphere(0.2)
    before = flat(params)
    optimizer.step()
    assert tangent(before, flat(params)) == pytest.approx(0.2 * float(before.norm() * gradients(params).norm()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elr": 0.1, "step_size": 0.0}, "RandomWalk: step_size must be positive and finite, got 0"),
        ({"elr": 0.1, "step_size": math.nan}, "step_size must be positive and finite, got nan"),
        ({"elr": 0.1, "seed": -1}, "RandomWalk: seed must be a whole number of at least 0, got -1"),
        ({"elr": 0.1, "seed": 0.5}, r"seed must be a whole number of at least 0, got 0\.5"),
        ({"elr": -0.1}, r"RandomWalk: elr must be positive and finite, got -0\.1"),
        ({}, "RandomWalk: a parameter group needs an elr .* or an lr"),
        ({"elr": 0.1, "weight_decay": 0.1}, "RandomWalk: weight_decay must be 0"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomWalk(parameters(0), **options)


@pytest.mark.parametrize("granularity", ["joint", "filter"])
def test_a_sphere_without_directions_is_refused(granularity: Any) -> None:
    optimizer = RandomWalk(parameters(0), elr=0.1, granularity=granularity)
    with pytest.raises(ValueError, match="no direction to walk in"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1 if granularity == "joint" else 3, 1))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("mine", [SphereSGD, GradientAscent, RandomWalk])
@pytest.mark.parametrize("its", [SphereSGD, GradientAscent, RandomWalk])
def test_the_state_of_another_optimizer_of_the_sphere_is_refused(mine: Any, its: Any) -> None:
    state = its(parameters(0), elr=0.1).state_dict()
    optimizer = mine(parameters(0), elr=0.2)
    if mine is its:
        optimizer.load_state_dict(state)
        assert optimizer.param_groups[0]["elr"] == 0.1
        return
    with pytest.raises(ValueError, match=f"{mine.__name__}: .* another optimizer, {its.__name__}"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("make", [GradientAscent, RandomWalk])
@pytest.mark.parametrize("granularity", ["joint", "filter"])
def test_angles_are_measured_right(make: Any, granularity: Any) -> None:
    params = parameters(0)
    optimizer = make(params, elr=0.01, granularity=granularity)
    groups = [Group("ab", tuple(params[:2])), Group("c", (params[2],))]
    effective = EffectiveQuantities(groups, optimizer)
    assert effective.source == ("gradients" if make is GradientAscent else "weights")
    set_gradients(params, 1)
    before = [flat(params), flat(params[:2]), flat(params[2:])]
    effective.keep_gradients()
    effective.keep_weights()
    values = effective.measure() if effective.source == "gradients" else None
    optimizer.step()
    values = effective.measure() if values is None else values
    found: dict[str, Tensor] = dict(zip(QUANTITIES, values, strict=True))
    after = [flat(params), flat(params[:2]), flat(params[2:])]
    if make is GradientAscent and granularity == "filter":  # gradients are tangent to the joint sphere alone
        before, after, found = before[:1], after[:1], {name: row[:1] for name, row in found.items()}
    if not (make is GradientAscent and granularity == "joint"):
        wanted = [math.atan(tangent(a, b)) for a, b in zip(before, after, strict=True)]
        torch.testing.assert_close(found["distance"], 2 * (found["angle"] / 2).sin().square(), rtol=1e-12, atol=0)
        torch.testing.assert_close(found["angle"], torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-12)
    if granularity == "joint":
        assert float(found["elr"][0]) == pytest.approx(0.01)
        assert float(found["angle"][0]) == pytest.approx(math.atan(tangent(before[0], after[0])))


def test_only_descent_has_an_edge_of_stability() -> None:
    params = parameters(0)
    assert descent_rate(SphereSGD(params, elr=0.1), set(params)) is not None
    assert descent_rate(GradientAscent(params, elr=0.1), set(params)) is None
    assert descent_rate(RandomWalk(params, elr=0.1), set(params)) is None


def fitted(folder: Path, epochs: int = 1, resume: bool = False, **options: Any) -> Trainer:
    torch.manual_seed(0)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    trainer = Trainer(max_epochs=epochs, limit_val_batches=0, default_root_dir=folder, accelerator="cpu", **quiet)
    module = SIConvNet(width=4, in_channels=1, **options)
    trainer.fit(module, Digits(train_size=128, batch_size=64), ckpt_path=folder / "a.ckpt" if resume else None)
    return trainer


@pytest.mark.parametrize("make", [GradientAscent, partial(RandomWalk, seed=7)])
def test_a_module_trains_its_spheres_by_them(make: Any, tmp_path: Path) -> None:
    trainer = fitted(tmp_path, elr=0.1, granularity="tensor", optimizer=make)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, getattr(make, "func", make))
    assert len(optimizer.param_groups) == 4
    assert all(group["elr"] == 0.1 for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        assert math.sqrt(sum(float(p.detach().square().sum()) for p in group["params"])) == pytest.approx(
            group["radius"], rel=1e-6
        )
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    resumed = fitted(tmp_path, 2, True, elr=0.3, granularity="tensor", optimizer=make)
    assert all(group["elr"] == 0.3 for group in resumed.optimizers[0].param_groups), "a typed ELR wins"
    with pytest.raises(ValueError, match=rf"{type(optimizer).__name__} in the checkpoint, SphereSGD here"):
        fitted(tmp_path, 2, True, elr=0.1, granularity="tensor")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(torch.optim.SGD, lr=0.1), "SGD does not train on the sphere: .* RandomWalk or GradientAscent"),
        (partial(RandomWalk, elr=0.2), "both elr and an elr of RandomWalk are given"),
        (partial(RandomWalk, step_size=-1.0), "optimizer .*: RandomWalk: step_size must be positive"),
    ],
)
def test_optimizers_beside_an_elr_that_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SIConvNet(width=4, in_channels=1, elr=0.1, optimizer=make)


@pytest.mark.slow
def test_a_compiled_ascent_equals_the_eager_one_and_a_walk_may_stand_in_compiled_code() -> None:
    for make in (GradientAscent, RandomWalk):
        eager, compiled = parameters(0), parameters(0)
        a, b = make(eager, elr=0.05), make(compiled, elr=0.05)
        step = torch.compile(b.step)
        for i in range(3):
            for params, take in ((eager, a.step), (compiled, step)):
                set_gradients(params, i)
                take()
            torch.testing.assert_close(flat(eager), flat(compiled), rtol=1e-12, atol=1e-12)
