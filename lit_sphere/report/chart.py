"""Figures as plain data: drawn for the page, drawn for papers, and written as numbers."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import pairwise, repeat
from statistics import fmean
from typing import Literal

Numbers = Sequence[float]
Dash = Literal["solid", "dashed", "dotted"]
Symbol = Literal["circle", "square", "triangle", "diamond", "cross"]


@dataclass(frozen=True)
class Curve:
    """A line or a cloud of points.

    Attributes:
        x: Where.
        y: Values, as many; NaN leaves a gap.
        label: Entry of the legend. Curves with one label have one entry in all panels of a chart, and are hidden
            together.
        run: Name of the run that it shows; empty if it shows several, or none.
        elr: Number that the colour goes by, on a logarithmic scale: the effective learning rate, or what else varies.
            None for the colour below.
        colour: As ``#0b5394``; None for the text's own colour, which differs between light and dark. Unused with elr.
        kind: ``line``, ``points``, or ``both``.
        low: Lower edge of a band around the line; None without one.
        high: Upper edge.
        hover: What the mouse is told of each point beside its numbers; empty for nothing.
        dash: Of the line.
        width: Of the line, in points.
        symbol: Of the points.
    """

    x: Numbers
    y: Numbers
    label: str = ""
    run: str = ""
    elr: float | None = None
    colour: str | None = None
    kind: Literal["line", "points", "both"] = "line"
    low: Numbers | None = None
    high: Numbers | None = None
    hover: Sequence[str] = ()
    dash: Dash = "solid"
    width: float = 1.4
    symbol: Symbol = "circle"

    def __post_init__(self) -> None:
        """Check that there are as many values everywhere.

        Raises:
            ValueError: If there are not.
        """
        for name in ("y", "low", "high", "hover"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.x) and (name != "hover" or values):
                raise ValueError(f"curve {self.label!r}: {len(self.x)} x but {len(values)} {name}")


@dataclass(frozen=True)
class Mark:
    """A straight line across a panel, or a shaded strip.

    Attributes:
        x: Of a vertical line; the left edge of a strip.
        y: Of a horizontal line; the lower edge of a strip.
        to: The other edge; None for a line.
        label: Written beside it; empty for nothing.
        colour: As in :class:`Curve`.
        dash: Of the line.
    """

    x: float | None = None
    y: float | None = None
    to: float | None = None
    label: str = ""
    colour: str | None = None
    dash: Dash = "dashed"


@dataclass(frozen=True)
class Panel:
    """Curves over one pair of axes.

    Attributes:
        title: Line above it.
        x_label: Of the axis, with its unit.
        y_label: The same of y; empty where the title says it.
        x_log: Whether the axis is logarithmic; what is not positive is left out then.
        y_log: The same of y.
        curves: In the order of the legend.
        marks: Behind them.
    """

    title: str
    x_label: str
    y_label: str = ""
    x_log: bool = False
    y_log: bool = False
    curves: Sequence[Curve] = ()
    marks: Sequence[Mark] = ()


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        id: Short and unique, such as ``E1``: names its files.
        title: What it shows.
        caption: What one should know to read it, and where it stands in the papers.
        panels: Side by side.
        colour_label: What the colours go by.
    """

    id: str
    title: str
    caption: str = ""
    panels: Sequence[Panel] = field(default_factory=tuple)
    colour_label: str = "ELR"


def over_seeds(curves: Sequence[Curve], log: bool = False) -> Curve:
    """Join curves of one point, which differ by their seeds: the mean, in a band from the least to the greatest.

    Args:
        curves: At least one; a single one is given back as it is.
        log: Take the geometric mean, where the axis is logarithmic. What is not positive is left out then.

    Returns:
        Its label, colour and style are those of the first. At each x there are the finite values of those that have it.
    """
    first = curves[0]
    if len(curves) == 1:
        return first
    at: dict[float, list[float]] = {}
    for curve in curves:
        for x, y in zip(curve.x, curve.y, strict=True):
            if math.isfinite(y) and (y > 0 or not log):
                at.setdefault(x, []).append(y)
    places = sorted(at)
    groups = [at[place] for place in places]
    means = [math.exp(fmean(map(math.log, each))) if log else fmean(each) for each in groups]
    return Curve(
        places,
        means,
        first.label,
        elr=first.elr,
        colour=first.colour,
        kind=first.kind,
        low=[min(each) for each in groups],
        high=[max(each) for each in groups],
        hover=[f"{len(each)} seeds" for each in groups],
        dash=first.dash,
        width=first.width,
        symbol=first.symbol,
    )


def numbers(chart: Chart) -> str:
    """Give the numbers of a chart as CSV, a row for each point.

    Args:
        chart: The chart.

    Returns:
        The text, with a header.
    """
    text = StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["panel", "curve", "run", chart.colour_label, "x", "y", "low", "high"])
    for panel in chart.panels:
        for curve in panel.curves:
            ends = (repeat("") if end is None else end for end in (curve.low, curve.high))
            name = [panel.title, curve.label, curve.run, "" if curve.elr is None else curve.elr]
            table.writerows([*name, *point] for point in zip(curve.x, curve.y, *ends, strict=False))
    return text.getvalue()


def colour_scale(charts: Iterable[Chart]) -> list[float]:
    """Collect the numbers that colours go by.

    Args:
        charts: Those that share colours.

    Returns:
        Each positive ``elr`` once, ascending.
    """
    curves = (curve for chart in charts for panel in chart.panels for curve in panel.curves)
    return sorted({curve.elr for curve in curves if curve.elr is not None and 0 < curve.elr < math.inf})


def colour_position(number: float | None, scale: Sequence[float]) -> float | None:
    """Place a number on the scale of colours: by its rank, so that neighbours are told apart however close they are.

    Args:
        number: Of a curve.
        scale: Of :func:`colour_scale`.

    Returns:
        From 0 to 1; None for no number of this scale. On a regular grid of ELRs it goes with the logarithm.

    Example:
        >>> [colour_position(elr, [1e-3, 2e-3, 1e-2]) for elr in (1e-3, 2e-3, 1e-2, None)]
        [0.0, 0.5, 1.0, None]
    """
    if number is None or number not in scale:
        return None
    return scale.index(number) / (len(scale) - 1) if len(scale) > 1 else 0.5


def thinned(y: Sequence[float], most: int) -> list[int]:
    """Choose what is shown of a long curve: of each stretch the first, the least and the greatest value.

    Args:
        y: Values.
        most: How many may be chosen, at least 4.

    Returns:
        Indices, ascending: the first and the last are among them, and all extremes of the curve.

    Example:
        >>> thinned([0, 1, 9, 1, 1, 1, 1, 1, -5, 1, 1, 2], 8)
        [0, 2, 6, 8, 11]
    """
    if len(y) <= most:
        return list(range(len(y)))
    stretches = max(1, (most - 1) // 3)
    edges = [i * len(y) // stretches for i in range(stretches + 1)]
    chosen = {0, len(y) - 1}
    for first, end in pairwise(edges):
        known = [i for i in range(first, end) if math.isfinite(y[i])] or [first]
        chosen |= {first, min(known, key=y.__getitem__), max(known, key=y.__getitem__)}
    return sorted(chosen)
