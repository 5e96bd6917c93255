"""When a run ends, and passes over data that give way to a request to stop."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from lit_sphere.observe.both_lightnings import is_a


class NonFinite(RuntimeError):
    """The loss or a gradient is NaN or infinite.

    Args:
        message: One line.
        epoch: In which it was seen first.
        is_finding: Whether this is how the run was to end, rather than an error.
    """

    def __init__(self, message: str, epoch: int = 0, is_finding: bool = False) -> None:
        super().__init__(message)
        self.epoch, self.is_finding = epoch, is_finding


def is_finding(exception: BaseException | None) -> TypeGuard[NonFinite]:
    """Whether a run has diverged where that is what it was to show, and so ended as it was to."""
    return isinstance(exception, NonFinite) and exception.is_finding


class Stopper(Callback):
    """Base of callbacks that may request to stop a run between two batches, as ``GracefulStop`` does after a signal."""

    @property
    def stop_requested(self) -> bool:
        """Whether the run is about to stop."""
        raise NotImplementedError


def is_over(trainer: Trainer, epoch: int) -> bool:
    """Whether no step of this epoch, or no other of it, will be made."""
    if trainer.max_epochs not in (None, -1) and epoch >= trainer.max_epochs:
        return True
    if trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps:
        return True
    enough = epoch >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
    return trainer.should_stop and enough


def nothing_is_left(trainer: Trainer) -> bool:
    """Whether no step will be made after this one, or after this epoch's end, by Lightning's own count of epochs."""
    return is_over(trainer, trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]


class PassStopped(Exception):
    """A stop was requested: the pass is given up between two batches."""


def can_stop(trainer: Trainer) -> bool:
    """Whether a pass at the end of this epoch may be ended by a :class:`Stopper`.

    Not at the end of the run, where no resumed run would make up for it, nor where another callback may still decide
    that this is the end; nor of several processes, which do not see a signal at the same batch.

    Args:
        trainer: The trainer.

    Returns:
        Whether it may.
    """
    others = trainer.callbacks  # type: ignore[attr-defined]
    options = ("stop_after_last", "stop_when")  # of FineTuneSwitch and RegimeMonitor
    may_end = any(is_a(each, EarlyStopping) or any(getattr(each, name, None) for name in options) for each in others)
    return trainer.world_size == 1 and not may_end and not nothing_is_left(trainer)


def until_stopped(trainer: Trainer, batches: Iterable[Any]) -> Iterator[Any]:
    """Give the batches of a pass until a signal comes.

    Args:
        trainer: The trainer.
        batches: Of the pass.

    Yields:
        Each batch.

    Raises:
        PassStopped: Once a :class:`Stopper` has a request to stop.
    """
    stops = [each for each in trainer.callbacks if isinstance(each, Stopper)]  # type: ignore[attr-defined]
    for batch in batches:
        if any(stop.stop_requested for stop in stops):
            raise PassStopped
        yield batch
