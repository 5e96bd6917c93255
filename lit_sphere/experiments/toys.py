"""T7, T8: the toy of the theory on the sphere, its losses and the effective learning rates of its groups."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lit_sphere.experiments.drawing import GROUP_COLOURS
from lit_sphere.experiments.experiment import Claim, Finding, NotDrawn, conclude
from lit_sphere.experiments.levels import listed
from lit_sphere.report.chart import Chart, Curve, Mark, Panel
from lit_sphere.report.runs import Run

TOY, TOY_ELRS = "toy.csv", "toy_elrs.csv"

_NEAR = 0.05  # of the predicted loss, relative to Σα/2
_AT_LEVEL = 0.1
_WILD = 2.0  # η̃Σα from which on chaos begins, and medians of ELRs say little


def tables_of(folders: Sequence[Path], name: str, columns: Sequence[str]) -> list[list[dict[str, str]]]:
    """Read the tables that ``lit-sphere toy`` left.

    Args:
        folders: Searched, and the folders in them.
        name: Of the file.
        columns: That it must have.

    Returns:
        Rows of each table, in the order of their paths.
    """
    patterns = (name, f"*/{name}", f"*/*/{name}")
    files = {file.resolve() for folder in folders for each in patterns for file in folder.glob(each)}
    tables = []
    for file in sorted(files):
        with file.open(newline="", encoding="utf-8") as stream:
            rows = [dict(row) for row in csv.DictReader(stream)]
        if rows and set(columns) <= rows[0].keys() and not any(None in row.values() for row in rows):
            tables.append(rows)
    return tables


def check_toy_losses(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge T7 by toy.csv."""
    tables = tables_of(folders, TOY, ("elr", "predicted_loss", "median", "regime"))
    claims = [claim for rows in tables for claim in _map(rows)]
    return conclude(claims or [Claim(None, "Missing: toy.csv (lit-sphere toy).")])


def _map(rows: Sequence[Mapping[str, str]]) -> list[Claim]:
    """Losses are the predicted ones, and regimes come in their order, at the predicted thresholds."""
    ends = [float(row["elr"]) for row in rows if float(row["predicted_loss"]) == 0]
    settled = [(float(row["predicted_loss"]), float(row["median"])) for row in rows]
    if not ends or len(ends) == len(rows):
        return [Claim(None, "Missing: ELRs below and above 1/Σα.")]
    # ½(Σα − 1/η̃) is known at the highest ELR, and so is Σα.
    alphas = 2 * settled[-1][0] + 1 / float(rows[-1]["elr"])
    off = max(abs(seen - predicted) for predicted, seen in settled) / (alphas / 2)
    regimes = [row["regime"] for row in rows]
    order = list(dict.fromkeys(regimes))
    spans = {each: [float(row["elr"]) for row in rows if row["regime"] == each] for each in order}
    words = ", ".join(f"{each} from {min(elrs):.3g} to {max(elrs):.3g}" for each, elrs in spans.items())
    right = [each for each in order if each != "undecided"] == ["convergence", "chaotic equilibrium", "divergence"]
    apart = max(spans.get("convergence", [0.0])) * alphas
    return [
        Claim(off < _NEAR, f"Median losses at {len(rows)} ELRs are within {off:.1%} of Σα/2 of those predicted."),
        Claim(right, f"Regimes: {words}."),
        Claim(0.8 < apart < 1.2, f"The highest ELR that converges is {apart:.2f}/Σα."),
    ]


