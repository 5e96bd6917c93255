"""What TR §3 says of the toy F(x, y) = Σ α_i x_i²/(x_i² + y_i²) on the sphere: threshold, equilibrium, orbits."""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_sphere.theory._arguments import Number, Numbers, on_one_device, positive


class Orbit(NamedTuple):
    """Where one term of the toy settles, as the angle φ from its minimum, tan φ = x/y; float64, broadcast.

    Attributes:
        angle: φ* in [0, π/4): the point is at φ* and −φ* in turn; 0 is the minimum itself.
        loss: α sin² φ*.
        contraction: Factor of a small distance from the orbit in one step; the orbit attracts if |factor| < 1.
        ess: Effective step size on the orbit, the tangent of 2φ*: √((η̃α)² − 1), 0 at the minimum.
    """

    angle: Tensor
    loss: Tensor
    contraction: Tensor
    ess: Tensor


def threshold_elr(alphas: Numbers) -> Tensor:
    """Effective learning rate up to which the toy can converge, 1/Σα; 1/α for one term (TR §3).

    Below it some minima hold, and runs find them; above it none does
    (:func:`~lit_sphere.theory.sphere.largest_stable_eigenvalue`).

    Args:
        alphas: α_i > 0, shape (n,), n ≥ 1.

    Returns:
        1/Σα, float64, shape ().

    Raises:
        ValueError: If an α is not positive and finite, or there is none.

    Example:
        >>> print(f"{threshold_elr([1.0, 2.0, 4.0]):.4f}")
        0.1429
    """  # noqa: DOC502
    return terms(alphas).sum().reciprocal()


def equilibrium_loss(alphas: Numbers, elr: Number) -> Tensor:
    """Level at which the toy settles: 0 for η̃ ≤ 1/Σα, else ½(Σα − 1/η̃).

    TR §3 shows ½(α − 1/η̃) for one term. The sum is a corollary: η̃_i* α_i = η̃ Σα in every term.

    Args:
        alphas: α_i > 0, shape (n,), n ≥ 1.
        elr: Effective learning rate η̃ > 0, any shape.

    Returns:
        The mean of F, float64, shape of ``elr``.

    Raises:
        ValueError: If an α or an ELR is not positive and finite, or there is no α.

    Example:
        >>> print(equilibrium_loss([1.0, 2.0, 4.0], torch.tensor([0.1, 0.2, 0.5])))
        tensor([0.0000, 1.0000, 2.5000], dtype=torch.float64)
    """  # noqa: DOC502
    alphas, elr = on_one_device(alphas, elr)
    return one_term_orbit(terms(alphas).sum(), elr).loss


def one_term_orbit(alpha: Number, elr: Number) -> Orbit:
    """Period-2 orbit of F = α x²/(x² + y²) at a fixed effective learning rate (TR Proposition 1).

    A step takes φ to φ − arctan(η̃α sin 2φ). For η̃α < 1 it contracts linearly to the minimum; for η̃α > 1 to
    ±φ* with cos 2φ* = 1/(η̃α), where F = ½(α − 1/η̃), at whatever ELR. At η̃α = 1 it neither contracts nor grows at
    first order (it converges, slower than linearly).

    Args:
        alpha: α > 0.
        elr: η̃ > 0.

    Returns:
        The orbit.

    Raises:
        ValueError: If α or the ELR is not positive and finite.

    Example:
        >>> orbit = one_term_orbit(1.0, 2.0)  # cos 2φ* = ½
        >>> print(f"{orbit.angle:.4f} {orbit.loss:.2f} {orbit.contraction:.2f}")  # π/6
        0.5236 0.25 0.50
    """  # noqa: DOC502
    alpha, elr = on_one_device(alpha, elr)
    term, rate = torch.broadcast_tensors(positive("alpha", alpha), positive("elr", elr))
    product = term * rate
    beyond = product.clamp(min=1)
    ess = ((beyond - 1) * (beyond + 1)).sqrt()
    loss = ((term - rate.reciprocal()) / 2).clamp(min=0)
    contraction = torch.where(product > 1, 1 - 2 / beyond.square(), 1 - 2 * product)
    return Orbit(ess.arctan() / 2, loss, contraction, ess)


def equilibrium_elrs(alphas: Numbers, elr: Number) -> Tensor:
    """Effective learning rates to which the groups settle where F does not converge: η̃_i* = η̃ Σα_j/α_i (TR §3).

    Then η̃_i* α_i = η̃ Σα for all: every pair is on the orbit of Proposition 1 with the same φ*, and takes steps of the
    same effective size, √((η̃ Σα)² − 1). Where F converges, the ELRs stay wherever they are at the end.

    Not every run finds these orbits. From η̃ Σα ≈ 2 on chaos sets in, where ELRs have heavy tails; and in narrow windows
    below some starts lock into longer cycles: at η̃ Σα = 1.2 and α = 1, 2, 4 one in six, of period 6, with mean ELRs up
    to 18 % above these and a loss 1 % below :func:`equilibrium_loss`.

    Args:
        alphas: α_i > 0, shape (n,), n ≥ 1.
        elr: Effective learning rate η̃ > 0 of all groups together, any shape.

    Returns:
        η̃_i* of each group, float64, shape (..., n); their η̃ by TR eq. (3) is ``elr``.

    Raises:
        ValueError: If an α or an ELR is not positive and finite, or there is no α.

    Example:
        >>> print(equilibrium_elrs([1.0, 2.0, 4.0], 0.2))
        tensor([1.4000, 0.7000, 0.3500], dtype=torch.float64)
    """  # noqa: DOC502
    alphas, elr = on_one_device(alphas, elr)
    alpha = terms(alphas)
    return positive("elr", elr).unsqueeze(-1) * alpha.sum() / alpha


def terms(alphas: Numbers) -> Tensor:
    """Take the α of a toy.

    Args:
        alphas: α_i > 0, shape (n,), n ≥ 1.

    Returns:
        They, float64.

    Raises:
        ValueError: If an α is not positive and finite, or there is none.
    """
    alpha = positive("α", alphas)
    if alpha.ndim != 1 or not len(alpha):
        raise ValueError("the toy needs at least one α")
    return alpha
