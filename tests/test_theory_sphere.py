"""TR eqs. (3), (4) and (5) along steps of the toy, for any weights, and what is refused."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lit_sphere.theory import effective_grad_norm, effective_lr, effective_step_size, next_elr, total_elr, total_ess
from lit_sphere.theory.toy import toy_gradient


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    alphas=st.lists(st.floats(0.1, 10), min_size=1, max_size=6),
    elr=st.floats(1e-3, 5),
)
def test_identities_hold_for_a_step_on_the_joint_sphere(seed: int, alphas: list[float], elr: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    point = torch.randn(2, len(alphas), generator=generator, dtype=torch.float64)
    assume(point.square().sum(0).min() > 1e-3)
    rho = point.norm()
    gradient = toy_gradient(point, torch.tensor(alphas, dtype=torch.float64))
    eta = elr * rho**2
    rho_i, g_i = point.norm(dim=0), gradient.norm(dim=0)
    elrs, esses = eta / rho_i**2, eta * g_i / rho_i
    ess = eta * gradient.norm() / rho
    torch.testing.assert_close(effective_lr(rho_i, eta), elrs, rtol=1e-14, atol=0)
    torch.testing.assert_close(effective_step_size(rho_i, g_i, eta), esses, rtol=1e-14, atol=0)
    torch.testing.assert_close(total_elr(elrs), torch.tensor(elr, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(total_ess(elrs, esses), ess, rtol=1e-12, atol=1e-300)
    moved = point - eta * gradient
    moved = moved * rho / moved.norm()
    torch.testing.assert_close(next_elr(elrs, esses, ess), eta / moved.norm(dim=0) ** 2, rtol=1e-10, atol=0)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    alphas=st.lists(st.floats(0.1, 10), min_size=1, max_size=6),
    scale=st.floats(0.01, 100),
    lr=st.floats(1e-3, 5),
)
def test_effective_quantities_are_those_of_the_unit_sphere(
    seed: int, alphas: list[float], scale: float, lr: float
) -> None:
    """‖∇F‖ of weights c times as long is 1/c as large: g̃, and with η/c² the ELR, do not see c."""
    generator = torch.Generator().manual_seed(seed)
    point = scale * torch.randn(2, len(alphas), generator=generator, dtype=torch.float64)
    assume(point.square().sum(0).min() > 1e-3 * scale**2)
    alpha = torch.tensor(alphas, dtype=torch.float64)
    gradient, rho = toy_gradient(point, alpha), point.norm()
    unit = toy_gradient(point / rho, alpha).norm()
    effective = effective_grad_norm(rho, gradient.norm())
    torch.testing.assert_close(effective, unit, rtol=1e-12, atol=1e-300)
    ess = effective_step_size(rho, gradient.norm(), lr)
    torch.testing.assert_close(ess, effective_lr(rho, lr) * effective, rtol=1e-12, atol=0)
    # The tangent of the angle of a step of SGD; Euler's identity makes it so.
    moved = point - lr * gradient
    along = (moved * point).sum() / rho
    across = (moved - along * point / rho).norm()
    torch.testing.assert_close(across / along, ess, rtol=1e-9, atol=1e-12)


def test_groups_of_one_step_size_turn_like_the_whole() -> None:
    """TR eq. (4) with equal steps, and eq. (5): then no ELR moves."""
    elrs, ess = torch.tensor([0.1, 3.0, 0.7]), torch.tensor(0.25, dtype=torch.float64)
    torch.testing.assert_close(total_ess(elrs, ess.expand(3)), ess)
    assert torch.equal(next_elr(elrs, ess, ess), elrs.double())
    assert total_elr(elrs) < elrs.min()
    assert next_elr(1.0, 0.5, 0.1) < 1 < next_elr(1.0, 0.1, 0.5)
