"""The train loss and error that callbacks judge: means over samples of what training steps return, as logged."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_sphere.metrics import MeanLossAndError


class TrainLoss(MeanLossAndError):
    """Means over the samples of training steps, those of an epoch or of a part of it; on the steps' own device."""

    def add(self, trainer: Trainer, outputs: Any, batch: Any) -> None:
        """Add a step.

        Args:
            trainer: The trainer.
            outputs: What its callbacks are handed: a loss, or ``{"loss": …, "error": …}``. What is no scalar tensor
                is not known.
            batch: The batch.
        """
        error = _scalar(outputs.get("error")) if isinstance(outputs, Mapping) else None
        self.add_batch(undivided_loss(trainer, outputs), error, samples_in(batch))

    def add_batch(self, loss: Tensor | None, error: Tensor | None, samples: int) -> None:
        """Add a batch as :meth:`update` does, and go where its numbers are."""
        for value in (loss, error):
            if value is not None and value.device.type != "cpu" and value.device != self.device:
                self.to(value.device)
        super().update(loss, error, samples)  # at each step: torchmetrics' wrapper of self.update costs as much

    def means(self, trainer: Trainer) -> dict[str, float]:
        """Give the means over all ranks; all of them must call this.

        Args:
            trainer: The trainer.

        Returns:
            ``loss`` and ``error``, where known.
        """
        self.to(trainer.strategy.root_device)
        with self.sync_context():
            totals = torch.stack([self.loss_sum, self.error_sum, self.loss_samples, self.error_samples]).tolist()
        named = zip(("loss", "error"), totals[:2], totals[2:], strict=True)
        return {name: total / samples for name, total, samples in named if samples}

    def load_state(self, state: Any) -> None:
        """Go on from a saved state.

        Args:
            state: As given by :meth:`state`, or by one of the five sums of earlier versions; else the means begin anew.
        """
        super().load_state(_of_this_form(state))


def _of_this_form(state: Any) -> Mapping[str, Any]:
    """Convert the sums of earlier versions; where they did not know how many samples a step had, it counts as one."""
    if isinstance(state, Tensor):  # OptimizerComparison
        return _state({"loss": state[0]}, state[1])
    if not isinstance(state, Mapping):
        return {}
    if "sums" in state:  # RegimeMonitor, CosineRegimeAnalysis
        return _state(state["sums"], state["batches"])
    if "evaluated" in state:  # SharpnessMonitor
        parts = [part.sum() for part in (*state["evaluated"], state["sum"]) if part is not None]
        return _state({"loss": torch.stack(parts).sum()} if parts else {}, state["steps"])
    if "sum" in state:  # FineTuneSwitch, by samples
        return _state({} if state["sum"] is None else {"loss": state["sum"]}, state["count"])
    return state


def _state(sums: Mapping[str, Tensor], number: int | Tensor) -> dict[str, Tensor]:
    nothing, samples = torch.zeros(()), torch.as_tensor(number)
    named = {f"{name}_sum": sums.get(name, nothing) for name in ("loss", "error")}
    return named | {f"{name}_samples": samples if name in sums else nothing for name in ("loss", "error")}


def undivided_loss(trainer: Trainer, outputs: Any) -> Tensor | None:
    """Find the loss in what callbacks are handed: Lightning divides it where gradients are accumulated.

    Args:
        trainer: The trainer.
        outputs: What its callbacks are handed.

    Returns:
        The batch's own; None if there is none.
    """
    loss, parts = loss_of(outputs), trainer.accumulate_grad_batches
    return loss if loss is None or parts == 1 else loss.double() * parts


def loss_of(outputs: Any) -> Tensor | None:
    """Find the loss in what a training step returned.

    Args:
        outputs: What callbacks are handed.

    Returns:
        A scalar; None if there is none.
    """
    return _scalar(outputs.get("loss") if isinstance(outputs, Mapping) else outputs)


def _scalar(value: Any) -> Tensor | None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        return None
    return value.detach().reshape(()) if value.ndim else value.detach()


def samples_in(batch: Any) -> int:
    """Count the samples of a batch.

    Args:
        batch: A tensor, or tuples, lists, dicts and dataclasses of tensors.

    Returns:
        Length of its first tensor that has one; 1 if there is none.
    """
    return next(_lengths(batch), 1)


def _lengths(batch: Any) -> Iterator[int]:
    if isinstance(batch, Tensor):
        if batch.ndim:
            yield len(batch)
    elif isinstance(batch, (tuple, list, Mapping)):
        for each in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _lengths(each)
    elif is_dataclass(batch):
        for field in fields(batch):
            yield from _lengths(getattr(batch, field.name))
