"""Searches on modules as people write them: whatever happens meanwhile, the module is as it was afterwards."""

import copy
import random
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
import torchmetrics
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lit_sphere.groups import find_groups, search_groups

FEATURES = torch.zeros(2, 6)
IMAGES = torch.zeros(2, 3, 8, 8)


def layers() -> list[nn.Module]:
    return [nn.Linear(6, 6, bias=False), nn.LayerNorm(6, elementwise_affine=False), nn.ReLU()]


class Net(nn.Module):
    """Two normalised linear maps and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(*layers()), nn.Sequential(*layers())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.second(self.first(x)))


FIRST_AND_SECOND = [("first.0.weight",), ("second.0.weight",)]


def names(model: nn.Module, example: Any = FEATURES) -> list[tuple[str, ...]]:
    return [group.names for group in find_groups(model, example)]


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    """Objects by identity, and values of tensors and containers."""
    objects = [dict(vars(module)) for module in model.modules()]
    inner = [
        {name: [*value, *value.values()] for name, value in vars(module).items() if isinstance(value, dict)}
        for module in model.modules()
    ]
    lists = [
        {name: list(value) for name, value in vars(module).items() if isinstance(value, list)}
        for module in model.modules()
    ]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    return (
        objects,
        inner,
        lists,
        values,
        torch.get_default_dtype(),
        cast(Any, np.random.get_state())[1].tolist(),
        random.getstate(),
    )


def assert_same(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    for old, new in zip(before[0], after[0], strict=True):
        assert old.keys() == new.keys()
        assert [name for name in old if old[name] is not new[name]] == []
    for containers in (1, 2):
        for old, new in zip(before[containers], after[containers], strict=True):
            assert [name for name in old if [*map(id, old[name])] != [*map(id, new[name])]] == []
    assert [name for name, value in before[3].items() if not torch.equal(value, after[3][name])] == []
    assert before[4:] == after[4:]


# ---------------------------------------------------------------- one module or tensor under two names


class SharedModule(Net):
    """A module reachable under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(self.first, self.second)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))


class SharedParameter(Net):
    """A parameter of two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.second[0].weight = self.first[0].weight


class Parametrised(Net):
    """A weight computed from others."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.orthogonal(self.head)
        nn.utils.parametrizations.spectral_norm(self.second[0])


@pytest.mark.parametrize("kind", [SharedModule, SharedParameter, Parametrised])
@pytest.mark.parametrize("fails", [False, True])
def test_models_with_two_names_train_on_as_if_nothing_had_been(kind: type[Net], fails: bool) -> None:
    torch.manual_seed(0)
    model = kind()
    twin = copy.deepcopy(model)
    before = snapshot(model)
    if fails:
        handle = model.head.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("boom")))
        with pytest.raises(ValueError, match="boom"):
            find_groups(model, FEATURES)
        handle.remove()
    else:
        assert find_groups(model, FEATURES)
    assert_same(before, snapshot(model))
    x = torch.randn(4, 6)
    for net in (model, twin):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net(x).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_what_fabric_sets_up_trains_on() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    torch.manual_seed(0)
    net = Net()
    twin = copy.deepcopy(net)
    model = fabric.setup(net)  # the network under two names
    before = snapshot(model)
    assert [group.names[0].rpartition("module.")[2] for group in find_groups(model, FEATURES)] == [
        "first.0.weight",
        "second.0.weight",
    ]
    assert_same(before, snapshot(model))
    x = torch.randn(4, 6)
    model(x).square().sum().backward()
    twin(x).square().sum().backward()
    assert all(
        torch.equal(cast(Tensor, a.grad), cast(Tensor, b.grad))
        for a, b in zip(net.parameters(), twin.parameters(), strict=True)
    )


