"""Figures of any runs side by side: curves over epochs, sharpness against loss, and what they end at."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from lit_sphere.analysis.regimes import REGIME_NUMBERS, Regime
from lit_sphere.report.chart import Chart, Curve, Mark, Panel, Symbol, over_seeds
from lit_sphere.report.comparison import (
    LOSS_NAMES,
    Comparison,
    Family,
    Point,
    numbered,
    regimes_of,
    validation_name,
)
from lit_sphere.report.regime_curves import REGIME_COLORS
from lit_sphere.report.runs import Run

REGIME_POINTS: dict[Regime, tuple[str, Symbol]] = {
    "convergence": ("#3d8b37", "circle"),
    "chaotic equilibrium": ("#d18f00", "square"),
    "divergence": ("#c0392b", "triangle"),
    "undecided": ("#888888", "cross"),
}
"""Colour and symbol of a regime's runs: told apart without colour, too."""

_LOSS, _ERROR, _VAL_LOSS, _VAL_ERROR, _NORM = (
    "train/loss", "train/error", "val/loss", "val/error", "effective_grad_norm/total",
)  # fmt: skip


def regime_map(comparison: Comparison) -> list[Chart]:
    """Draw the final train loss of every run over its effective learning rate, by regime.

    Args:
        comparison: The runs.

    Returns:
        One chart, with a panel for each family and loss; none if no run has a regime, or there is no axis.
    """
    panels = [
        panel
        for loss in comparison.losses
        for family in comparison.families
        for panel in _map_panel(comparison, family, loss)
    ]
    if not panels:
        return []
    caption = (
        "A point is a run: its regime by colour and symbol, its mean train loss in the last epoch by height. Strips "
        f"reach half way to the next {comparison.axis_name}; those without colour are undecided, or their seeds differ."
    )
    return [Chart("regimes", f"Regimes over {comparison.axis_name}", caption, panels, comparison.axis_name)]


def _map_panel(comparison: Comparison, family: Family, loss: str) -> list[Panel]:
    points = [(at, _of_loss(point, loss)) for at, point in family.points]
    points = [(at, point) for at, point in points if point.runs and regimes_of(point)]
    if not points:
        return []
    finals: dict[Regime, list[tuple[float, Run]]] = {}
    for at, point in points:
        for run in point.runs:
            if run.verdict is not None and run.final(_LOSS) is not None:
                finals.setdefault(run.verdict.regime, []).append((at, run))
    curves = [_runs_of_regime(comparison, regime, finals[regime]) for regime in REGIME_NUMBERS if regime in finals]
    has_one_loss = len({run.loss_name for _, point in family.points for run in point.runs}) == 1
    log = all(at > 0 for at, _ in points)
    return [
        Panel(
            # What tells the families apart tells the losses apart, too, where each has one.
            family.name if has_one_loss and family.name else _loss_title(comparison, loss) or "final train loss",
            comparison.axis_name,
            "train loss, last epoch",
            x_log=log,
            y_log=True,
            curves=curves,
            marks=_strips(points) if log else (),
        )
    ]


def _runs_of_regime(comparison: Comparison, regime: Regime, found: Sequence[tuple[float, Run]]) -> Curve:
    colour, symbol = REGIME_POINTS[regime]
    hover = [f"{run.name}<br>{run.verdict.evidence if run.verdict else ''}" for _, run in found]
    finals = [run.final(_LOSS) for _, run in found]
    y = [math.nan if final is None else final for final in finals]
    x = [at for at, _ in found]
    return Curve(x, y, numbered(regime), colour=colour, kind="points", hover=hover, symbol=symbol, width=3)


