"""What a user sees of an error: one line, and an exit status."""

import errno
import linecache
import os
import re
import sys
import tempfile
import traceback
from contextvars import ContextVar
from pathlib import Path

from lit_sphere.cli.rewordings import in_one_line

written_to: ContextVar[Path | None] = ContextVar("written_to", default=None)
"""Where this command writes; once it is made, the traceback of an error that nobody foresaw goes there."""

_LONGEST_LINE = 480
_LONGEST = 200  # of a message that nobody wrote for a user


class CommandLineError(Exception):
    """The command line asks for something that is not there; the message is one line with the remedy."""


def exit_status(error: BaseException, command: str = "fit") -> int | None:
    """Print one line for an error; a cause that nobody foresaw leaves its traceback in a file.

    Args:
        error: What a command raised.
        command: The subcommand.

    Returns:
        Exit status; None for ``SystemExit``, which has its own.
    """
    if isinstance(error, SystemExit):
        return None
    if isinstance(error, KeyboardInterrupt):
        before = "before training began; nothing to save" if command == "fit" else "before there were results"
        return _print_line(f"interrupted {before}", 130)
    if isinstance(error, CommandLineError):
        return _print_line(str(error), 2)
    if isinstance(error, OSError):
        return _print_line(_os_error(error, command), 1)
    status = _status_by_library(error)
    if status is not None:
        return status
    if isinstance(error, RuntimeError) and str(error).startswith("Found more than one stateful callback"):
        return _print_line(_twice(str(error)), 2)
    if isinstance(error, RuntimeError) and str(error).startswith("Early stopping conditioned on metric"):
        return _print_line(_never_logged(str(error)), 1)
    if isinstance(error, ImportError) and "install" in str(error):
        return _print_line(str(error), 1)  # of an option that needs another package
    if isinstance(error, ValueError) and _is_raised(error):
        # jsonargparse passes on what a constructor raised within its account of the types.
        refused = "Does not validate against any" in str(error)
        return _print_line(in_one_line(str(error)), 2) if refused else _print_line(str(error), 1)
    return _print_line(_unforeseen(error), 1)


def _status_by_library(error: BaseException) -> int | None:
    """Of the types that are at hand only once their libraries are imported."""
    modules = sys.modules
    if "jsonargparse" in modules and isinstance(error, modules["jsonargparse"].ArgumentError):
        return _print_line(in_one_line(str(error)), 2)
    if "lit_sphere.callbacks" in modules:
        callbacks = modules["lit_sphere.callbacks"]
        if isinstance(error, callbacks.Interrupted):
            # All ranks agree to stop: one of them says so.
            first = os.environ.get("LOCAL_RANK", "0") == "0"
            return _print_line(str(error), 128 + error.signum) if first else 128 + error.signum
        if isinstance(error, callbacks.NonFinite):
            return _print_line(str(error), 1)
    lightning_errors = modules.get("lightning.fabric.utilities.exceptions")
    if lightning_errors and isinstance(error, lightning_errors.MisconfigurationException):
        return _print_line(str(error), 1)
    return None


def _is_raised(error: ValueError) -> bool:
    """Whether a line of code refused a value in words; a failed conversion or unpacking is nobody's refusal."""
    frames = traceback.extract_tb(error.__traceback__)
    line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip() if frames else ""
    return not line or line.startswith("raise")


def _unforeseen(error: BaseException) -> str:
    message = " ".join(str(error).split())
    said = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…"
    if os.environ.get("LIT_SPHERE_TRACEBACK"):
        return f"unforeseen {type(error).__name__}: {said}"
    try:
        where = f"the full traceback is in {_write_traceback(error)}"
    except OSError as failed:
        where = f"the full traceback could not be written ({failed.strerror})"
    return f"unforeseen {type(error).__name__}: {said}; {where}, and is printed with LIT_SPHERE_TRACEBACK=1"


def _write_traceback(error: BaseException) -> str:
    """Write into the run's folder, or else the system's temporary one."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    folder = written_to.get()
    try:
        if folder is not None and folder.is_dir():
            return _write_new(text, "traceback-", folder)
    except OSError:
        folder = None  # full, or not ours: the temporary one may be another device
    return _write_new(text, "lit-sphere-traceback-", None)


def _write_new(text: str, prefix: str, folder: Path | None) -> str:
    handle, path = tempfile.mkstemp(".txt", prefix, folder)
    with open(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _print_line(message: str, status: int) -> int:
    line = " ".join(message.split())
    line = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…"
    if line.startswith("No supported gpu backend"):
        line = "no GPU found: use --trainer.accelerator cpu or auto"
    allocation = re.search(r"tried to allocate (\S+ \S+?)[.;]", line)
    if allocation:
        line = f"{allocation[1]} of memory are not there: make the network (--model) or its batches (--data) smaller"
    if "made after the example input" in line and ": ValueError: " not in line:  # a network that refuses them says why
        line += "; does --model.input_shape fit the data?"
    print(f"lit-sphere: {line}", file=sys.stderr)
    return status


def _os_error(error: OSError, command: str) -> str:
    if not error.strerror:
        return str(error)
    again = "resume from the last checkpoint" if command == "fit" else "run the command again"
    other = "choose a folder that can be written, --run DIR"
    remedies = {
        errno.ENOSPC: f"free some space and {again}",
        errno.EFBIG: f"beyond a size limit; {again} in another folder",
        errno.EROFS: other,
        errno.EACCES: other,
        errno.ELOOP: "links that lead to themselves; correct them or give another path",
    }
    remedy = remedies.get(error.errno or 0)
    path = error.filename
    if error.errno == errno.EACCES and isinstance(path, str) and Path(path).exists() and not os.access(path, os.R_OK):
        remedy = "allow to read it (chmod u+rX), or give another path"
    return f"{error.strerror}{f': {path}' if path else ''}{f'; {remedy}' if remedy else ''}"


def _never_logged(message: str) -> str:
    """What EarlyStopping waits for in vain; Lightning lists all that is logged."""
    named = re.match(r".*?`([^`]+)`.*?following: (.*)", message, re.DOTALL)
    key, logged = (named[1], named[2].replace("`", "")) if named else ("", message)
    return f"--trainer.callbacks: EarlyStopping: monitor {key!r} is logged by nobody; there are {logged}"


def _twice(message: str) -> str:
    """Two callbacks whose states Lightning cannot tell apart."""
    named = re.search(r"callback of type `(\w+)`", message)
    name = named[1] if named else "a callback"
    built_in = {"EffectiveLearningRateMonitor": "--monitor", "RunCheckpoint": "--checkpoint"}.get(name)
    remedy = f"it is there already, its options are {built_in}.…" if built_in else "leave one out, or change an option"
    return f"--trainer.callbacks: {name} twice with the same options; {remedy}"
