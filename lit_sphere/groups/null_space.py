"""Scaling symmetries of a function, read off the null space of its Euler matrix."""

from collections.abc import Collection
from fractions import Fraction
from math import lcm

import torch
from torch import Tensor

# Exponents of scaling symmetries are small fractions: 1 for linear maps, 1/2 for roots, 2 for squares.
_LARGEST_DENOMINATOR = 12
_SNAP = 1e-4
# Networks have a few rays; the bound keeps a pathological one from taking exponential time.
_MOST_RAYS = 400


def minimal_groups(euler: Tensor, scales: Tensor, tolerance: float = 1e-9) -> list[tuple[int, ...]]:
    """Find the smallest disjoint sets of columns that sum to zero.

    Row r, column i of ``euler`` holds ⟨∂f_r/∂w_i, w_i⟩. A null vector v is a symmetry: f does not change
    when every w_i is multiplied by c^v_i. Only symmetries with exponents 0 and 1 are groups that are
    scale-invariant together; of mixed sign are, for instance, two linear maps with a ReLU in
    between, one scaled up and the other down. Both kinds mix in a basis of the null space, so all
    symmetries with non-negative exponents and least support are enumerated (the extreme rays of a cone).

    Args:
        euler: Matrix (rows, columns) in float64, with more rows than columns.
        scales: Size (columns,) of each column's terms, e.g. the RMS of ‖∂f/∂w_i‖‖w_i‖; positive.
        tolerance: Singular values below this, relative to the largest, count as zero.

    Returns:
        Disjoint, sorted column sets, each without a smaller one inside; of two that overlap the smaller,
        of two equally small the one with later columns.
    """
    rows, pivots = _integer_basis(_null_basis(euler / scales, tolerance), scales)
    rays = _extreme_rays(rows, pivots, len(scales))
    supports = [
        tuple(column for column, exponent in enumerate(ray) if exponent) for ray in rays if len(set(ray) - {0}) == 1
    ]
    groups: list[tuple[int, ...]] = []
    for support in sorted(supports, key=lambda columns: (len(columns), [-column for column in columns])):
        if not any(set(support) & set(group) for group in groups):
            groups.append(support)
    return groups


def _null_basis(matrix: Tensor, tolerance: float) -> Tensor:
    """Return an orthonormal basis, in rows, of the null space of ``matrix`` (rows ≥ columns)."""
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    basis: Tensor = vectors[values <= tolerance * values[:1]]
    return basis


def _integer_basis(basis: Tensor, scales: Tensor) -> tuple[list[list[int]], list[int]]:
    """Return the reduced row echelon form of null vectors, as integer exponents, and its pivot columns."""
    reduced, pivots = basis.clone(), []
    free = list(range(len(reduced)))
    while free:
        # Full pivoting: with pivots in column order, one symmetry smears over the others.
        row, column = divmod(int(reduced[free].abs().argmax()), reduced.shape[1])
        row = free.pop(row)
        reduced[row] /= reduced[row, column].clone()
        others = [other for other in range(len(reduced)) if other != row]
        reduced[others] -= torch.outer(reduced[others, column], reduced[row])
        pivots.append((row, column))
    rows, kept = [], []
    for row, column in pivots:
        exponents = (reduced[row] * scales[column] / scales).tolist()
        fractions = [Fraction(value).limit_denominator(_LARGEST_DENOMINATOR) for value in exponents]
        if max(abs(value - near) for value, near in zip(exponents, fractions, strict=True)) > _SNAP:
            continue  # no scaling symmetry: a direction along which the function is merely almost flat
        unit = lcm(*(fraction.denominator for fraction in fractions))
        rows.append([int(fraction * unit) for fraction in fractions])
        kept.append(column)
    return rows, kept


def _extreme_rays(rows: list[list[int]], pivots: Collection[int], columns: int) -> list[list[int]]:
    """Return the vectors of least support among the non-negative ones in the rows' span (double description).

    The rows, each with its own pivot, span the cone that is non-negative at the pivots. The other columns'
    inequalities cut it one by one; a cut keeps the rays on its side and adds where edges cross it.
    """
    rays, done, todo = rows, set(pivots), set(range(columns)) - set(pivots)
    while todo:
        column = min(todo, key=lambda j: (sum(r[j] > 0 for r in rays) * sum(r[j] < 0 for r in rays), j))
        supports = [frozenset(j for j in done if ray[j]) for ray in rays]
        above = [i for i, ray in enumerate(rays) if ray[column] > 0]
        below = [i for i, ray in enumerate(rays) if ray[column] < 0]
        crossings = []
        for i in above:
            for j in below:
                face = supports[i] | supports[j]
                # Two rays share an edge if no third one lies in the smallest face that holds both.
                if any(support <= face for k, support in enumerate(supports) if k != i and k != j):
                    continue
                up, down = rays[i][column], -rays[j][column]
                unit = lcm(up, down)
                crossings.append([unit // up * a + unit // down * b for a, b in zip(rays[i], rays[j], strict=True)])
        rays = [ray for ray in rays if ray[column] >= 0] + crossings
        rays = sorted(rays, key=lambda ray: sum(map(bool, ray)))[:_MOST_RAYS]
        todo.remove(column)
        done.add(column)
    return rays
