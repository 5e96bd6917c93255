"""TR eqs. (3), (4) and (5) along steps of the toy, for any weights, and what is refused."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_sphere.theory import next_elr, total_elr, total_ess
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
    torch.testing.assert_close(total_elr(elrs), torch.tensor(elr, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(total_ess(elrs, esses), ess, rtol=1e-12, atol=1e-300)
    moved = point - eta * gradient
    moved = moved * rho / moved.norm()
    torch.testing.assert_close(next_elr(elrs, esses, ess), eta / moved.norm(dim=0) ** 2, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda good, bad: total_elr(bad), "learning rates must be positive"),
        (lambda good, bad: total_ess(bad, good), "learning rates must be positive"),
        (lambda good, bad: next_elr(bad, good, good), "learning rates must be positive"),
        (lambda good, bad: total_ess(good, bad), "step sizes must not be negative"),
        (lambda good, bad: next_elr(good, bad, good), "step sizes must not be negative"),
    ],
)
def test_what_has_no_meaning_is_refused(call: Callable[[Tensor, Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.tensor([0.1, 0.2]), torch.tensor([0.1, -0.2]))
