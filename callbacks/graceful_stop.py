"""Ctrl-C, SIGTERM and SIGHUP leave a checkpoint from which the run goes on bit for bit."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_sphere.observe.both_lightnings import put_checkpoints_last
from lit_sphere.observe.checkpoint_files import PendingCheckpoint, write_whole_checkpoints
from lit_sphere.observe.stopping import Stopper, nothing_is_left

_PATIENCE = 2.0  # seconds before a user wonders
_ECHO = 0.2  # seconds: timeout(1) and other parents send one signal twice
_WAITS = "stops when this batch or pass is done, with a checkpoint if it is not the last"
_OVER = "the signal came when training was over: nothing is left to stop, and the run ends as usual"


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


class GracefulStop(Stopper, Checkpoint):
    """Control: on SIGINT, SIGTERM or SIGHUP ends the batch, saves ``interrupted.ckpt``, raises :class:`Interrupted`.

    After an epoch it saves at once, and raises when the next one begins, so that Lightning has logged the epoch. After
    the last step of the run nothing is left to stop: the run ends as usual, with all its pictures, and a line says so.

    A second signal ends the process at once. The passes of ``LinearInterpolationBarrier``, ``CheckpointSimilarity`` and
    ``SharpnessMonitor`` after an epoch end between two batches, and the resumed run makes them instead; others, and
    those at the end of the run, are finished first, and after 2 seconds a line says so. With several processes the
    ranks agree every ``every_n_steps`` steps, so that a signal to any one of them stops all. Lightning counts this as a
    checkpoint callback (it must run after all others): give the trainer a ``ModelCheckpoint`` beside it if you want
    one. SIGHUP (a closed terminal) stays ignored where it was, as under ``nohup``.

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
        self._since = 0.0
        self._saved: PendingCheckpoint | None = None  # after an epoch; in its place when the next one begins
        self._is_over = False
        self._before: dict[int, Any] = {}
        self._notice: threading.Timer | None = None
        self._speaks = self._is_alone = True
        self._terminals: list[int] = []

    @property
    def stop_requested(self) -> bool:
        """Whether this process got a signal, and the run is about to stop."""
        return self._received is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over how checkpoints are written."""
        put_checkpoints_last(trainer)
        write_whole_checkpoints(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals; only a process's main thread can."""
        self._received, self._saved, self._is_over = None, None, False
        self._speaks, self._is_alone = trainer.is_global_zero, trainer.world_size == 1
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM, *_hangup()):
                self._before[signum] = signal.signal(signum, self._receive)
            self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received, self._since = signum, time.monotonic()
        if signum in _hangup():
            self._leave_terminal()
        for each in self._before:
            signal.signal(each, self._receive_again)
        if not self._speaks:
            return
        # From a thread: a handler that prints may break into a print.
        self._notice = threading.Timer(*((0.0, _print, [_OVER]) if self._is_over else (_PATIENCE, _print, [_WAITS])))
        self._notice.daemon = True
        self._notice.start()

    def _leave_terminal(self) -> None:
        """Print into nothing where the terminal is gone: else the next line would fail, and end the run unsaved."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, descriptor)
                os.close(nothing)

    def _receive_again(self, signum: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._since < _ECHO:
            return
        self._give_back()
        if signum == signal.SIGTERM and self._is_alone:
            signal.signal(signum, signal.SIG_DFL)  # Lightning's handler would wait for the epoch's end
        signal.raise_signal(signum)

    def _announce_over(self) -> None:
        if self._notice is not None:
            self._notice.cancel()
            self._notice = None
        if self._speaks:
            _print(_OVER)

    def _give_back(self) -> None:
        if self._notice is not None and self._is_over:
            self._notice.join(_PATIENCE)  # it is being printed
        elif self._notice is not None:
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
        if trainer.is_last_batch or (batch_idx + 1) % every or not self._stop_requested_anywhere(trainer):
            return
        if not nothing_is_left(trainer):
            self._stop(trainer, self._save(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save between two epochs; after the last one only say that nothing is left to stop."""
        self._is_over = nothing_is_left(trainer)
        if not self._stop_requested_anywhere(trainer):
            return
        if self._is_over:
            self._announce_over()
        else:
            self._saved = self._save(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop: Lightning has logged the epoch that was saved."""
        if self._saved is not None:
            self._stop(trainer, self._saved)

    def _stop_requested_anywhere(self, trainer: Trainer) -> bool:
        if trainer.world_size == 1:
            return self.stop_requested
        requested: bool = trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False)
        return requested

    def _save(self, trainer: Trainer) -> PendingCheckpoint:
        return PendingCheckpoint(trainer, Path(self.dirpath or trainer.default_root_dir) / "interrupted.ckpt")

    def _stop(self, trainer: Trainer, saved: PendingCheckpoint) -> NoReturn:
        if trainer.is_global_zero:
            saved.put_in_place()
        self._give_back()
        raise Interrupted(self._received or signal.SIGTERM, saved.path, saved.epoch, trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back, before Lightning restores those that it had found itself."""
        self._give_back()
        if self.stop_requested and not self._is_over:  # what ended the run was decided after the epoch's end
            self._announce_over()


def _hangup() -> tuple[int, ...]:
    """SIGHUP, where there is such a signal and it is not ignored."""
    signum = getattr(signal, "SIGHUP", None)
    return () if signum is None or signal.getsignal(signum) == signal.SIG_IGN else (signum,)


def _print(what: str) -> None:
    print(f"\nlit-sphere: {what}; interrupt once more to stop at once", file=sys.stderr)
