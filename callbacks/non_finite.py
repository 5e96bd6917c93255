"""Stops a run whose loss or gradients are no longer finite, before the damage is saved."""

import math
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import Optimizer

from lit_sphere.groups.sharded import reshard
from lit_sphere.observe.both_lightnings import is_a
from lit_sphere.observe.dynamics import callbacks_of
from lit_sphere.observe.publishing import log_numbers
from lit_sphere.observe.stopping import NonFinite
from lit_sphere.optim import squared_norms
from lit_sphere.optim.shards import local_parts


class StopOnNonFinite(Callback):
    """Monitor: raises :class:`NonFinite` with epoch, step and tensors when loss or gradients are not finite.

    That a run diverges may be what one wants to know of it, as of a learning rate too high in the whole space. With
    ``is_finding`` the epoch's ``train/loss`` is logged as NaN first, so that the table of the run tells it, and the
    exception says that it is no error: ``lit-sphere fit`` then ends the run with its summary and exit status 0.

    On a CPU every step is checked before the optimizer uses its gradients. On an accelerator the first bad
    step is remembered on the device and looked at every ``every_n_steps`` steps, at the end of the epoch and
    before any checkpoint is saved, so that nothing waits for the device and no checkpoint holds the damage.
    Under ``16-mixed`` only the loss is checked: its scaler expects gradients to overflow now and then.

    Args:
        every_n_steps: Steps between two looks on an accelerator.
        is_finding: A run that diverges has shown what it was to show.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[StopOnNonFinite()], logger=False)
    """

    def __init__(self, every_n_steps: int = 50, is_finding: bool = False) -> None:
        self.every_n_steps, self.is_finding = every_n_steps, is_finding
        self._first_bad: dict[tuple[int, ...], Tensor] = {}
        self._tensors: dict[tuple[int, ...], list[str]] = {}
        self._step = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the step that this batch belongs to."""
        self._step = trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn the parameters' names."""
        reshard(pl_module)  # as they are when their gradients are checked
        self._name = {p: name for name, p in pl_module.named_parameters()}
        self._first_bad, self._tensors = {}, {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the gradients."""
        if trainer.precision == "16-mixed":
            return
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if params:
            key = tuple(map(id, params))  # not all parameters need have gradients at all steps
            self._tensors[key] = [f"the gradient of {self._name.get(p, 'a parameter')}" for p in params]
            self._see(trainer, key, squared_norms([p.grad for p in params if p.grad is not None]))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._tensors[()] = ["the loss"]
            self._see(trainer, (), loss.detach().reshape(1))
        if (batch_idx + 1) % self.every_n_steps == 0:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before the epoch is logged and saved."""
        self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look before anything is saved, at the outcome of the last step too."""
        self._look(trainer)
        tensors = {name: each for name, each in checkpoint["state_dict"].items() if isinstance(each, Tensor)}
        parts = zip(tensors, local_parts(list(tensors.values())), strict=True)
        bad = next((name for name, each in parts if each.is_floating_point() and not each.isfinite().all()), None)
        if not trainer.strategy.reduce_boolean_decision(bad is None):  # weights may be shards, or rank 0's alone
            self._stop(trainer, trainer.global_step - 1, f"after the step {bad or 'a weight of another process'}")

    def _see(self, trainer: Trainer, key: tuple[int, ...], values: Tensor) -> None:
        bad = ~values.isfinite()
        if bad.device.type == "cpu" and not bad.any():
            return
        first = self._first_bad.get(key)
        if first is None:
            first = torch.full(bad.shape, -1, device=bad.device)
        self._first_bad[key] = torch.where((first < 0) & bad, self._step, first)
        if bad.device.type == "cpu":
            self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        found = [
            (step, name)
            for key, first in self._first_bad.items()
            for step, name in zip(first.tolist(), self._tensors[key], strict=True)
            if step >= 0
        ]
        if not found:
            return
        self._first_bad = {}
        step = min(step for step, _ in found)
        names = [name for at, name in found if at == step]
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        self._stop(trainer, step, ", ".join(names[:2]) + more)

    def _stop(self, trainer: Trainer, step: int, what: str) -> NoReturn:
        kept = [each for each in callbacks_of(trainer) if is_a(each, ModelCheckpoint)]
        paths = [c.last_model_path or c.best_model_path for c in kept]
        # ModelCheckpoint takes the name down before it saves.
        saved = next((path for path in paths if path and Path(path).exists()), "none yet")
        epoch = trainer.current_epoch
        if self.is_finding:
            log_numbers(trainer, {"train/loss": math.nan, "epoch": epoch}, step)
            raise NonFinite(f"epoch {epoch}, step {step}: {what} is NaN or infinite", epoch, is_finding=True)
        raise NonFinite(
            f"epoch {epoch}, step {step}: {what} is NaN or infinite; "
            f"lower the learning rate or resume from the last checkpoint ({saved})",
            epoch,
        )
