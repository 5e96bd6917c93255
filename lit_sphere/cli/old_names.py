"""Options that had another name in configs and commands of earlier versions."""

import re
from typing import Any

import yaml
from jsonargparse import Namespace

from lit_sphere.cli.errors import CommandLineError
from lit_sphere.optim.granularity import present_value

_OLD = ("spheres", "per")
_WORDS = "joint|group|tensor|filter"
_IN_TEXT = re.compile(rf"\b(?:{'|'.join(_OLD)})([\"']?\s*:\s*[\"']?)({_WORDS})\b")
_OPTION = re.compile(rf"(--[\w.]+\.)(?:{'|'.join(_OLD)})(?:=(.*))?")


def rename_in_text(text: str) -> str:
    """Give the options in a config's text their present names; ``per: epoch`` and ``per: step`` stay.

    Args:
        text: YAML or JSON.

    Returns:
        The text.

    Raises:
        CommandLineError: If an option is given under both names.

    Examples:
        >>> rename_in_text("{spheres: group, per: epoch}")
        '{granularity: tensor, per: epoch}'
    """  # noqa: DOC502
    if not _IN_TEXT.search(text):
        return text
    _check_one_name(yaml.safe_load(text))
    return _IN_TEXT.sub(lambda match: f"granularity{match[1]}{present_value(match[2])}", text)


def rename_arguments(args: list[str]) -> list[str]:
    """Give the options of a command line their present names.

    Args:
        args: As typed.

    Returns:
        They, renamed where needed.

    Raises:
        CommandLineError: If an option is given under both names.

    Examples:
        >>> rename_arguments(["--model.spheres", "group", "--monitor.per=step"])
        ['--model.granularity', 'tensor', '--monitor.per=step']
    """
    renamed = [rename_in_text(arg) if "{" in arg else arg for arg in args]
    for i, arg in enumerate(args):
        match = _OPTION.fullmatch(arg)
        value = (match[2] or (*args, "")[i + 1]) if match else ""
        if match is None or not re.fullmatch(_WORDS, value):
            continue
        new = f"{match[1]}granularity"
        if any(other.partition("=")[0] == new for other in args):
            raise CommandLineError(
                f"{arg.partition('=')[0]} is the old name of {new}, and both are given; leave it out"
            )
        if match[2]:
            renamed[i] = f"{new}={present_value(value)}"
        else:
            renamed[i : i + 2] = [new, present_value(value)]
    return renamed


def drop_old_names(config: Any) -> None:
    """Leave out the old names that are not used, in place.

    Args:
        config: A parsed configuration, or a part of it.
    """
    if isinstance(config, list):
        for each in config:
            drop_old_names(each)
    elif isinstance(config, (Namespace, dict)):
        content = vars(config) if isinstance(config, Namespace) else config
        for name in _OLD:
            if content.get(name, "") is None:
                del content[name]
        for each in content.values():
            drop_old_names(each)


def _check_one_name(content: Any) -> None:
    if isinstance(content, dict):
        both = [name for name in _OLD if "granularity" in content and content.get(name) in _WORDS.split("|")]
        if both:
            raise CommandLineError(f"{both[0]} is the old name of granularity, and both are given; leave it out")
    for each in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        _check_one_name(each)
