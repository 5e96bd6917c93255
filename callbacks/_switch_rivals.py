"""What a switch cannot stand beside, and what it cannot do without."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging

from lit_sphere.callbacks.fixed_norm import FixedNorm

_RATES = {"elr", "lr", "sphere"}


def refuse_rivals(asks: Any, trainer: Trainer) -> None:
    """Refuse callbacks that change the same options.

    Args:
        asks: A ``FineTuneSwitch``.
        trainer: Its trainer.

    Raises:
        ValueError: Names both, and the remedy.
    """
    rates = asks.changes & _RATES
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(other).__name__
        if type(other) is type(asks) and other is not asks and other.changes & asks.changes:
            both = ", ".join(sorted(other.changes & asks.changes))
            raise ValueError(f"FineTuneSwitch: another FineTuneSwitch changes {both} too; make one list of both")
        if rates and isinstance(other, (LearningRateFinder, StochasticWeightAveraging)):
            raise ValueError(f"FineTuneSwitch: {name} sets the learning rate too; remove one of the two")
        if "sphere" in rates and isinstance(other, FixedNorm):
            raise ValueError(f"FineTuneSwitch: {name} fixes the norm, as a sphere does; remove one of the two")


def refuse_what_is_missing(asks: Any, trainer: Trainer) -> None:
    """Refuse a schedule of the same learning rate, and switches that lack what they wait for or change.

    Args:
        asks: A ``FineTuneSwitch``.
        trainer: Its trainer, at the start of ``fit``.

    Raises:
        ValueError: Says what, and the remedy.
    """
    if asks.changes & _RATES and trainer.lr_scheduler_configs:
        scheduler = type(trainer.lr_scheduler_configs[0].scheduler).__name__
        raise ValueError(
            f"FineTuneSwitch: {scheduler} sets the learning rate too; remove the scheduler, or leave "
            f"{', '.join(sorted(asks.changes & _RATES))} out of the switches"
        )
    if any(switch.regime is not None for switch in asks.switches) and regime_monitor_of(trainer) is None:
        raise ValueError("FineTuneSwitch: a switch waits for a regime, but nobody names it; add RegimeMonitor")
    if "augment" in asks.changes and not hasattr(datamodule_of(trainer), "augment"):
        raise ValueError(
            f"FineTuneSwitch: {type(datamodule_of(trainer)).__name__} has no attribute augment to change; take a data "
            "module whose training loader reads self.augment, or leave augment out"
        )


def datamodule_of(trainer: Trainer) -> Any:
    """Give the trainer's data module, or None."""
    return getattr(trainer, "datamodule", None)


def regime_monitor_of(trainer: Trainer) -> Any:
    """Give the (first) ``RegimeMonitor`` among the trainer's callbacks, or None."""
    named = [each for each in trainer.callbacks if type(each).__name__ == "RegimeMonitor"]  # type: ignore[attr-defined]
    return named[0] if named else None
