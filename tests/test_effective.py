"""The identities of TR §3 along real training steps, and the learning rates of the optimizers."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lit_sphere.data import Digits
from lit_sphere.effective import (
    NOT_STEPPED,
    QUANTITIES,
    EffectiveQuantities,
    StepMean,
    StepMeans,
    equilibrium_rule,
    predicted_equilibrium,
    predicted_interval,
    quantile_name,
    quantiles_over_groups,
    source_of,
)
from lit_sphere.effective.quantities import _angle
from lit_sphere.groups import Group, find_groups
from lit_sphere.networks import ConvNet
from lit_sphere.optim import RandomWalk, SphereSGD
from lit_sphere.theory import next_elr, sgd_elr, spherical_step, total_elr, total_ess
from lit_sphere.theory.weight_decay import next_norm


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
        norm, grad, elrs, ess, *_ = effective.measure()
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
    norm, grad, elr, ess, *_ = EffectiveQuantities(groups, torch.optim.SGD(params, lr=eta)).measure()
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
    optimizer = SphereSGD([p for group in coarse for p in group.parameters], elr=1e-2, granularity=spheres)
    x, y = next(digits())
    gradient_step(net, optimizer, x, y)
    measured = EffectiveQuantities(groups, optimizer).measure()
    reference = EffectiveQuantities(coarse, optimizer).measure()
    # A radial share of 0, where filters on spheres of their own are asked for it.
    torch.testing.assert_close(measured[:, 0], reference[:, 0], rtol=1e-10, atol=1e-16)
    if spheres == "filter" and granularity == "filter":
        assert_exact(measured[2, 1:], torch.full((120,), 1e-2, dtype=torch.float64))


def test_the_filter_view_is_that_of_single_rows() -> None:
    net, _ = exact_conv_net()
    groups = find_groups(net, torch.zeros(2, 1, 8, 8), "filter")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = next(digits())
    gradient_step(net, optimizer, x, y)
    norm, grad, elr, ess, *_ = EffectiveQuantities(groups, optimizer).measure()
    for i in (0, 7, 8, 119):
        (weight,), rows = groups[i].parameters, groups[i].rows
        assert weight.grad is not None
        rho, g = weight[rows].detach().norm(), weight.grad[rows].norm()
        expected = torch.stack([rho, rho * g, 0.1 / rho**2, 0.1 * g / rho])
        assert_exact(torch.stack([norm, grad, elr, ess])[:, i + 1], expected)


def test_radial_share_and_length_are_those_of_the_step_before_a_sphere_takes_it_back() -> None:
    def measured(granularity: Literal["joint", "filter"]) -> list[float]:
        weight = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
        optimizer = SphereSGD([weight], elr=0.04, granularity=granularity)  # η = 1
        weight.grad = torch.tensor([[1.6, -1.2]], dtype=torch.float64)
        return EffectiveQuantities([Group("weight", (weight,))], optimizer).measure()[:, 0].tolist()

    ours = dict(zip(QUANTITIES, measured("joint"), strict=True))
    assert (ours["radial"], ours["step_length"]) == pytest.approx((0.0, 2.0))
    assert measured("filter") == pytest.approx(list(ours.values()))


def test_weight_decay_enters_the_effective_learning_rate() -> None:
    # SP Table 1: η/(ρ²(1 − ηλ)); the ESS is the tangent of the angle that the real step turns by.
    net, groups = exact_conv_net()
    optimizer = torch.optim.SGD([p for group in groups for p in group.parameters], lr=0.5, weight_decay=0.1)
    x, y = next(digits())
    gradient_step(net, optimizer, x, y)
    norm, grad_norm, elr, ess, _, radial, length, _ = EffectiveQuantities(groups, optimizer).measure()
    assert_exact(length, 0.5 * grad_norm / norm)
    assert_exact(elr, 0.5 / (norm**2 * (1 - 0.05)))
    assert_exact(radial, torch.full_like(radial, 0.05))
    before = [p.detach().clone() for group in groups for p in group.parameters]
    optimizer.step()
    for i, (old, group) in enumerate(zip(before, groups, strict=True)):
        new = group.parameters[0].detach()
        along = (old * new).sum() / old.norm()
        tangent = (new - along * old / old.norm()).norm() / along
        torch.testing.assert_close(tangent, ess[i + 1], rtol=1e-9, atol=0)


KNOWN: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "momentum, L2": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.1),
    "dampening": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, dampening=0.7, weight_decay=0.1),
    "nesterov, L2": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "nesterov, ascent": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True, maximize=True),
    "momentum, one by one": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, foreach=False),
    "Adam": lambda params: torch.optim.Adam(params, lr=3e-3),
    "Adam, L2, amsgrad": lambda params: torch.optim.Adam(params, lr=3e-3, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=3e-3, weight_decay=0.5),
    "AdamW, ascent": lambda params: torch.optim.AdamW(params, lr=3e-3, maximize=True, amsgrad=True),
    "AdamW, fused": lambda params: torch.optim.AdamW(params, lr=3e-3, fused=True, eps=1e-3),
}


def vectors(groups: list[Group], tensors: dict[Any, torch.Tensor]) -> list[torch.Tensor]:
    """All groups together as one vector, then each."""
    each = [torch.cat([tensors[p][g.rows or slice(None)].flatten() for p in g.parameters]) for g in groups]
    return [torch.cat(each), *each]


def tangent(x: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    along = x @ new / x.norm()
    tan: torch.Tensor = (new - along * x / x.norm()).norm() / along
    return tan


def steps(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    granularity: Literal["tensor", "filter"] = "tensor",
    altered: bool = False,
    count: int = 6,
) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor, torch.optim.Optimizer, list[Group]]]:
    """Vectors before and after each of some training steps, and what was measured."""
    net, groups = exact_conv_net()
    if granularity == "filter":
        groups = find_groups(net, torch.zeros(2, 1, 8, 8), "filter")
    params = [p for p in net.parameters() if p.requires_grad]
    optimizer = make(params)
    effective = EffectiveQuantities(groups, optimizer, altered)
    for _, (x, y) in zip(range(count), digits(), strict=False):
        gradient_step(net, optimizer, x, y)
        effective.keep_gradients()
        if altered:
            nn.utils.clip_grad_norm_(params, 0.05)
        before = {p: p.detach().clone() for p in params}
        effective.keep_weights()
        optimizer.step()
        now = {p: p.detach().clone() for p in params}
        yield vectors(groups, before), vectors(groups, now), effective.measure(), optimizer, groups


def assert_close(measured: torch.Tensor, closed: list[torch.Tensor]) -> None:
    torch.testing.assert_close(measured, torch.stack(closed), rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("name", "granularity"),
    [*((name, "tensor") for name in KNOWN), ("nesterov, L2", "filter"), ("AdamW", "filter")],
)
def test_steps_read_from_the_optimizers_state_are_those_of_the_weights(
    name: str, granularity: Literal["tensor", "filter"]
) -> None:
    radial = 0.0
    for before, after, measured, optimizer, groups in steps(KNOWN[name], granularity):
        norm, _, elr, ess, angle, lost, length, _ = measured
        pairs = list(zip(before, after, strict=True))
        assert_close(length, [(new - torch.dot(x, new) / torch.dot(x, x) * x).norm() for x, new in pairs])
        assert_close(norm, [x.norm() for x in before])
        shares = torch.stack([1 - torch.dot(x, new) / torch.dot(x, x) for x, new in zip(before, after, strict=True)])
        torch.testing.assert_close(lost, shares, rtol=1e-8, atol=1e-14)
        assert_close(ess, [tangent(x, new) for x, new in zip(before, after, strict=True)])
        assert_exact(angle, ess.arctan())
        (options,) = optimizer.param_groups
        eta, decay = options["lr"], options["weight_decay"] if options.get("decoupled_weight_decay") else 0.0
        divisors = [torch.ones_like(x) for x in before]
        if "betas" in options:
            key = "max_exp_avg_sq" if options["amsgrad"] else "exp_avg_sq"
            corrected = {
                p: (s[key] / (1 - options["betas"][1] ** s["step"].item())).sqrt() + options["eps"]
                for p, s in optimizer.state.items()
            }
            divisors = vectors(groups, corrected)
        expected = []
        for x, new, b in zip(before, after, divisors, strict=True):
            step = spherical_step(x, ((1 - eta * decay) * x - new) * b / eta, eta, b, decay)
            expected.append(step.elr)
            radial = max(radial, step.radial.abs().item())
        assert_close(elr, expected)
    assert radial > 1e-5, "Table 1 must have had something to correct"


def test_a_clipped_step_is_the_real_one_and_the_gradient_norm_that_of_the_loss() -> None:
    def plain(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.5, weight_decay=0.1)

    for before, after, (norm, grad, elr, ess, *_), _, _ in steps(plain, altered=True):
        assert_close(ess, [tangent(x, new) for x, new in zip(before, after, strict=True)])
        assert_exact(elr, 0.5 / (norm**2 * (1 - 0.05)))
        assert ess[0] < 0.5 * elr[0] * grad[0], "the gradients must have been clipped"


def test_the_step_of_an_unknown_optimizer_is_measured() -> None:
    def unknown(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.NAdam(params, lr=3e-3, weight_decay=0.5, decoupled_weight_decay=True)

    for before, after, (norm, grad, elr, ess, angle, *_), _, _ in steps(unknown, "filter"):
        assert_close(norm, [x.norm() for x in before])
        assert_close(ess, [tangent(x, new) for x, new in zip(before, after, strict=True)])
        assert_exact(angle, ess.arctan())
        assert_exact(elr * grad, ess)


@pytest.mark.parametrize("name", ["momentum, L2", "AdamW"])
def test_the_angle_of_all_follows_from_those_of_the_groups(name: str) -> None:
    for before, after, measured, _, _ in steps(KNOWN[name]):
        norm, elr, angle = measured[0], measured[2], measured[4]
        new = torch.stack([x.norm() for x in after])
        shares = norm * new * angle.cos()  # ⟨x, x′⟩
        assert_exact(shares[1:].sum(), shares[0])
        assert norm[0].item() == pytest.approx(sum(x.square().sum() for x in before[1:]).sqrt().item())  # type: ignore[union-attr]
        if name == "momentum, L2":
            assert_exact(total_elr(elr[1:]), elr[0])  # TR eq. (3)


def test_tiny_steps_of_single_precision_are_read_without_rounding() -> None:
    g = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(64, 32, generator=g))
    gradient = torch.randn(64, 32, generator=g) * 1e-6
    gradient -= (gradient * weight.detach()).sum() / weight.detach().square().sum() * weight.detach()
    exact = (1e-3 * gradient.double().norm() / weight.detach().double().norm()).item()
    optimizer = torch.optim.SGD([weight], lr=1e-3, momentum=0.9)
    effective = EffectiveQuantities([Group("w", (weight,))], optimizer)
    weight.grad = gradient.clone()
    optimizer.step()
    assert effective.measure()[3, 0].item() == pytest.approx(exact, rel=1e-5)
    assert exact < 1e-8, "the weights themselves round to 6e-8"


def test_parameters_without_gradient_do_not_move() -> None:
    first, second = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in ([3.0, 4.0], [1.0, 0.0]))
    groups = [Group("first", (first,)), Group("second", (second,))]
    for make in (KNOWN["AdamW"], KNOWN["nesterov, L2"], KNOWN["momentum"]):
        optimizer = make([first, second])
        effective = EffectiveQuantities(groups, optimizer)
        for _ in range(2):
            second.grad = None
            first.grad = torch.tensor([0.4, -0.3], dtype=torch.float64)
            before = first.detach().clone()
            optimizer.step()
            measured = effective.measure()
            assert measured[:, 2].isnan().all(), "there was no step to measure"
            assert_exact(measured[3, 1], tangent(before, first.detach()))
            assert torch.equal(measured[:, 0], measured[:, 1]), "totals are those of what moved"


class Subclass(torch.optim.SGD):
    """A name of its own, the step of its parent."""


class Overriding(torch.optim.SGD):
    """Does something else in the step."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_an_optimizer_is_known_by_its_step() -> None:
    params = [nn.Parameter(torch.ones(2))]
    made = {
        "gradients": [torch.optim.SGD(params, lr=0.1), SphereSGD(params, elr=0.1), Subclass(params, lr=0.1)],
        "state": [
            torch.optim.SGD(params, lr=0.1, momentum=0.5),
            torch.optim.Adam(params),
            torch.optim.AdamW(params),
            Subclass(params, lr=torch.tensor(0.1), momentum=0.5),
        ],
        "weights": [Overriding(params, lr=0.1), torch.optim.RMSprop(params), torch.optim.RAdam(params)],
    }
    for source, optimizers in made.items():
        assert {source_of(optimizer) for optimizer in optimizers} == {source}
    assert [source_of(o, altered=True) for o in made["gradients"]] == ["state", "weights", "state"]


