"""E7, E8, E26: effective step sizes and learning rates of the groups, and how far steps turn the weights."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lit_sphere.analysis.equal_ess import EqualESS, equal_ess
from lit_sphere.analysis.regimes import Regime
from lit_sphere.experiments.drawing import (
    GROUP_COLOURS,
    charts_of_settings,
    curve_over_epochs,
    moving_mean,
    over_epochs,
    thinned,
)
from lit_sphere.experiments.experiment import Claim, Finding, NotDrawn, conclude, conclude_over_settings
from lit_sphere.experiments.grids import Grid, grids_of, name_of, regime_of
from lit_sphere.experiments.levels import by_epoch, level
from lit_sphere.report.chart import Chart, Curve, Panel
from lit_sphere.report.runs import Run

DISTANCE, ANGLE = "distance/total", "angle/total"  # runs of earlier versions logged the angle alone

_FEWEST_GROUPS = 3  # that have a slope
_SLOPE, _SPREAD = 0.2, 0.5  # how far the slope may be from −1, and ln ESS spread
_SETTLED, _PREDICTED = 2.0, 1.3  # factors
_APART = 2.0  # cosine distances of two regimes
_EARLY = (10, 20)  # epochs, before any run is told to converge


def points_of(run: Run) -> list[tuple[str, float, float]]:
    """Give ELR and effective gradient norm of each group of a run, means over its last epochs.

    Args:
        run: The run.

    Returns:
        Name, η̃_i and g̃_i: of the filters in equal_ess.csv where there is one (``--monitor.scatter_epochs``), or of
        the logged groups over the last quarter.
    """
    table = run.folder / "equal_ess.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("scale_invariant", "1") != "0"]
        return [(row["group"], float(row["elr"]), float(row["effective_grad_norm"])) for row in rows]
    first = run.epochs - max(1, run.epochs // 4)
    found = []
    for name in run.groups:
        elr, norm = (level(run, f"{what}/{name}", first, run.epochs) for what in ("elr", "effective_grad_norm"))
        if elr is not None and norm is not None:
            found.append((name, elr, norm))
    return found


def in_equilibrium(runs: Sequence[Run]) -> list[Run]:
    """Choose the runs at one ELR that are in the chaotic equilibrium."""
    return [run for grid in grids_of(runs) for _, run in grid.of("chaotic equilibrium")]


def check_equal_steps(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E7 by the runs in equilibrium of which groups are known."""
    claims = []
    for run in in_equilibrium(runs):
        found = step_sizes(run)
        if found is not None:
            claims.append(_equal(run, found))
    return (
        conclude(claims)
        if claims
        else Finding(
            "cannot tell",
            "Missing: a run in chaotic equilibrium with three groups or more, best of single filters "
            "(--monitor.granularity filter --monitor.scatter_epochs 20).",
        )
    )


def step_sizes(run: Run) -> EqualESS | None:
    """Compare the groups of a run with the line of equal effective step size; None for too few of them."""
    points = points_of(run)
    usable = [(x, y) for _, x, y in points if 0 < x < math.inf and 0 < y < math.inf]
    return equal_ess(*zip(*usable, strict=True)) if len(usable) >= _FEWEST_GROUPS else None


def _equal(run: Run, found: EqualESS) -> Claim:
    holds = abs(found.slope + 1) < _SLOPE and found.spread < _SPREAD
    slope = f"slope {found.slope:.2f} (must be within {_SLOPE:g} of −1)".replace("-", "−")
    numbers = f"{slope}, spread of ln ESS {found.spread:.2f} (must be below {_SPREAD:g})"
    does = "lie" if holds else "do not lie"
    return Claim(
        holds, f"At ELR {run.elr:g} {found.groups} groups {does} on the line of ESS {found.ess:.2g}: {numbers}."
    )


