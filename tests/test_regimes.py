import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_sphere.analysis import name_regime
from lit_sphere.analysis.epoch_rows import check_converged_loss
from lit_sphere.analysis.regimes import (
    ANNOUNCED_AFTER,
    CONVERGED_LOSS,
    Regime,
    announced_regime,
    converged_mse,
    kept_cosine,
)


def noisy(level: float, epochs: int, spread: float, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [level * math.exp(rng.gauss(0, spread)) for _ in range(epochs)]


def equilibrium(seed: int, level: float, spread: float, epochs: int) -> list[float]:
    """A transient, then noise around a level."""
    start = [level * (1 + 10 / (t + 1)) for t in range(epochs // 5)]
    return start + noisy(level, epochs - len(start), spread, seed)


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    level=st.floats(0.1, 5),
    spread=st.floats(0.0, 0.01),
    epochs=st.integers(40, 400),
)
def test_weak_noise_around_a_level_is_an_equilibrium(seed: int, level: float, spread: float, epochs: int) -> None:
    # The line through ten epochs of this noise changes by the 5 % that count once in 10⁵. Stronger noise: see below.
    verdict = name_regime(equilibrium(seed, level, spread, epochs), [0.4] * epochs, 10)
    assert verdict.regime == "chaotic equilibrium"
    assert verdict.since is not None
    assert verdict.since <= 0.75 * epochs


@pytest.mark.parametrize("epochs", [40, 49, 100, 200])
@pytest.mark.parametrize("spread", [0.2, 0.3, 0.6])
def test_strong_noise_around_a_level_is_an_equilibrium_as_often_as_stated(spread: float, epochs: int) -> None:
    # No test of finite noise is right always: three standard errors err in one of a hundred runs, not in one of
    # twenty as two did.
    verdicts = [name_regime(equilibrium(seed, 1.0, spread, epochs), [0.4] * epochs, 10) for seed in range(1000)]
    named = [verdict.regime for verdict in verdicts]
    assert set(named) <= {"chaotic equilibrium", "undecided"}
    assert named.count("undecided") <= 15
    wrong = [verdict.evidence for verdict in verdicts if verdict.regime == "undecided"]
    assert all("still falls" in evidence or "still rises" in evidence for evidence in wrong)


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
        # A sudden convergence at the end of a long equilibrium is not yet one regime or the other.
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
    with pytest.raises(ValueError, match="losses must be finite"):
        name_regime([1.0, math.nan, 1.0], [0.1] * 3, 10)
    with pytest.raises(ValueError, match="errors must be finite"):
        name_regime([1.0], [math.nan], 10)
    with pytest.raises(ValueError, match="100 losses but 99 steps"):
        name_regime([1.0] * 100, None, None, steps=range(99))
    with pytest.raises(ValueError, match="num_classes"):
        name_regime([1.0], [0.1], 1)


def test_a_loss_that_ends_not_finite_is_divergence_however_short() -> None:
    # What was refused before: a run that blows up is reported, not crashed.
    verdict = name_regime([1.0, 2.0, math.inf, math.nan], None, None, first_epoch=5, steps=[50, 60, 70, 80])
    assert verdict.regime == "divergence"
    assert verdict.evidence == "train loss NaN or infinite since epoch 7"
    assert (verdict.since, verdict.since_step) == (7, 70)


def test_since_counts_from_the_first_epoch_and_in_steps() -> None:
    losses = [1.0] * 40 + [1e-3] * 60
    verdict = name_regime(losses, [0.0] * 100, 10, first_epoch=30, steps=range(360, 1560, 12))
    assert (verdict.since, verdict.since_step) == (70, 840)


@pytest.mark.parametrize(
    ("ess", "regime"),
    [(0.1, "chaotic equilibrium"), (0.9, "chaotic equilibrium"), (2.5, "divergence"), (4.0, "divergence")],
)
def test_without_errors_uncorrelated_iterates_are_divergence(ess: float, regime: str) -> None:
    losses = noisy(3.0, 100, 0.1)
    esses = [[2 * ess, ess, ess]] * 50 + [[ess, ess, 1.02 * ess]] * 50
    verdict = name_regime(losses, None, None, esses=esses, steps=range(0, 1200, 12))
    assert verdict.regime == regime
    assert f"cosine {1 / math.hypot(1, ess):.2g}" in verdict.evidence
    if regime == "chaotic equilibrium":
        assert "ESS of 2 groups equal within 2%" in verdict.evidence
    # Where the error is known, it decides.
    assert name_regime(losses, [0.5] * 100, 10, esses=esses, steps=range(0, 1200, 12)).regime == "chaotic equilibrium"


def test_without_errors_and_angles_a_loss_of_guessing_is_divergence() -> None:
    losses = noisy(2.2, 100, 0.05)
    assert name_regime(losses, None, None, chance_loss=math.log(10)).regime == "divergence"
    assert name_regime(losses, None, None, chance_loss=9.0).regime == "chaotic equilibrium"
    assert name_regime(losses, None, None).regime == "chaotic equilibrium"


def test_a_plateau_is_no_equilibrium() -> None:
    losses, steps = noisy(5.0, 100, 0.02), range(0, 1200, 12)
    assert name_regime(losses, [0.8] * 100, 10, esses=[[0.1, 0.1]] * 100, steps=steps).regime == "chaotic equilibrium"
    verdict = name_regime(losses, [0.8] * 100, 10, esses=[[1e-4, 1e-4]] * 100, steps=steps)
    assert verdict.regime == "undecided"
    assert "hardly move, 0.03 radians in 25 epochs: the ELR is too low for 100 epochs" in verdict.evidence
    # Also where it moves far in one direction: 25 · 12 · 0.05 radians, of which random steps keep cos(0.05)^300 = 0.69.
    verdict = name_regime(losses, [0.8] * 100, 10, esses=[[0.05, 0.05]] * 100, steps=steps)
    assert verdict.regime == "undecided"
    assert "not forgotten where they were 25 epochs ago (cosine above 0.69)" in verdict.evidence


def test_unequal_step_sizes_are_told() -> None:
    verdict = name_regime(noisy(3.0, 100, 0.1), [0.5] * 100, 10, esses=[[0.5, 0.2, 0.8]] * 100)
    assert "ESS of 2 groups differ by a factor of 4" in verdict.evidence


def test_the_threshold_of_the_mean_squared_error_is_one_percent_of_guessing() -> None:
    classes = 4
    one_hot = torch.eye(classes, dtype=torch.float64)
    guess = (one_hot - 1 / classes).square().mean().item()
    assert converged_mse(classes) == pytest.approx(0.01 * guess)
    losses = [0.1 * 0.9**t for t in range(100)]
    assert name_regime(losses, [0.0] * 100, classes, converged_loss=converged_mse(classes)).since == 38


STEPS = range(0, 1200, 12)  # of a hundred epochs


def correlated(seed: int, level: float, spread: float, epochs: int, memory: float) -> list[float]:
    """Noise with a memory of some epochs around a level, as the losses of chaotic runs have it."""
    rng = random.Random(seed)
    state, values = rng.gauss(0, spread), []
    for _ in range(epochs):
        state = memory * state + math.sqrt(1 - memory**2) * rng.gauss(0, spread)
        values.append(level * math.exp(state))
    return values


@pytest.mark.parametrize(
    ("memory", "epochs", "seen"),
    [
        *((0.3, 40, 0.058), (0.3, 100, 0.025), (0.3, 200, 0.020)),
        *((0.6, 40, 0.115), (0.6, 100, 0.058), (0.6, 200, 0.022)),
        *((0.8, 40, 0.177), (0.8, 100, 0.130), (0.8, 200, 0.052)),
    ],
)
def test_noise_with_a_memory_is_called_a_trend_as_often_as_stated(memory: float, epochs: int, seen: float) -> None:
    verdicts = [name_regime(correlated(seed, 1, 0.15, epochs, memory), [0.4] * epochs, 10) for seed in range(400)]
    assert {verdict.regime for verdict in verdicts} <= {"undecided", "chaotic equilibrium"}
    share = sum(verdict.regime == "undecided" for verdict in verdicts) / len(verdicts)
    assert share == pytest.approx(seen, abs=0.03)


@pytest.mark.parametrize("fall", [0.12, 0.2])
def test_a_plain_trend_is_no_equilibrium(fall: float) -> None:
    # CIFAR-10, 5000 images, ELR 5e-4: the loss falls without a pause by 12 to 20 % in ten epochs, noise of 2 %.
    for seed in range(200):
        losses = [(1 - fall) ** (t / 10) * x for t, x in enumerate(noisy(2.0, 40, 0.02, seed))]
        verdict = name_regime(losses, [0.4] * 40, 10)
        assert verdict.regime == "undecided"
        assert "still falls, by" in verdict.evidence


def test_correlated_iterates_at_chance_are_an_equilibrium_at_a_high_loss() -> None:
    # Seen on a CPU with AMX: ELR 3e-2, error 90 %, iterates 50° apart, ESS equal within 1 %.
    ess = math.tan(math.radians(50))
    losses, errors = noisy(4.0, 100, 0.1), noisy(0.9, 100, 0.01)
    verdict = name_regime(losses, errors, 10, esses=[[ess, ess, 1.01 * ess]] * 100, steps=STEPS, equal_steps=True)
    assert verdict.regime == "chaotic equilibrium", verdict
    assert "50° apart" in verdict.evidence
    # In regime 3 they are not correlated.
    verdict = name_regime(losses, errors, 10, esses=[[30.0, 10.0, 60.0]] * 100, steps=STEPS, equal_steps=True)
    assert verdict.regime == "divergence"
    ess = math.tan(math.radians(68))
    verdict = name_regime(losses, errors, 10, esses=[[ess, ess, ess]] * 100, steps=STEPS)
    assert verdict.regime == "undecided"
    assert "between chaotic equilibrium and divergence: train error at chance (90%)" in verdict.evidence


def test_an_untrained_network_is_at_chance_and_not_divergent() -> None:
    # ELR 1e-7 on digits: iterates 0.00086° apart.
    losses = [6.4 - 0.015 * t for t in range(100)]
    verdict = name_regime(losses, [0.9] * 100, 10, esses=[[1.5e-5, 1e-5, 2e-5]] * 100, steps=STEPS)
    assert verdict.regime == "undecided"
    assert "hardly move" in verdict.evidence
    assert "the train loss still falls, by 7% in 25 epochs" in verdict.evidence


def test_step_sizes_that_are_not_equal_have_not_settled() -> None:
    losses, esses = noisy(3.0, 100, 0.1), [[0.5, 0.2, 0.8]] * 100
    assert name_regime(losses, [0.5] * 100, 10, esses=esses, steps=STEPS).regime == "chaotic equilibrium"
    verdict = name_regime(losses, [0.5] * 100, 10, esses=esses, steps=STEPS, equal_steps=True)
    assert verdict.regime == "undecided"
    assert "step sizes are not equal, but differ by a factor of 4" in verdict.evidence


@given(
    st.lists(st.floats(0, math.pi / 2), min_size=1, max_size=20),
    st.integers(1, 50),
)
def test_the_cosine_that_is_kept_is_the_product_over_all_steps(angles: list[float], steps: int) -> None:
    product = 1.0
    for angle in angles:
        for _ in range(steps):
            product *= math.cos(angle)
    assert kept_cosine(angles, steps) == pytest.approx(product, rel=1e-9, abs=1e-300)


def announcements(named: list[Regime]) -> list[Regime]:
    told: list[Regime] = ["undecided"]
    for i, regime in enumerate(named):
        streak = next((n for n in range(1, i + 1) if named[i - n] != regime), i + 1)
        told.append(announced_regime(told[-1], streak, regime))
    return told[1:]


def test_what_is_announced_stands_until_another_regime_is() -> None:
    chaos: list[Regime] = ["chaotic equilibrium"]
    named = chaos * (ANNOUNCED_AFTER - 1) + ["undecided"] + chaos * ANNOUNCED_AFTER
    assert announcements(named) == ["undecided"] * (len(named) - 1) + chaos
    assert announcements([*named, "undecided", "undecided"])[-1] == "chaotic equilibrium"
    assert announcements([*named, "divergence"])[-1] == "chaotic equilibrium"
    assert announcements([*named, "undecided", "convergence"])[-1] == "convergence"
    assert announcements(["convergence"]) == ["convergence"]


@pytest.mark.parametrize(
    ("threshold", "loss", "classes", "message"),
    [
        (9e-4, "cross_entropy", 10, "is the threshold of the mean squared error, .* leave it out for 0.01"),
        (1e-2, "mse", 10, "is the threshold of the cross-entropy, .* leave it out for 0.0009"),
        (0.09, "mse", 10, "is not below 0.09, the mean squared error of guessing among 10 classes"),
        (2.5, "cross_entropy", 10, r"is not below 2.3, the cross-entropy of guessing"),
        (1e-2, "cross_entropy", 10, None),
        (2e-3, "mse", 10, None),
        (9e-4, "hinge", 10, None),
        (9e-4, "cross_entropy", None, None),
    ],
)
def test_thresholds_of_another_loss_are_refused(
    threshold: float, loss: str, classes: int | None, message: str | None
) -> None:
    if message is None:
        check_converged_loss(threshold, loss, classes)
        return
    with pytest.raises(ValueError, match=message):
        check_converged_loss(threshold, loss, classes)