def test_weights_must_be_kept_to_be_compared() -> None:
    weight = nn.Parameter(torch.ones(2))
    effective = EffectiveQuantities([Group("w", (weight,))], torch.optim.RMSprop([weight]))
    with pytest.raises(RuntimeError, match="were not kept"):
        effective.measure()


def test_different_spheres_turn_together_as_their_weights_do() -> None:
    """Two spheres and a plain group: the angle of all together is that of the real step."""
    g = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(4, 6, generator=g, dtype=torch.float64)) for _ in range(3)]
    options: list[dict[str, Any]] = [{"elr": 0.3}, {"elr": 0.05, "granularity": "filter"}, {"elr": None, "lr": 0.2}]
    optimizer = SphereSGD([{"params": [p], **one} for p, one in zip(params, options, strict=True)], elr=0.1)
    # Scale-invariant row by row: each row's gradient is orthogonal to it.
    for p in params:
        rows = torch.randn(4, 6, generator=g, dtype=torch.float64)
        x = p.detach()
        p.grad = rows - (rows * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
    groups = [Group(str(i), (p,)) for i, p in enumerate(params)]
    before = vectors(groups, {p: p.detach().clone() for p in params})
    ess = EffectiveQuantities(groups, optimizer).measure()[3]
    optimizer.step()
    after = vectors(groups, {p: p.detach() for p in params})
    assert_exact(ess, torch.stack([tangent(x, new) for x, new in zip(before, after, strict=True)]))


@pytest.mark.parametrize("granularity", ["joint", "filter"])
def test_spheres_that_are_left_and_entered_again_are_followed(granularity: Literal["joint", "filter"]) -> None:
    """While their steps wait to be worked out."""
    net, groups = exact_conv_net()
    first, *others = [p for group in groups for p in group.parameters]
    optimizer = SphereSGD([{"params": [first]}, {"params": others}], 0.05, granularity=granularity)
    means = StepMeans(EffectiveQuantities(groups, optimizer))
    expected = []
    for step, (x, y) in zip(range(6), digits(), strict=False):
        if step == 2:
            optimizer.leave_sphere(lr=0.5, weight_decay=0.1)
            resumed = StepMeans(EffectiveQuantities(groups, optimizer))
        if step == 4:
            optimizer.enter_sphere(elr=0.01)
        gradient_step(net, optimizer, x, y)
        means.add()
        if step >= 2:
            resumed.add()
        before = vectors(groups, {p: p.detach().clone() for group in groups for p in group.parameters})
        optimizer.step()
        after = vectors(groups, {p: p.detach() for group in groups for p in group.parameters})
        expected.append(torch.stack([tangent(x, new) for x, new in zip(before, after, strict=True)]))
    for measured, esses in ((means, expected), (resumed, expected[2:])):
        mean = measured.mean()
        assert mean is not None
        torch.testing.assert_close(mean[QUANTITIES.index("ess")], torch.stack(esses).mean(0), rtol=1e-9, atol=0)


def test_states_of_other_groups_are_passed_over() -> None:
    net, groups = exact_conv_net()
    optimizer = SphereSGD([p for group in groups for p in group.parameters], elr=1e-3)
    x, y = next(digits())
    gradient_step(net, optimizer, x, y)
    means = StepMeans(EffectiveQuantities(groups, optimizer))
    means.add()
    fewer = StepMeans(EffectiveQuantities(groups[:2], optimizer))
    fewer.load_state(means.state())
    assert fewer.mean() is None
    same = StepMeans(EffectiveQuantities(groups, optimizer))
    same.load_state(means.state())
    mean, own = same.mean(), means.mean()
    assert mean is not None
    assert own is not None
    assert torch.equal(mean, own)


def test_extremes_over_steps_go_on_from_a_saved_state_and_from_one_without_them() -> None:
    values = torch.tensor([[3.0, -1.0], [-2.0, 5.0], [4.0, 0.5]], dtype=torch.float64).repeat(200, 1)
    values[7] = torch.tensor([-9.0, 8.0])
    for at in (3, 300):  # before and after a chunk was summed up
        whole, first = StepMean(shape=(2,)), StepMean(shape=(2,))
        for step, value in enumerate(values):
            whole.keep(value)
            if step < at:
                first.keep(value)
        second, old = StepMean(shape=(2,)), StepMean(shape=(2,))
        state = first.state()
        second.load_state(state)
        old.load_state({key: value for key, value in state.items() if key not in ("extremes", "count")})
        for value in values[at:]:
            second.keep(value)
            old.keep(value)
        expected, found, without = whole.summary(), second.summary(), old.summary()
        assert expected is not None
        assert found is not None
        assert without is not None
        assert all(map(torch.equal, expected, found))
        assert torch.equal(expected.low, values.amin(0))
        assert torch.equal(expected.high, values.amax(0))
        assert torch.equal(without.mean, expected.mean)
        seen = torch.cat([values[:256].mean(0, keepdim=True), values[256:]]) if at > 256 else values
        torch.testing.assert_close(torch.stack(without[1:]), torch.stack([seen.amin(0), seen.amax(0)]))
        assert whole.summary() is None


def test_values_do_not_depend_on_how_many_steps_are_worked_out_at_once() -> None:
    """Else means would differ in their last bit by where a run was interrupted; torch's atan2 and hypot do."""
    params = [nn.Parameter(torch.zeros(6, dtype=torch.float64)) for _ in range(3)]
    groups = [Group(str(i), (p,)) for i, p in enumerate(params)]
    quantities = EffectiveQuantities(groups, torch.optim.SGD(params, lr=0.3))
    g, observed = torch.Generator().manual_seed(0), []
    for _ in range(400):
        for p in params:
            p.data.normal_(generator=g)
            p.grad = torch.empty_like(p).normal_(generator=g)
        observed.append(quantities.observe())
    options = quantities.options()
    singly = [quantities.evaluate(step[None], options) for step in observed]
    assert torch.equal(quantities.evaluate(torch.stack(observed), options), torch.cat(singly))


@settings(deadline=None)
@given(angle=st.floats(0, math.pi), length=st.floats(1e-9, 1e9))
def test_the_angle_is_that_of_its_components(angle: float, length: float) -> None:
    along, across = length * math.cos(angle), length * math.sin(angle)
    found = _angle(*torch.tensor([along, across], dtype=torch.float64))
    assert found.item() == pytest.approx(math.atan2(across, along), rel=1e-15, abs=0)


@pytest.mark.parametrize(
    ("along", "across", "angle"), [(0.0, 0.0, 0.0), (-0.0, 2.0, math.pi / 2), (-3.0, 0.0, math.pi), (3.0, 0.0, 0.0)]
)
def test_the_angle_of_steps_along_and_across(along: float, across: float, angle: float) -> None:
    assert _angle(torch.tensor(along), torch.tensor(across)).item() == pytest.approx(angle)


def test_quantiles_are_values_of_groups_by_name() -> None:
    measured = torch.tensor([[9.0, 4.0, 1.0, 3.0, 2.0, 5.0], [9.0, 1.0, 1.0, 1.0, 1.0, math.inf]])
    spread = quantiles_over_groups(measured, [0, 0.25, 0.5, 1])
    assert spread.tolist() == [[9, 1, 2, 3, 5], [9, 1, 1, 1, math.inf]]
    absent = torch.tensor([[9.0, 4.0, NOT_STEPPED, 2.0], [9.0, NOT_STEPPED, math.nan, 2.0], [9.0, *[NOT_STEPPED] * 3]])
    few = quantiles_over_groups(absent, [0, 0.5, 1])
    assert few[0].tolist() == [9, 2, 2, 4]
    assert few[1, 1:].isnan().all()
    assert few[2].tolist() == [9, NOT_STEPPED, NOT_STEPPED, NOT_STEPPED]
    names = [quantile_name(q) for q in (0, 0.05, 0.25, 0.5, 0.999, 1)]
    assert names == ["min", "q05", "q25", "median", "q99.9", "max"]


def test_a_changed_learning_rate_is_seen() -> None:
    _, groups = exact_conv_net()
    optimizer = SphereSGD([p for group in groups for p in group.parameters], elr=1e-3)
    effective = EffectiveQuantities(groups, optimizer)
    with_zero_gradients(groups)
    assert effective.measure()[2, 0].item() == pytest.approx(1e-3)
    optimizer.param_groups[0]["elr"] = 5e-2
    assert effective.measure()[2, 0].item() == pytest.approx(5e-2)


def with_zero_gradients(groups: list[Group]) -> None:
    for group in groups:
        for p in group.parameters:
            p.grad = torch.zeros_like(p)


def test_gradients_of_zeros_are_a_step_and_missing_ones_are_none() -> None:
    _, groups = exact_conv_net()
    effective = EffectiveQuantities(groups, SphereSGD([p for g in groups for p in g.parameters], elr=1e-3))
    assert effective.measure().isnan().all()
    with_zero_gradients(groups)
    measured = effective.measure()
    assert (measured[[1, 3, 4]] == 0).all()
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
    norm, grad, *_ = EffectiveQuantities(groups, torch.optim.SGD([scalar, bias], lr=0.1)).measure()
    assert norm[1:].tolist() == [2, 3, 4]
    assert grad[1:].tolist() == [2, 0, 8]


def test_weight_decay_that_forgets_the_weights_has_no_finite_effective_learning_rate() -> None:
    _, groups = exact_conv_net()
    params = [p for group in groups for p in group.parameters]
    with_zero_gradients(groups)
    for decay in (2.0, 3.0):
        assert (
            EffectiveQuantities(groups, torch.optim.SGD(params, lr=0.5, weight_decay=decay)).measure()[2, 0] == math.inf
        )


def _groups(*options: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"params": [0, 1], "momentum": 0.0, "nesterov": False, **each} for each in options]


