"""Runs side by side: what varies between them, which are the same but for their seeds, and the answer in words."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from lit_sphere.analysis.borders import Border, find_borders
from lit_sphere.analysis.regimes import REGIME_NUMBERS, Regime
from lit_sphere.report.runs import SEEDS, Run

_NO_DIFFERENCE = {  # where a run lies, what it logs and on what it runs
    "run", "wandb", "project", "ckpt_path", "ckpt_weights", "weights_only", "monitor", "checkpoint", "config",
    "non_finite",
}  # fmt: skip
_OF_TRAINER = {"precision", "callbacks", "gradient_clip_val", "accumulate_grad_batches"}
_SHORT = {
    "model.elr": "ELR",
    "model.lr": "LR",
    "model.optimizer.lr": "LR",
    "model.optimizer.weight_decay": "WD",
    "model": "network",
    "data": "data",
    "trainer.callbacks": "callbacks",
}
_FIRST = ("model.elr", "model.optimizer.lr", "model.lr")  # what the x-axis is, if it varies


@dataclass(frozen=True)
class Point:
    """Runs that are the same but for their seeds.

    Attributes:
        values: What varies, in the order of :attr:`Comparison.varies`.
        runs: At least one.
    """

    values: Mapping[str, Any]
    runs: Sequence[Run]


@dataclass(frozen=True)
class Family:
    """Points that differ in one number only: the effective learning rate, as a rule.

    Attributes:
        name: What tells it from other families; empty if there is one only.
        points: By that number, ascending.
    """

    name: str
    points: Sequence[tuple[float, Point]]

    @cached_property
    def borders(self) -> list[Border]:
        """The borders of the regimes."""
        return find_borders({at: regimes_of(point) for at, point in self.points if regimes_of(point)})


class Comparison:
    """Runs that are compared.

    Args:
        runs: The runs; none where only tables are reported on.

    Attributes:
        runs: The runs.
        varies: Options that differ between them, but for seeds; the one of the x-axis first.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)
        flat = [_flat(run) for run in self.runs]
        names = dict.fromkeys(name for each in flat for name in each)
        differ = [name for name in names if len({_key(each.get(name)) for each in flat}) > 1]
        differ = [name for name in differ if not any(name.startswith(f"{other}.") for other in differ)]
        self._flat = dict(zip(map(id, self.runs), flat, strict=True))
        self.varies = sorted(differ, key=lambda name: (name != self._axis(differ), differ.index(name)))

    def _axis(self, names: Sequence[str]) -> str | None:
        """The number that most of them differ in, effective learning rates before all others."""
        numeric = [name for name in names if self._is_axis(name)]
        known = [name for name in _FIRST if name in numeric]
        counts = {name: len({_key(each.get(name)) for each in self._flat.values()}) for name in numeric}
        return known[0] if known else max(numeric, key=lambda name: counts[name], default=None)

    def _is_axis(self, name: str) -> bool:
        return all(_as_number(each.get(name)) is not None for each in self._flat.values())

    @cached_property
    def axis(self) -> str | None:
        """The option of the x-axis: the number that varies, or where nothing does, the (effective) learning rate."""
        if self.varies and self._is_axis(self.varies[0]):
            return self.varies[0]
        return next((name for name in _FIRST if self._is_axis(name)), None)

    @property
    def axis_name(self) -> str:
        """Its short name."""
        return short_name(self.axis) if self.axis else "run"

    def at(self, run: Run) -> float | None:
        """Give the number of a run on the x-axis."""
        return _as_number(self._flat[id(run)].get(self.axis)) if self.axis else None

    def value(self, run: Run, option: str) -> Any:
        """Give an option of a run; a number where it is one on the x-axis, though YAML took it for text."""
        value = self._flat[id(run)].get(option)
        if option == self.axis:
            return _as_number(value)
        return value if value is None or isinstance(value, (int, float, str)) else _plain(value)

    @cached_property
    def points(self) -> list[Point]:
        """Runs by what varies; seeds of one point together, by the number on the x-axis."""
        found: dict[str, Point] = {}
        for run in self.runs:
            values = {name: self._flat[id(run)].get(name) for name in self.varies}
            point = found.setdefault(_key(values), Point(values, []))
            list.append(point.runs, run)  # type: ignore[arg-type]
        return sorted(found.values(), key=lambda point: [_order(point.values[name]) for name in self.varies])

    @cached_property
    def families(self) -> list[Family]:
        """Points by what varies beside the number on the x-axis."""
        found: dict[str, list[tuple[float, Point]]] = {}
        for point in self.points:
            at = self.at(point.runs[0])
            if at is not None:
                name = ", ".join(shown(name, value) for name, value in point.values.items() if name != self.axis)
                found.setdefault(name, []).append((at, point))
        return [Family(name, points) for name, points in found.items()]

    def label(self, point: Point) -> str:
        """Name a point by what varies."""
        if not point.values:
            return point.runs[0].name if len(point.runs) == 1 else "all runs"
        return ", ".join(shown(name, value) for name, value in point.values.items())

    @cached_property
    def seeds(self) -> int:
        """Largest number of runs of one point."""
        return max((len(point.runs) for point in self.points), default=0)

    @cached_property
    def losses(self) -> list[str]:
        """Names of the losses that were trained with: numbers of one are not to be compared with those of another."""
        return sorted({run.loss_name for run in self.runs})

    def what(self) -> str:
        """Say in one line what is compared."""
        if not self.runs:
            return "no runs: what the toy of the theory shows"
        count = f"{len(self.runs)} runs" if len(self.runs) > 1 else "1 run"
        networks = " and ".join(sorted({run.network for run in self.runs} - {""}))
        data = " and ".join(sorted({run.data for run in self.runs} - {""}))
        epochs = sorted({run.epochs for run in self.runs})
        span = (
            f"{epochs[0]} to {epochs[-1]} epochs" if len(epochs) > 1 else f"{epochs[0]} epoch{'s' * (epochs[0] != 1)}"
        )
        parts = [count, f"{networks} on {data}" if networks and data else networks or data, span]
        for name in self.varies:
            values = {_key(point.values[name]) for point in self.points}
            parts.append(f"{len(values)} values of {short_name(name)}")
        if self.seeds > 1:
            parts.append(f"up to {repeats(max((point.runs for point in self.points), key=len))}")
        return " · ".join(part for part in parts if part)