def test_an_interrupt_at_any_call_leaves_the_model_as_it_was() -> None:
    model = SharedModule()
    before, calls = snapshot(model), 0
    while True:
        left = calls

        def interrupt(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        handle = model.second[0].register_forward_hook(interrupt)
        try:
            find_groups(model, FEATURES)
        except KeyboardInterrupt:
            calls += 1
            handle.remove()
            assert_same(before, snapshot(model))
            continue
        handle.remove()
        break
    assert calls > 5


# ---------------------------------------------------------------- activation checkpointing


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    class Checkpointed(Net):
        def forward(self, x: Tensor) -> Any:
            for part in (self.first, self.second):
                x = cast(Tensor, checkpoint(part, x, use_reentrant=reentrant))
            return self.head(x)

    functions = dict(vars(torch.utils.checkpoint)), dict(vars(torch.utils.checkpoint.CheckpointFunction))
    assert names(Checkpointed()) == FIRST_AND_SECOND
    assert functions == (dict(vars(torch.utils.checkpoint)), dict(vars(torch.utils.checkpoint.CheckpointFunction)))


def test_a_tensor_used_in_two_checkpoints() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Any:
            for _ in range(2):
                x = cast(Tensor, checkpoint(self.first, x, use_reentrant=True))
            return self.head(self.second(x))

    assert names(Twice()) == FIRST_AND_SECOND


# ---------------------------------------------------------------- modes


class Frozen(nn.Module):
    """Batch norms, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)
        self.second, self.norm2 = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.norm1(self.first(x)))
        return self.head(F.relu(self.norm2(self.second(x))).mean((2, 3)))


def test_a_norm_in_eval_mode_normalises_nothing() -> None:
    model = Frozen()
    for norm in (model.norm1, model.norm2):
        nn.init.normal_(cast(Tensor, norm.running_mean))
    assert names(model, IMAGES) == [("first.weight",), ("second.weight",)]
    model.norm1.eval()
    assert names(model, IMAGES) == [("second.weight",)]
    model.eval()  # a model that is not in training is taken into train mode
    assert names(model, IMAGES) == [("first.weight",), ("second.weight",)]
    assert not search_groups(model, IMAGES, train=False).groups


# ---------------------------------------------------------------- float32 made inside forward

MADE_BEFORE = torch.eye(6)
NARROW: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "zeros": lambda m, x: x + torch.zeros(6),
    "linspace": lambda m, x: x + torch.linspace(0, 1, 6),
    "dtype": lambda m, x: x + torch.ones(6, dtype=torch.float32),
    "from_numpy": lambda m, x: x + torch.from_numpy(np.ones(6, dtype=np.float32)),
    "tensor": lambda m, x: F.linear(x, torch.tensor(np.eye(6, dtype=np.float32))),
    "plain_attribute": lambda m, x: x @ m.plain,
    "attribute_in_list": lambda m, x: x @ m.plains[0],
    "made_before": lambda m, x: x @ MADE_BEFORE,
    "eye": lambda m, x: x @ torch.eye(6),
    "full_like": lambda m, x: x * torch.full_like(x, 2.0, dtype=torch.float32),
    "float": lambda m, x: x.float() @ torch.eye(6),
    "to_weight": lambda m, x: x.to(m.first[0].weight.dtype),
    "half": lambda m, x: x.half().float(),
    "arange": lambda m, x: x + torch.arange(6, dtype=torch.float32),
    "new": lambda m, x: torch.cat([x, x.new_zeros(x.shape)], 1)[:, :6],
    "type": lambda m, x: x.type("torch.FloatTensor"),
    "numpy": lambda m, x: x + torch.as_tensor(x.detach().numpy().astype(np.float32)).mean(),
}


@pytest.mark.parametrize("pattern", NARROW)
def test_float32_made_inside_forward(pattern: str) -> None:
    class Narrow(Net):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.plains = torch.eye(6), [torch.eye(6)]

        def forward(self, x: Tensor) -> Any:
            return super().forward(NARROW[pattern](self, x))

    model = Narrow()
    before = snapshot(model)
    assert names(model) == FIRST_AND_SECOND
    assert_same(before, snapshot(model))


def test_what_cannot_run_in_float64_is_probed_in_float32() -> None:
    class Kernel(Net):
        def forward(self, x: Tensor) -> Any:
            if x.dtype != torch.float32:
                raise TypeError("this kernel is for float32")
            return super().forward(x)

    assert names(Kernel()) == FIRST_AND_SECOND


# ---------------------------------------------------------------- side effects


class Meter:
    """A running mean, as people write it."""

    def __init__(self) -> None:
        self.total, self.values = 0.0, list[float]()

    def update(self, value: float) -> None:
        self.total += value
        self.values.append(value)


class Slotted:
    """A running mean in slots, that can be called."""

    __slots__ = ("mean",)

    def __init__(self) -> None:
        self.mean = torch.zeros(6)

    def __call__(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x


class Busy(Net):
    """Leaves traces wherever it can."""

    def __init__(self) -> None:
        super().__init__()
        self.meter, self.metric = Meter(), torchmetrics.MeanMetric()
        self.slotted, self.array, self.hidden = Slotted(), np.zeros(3), [nn.BatchNorm1d(3)]
        self.seen, self.counts, self.plain = list[Tensor](), {"calls": 0}, torch.zeros(())
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Any:
        x = self.slotted(x)
        self.array += 1
        x = x * float(np.random.rand() + random.random() + 0.5)
        out = super().forward(x)
        self.hidden[0](out)
        self.meter.update(float(out.detach().sum()))
        self.metric.update(out.detach())
        self.seen.append(out)
        self.counts["calls"] += 1
        self.plain += 1
        cast(Tensor, self.steps).add_(1)
        self.last = out
        return out


def test_no_side_effect_of_the_probe_lasts() -> None:
    model = Busy()
    model(torch.randn(4, 6))
    meter, metric = copy.deepcopy(vars(model.meter)), float(model.metric.compute())
    before = snapshot(model)
    plain, mean, array = model.plain.clone(), model.slotted.mean.clone(), model.array.copy()
    hidden = {name: value.clone() for name, value in model.hidden[0].state_dict().items()}
    assert names(model) == FIRST_AND_SECOND
    assert_same(before, snapshot(model))
    assert vars(model.meter) == meter
    assert float(model.metric.compute()) == metric
    assert model.counts == {"calls": 1}
    assert torch.equal(model.plain, plain)
    assert torch.equal(model.slotted.mean, mean)
    assert model.array.tolist() == array.tolist()
    assert all(torch.equal(value, hidden[name]) for name, value in model.hidden[0].state_dict().items())
    assert len(model.seen) == 1


# ---------------------------------------------------------------- inputs


def test_weights_in_another_memory_format() -> None:
    model = Frozen().to(memory_format=torch.channels_last)
    assert names(model, IMAGES) == [("first.weight",), ("second.weight",)]


def test_inputs_by_name_and_nested() -> None:
    class Named(Net):
        def forward(self, x: Tensor, extra: Any = None, scale: float = 1.0) -> Any:
            return super().forward(x + extra["y"][0]) * scale

    example = {"x": FEATURES, "extra": {"y": [FEATURES]}, "scale": 2.0}
    assert names(Named(), example) == FIRST_AND_SECOND
    assert names(Named(), (FEATURES, {"y": [FEATURES]})) == FIRST_AND_SECOND


def test_how_far_the_identity_misses_is_said() -> None:
    class Handwritten(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), Handwritten(), nn.ReLU(), nn.Linear(6, 3))
    share = search_groups(model, FEATURES).radial_share["0.weight"]
    assert 1e-9 < share < 1e-3
    with pytest.raises(ValueError, match=r"nearest is 0\.weight, with [\d.]+e-0\d of its gradient .* eps in the code"):
        find_groups(model, FEATURES)
