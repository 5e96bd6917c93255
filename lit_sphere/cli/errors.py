"""What a user sees of an error: one line, and an exit status."""

import errno
import os
import re
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
            # All ranks agree to stop: one of them says so.
            first = os.environ.get("LOCAL_RANK", "0") == "0"
            return _say(str(error), 128 + error.signum) if first else 128 + error.signum
        if isinstance(error, callbacks.NonFinite):
            return _say(str(error), 1)
    lightning_errors = modules.get("lightning.fabric.utilities.exceptions")
    if lightning_errors and isinstance(error, lightning_errors.MisconfigurationException):
        return _say(str(error), 1)
    if isinstance(error, RuntimeError) and str(error).startswith("Found more than one stateful callback"):
        return _say(_twice(str(error)), 2)
    if isinstance(error, ValueError):
        # jsonargparse passes on what a constructor raised within its account of the types.
        refused = "Does not validate against any" in str(error)
        return _say(_argument_error(str(error)), 2) if refused else _say(str(error), 1)
    return None


def _say(message: str, status: int) -> int:
    line = " ".join(message.split())
    if line.startswith("No supported gpu backend"):
        line = "no GPU found: use --trainer.accelerator cpu or auto"
    if "made after the example input" in line:
        line += "; does --model.input_shape fit the data?"
    print(f"lit-sphere: {line}", file=sys.stderr)
    return status


def _os_error(error: OSError) -> str:
    if not error.strerror:
        return str(error)
    remedy = {
        errno.ENOSPC: "free some space and resume from the last checkpoint",
        errno.EFBIG: "beyond a size limit; resume from the last checkpoint in another folder",
        errno.EROFS: "choose a folder that can be written, --run DIR",
        errno.EACCES: "choose a folder that can be written, --run DIR",
    }.get(error.errno or 0)
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}" + (f"; {remedy}" if remedy else "")


def _argument_error(message: str) -> str:
    """Shorten jsonargparse's account of all types that it tried to the option, what it wants and what it got."""
    text = " ".join(message.split())
    if "Expected a dot import path string" in text:
        key, name = _option(text), text.split("Expected a dot import path string: ")[1].split(" - ")[0]
        return f"{key}: there is no class {name!r}; there are {_classes(key)}"
    keys, given = (
        _option(text),
        re.findall(r"Given value: (?!\[?Namespace|NestedArg)(.+?)(?: - Expected| Given|$)", text),
    )
    text = re.sub(r"(?:- )?Expected a path but \[.*? either not accessible or invalid", "", text)
    text = re.sub(r"- Problem with given class_path 'lightning.Callback': Option '[^']+' is not accepted", "", text)
    text = re.sub(r"-? ?Not a valid subclass of Callback.*$", "", text)
    text = re.sub(r'Parser key "[^"]+"(?: element \d+)?:', "", text)
    text = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors:", "", text)
    text = re.sub(r"Given value(?: type)?: .*?(?= - Expected|$)", "", text)
    text = re.sub(r"Problem with given class_path '[\w.]+?(\w+)':(?= Option)", r"\1", text)
    text = re.sub(r"Problem with given class_path '[\w.]+':", "", text)
    text = re.sub(r"- Expected (?:a )?<class 'NoneType'>", "", text)
    text = re.sub(r"Expected (?:a )?<class '(?:\w+\.)*(\w+)'>", r"expected \1", text)
    text = re.sub(r"Expected (?:a )?typing\.Literal\[(.*?)\]", r"expected one of \1", text)
    text = re.sub(
        r"Option '([^']+)' is not accepted",
        rf"has no option '\1'; {_help_of(keys)}",
        text,
    )
    if "expected float" in text and given and given[0].strip(" .+-").lower() in ("nan", "inf"):
        text = text.replace("expected float", "expected a finite number")
    reasons = [part.strip(" -:") for part in re.split(r"(?:^|\s)- ", text)]
    reason = " or ".join(dict.fromkeys(part for part in reasons if part))
    got = f", got {given[0].strip()}" if given else ""
    return f"{keys}: {reason}{got}" if keys else f"{reason}{got}"


def _twice(message: str) -> str:
    """Two callbacks whose states Lightning cannot tell apart."""
    named = re.search(r"callback of type `(\w+)`", message)
    name = named[1] if named else "a callback"
    built_in = {"EffectiveLearningRateMonitor": "--monitor", "RunCheckpoint": "--checkpoint"}.get(name)
    remedy = f"it is there already, its options are {built_in}.…" if built_in else "leave one out, or change an option"
    return f"--trainer.callbacks: {name} twice with the same options; {remedy}"


def _option(text: str) -> str:
    keys = re.findall(r'Parser key "([^"]+)"', text)
    return "--" + ".".join(keys) if keys else ""


def _help_of(option: str) -> str:
    if option.startswith("--trainer.callbacks"):
        return "--trainer.callbacks.help CLASS lists them"
    return "--model.help CLASS and --data.help CLASS list them"


def _classes(option: str) -> str:
    """Short names of the classes that an option takes."""
    from lit_sphere.cli.shipped_classes import shipped_classes  # not for `lit-sphere --help`

    option = "--trainer.callbacks" if option.startswith("--trainer.callbacks") else option
    names = ", ".join(shipped_classes(option))
    if option == "--trainer.callbacks":
        names += ", and those of lightning.pytorch.callbacks"
    return names or "those of import paths such as torch.optim.SGD"
