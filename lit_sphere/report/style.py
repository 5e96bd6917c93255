"""The look that all pictures share."""

from contextlib import AbstractContextManager

import matplotlib as mpl

BLUE, RED, GREEN, GREY = "#0b5394", "#cc4125", "#6aa84f", "#999999"


def house_style() -> AbstractContextManager[None]:
    """Give the context in which figures are made: small type, no frame.

    Returns:
        Sets matplotlib's options, and puts them back.
    """
    context: AbstractContextManager[None] = mpl.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    return context