def repeats(runs: Sequence[Run]) -> str:
    """Say how many runs of one point there are: as seeds, if each has its own.

    Args:
        runs: Of one point.

    Returns:
        Such as ``3 seeds``, or ``3 runs`` of one seed.
    """
    return f"{len(runs)} {'seeds' if len({run.seeds for run in runs}) == len(runs) else 'runs alike'}"


def regimes_of(point: Point) -> list[Regime]:
    """Give the regimes of a point's runs, of those that have one."""
    return [run.verdict.regime for run in point.runs if run.verdict is not None]


def short_name(option: str) -> str:
    """Name an option as figures do.

    Args:
        option: Such as ``model.elr``.

    Returns:
        Such as ``ELR``.
    """
    return _SHORT.get(option, option.rpartition(".")[2].replace("_", " "))


def shown(option: str, value: Any) -> str:
    """Write an option and its value.

    Args:
        option: Such as ``model.elr``.
        value: Its value.

    Returns:
        Such as ``ELR 0.001``.
    """
    number = _as_number(value)
    text = short_number(number) if number is not None and not isinstance(value, bool) else _plain(value)
    return text if option in ("model", "data") else f"{short_name(option)} {text}"


def short_number(value: float) -> str:
    """Write a number as one would on paper.

    Args:
        value: Any.

    Returns:
        At most four digits.

    Example:
        >>> short_number(2.5e-05), short_number(0.002), short_number(1234.56)
        ('2.5e-5', '0.002', '1235')
    """
    text = f"{value:.4g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{mantissa}e{int(exponent)}"


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, default=str, separators=(", ", ": "))
    return text if len(text) <= 60 else f"{text[:59]}…"


def _flat(run: Run) -> dict[str, Any]:
    """Options by their names on the command line; classes by their short names."""
    flat: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping) and "class_path" in value:
            flat[name] = str(value["class_path"]).rpartition(".")[2]
            walk(value.get("init_args") or {}, name)
        elif isinstance(value, Mapping) and name.count(".") < 6:
            for key, inner in value.items():
                walk(inner, f"{name}.{key}" if name else str(key))
        else:
            flat[name] = value

    for key, value in run.config.items():
        if key == "trainer" and isinstance(value, Mapping):
            walk({name: value[name] for name in value if name in _OF_TRAINER}, "trainer")
        elif key not in _NO_DIFFERENCE:
            walk(value, str(key))
    return {name: value for name, value in flat.items() if name not in SEEDS}


def _key(value: Any) -> str:
    number = _as_number(value)
    return repr(number) if number is not None else json.dumps(value, sort_keys=True, default=str)


def _order(value: Any) -> tuple[float, str]:
    """Numbers by their size, before words by their letters."""
    number = _as_number(value)
    return (math.inf, _plain(value)) if number is None else (number, "")


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def answer(comparison: Comparison) -> list[str]:
    """Say in words what the comparison came to: regimes and their borders, and the best test error.

    Args:
        comparison: The runs.

    Returns:
        A sentence each.
    """
    if not comparison.runs:
        return []
    sentences = [sentence for family in comparison.families for sentence in _of_family(comparison, family)]
    for loss, data in sorted({(run.loss_name, run.data) for run in comparison.runs}):
        sentences += _best_error(comparison, loss, data)
    return sentences or (["The runs logged neither a regime nor an error."] if comparison.runs else [])


