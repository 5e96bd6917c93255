"""Tensors of which each process holds a part (DTensors, as of FSDP2): their local parts, and sums over all of them."""

from collections.abc import Sequence
from itertools import compress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor; to import its class, to ask by that, takes half a second."""
    return hasattr(tensor, "placements")


@torch.no_grad()
def local_parts(tensors: Sequence[Tensor], like: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Give the parts of tensors that this process holds; what is changed in them in place is changed in the tensors.

    Args:
        tensors: Distributed or not.
        like: Tensors of the same shapes that may lie in other shards, which are then taken: gradients of tensor
            parallelism are not always distributed as their parameters are.

    Returns:
        The local part of each DTensor, detached; other tensors as they are.
    """
    if not any(map(is_distributed, tensors)):
        return list(tensors)
    if like is not None:
        tensors = [_as(t, other) for t, other in zip(tensors, like, strict=True)]
    return [t.to_local() if is_distributed(t) else t for t in tensors]  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor; all processes that hold a part of it must call this.

    Args:
        tensor: Distributed or not.

    Returns:
        For a DTensor a plain copy of it, detached, on the device of its processes; another tensor as it is.
    """
    if not is_distributed(tensor):
        return tensor
    distributed: Any = tensor.detach()
    if distributed.device.type != distributed.device_mesh.device_type:  # offloaded
        distributed = distributed.to(distributed.device_mesh.device_type)
    gathered: Tensor = distributed.full_tensor()
    return gathered.clone() if all(p.is_replicate() for p in distributed.placements) else gathered


class ShardSums:
    """Adds up what each process worked out of its parts of some tensors: all of it at once, by one collective.

    (One for each set of processes among which tensors are sharded; FSDP2 has one set. Replicas count once.)

    Args:
        tensors: Distributed or not.
        owners: For each value the number of its tensor; None for one value of each.

    Raises:
        ValueError: If a tensor is itself a sum that has not been added up.
    """

    def __init__(self, tensors: Sequence[Tensor], owners: Sequence[int] | None = None) -> None:
        self._owners = range(len(tensors)) if owners is None else owners
        self._device: str | None = None
        members: dict[Any, set[int]] = {}  # of each process group: the tensors that are sharded in it
        known: dict[Any, list[Any]] = {}
        for number, tensor in enumerate(tensors):
            if not is_distributed(tensor):
                continue
            mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
            layout = (id(mesh), placements)
            if layout not in known:
                known[layout] = _groups_of(mesh, placements)
                self._device = mesh.device_type
            for group in known[layout]:
                members.setdefault(group, set()).add(number)
        self._steps = [(group, None if len(inside) == len(tensors) else inside) for group, inside in members.items()]
        self._masks: dict[tuple[int, torch.device], Tensor] = {}

    def __call__(self, values: Tensor) -> Tensor:
        """Add up; all processes must call this.

        Args:
            values: This process's, shape (..., values).

        Returns:
            New tensor of the same shape, type and device, the same on all processes; values of tensors that each
            process holds as a whole are as given.
        """
        for number, (group, inside) in enumerate(self._steps):
            mask = None if inside is None else self._mask(number, inside, values.device)
            part = values if mask is None else torch.where(mask, values, 0)
            # Parameters may be offloaded to a CPU, where the processes do not talk.
            total = part.clone() if part.device.type == self._device else part.to(self._device)
            dist.all_reduce(total, group=group)
            total = total.to(values.device)
            values = total if mask is None else torch.where(mask, total, values)
        return values

    def _mask(self, number: int, inside: set[int], device: torch.device) -> Tensor:
        key = (number, device)
        if key not in self._masks:
            self._masks[key] = torch.tensor([n in inside for n in self._owners]).to(device, non_blocking=True)
        return self._masks[key]


def first_row(tensor: Tensor) -> int:
    """Give the number, in the whole tensor, of the first row (along dimension 0) of this process's part."""
    if not is_distributed(tensor) or not tensor.ndim:
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)  # type: ignore[attr-defined]
    return int(offset[0])


def local_slices(tensor: Tensor) -> tuple[slice, ...]:
    """Give where, in the whole tensor, this process's part of it lies."""
    if not is_distributed(tensor):
        return (slice(None),) * tensor.ndim
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)  # type: ignore[attr-defined]
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


def distribute_rows(rows: Tensor, like: Tensor) -> Tensor:
    """Make a tensor of one value for each row of another, distributed as its rows are.

    Args:
        rows: Values of the rows that this process holds, shape (local rows, 1, …).
        like: The other tensor.

    Returns:
        DTensor of shape (rows, 1, …) where the other is one, ``rows`` otherwise.
    """
    if not is_distributed(like):
        return rows
    from torch.distributed.tensor import DTensor, Replicate

    placements = [p if not p.is_replicate() and p.dim == 0 else Replicate() for p in like.placements]  # type: ignore[attr-defined]
    shape, stride = (len(like), *rows.shape[1:]), (1,) * rows.ndim
    mesh = like.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)


def groups_across_rows(tensor: Tensor) -> list[Any]:
    """Give the process groups among which the rows of a tensor are cut, along other dimensions than the first."""
    if not is_distributed(tensor):
        return []
    across = [not p.is_replicate() and p.dim != 0 for p in tensor.placements]  # type: ignore[attr-defined]
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    return [mesh.get_group(dim) for dim in compress(range(mesh.ndim), across)]


def _groups_of(mesh: Any, placements: Sequence[Any]) -> list[Any]:
    """Process groups among which a tensor is sharded."""
    if any(placement.is_partial() for placement in placements):
        raise ValueError("a DTensor that is a partial sum has no norm yet; redistribute it first")
    return [mesh.get_group(dim) for dim, placement in enumerate(placements) if not placement.is_replicate()]


def _as(tensor: Tensor, like: Tensor) -> Tensor:
    if not is_distributed(tensor) or tensor.placements == like.placements:  # type: ignore[attr-defined]
        return tensor
    moved: Tensor = tensor.redistribute(placements=like.placements)  # type: ignore[attr-defined]
    return moved
