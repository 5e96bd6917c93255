"""Ctrl-C and SIGTERM leave a checkpoint from which the run goes on bit for bit."""

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

_PATIENCE = 2.0  # seconds before a user wonders


class Interrupted(Exception):
    """Training was stopped by a signal, after a checkpoint was saved.

    Args:
        signum: The signal.
        checkpoint: File from which the run can be resumed.
        epoch: Epoch at which it stopped.
        step: Optimizer steps taken.
    """

    def __init__(self, signum: int, checkpoint: Path, epoch: int, step: int) -> None:
        super().__init__(f"interrupted in epoch {epoch} after {step} steps; saved {checkpoint}")
        self.signum, self.checkpoint = signum, checkpoint


class GracefulStop(Checkpoint):
    """Control: on SIGINT or SIGTERM finishes the batch, saves ``interrupted.ckpt`` and raises :class:`Interrupted`.

    A second signal ends the process at once. The passes of ``LinearInterpolationBarrier``, ``CheckpointSimilarity`` and
    ``SharpnessMonitor`` after an epoch end between two batches, and the resumed run makes them instead; others, and
    those at the end of the run, are finished first, and after 2 seconds a line says so. With several processes the
    ranks agree every ``every_n_steps`` steps, so that a signal to any one of them stops all. Lightning counts this as a
    checkpoint callback (it must run after all others): give the trainer a ``ModelCheckpoint`` beside it if you want
    one.

    Args:
        dirpath: Folder of the checkpoint; the trainer's ``default_root_dir`` if not given.
        every_n_steps: Steps between two agreements of several processes.

    Raises:
        Interrupted: While training.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GracefulStop()], logger=False)
    """

    def __init__(self, dirpath: str | Path | None = None, every_n_steps: int = 20) -> None:
        self.dirpath, self.every_n_steps = dirpath, every_n_steps
        self._received: int | None = None
        self._before: dict[int, Any] = {}
        self._notice: threading.Timer | None = None
        self._speaks = True

    @property
    def asked(self) -> bool:
        """Whether this process got a signal, and the run is about to stop."""
        return self._received is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals; only a process's main thread can."""
        self._received, self._speaks = None, trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received = signum
        self._give_back()  # a second signal is not asked to wait
        if self._speaks:
            self._notice = threading.Timer(_PATIENCE, _say_what_is_waited_for)
            self._notice.daemon = True
            self._notice.start()

    def _give_back(self) -> None:
        if self._notice is not None:
            self._notice.cancel()
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here, where weights and counters agree; after the last batch when the epoch has been logged."""
        # Accumulated gradients are in no checkpoint; several processes agree only now and then.
        every = trainer.accumulate_grad_batches * (1 if trainer.world_size == 1 else self.every_n_steps)
        if not trainer.is_last_batch and (batch_idx + 1) % every == 0 and self._is_asked(trainer):
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between two epochs."""
        if self._is_asked(trainer):
            _log_epoch(trainer)
            self._stop(trainer)

    def _is_asked(self, trainer: Trainer) -> bool:
        if trainer.world_size == 1:
            return self.asked
        asked: bool = trainer.strategy.reduce_boolean_decision(self.asked, all=False)
        return asked

    def _stop(self, trainer: Trainer) -> NoReturn:
        self._give_back()
        path = Path(self.dirpath or trainer.default_root_dir) / "interrupted.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        raise Interrupted(self._received or signal.SIGTERM, path, trainer.current_epoch, trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back, before Lightning restores those that it had found itself."""
        self._give_back()


def _log_epoch(trainer: Trainer) -> None:
    """As Lightning would after this hook, and a resumed run does not: the epoch's means are lost otherwise."""
    counts = trainer.fit_loop.epoch_loop
    counts._batches_that_stepped -= 1
    trainer._logger_connector.update_train_epoch_metrics()
    counts._batches_that_stepped += 1


def _say_what_is_waited_for() -> None:
    print(
        "\nlit-sphere: stops, with a checkpoint, when this batch or pass is done; interrupt once more to stop at once",
        file=sys.stderr,
    )
