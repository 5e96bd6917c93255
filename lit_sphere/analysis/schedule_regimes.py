"""In which regimes a run with a learning rate schedule was, and when it passed the peak of its sharpness."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Literal

from lit_sphere.analysis.regimes import CONVERGED_LOSS, Regime, kept_cosine, sign_of_chance

ScheduleVerdict = Literal["started too low", "useful window", "no time left to converge", "diverged", "undecided"]

SHORTEST_SCHEDULE = 10
"""Epochs below which nothing is said."""

UNDECAYED = 0.8
"""Part of the highest learning rate so far down to which a schedule counts as not yet decayed."""

_SMOOTH = 5  # epochs of the running median
_SETTLED = 3.0  # sharpness must fall by this factor for its peak to be passed
_RISE = 1.05  # a loss this much above the one before came back
_MONOTONE = 0.2  # part of epochs with such a loss; half of them at an equilibrium
_CHANCE_WINDOW = 3  # epochs whose mean error tells chance
_CONVERGED_ERROR = 0.01
_STILL = 0.9  # cosine that is kept where nothing has happened yet
_DEAD = 1e-6  # part of the greatest sharpness


@dataclass(frozen=True)
class ScheduleEpoch:
    """A moment of the run.

    Attributes:
        epoch: Counted from 0.
        step: Optimizer steps taken before the epoch.
        lr: Mean learning rate of the epoch.
        loss: Mean train loss of the epoch.
        sharpness: Mean effective gradient norm of the epoch.
    """

    epoch: int
    step: int
    lr: float
    loss: float
    sharpness: float


@dataclass(frozen=True)
class ScheduleAnalysis:
    """What the curves of a scheduled run say.

    Attributes:
        verdict: In the terms of TR's experiments with conventional training.
        evidence: The reason, in words, with numbers.
        regimes: Regime of each epoch, by which the learning rates are told.
        shares: Part of training spent in each regime that occurred, in [0, 1].
        peak: Where the sharpness, smoothed, was greatest outside regime 3; None if undecided or never outside.
        passed: Where its peak was passed: the first epoch of the fall for good; None if it was not.
    """

    verdict: ScheduleVerdict
    evidence: str
    regimes: list[Regime]
    shares: dict[Regime, float]
    peak: ScheduleEpoch | None = None
    passed: ScheduleEpoch | None = None


def analyse_schedule(
    lrs: Sequence[float],
    losses: Sequence[float],
    sharpness: Sequence[float],
    errors: Sequence[float] | None = None,
    num_classes: int | None = None,
    *,
    esses: Sequence[float] | None = None,
    steps: Sequence[int] | None = None,
    first_epoch: int = 0,
    converged_loss: float = CONVERGED_LOSS,
    chance_loss: float | None = None,
) -> ScheduleAnalysis:
    """Find the regimes of a run with a changing learning rate, in the terms of TR's cosine schedules.

    A regime belongs to a fixed learning rate; where the rate falls, this rule takes the sharpness (mean effective
    gradient norm, smoothed by a running median of five epochs) as the witness, which peaks where regimes 1 and 2
    part (TR fig. 1):

    * *divergence* (3): epochs whose train error is at chance (mean over three epochs above 95 % of (1 − 1/classes);
      without errors: whose loss is above 80 % of ``chance_loss``), or whose loss is NaN or infinite. Not those that
      a run begins with, where it has not moved yet: its steps up to there, of random directions, would have left
      a cosine Π cos φ above 0.9; but those of a network that has died, whose gradients are zero;
    * the peak is *passed* at the first epoch from which on the sharpness stays below the geometric mean of its peak
      and its final value, if these differ by a factor of three at least and the run does not end in regime 3;
    * passed before the schedule decayed below 80 % of its highest rate so far: that rate converges by itself,
      and all epochs are of regime 1, *convergence*; passed later: the epochs before are of regime 2, *chaotic
      equilibrium*, those from there on of regime 1;
    * not passed: epochs out of regime 3 are of regime 1 if the loss fell steadily over them (it came back by 5 % in
      less than a fifth of them), or if the whole run has not moved by the same measure; else of regime 2.

    Verdicts: *started too low*: a regime-1 path from the start, without regime 3. *useful window*: it began at the
    equilibrium, passed the peak as the rate fell, and converged: final loss below ``converged_loss``, or error below
    1 %. *no time left to converge*: it passed too late to converge, or not at all. *diverged*: it ended NaN or
    infinite. *undecided*: fewer than ten epochs.

    Args:
        lrs: Learning rate of each epoch (of the parameters whose sharpness is given), positive or 0.
        losses: Train loss of each epoch.
        sharpness: Mean effective gradient norm of each epoch.
        errors: Train error of each epoch as a fraction, if known.
        num_classes: Number of classes; needed with ``errors``.
        esses: Mean effective step size of all scale-invariant parameters in each epoch, if known (not finite where
            the run blew up); with ``steps`` it tells how far the weights have moved.
        steps: Optimizer steps taken before each epoch; the number of epochs if not given.
        first_epoch: Number of the epoch that the curves begin with.
        converged_loss: Loss below which a run counts as converged.
        chance_loss: Loss of guessing, where no error is known.

    Returns:
        The analysis.

    Raises:
        ValueError: If there is no epoch, or curves differ in length.

    Example:
        >>> lrs = [0.5 + 0.5 * math.cos(math.pi * t / 60) for t in range(60)]
        >>> losses = [0.5 + 0.2 * (t % 3) if t < 45 else 0.5 * 0.6 ** (t - 44) for t in range(60)]
        >>> sharpness = [20.0 if t < 45 else 20 * 0.6 ** (t - 44) for t in range(60)]
        >>> analysis = analyse_schedule(lrs, losses, sharpness)
        >>> analysis.verdict, analysis.passed.epoch, round(analysis.passed.lr, 2)
        ('useful window', 51, 0.05)
        >>> analysis.shares
        {'chaotic equilibrium': 0.85, 'convergence': 0.15}
    """
    epochs = len(losses)
    curves = {"lrs": lrs, "sharpness": sharpness, "errors": errors, "esses": esses, "steps": steps}
    for name, curve in curves.items():
        if curve is not None and len(curve) != epochs:
            raise ValueError(f"{epochs} losses but {len(curve)} {name}")
    if epochs == 0:
        raise ValueError("a schedule without an epoch")
    still = min(_still(esses, steps, epochs), _dead(sharpness))
    diverged = _diverged(losses, errors, num_classes, chance_loss, still)

    def at(i: int) -> ScheduleEpoch:
        return ScheduleEpoch(first_epoch + i, i if steps is None else steps[i], lrs[i], losses[i], sharpness[i])

    blew_up = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if epochs < SHORTEST_SCHEDULE and blew_up is None:
        nothing: list[Regime] = ["undecided"] * epochs
        reason = f"only {epochs} epochs, at least {SHORTEST_SCHEDULE} are needed"
        return ScheduleAnalysis("undecided", reason, nothing, {"undecided": 1.0})
    smooth = _smooth(sharpness)
    calm = [i for i in range(epochs) if not diverged[i] and math.isfinite(smooth[i])]
    peak = max(calm, key=smooth.__getitem__) if calm else None
    passed = None if peak is None or diverged[-1] else _passed(smooth, peak)
    highest = max(lrs[: epochs if passed is None else passed + 1])
    stays = still == epochs
    falls = lrs[passed] >= UNDECAYED * highest if passed is not None else stays or _falls_steadily(losses, calm)
    low = falls and (passed is not None or not any(diverged))
    regimes = _regimes(diverged, passed, falls)
    shares: dict[Regime, float] = {regime: regimes.count(regime) / epochs for regime in dict.fromkeys(regimes)}
    verdict: ScheduleVerdict
    if blew_up is not None:
        verdict, evidence = "diverged", f"train loss NaN or infinite since epoch {first_epoch + blew_up}"
    else:
        end = f"final loss {losses[-1]:.2g}" + ("" if errors is None else f", error {errors[-1]:.1%}")
        if passed is None:
            path = "it ends in regime 3" if diverged[-1] else "the sharpness never fell for good"
            path = "the weights hardly moved" if stays else path
        else:
            part = lrs[passed] / highest if highest > 0 else 1.0
            rate = f"LR {lrs[passed]:.2g}, {part:.0%} of the highest so far"
            path = f"the sharpness peak was passed at epoch {first_epoch + passed} ({rate})"
        converged = losses[-1] < converged_loss or (errors is not None and errors[-1] < _CONVERGED_ERROR)
        verdict = _verdict(low, passed is not None and converged)
        evidence = f"{path}; {end}"
    return ScheduleAnalysis(
        verdict, evidence, regimes, shares, None if peak is None else at(peak), None if passed is None else at(passed)
    )


def _verdict(low: bool, converged: bool) -> ScheduleVerdict:
    if low:
        return "started too low"
    return "useful window" if converged else "no time left to converge"


def _still(esses: Sequence[float] | None, steps: Sequence[int] | None, epochs: int) -> int:
    """Number of epochs that a run begins with in which it has not moved yet; 0 where that is not known."""
    if esses is None or steps is None or epochs < 2:
        return 0
    angles = [math.atan(ess) if math.isfinite(ess) else math.pi / 2 for ess in esses]
    per_epoch = (steps[-1] - steps[0]) / (epochs - 1)
    return next((i for i in range(epochs) if kept_cosine(angles[: i + 1], per_epoch) < _STILL), epochs)


def _dead(sharpness: Sequence[float]) -> int:
    """First epoch without gradients to speak of; the number of epochs where all have some."""
    highest = max((each for each in sharpness if math.isfinite(each)), default=0.0)
    return next((i for i, each in enumerate(sharpness) if each <= _DEAD * highest), len(sharpness))


def _diverged(
    losses: Sequence[float],
    errors: Sequence[float] | None,
    num_classes: int | None,
    chance_loss: float | None,
    still: int,
) -> list[bool]:
    sign = sign_of_chance(losses, errors, num_classes, chance_loss, None)
    found: list[bool] = []
    for i, loss in enumerate(losses):
        at_chance = False
        if sign is not None and (i >= still or any(found)):
            _, curve, level = sign
            around = curve[max(0, i - _CHANCE_WINDOW // 2) : i + _CHANCE_WINDOW // 2 + 1]
            at_chance = fmean(around) > level
        found.append(at_chance or not math.isfinite(loss))
    return found


def _smooth(curve: Sequence[float]) -> list[float]:
    """Running median; windows shrink at the ends."""
    reach = _SMOOTH // 2
    smooth = []
    for i in range(len(curve)):
        around = min(reach, i, len(curve) - 1 - i)
        window = [value for value in curve[i - around : i + around + 1] if math.isfinite(value)]
        smooth.append(median(window) if window else math.inf)
    return smooth


def _passed(smooth: Sequence[float], peak: int) -> int | None:
    final = max(median(smooth[-_SMOOTH:]), 1e-12 * smooth[peak])
    if not smooth[peak] >= _SETTLED * final:
        return None
    level = math.sqrt(smooth[peak]) * math.sqrt(final)  # the product may be too large for a float
    last_above = max(i for i, value in enumerate(smooth) if not value < level)
    return None if last_above + 1 == len(smooth) else last_above + 1


def _falls_steadily(losses: Sequence[float], calm: Sequence[int]) -> bool:
    if len(calm) < SHORTEST_SCHEDULE:  # too few to tell
        return False
    kept = [losses[i] for i in calm]
    rises = sum(after > _RISE * before for before, after in pairwise(kept))
    return rises < _MONOTONE * len(kept) and kept[-1] < kept[0]


def _regimes(diverged: Sequence[bool], passed: int | None, falls: bool) -> list[Regime]:
    begins = 0 if falls else len(diverged) if passed is None else passed
    return [
        "divergence" if bad else "convergence" if i >= begins else "chaotic equilibrium"
        for i, bad in enumerate(diverged)
    ]
