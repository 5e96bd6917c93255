"""The scale-invariant groups that one optimizer of a run trains, for callbacks that watch one."""

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_sphere.groups import Group


def groups_of_one_optimizer(
    asks: Callback, trainer: Trainer, groups: list[Group], does: str
) -> tuple[int, list[Group]]:
    """Choose the optimizer that trains most of the groups as wholes; the first of several.

    Args:
        asks: The callback, to be named in messages.
        trainer: Its trainer.
        groups: Groups of its module.
        does: What the callback does to them, for the warning that there are others.

    Returns:
        The optimizer's number, and its groups.

    Raises:
        ValueError: If no optimizer trains one as a whole.
    """
    name, main, mine = type(asks).__name__, 0, list[Group]()
    for number, optimizer in enumerate(trainer.optimizers):
        trained = {p for group in optimizer.param_groups for p in group["params"]}
        whole = [group for group in groups if trained.issuperset(group.parameters)]
        if len(whole) > len(mine):
            main, mine = number, whole
    if not mine:
        raise ValueError(
            f"{name}: no optimizer trains a scale-invariant group as a whole; give all parameters of a group to one "
            "optimizer"
        )
    if len(mine) < len(groups):
        kind = type(trainer.optimizers[main]).__name__
        rank_zero_warn(
            f"{name} {does} the {len(mine)} groups of {kind}; {len(groups) - len(mine)} are trained elsewhere"
        )
    return main, mine
