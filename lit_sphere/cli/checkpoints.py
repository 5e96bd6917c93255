"""Checkpoints on the command line: what they hold, and whether they fit the model."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_sphere.cli.config_names import default_config
from lit_sphere.cli.errors import CommandLineError


def checkpoint_of(args: list[str]) -> str | None:
    """Find the value of ``--ckpt_path`` in a command line.

    Args:
        args: A command line.

    Returns:
        The path, or None.
    """
    for i, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if option == "--ckpt_path":
            return value if equals else args[i + 1] if i + 1 < len(args) else None
    return None


def base_config(ckpt_path: str | None, has_config: bool) -> str | None:
    """Choose what lies under the configs and options that the user typed.

    Args:
        ckpt_path: Checkpoint, if one is given.
        has_config: Whether the user typed a ``--config``.

    Returns:
        Path or text of a config; None if nothing is to be added.
    """
    if ckpt_path is None:
        return None if has_config else default_config()
    beside = Path(ckpt_path).parent.parent / "config.yaml"
    if not has_config and beside.is_file():
        return str(beside)
    hparams = dict(read_checkpoint(ckpt_path).get("hyper_parameters", {}))
    hparams.pop("_instantiator", None)
    if "_class_path" not in hparams:
        return None if has_config else default_config()
    model = {"class_path": hparams.pop("_class_path"), "init_args": hparams}
    # They come from the data:
    for linked in ("num_classes", "in_channels"):
        hparams.pop(linked, None)
    return json.dumps({"model": model})


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint as plain data; nothing in it is executed.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        CommandLineError: If it is missing, truncated, no Lightning checkpoint, or holds pickled code.
    """
    if not Path(path).is_file():
        raise CommandLineError(f"--ckpt_path {path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that Lightning does not write
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CommandLineError(
            f"--ckpt_path {path}: holds pickled code (or no checkpoint at all), which is not loaded; save tensors "
            "and plain values only"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CommandLineError(
            f"--ckpt_path {path}: not a readable checkpoint, it may be truncated; take another one"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or "global_step" not in checkpoint:
        raise CommandLineError(f"--ckpt_path {path}: no checkpoint of Lightning (no state_dict in it)")
    return checkpoint


def check_architecture(checkpoint: dict[str, Any], model: nn.Module, path: str) -> None:
    """Refuse a checkpoint of another network, naming the first tensor that differs.

    Args:
        checkpoint: As read by :func:`read_checkpoint`.
        model: The module that is to load it.
        path: The file, for the message.

    Raises:
        CommandLineError: If names or shapes differ.
    """
    saved = {name: tuple(t.shape) for name, t in checkpoint["state_dict"].items()}
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for name in [*wanted, *saved]:
        if saved.get(name) != wanted.get(name):
            has, needs = saved.get(name, "nothing"), wanted.get(name, "nothing")
            raise CommandLineError(
                f"--ckpt_path {path}: of another architecture: {name} is {has} there and {needs} in "
                f"{type(model).__name__}; give the --model and its options that it was trained with"
            )
