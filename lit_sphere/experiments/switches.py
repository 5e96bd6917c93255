"""E10, E11: from one ELR to another on the way, within the equilibrium and out of it."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from lit_sphere.experiments.drawing import (
    GROUP_COLOURS,
    charts_of_settings,
    curve_over_epochs,
    switch_marks,
    thinned,
)
from lit_sphere.experiments.experiment import Claim, Finding, NotDrawn, conclude, conclude_over_settings
from lit_sphere.experiments.grids import name_of, regime_of
from lit_sphere.experiments.levels import Part, by_epoch, level, listed, parts
from lit_sphere.report.chart import Chart, Curve, Mark, Panel
from lit_sphere.report.runs import Run

LOSS, SHARPNESS = "train/loss", "effective_grad_norm/total"

_SAME_LEVEL, _OTHER_LEVEL, _RATIO = 0.15, 1.15, 1.3
_IN_EQUILIBRIUM = 0.3
_SHORTEST = 20  # epochs of a part whose level is known


def check_levels(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E10 by the runs that go from one ELR of the equilibrium to another and back."""
    findings = []
    for run in runs:
        cut = [part for part in parts(run) if part.end - part.first >= _SHORTEST]
        levels = [(part.elr, _late(run, part)) for part in cut]
        usable = [(elr, value) for elr, value in levels if value is not None and value > _IN_EQUILIBRIUM]
        if len(usable) > 1 and len(usable) == len(levels):
            findings.append((f"{name_of(run)}, seed {run.seed}", conclude(_levels(usable))))
    return conclude_over_settings(
        sorted(findings, key=lambda each: each[0]),
        "Missing: a run in chaotic equilibrium that goes to another ELR of it and back, 20 epochs or more at each.",
    )


