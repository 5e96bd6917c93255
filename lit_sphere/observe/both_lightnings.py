"""Lightning under its two names: ``lightning`` and ``pytorch_lightning`` hold the same classes twice."""

import sys
from typing import Any, TypeGuard, TypeVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.model_helpers import is_overridden

_Kind = TypeVar("_Kind")
_OTHER_NAMES = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}


def both(*kinds: type) -> tuple[type, ...]:
    """Name classes of Lightning's in both of its packages.

    Args:
        kinds: Classes of ``lightning``.

    Returns:
        They, and those of the same names of ``pytorch_lightning`` and ``lightning_fabric``, as far as these have been
        imported: otherwise there is no instance of them.

    Example:
        >>> import pytorch_lightning
        >>> pytorch_lightning.Trainer in both(Trainer)
        True
    """
    found = list(kinds)
    for kind in kinds:
        for name, other in _OTHER_NAMES.items():
            module = sys.modules.get(kind.__module__.replace(name, other, 1))
            twin = getattr(module, kind.__qualname__, None)
            if isinstance(twin, type) and twin is not kind:
                found.append(twin)
    return tuple(found)


def is_a(value: object, *kinds: type[_Kind]) -> TypeGuard[_Kind]:
    """Return whether a value is an instance of classes of Lightning's, of whichever package."""
    return isinstance(value, both(*kinds))


def overrides(method: str, pl_module: Any) -> bool:
    """Return whether a module has a method of its own in place of Lightning's.

    Args:
        method: Its name.
        pl_module: A LightningModule of either package.

    Returns:
        Whether it does.
    """
    parent = next((kind for kind in both(LightningModule) if isinstance(pl_module, kind)), LightningModule)
    return is_overridden(method, pl_module, parent)


def put_checkpoints_last(trainer: Trainer) -> None:
    """Let callbacks that save run after all others, whose state they save.

    A trainer does so itself with those of its own package only.

    Args:
        trainer: A trainer of either package, in ``setup``.
    """
    saves = both(Checkpoint)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    # A new list: the trainer is going through the old one.
    trainer.callbacks = sorted(callbacks, key=lambda each: isinstance(each, saves))  # type: ignore[attr-defined]
