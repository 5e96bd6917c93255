"""Runs with a learning rate schedule, named by regime: the rule on curves made for it."""

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_sphere.analysis import analyse_schedule
from lit_sphere.analysis.regimes import Regime
from lit_sphere.analysis.schedule_regimes import SHORTEST_SCHEDULE, ScheduleAnalysis, ScheduleVerdict
from lit_sphere.report import draw_schedule_regimes, schedule_report


def cosine(epochs: int, start: float = 1.0) -> list[float]:
    return [start * (1 + math.cos(math.pi * t / epochs)) / 2 for t in range(epochs)]


def run(
    border: float, start: float, epochs: int = 100, floor: float = 0.0, seed: int = 0
) -> tuple[list[float], list[float], list[float]]:
    """LR, loss and sharpness: at an equilibrium while the LR is above the border, then falling together."""
    rng = random.Random(seed)
    lrs, losses, sharpness = cosine(epochs, start), [], []
    loss, norm = 2.0, 30.0
    for lr in lrs:
        if lr > border:
            loss = (0.3 + 0.7 * lr / start) * math.exp(rng.gauss(0, 0.2))
            norm = 10 * math.exp(rng.gauss(0, 0.2))
        else:  # converges at a rate that the LR sets
            rate = min(0.5, 80 * lr / border / epochs)
            loss, norm = max(floor, loss * math.exp(-rate)), norm * math.exp(-rate)
        losses.append(loss)
        sharpness.append(norm)
    return lrs, losses, sharpness


def test_a_start_below_the_border_is_too_low() -> None:
    analysis = analyse_schedule(*run(border=1.0, start=0.9))
    assert analysis.verdict == "started too low"
    assert analysis.shares == {"convergence": 1.0}
    assert analysis.passed is not None
    assert analysis.passed.lr > 0.8 * 0.9
    assert "of the highest so far" in analysis.evidence


@settings(deadline=None, max_examples=50)
@given(start=st.floats(2.0, 5.0), seed=st.integers(0, 1000), epochs=st.integers(60, 200))
def test_a_start_above_it_is_in_the_window_and_passes_the_peak_near_the_border(
    start: float, seed: int, epochs: int
) -> None:
    lrs, losses, sharpness = run(1.0, start, epochs, seed=seed)
    analysis = analyse_schedule(lrs, losses, sharpness, steps=range(0, 12 * epochs, 12), first_epoch=3)
    assert analysis.verdict == "useful window"
    assert analysis.passed is not None
    crossed = next(i for i, lr in enumerate(lrs) if lr <= 1.0)
    index = analysis.passed.epoch - 3
    assert crossed <= index <= crossed + 0.25 * epochs
    assert (analysis.passed.step, analysis.passed.lr, analysis.passed.loss) == (12 * index, lrs[index], losses[index])
    assert analysis.regimes == ["chaotic equilibrium"] * index + ["convergence"] * (epochs - index)
    assert analysis.shares["chaotic equilibrium"] == pytest.approx(index / epochs)


def test_a_border_that_is_reached_too_late_leaves_no_time() -> None:
    late = analyse_schedule(*run(border=1.0, start=5000.0))
    assert late.verdict == "no time left to converge"
    # The same with a peak passed, but a loss that stays.
    lrs, losses, sharpness = run(border=1.0, start=4.0, floor=0.2)
    assert analyse_schedule(lrs, losses, sharpness).verdict == "no time left to converge"
    assert analyse_schedule(lrs, losses, sharpness, converged_loss=0.3).verdict == "useful window"
    # Fitted labels are convergence, too, where weight decay keeps the loss up.
    errors = [0.3 if loss > 0.21 else 0.001 for loss in losses]
    assert analyse_schedule(lrs, losses, sharpness, errors, 10).verdict == "useful window"


def test_a_run_at_chance_diverges_and_leaves_no_time() -> None:
    lrs = cosine(50)
    analysis = analyse_schedule(lrs, [2.3] * 50, [0.0] * 50, [0.9] * 50, 10)
    assert analysis.verdict == "no time left to converge"
    assert analysis.shares == {"divergence": 1.0}
    assert analysis.peak is None
    assert analysis.evidence.startswith("it ends in regime 3")
    # Without errors, by the loss of guessing.
    assert analyse_schedule(lrs, [2.3] * 50, [1.0] * 50, chance_loss=math.log(10)).shares == {"divergence": 1.0}


def test_a_run_that_leaves_chance_late_has_no_time_left() -> None:
    errors = [0.9] * 40 + [0.8 - 0.06 * t for t in range(12)]
    losses = [50.0] * 40 + [2.0 - 0.1 * t for t in range(12)]
    analysis = analyse_schedule(cosine(52), losses, [1e3] * 40 + [90.0] * 12, errors, 10)
    assert analysis.verdict == "no time left to converge"
    assert analysis.regimes[0] == "divergence"
    assert analysis.regimes[-1] == "convergence"