def _late(run: Run, part: Part) -> float | None:
    """Mean train loss of the second half of a part."""
    return level(run, LOSS, (part.first + part.end) // 2, part.end)


def _levels(levels: Sequence[tuple[float, float]]) -> list[Claim]:
    """Levels of higher ELRs are higher, and those of one ELR the same, whatever was before."""
    words = f"Train loss {listed([value for _, value in levels])} at ELR {listed([elr for elr, _ in levels])} in turn."
    same, other = [], []
    for (one, low), (two, high) in combinations(sorted(levels), 2):
        if one == two:
            same.append(abs(high / low - 1))
        elif two >= _RATIO * one:
            other.append(high / low)
    claims = [Claim(None, f"Missing: a return to an ELR that was there before. {words}")]
    if same:
        text = f"{words} The level of one ELR comes back within {max(same):.0%} (must be below {_SAME_LEVEL:.0%})."
        claims = [Claim(max(same) < _SAME_LEVEL, text)]
    if not other:
        return [*claims, Claim(None, f"Missing: two ELRs, {_RATIO:g} times apart. {words}")]
    text = f"That of a higher ELR is {min(other):.2f} times as high (must be above {_OTHER_LEVEL:g})."
    return [*claims, Claim(min(other) > _OTHER_LEVEL, text)]


def check_leaving(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E11 by the runs that go from an ELR of the equilibrium to one that converges."""
    claims = []
    for run in sorted(runs, key=lambda run: (run.elr or 0, _to(run), run.seed or 0)):
        cut = parts(run)
        if len(cut) != 2 or cut[1].elr >= cut[0].elr or cut[0].end - cut[0].first < _SHORTEST:
            continue
        before, last = _late(run, cut[0]), run.final(LOSS)
        if before is None or last is None or before <= _IN_EQUILIBRIUM:
            continue
        text = f"From ELR {cut[0].elr:g} at a train loss of {before:.2g} to {cut[1].elr:g}: it ends at {last:.2g}"
        if regime_of(run) == "convergence":
            claims.append(Claim(True, f"{text}."))
        elif cut[1].end - cut[1].first < _LONG_ENOUGH:
            claims.append(Claim(None, f"{text}, after {cut[1].end - cut[1].first} epochs only."))
        else:
            claims.append(Claim(False, f"{text}, and has not converged."))
    missing = (
        "Missing: a run that goes from an ELR of the chaotic equilibrium to a lower one, 20 epochs or more at each."
    )
    return conclude(claims or [Claim(None, missing)])


_LONG_ENOUGH = 50


def _to(run: Run) -> float:
    cut = parts(run)
    return cut[-1].elr if cut else 0.0


def draw_levels(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the loss of runs that go from one ELR of the equilibrium to another."""
    mine = [
        run
        for run in runs
        if len(parts(run)) > 1 and all((_late(run, part) or 0) > _IN_EQUILIBRIUM for part in parts(run))
    ]
    caption = (
        "One run whose ELR changes where the dashed lines stand. In chaotic equilibrium the loss takes the level of "
        "the present ELR within a few epochs, in both directions, as if trained with it from the start. TR §5."
    )
    missing = "a run in chaotic equilibrium with FineTuneSwitch to another ELR of it"
    return _losses_with_switches("E10", mine, "Levels of the equilibrium", caption, missing)


def draw_leaving(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the runs that leave the equilibrium for an ELR that converges."""
    mine = [run for run in runs if _leaves(run)]
    if not mine:
        return NotDrawn("a run with FineTuneSwitch from an ELR of the chaotic equilibrium to a lower one")
    losses, paths = [], []
    for i, run in enumerate(sorted(mine, key=lambda run: (run.elr or 0, _to(run), run.seed or 0))):
        first, last = parts(run)
        label = f"ELR {first.elr:g} → {last.elr:g}" + (f", seed {run.seed}" if run.seed else "")
        style: dict[str, Any] = {"colour": GROUP_COLOURS[i % len(GROUP_COLOURS)]}
        losses.append(curve_over_epochs(run, LOSS, label=label, **style))
        after = {epoch: loss for epoch, loss in by_epoch(run, LOSS).items() if epoch >= last.first}
        norms = by_epoch(run, SHARPNESS)
        at = [epoch for epoch in thinned(after) if epoch in norms]
        hover = [f"epoch {epoch}" for epoch in at]
        x, y = [after[epoch] for epoch in at], [norms[epoch] for epoch in at]
        paths.append(Curve(x, y, label, run=run.name, kind="both", width=0.6, hover=hover, **style))
    marks = [Mark(x=epoch - 0.5) for epoch in sorted({parts(run)[1].first for run in mine})]
    caption = (
        "From the chaotic equilibrium to an ELR that converges, from the dashed line on: the loss falls at once. "
        "Right: the profiles since the switch. From a low ELR of the equilibrium all reach the flattest one, from a "
        "high one profiles of many kinds. TR §5."
    )
    panels = [
        Panel("train loss", "epoch", y_log=True, curves=losses, marks=marks),
        Panel("sharpness g̃ against loss, since then", "train loss", x_log=True, y_log=True, curves=paths),
    ]
    return [Chart("E11", "From the equilibrium to convergence", caption, panels)]


def _leaves(run: Run) -> bool:
    cut = parts(run)
    return len(cut) == 2 and cut[1].elr < cut[0].elr and (_late(run, cut[0]) or 0) > _IN_EQUILIBRIUM


def _losses_with_switches(
    id: str, runs: Sequence[Run], title: str, caption: str, missing: str
) -> list[Chart] | NotDrawn:
    settings = []
    for run in sorted(runs, key=lambda run: (run.elr or 0, run.seed or 0, str(run.folder))):
        curves = []
        for part in parts(run):
            mine = thinned({e: loss for e, loss in by_epoch(run, LOSS).items() if part.first <= e < part.end})
            curves.append(Curve(list(mine), list(mine.values()), f"ELR {part.elr:g}", run=run.name, elr=part.elr))
        name = name_of(run) + (f", seed {run.seed}" if run.seed else "")
        settings.append((name, [Panel("train loss", "epoch", y_log=True, curves=curves, marks=switch_marks(run))]))
    return charts_of_settings(id, settings, title, caption, missing)
