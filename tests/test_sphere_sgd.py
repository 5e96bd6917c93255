import copy
import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_sphere.networks import ResNet18
from lit_sphere.optim import SphereSGD, squared_norms

SHAPES = [(4, 3, 3, 3), (5, 4), (7,)]


def parameters(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(scale * torch.randn(s, generator=generator, dtype=dtype)) for s in SHAPES]


def set_gradients(params: list[nn.Parameter], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)


def norm(params: list[nn.Parameter]) -> float:
    return math.sqrt(sum(float(p.detach().double().pow(2).sum()) for p in params))


def slow_step(params: list[Tensor], grads: list[Tensor], elr: float, rho: float) -> list[Tensor]:
    """TR eq. (2), element by element."""
    hat = [
        w - elr * rho**2 * g
        for p, gr in zip(params, grads, strict=True)
        for w, g in zip(p.flatten(), gr.flatten(), strict=True)
    ]
    scale = rho / math.sqrt(sum(float(w) ** 2 for w in hat))
    out, at = [], 0
    for p in params:
        out.append(torch.stack([w * scale for w in hat[at : at + p.numel()]]).reshape(p.shape))
        at += p.numel()
    return out


def test_a_hundred_steps_equal_the_slow_reference() -> None:
    params = parameters(0)
    rho = norm(params)
    optimizer = SphereSGD(params, elr=0.01)
    for step in range(100):
        set_gradients(params, step)
        expected = slow_step([p.detach() for p in params], [p.grad for p in params if p.grad is not None], 0.01, rho)
        optimizer.step()
        for p, e in zip(params, expected, strict=True):
            torch.testing.assert_close(p.detach(), e, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    elr=st.floats(1e-7, 1e3),
    scale=st.floats(1e-3, 1e3),
    gradient=st.floats(1e-6, 1e6),
)
def test_the_point_stays_on_the_sphere(seed: int, elr: float, scale: float, gradient: float) -> None:
    params = parameters(seed, scale)
    rho = norm(params)
    before = [p.detach().clone() for p in params]
    optimizer = SphereSGD(params, elr=elr)
    set_gradients(params, seed + 1, gradient)
    optimizer.step()
    assert norm(params) == pytest.approx(rho, rel=1e-12)
    assert any(not torch.equal(a, b) for a, b in zip(before, params, strict=True)), "the step must move the point"


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), factor=st.floats(1e-3, 1e3))
def test_a_step_at_another_radius_turns_by_the_same_angle(seed: int, factor: float) -> None:
    # A scale-invariant function has the gradient ∇/c at cθ: the direction after the step is the same.
    small, large = parameters(seed), parameters(seed, factor)
    for params, scale in ((small, 1.0), (large, 1 / factor)):
        set_gradients(params, seed + 1, scale)
        SphereSGD(params, elr=0.05).step()
    for a, b in zip(small, large, strict=True):
        torch.testing.assert_close(b.detach() / factor, a.detach(), rtol=1e-9, atol=1e-12)


def test_one_sphere_per_parameter_group_and_plain_sgd_beside_them() -> None:
    first, second, plain = parameters(0), parameters(1, 3.0), parameters(2)
    before = copy.deepcopy(plain)
    groups: list[dict[str, Any]] = [{"params": first}, {"params": second, "elr": 0.5}]
    optimizer = SphereSGD([*groups, {"params": plain, "elr": None, "lr": 0.1}], elr=0.01)
    radii = norm(first), norm(second)
    for params in (first, second, plain):
        set_gradients(params, 5)
    optimizer.step()
    assert (norm(first), norm(second)) == pytest.approx(radii, rel=1e-12)
    for old, new in zip(before, plain, strict=True):
        assert new.grad is not None
        torch.testing.assert_close(new.detach(), old.detach() - 0.1 * new.grad)


