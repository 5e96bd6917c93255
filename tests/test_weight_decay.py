"""Weight decay's formulas against real steps in float64, and their bounds against adversarial sequences."""

import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_sphere.theory import weight_decay as wd

rates = st.floats(1e-4, 0.9)
norms = st.floats(0.05, 20.0)
gradients = st.floats(1e-3, 50.0)


def scale_invariant_step(x: Tensor, lr: float, decay: float) -> tuple[Tensor, Tensor]:
    """One step of SGD with weight decay on F(x) = Σ i x_i² / |x|²; returns the new point and g̃."""
    x = x.clone().requires_grad_()
    weights = torch.arange(1, x.numel() + 1, dtype=torch.float64)
    value = (weights * x.square()).sum() / x.square().sum()
    (grad,) = torch.autograd.grad(value, x)
    with torch.no_grad():
        return (1 - lr * decay) * x - lr * grad, grad.norm() * x.norm()


@settings(deadline=None)
@given(seed=st.integers(0, 1000), dim=st.integers(2, 30), lr=st.floats(1e-3, 10), product=st.floats(0, 0.9))
def test_norm_and_cosine_of_a_step_are_exact(seed: int, dim: int, lr: float, product: float) -> None:
    x = torch.randn(dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    decay = product / lr
    after, g = scale_invariant_step(x, lr, decay)
    assume(g > 1e-3)
    assert wd.next_norm(x.norm(), g, lr, decay).item() == pytest.approx(after.norm().item(), rel=1e-12)
    cosine = torch.dot(x, after) / (x.norm() * after.norm())
    assert wd.step_cosine(x.norm(), g, lr, decay).item() == pytest.approx(cosine.item(), rel=1e-12)


@settings(deadline=None)
@given(delta=st.floats(1e-8, 0.9), g=gradients, lr=st.floats(1e-3, 10), product=st.floats(0, 0.9))
def test_the_jump_norm_is_where_the_cosine_distance_is_delta(delta: float, g: float, lr: float, product: float) -> None:
    decay = product / lr
    norm = wd.jump_norm(delta, g, lr, decay)
    assert 1 - wd.step_cosine(norm, g, lr, decay).item() == pytest.approx(delta, rel=1e-6)
    assert wd.step_cosine(0.9 * norm, g, lr, decay) < wd.step_cosine(norm, g, lr, decay)


def test_the_jump_norm_is_the_papers_to_first_order() -> None:
    norm = wd.jump_norm(1e-6, 3.0, 0.1, 1e-6)
    assert norm.item() ** 2 == pytest.approx(0.1 * 3.0 / math.sqrt(2e-6), rel=1e-5)


def first_jump(norm: float, delta: float, gs: list[float], lr: float, decay: float, most: int) -> int:
    """Steps before the first δ-jump, g̃ taken in turn: the slow reference."""
    keep = 1 - lr * decay
    for t in range(most):
        tangent = lr * gs[t % len(gs)] / (keep * norm**2)
        if 1 - 1 / math.hypot(1, tangent) > delta:
            return t
        norm = math.hypot(keep * norm, lr * gs[t % len(gs)] / norm)
    return most


@example(norm=5.0, delta=1e-3, ell=0.5, ratio=1.0, picks=[0.0], lr=0.1, product=1e-2)
@settings(deadline=None)
@given(
    norm=st.floats(0.5, 10),
    delta=st.floats(1e-4, 0.5),
    ell=st.floats(0.05, 5),
    ratio=st.floats(1, 4),
    picks=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    lr=st.floats(0.01, 1),
    product=st.floats(5e-3, 0.3),
)
def test_no_jump_before_the_first_bound_and_one_by_the_second(
    norm: float, delta: float, ell: float, ratio: float, picks: list[float], lr: float, product: float
) -> None:
    decay, most = product / lr, 3000
    gs = [ell * (1 + (ratio - 1) * pick) for pick in picks]
    low, high = wd.steps_before_jump(norm, delta, ell, ell * ratio, lr, decay)
    assume(abs(norm**2 / wd.jump_norm(delta, ell * ratio, lr, decay).item() ** 2 - 1) > 1e-9)
    seen = first_jump(norm, delta, gs, lr, decay, most)
    assert seen >= min(low.item(), most) - 1e-6
    assert seen <= high.item() + 1e-6


def test_the_bounds_on_jumps_are_the_papers_to_first_order() -> None:
    norm, delta, ell, big, lr, decay = 10.0, 1e-7, 1.0, 3.0, 0.1, 1e-3
    kappa = math.sqrt(lr / (2 * decay))
    t_min = math.log((lr * big / math.sqrt(2 * delta) - kappa * ell) / (norm**2 - kappa * ell))
    t_min /= math.log(1 - 4 * lr * decay)
    assert math.isinf(wd.steps_before_jump(norm, 1e-2, ell, big, lr, decay).low.item())
    low, high = wd.steps_before_jump(norm, delta, ell, big, lr, decay)
    assert low.item() == 0  # ρ₀² = 100 lies below ηL/√(2δ) = 671 already
    low, high = wd.steps_before_jump(40.0, delta, ell, big, lr, decay)
    t_min = math.log((lr * big / math.sqrt(2 * delta) - kappa * ell) / (1600 - kappa * ell))
    t_min /= math.log(1 - 4 * lr * decay)
    t_max = math.log((lr * ell / math.sqrt(2 * delta) - kappa * big) / (1600 - kappa * big))
    t_max /= math.log(1 - 2 * lr * decay)
    assert low.item() == pytest.approx(t_min, rel=1e-3)
    assert high.item() == pytest.approx(math.ceil(t_max), rel=1e-3)


def test_the_number_of_periods_follows_the_product_of_rate_and_decay() -> None:
    once = wd.steps_before_jump(40.0, 1e-7, 1.0, 3.0, 0.1, 1e-3)
    # At a quarter of ηλ and the same η: four times the steps per logarithm; the logarithm's argument changes with κ.
    slow = wd.steps_before_jump(40.0, 1e-7, 1.0, 3.0, 0.1, 0.25e-3)
    assert 3 < (slow.high / once.high).item() < 5


@settings(deadline=None)
@given(
    alpha=st.floats(1e-3, 0.5),
    a=st.floats(0.01, 10),
    ratio=st.floats(1, 100),
    x=st.floats(0.01, 100),
    picks=st.lists(st.floats(0, 1), min_size=1, max_size=8),
)
def test_undetermined_sequences_stay_in_their_interval(
    alpha: float, a: float, ratio: float, x: float, picks: list[float]
) -> None:
    assume(alpha * (1 + math.sqrt(ratio)) <= 1)
    low, high = (end.item() for end in wd.undetermined_interval(alpha, a, a * ratio))
    inside = min(max(x, low), high)
    for t in range(200):
        x = (1 - alpha) * x + a * (1 + (ratio - 1) * picks[t % len(picks)]) / x
        inside = (1 - alpha) * inside + a * (1 + (ratio - 1) * picks[(3 * t) % len(picks)]) / inside
        assert low * (1 - 1e-12) <= inside <= high * (1 + 1e-12)
    steps = math.ceil(40 / alpha)
    for _ in range(steps):
        x = (1 - alpha) * x + a * (1 + (ratio - 1) * picks[0]) / x
    assert low * (1 - 1e-9) <= x <= high * (1 + 1e-9)


def test_the_reference_interval() -> None:
    low, high = wd.undetermined_interval(0.1, 1.0, 10.0)
    assert (low.item(), high.item()) == pytest.approx((3.1622776, 10.0), rel=1e-6)


def test_the_papers_condition_alone_lets_sequences_leave() -> None:
    alpha, a, b = 0.5, 1.0, 4.0
    assert alpha * math.sqrt(b / a) <= 1
    low, high = math.sqrt(a / alpha), math.sqrt(b / alpha)
    assert (1 - alpha) * low + b / low > high
    with pytest.raises(ValueError, match="can be left"):
        wd.undetermined_interval(alpha, a, b)


@settings(deadline=None)
@given(
    lr=st.floats(1e-3, 1),
    product=st.floats(2e-3, 0.1),
    ell=st.floats(0.1, 5),
    ratio=st.floats(1, 3),
    picks=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    norm=st.floats(0.1, 10),
)
def test_norms_and_elrs_settle_at_the_generalised_equilibrium(
    lr: float, product: float, ell: float, ratio: float, picks: list[float], norm: float
) -> None:
    decay = product / lr
    lows, highs = wd.equilibrium_norms(ell, ell * ratio, lr, decay)
    for t in range(math.ceil(30 / product)):
        norm = math.hypot((1 - product) * norm, lr * ell * (1 + (ratio - 1) * picks[t % len(picks)]) / norm)
    assert lows.item() * (1 - 1e-6) <= norm <= highs.item() * (1 + 1e-6)
    elrs = wd.equilibrium_elrs(ell, ell * ratio, lr, decay)
    assert elrs.low.item() * (1 - 1e-6) <= lr / norm**2 <= elrs.high.item() * (1 + 1e-6)
    # √(2ηλ)/L to first order in ηλ:
    assert elrs.low.item() == pytest.approx(math.sqrt(2 * product) / (ell * ratio), rel=product)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), lr=st.floats(1e-3, 1), decay=st.floats(0, 0.5), factor=st.floats(0.1, 10))
