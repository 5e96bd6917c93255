"""The toy x²/(x² + y²) in the plane under SGD with weight decay: periods in two dimensions (PB §3, KT)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PlaneCurves(NamedTuple):
    """What each step begins with; float64, shape (runs, steps).

    Attributes:
        losses: f = x²/(x² + y²), in [0, 1].
        norms: ρ = √(x² + y²).
        elrs: Effective learning rate η/ρ².
    """

    losses: Tensor
    norms: Tensor
    elrs: Tensor


def plane_curves(
    weight_decays: Sequence[float],
    lr: float = 1.0,
    start: tuple[float, float] = (0.01, 1.0),
    steps: int = 200,
) -> PlaneCurves:
    """Train f(x, y) = x²/(x² + y²) by SGD with weight decay, one run for each decay.

    Without decay the run converges; with it the norm falls while f is low, the effective learning rate rises, and
    the run is thrown out again, in periods that are the shorter the larger ηλ is.

    Args:
        weight_decays: λ ≥ 0 of the runs, with ηλ < 1.
        lr: η > 0.
        start: First point, not the origin.
        steps: Number of steps, at least 1.

    Returns:
        The curves.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> curves = plane_curves([0.0, 0.1], steps=400)
        >>> print(f"{curves.losses[0, -1]:.1e} {mean_period(curves.losses[1].tolist()):.1f}")
        5.6e-14 11.2
    """
    if not (math.isfinite(lr) and lr > 0) or steps < 1 or not weight_decays or math.hypot(*start) == 0:
        raise ValueError("needs lr > 0, steps >= 1, a start other than the origin, and at least one weight decay")
    if min(weight_decays) < 0 or lr * max(weight_decays) >= 1:
        raise ValueError(f"weight decays must be at least 0, and below 1/lr = {1 / lr:g}: got {list(weight_decays)}")
    keep = 1 - lr * torch.tensor(list(weight_decays), dtype=torch.float64)
    x, y = (torch.full_like(keep, value) for value in start)
    curves: list[tuple[Tensor, Tensor]] = []
    for _ in range(steps):
        rho2 = x.square() + y.square()
        curves.append((x.square() / rho2, rho2))
        turn = 2 * lr * x * y / rho2.square()
        x, y = keep * x - turn * y, keep * y + turn * x
    losses, rho2 = (torch.stack(curve, 1) for curve in zip(*curves, strict=True))
    return PlaneCurves(losses, rho2.sqrt(), lr / rho2)


def mean_period(losses: Sequence[float]) -> float | None:
    """Mean number of steps between two destabilisations: upward crossings of a tenth of the greatest loss.

    Args:
        losses: Values ≥ 0, step by step.

    Returns:
        The mean over all whole periods; None where there are fewer than two.
    """
    level = 0.1 * max(losses)
    ups = [t for t in range(1, len(losses)) if losses[t - 1] < level <= losses[t]]
    return (ups[-1] - ups[0]) / (len(ups) - 1) if len(ups) > 1 else None
