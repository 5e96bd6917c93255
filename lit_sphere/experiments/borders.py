"""E14: what runs at the borders between regimes look like."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from lit_sphere.experiments.drawing import charts_of_settings, curve_over_epochs
from lit_sphere.experiments.experiment import Claim, Finding, NotDrawn, conclude
from lit_sphere.experiments.grids import Grid, grids_of, regime_of
from lit_sphere.experiments.levels import by_epoch, level, listed
from lit_sphere.report.chart import Chart, Curve, Panel
from lit_sphere.report.runs import Run

LOSS = "train/loss"

_HIGH, _STAY, _SUDDEN = 0.3, 15, 10  # loss of an equilibrium; epochs that it lasts; epochs of the fall
_AT_CHANCE = 0.85  # train error
_DIP, _BACK, _DIPS = 0.85, 0.95, 3  # of the median loss, below it and again above; times


def stay(run: Run) -> tuple[int, int] | None:
    """Find the fall of a run that converges after a stay in equilibrium.

    Args:
        run: The run.

    Returns:
        The last epoch with a loss above 0.3 and the one since which it has converged; None for another run.
    """
    if regime_of(run) != "convergence" or run.verdict is None or run.verdict.since is None:
        return None
    losses = by_epoch(run, LOSS)
    last = max((epoch for epoch, loss in losses.items() if loss > _HIGH), default=-1)
    since, mean = run.verdict.since, level(run, LOSS, 0, _STAY)
    if last < _STAY or mean is None or mean <= _HIGH or since - last > _SUDDEN:
        return None
    return last, since


def dips(run: Run) -> list[int]:
    """Find the epochs in which a run at chance dips, before its loss is back at its level.

    Args:
        run: The run.

    Returns:
        Epoch of each dip; none for a run that is not at chance.
    """
    losses, errors = by_epoch(run, LOSS), by_epoch(run, "train/error")
    if regime_of(run) == "divergence" or not errors or median(errors.values()) < _AT_CHANCE:
        return []
    usual, found, below = median(losses.values()), list[int](), None
    for epoch, loss in losses.items():
        if loss < _DIP * usual and below is None:
            below = epoch
        elif loss > _BACK * usual and below is not None:
            found.append(below)
            below = None
    return found


def check_borders(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E14: whether there are runs that cross the borders. That some do not says nothing."""
    mine = [(elr, run) for grid in grids_of(runs) for elr, run in grid if run.loss_name == "cross_entropy"]
    falls = [(elr, run, found) for elr, run in mine if (found := stay(run)) is not None]
    escapes = [(elr, run, seen) for elr, run in mine if len(seen := dips(run)) >= _DIPS]
    claims = [
        Claim(
            True, f"At ELR {elr:g} the loss is above {_HIGH:g} up to epoch {last}, and below 1e-2 since epoch {since}."
        )
        for elr, _, (last, since) in falls
    ] or [Claim(None, "Missing: a run that converges after a long equilibrium, a little above the ELRs that converge.")]
    claims += [
        Claim(True, f"At ELR {elr:g}, at chance, the loss dips {len(seen)} times, first in epochs {listed(seen[:3])}.")
        for elr, _, seen in escapes
    ] or [Claim(None, "Missing: a run that dips and escapes, a little below the ELRs that diverge.")]
    return conclude(claims)


def draw_borders(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the loss of runs that cross the borders."""
    settings = [(grid.name, _panels(grid)) for grid in grids_of(runs)]
    caption = (
        "Left: a little above the ELRs that converge, a long equilibrium that ends in a sudden fall. Right: a little "
        "below those that diverge, the loss dips and escapes again and again. TR app."
    )
    missing = (
        "runs that cross the borders: a little above the ELRs that converge, and a little below those that diverge"
    )
    return charts_of_settings("E14", settings, "At the borders of the regimes", caption, missing)


def _panels(grid: Grid) -> list[Panel]:
    falls: list[Curve] = []
    escapes: list[Curve] = []
    for elr, run in grid:
        if stay(run) is not None:
            falls.append(curve_over_epochs(run, LOSS, elr=elr, width=0.9))
        elif len(dips(run)) >= _DIPS:
            escapes.append(curve_over_epochs(run, LOSS, elr=elr, width=0.9))
    return [
        Panel("train loss: a long equilibrium, then convergence", "epoch", y_log=True, curves=falls),
        Panel("train loss: dips from chance", "epoch", curves=escapes),
    ]
