"""The metrics.csv of a run as one series for each key."""

import csv
import math
from pathlib import Path
from typing import NamedTuple


class Series(NamedTuple):
    """Values of one key, in the order in which they were logged.

    Attributes:
        epochs: Epoch of each value, counted from 0.
        steps: Optimizer steps taken before each value was logged.
        values: Finite values.
    """

    epochs: list[float]
    steps: list[float]
    values: list[float]


def read_metrics(path: str | Path) -> dict[str, Series]:
    """Read a file written by Lightning's ``CSVLogger``.

    Args:
        path: The file; columns ``epoch`` and ``step`` and one for each key, cells empty where nothing was
            logged.

    Returns:
        A series for each key that has a finite value.

    Raises:
        ValueError: If the file has no header, or a cell that is no number.
    """
    series: dict[str, Series] = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not reader.fieldnames or "step" not in reader.fieldnames:
            raise ValueError(f"{path} is no metrics.csv: it has no column 'step'")
        for row in reader:
            if None in row.values():  # cut by a full disk, or by a kill
                continue
            step, epoch = float(row["step"]), float(row.get("epoch") or "nan")
            for key, cell in row.items():
                if key in ("step", "epoch") or not cell:
                    continue
                value = float(cell)
                if math.isfinite(value):
                    one = series.setdefault(key, Series([], [], []))
                    one.epochs.append(epoch)
                    one.steps.append(step)
                    one.values.append(value)
    return series
