"""Which of the three regimes of training on the sphere a run is in, from its curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, stdev
from typing import Literal

Regime = Literal["convergence", "chaotic equilibrium", "divergence", "undecided"]

REGIME_NUMBERS: dict[Regime, int] = {"undecided": 0, "convergence": 1, "chaotic equilibrium": 2, "divergence": 3}
"""TR's numbers of the regimes; 0 while undecided."""

CONVERGED_LOSS = 1e-2
"""Train loss (cross-entropy) below which a run counts as converged; the threshold of the authors' later work."""

UNCORRELATED_ANGLE = math.pi / 3
"""Angle between consecutive iterates, in radians, above which they count as uncorrelated: cosine ½, ESS √3."""

SHORTEST_RUN = 20
"""Epochs below which no regime is named."""

_CHANCE = 0.95  # of the error of guessing
_CHANCE_LOSS = 0.8  # of the loss of guessing: at chance the loss wanders by a tenth and more
_STEADY = 0.25  # change of log loss between two quarters of a run that is noise at an equilibrium
_STANDARD_ERRORS = 3  # a larger change is no noise: at most 1 % false alarms
_SHORTEST_PATH = 1.0  # radians, over the last quarter: an equilibrium forgets where it was


@dataclass(frozen=True)
class RegimeVerdict:
    """A regime and why.

    Attributes:
        regime: TR's regimes 1 (convergence), 2 (chaotic equilibrium), 3 (divergence), or undecided.
        evidence: The reason, in words, with numbers.
        since: Epoch, counted from 0, from which on the evidence holds; None if undecided.
        since_step: Optimizer steps taken before that epoch; None if undecided, or if not known.
    """

    regime: Regime
    evidence: str
    since: int | None = None
    since_step: int | None = None


def converged_mse(num_classes: int) -> float:
    """Mean squared error below which a run counts as converged: 1 % of that of guessing.

    The best constant output, 1/C for each of C classes, has mean over classes (C − 1)/C². The papers give no
    threshold for this loss.

    Args:
        num_classes: Number of classes C.

    Returns:
        (C − 1)/(100 C²); 9e-4 for ten classes.
    """
    return 0.01 * (num_classes - 1) / num_classes**2


