"""Picture of the periods of a run: its curves over shaded phases, and one period in detail (PB)."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lit_sphere.analysis.periods import Period, Periods, Phase
from lit_sphere.report.style import BLUE, GREY, house_style, plain_ticks

PHASE_COLORS: dict[Phase, str] = {"A": "#cfe2f3", "B": "#d9ead3", "C": "#f4cccc"}
_PHASES: dict[Phase, str] = {
    "A": "A: loss falls, norm rises",
    "B": "B: norm falls, ELR rises",
    "C": "C: loss rises, then the norm",
}
_MOST_MARKED = 40
_MOST_POINTS = 20_000
_MORE = 8  # values drawn before and after, at least


class PeriodCurves(NamedTuple):
    """Curves of a run; each of one length, NaN where a value is not known.

    Attributes:
        at: Epochs or steps.
        loss: Train loss.
        norm: ρ of all groups.
        elr: Effective learning rate of all groups.
        distance: Cosine distance of consecutive iterates.
        elr_low: Predicted bounds of the effective learning rate; empty for none.
        elr_high: The same from above.
        delta: Above this distance a step counts as a jump; None for none.
    """

    at: Sequence[float]
    loss: Sequence[float]
    norm: Sequence[float]
    elr: Sequence[float]
    distance: Sequence[float]
    elr_low: Sequence[float] = ()
    elr_high: Sequence[float] = ()
    delta: float | None = None


def draw_periods(curves: PeriodCurves, periods: Periods, unit: str = "epoch", title: str = "") -> Figure:
    """Draw loss, norm, effective learning rate and cosine distance of steps over time, phases shaded.

    Beside the whole run stands one destabilisation in detail, if there is one: that with the longest phase C.

    Args:
        curves: A value for each that the periods were found in.
        periods: Of :func:`~lit_sphere.analysis.segment_periods`; places are indices of the curves.
        unit: What a value is.
        title: Line above the panels.

    Returns:
        The figure.
    """
    detail = max(periods.finished, key=_length_of_rise, default=None)
    columns = 1 if detail is None else 2
    with house_style():
        figure = Figure(figsize=(6.8 + 3.6 * (columns - 1), 7.4), layout="constrained")
        ratios = [1] if detail is None else [2, 1]
        grid = figure.subplots(4, columns, sharex="col", squeeze=False, width_ratios=ratios)
        _column(list(grid[:, 0]), curves, periods, range(len(curves.at)), marked=True)
        grid[-1, 0].set_xlabel(unit)
        if detail is not None:
            number = periods.finished.index(detail) + 1
            _column(list(grid[:, 1]), curves, periods, _around_the_end(number, periods, len(curves.at)), marked=False)
            grid[0, 1].set_title(f"end of period {number}", loc="right", fontsize=9, color="#666666")
            grid[-1, 1].set_xlabel(unit)
        patches = [Patch(color=color, label=_PHASES[phase]) for phase, color in PHASE_COLORS.items()]
        figure.legend(handles=patches, frameon=False, ncols=3, loc="outside lower center")
        figure.suptitle(title or periods.sentence, fontsize=10, x=0.01, ha="left")
    return figure


def _length_of_rise(period: Period) -> tuple[int, int]:
    end, rise = period.end or 0, period.loss_rise
    return (0 if rise is None else end - rise, end)


def _around_the_end(number: int, periods: Periods, count: int) -> range:
    """From before phase C to after the phase A that follows."""
    period = periods.finished[number - 1]
    after = periods.finished[number] if number < periods.count else periods.unfinished
    assert period.end is not None
    assert period.loss_rise is not None
    first, last = period.loss_rise, period.end if after is None else after.norm_peak
    more = max(_MORE, last - first)
    return range(max(0, first - more), min(count, last + more + 1))


def _column(panels: Sequence[Axes], curves: PeriodCurves, periods: Periods, part: range, marked: bool) -> None:
    stride = max(1, len(part) // _MOST_POINTS)
    shown = part[::stride]
    x = [curves.at[i] for i in shown]
    named = (
        ("train loss", curves.loss),
        ("norm ρ", curves.norm),
        ("effective learning rate", curves.elr),
        ("cosine distance of steps", curves.distance),
    )
    marker = "." if len(x) <= 120 else ""
    for axes, (name, curve) in zip(panels, named, strict=True):
        axes.plot(x, [curve[i] for i in shown], color=BLUE, linewidth=1.1, marker=marker, markersize=3)
        axes.set(yscale="log", xlim=(x[0], x[-1]) if len(x) > 1 else None)
        axes.set_title(name, loc="left", fontsize=9)
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        _shade(axes, curves.at, periods, part, marked and axes is panels[0])
    if curves.elr_low and curves.elr_high:
        low, high = ([bound[i] for i in shown] for bound in (curves.elr_low, curves.elr_high))
        panels[2].fill_between(x, low, high, color=GREY, alpha=0.35, linewidth=0, label="predicted to stay between")
        if marked:
            panels[2].legend(loc="lower right", fontsize=8)
    if curves.delta is not None:
        panels[3].axhline(curves.delta, color="black", linewidth=0.7, linestyle=":", label=f"δ = {curves.delta:.2g}")
        if marked:
            panels[3].legend(loc="lower right", fontsize=8)


def _shade(axes: Axes, at: Sequence[float], periods: Periods, part: range, numbered: bool) -> None:
    last = len(at) - 1
    every = [*periods.finished, *([periods.unfinished] if periods.unfinished is not None else [])]
    lines = len(periods.finished) <= _MOST_MARKED
    for number, period in enumerate(every, 1):
        end = last if period.end is None else period.end
        rise = end if period.loss_rise is None else period.loss_rise
        if period.end is None and periods.phase == "A":
            rise = peak = end
        else:
            peak = min(period.norm_peak, rise)
        spans: list[tuple[Phase, int, int]] = [("A", period.start, peak), ("B", peak, rise), ("C", rise, end)]
        for phase, first, stop in spans:
            first, stop = max(first, part[0]), min(stop, part[-1])
            if stop > first:
                axes.axvspan(at[first], at[stop], color=PHASE_COLORS[phase], linewidth=0, zorder=0)
        if period.end is not None and part[0] <= period.end <= part[-1] and lines:
            axes.axvline(at[period.end], color="black", linewidth=0.6, linestyle="--")
        middle = (period.start + end) // 2
        if numbered and lines and part[0] <= middle <= part[-1]:
            axes.annotate(
                f"{number}", (at[middle], 1.0), xycoords=("data", "axes fraction"), va="top", ha="center", fontsize=8
            )
