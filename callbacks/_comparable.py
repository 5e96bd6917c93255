"""What other optimizers can be compared on, and which runs they cannot follow."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lit_sphere.callbacks._twin_optimizer import needs_closure
from lit_sphere.groups import Granularity, Group


def refuse_what_cannot_be_followed(asks: Any, trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse runs whose steps rivals cannot take after.

    Args:
        asks: The callback.
        trainer: Its trainer, at the start of ``fit``.
        pl_module: Its module.

    Raises:
        ValueError: Says what, and the remedy.
    """
    name = type(asks).__name__
    if any(isinstance(other, type(asks)) and other is not asks for other in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(f"{name}: two of them would write the same files; put all optimizers into one")
    if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
        raise ValueError(f"{name}: {type(trainer.strategy).__name__} shards the parameters; use the strategy ddp")
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError(f"{name}: rivals have no gradient scaler; use the precision bf16-mixed or 32-true")
    for optimizer in trainer.optimizers:
        if needs_closure(optimizer):
            raise ValueError(
                f"{name}: {type(optimizer).__name__} evaluates the loss anew in its step, and rivals have one gradient "
                f"a step; leave {name} out"
            )
    if is_overridden("configure_gradient_clipping", pl_module):
        rank_zero_warn(
            f"{name}: rivals do not follow {type(pl_module).__name__}.configure_gradient_clipping; they clip as the "
            "trainer's gradient_clip_val says"
        )


def comparable(asks: Any, trainer: Trainer, groups: list[Group], granularity: Granularity) -> tuple[list[Group], int]:
    """Choose the groups to compare: of one optimizer, that which trains most of them.

    Args:
        asks: The callback, to be named in errors.
        trainer: Its trainer.
        groups: As :func:`~lit_sphere.groups.find_groups` gives them.
        granularity: ``filter``: only single rows of tensors of two or more dimensions.

    Returns:
        The groups, and the optimizer's number.

    Raises:
        ValueError: If there is none.
    """
    name = type(asks).__name__
    if granularity == "filter":
        groups = [group for group in groups if _is_filter(group)]
        if not groups:
            raise ValueError(
                f"{name}: no single filter is scale-invariant here; set granularity: tensor to compare whole tensors"
            )
    main, mine = 0, list[Group]()
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
    kind = type(trainer.optimizers[main]).__name__
    if len(mine) < len(groups):
        rank_zero_warn(
            f"{name} compares the {len(mine)} groups of {kind}; {len(groups) - len(mine)} are trained elsewhere"
        )
    members = {p for group in mine for p in group.parameters}
    for options in trainer.optimizers[main].param_groups:
        inside = sum(p in members for p in options["params"])
        if "joint" in (options.get("spheres"), options.get("per")) and 0 < inside < len(options["params"]):
            raise ValueError(
                f"{name}: {kind} has {len(options['params'])} tensors on one joint sphere, but only {inside} of them "
                "are compared; set granularity: tensor, or give each filter a sphere"
            )
    return mine, main


def refuse_batch(asks: Any, batch: Any) -> None:
    """Refuse batches that are no pairs of two tensors.

    Args:
        asks: The callback, to be named in errors.
        batch: The first batch.

    Raises:
        ValueError: If it is something else.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(x, Tensor) for x in batch)):
        name = type(asks).__name__
        raise ValueError(
            f"{name}: rivals learn from batches of (inputs, labels), two tensors, but got a {type(batch).__name__}; "
            f"use a collate_fn that makes such pairs, or leave {name} out"
        )


def _is_filter(group: Group) -> bool:
    rows = group.rows
    one = len(group.parameters) == 1 and rows is not None and rows.stop == rows.start + 1
    return one and group.parameters[0].ndim > 1
