"""Standard streams that never end a run: closed, full, gone, or without the characters; files in UTF-8."""

import codecs
import io
import logging
import os
import re
import select
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_PLAIN = "lit_sphere.plain"  # the error handler's name among Python's
_IN_ASCII = {
    "\N{COMBINING TILDE}": "~",
    "\N{COMBINING CIRCUMFLEX ACCENT}": "^",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MINUS SIGN}": "-",
    "\N{FRACTION SLASH}": "/",
    "\N{PRIME}": "'",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "Σ": "sum ",
    "λ": "lambda",  # LAMDA in Unicode
    "Λ": "Lambda",
    "×": "x",
    "·": "*",
    "±": "+-",
    "°": " deg",
    "‖": "||",
    "√": "sqrt",
    "∇": "grad",
    "∂": "d",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "≲": "<~",
    "⟨": "<",
    "⟩": ">",
    "→": "->",
    "←": "<-",
    "∞": "inf",
}


def plain(text: str) -> str:
    """Write a text in ASCII.

    Args:
        text: Any text.

    Returns:
        Letters by their names, signs by their likes; ``?`` where nobody would know what is meant.

    Examples:
        >>> plain("ρ = 5 × 10⁻³, g̃ — λ²…")
        'rho = 5 x 10^-3, g~ - lambda^2...'
    """
    written, raised = [], False
    for char in text:
        kind, _, low = unicodedata.decomposition(char).partition(" ")
        if kind == "<super>":
            written.append(("" if raised else "^") + _plain_letter(chr(int(low, 16))))
        else:
            written.append(_plain_letter(char))
        raised = kind == "<super>"
    return "".join(written)


def _plain_letter(char: str) -> str:
    if char.isascii():
        return char
    if char in _IN_ASCII:
        return _IN_ASCII[char]
    parts = unicodedata.normalize("NFKD", char)
    if parts != char:
        return "".join(_plain_letter(part) for part in parts)
    if unicodedata.combining(char):
        return ""
    name = unicodedata.name(char, "")
    if name.startswith("GREEK ") and " LETTER " in name:
        letter = name.rpartition(" ")[2]
        return letter.capitalize() if " CAPITAL " in name else letter.lower()
    return "?"


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Error handler for characters that a stream does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    if "\udc80" <= unknown[0] <= "\udcff":  # a byte of a file name that is no text in this locale
        return bytes([ord(unknown[0]) - 0xDC00]), error.start + 1
    unknown = re.split("[\udc80-\udcff]", unknown)[0]
    return plain(unknown), error.start + len(unknown)


codecs.register_error(_PLAIN, _replace)


class _Steady(io.FileIO):
    """A descriptor that takes whatever is written: what cannot be written is lost, and nobody is told.

    The reader may have gone (``| head``), the terminal too (a closed ssh), or the disk may be full.
    """

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = left.nbytes
        with suppress(OSError):
            while left:
                written = super().write(left)
                if written is None:  # another program has set it to non-blocking, and the reader is slow
                    select.select([], [self], [])
                left = left[written or 0 :]
        return size


def restart_in_utf8() -> None:
    """Start this process's command anew in Python's UTF-8 mode, where file names and files have another encoding.

    A config.yaml that was written elsewhere may name files that this locale cannot, and neither Lightning nor
    jsonargparse says which encoding its files have. The streams keep theirs: the terminal has no other.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    stream = sys.stdout or sys.stderr
    if stream is not None:
        os.environ.setdefault("PYTHONIOENCODING", stream.encoding)
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@contextmanager
def steady_streams() -> Iterator[None]:
    """Make standard output and error take everything, in plain characters where they have no others.

    Streams that are not this process's own (pytest's, a notebook's) stay as they are.

    Yields:
        Nothing.
    """
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    reports, logging.raiseExceptions = logging.raiseExceptions, False  # tracebacks of log files on a full disk
    sys.stdout, sys.stderr = (_steady(stream, fd) for fd, stream in ((1, sys.stdout), (2, sys.stderr)))
    try:
        yield
    finally:
        logging.raiseExceptions = reports
        for stream in (sys.stdout, sys.stderr):
            with suppress(ValueError):  # closed by somebody
                stream.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Print warnings as ``lit-sphere: warning: …``, without the place in the code.

    To be entered once Lightning is imported, which sets a format of its own.

    Yields:
        Nothing.
    """
    before = warnings.formatwarning
    warnings.formatwarning = _format_warning
    try:
        yield
    finally:
        warnings.formatwarning = before


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"lit-sphere: warning: {' '.join(str(message).split())}\n"


def _fill_descriptors() -> None:
    """Open those of 0, 1 and 2 that are closed (``2>&-``, daemons): the next file would get them, and what C prints."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null == fd:
                os.set_inheritable(fd, True)
            else:
                os.dup2(null, fd)
                os.close(null)


def _steady(stream: TextIO | None, fd: int) -> TextIO:
    if stream is None:
        # Never closed: a logging handler may keep the stream. The descriptor's own number may be somebody's file.
        nowhere = _Steady(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)
        return io.TextIOWrapper(io.BufferedWriter(nowhere), encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper) or _descriptor(stream) != fd:
        return stream
    with suppress(OSError):
        stream.flush()
    raw = _Steady(fd, "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=_PLAIN,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # none, or closed
        return None
