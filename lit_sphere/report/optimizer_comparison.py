"""Picture and table of how far the weights of other optimizers get from a run's."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_sphere.report.style import BLUE, GREEN, GREY, RED, house_style

_COLOURS = (RED, BLUE, GREEN, "#8e7cc3", "#e69138", "#45818e", "#a64d79", "#7f6000")
_RUN, _ALIGNED = GREY, 1e-3

Row = Mapping[str, float]


def draw_optimizer_comparison(
    rows: Sequence[Row], names: Sequence[str], run: str = "the run", title: str = ""
) -> Figure:
    """Draw the cosine distance from the run, 1 − cos, against steps on a log axis (SP §5); and train losses.

    Args:
        rows: One for each measurement: ``step``, and for each name ``NAME_distance_max`` and
            ``NAME_distance_median`` (over the groups) and, where there are losses, ``NAME_loss`` and ``run_loss``.
            ``start_distance_…`` says how far the run has turned itself; without that, closeness would mean nothing.
        names: Of the optimizers, one colour each.
        run: What the run is called in the legend.
        title: Line above the panels.

    Returns:
        The figure; ``savefig`` writes it.

    Raises:
        ValueError: If there is no row.
    """
    if not rows:
        raise ValueError("nothing to draw: no row was measured")
    losses = any(f"{name}_loss" in row for row in rows for name in names)
    with house_style():
        figure = Figure(figsize=(9.2 if losses else 4.8, 3.6), layout="constrained")
        _distances(figure.add_subplot(1, 2 if losses else 1, 1), rows, names)
        if losses:
            _losses(figure.add_subplot(1, 2, 2), rows, names, run)
        figure.suptitle(title, fontsize=10)
    return figure


def _distances(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    curves = {"start": GREY, **dict(zip(names, _COLOURS * len(names), strict=False))}
    for name, color in curves.items():
        worst, median = (_series(rows, f"{name}_distance_{kind}", above=0) for kind in ("max", "median"))
        marker = "." if len(worst[0]) < 3 else ""
        text = "the run's own start" if name == "start" else name
        if not worst[0]:  # nothing to draw on a log axis
            text += ": the same weights"
        axes.plot(*worst, color=color, linewidth=1.4, marker=marker, label=text)
        axes.plot(*median, color=color, linewidth=1.0, linestyle="--", marker=marker)
    axes.set_yscale("log")
    axes.axhline(_ALIGNED, color=GREY, linewidth=0.8, linestyle=":")
    axes.annotate("cos 0.999", (0, _ALIGNED), xycoords=("axes fraction", "data"), va="bottom", fontsize=7, color=GREY)
    axes.set(title="1 − cos with the run: worst, median (dashed)", xlabel="steps compared")
    axes.margins(y=0.1)
    axes.legend()


def _losses(axes: Axes, rows: Sequence[Row], names: Sequence[str], run: str) -> None:
    x, y = _series(rows, "run_loss")
    if x:
        axes.plot(x, y, color=_RUN, linewidth=3, alpha=0.5, label=run)
    for name, color in zip(names, _COLOURS * len(names), strict=False):
        x, y = _series(rows, f"{name}_loss")
        axes.plot(x, y, color=color, linewidth=1.1, marker="." if len(x) < 3 else "", label=name)
    axes.set(title="train loss, mean since the last point", xlabel="steps compared")
    if all(row.get(f"{name}_loss", 1) > 0 for row in rows for name in (*names, "run")):
        axes.set_yscale("log")
    axes.legend()


def _series(rows: Sequence[Row], key: str, above: float = float("-inf")) -> tuple[list[float], list[float]]:
    """Steps and values of one key."""
    points = [(row["step"], row[key]) for row in rows if row.get(key, above) > above]
    return [x for x, _ in points], [y for _, y in points]


def write_optimizer_comparison(rows: Sequence[Row], file: Path) -> None:
    """Write the rows as CSV.

    Args:
        rows: What was measured.
        file: The file; its folder is made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)
