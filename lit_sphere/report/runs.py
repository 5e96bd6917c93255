"""Runs as they lie on the disk: their options, their curves, and the regime that these tell."""

import csv
import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress, count, islice
from operator import lt
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_sphere.analysis.epoch_rows import (
    ERROR_KEYS,
    LOSS_KEYS,
    Row,
    default_converged_loss,
    regime_of_rows,
    rows_to_judge,
)
from lit_sphere.analysis.regimes import RegimeVerdict
from lit_sphere.report.metrics_csv import Series
from lit_sphere.report.wandb_files import read_wandb

METRICS, CONFIG = "metrics.csv", "config.yaml"
SEEDS = ("seed_everything", "data.seed", "data.order_seed", "model.head_seed", "model.optimizer.seed")
"""Options that make other runs of one point: their values are no difference between settings."""

BASELINES = ("RandomWalk", "GradientAscent")
"""Optimizers on the sphere that are no descent: runs to hold others against."""

_CLASSES = {"Digits": 10, "CIFAR10": 10, "CIFAR100": 100}
_QUANTILES = ("min", "median", "max", "step_max")  # and q25: no groups
_FOREIGN = {f"{part}_{name}": f"{part}/{name}" for part in ("train", "val") for name in ("loss", "error")}
_ROWS = 20_000  # that are read at once
_LARGEST_CONFIG = 2**20  # bytes
_GREATEST = 1e15  # epoch or step
_DEEPEST = 8  # folders below what was named


class Columns(Mapping[str, Series]):
    """The columns of a metrics.csv, a series each; kept as plain arrays, since there may be hundreds of runs.

    Values may be NaN or infinite here, as they were logged.

    Args:
        epochs: Epoch of each row.
        steps: Step of each row.
        cells: Of each key the numbers of the rows that have a value, and the values.
    """

    def __init__(
        self,
        epochs: Sequence[float],
        steps: Sequence[float],
        cells: Mapping[str, tuple["array[int]", "array[float]"]],
    ) -> None:
        self._epochs, self._steps, self._cells = epochs, steps, cells

    def __getitem__(self, key: str) -> Series:
        """Give the series of a key, in the order in which it was logged."""
        rows, values = self._cells[key]
        return Series([self._epochs[i] for i in rows], [self._steps[i] for i in rows], values.tolist())

    def __iter__(self) -> Iterator[str]:
        """Go over the keys."""
        return iter(self._cells)

    def __len__(self) -> int:
        """Count the keys."""
        return len(self._cells)


