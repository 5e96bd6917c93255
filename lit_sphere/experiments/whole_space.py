"""E17, P10, P14 to P16, P18 to P21: networks in the whole space, under weight decay, and their periods.

Periods are counted by swings here (:data:`~lit_sphere.analysis.periods.SWING_RISE`), of which there are more than of
destabilisations: these are named beside them.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, combinations, pairwise
from math import exp, inf, log
from pathlib import Path
from statistics import fmean, median
from typing import Any

from lit_sphere.analysis.epoch_rows import default_converged_loss, regime_of_rows
from lit_sphere.analysis.periods import LOSS_RISE, SHORTEST_CURVE, SWING_RISE, Periods
from lit_sphere.analysis.regimes import Regime
from lit_sphere.experiments.drawing import GROUP_COLOURS, against, charts_of_settings, curve_over_epochs
from lit_sphere.experiments.experiment import Claim, Finding, NotDrawn, conclude, conclude_over_settings
from lit_sphere.experiments.grids import name_of
from lit_sphere.experiments.levels import by_epoch, listed
from lit_sphere.experiments.optimizers import optimizer_name
from lit_sphere.experiments.periods import decay_of, periods_of
from lit_sphere.report.chart import Chart, Panel
from lit_sphere.report.runs import SEEDS, Run

LOSS, NORM, ELR, SHARPNESS = "train/loss", "norm/total", "elr/total", "effective_grad_norm/total"

_APART = 1.5  # ratio of two learning rates whose numbers of periods are compared
_STUCK = 0.05  # train loss that a run which is stuck never comes below
_UNREACHABLE = 20.0  # times the loss that a higher norm of the head reaches
# Factors within which runs of one product ηλ agree, and by which their warm-up differs: over three seeds of digits up
# to 2.1, 3.7 and 1.4, and from 1.7.
_SAME_LENGTH, _SAME_MINIMA, _SAME_ELR, _WARM_UP = 3.0, 10.0, 2.0, 1.3


def weight_decay(run: Run) -> float:
    """Give λ; 0 where there is none."""
    return decay_of(run) or 0.0


def in_whole_space(run: Run) -> bool:
    """Whether a run is of one learning rate with weight decay from beginning to end."""
    scheduled = run.option("model.scheduler") is not None or bool(run.switched_at)
    return bool(optimizer_name(run)) and run.lr is not None and weight_decay(run) > 0 and not scheduled


def _periods(run: Run, loss_rise: float = SWING_RISE) -> Periods | None:
    found = periods_of(run, loss_rise)
    return None if found is None or run.epochs < SHORTEST_CURVE else found


def _usable(runs: Iterable[Run]) -> list[Run]:
    kept = [run for run in runs if in_whole_space(run) and _periods(run) is not None]
    return sorted(kept, key=lambda run: (run.lr or 0, weight_decay(run), run.seed or 0, str(run.folder)))


def _count(run: Run, loss_rise: float = SWING_RISE) -> int:
    found = _periods(run, loss_rise)
    return 0 if found is None else found.count


def _least(run: Run) -> float:
    return min(by_epoch(run, LOSS).values())


def _regime(run: Run) -> Regime:
    """By the rule of runs on the sphere; a run that is in periods is in none."""
    try:
        converged = default_converged_loss(run.loss_name, run.num_classes)
        return regime_of_rows(run.rows, run.num_classes, converged, equal_steps=False).regime
    except ValueError:
        return "undecided"


def _families(runs: Iterable[Run], varied: Sequence[str]) -> list[tuple[str, list[Run]]]:
    """Sort runs into those that differ in nothing but the seed and some options.

    Args:
        runs: In any order.
        varied: Options by their names on the command line.

    Returns:
        Name and runs of each family.
    """
    found: dict[str, list[Run]] = {}
    for run in _usable(runs):
        options = {name: value for name, value in _flat(run.config) if name not in (*varied, *SEEDS, "data.root")}
        found.setdefault(json.dumps(options, sort_keys=True, default=str), []).append(run)
    return [(_setting(found[key][0], varied), found[key]) for key in sorted(found)]


def _flat(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Options of model and data as the command line names them."""
    named: list[tuple[str, Any]] = []

    def walk(name: str, value: Any) -> None:
        if isinstance(value, Mapping) and "class_path" in value:
            named.append((name, str(value["class_path"]).rpartition(".")[2]))
            for key, each in (value.get("init_args") or {}).items():
                walk(f"{name}.{key}", each)
        else:
            named.append((name, value))

    for part in ("model", "data"):
        walk(part, config.get(part))
    return named


