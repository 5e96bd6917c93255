"""Effective learning rates and step sizes of several scale-invariant groups on one sphere (TR §3)."""

from torch import Tensor


def total_elr(elrs: Tensor) -> Tensor:
    """Effective learning rate of all groups together, TR eq. (3): 1/η̃ = Σ 1/η̃_i.

    Args:
        elrs: Effective learning rates η̃_i > 0 of the groups, shape (..., n).

    Returns:
        η̃, shape (...).

    Raises:
        ValueError: If an ELR is not positive.
    """  # noqa: DOC502
    _require(elrs > 0, "effective learning rates must be positive")
    return elrs.reciprocal().sum(-1).reciprocal()


def total_ess(elrs: Tensor, esses: Tensor) -> Tensor:
    """Effective step size of all groups together, TR eq. (4): (η̃g̃)² = Σ ω_i (η̃_i g̃_i)², ω_i = η̃/η̃_i.

    Args:
        elrs: Effective learning rates η̃_i > 0 of the groups, shape (..., n).
        esses: Effective step sizes η̃_i g̃_i of the groups, shape (..., n).

    Returns:
        η̃g̃, shape (...).

    Raises:
        ValueError: If an ELR is not positive, or a step size negative.
    """  # noqa: DOC502
    _require(esses >= 0, "effective step sizes must not be negative")
    weights = total_elr(elrs).unsqueeze(-1) / elrs  # ω_i of TR eq. (4); they sum to one
    return (weights * esses.square()).sum(-1).sqrt()


def next_elr(elr: Tensor, ess: Tensor, ess_total: Tensor) -> Tensor:
    """Effective learning rate of a group after one step on the joint sphere, TR eq. (5).

    η̃_i′ = η̃_i (1 + (η̃g̃)²) / (1 + (η̃_i g̃_i)²): a group that turns more than the whole loses
    effective learning rate. Exact for an exactly scale-invariant function.

    Args:
        elr: η̃_i before the step, any shape.
        ess: η̃_i g̃_i of the step, the same shape.
        ess_total: η̃g̃ of the step, broadcast to that shape.

    Returns:
        η̃_i after the step, the same shape.

    Raises:
        ValueError: If the ELR is not positive, or a step size negative.
    """  # noqa: DOC502
    _require(elr > 0, "effective learning rates must be positive")
    _require((ess >= 0) & (ess_total >= 0), "effective step sizes must not be negative")
    return elr * (1 + ess_total.square()) / (1 + ess.square())


def _require(holds: Tensor, message: str) -> None:
    if not bool(holds.all()):
        raise ValueError(message)
