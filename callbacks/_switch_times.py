"""When switches take place, and which of them never will in a run of this length."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_sphere.analysis.regimes import SHORTEST_RUN
from lit_sphere.callbacks._watched_loss import WatchedLoss
from lit_sphere.callbacks.regime_monitor import RegimeMonitor, regime_monitor_of
from lit_sphere.optim import Switch


def last_epoch(fired: Sequence[Mapping[str, Any]]) -> int:
    """Give the epoch that the last switch holds from; 0 where none took place."""
    return int(fired[-1]["epoch"]) if fired else 0


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


def is_due(switch: Switch, trainer: Trainer, epoch: int, fired: Sequence[Mapping[str, Any]], loss: WatchedLoss) -> bool:
    """Decide whether a switch takes place before the first step of an epoch.

    Args:
        switch: The next one.
        trainer: The trainer; all ranks must ask.
        epoch: Number of the epoch.
        fired: The switches that took place.
        loss: What ``loss_below`` looks at.

    Returns:
        The same on all ranks.
    """
    if switch.epoch is not None:
        return epoch >= switch.epoch
    if switch.after_epochs is not None:
        return epoch >= last_epoch(fired) + switch.after_epochs
    if switch.step is not None:
        return trainer.global_step >= switch.step
    if fired and last_epoch(fired) >= epoch:
        return False  # what was seen belongs to the time before the last switch
    if switch.regime is not None:
        verdict = getattr(regime_monitor_of(trainer), "verdict", None)
        return bool(trainer.strategy.broadcast(verdict is not None and verdict.regime == switch.regime))
    assert switch.loss_below is not None
    return bool(trainer.strategy.broadcast(loss.value(trainer, epoch - 1) < switch.loss_below))


def warn_of_those_too_late(pending: Sequence[Switch], fired: Sequence[Mapping[str, Any]], trainer: Trainer) -> None:
    """Warn of switches that cannot take place before the run ends, however it goes.

    Args:
        pending: The switches to come, in their order.
        fired: Those that took place.
        trainer: The trainer, at the start of training.
    """
    per_epoch, known = _steps_of_an_epoch(trainer), _length_is_known(trainer)
    epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs)
    by_epochs = epochs * per_epoch
    steps = min(trainer.max_steps if trainer.max_steps > 0 else math.inf, by_epochs)
    earliest = last_epoch(fired)
    for number, switch in enumerate(pending):
        earliest = max(earliest, _earliest_epoch(switch, earliest, trainer, per_epoch))
        # How many epochs of unknown length fit into a number of steps nobody can say: only their limit is known.
        in_time = earliest < epochs and (not known or earliest * per_epoch < steps)
        if in_time if switch.step is None else switch.step < steps:
            continue
        rest = len(pending) - number - 1
        length = [f"{epochs:.0f} epochs"] if epochs < math.inf else []
        if switch.step is not None or earliest < epochs:
            length += [f"{steps:.0f} steps" + (", one for each batch" if steps == by_epochs else "")]
        more = f" and {rest} after it" if rest else ""
        rank_zero_warn(
            f"FineTuneSwitch: {switch}{more} will not take place: this run ends before ({', '.join(length)}); train "
            "longer, or switch earlier"
        )
        return


def _steps_of_an_epoch(trainer: Trainer) -> float:
    """One for each batch and optimizer; under manual optimisation a module may make others."""
    batches, optimizers = float(trainer.num_training_batches), len(trainer.optimizers)
    if batches < math.inf:
        batches = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
    return batches * (1 if trainer.lightning_module.automatic_optimization else optimizers)


def _length_is_known(trainer: Trainer) -> bool:
    """Not so of an ``IterableDataset``, also where ``limit_train_batches`` says how many batches it gives at most."""
    loaders = trainer.train_dataloader
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return all(sized_len(each) is not None for each in (loaders if isinstance(loaders, (list, tuple)) else [loaders]))


def _earliest_epoch(switch: Switch, before: int, trainer: Trainer, per_epoch: float) -> int:
    """The first epoch that a switch can hold from, after one that holds from ``before``."""
    if switch.epoch is not None:
        return switch.epoch
    if switch.after_epochs is not None:
        return before + switch.after_epochs
    if switch.step is not None:
        return int(switch.step // per_epoch)
    # One that derives from it may need fewer epochs for a verdict.
    if switch.regime is not None and type(regime_monitor_of(trainer)) is RegimeMonitor:
        return before + SHORTEST_RUN
    return before + 1
