"""Periods from curves: made-up ones, the toy's, and what is none."""

import math
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_sphere.analysis.periods import PHASE_NUMBERS, PLANE_RISE, Period, Periods, segment_periods
from lit_sphere.theory.toy_plane import plane_curves

Curves = tuple[list[float], list[float]]


def made_up(lengths: list[int], seed: int = 0, noise: float = 0.0, depth: float = 4.0) -> Curves:
    """Losses and norms of periods of these lengths; each ends by two values of phase C.

    Args:
        lengths: At least 8 each.
        seed: Of the noise.
        noise: Standard deviation of ln loss; the norm has a hundredth of it.
        depth: Orders of magnitude that the loss falls by.

    Returns:
        Both.
    """
    noises = random.Random(seed)
    losses, norms = [], []
    for length in lengths:
        for i in range(length):
            fall = min(1.0, i / (length - 3)) * depth
            rise = max(0, i - (length - 3)) * (depth / 3)
            losses.append(10 ** (rise - fall) * math.exp(noise * noises.gauss(0, 1)))
            norm = 3 + 3 * i if i < 3 else 9 * math.exp(-(i - 2) / (length - 3))
            norms.append(norm * math.exp(0.01 * noise * noises.gauss(0, 1)))
    return losses, norms


def test_made_up_periods_are_found_where_they_are() -> None:
    lengths = [30, 20, 40, 25, 12]
    found = segment_periods(*made_up(lengths))
    assert found.verdict == "periods"
    assert found.count == 4
    starts = [0, 30, 50, 90, 115]
    for period, start, length in zip(found.finished, starts, lengths, strict=False):
        assert abs(period.start - start) <= 1
        assert abs((period.end or 0) - start - length) <= 1
        assert abs(period.norm_peak - start - 2) <= 1
        assert period.minimum == pytest.approx(1e-4)
        assert period.minimum_at == start + length - 3
        assert period.loss_rise == start + length - 2
        assert [period.phase(i) for i in (start + 1, start + 5, start + length - 2)] == ["A", "B", "C"]
    assert found.mean_length == pytest.approx((20 + 40 + 25) / 3, abs=0.5)
    assert found.unfinished is not None
    assert found.unfinished.end is None
    assert found.unfinished.length is None
    assert found.phase == "C"  # the last curve ends on the rise
    assert "destabilised at epochs 29, 49, 89 and 114" in found.sentence
    assert found.sentence.startswith("4 periods: ")


@pytest.mark.parametrize("noise", [0.1, 0.4])
@pytest.mark.parametrize("seed", range(5))
def test_noise_of_batches_changes_nothing(seed: int, noise: float) -> None:
    curves = made_up([300, 200, 400, 200, 150], seed, noise)
    found = segment_periods(*curves, window=5, unit="step")
    assert found.count == 4
    for period, end in zip(found.finished, (300, 500, 900, 1100), strict=True):
        assert period.end is not None
        assert abs(period.end - end) <= 6


@pytest.mark.parametrize("seed", range(3))
def test_single_batches_with_a_high_loss_are_no_destabilisation(seed: int) -> None:
    losses, norms = made_up([400, 400], seed, 0.3)
    places = random.Random(seed).sample(range(20, 380), 10)
    for place in places:
        losses[place] *= 1000  # the norm stays
    assert segment_periods(losses, norms, unit="step").count == 1


@pytest.mark.parametrize(("weight_decay", "steps"), [(0.03, 17), (0.1, 11), (0.2, 5)])
def test_the_toy_has_the_periods_of_the_reference(weight_decay: float, steps: float) -> None:
    losses, norms, elrs = (curve[0].tolist() for curve in plane_curves([weight_decay], steps=400))
    for given_norms, given_elrs in ((norms, None), (None, elrs), (None, None)):
        found = segment_periods(losses, given_norms, given_elrs, loss_rise=PLANE_RISE)
        assert found.verdict == "periods"
        assert found.mean_length == pytest.approx(steps, abs=0.6)
    found = segment_periods(losses, norms, loss_rise=PLANE_RISE, unit="step")
    lengths = []
    for period in found.finished:
        assert period.loss_rise is not None
        assert period.end is not None
        assert period.loss_rise <= period.end  # the loss rises first
        lengths.append(period.end - period.loss_rise)
    assert sum(lengths) >= found.count // 2


def test_without_decay_the_toy_has_none() -> None:
    losses, norms, _ = (curve[0].tolist() for curve in plane_curves([0.0], steps=1000))
    found = segment_periods(losses, norms)
    assert found.verdict == "no periods"
    assert "settled" in found.evidence
    assert found.mean_length is None


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(8, 25), min_size=1, max_size=5), st.integers(0, 99), st.integers(1, 3), st.booleans())
def test_a_finished_period_of_a_prefix_is_one_of_the_whole(
    lengths: list[int], seed: int, window: int, with_norms: bool
) -> None:
    losses, norms = made_up(lengths, seed, 0.2)
    given_norms = norms if with_norms else None
    whole = segment_periods(losses, given_norms, window=window)
    counts = []
    for end in range(len(losses) + 1):
        part = segment_periods(losses[:end], given_norms[:end] if given_norms else None, window=window)
        assert part.finished == whole.finished[: part.count]
        counts.append(part.count)
        if part.finished and part.unfinished is not None:
            assert part.unfinished.start == part.finished[-1].end
    assert all(b - a in (0, 1) for a, b in pairwise(counts))
    assert counts[-1] == whole.count


