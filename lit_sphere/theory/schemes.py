"""A step of any optimization scheme, seen on the unit sphere (SP §2.3, Theorem 2 and Table 1).

The generic scheme is x′ = x − η a ⊘ b with a = βa₋ + ∇L + λx (⊘: element by element): a direction, such as momentum,
and a divisor b > 0, such as Adam's; b = 1 for SGD. Notation of SP: r = ‖x‖, u = x/r, d the dimension,
ν = r d^(−½)‖b‖;

* c = r a ⊘ (b / (d^(−½)‖b‖)), the direction, and c⊥ = c − ⟨c, u⟩u;
* A = η / (r² d^(−½)‖b‖);
* η^e = A / (1 − A⟨c, u⟩), the effective learning rate.

Then u′ = (u − η^e c⊥) / √(1 + (η^e‖c⊥‖)²) and r′/r = (1 − A⟨c, u⟩)√(1 + (η^e‖c⊥‖)²), exactly. On a scale-invariant
loss ⟨∇L, x⟩ = 0, so that of SGD c⊥ is the gradient at u. For each scheme:

| scheme   | a             | b                  | 1 − A⟨c, u⟩      | η^e, Table 1     |
| -------- | ------------- | ------------------ | ---------------- | ---------------- |
| SGD      | ∇L            | 1                  | 1                | ``sgd_elr``      |
| SGD + L2 | ∇L + λx       | 1                  | 1 − ηλ           | ``sgd_elr``      |
| SGD-M    | βa₋ + ∇L + λx | 1                  | 1 − η⟨c, u⟩/r²   | ``momentum_elr`` |
| Adam     | m / (1 − β₁ᵏ) | √(v/(1 − β₂ᵏ)) + ε | 1 − η⟨c, u⟩/(rν) | ``adam_elr``     |

Decoupled weight decay λ, as in AdamW, is not in SP. The same derivation covers it: x′ = (1 − ηλ)x − η a ⊘ b is
(1 − ηλ) times the generic step with η/(1 − ηλ) in place of η, and a factor does not move u′.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_sphere.theory._arguments import Number, finite, kept, not_negative, on_one_device, positive, require
from lit_sphere.theory.sphere import effective_lr

_TOO_FAR = "the step turns x by a right angle or more (A⟨c, u⟩ ≥ 1)"


class SphericalStep(NamedTuple):
    """What a step of the generic scheme does to u = x/‖x‖; float64, batch shape (...).

    Attributes:
        elr: Effective learning rate η^e.
        direction: c⊥, shape (..., d).
        scale: A; with decoupled weight decay that of η/(1 − ηλ).
        radial: A⟨c, u⟩, the part of r that the step takes away.
        ess: Effective step size η^e‖c⊥‖, tangent of the angle between x and x′.
        norm_ratio: r′/r = (1 − A⟨c, u⟩)√(1 + (η^e‖c⊥‖)²), times 1 − ηλ where weight decay is decoupled.
        distance: Arc between u and u′ on the unit sphere, arctan(η^e‖c⊥‖), in radians.
        point: u′, shape (..., d).
    """

    elr: Tensor
    direction: Tensor
    scale: Tensor
    radial: Tensor
    ess: Tensor
    norm_ratio: Tensor
    distance: Tensor
    point: Tensor


def spherical_step(
    x: Tensor, a: Tensor, lr: Number, b: Tensor | None = None, decoupled_weight_decay: Number = 0.0
) -> SphericalStep:
    """Work out a step x′ = (1 − ηλ)x − η a ⊘ b on the unit sphere, SP Theorem 2. Exact.

    Args:
        x: Point before the step, shape (..., d), not zero.
        a: Direction (any weight decay that is not decoupled included), finite, shape (..., d).
        lr: η > 0, a number or shape (...).
        b: Divisor > 0, shape (..., d); None for 1.
        decoupled_weight_decay: λ ≥ 0 with ηλ < 1, a number or shape (...); 0 in SP.

    Returns:
        The step on the sphere.

    Raises:
        ValueError: If an argument is out of its range, or the step turns x by a right angle or more
            (A⟨c, u⟩ ≥ 1), where u′ no longer has this form.

    Example:
        >>> step = spherical_step(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0]), lr=0.4)
        >>> print(f"{step.elr:.2f} {step.ess:.2f} {step.distance:.4f}")  # η/r², and η‖a‖/r = tan of the angle
        0.10 0.60 0.5404
    """  # noqa: DOC502
    x, a, eta, decay, b = on_one_device(x, a, lr, decoupled_weight_decay, torch.ones_like(x) if b is None else b)
    x, a, b = finite("x", x), finite("a", a), positive("b", b)
    keep = kept(eta, decay)
    r = torch.linalg.vector_norm(x, dim=-1)
    require(r > 0, "x must not be zero")
    size = root_mean_square(b)
    u = x / r.unsqueeze(-1)
    c = r.unsqueeze(-1) * a / (b / size.unsqueeze(-1))
    along = (c * u).sum(-1)
    direction = c - along.unsqueeze(-1) * u
    scale = eta / keep / (r.square() * size)
    radial = scale * along
    elr = _effective(scale, radial)
    ess = elr * torch.linalg.vector_norm(direction, dim=-1)
    secant = radius_ratio(0.0, ess)  # √(1 + (η^e‖c⊥‖)²)
    point = (u - elr.unsqueeze(-1) * direction) / secant.unsqueeze(-1)
    return SphericalStep(elr, direction, scale, radial, ess, keep * radius_ratio(radial, ess), ess.arctan(), point)


def radius_ratio(radial: Number, ess: Number) -> Tensor:
    """Factor that a step changes the radius by, SP Theorem 2: r′/r = (1 − A⟨c, u⟩)√(1 + (η^e‖c⊥‖)²). Exact.

    On a scale-invariant loss 1 − A⟨c, u⟩ is 1 for SGD, whose radius never falls, 1 − ηλ with L2 regularisation,
    1 − η⟨c, u⟩/r² with momentum and 1 − η⟨c, u⟩/(rν) for Adam.

    Args:
        radial: A⟨c, u⟩ < 1.
        ess: η^e‖c⊥‖ ≥ 0.

    Returns:
        r′/r > 0, float64, broadcast; for AdamW it is 1 − ηλ times as large.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> print(f"{radius_ratio(0.0, 0.75):.2f}")  # a step of SGD with tangent 3/4
        1.25
    """  # noqa: DOC502
    radial, ess = on_one_device(radial, ess)
    taken, turned = finite("radial", radial), not_negative("ess", ess)
    require(taken < 1, _TOO_FAR)
    return torch.hypot(1 - taken, (1 - taken) * turned)


def elr_from_products(lr: Number, kept: Tensor, size: Number = 1.0) -> Tensor:
    """Effective learning rate from the inner product of the points before and after a step.

    Theorem 2 with 1 − A⟨c, u⟩ = ⟨x, x′⟩/r²: η^e = A/(1 − A⟨c, u⟩) = η / (d^(−½)‖b‖ ⟨x, x′⟩). It needs no
    element of c, and with b = 1 its inverse is additive over groups, as in TR eq. (3), where groups are trained
    with one learning rate. Decoupled weight decay is in x′. Nothing is checked, so that nothing waits for a device.

    Args:
        lr: η.
        kept: ⟨x, x′⟩, any shape; taken as 0 below, where the step goes beyond a right angle.
        size: d^(−½)‖b‖ of that shape, 1 for SGD.

    Returns:
        η^e, the same shape; infinite from a right angle on.
    """
    return lr / (size * kept.clamp(min=0))


def root_mean_square(b: Tensor) -> Tensor:
    """Size of a divisor in SP, d^(−½)‖b‖.

    Args:
        b: Shape (..., d), d ≥ 1.

    Returns:
        Shape (...), float64.

    Raises:
        ValueError: If an element is not finite, or there is none.

    Example:
        >>> print(root_mean_square(torch.tensor([1.0, 7.0])))
        tensor(5., dtype=torch.float64)
    """
    divisor = finite("b", b)
    if divisor.ndim == 0 or not divisor.shape[-1]:
        raise ValueError("b must have at least one element along its last dimension")
    size: Tensor = torch.linalg.vector_norm(divisor, dim=-1) / math.sqrt(divisor.shape[-1])
    return size


def sgd_elr(norm: Number, lr: Number, weight_decay: Number = 0.0) -> Tensor:
    """Effective learning rate of SGD, and of SGD with L2 regularisation, SP Table 1: η/(r²(1 − ηλ)).

    Without λ it is TR's (:func:`~lit_sphere.theory.sphere.effective_lr`).

    Args:
        norm: r > 0.
        lr: η > 0.
        weight_decay: λ ≥ 0 with ηλ < 1.

    Returns:
        η^e, float64, broadcast.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> print(f"{sgd_elr(2.0, 0.4):.3f} {sgd_elr(2.0, 0.4, weight_decay=0.5):.3f}")
        0.100 0.125
    """  # noqa: DOC502
    norm, lr, weight_decay = on_one_device(norm, lr, weight_decay)
    return effective_lr(norm, lr) / kept(lr, weight_decay)


def momentum_elr(norm: Number, lr: Number, along: Number) -> Tensor:
    """Effective learning rate of SGD with momentum, SP Table 1: (η/r²)(1 − η⟨c, u⟩/r²)⁻¹, c = r a.

    Args:
        norm: r > 0.
        lr: η > 0.
        along: ⟨c, u⟩ = ⟨a, x⟩ of the momentum buffer a, weight decay included.

    Returns:
        η^e, float64, broadcast.

    Raises:
        ValueError: If an argument is out of its range, or η⟨c, u⟩ ≥ r².

    Example:
        >>> print(f"{momentum_elr(2.0, 0.4, along=2.0):.3f}")  # 0.1 / (1 − 0.2)
        0.125
    """  # noqa: DOC502
    return adam_elr(norm, lr, along, size=1.0)


def adam_elr(norm: Number, lr: Number, along: Number, size: Number, decoupled_weight_decay: Number = 0.0) -> Tensor:
    """Effective learning rate of Adam, SP Table 1: (η/(rν))(1 − η⟨c, u⟩/(rν))⁻¹, ν = r d^(−½)‖b‖; and of AdamW.

    Args:
        norm: r > 0.
        lr: η > 0.
        along: ⟨c, u⟩.
        size: d^(−½)‖b‖ > 0.
        decoupled_weight_decay: λ ≥ 0 of AdamW with ηλ < 1 (not in SP): η/(1 − ηλ) takes the place of η.

    Returns:
        η^e, float64, broadcast.

    Raises:
        ValueError: If an argument is out of its range, or the step reaches a right angle.

    Example:
        >>> print(f"{adam_elr(2.0, 0.4, along=2.0, size=0.5):.3f}")  # 0.2 / (1 − 0.4)
        0.333
    """  # noqa: DOC502
    norm, lr, along, size, decoupled_weight_decay = on_one_device(norm, lr, along, size, decoupled_weight_decay)
    scale = sgd_elr(norm, lr, decoupled_weight_decay) / positive("size", size)
    return _effective(scale, scale * finite("along", along))


def rates_without_l2(lr: Number, weight_decay: Number, steps: int) -> Tensor:
    """Learning rates of SGD that takes the directions of SGD with L2 regularisation: η_k = η(1 − ηλ)^(−2k−1).

    SP eq. (46). Exact for a scale-invariant function: the weights of both differ by the factor (1 − ηλ)^k at step k.

    Args:
        lr: η > 0.
        weight_decay: λ ≥ 0 with ηλ < 1.
        steps: Number of steps, a whole number ≥ 0.

    Returns:
        η_0, η_1, …, float64, shape (..., steps) with the arguments' broadcast shape in front.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> print(rates_without_l2(0.5, 1.0, 3))
        tensor([ 1.,  4., 16.], dtype=torch.float64)
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps must be a whole number, and not negative, got {steps!r}")
    lr, weight_decay = on_one_device(lr, weight_decay)
    keep = kept(lr, weight_decay).unsqueeze(-1)
    k = torch.arange(steps, dtype=torch.float64, device=keep.device)
    return lr.unsqueeze(-1) * keep ** (-2 * k - 1)


def _effective(scale: Tensor, radial: Tensor) -> Tensor:
    """η^e = A/(1 − A⟨c, u⟩)."""
    require(radial < 1, _TOO_FAR)
    return scale / (1 - radial)
