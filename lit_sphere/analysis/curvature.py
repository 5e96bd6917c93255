"""Curvature of the loss on the sphere of scale-invariant parameters: traces of Fisher and Hessian, top eigenvalue.

All are *effective*: those at radius 1, ρ² times those of the parameters at radius ρ, hence the same wherever a
scale-invariant function is rescaled. Hessian products are double backward passes of our own, since curvature libraries
do not take batch norm in train mode: curvlinops 3.0 refuses running statistics (``torch.func`` may not update them) and
takes twice the time without them; PyHessian 0.1 puts the model into eval mode. Lanczos is scipy's.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_sphere.analysis.sharpness import Objective, flatten
from lit_sphere.optim import joint_norm

Product = Callable[[Tensor], Tensor]
"""Maps a tangent vector (n,) to the effective Hessian's product with it, (n,), tangent too."""

_DENSE = 20  # dimensions up to which a matrix is made instead of Lanczos vectors
_LANCZOS_VECTORS = 20
_RESTARTS = 20


class TraceEstimate(NamedTuple):
    """A random estimate.

    Attributes:
        value: Mean over random vectors.
        standard_error: Of this mean.
    """

    value: float
    standard_error: float


class Curvature(NamedTuple):
    """Effective curvature at one point.

    Attributes:
        fisher_trace: Estimated trace of the Fisher information; None where there are no logits.
        fisher_trace_error: Its standard error, or None.
        hessian_trace: Estimated trace of :func:`sphere_hessian`.
        hessian_trace_error: Its standard error.
        top_eigenvalue: Largest eigenvalue of :func:`sphere_hessian`.
    """

    fisher_trace: float | None
    fisher_trace_error: float | None
    hessian_trace: float
    hessian_trace_error: float
    top_eigenvalue: float


def measure_curvature(
    objective: Objective, vectors: int = 16, seed: int = 0, rank: int = 0, world_size: int = 1
) -> Curvature:
    """Measure all of it, in the time of some 200 training steps for each mini-batch.

    Args:
        objective: Loss and mini-batches; its parameters are those that are scale-invariant.
        vectors: Random vectors for the trace of the Hessian, at least 2.
        seed: Seed of random vectors and labels.
        rank: This process has samples ``rank::world_size`` of each mini-batch.
        world_size: Number of processes.

    Returns:
        The traces and the top eigenvalue.
    """
    product, point = sphere_hessian(objective), flatten(objective.parameters)
    fisher: tuple[float | None, float | None] = (None, None)
    if objective.loss is None:
        fisher = fisher_trace(objective, vectors, seed, rank, world_size)
    hessian = hutchinson_trace(product, point, vectors, seed)
    return Curvature(fisher[0], fisher[1], *hessian, top_eigenvalue(product, point, seed))


def fisher_trace(
    objective: Objective, vectors: int = 16, seed: int = 0, rank: int = 0, world_size: int = 1
) -> TraceEstimate:
    """Estimate the effective trace of the Fisher information, ρ² tr F.

    tr F is the mean over samples of Σ_c p_c ‖∇ log p_c‖² with p = softmax(logits): labels are the model's own, not the
    true ones. With J the Jacobian of the logits it is tr Jᵀ(diag p − ppᵀ)J, the mean of ‖Jᵀu‖² for
    u = √p ⊙ z − p ⟨√p, z⟩ and random signs z. These are independent between samples, so that one backward pass a
    mini-batch gives Σ_i ‖J_iᵀu_i‖² without bias, also where batch norm couples the samples. (To draw labels instead has
    the same mean; but where training has converged, it rests on the rare draws that are no true labels.)

    Args:
        objective: Model with logits, and mini-batches; its criterion and labels are not used.
        vectors: Random signs for each sample, a pass over the mini-batches each; at least 2.
        seed: Their seed.
        rank: This process has samples ``rank::world_size`` of each mini-batch.
        world_size: Number of processes.

    Returns:
        The mean over samples.

    Raises:
        ValueError: If there is no mini-batch, ``vectors`` is less than 2, or the objective has no logits.
    """
    if vectors < 2:
        raise ValueError(f"a trace needs at least 2 random vectors, got {vectors}")
    if objective.loss is not None:
        raise ValueError("the Fisher information is that of logits, and the objective has a loss only")
    generator = torch.Generator().manual_seed(seed)

    def score(logits: Tensor) -> Tensor:
        signs = _signs((len(logits) * world_size, logits.shape[1]), generator)[rank::world_size].to(logits)
        p = logits.detach().softmax(1)
        z = p.sqrt() * signs
        return (logits * (z - p * z.sum(1, keepdim=True))).sum()

    def one_pass() -> float:
        total: Tensor | None = None
        for gradient, sums in objective.gradients(score):
            size = sums[2]
            batch = torch.stack([size.square() * joint_norm([gradient]).square(), size])
            total = batch if total is None else total + batch
        if total is None:
            raise ValueError("nothing to measure: there is no mini-batch")
        return float((total[0] / total[1] * squared_radius).item())

    squared_radius = joint_norm(objective.parameters).square()
    return _estimate(one_pass, vectors)


