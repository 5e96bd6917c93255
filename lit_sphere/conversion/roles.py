"""What the parameters of a network are there for, told by its behaviour: its heads, its closed gates, idle tensors."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

# A gain below is as good as closed: layer scale starts at 1e-6 to 0.1, gains otherwise at 1.
_SMALL_GAIN = 0.2
# Heads are called last; the bound keeps a network without one from being tried tensor by tensor.
_MOST_HEADS_TRIED = 8
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Roles:
    """Names of trainable parameters by their role.

    Attributes:
        redrawn: Weights that were all zero, with the values that a fresh layer would begin with.
        heads: Last linear maps: the output is affine in them, and without them does not depend on the input.
        gates: Gains that start at, or near, zero: there, other tensors have no influence.
        idle: Tensors that have no influence on the output.
    """

    redrawn: Mapping[str, Tensor]
    heads: tuple[str, ...]
    gates: frozenset[str]
    idle: frozenset[str]


def is_vector(tensor: Tensor) -> bool:
    """Tell whether a tensor is no weight matrix, but gains, a bias, a token: one dimension, or one value throughout.

    Args:
        tensor: Any parameter; one that is zero throughout may be a matrix that starts there.

    Returns:
        Whether it is.
    """
    if sum(size > 1 for size in tensor.shape) < 2:
        return True
    return bool(tensor.any()) and bool((tensor == tensor.flatten()[0]).all())


def fresh(parameter: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw what a fresh linear or convolutional layer begins with.

    Args:
        parameter: Gives shape, type and device; at least two dimensions.
        generator: Of the numbers; None for torch's own.

    Returns:
        The values.
    """
    return nn.init.kaiming_uniform_(torch.empty_like(parameter.detach()), a=math.sqrt(5), generator=generator)


Inputs = Sequence[Tensor] | Mapping[str, Tensor]
"""Inputs of a network by position, or by name."""


def find_roles(network: nn.Module, inputs: Inputs) -> Roles:
    """Find the roles of the trainable parameters, on a copy in eval mode.

    Args:
        network: Any module.
        inputs: Inputs by position or by name; shapes, types and, if they vary, values are taken.

    Returns:
        The roles.

    Raises:
        ValueError: If the network cannot be copied, fails on the inputs, or returns no floating-point tensor.
    """  # noqa: DOC502
    with torch.inference_mode(False), torch.enable_grad():
        trial = _Trial(network, inputs)
        redrawn = {name: fresh(p) for name, p in trial.parameters.items() if not p.any() and not is_vector(p)}
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for name, value in redrawn.items():
            trial.parameters[name].data.copy_(value)
        gates = _gates(trial)
        with trial.holding(gates, 1.0):
            idle = frozenset(trial.parameters) - trial.influential()
            heads = _heads(trial)
    return Roles(redrawn, heads, gates, idle)


class _Trial:
    """A copy of a network that may be changed at will."""

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        self._who = type(network).__name__
        try:
            self.network = copy.deepcopy(network).eval()
        except Exception as error:
            raise ValueError(f"{self._who} cannot be copied ({type(error).__name__}: {error})") from error
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in self.network.parameters()):
            self.network = self.network.float()
        self.parameters = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        first = next(iter(self.parameters.values()))
        generator = torch.Generator().manual_seed(0)
        self._names = tuple(inputs) if isinstance(inputs, Mapping) else ()
        tensors = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
        self._inputs = [[_varied(each, generator, first) for each in tensors] for _ in range(2)]

    def outputs(self, number: int = 0) -> list[Tensor]:
        try:
            with torch.autocast(self._inputs[0][0].device.type, enabled=False):
                inputs = [each.clone() for each in self._inputs[number]]
                named = dict(zip(self._names, inputs, strict=True)) if self._names else {}
                found = tree_leaves(self.network(*([] if named else inputs), **named))
        except Exception as error:
            shapes = ", ".join(str(tuple(each.shape)) for each in self._inputs[number])
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"the forward of {self._who} fails on inputs of shape {shapes}: {type(error).__name__}: {reason}"
            ) from error
        floating = [each for each in found if isinstance(each, Tensor) and each.is_floating_point()]
        if not floating:
            raise ValueError(f"{self._who} returns no floating-point tensor")
        return floating

    def influential(self) -> frozenset[str]:
        """Names of the parameters on which a random function of the outputs depends."""
        generator = torch.Generator().manual_seed(1)
        outputs = [each for each in self.outputs() if each.requires_grad]
        if not outputs:
            return frozenset()
        random = [torch.randn(each.shape, generator=generator).to(each) for each in outputs]
        gradients = torch.autograd.grad(outputs, list(self.parameters.values()), random, allow_unused=True)
        pairs = zip(self.parameters, gradients, strict=True)
        return frozenset(name for name, gradient in pairs if gradient is not None and bool(gradient.any()))

    @contextmanager
    def holding(self, names: frozenset[str] | Sequence[str], value: float) -> Iterator[None]:
        """Within, these parameters have this value throughout."""
        before = {name: self.parameters[name].detach().clone() for name in names}
        with torch.no_grad():
            for name in names:
                self.parameters[name].fill_(value)
        try:
            yield
        finally:
            for name, old in before.items():
                self.parameters[name].data.copy_(old)

    def called(self) -> list[nn.Module]:
        """Modules in the order in which they are called."""
        order: list[nn.Module] = []
        hooks = [
            module.register_forward_pre_hook(lambda called, _: order.append(called))
            for module in self.network.modules()
        ]
        try:
            self.outputs()
        finally:
            for hook in hooks:
                hook.remove()
        return order


