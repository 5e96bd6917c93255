"""AdaGradG in float32 and half precision, on large tensors, from saved states, and on a GPU's tensors."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_sphere.optim import AdaGradG, adagrad_g_like_sgd
from lit_sphere.optim.norms import row_norms

GRANULARITIES = ("filter", "tensor", "joint")
LIKE: dict[str, Any] = {**adagrad_g_like_sgd(1e-2, 1e-3)}  # β = 0.99996 is 1 in bfloat16
SHAPES = [(8, 16, 3, 3), (6, 32)]


def parameters(dtype: torch.dtype = torch.float32, shapes: Any = SHAPES) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=g).to(dtype)) for shape in shapes]


def steps(params: list[nn.Parameter], optimizer: AdaGradG, count: int, scale: float = 1.0, first: int = 0) -> None:
    for step in range(first, first + count):
        g = torch.Generator().manual_seed(1 + step)
        for p in params:
            p.grad = scale * torch.randn(p.shape, generator=g).to(p.dtype)
        optimizer.step()


def norms(tensors: list[Tensor] | list[nn.Parameter], granularity: str) -> Tensor:
    wide = [t.detach().double() for t in tensors]
    if granularity == "filter":
        return torch.cat([t.flatten(1).norm(dim=1) for t in wide])
    each = torch.stack([t.norm() for t in wide])
    return each if granularity == "tensor" else each.norm()


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_neither_drifts_nor_forgets_to_forget(dtype: torch.dtype, granularity: Any) -> None:
    params = parameters(dtype)
    before = norms(params, granularity)
    optimizer = AdaGradG(params, **LIKE, granularity=granularity)
    started = [optimizer.state[p]["accumulator"].clone() for p in params]
    drifts = []
    for step in range(300):
        steps(params, optimizer, 1, 1e-3, first=step)  # too short to move what is rounded, and norms must stay
        drifts.append((norms(params, granularity) / before - 1).abs().max().item())
    # The elements of 32 weights are rounded by up to 2⁻⁹ each, bfloat16's; their norm by a fifth of it, and not in sum.
    assert max(drifts) < 1e-3 * (1 if dtype == torch.bfloat16 else 0.125)
    for p, start in zip(params, started, strict=True):
        state = optimizer.state[p]
        assert p.dtype == dtype
        assert state["radius"].dtype == state["accumulator"].dtype == torch.float32
        torch.testing.assert_close(state["accumulator"], start * LIKE["beta"] ** 300, rtol=1e-4, atol=0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_bfloat16_takes_the_steps_of_double_as_far_as_it_can_hold_them(granularity: Any) -> None:
    half, full = parameters(torch.bfloat16), parameters(torch.bfloat16)
    full = [nn.Parameter(p.detach().double()) for p in full]
    optimizers = [AdaGradG(params, 0.3, 0.9, 2.0, granularity) for params in (half, full)]
    for step in range(20):
        for params, optimizer in zip((half, full), optimizers, strict=True):
            steps(params, optimizer, 1, first=step)
    for p, q in zip(half, full, strict=True):
        assert ((p.double() - q).norm() / q.norm()).item() < 0.01
        ratio = optimizers[0].state[p]["accumulator"].double() / optimizers[1].state[q]["accumulator"]
        assert (ratio - 1).abs().max().item() < 0.01


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_large_tensors_keep_their_norms_to_the_last_digits(granularity: Any, channels_last: bool) -> None:
    """2.4 million float32 weights, as in a ResNet-18; added up one by one their squares are 4e-5 off."""
    params = parameters(shapes=[(512, 512, 3, 3), (2, 300_000)])
    if channels_last:
        params[0].data = params[0].data.to(memory_format=torch.channels_last)
    before = norms(params, granularity)
    optimizer = AdaGradG(params, **LIKE, granularity=granularity)
    steps(params, optimizer, 3)
    assert (norms(params, granularity) / before - 1).abs().max().item() < 1e-6
    assert params[0].is_contiguous(memory_format=torch.channels_last) == channels_last
    held = torch.cat([optimizer.state[p]["radius"].flatten() for p in params]).double()
    torch.testing.assert_close(held, before.expand_as(held), rtol=1e-6, atol=0)


def test_float64_is_kept_beside_other_types() -> None:
    params = [*parameters(torch.float64), *parameters(torch.bfloat16)]
    before = norms(params, "joint")
    optimizer = AdaGradG(params, **LIKE, granularity="joint")
    steps(params, optimizer, 5)
    assert all(optimizer.state[p]["accumulator"].dtype == torch.float64 for p in params)
    assert norms(params, "joint").item() == pytest.approx(before.item(), rel=1e-3)
    alone = parameters(torch.float64)
    single = AdaGradG(alone, **LIKE, granularity="tensor")
    before = norms(alone, "tensor")
    steps(alone, single, 5)
    torch.testing.assert_close(norms(alone, "tensor"), before, rtol=1e-14, atol=0)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_norms_of_rows(shape: list[int], seed: int, dtype: torch.dtype) -> None:
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    result = row_norms(rows)
    assert result.shape == (shape[0], *[1] * (len(shape) - 1))
    assert result.dtype == (dtype if dtype == torch.float64 else torch.float32)
    expected = rows.double().flatten(1).norm(dim=1).view_as(result)
    torch.testing.assert_close(result.double(), expected, rtol=1e-6 if dtype != torch.float64 else 1e-14, atol=0)


def test_norms_of_long_rows() -> None:
    rows = torch.randn(2, 3, 700, 700, generator=torch.Generator().manual_seed(0))
    expected = rows.double().flatten(1).norm(dim=1).view(2, 1, 1, 1)
    for each in (rows, rows.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(row_norms(each).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_state_is_restored_to_the_last_bit_in_any_type(dtype: torch.dtype, granularity: Any) -> None:
    params = parameters(dtype)
    optimizer = AdaGradG(params, 0.3, 0.99996, granularity=granularity)
    steps(params, optimizer, 5)
    saved, point = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    kept = copy.deepcopy(saved)
    steps(params, optimizer, 5, first=5)
    again = [nn.Parameter(p) for p in point]
    resumed = AdaGradG(again, 1.0, granularity=granularity)
    resumed.load_state_dict(saved)
    steps(again, resumed, 5, first=5)
    for p, q in zip(params, again, strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(optimizer.state[p][key], resumed.state[q][key]) for key in ("radius", "accumulator"))
    assert all(torch.equal(saved["state"][i][key], kept["state"][i][key]) for i in (0, 1) for key in kept["state"][i])


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_states_of_earlier_versions_load(dtype: torch.dtype, granularity: Any) -> None:
    """They had the type of the parameters, and no dimension on a joint sphere."""
    params = parameters(dtype)
    optimizer = AdaGradG(params, 0.3, 0.9, granularity=granularity)
    now = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(now)
    for state in before["state"].values():
        for key, value in state.items():
            state[key] = value.to(dtype).reshape(() if granularity == "joint" else value.shape)
    optimizer.load_state_dict(before)
    for p, state in zip(params, now["state"].values(), strict=True):
        for key, value in state.items():
            restored = optimizer.state[p][key]
            assert restored.dtype == torch.float32
            torch.testing.assert_close(restored, value, rtol=0.01 if dtype == torch.bfloat16 else 0, atol=0)
    steps(params, optimizer, 2)


def saved_by(granularity: Any, shapes: Any = SHAPES) -> dict[str, Any]:
    return copy.deepcopy(AdaGradG(parameters(shapes=shapes), 0.3, granularity=granularity).state_dict())


def parted() -> dict[str, Any]:
    saved = saved_by("joint")
    saved["state"][1]["accumulator"] *= 1.5
    return saved


def overflown() -> dict[str, Any]:
    saved = saved_by("tensor")
    saved["state"][0]["accumulator"] *= torch.inf
    return saved


def without_one() -> dict[str, Any]:
    saved = saved_by("tensor")
    del saved["state"][1]
    return saved


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (lambda: torch.optim.SGD(parameters(), lr=0.1).state_dict(), "another optimizer"),
        (parted, "several accumulators for one joint sphere"),
        (overflown, "accumulator that is not positive and finite"),
        (without_one, r"no radius for a tensor of shape \(6, 32\)"),
        (lambda: saved_by("filter", [(9, 16, 3, 3), (6, 32)]), r"no radius for a tensor of shape \(8, 16, 3, 3\)"),
        (lambda: saved_by("tensor", SHAPES[:1]), "size of optimizer's group"),
    ],
)
def test_states_that_do_not_fit_are_refused_in_one_line(saved: Any, message: str) -> None:
    params = parameters()
    optimizer = AdaGradG(params, 0.1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message) as error:
        optimizer.load_state_dict(saved())
    assert "\n" not in str(error.value)
    now = optimizer.state_dict()
    assert now["param_groups"] == before["param_groups"]
    assert all(torch.equal(now["state"][i][key], before["state"][i][key]) for i in (0, 1) for key in before["state"][i])


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_step_neither_waits_for_a_gpu_nor_leaves_it(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, granularity: Any
) -> None:
    """On tensors that only pretend: to ask one for its value, or to mix it with the CPU's, is an error."""
    with FakeTensorMode():
        params = [nn.Parameter(torch.randn(shape, device="cuda").to(dtype)) for shape in SHAPES]
        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "__bool__", lambda self: True)  # construction may wait
            optimizer = AdaGradG(params, 0.1, granularity=granularity)
        for missing in (None, 1):
            for i, p in enumerate(params):
                p.grad = None if i == missing else torch.randn(p.shape, device="cuda").to(dtype)
            optimizer.step()
        for p in params:
            assert all(value.device.type == "cuda" for value in optimizer.state[p].values())
            assert p.dtype == dtype
