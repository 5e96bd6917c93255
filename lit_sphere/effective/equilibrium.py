"""Where effective step sizes, effective learning rates and norms stay, as far as it can be predicted."""

from collections.abc import Mapping, Sequence
from math import expm1, hypot, inf, isfinite
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from lit_sphere.effective.sources import on_device, rate_of, step_kind
from lit_sphere.optim import SphereSGD
from lit_sphere.theory import equilibrium_ess, equilibrium_norms, sgd_elr
from lit_sphere.theory.rotation import (
    Law,
    Rotation,
    adam_equilibrium,
    adamw_equilibrium,
    measured_equilibrium,
    sgd_equilibrium,
)

EquilibriumRule = Literal["joint"] | tuple[float, float]
"""What keeps effective learning rates where they are: one sphere, or the balance of η and λ."""


def equilibrium_rule(param_groups: Sequence[dict[str, Any]], tensors: int) -> EquilibriumRule | None:
    """Choose the papers' equilibrium that holds at a step.

    Args:
        param_groups: Those of ``SphereSGD``, or of plain SGD (no momentum), that train the watched groups.
        tensors: Number of tensors in the watched groups.

    Returns:
        ``joint``: one sphere over just these tensors. Learning rate and weight decay: plain SGD in the whole space,
        0 < ηλ < 1, the same for all. None where the theory predicts nothing.
    """
    first = param_groups[0]
    if any(group.get("elr") is not None for group in param_groups):
        joint = len(param_groups) == 1 and first["granularity"] == "joint" and len(first["params"]) == tensors
        return "joint" if joint else None
    rates = {rate_of(group) for group in param_groups}
    lr, shrink = rates.pop()
    return (lr, -shrink / lr) if not rates and -1 < shrink < 0 else None


def predicted_equilibrium(rule: EquilibriumRule | None, grad_norm: float, ess_total: float) -> dict[str, float]:
    """Predict where effective step sizes and learning rates stay; with smaller steps than that a group's ELR rises.

    On one sphere for all groups the step size is that of all together: by TR eq. (5) a group that turns more than the
    whole loses effective learning rate. In the whole space it is the one of a fixed norm under weight decay
    (:func:`~lit_sphere.theory.weight_decay.equilibrium_ess`), about √(2ηλ), and the effective learning rate follows
    from it: PB's generalised equilibrium, at the present gradient norm.

    Args:
        rule: Of :func:`equilibrium_rule`.
        grad_norm: Effective gradient norm g̃ of all groups together.
        ess_total: Effective step size of all groups together.

    Returns:
        ``ess``, of every group; ``elr`` = ``ess`` / g̃ of all together, where that is not fixed. Empty where the theory
        predicts nothing.
    """
    if rule is None or not grad_norm > 0:
        return {}
    if rule == "joint":
        return {"ess": ess_total}
    ess = equilibrium_ess(*rule).item()
    return {"ess": ess, "elr": ess / grad_norm}


def predicted_interval(rule: EquilibriumRule | None, grad_min: float, grad_max: float) -> dict[str, float]:
    """Predict between which values effective learning rate and norm stay in the whole space: PB's equilibrium.

    With ℓ ≤ g̃ ≤ L at all steps, κℓ ≤ ρ² ≤ κL and √(2ηλ)/L ≤ η̃ ≤ √(2ηλ)/ℓ in the end
    (:func:`~lit_sphere.theory.weight_decay.equilibrium_norms`, exact in ηλ), whatever the start.

    Args:
        rule: Of :func:`equilibrium_rule`.
        grad_min: ℓ, the least effective gradient norm of all groups together.
        grad_max: L, the greatest.

    Returns:
        ``norm_low``, ``norm_high``, and ``elr_low``, ``elr_high`` of SP Table 1, η/(ρ²(1 − ηλ)), as step sizes are
        measured. Empty where the theory predicts nothing: without weight decay, or where ηλ is so large, for gradients
        that differ so much, that the interval can be left.
    """
    if not isinstance(rule, tuple) or not (0 < grad_min <= grad_max and isfinite(grad_max)):
        return {}
    try:
        norms = equilibrium_norms(grad_min, grad_max, *rule)
    except ValueError:  # all arguments are in their range: the interval can be left
        return {}
    found = {"norm_low": norms.low, "norm_high": norms.high}
    found |= {"elr_low": sgd_elr(norms.high, *rule), "elr_high": sgd_elr(norms.low, *rule)}
    return {name: value.item() for name, value in found.items()}


