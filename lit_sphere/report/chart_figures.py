"""Charts drawn by matplotlib, for papers."""

import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lit_sphere.report.chart import Chart, Curve, Mark, Panel, colour_position, thinned
from lit_sphere.report.style import house_style, plain_ticks

COLOUR_MAP = "plasma"
LIGHT_RANGE, DARK_RANGE = (0.0, 0.85), (0.32, 1.0)  # parts of the map that are read on white, and on black
_A_ROW = 4
_MOST_POINTS = 400  # of a curve: more than are told apart on paper
_MOST_NAMED = 12  # entries of a legend; more are told by a bar of colours
_DASHES = {"solid": "-", "dashed": (0, (5, 2)), "dotted": ":"}
_SYMBOLS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "x"}


def draw_chart(chart: Chart, scale: Sequence[float]) -> Figure:
    """Draw a chart on white.

    Args:
        chart: The chart.
        scale: Numbers that colours go by, of :func:`~lit_sphere.report.chart.colour_scale`.

    Returns:
        The figure; ``savefig`` writes it.
    """
    count = len(chart.panels)
    columns = min(count, _A_ROW if count % 3 else 3)
    rows = -(-count // columns)
    wide = max(3.4 * columns, 5.6)
    entries, on_scale = _entries(chart, scale)
    as_bar = on_scale > _MOST_NAMED
    if as_bar:
        entries = {label: line for label, line in entries.items() if label not in _labels_on_scale(chart, scale)}
    names = max(1, math.floor(wide / (0.066 * max(map(len, entries), default=0) + 0.75)))  # of the legend in a row
    below = 0.2 * -(-len(entries) // names) if len(entries) > 1 else 0.0
    high = 2.9 * rows + 0.6 + below
    with house_style():
        # Margins in inches: to have them computed takes longer than all the rest.
        figure = Figure(figsize=(wide, high))
        figure.subplots_adjust(
            left=0.62 / wide,
            right=1 - (0.95 if as_bar else 0.15) / wide,
            bottom=(0.5 + below) / high,
            top=1 - 0.65 / high,
            wspace=0.75 / (wide / columns - 0.75),
            hspace=0.85 / 2.0,
        )
        drawn = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
        for axes, panel in zip(drawn, chart.panels, strict=True):
            _draw_panel(axes, panel, scale)
        if as_bar:
            _bar(figure, chart, scale, (1 - 0.75 / wide, (0.5 + below) / high, 0.12 / wide, 1 - (1.15 + below) / high))
        if len(entries) > 1:
            place: dict[str, Any] = {"loc": "lower center", "ncols": min(len(entries), names), "borderaxespad": 0.3}
            figure.legend(list(entries.values()), list(entries), frameon=False, fontsize=8, **place)
        figure.suptitle(fill(chart.title, math.floor(12.5 * wide)), fontsize=10, y=1 - 0.12 / high, va="top")
    return figure


def map_colour(position: float, part: tuple[float, float] = LIGHT_RANGE) -> str:
    """Give a colour of the scale.

    Args:
        position: From 0 to 1.
        part: Of the map that is used.

    Returns:
        As ``#0b5394``.
    """
    low, high = part
    return to_hex(mpl.colormaps[COLOUR_MAP](low + position * (high - low)))


def _colour(curve: Curve, scale: Sequence[float]) -> str:
    position = colour_position(curve.elr, scale)
    return map_colour(position) if position is not None else curve.colour or "black"


def _draw_panel(axes: Axes, panel: Panel, scale: Sequence[float]) -> None:
    for mark in panel.marks:
        _draw_mark(axes, mark)
    for curve in panel.curves:
        at = thinned(curve.y, _MOST_POINTS)
        x, y = [curve.x[i] for i in at], [curve.y[i] if math.isfinite(curve.y[i]) else math.nan for i in at]
        colour = _colour(curve, scale)
        style: dict[str, Any] = {"color": colour, "linewidth": 0.0 if curve.kind == "points" else curve.width}
        if curve.kind != "line":
            size = 2.2 * curve.width if curve.kind == "points" else 3.5
            style |= {"marker": _SYMBOLS[curve.symbol], "markersize": size, "markeredgewidth": 0.8}
            if curve.symbol != "cross":
                style["markeredgewidth"] = 0
        if curve.low is not None and curve.high is not None:
            low, high = ([end[i] for i in at] for end in (curve.low, curve.high))
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            x, y, linestyle=_DASHES[curve.dash], alpha=0.55 if curve.kind == "points" and len(x) > 60 else 1, **style
        )
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.title.set_fontsize(9)
    _clip(axes, panel)
    values = {
        "x": [x for curve in panel.curves for x in curve.x],
        "y": [y for curve in panel.curves for y in curve.y],
    }
    for name, axis, log in (("x", axes.xaxis, panel.x_log), ("y", axes.yaxis, panel.y_log)):
        if log and any(0 < value < math.inf for value in values[name]):  # else nothing could be seen of it
            axes.set(**{f"{name}scale": "log"})
            _log_ticks(axis)


def _clip(axes: Axes, panel: Panel) -> None:
    """Strips reach to the edge, not beyond."""
    edges = [edge for mark in panel.marks if mark.to is not None for edge in (mark.x, mark.to) if edge is not None]
    if edges and all(mark.x is not None for mark in panel.marks if mark.to is not None):
        axes.set_xlim(min(edges), max(edges))


def _draw_mark(axes: Axes, mark: Mark) -> None:
    colour = mark.colour or "black"
    if mark.to is not None:
        span, start = (axes.axvspan, mark.x) if mark.x is not None else (axes.axhspan, mark.y)
        if start is not None:
            span(start, mark.to, color=colour, alpha=0.5, linewidth=0, zorder=0)
        return
    style: dict[str, Any] = {"color": colour, "linewidth": 0.8, "linestyle": _DASHES[mark.dash], "zorder": 1}
    if mark.x is not None:
        axes.axvline(mark.x, **style)
        where: dict[str, Any] = {"xy": (mark.x, 0.97), "xycoords": ("data", "axes fraction"), "va": "top"}
    else:
        axes.axhline(mark.y or 0.0, **style)
        where = {"xy": (0.98, mark.y), "xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
    if mark.label:
        axes.annotate(mark.label, xytext=(2, 1), textcoords="offset points", fontsize=7, color=colour, **where)


def _labels_on_scale(chart: Chart, scale: Sequence[float]) -> set[str]:
    curves = [curve for panel in chart.panels for curve in panel.curves]
    return {curve.label for curve in curves if colour_position(curve.elr, scale) is not None}


def _entries(chart: Chart, scale: Sequence[float]) -> tuple[dict[str, Line2D], int]:
    """Entries of the legend, and how many of them have a colour of the scale."""
    entries: dict[str, Line2D] = {}
    for panel in chart.panels:
        for curve in panel.curves:
            if curve.label and curve.label not in entries:
                style: dict[str, Any] = {"linestyle": "" if curve.kind == "points" else _DASHES[curve.dash]}
                if curve.kind != "line":
                    style |= {"marker": _SYMBOLS[curve.symbol], "markersize": 5}
                entries[curve.label] = Line2D([], [], color=_colour(curve, scale), **style)
    return entries, len(_labels_on_scale(chart, scale) & entries.keys())


def _bar(figure: Figure, chart: Chart, scale: Sequence[float], place: tuple[float, float, float, float]) -> None:
    """A bar of colours in the place of a long legend; ranks are evenly spaced."""
    colours = [map_colour(i / 100) for i in range(101)]
    mappable = ScalarMappable(Normalize(0, len(scale) - 1), LinearSegmentedColormap.from_list("scale", colours))
    bar = figure.colorbar(mappable, cax=figure.add_axes(place))
    shown = range(0, len(scale), -(-len(scale) // 12))
    bar.set_ticks(list(shown), labels=[f"{scale[i]:.3g}" for i in shown])
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_title(chart.colour_label, fontsize=8)


def _log_ticks(axis: Axis) -> None:
    """Powers of ten in plain text: matplotlib's own are typeset, in ten times the time."""
    low, high = axis.get_view_interval()
    if not 0 < low < high or high < 10 * low:
        plain_ticks(axis)
        return
    decades = math.log10(high / low)
    axis.set_major_locator(LogLocator(numticks=8))
    plain = low > 0.9e-3 and high < 1.1e3
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if plain else _power(value)))
    axis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=99) if decades < 5 else NullLocator())
    named = "25" if decades < 2 else ""
    axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in named else ""))


def _power(value: float) -> str:
    exponent = round(math.log10(value))
    return f"{value:g}" if exponent in (0, 1) else f"10{str(exponent).translate(_RAISED)}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
