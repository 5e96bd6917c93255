"""The scale-invariant groups of a LightningModule, and the optimizer of a run that trains them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lit_sphere.groups import Group, GroupGranularity, GroupSearch, no_groups, search_groups
from lit_sphere.groups.sharded import reshard
from lit_sphere.observe.quiet_step import NoLoss, silence, step_losses

GroupNames = Sequence[str | Sequence[str]]
"""For each group the name of a parameter, or of several that are scale-invariant together."""
Network = str | Callable[..., Any] | None
"""Attribute of a module that is its network, or a function of the network's input."""
_SAVED = "lit_sphere_groups"


class NoGroups(ValueError):
    """A search ran, and nothing in the module is scale-invariant."""


@dataclass(frozen=True)
class GroupOptions:
    """How a callback finds the groups.

    Attributes:
        example_input: Input of the network; a tensor, a tuple of positional inputs, a dictionary of inputs by name.
        network: Attribute of the module that is run, with dots for attributes of attributes, or a function of the
            input that uses the module's parameters.
        groups: Names of parameters: no search is made.
    """

    example_input: Any = None
    network: Network = None
    groups: GroupNames | None = None

    def __post_init__(self) -> None:
        """Check the types.

        Raises:
            ValueError: If an option is of another type.
        """
        if not (self.network is None or isinstance(self.network, str) or callable(self.network)):
            raise ValueError(f"network must be the name of an attribute or a function, got {self.network!r}")
        given: Any = self.groups
        listed = isinstance(given, Sequence) and not isinstance(given, str)
        if given is not None and not (listed and all(isinstance(each, (str, Sequence)) for each in given)):
            raise ValueError(f"groups must be a list of names, or of lists of them, got {given!r}")


