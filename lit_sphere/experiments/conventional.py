"""E18, E19: practical networks with momentum, augmentation and weight decay, at constant rates and under a schedule."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from lit_sphere.analysis.epoch_rows import default_converged_loss
from lit_sphere.analysis.schedule_regimes import SHORTEST_SCHEDULE, ScheduleAnalysis, analyse_schedule
from lit_sphere.experiments.drawing import against, charts_of_settings, curve_over_epochs
from lit_sphere.experiments.experiment import Claim, Finding, NotDrawn, conclude, conclude_over_settings
from lit_sphere.experiments.grids import name_of
from lit_sphere.experiments.levels import by_epoch
from lit_sphere.experiments.optimizers import optimizer_name
from lit_sphere.report.chart import Chart, Curve, Panel
from lit_sphere.report.runs import Run

LOSS, ERROR, TEST, SHARPNESS = "train/loss", "train/error", "val/error", "effective_grad_norm/total"

_ORDER = ("passes the peak", "stays at the peak", "diverges")


def is_conventional(run: Run, scheduled: bool) -> bool:
    """Whether all parameters of a practical network are trained in the whole space, with momentum."""
    with_schedule = run.option("model.scheduler") is not None
    return optimizer_name(run) == "SGD-M" and not run.network.startswith("SI") and with_schedule == scheduled


def analysis_of(run: Run) -> ScheduleAnalysis | None:
    """Judge a run's learning rates as :func:`~lit_sphere.analysis.schedule_regimes.analyse_schedule` does.

    Args:
        run: Of a constant rate, or with ``schedule/lr`` logged.

    Returns:
        The analysis; None where loss or sharpness were not logged, or the run is too short and has not diverged.
    """
    losses, sharpness, rates = run.series.get(LOSS), by_epoch(run, SHARPNESS), by_epoch(run, "schedule/lr")
    if losses is None or run.lr is None:
        return None
    finite = by_epoch(run, LOSS)
    epochs = [epoch for epoch in finite if epoch in sharpness]
    diverged = not math.isfinite(losses.values[-1])
    if not diverged and len(epochs) < SHORTEST_SCHEDULE:
        return None
    last = int(losses.epochs[-1])
    at = [*(epoch for epoch in epochs if not (diverged and epoch == last)), *([last] if diverged else [])]
    curve = [math.nan if diverged and epoch == last else finite[epoch] for epoch in at]
    errors = by_epoch(run, ERROR)
    known = [errors.get(epoch, 1.0 if epoch == last else math.nan) for epoch in at]
    return analyse_schedule(
        [rates.get(epoch, run.lr) for epoch in at],
        curve,
        [sharpness.get(epoch, math.nan) for epoch in at],
        known if run.num_classes is not None and all(map(math.isfinite, known)) else None,
        run.num_classes,
        first_epoch=at[0],
        converged_loss=default_converged_loss(run.loss_name, run.num_classes),
        chance_loss=None if run.num_classes is None else math.log(run.num_classes),
    )


def _settings(runs: Sequence[Run], scheduled: bool) -> list[tuple[str, dict[float, list[Run]]]]:
    """Runs by learning rate, of each network, data and weight decay."""
    found: dict[str, dict[float, list[Run]]] = {}
    mine = [run for run in runs if is_conventional(run, scheduled) and analysis_of(run) is not None]
    for run in sorted(mine, key=lambda run: (run.lr or 0, run.seed or 0, str(run.folder))):
        decay = run.option("model.optimizer.weight_decay") or 0
        assert run.lr is not None
        found.setdefault(f"{name_of(run)}, WD {decay:g}", {}).setdefault(run.lr, []).append(run)
    return sorted(found.items())


def _behaviour(run: Run) -> str:
    found = analysis_of(run)
    assert found is not None
    if found.verdict == "diverged" or found.regimes[-1] == "divergence":
        return "diverges"
    return "stays at the peak" if found.passed is None else "passes the peak"


def check_constant_rates(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E18 by conventional runs at several constant learning rates."""
    findings = []
    for name, by in _settings(runs, scheduled=False):
        if len(by) > 2:
            findings.append((name, conclude(_in_order(by))))
    return conclude_over_settings(
        findings, "Missing: a practical network under SGD with momentum, at three constant learning rates."
    )


def _in_order(by: Mapping[float, Sequence[Run]]) -> list[Claim]:
    found = {lr: {_behaviour(run) for run in runs} for lr, runs in by.items()}
    told = "; ".join(f"LR {lr:g} {' or '.join(sorted(each))}" for lr, each in found.items())
    claims = [Claim(True, f"{told}.")]
    for what in _ORDER:
        if not any(each == {what} for each in found.values()):
            claims.append(Claim(None, f"Missing: a learning rate at which each run {what}."))
    ranks = {lr: [_ORDER.index(what) for what in each] for lr, each in found.items()}
    wrong = [(a, b) for (a, low), (b, high) in pairwise(ranks.items()) if max(low) > min(high)]
    ordered = ", ".join(f"not from {a:g} to {b:g}" for a, b in wrong) or "throughout"
    claims.append(Claim(not wrong, f"They come in this order of the learning rate: {ordered}."))
    claims += [Claim(True, text) for runs in by.values() for run in runs if (text := _blow_up(run))]
    return claims


