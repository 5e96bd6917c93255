"""β-undetermined sequences: recursions of which only bounds are known (PB appendix)."""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_sphere.theory._arguments import Number, on_one_device, positive, require


class Interval(NamedTuple):
    """Ends of an interval.

    Attributes:
        low: Lower ends.
        high: Upper ends, of the same shape.
    """

    low: Tensor
    high: Tensor


def undetermined_interval(alpha: Number, low: Number, high: Number) -> Interval:
    """Interval that every β-undetermined sequence enters and never leaves (PB appendix, Lemmas 1, 2, Proposition 5).

    x′ = (1 − α)x + β_t/x with any β_t in [a, b] tends to [√(a/α), √(b/α)] from every x₀ > 0. It cannot be left
    again if α(1 + √(b/a)) ≤ 1, which says α ≤ ½ as well: x ↦ (1 − α)x + β/x is then increasing where it could fall
    below the lower end, and its value at the lower end with β = b is not above the upper end. (PB's condition for
    norms, 2ηλL ≤ ℓ, reads α√(b/a) ≤ 1 and is a little too weak: α = 0.5, a = 1, b = 4 maps √2 to 3.54 > 2.83.)

    Args:
        alpha: α in (0, ½].
        low: a > 0.
        high: b ≥ a.

    Returns:
        √(a/α) and √(b/α).

    Raises:
        ValueError: If an argument is out of its range, or the interval can be left.

    Example:
        >>> low, high = undetermined_interval(0.1, 1.0, 10.0)
        >>> print(f"{low:.3f} {high:.3f}")
        3.162 10.000
    """  # noqa: DOC502
    alpha, low, high = on_one_device(alpha, low, high)
    share, a, b = torch.broadcast_tensors(positive("alpha", alpha), positive("low", low), positive("high", high))
    require(a <= b, "low must not be above high")
    holds = share * (1 + (b / a).sqrt()) <= 1  # α ≤ ½ follows
    require(holds, "the interval can be left: needs α(1 + √(high/low)) ≤ 1 (lower lr · weight decay)")
    return Interval((a / share).sqrt(), (b / share).sqrt())
