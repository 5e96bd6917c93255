"""P12, P13, P17, P22: periods of training with weight decay in the whole space, and P23: those of the toy."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, linear_regression, median
from typing import Any, NamedTuple

from lit_sphere.analysis.periods import LOSS_RISE, PLANE_RISE, STEP_WINDOW, Period, Periods, segment_periods
from lit_sphere.experiments.drawing import GROUP_COLOURS, charts_of_settings
from lit_sphere.experiments.experiment import Claim, Finding, NotDrawn, conclude, conclude_over_settings
from lit_sphere.experiments.grids import name_of
from lit_sphere.experiments.levels import by_epoch
from lit_sphere.experiments.paths import paths_between
from lit_sphere.experiments.seeds import with_each
from lit_sphere.experiments.toys import TOY, tables_of
from lit_sphere.report.chart import Chart, Curve, Mark, Panel
from lit_sphere.report.metrics_csv import Series
from lit_sphere.report.runs import Run

LOSS, NORM = "train/loss", "norm/total"
STEP_LOSS, STEP_NORM, STEP_ELR, STEP_GRAD, STEP_DISTANCE = (
    f"period/{name}" for name in ("loss", "norm_squared", "elr", "effective_grad_norm", "distance")
)

_SHARE = 0.8  # of periods in which phases A and B must be what they are said to be
_FIRST = 0.5  # of periods in which the loss must lead by a step or more: others are thrown out in one
_ALIKE = 0.9  # cosine between minima of periods that did not grow apart
_NOTHING_IN_COMMON = 0.1  # cosine between networks of different seeds, at most
_REACHED = 1.1  # times the error that is left to ensembles of independent networks
_FEWEST = 2  # periods
_SHORTEST_B = 40  # steps of phase B to which bounds are fitted
_PERIOD_OF = {0.03: 17.0, 0.1: 11.0, 0.2: 5.0}  # of the toy, in steps
_CLOSE = 0.6  # steps


def decay_of(run: Run) -> float | None:
    """Give the weight decay of a run in the whole space; None on the sphere, or where it is not known."""
    decay = run.option("model.optimizer.weight_decay")
    try:
        return None if run.elr is not None or decay is None else float(decay)
    except (TypeError, ValueError):
        return None


def _ordered(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (str(run.folder), -1 if run.seed is None else run.seed))


def setting_of(run: Run) -> str:
    """Name a run in the whole space by network, data, learning rate and decay."""
    return f"{name_of(run)}, LR {run.lr:g}, WD {decay_of(run):g}"


def periods_of(run: Run, loss_rise: float = LOSS_RISE) -> Periods | None:
    """Find the periods of a run by its epochs.

    Args:
        run: The run.
        loss_rise: As of :func:`~lit_sphere.analysis.periods.segment_periods`.

    Returns:
        The periods; None of a run on the sphere, without weight decay, or without curves of loss and norm.
    """
    losses, norms = by_epoch(run, LOSS), by_epoch(run, NORM)
    both = [epoch for epoch in losses if epoch in norms]
    if not both or not decay_of(run):
        return None
    curves = [losses[epoch] for epoch in both], [norms[epoch] for epoch in both]
    return segment_periods(*curves, loss_rise=loss_rise)


def _with_seed(run: Run) -> str:
    return f"{setting_of(run)}, seed {run.seed}"


class Steps(NamedTuple):
    """What ``PeriodMonitor(per="step")`` logged, a value for each step.

    Attributes:
        at: Numbers of the steps.
        loss: Train loss.
        norm: ρ.
        elr: Effective learning rate.
        grad: Effective gradient norm.
        distance: Cosine distance of consecutive iterates.
        periods: Found in these curves.
    """

    at: list[float]
    loss: list[float]
    norm: list[float]
    elr: list[float]
    grad: list[float]
    distance: list[float]
    periods: Periods


def steps_of(run: Run) -> Steps | None:
    """Read the single steps of a run; None where they were not logged."""
    series: list[Series | None] = [
        run.series.get(key) for key in (STEP_LOSS, STEP_NORM, STEP_ELR, STEP_GRAD, STEP_DISTANCE)
    ]
    found = [each for each in series if each is not None]
    if len(found) < len(series) or len(found[0].values) <= 2 * run.epochs:
        return None
    columns = [dict(zip(each.steps, each.values, strict=True)) for each in found]
    at = sorted(step for step in columns[0] if all(step in column for column in columns[1:]))
    loss, squares, elr, grad, distance = ([column[step] for step in at] for column in columns)
    norm = [math.sqrt(square) for square in squares]
    return Steps(at, loss, norm, elr, grad, distance, segment_periods(loss, norm, window=STEP_WINDOW, unit="step"))


def detailed(runs: Sequence[Run]) -> Iterator[tuple[Run, Steps]]:
    """Choose the runs with weight decay whose single steps were logged."""
    for run in _ordered(runs):
        steps = steps_of(run) if decay_of(run) else None
        if steps is not None:
            yield run, steps


_NO_STEPS = "Missing: a run with weight decay whose single steps PeriodMonitor logged (per step)."


def check_phases(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge P12 by the runs of which single steps are known."""
    return conclude_over_settings(
        [(_with_seed(run), conclude(phases(steps))) for run, steps in detailed(runs)], _NO_STEPS
    )


