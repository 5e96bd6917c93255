"""Changes the learning rate, and other options, in the middle of a run."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_sphere.analysis.regimes import REGIME_NUMBERS
from lit_sphere.groups import Group
from lit_sphere.observe.dynamics import Control, callbacks_of, dynamics_change
from lit_sphere.observe.module_groups import FindsGroups, GroupNames, GroupOptions, Network, groups_of
from lit_sphere.observe.publishing import log_numbers, run_folder_of
from lit_sphere.observe.stopping import is_over
from lit_sphere.switching import Switch, SwitchableOptions
from lit_sphere.switching.checks import (
    check_exclusive,
    check_regime_is_watched,
    check_requirements,
    datamodule_of,
)
from lit_sphere.switching.resume import made_others, state_key_of, state_of_a_shorter_list
from lit_sphere.switching.times import WatchedLoss, is_due, last_epoch, warn_of_those_too_late


class FineTuneSwitch(Control, FindsGroups):
    """Control: changes ELR, LR, weight decay, momentum, augmentation, or the sphere itself, in the middle of a run.

    Switches take place one after another, each at an epoch, at a step, some epochs after the one before, when the
    train loss falls below a threshold, or when ``RegimeMonitor`` announces a regime (see
    :class:`~lit_sphere.switching.Switch`). What is decided at the end of an epoch holds from the first step of the
    next. Nothing is exchanged: options change in the optimizer's own parameter groups, and are saved with them; but the
    sphere that ``torch.optim.SGD`` enters and augmentation are kept by this callback: a resumed run needs it again.

    A checkpoint ``checkpoints/before-switch-1-epoch0100.ckpt`` in the run's folder keeps the state before each
    switch; ``LinearInterpolationBarrier(between="switches")`` takes a snapshot there, and ``RegimeMonitor`` begins
    anew.

    | key | quantity |
    |---|---|
    | ``switch/elr``, ``switch/lr`` | effective learning rate η̃ and learning rate η from here on |
    | ``switch/weight_decay``, ``switch/momentum`` | the same of weight decay and momentum |
    | ``switch/augment``, ``switch/sphere`` | 1 or 0 |

    They are logged once, at the last step before the switch, with the number of the first epoch after it. The sphere:
    ``sphere: false`` turns ``SphereSGD`` into SGD in the whole space, ``sphere: true`` back again, or
    ``torch.optim.SGD`` into SGD on the joint sphere of the scale-invariant parameters.

    Args:
        switches: In the order in which they take place.
        loss_key: Logged metric that ``loss_below`` looks at, logged by the end of the first epoch (the first
            validation). None: the mean over the samples of an epoch of the losses that ``training_step`` returns, as
            the weights move; ``train/loss`` of lit-sphere's modules.
        snapshot: Keep a checkpoint before each switch.
        stop_after_last: End the run this number of epochs after the last switch.
        example_input: Input of the network, in place of the module's ``example_input_array`` and of a batch: a tensor,
            a tuple of inputs by position, or a dictionary of inputs by name.
        network: What is searched for scale-invariant groups: the attribute that is the network, or a function of the
            input. None: the module itself, or where that does not run, its training step.
        groups: Names of the scale-invariant parameters, in place of a search: for each group one name (with ``*``, each
            that fits is a group), or a list of those that are scale-invariant together.

    Raises:
        ValueError: If there is no switch, or one cannot come after the one before; at the start of ``fit``, if
            an optimizer has no such option, ``RegimeMonitor`` or the data's augmentation is missing, a switch waits
            for a ``RegimeMonitor`` that is listed after this callback, or another callback or a scheduler changes the
            same option, or a resumed run would leave the sphere that other switches entered; at the start of the second
            epoch, if ``loss_key`` is not logged.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lit_sphere.data import Digits
        >>> from lit_sphere.modules import SIConvNet
        >>> module = SIConvNet(4, in_channels=1, elr=1e-2)
        >>> switch = FineTuneSwitch([Switch(epoch=1, elr=1e-3), Switch(after_epochs=1, sphere=False)])
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
        >>> trainer = Trainer(max_epochs=3, callbacks=[switch], enable_model_summary=False, **quiet)
        >>> trainer.fit(module, Digits(train_size=256))
        >>> [(each["epoch"], sorted(each["values"])) for each in switch.fired]
        [(1, ['elr']), (2, ['lr', 'sphere', 'weight_decay'])]
    """

    def __init__(
        self,
        switches: list[Switch],
        loss_key: str | None = None,
        snapshot: bool = True,
        stop_after_last: int | None = None,
        example_input: Any = None,
        network: Network = None,
        groups: GroupNames | None = None,
    ) -> None:
        self.group_options = GroupOptions(example_input, network, groups)
        super().__init__()
        if not switches:
            raise ValueError("FineTuneSwitch: there is no switch; give at least one, e.g. Switch(epoch=100, elr=1e-3)")
        if not isinstance(switches, (list, tuple)) or not all(isinstance(each, Switch) for each in switches):
            raise ValueError(
                "FineTuneSwitch: switches must be a list of Switch, e.g. [Switch(epoch=100, elr=1e-3)], got "
                f"{switches!r}"
            )
        if stop_after_last is not None and stop_after_last < 1:
            raise ValueError(f"FineTuneSwitch: stop_after_last must be at least 1, got {stop_after_last}")
        for name in ("epoch", "step"):
            times = [getattr(switch, name) for switch in switches if getattr(switch, name) is not None]
            if times != sorted(times):
                raise ValueError(f"FineTuneSwitch: switches take place one after another, but {name} falls: {times}")
        for switch in switches:
            if switch.regime is not None and switch.regime not in REGIME_NUMBERS:
                known = ", ".join(REGIME_NUMBERS)
                raise ValueError(f"FineTuneSwitch: {switch}: there is no such regime; regime is one of {known}")
        self.switches, self.loss_key = list(switches), loss_key
        self.snapshot, self.stop_after_last = snapshot, stop_after_last
        self.fired: list[dict[str, Any]] = []
        """Epoch, step and new values of the switches that took place."""
        self._decided = 0  # up to the beginning of this epoch
        self._loss = WatchedLoss(loss_key)
        self._options: SwitchableOptions | None = None
        self._restored: dict[str, Any] = {}
        self._folder: Path | None = None

    @property
    def changes(self) -> set[str]:
        """Names of the options that are changed some time."""
        return {name for switch in self.switches for name in switch.changes}

    @property
    def state_key(self) -> str:
        """Differs between two of one trainer, which cannot change the same; a subclass's begins alike."""
        return state_key_of(self.changes)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that no other control changes the same."""
        if stage == "fit":
            check_exclusive(self, trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what the switches need, before training, and go on with a sphere that was entered."""
        self._folder = run_folder_of(trainer) if self.snapshot else None
        self._loss.begin()
        check_requirements(self, trainer)
        if self._options is not None:
            self._options.detach()
        self._options = SwitchableOptions(trainer.optimizers)
        self._find(groups_of(self, pl_module) if self._needs_groups() else [])
        self._check(self._options)
        self._options.load_state(self._restored)
        for each in self.fired:
            if "augment" in each["values"]:
                datamodule_of(trainer).augment = bool(each["values"]["augment"])

    def _needs_groups(self) -> bool:
        enters = any(switch.sphere for switch in self.switches)
        return enters and self._options is not None and self._options.needs_invariant and not self._restored

    def _find(self, groups: list[Group] | None) -> None:
        if groups and self._options is not None:
            self._options.invariant = list(dict.fromkeys(p for group in groups for p in group.parameters))

    def _check(self, options: SwitchableOptions) -> None:
        on_sphere = options.on_sphere
        for switch in self.switches:
            try:
                on_sphere = options.check(switch.changes, on_sphere)
            except ValueError as error:
                raise ValueError(f"FineTuneSwitch: {switch}: {error}") from error

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Catch up: an epoch whose last batch was the last thing saved is not ended again; say what cannot come."""
        self._decide(trainer, pl_module, trainer.current_epoch, saves=False)
        self._at_step(trainer, pl_module, trainer.current_epoch, saves=False)
        warn_of_those_too_late(self._pending(), self.fired, trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the metric is logged, as soon as all that are logged are known."""
        if any(switch.loss_below is not None for switch in self._pending()):
            self._loss.check_known(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Find the groups from the first batch, where the module does not say what its input looks like."""
        check_regime_is_watched(self, trainer)
        if self._needs_groups() and self._options is not None and self._options.invariant is None:
            self._find(groups_of(self, pl_module, batch))
            self._check(self._options)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the step's loss up, on its device; switch if the next step is the one."""
        if self._pending() and self._pending()[0].loss_below is not None:
            self._loss.add(trainer, outputs, batch)
        self._at_step(trainer, pl_module, trainer.current_epoch + bool(trainer.is_last_batch), saves=True)

    def _at_step(self, trainer: Trainer, pl_module: LightningModule, epoch: int, saves: bool) -> None:
        while self._pending() and not is_over(trainer, epoch):
            step = self._pending()[0].step
            if step is None or trainer.global_step < step:
                return
            self._fire(trainer, pl_module, epoch, saves)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch if what is waited for has come."""
        self._decide(trainer, pl_module, trainer.current_epoch + 1, saves=True)
        self._loss.epoch_ended()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Metrics of validations are known from here on."""
        self._loss.validation_ended(trainer)

    def _decide(self, trainer: Trainer, pl_module: LightningModule, epoch: int, saves: bool) -> None:
        """Decide what is to be done before the first step of an epoch."""
        if epoch > self._decided and not is_over(trainer, epoch):  # else a longer run decides when it goes on
            while self._pending() and is_due(self._pending()[0], trainer, epoch, self.fired, self._loss):
                self._fire(trainer, pl_module, epoch, saves)
            self._decided = epoch
        if self.stop_after_last and not self._pending() and epoch - last_epoch(self.fired) >= self.stop_after_last:
            trainer.should_stop = True

    def _fire(self, trainer: Trainer, pl_module: LightningModule, epoch: int, saves: bool) -> None:
        assert self._options is not None
        switch = self._pending()[0]
        number = 1 + sum(len(each.fired) for each in callbacks_of(trainer) if isinstance(each, FineTuneSwitch))
        if saves and self._folder is not None and trainer.loggers:
            name = f"before-switch-{number}-epoch{epoch:04d}.ckpt"
            trainer.save_checkpoint(self._folder / "checkpoints" / name, weights_only=False)
        with dynamics_change(trainer, pl_module, epoch):
            values = self._options.apply(switch.changes)
            if switch.augment is not None:
                values["augment"] = (bool(datamodule_of(trainer).augment), switch.augment)
                datamodule_of(trainer).augment = switch.augment
        new = {name: float(after) for name, (_, after) in values.items()}
        record = {"epoch": epoch, "step": trainer.global_step, "switch": asdict(switch), "values": new}
        self.fired.append(record)
        self._announce(trainer, switch, epoch, values)
        named = {f"switch/{name}": value for name, value in new.items()}
        log_numbers(trainer, {"epoch": epoch, **named}, trainer.global_step - 1)

    def _announce(self, trainer: Trainer, switch: Switch, epoch: int, values: dict[str, tuple[Any, Any]]) -> None:
        shown = ", ".join(f"{name} {_shown(old)} → {_shown(new)}" for name, (old, new) in values.items())
        condition = "" if switch.epoch is not None or switch.step is not None else f" ({switch.when})"
        rank_zero_info(f"FineTuneSwitch: from epoch {epoch}, step {trainer.global_step} on{condition}: {shown}")
        if all(old == new for old, new in values.values()):
            rank_zero_warn(f"FineTuneSwitch: {switch} changes nothing: the value was the same before; remove it")

    def _pending(self) -> list[Switch]:
        return self.switches[len(self.fired) :]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the switches that never took place."""
        for switch in self._pending():
            rank_zero_warn(
                f"FineTuneSwitch: the run ended after {trainer.current_epoch} epochs, and {switch} never took place; "
                + ((switch.loss_below and self._loss.missing_metric(trainer)) or "train longer, or remove it")
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers alone."""
        if self._options is not None:
            self._options.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizers alone."""
        if self._options is not None:
            self._options.detach()

    def state_dict(self) -> dict[str, Any]:
        """Give what took place, and what is known of the epoch under way."""
        options = self._restored if self._options is None else self._options.state()
        return {
            "fired": [dict(each) for each in self.fired],
            "decided": self._decided,
            "loss": self._loss.state(),
            "options": options,
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the metric that is waited for: a resumed run has logged nothing."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["callbacks"][self.state_key]["loss"] = self._loss.state(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with a longer list that changes more options, so that what took place is not repeated."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        state = state_of_a_shorter_list(self, trainer, checkpoint)
        if state is not None:
            self.load_state_dict(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; warns of other switches than those that took place."""
        self.fired = [dict(each) for each in state_dict["fired"]]
        self._decided, self._restored = state_dict["decided"], state_dict["options"]
        self._loss.load_state(state_dict["loss"])
        if made_others(self.fired, self.switches):
            rank_zero_warn(
                f"FineTuneSwitch: the checkpoint's run made {len(self.fired)} switches already, not the first of those "
                "given now; what it changed stays, and the list goes on after them"
            )


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:.4g}"
