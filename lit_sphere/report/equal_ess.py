"""The picture of equal effective step sizes: groups in the plane of ELR and effective gradient norm."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lit_sphere.analysis.equal_ess import equal_ess
from lit_sphere.report.style import BLUE, RED, house_style

_POINT, _LINE = BLUE, RED
_LOOKS: dict[bool, dict[str, Any]] = {
    True: {"s": 12, "linewidths": 0},
    False: {"s": 14, "linewidths": 0.9, "facecolors": "none", "edgecolors": _POINT},
}


def draw_equal_ess(
    elrs: Sequence[float],
    grad_norms: Sequence[float],
    title: str = "",
    scale_invariant: Sequence[bool] | None = None,
) -> Figure:
    """Draw groups as points (η̃_i, g̃_i), both axes logarithmic, and dashed the line of equal effective step size.

    Where all groups take steps of one effective size, as TR finds in the chaotic equilibrium, the points lie on the
    line, whose slope is −1. Groups that are not scale-invariant are hollow.

    Args:
        elrs: Effective learning rates of the groups.
        grad_norms: Effective gradient norms, as many.
        title: Line above the picture.
        scale_invariant: Which groups are scale-invariant; all, if not given.

    Returns:
        The figure; ``savefig`` writes it.

    Raises:
        ValueError: As :func:`~lit_sphere.analysis.equal_ess.equal_ess`.
    """  # noqa: DOC502
    flags = [True] * len(elrs) if scale_invariant is None else scale_invariant
    found = equal_ess(elrs, grad_norms, flags)
    pairs = zip(elrs, grad_norms, flags, strict=True)
    points = [each for each in pairs if 0 < each[0] < math.inf and 0 < each[1] < math.inf]
    xs = [x for x, _, _ in points]
    with house_style():
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for flag, look in _LOOKS.items():
            mine = [(x, y) for x, y, invariant in points if invariant is flag]
            if mine:
                what = "groups" if flag else "not scale-invariant"
                axes.scatter(*zip(*mine, strict=True), color=_POINT, alpha=0.6, label=f"{len(mine)} {what}", **look)
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


def write_equal_ess(
    path: Path,
    names: Sequence[str],
    elrs: Sequence[float],
    grad_norms: Sequence[float],
    scale_invariant: Sequence[bool] | None = None,
) -> None:
    """Write the data of the picture as CSV, one line a group.

    Args:
        path: File to write.
        names: Names of the groups.
        elrs: Their effective learning rates.
        grad_norms: Their effective gradient norms.
        scale_invariant: Which groups are scale-invariant, for a column of that name; none, if not given.
    """
    marks = {} if scale_invariant is None else {"scale_invariant": map(int, scale_invariant)}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "elr", "effective_grad_norm", "ess", *marks])
        esses = [x * y for x, y in zip(elrs, grad_norms, strict=True)]
        writer.writerows(zip(names, elrs, grad_norms, esses, *marks.values(), strict=True))