def sphere_hessian(objective: Objective) -> Product:
    """Make the product with the effective Riemannian Hessian of the mean loss on the sphere through the parameters.

    With θ all parameters as one vector, ρ = ‖θ‖ and the projection P = I − θθᵀ/ρ² it is
    ρ² (P H P − ⟨∇L, θ⟩/ρ² P); for a scale-invariant loss ⟨∇L, θ⟩ = 0. The mean is over samples, each mini-batch with
    its own batch statistics.

    Args:
        objective: Loss and mini-batches, gone over once for each product.

    Returns:
        The product; a vector's part along θ does not matter.

    Example:
        >>> A = torch.diag(torch.tensor([1.0, 2.0, 5.0]))
        >>> theta = torch.tensor([0.0, 3.0, 0.0], requires_grad=True)
        >>> def rayleigh(logits, labels):
        ...     return theta @ A @ theta / (theta @ theta)
        >>> batches = [(torch.zeros(1, 1), torch.zeros(1))]
        >>> product = sphere_hessian(Objective(lambda x: x, lambda: batches, [theta], rayleigh))
        >>> print(product(torch.tensor([1.0, 0.0, 0.0])).round())  # eigenvalues 2(λ_i − λ_k) at eigenvector k
        tensor([-2.,  0.,  0.])
        >>> round(top_eigenvalue(product, theta), 4)
        6.0
    """
    sizes = [p.numel() for p in objective.parameters]
    point = flatten(objective.parameters)
    squared_radius = joint_norm(objective.parameters).square().to(point.dtype)

    def tangent(v: Tensor) -> Tensor:
        return v - point * (point @ v / squared_radius)

    def product(v: Tensor) -> Tensor:
        v = tangent(v)
        parts = zip(objective.parameters, v.split(sizes), strict=True)
        curved, sums = _hessian_sums(objective, [part.view_as(p).to(p.dtype) for p, part in parts])
        curved, sums = objective.add_up(curved), objective.add_up(sums)
        slope, count = sums.to(v.dtype)
        result: Tensor = (squared_radius * tangent(curved) - slope * v) / count
        return result

    return product


def _hessian_sums(objective: Objective, vector: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Sums over the samples of this process: Hessian times vector; and ⟨∇, θ⟩, 1."""
    params = list(objective.parameters)
    curved = torch.zeros_like(flatten(params))
    sums = curved.new_zeros(2, dtype=torch.float64)
    with _twice_differentiable():
        for batch in objective.batches():
            found = objective.loss_sum(batch)
            if found is None:
                continue
            loss, count = found
            grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True, materialize_grads=True)
            used = [(g, v) for g, v in zip(grads, vector, strict=True) if g.requires_grad]
            outputs, vectors = zip(*used, strict=True)
            rows = torch.autograd.grad(outputs, params, vectors, allow_unused=True, materialize_grads=True)
            curved += flatten(rows)
            sums += torch.stack([flatten(grads).double() @ flatten(params).double(), sums.new_tensor(count)])
    return curved, sums


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Take plain kernels: those of compiled networks and of fast attention have no second derivative."""
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        yield


def hutchinson_trace(product: Product, point: Tensor, vectors: int = 16, seed: int = 0) -> TraceEstimate:
    """Estimate a trace as the mean of vᵀHv over random vectors v of ±1 (Hutchinson 1989).

    Args:
        product: From :func:`sphere_hessian`.
        point: All parameters as one vector, shape (n,).
        vectors: Number of vectors, at least 2.
        seed: Their seed.

    Returns:
        The mean and its standard error.

    Raises:
        ValueError: If ``vectors`` is less than 2.
    """
    if vectors < 2:
        raise ValueError(f"a trace needs at least 2 random vectors, got {vectors}")
    generator = torch.Generator().manual_seed(seed)

    def one() -> float:
        v = _signs(point.shape, generator).to(point)
        return (v.double() @ product(v).double()).item()

    return _estimate(one, vectors)


def _signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(2, tuple(shape), generator=generator) * 2 - 1


def _estimate(draw: Callable[[], float], count: int) -> TraceEstimate:
    values = [draw() for _ in range(count)]
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return TraceEstimate(mean, math.sqrt(variance / count))


def top_eigenvalue(product: Product, point: Tensor, seed: int = 0, tolerance: float = 1e-3) -> float:
    """Find the largest eigenvalue on the tangent space of the sphere, by Lanczos' method (ARPACK).

    A reflection takes the point to a coordinate axis, which is then left out: the normal of the sphere is no
    eigenvector here, whatever the signs of the others.

    Args:
        product: From :func:`sphere_hessian`.
        point: All parameters as one vector, shape (n,), n > 1.
        seed: Seed of the first vector.
        tolerance: Relative.

    Returns:
        The eigenvalue; NaN where the products are not finite, or the method does not converge within some 300.
    """
    point = flatten([point])
    axis = point / point.norm()
    axis[0] += torch.copysign(torch.ones_like(axis[0]), axis[0])
    axis /= axis.norm()  # of the Householder reflection I − 2 axis axisᵀ
    dimension = len(point) - 1

    def reflected(v: Tensor) -> Tensor:
        image: Tensor = v - 2 * axis * (axis @ v)
        return image

    def reduced(v: Any) -> Any:
        inner = torch.cat([point.new_zeros(1), torch.as_tensor(v.reshape(-1)).to(point)])
        outer = reflected(product(reflected(inner)))[1:]
        if not bool(outer.isfinite().all()):
            raise FloatingPointError
        return outer.cpu().numpy()

    try:
        if dimension <= _DENSE:
            basis = torch.eye(dimension, dtype=point.dtype).numpy()
            columns = torch.stack([torch.as_tensor(reduced(row)) for row in basis])
            return float(torch.linalg.eigvalsh((columns + columns.T) / 2)[-1])
        start = torch.randn(dimension, generator=torch.Generator().manual_seed(seed), dtype=point.dtype).numpy()
        operator = LinearOperator((dimension, dimension), matvec=reduced, dtype=start.dtype)
        options: dict[str, Any] = {"v0": start, "tol": tolerance, "ncv": _LANCZOS_VECTORS, "maxiter": _RESTARTS}
        return float(eigsh(operator, k=1, which="LA", return_eigenvectors=False, **options)[0])
    except (FloatingPointError, ArpackNoConvergence):
        return math.nan
