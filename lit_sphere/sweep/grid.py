"""What varies in a sweep: options and their values, and the points that these make."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

PAPER_ELRS = tuple(f"{digit}e-{power}" if power else str(digit) for power in range(7, -1, -1) for digit in (1, 2, 5))
"""The papers' grid of effective learning rates, {1, 2, 5}·10^-k for k = 0…7, the smallest first."""

_MOST_VALUES = 10_000
_LONGEST_NAME = 60  # of a value in a folder's name


class SweepError(Exception):
    """A sweep that cannot be made as it is asked for; the message is one line with the remedy."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: Name of its folder, such as ``elr=0.001,seed=0``.
        values: Value by name of what varies; all points of a sweep have the same names.
        arguments: What its command line has beyond that of all runs.
    """

    name: str
    values: Mapping[str, str]
    arguments: tuple[str, ...]


def read_over(text: str) -> tuple[str, tuple[str, ...]]:
    """Read what stands after ``--over``.

    Args:
        text: ``OPTION=VALUES``; values with commas between them, ``paper``, ``paper:LOW:HIGH``, ``log:LOW:HIGH:N`` or
            ``lin:LOW:HIGH:N``.

    Returns:
        The option without dashes, and its values.

    Raises:
        SweepError: If it has another form.

    Examples:
        >>> read_over("model.elr=1e-4,1e-3")
        ('model.elr', ('1e-4', '1e-3'))
        >>> read_over("model.elr=log:1e-4:1e-2:3")[1]
        ('0.0001', '0.001', '0.01')
    """
    option, equals, values = text.partition("=")
    option = option.strip().removeprefix("--")
    if not equals or not option or not values.strip():
        raise SweepError(f"--over {text}: expected OPTION=VALUES, e.g. model.elr=1e-4,1e-3")
    return option, read_values(values, f"--over {option}")


def read_values(given: Any, where: str, distinct: bool = True) -> tuple[str, ...]:
    """Read the values of an option.

    Args:
        given: Text as after ``--over OPTION=``, or a list out of a YAML file.
        where: Where they stand, for the message.
        distinct: Refuse a value that is there twice; of options that change together only one need differ.

    Returns:
        The values as one would type them.

    Raises:
        SweepError: If there are none, one is twice among them, or a range is none.
    """
    if isinstance(given, str):
        in_range = _of_range(given.strip(), where)
        values = tuple(each.strip() for each in _split(given)) if in_range is None else in_range
    else:
        values = tuple(map(as_typed, given if isinstance(given, Sequence) else [given]))
    if not values or not all(values):
        raise SweepError(f"{where}: a value is missing in {given!r}")
    seen: dict[str, str] = {}
    for value in values:
        before = seen.setdefault(canonical(value), value)
        if distinct and before is not value:
            raise SweepError(f"{where}: the same value twice, {before} and {value}; leave one out")
    return values


