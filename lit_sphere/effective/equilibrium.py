"""Where effective step sizes, effective learning rates and norms stay, as far as the papers predict it."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, Literal

from lit_sphere.effective.sources import rate_of
from lit_sphere.theory import equilibrium_ess, equilibrium_norms, sgd_elr

EquilibriumRule = Literal["joint"] | tuple[float, float]
"""What keeps effective learning rates where they are: one sphere, or the balance of η and λ."""


def equilibrium_rule(param_groups: Sequence[dict[str, Any]], tensors: int) -> EquilibriumRule | None:
    """Choose the papers' equilibrium that holds at a step.

    Args:
        param_groups: Those of ``SphereSGD``, or of plain SGD (no momentum), that train the watched groups.
        tensors: Number of tensors in the watched groups.

    Returns:
        ``joint``: one sphere over just these tensors. Learning rate and weight decay: plain SGD in the whole space,
        0 < ηλ < 1, the same for all. None where the theory predicts nothing.
    """
    first = param_groups[0]
    if any(group.get("elr") is not None for group in param_groups):
        joint = len(param_groups) == 1 and first["granularity"] == "joint" and len(first["params"]) == tensors
        return "joint" if joint else None
    rates = {rate_of(group) for group in param_groups}
    lr, shrink = rates.pop()
    return (lr, -shrink / lr) if not rates and -1 < shrink < 0 else None


def predicted_equilibrium(rule: EquilibriumRule | None, grad_norm: float, ess_total: float) -> dict[str, float]:
    """Predict where effective step sizes and learning rates stay; with smaller steps than that a group's ELR rises.

    On one sphere for all groups the step size is that of all together: by TR eq. (5) a group that turns more than the
    whole loses effective learning rate. In the whole space it is the one of a fixed norm under weight decay
    (:func:`~lit_sphere.theory.weight_decay.equilibrium_ess`), about √(2ηλ), and the effective learning rate follows
    from it: PB's generalised equilibrium, at the present gradient norm.

    Args:
        rule: Of :func:`equilibrium_rule`.
        grad_norm: Effective gradient norm g̃ of all groups together.
        ess_total: Effective step size of all groups together.

    Returns:
        ``ess``, of every group; ``elr`` = ``ess`` / g̃ of all together, where that is not fixed. Empty where the theory
        predicts nothing.
    """
    if rule is None or not grad_norm > 0:
        return {}
    if rule == "joint":
        return {"ess": ess_total}
    ess = equilibrium_ess(*rule).item()
    return {"ess": ess, "elr": ess / grad_norm}


def predicted_interval(rule: EquilibriumRule | None, grad_min: float, grad_max: float) -> dict[str, float]:
    """Predict between which values effective learning rate and norm stay in the whole space: PB's equilibrium.

    With ℓ ≤ g̃ ≤ L at all steps, κℓ ≤ ρ² ≤ κL and √(2ηλ)/L ≤ η̃ ≤ √(2ηλ)/ℓ in the end
    (:func:`~lit_sphere.theory.weight_decay.equilibrium_norms`, exact in ηλ), whatever the start.

    Args:
        rule: Of :func:`equilibrium_rule`.
        grad_min: ℓ, the least effective gradient norm of all groups together.
        grad_max: L, the greatest.

    Returns:
        ``norm_low``, ``norm_high``, and ``elr_low``, ``elr_high`` of SP Table 1, η/(ρ²(1 − ηλ)), as step sizes are
        measured. Empty where the theory predicts nothing: without weight decay, or where ηλ is so large, for gradients
        that differ so much, that the interval can be left.
    """
    if not isinstance(rule, tuple) or not (0 < grad_min <= grad_max and isfinite(grad_max)):
        return {}
    try:
        norms = equilibrium_norms(grad_min, grad_max, *rule)
    except ValueError:  # all arguments are in their range: the interval can be left
        return {}
    found = {"norm_low": norms.low, "norm_high": norms.high}
    found |= {"elr_low": sgd_elr(norms.high, *rule), "elr_high": sgd_elr(norms.low, *rule)}
    return {name: value.item() for name, value in found.items()}
