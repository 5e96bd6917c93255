"""Bounds on the steps of a run whose gradients fall, as in phase B of the periods under weight decay."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_sphere.theory import distance_bounds, factors_of, falling_grad_norms, jump_norm


def step(x: Tensor, g: Tensor, lr: float, decay: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x′ = (1 − ηλ)x − η∇ for x of shape (..., 3), along a random ∇ ⟂ x with ‖∇‖ = g̃/‖x‖; and the chord of the turn.

    The chord from x/‖x‖ to x′/‖x′‖: half its square is the cosine distance, without a formula for it.
    """
    rho = x.norm(dim=-1, keepdim=True)
    across = torch.linalg.cross(x, torch.randn(x.shape, dtype=torch.float64, generator=generator))
    after = (1 - lr * decay) * x - lr * g[..., None] / rho * across / across.norm(dim=-1, keepdim=True)
    return after, (x / rho - after / after.norm(dim=-1, keepdim=True)).norm(dim=-1)


@settings(deadline=None, max_examples=50)
@given(
    c=st.floats(0.1, 10),
    ratio=st.floats(1, 10),
    start=st.integers(-5, 100),
    power=st.sampled_from([1.0, 2.0]),
    picks=st.lists(st.floats(0, 1), min_size=60, max_size=60),
    lr=st.floats(0.01, 1),
    product=st.floats(1e-3, 0.3),
    seed=st.integers(0, 1000),
)
def test_steps_with_falling_gradients_lie_between_their_bounds(
    c: float, ratio: float, start: int, power: float, picks: list[float], lr: float, product: float, seed: int
) -> None:
    """Phase B in the small: the norm falls by weight decay faster than gradients do, and steps grow again."""
    decay = product / lr
    steps = start + 1.0 + torch.arange(60, dtype=torch.float64)
    low, high = falling_grad_norms(steps, start, c, c * ratio, power)
    grads = low + (high - low) * torch.tensor(picks, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, dtype=torch.float64, generator=generator)
    walk, turns = [3 * x / x.norm()], []
    for g in grads:
        x, turn = step(walk[-1], g, lr, decay, generator)
        walk.append(x)
        turns.append(turn)
    weights, chords = torch.stack(walk[:-1]), torch.stack(turns)
    bounds = distance_bounds(weights.norm(dim=-1), low, high, lr, decay)
    rounding = 1e-15 * chords + 1e-12 * chords.square()
    seen = chords.square() / 2
    assert bool(((bounds.low <= seen + rounding) & (seen <= bounds.high + rounding)).all())
    # Not any bounds: each is reached where the gradient is at its end.
    for bound, end in ((bounds.low, low), (bounds.high, high)):
        _, chords = step(weights, end, lr, decay, generator)
        assert bool(((chords.square() / 2 - bound).abs() <= 1e-15 * chords + 1e-12 * chords.square()).all())
    # The narrowest factors lie within those that the run was made with, and are reached.
    fitted = factors_of(grads, steps, start, power)
    assert c * (1 - 1e-12) <= fitted.low <= fitted.high <= c * ratio * (1 + 1e-12)
    inner = falling_grad_norms(steps, start, fitted.low, fitted.high, power)
    assert bool((inner.low <= grads * (1 + 1e-12)).all())
    assert bool((inner.high >= grads * (1 - 1e-12)).all())
    assert (grads / inner.low).min().item() == pytest.approx(1, rel=1e-12)
    assert (grads / inner.high).max().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(("power", "expected"), [(1.0, [6.0, 3.0, 2.0, 0.6]), (2.0, [6.0, 1.5, 6 / 9, 0.06])])
def test_the_bounds_fall_like_a_power_of_the_steps_since_the_start(power: float, expected: list[float]) -> None:
    low, high = falling_grad_norms(torch.tensor([8.0, 9.0, 10.0, 17.0]), 7.0, 3.0, 6.0, power)
    assert high.tolist() == pytest.approx(expected)
    assert (high / low).tolist() == pytest.approx([2.0] * 4)


@settings(deadline=None)
@given(
    delta=st.floats(1e-10, 0.9),
    ell=st.floats(0.01, 10),
    ratio=st.floats(1, 5),
    norm=st.floats(0.1, 30),
    lr=st.floats(0.01, 1),
    product=st.floats(0, 0.9),
)
def test_the_bounds_say_where_a_jump_is_possible_and_where_certain(
    delta: float, ell: float, ratio: float, norm: float, lr: float, product: float
) -> None:
    decay = product / lr
    low, high = distance_bounds(norm, ell, ell * ratio, lr, decay)
    for bound, g in ((low, ell), (high, ell * ratio)):
        border = jump_norm(delta, g, lr, decay).item()
        if abs(norm / border - 1) > 1e-9:
            assert bool(bound > delta) == (norm < border)


def test_the_bounds_are_the_papers_to_first_order() -> None:
    low, high = distance_bounds(20.0, 1.0, 3.0, 0.1, 1e-6)
    for bound, g in ((low, 1.0), (high, 3.0)):
        assert bound.item() == pytest.approx(0.1**2 * g**2 / (2 * 20.0**4), rel=1e-5)
        assert math.sqrt(2 * bound.item()) * 20.0**2 / 0.1 == pytest.approx(g, rel=1e-5)  # ρ² = ηg̃/√(2δ)
