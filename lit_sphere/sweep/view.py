"""How a sweep is shown: a live table in a terminal, a line for each point that ends elsewhere."""

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lit_sphere.sweep.states import PointState, State

_STYLES: dict[State, str] = {
    "waiting": "dim",
    "submitted": "dim",
    "running": "cyan",
    "done": "green",
    "failed": "bold red",
    "interrupted": "yellow",
}
_REGIMES = {"convergence": "blue", "chaotic equilibrium": "magenta", "divergence": "red"}
_AROUND = 6  # lines of the screen for the head, the counts and the prompt
_BAR = 12
_WIDEST = 28
_REGIME = 19  # "chaotic equilibrium"
_BETWEEN = 3  # characters of a column's margins
_RIGHT = ("epoch", "loss", "time", "left")


class Lines:
    """Prints a line for each point that ends.

    Args:
        grows: Whether more points may come: how many there will be is not known.
    """

    def __init__(self, grows: bool = False) -> None:
        self._grows = grows
        self._ended = set[str]()  # by this command: those that failed before are tried again

    def show(self, states: Sequence[PointState]) -> None:
        """Nothing: what runs is shown in terminals only."""

    def ended(self, state: PointState, states: Sequence[PointState]) -> None:
        """Print it."""
        self._ended.add(state.point.name)
        over = sum(each.state == "done" or each.point.name in self._ended for each in states)
        of_all = "" if self._grows else f"/{len(states)}"
        print(f"{over}{of_all}  {one_line(state)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing."""


class LiveTable:
    """Keeps a table of all points in the terminal; of more than fit on the screen, those that run, failed or came last.

    Args:
        folder: Of the sweep.
        jobs: Points at once.
        console: Where; standard error if not given.
    """

    def __init__(self, folder: Path, jobs: int, console: Console | None = None) -> None:
        self._folder, self._jobs, self._began = folder, jobs, time.monotonic()
        self._done_before: int | None = None
        console = console or Console(file=sys.stderr, highlight=False)
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self, states: Sequence[PointState]) -> None:
        """Draw it anew."""
        if self._done_before is None:
            self._done_before = sum(each.state == "done" for each in states)
        self._live.update(self.table(states), refresh=True)

    def ended(self, state: PointState, states: Sequence[PointState]) -> None:
        """Nothing: the table shows it."""

    def close(self) -> None:
        """Leave the last table on the screen."""
        self._live.stop()

    def table(self, states: Sequence[PointState]) -> Table:
        """Lay out the table.

        Args:
            states: Of all points.

        Returns:
            The table, with the counts below it.
        """
        shown, hidden = _chosen(states, max(4, self._console.height - _AROUND))
        heads = [name.rpartition(".")[2] or name for name in states[0].point.values]
        heads += ["state", "epoch", "", "loss", "time", "left", "regime"]
        columns = dict(enumerate(zip(*(_cells(state) for state in shown), strict=True)))
        widths = {i: min(_WIDEST, max(map(len, [heads[i], *cells]))) for i, cells in columns.items()}
        last = widths.popitem()[0]

        def left() -> int:
            return self._console.width - sum(widths.values()) - _BETWEEN * (len(widths) + 1)

        for head in ("", "time", "left", "epoch"):  # of a narrow terminal
            if left() < _REGIME:
                del widths[len(heads) - 1 - heads[::-1].index(head)]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left", caption_style="")
        # The last column takes what is left: a long line is cut there, not the numbers.
        for i, width in {**widths, last: max(len(heads[last]), left())}.items():
            table.add_column(heads[i], overflow="ellipsis", no_wrap=True, max_width=width)
            table.columns[-1].min_width = None if i == last else width
            table.columns[-1].justify = "right" if heads[i] in _RIGHT else "left"
        for cells in zip(*(columns[i] for i in (*widths, last)), strict=True):
            table.add_row(*cells)
        table.caption = Text("\n".join(filter(None, [_hidden(hidden), self._counts(states)])))
        return table

    def _counts(self, states: Sequence[PointState]) -> str:
        left = seconds_left(states, self._jobs)
        parts = [str(self._folder), counts(states), f"about {short_time(left)} left" if left else ""]
        return " · ".join(filter(None, parts))


