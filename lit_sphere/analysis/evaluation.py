"""Loss and error of a classifier over batches, at fixed weights."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (N, C) and labels (N,) to their mean loss."""


class LossAndError(NamedTuple):
    """Means over samples.

    Attributes:
        loss: Mean of the criterion.
        error: Fraction of wrong predictions, in [0, 1].
    """

    loss: float
    error: float


@torch.no_grad()
def loss_and_error(
    forward: Callable[[Any], Tensor],
    batches: Iterable[Any],
    criterion: Criterion = F.cross_entropy,
    add_up: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> LossAndError:
    """Evaluate a classifier; whether batch or running statistics are used is the model's mode.

    Args:
        forward: Maps inputs (N, …) to logits (N, C).
        batches: Pairs of inputs and labels (N,), on the model's device.
        criterion: Mean loss of a batch; batches weigh by their size.
        add_up: Adds the sums of several processes up: float64 tensor of shape (3,) to the same.

    Returns:
        Loss and error over all samples.

    Raises:
        ValueError: If there is no batch.
    """
    sums: Tensor | None = None
    for inputs, labels in batches:
        logits = forward(inputs)
        loss = criterion(logits, labels).double() * len(labels)
        wrong = (logits.argmax(1) != labels).sum().double()
        batch = torch.stack([loss, wrong, wrong.new_tensor(len(labels))])
        sums = batch if sums is None else sums + batch
    if sums is None:
        raise ValueError("nothing to evaluate: there is no batch")
    loss_sum, wrong_sum, count = add_up(sums).tolist()
    return LossAndError(loss_sum / count, wrong_sum / count)
