"""E4, E6, E9: paths in weight space, with or without a barrier."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lit_sphere.analysis.interpolation import barrier_height, chord, dip_depth
from lit_sphere.experiments.drawing import GROUP_COLOURS, charts_of_settings, switch_marks, thinned
from lit_sphere.experiments.experiment import Claim, Finding, NotDrawn, conclude
from lit_sphere.experiments.grids import name_of
from lit_sphere.experiments.levels import by_epoch, level, listed, parts
from lit_sphere.experiments.step_sizes import in_equilibrium
from lit_sphere.report.chart import Chart, Curve, Panel
from lit_sphere.report.runs import Run

LOSS = "train/loss"

_NO_BARRIER, _SHARE, _SAME = 0.05, 0.1, 0.95  # of the loss, of the ends' loss, and the cosine that belongs to it
_BARRIER, _OTHER = 0.3, 0.5
_BETWEEN_OPTIMA = 0.1
_CONVERGED = 1e-2
_JUMP = 10.0
_DEEPER, _TURNED = 5.0, 0.6


@dataclass(frozen=True)
class MeasuredPath:
    """Losses along a path between two points of weight space.

    Attributes:
        name: Of its file.
        positions: From 0 to 1.
        losses: Train loss at each.
        errors: Test or validation error at each; empty where not known.
        elrs: Effective learning rates at which its ends were trained, None where not known.
        cosine: Between the ends' scale-invariant weights, None where not known.
        run: The run, or the first of two.
        of_minima: Whether both ends are minima of periods, as ``PeriodMonitor`` keeps them.
        ensemble: Test error of both ends together, and the mean of those of each; None where not known.
    """

    name: str
    positions: list[float]
    losses: list[float]
    errors: list[float]
    elrs: tuple[float | None, float | None]
    cosine: float | None
    run: Run
    of_minima: bool = False
    ensemble: tuple[float, float] | None = None

    @property
    def barrier(self) -> float:
        """Height of the train loss above its chord."""
        return barrier_height(self.positions, self.losses)

    @property
    def dip(self) -> float:
        """Depth of the train loss below its chord."""
        return dip_depth(self.positions, self.losses)


def paths_within(run: Run, kind: str) -> list[MeasuredPath]:
    """Read the paths that ``LinearInterpolationBarrier`` left in a run's folder.

    Args:
        run: The run.
        kind: How their names begin, such as ``switch-``; empty for the paths between snapshots.

    Returns:
        The paths along segments, in the order of their names.
    """
    cosines = dict(enumerate(run.series["barrier/cosine"].values)) if "barrier/cosine" in run.series else {}
    found: list[MeasuredPath] = []
    for file in sorted(run.folder.glob(f"barrier-{kind or '[0-9]'}*.csv")):
        if "great-circle" in file.name or "reestimated" in file.name:
            continue
        table = _read(file)
        if table is not None:
            found.append(MeasuredPath(file.stem, *table, (run.elr, _last_elr(run)), cosines.get(len(found)), run))
    return found


def paths_between(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[tuple[MeasuredPath, Run]]:
    """Read the paths that ``lit-sphere interpolate`` measured between two of the runs.

    Args:
        runs: The runs.
        folders: Searched for interpolation.json, beside the folders in which the runs lie.

    Returns:
        Each path, whose ``run`` is the one at its start, and the run at its end.
    """
    places = {run.folder.resolve().parent for run in runs} | {folder.resolve() for folder in folders}
    patterns = ("*/interpolation.json", "*/*/interpolation.json")
    files = {file for place in places if place.is_dir() for each in patterns for file in place.glob(each)}
    named = {run.folder.resolve().name: run for run in runs}
    found = []
    for file in sorted(files):
        table, about = _read(file.with_suffix(".csv")), _read_json(file)
        points = [Path(str(about.get(end, ""))) for end in ("start", "end")]
        ends = [named.get(point.parent.parent.name) for point in points]
        if table is None or ends[0] is None or ends[1] is None or about.get("great_circle"):
            continue
        start, end = ends[0], ends[1]
        of_minima = all(point.parent.name == "minima" for point in points)
        elrs, cosine, ensemble = (start.elr, end.elr), about.get("cosine"), _ensemble(about.get("ensemble"))
        path = MeasuredPath(file.parent.name, *table, elrs, cosine, start, of_minima, ensemble)
        found.append((path, end))
    return found


def _read(file: Path) -> tuple[list[float], list[float], list[float]] | None:
    """Positions, train losses and errors; None where there is no such table."""
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        columns = {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
    except (OSError, ValueError, TypeError):
        return None
    if len(columns.get("position", [])) < 3 or "train_loss" not in columns:
        return None
    errors = next((columns[name] for name in ("test_error", "val_error") if name in columns), [])
    return columns["position"], columns["train_loss"], errors


def _ensemble(about: Any) -> tuple[float, float] | None:
    """Errors of an ensemble and, in the mean, of its members, out of what ``lit-sphere interpolate`` says of it."""
    try:
        return float(about["error"]), fmean(map(float, about["member_errors"]))
    except (KeyError, TypeError, ValueError):
        return None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _last_elr(run: Run) -> float | None:
    cut = parts(run)
    return cut[-1].elr if cut else None


def check_fine_tuning(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E4 by the runs that converged, then changed their ELR once, and measured the path since."""
    down, up = _fine_tuned(runs)
    claims = [claim for run, path in down for claim in (_same_basin(path), _same_cosine(path), _converges(run))]
    claims = claims or [Claim(None, f"Missing: {_FINE_TUNED} to a lower ELR.")]
    jumps = [(run, path) for run, path in up if _jump(run) > _JUMP]
    claims += [claim for run, path in jumps for claim in _jumped(run, path)]
    if not jumps:
        claims.append(Claim(None, f"Missing: {_FINE_TUNED} to an ELR too high for its optimum, so that it jumps."))
    claims += [_stayed(run, path) for run, path in up if _jump(run) <= _JUMP]
    return conclude(claims)


