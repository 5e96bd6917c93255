"""A bar on a terminal for what takes long."""

from typing import Any

from tqdm import tqdm

_SECONDS_BEFORE_BAR = 2.0


def step_bar(steps: int, text: str | None) -> Any:
    """Make a bar; in a file or a pipe it is not seen.

    Args:
        steps: Steps of all runs together.
        text: Stands before it; None for no bar.

    Returns:
        A context that is told of finished steps by ``update``.
    """
    hidden = True if text is None else None  # None: shown on a terminal
    return tqdm(
        total=steps, desc=text, unit=" steps", leave=False, delay=_SECONDS_BEFORE_BAR, disable=hidden, mininterval=0.5
    )
