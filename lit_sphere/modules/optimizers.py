"""Optimizers and schedules of the whole space: tried once before training, and held against a checkpoint's."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, ReduceLROnPlateau

from lit_sphere.modules.options import LARGEST, OptimizerCallable, SchedulerCallable
from lit_sphere.optim import SphereSGD
from lit_sphere.optim.norm_keeper import KEPT_NORM
from lit_sphere.optim.sphere_sgd import sphere_optimizer_of

_PERIODS = ("T_max", "T_0", "T_mult", "step_size", "total_iters", "total_steps")
_MOST_EPOCHS = 10_000  # tried in a tenth of a second
_ADDED = {KEPT_NORM, "initial_lr", "params", "param_names", "name"}  # to the options of an optimizer, by others
_LIKE_PARAMETERS = {
    *("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "mu_product"),
    *("square_avg", "acc_delta", "grad_avg", "sum", "ax", "prev", "step_size"),
}


def check_optimizer(make: OptimizerCallable, schedule: SchedulerCallable | None, epochs: int, named: str = "") -> None:
    """Try an optimizer and its schedule once, on parameters of no use.

    Args:
        make: Makes the optimizer.
        schedule: Makes the schedule.
        epochs: That the schedule is to be stepped for; at most 10 000 are tried.
        named: Class of the schedule, for the message, where it is known.

    Raises:
        ValueError: If one of the two cannot be made, needs what a step here does not give, or fails at some epoch.
    """
    try:
        optimizer = make([torch.nn.Parameter(torch.ones(2, 2))])
    except (ArithmeticError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"optimizer (--model.optimizer): {error}") from error
    name = type(optimizer).__name__
    if inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer (--model.optimizer) {name} evaluates the loss several times a step, which the module does "
            "not; take torch.optim.SGD or Adam"
        )
    if isinstance(optimizer, SparseAdam):
        raise ValueError(
            f"optimizer (--model.optimizer) {name} takes sparse gradients only, which no network here has; take "
            "torch.optim.Adam"
        )
    for group in optimizer.param_groups:
        for option, value in group.items():
            if isinstance(value, float) and not abs(value) <= LARGEST:
                raise ValueError(f"optimizer (--model.optimizer): {option} must be below {LARGEST:.1e}, got {value:g}")
    if schedule is not None:
        _try_schedule(optimizer, schedule, epochs, named)


def _try_schedule(optimizer: Optimizer, make: SchedulerCallable, epochs: int, named: str) -> None:
    done = 0
    try:
        scheduler = make(optimizer)
        named = type(scheduler).__name__
        _check_periods(scheduler)
        is_of_epochs = not isinstance(scheduler, ReduceLROnPlateau)
        for done in range(min(epochs, _MOST_EPOCHS) + 1 if is_of_epochs else 0):  # the last epoch steps it, too
            _step(optimizer, scheduler, done)
    except ZeroDivisionError as error:
        raise ValueError(
            f"scheduler (--model.scheduler) {named} divides by zero at epoch {done}: numbers such as T_max and "
            "step_size must be at least 1"
        ) from error
    except (ArithmeticError, TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        when = f" at epoch {done}" if done else ""
        remedy = "; set --model.scheduler.cycle_momentum false" if "cycle_momentum" in str(error) else ""
        raise ValueError(f"scheduler (--model.scheduler) {named}{when}: {error}{remedy}") from error
    if not is_of_epochs:
        raise ValueError(
            f"scheduler (--model.scheduler) {named} waits for a metric, which a schedule by epochs does not have; take "
            "FineTuneSwitch with loss_below"
        )


def _check_periods(scheduler: LRScheduler) -> None:
    for period in _PERIODS:
        value = getattr(scheduler, period, 1)
        if isinstance(value, (int, float)) and value < 1:
            raise ValueError(f"{period} must be at least 1 epoch, got {value}")
    if isinstance(scheduler, MultiStepLR) and not any(epoch >= 1 for epoch in scheduler.milestones):
        raise ValueError("none of the milestones is an epoch after the first, so it changes nothing")


def _step(optimizer: Optimizer, scheduler: LRScheduler, epoch: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nobody has stepped the optimizer
        if epoch:
            scheduler.step()
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    wrong = next((rate for rate in rates if not 0 <= rate < LARGEST), None)
    if wrong is not None:
        raise ArithmeticError(f"the learning rate becomes {wrong}, which no weight can take")


def check_same_optimizer(optimizer: Optimizer, states: Sequence[Any], saved: str | None = None) -> None:
    """Refuse the states of another optimizer, or of parameters of other sizes, which torch would take.

    Args:
        optimizer: That is to go on.
        states: A checkpoint's ``optimizer_states``.
        saved: Class of the checkpoint's optimizer, where it is known.

    Raises:
        ValueError: Names both optimizers and the remedy.
    """
    if len(states) != 1 or not all(isinstance(p, int) for group in states[0]["param_groups"] for p in group["params"]):
        return  # of another module, or of a strategy that names the parameters
    groups, given = states[0]["param_groups"], type(optimizer).__name__
    of_sphere = sphere_optimizer_of(groups)
    saved = of_sphere or (None if saved == "SphereSGD" else saved)
    one, other = (set().union(*each) - _ADDED for each in (groups, optimizer.param_groups))
    is_other = bool(one - other and other - one)  # a newer torch may have more options than an older one
    if of_sphere is not None or isinstance(optimizer, SphereSGD):
        is_other = sphere_optimizer_of(optimizer.param_groups) != of_sphere
    if is_other or saved not in (None, given):
        raise ValueError(
            f"optimizer: {saved or _guessed(one)} in the checkpoint, {given} here; a run goes on with the optimizer "
            "that it began with, and a new run begins at the weights of another by --ckpt_weights"
        )
    if not isinstance(optimizer, SphereSGD):
        counts = [[len(group["params"]) for group in each] for each in (groups, optimizer.param_groups)]
        if counts[0] != counts[1]:
            raise ValueError(f"optimizer {given}: of {counts[0]} parameters in the checkpoint, {counts[1]} here")
    _check_sizes(optimizer, states[0])


def _guessed(options: set[str]) -> str:
    known = (("SGD", "nesterov"), ("Adam", "amsgrad"), ("RMSprop", "centered"), ("Adagrad", "lr_decay"))
    return next((f"{name} or one like it" for name, option in known if option in options), "another one")


def _check_sizes(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for number, p in zip(numbers, params, strict=False):
        for name, value in state["state"].get(number, {}).items():
            own = optimizer.state[p].get(name) if p in optimizer.state else None
            wanted = own if isinstance(own, torch.Tensor) else p if name in _LIKE_PARAMETERS else None
            if wanted is None:
                continue
            has = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            if has != tuple(wanted.shape) and has != ():
                raise ValueError(
                    f"optimizer {type(optimizer).__name__}: {name} of parameter {number} is {has} in the checkpoint "
                    f"and {tuple(wanted.shape)} here; take another checkpoint, or begin a new run at its weights by "
                    "--ckpt_weights"
                )
