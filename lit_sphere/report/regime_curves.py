"""One picture of the regimes of a run: its curves, over the named regime as background."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lit_sphere.analysis.regimes import Regime
from lit_sphere.report.style import BLUE, GREY, add_panels, house_style

_TRAIN, _GROUP = BLUE, GREY
REGIME_COLORS: dict[Regime, str] = {
    "convergence": "#b6d7a8",
    "chaotic equilibrium": "#ffe599",
    "divergence": "#ea9999",
    "undecided": "#eeeeee",
}


class RegimeSegment(NamedTuple):
    """Part of a run at one effective learning rate.

    Attributes:
        first_epoch: Its first epoch.
        last_epoch: Its last epoch.
        regime: What it was named at its end.
        since: Epoch from which on the evidence holds; None if undecided.
    """

    first_epoch: int
    last_epoch: int
    regime: Regime
    since: int | None


def draw_regimes(
    rows: Sequence[Mapping[str, Any]],
    segments: Sequence[RegimeSegment],
    group_names: Sequence[str] = (),
    converged_loss: float | None = None,
    title: str = "",
) -> Figure:
    """Draw train loss, train error and effective step sizes over epochs, shaded by regime.

    Args:
        rows: An epoch each: ``epoch``, ``loss``, and where known ``error`` and ``ess`` (total first, then groups).
        segments: Parts of the run, for the background.
        group_names: Names of the groups, in the order of ``ess``.
        converged_loss: Drawn as a line.
        title: Line above the panels.

    Returns:
        The figure.
    """
    epochs = [row["epoch"] for row in rows]
    with_error = any(row.get("error") is not None for row in rows)
    with_ess = any(row.get("ess") is not None for row in rows)
    count = 1 + with_error + with_ess
    with house_style():
        figure = Figure(figsize=(6.4, 0.9 + 2.0 * count))
        panels = iter(add_panels(figure, count, 1, left=0.6, right=0.15, bottom=0.2, top=0.3, header=0.3, footer=0.3))
        axes = next(panels)
        axes.plot(epochs, [row["loss"] for row in rows], color=_TRAIN, linewidth=1.4)
        if converged_loss is not None and min(row["loss"] for row in rows) < 10 * converged_loss:
            axes.axhline(converged_loss, color="black", linewidth=0.7, linestyle=":")
        axes.set(title="train loss", yscale="log")
        drawn = [axes]
        if with_error:
            axes = next(panels)
            known = [(row["epoch"], 100 * row["error"]) for row in rows if row.get("error") is not None]
            axes.plot(*zip(*known, strict=True), color=_TRAIN, linewidth=1.4)
            axes.set(title="train error [%]")
            axes.set_ylim(bottom=0)
            drawn.append(axes)
        if with_ess:
            axes = next(panels)
            _step_sizes(axes, rows, group_names)
            drawn.append(axes)
        for axes in drawn:
            _shade(axes, segments)
        for axes in drawn[:-1]:
            axes.sharex(drawn[-1])
            axes.tick_params(labelbottom=False)
        drawn[-1].set_xlabel("epoch")
        named = dict.fromkeys(segment.regime for segment in segments)
        patches = [Patch(color=REGIME_COLORS[regime], label=regime) for regime in named]
        if patches:
            figure.legend(handles=patches, frameon=False, ncols=len(patches), loc="upper right")
        figure.suptitle(title, fontsize=10, x=0.02, ha="left")
    return figure


def _step_sizes(axes: Axes, rows: Sequence[Mapping[str, Any]], group_names: Sequence[str]) -> None:
    known = [row for row in rows if row.get("ess") is not None]
    columns = list(zip(*(row["ess"] for row in known), strict=True))
    at = [row["epoch"] for row in known]
    for i, column in enumerate(columns[1:]):
        label = f"each of {len(group_names) or len(columns) - 1} groups" if i == 0 else "_"
        axes.plot(at, column, color=_GROUP, linewidth=0.7, label=label)
    axes.plot(at, columns[0], color=_TRAIN, linewidth=1.4, label="total")
    axes.set(title="effective step size (tan of the angle)", yscale="log")
    axes.legend(frameon=False, loc="best")


def _shade(axes: Axes, segments: Sequence[RegimeSegment]) -> None:
    for segment in segments:
        since = segment.last_epoch + 1 if segment.since is None else max(segment.since, segment.first_epoch)
        spans: list[tuple[Regime, int, int]] = [
            ("undecided", segment.first_epoch, since),
            (segment.regime, since, segment.last_epoch + 1),
        ]
        for regime, first, last in spans:
            if last > first:
                axes.axvspan(first - 0.5, last - 0.5, color=REGIME_COLORS[regime], linewidth=0, zorder=0, alpha=0.6)
        if segment.first_epoch > segments[0].first_epoch:
            axes.axvline(segment.first_epoch - 0.5, color="black", linewidth=0.8, linestyle="--")
