"""The table of a sweep: what has become of each point."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lit_sphere.files import write_whole
from lit_sphere.sweep.grid import Point, SweepError

STATES_FILE = "states.csv"
"""Name of the table in a sweep's folder."""

State = Literal["waiting", "submitted", "running", "done", "failed", "interrupted"]

_AFTER_VALUES = ("state", "epoch", "epochs", "loss", "regime", "seconds", "line", "job")


@dataclass
class PointState:
    """What has become of a point.

    Attributes:
        point: The point.
        folder: Of its run.
        state: Where it stands.
        epochs: Epochs that it is to train; None without a limit.
        epoch: Epochs that it has trained; None if not known.
        loss: Train loss of the last epoch; None if not known.
        regime: Regime up to now; empty if not known.
        seconds: Time that was spent on it.
        line: Last line of a run that did not end well.
        job: Id in a queue; empty on this machine.
        seconds_left: Estimate, while it runs; None if not known.
    """

    point: Point
    folder: Path
    state: State = "waiting"
    epochs: int | None = None
    epoch: int | None = None
    loss: float | None = None
    regime: str = ""
    seconds: float = 0.0
    line: str = ""
    job: str = ""
    seconds_left: float | None = None


def write_states(path: Path, states: Iterable[PointState]) -> None:
    """Write the table.

    Args:
        path: The CSV file.
        states: Rows.
    """
    rows: list[list[str]] = []
    for each in states:
        if not rows:
            rows.append(["point", *each.point.values, *_AFTER_VALUES])
        numbers = [each.state, _cell(each.epoch), _cell(each.epochs), _cell(each.loss), each.regime]
        ends = [f"{each.seconds:.1f}", each.line, each.job]
        rows.append([each.point.name, *each.point.values.values(), *numbers, *ends])
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def read_states(path: Path, points: Iterable[Point]) -> list[PointState]:
    """Read the table of a sweep that goes on, and lay it over the points.

    Args:
        path: The CSV file; need not exist.
        points: All points of the sweep.

    Returns:
        A row for each point; ``waiting`` where the table has none.

    Raises:
        SweepError: If the file is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = {row.get("point", ""): row for row in csv.DictReader(file)}
        return [_state(point, path.parent / point.name, rows.get(point.name, {})) for point in points]
    except FileNotFoundError:
        return [PointState(point, path.parent / point.name) for point in points]
    except (ValueError, csv.Error) as error:
        found = f"{path}: is no table of a sweep ({error})"
        raise SweepError(f"{found}; move it away: what the runs came to is in their folders") from error


def _state(point: Point, folder: Path, row: Mapping[str, str | None]) -> PointState:
    cells = {name: row.get(name) or "" for name in _AFTER_VALUES}
    state = cells["state"] or "waiting"
    known: dict[str, State] = {each: each for each in get_args(State)}
    if state not in known:
        raise ValueError(f"{point.name} has the state {state!r}")
    return PointState(
        point,
        folder,
        known[state],
        int(cells["epochs"]) if cells["epochs"] else None,
        int(cells["epoch"]) if cells["epoch"] else None,
        float(cells["loss"]) if cells["loss"] else None,
        cells["regime"],
        float(cells["seconds"] or 0),
        cells["line"],
        cells["job"],
    )


def _cell(value: float | None) -> str:
    return "" if value is None else repr(value)
