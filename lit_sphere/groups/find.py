"""Which parameters of a model are scale-invariant, and which only together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lit_sphere.groups.null_space import minimal_groups
from lit_sphere.groups.probe import Probe
from lit_sphere.groups.sharded import whole_parameters

GroupGranularity = Literal["tensor", "filter"]

# In float64, what is scale-invariant stays below 1e-12 and the rest above 1e-5.
_TOLERANCE = 1e-9
# A bias in front of a batch norm, say: its gradient is rounding error, and says nothing.
_NO_INFLUENCE = 1e-11
_FUNCTIONS_PER_INPUT = 6
_SPARE_ROWS = 16
_FEW_ROWS = 8
# Powers of two scale without rounding. The large ones reach what saturates far out, such as ReLU6.
_FACTORS = (2.0, 0.5, 16.0, 1 / 16)
_SECONDS_BEFORE_BAR = 2.0


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


def find_groups(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    granularity: GroupGranularity = "tensor",
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> list[Group]:
    """Find the scale-invariant groups of any model by Euler's identity ⟨∇f, θ⟩ = 0 (TR §2).

    For random functions f of the model's outputs on random inputs, ⟨∂f/∂w_i, w_i⟩ vanishes for a tensor
    that is scale-invariant by itself; where several are only together, the sum over them vanishes, which is
    a null vector of the matrix (functions, tensors). Every group found is confirmed by scaling it by 2, ½,
    16 and 1/16 and comparing outputs. All of this happens on copies, in train mode (scale invariance needs
    batch statistics), in float64, without eps, near the model's own weights. The model's weights, buffers,
    gradients and modes, and the state of random generators, stay as they were.

    Symmetries that scale some tensors up and others down are no groups; neither are frozen parameters, nor
    those without influence on the outputs. Where groups could overlap, the smaller one is taken.

    Args:
        model: Any module, on any device, compiled or not, a LightningModule too.
        example_input: Input of the model, shape (N, …), or a tuple of positional inputs. Only shapes,
            types and ranges matter; a batch of 4 random samples is made after it.
        granularity: ``"tensor"``, or ``"filter"`` to divide every group into the smallest blocks of rows
            that are scale-invariant: single filters for batch norm, a norm's group of filters for group
            norm, the whole tensors for layer norm.
        seed: Seed of the random inputs and functions.
        progress: Show a progress bar; None shows it on a terminal, if the search takes long.

    Returns:
        Disjoint groups in the order of their first tensor, then of their rows.

    Raises:
        ValueError: If no group is found, nothing is trainable, the model fails on inputs of this shape, or
            an argument is not as described.
    """
    if granularity not in get_args(GroupGranularity):
        raise ValueError(f"granularity must be one of {get_args(GroupGranularity)}, got {granularity!r}")
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    if not inputs or not all(isinstance(each, Tensor) and each.numel() for each in inputs):
        got = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in inputs]
        raise ValueError(f"example_input must be a non-empty tensor (N, ...), or a tuple of such; got {got}")
    with whole_parameters(model) as copies:
        found = _found(model, inputs, granularity, seed, progress)
    originals = {copy: p for p, copy in copies.items()}
    return [replace(each, parameters=tuple(originals.get(p, p) for p in each.parameters)) for each in found]


def _found(
    model: nn.Module, inputs: tuple[Tensor, ...], granularity: GroupGranularity, seed: int, progress: bool | None
) -> list[Group]:
    probe = Probe(model, inputs, seed)
    bar = tqdm(
        total=_FEW_ROWS + len(probe.names) + _SPARE_ROWS,
        desc="finding scale-invariant groups",
        leave=False,
        disable=None if progress is None else not progress,
        delay=_SECONDS_BEFORE_BAR if progress is None else 0,
    )
    with bar, probe.opened():
        groups = _tensor_groups(probe, bar)
        blocks = [_smallest_blocks(probe, group) if granularity == "filter" else [None] for group in groups]
    if not groups:
        raise ValueError(
            f"no scale-invariant group found in {type(model).__name__}: none of its {len(probe.names)} "
            "trainable tensors is followed by a normalisation that undoes its scale. Put BatchNorm, "
            "LayerNorm, ... after the weights, or leave out what needs scale invariance"
        )
    return [_group(probe, columns, rows) for columns, slices in zip(groups, blocks, strict=True) for rows in slices]


def _group(probe: Probe, columns: Sequence[int], rows: slice | None) -> Group:
    names = tuple(probe.names[column] for column in columns)
    name = names[0] + (f"+{len(names) - 1}" if len(names) > 1 else "")
    if rows is not None:
        name += f"[{rows.start}]" if rows.stop == rows.start + 1 else f"[{rows.start}:{rows.stop}]"
    return Group(name, tuple(probe.parameters[column] for column in columns), rows, names)


def _tensor_groups(probe: Probe, bar: tqdm) -> list[tuple[int, ...]]:
    """Return groups of whole tensors, as columns: singles first, then the null space of what is left."""
    everything = range(len(probe.names))
    euler, size = _euler_rows(probe, everything, _FEW_ROWS, 0, bar)
    scales = size.square().mean(0).sqrt()
    influential = scales > _NO_INFLUENCE * scales.max()
    single = influential & (euler.abs().amax(0) <= _TOLERANCE * scales)
    groups: list[tuple[int, ...]] = [(column,) for column in everything if single[column]]
    rest = [column for column in everything if influential[column] and not single[column]]
    more = len(rest) + _SPARE_ROWS - _FEW_ROWS if len(rest) > 1 else 0
    bar.total = _FEW_ROWS + more
    bar.refresh()
    if more:
        new_euler, new_size = _euler_rows(probe, rest, more, _FEW_ROWS, bar)
        euler, size = torch.cat([euler[:, rest], new_euler]), torch.cat([size[:, rest], new_size])
        found = minimal_groups(euler, size.square().mean(0).sqrt(), _TOLERANCE)
        groups += [tuple(rest[column] for column in columns) for columns in found]
    return _confirmed(probe, sorted(groups))


def _confirmed(probe: Probe, groups: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the groups that keep the outputs when scaled, each by every one of the factors."""
    plain = _scaled_outputs(probe, {})
    # All at once first, each group by its own factors: forwards are what a large model takes long for.
    generator = torch.Generator().manual_seed(len(groups))
    orders = [torch.randperm(len(_FACTORS), generator=generator).tolist() for _ in groups]
    for turn in range(len(_FACTORS)):
        pairs = zip(orders, groups, strict=True)
        factors = {column: _FACTORS[order[turn]] for order, columns in pairs for column in columns}
        if not _equal(plain, _scaled_outputs(probe, factors)):
            break
    else:
        return groups
    return [
        columns
        for columns in groups
        if all(_equal(plain, _scaled_outputs(probe, dict.fromkeys(columns, factor))) for factor in _FACTORS)
    ]


