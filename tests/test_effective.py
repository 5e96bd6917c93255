"""The identities of TR §3 along real training steps, and the learning rates of the optimizers."""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lit_sphere.data import Digits
from lit_sphere.effective import QUANTITIES, EffectiveQuantities
from lit_sphere.groups import Group, find_groups
from lit_sphere.networks import ConvNet
from lit_sphere.optim import SphereSGD
from lit_sphere.theory import next_elr, total_elr, total_ess


def assert_exact(measured: torch.Tensor, closed: torch.Tensor) -> None:
    torch.testing.assert_close(measured, closed, rtol=1e-10, atol=0.0)


def exact_conv_net() -> tuple[ConvNet, list[Group]]:
    torch.manual_seed(0)
    net = ConvNet(width=8, in_channels=1, scale_invariant=True, eps=1e-30).double()
    return net, find_groups(net, torch.zeros(2, 1, 8, 8))


def digits() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    data = Digits()
    data.setup("fit")
    loader = data.train_dataloader()
    while True:
        for x, y in loader:
            yield x.double(), y


def gradient_step(net: ConvNet, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()


@pytest.mark.parametrize("elr", [1e-3, 3e-2])
def test_identities_hold_along_a_hundred_steps_of_the_conv_net(elr: float) -> None:
    net, groups = exact_conv_net()
    params = [p for group in groups for p in group.parameters]
    optimizer = SphereSGD(params, elr=elr)
    effective = EffectiveQuantities(groups, optimizer)
    rho = optimizer.param_groups[0]["radius"]
    expected: torch.Tensor | None = None
    moved = 0.0
    for _, (x, y) in zip(range(100), digits(), strict=False):
        gradient_step(net, optimizer, x, y)
        norm, grad, elrs, ess = effective.measure()
        assert_exact(elrs[0], torch.tensor(elr, dtype=torch.float64))
        assert_exact(total_elr(elrs[1:]), elrs[0])  # TR eq. (3)
        assert_exact(total_ess(elrs[1:], ess[1:]), ess[0])  # TR eq. (4)
        assert_exact(elrs * grad, ess)
        assert abs(norm[0].item() / rho - 1) < 1e-12
        if expected is not None:
            assert_exact(elrs[1:], expected)  # TR eq. (5)
        expected = next_elr(elrs[1:], ess[1:], ess[0])
        moved = max(moved, (expected / elrs[1:] - 1).abs().max().item())
        before = torch.cat([p.detach().flatten() for p in params])
        optimizer.step()
        after = torch.cat([p.detach().flatten() for p in params])
        cos = torch.dot(before, after) / before.norm() / after.norm()
        assert math.tan(math.acos(min(1.0, cos.item()))) == pytest.approx(ess[0].item(), rel=1e-4, abs=1e-7)
    assert moved > 1e-7, "eq. (5) must have had something to predict"


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 8), eta=st.floats(1e-6, 1e2))
def test_totals_follow_from_the_groups_for_any_vectors(seed: int, n: int, eta: float) -> None:
    g = torch.Generator().manual_seed(seed)
    params = [
        nn.Parameter(torch.randn(int(k), generator=g, dtype=torch.float64))
        for k in torch.randint(2, 9, (n,), generator=g)
    ]
    for p in params:
        p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64)
    groups = [Group(str(i), (p,)) for i, p in enumerate(params)]
    norm, grad, elr, ess = EffectiveQuantities(groups, torch.optim.SGD(params, lr=eta)).measure()
    theta = torch.cat([p.detach() for p in params])
    gradient = torch.cat([p.grad for p in params if p.grad is not None])
    rho, size = theta.norm(), gradient.norm()
    for measured, closed in ((norm, rho), (grad, rho * size), (elr, eta / rho**2), (ess, eta * size / rho)):
        assert_exact(measured[0], closed)
    assert_exact(total_elr(elr[1:]), elr[0])
    assert_exact(total_ess(elr[1:], ess[1:]), ess[0])


@pytest.mark.parametrize("granularity", ["tensor", "filter"])
@pytest.mark.parametrize("spheres", ["joint", "filter"])
def test_groups_of_all_granularities_have_the_same_totals(
    granularity: Literal["tensor", "filter"], spheres: Literal["joint", "filter"]
) -> None:
    net, coarse = exact_conv_net()
    groups = coarse if granularity == "tensor" else find_groups(net, torch.zeros(2, 1, 8, 8), "filter")
    assert len(groups) == (4 if granularity == "tensor" else 120)
    optimizer = SphereSGD([p for group in coarse for p in group.parameters], elr=1e-2, spheres=spheres)
    x, y = next(digits())
    gradient_step(net, optimizer, x, y)
    measured = EffectiveQuantities(groups, optimizer).measure()
    reference = EffectiveQuantities(coarse, optimizer).measure()
    assert_exact(measured[:, 0], reference[:, 0])
    if spheres == "filter" and granularity == "filter":
        assert_exact(measured[2, 1:], torch.full((120,), 1e-2, dtype=torch.float64))


