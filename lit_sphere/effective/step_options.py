"""What an optimizer's options say of each atom of the groups: its rates and its sphere."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_sphere.effective.atoms import Atoms
from lit_sphere.effective.sources import rate_of
from lit_sphere.groups import Group
from lit_sphere.optim.granularity import sphere_granularity
from lit_sphere.optim.shards import whole


class StepOptions(NamedTuple):
    """Options of a step, by atom; float64 but for numbers and flags.

    Attributes:
        eta: η, shape (atoms,).
        shrink: −ηλ, the same shape.
        sphere_of: Number of the sphere of each atom; None where one projection at most acts on all.
        projected: Which of these spheres project; None with ``sphere_of``.
        split: ⟨x, ∇⟩ of single tensors count: those of a group have several options, or it is not scale-invariant.
    """

    eta: Tensor
    shrink: Tensor
    sphere_of: Tensor | None
    projected: Tensor | None
    split: bool


class OptionsOfAtoms:
    """Gives the :class:`StepOptions` of an optimizer, prepared as far as they do not change.

    Args:
        optimizer: The optimizer.
        groups: The groups.
        atoms: They, cut into atoms.
        blocks: The options are those of the blocks of :meth:`Atoms.norms`, for steps worked out from gradients.
        always_split: ⟨x, ∇⟩ need not vanish over a group, whatever the options.

    Attributes:
        group_of: Number of the optimizer's parameter group of each of ``atoms.params``.
        used: These numbers, each once, ascending.
        may_be_split: Numbers of the parameters, ascending, whose groups have parts in several parameter groups or on
            several spheres. ⟨x, ∇⟩ vanishes in sum over a group, not over such a part.
        spheres_at_most: Above every number in :attr:`StepOptions.sphere_of`.
    """

    def __init__(
        self, optimizer: Optimizer, groups: Sequence[Group], atoms: Atoms, blocks: bool, always_split: bool = False
    ) -> None:
        self._optimizer, self._atoms, self._blocks, self._always_split = optimizer, atoms, blocks, always_split
        # Indices, because a restored optimizer holds other dictionaries.
        trained = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.group_of = [trained[p] for p in atoms.params]
        self.used = sorted(set(self.group_of))
        owner = atoms.owner(blocks)
        self.kept = None if bool((owner >= 0).all()) else (owner >= 0).nonzero().squeeze(1)
        self.owner = owner if self.kept is None else owner[self.kept]
        self.spheres_at_most = len(owner) + 1 + max(self.used)
        self._parts: list[list[int]] = []  # of groups that may be split: their parameter groups
        parts_of: set[Tensor] = set()
        for group in groups if blocks else []:
            numbers = sorted({trained[p] for p in group.parameters})
            if len(numbers) > 1 or (
                any(has_filter_spheres(optimizer.param_groups[i]) for i in numbers) and _number_of_rows(group) > 1
            ):
                self._parts.append(numbers)
                parts_of.update(group.parameters)
        self.may_be_split = [n for n, p in enumerate(atoms.params) if p in parts_of or (blocks and always_split)]
        self._key: tuple[Any, ...] | None = None
        self._now: StepOptions | None = None

    def now(self) -> StepOptions:
        """Give the present options; the same object until one of them changes.

        Returns:
            The options, of atoms in groups.
        """
        groups = self._optimizer.param_groups
        key = tuple((*rate_of(groups[i]), sphere_granularity(groups[i])) for i in self.used)
        if self._now is None or self._key != key:
            self._key, self._now = key, self._read(dict(zip(self.used, key, strict=True)))
        return self._now

    def _read(self, options: dict[int, tuple[float, float, str | None]]) -> StepOptions:
        rates: list[float | Tensor] = []
        for p, i in zip(self._atoms.params, self.group_of, strict=True):
            eta, _, granularity = options[i]
            own = granularity == "filter"
            rates.append(eta * whole(self._optimizer.state[p]["radius"]).double().square() if own else eta)
        shrinks = [options[i][1] for i in self.group_of]
        etas, shrunk = (self._in_groups(self._atoms.per_atom(values, self._blocks)) for values in (rates, shrinks))
        return StepOptions(
            etas, shrunk, *self._spheres([options[i][2] for i in self.group_of]), self._is_split(options)
        )

    def _spheres(self, granularities: list[str | None]) -> tuple[Tensor | None, Tensor | None]:
        """Number the sphere of each atom, and flag those that project; nothing where at most one is involved."""
        if not self._blocks or not any(granularities) or (len(self.used) == 1 and "filter" not in granularities):
            return None, None
        numbers = self._atoms.per_atom([float(i) for i in self.group_of], True).long()
        of_filters, projected = (
            self._atoms.per_atom([float(flag) for flag in flags], True) > 0
            for flags in ([each == "filter" for each in granularities], [each is not None for each in granularities])
        )
        rows = torch.arange(len(numbers), device=numbers.device) + 1 + max(self.used)
        return self._in_groups(torch.where(of_filters, rows, numbers)), self._in_groups(projected)

    def _is_split(self, options: dict[int, tuple[float, float, str | None]]) -> bool:
        if self._always_split:
            return True
        for numbers in self._parts:
            # Each sphere is projected by a factor of its own, whatever its options.
            different = {(*options[i], i if options[i][2] else None) for i in numbers}
            if len(different) > 1 or any(options[i][2] == "filter" for i in numbers):
                return True
        return False

    def _in_groups(self, values: Tensor) -> Tensor:
        return values if self.kept is None else values[self.kept]


def _number_of_rows(group: Group) -> int:
    return sum(len(range(*(group.rows or slice(None)).indices(len(p)))) for p in group.parameters if p.ndim)


def has_filter_spheres(param_group: dict[str, Any]) -> bool:
    """Return whether a parameter group of ``SphereSGD`` is, or was before it left them, on spheres of filters.

    Args:
        param_group: Of any optimizer.

    Returns:
        Whether it is.
    """
    return "filter" in (sphere_granularity(param_group), param_group.get("left_granularity"))