def equilibrium(param_groups: list[dict[str, Any]], grad_norm: float = 5.0) -> dict[str, float]:
    """Of two tensors whose step is 0.3."""
    return predicted_equilibrium(equilibrium_rule(param_groups, 2), grad_norm, 0.3)


def test_the_equilibrium_of_a_joint_sphere_is_the_step_of_the_whole() -> None:
    sphere = {"elr": 1e-3, "granularity": "joint", "radius": 2.0}
    assert equilibrium(_groups(sphere)) == {"ess": 0.3}
    assert equilibrium(_groups(sphere, sphere)) == {}, "their ELRs are fixed one by one"
    assert equilibrium(_groups({**sphere, "granularity": "filter"})) == {}
    assert equilibrium(_groups({**sphere, "params": [0, 1, 2]})) == {}, "another tensor turns with the whole"


def test_the_equilibrium_under_weight_decay_is_that_of_a_fixed_norm() -> None:
    lr, decay, grad_norm = 0.3, 0.02, 0.7
    (ess, elr) = equilibrium(_groups({"lr": lr, "weight_decay": decay}), grad_norm).values()
    norm = torch.tensor(1.0, dtype=torch.float64)
    for _ in range(5000):
        norm = next_norm(norm, grad_norm, lr, decay)
    # SP's effective learning rate, with which step sizes are logged, η/(ρ²(1 − ηλ)).
    assert elr == pytest.approx(sgd_elr(norm, lr, decay).item(), rel=1e-10)
    assert ess == pytest.approx(elr * grad_norm, rel=1e-12)