def name_regime(
    losses: Sequence[float],
    errors: Sequence[float] | None,
    num_classes: int | None,
    first_epoch: int = 0,
    *,
    converged_loss: float = CONVERGED_LOSS,
    chance_loss: float | None = None,
    esses: Sequence[Sequence[float]] | None = None,
    steps: Sequence[int] | None = None,
) -> RegimeVerdict:
    """Name the regime of a run at a fixed effective learning rate.

    The papers give no algorithm. This rule looks at the last quarter of the run, at least ten epochs of it:

    1. *convergence*: the train loss stays below ``converged_loss``;
    2. *divergence*: the train error stays at chance, on average above 95 % of (1 − 1/classes). Where there is no
       error: consecutive iterates are more than 60° apart on average (cosine below ½); where no angle is known
       either: the loss is on average above 80 % of ``chance_loss``. A loss that ended NaN or infinite is
       divergence too;
    3. *chaotic equilibrium*: neither, and the loss is steady: its mean logarithm differs by less than a quarter (or
       three standard errors, if these are larger) between the third and the last quarter of the run, while the
       weights travelled at least one radian (where ``esses`` and ``steps`` are known): a loss that is steady
       because nothing moves is a plateau;
    4. *undecided* otherwise, and for runs of fewer than 20 epochs.

    The angle between consecutive iterates is atan of the effective step size (ESS) of all groups together; it is
    evidence wherever ESS is given, and so is how much the groups' own differ: in regime 2 they are about equal
    (TR §3). ``since`` is where the evidence begins to hold to the end: for means over a quarter of the run, the first
    epoch of the first such quarter. For a run whose ELR was changed, give the curves since the change.

    Args:
        losses: Train loss of each epoch, batch statistics (train mode).
        errors: Train error of each epoch as a fraction, of the same length; None if not known.
        num_classes: Number of classes, at least 2; unused and may be None without ``errors``.
        first_epoch: Number of the epoch that the curves begin with.
        converged_loss: Loss below which a run counts as converged: 1e-2 for cross-entropy, :func:`converged_mse`
            for the mean squared error.
        chance_loss: Loss of guessing, such as that of the untrained network.
        esses: Mean effective step sizes in each epoch, of all groups together and then of each, shape
            (epochs, 1 + groups).
        steps: Optimizer steps taken before each epoch.

    Returns:
        The verdict.

    Raises:
        ValueError: If curves differ in length, hold a value that is not finite (losses: before the end), or
            ``num_classes`` < 2.

    Example:
        >>> falling = [math.exp(-0.1 * epoch) for epoch in range(100)]
        >>> name_regime(falling, [0.0] * 100, 10)
        RegimeVerdict(regime='convergence', evidence='train loss below 0.01 since epoch 47', since=47, since_step=None)
        >>> name_regime([2.0, 2.2] * 50, [0.4] * 100, 10).regime
        'chaotic equilibrium'
        >>> name_regime([2.0, 2.2] * 50, None, None, esses=[[2.6]] * 100).evidence
        'steps above 60° since epoch 0; consecutive iterates 69° apart (cosine 0.36)'
    """
    fault = _fault(losses, errors, num_classes, esses, steps)
    if fault is not None:
        raise ValueError(fault)
    angles = None if esses is None else [math.atan(each[0]) for each in esses]
    finite = _finite(losses)
    if finite < len(losses):
        return _verdict("divergence", "train loss NaN or infinite", finite, first_epoch, steps, "")
    epochs = len(losses)
    if epochs < SHORTEST_RUN:
        return RegimeVerdict("undecided", f"only {epochs} epochs; at least {SHORTEST_RUN} are needed")
    window = max(10, epochs // 4)
    more = _angle_evidence(angles, window)
    since = _holds_since([loss < converged_loss for loss in losses])
    if since <= epochs - window:
        return _verdict("convergence", f"train loss below {converged_loss:g}", since, first_epoch, steps, more)
    sign = sign_of_divergence(losses, errors, num_classes, chance_loss, angles)
    if sign is not None:
        what, curve, level = sign
        since = _holds_since([mean > level for mean in _moving_means(curve, window)])
        if since <= epochs - window:
            return _verdict("divergence", what, since, first_epoch, steps, more)
    low = sum(loss < converged_loss for loss in losses[-window:])
    if low:
        reason = f"train loss below {converged_loss:g} in {low} of the last {window} epochs only"
        return RegimeVerdict("undecided", reason + more)
    logs = [math.log(max(loss, 1e-300)) for loss in losses]
    verdict = _equilibrium(logs, window, first_epoch, steps, more + _ess_evidence(esses, window))
    if verdict.regime == "chaotic equilibrium" and angles is not None and steps is not None:
        path = fmean(angles[-window:]) * window * (steps[-1] - steps[0]) / (epochs - 1)
        if path < _SHORTEST_PATH:
            reason = f"train loss steady, but the weights have hardly moved: {path:.2g} radians in {window} epochs"
            return RegimeVerdict("undecided", reason + more)
    return verdict


def _fault(
    losses: Sequence[float],
    errors: Sequence[float] | None,
    num_classes: int | None,
    esses: Sequence[Sequence[float]] | None,
    steps: Sequence[int] | None,
) -> str | None:
    for name, curve in (("errors", errors), ("esses", esses), ("steps", steps)):
        if curve is not None and len(curve) != len(losses):
            return f"{len(losses)} losses but {len(curve)} {name}"
    finite = _finite(losses)
    if any(math.isfinite(loss) for loss in losses[finite:]):
        return "losses must be finite, but for those at the end of a run that blew up"
    if errors is not None and not all(math.isfinite(error) for error in errors[:finite]):
        return "errors must be finite"
    if errors is not None and (num_classes is None or num_classes < 2):
        return f"num_classes must be at least 2, got {num_classes}"
    return None


def _verdict(
    regime: Regime, what: str, since: int, first_epoch: int, steps: Sequence[int] | None, more: str
) -> RegimeVerdict:
    epoch = since + first_epoch
    return RegimeVerdict(regime, f"{what} since epoch {epoch}{more}", epoch, None if steps is None else steps[since])


def after_blow_ups(losses: Sequence[float]) -> int:
    """Tell where a curve begins of which only the end may be NaN or infinite, as :func:`name_regime` wants it.

    Args:
        losses: Any values.

    Returns:
        Index after the last value that is not finite but has a finite one behind it; 0 if there is none.
    """
    end = len(losses)
    while end > 0 and not math.isfinite(losses[end - 1]):
        end -= 1
    return max((i + 1 for i in range(end) if not math.isfinite(losses[i])), default=0)


def sign_of_divergence(
    losses: Sequence[float],
    errors: Sequence[float] | None,
    num_classes: int | None,
    chance_loss: float | None,
    angles: Sequence[float] | None,
) -> tuple[str, Sequence[float], float] | None:
    """Choose the best sign of divergence among what is known: error, then angles, then loss.

    Args:
        losses: Train loss of each epoch.
        errors: Train error of each epoch, or None.
        num_classes: Number of classes, or None.
        chance_loss: Loss of guessing, or None.
        angles: Mean angle between consecutive iterates in each epoch, in radians, or None.

    Returns:
        Its name, the curve, and the level above which the curve's mean says divergence; None without a sign.
    """
    if errors is not None and num_classes is not None:
        chance = 1 - 1 / num_classes
        return f"train error at chance ({chance:.0%})", errors, _CHANCE * chance
    if angles is not None:
        return "steps above 60°", angles, UNCORRELATED_ANGLE
    if chance_loss is not None:
        return f"train loss at that of guessing ({chance_loss:.3g})", losses, _CHANCE_LOSS * chance_loss
    return None


def _equilibrium(
    logs: Sequence[float], window: int, first_epoch: int, steps: Sequence[int] | None, more: str
) -> RegimeVerdict:
    before, last = logs[-2 * window : -window], logs[-window:]
    change = fmean(last) - fmean(before)
    noise = math.hypot(stdev(before), stdev(last)) / math.sqrt(window)
    bound = max(_STEADY, _STANDARD_ERRORS * noise)
    if abs(change) > bound:
        trend = "falls" if change < 0 else "rises"
        reason = f"the train loss still {trend} ({math.expm1(change):+.0%} in a quarter)"
        return RegimeVerdict("undecided", reason + more)
    level = fmean(last)
    since = _holds_since([abs(mean - level) <= bound for mean in _moving_means(logs, window)])
    what = f"train loss steady at {math.exp(level):.2g}"
    return _verdict("chaotic equilibrium", what, since, first_epoch, steps, more)


def _angle_evidence(angles: Sequence[float] | None, window: int) -> str:
    if angles is None:
        return ""
    angle = fmean(angles[-window:])
    return f"; consecutive iterates {math.degrees(angle):.2g}° apart (cosine {math.cos(angle):.2g})"


def _ess_evidence(esses: Sequence[Sequence[float]] | None, window: int) -> str:
    if esses is None or len(esses[-1]) < 3:
        return ""
    means = [fmean(group) for group in zip(*esses[-window:], strict=True)][1:]
    if not (min(means) > 0 and math.isfinite(max(means))):
        return ""
    ratio = max(means) / min(means)
    count = f"ESS of {len(means)} groups"
    return f"; {count} equal within {ratio - 1:.0%}" if ratio < 1.5 else f"; {count} differ by a factor of {ratio:.2g}"


def _moving_means(curve: Sequence[float], window: int) -> list[float]:
    """Mean of each window, by the epoch that it begins with."""
    sums = [0.0, *accumulate(curve)]
    return [(sums[i + window] - sums[i]) / window for i in range(len(curve) - window + 1)]


def _finite(curve: Sequence[float]) -> int:
    """Number of finite values that the curve begins with."""
    return next((i for i, value in enumerate(curve) if not math.isfinite(value)), len(curve))


def _holds_since(condition: Sequence[bool]) -> int:
    """First index from which on the condition holds to the end; the length if it does not hold at the end."""
    since = len(condition)
    while since > 0 and condition[since - 1]:
        since -= 1
    return since
