"""Do all groups take steps of the same effective size?"""

import math
from collections.abc import Sequence
from itertools import compress
from statistics import fmean, stdev
from typing import NamedTuple


class EqualESS(NamedTuple):
    """How close groups are to one effective step size.

    Attributes:
        ess: Geometric mean of η̃_i g̃_i, that of the line of equal ESS.
        slope: Of the principal axis through the points (log η̃_i, log g̃_i): −1 where the ESS is the same for all.
            NaN for fewer than three groups, or points without an axis.
        spread: Standard deviation of ln(η̃_i g̃_i): 0 where the ESS is the same for all. NaN for a single group.
        groups: Number of groups counted; those with a value that is zero or not finite are left out.
    """

    ess: float
    slope: float
    spread: float
    groups: int


def equal_ess(
    elrs: Sequence[float], grad_norms: Sequence[float], scale_invariant: Sequence[bool] | None = None
) -> EqualESS:
    """Compare groups with the line of equal effective step size, g̃_i = ESS/η̃_i (TR, regime 2).

    In a chaotic equilibrium on the sphere the effective learning rates settle where all groups take steps of one
    effective size: TR eq. (5) lets the ELR of a group that turns more than the whole decrease.

    Args:
        elrs: Effective learning rates η̃_i of the groups.
        grad_norms: Effective gradient norms g̃_i, as many.
        scale_invariant: Which groups are scale-invariant: others do not count where there are such. All, if not given.

    Returns:
        The comparison.

    Raises:
        ValueError: If the lengths differ, or no group has both values positive and finite.

    Example:
        >>> ess, slope, spread, groups = equal_ess([0.1, 0.2, 0.4], [4.1, 2.0, 1.0])
        >>> print(f"ESS {ess:.2f}, slope {slope:.2f}, spread {spread:.3f} over {groups} groups")
        ESS 0.40, slope -1.02, spread 0.014 over 3 groups
    """
    if len(elrs) != len(grad_norms):
        raise ValueError(f"{len(elrs)} effective learning rates but {len(grad_norms)} effective gradient norms")
    flags = scale_invariant if scale_invariant is not None and any(scale_invariant) else [True] * len(elrs)
    pairs = compress(zip(elrs, grad_norms, strict=True), flags)
    points = [(math.log(x), math.log(y)) for x, y in pairs if 0 < x < math.inf and 0 < y < math.inf]
    if not points:
        raise ValueError("no group with a positive and finite effective learning rate and gradient norm")
    sizes = [x + y for x, y in points]
    spread = stdev(sizes) if len(sizes) > 1 else math.nan
    return EqualESS(math.exp(fmean(sizes)), _principal_slope(points), spread, len(points))


def _principal_slope(points: Sequence[tuple[float, float]]) -> float:
    """Slope of the first principal axis: both coordinates are measured, neither is given."""
    mean_x, mean_y = fmean(x for x, _ in points), fmean(y for _, y in points)
    xx = sum((x - mean_x) ** 2 for x, _ in points)
    yy = sum((y - mean_y) ** 2 for _, y in points)
    xy = sum((x - mean_x) * (y - mean_y) for x, y in points)
    if len(points) < 3 or abs(xy) <= 1e-12 * (xx + yy):
        return math.nan
    return (yy - xx + math.hypot(yy - xx, 2 * xy)) / (2 * xy)
