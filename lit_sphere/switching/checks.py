"""What a switch cannot stand beside, and what it cannot do without."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging

from lit_sphere.observe.both_lightnings import is_a
from lit_sphere.observe.dynamics import Control, callbacks_of
from lit_sphere.observe.regime import regime_watch_of

_RATES = {"elr", "lr", "sphere"}


def check_exclusive(owner: Any, trainer: Trainer) -> None:
    """Refuse callbacks that change the same options.

    Args:
        owner: A ``FineTuneSwitch``.
        trainer: Its trainer.

    Raises:
        ValueError: Names both, and the remedy.
    """
    rates = owner.changes & _RATES
    for other in callbacks_of(trainer):
        name = type(other).__name__
        if isinstance(other, Control) and type(other) is type(owner) and other is not owner:
            both = other.changes & owner.changes
            if rates and other.changes & _RATES:  # each sees to the others of them as well
                both = other.changes & _RATES
            if both:
                named = ", ".join(sorted(both))
                raise ValueError(f"FineTuneSwitch: another FineTuneSwitch changes {named} too; make one list of both")
        if rates and is_a(other, LearningRateFinder, StochasticWeightAveraging):
            raise ValueError(f"FineTuneSwitch: {name} sets the learning rate too; remove one of the two")
        if "sphere" in rates and isinstance(other, Control) and "norm" in other.changes:
            raise ValueError(f"FineTuneSwitch: {name} fixes the norm, as a sphere does; remove one of the two")


def check_requirements(owner: Any, trainer: Trainer) -> None:
    """Refuse a schedule of the same learning rate, and switches that lack what they wait for or change.

    Args:
        owner: A ``FineTuneSwitch``.
        trainer: Its trainer, at the start of ``fit``.

    Raises:
        ValueError: Says what, and the remedy.
    """
    if owner.changes & _RATES and trainer.lr_scheduler_configs:
        scheduler = type(trainer.lr_scheduler_configs[0].scheduler).__name__
        raise ValueError(
            f"FineTuneSwitch: {scheduler} sets the learning rate too; remove the scheduler, or leave "
            f"{', '.join(sorted(owner.changes & _RATES))} out of the switches"
        )
    if any(switch.regime is not None for switch in owner.switches) and regime_watch_of(trainer) is None:
        raise ValueError("FineTuneSwitch: a switch waits for a regime, but nobody names it; add RegimeMonitor")
    if any(switch.regime is not None for switch in owner.switches):
        callbacks: list[Any] = callbacks_of(trainer)
        if callbacks.index(regime_watch_of(trainer)) > callbacks.index(owner):
            raise ValueError(
                "FineTuneSwitch: RegimeMonitor comes after it in the list of callbacks and would name the regime too "
                "late, by an epoch; list RegimeMonitor before FineTuneSwitch"
            )
    if "augment" in owner.changes and not hasattr(datamodule_of(trainer), "augment"):
        raise ValueError(
            f"FineTuneSwitch: {type(datamodule_of(trainer)).__name__} has no attribute augment to change; take a data "
            "module whose training loader reads self.augment, or leave augment out"
        )


def check_regime_is_watched(owner: Any, trainer: Trainer) -> None:
    """Refuse switches that wait for a regime where nobody can name one, once groups have been sought.

    Args:
        owner: A ``FineTuneSwitch``.
        trainer: Its trainer, at the start of a batch.

    Raises:
        ValueError: If ``RegimeMonitor`` stays out of the run.
    """
    watch = regime_watch_of(trainer)
    if watch is not None and watch.stays_out and any(switch.regime is not None for switch in owner.switches):
        raise ValueError(
            "FineTuneSwitch: a switch waits for a regime, but RegimeMonitor stays out of this run, where nothing is "
            "scale-invariant; let the switch wait for an epoch, a step or a loss"
        )


def datamodule_of(trainer: Trainer) -> Any:
    """Give the trainer's data module, or None."""
    return getattr(trainer, "datamodule", None)
