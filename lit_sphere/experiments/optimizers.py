"""R11 to R14: AdaGradG beside SGD, and how small the terms are that the spherical perspective leaves out."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lit_sphere.experiments.drawing import GROUP_COLOURS, charts_of_settings, curve_over_epochs
from lit_sphere.experiments.experiment import Claim, Finding, NotDrawn, conclude, conclude_over_settings
from lit_sphere.experiments.grids import name_of
from lit_sphere.experiments.levels import by_epoch
from lit_sphere.report.chart import Chart, Curve, Mark, Panel
from lit_sphere.report.runs import Run

COMPARISON = "optimizer_comparison/"

_START = "#888888"  # of the run itself

_STAYS, _LEAVES = 1e-3, 50.0  # distance of a filter, over that which the run has come
_SAME_LOSS = 1e-3  # relative
_RADIAL, _RADIAL_LATER = 0.2, 0.08  # largest A⟨c, u⟩ at any step, and since the second epoch
_MEAN_LENGTH = (2e-3, 2e-2)  # of (η‖∇L(u)‖)²/r², the largest mean over an epoch: about 1e-2
_LATER_LENGTH = 6e-3


def rivals_of(run: Run) -> list[str]:
    """Name the optimizers that were compared with a run's own."""
    keys = (key.removeprefix(COMPARISON) for key in run.series if key.startswith(COMPARISON))
    names = [key.removesuffix("_distance_max") for key in keys if key.endswith("_distance_max")]
    return sorted(name for name in names if name != "start")


