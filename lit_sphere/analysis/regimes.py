"""Which of the three regimes of training on the sphere a run is in, from its loss and error curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

Regime = Literal["convergence", "chaotic equilibrium", "divergence", "undecided"]

CONVERGED_LOSS = 1e-2
"""Train loss (cross-entropy) below which a run counts as converged; the threshold of the authors' later work."""

_SHORTEST = 20  # epochs
_CHANCE = 0.95  # of the error of guessing
_STEADY = 0.25  # change of log loss between two quarters of a run that is noise at an equilibrium


@dataclass(frozen=True)
class RegimeVerdict:
    """A regime and why.

    Attributes:
        regime: TR's regimes 1 (convergence), 2 (chaotic equilibrium), 3 (divergence), or undecided.
        evidence: The reason, in words, with numbers.
        since: Epoch, counted from 0, from which on the evidence holds; None if undecided.
    """

    regime: Regime
    evidence: str
    since: int | None = None


def name_regime(
    losses: Sequence[float], errors: Sequence[float], num_classes: int, first_epoch: int = 0
) -> RegimeVerdict:
    """Name the regime of a run at a fixed effective learning rate.

    The papers give no algorithm. This rule looks at the last quarter of the run, at least ten epochs of it:

    1. *convergence*: the train loss stays below 1e-2;
    2. *divergence*: the train error stays at chance, on average above 95 % of (1 − 1/classes);
    3. *chaotic equilibrium*: neither, and the loss is steady: its mean logarithm differs by less than a quarter
       (or two standard errors, if these are larger) between the third and the last quarter of the run;
    4. *undecided* otherwise, and for runs of fewer than 20 epochs.

    Args:
        losses: Train cross-entropy of each epoch, batch statistics (train mode).
        errors: Train error of each epoch as a fraction, of the same length.
        num_classes: Number of classes, at least 2.
        first_epoch: Number of the epoch that the curves begin with.

    Returns:
        The verdict.

    Raises:
        ValueError: If the curves differ in length, hold a value that is not finite, or ``num_classes`` < 2.

    Example:
        >>> falling = [math.exp(-0.1 * epoch) for epoch in range(100)]
        >>> name_regime(falling, [0.0] * 100, 10)
        RegimeVerdict(regime='convergence', evidence='train loss below 0.01 since epoch 47', since=47)
        >>> name_regime([2.0, 2.2] * 50, [0.4] * 100, 10).regime
        'chaotic equilibrium'
    """
    if len(losses) != len(errors):
        raise ValueError(f"{len(losses)} losses but {len(errors)} errors")
    if not all(math.isfinite(x) for x in (*losses, *errors)):
        raise ValueError("losses and errors must be finite")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    epochs = len(losses)
    if epochs < _SHORTEST:
        return RegimeVerdict("undecided", f"only {epochs} epochs; at least {_SHORTEST} are needed")
    window = max(10, epochs // 4)
    since = _holds_since([loss < CONVERGED_LOSS for loss in losses])
    if since <= epochs - window:
        since += first_epoch
        return RegimeVerdict("convergence", f"train loss below {CONVERGED_LOSS:g} since epoch {since}", since)
    chance = 1 - 1 / num_classes
    if fmean(errors[-window:]) > _CHANCE * chance:
        at_chance = [fmean(errors[i : i + window]) > _CHANCE * chance for i in range(epochs - window + 1)]
        since = _holds_since(at_chance) + first_epoch
        return RegimeVerdict("divergence", f"train error at chance ({chance:.0%}) since epoch {since}", since)
    low = sum(loss < CONVERGED_LOSS for loss in losses[-window:])
    if low:
        return RegimeVerdict(
            "undecided", f"train loss below {CONVERGED_LOSS:g} in {low} of the last {window} epochs only"
        )
    return _equilibrium([math.log(max(loss, 1e-300)) for loss in losses], window, first_epoch)


def _equilibrium(logs: Sequence[float], window: int, first_epoch: int) -> RegimeVerdict:
    before, last = logs[-2 * window : -window], logs[-window:]
    change = fmean(last) - fmean(before)
    noise = math.hypot(stdev(before), stdev(last)) / math.sqrt(window)
    bound = max(_STEADY, 2 * noise)
    if abs(change) > bound:
        trend = "falls" if change < 0 else "rises"
        return RegimeVerdict("undecided", f"the train loss still {trend} ({math.expm1(change):+.0%} in a quarter)")
    steady = [abs(fmean(logs[i : i + window]) - fmean(last)) <= bound for i in range(len(logs) - window + 1)]
    since = _holds_since(steady) + first_epoch
    level = math.exp(fmean(last))
    return RegimeVerdict("chaotic equilibrium", f"train loss steady at {level:.2g} since epoch {since}", since)


def _holds_since(condition: Sequence[bool]) -> int:
    """First index from which on the condition holds to the end; the length if it does not hold at the end."""
    since = len(condition)
    while since > 0 and condition[since - 1]:
        since -= 1
    return since