def as_typed(value: Any) -> str:
    """Write a value out of a YAML file as one would type it.

    Args:
        value: A scalar, list or mapping.

    Returns:
        Its text; of lists and mappings in YAML's flow style.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (list, dict)):
        import yaml  # not for `lit-sphere --help`

        text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
        return text.strip()
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def canonical(value: str) -> str:
    """Give one text for all ways to write a number.

    Args:
        value: As typed.

    Returns:
        ``0.001`` for ``1e-3``; other texts as they are.
    """
    try:
        number = float(value)
    except ValueError:
        return value
    return f"{number:.12g}" if math.isfinite(number) else value


def points_of(over: Mapping[str, Sequence[str]], zipped: Mapping[str, Sequence[str]], seeds: int) -> list[Point]:
    """Lay out the grid: the product of all options in ``over``, of the rows of ``zipped``, and of the seeds.

    Args:
        over: Values by option.
        zipped: Values by option, all of one length, that change together.
        seeds: Number of seeds; 0 leaves them as they are.

    Returns:
        The points, the last option changing first.

    Raises:
        SweepError: If nothing varies, an option is twice among them, or two points are the same.
    """
    both = over.keys() & zipped.keys()
    if both:
        raise SweepError(f"{min(both)} stands under over and under zip; leave one out")
    if len({len(values) for values in zipped.values()}) > 1:
        lengths = ", ".join(f"{option} has {len(values)}" for option, values in zipped.items())
        raise SweepError(f"zip: the options change together, so each needs as many values: {lengths}")
    axes: list[list[dict[str, str]]] = [[{option: value} for value in values] for option, values in over.items()]
    if zipped:
        axes.append([dict(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True)])
    if not axes and not seeds:
        raise SweepError("nothing varies: give --over OPTION=VALUES, or --seeds N")
    count = math.prod(len(axis) for axis in axes) * (seeds or 1)
    if count > _MOST_VALUES:
        raise SweepError(f"{count} points are more than {_MOST_VALUES}; give fewer values")
    seed_axis: list[int | None] = [*range(seeds)] or [None]
    short = _short_names([*over, *zipped])
    points = []
    for parts, seed in product(product(*axes), seed_axis):
        options = {option: value for part in parts for option, value in part.items()}
        points.append(_point(options, short, seed))
    _check_unlike(points)
    return points


def _point(options: dict[str, str], short: Mapping[str, str], seed: int | None) -> Point:
    arguments = [f"--{option}={value}" for option, value in options.items()]
    values = dict(options)
    parts = [f"{short[option]}={_in_name(value)}" for option, value in options.items()]
    if seed is not None:
        arguments += [f"--seed_everything={seed}", f"--data.seed={seed}"]
        values["seed"] = str(seed)
        parts.append(f"seed={seed}")
    return Point(",".join(parts), values, tuple(arguments))


def _check_unlike(points: list[Point]) -> None:
    seen: dict[str, Point] = {}
    for point in points:
        before = seen.setdefault(point.name, point)
        if before is not point:
            raise SweepError(f"the point {point.name} is twice in the grid; leave one out")


def _short_names(options: Sequence[str]) -> dict[str, str]:
    """The last part of each option's name, where that tells them apart."""
    short = {option: option.rpartition(".")[2] for option in options}
    taken = [*short.values(), "seed"]
    return {option: name if taken.count(name) == 1 else option for option, name in short.items()}


def _in_name(value: str) -> str:
    """A value as part of a folder's name."""
    text = canonical(value)
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", text.rpartition("/")[2]).strip("_")
    if plain == text and len(plain) <= _LONGEST_NAME:
        return plain
    return f"{plain[: _LONGEST_NAME - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _of_range(text: str, where: str) -> tuple[str, ...] | None:
    kind, *parts = text.split(":")
    if kind == "paper" and len(parts) in (0, 2):
        low, high = (_number(part, where) for part in parts) if parts else (0.0, math.inf)
        inside = tuple(elr for elr in PAPER_ELRS if low <= float(elr) <= high * (1 + 1e-9))
        if not inside:
            raise SweepError(f"{where}: {text}: the papers' grid, 1e-7 to 5, has no ELR from {low:g} to {high:g}")
        return inside
    if kind not in ("log", "lin"):
        return None
    if len(parts) != 3 or not parts[2].isdecimal() or not 2 <= int(parts[2]) <= _MOST_VALUES:
        raise SweepError(f"{where}: {text} is no range; expected {kind}:LOW:HIGH:N with at least 2 values N")
    low, high, last = _number(parts[0], where), _number(parts[1], where), int(parts[2]) - 1
    if not low < high or (kind == "log" and low <= 0):
        raise SweepError(f"{where}: {text}: LOW must be below HIGH{', and positive' if kind == 'log' else ''}")
    if kind == "log":
        return tuple(f"{low * (high / low) ** (i / last):.6g}" for i in range(last + 1))
    return tuple(f"{low + (high - low) * i / last:.6g}" for i in range(last + 1))


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SweepError(f"{where}: {text} is no number")
    return number


def _split(text: str) -> list[str]:
    """Split at commas that stand outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        if char == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return parts