@pytest.mark.parametrize(("lr", "decay"), [(0.3, 0.05), (3.0, 5e-3), (0.1, 0.5)])
def test_norms_and_elrs_under_weight_decay_come_to_lie_in_the_predicted_interval(lr: float, decay: float) -> None:
    low, high = 0.5, 4.0
    found = predicted_interval((lr, decay), low, high)
    assert predicted_interval((lr, decay), high, high)["norm_high"] == found["norm_high"]
    g = torch.Generator().manual_seed(0)
    norm = torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64)
    # Bounds are reached by gradients that stay at them.
    for grads in (torch.full((1500,), low), torch.rand(1500, generator=g) * (high - low) + low):
        for grad_norm in grads:
            norm = next_norm(norm, grad_norm, lr, decay)
        elr = sgd_elr(norm, lr, decay)
        assert ((found["norm_low"] * (1 - 1e-9) <= norm) & (norm <= found["norm_high"])).all()
        assert ((found["elr_low"] <= elr) & (elr <= found["elr_high"] * (1 + 1e-9))).all()
        if grads[0] == low:
            assert norm[0].item() == pytest.approx(found["norm_low"], rel=1e-6)
            assert elr[2].item() == pytest.approx(found["elr_high"], rel=1e-6)


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [
        (None, 1.0, 2.0),
        ("joint", 1.0, 2.0),
        ((0.1, 0.1), 0.0, 1.0),
        ((0.1, 0.1), 1.0, math.inf),
        ((0.1, 0.1), math.nan, math.nan),
        ((1.0, 0.4), 1.0, 1.0),
        ((0.1, 0.1), 1.0, 100.0),
    ],
)
def test_without_bounds_that_hold_no_interval_is_predicted(rule: Any, low: float, high: float) -> None:
    assert predicted_interval(rule, low, high) == {}