class FindsGroups(Callback):
    """Base of callbacks that need the groups: how they are found, and that a resumed run need not search again."""

    group_options = GroupOptions()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the names of the groups that were found."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if _SAVED not in checkpoint:  # one of several callbacks will do
            checkpoint[_SAVED] = _Found.of(pl_module).state(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the groups by their names, if the module still has these parameters."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        _Found.of(pl_module).load(pl_module, checkpoint.get(_SAVED, []))


class _Known(NamedTuple):
    """What a search came to: the groups, or why there is none; and in which modes, of which tensors."""

    groups: list[Group]
    reason: str
    trained: list[Any]


class _Found:
    """Groups of a module that are known, so that a search is made once for all callbacks."""

    # The search takes seconds on a large network, and several callbacks need the same.
    _all: ClassVar[WeakKeyDictionary[LightningModule, "_Found"]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._known: dict[tuple[str, Network], _Known] = {}

    @classmethod
    def of(cls, pl_module: LightningModule) -> "_Found":
        return cls._all.setdefault(pl_module, cls())

    def get(self, pl_module: LightningModule, key: tuple[str, Network]) -> _Known | None:
        known = self._known.get(key)
        if known is None or known.trained != _training_of(pl_module):
            return None
        trained = {p for p in pl_module.parameters() if p.requires_grad}
        return known if all(trained.issuperset(group.parameters) for group in known.groups) else None

    def put(self, pl_module: LightningModule, key: tuple[str, Network], groups: list[Group], reason: str) -> _Known:
        self._known[key] = _Known(groups, reason, _training_of(pl_module))
        return self._known[key]

    def state(self, pl_module: LightningModule) -> list[dict[str, Any]]:
        """Plain values; none of what a function was searched for, which has no name."""
        return [
            {"of": list(key), **known._asdict(), "groups": _names(known.groups)}
            for key, known in self._known.items()
            if not callable(key[1]) and self.get(pl_module, key) is not None
        ]

    def load(self, pl_module: LightningModule, state: Sequence[Mapping[str, Any]]) -> None:
        for saved in state:
            if saved["trained"] == _training_of(pl_module):
                granularity, network = saved["of"]
                self.put(pl_module, (granularity, network), _groups(pl_module, saved["groups"]), saved["reason"])


def _names(groups: Sequence[Group]) -> list[Any]:
    """Groups as plain values."""
    return [[list(g.names), None if g.rows is None else [g.rows.start, g.rows.stop], g.name] for g in groups]


def _groups(pl_module: LightningModule, names: Sequence[Any]) -> list[Group]:
    parameters = dict(pl_module.named_parameters())
    return [
        Group(name, tuple(parameters[each] for each in members), rows and slice(*rows), tuple(members))
        for members, rows, name in names
    ]


def _of_first_rank(pl_module: LightningModule, value: Any) -> Any:
    trainer = pl_module._trainer
    return value if trainer is None or trainer.world_size == 1 else trainer.strategy.broadcast(value)


def _training_of(pl_module: LightningModule) -> list[Any]:
    """What a search depends on: names and shapes of what is trained, and which modules are in eval mode."""
    trained = [[name, *p.shape] for name, p in pl_module.named_parameters() if p.requires_grad]
    return [trained, modules_in_eval_mode(pl_module)]


def modules_in_eval_mode(pl_module: LightningModule) -> list[str]:
    """Give the names of a module's parts that are in eval mode."""
    return [name for name, module in pl_module.named_modules() if not module.training]


def groups_of(
    owner: Callback,
    pl_module: LightningModule,
    batch: Any = None,
    granularity: GroupGranularity = "tensor",
    rows: bool = False,
) -> list[Group] | None:
    """Find the groups of a module, in the modes in which its training runs.

    What is run is the module's ``forward``, on its ``example_input_array`` or else the first part of a batch; where it
    has none, or it does not take that, the loss of its training step on the batch. The owner's
    :attr:`~FindsGroups.group_options` say otherwise.

    Args:
        owner: The callback, to be named in errors.
        pl_module: The module.
        batch: A batch of the training data.
        granularity: As of :func:`~lit_sphere.groups.find_groups`.
        rows: With granularity ``tensor``, also rows of tensors that as a whole are in no group.

    Returns:
        The groups; None where the module does not say what its input looks like and no batch is given:
        call again with the first batch.

    Raises:
        NoGroups: If there is none.
        ValueError: If the module cannot be run; the callback is named.
    """  # noqa: DOC502
    reshard(pl_module)  # its parameters are those of the optimizer then
    options = getattr(owner, "group_options", GroupOptions())
    name = type(owner).__name__
    if options.groups is not None:
        return named_groups(pl_module, options.groups, name)
    key = (granularity, options.network)
    known = _Found.of(pl_module).get(pl_module, key) or _found_by_search(pl_module, key, options, batch, name)
    if known is None:
        return None
    groups = known.groups
    if granularity == "tensor" and not rows:
        groups = [group for group in groups if group.rows is None]
    if not groups:
        raise NoGroups(f"{name}: {known.reason}")
    return groups


def _found_by_search(
    pl_module: LightningModule, key: tuple[GroupGranularity, Network], options: GroupOptions, batch: Any, name: str
) -> _Known | None:
    """Search, and remember what was found; None if there is nothing to run yet."""
    failure, search = None, None
    try:
        search = _search(pl_module, options, batch, key[0])
    except ValueError as error:
        failure = str(error)
    reason = f"{type(pl_module).__name__} has no scale-invariant tensor, only rows of some"
    if search is not None and not search.groups:
        reason = no_groups(pl_module, search)
    # Processes add tensors up group by group: they must have the same.
    names = None if search is None else _names(search.groups)
    failure, names, reason = _of_first_rank(pl_module, (failure, names, reason))
    if failure is not None:
        raise ValueError(f"{name}: {failure}")
    if names is None:
        return None
    if search is not None:
        _tell_choice(name, search)
    return _Found.of(pl_module).put(pl_module, key, _groups(pl_module, names), reason)


def _search(
    pl_module: LightningModule, options: GroupOptions, batch: Any, granularity: GroupGranularity
) -> GroupSearch | None:
    run: Callable[..., Any] = pl_module
    if callable(options.network):
        run = options.network
    elif options.network is not None:
        try:
            attrgetter(options.network)(pl_module)
        except AttributeError as error:
            raise ValueError(f"network: {type(pl_module).__name__} has no {options.network!r} ({error})") from error
        path: str = options.network

        def run(*args: Any, **kwargs: Any) -> Any:
            return attrgetter(path)(pl_module)(*args, **kwargs)

    trainer = pl_module._trainer
    search: dict[str, Any] = {"train": False, "progress": None if trainer is None or trainer.is_global_zero else False}
    example = pl_module.example_input_array if options.example_input is None else options.example_input
    failure = None
    if example is None and batch is None:
        return None
    if options.network is None and not _has_forward(pl_module):
        example = None
    elif example is None:
        first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        example = first if isinstance(first, Tensor) else None
    if example is not None:
        try:
            return search_groups(pl_module, example, granularity, call=_quiet(pl_module, run), **search)
        except ValueError as error:
            if options != GroupOptions() or pl_module.example_input_array is not None:
                raise
            failure = error
    if batch is None:
        return None
    try:
        losses = partial(step_losses, pl_module)
        return search_groups(pl_module, (batch,), granularity, call=losses, samples="given", **search)
    except ValueError as error:
        if isinstance(error.__cause__, NoLoss):
            return None  # the step skips this batch
        also = f"; {failure}" if failure is not None else ""
        raise ValueError(
            f"a training step of {type(pl_module).__name__} cannot be run apart ({error}{also}): give example_input=, "
            "network= (the attribute that is the network) or groups= (names of parameters)"
        ) from error


def _has_forward(pl_module: LightningModule) -> bool:
    home = next(kind.__module__ for kind in type(pl_module).__mro__ if "forward" in vars(kind))
    return home.partition(".")[0] not in ("lightning", "pytorch_lightning", "torch")


def _tell_choice(name: str, search: GroupSearch) -> None:
    if not search.alternatives:
        return
    covered = {each for group in search.groups for each in group.names}
    others = [each for group in search.alternatives for each in group.names if each not in covered]
    shown = ", ".join(others[:2]) + (", ..." if len(others) > 2 else "")
    rank_zero_info(
        f"{name}: of several choices the {len(search.groups)} groups that cover the most weights are taken; "
        f"{len(others)} other tensors ({shown}) could stand in place of some: groups= decides"
    )


def named_groups(pl_module: LightningModule, groups: GroupNames, name: str) -> list[Group]:
    """Take groups that are given by the names of their parameters.

    Args:
        pl_module: The module.
        groups: For each group a name, or several that are scale-invariant together. Names may have ``*``, which
            in a name by itself makes a group of each parameter that it fits.
        name: Of the callback, to be named in errors.

    Returns:
        The groups, which are taken at the user's word.

    Raises:
        ValueError: If a name fits no trainable parameter, or a parameter is in two groups.
    """
    known = {each: p for each, p in pl_module.named_parameters() if p.requires_grad}
    found: list[list[str]] = []
    for given in groups:
        patterns = [given] if isinstance(given, str) else list(given)
        fits = [[each for each in known if each == p or fnmatchcase(each, p)] for p in patterns]
        for pattern, fit in zip(patterns, fits, strict=True):
            if not fit:
                raise ValueError(
                    f"{name}: groups: {pattern!r} is no trainable parameter of {type(pl_module).__name__}, which has "
                    f"{', '.join(list(known)[:3])}, ..."
                )
        together = list(dict.fromkeys(each for fit in fits for each in fit))
        found += [[each] for each in together] if isinstance(given, str) else [together]
    everything = [each for names in found for each in names]
    twice = next((each for each in everything if everything.count(each) > 1), None)
    if twice is not None or not found:
        raise ValueError(f"{name}: groups: {twice} is in two groups" if twice else f"{name}: groups is empty")
    return [
        Group(
            names[0] + (f"+{len(names) - 1}" if len(names) > 1 else ""),
            tuple(known[each] for each in names),
            None,
            tuple(names),
        )
        for names in found
    ]


def _quiet(pl_module: LightningModule, run: Callable[..., Any]) -> Callable[..., Any]:
    """Log nothing from a forward."""

    def quiet(*args: Any, **kwargs: Any) -> Any:
        silence(pl_module)
        return run(*args, **kwargs)

    return quiet


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