def _strips(points: Sequence[tuple[float, Point]]) -> list[Mark]:
    """A strip for each ELR, coloured where all seeds agree."""
    logs = [math.log(at) for at, _ in points]
    if len(logs) < 2:
        return []
    middles = [(a + b) / 2 for a, b in pairwise(logs)]
    edges = [2 * logs[0] - middles[0], *middles, 2 * logs[-1] - middles[-1]]
    strips: list[Mark] = []
    for i, (_, point) in enumerate(points):
        named = set(regimes_of(point))
        regime: Regime = named.pop() if len(named) == 1 else "undecided"
        colour, left, right = REGIME_COLORS[regime], math.exp(edges[i]), math.exp(edges[i + 1])
        if strips and strips[-1].colour == colour:
            strips[-1] = Mark(x=strips[-1].x, to=right, colour=colour)
        else:
            strips.append(Mark(x=left, to=right, colour=colour))
    return strips


def curves_over_epochs(comparison: Comparison) -> list[Chart]:
    """Draw what the runs logged over epochs, and the sharpness against the train loss.

    Args:
        comparison: The runs.

    Returns:
        A chart for each group of panels that the runs allow: one for each loss, since their numbers do not compare.
    """
    charts = []
    for loss in comparison.losses:
        name = f"-{loss}" if len(comparison.losses) > 1 else ""
        title = f" ({_loss_title(comparison, loss)})" if name else ""
        val = validation_name(comparison.runs)
        learning = [
            _over_epochs(comparison, loss, _LOSS, "train loss", log=True),
            _over_epochs(comparison, loss, _VAL_LOSS, f"{val} loss", log=True),
            _over_epochs(comparison, loss, _ERROR, "train error [%]", scale=100),
            _over_epochs(comparison, loss, _VAL_ERROR, f"{val} error [%]", scale=100),
        ]
        sphere = [
            _over_epochs(comparison, loss, _NORM, "effective gradient norm g̃", log=True),
            _scatter(comparison, loss),
            _over_epochs(comparison, loss, "elr/total", "effective learning rate", log=True),
            _over_epochs(comparison, loss, "ess/total", "effective step size", log=True),
        ]
        mean = _MEANS if comparison.seeds > 1 else ""
        for kind, heading, caption, panels in (
            ("learning", "Loss and error over epochs", f"Means over the samples of an epoch.{mean}", learning),
            ("sphere", "Sharpness and step sizes over epochs", f"Means over the steps of an epoch.{mean}", sphere),
        ):
            drawn = [panel for panel in panels if panel is not None]
            if drawn:
                charts.append(Chart(f"{kind}{name}", heading + title, caption, drawn, comparison.axis_name))
    return charts


_MEANS = " Of several seeds the mean is drawn, in a band from the least to the greatest; geometric on logarithmic axes."


def _over_epochs(
    comparison: Comparison, loss: str, key: str, title: str, log: bool = False, scale: float = 1.0
) -> Panel | None:
    curves = []
    for point in comparison.points:
        runs = [run for run in _of_loss(point, loss).runs if key in run.series]
        if runs:
            each = [_curve(comparison, point, run, key, scale) for run in runs]
            curves.append(over_seeds(each, log))
    curves = [curve for curve in curves if any(math.isfinite(y) and (y > 0 or not log) for y in curve.y)]
    return Panel(title, "epoch", y_log=log, curves=curves) if curves else None


def _curve(comparison: Comparison, point: Point, run: Run, key: str, scale: float) -> Curve:
    series = run.series[key]
    values = [scale * value for value in series.values]
    x = series.epochs if all(map(math.isfinite, series.epochs)) else series.steps
    kind = "line" if len(values) > 1 else "points"
    return Curve(x, values, comparison.label(point), run.name, comparison.at(run), kind=kind)  # type: ignore[arg-type]


def _scatter(comparison: Comparison, loss: str) -> Panel | None:
    """TR fig. 1, the last panel: every epoch of every run."""
    curves = []
    for point in comparison.points:
        for run in _of_loss(point, loss).runs:
            if _LOSS in run.series and _NORM in run.series:
                norms = dict(zip(run.series[_NORM].epochs, run.series[_NORM].values, strict=True))
                losses = run.series[_LOSS]
                found = [(x, norms[e], e) for e, x in zip(losses.epochs, losses.values, strict=True) if e in norms]
                if found:
                    x, y, epochs = zip(*found, strict=True)
                    hover = [f"epoch {epoch:g}" for epoch in epochs]
                    label = comparison.label(point)
                    curves.append(
                        Curve(x, y, label, run.name, comparison.at(run), kind="points", hover=hover, width=1.2)
                    )
    if not curves:
        return None
    return Panel("sharpness against loss", "train loss", "effective gradient norm g̃", True, True, curves)


