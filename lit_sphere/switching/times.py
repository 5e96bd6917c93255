"""When switches take place, by which train loss, and which of them never will in a run of this length."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_sphere.observe.regime import regime_watch_of
from lit_sphere.observe.train_loss import TrainLoss, loss_of
from lit_sphere.switching.switch import Switch


def last_epoch(fired: Sequence[Mapping[str, Any]]) -> int:
    """Give the epoch that the last switch holds from; 0 where none took place."""
    return int(fired[-1]["epoch"]) if fired else 0


def is_due(
    switch: Switch, trainer: Trainer, epoch: int, fired: Sequence[Mapping[str, Any]], loss: "WatchedLoss"
) -> bool:
    """Decide whether a switch takes place before the first step of an epoch.

    Args:
        switch: The next one.
        trainer: The trainer; all ranks must call this.
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
        watch = regime_watch_of(trainer)
        return bool(trainer.strategy.broadcast(watch is not None and watch.announced == switch.regime))
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
    watch = regime_watch_of(trainer)
    if switch.regime is not None and watch is not None:
        return before + watch.shortest_run
    return before + 1


class WatchedLoss:
    """What ``loss_below`` looks at.

    Args:
        key: A logged metric; None for the mean over an epoch's samples of the losses that training steps return.
    """

    def __init__(self, key: str | None) -> None:
        self._key = key
        self._steps, self._epoch = TrainLoss(), -1  # of this epoch
        self._ended = self._validated = False  # an epoch, and a validation, in this process
        self._logged: float | None = None  # of a checkpoint, until the metric is logged again

    def begin(self) -> None:
        """Begin a fit: nothing is logged yet."""
        self._ended = self._validated = False

    def add(self, trainer: Trainer, outputs: Any, batch: Any) -> None:
        """Add a step's loss up, on its device, unless a logged metric is looked at.

        Args:
            trainer: The trainer.
            outputs: What ``training_step`` returned.
            batch: The batch.

        Raises:
            ValueError: If the step returned no loss.
        """
        if self._key is not None:
            return
        if loss_of(outputs) is None:
            raise ValueError(
                "FineTuneSwitch: training_step returns no loss, which loss_below waits for; return it, or set loss_key "
                "to a metric that is logged"
            )
        if self._epoch != trainer.current_epoch:
            self._epoch = trainer.current_epoch
            self._steps.reset()
        self._steps.add(trainer, outputs, batch)

    def epoch_ended(self) -> None:
        """Note that all metrics of a training epoch will be there when the next one begins."""
        self._ended, self._logged = True, None

    def validation_ended(self, trainer: Trainer) -> None:
        """Note that all metrics of a validation are there."""
        self._validated = self._validated or not trainer.sanity_checking

    def check_known(self, trainer: Trainer) -> None:
        """Refuse a metric that an epoch, and a validation if there are any, did not log.

        Args:
            trainer: The trainer, at the beginning of an epoch.

        Raises:
            ValueError: Names the metrics that there are.
        """
        if self._ended and (self._validated or not trainer.enable_validation) and self._missing(trainer):
            raise ValueError(f"FineTuneSwitch: {self.missing_metric(trainer)}; set loss_key to one of those")

    def _missing(self, trainer: Trainer) -> bool:
        return self._key is not None and self._key not in trainer.callback_metrics and self._logged is None

    def missing_metric(self, trainer: Trainer) -> str:
        """Give a message that the metric is not logged, and which are; empty if it is."""
        if not self._missing(trainer):
            return ""
        known = ", ".join(sorted(trainer.callback_metrics)) or "none"
        return f"loss_key {self._key} is not logged; the metrics that are: {known}"

    def value(self, trainer: Trainer, epoch: int) -> float:
        """Give the loss of an epoch that ends; all ranks must call this.

        Args:
            trainer: The trainer.
            epoch: Number of the epoch.

        Returns:
            The latest value of the metric, or the mean of the epoch's losses; infinite where there is none yet.
        """
        if self._key is None:
            return self._steps.means(trainer).get("loss", math.inf) if self._epoch == epoch else math.inf
        value = trainer.callback_metrics.get(self._key, self._logged)
        # What the module logs at its epoch's end comes later: the hooks of callbacks come before.
        return float("inf") if value is None else float(value)

    def state(self, trainer: Trainer | None = None) -> dict[str, Any]:
        """Give what :meth:`load_state` takes (rank 0's); with the logged metric where the trainer is given."""
        value = None if trainer is None or self._key is None else trainer.callback_metrics.get(self._key, self._logged)
        return {"epoch": self._epoch, **self._steps.state(), "logged": None if value is None else float(value)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self._epoch = state["epoch"]
        self._steps.load_state(state)
        self._logged = state.get("logged")
