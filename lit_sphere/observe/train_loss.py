"""Means of training losses, kept on their device until they are asked for."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor


class EpochLoss:
    """Adds the losses of an epoch's steps up on their device, weighted by the samples of each."""

    def __init__(self) -> None:
        self._epoch = -1
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, epoch: int, outputs: Any, batch: Any, scale: float = 1.0) -> None:
        """Add a step.

        Args:
            epoch: Number of the epoch; a new one begins anew.
            outputs: What ``training_step`` returned.
            batch: The batch; its first tensor's length is the number of samples.
            scale: What the loss is multiplied with.

        Raises:
            ValueError: If the step returned no loss.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            raise ValueError(
                "FineTuneSwitch: training_step returns no loss, which loss_below waits for; return it, or set loss_key "
                "to a metric that is logged"
            )
        first = next((each for each in (batch if isinstance(batch, (tuple, list)) else [batch])), None)
        count = len(first) if isinstance(first, Tensor) and first.ndim else 1
        if self._epoch != epoch:
            self._epoch, self._sum, self._count = epoch, None, 0
        weighted = loss.detach().double() * (scale * count)
        self._sum = weighted if self._sum is None else self._sum.to(weighted.device) + weighted
        self._count += count

    def mean(self, trainer: Trainer, epoch: int) -> float:
        """Give the mean over all ranks; they all must ask.

        Args:
            trainer: The trainer.
            epoch: Number of the epoch.

        Returns:
            The mean; infinite if no step of this epoch was seen.
        """
        if self._sum is None or self._epoch != epoch:
            return float("inf")
        both = self._sum.new_tensor([0.0, self._count])
        both[0] = self._sum
        total, count = trainer.strategy.reduce(both.to(trainer.strategy.root_device), reduce_op="sum").tolist()
        return float(total / count)

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load_state` takes (rank 0's)."""
        return {"epoch": self._epoch, "sum": self._sum, "count": self._count}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self._epoch, self._sum, self._count = state["epoch"], state["sum"], state["count"]


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