def counts(states: Iterable[PointState]) -> str:
    """Count the points by their states.

    Args:
        states: Of all points.

    Returns:
        Such as ``3 done, 2 running, 17 waiting``.
    """
    listed = [each.state for each in states]
    order: tuple[State, ...] = ("done", "running", "failed", "interrupted", "submitted", "waiting")
    return ", ".join(f"{listed.count(state)} {state}" for state in order if state in listed)


def seconds_left(states: Sequence[PointState], jobs: int) -> float | None:
    """Estimate when all will be over.

    Args:
        states: Of all points.
        jobs: Points at once.

    Returns:
        Seconds; None while nothing is known, or nothing is left.
    """
    running = [each for each in states if each.state == "running"]
    waiting = sum(each.state == "waiting" for each in states)
    known = [each.seconds for each in states if each.state == "done" and each.seconds]
    known += [each.seconds + each.seconds_left for each in running if each.seconds_left is not None]
    if not known or not (running or waiting):
        return None
    mean = sum(known) / len(known)
    lefts = [max(0.0, mean - each.seconds) if each.seconds_left is None else each.seconds_left for each in running]
    return max([(sum(lefts) + waiting * mean) / max(1, jobs), *lefts])


def one_line(state: PointState) -> str:
    """Say what has become of a point.

    Args:
        state: Of the point.

    Returns:
        One line.
    """
    done = f" after {short_time(state.seconds)}" if state.state == "done" else ""
    where = f" in epoch {state.epoch}" if state.epoch is not None and not done else ""
    parts = [f"{state.point.name}  {state.state}{done or where}"]
    if state.loss is not None:
        parts.append(f"loss {state.loss:.3g}")
    if state.regime and not (state.regime == "undecided" and state.line):
        parts.append(state.regime)
    return ", ".join(parts) + (f": {state.line}" if state.line else "")


def short_time(seconds: float) -> str:
    """Write a time.

    Args:
        seconds: The time.

    Returns:
        Such as ``12 s``, ``3 min 20 s`` or ``2 h 05 min``.

    Examples:
        >>> short_time(200), short_time(7500)
        ('3 min 20 s', '2 h 05 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole // 60 % 60:02} min"


def _chosen(states: Sequence[PointState], most: int) -> tuple[Sequence[PointState], list[PointState]]:
    """Those that are shown, in their order, and those for which there is no place."""
    if len(states) <= most:
        return states, []
    urgent = {"running": 0, "failed": 1, "interrupted": 1, "done": 2, "submitted": 3, "waiting": 4}
    by_urgency = sorted(
        range(len(states)), key=lambda i: (urgent[states[i].state], -i if states[i].state == "done" else i)
    )
    kept = sorted(by_urgency[: most - 1])
    return [states[i] for i in kept], [state for i, state in enumerate(states) if i not in set(kept)]


def _hidden(states: Sequence[PointState]) -> str:
    return f"and {len(states)} more: {counts(states)}" if states else ""


def _cells(state: PointState) -> list[str | Text]:
    end = Text(state.regime, _REGIMES.get(state.regime, "dim"))
    return [
        *state.point.values.values(),
        Text(state.state, _STYLES[state.state]),
        _epochs(state),
        Text(_bar(state), "cyan" if state.state == "running" else "dim"),
        "" if state.loss is None else f"{state.loss:.3g}",
        short_time(state.seconds) if state.seconds >= 1 else "",
        "" if state.seconds_left is None else short_time(state.seconds_left),
        Text(state.line, "red") if state.state == "failed" else end,
    ]


def _epochs(state: PointState) -> str:
    if state.epoch is None:
        return f"0/{state.epochs}" if state.epochs else ""
    return f"{state.epoch}/{state.epochs}" if state.epochs else str(state.epoch)


def _bar(state: PointState) -> str:
    if not state.epochs or state.state in ("waiting", "submitted"):
        return ""
    full = round(_BAR * min(1.0, (state.epoch or 0) / state.epochs))
    return "━" * full + "╌" * (_BAR - full)
