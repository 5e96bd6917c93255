"""The toy function on the sphere: its equilibria, its chaos, its three regimes by the general rule."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_sphere.analysis import name_regime
from lit_sphere.optim import SphereSGD
from lit_sphere.theory.toy import (
    ToyCurves,
    equilibrium_elrs,
    equilibrium_loss,
    one_term_orbit,
    settled_losses,
    toy_curves,
    toy_gradient,
    toy_loss,
)

ALPHAS = (1.0, 2.0, 4.0)
SEEDS = range(8)


ELRS = (0.10, 0.143, 0.15, 0.20, 0.30)


@pytest.fixture(scope="module")
def settled() -> ToyCurves:
    """The last quarter of 20 000 steps."""
    curves = toy_curves(ALPHAS, ELRS, epochs=20, steps_per_epoch=1000, seeds=SEEDS)
    return ToyCurves(*(curve[:, :, 15:] for curve in curves))


@pytest.mark.parametrize(
    ("elr", "level", "tolerance"),
    [(0.10, 0.0, 1e-12), (0.143, 0.0035, 1e-4), (0.15, 0.1667, 1e-4), (0.20, 1.000, 3e-4), (0.30, 1.78, 0.05)],
)
def test_the_levels_of_the_reference(settled: ToyCurves, elr: float, level: float, tolerance: float) -> None:
    mean = settled.losses[ELRS.index(elr)].mean().item()
    assert mean == pytest.approx(level, abs=tolerance)
    if elr <= 0.2:  # before chaos sets in, the corollary holds
        assert mean == pytest.approx(equilibrium_loss(ALPHAS, elr), abs=3e-4)


def test_the_groups_of_an_equilibrium_have_the_predicted_elrs_and_equal_steps(settled: ToyCurves) -> None:
    row = ELRS.index(0.20)
    elrs, esses = settled.elrs[row, ..., 1:], settled.esses[row, ..., 1:]
    predicted = torch.tensor(equilibrium_elrs(ALPHAS, 0.2), dtype=torch.float64)
    torch.testing.assert_close(predicted, torch.tensor([1.4, 0.7, 0.35], dtype=torch.float64))
    torch.testing.assert_close(elrs, predicted.expand_as(elrs), rtol=2e-3, atol=0)
    torch.testing.assert_close(esses, esses.mean(-1, keepdim=True).expand_as(esses), rtol=2e-3, atol=0)
    # TR eq. (4): where all groups take equal steps, so does the whole.
    torch.testing.assert_close(settled.esses[row, ..., 0], esses[..., 0], rtol=2e-3, atol=0)


def test_the_chaos_is_near_the_prediction_with_heavy_tails() -> None:
    curves = toy_curves(ALPHAS, [0.5], epochs=2000, steps_per_epoch=1, seeds=SEEDS)
    settled = curves.losses[0, :, 500:]
    assert settled.mean().item() == pytest.approx(2.53, abs=0.05)
    assert settled.mean().item() == pytest.approx(equilibrium_loss(ALPHAS, 0.5), rel=0.03)
    elrs = curves.elrs[0, :, 500:, 1:].flatten(0, 1)
    assert (elrs.mean(0) > 1.5 * elrs.median(0).values).all()


def test_the_three_regimes_are_named() -> None:
    # No classes, so no error at chance: consecutive iterates tell divergence. An epoch is 100 steps.
    curves = toy_curves(ALPHAS, (0.1, 0.2, 0.5), seeds=SEEDS)
    for row, seed in product(range(3), SEEDS):
        regime = ("convergence", "chaotic equilibrium", "divergence")[row]
        verdict = name_regime(
            curves.losses[row, seed].tolist(),
            None,
            None,
            esses=curves.esses[row, seed].tolist(),
            steps=range(0, 10_000, 100),
        )
        assert verdict.regime == regime, verdict
        assert verdict.since is not None
        assert verdict.since_step == 100 * verdict.since
        if regime == "chaotic equilibrium":
            assert "ESS of 3 groups equal within 0%" in verdict.evidence
            assert "44° apart" in verdict.evidence


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    elr=st.floats(0.01, 2.0),
    alphas=st.lists(st.floats(0.1, 5.0), min_size=1, max_size=4),
)
def test_a_step_is_that_of_sphere_sgd_by_autograd(seed: int, elr: float, alphas: list[float]) -> None:
    curves = toy_curves(alphas, [elr], epochs=4, steps_per_epoch=1, seeds=[seed])
    start = torch.randn(2, len(alphas), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    point = torch.nn.Parameter(start / start.norm())
    optimizer = SphereSGD([point], elr=elr)
    for step in range(4):
        optimizer.zero_grad()
        loss = toy_loss(point, torch.tensor(alphas, dtype=torch.float64))
        loss.backward()
        assert curves.losses[0, 0, step].item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-9)
        before = point.detach().clone()
        assert point.grad is not None
        torch.testing.assert_close(toy_gradient(before, torch.tensor(alphas, dtype=torch.float64)), point.grad)
        optimizer.step()
        if loss.item() > 1e-6:
            across = (point.detach() - before).norm().item() / 2
            angle = math.atan(curves.esses[0, 0, step, 0].item())
            assert angle == pytest.approx(2 * math.asin(across), rel=1e-5)


def test_runs_do_not_depend_on_their_neighbours() -> None:
    together = toy_curves(ALPHAS, (0.1, 0.3), epochs=5, steps_per_epoch=10, seeds=(3, 4))
    alone = toy_curves(ALPHAS, (0.3,), epochs=5, steps_per_epoch=10, seeds=(4,))
    for both, one in zip(together, alone, strict=True):
        assert torch.equal(both[1, 1], one[0, 0])


@pytest.mark.parametrize(
    ("alphas", "elrs", "options", "match"),
    [
        ((1.0, -1.0), (0.1,), {}, "positive"),
        ((1.0,), (0.0,), {}, "positive"),
        ((), (0.1,), {}, "at least one"),
        ((1.0,), (0.1,), {"epochs": 0}, "at least one"),
    ],
)
def test_bad_toys_are_refused(
    alphas: tuple[float, ...], elrs: tuple[float, ...], options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        toy_curves(alphas, elrs, **options)


def test_settled_losses_are_those_of_the_curves() -> None:
    elrs, seeds = [0.1, 0.15, 0.2, 0.3], [0, 5, 7]
    curves = toy_curves((1.0, 2.0, 4.0), elrs, epochs=2, steps_per_epoch=10, seeds=seeds)
    # In 20 steps chaos makes nothing yet of a last digit.
    torch.testing.assert_close(settled_losses((1.0, 2.0, 4.0), elrs, 20, seeds), curves.losses[..., 1])


def test_a_map_in_several_pieces_is_one_map() -> None:
    alphas, elrs = (1.0, 3.0), [0.05 * i for i in range(1, 60)]
    whole = settled_losses(alphas, elrs, 60, range(100))
    assert whole.shape == (59, 100)
    torch.testing.assert_close(whole[40:42], settled_losses(alphas, elrs[40:42], 60, range(100)))


@pytest.mark.parametrize(
    ("alphas", "elrs", "steps", "message"),
    [((1.0,), [0.1], 1, "second half"), ((1.0,), [], 10, "at least one"), ((1.0,), [math.inf], 10, "finite")],
)
def test_maps_of_nothing_are_refused(alphas: tuple[float, ...], elrs: list[float], steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settled_losses(alphas, elrs, steps)


def turned(angle: float, alpha: float, elr: float) -> float:
    """Angle after a step from (sin φ, cos φ), by the general gradient."""
    point = torch.tensor([[math.sin(angle)], [math.cos(angle)]], dtype=torch.float64)
    x, y = (point - elr * toy_gradient(point, torch.tensor([alpha], dtype=torch.float64))).flatten().tolist()
    return math.atan2(x, y)


@settings(deadline=None)
@given(alpha=st.floats(0.1, 10), product=st.floats(1.05, 50))
def test_one_term_has_an_attracting_orbit_of_period_two(alpha: float, product: float) -> None:
    elr = product / alpha
    orbit = one_term_orbit(alpha, elr)
    assert turned(orbit.angle, alpha, elr) == pytest.approx(-orbit.angle, abs=1e-12)
    assert orbit.loss == pytest.approx(alpha * math.sin(orbit.angle) ** 2, rel=1e-9)
    assert orbit.loss == pytest.approx(equilibrium_loss([alpha], elr), rel=1e-9)
    assert abs(orbit.contraction) < 1
    off = 1e-5
    assert turned(orbit.angle + off, alpha, elr) + orbit.angle == pytest.approx(orbit.contraction * off, abs=1e-8)


@settings(deadline=None)
@given(alpha=st.floats(0.1, 10), product=st.floats(0.01, 0.99))
def test_one_term_converges_linearly_below_the_threshold(alpha: float, product: float) -> None:
    orbit = one_term_orbit(alpha, product / alpha)
    assert orbit.angle == orbit.loss == 0
    assert abs(orbit.contraction) < 1
    assert turned(1e-5, alpha, product / alpha) == pytest.approx(orbit.contraction * 1e-5, abs=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("product", [1.2, 2.0, 5.0, 10.0, 20.0])
def test_runs_settle_on_the_orbit(alpha: float, product: float) -> None:
    losses = settled_losses([alpha], [product / alpha], 4000, range(5))
    torch.testing.assert_close(
        losses, torch.full_like(losses, one_term_orbit(alpha, product / alpha).loss), rtol=1e-4, atol=0
    )
