"""Keeps the norms of groups of parameters, whatever an optimizer does to them."""

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_sphere.optim.norms import squared_norms
from lit_sphere.optim.shards import local_parts

KEPT_NORM = "kept_norm"
"""Option of a parameter group of ``torch.optim.SGD``: the norm of a sphere that it cannot keep by itself."""

_KEPT: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # by how many keepers


class NormKeeper:
    """Rescales groups of parameters to fixed norms; after each step of an optimizer, once attached to it.

    No host synchronisation, and no loop over parameters. Of sharded parameters (FSDP2) all processes must make and call
    it; their norms are those of the whole. Only the weights are rescaled: momentum buffers and second
    moments stay as the optimizer left them.

    Args:
        groups: Parameters of each group; a group is rescaled as one vector. Groups must not overlap.
        norms: Norm ρ > 0 of each group; None for those that they have now.

    Raises:
        ValueError: If there is no group, a parameter is in two, or a norm is not positive and finite.

    Attributes:
        norms: The norms that are kept.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> keeper = NormKeeper([[weight]])
        >>> keeper.attach(optimizer)
        >>> weight.grad = torch.tensor([-4.0, 3.0])
        >>> optimizer.step()
        >>> print(round(weight.norm().item(), 6))
        5.0
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]], norms: Sequence[float] | None = None) -> None:
        self._params = [p for group in groups for p in group]
        if not self._params or len(set(map(id, self._params))) < len(self._params):
            raise ValueError("NormKeeper: give at least one parameter, and none twice")
        device = self._params[0].device
        self._owner = torch.tensor([i for i, group in enumerate(groups) for _ in group], device=device)
        self._count = len(groups)
        self.norms: list[float] = self._measure().tolist() if norms is None else [float(norm) for norm in norms]
        if len(self.norms) != self._count or not all(math.isfinite(norm) and norm > 0 for norm in self.norms):
            raise ValueError(
                f"NormKeeper: {self._count} positive and finite norms are needed, got {self.norms}; "
                "are these weights initialised?"
            )
        self._wanted = torch.tensor(self.norms, dtype=torch.float64, device=device)
        self._handles: list[Any] = []
        self._optimizers: list[Optimizer] = []

    def _measure(self) -> Tensor:
        squares = squared_norms([p.detach() for p in self._params])
        return squares.new_zeros(self._count).index_add_(0, self._owner, squares).sqrt()

    @torch.no_grad()
    def rescale(self) -> None:
        """Bring all groups to their norms."""
        scales = (self._wanted / self._measure())[self._owner]
        params = local_parts(self._params)
        dtypes = {p.dtype for p in params}
        if len(dtypes) == 1:
            torch._foreach_mul_(params, list(scales.to(params[0].dtype).unbind()))
        else:
            torch._foreach_mul_(params, [s.to(p.dtype) for s, p in zip(scales, params, strict=True)])

    def attach(self, *optimizers: Optimizer) -> None:
        """Rescale after each step of these optimizers, until :meth:`detach`."""
        self._handles += [optimizer.register_step_post_hook(self._after_step) for optimizer in optimizers]
        self._optimizers += optimizers
        for optimizer in optimizers:
            _KEPT[optimizer] = _KEPT.get(optimizer, 0) + 1

    def detach(self) -> None:
        """Leave the optimizers alone again."""
        for handle in self._handles:
            handle.remove()
        for optimizer in self._optimizers:
            _KEPT[optimizer] -= 1
        self._handles, self._optimizers = [], []

    @staticmethod
    def keeps(optimizer: Optimizer) -> bool:
        """Return whether a keeper is attached to an optimizer."""
        return _KEPT.get(optimizer, 0) > 0

    def _after_step(self, *args: Any) -> None:
        self.rescale()
