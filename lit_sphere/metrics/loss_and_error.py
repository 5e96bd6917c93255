"""Mean loss and error of an epoch, of a pass, or since they were last read."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLossAndError(Metric):
    """Means over samples: a batch counts by its size, and ranks by what they saw; a mean of nothing is NaN.

    Sums are kept in float64 on their device, and nothing waits for it: ``torchmetrics.MeanMetric`` would, since it
    copies each batch's weight there.
    """

    full_state_update = False
    loss_sum: Tensor
    loss_samples: Tensor
    error_sum: Tensor
    error_samples: Tensor

    def __init__(self) -> None:
        super().__init__(compute_with_cache=False)
        for name in ("loss_sum", "loss_samples", "error_sum", "error_samples"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def update_called(self) -> bool:
        """True: torchmetrics need not warn of a mean of nothing, as in an epoch that ends right after a resume."""
        return True

    def update(self, loss: Tensor | None, error: Tensor | None, samples: int) -> None:
        """Add a batch.

        Args:
            loss: Its mean loss, a scalar; None if not known.
            error: Fraction of its predictions that are wrong, a scalar; None if not known.
            samples: Its size.
        """
        count = float(samples)  # and float64 throughout, in place: several times as fast at every step
        if loss is not None:
            self.loss_sum.add_(loss.double(), alpha=count)
            self.loss_samples.add_(count)
        if error is not None:
            self.error_sum.add_(error.double(), alpha=count)
            self.error_samples.add_(count)

    def reset(self) -> None:
        """Begin anew."""
        with torch.inference_mode(False):  # what a validation makes could not be added to in training
            super().reset()

    def compute(self) -> dict[str, Tensor]:
        """Give ``loss`` and ``error`` over all ranks, float64."""
        return {"loss": self.loss_sum / self.loss_samples, "error": self.error_sum / self.error_samples}

    def state(self) -> dict[str, Any]:
        """Give the sums so far, of this rank: what :meth:`load_state` takes."""
        return {name: getattr(self, name).clone() for name in self.metric_state}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Args:
            state: As given by :meth:`state`; of another form, it is passed over, and the means begin anew.
        """
        self.reset()
        if "wrong" in state:  # of SphereModule, in checkpoints of earlier versions
            samples = {"loss_samples": state["count"], "error_samples": state["count"]}
            state = {"loss_sum": state["loss_sum"], "error_sum": state["wrong"], **samples}
        if self.metric_state.keys() <= state.keys():
            for name in self.metric_state:
                getattr(self, name).copy_(state[name])


class LossAndErrorByLabel(Metric):
    """Means over samples with clean and with corrupted labels (label noise); sums stay in float64 on their device."""

    full_state_update = False
    sums: Tensor
    """Shape (2, 3): of clean and of corrupted labels the losses, the wrong predictions and the samples."""

    def __init__(self) -> None:
        super().__init__(compute_with_cache=False)
        self.add_state("sums", default=torch.zeros(2, 3, dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def update_called(self) -> bool:
        """True: torchmetrics need not warn of a mean of nothing, as in an epoch that ends right after a resume."""
        return True

    def update(self, losses: Tensor, wrong: Tensor, corrupted: Tensor) -> None:
        """Add a batch.

        Args:
            losses: Loss of each sample, shape (N,).
            wrong: Which predictions are none of the labels trained on, bool, shape (N,).
            corrupted: Which labels are corrupted, bool, shape (N,).
        """
        values = torch.stack([losses.double(), wrong.double(), torch.ones_like(losses, dtype=torch.float64)], 1)
        masks = torch.stack([~corrupted, corrupted])
        # Where, not a product: a loss of NaN or infinity is of its own labels alone.
        self.sums.add_(torch.where(masks.unsqueeze(2), values, 0.0).sum(1))

    def reset(self) -> None:
        """Begin anew."""
        with torch.inference_mode(False):
            super().reset()

    def compute(self) -> dict[str, Tensor]:
        """Give ``loss_clean``, ``error_clean``, ``loss_corrupted``, ``error_corrupted`` of what there was, float64."""
        means = self.sums[:, :2] / self.sums[:, 2:]
        there = self.sums[:, 2].tolist()
        return {
            f"{name}_{labels}": means[row, column]
            for row, labels in enumerate(("clean", "corrupted"))
            for column, name in enumerate(("loss", "error"))
            if there[row]
        }

    def state(self) -> Tensor:
        """Give the sums so far, of this rank: what :meth:`load_state` takes."""
        return self.sums.clone()

    def load_state(self, state: Any) -> None:
        """Go on from a saved state.

        Args:
            state: As given by :meth:`state`; of another form, it is passed over, and the means begin anew.
        """
        self.reset()
        if isinstance(state, Tensor) and state.shape == self.sums.shape:
            self.sums.copy_(state)
