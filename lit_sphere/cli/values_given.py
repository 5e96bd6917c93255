"""What stands on a command line, before and after the parser has read it."""

import inspect
from contextlib import suppress
from importlib import import_module
from typing import Any, Literal, get_origin, get_type_hints

import yaml
from jsonargparse import Namespace

from lit_sphere.cli.base_config import look_ahead
from lit_sphere.cli.config_names import check_sections, read_config
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.shipped_classes import LINKED
from lit_sphere.cli.yaml_text import check_yaml


def check_values(args: list[str]) -> None:
    """Refuse values that repeat or nest without end, or name an option twice; the parser reads each as YAML.

    Args:
        args: What is typed after the subcommand.

    Raises:
        CommandLineError: Names the option.
    """
    for option, value in zip(["", *args], args, strict=False):
        name, equals, rest = value.partition("=")
        name, text = (name, rest) if equals and name.startswith("--") else (option, value)
        if not text and name.startswith("--"):
            raise CommandLineError(f"{name}: is followed by an empty text; give a value, or leave it out")
        if not any(sign in text for sign in "[{&\n") or name in ("-c", "--config"):
            continue
        try:
            check_yaml(text, name or "the command line")
            content = yaml.safe_load(text) if name in ("--model", "--data") else None
        except yaml.YAMLError:
            continue  # text that is no YAML may be a value
        if isinstance(content, dict):
            check_sections({name.removeprefix("--"): content}, "the command line")


def check_no_null(config: Namespace) -> None:
    """Refuse null where a class wants a value: the parser takes it for an option that is not given.

    Args:
        config: What the parser made of a command line.

    Raises:
        CommandLineError: Names the option.
    """
    trainer = config.get("trainer") or {}
    callbacks = trainer.get("callbacks") or []
    given = [("--model", config.get("model")), ("--data", config.get("data"))]
    given += [("--trainer.callbacks", each) for each in (callbacks if isinstance(callbacks, list) else [callbacks])]
    for option, section in given:
        options = section.get("init_args") if isinstance(section, Namespace) else None
        wants = _types(section.class_path) if options else {}
        for name, value in vars(options).items() if options else ():
            if value is None and not _takes_none(wants.get(name, Any)):
                raise CommandLineError(f"{option}.{name} null: needs a value; leave it out for its default")


def _types(path: str) -> dict[str, Any]:
    """Types of the options of a class, and of those above it."""
    module, _, name = path.rpartition(".")
    found: dict[str, Any] = {}
    for owner in reversed(getattr(import_module(module), name).__mro__):
        if "__init__" in vars(owner) and inspect.isfunction(owner.__init__):
            with suppress(NameError, TypeError):  # names that are imported for type checkers only
                found |= get_type_hints(owner.__init__)
    return found


def _takes_none(annotation: Any) -> bool:
    if annotation in (bool, int, float, str):
        return False
    return get_origin(annotation) is not Literal


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