def check_adagrad_g(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge R11 by the runs that compared AdaGradG and AdaGrad with their SGD."""
    compared = [run for run in runs if {"AdaGradG", "AdaGrad"} <= set(rivals_of(run))]
    findings = [(_variant(run), conclude(_aligned(run))) for run in compared]
    return conclude_over_settings(
        sorted(findings, key=lambda each: each[0]),
        "Missing: a run with OptimizerComparison whose optimizers are named AdaGradG and AdaGrad (adagradg.yaml).",
    )


def _variant(run: Run) -> str:
    network = str(run.option("model.network") or run.network)
    norm = run.option("model.network.normalisation")
    affine = run.option("model.network.affine")
    words = [f"{norm} norm" if norm else "", "without affine" if affine is False else ""]
    return f"{network} on {run.data} {' '.join(word for word in words if word)}".rstrip() + f", seed {run.seed}"


def _aligned(run: Run) -> list[Claim]:
    def last(key: str) -> float:
        value = run.final(COMPARISON + key)
        return math.nan if value is None else value

    ours, theirs = last("AdaGradG_distance_max"), last("AdaGrad_distance_max")
    start = last("start_distance_max")
    stays = 1 - ours > 0.999 and ours < _STAYS * start
    claims = [
        Claim(
            stays,
            f"The worst filter under AdaGradG is {ours:.1e} (1 − cos) from the run's, which has turned by {start:.1e} "
            f"(must be below {_STAYS:g} times that).",
        ),
        Claim(
            1 - theirs < 0.9995 and theirs > _LEAVES * start,
            f"Under AdaGrad it is {theirs:.1e} away, {theirs / start:.3g} times as far as the run has come (must be "
            f"above {_LEAVES:g}).",
        ),
    ]
    unforgetting = run.final(f"{COMPARISON}AdaGradG_unforgetting_distance_max")
    if unforgetting is not None:
        text = (
            f"AdaGradG that does not forget, as if without L2, is {unforgetting:.1e} away (must be above twice as far)."
        )
        claims.append(Claim(ours < 0.5 * unforgetting, text))
    return [*claims, _same_losses(run)]


def _same_losses(run: Run) -> Claim:
    run_losses, our_losses = (run.series.get(f"{COMPARISON}{name}_loss") for name in ("run", "AdaGradG"))
    if run_losses is None or our_losses is None:
        return Claim(None, "Missing: train losses beside the run.")
    off = max(abs(b / a - 1) for a, b in zip(run_losses.values, our_losses.values, strict=False))
    text = f"The train loss under AdaGradG is that of the run within {off:.1e} (must be below {_SAME_LOSS:g})."
    return Claim(off < _SAME_LOSS, text)


def largest(run: Run, quantity: str, first_epoch: int = 0) -> float | None:
    """Give the largest absolute value over groups and steps.

    Args:
        run: The run.
        quantity: Such as ``ess``.
        first_epoch: Epochs before it do not count.

    Returns:
        The value; None if ``…/step_max`` was not logged.
    """
    values = [value for epoch, value in by_epoch(run, f"{quantity}/step_max").items() if epoch >= first_epoch]
    return max(values, default=None)


def optimizer_name(run: Run) -> str:
    """Name the optimizer of a run in the whole space: ``SGD-M`` with momentum; empty on the sphere."""
    if run.elr is not None:
        return ""
    name = str(run.option("model.optimizer") or "")
    return f"{name}-M" if name == "SGD" and (run.option("model.optimizer.momentum") or 0) > 0 else name


def check_radial(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge R12 by the runs of SGD with momentum and of Adam."""
    return _bounds(runs, ("SGD-M", "Adam"), _radial)


def _radial(run: Run) -> Claim | None:
    first, later = largest(run, "radial"), largest(run, "radial", first_epoch=1)
    if first is None or later is None:
        return None
    text = (
        f"|A⟨c, u⟩| is at most {first:.2g} (must be below {_RADIAL:g}), {later:.2g} since the second epoch (must be "
        f"below {_RADIAL_LATER:g})"
    )
    return Claim(first < _RADIAL and later < _RADIAL_LATER, text)


def check_turns(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge R13 by the runs of SGD, with and without momentum, and of Adam."""
    return _bounds(runs, ("SGD", "SGD-M", "Adam"), _turn)


def _turn(run: Run) -> Claim | None:
    most = largest(run, "ess")
    return None if most is None else Claim(most < math.pi, f"η^e‖c⊥‖ is at most {most:.2g} (must be below π)")


def check_lengths(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge R14 by the runs of SGD without momentum."""
    return _bounds(runs, ("SGD",), _length)


def _length(run: Run) -> Claim | None:
    means = by_epoch(run, "step_length/max") or by_epoch(run, "step_length/total")
    single, later = largest(run, "step_length"), largest(run, "step_length", first_epoch=1)
    if not means or single is None or later is None:
        return None
    mean = max(means.values()) ** 2
    text = (
        f"(η‖∇L(u)‖)²/r² has means over an epoch of up to {mean:.2g} (must be between {_MEAN_LENGTH[0]:g} and "
        f"{_MEAN_LENGTH[1]:g}), and reaches {single**2:.2g} at single steps, {later**2:.2g} since the second epoch "
        f"(must be below {_LATER_LENGTH:g})"
    )
    return Claim(_MEAN_LENGTH[0] < mean < _MEAN_LENGTH[1] and later**2 < _LATER_LENGTH, text)


def _bounds(runs: Sequence[Run], optimizers: Sequence[str], measure: Callable[[Run], Claim | None]) -> Finding:
    """One claim for each run, and one for each optimizer of which there is none."""
    claims = []
    for name in optimizers:
        found = []
        for run in sorted(runs, key=lambda run: (run.seed or 0, str(run.folder))):
            claim = measure(run) if optimizer_name(run) == name and run.epochs > 1 else None
            if claim is not None:
                found.append(Claim(claim.holds, f"{name} ({name_of(run)}, seed {run.seed}): {claim.text}."))
        claims += found or [Claim(None, f"Missing: a run of {name} of two epochs or more, with …/step_max.")]
    return conclude(claims)


def draw_adagrad_g(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw SP fig. 5: the distance of other optimizers' weights from a run's, over steps."""
    settings = []
    for run in runs:
        names = rivals_of(run)
        if names:
            worst, losses = [], []
            for i, name in enumerate(["start", *names]):
                style: dict[str, Any] = {
                    "colour": _START if name == "start" else GROUP_COLOURS[(i - 1) % len(GROUP_COLOURS)]
                }
                label = "the run's own start" if name == "start" else name
                worst += [
                    _by_step(run, f"{name}_distance_max", f"{label}: worst", **style),
                    _by_step(run, f"{name}_distance_median", f"{label}: median", dash="dashed", **style),
                ]
                if name != "start":
                    losses.append(_by_step(run, f"{name}_loss", f"{name}: loss", **style))
            losses.append(_by_step(run, "run_loss", "the run: loss", colour=_START))
            panels = [
                Panel("1 − cos with the run, over filters", "step", y_log=True, curves=[c for c in worst if c.x]),
                Panel("train loss", "step", y_log=True, curves=[c for c in losses if c.x]),
            ]
            settings.append((_variant(run), panels))
    caption = (
        "From some step on, copies of the network are trained beside the run, on the same batches. AdaGradG, with the "
        "options that equal the run's SGD with L2, stays with it; AdaGrad soon goes elsewhere. SP §5."
    )
    missing = "a run with OptimizerComparison (adagradg.yaml)"
    return charts_of_settings(
        "R11", sorted(settings, key=lambda each: each[0]), "AdaGradG beside SGD", caption, missing
    )


def _by_step(run: Run, key: str, label: str, **style: Any) -> Curve:
    series = run.series.get(COMPARISON + key)
    if series is None:
        return Curve([], [], label)
    first = run.series[COMPARISON + "start_distance_max"].steps[0]
    at = [(step - first, value) for step, value in zip(series.steps, series.values, strict=True)]
    return Curve([step for step, _ in at], [value for _, value in at], label, run=run.name, **style)


def draw_radial(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the largest |A⟨c, u⟩| of each epoch."""
    return _draw_maxima("R12", "radial", "largest |A⟨c, u⟩|", runs, Mark(y=1.0, label="1"))


def draw_turns(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the largest η^e‖c⊥‖ of each epoch."""
    return _draw_maxima("R13", "ess", "largest η^e‖c⊥‖", runs, Mark(y=math.pi, label="π"))


def draw_lengths(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the largest (η‖∇L(u)‖)²/r² of each epoch, and its largest mean over an epoch."""
    curves = []
    for i, run in enumerate(run for run in _in_order(runs) if optimizer_name(run) == "SGD"):
        colour, name = GROUP_COLOURS[i % len(GROUP_COLOURS)], _named(run)
        for key, what, dash in (("step_max", "a single step", "solid"), ("max", "mean over an epoch", "dashed")):
            curve = curve_over_epochs(
                run, f"step_length/{key}", label=f"{name}: {what}", colour=colour, dash=dash, of=_squared
            )
            curves += [curve] if curve.x else []
    if not curves:
        return NotDrawn("a run of SGD without momentum in the whole space (--monitor.granularity filter)")
    caption = "Of the filter with the largest. SP §5 takes it to be about 1e-2: so are the means, single steps are not."
    return [
        Chart(
            "R14", "Squared length of the steps", caption, [Panel("(η‖∇L(u)‖)²/r²", "epoch", y_log=True, curves=curves)]
        )
    ]


def _squared(value: float) -> float:
    return value * value


def _draw_maxima(id: str, key: str, quantity: str, runs: Sequence[Run], bound: Mark) -> list[Chart] | NotDrawn:
    known = ("SGD", "SGD-M", "Adam")
    mine = [run for run in _in_order(runs) if optimizer_name(run) in known and largest(run, key) is not None]
    if not mine:
        return NotDrawn(f"a run in the whole space with {key}/step_max (--monitor.granularity filter)")
    curves = []
    for i, run in enumerate(mine):
        colour = GROUP_COLOURS[i % len(GROUP_COLOURS)]
        curves.append(curve_over_epochs(run, f"{key}/step_max", label=_named(run), colour=colour, of=abs))
    panel = Panel(f"{quantity} at any step, of any filter", "epoch", y_log=True, curves=curves, marks=[bound])
    caption = (
        "SP §5 takes it to be small. Maxima over filters and steps of each epoch, which means over an epoch would hide."
    )
    return [Chart(id, f"{quantity[:1].upper()}{quantity[1:]}", caption, [panel])]


def _in_order(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: (optimizer_name(run), run.seed or 0, str(run.folder)))


def _named(run: Run) -> str:
    return f"{optimizer_name(run)}, lr {run.lr:g}" + (f", seed {run.seed}" if run.seed else "")
