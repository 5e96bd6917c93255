"""The look that all pictures share."""

from contextlib import AbstractContextManager

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

BLUE, RED, GREEN, GREY = "#0b5394", "#cc4125", "#6aa84f", "#999999"


def house_style() -> AbstractContextManager[None]:
    """Give the context in which figures are made: small type, no frames.

    Returns:
        Sets matplotlib's options, and puts them back.
    """
    context: AbstractContextManager[None] = mpl.rc_context(
        {
            "font.size": 9,
            "axes.titley": 1.0,  # matplotlib looks for what it may collide with otherwise, tick by tick
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.framealpha": 0.75,  # curves may run below it
            "legend.edgecolor": "none",
        }
    )
    return context


def add_panels(
    figure: Figure,
    rows: int,
    columns: int,
    *,
    left: float,
    right: float,
    bottom: float,
    top: float,
    header: float = 0.0,
    footer: float = 0.0,
) -> list[Axes]:
    """Add panels of one size, row by row, with fixed margins for their labels.

    matplotlib's constrained layout measures every label instead, which takes four times as long as all the rest of a
    picture: too long for those that each run of a sweep leaves.

    Args:
        figure: Empty.
        rows: Of panels.
        columns: Of panels.
        left: Margin of each panel, in inches.
        right: The same.
        bottom: The same.
        top: The same.
        header: Above all, in inches.
        footer: Below all.

    Returns:
        Their axes.
    """
    width, height = figure.get_size_inches()
    across, down = width / columns, (height - header - footer) / rows
    size = ((across - left - right) / width, (down - bottom - top) / height)
    corners = [
        ((column * across + left) / width, 1 - (header + (row + 1) * down - bottom) / height)
        for row in range(rows)
        for column in range(columns)
    ]
    return [figure.add_axes((x, y, *size)) for x, y in corners]


_MINOR_TICKS = 1e3  # ratio of the ends of an axis from which on powers of ten are ticks enough


def plain_ticks(axis: Axis) -> None:
    """Tick whole numbers; on a logarithmic axis of few powers of ten, 20 between them rather than 2 × 10¹.

    Args:
        axis: A finished axis of whole numbers, or a logarithmic one; others are left alone.
    """
    if axis.get_scale() == "linear":
        axis.set_major_locator(whole_numbers())
    elif axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        named = "2346" if high < 10 * low else "25" if high < 100 * low else ""
        if high > _MINOR_TICKS * low:
            axis.set_minor_locator(NullLocator())  # each takes as long to draw as a curve
            return
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in named else ""))


def whole_numbers() -> MaxNLocator:
    """Give ticks at whole numbers.

    Returns:
        The locator.
    """
    return MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10])
