"""The scale-invariant groups of a LightningModule, and the optimizer of a run that trains them."""

from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lit_sphere.groups import Group, GroupGranularity, find_groups


class NoGroups(ValueError):
    """Nothing of a module is scale-invariant, or nothing that an optimizer trains: monitors stay out."""


# The search takes seconds on a large network, and several callbacks need the same.
_found: WeakKeyDictionary[LightningModule, dict[str, list[Group]]] = WeakKeyDictionary()


def groups_of(
    owner: Callback, pl_module: LightningModule, batch: Any = None, granularity: GroupGranularity = "tensor"
) -> list[Group] | None:
    """Find the groups in a module's ``forward``, from its ``example_input_array`` or else from a batch.

    Args:
        owner: The callback, to be named in errors.
        pl_module: The module.
        batch: A batch whose first element, or which itself, is the input of the module.
        granularity: As of :func:`~lit_sphere.groups.find_groups`.

    Returns:
        The groups; None where the module does not say what its input looks like and no batch is given:
        call again with the first batch.

    Raises:
        NoGroups: If no group is found; the callback is named.
        ValueError: If the input is not known, or the module cannot be searched; the callback is named.
    """  # noqa: DOC502
    found = _found.setdefault(pl_module, {})
    trainable = [p for p in pl_module.parameters() if p.requires_grad]
    if granularity in found and {p for g in found[granularity] for p in g.parameters} <= set(trainable):
        return found[granularity]
    example = pl_module.example_input_array
    if example is None:
        if batch is None:
            return None
        example = batch[0] if isinstance(batch, (tuple, list)) else batch
    name = type(owner).__name__
    if not isinstance(example, (Tensor, tuple)):
        raise ValueError(
            f"{name} cannot tell the network's input from a {type(example).__name__}: "
            f"set self.example_input_array in {type(pl_module).__name__}"
        )
    try:
        found[granularity] = find_groups(pl_module, example, granularity)
    except ValueError as error:
        kind = NoGroups if str(error).startswith("no scale-invariant group") else ValueError
        raise kind(f"{name}: {error}") from error
    return found[granularity]


def short_names(groups: list[Group]) -> list[str]:
    """Shorten group names by the attribute of the LightningModule that holds the network, if one holds all.

    Args:
        groups: Groups of one module.

    Returns:
        A name for each.
    """
    holders = {group.name.split(".")[0] for group in groups}
    nested = all(group.name.count(".") > 1 for group in groups)
    return [group.name.partition(".")[2] if nested and len(holders) == 1 else group.name for group in groups]


def groups_of_one_optimizer(
    owner: Callback, trainer: Trainer, groups: list[Group], verb: str
) -> tuple[int, list[Group]]:
    """Choose the optimizer that trains most of the groups as wholes; the first of several.

    Args:
        owner: The callback, to be named in messages.
        trainer: Its trainer.
        groups: Groups of its module.
        verb: What the callback does with them, as in "watches", for the warning that there are others.

    Returns:
        The optimizer's number, and its groups.

    Raises:
        NoGroups: If no optimizer trains one as a whole.
    """
    name, main, trained_groups = type(owner).__name__, 0, list[Group]()
    for number, optimizer in enumerate(trainer.optimizers):
        trained = {p for group in optimizer.param_groups for p in group["params"]}
        complete = [group for group in groups if trained.issuperset(group.parameters)]
        if len(complete) > len(trained_groups):
            main, trained_groups = number, complete
    if not trained_groups:
        raise NoGroups(
            f"{name}: no optimizer trains a scale-invariant group as a whole; give all parameters of a group to one "
            "optimizer"
        )
    if len(trained_groups) < len(groups):
        kind = type(trainer.optimizers[main]).__name__
        rank_zero_warn(
            f"{name} {verb} the {len(trained_groups)} groups of {kind}; {len(groups) - len(trained_groups)} are "
            "trained elsewhere"
        )
    return main, trained_groups
