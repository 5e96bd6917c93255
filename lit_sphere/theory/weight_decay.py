"""Norm and effective learning rate of scale-invariant weights under SGD with weight decay (PB §3 and appendix A).

The step is x′ = (1 − ηλ)x − η∇f(x), with ⟨∇f(x), x⟩ = 0 and ‖∇f(x)‖ = g̃(x/‖x‖)/‖x‖: η learning rate, λ weight
decay, ρ = ‖x‖, g̃ effective gradient norm. ``grad_min`` ≤ g̃ ≤ ``grad_max`` are PB's ℓ and L.
All arguments may be numbers or tensors of any real dtype, and broadcast; results are float64.
"""

import torch
from torch import Tensor

from lit_sphere.theory._arguments import Number, double, finite, kept, not_negative, on_one_device, positive, require
from lit_sphere.theory.undetermined import Interval, undetermined_interval


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
    norm, effective_grad_norm, lr, weight_decay = on_one_device(norm, effective_grad_norm, lr, weight_decay)
    rho, g = positive("norm", norm), not_negative("effective_grad_norm", effective_grad_norm)
    return torch.hypot(kept(lr, weight_decay) * rho, double(lr) * g / rho)


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
    return _secant(_step_tangent(norm, effective_grad_norm, lr, weight_decay)).reciprocal()


def step_distance(norm: Number, effective_grad_norm: Number, lr: Number, weight_decay: Number) -> Tensor:
    """Cosine distance of a step, 1 − cos(x, x′), which PB holds against δ: 1 − :func:`step_cosine`, small ones too.

    To first order η²g̃²/(2ρ⁴). It grows with g̃: bounds ℓ ≤ g̃ ≤ L bound it by its values at ℓ and L.

    Args:
        norm: ρ > 0 before the step.
        effective_grad_norm: g̃ ≥ 0 = ρ‖∇f‖.
        lr: η > 0.
        weight_decay: λ ≥ 0, with ηλ < 1.

    Returns:
        1 − cos(x, x′) in [0, 1), right to its last digits where the cosine itself rounds to 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> print(f"{step_distance(10.0, 1e-6, 0.1, 0.0):.2e}")  # η²g̃²/(2ρ⁴)
        5.00e-19
    """  # noqa: DOC502
    tangent = _step_tangent(norm, effective_grad_norm, lr, weight_decay)
    secant = _secant(tangent)
    return tangent / secant * (tangent / (1 + secant))  # 1 − 1/secant, without cancellation or overflow


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
    delta, effective_grad_norm, lr, weight_decay = on_one_device(delta, effective_grad_norm, lr, weight_decay)
    g, keep = positive("effective_grad_norm", effective_grad_norm), kept(lr, weight_decay)
    return (double(lr) * g / (keep * _tangent(delta))).sqrt()


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
    norm, delta, grad_min, grad_max, lr, weight_decay = on_one_device(norm, delta, grad_min, grad_max, lr, weight_decay)
    rho2, a = positive("norm", norm).square(), _decay(lr, weight_decay)
    fixed_min, fixed_max = (double(lr) * g / a.sqrt() for g in _ordered(grad_min, grad_max))
    possible = jump_norm(delta, grad_max, lr, weight_decay).square()
    certain = jump_norm(delta, grad_min, lr, weight_decay).square()
    low = _steps(rho2, possible, fixed_min, 1 - 2 * a)
    # Where the map may throw ρ² far up again (2a ≥ 1) there is no such lower bound but the trivial one.
    low = torch.where(2 * a < 1, low, 0.0)
    return Interval(low, _steps(rho2, certain, fixed_max, 1 - a).ceil())


def equilibrium_norms(grad_min: Number, grad_max: Number, lr: Number, weight_decay: Number) -> Interval:
    """Norms at the generalised equilibrium (PB §3): κℓ ≤ ρ² ≤ κL for large t, κ = √(η/2λ).

    Exact form: ρ² is a β-undetermined sequence with α = 1 − (1 − ηλ)² and β = η²g̃² in [η²ℓ², η²L²]
    (:func:`~lit_sphere.theory.undetermined.undetermined_interval`); PB's κ is the first order in ηλ of η/√α.

    Args:
        grad_min: ℓ > 0.
        grad_max: L ≥ ℓ.
        lr: η > 0.
        weight_decay: λ > 0, with ηλ < 1.

    Returns:
        Bounds of ρ.

    Raises:
        ValueError: If an argument is out of its range, or the interval can be left (see
            :func:`~lit_sphere.theory.undetermined.undetermined_interval`).
    """  # noqa: DOC502
    grad_min, grad_max, lr, weight_decay = on_one_device(grad_min, grad_max, lr, weight_decay)
    betas = [(double(lr) * g).square() for g in _ordered(grad_min, grad_max)]
    squares = undetermined_interval(_decay(lr, weight_decay), *betas)
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
    grad_min, grad_max, lr, weight_decay = on_one_device(grad_min, grad_max, lr, weight_decay)
    norms = equilibrium_norms(grad_min, grad_max, lr, weight_decay)
    return Interval(double(lr) / norms.high.square(), double(lr) / norms.low.square())


