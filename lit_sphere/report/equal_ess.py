"""The picture of equal effective step sizes: groups in the plane of ELR and effective gradient norm."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lit_sphere.analysis.equal_ess import equal_ess
from lit_sphere.report.style import BLUE, RED, house_style

_POINT, _LINE = BLUE, RED


def draw_equal_ess(elrs: Sequence[float], grad_norms: Sequence[float], title: str = "") -> Figure:
    """Draw groups as points (η̃_i, g̃_i), both axes logarithmic, and dashed the line of equal effective step size.

    Where all groups take steps of one effective size, as TR finds in the chaotic equilibrium, the points lie on the
    line, whose slope is −1.

    Args:
        elrs: Effective learning rates of the groups.
        grad_norms: Effective gradient norms, as many.
        title: Line above the picture.

    Returns:
        The figure; ``savefig`` writes it.

    Raises:
        ValueError: As :func:`~lit_sphere.analysis.equal_ess.equal_ess`.
    """  # noqa: DOC502
    found = equal_ess(elrs, grad_norms)
    pairs = [(x, y) for x, y in zip(elrs, grad_norms, strict=True) if 0 < x < math.inf and 0 < y < math.inf]
    xs, ys = zip(*pairs, strict=True)
    with house_style():
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        axes.scatter(xs, ys, s=12, color=_POINT, alpha=0.6, linewidths=0, label=f"{len(pairs)} groups")
        ends = (min(xs) / 1.15, max(xs) * 1.15)
        axes.plot(
            ends,
            [found.ess / x for x in ends],
            color=_LINE,
            linewidth=1.2,
            linestyle="--",
            label=f"equal ESS, {found.ess:.3g} (slope −1)",
        )
        axes.set(xscale="log", yscale="log", xlabel="effective learning rate η̃ᵢ")
        axes.set_ylabel("effective gradient norm g̃ᵢ")
        axes.set_title(
            f"{title}\n" * bool(title)
            + f"slope {found.slope:.2f}, spread of ln ESS {found.spread:.2f}".replace("-", "−")
        )
        axes.legend()
    return figure


def write_equal_ess(path: Path, names: Sequence[str], elrs: Sequence[float], grad_norms: Sequence[float]) -> None:
    """Write the data of the picture as CSV, one line a group.

    Args:
        path: File to write.
        names: Names of the groups.
        elrs: Their effective learning rates.
        grad_norms: Their effective gradient norms.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "elr", "effective_grad_norm", "ess"])
        writer.writerows((name, x, y, x * y) for name, x, y in zip(names, elrs, grad_norms, strict=True))
