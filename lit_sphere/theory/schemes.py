"""A step of any optimization scheme, seen on the unit sphere (SP §2.3, Theorem 2 and Table 1).

The generic scheme is x′ = x − η a ⊘ b (⊘: element by element), with a direction a such as momentum, and a divisor
b > 0 such as Adam's; b = 1 for SGD. Notation of SP: r = ‖x‖, u = x/r, d the dimension, ν = r d^(−½)‖b‖;

* c = r a ⊘ (b / (d^(−½)‖b‖)), the direction, and c⊥ = c − ⟨c, u⟩u;
* A = η / (r² d^(−½)‖b‖);
* η^e = A / (1 − A⟨c, u⟩), the effective learning rate.

Then u′ = (u − η^e c⊥) / √(1 + (η^e‖c⊥‖)²), exactly. Of SGD on a scale-invariant loss c⊥ is the gradient at u.

Decoupled weight decay λ, as in AdamW, is not in SP. The same derivation covers it: x′ = (1 − ηλ)x − η a ⊘ b is
(1 − ηλ) times the generic step with η/(1 − ηλ) in place of η, and a factor does not move u′.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

Number = Tensor | float


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
        a: Direction (any weight decay that is not decoupled included), shape (..., d).
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
    x, a = x.double(), a.double()
    b = torch.ones_like(x) if b is None else b.double()
    eta, decay = _number(lr, x), _number(decoupled_weight_decay, x)
    r = torch.linalg.vector_norm(x, dim=-1)
    _require(r > 0, "x must not be zero")
    _require(eta > 0, "lr must be positive")
    _require(b > 0, "b must be positive")
    _require((decay >= 0) & (eta * decay < 1), "decoupled_weight_decay must be ≥ 0, and below 1/lr")
    eta = eta / (1 - eta * decay)
    size = root_mean_square(b)
    u = x / r.unsqueeze(-1)
    c = r.unsqueeze(-1) * a / (b / size.unsqueeze(-1))
    along = (c * u).sum(-1)
    direction = c - along.unsqueeze(-1) * u
    scale = eta / (r.square() * size)
    radial = scale * along
    _require(radial < 1, "the step turns x by a right angle or more (A⟨c, u⟩ ≥ 1)")
    elr = scale / (1 - radial)
    ess = elr * torch.linalg.vector_norm(direction, dim=-1)
    secant = torch.hypot(torch.ones_like(ess), ess)
    point = (u - elr.unsqueeze(-1) * direction) / secant.unsqueeze(-1)
    ratio = (1 - _number(lr, x) * decay) * (1 - radial) * secant
    return SphericalStep(elr, direction, scale, radial, ess, ratio, ess.arctan(), point)


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
        b: Shape (..., d).

    Returns:
        Shape (...).
    """
    size: Tensor = torch.linalg.vector_norm(b, dim=-1) / math.sqrt(b.shape[-1])
    return size


def sgd_elr(norm: Number, lr: Number, weight_decay: Number = 0.0) -> Tensor:
    """Effective learning rate of SGD, and of SGD with L2 regularisation, SP Table 1: η/(r²(1 − ηλ)).

    Args:
        norm: r > 0.
        lr: η > 0.
        weight_decay: λ ≥ 0 with ηλ < 1.

    Returns:
        η^e, float64, broadcast.

    Raises:
        ValueError: If an argument is out of its range.
    """  # noqa: DOC502
    r, eta, decay = _numbers(norm, lr, weight_decay)
    _require((r > 0) & (eta > 0), "norm and lr must be positive")
    _require((decay >= 0) & (eta * decay < 1), "weight_decay must be ≥ 0, and below 1/lr")
    return eta / (r.square() * (1 - eta * decay))


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
    """  # noqa: DOC502
    r, eta, cu = _numbers(norm, lr, along)
    _require((r > 0) & (eta > 0), "norm and lr must be positive")
    _require(eta * cu < r.square(), "the step turns x by a right angle or more (η⟨c, u⟩ ≥ r²)")
    return eta / r.square() / (1 - eta * cu / r.square())


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
    """  # noqa: DOC502
    r, eta, cu, b, decay = _numbers(norm, lr, along, size, decoupled_weight_decay)
    _require((r > 0) & (eta > 0) & (b > 0), "norm, lr and size must be positive")
    _require((decay >= 0) & (eta * decay < 1), "decoupled_weight_decay must be ≥ 0, and below 1/lr")
    rate = eta / (1 - eta * decay) / (r.square() * b)
    _require(rate * cu < 1, "the step turns x by a right angle or more (A⟨c, u⟩ ≥ 1)")
    return rate / (1 - rate * cu)


def rates_without_l2(lr: float, weight_decay: float, steps: int) -> Tensor:
    """Learning rates of SGD that takes the directions of SGD with L2 regularisation: η_k = η(1 − ηλ)^(−2k−1) (SP §3).

    Exact for a scale-invariant function: the weights of both differ by the factor (1 − ηλ)^k at step k.

    Args:
        lr: η > 0.
        weight_decay: λ ≥ 0 with ηλ < 1.
        steps: Number of steps.

    Returns:
        η_0, η_1, …, float64, shape (steps,).

    Raises:
        ValueError: If an argument is out of its range.
    """
    if not (math.isfinite(lr) and lr > 0 and weight_decay >= 0 and lr * weight_decay < 1 and steps >= 0):
        raise ValueError("needs lr > 0, weight_decay ≥ 0 below 1/lr, and steps ≥ 0")
    return lr * (1 - lr * weight_decay) ** (-2 * torch.arange(steps, dtype=torch.float64) - 1)


def _number(value: Number, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=like.device)


def _numbers(*values: Number) -> list[Tensor]:
    return list(torch.broadcast_tensors(*(torch.as_tensor(value, dtype=torch.float64) for value in values)))


def _require(holds: Tensor, message: str) -> None:
    if not bool(holds.all()):
        raise ValueError(message)
