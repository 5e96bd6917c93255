"""The train loss that a switch waits for: from what the training steps return, or a logged metric."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lit_sphere.callbacks._epoch_loss import EpochLoss


class WatchedLoss:
    """What ``loss_below`` looks at.

    Args:
        key: A logged metric; None for the mean over an epoch's samples of the losses that training steps return.
    """

    def __init__(self, key: str | None) -> None:
        self._key = key
        self._steps = EpochLoss()
        self._ended = self._validated = False  # an epoch, and a validation, in this process
        self._logged: float | None = None  # of a checkpoint, until the metric is logged again

    def begin(self) -> None:
        """Begin a fit: nothing is logged yet."""
        self._ended = self._validated = False

    def add(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        """Add a step's loss up, on its device, unless a logged metric is looked at.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            outputs: What ``training_step`` returned.
            batch: The batch.
        """
        if self._key is None:
            # Lightning divides the loss that it hands out under automatic optimisation.
            scale = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._steps.add(trainer.current_epoch, outputs, batch, scale)

    def epoch_ended(self) -> None:
        """Note that all metrics of a training epoch will be there when the next one begins."""
        self._ended, self._logged = True, None

    def validation_ended(self, trainer: Trainer) -> None:
        """Note that all metrics of a validation are there."""
        self._validated = self._validated or not trainer.sanity_checking

    def refuse_unknown(self, trainer: Trainer) -> None:
        """Refuse a metric that an epoch, and a validation if there are any, did not log.

        Args:
            trainer: The trainer, at the beginning of an epoch.

        Raises:
            ValueError: Names the metrics that there are.
        """
        if self._ended and (self._validated or not trainer.enable_validation) and self._missing(trainer):
            raise ValueError(f"FineTuneSwitch: {self.said(trainer)}; set loss_key to one of those")

    def _missing(self, trainer: Trainer) -> bool:
        return self._key is not None and self._key not in trainer.callback_metrics and self._logged is None

    def said(self, trainer: Trainer) -> str:
        """Say that the metric is not logged, and what is; empty if it is."""
        if not self._missing(trainer):
            return ""
        known = ", ".join(sorted(trainer.callback_metrics)) or "none"
        return f"loss_key {self._key} is not logged; the metrics that are: {known}"

    def value(self, trainer: Trainer, epoch: int) -> float:
        """Give the loss of an epoch that ends; all ranks must ask.

        Args:
            trainer: The trainer.
            epoch: Number of the epoch.

        Returns:
            The latest value of the metric, or the mean of the epoch's losses; infinite where there is none yet.
        """
        if self._key is None:
            return self._steps.mean(trainer, epoch)
        value = trainer.callback_metrics.get(self._key, self._logged)
        # What the module logs at its epoch's end comes later: callbacks hear of the end before.
        return float("inf") if value is None else float(value)

    def state(self, trainer: Trainer | None = None) -> dict[str, Any]:
        """Give what :meth:`load_state` takes (rank 0's); with the logged metric where the trainer is given."""
        value = None if trainer is None or self._key is None else trainer.callback_metrics.get(self._key, self._logged)
        return {**self._steps.state(), "logged": None if value is None else float(value)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self._steps.load_state(state)
        self._logged = state.get("logged")
