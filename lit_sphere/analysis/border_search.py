"""Bisection of the borders between regimes: which run comes next, and what the runs so far have shown."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lit_sphere.analysis.regimes import REGIME_NUMBERS, Regime

BORDERS = (1, 2)
"""TR's number of the regime below each border: convergence ends at the first, at the second all but divergence."""

_ROUNDING = 1e-3  # of values with four digits
_MOST_CANDIDATES = 10_000

Verdicts = Mapping[float, Regime]
"""Regimes of the runs of one seed, by their (effective) learning rate."""


@dataclass(frozen=True)
class SearchRange:
    """Where a border is looked for.

    Attributes:
        low: Lowest learning rate to try.
        high: Highest.
        precision: Ratio of two neighbours that is close enough.

    Raises:
        ValueError: If the range is none, or the precision is no ratio above 1.
    """

    low: float
    high: float
    precision: float

    def __post_init__(self) -> None:
        """Check them."""
        if not (0 < self.low < self.high < math.inf):
            raise ValueError(f"no range: from {self.low:g} to {self.high:g}; LOW must be positive and below HIGH")
        if not 1 < self.precision < math.inf:
            raise ValueError(f"precision must be a ratio above 1, such as 1.25, got {self.precision:g}")
        if self.steps > _MOST_CANDIDATES:
            raise ValueError(
                f"precision {self.precision:g} divides the range from {self.low:g} to {self.high:g} into more than "
                f"{_MOST_CANDIDATES} steps; give a larger one"
            )

    @property
    def steps(self) -> int:
        """Steps of the grid that the range is divided into, none larger than the precision."""
        return math.ceil(math.log(self.high / self.low) / math.log(self.precision) - _ROUNDING)

    @property
    def candidates(self) -> list[float]:
        """Learning rates that may be tried, with four digits, the lowest first: a grid of the wanted precision.

        All seeds try those of one grid, so that their runs can be held beside each other.
        """
        ratio = self.high / self.low
        return [float(f"{self.low * ratio ** (i / self.steps):.4g}") for i in range(self.steps + 1)]


@dataclass(frozen=True)
class Bracket:
    """What the runs of one seed tell about a border.

    Attributes:
        last: Largest learning rate below the border, with no run beyond it under it; 0 if there is none.
        first: Smallest one above the border, with no run of below it over it; infinite if there is none.
        unsure: Those between, of runs that are undecided or contradict each other.
    """

    last: float
    first: float
    unsure: tuple[float, ...]

    def gaps(self) -> list[tuple[float, float]]:
        """Give the neighbours between which the edges of the border lie, the more telling first."""
        if not self.unsure:
            return [(self.last, self.first)]
        edges = [(self.last, self.unsure[0]), (self.unsure[-1], self.first)]
        # Where nothing has converged yet, an undecided run may be one too short for its learning rate: lower ones
        # would be so, too.
        return edges[::-1] if self.last == 0 else edges


def bracket_of(verdicts: Verdicts, border: int) -> Bracket:
    """Find what the runs of one seed tell about a border.

    Args:
        verdicts: Of the runs so far.
        border: 1 for the end of convergence, 2 for the beginning of divergence.

    Returns:
        The bracket.

    Example:
        >>> bracket_of({1e-3: "convergence", 2e-3: "undecided", 0.1: "divergence"}, 1)
        Bracket(last=0.001, first=0.1, unsure=(0.002,))
    """
    below = [at for at, regime in verdicts.items() if 0 < REGIME_NUMBERS[regime] <= border]
    above = [at for at, regime in verdicts.items() if REGIME_NUMBERS[regime] > border]
    return bracket_between(below, above, verdicts)


def bracket_between(below: Collection[float], above: Collection[float], tried: Iterable[float]) -> Bracket:
    """Find what runs on both sides of a border tell about it.

    Args:
        below: Learning rates of the runs below it.
        above: Of those above it.
        tried: Of all runs, those that tell nothing among them.

    Returns:
        The bracket.

    Example:
        >>> bracket_between([1e-3, 4e-3], [2e-3, 0.1], [1e-3, 2e-3, 4e-3, 0.1])
        Bracket(last=0.001, first=0.1, unsure=(0.002, 0.004))
    """
    last = max((at for at in below if at < min(above, default=math.inf)), default=0.0)
    first = min((at for at in above if at > max(below, default=0.0)), default=math.inf)
    return Bracket(last, first, tuple(sorted(at for at in tried if last < at < first)))


def is_close(gap: Sequence[float], precision: float) -> bool:
    """Whether two learning rates are as close as asked for.

    Args:
        gap: The lower one, 0 for none; and the upper one.
        precision: Ratio that is close enough, of values with four digits.

    Returns:
        Whether they are.
    """
    return gap[0] > 0 and gap[1] <= gap[0] * precision * (1 + _ROUNDING)


def contradictions(verdicts: Verdicts) -> list[tuple[float, float]]:
    """Find runs of one seed that fell back: at a higher learning rate into a lower regime.

    Args:
        verdicts: Of the runs.

    Returns:
        Neighbours among the runs that have a regime, the lower learning rate first; none if all is as expected.

    Example:
        >>> contradictions({1e-3: "convergence", 2e-2: "chaotic equilibrium", 3e-2: "convergence"})
        [(0.02, 0.03)]
    """
    named = [at for at in sorted(verdicts) if REGIME_NUMBERS[verdicts[at]]]
    return [(a, b) for a, b in pairwise(named) if REGIME_NUMBERS[verdicts[a]] > REGIME_NUMBERS[verdicts[b]]]


