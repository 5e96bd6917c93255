"""Where a formula of the papers is misprinted, the right form holds and the printed one does not."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_sphere.theory import rates_without_l2, sgd_elr, spherical_step
from lit_sphere.theory import weight_decay as wd


def gradient(x: Tensor, seed: int) -> Tensor:
    """Of a scale-invariant function, another one for each seed."""
    x = x.clone().requires_grad_()
    matrix = torch.randn(len(x), len(x), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (grad,) = torch.autograd.grad(x @ matrix @ x / (x @ x), x)
    return grad


def test_the_constant_of_the_equilibrium_is_rate_over_twice_the_decay() -> None:
    """PB eq. (16) has the fraction inverted: ρ⁴ → Cg̃² with C = η/2λ."""
    lr, decay, g, norm = 0.05, 0.02, 3.0, 2.0
    for _ in range(8_000):
        norm = wd.next_norm(norm, g, lr, decay).item()
    right, printed = lr / (2 * decay), 2 * decay / lr
    assert norm**4 / g**2 == pytest.approx(right, rel=lr * decay)
    assert abs(norm**4 / g**2 / printed - 1) > 0.2
    assert wd.equilibrium_norms(g, g, lr, decay).low.item() == pytest.approx(norm, rel=1e-9)


@pytest.mark.parametrize("factor", [0.6, 2.0])
def test_the_bounds_on_jumps_need_their_kappa(factor: float) -> None:
    """PB A.7 leaves κ out once. Runs that are rescaled (Proposition 4) jump at the same step: only with κ they do."""
    delta, ell, big, norm, lr, decay = 1e-3, 1.0, 1.5, 12.0, 0.4, 0.05

    def t_max(norm: float, lr: float, decay: float, with_kappa: bool) -> float:
        kappa = math.sqrt(lr / (2 * decay)) if with_kappa else 1.0
        threshold = lr * ell / math.sqrt(2 * delta)
        return math.log((threshold - kappa * big) / (norm**2 - kappa * big)) / math.log(1 - 2 * lr * decay)

    once = norm, lr, decay
    again = factor * norm, factor**2 * lr, decay / factor**2
    assert t_max(*again, with_kappa=True) == pytest.approx(t_max(*once, with_kappa=True), rel=1e-12)
    assert abs(t_max(*again, with_kappa=False) - t_max(*once, with_kappa=False)) > 0.5
    exact = [wd.steps_before_jump(start, delta, ell, big, eta, wd_) for start, eta, wd_ in (once, again)]
    assert exact[0].high.item() == exact[1].high.item()
    assert exact[0].high.item() == pytest.approx(t_max(*once, with_kappa=True), rel=0.05)


@pytest.mark.parametrize("weight_decay", [0.1, 1.0])
def test_l2_regularisation_raises_the_effective_learning_rate(weight_decay: float) -> None:
    """SP §3.2 has the sign of λ wrong: η/(r²(1 − ηλ)), not η/(r²(1 + ηλ))."""
    x, lr = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.3
    direction = gradient(x, 1) + weight_decay * x
    seen = spherical_step(x, direction, lr).elr.item()
    r = x.norm().item()
    assert seen == pytest.approx(sgd_elr(r, lr, weight_decay).item(), rel=1e-12)
    assert abs(seen / (lr / (r**2 * (1 + lr * weight_decay))) - 1) > 0.05


def test_sgd_with_l2_regularisation_is_sgd_with_growing_rates() -> None:
    """SP eq. (46): η_k = η(1 − ηλ)^(−2k−1), exactly; with the other sign directions part at once."""
    lr, decay, steps = 0.2, 0.3, 60
    start = torch.randn(8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    regularised = unit(points(start, torch.full((steps,), lr, dtype=torch.float64), decay))
    rates = rates_without_l2(lr, decay, steps)
    torch.testing.assert_close(unit(points(start, rates)), regularised, rtol=1e-9, atol=1e-9)
    assert (unit(points(start, lr**2 / rates)) - regularised).norm(dim=1).max() > 0.1


def points(start: Tensor, rates: Tensor, l2: float = 0.0, seed: int = 0) -> Tensor:
    """Weights after each step of SGD, another function in each."""
    x, out = start, []
    for k, rate in enumerate(rates):
        x = x - rate * (gradient(x, seed + k) + l2 * x)
        out.append(x)
    return torch.stack(out)


def unit(x: Tensor) -> Tensor:
    directions: Tensor = x / x.norm(dim=1, keepdim=True)
    return directions


@settings(deadline=None, max_examples=40)
@given(
    lr=st.floats(1e-3, 0.05),
    product=st.floats(0, 0.05),
    dim=st.integers(2, 12),
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 40),
)
def test_growing_rates_equal_l2_regularisation(lr: float, product: float, dim: int, seed: int, steps: int) -> None:
    """SP eq. (46): the same directions, and norms that differ by (1 − ηλ)^k after k steps."""
    start, decay = torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), product / lr
    start /= start.norm()
    regularised = points(start, torch.full((steps,), lr, dtype=torch.float64), decay, seed)
    free = points(start, rates_without_l2(lr, decay, steps), seed=seed)
    torch.testing.assert_close(unit(free), unit(regularised), rtol=0, atol=1e-10)
    left = (1 - product) ** torch.arange(1, steps + 1, dtype=torch.float64)
    torch.testing.assert_close(left * free.norm(dim=1), regularised.norm(dim=1), rtol=1e-10, atol=0)


@settings(deadline=None, max_examples=100)
@given(
    lr=st.floats(1e-3, 10),
    product=st.floats(0, 0.95),
    dim=st.integers(2, 12),
    seed=st.integers(0, 10**6),
    k=st.integers(0, 100),
)
def test_each_growing_rate_equals_its_step_with_l2(lr: float, product: float, dim: int, seed: int, k: int) -> None:
    """SP eq. (46), one η_k of any size, where long runs are chaotic: weights of both differ by (1 − ηλ)^k before it."""
    decay = product / lr
    x = torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = x / (1 - product) ** k
    (rate,) = rates_without_l2(lr, decay, k + 1)[-1:]
    left = (1 - product) ** (k + 1) * points(y, rate.view(1), seed=seed)
    regularised = points(x, torch.tensor([lr], dtype=torch.float64), decay, seed)
    assert ((left - regularised).norm() / regularised.norm()).item() < 1e-12
