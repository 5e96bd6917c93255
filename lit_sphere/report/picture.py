"""Pictures as files: what goes wrong with one is told apart from what it shows."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_sphere.files import write_whole


class NoPicture(Exception):
    """A picture could not be drawn or written; the message is one line that names it."""


def write_picture(path: Path, draw: Callable[[], Figure]) -> None:
    """Draw a figure and write it as PNG, in the place of an older one.

    It is drawn without TeX, whatever matplotlib's options say: it may not be installed.

    Args:
        path: The file.
        draw: Makes the figure.

    Raises:
        NoPicture: Whatever went wrong, in matplotlib or with the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = BytesIO()
        with mpl.rc_context({"text.usetex": False}):
            figure = draw()
            figure.set_dpi(130)
            # savefig would lay the figure out, and draw it, twice
            FigureCanvasAgg(figure).print_png(picture)  # type: ignore[no-untyped-call]
        write_whole(path, lambda file: file.write(picture.getbuffer()))
    except Exception as error:
        raise NoPicture(f"no picture {path}: {in_short(error)}") from error


def in_short(error: Exception) -> str:
    r"""Say what went wrong in a few words.

    Args:
        error: Of any library.

    Returns:
        One line of at most 200 characters.

    Examples:
        >>> in_short(RuntimeError("a\n  long\n  story"))
        'RuntimeError: a long story'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = " ".join(f"{type(error).__name__}: {error}".strip(": ").split())
    return line if len(line) <= 200 else f"{line[:199]}…"
