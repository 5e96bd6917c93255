"""SP Theorem 2 and Table 1 against the step itself, in float64."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lit_sphere.theory import (
    adam_elr,
    effective_grad_norm,
    elr_from_products,
    momentum_elr,
    next_norm,
    radius_ratio,
    root_mean_square,
    sgd_elr,
    spherical_step,
    step_cosine,
)

SEEDS = st.integers(0, 10**6)
RATES = st.floats(1e-6, 1.0)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(measured: torch.Tensor, closed: torch.Tensor | float, rtol: float = 1e-12, atol: float = 0.0) -> None:
    torch.testing.assert_close(measured, torch.as_tensor(closed, dtype=torch.float64), rtol=rtol, atol=atol)


def tangent(x: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Of the angle between two points, by the rejection of one from the other."""
    u = x / x.norm(dim=-1, keepdim=True)
    along = (new * u).sum(-1, keepdim=True)
    tan: torch.Tensor = (new - along * u).norm(dim=-1) / along.squeeze(-1)
    return tan


@settings(deadline=None, max_examples=200)
@given(seed=SEEDS, d=st.integers(2, 40), eta=RATES, decay=st.floats(0, 0.9), scale=st.floats(1e-3, 1e3))
def test_theorem_2_is_the_step_itself(seed: int, d: int, eta: float, decay: float, scale: float) -> None:
    x, a = scale * random(seed, 3, d), random(seed + 1, 3, d)
    b = random(seed + 2, 3, d).abs() + 1e-3
    decay = decay / eta  # ηλ < 1
    new = (1 - eta * decay) * x - eta * a / b
    assume(bool(((new * x).sum(-1) > 1e-3 * new.norm(dim=-1) * x.norm(dim=-1)).all()))
    step = spherical_step(x, a, eta, b, decay)
    close(step.point, new / new.norm(dim=-1, keepdim=True), atol=1e-12)
    close(step.norm_ratio, new.norm(dim=-1) / x.norm(dim=-1), rtol=1e-11)
    # x′ holds a small step to 1e-16 of x only.
    close(step.ess, tangent(x, new), rtol=1e-11, atol=1e-15)
    close(step.distance, torch.atan(step.ess))
    close((step.direction * x).sum(-1), torch.zeros(3), atol=1e-10 * float(step.direction.norm() * x.norm()))
    kept = (x * new).sum(-1)
    close(step.elr, elr_from_products(eta, kept, root_mean_square(b)), rtol=1e-9)


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, d=st.integers(2, 20), eta=RATES, decay=st.floats(0, 0.9))
def test_table_1_is_theorem_2_of_each_scheme(seed: int, d: int, eta: float, decay: float) -> None:
    x, a = 3 * random(seed, d), random(seed + 1, d)
    decay = decay / eta
    grad = a - (a @ x) / (x @ x) * x  # of a scale-invariant loss
    r = x.norm()
    close(spherical_step(x, grad, eta).elr, sgd_elr(r, eta), rtol=1e-11)
    close(spherical_step(x, grad + decay * x, eta).elr, sgd_elr(r, eta, decay), rtol=1e-10)
    b = random(seed + 2, d).abs() + 0.1
    size = root_mean_square(b)
    along = r * (a / (b / size)) @ (x / r)
    assume(eta * (a @ x) < 0.9 * r**2 and eta * along < 0.9 * r**2 * size * (1 - eta * decay))
    close(spherical_step(x, a, eta).elr, momentum_elr(r, eta, a @ x), rtol=1e-11)
    close(spherical_step(x, a, eta, b).elr, adam_elr(r, eta, along, size), rtol=1e-11)
    close(spherical_step(x, a, eta, b, decay).elr, adam_elr(r, eta, along, size, decay), rtol=1e-10)


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, d=st.integers(2, 20), eta=RATES, decay=st.floats(0, 0.9))
def test_the_radius_of_each_scheme(seed: int, d: int, eta: float, decay: float) -> None:
    """r′/r = (1 − A⟨c, u⟩)√(1 + (η^e‖c⊥‖)²), with A⟨c, u⟩ as the table of the module has it."""
    x, a, b = 3 * random(seed, d), random(seed + 1, d), random(seed + 2, d).abs() + 0.1
    decay = decay / eta
    grad = a - (a @ x) / (x @ x) * x  # of a scale-invariant loss
    r, size = x.norm(), root_mean_square(b)
    along = (a / b) @ x * size
    assume(eta * (a @ x) < 0.9 * r**2 and eta * ((a / b) @ x) < 0.9 * r**2 * (1 - eta * decay))
    steps = {
        "SGD": (x - eta * grad, spherical_step(x, grad, eta), 0.0, 1.0),
        "SGD + L2": (x - eta * (grad + decay * x), spherical_step(x, grad + decay * x, eta), eta * decay, 1.0),
        "SGD-M": (x - eta * a, spherical_step(x, a, eta), eta * (a @ x) / r**2, 1.0),
        "Adam": (x - eta * a / b, spherical_step(x, a, eta, b), eta * along / (r**2 * size), 1.0),
        "AdamW": (
            (1 - eta * decay) * x - eta * a / b,
            spherical_step(x, a, eta, b, decay),
            eta / (1 - eta * decay) * along / (r**2 * size),
            1 - eta * decay,
        ),
    }
    for new, step, radial, factor in steps.values():
        close(step.radial, radial, rtol=1e-9, atol=1e-14)
        ratio = factor * radius_ratio(radial, tangent(x, new))
        close(ratio, new.norm() / r, rtol=1e-10)
        close(step.norm_ratio, new.norm() / r, rtol=1e-10)
        close(step.scale, step.elr * (1 - step.radial), rtol=1e-10)
    assert radius_ratio(0.0, steps["SGD"][1].ess) >= 1  # that of SGD never falls


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, d=st.integers(2, 20), eta=RATES, product=st.floats(0, 0.9))
def test_of_sgd_with_l2_it_says_what_weight_decays_recursions_say(
    seed: int, d: int, eta: float, product: float
) -> None:
    x, a, decay = 3 * random(seed, d), random(seed + 1, d), product / eta
    grad = a - (a @ x) / (x @ x) * x
    r, effective = x.norm(), effective_grad_norm(x.norm(), grad.norm())
    step = spherical_step(x, grad + decay * x, eta)
    close(step.norm_ratio * r, next_norm(r, effective, eta, decay), rtol=1e-11)
    close(step.distance.cos(), step_cosine(r, effective, eta, decay), rtol=1e-12)
    close(step.ess, sgd_elr(r, eta, decay) * effective, rtol=1e-9, atol=1e-15)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, factor=st.floats(0.1, 10))