def equilibrium_ess(lr: Number, weight_decay: Number) -> Tensor:
    """Effective step size at a fixed norm: √(1 − (1 − ηλ)²)/(1 − ηλ), to first order √(2ηλ). Exact.

    PB's generalised equilibrium where ℓ = L = g̃. A step that leaves the norm as it is, ρ′ = ρ, has by
    :func:`next_norm` ρ⁴ = η²g̃²/(1 − (1 − ηλ)²). In :func:`step_cosine` ρ and g̃ then cancel: the cosine of the step
    is 1 − ηλ, and its tangent is the effective step size, the same for every group, whatever the gradients. A step
    with a larger tangent ηg̃/((1 − ηλ)ρ²) raises the norm and lowers the ELR, one with a smaller tangent does the
    reverse: these are phases A and B of PB's periods.

    Args:
        lr: η > 0.
        weight_decay: λ > 0, with ηλ < 1.

    Returns:
        Tangent of the angle of a step, dimensionless, broadcast.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> print(f"{equilibrium_ess(0.1, 0.05):.6f}")  # √(2 · 0.1 · 0.05) = 0.1
        0.100377
    """  # noqa: DOC502
    return _decay(lr, weight_decay).sqrt() / kept(lr, weight_decay)


def rescaled(x: Number, lr: Number, weight_decay: Number, factor: Number) -> tuple[Tensor, Tensor, Tensor]:
    """Give another start, learning rate and weight decay with the same functions at all steps (PB Proposition 4).

    (x₀, η, λ) and (cx₀, c²η, λ/c²) train a scale-invariant function through the same directions x/‖x‖.

    Args:
        x: x₀, any shape.
        lr: η > 0.
        weight_decay: λ ≥ 0, with ηλ < 1.
        factor: c > 0; a number, or of a shape that broadcasts with the others.

    Returns:
        cx₀, c²η, λ/c²; their product ηλ is the same.

    Raises:
        ValueError: If an argument is out of its range.
    """  # noqa: DOC502
    x, lr, weight_decay, factor = on_one_device(x, lr, weight_decay, factor)
    c, _ = positive("factor", factor), kept(lr, weight_decay)
    return finite("x", x) * c, c.square() * double(lr), double(weight_decay) / c.square()


def _step_tangent(norm: Number, effective_grad_norm: Number, lr: Number, weight_decay: Number) -> Tensor:
    """Tangent ηg̃/((1 − ηλ)ρ²) of the angle of a step."""
    norm, effective_grad_norm, lr, weight_decay = on_one_device(norm, effective_grad_norm, lr, weight_decay)
    rho, g = positive("norm", norm), not_negative("effective_grad_norm", effective_grad_norm)
    return double(lr) * g / rho / (kept(lr, weight_decay) * rho)


def _secant(tangent: Tensor) -> Tensor:
    return torch.hypot(torch.ones_like(tangent), tangent)


def _steps(start: Tensor, goal: Tensor, fixed: Tensor, rate: Tensor) -> Tensor:
    """Steps in which ``start − fixed``, shrinking by ``rate`` a step, comes down to ``goal − fixed``."""
    reached = start <= goal
    never = reached.logical_not() & (goal <= fixed)
    ratio = torch.where(reached | never, 1.0, (goal - fixed) / (start - fixed))
    steps = torch.where(ratio < 1, ratio.log() / rate.clamp(min=1e-300).log(), 0.0)
    return torch.where(never, torch.inf, steps)


def _tangent(delta: Number) -> Tensor:
    """Tangent of the angle of a step whose cosine is 1 − δ."""
    delta = positive("delta", delta)
    require(delta < 1, "delta must be below 1: no step turns weights by a right angle or more")
    # √((1 − δ)⁻² − 1) without cancellation at small δ
    return (delta * (2 - delta)).sqrt() / (1 - delta)


def _decay(lr: Number, weight_decay: Number) -> Tensor:
    """α = 1 − (1 − ηλ)², without cancellation."""
    lr, weight_decay = on_one_device(lr, weight_decay)
    product = positive("lr", lr) * positive("weight_decay", weight_decay)
    return product * (1 + kept(lr, weight_decay))


def _ordered(grad_min: Number, grad_max: Number) -> tuple[Tensor, Tensor]:
    low, high = positive("grad_min", grad_min), positive("grad_max", grad_max)
    require(low <= high, "grad_min must not be above grad_max")
    return low, high