def test_rescaled_runs_turn_alike(seed: int, lr: float, decay: float, factor: float) -> None:
    x = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y, lr2, decay2 = wd.rescaled(x, lr, decay, factor)
    for _ in range(20):
        x, _ = scale_invariant_step(x, lr, decay)
        y, _ = scale_invariant_step(y, lr2.item(), decay2.item())
    torch.testing.assert_close(y, factor * x, rtol=1e-9, atol=1e-11)


def test_arguments_broadcast() -> None:
    norm = wd.next_norm(torch.ones(3, 1), torch.arange(4.0), 0.1, 0.1)
    assert norm.shape == (3, 4)
    assert norm.dtype == torch.float64
    bounds = wd.steps_before_jump(torch.tensor([1.0, 40.0]), 1e-7, 1.0, 3.0, 0.1, 1e-3)
    assert bounds.low.shape == bounds.high.shape == (2,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wd.next_norm(0.0, 1.0, 0.1, 0.1), "norm must be positive"),
        (lambda: wd.next_norm(1.0, 1.0, 0.0, 0.1), "lr must be positive"),
        (lambda: wd.next_norm(1.0, 1.0, 0.1, -0.1), "weight_decay must be finite and not negative"),
        (lambda: wd.step_cosine(1.0, -1.0, 0.1, 0.1), "effective_grad_norm must be finite and not negative"),
        (lambda: wd.step_cosine(1.0, 1.0, 2.0, 0.5), "lr · weight_decay must be below 1"),
        (lambda: wd.jump_norm(1.0, 1.0, 0.1, 0.1), "delta must be below 1"),
        (lambda: wd.steps_before_jump(1.0, 0.1, 2.0, 1.0, 0.1, 0.1), "grad_min must not be above"),
        (lambda: wd.equilibrium_norms(1.0, 1.0, 0.1, 0.0), "weight_decay must be positive"),
        (lambda: wd.undetermined_interval(0.6, 1.0, 1.0), "can be left"),
        (lambda: wd.undetermined_interval(0.1, 2.0, 1.0), "low must not be above high"),
        (lambda: wd.rescaled(torch.ones(2), 0.1, 0.1, -1.0), "factor must be positive"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
