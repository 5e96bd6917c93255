"""Loss over batches at fixed weights, and error of a classifier."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (N, C) and labels (N,) to their mean loss."""

BatchLoss = Callable[[Any], tuple[Tensor, int] | None]
"""Maps a batch of any kind to its mean loss and its number of samples; to None if it is to be left out."""


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
    """  # noqa: DOC502

    def sums_of(batch: Any) -> Tensor:
        inputs, labels = batch
        logits = forward(inputs)
        loss = criterion(logits, labels).double() * len(labels)
        wrong = (logits.argmax(1) != labels).sum().double()
        return torch.stack([loss, wrong, wrong.new_tensor(len(labels))])

    loss_sum, wrong_sum, count = _totals(batches, sums_of, add_up)
    return LossAndError(loss_sum / count, wrong_sum / count)


@torch.no_grad()
def mean_loss(loss: BatchLoss, batches: Iterable[Any], add_up: Callable[[Tensor], Tensor] = lambda sums: sums) -> float:
    """Evaluate a loss that is no criterion of logits, such as that of a training step.

    Args:
        loss: Mean loss of a batch; batches weigh by their size.
        batches: Whatever it takes.
        add_up: Adds the sums of several processes up: float64 tensor of shape (2,) to the same.

    Returns:
        The mean over all samples.

    Raises:
        ValueError: If there is no batch.
    """  # noqa: DOC502

    def sums_of(batch: Any) -> Tensor | None:
        found = loss(batch)
        if found is None:
            return None
        total = found[0].detach().double() * found[1]
        return torch.stack([total, total.new_tensor(found[1])])

    loss_sum, count = _totals(batches, sums_of, add_up)
    return loss_sum / count


def _totals(
    batches: Iterable[Any], sums_of: Callable[[Any], Tensor | None], add_up: Callable[[Tensor], Tensor]
) -> list[float]:
    total: Tensor | None = None
    for batch in batches:
        sums = sums_of(batch)
        if sums is not None:
            total = sums if total is None else total + sums
    if total is None:
        raise ValueError("nothing to evaluate: there is no batch")
    totals: list[float] = add_up(total).tolist()
    return totals
