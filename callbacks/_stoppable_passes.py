"""Passes over data between epochs that a signal may end: the resumed run makes them instead."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from lit_sphere.callbacks._switch_times import nothing_is_left
from lit_sphere.callbacks._weight_snapshots import Batches, BetweenEpochs
from lit_sphere.callbacks.graceful_stop import GracefulStop


class PassStopped(Exception):
    """A signal asks to stop: the pass is given up between two batches."""


def can_stop(trainer: Trainer) -> bool:
    """Whether a pass at the end of this epoch may be ended by ``GracefulStop``'s signals.

    Not at the end of the run, where no resumed run would make up for it, nor where another callback may still decide
    that this is the end; nor of several processes, which do not see a signal at the same batch.

    Args:
        trainer: The trainer.

    Returns:
        Whether it may.
    """
    others = trainer.callbacks  # type: ignore[attr-defined]
    may_end = any(isinstance(each, EarlyStopping) or getattr(each, "stop_after_last", None) for each in others)
    return trainer.world_size == 1 and not may_end and not nothing_is_left(trainer)


def until_asked(trainer: Trainer, batches: Iterable[Any]) -> Iterator[Any]:
    """Give the batches of a pass until a signal comes.

    Args:
        trainer: The trainer.
        batches: Of the pass.

    Yields:
        Each batch.

    Raises:
        PassStopped: Once ``GracefulStop`` was asked to stop.
    """
    stops = [each for each in trainer.callbacks if isinstance(each, GracefulStop)]  # type: ignore[attr-defined]
    for batch in batches:
        if any(stop.asked for stop in stops):
            raise PassStopped
        yield batch


class StoppablePasses(BetweenEpochs):
    """Base of callbacks whose passes at the end of an epoch may be ended by ``GracefulStop``'s signals.

    Subclasses change their state only after a pass. Not stopped is a pass before a resumed run's first step, whose
    weights would be gone.
    """

    _may_stop = False

    @property
    def _can_be_made_up(self) -> bool:
        """Whether a look at the weights may come after all callbacks have heard of the epoch's end."""
        return True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the weights, unless a signal ends that: ``GracefulStop``, called last, saves and stops the run."""
        looked = self._epochs
        self._may_stop = self._can_be_made_up and can_stop(trainer)
        try:
            super().on_train_epoch_end(trainer, pl_module)
        except PassStopped:
            self._epochs = looked
        finally:
            self._may_stop = False

    def _batches(self, trainer: Trainer, pl_module: LightningModule) -> Batches:
        passes = super()._batches(trainer, pl_module)
        return {name: partial(self._until_asked, trainer, one_pass) for name, one_pass in passes.items()}

    def _until_asked(self, trainer: Trainer, one_pass: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        yield from until_asked(trainer, one_pass()) if self._may_stop else one_pass()
