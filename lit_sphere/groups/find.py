"""Which parameters of a model are scale-invariant, and which only together."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lit_sphere.groups.euler import EulerProducts, euler_products
from lit_sphere.groups.precision import DOUBLE, SINGLE
from lit_sphere.groups.probe import Probe
from lit_sphere.groups.samples import tensors_in
from lit_sphere.groups.scaling_laws import ScalingLaws
from lit_sphere.groups.sharded import whole_parameters
from lit_sphere.groups.symmetries import GroupChoice

GroupGranularity = Literal["tensor", "filter"]

# Powers of two scale without rounding. The large ones reach what saturates far out, such as ReLU6.
_FACTORS = (2.0, 0.5, 64.0, 1 / 64)
_SECONDS_BEFORE_BAR = 2.0
_MOST_CHOICES = 20
# A hand-written rsqrt(x + 1e-6) misses by about its 1e-6.
_NEARLY = 1e-3
# In forwards; a backward takes two, and each operation's law a forward for each of its inputs.
_FORWARDS_FOR_LAWS = 4


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters that may be multiplied by one positive number without changing the model's function.

    Attributes:
        name: First tensor's name; of a joint group with the number of further tensors, ``"stem.weight+4"``;
            of rows with their numbers, ``"convs.0.weight[3]"`` or ``"convs.0.weight[8:16]"``.
        parameters: The tensors that are scaled together, in the model's order.
        rows: These rows (dimension 0, the output channels) of every tensor; None for whole tensors.
        names: Full parameter names, aligned with ``parameters``.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    rows: slice | None = None
    names: tuple[str, ...] = ()

    @property
    def numel(self) -> int:
        """Number of scalars in the group."""
        if self.rows is None:
            return sum(parameter.numel() for parameter in self.parameters)
        count = self.rows.stop - self.rows.start
        return sum(parameter.numel() // len(parameter) * count for parameter in self.parameters)


@dataclass(frozen=True)
class GroupSearch:
    """What a search for scale-invariant groups found.

    Attributes:
        groups: Disjoint groups in the order of their first tensor, then of their rows. Of several choices the one
            that covers the most weights in matrices.
        alternatives: Groups of tensors that are in none of these: each overlaps some of ``groups``, and could be
            taken in their place.
        radial_share: For each trainable tensor the largest |⟨∂f/∂w, w⟩| / (‖∂f/∂w‖‖w‖) over random functions f of
            the outputs: 0 for what is scale-invariant by itself, NaN for what has no influence on the outputs.
    """

    groups: list[Group]
    alternatives: list[Group]
    radial_share: dict[str, float]


def find_groups(
    model: nn.Module,
    example_input: Any,
    granularity: GroupGranularity = "tensor",
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> list[Group]:
    """Find the scale-invariant groups of any model by Euler's identity ⟨∇f, θ⟩ = 0 (TR §2).

    For random functions f of the model's outputs on random inputs, ⟨∂f/∂w_i, w_i⟩ vanishes for a tensor
    that is scale-invariant by itself. Several tensors that are only together are found from the scaling laws of
    the model's operations (:mod:`~lit_sphere.groups.scaling_laws`); over them the sum vanishes. Every group found
    is confirmed by scaling it by 2, ½, 64 and 1/64 and comparing outputs. All of this happens on copies, in train
    mode if the model as a whole is in eval mode and otherwise in the modes that its parts have, in float64 (float32
    where that cannot run), without eps, near the model's own weights. The model's weights, buffers, attributes,
    gradients and modes, and the state of random generators, stay as they were.

    Symmetries that scale some tensors up and others down are no groups; neither are frozen parameters, nor
    those without influence on the outputs. Where groups could overlap, those are taken that cover the most weights
    in matrices; :func:`search_groups` tells the others, too.

    Args:
        model: Any module, on any device, compiled or not, a LightningModule too.
        example_input: Input of the model: a tensor of shape (N, …), a tuple of positional inputs, or a dictionary of
            inputs by name. Only shapes, types and ranges matter; a batch of 4 random samples is made after it, of
            fewer pixels and tokens where the model takes that.
        granularity: ``"tensor"``, or ``"filter"`` to divide every group into the smallest blocks of rows
            that are scale-invariant: single filters for batch norm, a norm's group of filters for group
            norm, the whole tensors for layer norm. Where only some rows of a tensor are scale-invariant (queries
            and keys in one tensor with the values), these are found either way.
        seed: Seed of the random inputs and functions.
        progress: Show a progress bar; None shows it on a terminal, if the search takes long.

    Returns:
        Disjoint groups in the order of their first tensor, then of their rows.

    Raises:
        ValueError: If no group is found, nothing is trainable, the model fails on inputs of this shape, or
            an argument is not as described.
    """
    found = search_groups(model, example_input, granularity, seed=seed, progress=progress)
    if not found.groups:
        raise ValueError(no_groups(model, found))
    return found.groups


def no_groups(model: nn.Module, search: GroupSearch) -> str:
    """Say why a search found nothing.

    Args:
        model: The model.
        search: What was found.

    Returns:
        One line.
    """
    share = {name: value for name, value in search.radial_share.items() if not math.isnan(value)}
    text = (
        f"no scale-invariant group found in {type(model).__name__}: neither one of its {len(search.radial_share)} "
        "trainable tensors nor several together can be multiplied by a number without changing the outputs"
    )
    if share:
        least = min(share, key=lambda name: share[name])
        if share[least] <= DOUBLE.tolerance:
            return (
                f"{text}: {least} passes Euler's identity ⟨∇, w⟩ = 0, but outputs change when it is scaled. What is "
                "computed saturates, or uses it elsewhere (a teacher that follows it), or differs from run to run"
            )
        text += f" (the nearest is {least}, with {share[least]:.1e} of its gradient along the weights)"
        if share[least] < _NEARLY:
            return f"{text}; an eps in the code of a norm, not in its attribute eps, would miss by as much"
    names = dict[nn.Parameter, list[str]]()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    for one, *others in names.values():
        if others and one in search.radial_share:
            return f"{text}. {one} is {others[0]} as well: untied, the tensors before a norm may be groups"
    return f"{text}. Put BatchNorm, LayerNorm, ... after the weights"


def search_groups(
    model: nn.Module,
    example_input: Any,
    granularity: GroupGranularity = "tensor",
    *,
    seed: int = 0,
    progress: bool | None = None,
    call: Callable[..., Any] | None = None,
    samples: Literal["random", "given"] = "random",
    train: bool | None = None,
) -> GroupSearch:
    """Search for scale-invariant groups as :func:`find_groups` does, and tell what else was seen.

    Args:
        model: Whose parameters.
        example_input: As of :func:`find_groups`; the arguments of ``call``.
        granularity: As of :func:`find_groups`.
        seed: As of :func:`find_groups`.
        progress: As of :func:`find_groups`.
        call: What is computed with the model's parameters, a training step's loss for instance; None for the model
            itself.
        samples: ``random``: inputs of the example's shapes, types and ranges; ``given``: samples of the example as
            they are, for losses, whose inputs and labels belong together.
        train: Whether to put the model into train mode; None: only if as a whole it is in eval mode.

    Returns:
        What was found, possibly no group.

    Raises:
        ValueError: If nothing is trainable, the model fails on inputs of this shape, or an argument is not as
            described.
    """
    if granularity not in get_args(GroupGranularity):
        raise ValueError(f"granularity must be one of {get_args(GroupGranularity)}, got {granularity!r}")
    positional, named = _arguments(example_input, samples)
    with whole_parameters(model) as copies:
        make = partial(Probe, model, call, positional, named, seed=seed, real=samples == "given", train=train)
        found = _first_that_runs(make, granularity, progress)
    originals = {copy: parameter for parameter, copy in copies.items()}

    def held(group: Group) -> Group:
        return replace(group, parameters=tuple(originals.get(p, p) for p in group.parameters))

    return replace(found, groups=[*map(held, found.groups)], alternatives=[*map(held, found.alternatives)])


def _first_that_runs(make: Callable[..., Probe], granularity: GroupGranularity, progress: bool | None) -> GroupSearch:
    failure: ValueError | None = None
    for precision in (DOUBLE, SINGLE):
        probe = make(precision=precision)
        bar = _bar(progress)
        with bar, probe.opened():
            for rung in range(3):
                try:
                    if not probe.try_out(rung):
                        continue
                except ValueError as error:
                    # The usual size tells best what is wrong.
                    failure = error if failure is None or (rung, precision) == (1, DOUBLE) else failure
                    continue
                return _Search(probe, granularity, bar).run()
    assert failure is not None
    raise failure


def _arguments(example_input: Any, samples: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if samples == "given":  # graphs, texts, whatever a training step takes
        return example_input, {}
    tensors = tensors_in(example_input)
    if isinstance(example_input, list) or not tensors or not all(each.numel() for each in tensors):
        inputs = example_input if isinstance(example_input, tuple) else (example_input,)
        got = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in inputs]
        raise ValueError(
            f"example_input must be a non-empty tensor (N, ...), a tuple of positional inputs, or a dictionary of "
            f"inputs by name; got {got}"
        )
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    return (example_input if isinstance(example_input, tuple) else (example_input,)), {}


def _bar(progress: bool | None) -> tqdm:
    return tqdm(
        total=0,
        desc="finding scale-invariant groups",
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed} < {remaining}",
        leave=False,
        disable=None if progress is None else not progress,
        delay=_SECONDS_BEFORE_BAR if progress is None else 0,
    )


class _Search:
    """One search: tensors that are groups by themselves, then rows of tensors, then joint groups; all confirmed."""

    def __init__(self, probe: Probe, granularity: GroupGranularity, bar: tqdm) -> None:
        self._probe, self._granularity, self._bar = probe, granularity, bar
        self._precision, self._differentiates = probe.precision, False

    def run(self) -> GroupSearch:
        probe, bar = self._probe, self._bar
        bar.reset(total=EulerProducts.FORWARDS + _FORWARDS_FOR_LAWS + 1 + len(_FACTORS))
        self._euler = euler = euler_products(probe, bar.update)
        try:
            self._plain = self._outputs({})
        except ValueError:  # a gradient penalty differentiates in forward
            self._differentiates = True
            self._plain = self._outputs({})
        bar.update()
        singles = [(column,) for column in range(len(probe.names)) if euler.vanishes((column,))]
        done = {column for (column,) in singles}
        parts = list(self._parts(done))
        done |= {column for columns, _ in parts for column in columns}
        joint, choice = self._joint(done)
        groups = self._confirmed(sorted([*singles, *joint]))
        others = [] if choice is None else choice.alternatives([*singles, *joint])
        others = [columns for columns in others if euler.vanishes(columns)]
        found = [_group(probe, columns, rows) for columns in groups for rows in self._blocks(columns)]
        found += [_group(probe, columns, rows) for columns, rows in parts]
        first = {name: number for number, name in enumerate(probe.names)}
        found.sort(key=lambda group: (first[group.names[0]], 0 if group.rows is None else group.rows.start))
        shares = dict(zip(probe.names, euler.radial_share(), strict=True))
        return GroupSearch(found, [_group(probe, columns, None) for columns in others], shares)

    def _joint(self, done: set[int]) -> tuple[list[tuple[int, ...]], GroupChoice | None]:
        """Find groups of several tensors from the scaling laws; checked by Euler's identity."""
        probe, euler = self._probe, self._euler
        idle = {column for column in range(len(probe.names)) if not euler.influential[column]}
        open_ = [column for column in range(len(probe.names)) if column not in idle | done]
        if len(open_) < 2:
            self._bar.update(_FORWARDS_FOR_LAWS)
            return [], None
        # What has no influence may as well be zero, and then adds no constant to what would scale: a bias in front of
        # a batch norm.
        with ExitStack() as stack:
            stack.enter_context(probe.zeroed(idle))
            if not self._same({}):
                stack.close()
            # At scales of their own none of the terms of a sum is lost beside the others.
            probe.go_to(None)
            stack.callback(probe.go_to, 0)
            laws = ScalingLaws({column: probe.leaves[column] for column in open_}, self._precision)
            with torch.set_grad_enabled(self._differentiates):
                laws.require_constant(probe.outputs(0, laws))
        self._bar.update(_FORWARDS_FOR_LAWS)
        counts = {c: float(probe.leaves[c].numel() if probe.leaves[c].dim() > 1 else 0) for c in open_}
        choice = GroupChoice(laws.symmetries, counts)
        groups: list[tuple[int, ...]] = []
        for _ in range(_MOST_CHOICES):
            groups = choice.choose()
            wrong = [columns for columns in groups if not euler.vanishes(columns)]
            if not wrong:
                break
            for columns in wrong:
                choice.refuse(columns)
        return [columns for columns in groups if euler.vanishes(columns)], choice

    def _confirmed(self, groups: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return the groups that keep the outputs when scaled, each by every one of the factors."""
        # All at once first, each group by its own factors: forwards are what a large model takes long for.
        generator = torch.Generator().manual_seed(len(groups))
        orders = [torch.randperm(len(_FACTORS), generator=generator).tolist() for _ in groups]
        for turn in range(len(_FACTORS)):
            pairs = zip(orders, groups, strict=True)
            if not self._same({c: _FACTORS[order[turn]] for order, columns in pairs for c in columns}):
                break
            self._bar.update()
        else:
            return groups
        # What saturates shows far out: the largest factor finds what is wrong, the others confirm the rest.
        held = [columns for columns in groups if self._same(dict.fromkeys(columns, max(_FACTORS)))]
        return self._confirmed(held) if len(held) < len(groups) else self._one_by_one(held)

    def _one_by_one(self, groups: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return [columns for columns in groups if all(self._same(dict.fromkeys(columns, factor)) for factor in _FACTORS)]

    def _outputs(self, factors: Mapping[int, float | Tensor]) -> list[Tensor]:
        with torch.set_grad_enabled(self._differentiates), self._probe.scaled(factors):
            return [output.detach() for output in self._probe.outputs(0)]

    def _same(self, factors: Mapping[int, float | Tensor]) -> bool:
        pairs = zip(self._plain, self._outputs(factors), strict=True)
        tolerance = self._precision.tolerance
        return all(bool((a - b).abs().max() <= tolerance * a.abs().max()) for a, b in pairs)

    def _blocks(self, columns: Sequence[int]) -> Sequence[slice | None]:
        """Return the smallest equal blocks of rows that are scale-invariant, jointly over a group's tensors."""
        height = self._euler.height(columns)
        if self._granularity == "tensor" or not height:
            return [None]
        for block in (block for block in range(1, height) if height % block == 0):
            slices = [slice(start, start + block) for start in range(0, height, block)]
            if self._euler.rows_vanish(columns, slices) and self._same_by_rows(columns, slices):
                return slices
        return [None]

    def _parts(self, done: set[int]) -> Iterator[tuple[tuple[int, ...], slice]]:
        """Yield rows that are scale-invariant in matrices that are not: queries and keys, beside the values."""
        for columns in self._euler.neighbours(done):
            if all(self._probe.leaves[column].dim() < 2 for column in columns):
                continue
            slices = self._euler.vanishing_rows(columns)
            runs = _runs(slices)
            if runs == [slice(0, self._euler.height(columns))]:
                continue  # a joint group
            if slices and self._same_by_rows(columns, slices):
                yield from ((columns, rows) for rows in (runs if self._granularity == "tensor" else slices))

    def _same_by_rows(self, columns: Sequence[int], slices: Sequence[slice]) -> bool:
        """Whether the outputs stay where each of these blocks of rows is scaled by a factor of its own."""
        leaves = [self._probe.leaves[column] for column in columns]
        generator = torch.Generator().manual_seed(len(leaves[0]))
        # All blocks at once, each by factors of its own: far cheaper than block by block, and as telling.
        orders = torch.stack([torch.randperm(len(_FACTORS), generator=generator) for _ in slices])
        for turn in orders.T:
            factors = torch.ones(len(leaves[0]), dtype=self._precision.dtype)
            for rows, number in zip(slices, turn.tolist(), strict=True):
                factors[rows] = _FACTORS[number]
            by_column = {
                column: factors.to(leaf.device).view(-1, *[1] * (leaf.dim() - 1))
                for column, leaf in zip(columns, leaves, strict=True)
            }
            if not self._same(by_column):
                return False
        return True


def _runs(slices: Sequence[slice]) -> list[slice]:
    """Join slices that touch."""
    starts = [rows.start for before, rows in pairwise([slice(-1, -1), *slices]) if before.stop != rows.start]
    stops = [rows.stop for rows, after in pairwise([*slices, slice(-1, -1)]) if rows.stop != after.start]
    return [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]


def _group(probe: Probe, columns: Sequence[int], rows: slice | None) -> Group:
    names = tuple(probe.names[column] for column in columns)
    name = names[0] + (f"+{len(names) - 1}" if len(names) > 1 else "")
    if rows is not None:
        name += f"[{rows.start}]" if rows.stop == rows.start + 1 else f"[{rows.start}:{rows.stop}]"
    return Group(name, tuple(probe.parameters[column] for column in columns), rows, names)
