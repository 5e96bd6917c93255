"""Which (effective) learning rate and schedule the borders of the regimes advise, for a given number of epochs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

_IN_TIME = 0.25  # part of the epochs in which a constant learning rate must have converged
_ABOVE = 0.25  # part of the epochs above the border
_CLOSE = 1.3  # ratio of the ends of a border up to which its upper end is just above it: 1.5 cost a point on digits
_SPARE = 2  # times the epochs that convergence needs are left below the border
_TIMES_TO_SETTLE = 4  # time constants of weight decay until norms have settled


@dataclass(frozen=True)
class Converged:
    """A run at a constant learning rate that converged.

    Attributes:
        at: Its (effective) learning rate, positive.
        epochs: That it needed to.
    """

    at: float
    epochs: int


@dataclass(frozen=True)
class ConstantAdvice:
    """The constant (effective) learning rate to train with.

    Attributes:
        at: It.
        epochs: Length of the run.
        converged_after: Epochs after which the slowest run at it had converged.
    """

    at: float
    epochs: int
    converged_after: int


@dataclass(frozen=True)
class SwitchAdvice:
    """Two effective learning rates to train with, one after the other.

    Attributes:
        begin: The first, just above the border of convergence; ``end`` if there is no time for it.
        switch: Epoch from which on ``end`` holds; 0 if all of the run is at it.
        end: The second, as :func:`advise_constant` gives it.
        epochs: Length of the run.
        converged_after: Epochs after which the slowest run at ``end`` from the initialisation had converged.
    """

    begin: float
    switch: int
    end: float
    epochs: int
    converged_after: int

    @property
    def in_time(self) -> bool:
        """Whether runs at ``end`` had converged in the quarter of the epochs that is asked for."""
        return self.converged_after <= _IN_TIME * self.epochs


@dataclass(frozen=True)
class CosineWindow:
    """First learning rates of a cosine to zero from which it has time to converge, and the one to take.

    Attributes:
        low: The border of convergence: a schedule from below it converges all along.
        high: From above it no time is left to converge; below ``low`` if there is no such window.
        first: The learning rate to begin with.
        epochs: Length of the schedule.
    """

    low: float
    high: float
    first: float
    epochs: int


def advise_constant(converged: Sequence[Converged], last: float, epochs: int) -> ConstantAdvice | None:
    """Choose the constant (effective) learning rate for a run of so many epochs.

    Among runs that converge, higher learning rates reach lower losses, flatter optima and lower test errors (TR §4),
    so that the best lies below the border of convergence. But there the time to converge grows without bound, and
    the border lies elsewhere for another seed. So it is the highest that has converged, with every seed that was tried,
    in a quarter of the epochs; where none has, the one that was first.

    Args:
        converged: Runs that converged.
        last: Largest learning rate that is below the border for all seeds; higher ones are not advised.
        epochs: Length of the run.

    Returns:
        The advice; None if nothing has converged in that time.

    Raises:
        ValueError: If ``epochs`` is not positive.

    Example:
        >>> runs = [Converged(3e-3, 12), Converged(1e-2, 7), Converged(1.8e-2, 22), Converged(2e-2, 90)]
        >>> advise_constant(runs, 2e-2, 100)
        ConstantAdvice(at=0.018, epochs=100, converged_after=22)
        >>> advise_constant(runs, 2e-2, 20)
        ConstantAdvice(at=0.01, epochs=20, converged_after=7)
        >>> advise_constant(runs, 2e-2, 5) is None
        True
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    below = sorted((run for run in converged if run.at <= last), key=lambda run: run.at)
    slowest = {at: max(run.epochs for run in runs) for at, runs in groupby(below, key=lambda run: run.at)}
    soon = [at for at, time in slowest.items() if time <= _IN_TIME * epochs]
    if soon:
        return ConstantAdvice(max(soon), epochs, slowest[max(soon)])
    at = min(slowest, key=lambda at: (slowest[at], -at), default=None)
    if at is None or slowest[at] > epochs:
        return None
    return ConstantAdvice(at, epochs, slowest[at])


