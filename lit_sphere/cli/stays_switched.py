"""A run that goes on without the switches of its checkpoint's run, but with what they did."""

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_sphere.callbacks import FineTuneSwitch
from lit_sphere.callbacks._switches_before import is_of_switches
from lit_sphere.optim import SwitchableOptions


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
        """Go on, and say with what."""
        told = []
        self._options = SwitchableOptions(trainer.optimizers)
        self._options.load_state(self._state["options"])
        if SwitchableOptions.holds_sphere(self._state["options"]):
            told.append(f"on the sphere, ρ = {self._state['options']['norm']:.5g}")
        augment = _augments(self._state)
        datamodule: Any = getattr(trainer, "datamodule", None)
        if augment is not None and hasattr(datamodule, "augment"):
            datamodule.augment = augment
            told.append("with augmentation" if augment else "without augmentation")
        rank_zero_info(f"goes on as FineTuneSwitch left it, which is not given any more: {', '.join(told)}")

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
    if any(isinstance(each, FineTuneSwitch) for each in given):
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