def test_the_filter_view_is_that_of_single_rows() -> None:
    net, _ = exact_conv_net()
    groups = find_groups(net, torch.zeros(2, 1, 8, 8), "filter")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = next(digits())
    gradient_step(net, optimizer, x, y)
    norm, grad, elr, ess = EffectiveQuantities(groups, optimizer).measure()
    for i in (0, 7, 8, 119):
        (weight,), rows = groups[i].parameters, groups[i].rows
        assert weight.grad is not None
        rho, g = weight[rows].detach().norm(), weight.grad[rows].norm()
        expected = torch.stack([rho, rho * g, 0.1 / rho**2, 0.1 * g / rho])
        assert_exact(torch.stack([norm, grad, elr, ess])[:, i + 1], expected)


def test_weight_decay_enters_the_effective_learning_rate() -> None:
    # SP Table 1: η/(ρ²(1 − ηλ)); the ESS is the tangent of the angle that the real step turns by.
    net, groups = exact_conv_net()
    optimizer = torch.optim.SGD([p for group in groups for p in group.parameters], lr=0.5, weight_decay=0.1)
    x, y = next(digits())
    gradient_step(net, optimizer, x, y)
    norm, _, elr, ess = EffectiveQuantities(groups, optimizer).measure()
    assert_exact(elr, 0.5 / (norm**2 * (1 - 0.05)))
    before = [p.detach().clone() for group in groups for p in group.parameters]
    optimizer.step()
    for i, (old, group) in enumerate(zip(before, groups, strict=True)):
        new = group.parameters[0].detach()
        along = (old * new).sum() / old.norm()
        tangent = (new - along * old / old.norm()).norm() / along
        torch.testing.assert_close(tangent, ess[i + 1], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        lambda params: torch.optim.AdamW(params, lr=1e-3),
    ],
)
def test_other_optimizers_have_no_such_learning_rate(
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    net, groups = exact_conv_net()
    effective = EffectiveQuantities(groups, optimizer(net.parameters()))
    assert effective.quantities == QUANTITIES[:2]
    assert effective.measure().shape == (2, 5)


def test_a_changed_learning_rate_is_seen() -> None:
    _, groups = exact_conv_net()
    optimizer = SphereSGD([p for group in groups for p in group.parameters], elr=1e-3)
    effective = EffectiveQuantities(groups, optimizer)
    assert effective.measure()[2, 0].item() == pytest.approx(1e-3)
    optimizer.param_groups[0]["elr"] = 5e-2
    assert effective.measure()[2, 0].item() == pytest.approx(5e-2)


def test_missing_gradients_count_as_zero() -> None:
    _, groups = exact_conv_net()
    optimizer = SphereSGD([p for group in groups for p in group.parameters], elr=1e-3)
    measured = EffectiveQuantities(groups, optimizer).measure()
    assert (measured[[1, 3]] == 0).all()
    assert (measured[[0, 2]] > 0).all()


def test_a_group_that_the_optimizer_does_not_train_is_refused() -> None:
    net, groups = exact_conv_net()
    with pytest.raises(ValueError, match=r"SGD does not train the group convs\.1\.weight"):
        EffectiveQuantities(groups, torch.optim.SGD(list(net.convs[0].parameters()), lr=0.1))
    with pytest.raises(ValueError, match="no group"):
        EffectiveQuantities([], torch.optim.SGD(net.parameters(), lr=0.1))


def test_scalars_and_biases_are_rows_of_one() -> None:
    scalar, bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor([3.0, 4.0]))
    scalar.grad, bias.grad = torch.tensor(1.0), torch.tensor([0.0, 2.0])
    groups = [Group("s", (scalar,)), Group("b[0]", (bias,), slice(0, 1)), Group("b[1]", (bias,), slice(1, 2))]
    norm, grad, _, _ = EffectiveQuantities(groups, torch.optim.SGD([scalar, bias], lr=0.1)).measure()
    assert norm[1:].tolist() == [2, 3, 4]
    assert grad[1:].tolist() == [2, 0, 8]


def test_weight_decay_that_forgets_the_weights_has_no_finite_effective_learning_rate() -> None:
    _, groups = exact_conv_net()
    params = [p for group in groups for p in group.parameters]
    for decay in (2.0, 3.0):
        assert (
            EffectiveQuantities(groups, torch.optim.SGD(params, lr=0.5, weight_decay=decay)).measure()[2, 0] == math.inf
        )
