"""Scaling symmetries as linear equations over exponents, and the choice of groups among them."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

Form = dict[int, Fraction]
"""A linear form Σ_i f_i e_i over the exponents e_i of the tensors; what is not named is 0."""


class Symmetries:
    """Exponents e for which a function does not change when every tensor w_i becomes c^e_i w_i.

    Starts with all exponents, and is cut down equation by equation, in exact arithmetic.
    """

    def __init__(self) -> None:
        self._solved: dict[int, Form] = {}

    def reduce(self, form: Form) -> Form:
        """Write a form in the exponents that are still free.

        Args:
            form: Any linear form.

        Returns:
            The same form on all symmetries; empty where it vanishes on them.
        """
        reduced: Form = {}
        for column, factor in form.items():
            for free, share in self._solved.get(column, {column: Fraction(1)}).items():
                reduced[free] = reduced.get(free, Fraction(0)) + factor * share
        return {column: factor for column, factor in reduced.items() if factor}

    def require_zero(self, form: Form) -> None:
        """Keep only the symmetries on which a form vanishes.

        Args:
            form: Any linear form.
        """
        form = self.reduce(form)
        if not form:
            return
        pivot = max(form)
        factor = form.pop(pivot)
        solution = {column: -share / factor for column, share in form.items()}
        for column, solved in self._solved.items():
            if pivot in solved:
                self._solved[column] = _added(solved, solution, solved.pop(pivot))
        self._solved[pivot] = solution

    def equations(self) -> list[Form]:
        """Give forms that vanish on the symmetries, and on nothing else.

        Returns:
            One for each exponent that is not free.
        """
        return [
            {pivot: Fraction(-1), **solution} if solution else {pivot: Fraction(1)}
            for pivot, solution in self._solved.items()
        ]


def _added(form: Form, other: Form, factor: Fraction) -> Form:
    total = dict(form)
    for column, share in other.items():
        total[column] = total.get(column, Fraction(0)) + factor * share
    return {column: share for column, share in total.items() if share}


class GroupChoice:
    """The joint groups in a set of symmetries: sets of tensors with exponent 1, all others 0.

    Symmetries with exponents of both signs (two linear maps with a ReLU in between, one scaled up and the other
    down) are none, nor are those of unequal exponents.

    Args:
        symmetries: The symmetries.
        weights: For each tensor that may be in a group, how much it counts for: its number of scalars, and 0 for
            vectors and scalars (biases, gains).
    """

    def __init__(self, symmetries: Symmetries, weights: Mapping[int, float]) -> None:
        self._weights = dict(weights)
        self._equations = [
            {column: factor for column, factor in form.items() if column in weights} for form in symmetries.equations()
        ]
        self._refused: list[frozenset[int]] = []

    def refuse(self, group: Sequence[int]) -> None:
        """Never choose this group again.

        Args:
            group: Columns of a group that did not hold.
        """
        self._refused.append(frozenset(group))

    def choose(self) -> list[tuple[int, ...]]:
        """Choose disjoint groups that cover the most weights in matrices, and then the most tensors.

        Returns:
            The groups, each without a smaller one inside.
        """
        groups: list[tuple[int, ...]] = []
        for columns, equations in self._parts():
            heaviest = self._solve(columns, equations, self._worth(columns))
            # What these leave over: pairs of a gain and a bias, say.
            left = set(self._solve(columns, equations, dict.fromkeys(columns, 1.0), ones=heaviest))
            while left:
                start = min(left)
                group = self._solve(sorted(left), equations, dict.fromkeys(left, -1.0), ones=(start,))
                groups.append(group)
                left -= set(group)
        return sorted(groups)

    def alternatives(self, groups: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """Find groups of tensors that are in none of these, but could be in place of some.

        Args:
            groups: The groups that were chosen.

        Returns:
            The smallest group of each such tensor.
        """
        covered = {column for group in groups for column in group}
        found: list[tuple[int, ...]] = []
        for columns, equations in self._parts():
            open_ = [column for column in columns if column not in covered]
            for column in open_:
                if any(column in group for group in found):
                    continue
                group = self._solve(columns, equations, dict.fromkeys(columns, -1.0), ones=(column,))
                if group:
                    found.append(group)
        return found

    def _worth(self, columns: Sequence[int]) -> dict[int, float]:
        largest = max(self._weights[column] for column in columns) or 1.0
        # Among equals fewer tensors, and those nearer to the normalisation.
        late = {column: rank / len(columns) for rank, column in enumerate(columns)}
        return {column: self._weights[column] / largest - 1e-4 + 1e-5 * late[column] for column in columns}

    def _parts(self) -> list[tuple[list[int], list[Form]]]:
        """Split into sets of columns that share no equation; columns with exponent 0 left out."""
        fixed = {next(iter(form)) for form in self._equations if len(form) == 1}
        equations = [{c: f for c, f in form.items() if c not in fixed} for form in self._equations]
        equations = [form for form in equations if form]
        home = {column: column for column in self._weights if column not in fixed}

        def root(column: int) -> int:
            while home[column] != column:
                home[column] = home[home[column]]
                column = home[column]
            return column

        for form in equations:
            first, *others = form
            for other in others:
                home[root(other)] = root(first)
        parts: dict[int, tuple[list[int], list[Form]]] = {}
        for column in home:
            parts.setdefault(root(column), ([], []))[0].append(column)
        for form in equations:
            parts[root(next(iter(form)))][1].append(form)
        return list(parts.values())

    def _solve(
        self, columns: Sequence[int], equations: Sequence[Form], worth: Mapping[int, float], ones: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """Find the union of groups of the most worth, among these columns and with some of them; empty if none is."""
        position = {column: place for place, column in enumerate(columns)}
        rows = np.zeros((len(equations), len(columns)))
        for row, form in zip(rows, equations, strict=True):
            for column, factor in form.items():
                if column in position:
                    row[position[column]] = float(factor)
        constraints = [LinearConstraint(rows, 0, 0)] if len(rows) else []
        for refused in self._refused:
            if refused <= position.keys():
                row = np.zeros(len(columns))
                row[[position[column] for column in refused]] = 1
                constraints.append(LinearConstraint(row[None], -np.inf, len(refused) - 1))
        low = np.zeros(len(columns))
        low[[position[column] for column in ones]] = 1
        result = milp(
            -np.array([worth[column] for column in columns]),
            integrality=np.ones(len(columns)),
            bounds=Bounds(low, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            return ()
        return tuple(column for column in columns if result.x[position[column]] > 0.5)
