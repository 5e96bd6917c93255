"""Equilibria of every optimizer against slow runs of the optimizer itself on random gradients, in float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
from foreign_modules import Lion
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from lit_sphere.theory import equilibrium_ess, rotation
from lit_sphere.theory.rotation import Law, Rotation, measured_equilibrium, relaxed_norm, steps_to_equilibrium

GRAD_NORM, SIZE = 1.7, 1024


@dataclass(frozen=True)
class Case:
    """An optimizer, and where theory says that it settles."""

    make: Callable[[Any], Optimizer]
    settled: Rotation
    law: Law
    memory: int = 1
    """Steps that momentum remembers."""


CASES = {
    "SGD": Case(partial(SGD, lr=0.1, weight_decay=0.05), rotation.sgd_equilibrium(GRAD_NORM, 0.1, 0.05), "gradient"),
    "momentum": Case(
        partial(SGD, lr=0.1, weight_decay=4e-3, momentum=0.9),
        rotation.sgd_equilibrium(GRAD_NORM, 0.1, 4e-3, 0.9),
        "gradient",
        10,
    ),
    "dampening": Case(
        partial(SGD, lr=0.1, weight_decay=0.02, momentum=0.8, dampening=0.5),
        rotation.sgd_equilibrium(GRAD_NORM, 0.1, 0.02, 0.8, 0.5),
        "gradient",
        5,
    ),
    "Nesterov": Case(
        partial(SGD, lr=0.1, weight_decay=4e-3, momentum=0.9, nesterov=True),
        rotation.sgd_equilibrium(GRAD_NORM, 0.1, 4e-3, 0.9, nesterov=True),
        "gradient",
        10,
    ),
    "AdamW": Case(
        partial(AdamW, lr=0.03, weight_decay=0.3, betas=(0.9, 0.95)),
        rotation.adamw_equilibrium(SIZE, 0.03, 0.3),
        "fixed",
        20,
    ),
    "Adam": Case(
        partial(Adam, lr=0.03, weight_decay=5e-3, betas=(0.9, 0.95)),
        rotation.adam_equilibrium(GRAD_NORM, SIZE, 0.03, 5e-3),
        "l2",
        20,
    ),
    "Lion": Case(partial(Lion, lr=3e-3, weight_decay=3.0), rotation.lion_equilibrium(SIZE, 3e-3, 3.0), "fixed", 100),
}


class Weight:
    """A scale-invariant weight, whose gradients have random directions across it."""

    def __init__(self, case: Case, norm: float) -> None:
        self.generator = torch.Generator().manual_seed(0)
        x = torch.randn(SIZE, dtype=torch.float64, generator=self.generator)
        self.x = torch.nn.Parameter(x * (norm / x.norm()))
        self.optimizer = case.make([self.x])

    @torch.no_grad()
    def step(self) -> list[Tensor]:
        """Take a step; give norm, tangent of its angle, cosine distance and the share of the norm taken."""
        x = self.x.clone()
        norm2 = x.dot(x)
        gradient = torch.randn(SIZE, dtype=torch.float64, generator=self.generator)
        gradient -= x * (gradient.dot(x) / norm2)
        self.x.grad = gradient * (GRAD_NORM / norm2.sqrt() / gradient.norm())
        self.optimizer.step()
        along = x.dot(self.x) / norm2
        tangent = (self.x - along * x).norm() / norm2.sqrt() / along
        return [norm2.sqrt(), tangent, 1 - 1 / (1 + tangent.square()).sqrt(), 1 - along]

    @torch.no_grad()
    def hold(self, norm: float, steps: int) -> "Weight":
        """Fill the optimizer's averages at a fixed norm."""
        for _ in range(steps):
            self.step()
            self.x.mul_(norm / self.x.norm())
        return self


@cache
def means_at_rest(name: str) -> list[float]:
    """Means over the second half of a run that begins where theory says that it ends."""
    case = CASES[name]
    steps = int(4 * case.settled.steps)
    weight = Weight(case, case.settled.norm.item()).hold(case.settled.norm.item(), 3 * case.memory)
    rows = torch.stack([torch.stack(weight.step()) for _ in range(steps)])
    means: list[float] = rows[steps // 2 :].mean(0).tolist()
    return means


@pytest.mark.parametrize("name", CASES)
def test_norm_and_step_size_settle_where_theory_says(name: str) -> None:
    norm, ess, distance, _ = means_at_rest(name)
    settled = CASES[name].settled
    assert ess == pytest.approx(settled.ess.item(), rel=0.02)
    assert distance == pytest.approx(settled.distance.item(), rel=0.04)
    assert norm == pytest.approx(settled.norm.item(), rel=0.02)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "SGD" else [pytest.mark.slow]) for name in CASES]
)
@pytest.mark.parametrize("start", [1.6, 0.7])
def test_the_norm_comes_near_in_the_foretold_number_of_steps(name: str, start: float) -> None:
    case = CASES[name]
    goal, tau = case.settled.norm.item(), case.settled.steps.item()
    expected = steps_to_equilibrium(start, tau, case.law).item()
    weight = Weight(case, start * goal).hold(start * goal, 3 * case.memory)
    power = 2 if case.law == "gradient" else 1
    taken = 0
    while abs((weight.x.norm().item() / goal) ** -power - 1) > 0.1:
        weight.step()
        taken += 1
        assert taken < 3 * expected
    # The laws hold where averages are short beside τ: norms lag, or run ahead, by what an optimizer remembers.
    assert abs(taken - expected) < 0.05 * expected + 2 * (case.memory - 1) + 1
    assert relaxed_norm(start, expected / tau, case.law).item() ** -power == pytest.approx(1.1 if start < 1 else 0.9)


