"""The effective step size at which the effective learning rate of a group stays where it is."""

from collections.abc import Sequence
from typing import Any, Literal

from lit_sphere.effective.sources import rate_of
from lit_sphere.theory.weight_decay import equilibrium_ess

EquilibriumRule = Literal["joint"] | tuple[float, float]
"""What keeps effective learning rates where they are: one sphere, or the balance of η and λ."""


def equilibrium_rule(param_groups: Sequence[dict[str, Any]], tensors: int) -> EquilibriumRule | None:
    """Tell which of the papers' equilibria holds at a step.

    Args:
        param_groups: Those of ``SphereSGD``, or of plain SGD (no momentum), that train the watched groups.
        tensors: Number of tensors in the watched groups.

    Returns:
        ``joint``: one sphere over just these tensors. Learning rate and weight decay: plain SGD in the whole space,
        0 < ηλ < 1, the same for all. None where the theory predicts nothing.
    """
    first = param_groups[0]
    if any(group.get("elr") is not None for group in param_groups):
        joint = len(param_groups) == 1 and first["spheres"] == "joint" and len(first["params"]) == tensors
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
