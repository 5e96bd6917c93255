"""Picture of a run's sharpness: against the epoch, against the train loss, and beside its curvature."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lit_sphere.report.style import BLUE, GREEN, GREY, RED, house_style, plain_ticks, whole_numbers

_LEGEND = 2.2  # inches beside the curvature
_ONLINE, _PASS, _FISHER, _PATH = BLUE, RED, GREEN, GREY

Row = Mapping[str, float]


def draw_sharpness(rows: Sequence[Row], title: str = "") -> Figure:
    """Draw sharpness against epoch and against train loss (TR fig. 1), log axes; and curvature where there is any.

    Args:
        rows: One for each epoch, with ``epoch`` and any of ``sharpness/online`` (with ``loss``, the mean over the
            training steps), ``sharpness/train_pass`` (with ``train_pass/loss``), ``sharpness/fisher_trace``,
            ``sharpness/hessian_trace`` and ``sharpness/top_eigenvalue`` (with ``sharpness/edge_of_stability``).
        title: Line above the panels.

    Returns:
        The figure; ``savefig`` writes it.

    Raises:
        ValueError: If there is nothing to draw.
    """
    keys = {key for row in rows for key in row}
    panels = [
        (_epochs, {"sharpness/online", "sharpness/train_pass"}),
        (_path, {"loss", "train_pass/loss"}),
        (_curvature, {"sharpness/fisher_trace", "sharpness/hessian_trace"}),
    ]
    drawn = [draw for draw, needs in panels if needs & keys]
    if not drawn:
        raise ValueError("no sharpness to draw: no row has any of the keys sharpness/…")
    width = 4.2 * len(drawn) + _LEGEND * (_curvature in drawn)
    with house_style():
        figure = Figure(figsize=(width, 3.4), layout="constrained")
        for i, draw in enumerate(drawn):
            axes = figure.add_subplot(1, len(drawn), i + 1)
            draw(axes, rows)
            plain_ticks(axes.xaxis)
            plain_ticks(axes.yaxis)
        figure.suptitle(title, fontsize=10)
    return figure


def _epochs(axes: Axes, rows: Sequence[Row]) -> None:
    x, y = _series(rows, "sharpness/online")
    if x:
        axes.plot(x, y, color=_ONLINE, linewidth=1.4, marker="" if len(x) > 1 else "o", label="training steps")
    x, y = _series(rows, "sharpness/train_pass")
    if x:
        axes.plot(x, y, color=_PASS, linewidth=0, marker="D", markersize=3.5, label="pass at fixed weights")
    axes.set(title="sharpness: mean of ρ‖∇‖ over mini-batches", xlabel="epoch", yscale="log")
    axes.legend()


def _path(axes: Axes, rows: Sequence[Row]) -> None:
    kinds = {"sharpness/online": "loss", "sharpness/train_pass": "train_pass/loss"}
    scale = Normalize(rows[0]["epoch"], max(rows[-1]["epoch"], rows[0]["epoch"] + 1))
    for key, loss in kinds.items():
        points = [(row[loss], row[key], row["epoch"]) for row in rows if row.get(loss, 0) > 0 and row.get(key, 0) > 0]
        if not points:
            continue
        x, y, epoch = zip(*points, strict=True)
        if key == "sharpness/online":
            axes.plot(x, y, color=_PATH, linewidth=0.6, alpha=0.4)
            axes.scatter(x, y, c=epoch, s=10, norm=scale, zorder=2)
        else:
            axes.scatter(x, y, c=epoch, s=22, norm=scale, zorder=3, marker="D", edgecolors=_PASS, linewidths=0.9)
    axes.set(title="path of the run", xlabel="train loss", xscale="log", yscale="log", ylabel="sharpness")
    axes.figure.colorbar(ScalarMappable(scale), ax=axes, label="epoch", ticks=whole_numbers())


def _curvature(axes: Axes, rows: Sequence[Row]) -> None:
    kinds = {
        "fisher_trace": ("Fisher trace", _FISHER),
        "hessian_trace": ("Hessian trace", _ONLINE),
        "top_eigenvalue": ("Top Hessian eigenvalue", _PASS),
    }
    sizes = []
    for kind, (name, color) in kinds.items():
        x, y = _series(rows, f"sharpness/{kind}")
        if x:
            label = f"{name},\nlast {_short(y[-1])}"
            axes.plot(x, y, color=color, linewidth=1.2, marker="o", markersize=3.5, label=label)
            sizes += y
    if min(sizes, default=1) > 0:
        axes.set_yscale("log")
    else:
        axes.axhline(0, color=_PATH, linewidth=0.6)
        # A power of ten, else the ticks around 0 lie on each other.
        decade = math.floor(math.log10(max(1e-9, *map(abs, sizes))))
        axes.set_yscale("symlog", linthresh=10.0 ** (decade - 2))
        axes.margins(y=0.1)
    x, y = _series(rows, "sharpness/edge_of_stability")
    if x:
        label = f"Edge of stability 2/η̃, last {_short(y[-1])}:\nabove it gradient descent\nleaves any minimum"
        line: dict[str, Any] = {"color": _PASS, "linewidth": 1.2, "linestyle": "--", "label": label}
        if len(x) > 1:
            axes.plot(x, y, **line)
        else:
            axes.axhline(y[0], **line)
    axes.set(title="curvature on the unit sphere (× ρ²)", xlabel="epoch")
    # Beside the panel: inside it would lie on one of the curves.
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), labelspacing=0.8)


def _short(value: float) -> str:
    return f"{float(f'{value:.3g}'):g}"


def _series(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Epochs and finite values of one key."""
    points = [(row["epoch"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
    return [x for x, _ in points], [y for _, y in points]