def test_a_slow_steady_fall_is_too_low_although_no_peak_is_passed() -> None:
    losses = [2 * math.exp(-0.01 * t) for t in range(60)]
    analysis = analyse_schedule(cosine(60, 1e-4), losses, [30 * math.exp(-0.01 * t) for t in range(60)])
    assert analysis.verdict == "started too low"
    assert analysis.passed is None
    assert analysis.shares == {"convergence": 1.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_that_ends_by_nan_is_reported(bad: float) -> None:
    analysis = analyse_schedule([10.0] * 4, [2.3, 50.0, bad, bad], [30.0, 1e5, bad, bad], first_epoch=7)
    assert analysis.verdict == "diverged"
    assert analysis.evidence == "train loss NaN or infinite since epoch 9"
    assert analysis.regimes[2:] == ["divergence", "divergence"]
    assert analysis.peak is not None
    assert analysis.peak.epoch == 8
    draw_schedule_regimes([{"epoch": i, "lr": 1.0, "sharpness": bad, "loss": bad} for i in range(4)], analysis)


@pytest.mark.parametrize("epochs", [1, SHORTEST_SCHEDULE - 1])
def test_a_short_run_is_undecided(epochs: int) -> None:
    analysis = analyse_schedule([1.0] * epochs, [1.0] * epochs, [1.0] * epochs)
    assert analysis.verdict == "undecided"
    assert analysis.regimes == ["undecided"] * epochs


@settings(deadline=None, max_examples=100)
@given(data=st.data(), epochs=st.sampled_from([1, 2, 9, 10, 11, 15]))
def test_any_curves_get_a_verdict_whose_shares_add_up(data: st.DataObject, epochs: int) -> None:
    anything = st.lists(st.floats(0) | st.just(math.nan), min_size=epochs, max_size=epochs)
    lrs = data.draw(st.lists(st.floats(0, 10), min_size=epochs, max_size=epochs))
    losses, sharpness = data.draw(anything), data.draw(anything)
    errors = data.draw(st.none() | st.lists(st.floats(0, 1), min_size=epochs, max_size=epochs))
    analysis = analyse_schedule(lrs, losses, sharpness, errors, 10)
    assert len(analysis.regimes) == epochs
    assert sum(analysis.shares.values()) == pytest.approx(1)
    assert len(schedule_report(analysis).splitlines()) <= 5
    if analysis.passed is not None and analysis.verdict != "diverged":
        assert analysis.regimes[-1] == "convergence"


def test_a_warm_up_does_not_count_as_decay() -> None:
    lrs, losses, sharpness = run(border=1.0, start=3.0)
    analysis = analyse_schedule([3.0 * t / 10 for t in range(10)] + lrs, [3.0] * 10 + losses, [12.0] * 10 + sharpness)
    assert analysis.verdict == "useful window"


@pytest.mark.parametrize(
    ("verdict", "regimes"),
    [
        ("useful window", ["chaotic equilibrium"] * 8 + ["convergence"] * 4),
        ("no time left to converge", ["divergence"] * 12),
    ],
)
def test_the_picture_has_a_panel_for_each_curve(verdict: ScheduleVerdict, regimes: list[Regime]) -> None:
    shares = {regime: regimes.count(regime) / 12 for regime in regimes}
    epochs: list[dict[str, Any]] = [
        {"epoch": i, "lr": 1 - i / 12, "sharpness": 12.0 - i, "loss": 0.9**i} for i in range(12)
    ]
    figure = draw_schedule_regimes(epochs, ScheduleAnalysis(verdict, "", regimes, shares), "a run")
    assert [axes.get_title() for axes in figure.axes] == [
        "learning rate",
        "sharpness (effective gradient norm g̃)",
        "train loss",
    ]
    assert len(figure.axes[0].patches) == len(set(regimes))


def test_bad_curves_are_refused() -> None:
    with pytest.raises(ValueError, match="3 losses but 2 sharpness"):
        analyse_schedule([1.0] * 3, [1.0] * 3, [1.0] * 2)
    with pytest.raises(ValueError, match="3 losses but 2 errors"):
        analyse_schedule([1.0] * 3, [1.0] * 3, [1.0] * 3, [0.1] * 2, 10)
    with pytest.raises(ValueError, match="without an epoch"):
        analyse_schedule([], [], [])


def test_an_untrained_start_is_no_divergence() -> None:
    # LR 1e-6: at chance to the end, since nothing moves.
    lrs, steps = [1e-6] * 50, range(0, 600, 12)
    curves = ([2.6 - 0.001 * i for i in range(50)], [36.0] * 50, [0.91] * 50)
    still = analyse_schedule(lrs, *curves, 10, esses=[1e-6] * 50, steps=steps)
    assert still.verdict == "started too low"
    assert still.evidence.startswith("the weights hardly moved")
    assert still.shares == {"convergence": 1.0}
    # Where they move, or where that is not known, it is chance.
    assert analyse_schedule(lrs, *curves, 10, esses=[0.5] * 50, steps=steps).shares == {"divergence": 1.0}
    assert analyse_schedule(lrs, *curves, 10).shares == {"divergence": 1.0}
    # A few epochs at chance at the start of a path of regime 1.
    losses, errors = [2.5 * 0.9**i for i in range(50)], [0.9] * 4 + [0.9 * 0.8**i for i in range(46)]
    analysis = analyse_schedule(
        lrs, losses, [30 * 0.9**i for i in range(50)], errors, 10, esses=[1e-4] * 50, steps=steps
    )
    assert analysis.verdict == "started too low"
    assert analysis.shares == {"convergence": 1.0}


def test_a_network_that_dies_has_diverged_however_little_it_moved() -> None:
    epochs = 30
    lrs = [0.5 * (1 + math.cos(math.pi * i / epochs)) for i in range(epochs)]
    sharpness, esses = [23.7, *[0.0] * (epochs - 1)], [0.05, *[0.0] * (epochs - 1)]
    steps, losses = [40 * i for i in range(epochs)], [3.6, *[2.31] * (epochs - 1)]
    analysis = analyse_schedule(lrs, losses, sharpness, [0.9] * epochs, 10, esses=esses, steps=steps)
    assert analysis.verdict == "no time left to converge"
    assert analysis.regimes[1:] == ["divergence"] * (epochs - 1)
    assert "ends in regime 3" in analysis.evidence
