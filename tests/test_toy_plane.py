"""The toy in the plane: its step, its periods, and the recursions of weight decay on it."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lit_sphere.theory import weight_decay as wd
from lit_sphere.theory.toy_plane import plane_curves


@settings(deadline=None)
@given(x=st.floats(-2, 2), y=st.floats(-2, 2), lr=st.floats(0.01, 2), product=st.floats(0, 0.5))
def test_a_step_is_that_of_torch(x: float, y: float, lr: float, product: float) -> None:
    assume(math.hypot(x, y) > 0.1)
    point = torch.tensor([x, y], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([point], lr=lr, weight_decay=product / lr)
    curves = plane_curves([product / lr], lr, (x, y), steps=3)
    for step in range(3):
        optimizer.zero_grad()
        loss = point[0] ** 2 / (point[0] ** 2 + point[1] ** 2)
        norm = point.detach().norm().item()
        assert curves.losses[0, step].item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-9)
        assert curves.norms[0, step].item() == pytest.approx(norm, rel=1e-9)
        assert curves.elrs[0, step].item() == pytest.approx(lr / norm**2, rel=1e-9)
        loss.backward()
        optimizer.step()


def test_without_decay_it_converges() -> None:
    losses = plane_curves([0.0], steps=2000).losses[0]
    assert losses[-1] < 1e-12
    assert bool((losses.diff() <= 0).all())


def test_norms_follow_the_recursion_of_weight_decay() -> None:
    curves = plane_curves([0.03, 0.1], steps=100)
    for run, decay in enumerate((0.03, 0.1)):
        f, rho = curves.losses[run], curves.norms[run]
        effective = 2 * (f * (1 - f)).sqrt()  # g̃ = |2 sin φ cos φ|
        torch.testing.assert_close(wd.next_norm(rho, effective, 1.0, decay)[:-1], rho[1:], rtol=1e-10, atol=0)