class BorderSearch:
    """Chooses runs, so that both borders of every seed are bracketed as closely as asked for, by as few as possible.

    The first seed bisects the range in the logarithm. The others begin at its brackets, and leave them in growing
    steps where theirs lie elsewhere. An undecided run counts for neither side: the border is then looked for on both
    of its sides. Where several runs are made at once, and no more are needed, the outcome of those under way is
    anticipated, as long as no other seed tells what to expect.

    Args:
        where: The range.
        seeds: Number of seeds.

    Example:
        >>> search = BorderSearch(SearchRange(1e-3, 1.0, 1.5), 1)
        >>> found: dict[float, Regime] = {}
        >>> while (choice := search.next_run([found], [()])) is not None:
        ...     found[choice[1]] = "convergence" if choice[1] < 0.02 else "divergence"
        >>> len(found), bracket_of(found, 1)
        (5, Bracket(last=0.01468, first=0.02154, unsure=()))
    """

    def __init__(self, where: SearchRange, seeds: int) -> None:
        self.where, self.seeds = where, seeds
        self._candidates = where.candidates
        self._step = math.log(where.high / where.low) / where.steps

    def next_run(self, known: Sequence[Verdicts], running: Sequence[Collection[float]]) -> tuple[int, float] | None:
        """Choose the next run.

        Args:
            known: Of each seed the regimes of its runs so far.
            running: Of each seed the learning rates that are being tried.

        Returns:
            Number of the seed, and learning rate; None if nothing is to be done before one of those that run has
            ended, or at all.
        """
        anticipated: list[tuple[int, tuple[float, float], list[float]]] = []
        for seed in range(self.seeds):
            for border in BORDERS:
                hint = self._hint(known, seed, border)
                gap = next(filter(self._is_open, bracket_of(known[seed], border).gaps()), None)
                if gap is None:
                    continue
                inside = [at for at in running[seed] if gap[0] < at < gap[1]]
                needs = self._needed(gap, inside, hint) if hint or not seed else None
                if needs is not None:
                    return seed, needs
                if hint is None:
                    anticipated.append((seed, gap, inside))
        for seed, gap, inside in anticipated:
            edges = [gap[0], *sorted(inside), gap[1]]
            # The widest first, and of two alike the upper one: lower learning rates take longer to converge.
            parts = sorted(pairwise(edges), key=lambda part: (-self._width(part), -part[0]))
            for part in filter(self._is_open, parts):
                return seed, self._nearest(part, self._middle(part))
        return None

    def is_closed(self, verdicts: Verdicts, border: int) -> bool:
        """Whether nothing is left to try at the border of a seed.

        Args:
            verdicts: Of its runs so far.
            border: 1 or 2.

        Returns:
            Whether there is no candidate left in its gaps.
        """
        return not any(map(self._is_open, bracket_of(verdicts, border).gaps()))

    def _hint(self, known: Sequence[Verdicts], seed: int, border: int) -> tuple[float, float] | None:
        """The border of an earlier seed."""
        for verdicts in known[:seed]:
            if self.is_closed(verdicts, border):
                found = bracket_of(verdicts, border)
                return found.last, found.first
        return None

    def _needed(
        self, gap: tuple[float, float], running: Collection[float], hint: tuple[float, float] | None
    ) -> float | None:
        """What is to be tried whatever those that run come to."""
        for edge in hint or ():
            if gap[0] < edge < gap[1] and self.where.low <= edge <= self.where.high:
                at = self._nearest(gap, self._place(edge))
                if at not in running:
                    return at
        if running:
            return None
        target = self._middle(gap)
        if hint is not None:
            (low, high), (last, first) = (map(self._place, each) for each in (gap, hint))
            if high <= last:
                target = max(target, 2 * high - last - 1)
            elif low >= first:
                target = min(target, 2 * low - first + 1)
        return self._nearest(gap, target)

    def _place(self, at: float) -> float:
        """Where a learning rate lies on the grid; what lies outside of it is next to its ends."""
        if at <= 0:
            return -1.0
        end = len(self._candidates)
        return float(end) if at == math.inf else min(max(math.log(at / self.where.low) / self._step, -1.0), end)

    def _middle(self, gap: tuple[float, float]) -> float:
        return (self._place(gap[0]) + self._place(gap[1])) / 2

    def _width(self, gap: tuple[float, float]) -> int:
        return round(self._place(gap[1]) - self._place(gap[0]))

    def _inside(self, gap: tuple[float, float]) -> list[float]:
        return [at for at in self._candidates if gap[0] < at < gap[1]]

    def _is_open(self, gap: tuple[float, float]) -> bool:
        return not is_close(gap, self.where.precision) and bool(self._inside(gap))

    def _nearest(self, gap: tuple[float, float], target: float) -> float:
        return min(self._inside(gap), key=lambda at: abs(self._place(at) - target))