@pytest.mark.parametrize(
    "options",
    [
        [{"lr": 0.1, "weight_decay": 0.0}],
        [{"lr": 0.1, "weight_decay": 10.0}],
        [{"lr": 0.0, "weight_decay": 0.1}],
        [{"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.2, "weight_decay": 0.1}],
        [{"lr": 0.1, "weight_decay": 0.1}, {"elr": 0.1, "granularity": "joint", "radius": 1.0}],
    ],
)
def test_without_an_equilibrium_none_is_predicted(options: list[dict[str, Any]]) -> None:
    assert equilibrium(_groups(*options)) == {}


def test_without_gradient_there_is_no_equilibrium() -> None:
    assert equilibrium(_groups({"lr": 0.1, "weight_decay": 0.1}), 0.0) == {}


# --- steps that leave a group alone, parameters of half precision, groups that are not scale-invariant


def two_groups(dtype: torch.dtype = torch.float64) -> tuple[list[nn.Parameter], list[Group]]:
    g = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(3, 5, generator=g).to(dtype)) for _ in range(2)]
    return params, [Group(str(i), (p,)) for i, p in enumerate(params)]


ALL_SOURCES: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, weight_decay=0.1),
    "ascent": lambda params: torch.optim.SGD(params, lr=0.05, weight_decay=0.1, maximize=True),
    "momentum, L2": KNOWN["momentum, L2"],
    "nesterov, L2": KNOWN["nesterov, L2"],
    "Adam, L2, amsgrad": KNOWN["Adam, L2, amsgrad"],
    "AdamW": KNOWN["AdamW"],
    "NAdam": lambda params: torch.optim.NAdam(params, lr=3e-3, weight_decay=0.5),
    "filters": lambda params: SphereSGD(params, elr=0.01, granularity="filter"),
}


