"""How a sweep is shown: a live table in a terminal, a line for each point that ends elsewhere."""

import sys
from collections.abc import Sequence

from lit_sphere.sweep.states import PointState


class Lines:
    """Prints a line for each point that ends."""

    def show(self, states: Sequence[PointState]) -> None:
        """Nothing: the state of what runs is for terminals."""

    def ended(self, state: PointState, states: Sequence[PointState]) -> None:
        """Print it."""
        over = sum(each.state not in ("waiting", "running", "submitted") for each in states)
        print(f"{over}/{len(states)}  {one_line(state)}", file=sys.stderr, flush=True)


def one_line(state: PointState) -> str:
    """Say what has become of a point.

    Args:
        state: Of the point.

    Returns:
        One line.
    """
    parts = [f"{state.point.name}  {state.state}"]
    if state.state == "done":
        parts[0] += f" after {short_time(state.seconds)}"
    elif state.epoch is not None:
        parts[0] += f" in epoch {state.epoch}"
    if state.loss is not None:
        parts.append(f"loss {state.loss:.3g}")
    parts += [text for text in (state.regime, state.line) if text]
    return ", ".join(parts)


def short_time(seconds: float) -> str:
    """Write a time.

    Args:
        seconds: The time.

    Returns:
        Such as ``12 s``, ``3 min 20 s`` or ``2 h 05 min``.
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole // 60 % 60:02} min"
