"""What stands on a command line, before and after the parser has read it."""

from importlib import import_module
from typing import Any

import yaml
from jsonargparse import Namespace

from lit_sphere.cli.base_config import look_ahead
from lit_sphere.cli.config_names import read_config
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.shipped_classes import LINKED
from lit_sphere.cli.yaml_text import check_yaml


def check_values(args: list[str]) -> None:
    """Refuse values that repeat or nest without end, or name an option twice; the parser reads each as YAML.

    Args:
        args: What is typed after the subcommand.

    Raises:
        CommandLineError: Names the option.
    """  # noqa: DOC502
    for option, value in zip(["", *args], args, strict=False):
        name, equals, rest = value.partition("=")
        name, text = (name, rest) if equals and name.startswith("--") else (option, value)
        if not any(sign in text for sign in "[{&\n") or name in ("-c", "--config"):
            continue
        try:
            check_yaml(text, name or "the command line")
        except yaml.YAMLError:
            continue  # text that is no YAML may be a value


def check_linked(args: list[str], config: Namespace) -> None:
    """Refuse options of the model that the data set, where they say otherwise than the data.

    Args:
        args: What is typed after the subcommand.
        config: What the parser made of it.

    Raises:
        CommandLineError: Names the option, and both values.
    """
    given: dict[str, Any] = {}
    for text in look_ahead(args).configs:
        model = read_config(text).get("model")
        options = model.get("init_args", model) if isinstance(model, dict) else None
        given |= {name: options[name] for name in LINKED if name in options} if isinstance(options, dict) else {}
    for option, value in zip(args, [*args[1:], ""], strict=False):
        name, equals, rest = option.partition("=")
        key = name.removeprefix("--model.").removeprefix("init_args.")
        if key in LINKED and name.startswith("--model."):
            given[key] = yaml.safe_load(rest if equals else value)
    if not given or config.get("data") is None:
        return
    module, _, data = config.data.class_path.rpartition(".")
    data_class = getattr(import_module(module), data)
    for name, value in given.items():
        of_data = getattr(data_class, name, None)
        if value is not None and isinstance(of_data, int) and value != of_data:
            raise CommandLineError(f"--model.{name} {value}: is set by the data, {data} has {of_data}; leave it out")
