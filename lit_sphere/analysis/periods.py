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

LOSS_RISE = 10.0
"""Factor over its minimum by which the loss rises in a destabilisation, at least.

On digits it rises 500-fold and more, in PB's toy 7- to 10 000-fold; the epochs' means of a converged run, or of one in
chaotic equilibrium, move by less than a factor of 5."""

NORM_RISE = 1.05
"""Factor over its minimum by which the norm rises then: 1.12 and more on digits, 1.3 and more in the toy."""

SHORTEST_CURVE = 10
"""Values below which the absence of periods says nothing."""

_SETTLED = 0.02  # change of ln ρ from the third to the last quarter of a curve


@dataclass(frozen=True)
class Period:
    """A period, or the unfinished one at the end of a run. Places are indices of the curves: epochs, or steps.

    Attributes:
        start: Where phase A begins: the first value of the run, or the least norm at the destabilisation before.
        norm_peak: Where phase B begins: the greatest norm of the period.
        loss_rise: Where phase C begins: the loss leaves its minimum for good, by a factor of the root of the rise. None
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
        loss_rise: Factor over its minimum by which the loss rises in a destabilisation, at least.
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
        >>> loss = [1.0, 1e-1, 1e-2, 1e-3, 5e-3, 9e-3] * 3
        >>> norm = [4.0, 5.0, 4.5, 4.0, 3.5, 3.0] * 3
        >>> found = segment_periods(loss, norm)
        >>> found.sentence
        '2 periods: destabilised at epochs 6 and 12, 6 epochs apart'
        >>> found.finished[1]
        Period(start=5, norm_peak=7, loss_rise=10, end=11, minimum=0.001, minimum_at=9)
        >>> segment_periods([0.5, 0.7] * 20, [2.0] * 40).verdict
        'no periods'
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if not loss_rise > 1:
        raise ValueError(f"loss_rise must be above 1, got {loss_rise:g}")
    scale = _norms(losses, norms, elrs)
    end = _finite(losses, scale)
    losses, scale = losses[:end], None if scale is None else scale[:end]
    if any(loss < 0 for loss in losses):
        raise ValueError("losses must not be negative")
    if scale is not None and any(norm <= 0 for norm in scale):
        raise ValueError("norms and effective learning rates must be positive")
    smooth = losses if window == 1 else [median(losses[max(0, i + 1 - window) : i + 1]) for i in range(end)]
    reader = _Reader(smooth, scale, loss_rise)
    for index in range(end):
        reader.read(index)
    if not reader.jumps:
        verdict, evidence = _without_jump(smooth, scale, loss_rise, relaxation, certain_by, unit)
    else:
        verdict, evidence = "periods" if len(reader.jumps) > 1 else "too few to tell", _jumps(reader.jumps, unit)
    return Periods(tuple(reader.finished), reader.unfinished, reader.phase, verdict, evidence)


class _Reader:
    """Reads the curves once, and keeps what it needs to decide at each value."""

    def __init__(self, losses: Sequence[float], norms: Sequence[float] | None, factor: float) -> None:
        self._losses, self._norms, self._factor = losses, norms, factor
        self.finished: list[Period] = []
        self.jumps: list[int] = []  # where the loss had risen
        self._start = self._low = 0
        # Where the norm is greatest, where it is least since _low, and where it was greatest before that.
        self._peak = self._norm_low = self._peak_before = 0
        self._risen: int | None = None  # where the loss crossed its level, while it is above
        self._top: float | None = None  # the loss of a destabilisation, until it has come down again

    def read(self, i: int) -> None:
        loss, norms = self._losses[i], self._norms
        if norms is not None and norms[i] > norms[self._peak]:
            self._peak = i
        if self._top is not None:
            self._top = max(self._top, loss)
            self._lowest(i)
            if loss * math.sqrt(self._factor) > self._top:
                return
            self._top = None
        if loss <= self._losses[self._low]:
            self._lowest(i)
        elif norms is not None and norms[i] < norms[self._norm_low]:
            self._norm_low, self._peak_before = i, self._peak
        if loss < self._factor * max(self._losses[self._low], 1e-300):
            self._risen = None
            return
        self._risen = i if self._risen is None else self._risen
        if norms is None or min(norms[i], norms[self._peak_before]) >= NORM_RISE * norms[self._norm_low]:
            self._finish(i, self._risen)

    def _lowest(self, i: int) -> None:
        self._low, self._norm_low, self._peak_before = i, i, self._peak

    def _finish(self, i: int, risen: int) -> None:
        low, norms = self._losses[self._low], self._norms
        end = risen if norms is None else self._norm_low
        level = math.sqrt(self._factor) * low
        rise = next(k for k in range(risen, -1, -1) if self._losses[k] <= level) + 1
        self.finished.append(Period(self._start, self._peak_before, min(rise, end), end, low, self._low))
        self.jumps.append(risen)
        self._start, self._risen, self._top = end, None, self._losses[i]
        self._peak = end if norms is None else max(range(end, i + 1), key=norms.__getitem__)
        self._lowest(i)

    @property
    def unfinished(self) -> Period | None:
        if not self._losses:
            return None
        return Period(self._start, self._peak, None, None, self._losses[self._low], self._low)

    @property
    def phase(self) -> Phase | None:
        if not self._losses:
            return None
        if self._risen is not None:
            return "C"
        last = len(self._losses) - 1
        rises = self._low == last if self._norms is None else self._peak == last
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


def _finite(losses: Sequence[float], norms: Sequence[float] | None) -> int:
    """Number of values that the curves begin with before one is not finite."""
    curves = [losses] if norms is None else [losses, norms]
    ends = (next((i for i, value in enumerate(curve) if not math.isfinite(value)), len(curve)) for curve in curves)
    return min(ends)


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
