"""What other optimizers can be compared on, and which runs they cannot follow."""

import re
from collections.abc import Mapping
from typing import Any, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_sphere.groups import Group, GroupGranularity
from lit_sphere.observe.both_lightnings import is_a, overrides
from lit_sphere.observe.dynamics import controls_of
from lit_sphere.observe.module_groups import groups_of_one_optimizer
from lit_sphere.optim.shards import is_distributed
from lit_sphere.rivals.network_copy import needs_closure

_TAKEN = ("run", "start")


def check_arguments(
    owner: str, optimizers: object, numbers: Mapping[str, tuple[int | None, int]], granularity: str
) -> None:
    """Refuse what a comparison cannot be made with.

    Args:
        owner: Name of the callback.
        optimizers: What makes each rival's optimizer, by name.
        numbers: By name, what is given and the least that it can be.
        granularity: ``filter`` or ``tensor``.

    Raises:
        ValueError: Says what, and what there could be.
    """
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise ValueError(f"{owner}: optimizers must map at least one name, e.g. {{Adam: torch.optim.Adam}}")
    for name in optimizers:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.\-]+", name) or name in _TAKEN:
            raise ValueError(
                f"{owner}: {name!r} cannot name an optimizer; take letters, digits, _ . and -, and not "
                f"{' or '.join(_TAKEN)}"
            )
    for key, (value, least) in numbers.items():
        if value is not None and value < least:
            raise ValueError(f"{owner}: {key} must be at least {least}, got {value}")
    if granularity not in get_args(GroupGranularity):
        raise ValueError(f"{owner}: granularity must be 'filter' or 'tensor', got {granularity!r}")


def check_run(owner: Any, trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse runs whose steps rivals cannot take after.

    Args:
        owner: The callback.
        trainer: Its trainer, at the start of ``fit``.
        pl_module: Its module.

    Raises:
        ValueError: Says what, and the remedy.
    """
    name = type(owner).__name__
    if is_a(trainer.strategy, FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy):
        raise ValueError(f"{name}: {type(trainer.strategy).__name__} shards the parameters; use the strategy ddp")
    if any(is_distributed(p) for each in trainer.optimizers for group in each.param_groups for p in group["params"]):
        raise ValueError(f"{name}: fully_shard shards the parameters, and rivals need them whole; use the strategy ddp")
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError(f"{name}: rivals have no gradient scaler; use the precision bf16-mixed or 32-true")
    for other in controls_of(trainer, "norm"):
        kind = type(other).__name__
        raise ValueError(f"{name}: rivals' norms are not fixed as {kind} fixes the run's; leave one of the two out")
    for optimizer in trainer.optimizers:
        if needs_closure(optimizer):
            raise ValueError(
                f"{name}: {type(optimizer).__name__} evaluates the loss anew in its step, and rivals have one gradient "
                f"a step; leave {name} out"
            )
    if overrides("configure_gradient_clipping", pl_module):
        rank_zero_warn(
            f"{name}: rivals do not follow {type(pl_module).__name__}.configure_gradient_clipping; they clip as the "
            "trainer's gradient_clip_val says"
        )


def comparable(
    owner: Any, trainer: Trainer, groups: list[Group], granularity: GroupGranularity
) -> tuple[list[Group], int]:
    """Choose the groups to compare: of one optimizer, that which trains most of them.

    Args:
        owner: The callback, to be named in errors.
        trainer: Its trainer.
        groups: As :func:`~lit_sphere.groups.find_groups` gives them.
        granularity: ``filter``: only single rows of tensors of two or more dimensions.

    Returns:
        The groups, and the optimizer's number.

    Raises:
        ValueError: If there is none.
    """
    name = type(owner).__name__
    if granularity == "filter":
        groups = [group for group in groups if _is_filter(group)]
        if not groups:
            raise ValueError(
                f"{name}: no single filter is scale-invariant here; set granularity: tensor to compare whole tensors"
            )
    main, compared = groups_of_one_optimizer(owner, trainer, groups, "compares")
    kind = type(trainer.optimizers[main]).__name__
    members = {p for group in compared for p in group.parameters}
    for options in trainer.optimizers[main].param_groups:
        inside = sum(p in members for p in options["params"])
        if options.get("granularity") == "joint" and 0 < inside < len(options["params"]):
            raise ValueError(
                f"{name}: {kind} has {len(options['params'])} tensors on one joint sphere, but only {inside} of them "
                "are compared; set granularity: tensor, or give each filter a sphere"
            )
    return compared, main


def _is_filter(group: Group) -> bool:
    rows = group.rows
    one = len(group.parameters) == 1 and rows is not None and rows.stop == rows.start + 1
    return one and group.parameters[0].ndim > 1
