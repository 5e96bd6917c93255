"""Means of losses that wait on their device until they are asked for."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor


def add_loss(before: Tensor | None, loss: Tensor) -> Tensor:
    """Add a loss to a sum and a number of losses, on its device.

    Args:
        before: Sum and number so far; None for none.
        loss: A scalar.

    Returns:
        float64 tensor of shape (2,).
    """
    one = loss.detach().double()
    seen = torch.stack([one, torch.ones_like(one)])
    return seen if before is None else before.to(seen.device) + seen


def mean_loss(key: str, losses: Tensor | None, trainer: Trainer) -> dict[str, float]:
    """Give the mean of what :func:`add_loss` added up, over all ranks.

    Args:
        key: Name of the mean.
        losses: Sum and number; None for none.
        trainer: The trainer.

    Returns:
        The mean by its name; nothing for none.
    """
    if losses is None:
        return {}
    sums = trainer.strategy.reduce(losses.to(trainer.strategy.root_device), reduce_op="mean")
    assert isinstance(sums, Tensor)
    total, count = sums.tolist()
    return {key: total / count}