def _varied(example: Tensor, generator: torch.Generator, like: Tensor) -> Tensor:
    if example.is_floating_point():
        return torch.randn(example.shape, generator=generator).to(like)
    picks = torch.randint(example.numel(), example.shape, generator=generator)
    return example.detach().cpu().flatten()[picks].to(like.device)


def _gates(trial: _Trial) -> frozenset[str]:
    """Parameters of one small value that, at zero, take the influence of others away: gains, where biases do not."""
    alike = {name: p.detach().flatten() for name, p in trial.parameters.items() if is_vector(p)}
    small = [name for name, p in alike.items() if abs(float(p[0])) < _SMALL_GAIN and bool((p == p[0]).all())]
    zeros = [name for name in small if not alike[name].any()]
    others = [name for name in small if name not in zeros]
    with trial.holding(small, 1.0):
        everything = trial.influential()
        return frozenset(_that_silence(trial, zeros, everything) + _that_silence(trial, others, everything))


def _that_silence(trial: _Trial, names: list[str], everything: frozenset[str]) -> list[str]:
    """Find, by halving, the names without which fewer parameters are influential."""
    if not names:
        return []
    with trial.holding(names, 0.0):
        if trial.influential() | set(names) >= everything:
            return []
    if len(names) == 1:
        return names
    half = len(names) // 2
    return _that_silence(trial, names[:half], everything) + _that_silence(trial, names[half:], everything)


def _heads(trial: _Trial) -> tuple[str, ...]:
    """Find the last linear maps, at most one for each output: those that are called last are tried first."""
    names = {p: name for name, p in trial.parameters.items()}
    order = [p for module in trial.called() for p in module.parameters(recurse=False) if p in names]
    sites = [p for module in trial.network.modules() for p in module.parameters(recurse=False)]
    candidates = list(
        dict.fromkeys(p for p in reversed(order) if sum(size > 1 for size in p.shape) > 1 or p.dim() == 2)
    )
    heads: list[str] = []
    with torch.no_grad():
        plain = trial.outputs()
        open_outputs = set(range(len(plain)))
        for p in candidates[:_MOST_HEADS_TRIED]:
            if sum(p is other for other in sites) > 1:
                continue  # tied: it is the embedding as well
            mapped = _affine_outputs(trial, names[p], plain) & open_outputs
            if mapped:
                heads.append(names[p])
                open_outputs -= mapped
    return tuple(reversed(heads))


def _affine_outputs(trial: _Trial, name: str, plain: list[Tensor]) -> set[int]:
    """Outputs that are affine in a tensor, and at zero do not depend on the input."""
    parameter = trial.parameters[name]
    with trial.holding([name], 0.0):
        without, without_other = trial.outputs(0), trial.outputs(1)
    before = parameter.detach().clone()
    parameter.data.mul_(2)
    twice = trial.outputs(0)
    parameter.data.copy_(before)
    found = set()
    for number, (once, none, other, double) in enumerate(zip(plain, without, without_other, twice, strict=True)):
        share = once - none
        largest = float(share.abs().max())
        error = max(float((none - other).abs().max()), float((double - none - 2 * share).abs().max()))
        if largest > 0 and error <= _TOLERANCE * largest:
            found.add(number)
    return found