def _gradients(probe: Probe, columns: Sequence[int], count: int, first: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield pairs (∂f/∂w, w) of these tensors for ``count`` random functions f, inputs from ``first`` on.

    Raises:
        ValueError: If no output depends on the trainable parameters.
    """
    index = first
    while count > 0:
        leaves = [value.requires_grad_(column in columns) for column, value in enumerate(probe.values(index))]
        outputs = [output for output in probe.run(index, leaves) if output.requires_grad]
        if not outputs:
            raise ValueError("no output of the model depends on its trainable parameters")
        functions = probe.cotangents(index, outputs, min(_FUNCTIONS_PER_INPUT, count))
        wanted = [leaves[column] for column in columns]
        for number, cotangents in enumerate(functions, start=1):
            gradients = torch.autograd.grad(
                outputs,
                wanted,
                cotangents,
                retain_graph=number < len(functions),
                allow_unused=True,
                materialize_grads=True,
            )
            yield [(gradient, leaf.detach()) for gradient, leaf in zip(gradients, wanted, strict=True)]
        count -= len(functions)
        index += 1


def _euler_rows(probe: Probe, columns: Sequence[int], count: int, first: int, bar: tqdm) -> tuple[Tensor, Tensor]:
    """Return matrices (count, columns) of ⟨∂f/∂w, w⟩ and of ‖∂f/∂w‖‖w‖, each row over its largest size."""
    euler, size = [], []
    for pairs in _gradients(probe, columns, count, first):
        euler.append(torch.stack([(g.conj() * w).real.sum() for g, w in pairs]).cpu())
        size.append(torch.stack([g.norm() * w.norm() for g, w in pairs]).cpu())
        bar.update()
    largest = torch.stack(size).amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.stack(euler) / largest, torch.stack(size) / largest


def _scaled_outputs(probe: Probe, factors: Mapping[int, float | Tensor]) -> list[Tensor]:
    """Return outputs with the tensors in these columns multiplied by these factors."""
    with torch.no_grad():
        return probe.run(0, [value * factors.get(column, 1.0) for column, value in enumerate(probe.values(0))])


def _equal(outputs: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    pairs = zip(outputs, others, strict=True)
    return all(bool((a - b).abs().max() <= _TOLERANCE * a.abs().max()) for a, b in pairs)


def _smallest_blocks(probe: Probe, columns: Sequence[int]) -> Sequence[slice | None]:
    """Return the smallest equal blocks of rows that are scale-invariant, jointly over a group's tensors."""
    values = [probe.parameters[column] for column in columns]
    heights = {len(value) if value.dim() else 0 for value in values}
    height = heights.pop()
    if heights or not height:
        return [None]
    euler = torch.zeros(_FEW_ROWS, height, dtype=torch.float64)
    size = torch.zeros_like(euler)
    for row, pairs in enumerate(_gradients(probe, columns, _FEW_ROWS, 0)):
        for g, w in pairs:
            g, w = g.reshape(height, -1), w.reshape(height, -1)
            euler[row] += (g.conj() * w).real.sum(1).cpu()
            size[row] += (g.norm(dim=1) * w.norm(dim=1)).cpu()
    scale = size.amax()
    generator = torch.Generator().manual_seed(height)
    for block in (block for block in range(1, height) if height % block == 0):
        sums = euler.view(_FEW_ROWS, -1, block).sum(2).abs()
        if sums.max() > _TOLERANCE * scale:
            continue
        # One factor a block, all at once: far cheaper than block by block, and as telling.
        factors = torch.rand(height // block, generator=generator, dtype=torch.float64) + 0.5
        per_row = factors.repeat_interleave(block)
        by_column = {
            column: per_row.to(value.device).view(-1, *[1] * (value.dim() - 1))
            for column, value in zip(columns, values, strict=True)
        }
        if _equal(_scaled_outputs(probe, {}), _scaled_outputs(probe, by_column)):
            return [slice(start, start + block) for start in range(0, height, block)]
    return [None]