def test_spheres_of_filters_keep_the_norm_of_each_row_and_equal_single_spheres() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 3, 3, dtype=torch.float64))
    rows = [nn.Parameter(w.detach().clone()) for w in weight]
    before = weight.detach().flatten(1).norm(dim=1)
    by_filter = SphereSGD([weight], elr=0.02, granularity="filter")
    singly = SphereSGD([{"params": [row]} for row in rows], elr=0.02)
    for step in range(10):
        set_gradients([weight], step)
        assert weight.grad is not None
        for row, g in zip(rows, weight.grad, strict=True):
            row.grad = g.clone()
        by_filter.step()
        singly.step()
    torch.testing.assert_close(weight.detach().flatten(1).norm(dim=1), before, rtol=1e-12, atol=0)
    torch.testing.assert_close(weight.detach(), torch.stack([row.detach() for row in rows]))


@pytest.mark.parametrize("granularity", ["joint", "filter"])
def test_state_dict_keeps_radius_and_elr(granularity: Literal["joint", "filter"], tmp_path: Any) -> None:
    def start() -> list[nn.Parameter]:
        return parameters(0)[:2]

    params = start()
    optimizer = SphereSGD(params, elr=0.02, granularity=granularity)
    set_gradients(params, 1)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")

    resumed = [nn.Parameter(5 * p.detach()) for p in params]  # the radius must come from the state
    other = SphereSGD(resumed, elr=0.5, granularity=granularity)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.param_groups[0]["elr"] == 0.02
    with torch.no_grad():
        for r, p in zip(resumed, params, strict=True):
            r.copy_(p)
    for ps, opt in ((params, optimizer), (resumed, other)):
        set_gradients(ps, 2)
        opt.step()
    for r, p in zip(resumed, params, strict=True):
        assert torch.equal(r, p)


def test_another_optimizers_state_is_refused() -> None:
    params = parameters(0)
    with pytest.raises(ValueError, match="belongs to another optimizer"):
        SphereSGD(params, elr=0.1).load_state_dict(torch.optim.SGD(params, lr=0.1).state_dict())


def test_a_new_elr_takes_effect_at_once() -> None:
    one, two = parameters(0), parameters(0)
    a, b = SphereSGD(one, elr=0.01), SphereSGD(two, elr=0.3)
    a.param_groups[0]["elr"] = 0.3
    for params, optimizer in ((one, a), (two, b)):
        set_gradients(params, 1)
        optimizer.step()
    for p, q in zip(one, two, strict=True):
        assert torch.equal(p, q)


def test_parameters_without_gradient_are_still_part_of_the_sphere() -> None:
    params = parameters(0)
    rho = norm(params)
    optimizer = SphereSGD(params, elr=0.5)
    set_gradients(params, 1)
    params[1].grad = None
    before = params[1].detach().clone()
    optimizer.step()
    assert norm(params) == pytest.approx(rho, rel=1e-12)
    ratio = params[1].detach() / before
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    assert ratio[0, 0] < 1


