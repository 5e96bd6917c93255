"""Where norm and step size of scale-invariant weights settle under any optimizer with weight decay.

Kosson, Messmer and Jaggi, "Rotational Equilibrium: How Weight Decay Balances Learning Across Neural Networks" (2023,
arXiv:2305.17212), after PB §3 for plain SGD. Derived anew here, without the approximations for small ηλ that can be
spared. The model: at each step the gradient has a fixed effective norm g̃ and a random direction across the weights, of
many dimensions, that does not depend on the steps before (*white* gradients). The weights are then, element by
element, an autoregressive process of second order that white noise drives,

    x_{t+1} = φ₁x_t + φ₂x_{t−1} + σ(n_t + θn_{t−1}),    1 − φ₁ − φ₂ = p,

whose variance gives the norm and whose correlation from one step to the next the cosine between the weights before and
after a step. 1 minus it is ``distance``, as the monitors log it; its tangent is the effective step size of SP
Theorem 2, ``ess`` in the logs. This is the angle between consecutive iterates, of the whole step with its momentum: not
that of the last gradient alone.

| optimizer | φ₂ | p | θ | σ | 1 − cos |
|---|---|---|---|---|---|
| SGD, momentum μ, dampening τ, c = 1 − τ | −μ | cηλ | 0 | cηg̃/ρ | cηλ/(1 + μ) |
| SGD, Nesterov | −μ(1 − ηλ) | ηλ | −μ/(1 + μ) | (1 + μ)ηg̃/ρ | ≈ ηλ(1 + 2μ − 2μ³)/(1 + μ) |
| AdamW | −β₁(1 − ηλ) | ηλ(1 − β₁) | 0 | (1 − β₁)η√d | ηλ(1 − β₁)/(1 + β₁(1 − ηλ)) |
| Adam, L2: SGD with η√d ρ/g̃ for η | −β₁ | (1 − β₁)η_eλ | 0 | (1 − β₁)η√d | (1 − β₁)η_eλ/(1 + β₁) |

Adam's divisor is taken to be its mean (β₂ → 1, ε → 0); d is the number of elements. Lion's signs are no linear filter
of gradients: see :func:`lion_equilibrium`.

How norms get there is given by three laws (:data:`Law`), of first order in ηλ.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lit_sphere.theory._arguments import Number, finite, kept, not_negative, on_one_device, positive, require

Law = Literal["gradient", "fixed", "l2"]
"""How long an update is while the norm is ρ = uρ*, and so how u changes: τ is ``Rotation.steps``, t counts steps.