class DecayRule(NamedTuple):
    """How weight decay and steps balance under an optimizer, whatever it is; plain values.

    Attributes:
        kind: ``SGD``, ``AdamW`` or ``Adam`` (with L2), whose equilibria for white gradients are known; ``any``: only
            what an update does is known, and weight decay is taken to be decoupled.
        lr: η.
        weight_decay: λ.
        momentum: μ of SGD, β₁ of Adam.
        dampening: Of SGD.
        nesterov: Of SGD.
        clipped: Gradients are clipped or scaled before the step, so that norms do not follow from their size.
    """

    kind: Literal["SGD", "AdamW", "Adam", "any"]
    lr: float
    weight_decay: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    clipped: bool = False

    @property
    def law(self) -> Law:
        """How the length of updates depends on the norm."""
        if self.kind == "SGD" and not self.clipped:
            return "gradient"
        return "l2" if self.kind == "Adam" else "fixed"

    @property
    def steps(self) -> float | None:
        """Time constant τ of :class:`~lit_sphere.theory.rotation.Rotation` in steps; None where gradients decide it."""
        if self.kind == "Adam":
            return None
        if self.kind == "SGD":
            return float(self._sgd(1.0).steps)
        return float(adamw_equilibrium(1.0, self.lr, self.weight_decay).steps)

    def settled(self, grad_norms: Tensor, sizes: Tensor) -> Rotation | None:
        """Give the equilibria of groups for white gradients.

        Args:
            grad_norms: Their effective gradient norms g̃ > 0.
            sizes: Their numbers of elements, of the same shape.

        Returns:
            The equilibria; None of an optimizer that is not known, and where Adam's L2 regularisation would outweigh
            gradients.
        """
        if self.kind == "SGD":
            return self._sgd(grad_norms)
        if self.kind == "AdamW":
            return adamw_equilibrium(sizes, self.lr, self.weight_decay, self.momentum)
        try:
            known = self.kind == "Adam"
            return adam_equilibrium(grad_norms, sizes, self.lr, self.weight_decay, self.momentum) if known else None
        except ValueError:  # all arguments are in their range
            return None

    def _sgd(self, grad_norms: Tensor | float) -> Rotation:
        options = (self.lr, self.weight_decay, self.momentum, self.dampening)
        return sgd_equilibrium(grad_norms, *options, nesterov=self.nesterov)


def decay_rule(
    optimizer: Optimizer, param_groups: Sequence[dict[str, Any]], clipped: bool = False, rounded: bool = False
) -> DecayRule | None:
    """Read what balances norms from the options of any optimizer.

    Args:
        optimizer: The optimizer.
        param_groups: Those of its groups that train what is watched.
        clipped: Gradients are clipped or scaled before the step.
        rounded: Steps are rounded to parameters of half precision.

    Returns:
        The rule; None without weight decay, where it or another option differs between the groups, on a sphere, for
        options that lie on a device (to read them would wait for it) and for an optimizer that names its options
        otherwise.
    """
    cls: Any = type(optimizer)
    kind = None if rounded else step_kind(cls)
    alike = {(*map(group.get, _READ), tuple(group.get("betas") or ())): group for group in param_groups}  # mostly one
    rules = {_rule_of(kind, group, clipped) for group in alike.values()}
    return rules.pop() if len(rules) == 1 else None


_READ = ("elr", "lr", "weight_decay", "momentum", "dampening", "nesterov", "amsgrad", "decoupled_weight_decay")


def _rule_of(kind: type[Optimizer] | None, group: dict[str, Any], clipped: bool) -> DecayRule | None:
    if group.get("elr") is not None or "lr" not in group or "weight_decay" not in group or on_device(group):
        return None
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    if not (lr > 0 and decay > 0 and lr * decay < 1):
        return None
    if kind in (SGD, SphereSGD):
        momentum = float(group.get("momentum") or 0.0)
        damp = float(group.get("dampening") or 0.0) if momentum else 0.0
        if 0 <= momentum < 1 and 0 <= damp < 1:
            return DecayRule("SGD", lr, decay, momentum, damp, bool(group.get("nesterov")) and momentum > 0, clipped)
    if kind is Adam and not group["amsgrad"]:
        beta1 = float(group["betas"][0])
        if group["decoupled_weight_decay"]:
            return DecayRule("AdamW", lr, decay, beta1, clipped=clipped)
        if not clipped:
            return DecayRule("Adam", lr, decay, beta1)
    return DecayRule("any", lr, decay, clipped=clipped)


class Prediction(NamedTuple):
    """Where all watched groups together settle.

    Attributes:
        ess: Effective step size.
        distance: Cosine distance of a step, 1 − cos.
        norm: Norm ρ*; infinite where it is not known.
        steps: Time constant τ, in steps.
        elr: Effective learning rate, as it is measured; None where it is not known.
        ess_by_update: Effective step size foretold from what updates do now; infinite where nothing balances the decay.
        law: How norms get there.
    """

    ess: float
    distance: float
    norm: float
    steps: float
    elr: float | None
    ess_by_update: float
    law: Law