@pytest.mark.parametrize("name", ["SGD", "dampening", "AdamW", "Lion"])
def test_what_updates_do_to_the_norm_tells_the_equilibrium(name: str) -> None:
    """At rest it is that of theory; it is foretold from afar as well, by those of short memory."""
    norm, ess, _, radial = means_at_rest(name)
    case = CASES[name]
    share = -math.expm1(-0.5 / case.settled.steps.item())
    found, ratio = measured_equilibrium(ess, radial, share, case.law)
    assert found.item() == pytest.approx(case.settled.ess.item(), rel=0.03)
    assert ratio.item() == pytest.approx(norm / case.settled.norm.item(), rel=0.03)
    if name == "Lion":
        return
    weight = Weight(case, 1.6 * case.settled.norm.item()).hold(1.6 * case.settled.norm.item(), 3 * case.memory)
    rows = torch.stack([torch.stack(weight.step()) for _ in range(20)]).mean(0).tolist()
    assert rows[1] < 0.75 * case.settled.ess.item()
    found, ratio = measured_equilibrium(rows[1], rows[3], share, case.law)
    assert found.item() == pytest.approx(case.settled.ess.item(), rel=0.1)
    assert ratio.item() == pytest.approx(rows[0] / case.settled.norm.item(), rel=0.1)


def test_an_optimizer_with_another_decay_settles_where_its_updates_say() -> None:
    """RMSprop's decay is coupled: with all that it takes away for D, the equilibrium is right once it is there."""
    case = Case(partial(RMSprop, lr=0.01, weight_decay=5e-3, alpha=0.9), CASES["SGD"].settled, "fixed", 10)
    weight = Weight(case, 3.8).hold(3.8, 30)
    rows = torch.stack([torch.stack(weight.step()) for _ in range(500)])[-200:].mean(0).tolist()
    found, ratio = measured_equilibrium(rows[1], rows[3], rows[3])
    assert rows[3] > 10 * 0.01 * 5e-3
    assert found.item() == pytest.approx(rows[1], rel=0.03)
    assert ratio.item() == pytest.approx(1.0, rel=0.03)


def test_what_does_not_lengthen_the_weights_has_no_equilibrium() -> None:
    ess, ratio = measured_equilibrium(0.01, torch.tensor([0.1, 0.001]), 0.001)
    assert ess.tolist() == [math.inf, pytest.approx(math.sqrt(0.002), rel=0.01)]
    assert ratio[0] == math.inf