_FINE_TUNED = (
    "a run that converges, goes over with FineTuneSwitch, and has LinearInterpolationBarrier between switches,"
)


def _fine_tuned(runs: Sequence[Run]) -> tuple[list[tuple[Run, MeasuredPath]], list[tuple[Run, MeasuredPath]]]:
    """Runs to a lower and to a higher ELR, with their paths."""
    down: list[tuple[Run, MeasuredPath]] = []
    up: list[tuple[Run, MeasuredPath]] = []
    for run in sorted(runs, key=lambda run: (run.elr or 0, run.seed or 0, str(run.folder))):
        cut = parts(run)
        paths = paths_within(run, "switch-")
        if len(cut) != 2 or not paths or _before(run) >= _CONVERGED:
            continue
        (down if cut[1].elr < cut[0].elr else up).append((run, paths[-1]))
    return down, up


def _before(run: Run) -> float:
    """Train loss of the last epoch before the switch."""
    first = parts(run)[0]
    return level(run, LOSS, first.end - 1, first.end) or 0.0


def _jump(run: Run) -> float:
    """How many times the loss grew at most since the switch."""
    last = parts(run)[-1]
    return max((loss for epoch, loss in by_epoch(run, LOSS).items() if epoch >= last.first), default=0.0) / _before(run)


def _between(path: MeasuredPath) -> str:
    return f"ELR {listed([elr for elr in path.elrs if elr is not None]).replace(' and ', ' → ')}"


def _same_basin(path: MeasuredPath) -> Claim:
    most = max(_NO_BARRIER, _SHARE * max(path.losses[0], path.losses[-1]))
    text = f"{_between(path)}: the barrier in the train loss is {path.barrier:.2g} after fine-tuning down"
    return Claim(
        path.barrier < most, f"{text}, below {most:.2g}." if path.barrier < most else f"{text}, not below {most:.2g}."
    )


def _same_cosine(path: MeasuredPath) -> Claim:
    if path.cosine is None:
        return Claim(None, f"{_between(path)}: Missing: barrier/cosine.")
    text = f"{_between(path)}: the cosine of the weights is {path.cosine:.3f} (must be above {_SAME:g})."
    return Claim(path.cosine > _SAME, text)


def _converges(run: Run) -> Claim:
    loss = run.final(LOSS)
    text = f"It ends at a train loss of {loss:.2g} (must be below {_CONVERGED:g})."
    return Claim(loss is not None and loss < _CONVERGED, text)


def _jumped(run: Run, path: MeasuredPath) -> list[Claim]:
    before, last = _before(run), run.final(LOSS) or 0.0
    text = f"{_between(path)}: the loss jumps by a factor of {_jump(run):.3g} and ends at {last:.2g}, from {before:.2g}"
    claims = [
        Claim(last < before, f"{text}." if last < before else f"{text}: no lower than before."),
        Claim(
            path.barrier > _BARRIER,
            f"The barrier to where it was is {path.barrier:.2g} in the train loss (must be above {_BARRIER:g}).",
        ),
    ]
    if path.cosine is not None:
        text = f"The cosine of the weights is {path.cosine:.3f} (must be below {_OTHER:g})."
        claims.append(Claim(path.cosine < _OTHER, text))
    return claims


