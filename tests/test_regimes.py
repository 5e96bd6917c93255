import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_sphere.analysis import name_regime
from lit_sphere.analysis.regimes import CONVERGED_LOSS


def noisy(level: float, epochs: int, spread: float, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [level * math.exp(rng.gauss(0, spread)) for _ in range(epochs)]


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    level=st.floats(0.1, 5),
    spread=st.floats(0.0, 0.3),
    epochs=st.integers(40, 400),
)
def test_noise_around_a_level_is_an_equilibrium(seed: int, level: float, spread: float, epochs: int) -> None:
    start = [level * (1 + 10 / (t + 1)) for t in range(epochs // 5)]  # a transient
    losses = start + noisy(level, epochs - len(start), spread, seed)
    verdict = name_regime(losses, [0.4] * epochs, 10)
    assert verdict.regime == "chaotic equilibrium"
    assert verdict.since is not None
    assert verdict.since <= 0.75 * epochs


@settings(deadline=None)
@given(seed=st.integers(0, 1000), rate=st.floats(0.1, 1.0), epochs=st.integers(100, 400))
def test_falling_below_the_threshold_is_convergence_and_the_epoch_is_named(seed: int, rate: float, epochs: int) -> None:
    losses = [2 * math.exp(-rate * t) * x for t, x in enumerate(noisy(1, epochs, 0.05, seed))]
    verdict = name_regime(losses, [0.0] * epochs, 10)
    assert verdict.regime == "convergence"
    assert verdict.since is not None
    assert all(loss < CONVERGED_LOSS for loss in losses[verdict.since :])
    assert losses[verdict.since - 1] >= CONVERGED_LOSS


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_chance_error_is_divergence_at_whatever_loss(classes: int) -> None:
    chance = 1 - 1 / classes
    errors = [0.5 * chance] * 30 + noisy(chance, 70, 0.02)
    verdict = name_regime(noisy(9.0, 100, 0.5), errors, classes)
    assert verdict.regime == "divergence"
    assert verdict.since is not None
    assert 20 <= verdict.since <= 35


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([1.0] * 19, "only 19 epochs"),
        ([math.exp(-0.03 * t) for t in range(100)], "still falls"),
        ([math.exp(0.02 * t) for t in range(100)], "still rises"),
        # A sudden convergence at the end of a long equilibrium (E14) is not yet one regime or the other.
        ([1.0] * 95 + [0.5, 0.1, 0.02, 5e-3, 1e-3], "below 0.01 in 2 of the last 25 epochs only"),
    ],
)
def test_undecided(losses: list[float], reason: str) -> None:
    verdict = name_regime(losses, [0.3] * len(losses), 10)
    assert verdict.regime == "undecided"
    assert reason in verdict.evidence
    assert verdict.since is None


def test_bad_curves_are_refused() -> None:
    with pytest.raises(ValueError, match="2 losses but 1 errors"):
        name_regime([1.0, 1.0], [0.1], 10)
    with pytest.raises(ValueError, match="finite"):
        name_regime([math.nan], [0.1], 10)
    with pytest.raises(ValueError, match="num_classes"):
        name_regime([1.0], [0.1], 1)
