"""Bounds on steps while gradients fall, as in phase B of PB's periods: ℓ(t) = c/(t − t₀), L(t) = C/(t − t₀) (PB).

The loss has converged, the effective gradient norm g̃ goes on falling like 1/(t − t₀), t₀ the end of the last
destabilisation, or like 1/(t − t₀)² where the gradient is that of the full set; and the norm ρ falls by weight decay,
faster in the end. Then the cosine distance of steps rises again, between bounds, until the next δ-jump.
"""

import math

import torch
from torch import Tensor

from lit_sphere.theory._arguments import Number, finite, not_negative, on_one_device, positive, require
from lit_sphere.theory.undetermined import Interval
from lit_sphere.theory.weight_decay import step_distance


def falling_grad_norms(
    steps: Number, start: Number, factor_min: Number, factor_max: Number, power: float = 1.0
) -> Interval:
    """Bounds of a falling effective gradient norm: ℓ(t) = c/(t − t₀)^p and L(t) = C/(t − t₀)^p (PB).

    Args:
        steps: t > t₀, steps or epochs.
        start: t₀.
        factor_min: c > 0.
        factor_max: C ≥ c.
        power: p > 0: 1 for mini-batches, 2 for the full batch.

    Returns:
        ℓ(t) and L(t), broadcast.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> low, high = falling_grad_norms(torch.tensor([11.0, 20.0]), 10, 2.0, 5.0)
        >>> print(low, high)
        tensor([2.0000, 0.2000], dtype=torch.float64) tensor([5.0000, 0.5000], dtype=torch.float64)
    """  # noqa: DOC502
    steps, start, factor_min, factor_max = on_one_device(steps, start, factor_min, factor_max)
    c, big = positive("factor_min", factor_min), positive("factor_max", factor_max)
    require(c <= big, "factor_min must not be above factor_max")
    past = _past(steps, start, power)
    low, high = torch.broadcast_tensors(c / past, big / past)
    return Interval(low, high)


def factors_of(effective_grad_norms: Number, steps: Number, start: Number, power: float = 1.0) -> Interval:
    """The narrowest c and C with c/(t − t₀)^p ≤ g̃_t ≤ C/(t − t₀)^p at all steps that were seen.

    Args:
        effective_grad_norms: g̃_t ≥ 0, shape (..., n), n ≥ 1.
        steps: t > t₀, shape (n,).
        start: t₀.
        power: p > 0.

    Returns:
        c and C, shape (...).

    Raises:
        ValueError: If an argument is out of its range, or there is no step.
    """
    effective_grad_norms, steps, start = on_one_device(effective_grad_norms, steps, start)
    products = not_negative("effective_grad_norms", effective_grad_norms) * _past(steps, start, power)
    if products.ndim == 0 or not products.shape[-1]:
        raise ValueError("effective_grad_norms must have one value for each of at least one step")
    return Interval(products.amin(-1), products.amax(-1))


def distance_bounds(norm: Number, grad_min: Number, grad_max: Number, lr: Number, weight_decay: Number) -> Interval:
    """Cosine distances 1 − cos(x, x′) that steps with ℓ ≤ g̃ ≤ L can have at a norm.

    A δ-jump is possible where the upper bound is above δ, and certain where the lower one is: the conditions
    ρ² ≲ ηL/√(2δ) and ρ² ≲ ηℓ/√(2δ) of PB §3, solved for δ, exact.

    Args:
        norm: ρ > 0 before the step.
        grad_min: ℓ > 0, such as ℓ(t) of :func:`falling_grad_norms`.
        grad_max: L ≥ ℓ.
        lr: η > 0.
        weight_decay: λ ≥ 0, with ηλ < 1.

    Returns:
        The least and the greatest, broadcast.

    Raises:
        ValueError: If an argument is out of its range.
    """  # noqa: DOC502
    norm, grad_min, grad_max, lr, weight_decay = on_one_device(norm, grad_min, grad_max, lr, weight_decay)
    require(positive("grad_min", grad_min) <= positive("grad_max", grad_max), "grad_min must not be above grad_max")
    low, high = (step_distance(norm, g, lr, weight_decay) for g in (grad_min, grad_max))
    low, high = torch.broadcast_tensors(low, high)
    return Interval(low, high)


def _past(steps: Number, start: Number, power: float) -> Tensor:
    """(t − t₀)^p."""
    if not (math.isfinite(power) and power > 0):
        raise ValueError("power must be positive and finite")
    since = finite("steps", steps) - finite("start", start)
    require(since > 0, "steps must be after start")
    return since**power
