"""The metrics.csv of a run that may be killed at any moment, and may go on."""

import csv
import io
import math
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_sphere.cli.errors import CommandLineError
from lit_sphere.files import write_whole


class History(NamedTuple):
    """Rows of a run that goes on in its folder.

    Attributes:
        keys: Columns.
        rows: Cells as they stood in the file, of the steps before the checkpoint.
    """

    keys: list[str]
    rows: list[list[str]]


class MetricsFile(CSVLogger):
    """Lightning's logger, with a file that is whole after a kill: new columns replace it, they do not rewrite it.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent, name=folder.name, version="")

    @property
    def experiment(self) -> Any:
        """The writer; made when it is first needed."""
        if self._experiment is None:
            self._experiment = _Writer(log_dir=self.log_dir)
        return self._experiment

    def go_on(self, history: History) -> None:
        """Begin with the rows of the run so far.

        Args:
            history: From :func:`read_history`.
        """
        keys = sorted(history.keys)
        order = [history.keys.index(key) for key in keys]
        rows = ([row[i] for i in order] for row in history.rows)
        _replace(self.experiment.metrics_file_path, keys, rows)
        self.experiment.metrics_keys = keys


class _Writer(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Lightning would remove the history."""

    def save(self) -> None:
        """Append the rows; where that fails, the file stays as it was."""
        if not self.metrics:
            return
        keys = sorted({*self.metrics_keys, *chain.from_iterable(self.metrics)})
        if keys != self.metrics_keys:
            _replace(self.metrics_file_path, keys, self._rows_so_far(keys))
            self.metrics_keys = keys
        text = memoryview(_text([row.get(key, "") for key in keys] for row in self.metrics))
        with open(self.metrics_file_path, "ab", buffering=0) as file:  # nothing that closing it would write
            size = file.tell()
            try:
                while text:
                    text = text[file.write(text) :]
            except OSError as error:
                file.truncate(size)
                error.filename = self.metrics_file_path
                raise
        self.metrics = []

    def _rows_so_far(self, keys: list[str]) -> Iterable[list[str]]:
        try:
            with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
                return [[row.get(key, "") for key in keys] for row in csv.DictReader(file)]
        except FileNotFoundError:
            return []


def _replace(path: str, keys: list[str], rows: Iterable[list[str]]) -> None:
    write_whole(path, lambda file: file.write(_text([keys, *rows])))


def _text(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def read_history(path: Path, steps: int) -> History | None:
    """Read the metrics.csv of a run that goes on in its folder.

    Args:
        path: The file.
        steps: Optimizer steps in the checkpoint; later rows will be logged anew.

    Returns:
        Rows up to there; None if there is none. A last row that a full disk or a kill cut off is left out, and said.

    Raises:
        CommandLineError: If there is something else in the file.
    """
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise CommandLineError(_foreign(path, 1 + error.object[: error.start].count(b"\n"), "is no text")) from error
    whole, newline, cut = text.rpartition("\n")
    try:
        keys, *rows = list(csv.reader(io.StringIO(whole + newline))) or [[]]
    except csv.Error as error:
        raise CommandLineError(_foreign(path, 1, str(error))) from error
    if not keys:
        return None
    if "step" not in keys or len(set(keys)) < len(keys):
        raise CommandLineError(_foreign(path, 1, "names no columns, or not 'step' among them"))
    for number, row in enumerate(rows, 2):
        if len(row) != len(keys) or not all(_is_number(cell) for cell in row):
            raise CommandLineError(_foreign(path, number, "is no row of numbers under the names in line 1"))
        if not math.isfinite(_float(row[keys.index("step")])):
            raise CommandLineError(_foreign(path, number, "has no step"))
    if cut:
        rank_zero_info(f"{path}: its last row was cut off, and is left out")
    step = keys.index("step")
    return History(keys, [row for row in rows if float(row[step]) < steps])


def _float(cell: str) -> float:
    return float(cell or "nan")


def _is_number(cell: str) -> bool:
    try:
        _float(cell)
    except ValueError:
        return False
    return True


def _foreign(path: Path, line: int, what: str) -> str:
    return f"{path}: line {line} {what}; move the file away to go on without the history in it, or choose another --run"


def set_aside(path: Path, steps: int) -> None:
    """Keep a file under the name ``…-before-step-N``, too; what was kept before stays.

    Args:
        path: The file; stays where it is until it is replaced.
        steps: Optimizer steps in the checkpoint that the run goes on from.
    """
    name, number = f"{path.stem}-before-step-{steps}", 1
    aside = path.with_stem(name)
    while aside.exists():
        number += 1
        aside = path.with_stem(f"{name}-{number}")
    try:
        os.link(path, aside)
    except OSError:  # a file system without hard links
        write_whole(aside, lambda file: file.write(path.read_bytes()))