@dataclass(frozen=True)
class Run:
    """A run that was trained.

    Attributes:
        folder: Where it lies.
        config: Its config.yaml; empty where there is none.
        series: What it logged, by key; values may be NaN.
        label: Its name, if not that of its folder.
        fault: Why only a part of it could be read, in words; empty if all was.
    """

    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    series: Mapping[str, Series] = field(repr=False)
    label: str = ""
    fault: str = ""

    def option(self, name: str) -> Any:
        """Look an option up by its name on the command line.

        Args:
            name: Such as ``model.elr``, ``trainer.max_epochs`` or ``model.optimizer.lr``; ``model`` alone is the short
                name of the class.

        Returns:
            Its value; None where it is not set, or not known.
        """
        value: Any = self.config
        for part in name.split("."):
            value = _child(value, part)
        return _short(value["class_path"]) if isinstance(value, Mapping) and "class_path" in value else value

    def callback(self, name: str) -> Mapping[str, Any] | None:
        """Look up a callback among those of the trainer.

        Args:
            name: Short name of its class.

        Returns:
            The options of the first one; None if there is none.
        """
        listed = self.option("trainer.callbacks")
        for each in listed if isinstance(listed, list) else [listed]:
            if isinstance(each, Mapping) and _short(each.get("class_path", "")) == name:
                options = each.get("init_args")
                return options if isinstance(options, Mapping) else {}
        return None

    @property
    def name(self) -> str:
        """Name of its folder, or of the W&B run."""
        return self.label or self.folder.name or self.folder.resolve().name

    @property
    def elr(self) -> float | None:
        """Effective learning rate that it began with; None in the whole space."""
        return _number(self.option("model.elr"))

    @property
    def lr(self) -> float | None:
        """Learning rate of its optimizer in the whole space; None on the sphere."""
        given = self.option("model.lr")
        return _number(self.option("model.optimizer.lr") if given is None else given)

    @property
    def seed(self) -> int | None:
        """Seed of everything, if there is one."""
        seed = self.option("seed_everything")
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    @property
    def seeds(self) -> tuple[str, ...]:
        """All its seeds, as text, in the order of :data:`SEEDS`."""
        return tuple(str(self.option(name)) for name in SEEDS)

    @property
    def loss_name(self) -> str:
        """``cross_entropy`` or ``mse``."""
        return str(self.option("model.loss") or "cross_entropy")

    @property
    def network(self) -> str:
        """Short name of the model's class; empty if not known."""
        return _text(self.option("model"))

    @property
    def data(self) -> str:
        """Short name of the data's class; empty if not known."""
        return _text(self.option("data"))

    @property
    def num_classes(self) -> int | None:
        """Number of classes, if known."""
        asked = (self.callback("RegimeMonitor") or {}).get("num_classes")
        for classes in (asked, _CLASSES.get(self.data), self.option("model.num_classes")):
            if isinstance(classes, int) and classes >= 2:
                return classes
        return None

    def key(self, names: Sequence[str]) -> str | None:
        """Choose the first of several keys that was logged.

        Args:
            names: Such as ``("train/loss", "train_loss")``.

        Returns:
            The key, or None.
        """
        return next((name for name in names if name in self.series), None)

    def final(self, key: str) -> float | None:
        """Give the last value of a key.

        Args:
            key: Such as ``train/loss``.

        Returns:
            The value, which may be NaN; None if it was never logged.
        """
        return self.series[key].values[-1] if key in self.series else None

    def best(self, key: str) -> float | None:
        """Give the smallest value of a key.

        Args:
            key: Such as ``val/error``.

        Returns:
            The smallest finite value; None if there is none.
        """
        values = self.series[key].values if key in self.series else []
        return min((value for value in values if math.isfinite(value)), default=None)

    @cached_property
    def groups(self) -> list[str]:
        """Names of the groups whose quantities were logged, such as ``convs.0.weight``."""
        named = [key.partition("/")[2] for key in self.series if key.startswith("ess/")]
        return [name for name in named if name != "total" and name not in _QUANTILES and not _is_quantile(name)]

    @cached_property
    def epochs(self) -> int:
        """Number of epochs whose train loss was logged, counted from the run's beginning."""
        key = self.key(LOSS_KEYS)
        last = [epoch for epoch in self.series[key].epochs if math.isfinite(epoch)] if key else []
        return int(max(last)) + 1 if last else 0

    @cached_property
    def switched_at(self) -> list[int]:
        """First epoch after each change of the dynamics in the middle of the run (``switch/…``)."""
        found = {
            int(epoch)
            for key in self.series
            if key.startswith("switch/")
            for epoch in self.series[key].epochs
            if math.isfinite(epoch)
        }
        return sorted(found)

    @cached_property
    def on_sphere(self) -> bool:
        """Whether it began on the sphere."""
        return self.elr is not None or self.option("model.optimizer") in ("SphereSGD", *BASELINES)

    @cached_property
    def rows(self) -> list[Row]:
        """An epoch each, as callbacks see them while a run trains: what its regime is judged by."""
        loss = self.key(LOSS_KEYS)
        if loss is None:
            return []
        losses, ends = _by_epoch(self.series[loss]), dict(zip(*self.series[loss][:2], strict=True))
        key = self.key(ERROR_KEYS)
        errors = _by_epoch(self.series[key]) if key else {}
        ess_keys = [f"ess/{name}" for name in ("total", *self.groups)] if "ess/total" in self.series else []
        columns = [_by_epoch(self.series[name]) for name in ess_keys]
        before = _steps_before(ends)
        rows: list[Row] = []
        for epoch, value in losses.items():
            ess = [column.get(epoch) for column in columns]
            known = ess if ess and ess[0] is not None else None
            rows.append(
                {"epoch": int(epoch), "step": int(before), "loss": value, "error": errors.get(epoch), "ess": known}
            )
            before = ends[epoch] + 1
        return rows

    @cached_property
    def verdict(self) -> RegimeVerdict | None:
        """The regime since the last switch, by the rule and from the numbers by which it was named as it trained.

        None in the whole space without a ``RegimeMonitor``, as there a run prints none either, and without a curve.
        """
        monitor = self.callback("RegimeMonitor")
        if not (self.on_sphere or monitor is not None or "regime" in self.series):
            return None
        rows = rows_to_judge(self.rows, self.switched_at[-1] if self.switched_at else 0)
        if not rows:
            return None
        converged = (monitor or {}).get("converged_loss")
        if converged is None:
            converged = default_converged_loss(self.loss_name, self.num_classes)
        # That of momentum and adaptive steps is one of noise, and logged with its distance: regimes are not told by it.
        equal_steps = "equilibrium/ess" in self.series and "equilibrium/distance" not in self.series
        try:
            return regime_of_rows(rows, self.num_classes, converged, equal_steps)
        except ValueError as error:
            return RegimeVerdict("undecided", f"the curves tell none: {error}")


