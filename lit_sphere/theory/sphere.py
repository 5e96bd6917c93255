"""Effective quantities of scale-invariant groups, and how they move on one sphere (TR §2, §3).

A group θ_i of norm ρ_i with gradient norm g_i has the effective learning rate η̃_i = η/ρ_i², the effective gradient
norm g̃_i = ρ_i g_i and the effective step size η̃_i g̃_i = η g_i/ρ_i. Without an index: of all groups together, on
the joint sphere. Arguments may be numbers or tensors; results are float64.
"""

from torch import Tensor

from lit_sphere.theory._arguments import Number, not_negative, on_one_device, positive


def effective_lr(norm: Number, lr: Number) -> Tensor:
    """Effective learning rate (ELR) of scale-invariant weights: η̃ = η/ρ² (TR §2).

    Args:
        norm: ρ > 0, of a group or of all together.
        lr: η > 0.

    Returns:
        η̃, dimensionless, broadcast.

    Raises:
        ValueError: If an argument is not positive and finite.
    """  # noqa: DOC502
    norm, lr = on_one_device(norm, lr)
    return positive("lr", lr) / positive("norm", norm).square()


def effective_grad_norm(norm: Number, grad_norm: Number) -> Tensor:
    """Effective gradient norm g̃ = ρg: that of the gradient at the same direction on the unit sphere (TR §2).

    Args:
        norm: ρ > 0, of a group or of all together.
        grad_norm: g = ‖∇F‖ ≥ 0 of the same weights.

    Returns:
        g̃, in units of F, broadcast.

    Raises:
        ValueError: If an argument is out of its range, or not finite.
    """  # noqa: DOC502
    norm, grad_norm = on_one_device(norm, grad_norm)
    return positive("norm", norm) * not_negative("grad_norm", grad_norm)


def effective_step_size(norm: Number, grad_norm: Number, lr: Number) -> Tensor:
    """Effective step size (ESS) η̃g̃ = ηg/ρ: tangent of the angle that a step of SGD turns the weights by (TR §2).

    Args:
        norm: ρ > 0, of a group or of all together.
        grad_norm: g = ‖∇F‖ ≥ 0 of the same weights.
        lr: η > 0.

    Returns:
        η̃g̃, dimensionless, broadcast.

    Raises:
        ValueError: If an argument is out of its range, or not finite.

    Example:
        >>> print(f"{effective_step_size(2.0, 3.0, 0.1):.3f}")
        0.150
    """  # noqa: DOC502
    norm, grad_norm, lr = on_one_device(norm, grad_norm, lr)
    return positive("lr", lr) * not_negative("grad_norm", grad_norm) / positive("norm", norm)


def total_elr(elrs: Number) -> Tensor:
    """Effective learning rate of all groups together, TR eq. (3): 1/η̃ = Σ 1/η̃_i.

    Args:
        elrs: Effective learning rates η̃_i > 0 of the groups, shape (..., n), n ≥ 1.

    Returns:
        η̃, shape (...), below every η̃_i.

    Raises:
        ValueError: If an ELR is not positive and finite, or there is none.

    Example:
        >>> import torch
        >>> print(total_elr(torch.tensor([1.4, 0.7, 0.35])))
        tensor(0.2000, dtype=torch.float64)
    """  # noqa: DOC502
    return _groups("elrs", positive("elrs", elrs)).reciprocal().sum(-1).reciprocal()


def total_ess(elrs: Number, esses: Number) -> Tensor:
    """Effective step size of all groups together, TR eq. (4): (η̃g̃)² = Σ ω_i (η̃_i g̃_i)², ω_i = η̃/η̃_i.

    Args:
        elrs: Effective learning rates η̃_i > 0 of the groups, shape (..., n), n ≥ 1.
        esses: Effective step sizes η̃_i g̃_i ≥ 0 of the groups, shape (..., n).

    Returns:
        η̃g̃, shape (...), between the least and the greatest of the groups.

    Raises:
        ValueError: If an ELR is not positive, a step size negative, one of them not finite, or there is none.
    """  # noqa: DOC502
    elrs, esses = on_one_device(elrs, esses)
    weights = total_elr(elrs).unsqueeze(-1) / positive("elrs", elrs)  # ω_i of TR eq. (4); they sum to one
    return (weights * _groups("esses", not_negative("esses", esses)).square()).sum(-1).sqrt()


def next_elr(elr: Number, ess: Number, ess_total: Number) -> Tensor:
    """Effective learning rate of a group after one step on the joint sphere, TR eq. (5).

    η̃_i′ = η̃_i (1 + (η̃g̃)²) / (1 + (η̃_i g̃_i)²): a group that turns more than the whole loses
    effective learning rate. Exact for an exactly scale-invariant function.

    Args:
        elr: η̃_i > 0 before the step.
        ess: η̃_i g̃_i ≥ 0 of the step.
        ess_total: η̃g̃ ≥ 0 of the step.

    Returns:
        η̃_i after the step, broadcast.

    Raises:
        ValueError: If the ELR is not positive, a step size negative, or one of them not finite.
    """  # noqa: DOC502
    elr, ess, ess_total = on_one_device(elr, ess, ess_total)
    turned, total = not_negative("ess", ess), not_negative("ess_total", ess_total)
    return positive("elr", elr) * (1 + total.square()) / (1 + turned.square())


def largest_stable_eigenvalue(elr: Number) -> Tensor:
    """Sharpness above which gradient descent on the sphere leaves a minimum: 2/η̃.

    Near a minimum θ* of a scale-invariant F the step of TR eq. (2) takes a small displacement v along the sphere to
    (I − ηH)v, with H the Hessian of F on the tangent space at θ*: projecting back is of second order. So it grows
    along an eigenvector of eigenvalue h if ηh > 2. Of the effective Hessian ρ²H, that of the unit sphere, and with
    η = η̃ρ² this is the eigenvalue 2/η̃, whatever the radius.

    The toy of TR §3 has 2α/ρ² for an eigenvalue with one term, so the threshold η̃ < 1/α. With n terms, on one
    joint sphere of ρ = 1, the minimum with pairs of norms ρ_i has the eigenvalues 2α_i/ρ_i² and holds if every
    η̃_i = η̃/ρ_i² is below 1/α_i. The flattest minimum, ρ_i² = α_i/Σα, has 2Σα: at η̃ > 1/Σα no minimum holds,
    below it some do, and a run that leaves a sharper one goes on to these, since the norms of the pairs are free. On
    a product of spheres of fixed ρ_i it is min ρ_i²/α_i ≤ 1/Σα instead.

    Args:
        elr: η̃ > 0.

    Returns:
        2/η̃, in units of F, the same shape.

    Raises:
        ValueError: If the ELR is not positive and finite.

    Example:
        >>> print(largest_stable_eigenvalue(1 / 7))  # the toy's α = 1, 2, 4 at its threshold 1/Σα: 2Σα
        tensor(14., dtype=torch.float64)
    """  # noqa: DOC502
    return 2 / positive("elr", elr)


def _groups(name: str, values: Tensor) -> Tensor:
    if values.ndim == 0 or not values.shape[-1]:
        raise ValueError(f"{name} must have one value for each of at least one group")
    return values
