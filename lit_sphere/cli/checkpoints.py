"""Checkpoints on the command line: what they hold, and whether they fit the model."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from lit_sphere.analysis import difference
from lit_sphere.analysis import read_checkpoint as plain_checkpoint
from lit_sphere.cli.config_names import default_config
from lit_sphere.cli.errors import CommandLineError


def checkpoint_of(args: list[str]) -> str | None:
    """Find the value of ``--ckpt_path`` in a command line.

    Args:
        args: A command line.

    Returns:
        The path, or None.
    """
    return option_of(args, "--ckpt_path")


def option_of(args: list[str], name: str) -> str | None:
    """Find the value of an option in a command line that is not parsed yet.

    Args:
        args: A command line.
        name: The option, with its dashes.

    Returns:
        The value, or None.
    """
    for i, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if option == name:
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


def read_checkpoint(path: str, option: str = "--ckpt_path") -> dict[str, Any]:
    """Read a checkpoint as plain data; nothing in it is executed.

    Args:
        path: The file.
        option: Where it was given, for the message.

    Returns:
        Its content.

    Raises:
        CommandLineError: If it is missing, truncated, no Lightning checkpoint, or holds pickled code.
    """
    try:
        return plain_checkpoint(path)
    except ValueError as error:
        raise CommandLineError(f"{option} {error}") from error


def check_architecture(checkpoint: dict[str, Any], model: nn.Module, path: str, option: str = "--ckpt_path") -> None:
    """Refuse a checkpoint of another network, naming the first tensor that differs.

    Args:
        checkpoint: As read by :func:`read_checkpoint`.
        model: The module that is to load it.
        path: The file, for the message.
        option: Where it was given, for the message.

    Raises:
        CommandLineError: If names or shapes differ.
    """
    differs = difference(checkpoint["state_dict"], model.state_dict())
    if differs is not None:
        name, has, needs = differs
        raise CommandLineError(
            f"{option} {path}: of another architecture: {name} is {has} there and {needs} in "
            f"{type(model).__name__}; give the --model and its options that it was trained with"
        )
