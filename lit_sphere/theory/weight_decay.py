"""Norm and effective learning rate of scale-invariant weights under SGD with weight decay (PB §3 and appendix A).

The step is x′ = (1 − ηλ)x − η∇f(x), with ⟨∇f(x), x⟩ = 0 and ∇f(x) = g̃(x/‖x‖)/‖x‖: η learning rate, λ weight
decay, ρ = ‖x‖, g̃ effective gradient norm. ``grad_min`` ≤ g̃ ≤ ``grad_max`` are PB's ℓ and L.
All arguments may be tensors and broadcast; results are float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

Number = Tensor | float


class Interval(NamedTuple):
    """Ends of an interval.

    Attributes:
        low: Lower ends.
        high: Upper ends, of the same shape.
    """

    low: Tensor
    high: Tensor


def next_norm(norm: Number, effective_grad_norm: Number, lr: Number, weight_decay: Number) -> Tensor:
    """Norm after a step: ρ′² = (1 − ηλ)²ρ² + η²g̃²/ρ² (PB §3). Exact.

    Args:
        norm: ρ > 0 before the step.
        effective_grad_norm: g̃ ≥ 0 = ρ‖∇f‖.
        lr: η > 0.
        weight_decay: λ ≥ 0, with ηλ < 1.

    Returns:
        ρ′.

    Raises:
        ValueError: If an argument is out of its range.
    """  # noqa: DOC502
    rho, g = _positive("norm", norm), _not_negative("effective_grad_norm", effective_grad_norm)
    eta, keep = _positive("lr", lr), _kept(lr, weight_decay)
    return torch.hypot(keep * rho, eta * g / rho)


def step_cosine(norm: Number, effective_grad_norm: Number, lr: Number, weight_decay: Number) -> Tensor:
    """Cosine of the angle that a step turns the weights by: (1 + η²g̃²/((1 − ηλ)²ρ⁴))^(−½) (PB §3). Exact.

    Args:
        norm: ρ > 0 before the step.
        effective_grad_norm: g̃ ≥ 0 = ρ‖∇f‖.
        lr: η > 0.
        weight_decay: λ ≥ 0, with ηλ < 1.

    Returns:
        cos(x, x′) in (0, 1].

    Raises:
        ValueError: If an argument is out of its range.
    """  # noqa: DOC502
    rho, g = _positive("norm", norm), _not_negative("effective_grad_norm", effective_grad_norm)
    eta, keep = _positive("lr", lr), _kept(lr, weight_decay)
    return torch.hypot(torch.ones(()).double(), eta * g / (keep * rho.square())).reciprocal()


def jump_norm(delta: Number, effective_grad_norm: Number, lr: Number, weight_decay: Number) -> Tensor:
    """Norm below which a step is a δ-jump, 1 − cos(x, x′) > δ (PB §3).

    Exactly ρ² < ηg̃ / ((1 − ηλ)√((1 − δ)⁻² − 1)); PB gives its first order in δ and ηλ, ρ² < ηg̃/√(2δ).
    With g̃ = L: a jump is possible below this norm; with g̃ = ℓ: certain.

    Args:
        delta: δ in (0, 1), a cosine distance.
        effective_grad_norm: g̃ > 0.
        lr: η > 0.
        weight_decay: λ ≥ 0, with ηλ < 1.

    Returns:
        The norm ρ.

    Raises:
        ValueError: If an argument is out of its range.
    """  # noqa: DOC502
    g, eta, keep = _positive("effective_grad_norm", effective_grad_norm), _positive("lr", lr), _kept(lr, weight_decay)
    return (eta * g / (keep * _tangent(delta))).sqrt()


def steps_before_jump(
    norm: Number, delta: Number, grad_min: Number, grad_max: Number, lr: Number, weight_decay: Number
) -> Interval:
    """Bounds on the number of steps before the first δ-jump (PB §3, t_min and t_max).

    No jump is possible before ``low`` steps, and one is certain to have come by ``high``. PB's κ = √(η/2λ),
    t_min = ln[(ηL/√(2δ) − κℓ)/(ρ₀² − κℓ)]/ln(1 − 4ηλ) and t_max = ln[(ηℓ/√(2δ) − κL)/(ρ₀² − κL)]/ln(1 − 2ηλ) are
    of first order in ηλ and δ. Here both hold exactly: with a = 1 − (1 − ηλ)², of which 2ηλ is the first order, the
    fixed points κℓ and κL of ρ² are ηℓ/√a and ηL/√a, and the logarithms are of 1 − 2a and 1 − a.

    Args:
        norm: ρ₀ > 0.
        delta: δ in (0, 1).
        grad_min: ℓ > 0, lower bound of the effective gradient norm along the way.
        grad_max: L ≥ ℓ, upper bound.
        lr: η > 0.
        weight_decay: λ > 0, with ηλ < 1.

    Returns:
        ``low``, 0 where a jump is possible at once and infinite where never (δ too large: PB's condition
        δ < ηλL²/ℓ²); ``high``, 0 where a jump is certain at once and infinite where none is (δ < ηλℓ²/L² is
        PB's condition). ``low`` needs 2a < 1, and is 0 otherwise.

    Raises:
        ValueError: If an argument is out of its range.
    """  # noqa: DOC502
    rho2 = _positive("norm", norm).square()
    _ordered(grad_min, grad_max)
    a = _decay(lr, weight_decay)
    fixed_min, fixed_max = (_positive("lr", lr) * _double(g) / a.sqrt() for g in (grad_min, grad_max))
    possible = jump_norm(delta, grad_max, lr, weight_decay).square()
    certain = jump_norm(delta, grad_min, lr, weight_decay).square()
    low = _steps(rho2, possible, fixed_min, 1 - 2 * a)
    # Where the map may throw ρ² far up again (2a ≥ 1) there is no such lower bound but the trivial one.
    low = torch.where(2 * a < 1, low, torch.zeros_like(low))
    return Interval(low, _steps(rho2, certain, fixed_max, 1 - a).ceil())


def equilibrium_norms(grad_min: Number, grad_max: Number, lr: Number, weight_decay: Number) -> Interval:
    """Norms at the generalised equilibrium (PB §3): κℓ ≤ ρ² ≤ κL for large t, κ = √(η/2λ).

    Exact form: ρ² is a β-undetermined sequence (:func:`undetermined_interval`) with α = 1 − (1 − ηλ)² and
    β = η²g̃² in [η²ℓ², η²L²]; PB's κ is the first order in ηλ of η/√α.

    Args:
        grad_min: ℓ > 0.
        grad_max: L ≥ ℓ.
        lr: η > 0.
        weight_decay: λ > 0, with ηλ < 1.

    Returns:
        Bounds of ρ.

    Raises:
        ValueError: If an argument is out of its range, or the interval can be left (see
            :func:`undetermined_interval`).
    """  # noqa: DOC502
    _ordered(grad_min, grad_max)
    eta, a = _positive("lr", lr), _decay(lr, weight_decay)
    squares = undetermined_interval(a, (eta * _double(grad_min)).square(), (eta * _double(grad_max)).square())
    return Interval(squares.low.sqrt(), squares.high.sqrt())


def equilibrium_elrs(grad_min: Number, grad_max: Number, lr: Number, weight_decay: Number) -> Interval:
    """Effective learning rates at the generalised equilibrium: [√(2ηλ)/L, √(2ηλ)/ℓ] to first order (PB §3).

    Exactly η/ρ² at the ends of :func:`equilibrium_norms`: √α/L and √α/ℓ with α = 1 − (1 − ηλ)².

    Args:
        grad_min: ℓ > 0.
        grad_max: L ≥ ℓ.
        lr: η > 0.
        weight_decay: λ > 0, with ηλ < 1.

    Returns:
        Bounds of η̃ = η/ρ².

    Raises:
        ValueError: As :func:`equilibrium_norms`.
    """  # noqa: DOC502
    norms = equilibrium_norms(grad_min, grad_max, lr, weight_decay)
    eta = _double(lr)
    return Interval(eta / norms.high.square(), eta / norms.low.square())


def undetermined_interval(alpha: Number, low: Number, high: Number) -> Interval:
    """Interval that every β-undetermined sequence enters and never leaves (PB appendix, Lemmas 1 and 2).

    x′ = (1 − α)x + β_t/x with any β_t in [a, b] tends to [√(a/α), √(b/α)] from every x₀ > 0. It cannot be left
    again if α ≤ ½ and α(1 + √(b/a)) ≤ 1: x ↦ (1 − α)x + β/x is then increasing where it could fall below the
    lower end, and its value at the lower end with β = b is not above the upper end. (PB's condition for norms,
    2ηλL ≤ ℓ, reads α√(b/a) ≤ 1 and is a little too weak: α = 0.5, a = 1, b = 4 maps √2 to 3.54 > 2.83.)

    Args:
        alpha: α in (0, ½].
        low: a > 0.
        high: b ≥ a.

    Returns:
        √(a/α) and √(b/α).

    Raises:
        ValueError: If an argument is out of its range, or the interval can be left.
    """
    alpha, a, b = _positive("alpha", alpha), _positive("low", low), _positive("high", high)
    if not bool((a <= b).all()):
        raise ValueError("low must not be above high")
    if not bool(((alpha <= 0.5) & (alpha * (1 + (b / a).sqrt()) <= 1)).all()):
        raise ValueError("the interval can be left: needs α ≤ 1/2 and α(1 + √(high/low)) ≤ 1 (lower lr · weight decay)")
    return Interval((a / alpha).sqrt(), (b / alpha).sqrt())


def rescaled(x: Tensor, lr: Number, weight_decay: Number, factor: Number) -> tuple[Tensor, Tensor, Tensor]:
    """Give another start, learning rate and weight decay with the same functions at all steps (PB Proposition 4).

    (x₀, η, λ) and (cx₀, c²η, λ/c²) train a scale-invariant function through the same directions x/‖x‖.

    Args:
        x: x₀, any shape.
        lr: η > 0.
        weight_decay: λ ≥ 0.
        factor: c > 0.

    Returns:
        cx₀, c²η, λ/c².

    Raises:
        ValueError: If an argument is out of its range.
    """  # noqa: DOC502
    c, eta = _positive("factor", factor), _positive("lr", lr)
    _kept(lr, weight_decay)
    return x * c.to(x.dtype), c.square() * eta, _double(weight_decay) / c.square()


def _steps(start: Tensor, goal: Tensor, fixed: Tensor, rate: Tensor) -> Tensor:
    """Steps in which ``start − fixed``, shrinking by ``rate`` a step, comes down to ``goal − fixed``."""
    reached = start <= goal
    never = ~reached & (goal <= fixed)
    ratio = torch.where(reached | never, torch.ones(()).double(), (goal - fixed) / (start - fixed))
    steps = torch.where(ratio < 1, ratio.log() / rate.clamp(min=1e-300).log(), torch.zeros(()).double())
    return torch.where(never, torch.full((), torch.inf).double(), steps)


def _tangent(delta: Number) -> Tensor:
    """Tangent of the angle of a step whose cosine is 1 − δ."""
    delta = _positive("delta", delta)
    if not bool((delta < 1).all()):
        raise ValueError("delta must be below 1: no step turns weights by a right angle or more")
    # √((1 − δ)⁻² − 1) without cancellation at small δ
    return (delta * (2 - delta)).sqrt() / (1 - delta)


def _decay(lr: Number, weight_decay: Number) -> Tensor:
    """α = 1 − (1 − ηλ)², without cancellation."""
    product = _double(lr) * _positive("weight_decay", weight_decay)
    _kept(lr, weight_decay)
    return product * (2 - product)


def _kept(lr: Number, weight_decay: Number) -> Tensor:
    """1 − ηλ, the share of the weights that decay leaves."""
    product = _double(lr) * _not_negative("weight_decay", weight_decay)
    if not bool((product < 1).all()):
        raise ValueError("lr · weight_decay must be below 1")
    return 1 - product


def _ordered(grad_min: Number, grad_max: Number) -> None:
    if not bool((_positive("grad_min", grad_min) <= _double(grad_max)).all()):
        raise ValueError("grad_min must not be above grad_max")


def _double(value: Number) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)  # a Python float would lose digits on a way through float32


def _positive(name: str, value: Number) -> Tensor:
    tensor = _double(value)
    if not bool((tensor.isfinite() & (tensor > 0)).all()):
        raise ValueError(f"{name} must be positive and finite")
    return tensor


def _not_negative(name: str, value: Number) -> Tensor:
    tensor = _double(value)
    if not bool((tensor.isfinite() & (tensor >= 0)).all()):
        raise ValueError(f"{name} must be finite and not negative")
    return tensor