def predicted_rotation(
    rule: DecayRule | None, means: Mapping[str, Sequence[float]], sizes: Sequence[float], weights_compared: bool
) -> Prediction | None:
    """Predict where norm and step size settle under weight decay, for any optimizer (Kosson et al. 2023).

    For SGD and Adam with their options the prediction is that of :mod:`lit_sphere.theory.rotation` for white gradients,
    at the present effective gradient norms. For any other optimizer it is made from what its update does
    (:func:`~lit_sphere.theory.rotation.measured_equilibrium`), an update's length taken not to depend on the norm, and
    weight decay to be decoupled, as Lion's is, unless more of the norm is taken away than that.

    Args:
        rule: Of :func:`decay_rule`.
        means: What was measured (``norm``, ``effective_grad_norm``, ``elr``, ``ess``, ``radial``), each of all groups
            together and then of each group; infinite of a group that was not stepped.
        sizes: Numbers of elements of the groups.
        weights_compared: Effective learning rates are those of weights before and after a step, ESS / g̃.

    Returns:
        The prediction; None where there is none.
    """
    total = {name: values[0] for name, values in means.items()}
    if rule is None or not all(map(isfinite, total.values())) or not total["effective_grad_norm"] > 0:
        return None
    by_update, ratio = _by_update(rule, total, weights_compared)
    elr: float | None = None
    if rule.kind == "any":
        if not isfinite(by_update):
            return None
        ess, distance, norm = by_update, 1 - 1 / hypot(1, by_update), total["norm"] / ratio
        steps = rule.steps or inf
    else:
        found = _of_all(rule, means["effective_grad_norm"], sizes)
        if found is None:
            return None
        (ess, distance, norm, steps), elr = found
        if rule.kind == "SGD" and rule.clipped:
            norm = total["norm"] / ratio if isfinite(ratio) else inf
            elr = rule.lr / (norm**2 * (1 - distance)) if isfinite(norm) else None
    if weights_compared:
        elr = ess / total["effective_grad_norm"]
    return Prediction(ess, distance, norm, steps, elr, by_update, rule.law)


def _of_all(
    rule: DecayRule, grad_norms: Sequence[float], sizes: Sequence[float]
) -> tuple[tuple[float, float, float, float], float | None] | None:
    """ESS, distance, norm and time constant of all groups together, and SP's effective learning rate."""
    known = [(g, d) for g, d in zip(grad_norms[1:], sizes, strict=True) if g > 0 and isfinite(g)]
    if rule.kind != "Adam":  # the balance of the groups is that of the whole: all have one ESS
        known = [(grad_norms[0], sum(sizes))]
    if not known:
        return None
    g, d = torch.tensor(known, dtype=torch.float64).unbind(1)
    settled = rule.settled(g, d)
    if settled is None:
        return None
    squares = settled.norm.square()
    norm = squares.sum().sqrt()
    distance = (squares * settled.distance).sum() / norm.square()
    ess = (distance * (2 - distance)).sqrt() / (1 - distance)
    steps = squares.sum() / (squares / settled.steps).sum()
    rotation = (ess.item(), distance.item(), norm.item(), steps.item())
    if rule.clipped:
        return rotation, None
    divisor = torch.ones(())
    if rule.kind != "SGD":
        l2 = rule.weight_decay if rule.kind == "Adam" else 0.0
        divisor = ((g.square() / squares + l2**2 * squares).sum() / d.sum()).sqrt()
    return rotation, (rule.lr / (divisor * norm.square() * (1 - distance))).item()


def _by_update(rule: DecayRule, total: Mapping[str, float], weights_compared: bool) -> tuple[float, float]:
    """ESS* and ρ/ρ* from what updates do; infinite where nothing balances the decay."""
    share = rule.lr * rule.weight_decay
    if rule.kind == "SGD" and rule.momentum:
        share = -expm1(-0.5 / (rule.steps or inf))  # its decay goes through the buffer
    elif rule.kind == "any":
        share = max(share, total["radial"])  # more than that of decoupled decay: it is coupled, and steps are across
    elif rule.kind == "Adam" and not weights_compared:
        share = total["elr"] * total["norm"] ** 2 * (1 - total["radial"]) * rule.weight_decay  # η_eλ
    if not (0 < share < 1 and total["radial"] < 1):
        return inf, inf
    ess, ratio = measured_equilibrium(total["ess"], total["radial"], share, rule.law)
    return ess.item(), ratio.item()
