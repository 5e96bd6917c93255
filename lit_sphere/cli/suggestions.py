"""Did you mean …: the nearest of the names that there are."""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

_UNKNOWN = re.compile(r"unrecognized arguments: (.*)", re.DOTALL)
_UNKNOWN_KEY = re.compile(r"does not accept option '([^']+)'$")


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.75) -> str:
    """Suggest the nearest name.

    Args:
        name: What was typed.
        known: What there is, of other classes too.
        cutoff: How alike the two must be, in [0, 1]; less of short names.

    Returns:
        What to append to a message; nothing if no name is near.

    Examples:
        >>> did_you_mean("--model.widht", ["--model.width", "--model.elr"])
        '; did you mean --model.width?'
    """
    # What two options have in common before their last dot says nothing of their last names.
    section, dot, last = name.rpartition(".")
    known = [each for each in known if each != name]
    beside = [each.rpartition(".")[2] for each in known if dot and each.rpartition(".")[0] == section]
    nearest = get_close_matches(last, beside, n=1, cutoff=0.7)
    if nearest:
        return f"; did you mean {section}.{nearest[0]}?"
    nearest = [] if beside else get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def option_strings(parser: argparse.ArgumentParser) -> list[str]:
    """List the options of a parser.

    Args:
        parser: Any.

    Returns:
        Such as ``--trainer.max_epochs``.
    """
    return [option for action in parser._actions for option in action.option_strings if option[:2] == "--"]


@contextmanager
def suggesting(options: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Name the nearest option where a parser knows none of the name that is typed, or written in a config.

    Args:
        options: Called for the options that there are, such as ``--trainer.max_epochs``.

    Yields:
        Nothing; around the parsing.

    Raises:
        ArgumentError: As the parser, with a suggestion in its message.
    """
    try:
        yield
    except argparse.ArgumentError as error:
        error.message = _with_suggestion(error.message, options)
        raise


def _with_suggestion(message: str, options: Callable[[], Iterable[str]]) -> str:
    unknown, key = _UNKNOWN.search(message), _UNKNOWN_KEY.search(message)
    if unknown:
        first = next((word for word in unknown[1].split() if word.startswith("-")), None)
        if first is None:
            return f"{unknown[1].split()[0]!r} stands alone: an option, --…, comes before each value"
        first = first.partition("=")[0]
        return f"there is no option {first}{did_you_mean(first, options()) or '; --help lists them'}"
    if key:
        known = {option.removeprefix("--"): option for option in options()}
        return message + did_you_mean(key[1], [*known, *(name.partition(".")[0] for name in known)])
    return message