def _stayed(run: Run, path: MeasuredPath) -> Claim:
    text = f"{_between(path)}: it does not jump, and the barrier is {path.barrier:.2g} (must be below {_NO_BARRIER:g})."
    return Claim(path.barrier < _NO_BARRIER, text)


def check_barriers(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E6 by paths between optima of different ELRs, and between before and after fine-tuning."""
    between = [
        path
        for path, end in paths_between(runs, folders)
        if path.elrs[0] != path.elrs[1] and max(path.losses[0], path.losses[-1]) < _CONVERGED and path.run is not end
    ]
    claims = [Claim(None, "Missing: lit-sphere interpolate between optima of two ELRs.")]
    if between:
        words = [f"{path.barrier:.2g} between ELR {path.elrs[0]:g} and {path.elrs[1]:g}" for path in between]
        highest = max(path.barrier for path in between)
        text = f"Barriers in the train loss between optima (must be above {_BETWEEN_OPTIMA:g}): {', '.join(words)}."
        claims = [Claim(highest > _BETWEEN_OPTIMA, text)]
    down, up = _fine_tuned(runs)
    jumps = [(run, path) for run, path in up if _jump(run) > _JUMP]
    claims += [_same_basin(path) for _, path in down] or [Claim(None, f"Missing: {_FINE_TUNED} to a lower ELR.")]
    claims += [
        Claim(
            path.barrier > _BARRIER,
            f"{_between(path)}: the barrier is {path.barrier:.2g} after the jump (must be above {_BARRIER:g}).",
        )
        for _, path in jumps
    ] or [Claim(None, f"Missing: {_FINE_TUNED} to an ELR too high for its optimum, so that it jumps.")]
    return conclude(claims)


def check_equilibrium_paths(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E9 by the runs in equilibrium that measured paths between their snapshots."""
    measured = [(run, paths_within(run, "")) for run in in_equilibrium(runs)]
    usable = [(run, paths) for run, paths in measured if len(paths) > 1]
    claims = [claim for run, paths in usable for claim in _dips(run, paths)]
    return conclude(
        claims
        or [
            Claim(
                None,
                "Missing: a run in chaotic equilibrium with LinearInterpolationBarrier and three snapshots or more.",
            )
        ]
    )


def _dips(run: Run, paths: Sequence[MeasuredPath]) -> list[Claim]:
    barrier, dip = fmean(path.barrier for path in paths), fmean(path.dip for path in paths)
    text = (
        f"{name_of(run)} at ELR {run.elr:g}: {len(paths)} paths run up to {dip:.2g} below their chords and up to "
        f"{barrier:.2g} above, in the mean (must be {_DEEPER:g} times as far)."
    )
    cosines = [path.cosine for path in paths if path.cosine is not None]
    turned = Claim(None, "Missing: barrier/cosine.")
    if cosines:
        text_of_ends = f"The cosine of their ends is at most {max(cosines):.2f} (must be below {_TURNED:g})."
        turned = Claim(max(cosines) < _TURNED, text_of_ends)
    return [Claim(dip > _DEEPER * barrier, text), turned]


def draw_fine_tuning(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw fine-tuned runs: loss with the switch, their path, and the segment to where they were before."""
    down, up = _fine_tuned(runs)
    settings = []
    for run, path in [*down, *up]:
        cut = parts(run)
        name = f"ELR {cut[0].elr:g} → {cut[1].elr:g}" + (f", seed {run.seed}" if run.seed else "")
        loss = Panel("train loss", "epoch", y_log=True, curves=_in_parts(run), marks=switch_marks(run))
        plane = Panel("sharpness g̃ against train loss", "train loss", x_log=True, y_log=True, curves=_profiles(run))
        settings.append((name, [loss, plane, _path_panel([path], "train loss from before the switch to the end")]))
    caption = (
        "An optimum goes on at another ELR. At a lower one it stays in its basin: no barrier. At a higher one, if the "
        "optimum is too sharp for it, loss and sharpness jump, and the run converges along the lower path of the new "
        "ELR, in another basin. Dashed in the last panel: the chord from which barriers are measured. TR §5."
    )
    missing = "a run with FineTuneSwitch and LinearInterpolationBarrier between switches, converged before the switch"
    return charts_of_settings("E4", settings, "Fine-tuning an optimum", caption, missing)


def _in_parts(run: Run) -> list[Curve]:
    """The loss over epochs, coloured by the present ELR."""
    losses, curves = by_epoch(run, LOSS), []
    for part in parts(run):
        mine = thinned({epoch: loss for epoch, loss in losses.items() if part.first <= epoch < part.end})
        curves.append(Curve(list(mine), list(mine.values()), f"ELR {part.elr:g}", run=run.name, elr=part.elr))
    return curves


def _profiles(run: Run) -> list[Curve]:
    losses, sharpness, curves = by_epoch(run, LOSS), by_epoch(run, "effective_grad_norm/total"), []
    for part in parts(run):
        at = [epoch for epoch in losses if part.first <= epoch < part.end and epoch in sharpness]
        mine = list(thinned({epoch: losses[epoch] for epoch in at}))
        x, y = [losses[epoch] for epoch in mine], [sharpness[epoch] for epoch in mine]
        hover = [f"epoch {epoch}" for epoch in mine]
        curves.append(Curve(x, y, f"ELR {part.elr:g}", run=run.name, elr=part.elr, kind="both", width=0.6, hover=hover))
    return curves


def _path_panel(paths: Sequence[MeasuredPath], title: str, labels: Sequence[str] = (), y_log: bool = False) -> Panel:
    """Losses along paths, each with its chord."""
    curves = []
    for i, path in enumerate(paths):
        label = labels[i] if labels else f"barrier {path.barrier:.2g}"
        style: dict[str, Any] = {"run": path.run.name, "colour": GROUP_COLOURS[i % len(GROUP_COLOURS)]}
        curves.append(Curve(path.positions, path.losses, label, kind="both", **style))
        curves.append(
            Curve(path.positions, chord(path.positions, path.losses), "chord", dash="dashed", width=0.8, **style)
        )
    return Panel(title, "position along the segment", y_log=y_log, curves=curves)


def draw_barriers(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw paths between optima of different ELRs, and between before and after fine-tuning."""
    between = [path for path, end in paths_between(runs, folders) if path.elrs[0] != path.elrs[1]]
    down, up = _fine_tuned(runs)
    found: list[tuple[MeasuredPath, str]] = [
        (path, f"optima of {_elr(path.elrs[0])} and {_elr(path.elrs[1])}") for path in between
    ]
    found += [(path, f"fine-tuned {_elr(path.elrs[0])} → {_elr(path.elrs[1])}") for _, path in [*down, *up]]
    if not found:
        return NotDrawn("a path between two runs (lit-sphere interpolate), or a run with barriers between switches")
    labels = [f"{name}: barrier {path.barrier:.2g}" for path, name in found]
    # Logarithmic: without a barrier a path is flat beside the others.
    panel = _path_panel([path for path, _ in found], "train loss along the segment", labels, y_log=True)
    caption = (
        "Train loss along segments in weight space, rescaled to the sphere, with each batch's own statistics; dashed: "
        "the chords. A barrier stands between optima of different ELRs and after a jump, none after fine-tuning down. "
        "TR §5."
    )
    return [Chart("E6", "Barriers between optima", caption, [panel])]


def _elr(elr: float | None) -> str:
    return "?" if elr is None else f"{elr:g}"


def draw_equilibrium_paths(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the paths between snapshots of runs in equilibrium."""
    panels = []
    for run in sorted(runs, key=lambda run: (run.elr or 0, run.seed or 0)):
        paths = paths_within(run, "")
        if paths:
            labels = [_snapshots(path.name) for path in paths]
            panels.append(_path_panel(paths, f"train loss at ELR {run.elr:g}", labels))
    if not panels:
        return NotDrawn("a run with LinearInterpolationBarrier between snapshots")
    caption = (
        "Segments between checkpoints of one run in chaotic equilibrium; dashed: their chords. The loss runs below "
        "them, although the weights have turned far; at the highest ELRs of the regime barriers appear. TR §5."
    )
    return [Chart("E9", "Paths in the chaotic equilibrium", caption, panels)]


def _snapshots(name: str) -> str:
    start, _, end = name.removeprefix("barrier-").partition("-to-")
    return f"epochs {start.lstrip('0') or '0'} to {end.lstrip('0') or '0'}"
