"""One point of a sweep in a process of its own: begun, or taken up from its checkpoint, as ``lit-sphere fit`` would."""

import atexit
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lit_sphere.files import FolderInUse, claim_folder, release_folders, write_whole

LOG_FILE = "output.log"
"""What a run prints, in its folder."""

BLOCKED_IN_SERVER = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that the process which is forked for each run does not take; each run does."""

_OUTCOME_FILE = "outcome.json"
_LOCK = ".lock"
_PATIENCE = 60.0  # seconds for the run of a sweep that was killed to leave its checkpoint


@dataclass(frozen=True)
class Task:
    """What a process needs to know to run a point.

    Attributes:
        folder: Of the run.
        arguments: After ``lit-sphere fit``, but for the folder.
        environment: Variables of the run; all of them for :func:`run_forked`.
        threads: For torch.
        command: Runs a command line of ``lit-sphere``; ends by ``SystemExit`` where it fails.
    """

    folder: Path
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    threads: int
    command: Callable[[list[str]], None]


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        status: Exit status; negative for a signal.
        seconds: How long it took.
        line: What it said last.
    """

    status: int
    seconds: float
    line: str


def read_outcome(folder: Path) -> Outcome | None:
    """Read how the run in a folder ended.

    Args:
        folder: Of the run.

    Returns:
        Its outcome; None while it runs, and if it was killed.
    """
    try:
        content = json.loads((folder / _OUTCOME_FILE).read_text(encoding="utf-8"))
        return Outcome(int(content["status"]), float(content["seconds"]), str(content["line"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_outcome(folder: Path) -> None:
    """Take away how a run ended, before it goes on.

    Args:
        folder: Of the run.
    """
    (folder / _OUTCOME_FILE).unlink(missing_ok=True)


def last_line(folder: Path) -> str:
    """Give what a run said last.

    Args:
        folder: Of the run.

    Returns:
        The last line that ``lit-sphere`` has printed, or else the last line of all; empty if there is none.
    """
    try:
        with (folder / LOG_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    mine = [line for line in lines if line.startswith("lit-sphere: ") and not line.startswith("lit-sphere: warning")]
    return (mine or lines or [""])[-1].removeprefix("lit-sphere: ")


def run_forked(task: Task) -> NoReturn:
    """Run a point in a process of multiprocessing that was made for it, and end the process with the run's status.

    Args:
        task: The point.

    Raises:
        SystemExit: Always.
    """  # noqa: DOC502
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C in the terminal goes to the sweep, which tells its runs
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED_IN_SERVER)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_stop_with, args=(parent.sentinel,), daemon=True).start()
    os.environ.clear()
    atexit._clear()  # what the process that was forked would do at its end is not for this one
    try:
        status = run_task(task)
    finally:
        atexit._run_exitfuncs()
    sys.exit(status)


def _stop_with(sentinel: int) -> None:
    """Stop with a checkpoint where the sweep was killed: nobody would ever look after this run."""
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def run_task(task: Task) -> int:
    """Run a point in this process, which is for nothing else; what it prints goes to its folder.

    Args:
        task: The point.

    Returns:
        Exit status.
    """
    began = time.monotonic()
    os.environ.update(task.environment)
    is_first = os.environ.get("SLURM_PROCID", "0") == "0"
    try:
        task.folder.mkdir(parents=True, exist_ok=True)
        _print_into(task.folder / LOG_FILE)
        if is_first:
            _wait_until_free(task.folder)
        arguments = _arguments(task, is_first)
        status = 0 if arguments is None else _run(task, arguments)
    except (OSError, FolderInUse) as error:
        print(f"lit-sphere: {error}", file=sys.stderr, flush=True)
        status = 1
    if is_first:
        _write_outcome(task.folder, Outcome(status, time.monotonic() - began, last_line(task.folder)))
    return status


def _run(task: Task, arguments: list[str]) -> int:
    import torch

    torch.set_num_threads(task.threads)
    sys.argv = ["lit-sphere", *arguments]  # for the ranks that Lightning starts
    try:
        task.command(arguments)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def _write_outcome(folder: Path, outcome: Outcome) -> None:
    text = json.dumps({**outcome._asdict(), "line": outcome.line if outcome.status else ""})
    try:
        write_whole(folder / _OUTCOME_FILE, lambda file: file.write(text.encode()))
    except OSError as error:  # the exit status says the same
        print(f"lit-sphere: {error}", file=sys.stderr, flush=True)


def _print_into(path: Path) -> None:
    """Have all that this process prints in a file, what C prints too."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        with suppress(OSError, ValueError):
            stream.flush()
        os.dup2(log, descriptor)
    os.close(log)


def _wait_until_free(folder: Path) -> None:
    """Wait for the run of a sweep that was killed: it is about to leave its checkpoint."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            claim_folder(folder)
        except FolderInUse:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
            continue
        release_folders()
        return


def _arguments(task: Task, is_first: bool) -> list[str] | None:
    """The command line that begins the run, or goes on with it; None if nothing is left to do."""
    checkpoints = (task.folder / "checkpoints").glob("*.ckpt")
    newest = max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None or not (task.folder / "config.yaml").exists():
        if is_first:
            _clear(task.folder)
        return ["fit", *task.arguments, "--run", str(task.folder)]
    if _nothing_left(task.folder, newest):
        return None
    # All else that was typed stands in its config.yaml.
    return ["fit", "--ckpt_path", str(newest), "--run", str(task.folder)]


def _clear(folder: Path) -> None:
    """Take away what a run left that ended before its first checkpoint."""
    for path in folder.iterdir():
        if path.name in (LOG_FILE, _LOCK):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _nothing_left(folder: Path, checkpoint: Path) -> bool:
    """Whether the run was killed after its last step."""
    import yaml

    from lit_sphere.analysis import epochs_done, read_checkpoint

    try:
        content: dict[str, Any] = read_checkpoint(str(checkpoint))
    except ValueError:
        return False  # fit says what is wrong with it
    trainer = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")).get("trainer") or {}
    counts = (("max_epochs", epochs_done(content) or 0), ("max_steps", content.get("global_step", 0)))
    return any(trainer.get(name) not in (None, -1) and count >= trainer[name] for name, count in counts)
