"""Which of the three regimes of training on the sphere a run is in, from its curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import fmean
from typing import Literal

Regime = Literal["convergence", "chaotic equilibrium", "divergence", "undecided"]

REGIME_NUMBERS: dict[Regime, int] = {"undecided": 0, "convergence": 1, "chaotic equilibrium": 2, "divergence": 3}
"""TR's numbers of the regimes; 0 while undecided."""

CONVERGED_LOSS = 1e-2
"""Train loss (cross-entropy) below which a run counts as converged; the threshold of the authors' later work."""

CORRELATED_ANGLE = math.radians(60)
"""Angle between consecutive iterates, in radians, below which they count as correlated: cosine above ½, ESS √3."""

UNCORRELATED_ANGLE = math.radians(75)
"""Angle between consecutive iterates, in radians, above which they count as uncorrelated: cosine ¼, ESS 3.7."""

SHORTEST_RUN = 20
"""Epochs below which no regime is named."""

ANNOUNCED_AFTER = 10
"""Epochs in a row for which an equilibrium or a divergence is named before :func:`announced_regime` tells it."""

SETTLED_AFTER = 15
"""Epochs in a row for which a regime is named before ``RegimeMonitor`` takes it for settled, where not told else."""

_WINDOW = 10  # epochs, at least
_CHANCE = 0.95  # of the error of guessing
_CHANCE_LOSS = 0.8  # of the loss of guessing: at chance the loss wanders by a tenth and more
_STEADY = 0.05  # relative change of the loss that is too small to be a trend
_STANDARD_ERRORS = 3  # a larger change is no noise
_KEPT_COSINE = 0.5  # an equilibrium forgets where it was
_EQUAL = 2.0  # ratio of the largest to the smallest ESS of the groups


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
    equal_steps: bool = False,
) -> RegimeVerdict:
    """Name the regime of a run at a fixed effective learning rate.

    The papers give no algorithm. This rule looks at the last quarter of the run, at least ten epochs of it:

    1. *convergence*: the train loss stays below ``converged_loss``;
    2. *divergence*: training is at chance, and consecutive iterates are uncorrelated. At chance: the train error is
       on average above 95 % of (1 − 1/classes); where there is no error, the loss above 80 % of ``chance_loss``.
       Uncorrelated: their mean angle is above 75° (cosine ¼). Where angles are not known, chance decides alone; where
       only they are known, an angle above 60° does (cosine ½; in TR's toy, an ELR of 2/Σα). A loss that ended NaN or
       infinite is divergence too;
    3. *chaotic equilibrium*: neither, the loss is steady, the weights have forgotten where they were, and their
       effective learning rates have settled. Steady: over the last quarter and over the last half the loss has no
       trend beyond 5 % and three standard errors of its noise. Forgotten: steps of random directions and of these
       sizes would leave a cosine Π cos φ below ½ in the quarter; by TR eq. (5) this is also the time in which
       effective learning rates relax. Settled: with ``equal_steps`` the ESS of the groups are within a factor of two;
    4. *undecided* otherwise, with the reason; for runs of fewer than 20 epochs; and between regimes 2 and 3: at
       chance, iterates between 60° and 75° apart.

    φ is the angle between consecutive iterates, atan of the effective step size (ESS) of all groups together.
    ``since`` is where the evidence begins to hold to the end: for means over a quarter of the run, the first epoch of
    the first such quarter. For a run whose ELR was changed, give the curves since the change.

    Error rates, of real runs: of 131 over the papers' grid of ELRs (digits, 100 epochs; 100 classes; CIFAR-10, 5000
    images, 30 epochs) none was named wrongly (``tests/test_regime_grid.py``). Of noise around a level,
    the share that is taken for a trend and left undecided: 1 to 2 % of independent noise; with a memory of five epochs
    (correlation 0.8) 18 %, 13 % and 5 % of runs of 40, 100 and 200 epochs. Of losses that fall by 12 % in ten epochs, 2
    and 5 % of noise: 0 and 1 % are taken for an equilibrium (``tests/test_regimes.py``).

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
        equal_steps: In regime 2 the groups' ESS are predicted to be equal: one sphere (TR §3), or plain SGD with
            weight decay.

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
        >>> name_regime([2.0, 2.2] * 50, [0.9] * 100, 10, esses=[[6.0]] * 100).evidence
        'train error at chance (90%) since epoch 0; consecutive iterates 81° apart (cosine 0.16)'
        >>> name_regime([3 - 0.01 * epoch for epoch in range(100)], [0.4] * 100, 10).evidence
        'the train loss still falls, by 11% in 25 epochs'
    """
    fault = _fault(losses, errors, num_classes, esses, steps)
    if fault is not None:
        raise ValueError(fault)
    finite = _finite(losses)
    if finite < len(losses):
        return _verdict("divergence", "train loss NaN or infinite", finite, first_epoch, steps, "")
    epochs = len(losses)
    if epochs < SHORTEST_RUN:
        return RegimeVerdict("undecided", f"only {epochs} epochs, at least {SHORTEST_RUN} are needed")
    window = max(_WINDOW, epochs // 4)
    angles = None if esses is None else [math.atan(each[0]) for each in esses]
    more = _angle_evidence(angles, window)
    since = _holds_since([loss < converged_loss for loss in losses])
    if since <= epochs - window:
        return _verdict("convergence", f"train loss below {converged_loss:g}", since, first_epoch, steps, more)
    between = ""
    sign = sign_of_chance(losses, errors, num_classes, chance_loss, angles)
    if sign is not None:
        what, curve, level = sign
        since = _holds_since([mean > level for mean in _moving_means(curve, window)])
        if since <= epochs - window:
            angle = math.inf if angles is None else fmean(angles[-window:])
            if angle > UNCORRELATED_ANGLE or curve is angles:
                return _verdict("divergence", what, since, first_epoch, steps, more)
            if angle > CORRELATED_ANGLE:
                between = f"between chaotic equilibrium and divergence: {what}"
    low = sum(loss < converged_loss for loss in losses[-window:])
    if low:
        between = f"train loss below {converged_loss:g} in {low} of the last {window} epochs only"
    reasons = [between] if between else _unsettled(losses, esses, angles, steps, window, equal_steps)
    if reasons:
        return RegimeVerdict("undecided", "; ".join(reasons) + more)
    more += _ess_evidence(esses, window)
    return _equilibrium(losses, window, first_epoch, steps, more)


def _unsettled(
    losses: Sequence[float],
    esses: Sequence[Sequence[float]] | None,
    angles: Sequence[float] | None,
    steps: Sequence[int] | None,
    window: int,
    equal_steps: bool,
) -> list[str]:
    """Give what speaks against an equilibrium."""
    reasons = []
    if angles is not None and steps is not None:
        count = window * (steps[-1] - steps[0]) / (len(steps) - 1)
        kept, path = kept_cosine(angles[-window:], count / window), fmean(angles[-window:]) * count
        if kept > _KEPT_COSINE:
            how = (
                f"hardly move, {path:.2g} radians in {window} epochs: the ELR is too low for"
                if path < 1
                else f"have not forgotten where they were {window} epochs ago (cosine above {kept:.2g}): too soon after"
            )
            reasons.append(f"the weights {how} {len(losses)} epochs")
    logs = _logs(losses)
    for length in (window, 2 * window):
        change, error = _trend(logs[-length:])
        if abs(change) > max(_STEADY, _STANDARD_ERRORS * error):
            verb = "falls" if change < 0 else "rises"
            reasons.append(f"the train loss still {verb}, by {abs(math.expm1(change)):.0%} in {length} epochs")
            break
    if equal_steps and not reasons and esses is not None:
        ratio = _ess_ratio(esses, window)
        if ratio > _EQUAL:
            reasons.append(f"the groups' effective step sizes are not equal, but differ by a factor of {ratio:.2g}")
    return reasons


def kept_cosine(angles: Sequence[float], steps_per_epoch: float) -> float:
    """Cosine between the weights before and after some epochs, were their steps of independent random directions.

    Args:
        angles: Mean angle of a step in each epoch, in radians; those from a right angle on leave nothing.
        steps_per_epoch: Optimizer steps in an epoch.

    Returns:
        Π cos φ over all steps, in [0, 1].
    """
    cosines = [math.cos(angle) for angle in angles]
    if min(cosines) <= 0:
        return 0.0
    return math.exp(steps_per_epoch * math.fsum(map(math.log, cosines)))


def announced_regime(before: Regime, streak: int, verdict: Regime) -> Regime:
    """Decide what is announced while a run goes on, so that announcements need not be taken back.

    A convergence is announced as soon as it is named, since all of ten epochs or more tell it. Equilibria and
    divergences, told by means, are announced when they were named in ten epochs in a row. What was announced stands
    until another regime is.

    Args:
        before: What was announced before; ``undecided`` for nothing.
        streak: Number of epochs in a row in which the present verdict was named, the present one among them.
        verdict: What :func:`name_regime` says of the curves up to now.

    Returns:
        What is announced now.
    """
    if verdict == "convergence" or (verdict != "undecided" and streak >= ANNOUNCED_AFTER):
        return verdict
    return before


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
    """Find where a curve begins of which only the end may be NaN or infinite, as :func:`name_regime` wants it.

    Args:
        losses: Any values.

    Returns:
        Index after the last value that is not finite but has a finite one behind it; 0 if there is none.
    """
    end = len(losses)
    while end > 0 and not math.isfinite(losses[end - 1]):
        end -= 1
    return max((i + 1 for i in range(end) if not math.isfinite(losses[i])), default=0)


def sign_of_chance(
    losses: Sequence[float],
    errors: Sequence[float] | None,
    num_classes: int | None,
    chance_loss: float | None,
    angles: Sequence[float] | None,
) -> tuple[str, Sequence[float], float] | None:
    """Choose the best sign that nothing is learnt, among what is known: error, then loss, then angles.

    Args:
        losses: Train loss of each epoch.
        errors: Train error of each epoch, or None.
        num_classes: Number of classes, or None.
        chance_loss: Loss of guessing, or None.
        angles: Mean angle between consecutive iterates in each epoch, in radians, or None.

    Returns:
        Its name, the curve, and the level above which the curve's mean says so; None without a sign.
    """
    if errors is not None and num_classes is not None:
        chance = 1 - 1 / num_classes
        return f"train error at chance ({chance:.0%})", errors, _CHANCE * chance
    if chance_loss is not None:
        return f"train loss at that of guessing ({chance_loss:.3g})", losses, _CHANCE_LOSS * chance_loss
    if angles is not None:
        return "steps above 60°", angles, CORRELATED_ANGLE
    return None


def _equilibrium(
    losses: Sequence[float], window: int, first_epoch: int, steps: Sequence[int] | None, more: str
) -> RegimeVerdict:
    logs = _logs(losses)
    level, noise = fmean(logs[-window:]), _trend(logs[-2 * window :])[1]
    bound = max(_STEADY, _STANDARD_ERRORS * noise)
    since = _holds_since([abs(mean - level) <= bound for mean in _moving_means(logs, window)])
    what = f"train loss steady at {math.exp(level):.2g}"
    return _verdict("chaotic equilibrium", what, since, first_epoch, steps, more)


def _logs(losses: Sequence[float]) -> list[float]:
    return [math.log(max(loss, 1e-300)) for loss in losses]


def _trend(values: Sequence[float]) -> tuple[float, float]:
    """Change over a curve by its least-squares line, and that change's standard error.

    The noise of chaotic runs is correlated from epoch to epoch: its variance counts (1 + r)/(1 − r) times, r being
    the residuals' correlation at lag one, corrected for what a line takes away from it in short curves.

    Args:
        values: At least three.

    Returns:
        Both.
    """
    count = len(values)
    times = [i - (count - 1) / 2 for i in range(count)]
    spread = math.fsum(t * t for t in times)
    mean, slope = fmean(values), math.fsum(t * v for t, v in zip(times, values, strict=True)) / spread
    residuals = [v - mean - slope * t for t, v in zip(times, values, strict=True)]
    power = math.fsum(r * r for r in residuals)
    lagged = math.fsum(a * b for a, b in pairwise(residuals))
    correlation = min(0.9, max(0.0, lagged / power + 4 / count)) if power > 0 else 0.0
    error = math.sqrt(power / (count - 2) * (1 + correlation) / (1 - correlation) / spread)
    return slope * count, error * count


def _angle_evidence(angles: Sequence[float] | None, window: int) -> str:
    if angles is None:
        return ""
    angle = fmean(angles[-window:])
    return f"; consecutive iterates {math.degrees(angle):.2g}° apart (cosine {math.cos(angle):.2g})"


def _ess_ratio(esses: Sequence[Sequence[float]], window: int) -> float:
    """Ratio of the largest to the smallest of the groups' mean ESS; 1 where it cannot be told."""
    means = [fmean(group) for group in zip(*esses[-window:], strict=True)][1:]
    if len(means) < 2 or not (min(means) > 0 and math.isfinite(max(means))):
        return 1.0
    return max(means) / min(means)


def _ess_evidence(esses: Sequence[Sequence[float]] | None, window: int) -> str:
    groups = 0 if esses is None else len(esses[-1]) - 1
    if esses is None or groups < 2:
        return ""
    ratio = _ess_ratio(esses, window)
    count = f"ESS of {groups} groups"
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