* ``gradient``: as the gradient, ∝ 1/ρ (SGD): d(u²)/dt = (u⁻² − u²)/τ, the ESS is u⁻² that of the equilibrium;
* ``fixed``: of a fixed length (AdamW, Lion): d(u²)/dt = (1 − u²)/τ, the ESS is u⁻¹ that of the equilibrium;
* ``l2``: of a fixed length, and the decay ∝ ρ (Adam with L2): d(u²)/dt = (1 − u³)/τ, ESS as before.
"""


class Rotation(NamedTuple):
    """Where a scale-invariant weight settles; float64, broadcast.

    Attributes:
        ess: Effective step size: tangent of the angle between the weights before and after a step.
        distance: Cosine distance 1 − cos of the same angle.
        norm: ρ*.
        steps: Time constant τ, in steps: so long weight decay alone would take to bring ρ² down to 1/e of itself.
            1/(2ηλ) to first order, (1 − μ)/(2cηλ) of SGD with momentum, whose steps add up.
    """

    ess: Tensor
    distance: Tensor
    norm: Tensor
    steps: Tensor


def sgd_equilibrium(
    effective_grad_norm: Number,
    lr: Number,
    weight_decay: Number,
    momentum: Number = 0.0,
    dampening: Number = 0.0,
    nesterov: bool = False,
) -> Rotation:
    """Equilibrium of ``torch.optim.SGD`` with any of its options. Exact for white gradients.

    b' = μb + (1 − τ)(∇ + λx), x' = x − ηb', or x' = x − η(∇ + λx + μb') of Nesterov's. Without momentum it is PB's
    (:func:`~lit_sphere.theory.weight_decay.equilibrium_ess`). To first order ρ⁴ = cηg̃²/(2λ(1 − μ)), with c = 1 − τ,
    and ESS = √(2cηλ/(1 + μ)), with (1 + 2μ − 2μ³)/(1 + μ) in place of 1/(1 + μ) of Nesterov's.

    Args:
        effective_grad_norm: g̃ > 0.
        lr: η > 0.
        weight_decay: λ > 0, with ηλ < 1; added to the gradient.
        momentum: μ in [0, 1).
        dampening: τ in [0, 1); 0 with ``nesterov``.
        nesterov: Nesterov's momentum.

    Returns:
        The equilibrium.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> settled = sgd_equilibrium(1.0, lr=0.1, weight_decay=0.01, momentum=0.9)
        >>> print(f"{settled.ess:.5f} {settled.norm:.4f} {settled.steps:.1f}")  # √(2·0.001/1.9); (0.1/0.002)^¼; 50
        0.03246 2.6593 44.7
    """  # noqa: DOC502
    values = on_one_device(effective_grad_norm, lr, weight_decay, momentum, dampening)
    g, eta, decay = (positive(*each) for each in zip(_SGD[:3], values[:3], strict=True))
    mu, damp = (_fraction(*each) for each in zip(_SGD[3:], values[3:], strict=True))
    keep = kept(eta, decay)
    if nesterov:
        require(damp == 0, "Nesterov's momentum has no dampening")
        gap, second, theta, size = 1 - keep, -mu * keep, -mu / (1 + mu), (1 + mu) * eta
    else:
        gap, second, theta, size = (1 - damp) * eta * decay, -mu, torch.zeros_like(mu), (1 - damp) * eta
    distance, variance = _process(gap, second, theta)
    return _rotation(distance, (variance.sqrt() * size * g).sqrt(), _time(gap, second))


_SGD = ("effective_grad_norm", "lr", "weight_decay", "momentum", "dampening")


def adamw_equilibrium(size: Number, lr: Number, weight_decay: Number, beta1: Number = 0.9) -> Rotation:
    """Equilibrium of AdamW, whatever the gradients' size. Exact for white gradients in the limit β₂ → 1, ε → 0.

    x' = (1 − ηλ)x − ηm/√v, where m/√v has elements of variance (1 − β₁)/(1 + β₁). To first order
    ESS = √(2ηλ(1 − β₁)/(1 + β₁)) and ρ² = ηd/(2λ).

    Args:
        size: Number d ≥ 1 of elements that have gradients.
        lr: η > 0.
        weight_decay: λ > 0, decoupled, with ηλ < 1.
        beta1: β₁ in [0, 1).

    Returns:
        The equilibrium.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> settled = adamw_equilibrium(1000, lr=1e-3, weight_decay=0.1)
        >>> print(f"{settled.ess:.6f} {settled.norm:.4f} {settled.steps:.0f}")
        0.003245 2.2351 5000
    """  # noqa: DOC502
    size, lr, weight_decay, beta1 = on_one_device(size, lr, weight_decay, beta1)
    d, beta, keep = positive("size", size), _fraction("beta1", beta1), _keep(lr, weight_decay)
    distance, variance = _process((1 - keep) * (1 - beta), -keep * beta, torch.zeros_like(beta))
    return _rotation(distance, variance.sqrt() * (1 - beta) * lr * d.sqrt(), -0.5 / torch.log1p(-lr * weight_decay))


def adam_equilibrium(
    effective_grad_norm: Number, size: Number, lr: Number, weight_decay: Number, beta1: Number = 0.9
) -> Rotation:
    """Equilibrium of Adam with L2 regularisation; exact for white gradients while β₂ → 1, ε → 0, λρ ≪ g̃/ρ.

    λx is added to the gradient, and divided as it is: Adam is SGD with dampening, μ = β₁ and τ = β₁, at the learning
    rate η_e = η√d/√(g̃²/ρ² + λ²ρ²), which the norm decides. To first order ρ³ = ηg̃√d/(2λ). The ESS depends on the
    gradients: unlike those of AdamW, groups do not settle at one (Kosson et al. §3.4).

    Args:
        effective_grad_norm: g̃ > 0.
        size: Number d ≥ 1 of elements that have gradients.
        lr: η > 0.
        weight_decay: λ > 0, L2.
        beta1: β₁ in [0, 1).

    Returns:
        The equilibrium.

    Raises:
        ValueError: If an argument is out of its range, or η_eλ would not be below 1.

    Example:
        >>> settled = adam_equilibrium(2.0, 1000, lr=1e-3, weight_decay=1e-3)
        >>> print(f"{settled.ess:.6f} {settled.norm:.4f} {settled.steps:.0f}")  # (1e-3 · 2 · √1000 / 2e-3)^⅓ = 3.16
        0.002294 3.1623 9995
    """  # noqa: DOC502
    g, d, eta, decay, beta = on_one_device(effective_grad_norm, size, lr, weight_decay, beta1)
    g, d = positive("effective_grad_norm", g), positive("size", d)
    eta, decay, beta = positive("lr", eta), positive("weight_decay", decay), _fraction("beta1", beta)
    # h = η_eλ and r = (λρ)²/(g̃/ρ)²: r = h(1 + β₁)/(2(1 + β₁) − (1 − β₁)h) of SGD, and h of r by η_e's definition.
    scale = eta * (d * decay / g).sqrt()
    h = (scale**4 / 2) ** (1 / 3)
    for _ in range(60):  # the exponent of r is ¼: each time a quarter of the error is left
        r = h * (1 + beta) / (2 * (1 + beta) - (1 - beta) * h.clamp(max=1))
        h = scale * r**0.25 / (1 + r).sqrt()
    require(h < 1, "η_e · weight_decay must be below 1: lr and weight_decay are too large for these gradients")
    distance, _ = _process((1 - beta) * h, -beta, torch.zeros_like(beta))
    return _rotation(distance, (g / decay).sqrt() * r**0.25, _time((1 - beta) * h, -beta))


def lion_equilibrium(
    size: Number, lr: Number, weight_decay: Number, beta1: Number = 0.9, beta2: Number = 0.99
) -> Rotation:
    """Equilibrium of Lion, whatever the gradients' size. Exact for white gradients with normal elements.

    x' = (1 − ηλ)x − η sign(a), a = β₁m + (1 − β₁)∇, m' = β₂m + (1 − β₂)∇. With A₀ = (1 − β₁)² + β₁²(1 − β₂)/(1 + β₂),
    a has the correlation r_k = r₁β₂^(k−1) over k steps, r₁A₀ = (1 − β₂)(β₁(1 − β₁) + β₁²β₂/(1 + β₂)), and its sign
    (2/π) arcsin r_k. An update lasts S = 1 + (4/π) Σ (1 − ηλ)^k arcsin r_k steps, and ρ² = η²dS/(1 − (1 − ηλ)²). To
    first order ESS = √(2ηλ/S), where Kosson et al. linearise the sign and have √(πηλA₀).

    Args:
        size: Number d ≥ 1 of elements that have gradients.
        lr: η > 0.
        weight_decay: λ > 0, decoupled, with ηλ < 1.
        beta1: β₁ in [0, 1).
        beta2: β₂ in [0, 1).

    Returns:
        The equilibrium.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> settled = lion_equilibrium(1000, lr=1e-4, weight_decay=1.0)
        >>> print(f"{settled.ess:.6f} {settled.norm:.4f} {settled.steps:.0f}")
        0.002095 1.5081 5000
    """  # noqa: DOC502
    size, lr, weight_decay, b1, b2 = on_one_device(size, lr, weight_decay, beta1, beta2)
    d, keep = positive("size", size), _keep(lr, weight_decay)
    b1, b2 = _fraction("beta1", b1), _fraction("beta2", b2)
    power = (1 - b1).square() + b1.square() * (1 - b2) / (1 + b2)
    first = (1 - b2) * (b1 * (1 - b1) + b1.square() * b2 / (1 + b2)) / power
    lasts = 1 + 4 / math.pi * _sum_of_arcsines(first, b2, keep)
    shrink = lr * weight_decay
    lost = shrink * (1 + keep)  # 1 − keep²
    distance = (lost / lasts - shrink.square()) / (2 * keep)
    return _rotation(distance, lr * (d * lasts / lost).sqrt(), -0.5 / torch.log1p(-shrink))


def measured_equilibrium(ess: Number, radial: Number, decay: Number, law: Law = "fixed") -> tuple[Tensor, Tensor]:
    """Equilibrium of any optimizer, foretold from what an update does to the weights now.

    A step takes the share ``radial`` of the norm away and turns the weights by the tangent ``ess``: the norm changes by
    the factor (1 − radial)√(1 + ess²) (SP Theorem 2). Weight decay takes the share D of it whatever the norm; what is
    left, D − ``radial``, and the square of the step's length are both inverse to the square of the norm (or, of updates
    as long as gradients, to its fourth power). The norm stays where both balance. To first order
    ESS*² = ESS²·D/(D − radial + ½ESS²). Nothing is assumed of the gradients; where they are white, it is what the other
    functions say, and where consecutive updates agree more than that, the ESS is lower, as it will be.

    Args:
        ess: Effective step size ≥ 0, a mean over steps.
        radial: Share of the norm that a step takes away along the weights < 1, a mean over the same steps.
        decay: D in (0, 1), the share that weight decay takes: ηλ where it is decoupled.
        law: How the length of an update depends on the norm.

    Returns:
        ESS*, and the ratio ρ/ρ* of the present norm to that of the equilibrium; both infinite where the update, decay
        aside, does not lengthen the weights, so that nothing balances the decay.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> ess, ratio = measured_equilibrium(ess=0.05, radial=0.005, decay=0.005)  # steps across the weights
        >>> print(f"{ess:.4f} {ratio:.4f}")  # √(2D) to first order: the ESS doubles as the norm halves
        0.1004 2.0075
    """  # noqa: DOC502
    ess, radial, decay = on_one_device(ess, radial, decay)
    tangent, taken, share = not_negative("ess", ess), finite("radial", radial), positive("decay", decay)
    require((taken < 1) & (share < 1), "radial and decay must be below 1")
    _check_law(law)
    keep, rest, across = 1 - share, taken - share, (1 - taken) * tangent
    lost = share * (1 + keep)  # 1 − keep²
    # With rest and across² times z the squared norm stays: (keep − rest z)² + across² z = 1.
    lengthens = across.square() - 2 * keep * rest
    z = 2 * lost / (lengthens + (lengthens.square() + 4 * rest.square() * lost).sqrt())
    if law == "l2":  # D falls with the norm as well: D u⁻¹ = ½ lengthens u², u = ρ/ρ*
        z = (lost / lengthens) ** (2 / 3)
    settled = across * z.sqrt() / (keep - rest * z)
    found = (lengthens > 0) & (keep - rest * z > 0)
    ratio = z.sqrt() if law != "gradient" else z**0.25
    return torch.where(found, settled, torch.inf), torch.where(found, ratio, torch.inf)


def steps_to_equilibrium(norm_ratio: Number, steps: Number, law: Law, tolerance: Number = 0.1) -> Tensor:
    """Steps until the effective step size is as near to that of the equilibrium, by the three laws (:data:`Law`).

    Args:
        norm_ratio: u = ρ/ρ* > 0 at the start: above 1 where steps are too small.
        steps: τ > 0 (:class:`Rotation`), in steps; infinite without weight decay.
        law: How norms get there.
        tolerance: Relative distance in (0, 1).

    Returns:
        Number of steps, 0 where it is so near already.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> print(f"{steps_to_equilibrium(2.0, 500.0, 'fixed'):.0f} {steps_to_equilibrium(0.5, 500.0, 'fixed'):.0f}")
        1274 732
    """  # noqa: DOC502
    norm_ratio, steps, tolerance = on_one_device(norm_ratio, steps, tolerance)
    u, near = positive("norm_ratio", norm_ratio), positive("tolerance", tolerance)
    require((steps > 0) & (near < 1), "steps must be positive, and tolerance below 1")
    _check_law(law)
    power = 2 if law == "gradient" else 1
    end = torch.where(u > 1, 1 - near, 1 + near) ** (-1 / power)
    there = torch.where(u > 1, u <= end, u >= end)
    u = torch.where(there, end, u)
    if law == "l2":
        return steps * (_l2_time(end) - _l2_time(u))
    exponent = 2 * power
    return steps / power * ((u**exponent - 1) / (end**exponent - 1)).log()


def relaxed_norm(norm_ratio: Number, time: Number, law: Law) -> Tensor:
    """Norm after some time, by the three laws (:data:`Law`).

    Args:
        norm_ratio: u = ρ/ρ* > 0 at the start.
        time: t/τ ≥ 0, the number of steps in time constants.
        law: How norms get to the equilibrium.

    Returns:
        u afterwards.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> print(f"{relaxed_norm(2.0, 1274 / 500, 'fixed'):.3f}")  # the steps above: the ESS is 0.9 that of ρ*
        1.111
    """  # noqa: DOC502
    norm_ratio, time = on_one_device(norm_ratio, time)
    u, span = positive("norm_ratio", norm_ratio), not_negative("time", time)
    _check_law(law)
    if law == "gradient":
        return (1 + (u**4 - 1) * torch.exp(-2 * span)).sqrt().sqrt()
    if law == "fixed":
        return (1 + (u.square() - 1) * torch.exp(-span)).sqrt()
    near, far = torch.ones_like(u + span), u + 0 * span
    for _ in range(40):  # bisection: the time from u on rises towards 1
        middle = (near + far) / 2
        late = _l2_time(middle) - _l2_time(u) > span
        near, far = torch.where(late, middle, near), torch.where(late, far, middle)
    middle = (near + far) / 2
    return middle


def _process(gap: Tensor, second: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """1 − correlation of consecutive values of an ARMA(2, 1) process, and its variance for noise of variance 1.

    Yule and Walker's equations for φ₁ = 1 − p − φ₂, solved without cancellation at small p.

    Args:
        gap: p = 1 − φ₁ − φ₂ > 0.
        second: φ₂.
        theta: θ ≤ 0.

    Returns:
        Both.
    """
    rest = 1 - second
    first = rest - gap
    noise = 1 + theta.square() + 2 * theta * first / rest
    variance = noise * rest / ((1 + second) * gap * (rest + first))
    return (gap - theta / variance) / rest, variance


def _time(gap: Tensor, second: Tensor) -> Tensor:
    """−1/(2 ln|z|) for the slowest root z = 1 − e of z² = φ₁z + φ₂: e² − (1 + p + φ₂)e + p = 0."""
    middle = 1 + gap + second
    root = middle.square() - 4 * gap
    real = 2 * gap / (middle + root.clamp(min=0).sqrt())
    decays = torch.where(root >= 0, torch.log1p(-real.clamp(max=1)), (-second).clamp(min=0).log() / 2)
    return -0.5 / decays


def _rotation(distance: Tensor, norm: Tensor, steps: Tensor) -> Rotation:
    ess = (distance * (2 - distance)).sqrt() / (1 - distance)
    return Rotation(*torch.broadcast_tensors(ess, distance, norm, steps))


def _sum_of_arcsines(first: Tensor, ratio: Tensor, keep: Tensor) -> Tensor:
    """Σ keep^k arcsin(first · ratio^(k − 1)) over k ≥ 1, by the series of arcsin, each power a geometric series."""
    largest = float(first.max()) if first.numel() else 0.0
    terms = 1 if largest == 0 else math.ceil(min(20000.0, 1 - 18 / math.log(largest)))
    n = torch.arange(terms, dtype=torch.float64, device=first.device)
    log_of = torch.lgamma(2 * n + 1) - 2 * torch.lgamma(n + 1) - n * math.log(4) - (2 * n + 1).log()
    powers = 2 * n + 1
    first, ratio, keep = (each.unsqueeze(-1) for each in torch.broadcast_tensors(first, ratio, keep))
    return (log_of.exp() * first**powers * keep / (1 - keep * ratio**powers)).sum(-1)


def _l2_time(u: Tensor) -> Tensor:
    """∫ 2u du/(1 − u³), in time constants, up to a constant that differs between u < 1 and u > 1."""
    angle = torch.atan((2 * u + 1) / math.sqrt(3))
    return 2 / 3 * ((1 + u + u.square()).log() / 2 - (1 - u).abs().log() - math.sqrt(3) * angle)


def _keep(lr: Tensor, weight_decay: Tensor) -> Tensor:
    positive("weight_decay", weight_decay)
    return kept(lr, weight_decay)


def _fraction(name: str, value: Tensor) -> Tensor:
    value = not_negative(name, value)
    require(value < 1, f"{name} must be below 1")
    return value


def _check_law(law: str) -> None:
    if law not in get_args(Law):
        raise ValueError(f"law must be one of {', '.join(get_args(Law))}, got {law!r}")
