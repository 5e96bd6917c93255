"""Points of a sweep in processes on this machine, forked from one that has imported everything."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from shutil import disk_usage
from typing import NamedTuple

from lit_sphere.sweep.point_run import (
    BLOCKED_IN_SERVER,
    Outcome,
    Task,
    forget_outcome,
    last_line,
    read_outcome,
    run_forked,
)

_FORKS = sys.platform.startswith("linux")  # elsewhere the system's libraries do not bear it
_LEAST_SPACE = 2**16  # bytes


class _Running(NamedTuple):
    task: Task
    process: BaseProcess
    slot: int


class LocalProcesses:
    """Runs points in processes of their own, a few at once.

    On Linux these are forked from a process that has imported the command and done nothing else (the standard
    library's fork server), so that a run starts at once and is in the state of a new process. Elsewhere each one
    imports everything anew.

    Args:
        jobs: Processes at once.
        threads: Of each.
        gpus: Ids of GPUs, dealt out to the processes in turn; empty without one.
        preload: Modules that all runs need.
    """

    outlives = False

    def __init__(self, jobs: int, threads: int, gpus: Sequence[str], preload: Sequence[str]) -> None:
        self._threads, self._gpus = threads, list(gpus)
        self._context = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
        self._free = list(range(jobs))
        self._running: dict[str, _Running] = {}
        self._stopped = 0
        self._preload = preload

    @property
    def has_room(self) -> bool:
        """Whether another point can be started now."""
        return bool(self._free) and not self._stopped

    def prepare(self) -> None:
        """Let the fork server import, while this process does something else."""
        import_early(self._threads, self._preload)

    def goes_on(self, name: str, folder: Path, job: str) -> bool:
        """Whether a point of an earlier command still runs: it would have ended with that."""
        return False

    def start(self, name: str, task: Task) -> str:
        """Start a point.

        Args:
            name: Of the point.
            task: What is to be run.

        Returns:
            Its job id: empty, since it ends with this process.

        Raises:
            OSError: If there can be no process.
        """
        task.folder.mkdir(exist_ok=True)  # here, where a full disk can be told
        forget_outcome(task.folder)
        slot = min(self._free)
        self._free.remove(slot)
        environment = dict(task.environment)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        environment["OMP_NUM_THREADS"] = str(self._threads)
        task = Task(task.folder, task.arguments, environment, self._threads, task.command)
        process = self._context.Process(target=run_forked, args=(task,), name=name)  # type: ignore[attr-defined]
        try:
            self.prepare()
            with _threads_in_environment(self._threads):
                process.start()
        except (OSError, EOFError) as error:
            self._free.append(slot)
            raise OSError(f"the process that forks the others has ended ({error})") from error
        self._running[name] = _Running(task, process, slot)
        return ""

    def wait(self, seconds: float) -> dict[str, Outcome]:
        """Wait for points to end.

        Args:
            seconds: At most.

        Returns:
            How those ended that have ended, by name.
        """
        sentinels = {running.process.sentinel: name for name, running in self._running.items()}
        ended = {}
        for sentinel in wait(list(sentinels), seconds):
            name = sentinels[sentinel]  # type: ignore[index]
            running = self._running.pop(name)
            self._free.append(running.slot)
            running.process.join()
            ended[name] = _outcome(running.process.exitcode or 0, running.task.folder)
        return ended

    def stop(self) -> None:
        """Ask all to stop with a checkpoint; the second time, end them at once."""
        self._stopped += 1
        for running in self._running.values():
            pid = running.process.pid
            if pid is not None and running.process.is_alive():
                os.kill(pid, signal.SIGTERM if self._stopped == 1 else signal.SIGKILL)

    def close(self) -> None:
        """End what still runs, when the sweep itself has failed."""
        while self._running:
            self.stop()
            self.wait(10)


def import_early(threads: int, preload: Sequence[str]) -> None:
    """Start the process that is forked for each run, if there is none yet: it takes seconds to import.

    Args:
        threads: Of its libraries; those of torch are set anew in each run.
        preload: Modules that all runs need.
    """
    if _FORKS:
        from multiprocessing import resource_tracker
        from multiprocessing.forkserver import ensure_running, set_forkserver_preload

        set_forkserver_preload(list(preload))
        resource_tracker.ensure_running()  # which would unblock what is blocked below
        with _threads_in_environment(threads), _interrupts_ignored(), _ends_blocked():
            ensure_running()


def _outcome(exit_code: int, folder: Path) -> Outcome:
    """What the run wrote; of one that could not, what its exit code tells."""
    written = read_outcome(folder)
    if written is not None:
        return written
    said = last_line(folder)
    if exit_code >= 0:
        full = "the disk is full" if disk_usage(folder).free < _LEAST_SPACE else ""
        return Outcome(exit_code or 1, 0.0, said or full or f"ended with status {exit_code}, and said nothing")
    memory = " (out of memory?)" if exit_code == -signal.SIGKILL else ""
    return Outcome(
        exit_code, 0.0, f"was ended by {signal.Signals(-exit_code).name}{memory}{f'; last: {said}' if said else ''}"
    )


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ctrl-C would end the fork server while it imports; a process that is started here inherits this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _ends_blocked() -> Iterator[None]:
    """Let what is started here live on where a signal goes to the whole process group.

    That is what timeout(1) and a closed terminal do. A fork server that ended then would take the exit statuses of
    the runs with it. Blocked and not ignored: a run that is told to stop before it could unblock them stops still.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_IN_SERVER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _threads_in_environment(threads: int) -> Iterator[None]:
    """OpenMP reads these when torch is imported, in the process that is started here."""
    wanted = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
