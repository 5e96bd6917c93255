"""Folders for the results of a command: no two processes write into one."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from lit_sphere.cli.errors import CommandLineError, written_to
from lit_sphere.files import FolderInUse, claim_folder
from lit_sphere.report import NoPicture, write_picture


def results_folder(requested: str | None, command: str, file: str) -> Path:
    """Make a folder, before the work; no other process writes there until this one has ended.

    Args:
        requested: The user's choice; None for ``runs/COMMAND-DATE-TIME``.
        command: The subcommand.
        file: Name of its table, of which there must be none yet.

    Returns:
        The folder.

    Raises:
        CommandLineError: If the requested one holds another result, it cannot be made, or another process holds it.
    """
    folder = Path(requested or Path("runs") / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}")
    if requested and (folder / file).exists():  # else a number follows the name: two commands in one second
        raise CommandLineError(f"{folder / file} exists already: choose another --run")
    return hold_folder(folder, requested is None)


def hold_folder(folder: Path, is_default: bool = False, option: str = "--run") -> Path:
    """Make a folder for results, and hold it: no other process writes there.

    Args:
        folder: The folder.
        is_default: Whether nobody asked for just this one, so that a number may follow its name.
        option: That names it, for the message.

    Returns:
        The folder.

    Raises:
        CommandLineError: If it cannot be made, or another process holds it.
    """
    try:
        folder = claim_folder(folder, among=is_default)
    except FolderInUse as error:
        raise CommandLineError(f"{option} {error}; choose another {option}, or wait until that has ended") from error
    except OSError as error:
        raise CommandLineError(
            f"{option} {folder}: cannot be made, or not be written to ({error.strerror}); choose another folder"
        ) from error
    if option == "--run":
        written_to.set(folder)
    return folder


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