def test_the_sphere_does_not_see_scales(seed: int, factor: float) -> None:
    """(a, η) and (fa, η/f) are one step, as are (b, η) and (fb, fη); c⊥ and η^e share the factor of a."""
    x, a, b = random(seed, 7) * 5, random(seed + 1, 7), random(seed + 2, 7).abs() + 0.5
    step = spherical_step(x, a, 0.1, b)
    other = spherical_step(x, factor * a, 0.1 / factor, b)
    close(other.point, step.point, atol=1e-12)
    close(other.elr * factor, step.elr)
    scaled = spherical_step(x, a, 0.1 * factor, factor * b)
    close(scaled.elr, step.elr)
    close(scaled.direction, step.direction, atol=1e-12)


def test_gradient_on_the_unit_sphere_is_the_direction_of_sgd() -> None:
    x = (4 * random(3, 6)).requires_grad_()
    u = (x / x.norm()).detach().requires_grad_()

    def invariant(at: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = at[:3].square().sum() / at.square().sum() + at[0] / at.norm()
        return value

    (at_x,) = torch.autograd.grad(invariant(x), x)
    (at_u,) = torch.autograd.grad(invariant(u), u)
    close(spherical_step(x.detach(), at_x, 0.3).direction, at_u, rtol=1e-11, atol=1e-13)


def test_batches_are_single_steps() -> None:
    x, a, b = random(0, 2, 3, 5), random(1, 2, 3, 5), random(2, 2, 3, 5).abs() + 1
    eta = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.1
    batch = spherical_step(x, a, eta, b)
    for i in range(2):
        for j in range(3):
            single = spherical_step(x[i, j], a[i, j], float(eta[i, j]), b[i, j])
            for many, one in zip(batch, single, strict=True):
                close(many[i, j], one)


def test_a_step_of_single_precision_is_worked_out_in_double() -> None:
    x, a = torch.tensor([3.0, 4.0]), torch.tensor([1e-6, 0.0])
    step = spherical_step(x, a, 1e-3)
    assert step.ess.dtype == torch.float64
    assert step.ess.item() == pytest.approx(1e-3 * 1e-6 * 0.8 / 5, rel=1e-6)


def test_beyond_a_right_angle_the_monitors_form_says_infinite() -> None:
    assert elr_from_products(0.1, torch.tensor([-1.0, 0.0])).tolist() == [math.inf, math.inf]
