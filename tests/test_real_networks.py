"""Theory and measurement along real training steps of real networks, in float64 without eps."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_sphere.effective import QUANTITIES, EffectiveQuantities, StepMeans
from lit_sphere.groups import Group, find_groups
from lit_sphere.networks import ConvNet, ResNet18, ResNet20
from lit_sphere.optim import SphereSGD
from lit_sphere.theory import adam_elr, momentum_elr, radius_ratio, root_mean_square, sgd_elr, spherical_step
from lit_sphere.theory import weight_decay as wd

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ConvNet": lambda: ConvNet(4, in_channels=1, scale_invariant=True, eps=1e-30),
    "ResNet18": lambda: ResNet18(2, in_channels=1, scale_invariant=True, eps=1e-30),
    "ResNet20": lambda: ResNet20(4, in_channels=1, scale_invariant=True, eps=1e-30),
    "ResNet20 with weight norm": lambda: ResNet20(4, in_channels=1, scale_invariant=True, normalisation="weight"),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().double()


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        yield torch.randn(32, 1, 8, 8, generator=g, dtype=torch.float64), torch.randint(0, 10, (32,), generator=g)


def flat(group: Group, gradients: bool = False) -> Tensor:
    tensors = [p.grad if gradients else p.detach() for p in group.parameters]
    return torch.cat([t[group.rows or slice(None)].flatten() for t in tensors if t is not None]).clone()


def kept(group: Group, optimizer: torch.optim.Optimizer, key: str) -> Tensor:
    """A buffer of the optimizer, for all weights of a group."""
    return torch.cat([optimizer.state[p][key].flatten() for p in group.parameters])


@pytest.mark.parametrize("name", NETWORKS)
def test_norm_and_cosine_of_every_group_follow_their_recursions(name: str) -> None:
    net, lr, decay = make(name), 0.3, 0.05
    groups = find_groups(net, torch.zeros(2, 1, 8, 8))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, weight_decay=decay)
    turned = 0.0
    for x, y in batches(20):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        before = [flat(group) for group in groups]
        effective = [flat(g, gradients=True).norm() * old.norm() for g, old in zip(groups, before, strict=True)]
        optimizer.step()
        for group, old, g in zip(groups, before, effective, strict=True):
            new = flat(group)
            norm = wd.next_norm(old.norm(), g, lr, decay)
            cosine = wd.step_cosine(old.norm(), g, lr, decay)
            torch.testing.assert_close(new.norm(), norm, rtol=1e-8, atol=0)
            torch.testing.assert_close(torch.dot(old, new) / (old.norm() * new.norm()), cosine, rtol=1e-8, atol=0)
            chord = (old / old.norm() - new / new.norm()).norm()
            distance = wd.step_distance(old.norm(), g, lr, decay)
            torch.testing.assert_close(chord, (2 * distance).sqrt(), rtol=1e-8, atol=1e-15)
            turned = max(turned, 1 - cosine.item())
    assert turned > 1e-3, "nothing turned: nothing was tested"


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_rescaled_networks_train_through_the_same_functions(name: str, factor: float) -> None:
    """PB Proposition 4, weights, learning rate and weight decay rescaled together."""
    net, other = make(name), make(name)
    trained, others = ([p for p in n.parameters() if p.requires_grad] for n in (net, other))
    lr, decay = 0.1, 0.05
    for p in others:
        scaled, other_lr, other_decay = wd.rescaled(p.detach(), lr, decay, factor)
        p.data.copy_(scaled)
    optimizers = (
        torch.optim.SGD(trained, lr=lr, weight_decay=decay),
        torch.optim.SGD(others, lr=other_lr.item(), weight_decay=other_decay.item()),
    )
    for x, y in batches(10):
        losses = []
        for network, optimizer in zip((net, other), optimizers, strict=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    for p, q in zip(trained, others, strict=True):
        torch.testing.assert_close(factor * p, q, rtol=1e-9, atol=1e-12 * factor)


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.005, weight_decay=2.0)


def momentum(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.1)


def adam(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=3e-3, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-4)


def adam_w(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=3e-3, weight_decay=10.0, betas=(0.8, 0.95), eps=1e-4)


@pytest.mark.parametrize("make_optimizer", [sgd, momentum, adam, adam_w], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_of_every_scheme_are_theorem_2(
    name: str, make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
) -> None:
    """SP Theorem 2 and Table 1 along training: step, radius and η^e of each group, worked out from torch's buffers."""
    net = make(name)
    groups = find_groups(net, torch.zeros(2, 1, 8, 8))
    optimizer = make_optimizer([p for group in groups for p in group.parameters])
    (options,) = optimizer.param_groups
    lr, decay = options["lr"], options["weight_decay"]
    decoupled = decay if make_optimizer is adam_w else 0.0
    turned = radial = 0.0
    for k, (images, labels) in enumerate(batches(12), start=1):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        before = [flat(group) for group in groups]
        optimizer.step()
        for group, x in zip(groups, before, strict=True):
            b, r, new = torch.ones_like(x), x.norm(), flat(group)
            if make_optimizer is sgd:
                a = flat(group, gradients=True) + decay * x
            elif make_optimizer is momentum:
                a = kept(group, optimizer, "momentum_buffer")
            else:
                beta1, beta2 = options["betas"]
                a = kept(group, optimizer, "exp_avg") / (1 - beta1**k)
                b = (kept(group, optimizer, "exp_avg_sq") / (1 - beta2**k)).sqrt() + options["eps"]
            step = spherical_step(x, a, lr, b, decoupled)
            torch.testing.assert_close(step.point, new / new.norm(), rtol=1e-8, atol=1e-12)
            torch.testing.assert_close(step.norm_ratio, new.norm() / r, rtol=1e-8, atol=0)
            ratio = (1 - lr * decoupled) * radius_ratio(step.radial, step.ess)
            torch.testing.assert_close(ratio, new.norm() / r, rtol=1e-8, atol=0)
            # The rate that was really used: tangent of the angle, by the length of c⊥.
            tangent = (new - (new @ x) / r**2 * x).norm() / ((new @ x) / r)
            size = root_mean_square(b)
            c = r * a / (b / size)
            along = c @ x / r
            used = tangent / (c - along * x / r).norm()
            if make_optimizer is sgd:
                stated = sgd_elr(r, lr, decay)
            elif make_optimizer is momentum:
                stated = momentum_elr(r, lr, along)
            else:
                stated = adam_elr(r, lr, along, size, decoupled)
            torch.testing.assert_close(stated, used, rtol=1e-8, atol=0)
            torch.testing.assert_close(step.distance, tangent.arctan(), rtol=1e-8, atol=0)
            turned, radial = max(turned, tangent.item()), max(radial, step.radial.abs().item())
    assert turned > 1e-2, "nothing turned: nothing was tested"
    assert radial > 1e-3, "Table 1 must have had something to correct"


