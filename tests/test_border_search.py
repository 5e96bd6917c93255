"""Which run comes next, on made-up verdicts: whatever they are, and in whatever order runs end."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_sphere.analysis.border_search import BORDERS, BorderSearch, SearchRange, bracket_of, contradictions
from lit_sphere.analysis.borders import find_borders
from lit_sphere.analysis.regimes import REGIME_NUMBERS, Regime

Verdict = Callable[[int, float], Regime]
RANGE = SearchRange(1e-5, 1.0, 1.25)
FULL = len(RANGE.candidates)
REGIMES: list[Regime] = ["undecided", "convergence", "chaotic equilibrium", "divergence"]


def search(
    verdict: Verdict,
    seeds: int = 1,
    jobs: int = 1,
    where: SearchRange = RANGE,
    order: random.Random | None = None,
    known: list[dict[float, Regime]] | None = None,
) -> tuple[list[dict[float, Regime]], int]:
    """Make all runs that are asked for; those under way end in a random order."""
    chooser, order = BorderSearch(where, seeds), order or random.Random(0)
    found = known or [{} for _ in range(seeds)]
    running: list[list[float]] = [[] for _ in range(seeds)]
    count = 0
    while True:
        while sum(map(len, running)) < jobs and (choice := chooser.next_run(found, running)) is not None:
            seed, at = choice
            assert at not in found[seed], "no run twice"
            assert at not in running[seed], "no run twice"
            assert at in where.candidates
            running[seed].append(at)
            count += 1
        busy = [seed for seed in range(seeds) if running[seed]]
        if not busy:
            assert all(chooser.is_closed(each, border) for each in found for border in BORDERS)
            return found, count
        seed = order.choice(busy)
        at = running[seed].pop(order.randrange(len(running[seed])))
        found[seed][at] = verdict(seed, at)


def thresholds(*of_seeds: tuple[float, float]) -> Verdict:
    def verdict(seed: int, at: float) -> Regime:
        first, second = of_seeds[seed]
        return "convergence" if at < first else "chaotic equilibrium" if at < second else "divergence"

    return verdict


BORDER = st.floats(-13.0, 2.0).map(math.exp)  # also beyond the range


@given(st.lists(st.tuples(BORDER, BORDER).map(lambda two: (min(two), max(two))), min_size=1, max_size=3), st.data())
@settings(max_examples=60, deadline=None)
def test_the_borders_of_monotone_verdicts_are_bracketed(
    borders: list[tuple[float, float]], data: st.DataObject
) -> None:
    jobs = data.draw(st.integers(1, 5))
    order = random.Random(data.draw(st.integers(0, 9)))
    found, count = search(thresholds(*borders), len(borders), jobs, order=order)
    for verdicts, both in zip(found, borders, strict=True):
        assert contradictions(verdicts) == []
        for border, true in zip(BORDERS, both, strict=True):
            bracket = bracket_of(verdicts, border)
            assert bracket.last < true <= bracket.first or math.isclose(bracket.last, true)
            assert bracket.unsure == ()
            if bracket.last > 0 and bracket.first < math.inf:
                assert bracket.first <= 1.252 * bracket.last
            else:  # beyond an end of the range, which has been tried
                assert (bracket.first == RANGE.low) if bracket.last == 0 else (bracket.last == RANGE.high)
    assert count <= FULL * len(borders) * 0.6


def test_it_takes_few_runs() -> None:
    verdict = thresholds((0.021, 0.08), (0.023, 0.08), (0.019, 0.1))
    one, count = search(verdict)
    assert count <= 12
    assert len(one[0]) == count
    assert search(verdict, 3)[1] <= 26  # the others begin at the borders of the first
    assert search(verdict, 3, jobs=8)[1] <= 45


@given(st.lists(st.sampled_from(REGIMES), min_size=10, max_size=10), st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_any_verdicts_come_to_an_end(steps: list[Regime], seeds: int, jobs: int) -> None:
    def verdict(seed: int, at: float) -> Regime:
        return steps[min(9, int(2 * (math.log10(at) + 5) + seed))]

    found, _ = search(verdict, seeds, jobs)
    for verdicts in found:
        for border in BORDERS:
            bracket = bracket_of(verdicts, border)
            for at, regime in verdicts.items():
                number = REGIME_NUMBERS[regime]
                if number:
                    assert number <= border if at <= bracket.last else at > bracket.last
                    assert number > border if at >= bracket.first else at < bracket.first


def test_undecided_runs_are_looked_for_on_both_sides() -> None:
    def verdict(seed: int, at: float) -> Regime:
        return "convergence" if at < 0.02 else "undecided" if at < 0.03 else "divergence"

    (verdicts,), count = search(verdict)
    bracket = bracket_of(verdicts, 1)
    assert bracket.last < 0.02 <= bracket.unsure[0] <= 1.252 * bracket.last
    assert bracket.unsure[-1] < 0.03 <= bracket.first <= 1.252 * bracket.unsure[-1]
    assert bracket == bracket_of(verdicts, 2)
    assert count <= 14


def test_learning_rates_too_low_for_the_epochs_cost_little() -> None:
    """Undecided in the middle of the range: what converges lies above."""

    def verdict(seed: int, at: float) -> Regime:
        return "undecided" if at < 0.01 else thresholds((0.1, 0.5))(seed, at)

    (verdicts,), count = search(verdict)
    assert bracket_of(verdicts, 1).last < 0.1 <= bracket_of(verdicts, 1).first
    assert sum(regime == "undecided" for regime in verdicts.values()) == 1
    assert count <= 12


@pytest.mark.parametrize(("regime", "both"), [("convergence", (1.0, math.inf)), ("divergence", (0.0, 1e-5))])
def test_a_range_without_a_border_is_seen_from_end_to_end(regime: Regime, both: tuple[float, float]) -> None:
    (verdicts,), count = search(lambda *_: regime)
    assert count <= 7
    for border in BORDERS:
        assert (bracket_of(verdicts, border).last, bracket_of(verdicts, border).first) == both


def test_nothing_but_undecided_runs_ends_soon() -> None:
    (verdicts,), count = search(lambda *_: "undecided")
    assert count <= 13
    assert bracket_of(verdicts, 1).last == 0
    assert bracket_of(verdicts, 2).first == math.inf


def test_old_runs_are_used_wherever_they_lie() -> None:
    verdict = thresholds((0.021, 0.08))
    old = {at: verdict(0, at) for at in (1e-7, 0.0203, 0.0222, 0.05, 0.07, 0.09, 5.0)}
    (verdicts,), count = search(verdict, known=[dict(old)])
    assert (bracket_of(verdicts, 1).last, bracket_of(verdicts, 1).first) == (0.0203, 0.0222)
    assert count <= 2  # 0.07 and 0.09 are not close enough
    assert bracket_of(verdicts, 2).first <= 1.252 * bracket_of(verdicts, 2).last


def test_runs_that_fell_back_are_named() -> None:
    fell: dict[float, Regime] = {0.01: "convergence", 0.02: "divergence", 0.03: "undecided", 0.04: "convergence"}
    assert contradictions(fell) == [(0.02, 0.04)]
    assert bracket_of(fell, 1).unsure == (0.02, 0.03, 0.04)
    found = find_borders({at: [regime] for at, regime in {**fell, 0.1: "divergence"}.items()})
    whole = bracket_of({**fell, 0.1: "divergence"}, 1)
    assert (found[0].last, found[0].first) == (whole.last, whole.first)


@pytest.mark.parametrize(
    ("low", "high", "precision", "words"),
    [
        (0.0, 1.0, 1.25, "LOW must be positive"),
        (1.0, 1.0, 1.25, "below HIGH"),
        (1e-3, math.inf, 1.25, "no range"),
        (1e-3, 1.0, 1.0, "above 1"),
        (1e-3, 1.0, math.nan, "above 1"),
        (1e-3, 1.0, 1.0001, "larger"),
    ],
)
def test_no_range(low: float, high: float, precision: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SearchRange(low, high, precision)


@given(st.floats(-20, 0), st.floats(0.1, 15), st.floats(1.05, 10))
def test_candidates_are_a_grid_of_the_precision(low: float, span: float, precision: float) -> None:
    where = SearchRange(math.exp(low), math.exp(low + span), precision)
    steps = [b / a for a, b in zip(where.candidates, where.candidates[1:], strict=False)]
    assert max(steps) <= precision * 1.0015
    assert where.candidates[0] == pytest.approx(where.low, rel=1e-3)
    assert where.candidates[-1] == pytest.approx(where.high, rel=1e-3)
