"""One picture, and five lines, of a run whose learning rate followed a schedule."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lit_sphere.analysis.schedule_regimes import ScheduleAnalysis
from lit_sphere.report.regime_curves import REGIME_COLORS
from lit_sphere.report.style import BLUE, RED, house_style

_LINE, _MARK = BLUE, RED
# At a rate that falls, a regime is where a run stands to the peak of its sharpness, not where it would end.
_NAMES = {
    "convergence": "regime 1 (past the peak of sharpness)",
    "chaotic equilibrium": "regime 2 (not past it)",
    "divergence": "regime 3 (at chance)",
    "undecided": "undecided",
}


def schedule_report(analysis: ScheduleAnalysis) -> str:
    """Format the verdict in at most five lines.

    Args:
        analysis: Of the run.

    Returns:
        Lines, without a line break at the end.

    Example:
        >>> nothing = ScheduleAnalysis("undecided", "only 2 epochs, at least 10 are needed", [], {})
        >>> print(schedule_report(nothing))
        Learning rate schedule, by regime: undecided
          only 2 epochs, at least 10 are needed
    """
    lines = [f"Learning rate schedule, by regime: {analysis.verdict}", f"  {analysis.evidence}"]
    if analysis.verdict == "undecided":
        return "\n".join(lines)
    shares = ", ".join(f"{share:.0%} {_NAMES[regime]}" for regime, share in analysis.shares.items())
    lines.append(f"  training was {shares}")
    outside = " outside regime 3" if "divergence" in analysis.shares else ""
    for name, moment in ((f"greatest sharpness{outside}", analysis.peak), ("peak passed", analysis.passed)):
        if moment is not None:
            lines.append(
                f"  {name}: epoch {moment.epoch}, step {moment.step}, LR {moment.lr:.3g}, train loss "
                f"{moment.loss:.3g}, sharpness {moment.sharpness:.3g}"
            )
    return "\n".join(lines)


def write_schedule_regimes(epochs: Sequence[Mapping[str, Any]], analysis: ScheduleAnalysis, path: Path) -> None:
    """Write an analysis and its epochs as JSON; numbers that are not finite become null.

    Args:
        epochs: An epoch each, of plain values.
        analysis: Of the same epochs.
        path: File to write.
    """
    found = {key: value for key, value in asdict(analysis).items() if key != "regimes"}
    path.write_text(json.dumps(_finite({**found, "epochs": list(epochs)}), indent=1, allow_nan=False), encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw_schedule_regimes(epochs: Sequence[Mapping[str, Any]], analysis: ScheduleAnalysis, title: str = "") -> Figure:
    """Draw learning rate, sharpness and train loss over epochs, shaded by regime, the peak's passing marked.

    Args:
        epochs: An epoch each: ``epoch``, ``lr``, ``sharpness``, ``loss``.
        analysis: Of the same epochs.
        title: Second line above the panels.

    Returns:
        The figure.
    """
    at = [row["epoch"] for row in epochs]
    panels = (
        ("learning rate", "lr", "linear"),
        ("sharpness (effective gradient norm g̃)", "sharpness", "log"),
        ("train loss", "loss", "log"),
    )
    with house_style():
        figure = Figure(figsize=(6.4, 7.2), layout="constrained")
        for axes, (name, key, scale) in zip(figure.subplots(3, 1, sharex=True), panels, strict=True):
            values = [_drawable(row[key], scale) for row in epochs]
            axes.plot(at, values, color=_LINE, linewidth=1.4)
            axes.set_title(name)
            if any(math.isfinite(value) for value in values):
                axes.set_yscale(scale)
            if key == "lr":
                axes.set_ylim(bottom=0)
            _shade(axes, at, analysis)
            if analysis.passed is not None:
                axes.axvline(analysis.passed.epoch, color=_MARK, linewidth=1.0, linestyle="--")
                axes.plot(analysis.passed.epoch, getattr(analysis.passed, key), "o", color=_MARK, markersize=5)
            if analysis.peak is not None and key == "sharpness":
                axes.plot(analysis.peak.epoch, analysis.peak.sharpness, "^", color=_MARK, markersize=6)
                late = analysis.peak.epoch > (at[0] + at[-1]) / 2
                name = "greatest outside regime 3" if "divergence" in analysis.shares else "greatest"
                axes.annotate(
                    name,
                    (analysis.peak.epoch, analysis.peak.sharpness),
                    (-6 if late else 6, 6),
                    textcoords="offset points",
                    ha="right" if late else "left",
                )
        axes.set_xlabel("epoch")
        if analysis.passed is not None:
            text = f"peak passed at LR {analysis.passed.lr:.2g}"
            figure.axes[0].annotate(
                text, (analysis.passed.epoch, analysis.passed.lr), (6, 6), textcoords="offset points", color=_MARK
            )
        patches = [Patch(color=REGIME_COLORS[regime], label=_NAMES[regime]) for regime in analysis.shares]
        figure.legend(handles=patches, frameon=False, ncols=max(1, len(patches)), loc="outside lower center")
        figure.suptitle(f"schedule: {analysis.verdict}" + (f"\n{title}" if title else ""), fontsize=10)
    return figure


def _drawable(value: float, scale: str) -> float:
    return math.nan if scale == "log" and not value > 0 else value


def _shade(axes: Axes, at: Sequence[int], analysis: ScheduleAnalysis) -> None:
    start = 0
    for i in range(1, len(at) + 1):
        if i == len(at) or analysis.regimes[i] != analysis.regimes[start]:
            color = REGIME_COLORS[analysis.regimes[start]]
            axes.axvspan(at[start] - 0.5, at[i - 1] + 0.5, color=color, linewidth=0, zorder=0, alpha=0.6)
            start = i
