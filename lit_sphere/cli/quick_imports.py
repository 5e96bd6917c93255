"""Imports without looking for garbage, which takes a third of their time; and nobody looks through them afterwards."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import much within.

    Modules stay until the end. Without this, Python's garbage collector goes through all of them again and again: while
    they are imported, while a run trains, and once more at the end of the process, for as long as a second or two.
    """
    if "lightning" in sys.modules or not gc.isenabled():  # imported by a user's own program: its garbage is its own
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