@pytest.mark.parametrize("name", ALL_SOURCES)
def test_a_mean_is_over_the_steps_that_moved_a_group(name: str) -> None:
    params, groups = two_groups()
    optimizer = ALL_SOURCES[name](params)
    effective = EffectiveQuantities(groups, optimizer, radial_gradients=True)
    means = StepMeans(effective)
    g = torch.Generator().manual_seed(1)
    seen: tuple[list[torch.Tensor], ...] = ([], [])
    for step in range(9):
        moves = step % 3 % 2  # the first group twice as often
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype) if i == moves else None
        before = params[moves].detach().flatten().clone()
        effective.keep_gradients()
        effective.keep_weights()
        if effective.source == "gradients":
            means.add()
            optimizer.step()
        else:
            optimizer.step()
            means.add()
        seen[moves].append(tangent(before, params[moves].detach().flatten()))
    summary = means.summary()
    assert summary is not None
    ess = QUANTITIES.index("ess")
    expected = [torch.stack(each) for each in (seen[0] + seen[1], *seen)]
    assert [len(each) for each in expected] == [9, 6, 3]
    assert_close(summary.mean[ess], [each.mean() for each in expected])
    assert_close(summary.low[ess], [each.min() for each in expected])
    assert_close(summary.high[ess], [each.max() for each in expected])
    assert summary.mean.isfinite().all()


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_what_is_frozen_in_mid_run_is_not_stepped_by_its_weight_decay(name: str) -> None:
    params, groups = two_groups()
    optimizer = ALL_SOURCES[name](params)
    effective = EffectiveQuantities(groups, optimizer)
    for frozen in (False, True):
        params[1].requires_grad_(not frozen)
        for p in params:
            p.grad = torch.ones_like(p) if p.requires_grad else None
        before = params[1].detach().clone()
        if effective.source == "gradients":
            measured = effective.measure()
        optimizer.step()
        if effective.source != "gradients":
            measured = effective.measure()
        assert torch.equal(params[1], before) == frozen
        assert measured[:, 2].isnan().all() if frozen else (measured[[0, 3, 5], 2] != 0).all()