Make = Callable[[list[nn.Parameter], list[nn.Parameter]], torch.optim.Optimizer]


def two(cls: Callable[..., torch.optim.Optimizer], first: dict[str, Any], other: dict[str, Any], **both: Any) -> Make:
    return lambda some, others: cls([{"params": some, **first}, {"params": others, **other}], **both)


FAST, SLOW = {"lr": 0.5}, {"lr": 0.05}
MIXED: dict[str, Make] = {
    "SGD": two(torch.optim.SGD, FAST, SLOW),
    "SGD, ascent of one": two(torch.optim.SGD, {**FAST, "maximize": True}, SLOW),
    "SGD, L2 of one": two(torch.optim.SGD, {"weight_decay": 0.3}, {}, lr=0.1),
    "SGD, both": two(torch.optim.SGD, {**FAST, "weight_decay": 0.02}, {**SLOW, "weight_decay": 1.0}),
    "momentum": two(torch.optim.SGD, FAST, {**SLOW, "weight_decay": 0.3}, momentum=0.9),
    "nesterov": two(torch.optim.SGD, FAST, {**SLOW, "weight_decay": 0.3}, momentum=0.9, nesterov=True),
    "Adam": two(torch.optim.Adam, {"lr": 1e-2}, {"lr": 1e-3, "weight_decay": 0.1}),
    "AdamW": two(torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 5.0}, {"lr": 1e-3, "weight_decay": 10.0}),
    "somebody's": two(torch.optim.RMSprop, {"lr": 1e-3}, {"lr": 1e-4}),
    "two spheres": two(SphereSGD, {"elr": 0.05}, {"elr": 0.005}, elr=None),
    "two spheres of one ELR": two(SphereSGD, {}, {}, elr=0.02),
    "spheres of filters": two(SphereSGD, {}, {"granularity": "filter"}, elr=0.02),
    "one sphere of filters": lambda some, others: SphereSGD([*some, *others], 0.02, granularity="filter"),
    "a sphere, L2": two(SphereSGD, {"elr": 0.02}, {"elr": None, "lr": 0.1, "weight_decay": 0.3}, elr=None),
}


