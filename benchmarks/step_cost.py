"""(a) What SphereSGD's step costs more than torch.optim.SGD's."""

import time
from collections.abc import Callable
from copy import deepcopy
from statistics import median

import torch
from comparison import Comparison
from settings import Settings, synchronise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from lit_sphere.networks import ConvNet, ResNet18
from lit_sphere.optim import SphereSGD

GOAL = ("<=", 1.25)
_ELR = 1e-5


def compare_steps(settings: Settings) -> list[Comparison]:
    """Compare the steps alone and inside training steps, on both networks."""
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {
        f"ConvNet w={settings.width}": ConvNet(settings.width, scale_invariant=True),
        f"ResNet-18 w={settings.width}": ResNet18(settings.width, scale_invariant=True),
    }
    batch = torch.randn(settings.batch, 3, 32, 32).to(settings.device, memory_format=torch.channels_last)
    labels = torch.randint(10, (settings.batch,)).to(settings.device)
    found = []
    for name, network in networks.items():
        network.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        found.append(_warm(name, network, batch, labels, settings))
        found.append(_in_training(name, network, batch, labels, settings))
    return found


def _pair(network: nn.Module) -> tuple[tuple[nn.Module, Optimizer], tuple[nn.Module, Optimizer]]:
    """Two copies of the network at the same point, one on the sphere, the other with SGD at the same η."""
    sphere, plain = deepcopy(network), deepcopy(network)
    ours = SphereSGD(_trained(sphere), elr=_ELR)
    return (sphere, ours), (plain, SGD(_trained(plain), lr=_ELR * ours.param_groups[0]["radius"] ** 2))


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


def _backward(network: nn.Module, batch: Tensor, labels: Tensor) -> None:
    F.cross_entropy(network(batch), labels).backward()


def _warm(name: str, network: nn.Module, batch: Tensor, labels: Tensor, settings: Settings) -> Comparison:
    """Back to back: gradients stay as they are, and what fits a cache stays in it."""

    def repeated(network: nn.Module, optimizer: Optimizer) -> Callable[[], float]:
        _backward(network, batch, labels)

        def measure() -> float:
            optimizer.step()
            synchronise(settings.device)
            start = time.perf_counter()
            for _ in range(settings.warm_steps):
                optimizer.step()
            synchronise(settings.device)
            return (time.perf_counter() - start) / settings.warm_steps

        measure()
        return measure

    ours, theirs = (repeated(*side) for side in _pair(network))
    tensors = len(_trained(network))
    comparison = Comparison("a1", f"step of {name} ({tensors} tensors), back to back", "SphereSGD", "SGD", "s", GOAL)
    return comparison.measure(ours, theirs, 4 * settings.trials)


def _in_training(name: str, network: nn.Module, batch: Tensor, labels: Tensor, settings: Settings) -> Comparison:
    """After a real forward and backward pass, which leaves gradients and weights where it will."""
    wholes: dict[str, list[float]] = {"ours": [], "theirs": []}

    def trained(side: str, network: nn.Module, optimizer: Optimizer) -> Callable[[], float]:
        def measure() -> float:
            synchronise(settings.device)
            start = time.perf_counter()
            optimizer.zero_grad()
            _backward(network, batch, labels)
            synchronise(settings.device)
            before = time.perf_counter()
            optimizer.step()
            synchronise(settings.device)
            end = time.perf_counter()
            wholes[side].append(end - start)
            return end - before

        measure()  # chooses convolution algorithms
        wholes[side].clear()
        return measure

    first, second = _pair(network)
    ours, theirs = trained("ours", *first), trained("theirs", *second)
    what = f"step of {name} in training steps of {settings.batch} images"
    comparison = Comparison("a2", what, "SphereSGD", "SGD", "s", GOAL)
    comparison.measure(ours, theirs, settings.trials * settings.steps)
    for side, steps in zip(("ours", "theirs"), comparison.medians, strict=True):
        comparison.notes[f"share of the training step, {side}"] = steps / median(wholes[side])
    comparison.notes["training step, s"] = median(wholes["ours"])
    return comparison