def _of_family(comparison: Comparison, family: Family) -> list[str]:
    named = {at: regimes_of(point) for at, point in family.points if regimes_of(point)}
    if not named:
        return []
    head = f"{family.name[0].upper()}{family.name[1:]}: " if family.name and len(comparison.families) > 1 else ""
    name = comparison.axis_name
    if family.borders:
        parts = _regimes_in_order(name, family.borders)
        gaps = [_between(border) for border in family.borders]
        sentences = [f"{head}{'; '.join(parts)}", *gaps]
    else:
        seen = sorted({REGIME_NUMBERS[regime] for each in named.values() for regime in each} - {0})
        if not seen:
            return [f"{head or 'No '}{'no ' if head else ''}regime could be named: {_why(family)}."]
        where = {number: [at for at, each in named.items() if _REGIMES[number] in each] for number in seen}
        regimes = "; ".join(f"{numbered(_REGIMES[number])} at {_span(name, at)}" for number, at in where.items())
        sentences = [f"{head}{regimes}; no border was seen"]
    told = {at for border in family.borders for at in border.between}
    open_ = [at for at, each in named.items() if set(each) == {"undecided"} and at not in told]
    if open_:
        sentences.append(f"undecided at {_span(name, open_)}")
    return [" ".join(f"{text[0].upper()}{text[1:]}." for text in sentences)]


def _regimes_in_order(name: str, borders: Sequence[Border]) -> list[str]:
    parts = [f"{numbered(borders[0].below)} up to {name} {short_number(borders[0].last)}"]
    for i, border in enumerate(borders):
        first, last = border.first, borders[i + 1].last if i + 1 < len(borders) else None
        span = f"from {short_number(first)}" if last is None else f"from {short_number(first)} to {short_number(last)}"
        parts.append(f"{numbered(border.above)} {f'at {short_number(first)}' if first == last else span}")
    return parts


_REGIMES = {number: regime for regime, number in REGIME_NUMBERS.items()}


def _between(border: Border) -> str:
    edges = f"between {short_number(border.last)} and {short_number(border.first)}"
    if not border.between:
        return f"{edges} nothing was run"
    parts = [f"{short_number(at)} {' or '.join(dict.fromkeys(each))}" for at, each in border.between.items()]
    return f"{edges}: {', '.join(parts)}"


def numbered(regime: Regime) -> str:
    """Name a regime with TR's number.

    Args:
        regime: The regime.

    Returns:
        Such as ``regime 1 (convergence)``.
    """
    return f"regime {REGIME_NUMBERS[regime]} ({regime})" if REGIME_NUMBERS[regime] else regime


def _span(name: str, values: Sequence[float]) -> str:
    if len(values) > 4:
        return f"{name} {short_number(min(values))} to {short_number(max(values))}"
    return f"{name} {', '.join(map(short_number, sorted(values)))}"


def _why(family: Family) -> str:
    evidence = [run.verdict.evidence for _, point in family.points for run in point.runs if run.verdict is not None]
    first = evidence[0].split("; ")[0]
    return first if len({each.split("; ")[0] for each in evidence}) == 1 else f"{first}, and others"


def _best_error(comparison: Comparison, loss: str, data: str) -> list[str]:
    """The lowest error at the end, as a mean over seeds; never the lowest of all epochs, which is luck."""
    runs = [run for run in comparison.runs if (run.loss_name, run.data) == (loss, data)]
    found: list[tuple[float, Point, str]] = []
    for point in comparison.points:
        ends = [(run, final) for run in point.runs if run in runs if (final := run.final("val/error")) is not None]
        finals = [final for _, final in ends]
        if finals and all(map(math.isfinite, finals)):
            spread = (
                f" (mean of {repeats([run for run, _ in ends])}, {_percent(min(finals))} to {_percent(max(finals))})"
            )
            found.append((fmean(finals), point, spread if len(finals) > 1 else ""))
    if not found:
        return []
    mean, point, seeds = min(found, key=lambda each: each[0])
    with_loss = f" with {LOSS_NAMES.get(loss, loss)}" if len(comparison.losses) > 1 else ""
    on_data = f" on {data}" if len({run.data for run in comparison.runs}) > 1 else ""
    where = f" at {comparison.label(point)}" if len(comparison.runs) > 1 else ""
    return [f"Lowest {validation_name(runs)} error at the end{on_data}{with_loss}: {_percent(mean)}{seeds}{where}."]


LOSS_NAMES = {"cross_entropy": "cross-entropy", "mse": "mean squared error"}


def validation_name(runs: Iterable[Run]) -> str:
    """Say what ``val/…`` was measured on.

    Args:
        runs: The runs.

    Returns:
        ``test`` where nothing was held out of the train set, ``held-out train`` where something was, in all runs;
        ``validation`` otherwise.
    """
    sizes = {run.option("data.val_size") for run in runs}
    if sizes == {0}:
        return "test"
    return "held-out train" if sizes and all(isinstance(size, int) and size > 0 for size in sizes) else "validation"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %" if fraction < 0.1 else f"{100 * fraction:.1f} %"
