"""Options of the LightningModules: their types, what is refused, and what a checkpoint says of them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_sphere.optim.granularity import Granularity, present_value
from lit_sphere.optim.norm_keeper import KEPT_NORM, NormKeeper
from lit_sphere.optim.sphere_sgd import SphereSGD

Loss = Literal["cross_entropy", "mse"]
Convert = bool | Literal["weights", "activations"]
Spheres = Literal["joint", "group", "filter"]  # of the old name
LARGEST = torch.finfo(torch.float32).max
"""Beyond it a learning rate is infinite for the weights."""
_SMALLEST = torch.finfo(torch.float32).tiny
OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
SchedulerCallable = Callable[[Optimizer], LRScheduler]


def check_training_options(
    elr: float | None,
    lr: float | None,
    granularity: str,
    optimizer: OptimizerCallable | None,
    scheduler: SchedulerCallable | None,
    loss: str,
    convert: object = False,
) -> None:
    """Refuse options that are out of range, or do not go together."""
    for name, value in (("elr", elr), ("lr", lr)):
        if value is not None and not _SMALLEST <= value <= LARGEST:
            in_float32 = " (in float32, as the weights)" if value > LARGEST or 0 < value < _SMALLEST else ""
            raise ValueError(f"{name} (--model.{name}) must be positive and finite{in_float32}, got {value}")
    if elr is not None and optimizer is not None:
        _check_on_sphere(optimizer)
    if elr is not None and scheduler is not None:
        raise ValueError(
            "both elr and scheduler (--model.scheduler) are given: on the sphere the effective learning rate is fixed; "
            "change it by the callback FineTuneSwitch, or set --model.elr null to train in the whole space"
        )
    for name, choice, known in (("loss", loss, get_args(Loss)), ("granularity", granularity, get_args(Granularity))):
        if choice not in known:
            raise ValueError(f"{name} (--model.{name}) must be one of {', '.join(known)}, got {choice!r}")
    if convert not in (False, True, "weights", "activations"):
        raise ValueError(f"convert (--model.convert) must be true, false, weights or activations, got {convert!r}")


def _check_on_sphere(make: OptimizerCallable) -> None:
    """Refuse an optimizer beside ``elr`` that is none on the sphere, or has options that cannot be, before a run."""
    try:
        made = make([{"params": [torch.nn.Parameter(torch.ones(2, 2))], "elr": 1.0}])
    except ValueError as error:
        raise ValueError(f"optimizer (--model.optimizer): {error}") from error
    name = type(made).__name__
    if not isinstance(made, SphereSGD):
        raise ValueError(
            f"both elr and optimizer are given, and {name} does not train on the sphere: set --model.elr null to train "
            "in the whole space, or --model.optimizer null, RandomWalk or GradientAscent to train on the sphere"
        )
    if made.defaults["elr"] is not None:
        raise ValueError(
            f"both elr and an elr of {name} are given: leave --model.optimizer.elr out, the spheres take --model.elr"
        )


def unsaved(*names: str) -> list[str]:
    """Which of these arguments a checkpoint cannot hold as plain data: all, but for the command line's."""
    return list(names) if _given_hyperparameters.get() is None else []


def class_name(option: Any) -> str | None:
    """Short name of the class that an option names, as the command line saves it; None if it names none."""
    path = option.get("class_path") if isinstance(option, Mapping) else None
    return path.rpartition(".")[2] if isinstance(path, str) else None


def optimizer_options(hparams: dict[str, Any]) -> dict[str, Any]:
    """Options of the optimizer among the hyperparameters, under their names in its parameter groups."""
    options = {key: hparams[key] for key in ("elr", "lr") if hparams.get(key) is not None}
    optimizer = hparams.get("optimizer")
    given = optimizer.get("init_args", {}) if isinstance(optimizer, dict) else {}
    renamed = {"per": "granularity", "spheres": "granularity"}
    for key, value in given.items():
        if key not in renamed:
            options[key] = options.get(key) if value is None else value  # on the sphere elr is the module's
        elif value is not None:
            options[renamed[key]] = present_value(value)
    return options


def check_same_scheduler(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse a resumed run with another schedule; of hyperparameters that hold none nothing is known."""
    one, other = saved.get("scheduler"), given.get("scheduler")
    if "scheduler" in saved and "scheduler" in given and one != other:
        raise ValueError(
            f"scheduler (--model.scheduler): {other} given, {one} in the checkpoint; a run goes on with the schedule "
            "that it began with, and a new run begins at the weights of another by --ckpt_weights"
        )


def check_sphere_kept(optimizer: Optimizer) -> None:
    """Refuse a resumed run that would leave the sphere in silence.

    Args:
        optimizer: With the checkpoint's state, which says whether ``torch.optim.SGD`` had entered a sphere.

    Raises:
        ValueError: If it had, and nobody here keeps it there.
    """
    entered = any(group.get(KEPT_NORM) is not None for group in optimizer.param_groups)
    if entered and not NormKeeper.keeps(optimizer):
        raise ValueError(
            "the checkpoint's run had entered the sphere by a switch, and would leave it without: give FineTuneSwitch "
            "with the same switches to the trainer (the last may be sphere: false, at a later epoch)"
        )


def scale_schedule(scheduler: Any, groups: Iterable[dict[str, Any]], factor: float) -> None:
    """Multiply the learning rates that a schedule starts from."""
    for group in groups:
        group["initial_lr"] *= factor
    scheduler.base_lrs = [lr * factor for lr in scheduler.base_lrs]
