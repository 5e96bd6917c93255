"""Norms accurate enough to live on a sphere, without host synchronisation; of sharded tensors, too."""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor

from lit_sphere.optim.granularity import Granularity
from lit_sphere.optim.shards import ShardSums, groups_across_rows, is_distributed, local_parts

# On a CPU torch adds up float32 squares in float32: a ResNet-18 convolution of 2.4 million elements is off by
# 4e-5 as a whole, by 2e-7 in blocks of this size. (float64 accumulation takes thirty times as long.)
_BLOCK = 2**16


def squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Squared Frobenius norm of each tensor.

    Args:
        tensors: At least one floating-point tensor, all on one device. Of DTensors all processes must call this.

    Returns:
        float64 tensor of shape (len(tensors),) on their device. Relative error about 2e-7 for float32.
    """
    if any(map(is_distributed, tensors)):
        return ShardSums(tensors)(squared_norms(local_parts(tensors)))
    blocks, owners = _blocks(tensors)
    squares = _norms(blocks).double().square()
    if len(blocks) == len(tensors):
        return squares
    index = torch.tensor(owners, device=squares.device)
    return squares.new_zeros(len(tensors)).index_add_(0, index, squares)


def joint_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Norm of all tensors together, as of one vector.

    Args:
        tensors: At least one floating-point tensor, all on one device. Of DTensors all processes must call this.

    Returns:
        float64 scalar tensor on their device. Relative error about 2e-7 for float32.
    """
    if any(map(is_distributed, tensors)):
        return squared_norms(tensors).sum().sqrt()
    norm: Tensor = torch.linalg.vector_norm(_norms(_blocks(tensors)[0]), dtype=torch.float64)
    return norm


def block_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Norms of the tensors' blocks, for those who put off the rest of the work.

    Args:
        tensors: At least one floating-point tensor, all on one device.

    Returns:
        Tensor of shape (blocks,) on their device; :func:`block_owners` says which tensor each belongs to.
    """
    return _norms(_blocks(tensors)[0])


def block_owners(tensors: Sequence[Tensor]) -> list[int]:
    """Give the tensor that each block of :func:`block_norms` belongs to.

    Args:
        tensors: As there.

    Returns:
        Index of the tensor of each block, in ascending order.
    """
    return _blocks(tensors)[1]


def row_norms(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Norm of each row along the first dimension (each filter).

    Args:
        tensor: Shape (rows, ...), at least two dimensions, floating-point.
        like: A DTensor, if ``tensor`` is a local part of one that is distributed like it; all processes must call this.

    Returns:
        Shape (rows, 1, ...), which broadcasts with the tensor; its type, or float32 for half precision. Relative
        error about 2e-7 for float32.
    """
    if like is not None and is_distributed(like):
        held = row_norms(tensor)
        for group in groups_across_rows(like):
            squares = held.double().square()
            dist.all_reduce(squares, group=group)
            held = squares.sqrt().to(held.dtype)
        return held
    dims, wide = tuple(range(1, tensor.ndim)), _wide([tensor])
    if tensor.device.type != "cpu" or tensor[:1].numel() <= _BLOCK:
        norms: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True, dtype=wide)
        return norms
    blocks = [torch.linalg.vector_norm(block, dim=1, dtype=wide) for block in tensor.flatten(1).split(_BLOCK, 1)]
    joined = torch.linalg.vector_norm(torch.stack(blocks), dim=0, dtype=torch.float64)
    rows: Tensor = joined.to(blocks[0].dtype).view(-1, *(1 for _ in dims))
    return rows


def cell_norms(parts: Sequence[Tensor], granularity: Granularity, params: Sequence[Tensor]) -> list[Tensor]:
    """Norms of what has a sphere or an accumulator of its own: for each tensor one that broadcasts with it.

    Args:
        parts: Tensors; of sharded parameters, the parts of tensors that this process holds.
        granularity: What has one: all tensors together, each tensor, or each filter.
        params: The parameters, in whose shapes and shards the tensors are.

    Returns:
        A norm, or one for each row that this process holds, for each tensor, of as many dimensions; float32 at least.
    """
    if granularity == "filter":
        return [row_norms(t, p) for t, p in zip(parts, params, strict=True)]
    squares = squared_norms(parts)
    if any(map(is_distributed, params)):
        squares = ShardSums(params)(squares)
    norms = (squares.sum().expand(len(parts)) if granularity == "joint" else squares).sqrt().to(wide_type(parts))
    return [norm.view((1,) * t.ndim) for norm, t in zip(norms.unbind(), parts, strict=True)]


def wide_type(tensors: Sequence[Tensor]) -> torch.dtype:
    """Type in which to work with tensors: theirs, but float32 at least."""
    return reduce(torch.promote_types, {t.dtype for t in tensors}, torch.float32)


@torch.no_grad()
def _norms(blocks: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(blocks, 2, dtype=_wide(blocks)))


def _wide(tensors: Sequence[Tensor]) -> torch.dtype | None:
    """At least float32 with half precision, in which norms would be rounded; None, the tensors' own type, without."""
    types = {t.dtype for t in tensors}
    if types.isdisjoint((torch.float16, torch.bfloat16)):
        return None
    return reduce(torch.promote_types, types, torch.float32)


@torch.no_grad()
def _blocks(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Split large tensors on a CPU, where sums are not blocked; give each block's tensor by its index."""
    blocks: list[Tensor] = []
    owners: list[int] = []
    for i, t in enumerate(tensors):
        parts = [t] if t.numel() <= _BLOCK or t.device.type != "cpu" else list(_flat(t).split(_BLOCK))
        blocks += parts
        owners += [i] * len(parts)
    return blocks, owners


def _flat(t: Tensor) -> Tensor:
    """All elements in one dimension, in any order, without a copy where the memory is dense."""
    if t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last):
        t = t.permute(0, 2, 3, 1)
    return t.reshape(-1)
