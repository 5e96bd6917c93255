"""The toy function of TR §3 on the sphere, where the three regimes can be worked out by hand: its runs.

F(x, y) = Σ α_i x_i²/(x_i² + y_i²) is scale-invariant in each pair (x_i, y_i), its n groups. Notation of TR §3. What
is known of its runs beforehand stands in :mod:`lit_sphere.theory.toy_equilibria`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_sphere.theory._arguments import Numbers, positive
from lit_sphere.theory._progress import step_bar
from lit_sphere.theory.toy_equilibria import (
    Orbit,
    equilibrium_elrs,
    equilibrium_loss,
    one_term_orbit,
    terms,
    threshold_elr,
)

__all__ = [
    "Orbit",
    "ToyCurves",
    "equilibrium_elrs",
    "equilibrium_loss",
    "one_term_orbit",
    "settled_losses",
    "threshold_elr",
    "toy_curves",
    "toy_gradient",
    "toy_loss",
]

_PIECE = 4096  # runs


class ToyCurves(NamedTuple):
    """Means over the steps of each epoch; shapes begin with (ELRs, seeds, epochs).

    Attributes:
        losses: F before each step, shape (ELRs, seeds, epochs).
        elrs: Effective learning rate η̃ of all groups together and then η̃_i of each, shape
            (ELRs, seeds, epochs, 1 + n).
        esses: Effective step size η̃g̃, the tangent of the angle of a step, and then η̃_i g̃_i of each group; the
            same shape.
    """

    losses: Tensor
    elrs: Tensor
    esses: Tensor


def toy_loss(points: Tensor, alphas: Tensor) -> Tensor:
    """F(x, y) = Σ α_i x_i²/(x_i² + y_i²) (TR §3).

    Nothing is checked, since it is called in each step of many.

    Args:
        points: x in the first row and y in the second, shape (..., 2, n); no pair may vanish.
        alphas: α_i > 0, shape (n,).

    Returns:
        F, between 0 and Σ α_i, shape (...); NaN where a pair vanishes.

    Example:
        >>> print(toy_loss(torch.tensor([[0.6], [0.8]]), torch.tensor([2.0])))
        tensor(0.7200)
    """
    x2, y2 = points.square().unbind(-2)
    loss: Tensor = (alphas * x2 / (x2 + y2)).sum(-1)
    return loss


def toy_gradient(points: Tensor, alphas: Tensor) -> Tensor:
    """Gradient of :func:`toy_loss`; nothing is checked either.

    Args:
        points: As of :func:`toy_loss`, shape (..., 2, n).
        alphas: α_i > 0, shape (n,).

    Returns:
        ∇F, shape (..., 2, n), orthogonal to each pair (Euler's identity); NaN where a pair vanishes.
    """
    x, y = points.unbind(-2)
    common = 2 * alphas * x * y / (x.square() + y.square()).square()
    return torch.stack([common * y, -common * x], -2)


def toy_curves(
    alphas: Numbers,
    elrs: Numbers,
    epochs: int = 100,
    steps_per_epoch: int = 100,
    seeds: Sequence[int] = (0,),
    progress: str | None = None,
) -> ToyCurves:
    """Train the toy on the unit sphere with fixed effective learning rates, TR eq. (2), all runs at once.

    Runs with one seed start from the same random point whatever their ELR.

    Args:
        alphas: α_i > 0.
        elrs: Effective learning rates η̃ > 0, dimensionless.
        epochs: Number of epochs; an epoch is nothing but the span of one mean.
        steps_per_epoch: Steps over which curves are averaged.
        seeds: Of the starting points.
        progress: Text of a progress bar on a terminal; None for none.

    Returns:
        The curves, float64.

    Raises:
        ValueError: If an α or an ELR is not positive and finite, or there is no ELR or no seed.

    Example:
        >>> curves = toy_curves((1.0, 2.0, 4.0), (0.1, 0.2), seeds=range(3))
        >>> print(curves.losses[:, :, -1].mean(1))  # 0.1 < 1/Σα converges; 0.2 settles at ½(7 − 1/0.2)
        tensor([0.0000, 1.0000], dtype=torch.float64)
        >>> print((curves.elrs[1, 0, -1, 1:] * torch.tensor([1, 2, 4])).round(decimals=1))  # η̃_i α_i = η̃ Σα
        tensor([1.4000, 1.4000, 1.4000], dtype=torch.float64)
    """
    if epochs < 1 or steps_per_epoch < 1:
        raise ValueError("the toy needs at least one epoch and one step")
    alpha, rates = _checked(alphas, elrs, seeds)
    elr = rates[:, None, None, None]
    point = torch.stack([_random_point(seed, len(alpha)) for seed in seeds]).expand(len(elr), -1, -1, -1)
    kept: list[list[Tensor]] = [[], [], []]
    with step_bar(epochs * steps_per_epoch, progress) as bar:
        for _ in range(epochs):
            sums: list[Tensor] | None = None
            for _ in range(steps_per_epoch):
                point, measured = _step(point, alpha, elr)
                sums = measured if sums is None else list(torch._foreach_add(sums, measured))
            for curve, total in zip(kept, sums or [], strict=True):
                curve.append(total / steps_per_epoch)
            bar.update(steps_per_epoch)
    return ToyCurves(*(torch.stack(curve, 2) for curve in kept))


def settled_losses(
    alphas: Numbers,
    elrs: Numbers,
    steps: int = 2000,
    seeds: Sequence[int] = range(100),
    progress: str | None = None,
) -> Tensor:
    """Mean loss over the second half of many runs, the same runs as of :func:`toy_curves`.

    Made for maps: 1000 ELRs × 100 seeds × 2000 steps take seconds on one core, and no memory to speak of.

    Args:
        alphas: α_i > 0.
        elrs: Effective learning rates η̃ > 0, dimensionless.
        steps: Steps of each run, at least 2.
        seeds: Of the starting points.
        progress: Text of a progress bar on a terminal; None for none.

    Returns:
        float64 tensor of shape (ELRs, seeds).

    Raises:
        ValueError: If an α or an ELR is not positive and finite, or there is no ELR or no seed.
    """
    if steps < 2:
        raise ValueError(f"a run has a second half from 2 steps on, got {steps}")
    alpha, elr = _checked(alphas, elrs, seeds)
    starts = torch.stack([_random_point(seed, len(alpha)) for seed in seeds], -1)  # (2, n, seeds)
    points = starts.repeat(1, 1, len(elr))
    rates = elr.repeat_interleave(len(seeds))
    # In pieces that stay in a core's cache.
    pieces = list(zip(points.split(_PIECE, -1), rates.split(_PIECE), strict=True))
    with step_bar(steps * len(pieces), progress) as bar:
        losses = [
            _mean_of_second_half(piece.clone(), 2 * alpha[:, None] * rate, alpha, steps, bar.update)
            for piece, rate in pieces
        ]
    return torch.cat(losses).view(len(elr), len(seeds))


def _mean_of_second_half(
    points: Tensor, turn: Tensor, alpha: Tensor, steps: int, done: Callable[[int], object]
) -> Tensor:
    """Settle runs in place; points (2, n, runs) on the unit sphere, turn 2α_i η̃ (n, runs)."""
    x, y = points
    total = torch.zeros_like(turn[0])
    x2, r2, k, x_new = (torch.empty_like(x) for _ in range(4))
    for step in range(steps):
        torch.mul(x, x, out=x2)
        torch.addcmul(x2, y, y, out=r2)
        if step >= steps // 2:
            total += alpha @ (x2 / r2)
        # The gradient of a pair is orthogonal to it: (x, y) moves by k (−y, x), and r² becomes r² (1 + k²).
        torch.mul(x, y, out=k).div_(r2).div_(r2).mul_(turn)
        torch.addcmul(x, k, y, value=-1, out=x_new)
        y.addcmul_(k, x)
        x, x_new = x_new, x
        scale = r2.addcmul_(r2, k.mul_(k)).sum(0).rsqrt_()
        x *= scale
        y *= scale
        done(1)
    return total / (steps - steps // 2)


def _checked(alphas: Numbers, elrs: Numbers, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    alpha, elr = terms(alphas), positive("ELR", elrs).cpu()
    if elr.ndim != 1 or not len(elr) or not len(seeds):
        raise ValueError("the toy needs at least one ELR and one seed")
    return alpha.cpu(), elr


def _step(point: Tensor, alpha: Tensor, elr: Tensor) -> tuple[Tensor, list[Tensor]]:
    gradient = toy_gradient(point, alpha)
    rho2, g2 = (_total_first(t.square().sum(-2)) for t in (point, gradient))  # ρ² and g²
    elrs = elr[..., 0] / rho2
    measured = [toy_loss(point, alpha), elrs, elrs * (rho2 * g2).sqrt()]
    moved = point - elr * gradient
    return moved / moved.square().sum((-2, -1), keepdim=True).sqrt(), measured


def _total_first(squares: Tensor) -> Tensor:
    return torch.cat([squares.sum(-1, keepdim=True), squares], -1)


def _random_point(seed: int, n: int) -> Tensor:
    point = torch.randn(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit: Tensor = point / torch.linalg.vector_norm(point)
    return unit
