"""The groups that a monitor watches: the scale-invariant ones, and matrices that are not, if it is asked to."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from lit_sphere.effective import Settling
from lit_sphere.groups import Group, GroupGranularity
from lit_sphere.observe.dynamics import callbacks_of
from lit_sphere.observe.module_groups import NoGroups, groups_of

Watch = Literal["scale_invariant", "matrices"] | Sequence[str]
"""What is watched: the scale-invariant groups; all weight matrices, too; or the tensors that match a pattern."""

_said: WeakKeyDictionary[Trainer, set[str]] = WeakKeyDictionary()


class WatchedGroups(NamedTuple):
    """What is watched of a module.

    Attributes:
        groups: Disjoint groups in the module's order.
        others: Those among them that are not scale-invariant.
    """

    groups: list[Group]
    others: frozenset[Group]


@runtime_checkable
class MarksGroups(Protocol):
    """A callback that logs groups under their names, also such as are not scale-invariant."""

    @property
    def not_scale_invariant(self) -> frozenset[str]:
        """Names, in keys, of the groups that are not scale-invariant."""


def marked_groups(trainer: Trainer) -> frozenset[str]:
    """Give the names of all groups that some callback logs and that are not scale-invariant.

    Args:
        trainer: The trainer.

    Returns:
        Names, as in keys.
    """
    marking = [each for each in callbacks_of(trainer) if isinstance(each, MarksGroups)]
    return frozenset().union(*(each.not_scale_invariant for each in marking))


@runtime_checkable
class FollowsSettling(Protocol):
    """A callback that follows a run to its equilibrium under weight decay."""

    settling: Settling


def settling_of(trainer: Trainer) -> Settling | None:
    """Find what follows a run to its equilibrium.

    Args:
        trainer: The trainer.

    Returns:
        That of the first callback that does; None without one.
    """
    return next((each.settling for each in callbacks_of(trainer) if isinstance(each, FollowsSettling)), None)


def watched_groups(
    owner: Callback,
    pl_module: LightningModule,
    batch: Any,
    granularity: GroupGranularity,
    watch: Watch,
    rows: bool = False,
) -> WatchedGroups | None:
    """Find what is to be watched of a module.

    Args:
        owner: The callback, to be named in errors.
        pl_module: The module.
        batch: As of :func:`~lit_sphere.observe.module_groups.groups_of`.
        granularity: Of the scale-invariant groups; other tensors are whole.
        watch: ``matrices``: the scale-invariant groups, and each other trainable tensor of two or more dimensions;
            patterns, as of :mod:`fnmatch`: the tensors whose names, with or without the attribute that holds the
            network, match one, with their scale-invariant group if they are in one.
        rows: As of :func:`~lit_sphere.observe.module_groups.groups_of`.

    Returns:
        The groups; None where the module does not say what its input looks like and no batch is given.

    Raises:
        NoGroups: If nothing is scale-invariant, and only that is to be watched; or there is no matrix.
        ValueError: If a pattern matches nothing; the callback is named.
    """  # noqa: DOC502
    try:
        found = groups_of(owner, pl_module, batch, granularity, rows)
    except NoGroups:
        if watch == "scale_invariant":
            raise
        found = []
    if found is None:
        return None
    if watch == "scale_invariant":
        return WatchedGroups(found, frozenset())
    trainable = {p: name for name, p in pl_module.named_parameters() if p.requires_grad}
    if watch == "matrices":
        wanted = {p for p in trainable if p.ndim > 1} | {p for group in found for p in group.parameters}
        if not wanted:
            raise NoGroups(f"{type(owner).__name__}: {type(pl_module).__name__} has no trainable weight matrix")
    else:
        wanted = _matching(owner, pl_module, trainable, watch)
    others = [each for p, name in trainable.items() if p in wanted for each in _outside(p, name, found)]
    place = {p: number for number, p in enumerate(trainable)}
    kept = [group for group in found if not wanted.isdisjoint(group.parameters)]
    groups = sorted([*kept, *others], key=lambda group: place[group.parameters[0]])  # rows stay in their order
    return WatchedGroups(groups, frozenset(others))


def _outside(parameter: nn.Parameter, name: str, groups: Sequence[Group]) -> list[Group]:
    """Make groups of what is in none: of the whole tensor, or of each block of rows that is left over."""
    mine = [group for group in groups if any(p is parameter for p in group.parameters)]
    if not mine:
        return [Group(name, (parameter,), None, (name,))]
    if any(group.rows is None for group in mine):
        return []
    end = len(parameter)
    taken = {row for group in mine for row in range(*(group.rows or slice(None)).indices(end))}
    left = [row for row in range(end) if row not in taken]
    starts = [row for row in left if row == 0 or row - 1 in taken]
    stops = [row + 1 for row in left if row + 1 == end or row + 1 in taken]
    blocks = [
        (slice(start, stop), f"{start}" + f":{stop}" * (stop > start + 1))
        for start, stop in zip(starts, stops, strict=True)
    ]
    return [Group(f"{name}[{shown}]", (parameter,), rows, (name,)) for rows, shown in blocks]


def _matching(
    owner: Callback, pl_module: LightningModule, trainable: dict[nn.Parameter, str], patterns: Sequence[str]
) -> set[nn.Parameter]:
    wanted: set[nn.Parameter] = set()
    for pattern in patterns:
        # Keys leave out the attribute that holds the network.
        names = {p: (name, name.partition(".")[2]) for p, name in trainable.items()}
        matching = {p for p, both in names.items() if any(fnmatchcase(name, pattern) for name in both)}
        if not matching:
            some = ", ".join(list(trainable.values())[:3])
            raise ValueError(
                f"{type(owner).__name__}: no trainable parameter of {type(pl_module).__name__} matches {pattern!r} of "
                f"watch; give names such as {some}, or patterns such as '*.weight'"
            )
        wanted |= matching
    return wanted


def stay_out(owner: Callback, trainer: Trainer, reason: NoGroups, hint: bool = True) -> None:
    """Warn that a monitor has nothing to watch in a run; the reason is said once for all monitors of a trainer.

    Args:
        owner: The monitor.
        trainer: Its trainer.
        reason: Why.
        hint: Name the option that watches other matrices.
    """
    name, said = type(owner).__name__, _said.setdefault(trainer, set())
    why = str(reason).removeprefix(f"{name}: ")
    if why in said:
        rank_zero_warn(f"{name} stays out of this run, for the same reason")
        return
    said.add(why)
    more = (
        ". EffectiveLearningRateMonitor(watch='matrices') shows how far matrices turn that are not scale-invariant"
        if hint
        else ""
    )
    rank_zero_warn(f"{name} stays out of this run: {why}{more}")
