"""Pictures of the toy systems: three regimes on the sphere, periods in the plane."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lit_sphere.report.style import BLUE, GREEN, GREY, RED, house_style
from lit_sphere.theory.toy import ToyCurves, equilibrium_elrs, equilibrium_loss
from lit_sphere.theory.toy_plane import PlaneCurves

_COLOURS = (BLUE, RED, GREEN, "#8e7cc3", "#e69138", "#45818e")


class ToyMap(NamedTuple):
    """Mean losses of many runs after they have settled.

    Attributes:
        elrs: Effective learning rates, shape (n,).
        losses: Mean loss of each run over its second half, shape (n, seeds).
    """

    elrs: Tensor
    losses: Tensor


def draw_toy(curves: ToyCurves, alphas: Sequence[float], elrs: Sequence[float], toy_map: ToyMap) -> Figure:
    """Draw TR fig. 2: the loss at a few ELRs, the map over all, and below the ELRs of the single groups.

    Predictions of the theory are dashed.

    Args:
        curves: One epoch a step, one seed; first dimension as ``elrs``.
        alphas: α_i of the toy.
        elrs: Effective learning rates of the curves.
        toy_map: Final losses over a grid of ELRs.

    Returns:
        The figure.
    """
    columns = max(2, len(elrs))
    with house_style():
        figure = Figure(figsize=(3.6 * columns, 6.4), layout="constrained")
        grid = figure.add_gridspec(2, 2 * columns)
        _losses(figure.add_subplot(grid[0, :columns]), curves.losses, alphas, elrs)
        _map(figure.add_subplot(grid[0, columns:]), toy_map, alphas)
        for i, elr in enumerate(elrs):
            width = 2 * columns // len(elrs)
            axes = figure.add_subplot(grid[1, i * width : (i + 1) * width])
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
        figure.suptitle("SGD with weight decay λ in the plane")
    return figure


def _losses(axes: Axes, losses: Tensor, alphas: Sequence[float], elrs: Sequence[float]) -> None:
    for i, elr in enumerate(elrs):
        colour = _COLOURS[i % len(_COLOURS)]
        axes.plot(losses[i, 0], color=colour, linewidth=0.7, alpha=0.7, label=f"ELR {elr:g}")
        axes.axhline(equilibrium_loss(alphas, elr), color="black", linestyle="--", linewidth=0.8, zorder=3)
    axes.set(title="loss", xlabel="step", ylim=(-0.02 * sum(alphas), None))
    axes.legend(frameon=False, loc="upper right")


def _map(axes: Axes, toy_map: ToyMap, alphas: Sequence[float]) -> None:
    low, middle, high = (toy_map.losses.quantile(q, dim=1) for q in (0.1, 0.5, 0.9))
    seeds = toy_map.losses.shape[1]
    axes.fill_between(toy_map.elrs, low, high, color=_COLOURS[0], alpha=0.25, linewidth=0)
    axes.plot(toy_map.elrs, middle, color=_COLOURS[0], label=f"median and 10–90 % of {seeds} starts")
    predicted = [equilibrium_loss(alphas, elr) for elr in toy_map.elrs.tolist()]
    axes.plot(toy_map.elrs, predicted, "k--", linewidth=1, label="½(Σα − 1/ELR)")
    axes.axvline(1 / sum(alphas), color=GREY, linewidth=0.8, label="threshold 1/Σα")
    axes.axhline(sum(alphas) / 2, color=GREY, linewidth=0.8, linestyle=":", label="a random point, Σα/2")
    axes.set(title="mean loss of settled runs", xlabel="effective learning rate", xscale="log")
    axes.legend(frameon=False)


def _group_elrs(axes: Axes, group_elrs: Tensor, alphas: Sequence[float], elr: float, colour: str) -> None:
    converges = elr <= 1 / sum(alphas)
    for i, (alpha, level) in enumerate(zip(alphas, equilibrium_elrs(alphas, elr), strict=True)):
        group = _COLOURS[i % len(_COLOURS)]
        axes.semilogy(group_elrs[:, i], color=group, linewidth=0.7, alpha=0.5, label=f"α = {alpha:g}")
        if not converges:
            axes.axhline(level, color=group, linestyle="--", linewidth=1.5, zorder=3)
    axes.set_title(f"ELRs of the groups at ELR {elr:g}", color=colour)
    axes.set_xlabel("step")
    axes.legend(frameon=False)