def test_phases_as_they_come() -> None:
    losses, norms = made_up([30, 30, 30])
    phases = [segment_periods(losses[: i + 1], norms[: i + 1]).phase for i in range(90)]
    assert phases[1] == "A"
    assert phases[10] == "B"
    assert phases[32] == "A"
    assert phases[40] == "B"
    assert phases[59] == "C"
    assert set(PHASE_NUMBERS) >= set(phases)


def chaotic(epochs: int, seed: int, spread: float = 0.2) -> Curves:
    noises = random.Random(seed)
    wander, losses, norms = 0.0, [], []
    for _ in range(epochs):
        wander = 0.9 * wander + 0.02 * noises.gauss(0, 1)
        losses.append(0.7 * math.exp(spread * noises.gauss(0, 1)))
        norms.append(5 * math.exp(wander))
    return losses, norms


@pytest.mark.parametrize("seed", range(10))
def test_a_chaotic_equilibrium_has_none(seed: int) -> None:
    found = segment_periods(*chaotic(300, seed))
    assert found.count == 0
    assert found.verdict in ("no periods", "not yet")  # a norm that wanders may fall


def test_what_is_no_period() -> None:
    constant: list[Any] = [[0.5] * 50, [2.0] * 50]
    assert segment_periods(*constant).verdict == "no periods"
    assert segment_periods([0.0] * 50, [2.0] * 50).verdict == "no periods"
    rising = segment_periods([10 ** (-i / 20) for i in range(100)], [2 + 0.01 * i for i in range(100)])
    assert rising.verdict == "no periods"
    assert "rises" in rising.evidence
    nothing = segment_periods([], [])
    assert nothing == replace(nothing, finished=(), unfinished=None, phase=None, verdict="not yet")


def test_not_yet() -> None:
    losses, norms = made_up([60])
    assert segment_periods(losses[:5], norms[:5]).sentence == "not yet: only 5 epochs, at least 10 are needed"
    falling = losses[:55], norms[:55]
    assert segment_periods(*falling).verdict == "not yet"
    assert "still falls" in segment_periods(*falling).evidence
    assert segment_periods(*falling, certain_by=40).verdict == "no periods"
    assert segment_periods(*falling, certain_by=math.inf).verdict == "not yet"
    still = [0.1] * 50, [2.0] * 50
    assert segment_periods(*still, relaxation=80).verdict == "not yet"
    assert segment_periods(*still, relaxation=20).verdict == "no periods"


def test_one_only_is_too_few() -> None:
    found = segment_periods(*made_up([40, 30]))
    assert found.verdict == "too few to tell"
    assert found.count == 1
    assert found.mean_length is None
    assert found.sentence == "too few to tell: destabilised once, at epoch 39"


def test_a_start_that_is_thrown_out_at_once_has_not_converged() -> None:
    losses = [2.3, 30.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.1, 0.05] + [0.01] * 20
    norms = [1.0, 3.0, 4.0, *(4.0 * 0.99**i for i in range(27))]
    assert segment_periods(losses, norms).count == 0


@pytest.mark.parametrize("what", [math.nan, math.inf])
def test_a_run_that_blew_up_is_read_to_there(what: float) -> None:
    losses, norms = made_up([30, 30, 30])
    whole = segment_periods(losses[:70], norms[:70])
    assert segment_periods([*losses[:70], what, what], [*norms[:70], math.nan, math.nan]) == whole
    assert segment_periods([what] * 20).verdict == "not yet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, -1.0],), "negative"),
        (([1.0], [0.0]), "positive"),
        (([1.0], None, [0.0]), "positive"),
        (([1.0], [1.0, 2.0]), "1 losses but 2 norms"),
    ],
)
def test_bad_curves(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segment_periods(*arguments)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="window"):
        segment_periods([1.0], window=0)
    with pytest.raises(ValueError, match="loss_rise"):
        segment_periods([1.0], loss_rise=1.0)


def test_the_types_are_public() -> None:
    found = segment_periods(*made_up([20, 20]))
    assert isinstance(found, Periods)
    assert all(isinstance(each, Period) for each in found.finished)


@pytest.mark.parametrize("period", [5, 9, 20])
def test_the_period_of_a_sine(period: int) -> None:
    curve = [math.exp(4 * math.sin(2 * math.pi * t / period + 0.3)) for t in range(300)]
    assert segment_periods(curve).mean_length == pytest.approx(period, rel=0.02)  # crossings fall on whole steps