def test_without_momentum_it_is_the_equilibrium_of_the_papers() -> None:
    lr, decay = torch.tensor([0.1, 0.5, 1e-6]), torch.tensor([0.1, 1.5, 1e-3])
    settled = rotation.sgd_equilibrium(2.0, lr, decay)
    torch.testing.assert_close(settled.ess, equilibrium_ess(lr, decay), rtol=1e-12, atol=0)
    torch.testing.assert_close(settled.distance, lr.double() * decay.double(), rtol=1e-7, atol=0)
    keep = 1 - lr.double() * decay.double()
    torch.testing.assert_close(settled.norm**4, 4 * lr.double() ** 2 / (1 - keep**2), rtol=1e-7, atol=0)
    torch.testing.assert_close(settled.steps, -0.5 / keep.log(), rtol=1e-7, atol=0)
    assert rotation.adamw_equilibrium(10, lr, decay, 0.0).ess.tolist() == pytest.approx(settled.ess.tolist(), rel=1e-12)


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9, 0.99])
def test_small_rates_give_the_first_orders_of_the_docs(mu: float) -> None:
    eta, decay = 1e-5, 1e-4
    near = partial(pytest.approx, rel=1e-4)
    plain = rotation.sgd_equilibrium(2.0, eta, decay, mu, 0.25)
    assert plain.ess.item() == near(math.sqrt(2 * 0.75 * eta * decay / (1 + mu)))
    assert plain.norm.item() == near((0.75 * eta * 4 / (2 * decay * (1 - mu))) ** 0.25)
    assert plain.steps.item() == near((1 - mu) / (2 * 0.75 * eta * decay))
    ahead = rotation.sgd_equilibrium(2.0, eta, decay, mu, nesterov=True)
    assert ahead.ess.item() == near(math.sqrt(2 * eta * decay * (1 + 2 * mu - 2 * mu**3) / (1 + mu)))
    assert ahead.norm.item() == near((eta * 4 / (2 * decay * (1 - mu))) ** 0.25)
    adamw = rotation.adamw_equilibrium(100, eta, decay, mu)
    assert adamw.ess.item() == near(math.sqrt(2 * eta * decay * (1 - mu) / (1 + mu)))
    assert adamw.norm.item() == near(math.sqrt(eta * 100 / (2 * decay)))
    adam = rotation.adam_equilibrium(2.0, 100, eta, decay, mu)
    assert adam.norm.item() == near((eta * 2 * 10 / (2 * decay)) ** (1 / 3))
    assert adam.ess.item() == near(math.sqrt(2 * (1 - mu) / (1 + mu) * eta * decay * 10 * adam.norm.item() / 2.0))
    assert adam.steps.item() == near(2.0 / (2 * eta * decay * 10 * adam.norm.item()))


def test_lion_is_what_a_sum_over_all_steps_says() -> None:
    eta, decay, b1, b2 = 1e-2, 0.5, torch.tensor([0.0, 0.9, 0.95]), torch.tensor([0.9, 0.99, 0.9])
    settled = rotation.lion_equilibrium(64, eta, decay, b1, b2)
    for i, (first, second) in enumerate(zip(b1.double().tolist(), b2.double().tolist(), strict=True)):
        weights = torch.tensor([1 - first] + [first * (1 - second) * second**k for k in range(3000)]).double()
        power, keep = weights.square().sum().item(), 1 - eta * decay
        lasts = 1.0
        for k in range(1, 2500):
            lasts += 4 / math.pi * keep**k * math.asin((weights[k:] * weights[:-k]).sum().item() / power)
        assert settled.norm[i].item() == pytest.approx(eta * math.sqrt(64 * lasts / (1 - keep**2)), rel=1e-6)
        cosine = (1 + keep**2 - (1 - keep**2) / lasts) / (2 * keep)
        assert settled.distance[i].item() == pytest.approx(1 - cosine, rel=1e-6)


@pytest.mark.parametrize("law", ["gradient", "fixed", "l2"])
def test_the_laws_are_those_of_small_steps(law: Law) -> None:
    u, count = torch.tensor([0.3, 0.999, 1.0, 3.0], dtype=torch.float64), 2000
    y = u.square()
    for _ in range(count):
        push = {"gradient": 1 / y - y, "fixed": 1 - y, "l2": 1 - y**1.5}[law]
        y = y + 1.3 / count * push
    torch.testing.assert_close(relaxed_norm(u, 1.3, law), y.sqrt(), rtol=3e-3, atol=0)
    assert steps_to_equilibrium(u, 100.0, law).tolist()[1:3] == [0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rotation.sgd_equilibrium(1.0, 0.1, 0.1, momentum=1.0), "momentum must be below 1"),
        (lambda: rotation.sgd_equilibrium(1.0, 0.1, 0.1, 0.9, 0.1, nesterov=True), "no dampening"),
        (lambda: rotation.sgd_equilibrium(1.0, 0.1, 0.0), "weight_decay must be positive"),
        (lambda: rotation.adamw_equilibrium(10, 1.0, 1.0), "below 1"),
        (lambda: rotation.adamw_equilibrium(0, 0.1, 0.1), "size must be positive"),
        (lambda: rotation.adam_equilibrium(1.0, 1e6, 1.0, 1.0), "too large for these gradients"),
        (lambda: rotation.lion_equilibrium(10, 0.1, 0.1, beta2=-0.1), "beta2 must be finite and not negative"),
        (lambda: measured_equilibrium(0.1, 1.0, 0.1), "radial and decay must be below 1"),
        (lambda: measured_equilibrium(0.1, 0.1, 0.1, "none"), "law must be one of gradient, fixed, l2"),  # type: ignore[arg-type]
        (lambda: steps_to_equilibrium(0.0, 10.0, "fixed"), "norm_ratio must be positive"),
        (lambda: steps_to_equilibrium(1.0, 10.0, "fixed", 1.0), "tolerance below 1"),
        (lambda: relaxed_norm(1.0, -1.0, "fixed"), "time must be finite and not negative"),
    ],
)
def test_what_is_out_of_range_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
