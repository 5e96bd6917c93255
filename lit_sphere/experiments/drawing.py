"""Curves that several experiments draw: of grids, coloured by ELR, with a band over seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from lit_sphere.experiments.experiment import NotDrawn
from lit_sphere.experiments.grids import Grid
from lit_sphere.experiments.levels import by_epoch, parts
from lit_sphere.report.chart import Chart, Curve, Mark, Panel, over_seeds
from lit_sphere.report.runs import Run

GROUP_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of things without an order, told apart by the colour-blind, too (Okabe and Ito)."""

_MOST_POINTS = 400  # of a curve: more are no more to be seen


def over_epochs(grid: Grid, key: str, title: str, y_log: bool = True, of: Callable[[float], float] = float) -> Panel:
    """Draw a logged key over epochs, a curve for each ELR.

    Args:
        grid: The runs.
        key: What was logged.
        title: Of the panel.
        y_log: Logarithmic.
        of: Makes what is drawn of a value.

    Returns:
        The panel; a curve of several seeds is their mean in a band.
    """
    curves = []
    for elr, runs in grid.runs.items():
        of_seeds = [curve_over_epochs(run, key, elr=elr, of=of) for run in runs]
        known = [curve for curve in of_seeds if curve.x]
        if known:
            curves.append(over_seeds(known, log=y_log))
    return Panel(title, "epoch", y_log=y_log, curves=curves)


def curve_over_epochs(
    run: Run, key: str, elr: float | None = None, of: Callable[[float], float] = float, **style: Any
) -> Curve:
    """Draw a logged key of one run over epochs.

    Args:
        run: The run.
        key: What was logged.
        elr: For its colour and, if there is no other, its label.
        of: Makes what is drawn of a value.
        **style: More options of the curve.

    Returns:
        The curve.
    """
    values = thinned(by_epoch(run, key))
    label = style.pop("label", "" if elr is None else f"ELR {elr:g}")
    return Curve(list(values), [of(value) for value in values.values()], label, run=run.name, elr=elr, **style)


def thinned(values: Mapping[int, float]) -> dict[int, float]:
    """Leave out epochs of long runs evenly; the first and the last stay."""
    step = max(1, math.ceil(len(values) / _MOST_POINTS))
    return {epoch: value for i, (epoch, value) in enumerate(values.items()) if i % step == 0 or i == len(values) - 1}


def moving_mean(values: Mapping[int, float], span: int) -> dict[int, float]:
    """Smooth a curve: at each epoch the mean over as many values around it."""
    at, found = list(values.items()), {}
    for i, (epoch, _) in enumerate(at):
        around = at[max(0, i - span // 2) : i + span // 2 + 1]
        found[epoch] = fmean(value for _, value in around)
    return found


def against(
    run: Run,
    x_key: str,
    y_key: str,
    label: str,
    elr: float | None,
    kind: str = "both",
    of: Callable[[float], float] = float,
) -> Curve:
    """Draw one key of a run against another, a point for each epoch.

    Args:
        run: The run.
        x_key: Key along x.
        y_key: Key along y.
        label: Of the curve.
        elr: For its colour.
        kind: As of a curve.
        of: Makes what is drawn of a value of y.

    Returns:
        The curve, in the order of epochs.
    """
    x, y = by_epoch(run, x_key), by_epoch(run, y_key)
    both = thinned({epoch: value for epoch, value in x.items() if epoch in y})
    hover = [f"epoch {epoch}" for epoch in both]
    style: Any = {"kind": kind, "width": 0.6, "hover": hover}
    return Curve(list(both.values()), [of(y[epoch]) for epoch in both], label, run=run.name, elr=elr, **style)


def switch_marks(run: Run) -> list[Mark]:
    """Mark where the ELR of a run changed, with the ELR from there on."""
    return [Mark(x=part.first - 0.5, label=f"ELR {part.elr:g}", dash="dashed") for part in parts(run)[1:]]


def percent(fraction: float) -> float:
    """Give a fraction in percent."""
    return 100 * fraction


def charts_of_settings(
    id: str, settings: Sequence[tuple[str, Sequence[Panel]]], title: str, caption: str, missing: str
) -> list[Chart] | NotDrawn:
    """Give a chart for each setting.

    Args:
        id: Of the experiment.
        settings: Name and panels of each; those without a curve are left out.
        title: What the charts show.
        caption: What one should know to read them.
        missing: What they would need.

    Returns:
        The charts, numbered if there are several; or what is missing.
    """
    drawn = [(name, panels) for name, panels in settings if panels and any(panel.curves for panel in panels)]
    if not drawn:
        return NotDrawn(missing)
    return [
        Chart(f"{id}-{i + 1}" if len(drawn) > 1 else id, f"{title}: {name}", caption, [p for p in panels if p.curves])
        for i, (name, panels) in enumerate(drawn)
    ]
