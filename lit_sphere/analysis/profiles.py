"""Profiles of runs that converge: sharpness over train loss, and how two of them compare at one loss."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

FEWEST_LOSSES = 5
"""Losses that two profiles must have in common to be compared."""

SMALL_LOSS = 0.1
"""Train loss (cross-entropy) from which on down a profile is taken."""

Profile = Sequence[tuple[float, float]]
"""Natural logarithms of train loss and sharpness, the smallest loss first."""


def profile_of(losses: Mapping[int, float], sharpness: Mapping[int, float]) -> list[tuple[float, float]]:
    """Give the profile of a run.

    Args:
        losses: Train loss by epoch.
        sharpness: Effective gradient norm g̃ by epoch.

    Returns:
        The logarithms of both, of the epochs with a train loss below :data:`SMALL_LOSS`, in order of losses.

    Example:
        >>> [round(value, 3) for value in profile_of({0: 1.0, 1: 0.05}, {0: 9.0, 1: 1.0})[0]]
        [-2.996, 0.0]
    """
    pairs = [(loss, sharpness[epoch]) for epoch, loss in losses.items() if epoch in sharpness and 0 < loss < SMALL_LOSS]
    return sorted((math.log(loss), math.log(value)) for loss, value in pairs if value > 0)


def profile_ratio(low: Profile, high: Profile) -> float | None:
    """Compare the sharpness of two runs at the losses that both come through (TR §4).

    Args:
        low: Profile of a run.
        high: That of another one.

    Returns:
        Median over losses of the ratio g̃(high)/g̃(low); None if they have fewer than :data:`FEWEST_LOSSES` in common.

    Example:
        >>> losses = range(-7, -2)
        >>> round(profile_ratio([(x, 0.9 * x) for x in losses], [(x, 0.9 * x - 0.5) for x in losses]), 3)
        0.607
    """
    if not low or not high:
        return None
    bottom, top = max(low[0][0], high[0][0]), min(low[-1][0], high[-1][0])
    at = [loss for loss, _ in low if bottom <= loss <= top]
    if len(at) < FEWEST_LOSSES:
        return None
    return math.exp(median(_at(high, loss) - _at(low, loss) for loss in at))


def _at(line: Profile, x: float) -> float:
    """Interpolate linearly."""
    for (a, low), (b, high) in pairwise(line):
        if a <= x <= b:
            return low if a == b else low + (x - a) / (b - a) * (high - low)
    return line[0][1] if x <= line[0][0] else line[-1][1]
