"""Runs of a model on samples like its input, in double precision, that leave no trace in the model."""

import random
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from lit_sphere.groups.held_modules import HeldModules
from lit_sphere.groups.precision import Precision
from lit_sphere.groups.samples import SampleSizes, random_like, tensors_in

_EPS = re.compile(r"(.*_)?eps(ilon)?")
_NUDGE = 0.1
_PIECE = 2**22
# Layer scale at 1e-6 would hide what lies behind it. A scaling symmetry holds at weights of any size.
_LEAST_VECTOR, _LEAST_MATRIX = 0.1, 1e-3
_CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16}


class _Exact(TorchFunctionMode):
    """Keeps a forward in the probe's precision where its code asks for less, and lets functional norms' eps vanish."""

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        self._to, self._eps = precision.dtype, precision.eps
        kinds = (torch.float16, torch.bfloat16, torch.float32)
        self._narrow = {kind for kind in kinds if torch.promote_types(kind, self._to) != kind}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = {key: value if key == "out" else self._widen(value) for key, value in (kwargs or {}).items()}
        if isinstance(named.get("eps"), float):
            named["eps"] = self._eps
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__", "__delete__"):  # attributes
            return func(*args, **named)
        if func in _CASTS:
            return args[0].to(self._to) if torch.float32 in self._narrow else func(*args, **named)
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        first = args[:1] if in_place else tuple(map(self._widen, args[:1]))
        out = func(*first, *map(self._widen, args[1:]), **named)
        return self._widen(out) if isinstance(out, Tensor) and not in_place else out

    def _widen(self, value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return self._to if value in self._narrow else value
        if isinstance(value, Tensor):
            return value.to(self._to) if value.dtype in self._narrow else value
        if type(value) in (list, tuple):
            return type(value)(map(self._widen, value))
        return value


class Probe:
    """A model at a generic point near its own weights, in a precision of its own, without eps.

    The model's own tensors are never written to: while a run lasts, every module's attributes are replaced by copies
    (parameters, buffers, plain tensors, lists and dictionaries), and put back, the very same objects, afterwards.

    Args:
        model: Any module; it holds the same state, modes and gradients after `opened` as before.
        call: What is computed; None for the model itself.
        positional: Inputs by position, tensors or whatever holds them.
        named: Inputs by name.
        precision: Of the probe.
        seed: Seed of the inputs, of the perturbation and of the forwards' own randomness (dropout).
        real: Take samples of the inputs as they are, for losses; otherwise random ones of their shapes, types, ranges.
        train: Train mode for all; None: if the model as a whole is in eval mode.

    Raises:
        ValueError: If there is no trainable parameter, or a lazy one without shape yet.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Callable[..., Any] | None,
        positional: Sequence[Any],
        named: Mapping[str, Any],
        precision: Precision,
        seed: int,
        real: bool,
        train: bool | None = None,
    ) -> None:
        self._model, self._call, self._seed, self._real = model, call or model, seed, real
        self._positional, self._named, self.precision = tuple(positional), dict(named), precision
        self._train = not model.training if train is None else train
        self._sizes = SampleSizes(tensors_in((self._positional, self._named)))
        everything = dict(model.named_parameters())
        if any(nn.parameter.is_lazy(parameter) for parameter in everything.values()):
            raise ValueError(f"{type(model).__name__} has lazy parameters: run it once on real data first")
        trainable = {name: parameter for name, parameter in everything.items() if parameter.requires_grad}
        if not trainable:
            raise ValueError(f"{type(model).__name__} has no trainable parameter: nothing can be scale-invariant")
        self.names, self.parameters = tuple(trainable), tuple(trainable.values())
        self.device = _wide_device(self.parameters[0].device, precision)
        self.leaves: list[nn.Parameter] = []
        self._factors = [1.0] * len(self.names)
        self._copies: dict[int, Any] = {}  # by the identity of what they stand for

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, `outputs` works. The model, the generators and the default type are as before at the end."""
        self._held = HeldModules(self._model)
        accelerators = [] if self.device.type == "cpu" else [self.device]
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(
                torch.random.fork_rng(
                    devices=[device.index or 0 for device in accelerators],
                    device_type=self.device.type if accelerators else "cuda",
                )
            )
            stack.enter_context(_without_checkpoints())
            for kind in {"cpu", self.device.type}:
                stack.enter_context(torch.autocast(kind, enabled=False))
            stack.callback(random.setstate, random.getstate())
            stack.callback(np.random.set_state, np.random.get_state())
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            stack.callback(self._held.restore)
            with torch.no_grad():
                self._copy_parameters()
            torch.set_default_dtype(self.precision.dtype)
            try:
                yield
            finally:
                self.leaves, self._copies = [], {}

    def _copy_parameters(self) -> None:
        known = {id(parameter): number for number, parameter in enumerate(self.parameters)}
        leaves: dict[int, nn.Parameter] = {}
        for parameter in self._model.parameters():
            number = known.get(id(parameter))
            if number is not None:
                leaves[number] = nn.Parameter(self._nudged(number, self._copied(parameter)))
                self._copies[id(parameter)] = leaves[number]
        self.leaves = [leaves[number] for number in range(len(leaves))]
        self._factors = [1.0] * len(leaves)

    def _copied(self, tensor: Tensor) -> Tensor:
        floating = tensor.is_floating_point() or tensor.is_complex()
        dtype = torch.promote_types(tensor.dtype, self.precision.dtype) if floating else tensor.dtype
        return tensor.detach().to(_wide_device(tensor.device, self.precision), dtype, copy=True)

    def _nudged(self, index: int, value: Tensor) -> Tensor:
        """Return a generic point nearby: γ = 1 and β = 0, say, have symmetries that training soon breaks."""
        generator = self._generator(-1 - index)
        if not value.numel() or not value.any():
            return value + _NUDGE * torch.randn(value.shape, generator=generator, dtype=value.real.dtype).to(value)
        # In pieces: noise for all of an embedding would take as much memory as it does.
        rows = max(1, _PIECE * len(value) // value.numel()) if value.dim() else 1
        for piece in value.split(rows) if value.dim() else (value,):
            piece.mul_((1 + _NUDGE * torch.randn(piece.shape, generator=generator)).to(piece))
        least = _LEAST_VECTOR if value.dim() < 2 else _LEAST_MATRIX
        if value.dim() > 1 and self.precision.dtype == torch.float32:  # small terms of sums would be lost in the digits
            least = (len(value) / value.numel()) ** 0.5
        size = float(torch.linalg.vector_norm(value)) / value.numel() ** 0.5
        return value.mul_(least / size) if size < least else value

    def _generator(self, index: int) -> torch.Generator:
        # Indices are small, and -1, -2, … for the parameters: 2³² keeps seeds apart.
        return torch.Generator().manual_seed((self._seed << 32) + (1 << 31) + index)

    @contextmanager
    def scaled(self, factors: Mapping[int, float | Tensor]) -> Iterator[None]:
        """Inside, the tensors of these columns are multiplied by these factors, which are not 0.

        Args:
            factors: For each column a number, or a tensor that broadcasts.

        Yields:
            Nothing.
        """
        with torch.no_grad():
            for column, factor in factors.items():
                self.leaves[column].mul_(factor)
        try:
            yield
        finally:
            with torch.no_grad():
                for column, factor in factors.items():
                    self.leaves[column].div_(factor)

    @contextmanager
    def zeroed(self, columns: Collection[int]) -> Iterator[None]:
        """Inside, the tensors of these columns are zero.

        Args:
            columns: Of tensors without influence.

        Yields:
            Nothing.
        """
        kept = {column: self.leaves[column].detach().clone() for column in columns}
        with torch.no_grad():
            for column in columns:
                self.leaves[column].zero_()
        try:
            yield
        finally:
            with torch.no_grad():
                for column, value in kept.items():
                    self.leaves[column].copy_(value)

    def go_to(self, index: int | None) -> None:
        """Scale the trainable tensors as belongs to inputs number ``index``, each by another factor.

        Inputs alone leave some networks in one linear piece, with symmetries that hold in that piece only.

        Args:
            index: Number of the inputs; None for the tensors' own scales.
        """
        factors = [1.0] * len(self.leaves)
        if index is not None:
            powers = torch.randint(-2, 3, (len(self.leaves),), generator=self._generator(index))
            factors = (2.0**powers).tolist()
        with torch.no_grad():
            for leaf, new, old in zip(self.leaves, factors, self._factors, strict=True):
                leaf.mul_(new / old)
        self._factors = factors

    def try_out(self, rung: int) -> bool:
        """Choose how much smaller than the example the inputs are, and run the model on them once.

        Args:
            rung: 0: few samples, of few pixels or tokens; 1: few samples; 2: as the example is.

        Returns:
            Whether there are inputs of that size that are others than those of the rung before.
        """
        if not self._sizes.choose(rung):
            return False
        self.outputs(0)
        return True

    def outputs(self, index: int, mode: Any = None) -> list[Tensor]:
        """Return floating-point outputs on inputs number ``index``, with the parameters as they are.

        Args:
            index: Number of the inputs, of dropout's masks and the like.
            mode: A context for the forward alone.

        Returns:
            All tensors in what the model returns.

        Raises:
            ValueError: If the model fails on the inputs, or returns no finite floating tensor.
        """
        positional, named = self._inputs(index)
        self._replace_attributes()
        self._reseed(index)
        shapes = ", ".join(str(tuple(each.shape)) for each in tensors_in((positional, named))) or "unknown"
        name = type(self._model).__name__
        who, kind, made = f"the forward of {name}", "random inputs", ", made after the example input"
        if self._real:
            who, kind, made = name, "samples", ""
        try:
            with warnings.catch_warnings(), _Exact(self.precision), mode or nullcontext():
                warnings.simplefilter("ignore")
                result = self._call(*positional, **named)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"{who} fails on {kind} of shape {shapes}{made}: {type(error).__name__}: {reason}"
            ) from error
        outputs = list(_floating(result))
        if not outputs or not all(bool(output.isfinite().all()) for output in outputs):
            what = "a value that is not finite" if outputs else "no floating-point tensor"
            raise ValueError(f"{name} returns {what} on {kind} of shape {shapes}")
        return outputs

    def cotangents(self, index: int, outputs: Sequence[Tensor], count: int) -> list[list[Tensor]]:
        """Return ``count`` random linear functions of the outputs; no more than the outputs have entries."""
        generator = self._generator(index)
        count = min(count, sum(output.numel() for output in outputs))
        return [
            [torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output) for output in outputs]
            for _ in range(count)
        ]

    def _replace_attributes(self) -> None:
        def fresh(tensor: Tensor) -> Tensor:
            # What is frozen, too: a training step may write to it, such as to a teacher that follows the network.
            value = self._copied(tensor)
            return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value

        self._held.replace(dict(self._copies), fresh)
        for module in self._model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            for name, value in vars(module).items():
                if isinstance(value, float) and _EPS.fullmatch(name):
                    vars(module)[name] = self.precision.eps
        if self._train:
            self._model.train()

    def _inputs(self, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        generator = self._generator(index)
        picks = self._sizes.picks(generator)

        def sample(example: Tensor) -> Tensor:
            example = example.detach()
            if self._real:
                return self._copied(self._sizes.cropped(example, picks))
            value = random_like(example, self._sizes.of(example), generator)
            return value.to(self.device, self.precision.dtype if value.is_floating_point() else None)

        inputs = apply_to_collection((self._positional, self._named), Tensor, sample, allow_frozen=True)
        return inputs  # type: ignore[no-any-return]

    def _reseed(self, index: int) -> None:
        # Not torch.manual_seed: that would seed devices as well which nobody restores.
        torch.default_generator.manual_seed(self._seed + index)
        random.seed(self._seed + index)
        np.random.seed((self._seed + index) % 2**32)
        if self.device.type != "cpu":
            accelerator = torch.get_device_module(self.device.type)
            with accelerator.device(self.device):
                accelerator.manual_seed(self._seed + index)


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Let activation checkpoints keep their activations: what they run again in a backward pass is out of our hands."""

    def keep(*_: Any, **__: Any) -> Iterator[None]:
        yield

    # Named differently from one version of torch to the next.
    names = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")
    kept = {name: getattr(torch.utils.checkpoint, name) for name in names if hasattr(torch.utils.checkpoint, name)}
    CheckpointFunction.apply = lambda run, _, *args: run(*args)  # before the one that it inherits
    for name in kept:
        setattr(torch.utils.checkpoint, name, keep)
    try:
        yield
    finally:
        del CheckpointFunction.apply
        for name, generator in kept.items():
            setattr(torch.utils.checkpoint, name, generator)


def _wide_device(device: torch.device, precision: Precision) -> torch.device:
    return torch.device("cpu") if device.type == "mps" and precision.dtype == torch.float64 else device


def _floating(output: object) -> Iterator[Tensor]:
    yield from (tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.numel())
