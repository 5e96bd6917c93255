"""Folders that one process holds: no two runs write into one."""

import errno
import fcntl
import os
import socket
import time
from itertools import chain, count
from pathlib import Path
from typing import TextIO

_LOCK = ".lock"
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some clusters' file systems: a run goes on without


class FolderInUse(Exception):
    """Another process holds the folder.

    Args:
        folder: The folder.
        holder: Who holds it since when, in words.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(f"{folder} is in use: {holder}")
        self.folder, self.holder = folder, holder


class _Claim:
    """A held lock, and the folders that were made for it, the outermost first."""

    def __init__(self, lock: TextIO, made: list[Path]) -> None:
        self.lock, self.made = lock, made


_held: dict[Path, _Claim] = {}


def claim_folder(folder: Path, among: bool = False) -> Path:
    """Make a folder, and hold it until :func:`release_folders` or the end of the process.

    The lock is the system's (``flock``): it goes with the process, however that ends. On network file systems it
    holds between machines where these pass locks on, as NFS does since Linux 2.6.12.

    Args:
        folder: The folder; may exist.
        among: Take ``folder`` only if it is new, or else the first new one of ``folder-2``, ``folder-3``, …

    Returns:
        The folder that is held.

    Raises:
        FolderInUse: If another process holds it, or this one does already.
        OSError: If it cannot be made or written to.
    """  # noqa: DOC502
    missing = [each for each in (*reversed(folder.parents), folder) if not each.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    if among:
        for candidate in chain([folder], (folder.with_name(f"{folder.name}-{n}") for n in count(2))):
            try:
                candidate.mkdir()
            except FileExistsError:
                continue
            missing = [candidate if each == folder else each for each in missing]
            folder = candidate
            break
    else:
        folder.mkdir(exist_ok=True)
    _held[folder.resolve()] = _Claim(_lock(folder), missing)
    return folder


def release_folders() -> None:
    """Give up all folders that this process holds; those that were made and are still empty are taken away."""
    while _held:
        folder, claim = _held.popitem()
        (folder / _LOCK).unlink(missing_ok=True)
        claim.lock.close()
        for made in reversed(claim.made):
            if any(made.iterdir()):
                break
            made.rmdir()


def _lock(folder: Path) -> TextIO:
    path = folder / _LOCK
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process has just taken it"
            file.close()
            raise FolderInUse(folder, holder) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                file.close()
                raise
        if _is_at(file, path):
            break
        file.close()  # its holder has just given it up, and taken the file away
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    return file


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
