"""The switches of a checkpoint's run, where the run goes on with another list."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Trainer

from lit_sphere.optim import Switch, SwitchableOptions

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
    """Tell whether a callback's key in a checkpoint is that of a ``FineTuneSwitch``, or of a subclass.

    Args:
        key: The key.

    Returns:
        Whether it is.
    """
    return key.partition("{")[0] == _KIND


def state_of_a_shorter_list(asks: Any, trainer: Trainer, checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Find the state that a longer list, which changes more options, can go on with.

    Args:
        asks: A ``FineTuneSwitch``.
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
            return dict(left[0]) if new[0] is asks else None
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
    """Tell whether the switches that took place are not the first of a list."""
    return [each["switch"] for each in fired] != [asdict(switch) for switch in switches[: len(fired)]]
