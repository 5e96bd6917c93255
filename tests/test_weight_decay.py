"""Weight decay's formulas against real steps in float64, and their bounds against adversarial sequences."""

import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_sphere.theory import weight_decay as wd
from lit_sphere.theory.undetermined import undetermined_interval

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
    chord = (x / x.norm() - after / after.norm()).norm()  # its square is twice the cosine distance, small ones too
    distance = wd.step_distance(x.norm(), g, lr, decay).item()
    assert distance == pytest.approx(chord.item() ** 2 / 2, rel=1e-9, abs=1e-15 * chord.item())


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
@example(norm=8.0, delta=0.8, ell=1.4, ratio=1.0, picks=[0.0], lr=1.0, product=0.72)  # thrown below the fixed point
@settings(deadline=None)
@given(
    norm=st.floats(0.5, 10),
    delta=st.floats(1e-4, 0.5),
    ell=st.floats(0.05, 5),
    ratio=st.floats(1, 4),
    picks=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    lr=st.floats(0.01, 1),
    product=st.floats(5e-3, 0.3) | st.floats(0.3, 0.9),
)
def test_no_jump_before_the_first_bound_and_one_by_the_second(
    norm: float, delta: float, ell: float, ratio: float, picks: list[float], lr: float, product: float
) -> None:
    decay, most = product / lr, 3000
    gs = [ell * (1 + (ratio - 1) * pick) for pick in picks]
    low, high = wd.steps_before_jump(norm, delta, ell, ell * ratio, lr, decay)
    # At a tie the last digit decides: at once or never.
    settled = lr * ell / math.sqrt(1 - (1 - product) ** 2)  # ρ² at g̃ = ℓ
    for g, other in ((ell * ratio, settled), (ell, settled * ratio)):
        border = wd.jump_norm(delta, g, lr, decay).item() ** 2
        assume(abs(norm**2 / border - 1) > 1e-9)
        assume(abs(other / border - 1) > 1e-9)
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


@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_the_frequency_of_periods_is_proportional_to_rate_times_decay(ratio: float) -> None:
    """Runs that begin at 20 κL and jump at 2 κL (at 20 κℓ and 2 κℓ for t_min), for ηλ over two decades, and any η/λ."""
    ell, big = 1.0, 1.5
    for product in (1e-5, 1e-4, 1e-3):
        lr, decay = math.sqrt(product * ratio), math.sqrt(product / ratio)
        kappa = math.sqrt(lr / (2 * decay))
        for end, fixed, speed in ((0, ell, 4), (1, big, 2)):
            g = big if end == 0 else ell  # whose jump norm it is
            delta = (lr * g / (2 * kappa * fixed)) ** 2 / 2
            bounds = wd.steps_before_jump(math.sqrt(20 * kappa * fixed), delta, ell, big, lr, decay)
            expected = math.log(19) / (speed * product)  # ln[(2 − 1)/(20 − 1)]/ln(1 − speed · ηλ)
            assert bounds[end].item() == pytest.approx(expected, rel=3 * product + 1e-5, abs=1)


@settings(deadline=None)
@given(
    lr=st.floats(1e-3, 1),
    product=st.floats(1e-6, 1e-3),
    ell=st.floats(0.1, 5),
    ratio=st.floats(1, 5),
    off=st.floats(0.02, 0.9),
)
def test_bounds_exist_for_small_jumps_only(lr: float, product: float, ell: float, ratio: float, off: float) -> None:
    """PB's conditions δ < ηλL²/ℓ² for t_min and δ < ηλℓ²/L² for t_max, to first order in ηλ and δ."""
    assume(product * ratio**2 < 3e-3)
    far = 10 * math.sqrt(lr * ratio * ell / product)
    for end, border in ((0, product * ratio**2), (1, product / ratio**2)):
        for delta, bounded in ((border * (1 - off), True), (border * (1 + off), False)):
            bounds = wd.steps_before_jump(far, delta, ell, ell * ratio, lr, product / lr)
            assert math.isfinite(bounds[end].item()) == bounded


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
    low, high = (end.item() for end in undetermined_interval(alpha, a, a * ratio))
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
    low, high = undetermined_interval(0.1, 1.0, 10.0)
    assert (low.item(), high.item()) == pytest.approx((3.1622776, 10.0), rel=1e-6)


