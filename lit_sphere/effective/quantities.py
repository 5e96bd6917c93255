"""What an optimizer step does to groups of parameters, from sums over them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_sphere.effective.atoms import Atoms
from lit_sphere.effective.equilibrium import DecayRule, EquilibriumRule, decay_rule, equilibrium_rule
from lit_sphere.effective.sources import Undone, rounds_steps, source_of, step_taken, undo
from lit_sphere.effective.step_options import OptionsOfAtoms, StepOptions, has_filter_spheres
from lit_sphere.groups import Group
from lit_sphere.optim.granularity import sphere_granularity
from lit_sphere.optim.shards import local_parts
from lit_sphere.theory import elr_from_products

QUANTITIES = ("norm", "effective_grad_norm", "elr", "ess", "angle", "radial", "step_length", "distance")
"""What is measured, in the order of the rows of :meth:`EffectiveQuantities.measure`."""

NOT_STEPPED = -math.inf
"""Stands in :meth:`EffectiveQuantities.evaluate` for the values of a group that a step left alone; no value is it."""


class EffectiveQuantities:
    """Measures the effective quantities of groups of parameters at an optimizer step.

    One or a few passes over parameters and gradients, without host synchronisation; everything that does not
    change between steps is prepared here. Where the numbers come from depends on the optimizer
    (:func:`~lit_sphere.effective.source_of`); with x and x′ the weights before and after the step,

    * ``gradients`` (``SphereSGD``; ``SGD`` without momentum): from the norms of weights and gradients before the step,
      η̃ = η/ρ², and η/(ρ²(1 − ηλ)) with weight decay (SP Table 1); from their inner products, too, in groups whose
      parts have options or spheres of their own, as ⟨x, ∇⟩ vanishes only in sum over the group;
    * ``state`` (``SGD`` with momentum or clipping, ``Adam``, ``AdamW``): from the optimizer's buffers after it, by SP
      Theorem 2. η is the optimizer's learning rate, and a what it multiplies: SGD's momentum buffer (a sum over
      gradients, unless there is dampening), Adam's bias-corrected mean; b is Adam's √v̂ + ε;
    * ``weights`` (anything else, and parameters of half precision, to which a step is rounded): from a copy of the
      weights taken before the step. ``ess`` is the tangent of the angle between x and x′, and ``elr`` = ``ess`` /
      ``effective_grad_norm``: the effective learning rate of the SGD that would turn the weights as far.

    In all three ``ess`` is the tangent of the angle of the step, η^e‖c⊥‖ in SP, of each group and of all together;
    infinite from a right angle on. ``distance`` is the cosine distance 1 − cos(x, x′) of consecutive iterates, from
    the two sides of that angle and so right where the cosine rounds to 1. ``radial`` is A⟨c, u⟩ in SP, the share of
    the norm that a step takes away along the weights: ηλ of SGD with weight decay, more where momentum points along
    them. ``step_length`` is the length of the step across the weights: of SGD η‖∇L(u)‖/r, whose square SP §4 takes to
    be small. Both are those of the step before a sphere takes it back, but where weights are compared.

    One learning rate for all, without momentum, makes the totals those of TR eqs. (3) and (4); 1/η̃ = Σ 1/η̃_i holds
    with momentum, too.

    Parameters may be sharded by FSDP2 (``fully_shard``): each process sums over its own parts, and one collective a
    step adds that up. All processes must measure the same steps then.

    A group without gradient is not stepped (but with its joint sphere, or where its weights change all the same): it
    has no values, and the totals are those of the other groups.

    With ``radial_gradients`` groups need not be scale-invariant. ⟨x, ∇⟩ is measured then and no formula takes it to
    vanish, and a last quantity, ``gradient_radial``, is the share of the gradient along the weights, |⟨x, ∇⟩|/(ρ‖∇‖):
    0 of a scale-invariant group, by Euler's identity. ``state`` and ``weights`` need no orthogonality.

    Args:
        groups: Groups as :func:`~lit_sphere.groups.find_groups` gives them, disjoint, at least one.
        optimizer: The optimizer that trains them.
        altered: Something stands between the gradients and the step: clipping, or a gradient scaler.
        radial_gradients: Measure ⟨x, ∇⟩, for groups that are not scale-invariant.

    Raises:
        ValueError: If ``groups`` is empty or the optimizer does not train one of them.

    Attributes:
        source: ``gradients``, ``state`` or ``weights``.
        quantities: What is measured: :data:`QUANTITIES`, and ``gradient_radial`` if asked for.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> effective = EffectiveQuantities([Group("weight", (weight,))], optimizer)
        >>> weight.grad = torch.tensor([0.8, -0.6])
        >>> for name, (total, _) in zip(QUANTITIES, effective.measure().tolist()):
        ...     print(f"{name} {total:.3g}")
        norm 5
        effective_grad_norm 5
        elr 0.02
        ess 0.1
        angle 0.0997
        radial 0
        step_length 0.5
        distance 0.00496
    """

    def __init__(
        self, groups: Sequence[Group], optimizer: Optimizer, altered: bool = False, radial_gradients: bool = False
    ) -> None:
        if not groups:
            raise ValueError("no group to measure")
        trained = {p for group in optimizer.param_groups for p in group["params"]}
        for group in groups:
            if not trained >= set(group.parameters):
                raise ValueError(f"{type(optimizer).__name__} does not train the group {group.name}")
        self._rounded = rounds_steps(p for group in groups for p in group.parameters)
        self.source = source_of(optimizer, altered, self._rounded)
        self.quantities = (*QUANTITIES, "gradient_radial") if radial_gradients else QUANTITIES
        self._radial_gradients = radial_gradients
        self._optimizer, self._altered = optimizer, altered
        by_row = any(has_filter_spheres(group) for group in optimizer.param_groups)
        self._atoms = atoms = Atoms(groups, by_row)
        self._blocks = self.source == "gradients"
        self._options = OptionsOfAtoms(optimizer, groups, atoms, self._blocks, radial_gradients)
        self._owner, self._kept = self._options.owner, self._options.kept
        self._split_at = atoms.carriers(self._options.may_be_split) if self._options.may_be_split else None
        self._grads: list[Tensor] | None = None  # ‖∇‖², and ⟨x, ∇⟩ if asked for, by atom
        self._weights: list[Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of what is measured: quantities, and the total and each group."""
        return len(self.quantities), 1 + self._atoms.groups

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups that train the groups, that of the first group first."""
        return [self._optimizer.param_groups[i] for i in dict.fromkeys(self._options.group_of)]

    @property
    def equilibrium(self) -> EquilibriumRule | None:
        """Which equilibrium holds at the present step, where the papers predict one; their steps are plain descent."""
        if not self._blocks or self._radial_gradients:
            return None
        return equilibrium_rule(self.param_groups, len(self._atoms.params))

    @property
    def decay(self) -> DecayRule | None:
        """How weight decay and the present step balance, of any optimizer; None where nothing is predicted."""
        if self._radial_gradients:
            return None
        return decay_rule(self._optimizer, self.param_groups, self._altered, self._rounded)

    @property
    def sizes(self) -> list[float]:
        """Numbers of elements of the groups; waits for the device."""
        owner, kept = self._atoms.owner(False), self._atoms.owner(False) >= 0
        sizes = self._atoms.sizes.new_zeros(self._atoms.groups)
        found: list[float] = sizes.index_add_(0, owner[kept], self._atoms.sizes[kept]).tolist()
        return found

    @torch.no_grad()
    def keep_gradients(self) -> None:
        """Note the norms of the present gradients: before they are clipped, or spoilt by the step."""
        grads = self._gradients()
        squares = self._marked(self._products(grads, grads), False)
        self._grads = [squares]
        if self._radial_gradients:
            self._grads.append(self._products(self._atoms.local, grads))

    @torch.no_grad()
    def keep_weights(self) -> None:
        """Copy the weights before the step, where they are compared with those after it."""
        if self.source != "weights":
            return
        if self._weights is None:
            self._weights = [torch.empty_like(p) for p in self._atoms.local]
        torch._foreach_copy_(self._weights, self._atoms.local)

    @torch.no_grad()
    def observe(self) -> Tensor:
        """Take what the quantities are worked out from, and leave the arithmetic for later.

        The gradient norms are those of :meth:`keep_gradients`, if it was called since the last step.

        Returns:
            Tensor of one dimension for :meth:`evaluate`: a few sums over each atom, a tensor, or a block or row of one;
            −1 for the norm of a gradient that is missing.

        Raises:
            RuntimeError: If weights are to be compared, and :meth:`keep_weights` was not called.
        """
        if self._blocks:
            norms = self._marked(self._atoms.norms([*self._atoms.local, *self._gradients()]), True)
            return torch.cat([norms, self._split_products()]) if self._is_split() else norms
        if self._grads is None:
            self.keep_gradients()
        grads, self._grads = self._grads, None
        assert grads is not None
        if self.source == "state":
            return torch.cat(self._state_sums(grads))
        if self._weights is None:
            raise RuntimeError("the weights before the step were not kept")
        x, step = self._weights, self._atoms.differences(self._atoms.local, self._weights)
        products = [self._products(x, x), self._products(x, step), self._products(step, step), *grads]
        return torch.cat(self._atoms.added_up(*products))

    def _marked(self, norms: Tensor, blocks: bool) -> Tensor:
        """Put −1 in place of the (last) norms of parameters that are not stepped."""
        stepped = self._stepped()
        if all(stepped):
            return norms
        missing = self._atoms.per_atom([float(not one) for one in stepped], blocks) > 0
        others = len(norms) - len(missing)
        return torch.cat([norms[:others], torch.where(missing, -1.0, norms[others:])])

    def _stepped(self) -> list[bool]:
        """Which parameters take part in the step: torch's optimizers pass over those without gradient."""
        with_gradient = [p.grad is not None for p in self._atoms.params]
        if all(with_gradient) or not self._blocks:
            return with_gradient
        groups = self._optimizer.param_groups
        # A joint sphere is projected as a whole, and its totals are those of all its parameters.
        spheres = {
            i
            for i in self._options.used
            if sphere_granularity(groups[i]) == "joint" and any(p.grad is not None for p in groups[i]["params"])
        }
        return [one or i in spheres for one, i in zip(with_gradient, self._options.group_of, strict=True)]

    def _is_split(self) -> bool:
        return bool(self._options.may_be_split) and self._options.now().split

    def _split_products(self) -> Tensor:
        """⟨x, ∇⟩ where they do not all vanish, ∇ as it is stepped against."""
        of = self._options
        numbers = range(len(self._atoms.params)) if self._atoms.sharded else of.may_be_split
        params, grads = ([each[n] for n in numbers] for each in (self._atoms.local, self._gradients()))
        options = [self._optimizer.param_groups[of.group_of[n]] for n in numbers]
        signed = [-g if group.get("maximize") else g for g, group in zip(grads, options, strict=True)]
        (products,) = self._atoms.added_up(self._products(params, signed))
        return products[self._split_at] if self._atoms.sharded else products

    def _state_sums(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """⟨x, x⟩, ⟨x, Δ⟩, ⟨Δ, Δ⟩, ⟨b, b⟩, d of the step x′ = (1 − ηλ)x + Δ just taken, by atom; and ``grads``."""
        params, local = self._atoms.params, self._atoms.local
        undone: list[Undone] = [None] * len(params)  # type: ignore[list-item]
        for i in self._options.used:
            mine = [n for n, at in enumerate(self._options.group_of) if at == i]
            step = step_taken(self._optimizer, self._optimizer.param_groups[i], [params[n] for n in mine])
            for n, one in zip(mine, undo(step, [local[n] for n in mine]), strict=True):
                undone[n] = one
        x, delta, divisors, moved = zip(*undone, strict=True)
        sizes = self._atoms.sizes
        if not all(moved):
            sizes = sizes * self._atoms.per_atom([float(one) for one in moved], False)
        products = [self._products(x, x), self._products(x, delta), self._products(delta, delta), *grads]
        if divisors[0] is not None:
            products.append(self._products(divisors, divisors))
        x2, xd, d2, *others = self._atoms.added_up(*products)
        squares = sizes if divisors[0] is None else others.pop()
        return [x2, xd, d2, squares, sizes, *others]

    def _products(self, these: Sequence[Tensor], those: Sequence[Tensor]) -> Tensor:
        return self._atoms.products(these, those)

    def _gradients(self) -> list[Tensor]:
        params = self._atoms.params
        return local_parts([torch.zeros_like(p) if p.grad is None else p.grad for p in params], params)

    @torch.no_grad()
    def evaluate(self, observed: Tensor, options: StepOptions | None) -> Tensor:
        """Work out the quantities.

        Args:
            observed: What :meth:`observe` gave at one or more steps, shape (..., sums).
            options: What :meth:`options` gave at these steps.

        Returns:
            float64 tensor of shape (..., quantities, 1 + groups): the total first, then each group;
            :data:`NOT_STEPPED` where a group was not stepped, or a quantity has no value.
        """
        observed = observed.double()
        if self._blocks:
            assert options is not None
            atoms = len(self._atoms.owner(True))
            x, g = self._of_groups(observed[..., : 2 * atoms].unflatten(-1, (2, -1))).unbind(-2)
            products = observed.new_zeros(*observed.shape[:-1], atoms)
            if options.split and self._split_at is not None:
                products.index_copy_(-1, self._split_at, observed[..., 2 * atoms :])
            xg = self._of_groups(products)
            missing, g2 = g < 0, g.clamp(min=0).square()
            moved, x2, g2, xg = self._moved(missing, x.square(), g2, xg)
            # Without gradient there is no decay either.
            shrink = torch.where(missing, 0.0, options.shrink)
            rows = self._from_gradients(x2, g2, xg, options._replace(shrink=shrink))
        else:
            sums = (4 if options is None else 6) + self._radial_gradients
            each = list(self._of_groups(observed.unflatten(-1, (sums, -1))).unbind(-2))
            xg = each.pop() if self._radial_gradients else torch.zeros_like(each[0])
            x2, xd, d2, *divisor, g2 = each
            # An optimizer that is not known may move what has no gradient, and leave alone what has one of zeros.
            missing = (g2 <= 0) & (d2 == 0) if options is None else g2 < 0
            moved, x2, xd, d2, g2, xg, *divisor = self._moved(missing, x2, xd, d2, g2.clamp(min=0), xg, *divisor)
            if options is None:
                rows = self._from_weights(x2, xd, d2, g2)
            else:
                b2, size = divisor
                rows = self._from_state(x2, xd, d2, g2, b2, size, options)
        if self._radial_gradients:
            rows = torch.cat([rows, self._radial_share(x2, g2, xg).unsqueeze(-2)], -2)
        return torch.where(moved.unsqueeze(-2), rows, NOT_STEPPED)

    def _moved(self, missing: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        """Say which groups, and whether any at all, were stepped; give the values with zeros in all other groups."""
        moved = self._sum((~missing).double())[0] > 0
        of_atoms = moved[..., 1 + self._owner]
        return (moved, *(torch.where(of_atoms, each, 0.0) for each in values))

    def _of_groups(self, values: Tensor) -> Tensor:
        """Leave rows in no group out."""
        return values if self._kept is None else values[..., self._kept]

    def _from_gradients(self, x2: Tensor, g2: Tensor, products: Tensor, options: StepOptions) -> Tensor:
        """Scale invariance says that the sum of ⟨x, ∇⟩ over a group is 0: those of its atoms are asked for if split."""
        eta, shrink, sphere_of, projected, _ = options
        step2, xd = g2 * eta.square(), -eta * products
        norm2, grad2, inverse = self._sum(x2, g2, (x2 * (1 + shrink) + xd) / eta)
        elr = elr_from_products(1.0, inverse)
        along, across, radial = self._turn(x2, xd, step2, shrink)
        length = across
        if sphere_of is not None and projected is not None:
            # Each sphere is projected by a factor of its own, which enters the angle of all together.
            none = x2.new_zeros(*x2.shape[:-1], self._options.spheres_at_most)
            radius2, moved2 = (none.index_add(-1, sphere_of, s) for s in (x2, step2 + 2 * xd))
            radius2 = torch.where(radius2 > 0, radius2, 1.0)  # numbers that no sphere has
            secant = (1 + moved2 / radius2).sqrt()
            factor = -moved2 / (radius2 * secant * (1 + secant))  # 1/secant − 1, without cancellation
            factor = torch.where(projected, factor[..., sphere_of], 0.0)
            step2, xd, shrink = step2 * (1 + factor).square(), xd * (1 + factor), shrink + factor * (1 + shrink)
            along, across, _ = self._turn(x2, xd, step2, shrink)
        return _rows(norm2, grad2, elr, along, across, radial, length)

    def _from_state(
        self, x2: Tensor, xd: Tensor, d2: Tensor, g2: Tensor, b2: Tensor, size: Tensor, options: StepOptions
    ) -> Tensor:
        eta, shrink, *_ = options
        norm2, grad2, squares, sizes = self._sum(x2, g2, b2, size)
        (inverse,) = self._sum((x2 * (1 + shrink) + xd) / eta)
        elr = elr_from_products(1.0, inverse, (squares / sizes).sqrt())
        along, across, radial = self._turn(x2, xd, d2, shrink)
        return _rows(norm2, grad2, elr, along, across, radial, across)

    def _from_weights(self, x2: Tensor, xd: Tensor, d2: Tensor, g2: Tensor) -> Tensor:
        norm2, grad2 = self._sum(x2, g2)
        along, across, radial = self._turn(x2, xd, d2, torch.zeros_like(x2))
        elr = across / along.clamp(min=0) / (norm2 * grad2).sqrt()
        elr = torch.where(grad2 == 0, NOT_STEPPED, elr)  # no SGD would move it
        return _rows(norm2, grad2, elr, along, across, radial, across)

    def _radial_share(self, x2: Tensor, g2: Tensor, xg: Tensor) -> Tensor:
        norm2, grad2, along = self._sum(x2, g2, xg)
        sizes = (norm2 * grad2).sqrt()
        return torch.where(sizes == 0, NOT_STEPPED, along.abs() / sizes)

    def _turn(self, x2: Tensor, xd: Tensor, d2: Tensor, shrink: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Components of x′ = (1 + shrink)x + Δ along and across x, and the share of x lost; in total and by group."""
        norm2, radial = self._sum(x2, shrink * x2 + xd)
        stretch = radial / norm2  # x′ = (1 + stretch)x + across
        # ‖x′ − (1 + stretch)x‖², from small numbers only.
        total = shrink - stretch[..., :1]
        own = shrink - stretch[..., 1:][..., self._owner]
        across = [dev.square() * x2 + 2 * dev * xd + d2 for dev in (total, own)]
        across2 = torch.cat([across[0].sum(-1, keepdim=True), self._sum(across[1])[0][..., 1:]], -1)
        return (norm2 + radial) / norm2.sqrt(), across2.clamp(min=0).sqrt(), 0.0 - stretch

    def _sum(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Sum over all atoms, then over those of each group; shape (..., 1 + groups) each."""
        stacked = torch.stack(values, -2)
        groups = stacked.new_zeros(*stacked.shape[:-1], self._atoms.groups).index_add_(-1, self._owner, stacked)
        return torch.cat([groups.sum(-1, keepdim=True), groups], -1).unbind(-2)

    def measure(self) -> Tensor:
        """Measure a step: before it where the source is ``gradients``, after it otherwise.

        Returns:
            :meth:`evaluate` of :meth:`observe`, shape (quantities, 1 + groups); NaN for what was not stepped.
        """
        values = self.evaluate(self.observe(), self.options())
        return values.masked_fill(values == NOT_STEPPED, math.nan)

    def options(self) -> StepOptions | None:
        """Give the optimizer's present options by atom; the same object until one of them changes.

        Returns:
            The options; None where weights are compared.
        """
        return None if self.source == "weights" else self._options.now()


def _rows(
    norm2: Tensor, grad2: Tensor, elr: Tensor, along: Tensor, across: Tensor, radial: Tensor, length: Tensor
) -> Tensor:
    """The rows of :data:`QUANTITIES`; the tangent is infinite from a right angle on."""
    norm, ess = norm2.sqrt(), across / along.clamp(min=0)
    angle = _angle(along, across)
    return torch.stack([norm, (norm2 * grad2).sqrt(), elr, ess, angle, radial, length, _distance(along, across)], -2)


def _distance(along: Tensor, across: Tensor) -> Tensor:
    """Cosine distance 1 − cos in [0, 2] of a step with these components, small ones without cancellation."""
    length = (along.square() + across.square()).sqrt()  # torch.hypot rounds the last few values differently, too
    near, far = across / length * (across / (length + along)), 1 - along / length
    return torch.where(length == 0, 0.0, torch.where(along >= 0, near, far))


def _angle(along: Tensor, across: Tensor) -> Tensor:
    """Angle in [0, π] of a step with these components, across ≥ 0."""
    # torch.atan2 rounds the last few values of a tensor differently from the others: a mean over steps would depend, in
    # its last bit, on where the run was interrupted.
    acute = torch.where((across == 0) & (along == 0), 0.0, torch.atan(across / along.abs()))
    return torch.where(along < 0, math.pi - acute, acute)
