"""Which parameters of a network share a sphere."""

from collections.abc import Sequence

from torch import Tensor, nn

from lit_sphere.groups import Group, find_groups
from lit_sphere.optim import Granularity


def find_spheres(
    network: nn.Module,
    example: Tensor,
    granularity: Granularity,
    lr: float | None,
    known: Sequence[Group] = (),
) -> list[list[str]]:
    """Find the scale-invariant parameters, and share them out to spheres.

    Args:
        network: Any network.
        example: Inputs of the right shape, at least two.
        granularity: As of :class:`~lit_sphere.modules.SphereModule`.
        lr: Learning rate of what is not scale-invariant; None refuses such parameters.
        known: The groups of whole tensors, where they have been found before.

    Returns:
        Names of the parameters of each parameter group; with ``filter``, one group for all.

    Raises:
        ValueError: If trainable parameters are not scale-invariant and ``lr`` is not given, or if with ``filter``
            the filters are not scale-invariant by themselves.
    """
    groups = list(known)
    if granularity == "filter" or not groups:
        groups = find_groups(network, example, "filter" if granularity == "filter" else "tensor")
    if granularity == "filter":
        undivided = [group for group in groups if sum(_filters(group, p) for p in group.parameters) > 1]
        if undivided:
            raise ValueError(
                f"granularity filter: {undivided[0].name} is scale-invariant only as a whole, no filter by itself; "
                "take --model.granularity tensor or joint"
            )
    if granularity != "filter":
        groups = [group for group in groups if group.rows is None]  # a sphere holds whole tensors
    names = list(dict.fromkeys(name for group in groups for name in group.names))
    trainable = [name for name, p in network.named_parameters() if p.requires_grad]
    others = sorted(set(trainable) - set(names))
    if others and lr is None:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise ValueError(
            f"{len(others)} of {len(trainable)} trainable tensors are not scale-invariant ({shown}): give lr "
            "(--model.lr) to train them by plain SGD, or freeze them"
        )
    return [list(group.names) for group in groups] if granularity == "tensor" else [names]


def _filters(group: Group, parameter: nn.Parameter) -> int:
    """Number of a parameter's filters (rows) in a group."""
    return len(parameter) if group.rows is None else group.rows.stop - group.rows.start
