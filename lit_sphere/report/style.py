"""The look that all pictures share."""

from contextlib import AbstractContextManager

import matplotlib as mpl
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, MaxNLocator

BLUE, RED, GREEN, GREY = "#0b5394", "#cc4125", "#6aa84f", "#999999"


def house_style() -> AbstractContextManager[None]:
    """Give the context in which figures are made: small type, no frames.

    Returns:
        Sets matplotlib's options, and puts them back.
    """
    context: AbstractContextManager[None] = mpl.rc_context(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.framealpha": 0.75,  # curves may run below it
            "legend.edgecolor": "none",
        }
    )
    return context


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
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in named else ""))


def whole_numbers() -> MaxNLocator:
    """Give ticks at whole numbers.

    Returns:
        The locator.
    """
    return MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10])