def test_a_step_that_the_loss_scaler_skips_leaves_the_point_where_it_is() -> None:
    params = parameters(0, dtype=torch.float32)
    optimizer = SphereSGD(params, elr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = [p.detach().clone() for p in params]
    set_gradients(params, 1)
    scaler.scale(torch.zeros(()))
    assert params[0].grad is not None
    params[0].grad[0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    set_gradients(params, 2)
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    assert not torch.equal(before[0], params[0])
    assert norm(params) == pytest.approx(math.sqrt(sum(float(b.double().pow(2).sum()) for b in before)), rel=1e-6)


def test_the_closure_is_called_before_gradients_are_read() -> None:
    params = parameters(0)
    optimizer = SphereSGD(params, elr=0.1)
    before = params[0].detach().clone()

    def closure() -> float:
        for p in params:
            p.grad = None
        loss = torch.stack([p.sum() for p in params]).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(sum(p.sum().item() for p in parameters(0)))
    assert not torch.equal(before, params[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elr": 0.0}, "elr must be positive and finite, got 0.0"),
        ({"elr": -1.0}, "elr must be positive"),
        ({"elr": math.nan}, "elr must be positive and finite, got nan"),
        ({"elr": math.inf}, "elr must be positive and finite, got inf"),
        ({"elr": None}, "needs an elr .* or an lr"),
        ({"elr": None, "lr": 0.0}, "lr must be positive"),
        ({"elr": 0.1, "weight_decay": 1e-4}, "weight_decay must be 0, .* the projection undoes it"),
        ({"elr": 0.1, "momentum": 0.9}, "momentum must be 0"),
        ({"elr": 0.1, "granularity": "row"}, "granularity must be 'joint' or 'filter'"),
        ({"elr": 0.1, "granularity": "filter"}, "two or more dimensions"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SphereSGD(parameters(0), **options)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_sphere_of_radius_zero_or_nan_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="radius must be positive and finite"):
        SphereSGD([nn.Parameter(torch.full((3,), value))], elr=0.1)


def test_shards_of_fsdp1_are_refused() -> None:
    params = parameters(0)
    params[0]._fsdp_flattened = True  # type: ignore[attr-defined]  # what FSDP1 sets on flattened parameters
    with pytest.raises(ValueError, match="FSDP1 shards"):
        SphereSGD(params, elr=0.1)


def test_a_bad_elr_set_later_is_refused_at_the_step() -> None:
    params = parameters(0)
    optimizer = SphereSGD(params, elr=0.1)
    set_gradients(params, 1)
    optimizer.param_groups[0]["elr"] = -1.0
    with pytest.raises(ValueError, match=r"elr must be positive, but was set to -1\.0"):
        optimizer.step()


def test_unknown_options_of_a_group_are_refused() -> None:
    with pytest.raises(ValueError, match="has no option elrr"):
        SphereSGD([{"params": parameters(0), "elrr": 0.1}], elr=0.2)


def test_a_refused_group_is_not_left_behind() -> None:
    optimizer = SphereSGD(parameters(0), elr=0.1)
    with pytest.raises(ValueError, match="elr must be positive"):
        optimizer.add_param_group({"params": parameters(1), "elr": -1.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_float32_stays_on_the_sphere_to_1e6_on_resnet18(channels_last: bool) -> None:
    torch.manual_seed(0)
    net = ResNet18(width=64, scale_invariant=True)
    if channels_last:
        net.to(memory_format=torch.channels_last)
    params = [p for p in net.parameters() if p.requires_grad]
    optimizer = SphereSGD(params, elr=1e-3)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = 1e-2 * torch.randn(p.shape, generator=generator).contiguous(memory_format=torch.channels_last)
        optimizer.step()
        assert norm(params) == pytest.approx(optimizer.param_groups[0]["radius"], rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 3e-7), (torch.bfloat16, 1e-5), (torch.float64, 1e-13)]
)
def test_squared_norms_are_accurate(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, generator=generator).to(dtype) for n in (3, 70_000, 3_000_000)]
    tensors.append(torch.randn(8, 6, 3, 3, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last))
    tensors.append(torch.randn(30, 20, generator=generator).to(dtype).T)
    expected = torch.stack([t.double().pow(2).sum() for t in tensors])
    torch.testing.assert_close(squared_norms(tensors), expected, rtol=tolerance, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["joint", "filter"])
def test_a_compiled_step_equals_the_eager_one(granularity: Literal["joint", "filter"]) -> None:
    eager, compiled = parameters(0)[:2], parameters(0)[:2]
    a, b = SphereSGD(eager, elr=0.05, granularity=granularity), SphereSGD(compiled, elr=0.05, granularity=granularity)
    step = torch.compile(b.step)
    for i, elr in enumerate((0.05, 0.05, 0.2)):
        for params, optimizer, take in ((eager, a, a.step), (compiled, b, step)):
            optimizer.param_groups[0]["elr"] = elr
            set_gradients(params, i)
            take()
        for p, q in zip(eager, compiled, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
