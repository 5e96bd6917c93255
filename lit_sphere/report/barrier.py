"""Loss and error along a path between two points in weight space: a picture and a table."""

import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_sphere.analysis.interpolation import Interpolation, chord
from lit_sphere.report.style import BLUE, GREEN, RED, house_style

_COLOURS = {"train": BLUE, "val": RED, "test": RED}


def draw_interpolation(path: Interpolation, title: str = "", ends: tuple[str, str] = ("start", "end")) -> Figure:
    """Draw loss and, where there is one, error along a path, with the chords that barriers are measured from.

    Args:
        path: What was measured.
        title: Line above the panels.
        ends: Names of the end points.

    Returns:
        The figure; ``savefig`` writes it.
    """
    scales = {"loss": 1.0, "error": 100.0}
    drawn = [what for what in scales if any(name.endswith(f"_{what}") for name in path.curves)]
    with house_style():
        figure = Figure(figsize=(max(5.6, 4.2 * len(drawn)), 3.6), layout="constrained")
        for axes, what in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
            scale = scales[what]
            for name in path.curves:
                if name.endswith(f"_{what}"):
                    _curve(axes, path, name, scale)
            axes.set(title=what + (" [%]" if what == "error" else ""))
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1], [ends[0], "¼", "½", "¾", ends[1]])
            axes.set_ylim(bottom=0)
            axes.legend()
        kind = "great circle" if path.great_circle else "segment, rescaled to the sphere"
        figure.supxlabel(f"along the {kind}; cosine of the end points {path.separation.cosine:.3f}", fontsize=9)
        figure.suptitle(title, fontsize=10)
    return figure


def _curve(axes: Axes, path: Interpolation, name: str, scale: float) -> None:
    data = name.rpartition("_")[0]
    color = _COLOURS.get(data, GREEN)
    values = [scale * value for value in path.curves[name]]
    height, depth = scale * path.barrier(name), scale * path.dip(name)
    label = f"{data}: barrier {height:.2g}" + (f", dip {depth:.2g}" if depth > height else "")
    axes.plot(path.positions, values, label=label, color=color, linewidth=1.4, marker=".")
    straight = chord(path.positions, values)
    axes.plot(path.positions, straight, color=color, linewidth=0.8, linestyle="--", alpha=0.6)


def write_interpolation(path: Interpolation, file: Path) -> None:
    """Write the curves as CSV: a column ``position`` and one for each curve.

    Args:
        path: What was measured.
        file: The file; its folder is made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["position", *path.curves])
        table.writerows(zip(path.positions, *path.curves.values(), strict=True))