def _setting(run: Run, varied: Sequence[str]) -> str:
    words = [name_of(run)]
    if "model.optimizer.lr" not in varied:
        words.append(f"LR {run.lr:g}")
    if "model.optimizer.weight_decay" not in varied:
        words.append(f"WD {weight_decay(run):g}")
    return ", ".join(words)


def _plain(runs: Iterable[Run]) -> list[Run]:
    """Scale-invariant networks under SGD."""
    return [run for run in runs if run.network.startswith("SI") and optimizer_name(run) == "SGD"]


def _by(runs: Iterable[Run], key: Callable[[Run], float]) -> dict[float, list[Run]]:
    found: dict[float, list[Run]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return dict(sorted(found.items()))


def _lr(run: Run) -> float:
    return run.lr or 0.0


_LR, _WD = "model.optimizer.lr", "model.optimizer.weight_decay"
_AXES: tuple[tuple[str, str, Callable[[Run], float]], ...] = (("LR", _LR, _lr), ("WD", _WD, weight_decay))


def _counts(by: Mapping[float, Sequence[Run]], axis: str) -> str:
    swings, destabilisations = (
        ", ".join(f"{fmean(_count(run, rise) for run in runs):.3g} at {axis} {at:g}" for at, runs in by.items())
        for rise in (SWING_RISE, LOSS_RISE)
    )
    return f"Periods, by {_BY_SWINGS}: {swings}; by {_BY_DESTABILISATIONS}: {destabilisations}."


_BY_SWINGS = f"{SWING_RISE:g}-fold swings of the loss"
_BY_DESTABILISATIONS = f"{LOSS_RISE:g}-fold ones, which PeriodMonitor names"


def _ends(by: Mapping[float, Sequence[Run]], axis: str) -> list[Claim]:
    """No periods at the lowest and at the highest value, periods between them."""
    (lowest, low), *between, (highest, high) = by.items()
    most_low, most_high = max(map(_count, low)), max(map(_count, high))
    least = min(map(_least, high))
    inside = max((min(map(_count, runs)) for _, runs in between), default=0)
    return [
        Claim(most_low == 0, f"At {axis} {lowest:g}, the lowest, a run has {most_low} periods."),
        Claim(
            most_high == 0 and least > _STUCK,
            f"At {axis} {highest:g}, the highest, it has {most_high}, and the loss never comes below {least:.2g} (must "
            f"stay above {_STUCK:g}).",
        ),
        Claim(inside > 1, f"Between them there are {inside} or more (must be 2 or more). {_counts(by, axis)}"),
    ]


def check_numbers(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge P10 by runs that differ in their learning rates: the higher, the more periods, until there are none."""
    findings = []
    for name, family in _families(_plain(runs), [_LR]):
        by = _by(family, _lr)
        if len(by) > 2:
            findings.append((name, conclude([*_ends(by, "LR"), _frequency(by)])))
    return conclude_over_settings(
        findings, "Missing: runs of a scale-invariant network under SGD with one weight decay, at three learning rates."
    )


def _frequency(by: Mapping[float, Sequence[Run]]) -> Claim:
    counts = {lr: fmean(map(_count, runs)) for lr, runs in by.items()}
    known = {lr: count for lr, count in counts.items() if count > 0}
    pairs = [(one, other) for one, other in combinations(known, 2) if other >= _APART * one]
    if not pairs:
        return Claim(None, f"Missing: two learning rates with periods, {_APART:g} times apart.")
    wrong = [pair for pair in pairs if known[pair[1]] <= known[pair[0]]]
    told = ", ".join(f"not from {one:g} to {other:g}" for one, other in wrong) or "throughout"
    return Claim(not wrong, f"Where there are periods, a higher learning rate has more of them: {told}.")


def check_extremes(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge P15 by runs of several learning rates, and of several weight decays."""
    claims = []
    for axis, option, value in _AXES:
        found = []
        for name, family in _families(_plain(runs), [option]):
            by = _by(family, value)
            if len(by) > 2:
                found.append((name, conclude(_ends(by, axis))))
        if found:
            finding = conclude_over_settings(found, "")
            claims.append(Claim(finding.holds, finding.text))
        else:
            claims.append(Claim(None, f"Missing: runs under SGD that differ in nothing but {axis}, at three values."))
    return conclude(claims)


def check_products(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge P14 by runs of one product of learning rate and weight decay, and different ratios."""
    findings = []
    for name, family in _families(_plain(runs), [_LR, _WD]):
        products = _by(family, lambda run: float(f"{_lr(run) * weight_decay(run):.2g}"))
        for product, same in products.items():
            by = _by(same, _lr)
            if len(by) > 1:
                findings.append((f"{name}, ηλ = {product:g}", conclude(_agree(by))))
    return conclude_over_settings(
        findings, "Missing: runs of a scale-invariant network under SGD with one product of LR and WD, at two LRs."
    )


def _agree(by: Mapping[float, Sequence[Run]]) -> list[Claim]:
    """The frequency, the minima and the range of the ELR are those of the product; the warm-up is not."""
    if min(_count(run) for runs in by.values() for run in runs) < 2:
        text = f"Missing: two periods or more in each run. {_counts(by, 'LR')}"
        return [Claim(None, text)]
    measures: tuple[tuple[str, Callable[[Run], float], float], ...] = (
        ("mean lengths of the periods", _length, _SAME_LENGTH),
        ("minima of the loss, their geometric means", _minimum, _SAME_MINIMA),
        ("medians of the ELR over the second half", _late_elr, _SAME_ELR),
    )
    claims = []
    for words, measure, factor in measures:
        values = [_geometric(map(measure, runs)) for runs in by.values()]
        apart = max(values) / min(values) if min(values) else inf
        text = (
            f"The {words} at LR {listed(list(by))}: {listed(values)}, a factor of {apart:.2g} apart (must be below "
            f"{factor:g})."
        )
        claims.append(Claim(apart < factor, text))
    warm = [fmean(map(_warm_up, runs)) for runs in by.values()]
    text = f"The ELR comes to that level first at epoch {listed(warm)} (must be a factor of {_WARM_UP:g} apart)."
    return [*claims, Claim(max(warm) > _WARM_UP * min(warm), text)]


def _geometric(values: Iterable[float]) -> float:
    return exp(fmean(map(log, values)))


def _length(run: Run) -> float:
    found = _periods(run)
    assert found is not None
    return found.mean_length or 0.0


def _minimum(run: Run) -> float:
    found = _periods(run)
    assert found is not None
    return _geometric(period.minimum for period in found.finished)


def _late_elr(run: Run) -> float:
    elrs = list(by_epoch(run, ELR).values())
    return median(elrs[len(elrs) // 2 :])


def _warm_up(run: Run) -> int:
    """The epoch in which the ELR, having fallen with the first steps, is at its later level."""
    elrs, level = list(by_epoch(run, ELR).values()), _late_elr(run)
    early = elrs[: len(elrs) // 4 + 1]
    lowest = early.index(min(early))
    return next(epoch for epoch in range(lowest, len(elrs)) if elrs[epoch] >= level)


def check_head_norms(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge P16 by runs that differ in the norm of the frozen head."""
    findings = []
    for name, family in _families(_plain(runs), ["model.head_norm"]):
        by = _by(family, lambda run: float(run.option("model.head_norm") or 0))
        if len(by) > 1:
            (lowest, low), *_, (highest, high) = by.items()
            least, usual = min(map(_least, low)), max(map(_least, high))
            most, fewest = max(map(_count, low)), min(map(_count, high))
            claims = [
                Claim(
                    least > _UNREACHABLE * usual,
                    f"With a head of norm {lowest:g} the train loss comes down to {least:.2g}, with {highest:g} to "
                    f"{usual:.2g} (must be a factor of {_UNREACHABLE:g} apart).",
                ),
                Claim(most == 0, f"With the lowest norm a run has {most} periods."),
                Claim(
                    fewest > 1,
                    f"With the highest it has {fewest} or more (must be 2 or more). {_counts(by, 'head norm')}",
                ),
            ]
            findings.append((name, conclude(claims)))
    return conclude_over_settings(
        findings, "Missing: runs under SGD with weight decay that differ in the norm of the frozen head."
    )


Kinds = Mapping[str, Callable[[Run], bool]]


def _is_practical(run: Run) -> bool:
    return not run.network.startswith("SI")


_CHANGES: Kinds = {
    "momentum": lambda run: optimizer_name(run) == "SGD-M",
    "augmentation": lambda run: run.option("data.augment") is True,
    "all parameters trained": _is_practical,
}
_NORMS: Kinds = {
    "layer norm": lambda run: run.option("model.normalisation") == "layer",
    "instance norm": lambda run: run.option("model.normalisation") == "instance",
}
_ADAM: Kinds = {"Adam": lambda run: optimizer_name(run).startswith("Adam")}


def check_changes(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge P18 by runs with momentum, with augmentation, and of networks that are trained as a whole."""
    return _remain(runs, _CHANGES)


def check_norms(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge P19 by runs with layer norm and with instance norm."""
    return _remain(runs, _NORMS)


def check_adam(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge P20 by runs of Adam with weight decay."""
    return _remain(runs, _ADAM)


def _remain(runs: Sequence[Run], kinds: Kinds) -> Finding:
    """Each run of each kind has periods."""
    claims = []
    for kind, fits in kinds.items():
        mine = [run for run in _usable(runs) if fits(run)]
        counts = [_count(run) for run in mine]
        if mine:
            named = ", ".join(f"{count} (LR {_lr(run):g})" for run, count in zip(mine, counts, strict=True))
            fewer = listed([_count(run, LOSS_RISE) for run in mine])
            text = (
                f"Periods of runs with {kind} (must be 2 or more), by {_BY_SWINGS}: {named}; by "
                f"{_BY_DESTABILISATIONS}: {fewer}."
            )
            claims.append(Claim(min(counts) > 1, text))
        else:
            claims.append(Claim(None, f"Missing: a run with {kind} under weight decay, ten epochs or more."))
    return conclude(claims)


def check_gradient_descent(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge P21 by runs of full-batch gradient descent, beside SGD where there is such a run."""
    descent = [run for run in _usable(_plain(runs)) if run.option("data.full_batch") is True]
    if not descent:
        return conclude([Claim(None, "Missing: a run of full-batch gradient descent with weight decay.")])
    counts = [_count(run) for run in descent]
    claims = [
        Claim(min(counts) > 1, f"Gradient descent has {', '.join(map(str, counts))} periods (must be 2 or more).")
    ]
    stochastic = [run for run in _usable(_plain(runs)) if run.option("data.full_batch") is not True]
    by_run = [[each for run in runs_of if (each := _phase_b(run))] for runs_of in (descent, stochastic)]
    if not all(by_run):
        claims.append(Claim(None, "Missing: finished periods of gradient descent and of SGD on the same images."))
    else:
        ours, theirs = (fmean(chain.from_iterable(each)) for each in by_run)
        runs_mean = [listed([fmean(each) for each in runs_of]) for runs_of in by_run]
        text = (
            f"Phase B takes {ours:.2g}/(ηλ) steps of gradient descent ({runs_mean[0]} by run), and {theirs:.2g}/(ηλ) "
            f"of SGD ({runs_mean[1]}), in the mean."
        )
        claims.append(Claim(ours > theirs, text))
    return conclude(claims)


def _phase_b(run: Run) -> list[float]:
    """Lengths of phase B in its periods after the first one, in 1/(ηλ) steps, in which decay takes the norm down."""
    found, losses = _periods(run), run.series[LOSS]
    epochs = losses.epochs[-1] - losses.epochs[0]
    if found is None or not epochs:
        return []
    unit = (losses.steps[-1] - losses.steps[0]) / epochs * _lr(run) * weight_decay(run)
    periods = found.finished[1:]
    return [unit * (each.loss_rise - each.norm_peak) for each in periods if each.loss_rise is not None]


def check_space_regimes(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E17 by runs that differ in their learning rates: all three regimes, and jumps where the first one ends."""
    findings = []
    for name, family in _families(_plain(runs), [_LR]):
        by = _by(family, _lr)
        if len(by) > 3:
            findings.append((name, conclude(_regimes(by))))
    return conclude_over_settings(
        findings, "Missing: runs of a scale-invariant network under SGD with one weight decay, at four learning rates."
    )


def _regimes(by: Mapping[float, Sequence[Run]]) -> list[Claim]:
    ranks = {"convergence": 0, "periods": 1, "chaotic equilibrium": 2, "divergence": 3}
    states = {lr: {_state(run) for run in runs} for lr, runs in by.items()}
    told = "; ".join(f"{lr:g} {' or '.join(sorted(state))}" for lr, state in states.items())
    claims = [Claim(True, f"By learning rate: {told}.")]
    for state, words in (
        ("convergence", "runs that converge"),
        ("periods", "jumps in periods, with the loss low again between them"),
        ("chaotic equilibrium", "a chaotic equilibrium"),
        ("divergence", "divergence, at chance"),
    ):
        at = [lr for lr, found in states.items() if found == {state}]
        if not at:
            claims.append(Claim(None, f"Missing: {words}, with all seeds of a learning rate."))
    decided = [(lr, [ranks[s] for s in found if s in ranks]) for lr, found in states.items()]
    known = [(lr, found) for lr, found in decided if found]
    wrong = [(a, b) for (a, low), (b, high) in pairwise(known) if max(low) > min(high)]
    ordered = ", ".join(f"not from {a:g} to {b:g}" for a, b in wrong) or "throughout"
    return [*claims, Claim(not wrong, f"They come in the order of the learning rate: {ordered}.")]


def _state(run: Run) -> str:
    """``periods`` where there are two or more whose loss comes down to that of convergence; else the regime."""
    if _count(run) > 1 and _minimum(run) < _STUCK:
        return "periods"
    return _regime(run)


# --- charts --------------------------------------------------------------------------------------------------


def _panels(runs: Sequence[Run], label: Callable[[Run], str], coloured: bool) -> list[Panel]:
    """Loss, norm and ELR over epochs, a curve for each run."""
    panels = []
    for key, title in ((LOSS, "train loss"), (NORM, "norm ρ of the weights"), (ELR, "effective learning rate")):
        curves = []
        for i, run in enumerate(runs):
            style: dict[str, Any] = {} if coloured else {"colour": GROUP_COLOURS[i % len(GROUP_COLOURS)]}
            curves.append(curve_over_epochs(run, key, label=label(run), elr=run.lr if coloured else None, **style))
        panels.append(Panel(title, "epoch", y_log=True, curves=[curve for curve in curves if curve.x]))
    return panels


def _named(run: Run) -> str:
    return f"LR {_lr(run):g}" + (f", seed {run.seed}" if run.seed else "")


def _coloured(charts: list[Chart] | NotDrawn) -> list[Chart] | NotDrawn:
    if isinstance(charts, NotDrawn):
        return charts
    return [Chart(each.id, each.title, each.caption, each.panels, "LR") for each in charts]


_PERIODS = (
    "While the loss falls, gradients become small and weight decay takes the norm down, so that the ELR rises until "
    "the loss jumps back; then the norm has grown, and it all begins anew."
)


def _draw_families(
    id_: str, runs: Sequence[Run], varied: Sequence[str], least: int, title: str, caption: str, missing: str
) -> list[Chart] | NotDrawn:
    value = weight_decay if varied == [_WD] else _lr
    word = "WD" if varied == [_WD] else "LR"
    settings = []
    for name, family in _families(_plain(runs), varied):
        by = _by(family, value)
        if len(by) >= least:
            first = [each[0] for each in by.values()]  # the lowest seed of each
            settings.append((name, _panels(first, lambda run: f"{word} {value(run):g}", coloured=word == "LR")))
    return _coloured(charts_of_settings(id_, settings, title, caption, missing))


def draw_numbers(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw runs that differ in their learning rates."""
    caption = f"{_PERIODS} The higher the learning rate, the sooner, until the loss is stuck. PB §4."
    missing = "runs in the whole space with weight decay at three learning rates"
    return _draw_families("P10", runs, [_LR], 3, "Periods over the learning rate", caption, missing)


def draw_extremes(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw runs that differ in their learning rates, and in their weight decays."""
    caption = f"{_PERIODS} At the lowest value there is no time for it, at the highest the loss is stuck. PB §4."
    found: list[Chart] = []
    for axis, option, _ in _AXES:
        words = "learning rate" if axis == "LR" else "weight decay"
        charts = _draw_families("P15", runs, [option], 3, f"Periods over the {words}", caption, "runs")
        found += [] if isinstance(charts, NotDrawn) else charts
    if not found:
        return NotDrawn("runs in the whole space at three learning rates, or three weight decays")
    return [Chart(f"P15-{i + 1}", c.title, c.caption, c.panels, c.colour_label) for i, c in enumerate(found)]


def draw_products(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw runs of one product of learning rate and weight decay."""
    settings = []
    for name, family in _families(_plain(runs), [_LR, _WD]):
        for product, same in _by(family, lambda run: float(f"{_lr(run) * weight_decay(run):.2g}")).items():
            first = [run for run in same if run.seed == same[0].seed]
            if len(first) > 1:
                label = f"{name}, ηλ = {product:g}"
                settings.append(
                    (label, _panels(first, lambda run: f"LR {_lr(run):g}, WD {weight_decay(run):g}", False))
                )
    caption = (
        "Runs of one product ηλ come to periods of the same frequency, depth and ELR; how long they need for it, and "
        "the norm of their weights, go with the ratio. PB §4."
    )
    missing = "runs with one product of learning rate and weight decay"
    return charts_of_settings("P14", settings, "One product of learning rate and weight decay", caption, missing)


def draw_head_norms(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw runs that differ in the norm of the frozen head."""
    settings = []
    for name, family in _families(_plain(runs), ["model.head_norm"]):
        first = [run for run in family if run.seed == family[0].seed]
        if len(first) > 1:
            settings.append((name, _panels(first, lambda run: f"head {run.option('model.head_norm'):g}", False)))
    caption = (
        "With a head of low norm a low loss is out of reach, gradients stay large, and there are no periods. PB app."
    )
    missing = "runs that differ in the norm of the frozen head"
    return charts_of_settings("P16", settings, "Norm of the frozen head", caption, missing)


def draw_changes(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw runs with momentum, with augmentation, and of all parameters."""
    return _draw_kinds("P18", runs, _CHANGES, "Momentum, augmentation, all parameters trained")


def draw_norms(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw runs with layer norm and with instance norm."""
    return _draw_kinds("P19", runs, _NORMS, "Layer norm and instance norm")


def draw_adam(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw runs of Adam."""
    return _draw_kinds("P20", runs, _ADAM, "Adam with weight decay")


def _draw_kinds(id_: str, runs: Sequence[Run], kinds: Kinds, title: str) -> list[Chart] | NotDrawn:
    kind_of = {id(run): kind for run in _usable(runs) for kind, fits in kinds.items() if fits(run)}
    mine = [run for run in _usable(runs) if id(run) in kind_of]
    first = [run for run in mine if run.seed == mine[0].seed]
    if not first:
        return NotDrawn(f"a run under weight decay with {' or '.join(kinds)}")
    caption = f"{_PERIODS} So it goes here, too. PB app."
    panels = _panels(first, lambda run: f"{kind_of[id(run)]}, LR {_lr(run):g}", coloured=False)
    return [Chart(id_, title, caption, panels)]


def draw_gradient_descent(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw full-batch gradient descent beside SGD."""
    mine = _usable(_plain(runs))
    if not any(run.option("data.full_batch") is True for run in mine):
        return NotDrawn("a run of full-batch gradient descent with weight decay")
    settings = []
    for word, is_full in (("SGD", False), ("gradient descent, a step an epoch", True)):
        of_kind = [run for run in mine if (run.option("data.full_batch") is True) == is_full]
        first = [run for run in of_kind if run.seed == of_kind[0].seed]
        settings.append((word, _panels(first, _named, coloured=False)))
    caption = f"{_PERIODS} Without the noise of batches the fall of the norm, phase B, takes longer. PB app."
    missing = "a run of full-batch gradient descent with weight decay"
    return charts_of_settings("P21", settings, "Weight decay on one set", caption, missing)


def draw_space_regimes(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the three regimes in the whole space, and sharpness against loss."""
    settings = []
    for name, family in _families(_plain(runs), [_LR]):
        first = [run for run in family if run.seed == family[0].seed]
        if len(first) > 3:
            paths = [against(run, LOSS, SHARPNESS, _named(run), run.lr, kind="points") for run in first]
            scatter = Panel("sharpness g̃ against loss", "train loss", x_log=True, y_log=True, curves=paths)
            settings.append((name, [*_panels(first, _named, coloured=True), scatter]))
    caption = (
        "The regimes of the sphere are there with weight decay, too: the lowest learning rates converge, the highest "
        "are at chance. Where the first regime ends the loss jumps in periods. TR §6."
    )
    missing = "runs in the whole space with weight decay at four learning rates"
    return _coloured(charts_of_settings("E17", settings, "Three regimes in the whole space", caption, missing))