def test_a_joint_sphere_is_stepped_as_a_whole() -> None:
    params, groups = two_groups()
    optimizer = SphereSGD(params, elr=0.01)
    params[0].grad = torch.ones_like(params[0])
    measured = EffectiveQuantities(groups, optimizer, radial_gradients=True).measure()
    before = vectors(groups, {p: p.detach().clone() for p in params})
    optimizer.step()
    after = vectors(groups, {p: p.detach() for p in params})
    assert_close(measured[3, :2], [tangent(x, new) for x, new in zip(before[:2], after[:2], strict=True)])
    assert measured[3, 2] == 0
    assert measured[-1, 2].isnan(), "a gradient of zeros points nowhere"


@pytest.mark.parametrize("name", [*ALL_SOURCES, "joint"])
def test_groups_that_are_not_scale_invariant_are_measured_by_the_real_step(name: str) -> None:
    params, groups = two_groups()
    groups = [Group("rows", (params[0],), slice(1, 3)), groups[1]] if name == "filters" else groups
    optimizer = SphereSGD(params, elr=0.01) if name == "joint" else ALL_SOURCES[name](params)
    effective = EffectiveQuantities(groups, optimizer, radial_gradients=True)
    g = torch.Generator().manual_seed(1)
    for _ in range(4):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g, dtype=p.dtype) + 0.3 * p.detach()
        grads = vectors(groups, {p: p.grad.clone() for p in params if p.grad is not None})
        before = vectors(groups, {p: p.detach().clone() for p in params})
        effective.keep_gradients()
        effective.keep_weights()
        if effective.source == "gradients":
            measured = effective.measure()
        optimizer.step()
        if effective.source != "gradients":
            measured = effective.measure()
        after = vectors(groups, {p: p.detach().clone() for p in params})
        norm, grad, elr, ess, _, radial, length, _, share = measured
        assert_close(norm, [x.norm() for x in before])
        assert_close(grad, [x.norm() * d.norm() for x, d in zip(before, grads, strict=True)])
        assert_close(ess, [tangent(x, new) for x, new in zip(before, after, strict=True)])
        assert_close(share, [(x @ d).abs() / x.norm() / d.norm() for x, d in zip(before, grads, strict=True)])
        assert share.min() > 1e-3
        if not isinstance(optimizer, SphereSGD):  # whose step is that before it is taken back
            assert_close(radial, [1 - x @ new / (x @ x) for x, new in zip(before, after, strict=True)])
            assert_close(length, [ess[i] * (x @ new) / x.norm() for i, (x, new) in enumerate(zip(before, after))])  # noqa: B905
        if effective.source == "gradients" and not isinstance(optimizer, SphereSGD):
            (options,) = optimizer.param_groups
            kept = [x @ new for x, new in zip(before, after, strict=True)]
            assert_close(elr, [options["lr"] / each for each in kept])


