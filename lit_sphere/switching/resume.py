"""Runs that go on from a checkpoint in which something was switched: by the same switches, by others, or by none."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_sphere.switching.options import SwitchableOptions
from lit_sphere.switching.switch import Switch

_KIND = "FineTuneSwitch"


def state_key_of(changes: Iterable[str]) -> str:
    """Key of a state of switches in a checkpoint: by it alone they are known, whatever the class that made them.

    Args:
        changes: Names of the options that are changed some time.

    Returns:
        The key.
    """
    return f"{_KIND}{{'changes': {sorted(changes)!r}}}"


def is_of_switches(key: str) -> bool:
    """Return whether a callback's key in a checkpoint is that of a ``FineTuneSwitch``, or of a subclass.

    Args:
        key: The key.

    Returns:
        Whether it is.
    """
    return key.partition("{")[0] == _KIND


def state_of_a_shorter_list(owner: Any, trainer: Trainer, checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Find the state that a longer list, which changes more options, can go on with.

    Args:
        owner: A ``FineTuneSwitch``.
        trainer: Its trainer.
        checkpoint: Of the run that goes on.

    Returns:
        The state; None if there is none, or if it is for another callback to take.

    Raises:
        ValueError: If other switches had entered the sphere, which would be left in silence.
    """
    saved = checkpoint.get("callbacks") or {}
    asking = [each for each in trainer.callbacks if is_of_switches(each.state_key)]  # type: ignore[attr-defined]
    known = {each.state_key for each in asking}
    left = [saved[key] for key in saved if is_of_switches(key) and key not in known]
    new = [each for each in asking if each.state_key not in saved]
    if len(left) == len(new) == 1:
        made = _made(left[0])
        if made == new[0].switches[: len(made)]:
            return dict(left[0]) if new[0] is owner else None
    for state in left:
        if SwitchableOptions.holds_sphere(state["options"]):
            raise ValueError(
                "FineTuneSwitch: the checkpoint's run had entered the sphere by other switches, and would leave it "
                f"without them; begin the list with {', '.join(map(str, _made(state)))}"
            )
    return None


def _made(state: Mapping[str, Any]) -> list[Switch]:
    return [Switch(**each["switch"]) for each in state["fired"]]


def made_others(fired: list[dict[str, Any]], switches: list[Switch]) -> bool:
    """Return whether the switches that took place are not the first of a list."""
    return [each["switch"] for each in fired] != [asdict(switch) for switch in switches[: len(fired)]]


class StaysSwitched(Callback):
    """Control: what ``FineTuneSwitch`` did in a checkpoint's run stays, where that callback is not given any more.

    New values of options stand in the optimizer's own state. Not so the sphere that was entered from
    ``torch.optim.SGD``, nor the data's augmentation: without this callback a resumed run would leave both in silence.

    Args:
        key: Of the switches' state in the checkpoint; checkpoints of this run hold it there, too.
        state: That state.
    """

    def __init__(self, key: str, state: dict[str, Any]) -> None:
        self._key, self._state = key, state
        self._options: SwitchableOptions | None = None

    @property
    def state_key(self) -> str:
        """That of the switches, so that a later run can take them up again."""
        return self._key

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the options, and print which."""
        restored = []
        self._options = SwitchableOptions(trainer.optimizers)
        self._options.load_state(self._state["options"])
        if SwitchableOptions.holds_sphere(self._state["options"]):
            restored.append(f"on the sphere, ρ = {self._state['options']['norm']:.5g}")
        augment = _augments(self._state)
        datamodule: Any = getattr(trainer, "datamodule", None)
        if augment is not None and hasattr(datamodule, "augment"):
            datamodule.augment = augment
            restored.append("with augmentation" if augment else "without augmentation")
        rank_zero_info(f"goes on as FineTuneSwitch left it, which is not given any more: {', '.join(restored)}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers alone."""
        if self._options is not None:
            self._options.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizers alone."""
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        """Give the switches' state: nothing was switched since."""
        return self._state


def stays_switched(checkpoint: dict[str, Any], given: Iterable[object]) -> list[StaysSwitched]:
    """Make the callbacks that keep what would be left in silence.

    Args:
        checkpoint: Of the run that goes on.
        given: The user's callbacks; a ``FineTuneSwitch`` among them sees to it itself.

    Returns:
        None, or one for each list of switches.
    """
    if any(isinstance(each, Callback) and is_of_switches(each.state_key) for each in given):
        return []
    saved = checkpoint.get("callbacks") or {}
    states = {key: state for key, state in saved.items() if is_of_switches(key)}
    return [
        StaysSwitched(key, state)
        for key, state in states.items()
        if SwitchableOptions.holds_sphere(state["options"]) or _augments(state) is not None
    ]


def _augments(state: dict[str, Any]) -> bool | None:
    """What the last switch of the augmentation set it to; None if there was none."""
    values = [each["values"]["augment"] for each in state["fired"] if "augment" in each["values"]]
    return bool(values[-1]) if values else None
