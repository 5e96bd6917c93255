"""Border 2A|2B within the chaotic equilibrium: by what minima fine-tuning with lower ELRs finds from there (TR §5)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lit_sphere.analysis.border_search import Bracket, bracket_between, is_close
from lit_sphere.analysis.profiles import FEWEST_LOSSES, Profile, profile_ratio

Minima = Literal["flat", "of many kinds", "cannot tell"]

FLAT_SHARE = 0.5
"""Below this part of the difference in sharpness that random weights make, minima count as equally flat."""

LEAST_REFERENCE = 1.2
"""Ratio of sharpness that minima from random weights must differ by: less, and there are no kinds to tell apart."""


@dataclass(frozen=True)
class FineTuned:
    """A run from the weights of another one, or from random ones, at an ELR that converges.

    Attributes:
        elr: Its effective learning rate.
        converged: Whether it has.
        profile: Its sharpness over its train loss.
    """

    elr: float
    converged: bool
    profile: Profile


@dataclass(frozen=True)
class MinimaVerdict:
    """What minima fine-tuning found.

    Attributes:
        minima: Their kind.
        evidence: Why, in words.
        ratio: Sharpness at the lower ELR over that at the higher one, at equal train losses; None if not known.
        share: Logarithm of the ratio over that from random weights: 0 for equally flat minima, 1 for as many kinds as
            from random weights; None if not known.
    """

    minima: Minima
    evidence: str
    ratio: float | None = None
    share: float | None = None


def sharpness_ratio(low: FineTuned, high: FineTuned) -> float | None:
    """Compare what two ELRs converge to from the same weights.

    Args:
        low: Run at the lower ELR.
        high: Run at the higher one.

    Returns:
        Sharpness g̃ of the lower over that of the higher, median over the train losses that both come through; None if
        one has not converged, or they have too few losses in common.
    """
    ratio = profile_ratio(low.profile, high.profile) if low.converged and high.converged else None
    return None if ratio is None else 1 / ratio


def name_minima(low: FineTuned, high: FineTuned, reference: float | None) -> MinimaVerdict:
    """Tell which part of the chaotic equilibrium a run was in: from 2A every ELR finds equally flat minima.

    From random weights a lower ELR converges along a sharper profile (TR §4). TR §5 finds the same from the upper part
    of the equilibrium, 2B, and not from the lower one, 2A, where fine-tuning with any ELR takes the flattest profile.
    TR gives no rule. Here the sharpness of two ELRs at equal train losses is compared, and held against the same from
    random weights: with less than half of their difference, in the logarithm, the minima are flat.

    Args:
        low: Fine-tuned with the lower ELR.
        high: With the higher one.
        reference: :func:`sharpness_ratio` of runs from random weights at the same two ELRs; None if there is none.

    Returns:
        The kind of the minima; ``cannot tell`` where a run has not converged, profiles do not overlap, or random
        weights show no difference.

    Example:
        >>> def line(height):
        ...     return [(x, 0.9 * x + height) for x in range(-7, -2)]
        >>> flattest = FineTuned(1e-2, True, line(0.0))
        >>> name_minima(FineTuned(1e-3, True, line(0.1)), flattest, reference=2.0).minima
        'flat'
        >>> name_minima(FineTuned(1e-3, True, line(0.6)), flattest, reference=2.0).minima
        'of many kinds'
    """
    late = [f"{run.elr:.4g}" for run in (low, high) if not run.converged]
    if late:
        return MinimaVerdict("cannot tell", f"fine-tuned at ELR {' and '.join(late)} it has not converged")
    ratio = sharpness_ratio(low, high)
    if ratio is None:
        return MinimaVerdict(
            "cannot tell", f"fine-tuned at both ELRs it comes through fewer than {FEWEST_LOSSES} equal train losses"
        )
    found = f"sharpness at ELR {low.elr:.4g} is {ratio:.2f} times that at {high.elr:.4g}"
    if reference is None:
        return MinimaVerdict("cannot tell", f"{found}; from random weights not known", ratio)
    against = f"{found}; from random weights {reference:.2f} times"
    if reference < LEAST_REFERENCE:
        return MinimaVerdict("cannot tell", f"{against}, which tells no kinds of minima apart", ratio)
    share = math.log(ratio) / math.log(reference)
    return MinimaVerdict("flat" if share < FLAT_SHARE else "of many kinds", against, ratio, share)


def split_bracket(known: Mapping[float, Minima]) -> Bracket:
    """Find what the runs of one seed tell about border 2A|2B.

    Args:
        known: Kind of the minima, by the ELR that fine-tuning began from.

    Returns:
        The bracket: 2A up to its lower end.
    """
    flat = [at for at, minima in known.items() if minima == "flat"]
    many = [at for at, minima in known.items() if minima == "of many kinds"]
    return bracket_between(flat, many, known)


def next_source(known: Mapping[float, Minima], candidates: Sequence[float], precision: float) -> float | None:
    """Choose the run that is fine-tuned next: bisection of border 2A|2B.

    Args:
        known: Kind of the minima, by the ELR that fine-tuning began from.
        candidates: ELRs of the chaotic equilibrium that may be tried, the lowest first.
        precision: Ratio of the two ends of the border that is close enough.

    Returns:
        One of the candidates; None if there is nothing left to try.

    Example:
        >>> next_source({}, [1.0, 2.0, 4.0, 8.0, 16.0], 1.5)
        4.0
        >>> next_source({2.0: "flat", 4.0: "of many kinds"}, [1.0, 2.0, 4.0, 8.0], 1.5) is None
        True
    """
    for low, high in split_bracket(known).gaps():
        inside = [at for at in candidates if low < at < high]
        if inside and not is_close((low, high), precision):
            return inside[len(inside) // 2]
    return None
