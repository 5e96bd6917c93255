"""Which minima gradient descent on the sphere can stay at: those with no eigenvalue above 2/η̃."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lit_sphere.analysis.curvature import sphere_hessian, top_eigenvalue
from lit_sphere.analysis.sharpness import Objective
from lit_sphere.groups import find_groups
from lit_sphere.networks import ConvNet
from lit_sphere.optim import SphereSGD
from lit_sphere.theory.sphere import largest_stable_eigenvalue
from lit_sphere.theory.toy import equilibrium_loss, toy_loss

ALPHAS = st.lists(st.floats(0.2, 5.0), min_size=1, max_size=4)


def minimum(norms: list[float], signs: int = 0) -> Tensor:
    """Minimum of the toy with pairs of these norms: x = 0; some y may be negative."""
    y = torch.tensor([-r if signs >> i & 1 else r for i, r in enumerate(norms)], dtype=torch.float64)
    return torch.stack([torch.zeros_like(y), y])


def effective_hessian(point: Tensor, alphas: list[float]) -> Tensor:
    """ρ² times the Hessian of the toy at a minimum, on the tangent space of the joint sphere; by autograd."""
    alpha, theta = torch.tensor(alphas, dtype=torch.float64), point.flatten()
    hessian = torch.autograd.functional.hessian(lambda v: toy_loss(v.view_as(point), alpha), theta)
    assert isinstance(hessian, Tensor)
    projector = torch.eye(len(theta), dtype=theta.dtype) - torch.outer(theta, theta) / (theta @ theta)
    return (theta @ theta) * projector @ hessian @ projector


def descend(point: Tensor, alphas: list[float], elr: float, steps: int) -> Tensor:
    theta = nn.Parameter(point.clone())
    optimizer = SphereSGD([theta], elr=elr)
    alpha = torch.tensor(alphas, dtype=torch.float64)
    for _ in range(steps):
        optimizer.zero_grad()
        toy_loss(theta, alpha).backward()
        optimizer.step()
    return theta.detach()


@settings(deadline=None)
@given(alphas=ALPHAS, seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
def test_the_tangent_hessian_of_the_toy(alphas: list[float], seed: int, scale: float) -> None:
    """One eigenvalue 2α_i ρ²/ρ_i² for each pair, and flat directions along which the norms are exchanged."""
    rho = scale * (0.2 + torch.rand(len(alphas), generator=torch.Generator().manual_seed(seed)).double())
    seen = torch.linalg.eigvalsh(effective_hessian(minimum(rho.tolist(), seed), alphas))
    steep = 2 * torch.tensor(alphas, dtype=torch.float64) * rho.square().sum() / rho.square()
    expected = torch.cat([torch.zeros(len(alphas), dtype=torch.float64), steep.sort().values])
    torch.testing.assert_close(seen, expected, rtol=1e-9, atol=1e-9 * steep.max().item())


@settings(deadline=None, max_examples=50)
@given(alphas=ALPHAS, seed=st.integers(0, 1000), ratio=st.floats(0.3, 1.7), scale=st.floats(0.1, 10))
def test_a_displacement_grows_above_the_largest_stable_eigenvalue(
    alphas: list[float], seed: int, ratio: float, scale: float
) -> None:
    rho = scale * (0.5 + torch.rand(len(alphas), generator=torch.Generator().manual_seed(seed)).double())
    point = minimum(rho.tolist())
    values, vectors = torch.linalg.eigh(effective_hessian(point, alphas))
    elr = ratio * 2 / values[-1].item()  # 2/η̃ is the top eigenvalue where the ratio is one
    assert largest_stable_eigenvalue(elr).item() == pytest.approx(values[-1].item() / ratio, rel=1e-12)
    away = 1e-7 * scale * vectors[:, -1].view_as(point)
    moved = descend(point + away, alphas, elr, 1) - point
    torch.testing.assert_close(moved, (1 - 2 * ratio) * away, rtol=0, atol=1e-11 * scale)
    assume(abs(ratio - 1) > 0.01)
    grows = values[-1] > largest_stable_eigenvalue(elr)
    assert bool(moved.norm() > away.norm()) == bool(grows)


@settings(deadline=None, max_examples=50)
@given(alphas=ALPHAS, seed=st.integers(0, 1000))
def test_no_minimum_of_the_toy_is_flatter_than_twice_the_sum(alphas: list[float], seed: int) -> None:
    rho = 0.1 + torch.rand(len(alphas), generator=torch.Generator().manual_seed(seed)).double()
    sharpness = torch.linalg.eigvalsh(effective_hessian(minimum(rho.tolist()), alphas))[-1].item()
    flattest = [math.sqrt(alpha / sum(alphas)) for alpha in alphas]
    least = torch.linalg.eigvalsh(effective_hessian(minimum(flattest), alphas))[-1].item()
    assert least == pytest.approx(largest_stable_eigenvalue(1 / sum(alphas)).item(), rel=1e-9)
    assert sharpness >= least * (1 - 1e-9)
    if len(alphas) == 1:
        assert sharpness == pytest.approx(least, rel=1e-9)  # 2α, whatever the norm


@pytest.mark.parametrize("alphas", [[1.0], [1.0, 2.0, 4.0]])
@pytest.mark.parametrize("norms", [[1.0, 1.0, 1.0], [3.0, 1.0, 0.3]])
def test_below_the_threshold_a_run_leaves_a_sharp_minimum_for_one_that_holds(
    alphas: list[float], norms: list[float]
) -> None:
    start = minimum(norms[: len(alphas)])
    start = start / start.norm()
    off = start + 1e-6 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=start.dtype)
    elr = 0.9 / sum(alphas)
    sharp = torch.linalg.eigvalsh(effective_hessian(start, alphas))[-1] > largest_stable_eigenvalue(elr)
    assert bool(sharp) == (len(alphas) > 1)
    end = descend(off, alphas, elr, 3000)
    assert toy_loss(end, torch.tensor(alphas, dtype=torch.float64)).item() < 1e-20
    assert torch.linalg.eigvalsh(effective_hessian(end, alphas))[-1] < largest_stable_eigenvalue(elr)
    assert bool((end - start).norm() > 0.01) == bool(sharp)
    # Above the threshold no minimum holds, not even the flattest, where this one begins.
    flattest = minimum([math.sqrt(alpha / sum(alphas)) for alpha in alphas]) + off - start
    elr, alpha = 1.1 / sum(alphas), torch.tensor(alphas, dtype=torch.float64)
    losses = [toy_loss(descend(flattest, alphas, elr, n), alpha).item() for n in (0, 2000)]
    assert losses[0] < 1e-9
    assert losses[1] == pytest.approx(equilibrium_loss(alphas, elr).item(), rel=0.01)


def test_a_real_network_leaves_a_minimum_that_is_too_sharp() -> None:
    """The targets are the network's own outputs, so that its weights are an exact minimum."""
    torch.manual_seed(0)
    net = ConvNet(2, in_channels=1, scale_invariant=True, eps=1e-30).double()
    images = torch.randn(24, 1, 8, 8, dtype=torch.float64)
    (targets,) = (net(images).detach(),)
    params = [p for group in find_groups(net, images[:2]) for p in group.parameters]
    theta = [p.detach().clone() for p in params]
    product = sphere_hessian(Objective(net, lambda: [(images, targets)], params, F.mse_loss))
    sharpness = top_eigenvalue(product, torch.cat([p.detach().flatten() for p in params]), tolerance=1e-10)

    def distances(elr: float) -> list[float]:
        """From the minimum along 400 steps from close by."""
        g = torch.Generator().manual_seed(1)
        for p, old in zip(params, theta, strict=True):
            p.data.copy_(old + 1e-8 * torch.randn(p.shape, generator=g, dtype=p.dtype))
        optimizer, seen = SphereSGD(params, elr=elr), []
        for _ in range(400):
            optimizer.zero_grad()
            F.mse_loss(net(images), targets).backward()
            seen.append(sum((p.detach() - old).norm().item() ** 2 for p, old in zip(params, theta, strict=True)) ** 0.5)
            optimizer.step()
        return seen

    stays, leaves = distances(0.97 * 2 / sharpness), distances(1.03 * 2 / sharpness)
    assert sharpness < largest_stable_eigenvalue(0.97 * 2 / sharpness)
    assert sharpness > largest_stable_eigenvalue(1.03 * 2 / sharpness)
    assert max(stays) < 2 * stays[0]
    # A displacement along the top eigenvector grows by |1 − η̃h| = 1.06 a step.
    first = next(n for n, distance in enumerate(leaves) if distance > 100 * leaves[0])
    assert leaves[first] / leaves[first - 10] == pytest.approx(1.06**10, rel=1e-3)
    assert max(leaves) > 1e4 * leaves[0]  # then the weights drift to where the top eigenvalue is a little lower
