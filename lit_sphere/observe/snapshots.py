"""Snapshots of the weights between epochs, the same ones in a run that was killed and resumed."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lit_sphere.analysis import take_weights
from lit_sphere.observe.module_groups import FindsGroups, NoGroups, groups_of
from lit_sphere.observe.passes import (
    choose_loss,
    failure_of,
    logits_failure,
    runs_everywhere,
    seed_all,
    train_batches,
    untouched,
    val_batches,
)
from lit_sphere.observe.publishing import log_numbers, run_folder_of
from lit_sphere.observe.quiet_step import StepLoss
from lit_sphere.observe.stopping import PassStopped, can_stop, until_stopped
from lit_sphere.observe.watched_groups import stay_out

Batches = dict[str, Callable[[], Iterable[Any]]]


class Snapshot(TypedDict):
    """Weights of a moment of a run, as plain data.

    Attributes:
        epochs: Epochs finished.
        step: Optimizer steps taken.
        weights: Parameters and buffers, on the CPU.
    """

    epochs: int
    step: int
    weights: dict[str, Tensor]


def snapshot(trainer: Trainer, pl_module: LightningModule, epochs: int) -> Snapshot:
    """Copy the weights to the CPU.

    Args:
        trainer: The trainer.
        pl_module: Its module.
        epochs: Epochs finished.

    Returns:
        The snapshot.
    """
    return {"epochs": epochs, "step": trainer.global_step, "weights": take_weights(pl_module)}


class BetweenEpochs(FindsGroups):
    """Base of callbacks that look at the weights after each epoch; subclasses say what they do then.

    Lightning does not end an epoch again whose last batch was the last thing saved: a resumed run makes up
    for it before its first step. Where nothing is scale-invariant it warns, and stays out for the rest of the run.
    """

    _sets: tuple[str, ...] = ("train", "val")
    """Sets of data that are evaluated."""

    def __init__(self) -> None:
        self._names: list[str] = []  # of the scale-invariant tensors in the state_dict
        self._folder: Path | None = None
        self._epochs = 0  # seen
        self._begun = False
        self._loss: StepLoss | None = None  # by the training step, where there are no logits
        self._unseen: set[str] = set()  # sets of data that it cannot evaluate
        self._stays_out = False

    def _after_epoch(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        """Look at the weights after this number of epochs."""
        raise NotImplementedError

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what is scale-invariant before training, if the module says what its input looks like."""
        self._folder = run_folder_of(trainer)
        self._begun = self._stays_out = False
        self._find(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Find it from the inputs of the first batch otherwise, and make up for a missed end of an epoch."""
        if self._begun or self._stays_out:
            return
        self._begun = True
        self._find(trainer, pl_module, batch)
        if self._stays_out:
            return
        self._try(trainer, pl_module)
        if trainer.current_epoch > self._epochs:
            self._look(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the weights."""
        self._look(trainer, pl_module, trainer.current_epoch + 1)

    def _look(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        if self._stays_out:
            return
        self._epochs = epochs
        self._after_epoch(trainer, pl_module, epochs)

    def _find(self, trainer: Trainer, pl_module: LightningModule, batch: Any = None) -> None:
        try:
            groups = groups_of(self, pl_module, batch)
        except NoGroups as reason:
            self._stays_out = True
            stay_out(self, trainer, reason)
            return
        if groups is not None:
            members = {p for group in groups for p in group.parameters}
            state = pl_module.state_dict(keep_vars=True)
            self._names = [name for name, p in state.items() if isinstance(p, nn.Parameter) and p in members]

    def _try(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose how batches are evaluated, before training, not after hours of it."""
        self._loss, self._unseen = None, set()
        passes = self._batches(trainer, pl_module)
        context = trainer.precision_plugin.forward_context
        with untouched(pl_module), context():
            firsts = {what: next(iter(passes[what]()), None) for what in self._sets if what in passes}
            tried = {what: batch for what, batch in firsts.items() if batch is not None}
            by_logits = partial(self._evaluate, pl_module)
            fails = {what: logits_failure(pl_module, batch, by_logits) for what, batch in tried.items()}
        bad = next(((what, reason) for what, reason in fails.items() if reason is not None), ("train", None))
        with untouched(pl_module), context():  # anew: modes, too
            self._choose(trainer, pl_module, firsts, *bad)

    def _choose(
        self, trainer: Trainer, pl_module: LightningModule, firsts: dict[str, Any], bad: str, fails: str | None
    ) -> None:
        """Evaluate all sets of data by the training step where one of them cannot be by logits.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            firsts: The first batch of each set, or None.
            bad: A set that cannot be evaluated by logits.
            fails: Why; None if all can.
        """
        batch = firsts.get("train")
        self._loss = choose_loss(self, trainer, pl_module, batch, fails, f"a batch of the {bad} set")
        if self._loss is None or "val" not in firsts:
            return
        batch = firsts["val"]
        reason = None if batch is None else failure_of(self._loss.try_out, batch)
        if not runs_everywhere(trainer, reason):
            self._unseen.add("val")
            rank_zero_warn(
                f"{type(self).__name__}: the training step of {type(pl_module).__name__} does not take batches of the "
                f"validation set ({reason or 'not in another process'}), which is not evaluated"
            )

    def _evaluate(self, pl_module: LightningModule, batch: Any) -> None:
        """Evaluate one batch by logits, for a trial."""
        raise NotImplementedError

    def _batches(self, trainer: Trainer, pl_module: LightningModule) -> Batches:
        """One pass over the train set and, if there is one, the validation set."""
        passes: Batches = {"train": lambda: train_batches(self, trainer, pl_module)}
        if val_batches(trainer) is not None and "val" not in self._unseen:
            passes["val"] = lambda: val_batches(trainer) or ()
        if self._loss is None:
            return passes
        return {name: partial(self._seeded, trainer, one_pass) for name, one_pass in passes.items()}

    def _seeded(self, trainer: Trainer, one_pass: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        """What a training step draws is to be the same in each pass, wherever the weights are."""
        seed_all(trainer.global_rank)
        yield from one_pass()

    def _send(self, trainer: Trainer, metrics: dict[str, float], epochs: int) -> None:
        """Log; all digits of them, unlike through the module's own log."""
        log_numbers(trainer, {"epoch": epochs - 1, **metrics}, trainer.global_step - 1)


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
        return {name: partial(self._until_stopped, trainer, one_pass) for name, one_pass in passes.items()}

    def _until_stopped(self, trainer: Trainer, one_pass: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        yield from until_stopped(trainer, one_pass()) if self._may_stop else one_pass()
