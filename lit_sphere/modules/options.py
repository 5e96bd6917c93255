"""Options of the LightningModules: their types, what is refused, and what a checkpoint says of them."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, ReduceLROnPlateau

from lit_sphere.optim.granularity import Granularity, present_value
from lit_sphere.optim.norm_keeper import KEPT_NORM, NormKeeper

Loss = Literal["cross_entropy", "mse"]
Spheres = Literal["joint", "group", "filter"]  # of the old name
LARGEST = torch.finfo(torch.float32).max
"""Beyond it a learning rate is infinite for the weights."""
_PERIODS = ("T_max", "T_0", "T_mult", "step_size", "total_iters", "total_steps")
OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
SchedulerCallable = Callable[[Optimizer], LRScheduler]


def check_training_options(
    elr: float | None,
    lr: float | None,
    granularity: str,
    optimizer: OptimizerCallable | None,
    scheduler: SchedulerCallable | None,
    loss: str,
) -> None:
    """Refuse options that are out of range, or do not go together."""
    for name, value in (("elr", elr), ("lr", lr)):
        if value is not None and not 0 < value <= LARGEST:
            in_float32 = " (in float32, as the weights)" if value > LARGEST else ""
            raise ValueError(f"{name} (--model.{name}) must be positive and finite{in_float32}, got {value}")
    if elr is not None and optimizer is not None:
        raise ValueError(
            "both elr and optimizer are given: elr trains on the sphere by SphereSGD; set --model.elr null to "
            "train in the whole space, or --model.optimizer null to train on the sphere"
        )
    if elr is not None and scheduler is not None:
        raise ValueError(
            "both elr and scheduler (--model.scheduler) are given: on the sphere the effective learning rate is fixed; "
            "change it by the callback FineTuneSwitch, or set --model.elr null to train in the whole space"
        )
    for name, choice, known in (("loss", loss, get_args(Loss)), ("granularity", granularity, get_args(Granularity))):
        if choice not in known:
            raise ValueError(f"{name} (--model.{name}) must be one of {', '.join(known)}, got {choice!r}")


def try_optimizer(optimizer: OptimizerCallable, scheduler: SchedulerCallable | None, network: nn.Module) -> None:
    """Refuse what would fail once the training has begun: make both, and step the schedule once.

    Args:
        optimizer: Makes the optimizer.
        scheduler: Makes its schedule, if any.
        network: Its trainable parameters are given to the optimizer, and left as they are.

    Raises:
        ValueError: If one of them cannot be made, waits for what a step by hand does not give it, or fails.
    """
    try:
        made = optimizer([p for p in network.parameters() if p.requires_grad])
    except (ValueError, TypeError) as error:
        raise ValueError(f"optimizer (--model.optimizer): {error}") from error
    name = type(made).__name__
    if isinstance(made, (LBFGS, SparseAdam)):
        needs = "a closure" if isinstance(made, LBFGS) else "sparse gradients"
        raise ValueError(f"optimizer (--model.optimizer) {name} needs {needs}, which training here has not; take SGD")
    for group in made.param_groups:
        for option, value in group.items():
            if isinstance(value, float) and not abs(value) <= LARGEST:
                raise ValueError(f"optimizer (--model.optimizer): {option} must be below {LARGEST:.1e}, got {value:g}")
    if scheduler is not None:
        _try_scheduler(scheduler, made)


def _try_scheduler(scheduler: SchedulerCallable, optimizer: Optimizer) -> None:
    where = "scheduler (--model.scheduler)"
    try:
        made = scheduler(optimizer)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{where}: {error}") from error
    name = type(made).__name__
    if isinstance(made, ReduceLROnPlateau):
        raise ValueError(
            f"{where} {name} waits for a metric, which a schedule by epochs does not have; take FineTuneSwitch with "
            "loss_below"
        )
    for period in _PERIODS:
        value = getattr(made, period, 1)
        if isinstance(value, (int, float)) and value < 1:
            raise ValueError(f"{where} {name}: {period} must be at least 1 epoch, got {value}")
    if isinstance(made, MultiStepLR) and not any(epoch >= 1 for epoch in made.milestones):
        raise ValueError(f"{where} {name}: none of the milestones is an epoch after the first, so it changes nothing")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        try:
            made.step()
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"{where} {name}: {error}") from error


def unsaved(*names: str) -> list[str]:
    """Which of these arguments a checkpoint cannot hold as plain data: all, but for the command line's."""
    return list(names) if _given_hyperparameters.get() is None else []


def optimizer_options(hparams: dict[str, Any]) -> dict[str, Any]:
    """Options of the optimizer among the hyperparameters, under their names in its parameter groups."""
    options = {key: hparams[key] for key in ("elr", "lr") if hparams.get(key) is not None}
    optimizer = hparams.get("optimizer")
    given = optimizer.get("init_args", {}) if isinstance(optimizer, dict) else {}
    renamed = {"per": "granularity", "spheres": "granularity"}
    for key, value in given.items():
        if key not in renamed:
            options[key] = value
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
