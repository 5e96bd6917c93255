"""The first batch of a run, tried before hours are spent: what it must be, and what says nothing about it."""

import torch
from lightning.pytorch import Callback
from torch import Tensor

MACHINE_ERRORS: tuple[type[Exception], ...] = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
"""Not for a trial to explain: the batch and the module may be as they should."""


def refuse_batch(asks: Callback, batch: object) -> None:
    """Refuse batches that are no pairs of two tensors.

    Args:
        asks: The callback, to be named in errors.
        batch: The first batch.

    Raises:
        ValueError: If it is something else.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(x, Tensor) for x in batch)):
        name = type(asks).__name__
        raise ValueError(
            f"{name} evaluates batches of (inputs, labels), two tensors, but got a {type(batch).__name__}: use a "
            f"collate_fn that makes such pairs, or leave {name} out"
        )
