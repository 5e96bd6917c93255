"""Where one regime ends and the next begins, from the regimes of runs over a grid of effective learning rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lit_sphere.analysis.regimes import REGIME_NUMBERS, Regime


@dataclass(frozen=True)
class Border:
    """A border between two regimes, as far as a grid tells it.

    Attributes:
        below: The regime that ends there.
        above: The regime that begins there; ``divergence`` beside ``convergence`` where nothing between was seen.
        last: Largest ELR that is surely below: all runs up to there that were named are.
        first: Smallest ELR that is surely above.
        between: ELRs between these, with the regimes that their runs were named.
    """

    below: Regime
    above: Regime
    last: float
    first: float
    between: Mapping[float, Sequence[Regime]]


def find_borders(regimes: Mapping[float, Sequence[Regime]]) -> list[Border]:
    """Find the borders, each between the last ELR of one regime and the first of the next.

    Seeds of an ELR may disagree, and higher ELRs may fall back: what lies between the last ELR below which there is
    only the one regime and the first above which there is none of it belongs to the border.

    Args:
        regimes: Of the runs at each ELR.

    Returns:
        At most two, from low to high ELRs; none where fewer than two regimes were named.

    Example:
        >>> named = {1e-3: ["convergence"], 1e-2: ["convergence", "undecided"], 3e-2: ["chaotic equilibrium"]}
        >>> [(border.last, border.first, dict(border.between)) for border in find_borders(named)]
        [(0.001, 0.03, {0.01: ['convergence', 'undecided']})]
    """
    elrs = sorted(regimes)
    borders = []
    present = sorted({REGIME_NUMBERS[regime] for named in regimes.values() for regime in named} - {0})
    name = {number: regime for regime, number in REGIME_NUMBERS.items()}
    for low, high in pairwise(present):
        numbers = {elr: {REGIME_NUMBERS[regime] for regime in regimes[elr]} for elr in elrs}
        beyond = [elr for elr in elrs if any(number > low for number in numbers[elr])]
        under = [elr for elr in elrs if any(0 < number <= low for number in numbers[elr])]
        last = [elr for elr in under if elr < beyond[0] and 0 not in numbers[elr]]
        first = [elr for elr in beyond if elr > under[-1] and 0 not in numbers[elr]]
        if last and first:
            between = {elr: regimes[elr] for elr in elrs if last[-1] < elr < first[0]}
            borders.append(Border(name[low], name[high], last[-1], first[0], between))
    return borders