def phases(steps: Steps) -> list[Claim]:
    """Claim what P12 must show.

    Args:
        steps: Of one run.

    Returns:
        The claims: in most finished periods A, B and C are what they are said to be, and the loss rises before ρ.
    """
    found = steps.periods.finished
    if len(found) < _FEWEST:
        return [Claim(None, f"Missing: two finished periods ({steps.periods.sentence}).")]
    claims = []
    for name, share, least, text in (
        ("A", [_is_a(steps, each) for each in found[1:]], _SHARE, "the loss falls and the norm rises"),
        ("B", [_is_b(steps, each) for each in found], _SHARE, "the norm falls and the ELR rises"),
        ("C", [_rise(each) > 0 for each in found], _FIRST, "the loss rises before the norm does"),
    ):
        need = f"(must be {least:.0%} or more)"
        claims.append(
            Claim(fmean(share) >= least, f"Phase {name}: {text}, in {fmean(share):.0%} of {len(share)} periods {need}.")
        )
    lengths = sorted(_rise(each) for each in found)
    ahead = f"{lengths[0]} to {lengths[-1]} steps, in the median {lengths[len(lengths) // 2]}"
    grown = [steps.norm[each.norm_peak] / steps.norm[each.start] for each in found[1:]]
    claims.append(
        Claim(True, f"The loss leads by {ahead}; the norm then grows {min(grown):.2g} to {max(grown):.2g} times.")
    )
    return claims


def _rise(period: Period) -> int:
    return 0 if period.end is None or period.loss_rise is None else period.end - period.loss_rise


def _is_a(steps: Steps, period: Period) -> bool:
    """From the least norm to the greatest the loss comes down from its peak, the norm rises and the ELR falls."""
    first, last = period.start, period.norm_peak
    top = max(steps.loss[first : last + 1])
    after = steps.loss[last : last + 1 + STEP_WINDOW]
    return top > fmean(after) and steps.norm[last] > steps.norm[first] and steps.elr[last] < steps.elr[first]


def _is_b(steps: Steps, period: Period) -> bool:
    first, last = period.norm_peak, period.loss_rise if period.loss_rise is not None else period.norm_peak
    return last > first and steps.norm[last] < steps.norm[first] and steps.elr[last] > steps.elr[first]


