"""The edge of stability: what curvature plain gradient descent can stay at, by its effective learning rate."""

import math
from collections.abc import Sequence, Set

from torch import Tensor
from torch.optim import Optimizer

from lit_sphere.effective.sources import rate_of, source_of
from lit_sphere.optim import joint_norm
from lit_sphere.theory.schemes import sgd_elr
from lit_sphere.theory.sphere import largest_stable_eigenvalue

Rate = tuple[float, float, float | None]
"""η, λ, and the radius ρ of the sphere; None off it."""


def descent_rate(optimizer: Optimizer, parameters: Set[Tensor], altered: bool = False) -> Rate | None:
    """Give the learning rate of a step that is one of plain gradient descent, the same for all of some parameters.

    Such are the steps of ``torch.optim.SGD`` without momentum, and of ``SphereSGD`` on one joint sphere over just
    these parameters, where η = η̃ρ², or off the sphere.

    Args:
        optimizer: Any optimizer.
        parameters: Scale-invariant ones that it trains.
        altered: Something stands between the gradients and the step: clipping.

    Returns:
        η > 0, λ with ηλ < 1, and the sphere's radius if it is on one; None if the step is another, or none is made.
    """
    if source_of(optimizer, altered) != "gradients":
        return None
    groups = [group for group in optimizer.param_groups if not parameters.isdisjoint(group["params"])]
    rates = {rate_of(group) for group in groups}
    first = groups[0]
    plain = not any(group.get("maximize") for group in groups)
    if any(group.get("elr") is not None for group in groups):
        alone = len(groups) == 1 and first["granularity"] == "joint" and len(first["params"]) == len(parameters)
        plain = plain and alone
    lr, shrink = rates.pop()
    return (lr, -shrink / lr, first.get("radius")) if plain and not rates and lr > 0 and shrink > -1 else None


def edge_of_stability(rate: Rate, parameters: Sequence[Tensor]) -> float:
    """Give the largest eigenvalue at which gradient descent does not leave a minimum: 2/η̃, η̃ = η/(ρ²(1 − ηλ)).

    To be held against :func:`~lit_sphere.analysis.top_eigenvalue` of the effective Hessian at the same weights. Above
    it, steps from beside the minimum lead away from it; the term "edge of stability" is of Cohen et al. (2021). The
    noise of mini-batches moves the border down, so that for SGD it is an upper bound.

    Args:
        rate: Of :func:`descent_rate`.
        parameters: The scale-invariant parameters, ρ their joint norm where they are on no sphere.

    Returns:
        2/η̃, in units of the loss; NaN where the weights have diverged.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> rate = descent_rate(torch.optim.SGD([weight], lr=0.5), {weight})
        >>> print(edge_of_stability(rate, [weight]))  # 2 · 5² / 0.5
        100.0
    """
    lr, decay, radius = rate
    norm = joint_norm(parameters).item() if radius is None else radius
    if not 0 < norm * norm < math.inf:  # diverged
        return math.nan
    return largest_stable_eigenvalue(sgd_elr(norm, lr, decay)).item()
