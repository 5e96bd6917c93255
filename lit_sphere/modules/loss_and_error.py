"""Mean loss and error of a pass or an epoch."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class LossAndError(Metric):
    """Mean loss over samples and fraction of wrong predictions, without host synchronisation."""

    loss_sum: Tensor
    wrong: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss_sum", "wrong", "count"):
            self.add_state(name, default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, logits (N, num_classes) and labels (N,)."""
        self.loss_sum += loss * len(labels)
        self.wrong += (logits.argmax(1) != labels).sum()
        self.count += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Give ``loss`` and ``error``, over all ranks."""
        return {"loss": self.loss_sum / self.count, "error": self.wrong / self.count}

    def state(self) -> dict[str, Any]:
        """Give the sums so far, of this rank."""
        return dict(self.metric_state)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        for name in self.metric_state:
            setattr(self, name, state[name].to(self.device))
        self._update_count = 1  # else torchmetrics warns of an epoch that ends at once, as after a validation