def check_bounds(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge P13 by the runs of plain SGD of which single steps are known."""
    findings = []
    for run, steps in detailed(runs):
        decay, lr = decay_of(run), run.lr
        if run.option("model.optimizer.momentum") or decay is None or lr is None:
            continue
        power = 2.0 if run.option("data.full_batch") else 1.0
        findings.append((_with_seed(run), conclude(bounds(steps, lr, decay, power))))
    return conclude_over_settings(findings, _NO_STEPS)


class Bounds(NamedTuple):
    """Bounds on the cosine distance of steps in a phase B, with c and C of its first half.

    Attributes:
        steps: Indices of the steps of the phase.
        low: Least distance that a step can have, with ℓ(t) = c/(t − t₀).
        high: Greatest, with L(t) = C/(t − t₀).
        held: Share of the steps of the second half whose distance lies between them.
        held_by_constants: The same of bounds with the least and the greatest g̃ of the first half.
        narrower: Width of such bounds on g̃ over the whole phase, in orders of magnitude, over that of constant ones.
        power: p of the power law (t − t₀)^p that g̃ follows best.
    """

    steps: range
    low: list[float]
    high: list[float]
    held: float
    held_by_constants: float
    narrower: float
    power: float


def bounds_of(steps: Steps, period: Period, lr: float, decay: float, power: float) -> Bounds | None:
    """Fit c and C to the first half of a phase B, and bound the distances of all of it.

    Args:
        steps: Of the run.
        period: Finished.
        lr: η.
        decay: λ.
        power: Of the fall of gradients: 1 for mini-batches, 2 for the full batch.

    Returns:
        The bounds; None of a phase that is too short.
    """
    import torch  # the report starts without it

    from lit_sphere.theory.falling_gradients import distance_bounds, factors_of, falling_grad_norms

    first, last = period.norm_peak, period.norm_peak if period.loss_rise is None else period.loss_rise
    if last - first < _SHORTEST_B:
        return None
    begin = first + (last - first) // 10  # right after t₀ the loss has not converged
    start = steps.at[period.start] - 1
    at, grad, norm, seen = (
        torch.tensor(each[begin:last], dtype=torch.float64)
        for each in (steps.at, steps.grad, steps.norm, steps.distance)
    )
    half = len(at) // 2
    factors = factors_of(grad[:half], at[:half], start, power)
    grads = falling_grad_norms(at, start, factors.low, factors.high, power)
    found = distance_bounds(norm, grads.low, grads.high, lr, decay)
    constant = distance_bounds(norm, grad[:half].min(), grad[:half].max(), lr, decay)
    held, by_constants = (
        ((each.low <= seen) & (seen <= each.high))[half:].double().mean().item() for each in (found, constant)
    )
    whole = factors_of(grad, at, start, power)
    narrower = math.log(whole.high / whole.low) / math.log(grad.max() / grad.min())
    fitted = linear_regression((at - start).log().tolist(), grad.log().tolist()).slope
    return Bounds(range(begin, last), found.low.tolist(), found.high.tolist(), held, by_constants, narrower, fitted)


def bounds(steps: Steps, lr: float, decay: float, power: float = 1.0) -> list[Claim]:
    """Claim what P13 must show.

    With c and C of all its steps any phase lies between its bounds: what is judged is that they are narrower than those
    of gradients that do not fall, and that they hold for more of the later steps that they were not fitted to.

    Args:
        steps: Of one run.
        lr: η.
        decay: λ.
        power: Of the fall of gradients.

    Returns:
        The claims.
    """
    found = [bounds_of(steps, period, lr, decay, power) for period in steps.periods.finished]
    known = [each for each in found if each is not None]
    if not known:
        return [Claim(None, f"Missing: a finished period with a phase B of {_SHORTEST_B} steps.")]
    shares = [each.held for each in known]
    held, by_constants = fmean(shares), fmean(each.held_by_constants for each in known)
    narrower = fmean(each.narrower for each in known)
    fitted = f"{median(each.power for each in known):.2g}".replace("-", "−")
    law = "1/(t − t₀)²" if power == 2 else "1/(t − t₀)"
    return [
        Claim(
            held > by_constants,
            f"Bounds with c and C of the first half of a phase B hold for {held:.0%} of the steps of its second half "
            f"({min(shares):.0%} to {max(shares):.0%} in {len(known)} phases), constant ones for {by_constants:.0%}: "
            f"{held - by_constants:.0%} more (must be above 0%).",
        ),
        Claim(
            narrower < 1,
            f"Over a whole phase bounds on g̃ that fall as {law} span {narrower:.2f} times the orders of magnitude of "
            "constant ones (must be below 1).",
        ),
        Claim(True, f"In the median g̃ goes as (t − t₀)^{fitted}."),
    ]


class Pair(NamedTuple):
    """Two minima.

    Attributes:
        epochs: Of the two.
        cosine: Similarity of their scale-invariant weights.
        ensemble: Error of the ensemble of the two; None where it was not measured.
        members: Mean error of its members.
    """

    epochs: tuple[int, int]
    cosine: float
    ensemble: float | None
    members: float | None


def pairs_of(run: Run) -> list[Pair]:
    """Read what ``CheckpointSimilarity(between="periods")`` left in a run's folder."""
    table = run.folder / "similarity.csv"
    if not _compares_minima(run) or not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return [_pair(row) for row in csv.DictReader(file)]


def _compares_minima(run: Run) -> bool:
    options = run.callback("CheckpointSimilarity")
    return options is not None and options.get("between") == "periods"


def _pair(row: dict[str, Any]) -> Pair:
    errors = [float(row[name]) if row.get(name) else None for name in ("ensemble_error", "error", "other_error")]
    ensemble, *members = errors
    known = [each for each in members if each is not None]
    epochs = (int(row["epoch"]), int(row["other_epoch"]))
    return Pair(epochs, float(row["cosine"]), ensemble, fmean(known) if known else None)


def check_minima(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge P17 by the runs whose minima were compared, with each other and with those of other seeds."""
    found: dict[str, list[tuple[Run, list[Pair]]]] = {}
    for run in _ordered(runs):
        if decay_of(run) and _compares_minima(run):
            found.setdefault(setting_of(run), []).append((run, pairs_of(run)))
    independent = _independent(runs, folders)
    findings = []
    for name, mine in found.items():
        each = with_each({f"Seed {run.seed}": conclude(minima(pairs)) for run, pairs in mine})
        claims = [Claim(each.holds, each.text)]
        pairs = [pair for _, of_run in mine for pair in of_run]
        if pairs and name in independent:
            claims += beside_independent(pairs, independent[name])
        findings.append((name, conclude(claims)))
    return conclude_over_settings(
        findings, "Missing: a run with PeriodMonitor and CheckpointSimilarity (between: periods), of two periods."
    )


def minima(pairs: Sequence[Pair]) -> list[Claim]:
    """Claim what P17 must show.

    Args:
        pairs: Of one run.

    Returns:
        The claims: minima are far apart, the farther the more periods lie between; ensembles are better than members.
    """
    at = sorted({epoch for pair in pairs for epoch in pair.epochs})
    if len(at) < _FEWEST:
        return [Claim(None, "Missing: minima of two periods.")]
    place = {epoch: i for i, epoch in enumerate(at)}
    next_to: list[float] = []
    apart: list[float] = []
    for pair in pairs:
        (next_to if place[pair.epochs[1]] - place[pair.epochs[0]] == 1 else apart).append(pair.cosine)
    need = f"(must be below {_ALIKE:g})"
    text = f"Cosine between minima of {len(at)} periods: {fmean(next_to):.2f} of one and the next {need}"
    claims = [Claim(fmean(next_to) < _ALIKE, f"{text}, {fmean(apart):.2f} of others." if apart else f"{text}.")]
    if apart:
        claims.append(Claim(fmean(apart) < fmean(next_to), "They go on growing apart."))
    known = [(pair.ensemble, pair.members) for pair in pairs if pair.ensemble is not None and pair.members is not None]
    if known:
        ensemble, members = (fmean(each) for each in zip(*known, strict=True))
        better = ensemble < members
        claims.append(
            Claim(
                better if members > 0 else None,
                f"The error of ensembles of two is {ensemble:.2%}, that of their members {members:.2%}: "
                f"{members - ensemble:.2%} more (must be above 0%).",
            )
        )
    return claims


def _independent(runs: Sequence[Run], folders: Sequence[Path]) -> dict[str, list[Pair]]:
    """Pairs of minima of two runs of one setting, by the setting, as ``lit-sphere interpolate`` compared them."""
    found: dict[str, list[Pair]] = {}
    for path, end in paths_between(runs, folders):
        one = decay_of(path.run) and setting_of(path.run)
        alike = one and decay_of(end) and one == setting_of(end) and path.run.seeds != end.seeds
        if one and alike and path.of_minima and path.cosine is not None:
            found.setdefault(one, []).append(Pair((0, 0), path.cosine, *(path.ensemble or (None, None))))
    return found


def beside_independent(pairs: Sequence[Pair], independent: Sequence[Pair]) -> list[Claim]:
    """Compare minima of one run with those of other seeds.

    Args:
        pairs: Of minima within runs.
        independent: Of minima of different runs, which have nothing in common but their data.

    Returns:
        The claims: independent networks have nothing in common, minima of one run still have; and how much of the error
        of their members is left to ensembles, which says how far minima are on the way to be independent.
    """
    nothing, cosine = max(abs(pair.cosine) for pair in independent), fmean(pair.cosine for pair in pairs)
    text = (
        f"The cosine between minima of different seeds is at most {nothing:.2f} (must be below "
        f"{_NOTHING_IN_COMMON:g}), of one run {cosine:.2f} in the mean."
    )
    claims = [Claim(nothing < _NOTHING_IN_COMMON and nothing < cosine, text)]
    left = [_error_left(each) for each in (pairs, independent)]
    if None in left:
        return claims
    within, between = (each or 0.0 for each in left)
    reach = "reach those" if within < _REACHED * between else "do not reach those"
    text = f"Ensembles of two minima of one run have {within:.0%} of their members' error, and {reach} of two seeds"
    return [*claims, Claim(True, f"{text}, which have {between:.0%} of it.")]


def _error_left(pairs: Sequence[Pair]) -> float | None:
    """Error of ensembles over that of their members, both in the mean; None where it is not known, or 0."""
    known = [(pair.ensemble, pair.members) for pair in pairs if pair.ensemble is not None and pair.members is not None]
    if not known:
        return None
    ensemble, members = (fmean(each) for each in zip(*known, strict=True))
    return ensemble / members if members else None


def check_fixed_norms(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge P22 by the runs whose norm is fixed, and those of the same learning rate and decay whose norm is free."""
    claims = []
    free = [run for run in _ordered(runs) if _fixed(run) is None and periods_of(run) is not None]
    for run in _ordered(runs):
        options, found = _fixed(run), periods_of(run)
        if options is None or found is None:
            continue
        alike = [other for other in free if setting_of(other) == setting_of(run)]
        of_its_seed = [other for other in alike if other.seeds == run.seeds]
        beside = min((other.count for each in of_its_seed or alike if (other := periods_of(each))), default=0)
        if beside < _FEWEST:
            claims.append(Claim(None, f"Missing: a run like {run.name} with a free norm and two periods."))
            continue
        late = options.get("from_epoch") or 0
        kept = _norm_at_the_end(run)
        after = [each for each in found.finished if each.end is not None and each.end > late]
        low = found.unfinished.minimum if found.unfinished is not None else math.nan
        claims.append(
            Claim(
                not after,
                f"At a norm of {kept:.3g}{f', fixed at epoch {late},' if late else ''} there are {len(after) or 'no'} "
                f"destabilisations (least loss {low:.2g}); at a free norm {beside} (must be {_FEWEST} or more).",
            )
        )
    missing = "Missing: runs with weight decay and FixedNorm, beside one with a free norm."
    return conclude(claims or [Claim(None, missing)])


def _fixed(run: Run) -> dict[str, Any] | None:
    options = run.callback("FixedNorm")
    return None if options is None else dict(options)


def _norm_at_the_end(run: Run) -> float:
    norms = list(by_epoch(run, NORM).values())
    return norms[-1] if norms else math.nan


def check_plane(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge P23 by the toy.csv of the plane."""
    claims = []
    for decay, (losses, norms) in _planes(folders).items():
        found = segment_periods(losses, norms, loss_rise=PLANE_RISE, unit="step")
        if not decay:
            claims.append(Claim(losses[-1] < 1e-9, f"Without decay the loss falls to {losses[-1]:.1e}."))
        elif decay in _PERIOD_OF:
            expected, length = _PERIOD_OF[decay], found.mean_length
            close = length is not None and abs(length - expected) < _CLOSE
            seen = "there are no periods" if length is None else f"a period takes {length:.1f} steps"
            claims.append(Claim(close, f"At a decay of {decay:g} {seen}, expected {expected:g}."))
    return conclude(
        claims or [Claim(None, "Missing: toy.csv of the plane (lit-sphere toy --weight-decay 0 0.03 0.1 0.2).")]
    )


def _planes(folders: Sequence[Path]) -> dict[float, tuple[list[float], list[float]]]:
    found: dict[float, tuple[list[float], list[float]]] = {}
    for rows in tables_of(folders, TOY, ("weight_decay", "step", "loss", "norm")):
        for row in rows:
            losses, norms = found.setdefault(float(row["weight_decay"]), ([], []))
            losses.append(float(row["loss"]))
            norms.append(float(row["norm"]))
    return found


def draw_phases(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw PB's period in detail: loss, norm, ELR and distance around the end of one, by steps."""
    settings = []
    for run, steps in detailed(runs):
        finished = steps.periods.finished
        if finished:
            longest = max(finished, key=_rise)
            settings.append((_with_seed(run), _around(steps, finished.index(longest), run.name)))
    caption = (
        "A destabilisation step by step. In phase B the norm falls and the effective learning rate rises; in C the "
        "loss rises, and only then the norm, which ends the period (line at 0); in A the loss falls, the norm rises."
    )
    return charts_of_settings("P12", settings, "One period in detail", caption, "runs whose single steps were logged")


def _around(steps: Steps, number: int, name: str) -> list[Panel]:
    period = steps.periods.finished[number]
    after = steps.periods.finished[number + 1] if number + 1 < steps.periods.count else steps.periods.unfinished
    assert period.end is not None
    assert after is not None
    more = max(12, 2 * _rise(period))
    shown = range(max(0, period.end - _rise(period) - more), min(len(steps.at), after.norm_peak + more + 1))
    x = [steps.at[i] - steps.at[period.end] for i in shown]
    marks = [Mark(x=0.0), Mark(x=float(-_rise(period)), label="loss rises", dash="dotted")]
    named = (
        ("train loss", steps.loss),
        ("norm ρ", steps.norm),
        ("effective learning rate", steps.elr),
        ("cosine distance of steps", steps.distance),
    )
    return [
        Panel(
            title,
            "steps from the least norm",
            y_log=True,
            curves=[Curve(x, [curve[i] for i in shown], run=name, colour=GROUP_COLOURS[0], kind="both")],
            marks=marks if title == "train loss" and _rise(period) else [Mark(x=0.0)],
        )
        for title, curve in named
    ]


def draw_bounds(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the distances of steps over the whole run, with the bounds of phases B."""
    settings = []
    for run, steps in detailed(runs):
        lr, decay = run.lr, decay_of(run)
        if lr is None or decay is None or run.option("model.optimizer.momentum"):
            continue
        power = 2.0 if run.option("data.full_batch") else 1.0
        found = [bounds_of(steps, period, lr, decay, power) for period in steps.periods.finished]
        curves = [_distances(steps, run.name)]
        for each in (bound for bound in found if bound is not None):
            curves += _bound_curves(steps, each)
        settings.append((_with_seed(run), [Panel("cosine distance of steps", "step", y_log=True, curves=curves)]))
    caption = (
        "Cosine distance of consecutive iterates, and in each phase B its bounds by ℓ(t) = c/(t − t₀) and "
        "L(t) = C/(t − t₀), with c and C of the first half of the phase: what follows is a prediction. PB."
    )
    return charts_of_settings("P13", settings, "Bounds on steps", caption, "runs whose single steps were logged")


def _distances(steps: Steps, name: str) -> Curve:
    stride = max(1, len(steps.at) // _MOST_DRAWN)
    return Curve(steps.at[::stride], steps.distance[::stride], "observed", run=name, colour="#999999", width=0.7)


_MOST_DRAWN = 3000


def _bound_curves(steps: Steps, bounds: Bounds) -> list[Curve]:
    stride = max(1, len(bounds.steps) // 100)
    x = [steps.at[i] for i in bounds.steps][::stride]
    return [
        Curve(x, values[::stride], label, colour=colour, width=1.6)
        for label, values, colour in (
            ("least", bounds.low, GROUP_COLOURS[0]),
            ("greatest", bounds.high, GROUP_COLOURS[1]),
        )
    ]


def draw_minima(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw how alike minima are, by the periods between them, and the errors of their ensembles."""
    settings = []
    independent = _independent(runs, folders)
    for run in _ordered(runs):
        pairs = pairs_of(run)
        at = sorted({epoch for pair in pairs for epoch in pair.epochs})
        place = {epoch: i for i, epoch in enumerate(at)}
        apart = [place[pair.epochs[1]] - place[pair.epochs[0]] for pair in pairs]
        hover = [f"epochs {pair.epochs[0]} and {pair.epochs[1]}" for pair in pairs]
        cosines = Curve(apart, [pair.cosine for pair in pairs], run=run.name, kind="points", hover=hover)
        others = independent.get(setting_of(run), []) if pairs else []
        level = [Mark(y=fmean(pair.cosine for pair in others), label="other seeds")] if others else []
        x_title = "periods between them"
        panels = [Panel("cosine of two minima", x_title, curves=[cosines] if pairs else [], marks=level)]
        known = [pair for pair in pairs if pair.ensemble is not None and pair.members is not None]
        if known:
            x = [pair.epochs[1] for pair in known]
            errors = [
                Curve(x, [100 * (each or 0) for each in values], label, run=run.name, colour=colour, kind="both")
                for label, values, colour in (
                    ("mean of the two", [pair.members for pair in known], GROUP_COLOURS[1]),
                    ("ensemble of two", [pair.ensemble for pair in known], GROUP_COLOURS[0]),
                )
            ]
            panels.append(Panel("test error [%]", "epoch of the minimum", curves=errors))
        if pairs:
            settings.append((_with_seed(run), panels))
    caption = (
        "Weights at the minima of periods: cosine similarity of the scale-invariant weights, and errors of the "
        "ensemble of each minimum with the one before. Dashed: the cosine of independent networks, minima of other "
        "seeds. PB."
    )
    return charts_of_settings(
        "P17", settings, "Minima of periods", caption, "runs with CheckpointSimilarity of periods"
    )


def draw_fixed_norms(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw loss and norm of runs with free and with fixed norms."""
    curves: dict[str, dict[str, list[Curve]]] = {}
    for run in _ordered(runs):
        if not decay_of(run):
            continue
        setting = curves.setdefault(setting_of(run), {LOSS: [], NORM: []})
        fixed = _fixed(run)
        label = "free norm" if fixed is None else f"norm {_norm_at_the_end(run):.3g}{_since(fixed)}"
        colour = GROUP_COLOURS[len(setting[LOSS]) % len(GROUP_COLOURS)]
        for key in (LOSS, NORM):
            values = by_epoch(run, key)
            setting[key].append(Curve(list(values), list(values.values()), label, run=run.name, colour=colour))
    settings = []
    for name, of in curves.items():
        if len(of[LOSS]) > 1:
            panels = (("train loss", LOSS), ("norm ρ", NORM))
            settings.append((name, [Panel(title, "epoch", y_log=True, curves=of[key]) for title, key in panels]))
    caption = "Weight decay with the norm put back after each step has no periods, at whatever norm. PB."
    return charts_of_settings("P22", settings, "Fixed norms", caption, "runs with weight decay and FixedNorm")


def _since(fixed: dict[str, Any]) -> str:
    return f" from epoch {fixed['from_epoch']}" if fixed.get("from_epoch") else ""


def draw_plane(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the toy in the plane, with and without decay."""
    found = _planes(folders)
    if not found:
        return NotDrawn("toy.csv of the plane (lit-sphere toy --weight-decay 0 0.03 0.1 0.2)")
    panels = []
    for title, which in (("loss", 0), ("norm ρ", 1)):
        lines = [
            Curve(list(range(_TOY_STEPS)), curves[which][:_TOY_STEPS], f"λ = {decay:g}", colour=GROUP_COLOURS[i])
            for i, (decay, curves) in enumerate(found.items())
            if len(curves[which]) >= _TOY_STEPS and i < len(GROUP_COLOURS)
        ]
        panels.append(Panel(title, "step", y_log=True, curves=lines))
    caption = (
        "x²/(x² + y²) under SGD with weight decay from (0.01, 1), η = 1: the larger λ, the shorter the periods. PB."
    )
    return [Chart("P23", "Periods of the toy in the plane", caption, panels)]


_TOY_STEPS = 60
