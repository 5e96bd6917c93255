"""One event for all changes of a run's dynamics: the controls that make them, and who is notified of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Callback, LightningModule, Trainer


class Control(Callback):
    """Base of callbacks that change what the steps of a run do, from some time on."""

    @property
    def changes(self) -> set[str]:
        """Names of the options that are changed some time, such as ``elr``, ``lr``, ``sphere`` or ``norm``."""
        raise NotImplementedError


class DynamicsObserver(Callback):
    """Base of callbacks that must be notified of a change: what they measured before it does not hold after it."""

    def before_dynamics_change(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hear that the dynamics are about to change; weights and options are still those of before.

        Args:
            trainer: The trainer; all ranks come here.
            pl_module: Its module.
        """

    def on_dynamics_change(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        """Hear that they have changed.

        Args:
            trainer: The trainer; all ranks come here.
            pl_module: Its module.
            epoch: Number of the first epoch after the change.
        """


@contextmanager
def dynamics_change(trainer: Trainer, pl_module: LightningModule, epoch: int) -> Iterator[None]:
    """Change the dynamics of a run inside, and notify all observers before and after.

    Args:
        trainer: The trainer; all ranks must come here.
        pl_module: Its module.
        epoch: Number of the first epoch after the change.

    Yields:
        Nothing; change weights and options inside.
    """
    observers = [each for each in callbacks_of(trainer) if isinstance(each, DynamicsObserver)]
    for observer in observers:
        observer.before_dynamics_change(trainer, pl_module)
    yield
    for observer in observers:
        observer.on_dynamics_change(trainer, pl_module, epoch)


def controls_of(trainer: Trainer, option: str) -> list[Control]:
    """Find the callbacks that change an option some time.

    Args:
        trainer: The trainer.
        option: Such as ``norm``.

    Returns:
        In the order in which Lightning calls them.
    """
    return [each for each in callbacks_of(trainer) if isinstance(each, Control) and option in each.changes]


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Give the callbacks of a trainer, in the order in which Lightning calls them."""
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return found
