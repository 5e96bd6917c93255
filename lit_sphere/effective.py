"""Effective learning rate, effective step size and effective gradient norm of groups of parameters.

Notation of TR §3: ρ = ‖θ‖, g = ‖∇‖, effective learning rate (ELR) η̃ = η/ρ², effective gradient norm
g̃ = ρg, effective step size (ESS) η̃g̃ = ηg/ρ, the tangent of the angle by which a step turns θ.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lit_sphere.groups import Group
from lit_sphere.optim import SphereSGD, row_squared_norms, squared_norms
from lit_sphere.theory import total_elr, total_ess

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
                    self._owners.append([-1] * (len(p) if by_row and p.ndim else 1))
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
    def observe(self) -> Tensor:
        """Take the norms of the present parameters and gradients, and leave the arithmetic for later.

        Missing gradients count as zero.

        Returns:
            float64 tensor of shape (2 · atoms,) for :meth:`evaluate`; an atom is a tensor or a row of one.
        """
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
        if not self._by_row:
            return squared_norms([*self._params, *grads])
        tensors = (*self._params, *grads)
        rows = [row_squared_norms(t) if t.ndim > 1 else t.double().square().reshape(-1) for t in tensors]
        return torch.cat(rows)

    @torch.no_grad()
    def evaluate(self, observed: Tensor, rates: Tensor | None) -> Tensor:
        """Work out the quantities.

        Args:
            observed: What :meth:`observe` gave at one or more steps, shape (..., 2 · atoms).
            rates: What :meth:`learning_rates` gave at these steps.

        Returns:
            float64 tensor of shape (..., len(quantities), 1 + groups): the total first, then each group. The
            totals are those of all groups together: TR eqs. (3) and (4).
        """
        rho2, g2 = observed.unflatten(-1, (2, -1)).unbind(-2)
        if self._kept is not None:
            rho2, g2 = rho2[..., self._kept], g2[..., self._kept]
        # All four are additive over the atoms of a group, also where atoms have learning rates of their own:
        # ρ², g², 1/η̃ = Σ ρ_a²/η_a (TR eq. (3)) and (η̃g̃)²/η̃ = Σ η_a g_a² (TR eq. (4)).
        atoms = [rho2, g2] if rates is None else [rho2, g2, rho2 / rates, rates * g2]
        stacked = torch.stack(atoms, -2)
        sums = stacked.new_zeros(*stacked.shape[:-1], self._count).index_add_(-1, self._owner, stacked).unbind(-2)
        rho2, g2 = (torch.cat([s.sum(-1, keepdim=True), s], -1) for s in sums[:2])
        measured = [rho2.sqrt(), (rho2 * g2).sqrt()]
        if rates is not None:
            elr = sums[2].reciprocal()
            ess = (elr * sums[3]).sqrt()
            measured += [
                torch.cat([total_elr(elr).unsqueeze(-1), elr], -1),
                torch.cat([total_ess(elr, ess).unsqueeze(-1), ess], -1),
            ]
        return torch.stack(measured, -2)

    def measure(self) -> Tensor:
        """Measure at the present parameters and gradients.

        Returns:
            :meth:`evaluate` of :meth:`observe`, shape (len(quantities), 1 + groups).
        """
        return self.evaluate(self.observe(), self.learning_rates())

    def learning_rates(self) -> Tensor | None:
        """Give the learning rate η of each atom; the same object until an option of the optimizer changes.

        Returns:
            float64 tensor of shape (atoms,); None where η/ρ² is no effective learning rate.
        """
        if len(self.quantities) < len(QUANTITIES):
            return None
        key = tuple(_rate(self._optimizer.param_groups[i]) for i in self._group_of)
        if self._rates is None or self._rates[0] != key:
            rates = []
            for p, i, owners, rate in zip(self._params, self._group_of, self._owners, key, strict=True):
                if self._optimizer.param_groups[i].get("spheres") == "filter":
                    radius = self._optimizer.state[p]["radius"].double().reshape(-1)
                    rates.append(rate * radius.square())
                else:
                    rates.append(torch.full((len(owners),), rate, dtype=torch.float64, device=p.device))
            flat = torch.cat(rates)
            self._rates = (key, flat if self._kept is None else flat[self._kept])
        return self._rates[1]


class StepMeans:
    """Means of the effective quantities over steps, with next to no work at a step.

    A step's norms are kept on the device; the arithmetic is done for many steps at once. The means are the same to
    the last bit wherever a run is interrupted, its state saved and restored.

    Args:
        quantities: What is measured.
    """

    _CHUNK = 256  # steps; bounds the memory

    def __init__(self, quantities: EffectiveQuantities) -> None:
        self._quantities = quantities
        self._observed: list[Tensor] = []
        self._rates: Tensor | None = None  # at the observed steps
        self._evaluated: list[Tensor] = []
        self._sum: Tensor | None = None
        self._steps = 0

    def add(self) -> None:
        """Observe the present step."""
        rates = self._quantities.learning_rates()
        if rates is not self._rates:
            self._evaluate()
            self._rates = rates
        self._observed.append(self._quantities.observe())
        self._steps += 1
        if self._steps % self._CHUNK == 0:
            self._add_up()

    def last(self) -> Tensor:
        """Give the quantities at the last observed step.

        Returns:
            float64 tensor of shape (len(quantities), 1 + groups).
        """
        self._evaluate()
        return self._evaluated[-1][-1]

    def mean(self) -> Tensor | None:
        """Give the means since the last call, and begin anew.

        Returns:
            float64 tensor of shape (len(quantities), 1 + groups); None if no step was observed.
        """
        self._add_up()
        mean = None if self._sum is None else self._sum / self._steps
        self.load_state({})
        return mean

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load_state` takes.

        Returns:
            Tensors and plain values.
        """
        self._evaluate()
        return {"evaluated": list(self._evaluated), "sum": self._sum, "steps": self._steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; from none with an empty one.

        Args:
            state: As given by :meth:`state`.
        """
        self._observed = []
        self._evaluated = list(state.get("evaluated", []))
        self._sum, self._steps = state.get("sum"), state.get("steps", 0)

    def _evaluate(self) -> None:
        if self._observed:
            self._evaluated.append(self._quantities.evaluate(torch.stack(self._observed), self._rates))
            self._observed = []

    def _add_up(self) -> None:
        self._evaluate()
        if self._evaluated:
            device = self._evaluated[-1].device  # what was restored lies on the CPU
            chunk = torch.cat([part.to(device) for part in self._evaluated]).sum(0)
            self._sum = chunk if self._sum is None else self._sum.to(device) + chunk
            self._evaluated = []


def _has_learning_rate(optimizer: Optimizer) -> bool:
    if isinstance(optimizer, SphereSGD):
        return True
    return isinstance(optimizer, SGD) and all(group["momentum"] == 0 for group in optimizer.param_groups)


def _rate(group: dict[str, Any]) -> float:
    """η of a parameter group; for spheres of filters the common η/ρ_i²."""
    if group.get("elr") is not None:
        return float(group["elr"] * group.get("radius", 1.0) ** 2)
    kept = 1 - float(group["lr"]) * group.get("weight_decay", 0.0)
    return float(group["lr"]) / kept if kept > 0 else math.inf  # SP Table 1, SGD + L2