def advise_switch(converged: Sequence[Converged], last: float, first: float | None, epochs: int) -> SwitchAdvice | None:
    """Choose where to begin on the sphere, when to switch, and where to end.

    From an equilibrium just above the border of convergence all runs come to flat optima (TR §5), so that the run
    begins there, for a quarter of its epochs, and ends at :func:`advise_constant`. Farther above, optima of many kinds
    are found: a border that is not known closely, or too few epochs, leave the constant alone.

    Args:
        converged: Runs that converged.
        last: Largest effective learning rate that is below the border for all seeds.
        first: Smallest one that is above it for all seeds; None if none is known.
        epochs: Length of the run.

    Returns:
        The advice; None if nothing has converged in that time.

    Example:
        >>> runs = [Converged(1e-2, 7), Converged(1.5e-2, 18)]
        >>> advise_switch(runs, 1.5e-2, 1.9e-2, 100)
        SwitchAdvice(begin=0.019, switch=25, end=0.015, epochs=100, converged_after=18)
        >>> advise_switch(runs, 1.5e-2, 5e-2, 100).begin
        0.015
    """
    constant = advise_constant(converged, last, epochs)
    if constant is None:
        return None
    at, switch = constant.at, int(_ABOVE * epochs)
    alone = SwitchAdvice(at, 0, at, epochs, constant.converged_after)
    if first is None or first > _CLOSE * last or not switch or not alone.in_time:
        return alone
    return replace(alone, begin=first, switch=switch)


def advise_cosine(
    converged: Sequence[Converged],
    last: float,
    epochs: int,
    *,
    diverges: float = math.inf,
    decay: float | None = None,
) -> CosineWindow | None:
    """Choose the first learning rate of a cosine to zero over so many epochs, for training in the whole space.

    TR §6 names three kinds of start: too low, where all of the schedule lies below the border of convergence; a
    useful window above it; and too high, where no time is left to converge. The window begins at the border. It ends
    where the schedule, once below the learning rate of :func:`advise_constant`, has twice the epochs left that runs
    at that rate have needed. Its lower end is advised: on digits higher starts have gained nothing.

    At the border nothing is gained unless weight decay brings the effective learning rates to their equilibrium, in
    four of its time constants; in a shorter run, or without a window, the schedule begins at the constant advice.

    Args:
        converged: Runs at constant learning rates that converged.
        last: Largest learning rate below the border of convergence for all seeds.
        epochs: Length of the schedule.
        diverges: Smallest learning rate that diverges.
        decay: Time constant of weight decay, about 1/(2ηλ) steps, in epochs, times the learning rate; None without
            weight decay.

    Returns:
        The window and the start; None if nothing has converged in that time.

    Example:
        >>> runs = [Converged(0.01, 8), Converged(0.03, 10), Converged(0.05, 40)]
        >>> window = advise_cosine(runs, 0.05, 100, diverges=3.0, decay=1.0)
        >>> window.first, round(window.high, 2)
        (0.05, 0.31)
        >>> advise_cosine(runs, 0.05, 100, decay=2.0).first  # norms still rise at the end
        0.03
    """
    constant = advise_constant(converged, last, epochs)
    if constant is None:
        return None
    latest = epochs - _SPARE * constant.converged_after
    high = constant.at
    if latest > 0:
        # 2·at/s − 1 = cos(π·latest/epochs): the start that is at the constant advice in the latest epoch.
        part = (1 + math.cos(math.pi * latest / epochs)) / 2
        high = min(constant.at / part, diverges)
    settles = decay is not None and _TIMES_TO_SETTLE * decay / last <= epochs
    first = last if settles and high > last else constant.at
    return CosineWindow(last, high, first, epochs)
