"""Groups of parameters cut into atoms: the parts over which sums are taken, each in one group."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_sphere.effective.sources import HALF
from lit_sphere.groups import Group
from lit_sphere.optim import block_norms, block_owners
from lit_sphere.optim.shards import ShardSums, first_row, is_distributed, local_parts


class Atoms:
    """Rows of tensors where a group consists of rows, whole tensors (for norms, blocks of them) otherwise.

    Of sharded tensors (FSDP2) each process looks at its own parts, :meth:`local`, and :meth:`norms` are added up over
    all processes, :meth:`products` when :meth:`added_up` is called: by one collective each. All processes must call.

    Args:
        groups: Groups as :func:`~lit_sphere.groups.find_groups` gives them, disjoint, at least one.
        by_row: Cut all tensors into rows, even if all groups are of whole tensors.

    Attributes:
        params: The tensors of the groups, each once.
        by_row: Whether atoms are rows.
        groups: Number of groups.
    """

    def __init__(self, groups: Sequence[Group], by_row: bool = False) -> None:
        self.by_row = by_row or any(group.rows is not None for group in groups)
        self.groups = len(groups)
        self.params: list[Tensor] = []
        owners: list[list[int]] = []  # per parameter, the group of each of its rows, or its own
        index: dict[Tensor, int] = {}
        for i, group in enumerate(groups):
            for p in group.parameters:
                if p not in index:
                    index[p] = len(self.params)
                    self.params.append(p)
                    owners.append([-1] * (len(p) if self.by_row and p.ndim else 1))
                mine = owners[index[p]]
                rows = range(*(group.rows or slice(None)).indices(len(mine)))
                mine[rows.start : rows.stop] = [i] * len(rows)
        device = self.params[0].device
        self._counts = [len(own) for own in owners]
        parts = [(n, i) for n, own in enumerate(owners) for i in own]
        self._param_of = torch.tensor([n for n, _ in parts], device=device)
        self._owner = torch.tensor([i for _, i in parts], device=device)
        # Norms come in blocks of tensors, so that their sums can wait.
        self._sums = ShardSums(self.params, [n for n, _ in parts]) if any(map(is_distributed, self.params)) else None
        by_part = self.by_row or self._sums is not None
        blocks = [] if by_part else block_owners(self.params)
        blocked = torch.tensor(blocks, dtype=torch.long, device=device)
        self._block_param_of = self._param_of if by_part else blocked
        self._block_owner = self._owner if by_part else self._owner[blocked]
        if self._sums is not None:
            self._places, self._block_places = self._places_of_parts(device)
        self.sizes = torch.tensor(
            [p.numel() / len(own) for p, own in zip(self.params, owners, strict=True) for _ in own],
            dtype=torch.float64,
            device=device,
        )

    @property
    def local(self) -> list[Tensor]:
        """Parts of ``params`` that this process holds; themselves where they are not sharded."""
        return local_parts(self.params)

    @property
    def sharded(self) -> bool:
        """Whether a process holds but parts of some tensors."""
        return self._sums is not None

    def _places_of_parts(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Numbers of the atoms that this process holds parts of: of each of its rows or tensors, and of blocks."""
        local, rows, start = self.local, list[int](), 0
        if not self.by_row:
            return torch.arange(len(local), device=device), torch.tensor(block_owners(local), device=device)
        for p, part, count in zip(self.params, local, self._counts, strict=True):
            first = start + first_row(p)
            rows += range(first, first + (len(part) if part.ndim else 1))
            start += count
        places = torch.tensor(rows, dtype=torch.long, device=device)
        return places, places

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Give the norms of the atoms (of blocks of them, if they are whole tensors) of one or more lists.

        Args:
            tensors: Tensors shaped as :attr:`local`, once or several times.

        Returns:
            Shape (lists · atoms,), in the tensors' own precision; of sharded ones in float64, complete.
        """
        norms = self._norms_of_parts(tensors)
        if self._sums is None:
            return norms
        squares = norms.double().square().view(-1, len(self._block_places))
        none = squares.new_zeros(len(squares), len(self._owner))
        return self._sums(none.index_add_(-1, self._block_places, squares)).sqrt().flatten()

    def _norms_of_parts(self, tensors: Sequence[Tensor]) -> Tensor:
        if not self.by_row:
            return block_norms(tensors)
        wide = _wide(tensors)
        return torch.cat(
            [torch.linalg.vector_norm(t.flatten(1), dim=1) if t.ndim > 1 else t.abs().reshape(-1) for t in wide]
        )

    def products(self, these: Sequence[Tensor], those: Sequence[Tensor]) -> Tensor:
        """Give the inner products of the atoms of two lists.

        Args:
            these: Tensors shaped as :attr:`local`.
            those: As ``these``.

        Returns:
            float64 tensor of shape (atoms,); of sharded tensors this process's share, for :meth:`added_up`.
        """
        products = self._products_of_parts(these, those)
        if self._sums is None:
            return products
        return products.new_zeros(len(self._owner)).index_add_(0, self._places, products)

    def added_up(self, *products: Tensor) -> tuple[Tensor, ...]:
        """Add products up over all processes, at once.

        Args:
            *products: As :meth:`products` gives them, of all ``params``.

        Returns:
            As many tensors of shape (atoms,); the same ones where nothing is sharded.
        """
        return products if self._sums is None else self._sums(torch.stack(products)).unbind()

    def _products_of_parts(self, these: Sequence[Tensor], those: Sequence[Tensor]) -> Tensor:
        # Sums of products, unlike norms, do not care in which order the elements lie in memory.
        products = torch._foreach_mul(_wide(these), _wide(those))
        if not self.by_row:
            return torch.stack([t.sum() for t in products]).double()
        return torch.cat([t.sum(tuple(range(1, t.ndim))) if t.ndim > 1 else t.reshape(-1) for t in products]).double()

    def differences(self, these: Sequence[Tensor], those: Sequence[Tensor]) -> list[Tensor]:
        """Subtract one list from another, without rounding to half precision.

        Args:
            these: Tensors shaped as ``params``.
            those: As ``these``.

        Returns:
            As many tensors, for :meth:`products`.
        """
        return list(torch._foreach_sub(_wide(these), _wide(those)))

    def carriers(self, numbers: Sequence[int]) -> Tensor:
        """Find where :meth:`products` of some of ``params`` stand among the norms of all.

        Args:
            numbers: Of these parameters, ascending.

        Returns:
            For each product the number of its row, or of its tensor's first block.
        """
        among = torch.tensor(numbers, device=self._owner.device)
        if self.by_row:
            return torch.isin(self._block_param_of, among).nonzero().squeeze(1)
        return torch.searchsorted(self._block_param_of, among)

    def per_atom(self, values: Sequence[float | Tensor], blocks: bool) -> Tensor:
        """Spread values of the tensors over their atoms.

        Args:
            values: A number, or where atoms are rows a tensor of shape (rows, ...), for each of ``params``.
            blocks: Over the blocks of :meth:`norms`.

        Returns:
            float64 tensor of shape (atoms,).
        """
        param_of = self._block_param_of if blocks else self._param_of
        device = param_of.device
        if any(isinstance(value, Tensor) for value in values):
            spread = [torch.as_tensor(v, dtype=torch.float64, device=device) for v in values]
            return torch.cat([v.reshape(-1).expand(n) for v, n in zip(spread, self._counts, strict=True)])
        return torch.tensor(values, dtype=torch.float64).to(device, non_blocking=True)[param_of]

    def owner(self, blocks: bool) -> Tensor:
        """Give the group of each atom.

        Args:
            blocks: Of the blocks of :meth:`norms`.

        Returns:
            Shape (atoms,), −1 for rows in no group.
        """
        return self._block_owner if blocks else self._owner


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.float() if t.dtype in HALF else t for t in tensors]
