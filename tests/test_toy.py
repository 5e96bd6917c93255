"""The toy function on the sphere: its equilibria, its chaos, its three regimes by the general rule."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_sphere.analysis import name_regime
from lit_sphere.optim import SphereSGD
from lit_sphere.theory.sphere import effective_step_size, total_elr
from lit_sphere.theory.toy import (
    ToyCurves,
    equilibrium_elrs,
    equilibrium_loss,
    one_term_orbit,
    settled_losses,
    threshold_elr,
    toy_curves,
    toy_gradient,
    toy_loss,
)

ALPHAS = (1.0, 2.0, 4.0)
SEEDS = range(8)


ELRS = (0.10, 0.143, 0.15, 0.20, 0.30, 0.50)


@pytest.fixture(scope="module")
def settled() -> ToyCurves:
    """The last quarter of 20 000 steps."""
    curves = toy_curves(ALPHAS, ELRS, epochs=20, steps_per_epoch=1000, seeds=SEEDS)
    return ToyCurves(*(curve[:, :, 15:] for curve in curves))


@pytest.mark.parametrize(
    ("elr", "level", "tolerance", "predicted"),
    [
        (0.10, 0.0, 1e-12, 0.0),
        (0.143, 0.0035, 1e-4, 0.0035),
        (0.15, 0.1667, 1e-4, 0.1667),
        (0.20, 1.000, 3e-4, 1.0),
        (0.30, 1.78, 0.05, 1.8333),  # chaos begins
        (0.50, 2.53, 0.01, 2.5),
    ],
)
def test_the_levels_of_the_reference(
    settled: ToyCurves, elr: float, level: float, tolerance: float, predicted: float
) -> None:
    losses = settled.losses[ELRS.index(elr)]
    assert equilibrium_loss(ALPHAS, elr).item() == pytest.approx(predicted, abs=5e-5)
    assert losses.mean().item() == pytest.approx(level, abs=tolerance)
    if elr <= 0.2:  # every run, and the corollary holds
        assert losses.mean(1).tolist() == pytest.approx([predicted] * len(SEEDS), abs=3e-4)


def test_the_groups_of_an_equilibrium_have_the_predicted_elrs_and_equal_steps(settled: ToyCurves) -> None:
    row = ELRS.index(0.20)
    elrs, esses = settled.elrs[row, ..., 1:], settled.esses[row, ..., 1:]
    predicted = equilibrium_elrs(ALPHAS, 0.2)
    torch.testing.assert_close(predicted, torch.tensor([1.4, 0.7, 0.35], dtype=torch.float64))
    torch.testing.assert_close(elrs, predicted.expand_as(elrs), rtol=2e-3, atol=0)
    torch.testing.assert_close(esses, esses.mean(-1, keepdim=True).expand_as(esses), rtol=2e-3, atol=0)
    # TR eq. (4): where all groups take equal steps, so does the whole.
    torch.testing.assert_close(settled.esses[row, ..., 0], esses[..., 0], rtol=2e-3, atol=0)


def test_the_chaos_is_near_the_prediction_with_heavy_tails() -> None:
    curves = toy_curves(ALPHAS, [0.5], epochs=2000, steps_per_epoch=1, seeds=SEEDS)
    settled = curves.losses[0, :, 500:]
    assert settled.mean().item() == pytest.approx(2.53, abs=0.05)
    assert settled.mean().item() == pytest.approx(equilibrium_loss(ALPHAS, 0.5).item(), rel=0.03)
    elrs = curves.elrs[0, :, 500:, 1:].flatten(0, 1)
    predicted, medians = equilibrium_elrs(ALPHAS, 0.5), elrs.median(0).values
    assert (elrs.mean(0) > 1.5 * medians).all()
    # Predicted 3.5, 1.75, 0.875. Means were 15.2, 6.5, 1.8; medians 4.9, 2.3, 0.9; of 1/η̃_i, 1/2.8, 1/1.7, 1/0.94.
    assert ((medians / predicted > 0.9) & (medians / predicted < 1.6)).all()
    harmonic = elrs.reciprocal().mean(0).reciprocal()
    assert ((harmonic / predicted > 0.75) & (harmonic / predicted < 1.15)).all()


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


def turned(angle: float, alpha: float, elr: float) -> float:
    """Angle after a step from (sin φ, cos φ), by the general gradient."""
    point = torch.tensor([[math.sin(angle)], [math.cos(angle)]], dtype=torch.float64)
    x, y = (point - elr * toy_gradient(point, torch.tensor([alpha], dtype=torch.float64))).flatten().tolist()
    return math.atan2(x, y)


@settings(deadline=None)
@given(alpha=st.floats(0.1, 10), product=st.floats(1.05, 50))
def test_one_term_has_an_attracting_orbit_of_period_two(alpha: float, product: float) -> None:
    elr = product / alpha
    angle, loss, contraction, ess = (value.item() for value in one_term_orbit(alpha, elr))
    assert turned(angle, alpha, elr) == pytest.approx(-angle, abs=1e-12)
    assert loss == pytest.approx(alpha * math.sin(angle) ** 2, rel=1e-9)
    assert loss == pytest.approx(equilibrium_loss([alpha], elr).item(), rel=1e-9)
    assert math.cos(2 * angle) == pytest.approx(1 / (elr * alpha), rel=1e-9)
    assert ess == pytest.approx(math.tan(2 * angle), rel=1e-9)
    assert abs(contraction) < 1
    off = 1e-5
    assert turned(angle + off, alpha, elr) + angle == pytest.approx(contraction * off, abs=1e-8)


@settings(deadline=None)
@given(alpha=st.floats(0.1, 10), product=st.floats(0.01, 0.99))
def test_one_term_converges_linearly_below_the_threshold(alpha: float, product: float) -> None:
    angle, loss, contraction, ess = (value.item() for value in one_term_orbit(alpha, product / alpha))
    assert angle == loss == ess == 0
    assert abs(contraction) < 1
    assert turned(1e-5, alpha, product / alpha) == pytest.approx(contraction * 1e-5, abs=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("product", [1.2, 2.0, 5.0, 10.0, 20.0])
def test_runs_settle_on_the_orbit(alpha: float, product: float) -> None:
    losses = settled_losses([alpha], [product / alpha], 4000, range(5))
    level = one_term_orbit(alpha, product / alpha).loss
    torch.testing.assert_close(losses, level.expand_as(losses), rtol=1e-4, atol=0)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    alphas=st.lists(st.floats(0.2, 5.0), min_size=1, max_size=4),
    product=st.floats(1.05, 10),
)
def test_every_pair_is_on_its_orbit_at_equilibrium(seed: int, alphas: list[float], product: float) -> None:
    """A step from (x_i, y_i) at ±φ* in every pair, with norms of the equilibrium, changes nothing but signs."""
    elr = product * threshold_elr(alphas)
    rho = (elr / equilibrium_elrs(alphas, elr)).sqrt()
    assert rho.square().sum().item() == pytest.approx(1, rel=1e-12)  # TR eq. (3)
    orbit = one_term_orbit(sum(alphas), elr)
    sign = torch.randint(2, (len(alphas),), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    point = rho * torch.stack([sign * orbit.angle.sin(), orbit.angle.cos().expand(len(alphas))])
    alpha = torch.tensor(alphas, dtype=torch.float64)
    assert toy_loss(point, alpha).item() == pytest.approx(equilibrium_loss(alphas, elr).item(), rel=1e-9)
    gradient = toy_gradient(point, alpha)
    moved = point - elr * gradient
    moved = moved / moved.norm()
    torch.testing.assert_close(moved[0], -point[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(moved[1], point[1], rtol=1e-9, atol=1e-12)
    esses = effective_step_size(point.norm(dim=0), gradient.norm(dim=0), elr)
    torch.testing.assert_close(esses, orbit.ess.expand_as(esses), rtol=1e-9, atol=0)
    torch.testing.assert_close(esses, (product**2 - 1) ** 0.5 * torch.ones_like(esses), rtol=1e-9, atol=0)


@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 1000),
    alphas=st.lists(st.floats(0.5, 5.0), min_size=1, max_size=4),
    product=st.floats(0.3, 0.9) | st.floats(1.1, 1.4),
)
def test_runs_converge_below_the_threshold_and_settle_above_it(seed: int, alphas: list[float], product: float) -> None:
    elr = product * threshold_elr(alphas).item()
    seen = toy_curves(alphas, [elr], epochs=2, steps_per_epoch=1500, seeds=[seed])
    level = equilibrium_loss(alphas, elr).item()
    assert (level == 0) == (product < 1)
    # A run may lock into another cycle, see below.
    assert seen.losses[0, 0, 1].item() == pytest.approx(level, rel=0.03, abs=1e-9)
    if product > 1:
        torch.testing.assert_close(seen.elrs[0, 0, 1, 1:], equilibrium_elrs(alphas, elr), rtol=0.3, atol=0)


@pytest.mark.parametrize(("product", "least", "most"), [(1.18, 0, 0), (1.2, 1, 25), (1.22, 0, 0)])
def test_in_a_narrow_window_some_starts_lock_into_a_longer_cycle(product: float, least: int, most: int) -> None:
    elr = product * threshold_elr(ALPHAS).item()
    last = toy_curves(ALPHAS, [elr], epochs=3000, steps_per_epoch=1, seeds=range(50))
    losses, elrs = last.losses[0, :, -600:], last.elrs[0, :, -600:, 1:].mean(1)
    off = (losses.mean(1) / equilibrium_loss(ALPHAS, elr) - 1).abs()
    locked = off > 5e-3
    assert least <= locked.sum() <= most
    assert off[~locked].max() < 1e-3
    assert off.max() < 0.015
    ratios = elrs / equilibrium_elrs(ALPHAS, elr)
    assert (ratios[~locked] - 1).abs().max() < 0.01
    if locked.any():
        assert 1.15 < ratios[locked].max() < 1.2
        torch.testing.assert_close(losses[locked, 6:], losses[locked, :-6], rtol=0.01, atol=0)  # period 6
        assert ((losses[locked, 2:] / losses[locked, :-2] - 1).abs().amax(1) > 0.1).all()


def test_the_threshold_is_one_over_the_sum() -> None:
    assert threshold_elr(ALPHAS).item() == pytest.approx(1 / 7, rel=1e-15)
    losses = settled_losses(ALPHAS, [0.99 / 7, 1.01 / 7], 20_000, SEEDS)
    assert losses[0].max() < 1e-6
    assert losses[1].min() > 0.9 * equilibrium_loss(ALPHAS, 1.01 / 7)


def test_predictions_are_vectorised() -> None:
    elrs = torch.tensor([[0.1, 0.2], [0.3, 0.5]])
    losses, groups = equilibrium_loss(ALPHAS, elrs), equilibrium_elrs(ALPHAS, elrs)
    assert losses.shape == (2, 2)
    assert groups.shape == (2, 2, 3)
    assert losses.dtype == groups.dtype == torch.float64
    assert groups[1, 0].tolist() == pytest.approx(equilibrium_elrs(ALPHAS, elrs[1, 0].item()).tolist())
    torch.testing.assert_close(total_elr(groups), elrs.double())