class Runs(NamedTuple):
    """What was found below some paths.

    Attributes:
        runs: The runs, in the order of the paths and of their names.
        left_out: A line for each folder or file that could not be read, or not to its end: which, and why.
    """

    runs: list[Run]
    left_out: list[str]


def read_runs(
    paths: Iterable[str | Path], progress: Callable[[Sequence[Path]], Iterable[Path]] = lambda folders: folders
) -> Runs:
    """Read runs.

    Args:
        paths: Folders of runs, or folders in which runs lie, at any depth; a run's metrics.csv, config.yaml or
            run-ID.wandb stands for its folder.
        progress: Goes over the folders, and may show how far it has come.

    Returns:
        The runs, and what was left out. A path that does not exist is among these, too.
    """
    found = Runs([], [])
    for folder in progress(run_folders(paths, found.left_out)):
        try:
            run = read_run(folder)
        except (OSError, ValueError) as error:
            found.left_out.append(f"{folder}: {_reason(error)}")
            continue
        found.runs.append(run)
        if run.fault:
            found.left_out.append(f"{folder}: its file of W&B {run.fault}; the rest of it is left out")
    return found


def run_folders(paths: Iterable[str | Path], left_out: list[str]) -> list[Path]:
    """Find the folders of runs, each once.

    Args:
        paths: As for :func:`read_runs`.
        left_out: Gets a line for each path without a run.

    Returns:
        The folders.
    """
    folders: dict[Path, Path] = {}
    for given in map(Path, paths):
        if not given.exists():
            left_out.append(f"{given}: there is no such folder")
            continue
        if not given.is_dir() and given.name not in (METRICS, CONFIG) and given.suffix != ".wandb":
            left_out.append(f"{given}: is no file of a run; name its folder, or its {METRICS}")
            continue
        below = sorted(_search(given if given.is_dir() else given.parent, 0), key=_natural)
        if not below:
            left_out.append(f"{given}: holds no run: no {METRICS}, no {CONFIG} and no run-ID.wandb")
        for folder in below:
            real = folder.resolve()
            if real not in folders or folder.absolute() == real:  # its own name rather than that of a link
                folders[real] = folder
    return list(folders.values())


def read_run(folder: Path) -> Run:
    """Read one run.

    Args:
        folder: With metrics.csv and config.yaml; without the latter, nothing is known of its options. Or of a W&B run.

    Returns:
        The run.

    Raises:
        ValueError: If there is no metrics.csv, or one of the files is no such file.
    """
    if not _is_of_a_fit(folder):
        of_wandb = read_wandb(folder)
        return Run(folder, of_wandb.config, of_wandb.series, of_wandb.name, of_wandb.fault)
    if not (folder / METRICS).exists():
        raise ValueError(f"no {METRICS}: it has not begun, or ended before it logged anything")
    return Run(folder, read_options(folder / CONFIG), read_columns(folder / METRICS))


def read_options(path: Path) -> dict[str, Any]:
    """Read a config.yaml.

    Args:
        path: The file.

    Returns:
        Its options; none if there is no file.

    Raises:
        ValueError: If it is no mapping, or larger than any config.
    """
    if not path.exists():
        return {}
    if path.stat().st_size > _LARGEST_CONFIG:
        raise ValueError(f"{path.name} is larger than any config")
    try:
        loaded = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{path.name}{where}: is no YAML") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path.name} holds no options")
    return loaded