def check_settling(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E8 by the runs in equilibrium whose single groups were logged."""
    found = [(run, settling(run)) for run in in_equilibrium(runs)]
    findings = [(f"{name_of(run)} at ELR {run.elr:g}", conclude(claims)) for run, claims in found if claims]
    return conclude_over_settings(
        findings,
        "Missing: a run in chaotic equilibrium of at least 40 epochs with elr/… of single groups "
        "(--monitor.granularity tensor).",
    )


def settling(run: Run) -> list[Claim]:
    """Claim what E8 must show.

    Args:
        run: In equilibrium, of 40 epochs or more.

    Returns:
        The claims: from the third to the last quarter no group's ELR moves by much, and it is near its predicted level.
    """
    quarter = run.epochs // 4
    if quarter < 10 or not run.groups:
        return []
    moved, off = [], []
    for name in run.groups:
        before, last = (
            level(run, f"elr/{name}", run.epochs - n * quarter, run.epochs - (n - 1) * quarter) for n in (2, 1)
        )
        if before and last:
            moved.append(max(last / before, before / last))
            predicted = predicted_elr(run, name, run.epochs - quarter, run.epochs)
            if predicted:
                off.append(max(last / predicted, predicted / last))
    if not moved:
        return []
    at = f"At ELR {run.elr:g} the ELRs of {len(moved)} groups"
    claims = [
        Claim(
            max(moved) < _SETTLED,
            f"{at} move at most by a factor of {max(moved):.2f} from the third to the last quarter (must be below "
            f"{_SETTLED:g}).",
        )
    ]
    if off:
        text = f"They are within a factor of {max(off):.2f} of their predicted levels (must be below {_PREDICTED:g})."
        return [*claims, Claim(max(off) < _PREDICTED, text)]
    return [*claims, Claim(None, "Missing: equilibrium/ess, which predicts their levels.")]


def predicted_elr(run: Run, group: str, first: int, end: int) -> float | None:
    """Predict the ELR of a group at which its effective step size would be that of the equilibrium (TR §3).

    Args:
        run: The run.
        group: Name of the group.
        first: First epoch of the mean.
        end: The epoch after its last.

    Returns:
        The level at the group's present gradient norms; None where it is not known.
    """
    settled, norm = level(run, "equilibrium/ess", first, end), level(run, f"effective_grad_norm/{group}", first, end)
    return settled / norm if settled and norm else None


def distance(angle: float) -> float:
    """Turn the angle between two iterates, in radians, into their cosine distance 1 − cos, also of small angles."""
    return 2 * math.sin(angle / 2) ** 2


def distances_of(run: Run) -> dict[int, float]:
    """Give the mean cosine distance of consecutive iterates, 1 − cos, in each epoch of a run.

    Args:
        run: The run.

    Returns:
        By epoch; that of the mean angle where only angles were logged.
    """
    logged = by_epoch(run, DISTANCE)
    return logged or {epoch: distance(angle) for epoch, angle in by_epoch(run, ANGLE).items()}


def check_distances(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E26 by grids that have all three regimes."""
    findings = []
    for grid in grids_of(runs):
        regimes = {regime_of(run) for _, run in grid if distances_of(run)}
        if len(regimes - {"undecided"}) > 1:
            findings.append((grid.name, conclude(distances(grid))))
    return conclude_over_settings(findings, "Missing: runs with distance/total in several regimes.")


def distances(grid: Grid) -> list[Claim]:
    """Claim what E26 must show.

    Args:
        grid: Runs of one setting.

    Returns:
        The claims: between neighbouring regimes the cosine distances are apart, early in the runs and late.
    """
    claims = []
    for when, early in (("From epoch 10 to 20", True), ("At the end", False)):
        spans = {regime: _distances(grid.of(regime), early) for regime in _IN_ORDER}
        missing = [regime for regime, span in spans.items() if not span]
        words = [
            " to ".join(dict.fromkeys(f"{end:.2g}" for end in (min(span), max(span)))) + f" in {regime}"
            for regime, span in spans.items()
            if span
        ]
        text = f"{when} the mean cosine distance of consecutive iterates is {', '.join(words)}."
        if missing:
            claims.append(Claim(None, f"Missing: runs in {' and in '.join(missing)}. {text}"))
            continue
        low, middle, high = (spans[regime] for regime in _IN_ORDER)
        apart = min(middle) > _APART * max(low) and min(high) > _APART * max(middle)
        claims.append(Claim(apart, f"{text} Regimes must be a factor of {_APART:g} apart."))
    return claims


_IN_ORDER: tuple[Regime, ...] = ("convergence", "chaotic equilibrium", "divergence")


def _distances(grid: Grid, early: bool) -> list[float]:
    found = []
    for _, run in grid:
        first, end = _EARLY if early else (run.epochs - max(1, run.epochs // 10), run.epochs)
        values = [value for epoch, value in distances_of(run).items() if first <= epoch < end]
        if values:
            found.append(fmean(values))
    return found


def draw_equal_steps(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw TR fig. 5: the groups of runs in equilibrium in the plane of ELR and sharpness, and lines of equal ESS."""
    curves: list[Curve] = []
    for run in in_equilibrium(runs):
        found = step_sizes(run)
        if found is None:
            continue
        points = [(name, x, y) for name, x, y in points_of(run) if 0 < x < math.inf and 0 < y < math.inf]
        names, xs, ys = zip(*points, strict=True)
        label = f"ELR {run.elr:g}" + (f", seed {run.seed}" if run.seed else "")
        curves.append(Curve(xs, ys, label, run=run.name, elr=run.elr, kind="points", hover=names))
        ends = [min(xs) / 1.15, max(xs) * 1.15]
        style: dict[str, Any] = {"elr": run.elr, "dash": "dashed", "width": 1.0}
        curves.append(Curve(ends, [found.ess / x for x in ends], f"{label}: ESS {found.ess:.3g}", **style))
    if not curves:
        return NotDrawn(
            "a run in chaotic equilibrium with equal_ess.csv (--monitor.scatter_epochs 20) or elr/… of groups"
        )
    panel = Panel("", "ELR of the group η̃ᵢ", "sharpness of the group g̃ᵢ", x_log=True, y_log=True, curves=curves)
    caption = (
        "Each point is a filter, or a tensor where these were logged: means over the last epochs. In chaotic "
        "equilibrium all take steps of one effective size: they lie on a line of slope −1. TR §3, §5."
    )
    return [Chart("E7", "Equal effective step sizes", caption, [panel])]


def draw_settling(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the ELRs and sharpness of single groups over epochs, with the levels that are predicted."""
    settings = []
    for run in in_equilibrium(runs):
        if settling(run):
            elrs = [c for i, name in enumerate(run.groups) for c in _group(run, "elr", name, i)]
            norms = [c for i, name in enumerate(run.groups) for c in _group(run, "effective_grad_norm", name, i)]
            panels = [
                Panel("ELRs of the groups η̃ᵢ", "epoch", y_log=True, curves=elrs),
                Panel("sharpness of the groups g̃ᵢ", "epoch", y_log=True, curves=norms),
            ]
            settings.append((f"{name_of(run)} at ELR {run.elr:g}", panels))
    caption = (
        "In chaotic equilibrium the effective learning rate of each group settles. Dashed: the level at which its "
        "effective step size would be that of the equilibrium, predicted from its gradients (moving mean over a fifth "
        "of the run). TR §3, eq. (5)."
    )
    missing = "a run in chaotic equilibrium with elr/… of single groups"
    return charts_of_settings("E8", settings, "Single groups", caption, missing)


def _group(run: Run, quantity: str, name: str, number: int) -> list[Curve]:
    """The curve of a group, and of its ELR the predicted one."""
    style: dict[str, Any] = {"colour": GROUP_COLOURS[number % len(GROUP_COLOURS)], "width": 1.0}
    label = name.removesuffix(".weight")
    curves = [curve_over_epochs(run, f"{quantity}/{name}", label=label, **style)]
    settled, norm = by_epoch(run, "equilibrium/ess"), by_epoch(run, f"effective_grad_norm/{name}")
    if quantity == "elr" and settled:
        levels = {epoch: settled[epoch] / norm[epoch] for epoch in settled if norm.get(epoch)}
        smooth = thinned(moving_mean(levels, max(1, len(levels) // 5)))
        curves.append(Curve(list(smooth), list(smooth.values()), "predicted", run=run.name, dash="dashed", **style))
    return curves


def draw_distances(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw how far consecutive iterates are apart, over epochs."""
    settings = []
    for grid in grids_of(runs):
        logged = all(by_epoch(run, DISTANCE) for _, run in grid)
        key, of = (DISTANCE, float) if logged else (ANGLE, distance)
        settings.append((grid.name, [over_epochs(grid, key, "1 − cos", of=of)]))
    caption = (
        "Cosine distance of consecutive iterates, mean over an epoch's steps. It tells the regimes apart "
        "early, before any run has converged. KT; TR app."
    )
    return charts_of_settings("E26", settings, "Distance of consecutive iterates", caption, "runs with distance/total")
