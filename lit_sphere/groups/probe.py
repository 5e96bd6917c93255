"""Runs of a model in double precision, on random inputs, that leave no trace in the model."""

import dataclasses
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

# Norm layers refuse 0 while training. In float64 this is as good: it drowns in any variance there is.
_VANISHING = 1e-30
_EPS = re.compile(r"(.*_)?eps(ilon)?")
# Batch norm over fewer samples than a handful is close to a sign function, whose gradient vanishes.
_SAMPLES = 4
_NUDGE = 0.1
_NARROW = (torch.float16, torch.bfloat16, torch.float32)
_NARROWING = (Tensor.float, Tensor.half, Tensor.bfloat16)


class _Exact(TorchFunctionMode):
    """Keeps a forward in float64 where its code asks for less, and lets functional norms' eps vanish."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = {key: _widen(value) for key, value in (kwargs or {}).items()}
        if isinstance(named.get("eps"), float):
            named["eps"] = _VANISHING
        return (Tensor.double if func in _NARROWING else func)(*map(_widen, args), **named)


def _widen(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


class Probe:
    """A model at a generic point near its own weights, in train mode and float64, without eps.

    Args:
        model: Any module; it holds the same state, modes and gradients after `opened` as before.
        example_input: Positional inputs; shapes, types and ranges are taken from them.
        seed: Seed of the inputs, of the perturbation and of the forwards' own randomness (dropout).

    Raises:
        ValueError: If there is no trainable parameter, or a lazy one without shape yet.
    """

    def __init__(self, model: nn.Module, example_input: Sequence[Tensor], seed: int) -> None:
        self._model, self._examples, self._seed = model, example_input, seed
        everything = dict(model.named_parameters())
        if any(nn.parameter.is_lazy(parameter) for parameter in everything.values()):
            raise ValueError(f"{type(model).__name__} has lazy parameters: run it once on real data first")
        trainable = {name: parameter for name, parameter in everything.items() if parameter.requires_grad}
        if not trainable:
            raise ValueError(f"{type(model).__name__} has no trainable parameter: nothing can be scale-invariant")
        self.names, self.parameters = tuple(trainable), tuple(trainable.values())
        self._device = _float64_device(self.parameters[0].device)
        # Inside an inference-mode caller, the copies would be tensors that autograd refuses.
        with torch.inference_mode(False), torch.no_grad():
            self._fixed = {k: self._copy(v) for k, v in everything.items() if k not in trainable}
            self._buffers = {k: self._copy(v) for k, v in model.named_buffers()}
            self._values = [self._nudged(k, self._copy(v)) for k, v in enumerate(self.parameters)]

    def _copy(self, tensor: Tensor) -> Tensor:
        floating = tensor.is_floating_point() or tensor.is_complex()
        dtype = torch.promote_types(tensor.dtype, torch.float64) if floating else tensor.dtype
        return tensor.detach().to(_float64_device(tensor.device), dtype, copy=True)

    def _nudged(self, index: int, value: Tensor) -> Tensor:
        """Return a generic point nearby: γ = 1 and β = 0, say, have symmetries that training soon breaks."""
        noise = _NUDGE * torch.randn(value.shape, generator=self._generator(-1 - index), dtype=torch.float64)
        noise = noise.to(value.device)
        return value * (1 + noise) if value.any() else value + noise

    def _generator(self, index: int) -> torch.Generator:
        # Indices are small, and -1, -2, … for the parameters: 2³² keeps seeds apart.
        return torch.Generator().manual_seed((self._seed << 32) + (1 << 31) + index)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Train mode, vanishing eps, eager float64; inside, `run` works. All is restored at the end."""
        modules = list(self._model.modules())
        saved = [(module.training, dict(vars(module))) for module in modules]
        accelerators = [] if self._device.type == "cpu" else [self._device]
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(
                torch.random.fork_rng(
                    devices=[device.index or 0 for device in accelerators],
                    device_type=self._device.type if accelerators else "cuda",
                )
            )
            for kind in {"cpu", self._device.type}:
                stack.enter_context(torch.autocast(kind, enabled=False))
            stack.callback(random.setstate, random.getstate())
            try:
                self._model.train()
                for module in modules:
                    for name, value in vars(module).items():
                        if isinstance(value, float) and _EPS.fullmatch(name):
                            vars(module)[name] = _VANISHING
                yield
            finally:
                for module, (training, attributes) in zip(modules, saved, strict=True):
                    # Some forwards store things in the module (the older weight norm does).
                    for name in vars(module).keys() - attributes.keys():
                        del vars(module)[name]
                    vars(module).update(attributes)
                    if module.training != training:  # scripted modules keep it elsewhere
                        module.training = training

    def values(self, index: int) -> list[Tensor]:
        """Return values of the trainable tensors for inputs number ``index``, each tensor at another scale.

        Inputs alone leave some networks in one linear piece, with symmetries that hold in that piece only.
        """
        factors = 4 ** (2 * torch.rand(len(self._values), generator=self._generator(index)) - 1)
        return [value * factor for value, factor in zip(self._values, factors.tolist(), strict=True)]

    def run(self, index: int, values: Sequence[Tensor]) -> list[Tensor]:
        """Return floating-point outputs on random inputs number ``index``, with these parameters.

        Raises:
            ValueError: If the model fails on the random inputs, or returns no finite floating tensor.
        """
        inputs = self._inputs(index)
        state = {**self._fixed, **{name: buffer.clone() for name, buffer in self._buffers.items()}}
        state.update(zip(self.names, values, strict=True))
        self._reseed(index)
        shapes = ", ".join(str(tuple(each.shape)) for each in inputs)
        name = type(self._model).__name__
        try:
            with _Exact():
                outputs = list(_floating(functional_call(self._model, state, inputs)))
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"the forward of {name} fails on random inputs of shape {shapes}, made after the "
                f"example input: {type(error).__name__}: {reason}"
            ) from error
        if not outputs or not all(bool(output.isfinite().all()) for output in outputs):
            what = "a value that is not finite" if outputs else "no floating-point tensor"
            raise ValueError(f"{name} returns {what} on random inputs of shape {shapes}")
        return outputs

    def cotangents(self, index: int, outputs: Sequence[Tensor], count: int) -> list[list[Tensor]]:
        """Return ``count`` random linear functions of the outputs; no more than the outputs have entries."""
        generator = self._generator(index)
        count = min(count, sum(output.numel() for output in outputs))
        return [
            [torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output) for output in outputs]
            for _ in range(count)
        ]

    def _inputs(self, index: int) -> tuple[Tensor, ...]:
        generator = self._generator(index)
        batch = self._examples[0].shape[:1]
        return tuple(_random_like(each, batch, generator).to(self._device) for each in self._examples)

    def _reseed(self, index: int) -> None:
        # Not torch.manual_seed: that would seed devices as well which nobody restores.
        torch.default_generator.manual_seed(self._seed + index)
        random.seed(self._seed + index)
        if self._device.type != "cpu":
            accelerator = torch.get_device_module(self._device.type)
            with accelerator.device(self._device):
                accelerator.manual_seed(self._seed + index)


def _float64_device(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device


def _random_like(example: Tensor, batch: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return a random tensor with the example's shape (but its batch size), kind of type, and range."""
    example, shape = example.detach(), tuple(example.shape)
    if batch and shape[:1] == tuple(batch):
        shape = (_SAMPLES, *shape[1:])
    if example.is_floating_point():
        low, high = float(example.min()), float(example.max())
        if low < high and high - low < float("inf"):
            return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    # The example's own values, shuffled: in range, and a mask of ones stays one.
    picks = torch.randint(example.numel(), shape, generator=generator)
    return example.cpu().flatten()[picks]


def _floating(output: object) -> Iterator[Tensor]:
    """Yield the floating-point tensors in nested mappings, sequences and dataclasses, in their order."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _floating(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _floating(value)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from _floating(getattr(output, field.name))
