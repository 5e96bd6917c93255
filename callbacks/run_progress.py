"""One progress bar for a whole fit, with the quantities that tell how it goes."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

from lit_sphere.observe.both_lightnings import is_a
from lit_sphere.observe.dynamics import callbacks_of

_SHOWN = {
    "train/loss": "loss {:.3g}",
    "elr/total": "ELR {:.3g}",
    "effective_grad_norm/total": "g̃ {:.3g}",
    "val/error": "val error {:.1%}",
}


class RunProgressBar(ProgressBar):
    """Monitor: a bar over all steps of the fit with epoch, loss, ELR and effective gradient norm.

    The numbers are the last finished epoch's, so that no step waits for the device. Where standard error is
    no terminal, a line is printed for about every tenth of the run, and every minute.

    Args:
        shown: Format of each metric to show, by its key; those that a run does not log are left out.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RunProgressBar({"train_loss": "loss {:.3f}"})], logger=False)
    """

    def __init__(self, shown: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.shown = dict(_SHOWN if shown is None else shown)
        self._bar: tqdm[Any] | None = None
        self._enabled = True
        self._printed = -math.inf

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of the bar that a trainer of ``pytorch_lightning`` adds, which does not know this one."""
        super().setup(trainer, pl_module, stage)
        for other in callbacks_of(trainer):
            if is_a(other, ProgressBar) and other is not self:
                other.disable()

    def disable(self) -> None:
        """Show nothing (ranks other than the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where the run begins or goes on."""
        total = trainer.estimated_stepping_batches
        self._open(total, trainer.global_step, "step")
        self._printed = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last epoch's numbers."""
        if not self._enabled:
            return
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        text = self._text(trainer, trainer.current_epoch, epochs)
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)  # the next step redraws it, if it is time
        elif trainer.current_epoch and self._is_due(trainer.current_epoch, epochs):
            self._printed = time.monotonic()
            print(text, file=sys.stderr)

    def _is_due(self, epoch: int, epochs: int | None) -> bool:
        tenth = max(1, (epochs or 1000) // 10)
        return epoch % tenth == 0 or time.monotonic() - self._printed > 60

    def _text(self, trainer: Trainer, epoch: int, epochs: int | None) -> str:
        of = f"/{epochs}" if epochs else ""
        metrics = trainer.callback_metrics
        numbers = [form.format(float(metrics[key])) for key, form in self.shown.items() if key in metrics]
        return "  ".join([f"epoch {epoch}{of}", *numbers])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; it is redrawn ten times a second at most."""
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the final numbers and leave the bar standing."""
        if self._bar is not None:
            self._bar.set_description_str(self._text(trainer, trainer.current_epoch, trainer.max_epochs))
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar standing, so that the message begins on a line of its own."""
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar for ``validate``; inside a fit the fit's own bar stands."""
        if trainer.state.fn != "fit":
            self._open(sum(trainer.num_val_batches), 0, "batch")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar for ``test``."""
        self._open(sum(trainer.num_test_batches), 0, "batch")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Move the bar of ``validate``."""
        if self._bar is not None and trainer.state.fn != "fit":
            self._bar.update()

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Move the bar of ``test``."""
        if self._bar is not None:
            self._bar.update()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar of ``validate``."""
        if trainer.state.fn != "fit":
            self._close()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar of ``test``."""
        self._close()

    def _open(self, total: float, done: int, unit: str) -> None:
        self._close()
        if self._enabled and sys.stderr.isatty():
            finite = total if math.isfinite(total) and total > 0 else None
            self._bar = tqdm(total=finite, initial=done, unit=unit, dynamic_ncols=True, smoothing=0.1)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
