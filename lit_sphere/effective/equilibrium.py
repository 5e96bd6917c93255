"""The effective step size at which the effective learning rate of a group stays where it is."""

from collections.abc import Sequence
from typing import Any

from lit_sphere.effective.sources import rate_of
from lit_sphere.theory.weight_decay import equilibrium_ess


def predicted_equilibrium(
    param_groups: Sequence[dict[str, Any]], grad_norm: float, ess_total: float
) -> dict[str, float]:
    """Predict where effective step sizes and learning rates stay; with smaller steps than that a group's ELR rises.

    On one sphere for all groups the step size is that of all together: by TR eq. (5) a group that turns more than the
    whole loses effective learning rate. In the whole space it is the one of a fixed norm under weight decay
    (:func:`~lit_sphere.theory.weight_decay.equilibrium_ess`), about √(2ηλ), and the effective learning rate follows
    from it: PB's generalised equilibrium, at the present gradient norm.

    Args:
        param_groups: Those of ``SphereSGD``, or of plain SGD (no momentum), that train the groups.
        grad_norm: Effective gradient norm g̃ of all groups together.
        ess_total: Effective step size of all groups together.

    Returns:
        ``ess``, of every group; ``elr`` = ``ess`` / g̃ of all together, where that is not fixed. Empty where the theory
        predicts nothing: one sphere for each group, no weight decay, or parameter groups that differ in η or λ.
    """
    if any(group.get("elr") is not None for group in param_groups):
        joint = len(param_groups) == 1 and param_groups[0]["spheres"] == "joint"
        return {"ess": ess_total} if joint else {}
    rates = {rate_of(group) for group in param_groups}
    ((lr, shrink),) = rates if len(rates) == 1 else [(0.0, 0.0)]
    if not (-1 < shrink < 0 and grad_norm > 0):
        return {}
    ess = equilibrium_ess(lr, -shrink / lr).item()
    return {"ess": ess, "elr": ess / grad_norm}
