"""The table of runs: what each was, what it came to, and why."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from lit_sphere.report.comparison import Comparison, short_name, short_number, validation_name
from lit_sphere.report.runs import Run


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: Its heading.
        title: The heading in full.
        numeric: Whether it holds numbers, or None; text otherwise.
        percent: Whether its numbers are fractions.
        kind: ``words`` for sentences, ``name`` for long names.
    """

    name: str
    title: str
    numeric: bool = True
    percent: bool = False
    kind: str = ""

    def text(self, value: Any) -> str:
        """Write a value.

        Args:
            value: Of this column.

        Returns:
            Empty for None.
        """
        if value is None:
            return ""
        if not self.numeric:
            return str(value)
        if not math.isfinite(value):
            return str(value)
        return f"{100 * value:.2f} %" if self.percent else short_number(value)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: Its columns.
        rows: A value for each column.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]

    def csv(self) -> str:
        """Give it as CSV: numbers with all their digits.

        Returns:
            The text, with a header.
        """
        text = StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow([column.title for column in self.columns])
        table.writerows(self.rows)
        return text.getvalue()


def table_of(comparison: Comparison) -> Table:
    """Make the table of runs; columns of which nothing is known are left out.

    Args:
        comparison: The runs.

    Returns:
        A row for each run, in the order of points.
    """
    val = validation_name(comparison.runs)
    columns = [
        Column("run", "run", numeric=False, kind="name"),
        *(_option_column(comparison, name) for name in comparison.varies),
        Column("seed", "seed"),
        Column("loss", "loss that was trained with", numeric=False),
        Column("regime", "regime", numeric=False),
        Column("train loss", "train loss of the last epoch"),
        Column("best train loss", "lowest train loss of all epochs"),
        Column("train error", "train error of the last epoch", percent=True),
        Column(f"{val} error", f"{val} error of the last epoch", percent=True),
        Column(f"best {val} error", f"lowest {val} error of all epochs", percent=True),
        Column("g̃", "effective gradient norm, mean of the last epoch"),
        Column("epochs", "epochs trained"),
        Column("state", "state", numeric=False),
        Column("evidence", "why this regime", numeric=False, kind="words"),
    ]
    rows = [_row(comparison, run) for point in comparison.points for run in point.runs]
    one_loss = len(comparison.losses) == 1
    kept = [
        i
        for i, column in enumerate(columns)
        if any(row[i] not in (None, "") for row in rows) and not (column.name == "loss" and one_loss)
    ]
    return Table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _option_column(comparison: Comparison, name: str) -> Column:
    values = [point.values[name] for point in comparison.points]
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return Column(short_name(name), name, numeric=numeric or name == comparison.axis)


def _row(comparison: Comparison, run: Run) -> list[Any]:
    verdict = run.verdict
    options = [comparison.value(run, name) for name in comparison.varies]
    return [
        run.name,
        *options,
        run.seed,
        run.loss_name,
        verdict and verdict.regime,
        run.final("train/loss"),
        run.best("train/loss"),
        run.final("train/error"),
        run.final("val/error"),
        run.best("val/error"),
        run.final("effective_grad_norm/total"),
        run.epochs,
        state_of(run),
        verdict and verdict.evidence,
    ]


def state_of(run: Run) -> str:
    """Say whether a run came to its end, as far as its folder tells.

    Args:
        run: The run.

    Returns:
        ``finished``; ``20 of 40 epochs``; ``…, loss not finite``; or ``diverged in epoch 20``, where that was no error.
    """
    final = run.final("train/loss")
    is_finite = final is None or math.isfinite(final)
    if not is_finite and run.option("non_finite") == "finding":
        return f"diverged in epoch {run.epochs - 1}"
    planned = run.option("trainer.max_epochs")
    if isinstance(planned, int) and 0 <= run.epochs < planned:
        state = f"{run.epochs} of {planned} epochs"
    else:
        state = "finished"
    return state if is_finite else f"{state}, loss not finite"
