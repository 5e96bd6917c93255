"""What a user sees of an error: one line, and an exit status."""

import errno
import sys


class CommandLineError(Exception):
    """The command line asks for something that is not there; the message is one line with the remedy."""


def exit_status(error: BaseException) -> int | None:
    """Print one line for a foreseen error.

    Args:
        error: What a command raised.

    Returns:
        Exit status; None for errors that are nobody's foreseen mistake, whose traceback is wanted.
    """
    if isinstance(error, SystemExit):
        return None
    if isinstance(error, KeyboardInterrupt):
        return _say("interrupted before training began; nothing to save", 130)
    if isinstance(error, CommandLineError):
        return _say(str(error), 2)
    if isinstance(error, OSError):
        return _say(_os_error(error), 1)
    # The types below are at hand only once their libraries are imported.
    modules = sys.modules
    if "jsonargparse" in modules and isinstance(error, modules["jsonargparse"].ArgumentError):
        return _say(_argument_error(str(error)), 2)
    if "lit_sphere.callbacks" in modules:
        callbacks = modules["lit_sphere.callbacks"]
        if isinstance(error, callbacks.Interrupted):
            return _say(f"{error}", 128 + error.signum)
        if isinstance(error, callbacks.NonFinite):
            return _say(str(error), 1)
    lightning_errors = modules.get("lightning.fabric.utilities.exceptions")
    if lightning_errors and isinstance(error, lightning_errors.MisconfigurationException):
        return _say(str(error), 1)
    if isinstance(error, ValueError):
        return _say(str(error), 1)
    return None


def _say(message: str, status: int) -> int:
    line = " ".join(message.split())
    print(f"lit-sphere: {line}", file=sys.stderr)
    return status


def _os_error(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    remedy = {
        errno.ENOSPC: "free some space and resume from the last checkpoint",
        errno.EFBIG: "the file would pass a size limit; resume from the last checkpoint elsewhere",
        errno.EROFS: "choose a folder that can be written, --run DIR",
        errno.EACCES: "choose a folder that can be written, --run DIR",
    }.get(error.errno or 0)
    reason = error.strerror or str(error)
    return f"{reason}:{where}" + (f"; {remedy}" if remedy else "") if error.strerror else str(error)


def _argument_error(message: str) -> str:
    return message