def check_toy_elrs(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge T8 by toy_elrs.csv, where ELRs are between 1/Σα and the beginning of chaos, 2/Σα."""
    claims = []
    for rows in tables_of(folders, TOY_ELRS, ("elr", "alpha", "step", "median_elr", "predicted_elr")):
        for elr, groups in settled_elrs(rows).items():
            alphas = sum(groups)
            if 1 < elr * alphas < _WILD:
                off = max(abs(seen / predicted - 1) for seen, predicted in groups.values())
                seen = listed([each for each, _ in groups.values()])
                predicted = listed([each for _, each in groups.values()])
                text = f"At ELR {elr:g} the ELRs of the groups are {seen}, predicted {predicted}, within {off:.1%}."
                claims.append(Claim(off < _AT_LEVEL, text))
    return conclude(
        claims or [Claim(None, "Missing: toy_elrs.csv with an ELR from 1/Σα to 2/Σα (lit-sphere toy --elrs 0.2).")]
    )


def settled_elrs(rows: Sequence[Mapping[str, str]]) -> dict[float, dict[float, tuple[float, float]]]:
    """Give where the groups of the toy settle.

    Args:
        rows: Of toy_elrs.csv.

    Returns:
        By ELR and α the median over the second half of the run, and the predicted level.
    """
    last = max(float(row["step"]) for row in rows)
    found: dict[float, dict[float, list[tuple[float, float]]]] = {}
    for row in rows:
        if float(row["step"]) > last / 2:
            values = float(row["median_elr"]), float(row["predicted_elr"])
            found.setdefault(float(row["elr"]), {}).setdefault(float(row["alpha"]), []).append(values)
    return {
        elr: {alpha: (median(seen for seen, _ in each), each[0][1]) for alpha, each in groups.items()}
        for elr, groups in found.items()
    }


def draw_toy_losses(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw TR fig. 2: losses of settled runs of the toy over ELRs, with the predicted levels."""
    panels = []
    for rows in tables_of(folders, TOY, ("elr", "predicted_loss", "low_10", "median", "high_90", "regime")):
        x, low, middle, high, predicted = (
            [float(row[name]) for row in rows] for name in ("elr", "low_10", "median", "high_90", "predicted_loss")
        )
        hover = [row["regime"] for row in rows]
        seen = Curve(
            x, middle, "median, and 10 to 90 % of the starts", low=low, high=high, hover=hover, colour=GROUP_COLOURS[0]
        )
        theory = Curve(x, predicted, "predicted: ½(Σα − 1/ELR)", dash="dashed", colour=GROUP_COLOURS[1])
        threshold = next((a for a, level in zip(x, predicted, strict=True) if level > 0), None)
        marks = [] if threshold is None else [Mark(x=threshold, label="1/Σα")]
        panels.append(Panel("mean loss of settled runs", "ELR", x_log=True, curves=[seen, theory], marks=marks))
    if not panels:
        return NotDrawn("toy.csv (lit-sphere toy)")
    caption = (
        "F = Σ α x²/(x² + y²) on the sphere converges below ELR 1/Σα, and settles at a level above it. TR §3, fig. 2."
    )
    return [Chart("T7", "The toy of the theory: losses", caption, panels)]


def draw_toy_elrs(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the ELRs of the toy's groups over steps, with the predicted levels: a panel for each ELR above 1/Σα."""
    panels = []
    for rows in tables_of(folders, TOY_ELRS, ("elr", "alpha", "step", "median_elr", "predicted_elr")):
        alphas = sorted({float(row["alpha"]) for row in rows})
        for elr in sorted({float(row["elr"]) for row in rows}):
            curves = [
                c for i, alpha in enumerate(alphas) for c in _group_elrs(rows, elr, alpha, i, elr * sum(alphas) > 1)
            ]
            title = f"ELRs of the groups at ELR {elr:g}" + ("" if elr * sum(alphas) > 1 else ": converges")
            panels.append(Panel(title, "step", y_log=True, curves=curves))
    if not panels:
        return NotDrawn("toy_elrs.csv (lit-sphere toy)")
    caption = (
        "Medians over stretches of the run. Above ELR 1/Σα that of a group tends to ELR · Σα/α, dashed; from about "
        "2/Σα on, where chaos begins, medians lie off. TR §3."
    )
    return [Chart("T8", "The toy of the theory: ELRs of the groups", caption, panels)]


def _group_elrs(rows: Sequence[Mapping[str, str]], elr: float, alpha: float, number: int, settles: bool) -> list[Curve]:
    mine = [row for row in rows if float(row["elr"]) == elr and float(row["alpha"]) == alpha]
    steps = [float(row["step"]) for row in mine]
    style: dict[str, Any] = {"colour": GROUP_COLOURS[number % len(GROUP_COLOURS)]}
    curves = [Curve(steps, [float(row["median_elr"]) for row in mine], f"α = {alpha:g}", **style)]
    if settles:
        levels = [float(row["predicted_elr"]) for row in mine]
        curves.append(Curve(steps, levels, "predicted", dash="dashed", **style))
    return curves
