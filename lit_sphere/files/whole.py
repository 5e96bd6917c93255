"""Files that are whole or not there, whatever ends the process while they are written."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def part_of(path: Path) -> Path:
    """Name the file beside ``path`` that holds its content until it is whole; a kill leaves it behind.

    Args:
        path: A file.

    Returns:
        A hidden file in the same folder, so that it can be renamed to ``path``.
    """
    return path.with_name(f".{path.name}.part")


def write_whole(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, and put it there when it is on the disk.

    In the same folder, since a rename between two devices is a copy, which a kill or a full disk would cut off. Until
    then the file that was there stays.

    Args:
        path: The file.
        write: Writes the content to a binary file.

    Raises:
        OSError: Of the system, with ``path`` as its file name.
    """
    path = Path(path)
    part = part_of(path)
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # What torch raises where the system refuses a write speaks of positions in the file.
        refused = error if isinstance(error, OSError) else error.__context__
        if isinstance(refused, OSError):
            raise OSError(refused.errno, refused.strerror, str(path)) from error
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