def cut(groups: list[Group]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The first tensor of each joint group, and all others."""
    some = [group.parameters[0] for group in groups if len(group.parameters) > 1]
    return some, [p for group in groups for p in group.parameters if all(p is not q for q in some)]


def turned(x: Tensor, new: Tensor) -> list[Tensor]:
    """Tangent of the angle, share of the norm that is lost, and length across x."""
    stretch = x @ new / x.square().sum()
    across = (new - stretch * x).norm()
    return [across / (stretch * x.norm()), 1 - stretch, across]


@pytest.mark.parametrize(
    ("optimizer_name", "granularity"),
    [
        *((name, "tensor") for name in MIXED),
        *((name, "filter") for name in ("SGD, both", "AdamW", "spheres of filters")),
    ],
)
def test_options_that_cut_through_joint_groups_are_followed_to_the_weights(
    optimizer_name: str, granularity: Literal["tensor", "filter"]
) -> None:
    """Only the sum of ⟨x, ∇⟩ over a joint group vanishes, and parts of it go their own ways."""
    net = make("ResNet18")
    tensors = find_groups(net, torch.zeros(2, 1, 8, 8))
    groups = tensors if granularity == "tensor" else find_groups(net, torch.zeros(2, 1, 8, 8), "filter")
    joint = [i for i, group in enumerate(groups) if len(group.parameters) > 1]
    optimizer = MIXED[optimizer_name](*cut(tensors))
    effective = EffectiveQuantities(groups, optimizer)
    on_spheres = isinstance(optimizer, SphereSGD)
    radial = 0.0
    for x, y in batches(6):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        before = [flat(group) for group in groups]
        expected = free_steps(groups, optimizer) if on_spheres else []
        effective.keep_weights()
        measured = effective.measure() if effective.source == "gradients" else None
        optimizer.step()
        measured = effective.measure() if measured is None else measured
        after = [flat(group) for group in groups]
        ess, share, length = of_each(before, after)
        if on_spheres:  # the others are those of the step before a sphere takes it back
            _, share, length = of_each(before, expected)
        rows = dict(zip(QUANTITIES, measured, strict=True))
        torch.testing.assert_close(rows["ess"], ess, rtol=1e-9, atol=0)
        torch.testing.assert_close(rows["angle"], ess.arctan(), rtol=1e-9, atol=0)
        torch.testing.assert_close(rows["radial"], share, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(rows["step_length"], length, rtol=1e-9, atol=0)
        radial = max(radial, share[1:][joint].abs().max().item())
    assert len(joint) >= 3
    assert radial > 1e-5, "inner products must have had something to say"


def of_each(before: list[Tensor], after: list[Tensor]) -> Tensor:
    """What was turned, in total and by group, shape (3, 1 + groups)."""
    pairs = [(torch.cat(before), torch.cat(after)), *zip(before, after, strict=True)]
    return torch.stack([torch.stack(turned(x, new)) for x, new in pairs], 1)


def free_steps(groups: list[Group], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Where the weights would go without projection."""
    new = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert p.grad is not None
            if group["elr"] is None:
                new[p] = (1 - group["lr"] * group["weight_decay"]) * p.detach() - group["lr"] * p.grad
            else:
                radius = optimizer.state[p]["radius"] if group["granularity"] == "filter" else group["radius"]
                new[p] = p.detach() - group["elr"] * radius**2 * p.grad
    return [torch.cat([new[p][group.rows or slice(None)].flatten() for p in group.parameters]) for group in groups]


@pytest.mark.parametrize("optimizer_name", ["SGD", "SGD, L2 of one", "SGD, both", "SGD, ascent of one"])
def test_gradients_and_the_optimizers_state_tell_the_same_of_a_cut_group(optimizer_name: str) -> None:
    net = make("ResNet18")
    groups = find_groups(net, torch.zeros(2, 1, 8, 8))
    optimizer = MIXED[optimizer_name](*cut(groups))
    before, after = (EffectiveQuantities(groups, optimizer, altered) for altered in (False, True))
    assert (before.source, after.source) == ("gradients", "state")
    for x, y in batches(3):
        F.cross_entropy(net(x), y).backward()
        measured = before.measure()
        optimizer.step()
        torch.testing.assert_close(measured, after.measure(), rtol=1e-9, atol=1e-14)
        optimizer.zero_grad()


def test_equal_options_cost_no_inner_products_and_others_are_noticed() -> None:
    """Parameter groups may cut through a joint group as long as they say the same."""
    net = make("ResNet18")
    groups = find_groups(net, torch.zeros(2, 1, 8, 8))
    optimizer = two(torch.optim.SGD, SLOW, SLOW)(*cut(groups))
    means = StepMeans(EffectiveQuantities(groups, optimizer))
    sizes, expected = [], []
    for step, (x, y) in enumerate(batches(4)):
        optimizer.param_groups[0]["lr"] = 0.5 if step >= 2 else 0.05
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        sizes.append(means.quantities.observe().numel())
        means.add()
        before = [flat(group) for group in groups]
        optimizer.step()
        expected.append(of_each(before, [flat(group) for group in groups])[0])
    assert sizes[0] == sizes[1] < sizes[2] == sizes[3]
    mean = means.mean()
    assert mean is not None
    torch.testing.assert_close(mean[QUANTITIES.index("ess")], torch.stack(expected).mean(0), rtol=1e-9, atol=0)
