"""The precision in which a model is probed, and what counts as zero in it."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """Floating-point type of a probe, and its tolerances.

    Attributes:
        dtype: What parameters, inputs and intermediate results are computed in.
        tolerance: Scale-invariant is what changes by less than this, relatively. In float64 it stays below 1e-12,
            and the rest above 1e-5.
        no_influence: A tensor's gradient below this, relative to the largest, is rounding error: of a bias in front
            of a batch norm, say.
        eps: In place of the eps of norm layers, which refuse 0 while training: it drowns in any variance there is, and
            leaves gradients of a norm of zeros (a padding token) finite.
        step: Relative step of a derivative along a tensor.
        relation: Singular values below this, relative to the largest, are relations between derivatives.
        snap: Exponents are small fractions; this far from one, by the step's curvature, is taken for it.
        denominator: Largest denominator of these: 1 for linear maps, 1/2 for roots, 2 for squares.
        vanishing: A derivative below this, relative to its function, is rounding error.
    """

    dtype: torch.dtype
    tolerance: float
    no_influence: float
    eps: float
    step: float
    relation: float
    snap: float
    denominator: int
    vanishing: float


# Steps are powers of two: scaling by 1 + step is exact where digits allow.
DOUBLE = Precision(torch.float64, 1e-9, 1e-11, 1e-30, 2.0**-20, 1e-6, 1e-3, 12, 1e-8)
SINGLE = Precision(torch.float32, 2e-4, 1e-6, 1e-20, 2.0**-8, 1e-3, 2e-2, 4, 1e-3)