def test_scale_invariant_groups_have_no_radial_gradient_and_the_same_numbers() -> None:
    net, groups = exact_conv_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    x, y = next(digits())
    gradient_step(net, optimizer, x, y)
    strict = EffectiveQuantities(groups, optimizer).measure()
    measured = EffectiveQuantities(groups, optimizer, radial_gradients=True).measure()
    torch.testing.assert_close(measured[:-1], strict, rtol=1e-10, atol=1e-14)
    assert (measured[-1] < 1e-10).all()


@pytest.mark.parametrize("name", ["SGD", "AdamW", "filters"])
def test_steps_of_half_precision_are_those_of_the_rounded_weights(name: str) -> None:
    params, groups = two_groups(torch.bfloat16)
    exact, _ = two_groups()
    optimizer, reference = ALL_SOURCES[name](params), ALL_SOURCES[name](exact)
    for group in (*optimizer.param_groups, *reference.param_groups):
        group.update({"elr": 1e-3} if "elr" in group else {"lr": 1e-3})
    effective = EffectiveQuantities(groups, optimizer)
    assert effective.source == "weights"
    assert effective.equilibrium is None
    g = torch.Generator().manual_seed(1)
    for p, q in zip(params, exact, strict=True):
        p.grad = torch.randn(p.shape, generator=g).bfloat16()
        q.grad = p.grad.double()
    before, wanted = (
        vectors(groups, {p: t.detach().double() for p, t in zip(params, each, strict=True)}) for each in (params, exact)
    )
    effective.keep_weights()
    optimizer.step()
    reference.step()
    after, meant = (
        vectors(groups, {p: t.detach().double() for p, t in zip(params, each, strict=True)}) for each in (params, exact)
    )
    real = torch.stack([tangent(x, new) for x, new in zip(before, after, strict=True)])
    intended = torch.stack([tangent(x, new) for x, new in zip(wanted, meant, strict=True)])
    torch.testing.assert_close(effective.measure()[3], real, rtol=1e-4, atol=0)
    assert ((real / intended - 1).abs() > 0.05).any(), "rounding must have changed the step"


def test_values_that_are_not_there_are_not_counted_and_nan_is() -> None:
    values = torch.tensor([[3.0, NOT_STEPPED], [NOT_STEPPED, NOT_STEPPED], [4.0, NOT_STEPPED]], dtype=torch.float64)
    values = values.repeat(150, 1)
    for at in (2, 300):
        whole, first, second = (StepMean(shape=(2,)) for _ in range(3))
        for step, value in enumerate(values):
            whole.keep(value)
            if step == at:
                second.load_state(first.state())
            (first if step < at else second).keep(value)
        expected, found = whole.summary(), second.summary()
        assert expected is not None
        assert found is not None
        assert all(map(torch.equal, expected, found))
        assert [each.tolist() for each in expected] == [[3.5, NOT_STEPPED], [3, math.inf], [4, NOT_STEPPED]]
    broken = StepMean(shape=(2,))
    for value in (*values[:2], torch.tensor([math.nan, 1.0], dtype=torch.float64)):
        broken.keep(value)
    summary = broken.summary()
    assert summary is not None
    assert all(each[0].isnan() and each[1] == 1 for each in summary)


@pytest.mark.parametrize(
    ("source", "make"),
    [
        ("gradients", lambda params: SphereSGD(params, elr=1e-9)),
        ("gradients", lambda params: torch.optim.SGD(params, lr=1e-9, weight_decay=0.1)),
        ("state", lambda params: torch.optim.SGD(params, lr=1e-9, momentum=0.9)),
        ("state", lambda params: torch.optim.Adam(params, lr=1e-9)),
        ("weights", lambda params: RandomWalk(params, elr=1e-9)),
        ("weights", lambda params: torch.optim.RMSprop(params, lr=1e-9)),
        ("weights", lambda params: torch.optim.RMSprop(params, lr=1e3)),
    ],
)
def test_the_distance_of_iterates_is_right_where_their_cosine_rounds_to_one(source: str, make: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(30, 5, generator=generator, dtype=torch.float64))
    optimizer = make([weight])
    effective = EffectiveQuantities([Group("w", (weight,))], optimizer)
    gradient = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    before = weight.detach().clone()
    weight.grad = gradient - (gradient * before).sum() / before.square().sum() * before
    effective.keep_weights()
    effective.keep_gradients()
    measured = effective.measure() if source == "gradients" else None
    optimizer.step()
    measured = effective.measure() if measured is None else measured
    assert effective.source == source
    step = weight.detach() - before
    radial = float((step * before).sum() / before.norm())
    across, along = float((step - radial * before / before.norm()).norm()), float(before.norm()) + radial
    length = math.hypot(along, across)
    wanted = across**2 / (length * (length + along)) if along > 0 else 1 - along / length
    assert measured[QUANTITIES.index("distance")].tolist() == pytest.approx([wanted, wanted], rel=1e-5)
