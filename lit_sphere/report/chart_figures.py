"""Charts drawn by matplotlib, for papers."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_sphere.report.chart import Chart, Curve, Mark, Panel, colour_position
from lit_sphere.report.style import house_style, plain_ticks

COLOUR_MAP = "plasma"
LIGHT_RANGE, DARK_RANGE = (0.0, 0.85), (0.32, 1.0)  # parts of the map that are read on white, and on black
_A_ROW = 4
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
    with house_style():
        figure = Figure(figsize=(max(3.4 * columns, 5.6), 2.9 * rows + 0.5), layout="constrained")
        drawn = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
        for axes, panel in zip(drawn, chart.panels, strict=True):
            _draw_panel(axes, panel, scale)
        _legend(figure, drawn, chart, scale)
        figure.suptitle(chart.title, fontsize=10)
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
        x, y = list(curve.x), list(curve.y)
        colour = _colour(curve, scale)
        style: dict[str, Any] = {"color": colour, "linewidth": 0.0 if curve.kind == "points" else curve.width}
        if curve.kind != "line":
            size = 2.2 * curve.width if curve.kind == "points" else 3.5
            style |= {"marker": _SYMBOLS[curve.symbol], "markersize": size, "markeredgewidth": 0.8}
            if curve.symbol != "cross":
                style["markeredgewidth"] = 0
        if curve.low is not None and curve.high is not None:
            axes.fill_between(x, list(curve.low), list(curve.high), color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            x, y, linestyle=_DASHES[curve.dash], alpha=0.55 if curve.kind == "points" and len(x) > 60 else 1, **style
        )
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.title.set_fontsize(9)
    if panel.x_log:
        axes.set_xscale("log")
    if panel.y_log:
        axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            plain_ticks(axis)
    _clip(axes, panel)


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


def _legend(figure: Figure, drawn: Sequence[Axes], chart: Chart, scale: Sequence[float]) -> None:
    entries: dict[str, Line2D] = {}
    on_scale = 0
    for panel in chart.panels:
        for curve in panel.curves:
            if curve.label and curve.label not in entries:
                on_scale += colour_position(curve.elr, scale) is not None
                marker = {} if curve.kind == "line" else {"marker": _SYMBOLS[curve.symbol], "markersize": 5}
                line = "" if curve.kind == "points" else _DASHES[curve.dash]
                entries[curve.label] = Line2D([], [], color=_colour(curve, scale), linestyle=line, **marker)  # type: ignore[arg-type]
    if on_scale > _MOST_NAMED:
        colours = [map_colour(i / 100) for i in range(101)]
        mappable = ScalarMappable(Normalize(0, len(scale) - 1), LinearSegmentedColormap.from_list("scale", colours))
        bar = figure.colorbar(mappable, ax=list(drawn), label=chart.colour_label, pad=0.01)
        shown = range(0, len(scale), -(-len(scale) // 12))
        bar.set_ticks(list(shown), labels=[f"{scale[i]:.3g}" for i in shown])
        scaled = {
            curve.label
            for panel in chart.panels
            for curve in panel.curves
            if colour_position(curve.elr, scale) is not None
        }
        entries = {label: line for label, line in entries.items() if label not in scaled}
    if len(entries) > 1:
        widest = max(map(len, entries))
        columns = max(1, min(len(entries), math.floor(figure.get_figwidth() * 17 / (widest + 5))))
        figure.legend(
            entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
        )
