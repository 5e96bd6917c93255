"""The toy x²/(x² + y²) in the plane under SGD with weight decay: periods in two dimensions (PB §3, KT)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_sphere.theory._arguments import Numbers, not_negative, positive, require
from lit_sphere.theory._progress import step_bar


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
    weight_decays: Numbers,
    lr: float = 1.0,
    start: tuple[float, float] = (0.01, 1.0),
    steps: int = 200,
    progress: str | None = None,
) -> PlaneCurves:
    """Train f(x, y) = x²/(x² + y²) by SGD with weight decay, one run for each decay.

    Without decay the run converges; with it the norm falls while f is low, the effective learning rate rises, and
    the run is thrown out again, in periods that are the shorter the larger ηλ is.

    Args:
        weight_decays: λ ≥ 0 of the runs, with ηλ < 1, shape (runs,).
        lr: η > 0.
        start: First point, finite and not the origin.
        steps: Number of steps, at least 1.
        progress: Text of a progress bar on a terminal; None for none.

    Returns:
        The curves.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> curves = plane_curves([0.0, 0.1], steps=400)
        >>> print(f"{curves.losses[0, -1]:.1e} {curves.losses[1, 200:].max() > 0.1}")
        5.6e-14 True
    """
    decays = not_negative("weight_decays", weight_decays).cpu()
    if not decays.ndim == 1 or not len(decays) or steps < 1:
        raise ValueError("the plane needs at least one weight decay and one step")
    if not 0 < math.hypot(*start) < math.inf:
        raise ValueError(f"start must be finite, and not the origin, got {start}")
    positive("lr", lr)
    require(lr * decays < 1, f"weight decays must be below 1/lr = {1 / lr:g}, got {decays.tolist()}")
    keep = 1 - lr * decays
    x, y = (torch.full_like(keep, value) for value in start)
    curves: list[tuple[Tensor, Tensor]] = []
    with step_bar(steps, progress) as bar:
        for _ in range(steps):
            rho2 = x.square() + y.square()
            curves.append((x.square() / rho2, rho2))
            turn = 2 * lr * x * y / rho2.square()
            x, y = keep * x - turn * y, keep * y + turn * x
            bar.update()
    losses, rho2 = (torch.stack(curve, 1) for curve in zip(*curves, strict=True))
    return PlaneCurves(losses, rho2.sqrt(), lr / rho2)