def _blow_up(run: Run) -> str:
    losses = run.series[LOSS]
    if math.isfinite(losses.values[-1]):
        return ""
    return f"At LR {run.lr:g} (seed {run.seed}) the loss is NaN from epoch {int(losses.epochs[-1])} on."


_VERDICTS = ("started too low", "useful window", "no time left to converge", "diverged")


def check_schedules(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E19 by conventional runs whose schedules start at several learning rates."""
    findings = []
    for name, by in _settings(runs, scheduled=True):
        if len(by) > 2:
            findings.append((name, conclude(_starts(by))))
    return conclude_over_settings(
        findings, "Missing: a practical network under SGD with momentum and a schedule, from three learning rates."
    )


def _starts(by: Mapping[float, Sequence[Run]]) -> list[Claim]:
    found = {lr: {_verdict(run) for run in runs} for lr, runs in by.items()}
    told = "; ".join(f"from LR {lr:g} {' or '.join(sorted(each))}" for lr, each in found.items())
    claims = [Claim(True, f"Schedules: {told}.")]
    for what in _VERDICTS[:3]:
        if not any(each == {what} for each in found.values()):
            claims.append(Claim(None, f"Missing: a start with all of whose runs it is: {what}."))
    ranks = {lr: [_VERDICTS.index(what) for what in each if what in _VERDICTS] for lr, each in found.items()}
    known = [(lr, each) for lr, each in ranks.items() if each]
    wrong = [(a, b) for (a, low), (b, high) in pairwise(known) if max(low) > min(high)]
    ordered = ", ".join(f"not from {a:g} to {b:g}" for a, b in wrong) or "throughout"
    return [*claims, Claim(not wrong, f"They come in the order of the starts: {ordered}."), _best(by, found)]


def _verdict(run: Run) -> str:
    found = analysis_of(run)
    assert found is not None
    return found.verdict


def _best(by: Mapping[float, Sequence[Run]], found: Mapping[float, set[str]]) -> Claim:
    errors = {lr: _mean_error(runs) for lr, runs in by.items()}
    known = {lr: error for lr, error in errors.items() if error is not None}
    inside = [error for lr, error in known.items() if found[lr] == {"useful window"}]
    # Its edges are not sharp: the lowest and the highest start are compared with it.
    outside = [known[lr] for lr in (min(by), max(by)) if lr in known and "useful window" not in found[lr]]
    text = "Test errors: " + ", ".join(f"{error:.1%} from LR {lr:g}" for lr, error in known.items()) + "."
    if not inside or len(outside) < 2:
        return Claim(None, f"Missing: test errors of starts in the useful window, below and above. {text}")
    return Claim(min(inside) < min(outside), text)


def _mean_error(runs: Sequence[Run]) -> float | None:
    values = [run.final(TEST) for run in runs]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(finite) if len(finite) == len(values) else None


def draw_constant_rates(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw conventional runs at constant learning rates."""
    caption = (
        "All parameters of a practical network are trained, with momentum, augmentation and weight decay. Below a "
        "threshold of the learning rate the sharpness passes its peak and falls, above it stays there; a learning rate "
        "too high ends in NaN. TR §6."
    )
    return _draw("E18", runs, False, "Constant learning rates", caption)


def draw_schedules(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw conventional runs with a schedule."""
    caption = (
        "The learning rate falls along a cosine to zero. From a low start the run converges at once, from a useful one "
        "it passes the peak of the sharpness as the rate falls, from too high a one no time is left to converge. TR §6."
    )
    return _draw("E19", runs, True, "Cosine schedules", caption)


def _draw(id_: str, runs: Sequence[Run], scheduled: bool, title: str, caption: str) -> list[Chart] | NotDrawn:
    settings = []
    for name, by in _settings(runs, scheduled):
        first = [each[0] for each in by.values()]
        if len(first) > 2:
            panels = [
                _panel(first, LOSS, "train loss"),
                _panel(first, SHARPNESS, "sharpness g̃"),
                Panel(
                    "sharpness g̃ against loss",
                    "train loss",
                    x_log=True,
                    y_log=True,
                    curves=[
                        curve for run in first if (curve := against(run, LOSS, SHARPNESS, f"LR {run.lr:g}", run.lr)).x
                    ],
                ),
                Panel(
                    "test error, %",
                    "epoch",
                    y_log=True,
                    curves=[
                        curve_over_epochs(run, TEST, label=f"LR {run.lr:g}", elr=run.lr, of=_percent)
                        for run in first
                        if by_epoch(run, TEST)
                    ],
                ),
            ]
            settings.append((name, panels))
    kind = "with a schedule" if scheduled else "without a schedule"
    missing = f"runs of a practical network under SGD with momentum, {kind}, at three learning rates"
    charts = charts_of_settings(id_, settings, title, caption, missing)
    if isinstance(charts, NotDrawn):
        return charts
    return [Chart(each.id, each.title, each.caption, each.panels, "LR") for each in charts]


def _percent(fraction: float) -> float:
    return 100 * fraction if fraction > 0 else math.nan  # the axis is logarithmic


def _panel(runs: Sequence[Run], key: str, title: str) -> Panel:
    curves: list[Curve] = []
    for run in runs:
        curve = curve_over_epochs(run, key, label=f"LR {run.lr:g}", elr=run.lr)
        curves += [curve] if curve.x else []
    return Panel(title, "epoch", y_log=True, curves=curves)
