"""Inputs like an example's, but smaller: few samples, of few pixels or tokens."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Batch norm over fewer samples than a handful is close to a sign function, whose gradient vanishes.
_SAMPLES = 4
# Scale invariance does not depend on the size of an image or the length of a text, but the time does.
_ENOUGH_PIXELS, _ENOUGH_TOKENS = 64, 16


class SampleSizes:
    """Sizes of inputs like an example's, but with few samples, pixels and tokens.

    Args:
        examples: Tensors of the example.
    """

    def __init__(self, examples: Sequence[Tensor]) -> None:
        self._batch = examples[0].shape[0] if examples and examples[0].dim() else None
        self._smaller: dict[int, int] = {}
        for each in examples:
            floating = each.is_floating_point()
            if each.dim() > 3 and floating:
                self._smaller.update({size: _ENOUGH_PIXELS for size in each.shape[2:] if size > _ENOUGH_PIXELS})
            elif each.dim() == (3 if floating else 2) and each.shape[1] > _ENOUGH_TOKENS:
                self._smaller[each.shape[1]] = _ENOUGH_TOKENS
        self._rung = 2

    def choose(self, rung: int) -> bool:
        """Choose how much smaller than the example the samples are.

        Args:
            rung: 0: few samples, of few pixels or tokens; 1: few samples; 2: as the example is.

        Returns:
            Whether that is another size than that of the rung before.
        """
        self._rung = rung
        return bool(self._smaller) if rung == 0 else rung == 1 or self._batch is not None

    def picks(self, generator: torch.Generator) -> Tensor:
        """Choose samples of the example."""
        count = self._batch or 1
        return torch.arange(count) if self._rung == 2 else torch.randperm(count, generator=generator)[:_SAMPLES]

    def of(self, example: Tensor) -> tuple[int, ...]:
        """Give the shape of a tensor like one of the example's."""
        if not example.dim():
            return ()
        first, *others = example.shape
        if first == self._batch and self._rung < 2:
            first = _SAMPLES
        # The second dimension of images counts channels, the last one of texts features.
        counts = {1} if example.dim() > 3 else {example.dim()}
        return (first, *(self._shorter(size) if d not in counts else size for d, size in enumerate(others, start=1)))

    def cropped(self, example: Tensor, picks: Tensor) -> Tensor:
        """Give these samples of one of the example's tensors."""
        if not example.dim():
            return example
        if example.shape[0] == self._batch:
            example = example[picks.to(example.device)]
        return example[tuple(slice(size) for size in (example.shape[0], *self.of(example)[1:]))]

    def _shorter(self, size: int) -> int:
        return self._smaller.get(size, size) if self._rung == 0 else size


def random_like(example: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return a random tensor of this shape, with the example's kind of type and range."""
    if example.is_floating_point():
        low, high = float(example.min()), float(example.max())
        if low < high and high - low < float("inf"):
            return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    # The example's own values, shuffled: in range, and a mask of ones stays one.
    picks = torch.randint(example.numel(), shape, generator=generator)
    return example.cpu().flatten()[picks]


def tensors_in(value: object) -> list[Tensor]:
    """Find the tensors in nested mappings, sequences and dataclasses.

    Args:
        value: Anything.

    Returns:
        The tensors, in their order.
    """
    if isinstance(value, Tensor):
        return [value]
    parts: Sequence[Any] = ()
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, (list, tuple)):
        parts = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    return [tensor for part in parts for tensor in tensors_in(part)]
