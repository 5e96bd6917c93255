"""What lies under the configs and options that are typed: elr.yaml, or the run of a checkpoint."""

import argparse
import json
from collections import ChainMap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentError, Namespace

from lit_sphere.cli.checkpoints import CKPT_WEIGHTS, read_checkpoint
from lit_sphere.cli.config_names import default_config, read_config
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.rewordings import in_one_line
from lit_sphere.cli.shipped_classes import LINKED


class Typed(NamedTuple):
    """The few options of a command line that decide what lies under all others.

    Args:
        configs: What stands after each ``--config``.
        ckpt_path: Checkpoint that a run goes on from.
        ckpt_weights: Checkpoint at whose weights a new run begins.
        model: Class of the model.
        wants_help: Of the command, or of one class.
    """

    configs: list[str]
    ckpt_path: str | None
    ckpt_weights: str | None
    model: str | None
    wants_help: bool


def look_ahead(args: list[str]) -> Typed:
    """Find the options that must be known before a command line can be parsed: the rest depends on what lies below.

    Args:
        args: What is typed after the subcommand.

    Returns:
        These options, the last one of each.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-c", "--config", action="append", default=[])
    for option in ("--ckpt_path", CKPT_WEIGHTS, "--model"):
        parser.add_argument(option)
    typed, others = parser.parse_known_args(args)
    options = [other.partition("=")[0] for other in others if other.startswith("--")]
    wants_help = typed.help or any(option.endswith(".help") for option in options)
    return Typed(typed.config, typed.ckpt_path, typed.ckpt_weights, typed.model, wants_help)


def arguments_below(command: str, args: list[str]) -> list[str]:
    """Give the arguments that come before those that are typed, so that everything typed wins.

    Without ``--config``, ``fit`` takes elr.yaml, and a checkpoint its run's config.yaml (or, where that is missing,
    its own hyperparameters); the weights of another run come with its model and data.

    Args:
        command: ``fit``, ``validate`` or ``test``.
        args: What is typed after it.

    Returns:
        A ``--config``, or nothing.

    Raises:
        CommandLineError: If a config or a checkpoint cannot be read, or the options contradict each other.
    """  # noqa: DOC502
    typed = look_ahead(args)
    if typed.wants_help:
        return []
    configs = [read_config(config) for config in typed.configs]
    weights = _weights(command, typed, configs)
    if weights is not None:
        base = _config_of_weights(weights, bool(configs))
    else:
        base = base_config(typed.ckpt_path, bool(configs))
    if command == "fit" and base is None:
        _check_model_named(typed, configs)
    return ["--config", base] if base is not None else []


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
    for linked in LINKED:
        hparams.pop(linked, None)
    return json.dumps({"model": model})


def parse_over_base(
    parse: Callable[[list[str]], Namespace], first: list[str], base: list[str], typed: list[str], checkpoint: str | None
) -> Namespace:
    """Parse what is typed over what lies below; of a mistake down there, say where it stands.

    Args:
        parse: Of the parser.
        first: Arguments that come first.
        base: A ``--config``, or nothing.
        typed: What is typed after ``first``.
        checkpoint: Where the base comes from, if it is a checkpoint's.

    Returns:
        What is parsed.

    Raises:
        CommandLineError: If the base does not parse by itself, which a user has not typed.
        ArgumentError: If what is typed does not.
    """
    try:
        return parse([*first, *base, *typed])
    except (ArgumentError, CommandLineError):
        if base and checkpoint is not None:
            _check_base(parse, [*first, *base], checkpoint)
        raise


def _check_base(parse: Callable[[list[str]], Namespace], args: list[str], checkpoint: str) -> None:
    try:
        parse(args)
    except (ArgumentError, CommandLineError) as error:
        beside = Path(checkpoint).parent.parent / "config.yaml"
        where = beside if beside.is_file() else f"{checkpoint}, in its hyper_parameters"
        said = str(error) if isinstance(error, CommandLineError) else in_one_line(str(error))
        reason = (
            said.removeprefix(f"--config {args[-1]}: ").removeprefix("--config {…}: ").partition(", got {")[0][:250]
        )
        raise CommandLineError(f"{where}: {reason}; correct it, or give another --config") from error


def _config_of_weights(path: str, has_config: bool) -> str | None:
    """Model and data of the checkpoint's run, or all of its options where the user typed no ``--config``."""
    read_checkpoint(path, CKPT_WEIGHTS)
    beside = Path(path).parent.parent / "config.yaml"
    if not beside.is_file():
        return base_config(path, has_config)
    config = read_config(str(beside))
    kept = ("model", "data") if has_config else tuple(config.keys() - {"ckpt_path", "ckpt_weights", "run"})
    return json.dumps({name: config[name] for name in kept if name in config})


def _weights(command: str, typed: Typed, configs: list[dict[str, Any]]) -> str | None:
    """The checkpoint at whose weights a new run begins; None if there is none, or a run goes on."""
    if command != "fit":
        if typed.ckpt_weights is not None:
            raise CommandLineError(f"{CKPT_WEIGHTS} begins a new run, which {command} does not; give --ckpt_path")
        return None
    last: ChainMap[str, Any] = ChainMap(*reversed(configs))
    if typed.ckpt_weights is not None and (typed.ckpt_path is not None or last.get("ckpt_path")):
        raise CommandLineError(
            f"both --ckpt_path and {CKPT_WEIGHTS} are given: --ckpt_path goes on with a run, {CKPT_WEIGHTS} begins a "
            "new one at its weights; leave one out"
        )
    if typed.ckpt_weights is not None or typed.ckpt_path is not None:
        return typed.ckpt_weights
    return None if last.get("ckpt_path") else last.get("ckpt_weights")


def _check_model_named(typed: Typed, configs: list[dict[str, Any]]) -> None:
    """Refuse a config that is made for the model of another run, without that run."""
    models = [config["model"] for config in configs if isinstance(config.get("model"), dict)]
    if models and typed.model is None and not any("class_path" in model for model in models):
        raise CommandLineError(
            f"the configs give options of the model, but no model: begin at another run's, {CKPT_WEIGHTS} "
            "runs/NAME/checkpoints/last.ckpt, or name one, --model SIConvNet"
        )
