"""Effective learning rate, effective step size and effective gradient norm of groups of parameters.

Notation of TR §3: ρ = ‖θ‖, g = ‖∇‖, effective learning rate (ELR) η̃ = η/ρ², effective gradient norm
g̃ = ρg, effective step size (ESS) η̃g̃ = ηg/ρ, the tangent of the angle by which a step turns θ.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lit_sphere.groups import Group
from lit_sphere.optim import SphereSGD, row_squared_norms, squared_norms

QUANTITIES = ("norm", "effective_grad_norm", "elr", "ess")
"""What is measured, in the order of the rows of :meth:`EffectiveQuantities.measure`."""


class EffectiveQuantities:
    """Measures the effective quantities of scale-invariant groups before an optimizer step.

    One pass over parameters and gradients, without host synchronisation; everything that does not
    change between steps is prepared here.

    The learning rate η is known for :class:`SphereSGD` (η̃ρ²) and for ``torch.optim.SGD`` without momentum
    (η/(1 − ηλ) with weight decay λ: SP Table 1). For other optimizers η/ρ² is no effective learning
    rate, and only the norm and the effective gradient norm are measured.

    Args:
        groups: Groups as :func:`~lit_sphere.groups.find_groups` gives them, disjoint, at least one.
        optimizer: The optimizer that trains them.

    Raises:
        ValueError: If ``groups`` is empty or the optimizer does not train one of them.

    Attributes:
        quantities: The measured subset of :data:`QUANTITIES`.
    """

    def __init__(self, groups: Sequence[Group], optimizer: Optimizer) -> None:
        if not groups:
            raise ValueError("no group to measure")
        self.quantities = QUANTITIES if _has_learning_rate(optimizer) else QUANTITIES[:2]
        self._optimizer = optimizer
        spheres = [group.get("spheres") for group in optimizer.param_groups]
        by_row = "filter" in spheres or any(group.rows is not None for group in groups)
        # Indices, because a restored optimizer holds other dictionaries.
        trained = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._params: list[nn.Parameter] = []
        self._owners: list[list[int]] = []  # per parameter, the group of each of its atoms
        index: dict[nn.Parameter, int] = {}
        for i, group in enumerate(groups):
            for p in group.parameters:
                if p not in trained:
                    raise ValueError(f"{type(optimizer).__name__} does not train the group {group.name}")
                if p not in index:
                    index[p] = len(self._params)
                    self._params.append(p)
                    self._owners.append([-1] * (len(p) if by_row else 1))
                owners = self._owners[index[p]]
                rows = range(*(group.rows or slice(None)).indices(len(owners)))
                owners[rows.start : rows.stop] = [i] * len(rows)
        self._by_row = by_row
        self._group_of = [trained[p] for p in self._params]
        self._count = len(groups)
        owner = torch.tensor([i for owners in self._owners for i in owners], device=self._params[0].device)
        self._kept = None if bool((owner >= 0).all()) else owner >= 0
        self._owner = owner if self._kept is None else owner[self._kept]
        self._rates: tuple[tuple[float, ...], Tensor] | None = None

    @torch.no_grad()
    def measure(self) -> Tensor:
        """Measure at the present parameters and gradients (missing gradients count as zero).

        Returns:
            float64 tensor of shape (len(quantities), 1 + groups): the total first, then each group. The
            totals are those of all groups together: TR eqs. (3) and (4).
        """
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
        rho2 = self._squared(self._params)
        g2 = self._squared(grads)
        # All four are additive over atoms, also where atoms have learning rates of their own:
        # ρ², g², 1/η̃ = Σ ρ_a²/η_a (TR eq. (3)) and (η̃g̃)²/η̃ = Σ η_a g_a² (TR eq. (4)).
        atoms = [rho2, g2]
        if len(self.quantities) == len(QUANTITIES):
            rates = self._learning_rates()
            atoms += [rho2 / rates, rates * g2]
        stacked = torch.stack(atoms)
        sums = stacked.new_zeros(len(atoms), 1 + self._count).index_add_(1, self._owner + 1, stacked)
        sums[:, 0] = sums[:, 1:].sum(1)
        measured = [sums[0].sqrt(), (sums[0] * sums[1]).sqrt()]
        if len(atoms) > 2:
            elr = sums[2].reciprocal()
            measured += [elr, (elr * sums[3]).sqrt()]
        return torch.stack(measured)

    def _squared(self, tensors: Sequence[Tensor]) -> Tensor:
        if not self._by_row:
            return squared_norms(tensors)
        pieces = torch.cat([row_squared_norms(t) if t.ndim > 1 else t.double().square() for t in tensors])
        return pieces if self._kept is None else pieces[self._kept]

    def _learning_rates(self) -> Tensor:
        """Learning rate η of each atom; made anew only when an option of the optimizer has changed."""
        param_groups = [self._optimizer.param_groups[i] for i in self._group_of]
        key = tuple(_rate(group) for group in param_groups)
        if self._rates is None or self._rates[0] != key:
            rates = []
            for p, group, owners, rate in zip(
                self._params, param_groups, self._owners, key, strict=True
            ):
                if group.get("spheres") == "filter":
                    radius = self._optimizer.state[p]["radius"].double().reshape(-1)
                    rates.append(rate * radius.square())
                else:
                    rates.append(torch.full((len(owners),), rate, dtype=torch.float64, device=p.device))
            flat = torch.cat(rates)
            self._rates = (key, flat if self._kept is None else flat[self._kept])
        return self._rates[1]


def _has_learning_rate(optimizer: Optimizer) -> bool:
    if isinstance(optimizer, SphereSGD):
        return True
    return isinstance(optimizer, SGD) and all(group["momentum"] == 0 for group in optimizer.param_groups)


def _rate(group: dict[str, Any]) -> float:
    """η of a parameter group; for spheres of filters the common η/ρ_i²."""
    if group.get("elr") is not None:
        return float(group["elr"] * group.get("radius", 1.0) ** 2)
    return float(group["lr"] / (1 - group["lr"] * group.get("weight_decay", 0.0)))  # SP Table 1, SGD + L2
