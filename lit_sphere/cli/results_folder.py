"""Folders for the results of commands that are no runs."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from lit_sphere.cli.errors import CommandLineError
from lit_sphere.report import NoPicture, write_picture


def free_folder(requested: str | None, command: str, file: str) -> Path:
    """Choose a folder, before the work; not made yet.

    Args:
        requested: The user's choice; None for ``runs/COMMAND-DATE-TIME``.
        command: The subcommand.
        file: Name of its table, of which there must be none yet.

    Returns:
        The folder.

    Raises:
        CommandLineError: If it holds another result.
    """
    folder = Path(requested or Path("runs") / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}")
    if (folder / file).exists():
        raise CommandLineError(f"{folder / file} exists already: choose another --run")
    return folder


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Args:
        folder: The folder; may exist.

    Raises:
        CommandLineError: If it cannot be made, or be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandLineError(f"--run {folder}: cannot be made ({error.strerror}); choose another folder") from error
    if not os.access(folder, os.W_OK):
        raise CommandLineError(f"--run {folder}: cannot be written to; choose another folder")


def leave_picture(path: Path, draw: Callable[[], Figure]) -> None:
    """Write the picture of results that are written and printed already; one that fails costs a line.

    Args:
        path: The file.
        draw: Makes the figure.
    """
    try:
        write_picture(path, draw)
    except NoPicture as error:
        print(f"lit-sphere: {error}", file=sys.stderr)
