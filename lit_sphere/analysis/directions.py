"""How far apart the directions of two sets of scale-invariant weights are, group by group."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_sphere.groups import Group


class Directions:
    """Compares the directions of two sets of weights, each group by itself (SP §5 compares filters).

    Args:
        groups: Groups as :func:`~lit_sphere.groups.find_groups` gives them, disjoint, at least one.

    Attributes:
        params: The tensors of the groups, each once.
        groups: Number of groups.

    Example:
        >>> from lit_sphere.groups import Group
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
        >>> filters = [Group(f"weight[{i}]", (weight,), slice(i, i + 1)) for i in range(2)]
        >>> Directions(filters).distances([weight], [torch.tensor([[4.0, 3.0], [5.0, 0.0]])])
        tensor([0.0400, 0.0000], dtype=torch.float64)
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = len(groups)
        by_row = any(group.rows is not None for group in groups)
        owners: dict[Tensor, Tensor] = {}
        for i, group in enumerate(groups):
            for p in group.parameters:
                rows = len(p) if by_row and p.ndim else 1
                own = owners.setdefault(p, torch.full((rows,), -1))
                own[group.rows or slice(None)] = i
        self.params = list(owners)
        self._rows = [len(own) for own in owners.values()]
        owner = torch.cat(list(owners.values()))
        # Rows in no group are counted as one of their own, at the end.
        self._owner = torch.where(owner < 0, self.groups, owner).to(self.params[0].device)

    def distances(self, these: Sequence[Tensor], those: Sequence[Tensor]) -> Tensor:
        """Give 1 − cos of the angle between two weights, for each group.

        As ½‖u − v‖² of the unit vectors: 1 − ⟨u, v⟩ itself would lose all digits below 1e-16.

        Args:
            these: Tensors shaped as ``params``.
            those: As ``these``.

        Returns:
            float64 tensor of shape (groups,), in [0, 2]; NaN where a norm is zero.
        """
        one, other = self._units(these), self._units(those)
        return self._sums([(u - v).square().sum(1) for u, v in zip(one, other, strict=True)])[:-1] / 2

    def _units(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Rows over the norm of their group, in float64."""
        rows = [t.detach().double().reshape(n, -1) for t, n in zip(tensors, self._rows, strict=True)]
        norms = self._sums([each.square().sum(1) for each in rows]).sqrt()[self._owner]
        return [each / norm[:, None] for each, norm in zip(rows, norms.split(self._rows), strict=True)]

    def _sums(self, of_rows: Sequence[Tensor]) -> Tensor:
        """Sums over the rows of each group, and of those in none."""
        sums = torch.zeros(self.groups + 1, dtype=torch.float64, device=self._owner.device)
        return sums.index_add_(0, self._owner, torch.cat(list(of_rows)))
