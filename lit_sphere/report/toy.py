"""Pictures of the toy systems: three regimes on the sphere, periods in the plane."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from lit_sphere.analysis.regimes import Regime
from lit_sphere.report.regime_curves import REGIME_COLORS
from lit_sphere.report.style import BLUE, GREEN, GREY, RED, house_style
from lit_sphere.theory.toy import ToyCurves, equilibrium_elrs, equilibrium_loss, threshold_elr
from lit_sphere.theory.toy_plane import PlaneCurves

_COLOURS = (BLUE, RED, GREEN, "#8e7cc3", "#e69138", "#45818e")
_A_ROW = 4  # panels of single groups side by side
_WINDOW = 100  # steps of a running median


class ToyMap(NamedTuple):
    """Mean losses of many runs after they have settled.

    Attributes:
        elrs: Effective learning rates, shape (n,).
        losses: Mean loss of each run over its second half, shape (n, seeds).
        regimes: Regime of one run at each ELR.
    """

    elrs: Tensor
    losses: Tensor
    regimes: Sequence[Regime]


def draw_toy(curves: ToyCurves, alphas: Sequence[float], elrs: Sequence[float], toy_map: ToyMap) -> Figure:
    """Draw TR fig. 2: the loss at a few ELRs, and the map of regimes over all.

    Below stand the ELRs of the single groups, if there are several. Predictions of the theory are dashed.

    Args:
        curves: One epoch a step, one seed; first dimension as ``elrs``.
        alphas: α_i of the toy.
        elrs: Effective learning rates of the curves.
        toy_map: Final losses over a grid of ELRs.

    Returns:
        The figure.
    """
    columns = min(max(2, len(elrs)), _A_ROW)
    rows = -(-len(elrs) // columns) if len(alphas) > 1 else 0
    with house_style():
        figure = Figure(figsize=(3.6 * columns, 3.4 + 3 * rows), layout="constrained")
        grid = figure.add_gridspec(1 + rows, 2 * columns)
        _losses(figure.add_subplot(grid[0, :columns]), curves.losses, alphas, elrs)
        _map(figure.add_subplot(grid[0, columns:]), toy_map, alphas)
        width = 2 * columns // min(columns, len(elrs))
        for i, elr in enumerate(elrs if rows else ()):
            row, place = divmod(i, columns)
            axes = figure.add_subplot(grid[1 + row, place * width : (place + 1) * width])
            _group_elrs(axes, curves.elrs[i, 0, :, 1:], alphas, elr, colour=_COLOURS[i % len(_COLOURS)])
        terms = ", ".join(f"{alpha:g}" for alpha in alphas)
        figure.suptitle(f"F = Σ α x²/(x² + y²) on the sphere, α = {terms}; dashed: theory")
    return figure


def draw_plane(curves: PlaneCurves, weight_decays: Sequence[float], periods: Sequence[float | None]) -> Figure:
    """Draw loss, norm and effective learning rate of the toy in the plane, one row for each weight decay.

    Args:
        curves: Runs in the order of ``weight_decays``.
        weight_decays: λ of the runs.
        periods: Mean period of each run in steps, None where there is none.

    Returns:
        The figure.
    """
    with house_style():
        figure = Figure(figsize=(9.6, 0.6 + 1.9 * len(weight_decays)), layout="constrained")
        axes = figure.subplots(len(weight_decays), 3, sharex=True, sharey="col", squeeze=False)
        for row, (decay, period) in enumerate(zip(weight_decays, periods, strict=True)):
            name = "no period" if period is None else f"period {period:.1f} steps"
            for column, curve in enumerate(curves):
                axes[row][column].semilogy(curve[row].clamp(min=1e-16), color=_COLOURS[0], linewidth=1)
            axes[row][0].set_ylabel(f"λ = {decay:g}\n{name}")
        for column, title in enumerate(("f = x²/(x² + y²)", "norm ρ", "effective learning rate η/ρ²")):
            axes[0][column].set_title(title)
            axes[-1][column].set_xlabel("step")
            _plain_numbers(axes[0][column].yaxis)  # shared
        figure.suptitle("SGD with weight decay λ in the plane")
    return figure


def _losses(axes: Axes, losses: Tensor, alphas: Sequence[float], elrs: Sequence[float]) -> None:
    for i, elr in enumerate(elrs):
        colour = _COLOURS[i % len(_COLOURS)]
        # The tame ones above the wild ones, and wide enough to be seen beside their level.
        tame = elr <= threshold_elr(alphas)
        width, order = (2.5, 2.5) if tame else (0.7, 2.4 - 0.01 * i)
        axes.plot(losses[i, 0], color=colour, linewidth=width, alpha=0.7, label=f"ELR {elr:g}", zorder=order)
        level = equilibrium_loss(alphas, elr).item()
        axes.axhline(level, color="black", linestyle="--", linewidth=0.8, zorder=3)
    axes.set(title="loss", xlabel="step", ylim=(-0.02 * sum(alphas), None))
    _legend(axes)


def _map(axes: Axes, toy_map: ToyMap, alphas: Sequence[float]) -> None:
    borders = _borders(toy_map.elrs)
    for regime, points in groupby(range(len(toy_map.regimes)), key=lambda i: toy_map.regimes[i]):
        first, *others = points
        left, right = borders[first], borders[first + 1 + len(others)]
        axes.axvspan(left, right, color=REGIME_COLORS[regime], alpha=0.5, linewidth=0, zorder=0)
    low, middle, high = (toy_map.losses.quantile(q, dim=1) for q in (0.1, 0.5, 0.9))
    seeds = toy_map.losses.shape[1]
    axes.fill_between(toy_map.elrs, low, high, color=_COLOURS[0], alpha=0.25, linewidth=0)
    axes.plot(toy_map.elrs, middle, color=_COLOURS[0], label=f"median and 10–90 % of {seeds} starts")
    predicted = equilibrium_loss(alphas, toy_map.elrs)
    axes.plot(toy_map.elrs, predicted, "k--", linewidth=1, label="½(Σα − 1/ELR)")
    axes.axvline(threshold_elr(alphas).item(), color=GREY, linewidth=0.8, label="threshold 1/Σα")
    axes.axhline(sum(alphas) / 2, color=GREY, linewidth=0.8, linestyle=":", label="a random point, Σα/2")
    axes.set(title="mean loss of settled runs", xlabel="effective learning rate", xscale="log")
    axes.set_xlim(borders[0], borders[-1])
    _plain_numbers(axes.xaxis)
    names = {"divergence": "divergence: steps above 60°"}
    patches = [
        Patch(color=REGIME_COLORS[regime], label=names.get(regime, regime)) for regime in dict.fromkeys(toy_map.regimes)
    ]
    handles = [*axes.get_legend_handles_labels()[0], *patches]
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.93))


def _borders(elrs: Tensor) -> list[float]:
    """Half way between ELRs on a logarithmic axis, and as far beyond the first and last; one more than ELRs."""
    logs = elrs.log()
    half = logs.diff() / 2
    borders = torch.cat([logs[:1] - half[:1], logs[:-1] + half, logs[-1:] + half[-1:]]).exp()
    return [float(border) for border in borders]


def _group_elrs(axes: Axes, group_elrs: Tensor, alphas: Sequence[float], elr: float, colour: str) -> None:
    converges, smooth = bool(elr <= threshold_elr(alphas)), len(group_elrs) >= 2 * _WINDOW
    for i, (alpha, level) in enumerate(zip(alphas, equilibrium_elrs(alphas, elr).tolist(), strict=True)):
        group, each, label = _COLOURS[i % len(_COLOURS)], group_elrs[:, i], f"α = {alpha:g}"
        if smooth:
            axes.semilogy(each, color=group, linewidth=0.7, alpha=0.3)
            middle = each.unfold(0, _WINDOW, 1).median(-1).values
            axes.semilogy(range(_WINDOW // 2, _WINDOW // 2 + len(middle)), middle, color=group, label=label)
        else:
            axes.semilogy(each, color=group, linewidth=0.7, label=label)
        if not converges:
            axes.axhline(level, color=group, linestyle="--", linewidth=1.5, zorder=3)
    note = "converges: they stay as they are" if converges else f"solid: median of {_WINDOW} steps" if smooth else ""
    axes.set_title(f"ELRs of the groups at ELR {elr:g}\n{note}".strip(), color=colour)
    axes.set_xlabel("step")
    _plain_numbers(axes.yaxis)
    _legend(axes)


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper right", framealpha=0.85, edgecolor="none").set_zorder(4)


def _plain_numbers(axis: Axis) -> None:
    """0.2 instead of 2 × 10⁻¹ on a logarithmic axis of few decades; powers of ten alone on one of many."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low) if low > 0 else math.inf
    if decades < 5:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