def read_columns(path: Path) -> Columns:
    """Read a metrics.csv: of an old or a foreign run too, cut off, or with NaN.

    Args:
        path: The file.

    Returns:
        Its columns, ``train_loss`` as ``train/loss``. Rows that a kill cut off are left out.

    Raises:
        ValueError: If it is no file of numbers under names, ``step`` or ``epoch`` among them, or one of these is beyond
            all counting.
    """
    epochs, steps = array("d"), array("d")
    cells: dict[str, tuple[array[int], array[float]]] = {}
    rows = 0
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if "step" not in header and "epoch" not in header:
                raise ValueError(f"{path.name} names no column 'step' or 'epoch' in its first line")
            while part := list(islice(reader, _ROWS)):  # column by column, but of a huge file only a part at once
                whole = [row for row in part if len(row) == len(header)]
                for key, column in zip(header, zip(*whole, strict=True), strict=False):
                    numbers, values = cells.setdefault(key, (array("q"), array("d")))
                    numbers.extend(compress(count(rows), column))
                    try:
                        values.extend(map(float, filter(None, column)))
                    except ValueError as error:
                        raise ValueError(f"{path.name}, column {key} holds no numbers: {error}") from error
                rows += len(whole)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is no text") from error
    except csv.Error as error:
        raise ValueError(f"{path.name}, line {reader.line_num}: {error}") from error
    for name, axis in (("epoch", epochs), ("step", steps)):
        axis.extend([math.nan] * rows)
        for number, value in zip(*cells.pop(name, ((), ())), strict=True):
            if abs(value) > _GREATEST:
                raise ValueError(f"{path.name}, column {name} holds {value:g}, which is no {name}")
            axis[number] = value
    known = {key: each for key, each in cells.items() if each[0]}
    for other, ours in _FOREIGN.items():  # of projects of others: one idea, one key
        if other in known and ours not in known:
            known[ours] = known.pop(other)
    return Columns(epochs, steps, known)


def _search(folder: Path, depth: int) -> Iterator[Path]:
    """Folders of runs: nothing is looked for inside of one, so that its W&B folder is no second run."""
    if _is_of_a_fit(folder) or any(folder.glob("run-*.wandb")):
        yield folder
        return
    if depth == _DEEPEST:
        return
    try:
        inside = [each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")]
    except OSError:  # one that may not be looked into holds no run that could be read
        return
    for each in inside:
        yield from _search(each, depth + 1)


def _is_of_a_fit(folder: Path) -> bool:
    return (folder / METRICS).exists() or (folder / CONFIG).exists()


def _natural(path: Path) -> list[tuple[str, int]]:
    """Sorts seed=2 before seed=10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", str(path))]


def _child(value: Any, name: str) -> Any:
    """An option of a mapping, or of the class that it describes."""
    if not isinstance(value, Mapping):
        return None
    if name in value:
        return value[name]
    inner = value.get("init_args")
    return inner.get(name) if isinstance(inner, Mapping) else None


def _short(class_path: Any) -> str:
    return str(class_path).rpartition(".")[2]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)  # YAML takes 1e-3 for text
    except (TypeError, ValueError):
        return None


def _is_quantile(name: str) -> bool:
    return name.startswith("q") and name[1:].replace(".", "").isdigit()


def _by_epoch(series: Series) -> dict[float, float]:
    """Mean of the values of each epoch, in the order of epochs."""
    epochs = series.epochs
    if all(map(lt, epochs, epochs[1:])):  # as a rule there is one value, and a NaN is never less
        return dict(zip(epochs, series.values, strict=True)) if epochs and math.isfinite(epochs[0]) else {}
    values: dict[float, list[float]] = {}
    for epoch, value in zip(epochs, series.values, strict=True):
        if math.isfinite(epoch):
            values.setdefault(epoch, []).append(value)
    return {epoch: sum(each) / len(each) for epoch, each in sorted(values.items())}


def _steps_before(ends: Mapping[float, float]) -> float:
    """Steps before the first epoch: none, but in a run that went on from another folder's checkpoint."""
    (first, end), *later = ends.items()
    return end + 1 - (later[0][1] - end) if first > 0 and later else 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())