def test_the_papers_condition_alone_lets_sequences_leave() -> None:
    alpha, a, b = 0.5, 1.0, 4.0
    assert alpha * math.sqrt(b / a) <= 1
    low, high = math.sqrt(a / alpha), math.sqrt(b / alpha)
    assert (1 - alpha) * low + b / low > high
    with pytest.raises(ValueError, match="can be left"):
        undetermined_interval(alpha, a, b)


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


@settings(deadline=None)
@given(lr=st.floats(1e-4, 10), product=st.floats(1e-8, 0.999), g=gradients, norm=norms)
def test_at_a_fixed_norm_the_cosine_is_what_decay_leaves(lr: float, product: float, g: float, norm: float) -> None:
    decay = product / lr
    # The norm that a step keeps, found without a formula of its own: ρ′² − ρ² falls with ρ.
    low, high = 1e-6, 1e9
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if wd.next_norm(middle, g, lr, decay) > middle else (low, middle)
    fixed = math.sqrt(low * high)
    assert wd.next_norm(fixed, g, lr, decay).item() == pytest.approx(fixed, rel=1e-12)
    cosine, ess = wd.step_cosine(fixed, g, lr, decay).item(), wd.equilibrium_ess(lr, decay).item()
    assert cosine == pytest.approx(1 - lr * decay, rel=1e-8)
    assert ess == pytest.approx(math.tan(math.acos(1 - lr * decay)), rel=1e-6)  # acos loses digits at small angles
    assert ess == pytest.approx(lr * g / ((1 - lr * decay) * fixed**2), rel=1e-6)


@settings(deadline=None)
@given(lr=st.floats(1e-4, 10), product=st.floats(1e-8, 0.29), g=gradients)  # the norms' interval holds
def test_the_step_size_at_equilibrium_is_that_at_the_norms_of_equilibrium(lr: float, product: float, g: float) -> None:
    decay = product / lr
    norms = wd.equilibrium_norms(g, g, lr, decay)
    assert norms.low.item() == norms.high.item()
    ess = wd.equilibrium_ess(lr, decay).item()
    assert ess == pytest.approx(lr * g / ((1 - lr * decay) * norms.low.item() ** 2), rel=1e-12)
    assert ess == pytest.approx(wd.equilibrium_elrs(g, g, lr, decay).low.item() * g / (1 - lr * decay), rel=1e-12)
    assert 1 - wd.step_cosine(norms.low, g, lr, decay).item() == pytest.approx(lr * decay, rel=1e-6)
    # √(2ηλ) to first order: √a/(1 − p) = √(2p) (1 + ¾p + …)
    assert ess == pytest.approx(math.sqrt(2 * product) * (1 + 0.75 * product), rel=3 * product**2 + 1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), dim=st.integers(2, 20), lr=st.floats(0.01, 1), product=st.floats(0.01, 0.29))
def test_a_step_that_keeps_the_norm_has_the_step_size_of_equilibrium(
    seed: int, dim: int, lr: float, product: float
) -> None:
    """Of a real scale-invariant function, whatever its gradient; a longer step raises the norm, a shorter lowers it."""
    decay = product / lr
    x = torch.randn(dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    _, g = scale_invariant_step(x, lr, decay)
    assume(g > 1e-3)
    x = x / x.norm() * wd.equilibrium_norms(g, g, lr, decay).low
    after, _ = scale_invariant_step(x, lr, decay)
    assert after.norm().item() == pytest.approx(x.norm().item(), rel=1e-12)
    along = torch.dot(x, after) / x.norm()
    across = (after - along * x / x.norm()).norm()
    assert (across / along).item() == pytest.approx(wd.equilibrium_ess(lr, decay).item(), rel=1e-9)
    for factor in (0.9, 1.1):
        other, _ = scale_invariant_step(factor * x, lr, decay)
        longer = torch.dot(x, other) / (x.norm() * other.norm()) < 1 - lr * decay
        assert bool(longer) == bool(other.norm() > factor * x.norm()) == (factor < 1)