def ends_over_axis(comparison: Comparison) -> list[Chart]:
    """Draw what the runs end at over the number that varies.

    Args:
        comparison: The runs.

    Returns:
        A chart for each loss, with the final train loss, errors and sharpness; none if there is no such number, or
        it has one value.
    """
    if all(len(family.points) < 2 for family in comparison.families):
        return []
    charts = []
    val = validation_name(comparison.runs)
    for loss in comparison.losses:
        panels = [
            _ends(comparison, loss, [(_LOSS, "train")], "train loss at the end", log=True),
            _ends(comparison, loss, [(_ERROR, "train"), (_VAL_ERROR, val)], "error at the end [%]", scale=100),
            _ends(comparison, loss, [(_NORM, "train")], "effective gradient norm g̃ at the end", log=True),
        ]
        drawn = [panel for panel in panels if panel is not None]
        if drawn:
            name = f"-{loss}" if len(comparison.losses) > 1 else ""
            title = f" ({_loss_title(comparison, loss)})" if name else ""
            caption = "Values of the last epoch" + (
                "; points are runs, lines means over seeds." if comparison.seeds > 1 else "."
            )
            charts.append(Chart(f"ends{name}", f"Ends of the runs over {comparison.axis_name}{title}", caption, drawn))
    return charts


_LINES = ("#0b5394", "#cc4125", "#6aa84f", "#8e7cc3", "#e69138", "#45818e", "#a64d79", "#7f6000")


def _ends(
    comparison: Comparison,
    loss: str,
    keys: Sequence[tuple[str, str]],
    title: str,
    log: bool = False,
    scale: float = 1.0,
) -> Panel | None:
    curves: list[Curve] = []
    names: list[str] = []
    for family in comparison.families:
        for key, name in keys:
            label = _joined(family.name if len(comparison.families) > 1 else "", name)
            lines = list(_end_curves(family, loss, key, label, scale, _LINES[len(names) % len(_LINES)]))
            if lines:
                names.append(label)
                curves += lines
    x_log = all(at > 0 for family in comparison.families for at, _ in family.points)
    return Panel(title, comparison.axis_name, x_log=x_log, y_log=log, curves=curves) if curves else None


def _end_curves(family: Family, loss: str, key: str, label: str, scale: float, colour: str) -> Iterator[Curve]:
    ends: list[tuple[float, Run, float]] = []
    for at, point in family.points:
        for run in _of_loss(point, loss).runs:
            final = run.final(key)
            if final is not None and math.isfinite(final):
                ends.append((at, run, scale * final))
    if not ends:
        return
    means: dict[float, list[float]] = {}
    for at, _, end in ends:
        means.setdefault(at, []).append(end)
    y = [sum(each) / len(each) for each in means.values()]
    yield Curve(list(means), y, label, colour=colour, kind="line" if len(ends) > len(means) else "both")
    if len(ends) > len(means):
        hover = [run.name for _, run, _ in ends]
        yield Curve([at for at, _, _ in ends], [y for *_, y in ends], label, colour=colour, kind="points", hover=hover)


def _of_loss(point: Point, loss: str) -> Point:
    return Point(point.values, [run for run in point.runs if run.loss_name == loss])


def _loss_title(comparison: Comparison, loss: str) -> str:
    return LOSS_NAMES.get(loss, loss) if len(comparison.losses) > 1 else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


GENERAL_CHARTS: tuple[Callable[[Comparison], list[Chart]], ...] = (regime_map, ends_over_axis, curves_over_epochs)
"""What is drawn of any runs, in the order of the page."""
