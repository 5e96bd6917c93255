"""Paired measurements: what is compared, the pairs, their ratios, and the table of them."""

import gc
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

Measure = Callable[[], float]


@dataclass
class Comparison:
    """Pairs of measurements that were taken close in time; the ratio of a pair is ours over theirs.

    Args:
        section: Letter and number, as in the list of sections.
        what: What was measured, on what.
        ours: Name of the first of each pair.
        theirs: Name of the second.
        unit: Of both.
        goal: What the median ratio is to reach: ("<=" or ">=", number); None if there is no such figure.
        pairs: (ours, theirs).
        notes: Further numbers, by name.
    """

    section: str
    what: str
    ours: str
    theirs: str
    unit: str
    goal: tuple[str, float] | None = None
    pairs: list[tuple[float, float]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def measure(self, ours: Measure, theirs: Measure, count: int) -> "Comparison":
        """Measure ``count`` pairs, each side first in every other one: a steady drift of the machine cancels."""
        for number in range(count):
            gc.collect()  # not in the middle of one side
            if number % 2:
                second = theirs()
                self.pairs.append((ours(), second))
            else:
                first = ours()
                self.pairs.append((first, theirs()))
        return self

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in self.pairs]

    def as_json(self) -> dict[str, Any]:
        ratios = self.ratios
        summary = {"median": median(ratios), "min": min(ratios), "max": max(ratios), "pairs": len(ratios)}
        ours, theirs = self.medians
        return {**asdict(self), "ratio": summary, "median_ours": ours, "median_theirs": theirs}

    @property
    def medians(self) -> tuple[float, float]:
        first, second = zip(*self.pairs, strict=True)
        return median(first), median(second)

    def lines(self, judge: bool) -> list[str]:
        """Lines to print; ``judge`` says whether the goal was reached."""
        ratios = self.ratios
        verdict = ""
        if judge and self.goal is not None:
            sign, number = self.goal
            reached = median(ratios) <= number if sign == "<=" else median(ratios) >= number
            verdict = f"goal {'≤' if sign == '<=' else '≥'} {number:g}: {'reached' if reached else 'MISSED'}"
        ours, theirs = self.medians
        spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
        notes = [f"{'':4}{name}: {_show(value)}" for name, value in self.notes.items()]
        return [
            f"{self.section:<3} {self.what}",
            f"{'':4}{self.ours} {_with_unit(ours, self.unit)}, {self.theirs} {_with_unit(theirs, self.unit)}",
            f"{'':4}ratio {median(ratios):.3f}  ({spread} in {len(ratios)} pairs)  {verdict}".rstrip(),
            *notes,
        ]


def _with_unit(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        return f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} µs"
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{digits}f} {unit}"


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
