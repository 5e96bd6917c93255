"""A sweep: its points run, a few at once, until all have ended; what has become of them stands in its folder."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lit_sphere.files import FolderInUse, claim_folder
from lit_sphere.sweep.grid import Point, SweepError
from lit_sphere.sweep.plan import FolderPlan, Plan, check_goes_on, read_folder_plan, write_folder_plan
from lit_sphere.sweep.point_run import Outcome, Task, read_outcome
from lit_sphere.sweep.states import STATES_FILE, PointState, read_states, write_states

_LOOK_EVERY = 1.0  # seconds between two looks at the tables of the runs, at least
_LOOK_SHARE = 0.02  # of a core's time, at most: the runs need it
_WRITE_EVERY = 10.0  # seconds between two tables of states while nothing ends
_POLL = 0.5
_NO_RUNS = (".lock", "wandb-sweep.yaml")  # that a folder may hold before a sweep begins in it
_ECHO = 0.2  # seconds: timeout(1) and other parents send one signal twice


class Fit(NamedTuple):
    """The command that a sweep runs, handed down to it by the command line.

    Attributes:
        command: Runs a command line of ``lit-sphere`` in this process; ends by ``SystemExit`` where it fails.
        configs: A digest of the content of each config by name.
        epochs: Of each point the epochs that it is to train, None without a limit; in the order of the points.
    """

    command: Callable[[list[str]], None]
    configs: Mapping[str, str]
    epochs: Sequence[int | None]


class Launcher(Protocol):
    """Where points run."""

    outlives: bool
    """Whether points go on when the sweep itself has ended."""

    @property
    def has_room(self) -> bool:
        """Whether another point can be started now."""

    def prepare(self) -> None:
        """Get ready, before the first point."""

    def goes_on(self, name: str, folder: Path, job: str) -> bool:
        """Find out whether a point of an earlier command still runs, and watch it then."""

    def start(self, name: str, task: Task) -> str:
        """Start a point; give the id of its job, if it outlives this process."""

    def wait(self, seconds: float) -> Mapping[str, Outcome]:
        """Wait for points to end; give how those ended that have."""

    def stop(self) -> None:
        """Ask all to stop with a checkpoint; the second time, end them at once."""

    def close(self) -> None:
        """End what still runs."""


Chooser = Callable[[Sequence[PointState]], Plan | None]
"""Gives a sweep that has room the plan with one more point, by where its points stand; None for none at the moment."""


class View(Protocol):
    """Who shows a sweep while it runs."""

    def show(self, states: Sequence[PointState]) -> None:
        """Show where all points stand."""

    def ended(self, state: PointState, states: Sequence[PointState]) -> None:
        """Tell that a point has ended."""

    def close(self) -> None:
        """Nothing more will be shown."""


@dataclass(frozen=True)
class SweepResult:
    """What has become of a sweep.

    Attributes:
        folder: Of the sweep.
        states: Of its points, in their order.
        signum: Signal that stopped it; None if it ran to its end.
        afterwards: Whether the commands after the grid have succeeded, as far as they were run.
    """

    folder: Path
    states: list[PointState]
    signum: int | None = None
    afterwards: bool = True

    @property
    def is_done(self) -> bool:
        """Whether all points are done."""
        return all(state.state == "done" for state in self.states)

    @property
    def folders(self) -> list[Path]:
        """Folders of the points, in their order."""
        return [state.folder for state in self.states]


class Sweep:
    """A sweep in its folder.

    Args:
        plan: What it is.
        folder: Where it is to be; may hold an earlier part of it.
        fit: The command.
        threads: Of each run, if it begins now.

    Raises:
        SweepError: If the folder holds another sweep, another process is at work there, or it cannot be written to.
        OSError: If the disk is full.
    """

    def __init__(self, plan: Plan, folder: Path, fit: Fit, threads: int) -> None:
        points = plan.points
        before = begun_in(folder, plan, fit.configs)
        try:
            claim_folder(folder)
        except FolderInUse as error:
            raise SweepError(f"{error}; wait until that has ended, or give --sweep with another folder") from error
        except OSError as error:
            found = f"{folder}: cannot be made, or not be written to ({error.strerror})"
            raise SweepError(f"{found}; give --sweep with another folder") from error
        self.plan, self.folder, self.fit = plan, folder, fit
        self.threads = before.threads if before else threads
        self.states = read_states(folder / STATES_FILE, points)
        self.goes_on = before is not None
        for state, epochs in zip(self.states, fit.epochs, strict=True):
            state.epochs = epochs
            self._take_up(state)
        write_folder_plan(folder, FolderPlan(plan, self.threads, dict(fit.configs)))
        write_states(folder / STATES_FILE, self.states)

    @staticmethod
    def _take_up(state: PointState) -> None:
        """Find out what has become of a point since the table was written."""
        outcome = read_outcome(state.folder)
        if outcome is not None and outcome.status == 0 and state.state != "done":
            state.state, state.line, state.seconds = "done", "", state.seconds + outcome.seconds
            _look(state)
        elif state.state == "running":
            state.state = "interrupted"

    def environment(self, point: Point) -> dict[str, str]:
        """Give the environment of a point's run: W&B puts the runs of a sweep together.

        Args:
            point: The point.

        Returns:
            All variables.
        """
        tags = [f"{name}={value}"[:64] for name, value in point.values.items()]
        given = [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag]
        return {
            **os.environ,
            "WANDB_RUN_GROUP": self.folder.resolve().name[:128],
            "WANDB_JOB_TYPE": "sweep",
            "WANDB_TAGS": ",".join([*given, *(tag.replace(",", ";") for tag in tags)]),
        }

    def extend(self, plan: Plan) -> list[PointState]:
        """Take up more points.

        Args:
            plan: That of the sweep, with more points.

        Returns:
            What is new.
        """
        known, epochs = {state.point.name: state for state in self.states}, self.states[0].epochs
        new = [
            PointState(point, self.folder / point.name, epochs=epochs)
            for point in plan.points
            if point.name not in known
        ]
        known |= {state.point.name: state for state in new}
        self.states[:] = [known[point.name] for point in plan.points]
        self.plan = plan
        write_folder_plan(self.folder, FolderPlan(plan, self.threads, dict(self.fit.configs)))
        return new

    def run(self, launcher: Launcher, view: View, choose: Chooser | None = None) -> SweepResult:
        """Run all points that are not done.

        Args:
            launcher: Where.
            view: Who shows it.
            choose: Chooses more points while it runs.

        Returns:
            What has become of them.
        """
        with _signals() as signals:
            loop = _Loop(self, launcher, view, signals, choose)
            try:
                view.show(self.states)
                launcher.prepare()
                while loop.turn():
                    pass
            finally:
                launcher.close()
                loop.table.write(at_once=True)
                view.show(self.states)
                view.close()
        return SweepResult(self.folder, self.states, signals.last)

    def start(self, state: PointState, launcher: Launcher) -> None:
        """Start a point.

        Args:
            state: Of the point; becomes ``running``, ``submitted``, or ``failed`` where it cannot be started.
            launcher: Where.
        """
        arguments = tuple(self.plan.arguments(state.point))
        task = Task(state.folder, arguments, self.environment(state.point), self.threads, self.fit.command)
        try:
            state.job = launcher.start(state.point.name, task)
        except OSError as error:
            state.state, state.line = "failed", f"could not be started: {error.strerror or error}"
            return
        state.state, state.line = ("submitted" if state.job else "running"), ""


class _Loop:
    """Starts points, waits for them, looks at them."""

    def __init__(
        self, sweep: Sweep, launcher: Launcher, view: View, signals: "_Signals", choose: Chooser | None
    ) -> None:
        self._sweep, self._launcher, self._view, self._signals = sweep, launcher, view, signals
        self._choose = choose
        self.table = _Table(sweep.folder / STATES_FILE, sweep.states)
        self._by_name = {state.point.name: state for state in sweep.states}
        self._running: dict[str, _Clock] = {}
        self._waiting: list[PointState] = []
        for state in sweep.states:
            if state.state == "done":
                continue
            if launcher.goes_on(state.point.name, state.folder, state.job):
                state.state = "running"
                self._running[state.point.name] = _Clock(state)
            else:
                self._waiting.append(state)
        self._next_look = 0.0

    def turn(self) -> bool:
        """Do what is to be done now; tell whether anything is left."""
        self._start()
        self.table.write()
        self._signals.pass_on(self._launcher)
        stops = bool(self._signals.count)
        if (stops and self._launcher.outlives) or not (self._running or (self._waiting and not stops)):
            return False
        for name, outcome in self._launcher.wait(_POLL).items():
            state = self._by_name[name]
            _end(state, self._running.pop(name), outcome, self._signals.count)
            self.table.is_due = True
            self._view.ended(state, self._sweep.states)
        self._look()
        self._view.show(self._sweep.states)
        self.table.write()
        return True

    def _start(self) -> None:
        while self._launcher.has_room and not self._signals.count:
            if not self._waiting:
                self._waiting = self._chosen()
            if not self._waiting:
                break
            state = self._waiting.pop(0)
            clock = _Clock(state)
            self._sweep.start(state, self._launcher)
            if state.state == "failed":
                self._view.ended(state, self._sweep.states)
            else:
                self._running[state.point.name] = clock
            self.table.is_due = True

    def _chosen(self) -> list[PointState]:
        plan = None if self._choose is None else self._choose(self._sweep.states)
        new = [] if plan is None else self._sweep.extend(plan)
        self._by_name |= {state.point.name: state for state in new}
        return new

    def _look(self) -> None:
        """See how far those have come that run; the more runs there are and the longer, the less often."""
        began = time.monotonic()
        if began < self._next_look:
            return
        for name, clock in self._running.items():
            clock.look(self._by_name[name])
        now = time.monotonic()
        self._next_look = now + max(_LOOK_EVERY, (now - began) / _LOOK_SHARE)


class _Clock:
    """Times a point that runs."""

    def __init__(self, state: PointState) -> None:
        self.began, self._spent = time.monotonic(), state.seconds
        self._first: tuple[float, int] | None = None  # when the first epochs were seen, and how many
        self._size = _size(state.folder)

    def look(self, state: PointState) -> None:
        """See how far it has come."""
        state.seconds = self._spent + time.monotonic() - self.began
        size = _size(state.folder)
        if size == self._size:
            return
        self._size, state.state = size, "running"
        _look(state)
        if state.epoch is None:
            return
        now = time.monotonic()
        if self._first is None or state.epoch < self._first[1]:
            self._first = now, state.epoch
        then, before = self._first
        if state.epochs is not None and state.epoch > before:
            state.seconds_left = (state.epochs - state.epoch) * (now - then) / (state.epoch - before)

    def end(self, state: PointState, seconds: float) -> None:
        """Stop the clock."""
        state.seconds = self._spent + (seconds or time.monotonic() - self.began)
        state.seconds_left = None


class _Table:
    """Writes the table of states now and then; where the disk is full, the old one stays."""

    def __init__(self, path: Path, states: Sequence[PointState]) -> None:
        self._path, self._states = path, states
        self._written = time.monotonic()
        self.is_due = False

    def write(self, at_once: bool = False) -> None:
        """Write it if something has ended, or some time has passed."""
        now = time.monotonic()
        if not (at_once or self.is_due) and now - self._written < _WRITE_EVERY:
            return
        self.is_due, self._written = False, now
        try:
            write_states(self._path, self._states)
        except OSError:
            self.is_due = True


class _Signals:
    """Signals that came, and those that were handed on to the runs."""

    def __init__(self) -> None:
        self.count, self._passed_on, self._at = 0, 0, 0.0
        self.last: int | None = None

    def receive(self, signum: int, frame: Any) -> None:
        """Note a signal."""
        now = time.monotonic()
        if self.count and now - self._at < _ECHO:
            return
        self.count, self.last, self._at = self.count + 1, signum, now

    def pass_on(self, launcher: Launcher) -> None:
        """Tell the runs."""
        while self._passed_on < self.count:
            self._passed_on += 1
            launcher.stop()


@contextmanager
def _signals() -> Iterator[_Signals]:
    """Take over the signals that stop a process, while points run."""
    signals, before = _Signals(), {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signum = getattr(signal, name, None)
            if signum is not None and not (name == "SIGHUP" and signal.getsignal(signum) == signal.SIG_IGN):
                before[signum] = signal.signal(signum, signals.receive)
    try:
        yield signals
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _size(folder: Path) -> int:
    """Of the table that a run writes; -1 while there is none."""
    try:
        return (folder / "metrics.csv").stat().st_size
    except OSError:
        return -1


def _look(state: PointState) -> None:
    """Read how far a run has come, if that can be read."""
    from lit_sphere.analysis.epoch_rows import LOSS_KEYS  # with torch, which takes seconds to import
    from lit_sphere.report.runs import read_run

    try:
        run = read_run(state.folder)
    except (OSError, ValueError):
        return
    key = run.key(LOSS_KEYS)
    if key is not None and run.epochs:
        verdict = run.verdict
        state.epoch, state.loss = run.epochs, run.final(key)
        state.regime = verdict.regime if verdict else ""


def _end(state: PointState, clock: _Clock, outcome: Outcome, signals: int) -> None:
    _look(state)
    clock.end(state, outcome.seconds)
    stopped = outcome.status in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGINT)
    stopped = stopped or (signals > 1 and outcome.status == -signal.SIGKILL)
    state.state = "done" if outcome.status == 0 else "interrupted" if stopped else "failed"
    state.line = outcome.line if outcome.status else ""


def begun_in(folder: Path, plan: Plan, configs: Mapping[str, str]) -> FolderPlan | None:
    """Look for an earlier part of a sweep.

    Args:
        folder: Where.
        plan: The sweep.
        configs: A digest of the content of each config by name.

    Returns:
        What has begun there; None if nothing has.

    Raises:
        SweepError: If the folder holds another sweep, or something else.
    """  # noqa: DOC502
    before = read_folder_plan(folder)
    if before is None:
        _check_unused(folder)
    else:
        check_goes_on(before, plan, configs, folder)
    return before


def _check_unused(folder: Path) -> None:
    """Refuse a folder that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise SweepError(f"{folder} is no folder; give --sweep with another one")
    inside = [each.name for each in folder.iterdir() if each.name not in _NO_RUNS] if folder.is_dir() else []
    if inside:
        raise SweepError(f"{folder} holds something else than a sweep, e.g. {inside[0]}; give --sweep with another one")
