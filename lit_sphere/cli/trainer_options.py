"""Options of the Trainer that Lightning takes in silence, or answers by a traceback."""

import re
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.suggestions import did_you_mean

_LEAST = {
    "max_epochs": -1,
    "min_epochs": 0,
    "max_steps": -1,
    "min_steps": 0,
    "num_nodes": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": -1,
    "reload_dataloaders_every_n_epochs": 0,
    "fast_dev_run": 0,
}
_LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")
_MOST_SEED = 2**32 - 1
_NEEDED_BY = {
    "torch_xla": "accelerator",
    "transformer_engine": "precision",
    "deepspeed": "strategy",
    "bitsandbytes": "plugins",
}
_KEYS = ("train/loss", "train/error", "val/loss", "val/error")
_OTHERS = ("regime", "epoch", "step")


def check_trainer_options(config: Namespace) -> None:
    """Refuse options that are out of their range.

    Args:
        config: The configuration of one subcommand.

    Raises:
        CommandLineError: Names the option, its range and what was given.
    """
    trainer = config.trainer
    if not isinstance(config.seed_everything, bool) and not 0 <= (config.seed_everything or 0) <= _MOST_SEED:
        raise CommandLineError(f"--seed_everything must be from 0 to {_MOST_SEED}, got {config.seed_everything}")
    for name, least in _LEAST.items():
        value = trainer.get(name)
        if isinstance(value, (int, float)) and value < least:
            no_limit = ", or -1 for no limit" if least == -1 else ""
            _refuse(name, value, f"must be at least {max(least, 0)}{no_limit}")
    for name in _LIMITS:
        value = trainer.get(name)
        if isinstance(value, (int, float)) and (value < 0 or (isinstance(value, float) and value > 1)):
            _refuse(name, value, "must be a whole number of batches, or a fraction of them between 0.0 and 1.0")
    for lower, upper in (("min_epochs", "max_epochs"), ("min_steps", "max_steps")):
        if (trainer.get(lower) or 0) > (trainer.get(upper) or 0) >= 1:
            _refuse(lower, trainer[lower], f"is more than --trainer.{upper} {trainer[upper]}")
    interval = trainer.get("val_check_interval")
    if isinstance(interval, (int, float)) and (interval <= 0 or (isinstance(interval, float) and interval > 1)):
        _refuse("val_check_interval", interval, "must be a number of batches, at least 1, or a fraction up to 1.0")
    if trainer.get("barebones"):
        _refuse("barebones", True, "leaves a run without callbacks, checkpoints and metrics; leave it out")
    _check_accelerator(trainer.accelerator)
    _check_devices(trainer.devices, trainer.accelerator)


def check_something_to_measure(config: Namespace, subcommand: str) -> None:
    """Refuse an evaluation of no batches; Lightning would say nothing.

    Args:
        config: The configuration of the subcommand.
        subcommand: ``validate`` or ``test``.

    Raises:
        CommandLineError: Names the option.
    """  # noqa: DOC502
    name = {"validate": "limit_val_batches", "test": "limit_test_batches"}[subcommand]
    if config.trainer.get(name) == 0:
        _refuse(name, config.trainer[name], "there is nothing to measure; leave it out for all batches")


def _refuse(name: str, value: object, why: str) -> NoReturn:
    raise CommandLineError(f"--trainer.{name} {value}: {why}")


def _check_accelerator(accelerator: object) -> None:
    known = ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
    if isinstance(accelerator, str) and accelerator not in known:
        _refuse("accelerator", accelerator, f"must be one of {', '.join(known)}{did_you_mean(accelerator, known)}")


def _check_devices(devices: Any, accelerator: object) -> None:
    on_gpu = accelerator in ("gpu", "cuda", "mps") or (accelerator == "auto" and torch.cuda.is_available())
    if devices == "auto" or not (on_gpu or accelerator in ("auto", "cpu")):
        return
    shown = str(devices).replace(" ", "")
    if re.fullmatch(r"\+?0*[1-9]\d*", shown) or (on_gpu and shown == "-1"):
        return
    if not on_gpu:
        _refuse("devices", shown, "on the CPU it is the number of processes, at least 1")
    listed = shown.strip("[]").rstrip(",").split(",")
    if shown == "0" or not all(each.isdigit() for each in listed):
        _refuse("devices", shown, "must be the number of GPUs, -1 for all, or their indices, e.g. [0,1]")
    if len({int(each) for each in listed}) < len(listed):
        _refuse("devices", shown, "names a GPU twice; each process has one of its own")


def not_installed(error: ImportError, config: Namespace) -> CommandLineError:
    """Word the refusal of an option that needs a package.

    Args:
        error: As Lightning raises it.
        config: The configuration of one subcommand.

    Returns:
        One line that names the option.
    """
    needed = re.search(r"[Rr]equirement '([\w.-]+)", str(error)) or re.search("[`']([\\w.-]+)[`']", str(error))
    package = needed[1] if needed else str(error)
    option = _NEEDED_BY.get(package.replace("-", "_"))
    typed = f"--trainer.{option} {config.trainer.get(option)}" if option else "an option of --trainer"
    return CommandLineError(f"{typed}: needs the package {package}, which is not installed; choose another")


def check_monitored(callbacks: list[Callback], model: LightningModule) -> None:
    """Refuse to wait for a metric that nobody logs, or a negative time.

    Of classes that are not ours nobody knows what they log.

    Args:
        callbacks: All of the Trainer's.
        model: The module that is trained.

    Raises:
        CommandLineError: Names the callback, and the metric and those that there are.
    """
    for each in callbacks:
        if isinstance(each, EarlyStopping) and each.patience < 0:
            raise CommandLineError(
                f"--trainer.callbacks: {type(each).__name__}: patience must be at least 0, got {each.patience}"
            )
    if any(type(each).__module__.split(".")[0] not in ("lit_sphere", "lightning") for each in (*callbacks, model)):
        return
    for each in callbacks:
        if not isinstance(each, (EarlyStopping, ModelCheckpoint)) or each.monitor is None:
            continue
        # Keys of other stages are our callbacks', and differ with their options and the network.
        stage, slash, _ = each.monitor.partition("/")
        if each.monitor not in (*_KEYS, *_OTHERS) and (stage in ("train", "val", "test") or not slash):
            raise CommandLineError(
                f"--trainer.callbacks: {type(each).__name__}: monitor {each.monitor!r} is logged by nobody"
                f"{did_you_mean(each.monitor, _KEYS) or ';'} there are {', '.join(_KEYS)} and those of other callbacks"
            )
