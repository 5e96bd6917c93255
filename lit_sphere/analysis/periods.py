"""Periods of training with weight decay: convergence, destabilisation, and again, from the curves of a run (PB)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

Phase = Literal["A", "B", "C"]
"""PB's phases of a period: A the loss falls, the norm rises and the effective learning rate (ELR) falls; B the norm
falls and the ELR rises; C the loss rises, and after it the norm."""

PHASE_NUMBERS: dict[Phase | None, int] = {None: 0, "A": 1, "B": 2, "C": 3}
"""Numbers of the phases; 0 where there is none yet."""

PeriodVerdict = Literal["no periods", "not yet", "too few to tell", "periods"]

LOSS_RISE = 100.0
"""Factor over its minimum by which the loss rises in a destabilisation, at least.

On digits it rises 100- to 100 000-fold (250 epochs, three seeds). In chaotic equilibrium, where runs of a high learning
rate and decay are thrown about without having converged, it moves by a factor of up to 52 from epoch to epoch, and of
up to 80 in medians of five steps."""

SWING_RISE = 10.0
"""Factor by which the loss rises in a swing, at least, with which the norm swings, too (:data:`NORM_RISE`).

A swing is less than a destabilisation. With momentum, augmentation or all parameters trained the loss of epochs on
digits rises 15- to 40-fold, again and again: swings are what is left of the periods there. They are counted only where
it is known otherwise that the run is in no chaotic equilibrium, which swings as much."""

PLANE_RISE = 3.0
"""The same of the toy in the plane (:mod:`lit_sphere.theory.toy_plane`), which has no noise."""

NORM_RISE = 1.05
"""Factor over its minimum by which the norm rises then: 1.1 and more on digits, 1.3 and more in the toy."""

STEP_WINDOW = 5
"""Window of the curves of single steps: the loss of one batch says little."""

SHORTEST_CURVE = 10
"""Values below which the absence of periods says nothing."""

_LEAVES = 0.25  # power of LOSS_RISE by which the loss is above its minimum in phase C
_SETTLED = 0.02  # change of ln ρ from the third to the last quarter of a curve


@dataclass(frozen=True)
class Period:
    """A period, or the unfinished one at the end of a run. Places are indices of the curves: epochs, or steps.

    Attributes:
        start: Where phase A begins: the first value of the run, or the least norm at the destabilisation before.
        norm_peak: Where phase B begins: the greatest norm of the period.
        loss_rise: Where phase C begins: the loss leaves its minimum for good, by the fourth root of the rise. None
            in a period that is not finished.
        end: Where the next one begins: the least norm. None in a period that is not finished.
        minimum: The least train loss of the period.
        minimum_at: Where.
    """

    start: int
    norm_peak: int
    loss_rise: int | None
    end: int | None
    minimum: float
    minimum_at: int

    @property
    def length(self) -> int | None:
        """From start to end; None if it is not finished."""
        return None if self.end is None else self.end - self.start

    def phase(self, index: int) -> Phase:
        """Give the phase of a place in the period."""
        if index < self.norm_peak:
            return "A"
        return "B" if self.loss_rise is None or index < self.loss_rise else "C"


@dataclass(frozen=True)
class Periods:
    """The periods of a run.

    Attributes:
        finished: Those that ended with a destabilisation. The first begins with the run.
        unfinished: The one that the run is in at the end; None of an empty curve.
        phase: Of the last value.
        verdict: ``periods`` from two destabilisations on; ``too few to tell`` after one; of a run without, ``not
            yet`` where one may still come and ``no periods`` where none will.
        evidence: Why, in words.
    """

    finished: tuple[Period, ...]
    unfinished: Period | None
    phase: Phase | None
    verdict: PeriodVerdict
    evidence: str

    @property
    def count(self) -> int:
        """Number of finished periods, which is that of the destabilisations."""
        return len(self.finished)

    @property
    def mean_length(self) -> float | None:
        """Mean from one destabilisation to the next; None where there are fewer than two."""
        ends = [period.end for period in self.finished if period.end is not None]
        return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else None

    @property
    def sentence(self) -> str:
        """The verdict in one sentence, such as ``5 periods: …``."""
        name = f"{self.count} periods" if self.verdict == "periods" else self.verdict
        return f"{name}: {self.evidence}"


def segment_periods(
    losses: Sequence[float],
    norms: Sequence[float] | None = None,
    elrs: Sequence[float] | None = None,
    *,
    window: int = 1,
    loss_rise: float = LOSS_RISE,
    relaxation: float | None = None,
    certain_by: float | None = None,
    unit: str = "epoch",
) -> Periods:
    """Cut the curves of a run into periods.

    A destabilisation is a rise of the loss by orders of magnitude over its minimum (:data:`LOSS_RISE`), together with
    a rise of the norm (:data:`NORM_RISE`) that had fallen before. It ends a period, at the least norm. The loss has to
    come down from its peak again (by its root) before there can be another. A loss that never leaves its
    level, as in chaotic equilibrium, has none, and single batches with a high loss, which leave the norm alone, are
    none.

    The curves are read once, from the first value to the last, and nothing is decided by what comes later: a period of
    the first n values that is finished is the same in the whole run.

    Without a destabilisation: ``no periods`` where the norm has settled, or rises, or there is one later than
    ``certain_by``; ``not yet`` where the norm still falls, the curve has fewer than :data:`SHORTEST_CURVE` values, or
    fewer than ``relaxation``.

    Args:
        losses: Train loss ≥ 0 of each epoch or step. What follows the first value that is not finite is left out.
        norms: ρ > 0 of all scale-invariant weights, of the same length.
        elrs: Effective learning rates > 0, in place of norms where the learning rate is constant: ρ is taken to go as
            their inverse root. Without either the loss decides alone.
        window: For the loss of single steps: its median over this many values up to each is looked at.
        loss_rise: Factor over its minimum by which the loss rises in a destabilisation, at least; lower, such as
            :data:`SWING_RISE`, for what else comes and goes.
        relaxation: Values in which a norm settles, 1/(4ηλ) steps of SGD; None if not known.
        certain_by: Values by which a first jump is certain, such as t_max of
            :func:`~lit_sphere.theory.weight_decay.steps_before_jump`; None, or infinite, if not known.
        unit: What a value is, in words.

    Returns:
        The periods.

    Raises:
        ValueError: If curves differ in length, a loss is negative, a norm is not positive, ``window`` < 1, or
            ``loss_rise`` ≤ 1.

    Example:
        >>> loss = [1.0, 1e-1, 1e-2, 1e-3, 1e-2, 2e-2] * 3
        >>> norm = [4.0, 5.0, 4.5, 4.0, 3.5, 3.0] * 3
        >>> found = segment_periods(loss, norm)
        >>> found.sentence
        '2 periods: destabilised at epochs 6 and 12, 6 epochs apart'
        >>> found.finished[1]
        Period(start=5, norm_peak=7, loss_rise=10, end=11, minimum=0.001, minimum_at=9)
        >>> segment_periods([0.5, 0.7] * 20, [2.0] * 40).verdict
        'no periods'
    """  # noqa: DOC502
    scale = _norms(losses, norms, elrs)
    reader = PeriodReader(window, loss_rise)
    for index, loss in enumerate(losses):
        reader.read(loss, None if scale is None else scale[index])
    return reader.periods(relaxation=relaxation, certain_by=certain_by, unit=unit)


class PeriodReader:
    """Cuts curves into periods as they come: :func:`segment_periods` of all values so far, at little cost for each.

    Args:
        window: As there.
        loss_rise: As there.

    Raises:
        ValueError: If an option is out of its range.

    Example:
        >>> reader = PeriodReader()
        >>> for loss, norm in [(1.0, 5.0), (1e-3, 4.0), (1.0, 5.0)]:
        ...     reader.read(loss, norm)
        >>> reader.periods().count
        1
    """

    def __init__(self, window: int = 1, loss_rise: float = LOSS_RISE) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if not loss_rise > 1:
            raise ValueError(f"loss_rise must be above 1, got {loss_rise:g}")
        self._window, self._factor = window, loss_rise
        self._raw: list[float] = []
        self._losses: list[float] = []  # their medians
        self._norms: list[float] | None = None
        self._finished: list[Period] = []
        self._jumps: list[int] = []  # where the loss had risen
        self._start = self._low = 0
        self._norm_low = 0  # where the norm is least since _low
        self._peaks: list[int] = []  # of each value: where the norm was greatest in its period so far
        self._risen: int | None = None  # where the loss crossed its level, while it is above
        self._top: float | None = None  # the loss of a destabilisation, until it has come down again
        self._blown_up = False

    def read(self, loss: float, norm: float | None = None) -> None:
        """Read the next value; none after one that is not finite.

        Args:
            loss: Train loss ≥ 0.
            norm: ρ > 0; with each loss, or with none.

        Raises:
            ValueError: If a value is out of its range.
        """
        self._blown_up = self._blown_up or not math.isfinite(loss) or not (norm is None or math.isfinite(norm))
        if self._blown_up:
            return
        if loss < 0:
            raise ValueError("losses must not be negative")
        if norm is not None and norm <= 0:
            raise ValueError("norms and effective learning rates must be positive")
        self._raw.append(loss)
        self._losses.append(loss if self._window == 1 else median(self._raw[-self._window :]))
        if norm is not None:
            self._norms = [] if self._norms is None else self._norms
            self._norms.append(norm)
        self._look(len(self._losses) - 1)

    def periods(
        self, *, relaxation: float | None = None, certain_by: float | None = None, unit: str = "epoch"
    ) -> Periods:
        """Give the periods so far.

        Args:
            relaxation: As of :func:`segment_periods`.
            certain_by: As there.
            unit: As there.

        Returns:
            The periods.
        """
        verdict: PeriodVerdict = "periods" if len(self._jumps) > 1 else "too few to tell"
        if self._jumps:
            evidence = _jumps(self._jumps, unit)
        else:
            verdict, evidence = _without_jump(self._losses, self._norms, self._factor, relaxation, certain_by, unit)
        return Periods(tuple(self._finished), self.unfinished, self.phase, verdict, evidence)

    def _look(self, i: int) -> None:
        loss, norms = self._losses[i], self._norms
        self._peaks.append(self._highest(self._start, i))
        if self._top is not None:
            self._top = max(self._top, loss)
            self._lowest(i)
            if loss * math.sqrt(self._factor) > self._top:
                return
            self._top = None
        if loss <= self._losses[self._low]:
            self._lowest(i)
        elif norms is not None and norms[i] < norms[self._norm_low]:
            self._norm_low = i
        if loss < self._factor * max(self._losses[self._low], 1e-300):
            self._risen = None
            return
        self._risen = i if self._risen is None else self._risen
        if norms is None or min(norms[i], norms[self._peaks[self._norm_low]]) >= NORM_RISE * norms[self._norm_low]:
            self._finish(i, self._risen)

    def _highest(self, start: int, i: int) -> int:
        """Where the norm was greatest from the start on; the start where norms are not known."""
        norms, before = self._norms, self._peaks[i - 1] if i > start else start
        return i if norms is not None and norms[i] > norms[before] else before

    def _lowest(self, i: int) -> None:
        self._low = self._norm_low = i
        if self._norms is not None:  # a median lags behind
            self._norm_low = min(self._lately(i), key=self._norms.__getitem__)

    def _lately(self, i: int) -> range:
        return range(i, max(self._start, i + 1 - self._window) - 1, -1)

    def _finish(self, i: int, risen: int) -> None:
        low, norms = self._losses[self._low], self._norms
        end = risen if norms is None else self._norm_low
        level = self._factor**_LEAVES * low
        rise = next(k for k in range(risen, -1, -1) if self._raw[k] <= level) + 1  # a median lags behind
        peak = self._peaks[end] if norms is not None else self._start
        self._finished.append(Period(self._start, peak, min(rise, end), end, low, self._low_at))
        self._jumps.append(risen)
        self._start, self._risen, self._top = end, None, self._losses[i]
        for k in range(end, i + 1):
            self._peaks[k] = self._highest(end, k)
        self._lowest(i)

    @property
    def _low_at(self) -> int:
        return min(self._lately(self._low), key=self._raw.__getitem__)

    @property
    def count(self) -> int:
        """Number of finished periods so far."""
        return len(self._finished)

    @property
    def unfinished(self) -> Period | None:
        """The period of the last value; None before the first."""
        if not self._losses:
            return None
        return Period(self._start, self._peaks[-1], None, None, self._losses[self._low], self._low_at)

    @property
    def phase(self) -> Phase | None:
        """That of the last value; None before the first."""
        if not self._losses:
            return None
        if self._risen is not None:
            return "C"
        last = len(self._losses) - 1
        rises = self._low == last if self._norms is None else self._peaks[last] == last
        return "A" if rises or self._top is not None else "B"


def _norms(
    losses: Sequence[float], norms: Sequence[float] | None, elrs: Sequence[float] | None
) -> Sequence[float] | None:
    for name, curve in (("norms", norms), ("elrs", elrs)):
        if curve is not None and len(curve) != len(losses):
            raise ValueError(f"{len(losses)} losses but {len(curve)} {name}")
    if norms is not None or elrs is None:
        return norms
    return [elr**-0.5 if elr > 0 else -elr for elr in elrs]


def _jumps(jumps: Sequence[int], unit: str) -> str:
    if len(jumps) == 1:
        return f"destabilised once, at {unit} {jumps[0]}"
    named = [f"{jump}" for jump in jumps]
    if len(named) > _LISTED:
        named = [*named[: _LISTED - 1], "…", named[-1]]
    apart = (jumps[-1] - jumps[0]) / (len(jumps) - 1)
    return f"destabilised at {unit}s {', '.join(named[:-1])} and {named[-1]}, {apart:.3g} {unit}s apart"


_LISTED = 8


def _without_jump(
    losses: Sequence[float],
    norms: Sequence[float] | None,
    factor: float,
    relaxation: float | None,
    certain_by: float | None,
    unit: str,
) -> tuple[PeriodVerdict, str]:
    count = len(losses)
    if count < SHORTEST_CURVE:
        return "not yet", f"only {count} {unit}s, at least {SHORTEST_CURVE} are needed"
    if certain_by is not None and count > certain_by:
        return "no periods", f"none in {count} {unit}s, where a first jump was certain by {unit} {certain_by:.0f}"
    if relaxation is not None and count < relaxation:
        return "not yet", f"the norm needs about {relaxation:.0f} {unit}s to settle, and there are {count}"
    converged = min(losses) * factor <= max(losses)
    level = f"the loss is {losses[-1]:.2g}" if converged else f"the loss stays above {min(losses):.2g}"
    if norms is None:
        return "no periods", f"{level} after {count} {unit}s, and was not thrown out"
    quarter = count // 4
    parts = (norms[-2 * quarter : -quarter], norms[-quarter:])
    before, after = (fmean(math.log(norm) for norm in part) for part in parts)
    if after < before - _SETTLED:
        fall = -math.expm1(after - before)
        return "not yet", f"{level}, and the norm still falls, by {fall:.2g} in the last {quarter} {unit}s"
    return "no periods", f"{level}, and the norm {'rises' if after > before + _SETTLED else 'has settled'}"
