"""What is read off the curves of a run: levels, last values, and the parts between changes of the ELR."""

from collections.abc import Sequence
from math import isfinite
from statistics import fmean
from typing import NamedTuple

from lit_sphere.report.runs import Run


class Part(NamedTuple):
    """Epochs of a run at one effective learning rate.

    Attributes:
        first: Its first epoch.
        end: The epoch after its last.
        elr: Effective learning rate η̃.
    """

    first: int
    end: int
    elr: float


def by_epoch(run: Run, key: str) -> dict[int, float]:
    """Give a curve by epoch.

    Args:
        run: The run.
        key: What was logged.

    Returns:
        The mean of the finite values of each epoch that has some, in order.
    """
    series = run.series.get(key)
    if series is None:
        return {}
    at: dict[int, list[float]] = {}
    for epoch, value in zip(series.epochs, series.values, strict=True):
        if isfinite(epoch) and isfinite(value):
            at.setdefault(int(epoch), []).append(value)
    return {epoch: fmean(each) if len(each) > 1 else each[0] for epoch, each in sorted(at.items())}


def level(run: Run, key: str, first: int, end: int) -> float | None:
    """Give the mean of a curve over epochs.

    Args:
        run: The run.
        key: What was logged.
        first: First epoch.
        end: The epoch after the last.

    Returns:
        The mean; None if nothing was logged in them.
    """
    values = [value for epoch, value in by_epoch(run, key).items() if first <= epoch < end]
    return fmean(values) if values else None


def last_level(run: Run, key: str, epochs: int = 10) -> float | None:
    """Give the mean of a curve over the last epochs of a run.

    Args:
        run: The run.
        key: What was logged.
        epochs: How many; fewer in a run that is shorter than four times as many.

    Returns:
        The mean; None if nothing was logged.
    """
    count = run.epochs
    return level(run, key, count - max(1, min(epochs, count // 4)), count)


def parts(run: Run) -> list[Part]:
    """Cut a run where its effective learning rate was changed.

    Args:
        run: The run.

    Returns:
        Its parts in order; one for a run without such a change, none for a run in the whole space.
    """
    if run.elr is None:
        return []
    borders, elrs = [0], [run.elr]
    for epoch, elr in by_epoch(run, "switch/elr").items():
        if epoch > borders[-1]:
            borders.append(epoch)
            elrs.append(elr)
        else:
            elrs[-1] = elr
    ends = [*borders[1:], max(run.epochs, borders[-1])]
    return [Part(*each) for each in zip(borders, ends, elrs, strict=True) if each[1] > each[0]]


def listed(numbers: Sequence[float]) -> str:
    """Write numbers in a sentence.

    Args:
        numbers: At least one.

    Returns:
        They, as ``1, 2 and 3``.

    Example:
        >>> listed([1e-3, 0.01, 2])
        '0.001, 0.01 and 2'
    """
    words = [f"{number:.3g}" for number in numbers]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
