"""Euler's identity: inner products of gradients and weights, which vanish where a function does not scale (TR §2)."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lit_sphere.groups.precision import Precision
from lit_sphere.groups.probe import Probe

_FUNCTIONS = 4
_FUNCTIONS_PER_INPUT = 2
_ROWS_AT_ONCE = 4096


class EulerProducts:
    """⟨∂f/∂w, w⟩ of each row of each trainable tensor, for random functions f of a model's outputs.

    Args:
        names: Names of the tensors.
        precision: In which the products were computed.
        products: For each tensor an array (functions, rows); of one row for scalars.
        sizes: As ``products``: ‖∂f/∂w‖‖w‖.

    Attributes:
        influential: Whether the outputs depend on a tensor, for each.
        sums: Shape (functions, tensors): the products over whole tensors, each function's over its largest size.
        scales: Root mean square of ‖∂f/∂w‖‖w‖ over the functions, for each tensor, in the same units.
    """

    FORWARDS = _FUNCTIONS * 2 + _FUNCTIONS // _FUNCTIONS_PER_INPUT
    """Time of the measurement, in forwards."""

    def __init__(
        self, names: Sequence[str], precision: Precision, products: list[np.ndarray], sizes: list[np.ndarray]
    ) -> None:
        self._names, self._tolerance, self._products, self._sizes = names, precision.tolerance, products, sizes
        self._no_influence = precision.no_influence
        self.sums = np.stack([each.sum(1) for each in products], 1)  # (functions, tensors)
        self._norms = np.stack([np.sqrt(np.square(each).sum(1)) for each in sizes], 1)
        largest = np.maximum(self._norms.max(1, keepdims=True), np.finfo(float).tiny)
        self.sums, self._norms = self.sums / largest, self._norms / largest
        self._products = [each / largest for each in products]
        self._sizes = [each / largest for each in sizes]
        self.scales = np.sqrt(np.square(self._norms).mean(0))
        self.influential: list[bool] = (self.scales > precision.no_influence * self.scales.max()).tolist()

    def vanishes(self, columns: Sequence[int]) -> bool:
        """Whether the products over these tensors sum to zero, each of which has influence."""
        if not all(self.influential[column] for column in columns):
            return False
        sums = np.abs(self.sums[:, list(columns)].sum(1)).max()
        return bool(sums <= self._tolerance * self.scales[list(columns)].max())

    def radial_share(self) -> list[float]:
        """Give the largest |⟨∂f/∂w, w⟩| / (‖∂f/∂w‖‖w‖) of each tensor; NaN without influence."""
        shares = (np.abs(self.sums) / np.maximum(self._norms, np.finfo(float).tiny)).max(0)
        return [float(s) if used else float("nan") for s, used in zip(shares, self.influential, strict=True)]

    def height(self, columns: Sequence[int]) -> int:
        """Give the number of rows of these tensors; 0 if they differ."""
        heights = {self._products[column].shape[1] for column in columns}
        return heights.pop() if len(heights) == 1 else 0

    def rows_vanish(self, columns: Sequence[int], slices: Sequence[slice]) -> bool:
        """Whether the products over each of these blocks of rows sum to zero."""
        products = self._over(columns)
        size = max(self._sizes[column].max() for column in columns)
        return all(np.abs(products[:, rows].sum(1)).max() <= self._tolerance * size for rows in slices)

    def neighbours(self, covered: set[int]) -> Iterator[tuple[int, ...]]:
        """Yield tensors of as many rows in one module (a weight and its bias) that are in no group.

        Args:
            covered: The tensors in groups.
        """
        modules: dict[tuple[str, int], list[int]] = {}
        for column, name in enumerate(self._names):
            height = self._products[column].shape[1]
            if column not in covered and self.influential[column] and height > 1:
                modules.setdefault((name.rpartition(".")[0], height), []).append(column)
        for columns in modules.values():
            yield tuple(columns)

    def vanishing_rows(self, columns: Sequence[int]) -> list[slice]:
        """Find the smallest blocks of rows over which the products sum to zero.

        A block's sum is zero where the running sums before and after it are equal.

        Args:
            columns: Tensors of as many rows each, over which the products are summed.

        Returns:
            Disjoint blocks, in order.
        """
        products = self._over(columns)
        sizes = np.sqrt(sum(np.square(self._sizes[column]) for column in columns)).max(0)
        tolerance = self._tolerance * float(sizes.max())
        running = np.concatenate([np.zeros((len(products), 1)), products.cumsum(1)], 1)
        order = np.argsort(running[0], kind="stable")
        found: list[slice] = []
        cluster = [int(order[0])]
        clusters = []
        for before, place in pairwise(order):
            if running[0, place] - running[0, before] > tolerance:
                clusters.append(cluster)
                cluster = []
            cluster.append(int(place))
        for places in [*clusters, cluster]:
            places.sort()
            found += [
                slice(start, stop)
                for start, stop in pairwise(places)
                if sizes[start:stop].max() > self._no_influence * sizes.max()
                and np.abs(products[:, start:stop].sum(1)).max() <= self._tolerance * sizes[start:stop].max()
            ]
        taken: list[slice] = []
        for rows in sorted(found, key=lambda rows: rows.stop - rows.start):
            if all(rows.stop <= other.start or other.stop <= rows.start for other in taken):
                taken.append(rows)
        return sorted(taken, key=lambda rows: rows.start)

    def _over(self, columns: Sequence[int]) -> np.ndarray:
        total: np.ndarray = np.sum([self._products[column] for column in columns], 0)
        return total


def euler_products(probe: Probe, done: Callable[[int], object], functions: int = _FUNCTIONS) -> EulerProducts:
    """Measure the products of all trainable tensors.

    Gradients are given up one by one, as soon as they are summed over: a large model's would not fit beside it.

    Args:
        probe: An opened probe; its tensors are at the first inputs afterwards.
        done: Called with the number of forwards that a piece of work took.
        functions: How many random functions.

    Returns:
        The products.

    Raises:
        ValueError: If no output depends on the trainable parameters, or no function has finite gradients.
    """
    products: list[list[Tensor]] = [[] for _ in probe.names]
    sizes: list[list[Tensor]] = [[] for _ in probe.names]

    def take(leaf: Tensor, column: int) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        if gradient.layout != torch.strided:
            gradient = gradient.to_dense()
        rows = (len(leaf), -1) if leaf.dim() else (1, 1)
        g, w = (torch.view_as_real(t).flatten(-2) if t.is_complex() else t for t in (gradient, leaf.detach()))
        g, w = g.reshape(rows), w.reshape(rows)
        # In pieces: the products of an embedding's entries would take as much memory as it does.
        pieces = zip(g.split(_ROWS_AT_ONCE), w.split(_ROWS_AT_ONCE), strict=True)
        products[column][-1] += torch.cat([torch.linalg.vecdot(*each) for each in pieces]).double().cpu()
        norms = torch.linalg.vector_norm(g, dim=1).double(), torch.linalg.vector_norm(w, dim=1).double()
        sizes[column][-1] += (norms[0] * norms[1]).cpu()

    handles = [
        leaf.register_post_accumulate_grad_hook(lambda leaf, column=column: take(leaf, column))
        for column, leaf in enumerate(probe.leaves)
    ]
    try:
        count, index = 0, 0
        while count < functions:
            probe.go_to(index)
            outputs = [output for output in probe.outputs(index) if output.requires_grad]
            done(1)
            if not outputs:
                raise ValueError("no output of the model depends on its trainable parameters")
            chosen = probe.cotangents(index, outputs, min(_FUNCTIONS_PER_INPUT, functions - count))
            for number, cotangents in enumerate(chosen, start=1):
                for column, leaf in enumerate(probe.leaves):
                    height = len(leaf) if leaf.dim() else 1
                    products[column].append(torch.zeros(height, dtype=torch.float64))
                    sizes[column].append(torch.zeros(height, dtype=torch.float64))
                torch.autograd.backward(outputs, cotangents, retain_graph=number < len(chosen))
                done(2)
            del outputs  # and with them their graph
            count += len(chosen)
            index += 1
    finally:
        for handle in handles:
            handle.remove()
        probe.go_to(0)
    arrays = [[torch.stack(each).numpy() for each in kind] for kind in (products, sizes)]
    finite = np.all([np.isfinite(each).all(1) for kind in arrays for each in kind], 0)
    if not finite.any():
        raise ValueError("gradients of the model are not finite near its weights")
    arrays = [[each[finite] for each in kind] for kind in arrays]
    return EulerProducts(probe.names, probe.precision, *arrays)
