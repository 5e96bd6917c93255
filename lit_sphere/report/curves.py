"""One picture of one run: what was lost, how large the steps were, and which path was taken."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from math import nan
from statistics import fmean, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_sphere.report.metrics_csv import Series
from lit_sphere.report.style import BLUE, GREEN, GREY, RED, add_panels, house_style, plain_ticks, whole_numbers

_TRAIN, _VAL, _GROUP, _SWITCH, _THEORY = BLUE, RED, GREY, GREEN, "black"
_FEW = ("#8e7cc3", "#e69138", "#45818e", "#a64d79", "#7f6000", GREY)  # colours of groups, where they suffice
_MOST_GROUPS, _MOST_SWITCHES = 24, 6
_NO_GROUPS = ("/total", "/step_max")
_QUANTITIES = ("effective_grad_norm", "elr", "ess")  # in the order of their panels


def draw_curves(
    series: Mapping[str, Series],
    title: str = "",
    validation_name: str = "val",
    not_scale_invariant: Collection[str] = (),
) -> Figure:
    """Draw training curves: losses, errors, effective quantities in total and per group, and g̃ against loss.

    Only panels with data are drawn. The last panel shows the run as a path in the plane of train loss and
    effective gradient norm, as TR fig. 1 does. Thin vertical lines stand where ``switch/…`` was logged, before the
    first epoch with the new value; the legend of the first panel says what was switched. Where
    ``equilibrium/…`` was logged, the step size at which effective learning rates stay is dashed, and the effective
    learning rates that it gives at the present gradient norms: of a few groups in their colours, of more groups the
    least, the median and the greatest, under weight decay that of the whole. Under weight decay the norm has a panel,
    too, and the intervals of both (PB §3) are shaded.

    Args:
        series: Series by key, as :func:`~lit_sphere.report.read_metrics` gives them.
        title: Line above the panels.
        validation_name: What ``val/…`` is called in the legends.
        not_scale_invariant: Groups whose curves are dotted.

    Returns:
        The figure; ``savefig`` writes it.

    Raises:
        ValueError: If there is nothing to draw.
    """
    possible = [
        (_losses, ("train/loss", "val/loss")),
        (_errors, ("train/error", "val/error")),
        (_path, ("train/loss", "effective_grad_norm/total")),
        (_grad_norms, ("effective_grad_norm/total",)),
        (_elrs, ("elr/total",)),
        (_esses, ("ess/total",)),
        (_norms, ("equilibrium/norm_low", "equilibrium/norm")),
    ]
    drawn = [draw for draw, keys in possible if (all if draw is _path else any)(key in series for key in keys)]
    if not drawn:
        raise ValueError("no curve to draw: none of the keys train/loss, val/loss, elr/total, … was logged")
    columns = min(3 if len(drawn) <= 6 else 4, len(drawn))
    rows = -(-len(drawn) // columns)
    with house_style():
        header = 0.25 if title else 0.0
        figure = Figure(figsize=(4.2 * columns, 3.1 * rows + header))
        panels = add_panels(figure, rows, columns, left=0.6, right=0.15, bottom=0.5, top=0.35, header=header)
        for i, (axes, draw) in enumerate(zip(panels, drawn, strict=False)):
            draw(axes, series, validation_name)
            _mark_groups(axes, not_scale_invariant)
            for axis in (axes.xaxis, axes.yaxis):
                if axis.get_scale() == "log":
                    plain_ticks(axis)
            if draw is not _path:
                _mark_switches(axes, series, named=i == 0)
        for axes in panels[len(drawn) :]:
            axes.remove()
        figure.suptitle(title, fontsize=10, y=1 - 0.08 / figure.get_figheight())
    return figure


def _losses(axes: Axes, series: Mapping[str, Series], validation_name: str) -> None:
    _line(axes, series, "train/loss", "train (mean of epoch)", _TRAIN)
    _line(axes, series, "val/loss", f"{validation_name} (eval mode)", _VAL)
    axes.set(title="loss", xlabel="epoch", yscale=_scale(series, "train/loss", "val/loss"))
    axes.legend()


def _errors(axes: Axes, series: Mapping[str, Series], validation_name: str) -> None:
    _line(axes, series, "train/error", "train (mean of epoch)", _TRAIN, scale=100)
    _line(axes, series, "val/error", f"{validation_name} (eval mode)", _VAL, scale=100)
    axes.set(title="error [%]", xlabel="epoch")
    axes.set_ylim(bottom=0)
    axes.legend()


def _path(axes: Axes, series: Mapping[str, Series], validation_name: str) -> None:
    loss, norm = series["train/loss"], series["effective_grad_norm/total"]
    at: dict[float, list[float]] = {}
    for e, value in zip(norm.epochs, norm.values, strict=True):
        at.setdefault(e, []).append(value)
    points = [(x, fmean(at[e]), e) for e, x in zip(loss.epochs, loss.values, strict=True) if e in at]
    x, y, epoch = zip(*points, strict=True) if points else ((), (), ())
    axes.plot(x, y, color=_GROUP, linewidth=0.6, alpha=0.4)
    dots = axes.scatter(x, y, c=epoch, s=10, cmap="viridis", zorder=2)
    _make_room(axes, left=0.15, right=0.7)
    beside = axes.inset_axes((1.04, 0, 0.04, 1))
    axes.figure.colorbar(dots, cax=beside, label="epoch", ticks=whole_numbers())
    axes.set(title="path of the run", xlabel="train loss", xscale="log", yscale="log")
    axes.set_ylabel("effective gradient norm g̃")


def _make_room(axes: Axes, left: float, right: float) -> None:
    """Make a panel narrower, by inches."""
    box, width = axes.get_position(), axes.figure.bbox.width / axes.figure.dpi
    axes.set_position((box.x0 + left / width, box.y0, box.width - (left + right) / width, box.height))


def _grad_norms(axes: Axes, series: Mapping[str, Series], validation_name: str) -> None:
    _quantity(axes, series, "effective_grad_norm", "effective gradient norm g̃ (sharpness)")


def _elrs(axes: Axes, series: Mapping[str, Series], validation_name: str) -> None:
    _quantity(axes, series, "elr", "effective learning rate η̃")


def _esses(axes: Axes, series: Mapping[str, Series], validation_name: str) -> None:
    _quantity(axes, series, "ess", "effective step size (tan of the angle)")


def _norms(axes: Axes, series: Mapping[str, Series], validation_name: str) -> None:
    _line(axes, series, "norm/total", "total", _TRAIN)
    _equilibrium(axes, series, "norm", (), few=True)
    _interval(axes, series, "norm")
    axes.set(title="norm ρ", xlabel="epoch", yscale="log")
    axes.legend(fontsize=7)


def _quantity(axes: Axes, series: Mapping[str, Series], quantity: str, title: str) -> None:
    groups = [key for key in series if key.startswith(f"{quantity}/") and not key.endswith(_NO_GROUPS)]
    statistics = all(key.partition("/")[2] in ("min", "median", "max") or "/q" in key for key in groups)
    few = len(groups) <= len(_FEW) and not statistics
    shown = f" (the first {_MOST_GROUPS} of {len(groups)})" if len(groups) > _MOST_GROUPS else ""
    # One legend entry for many groups: which is which stands in metrics.csv and W&B.
    name = "quantiles over the groups" if statistics else f"single groups{shown}"
    named = quantity == next(each for each in _QUANTITIES if f"{each}/total" in series)  # once for all panels
    for i, key in enumerate(groups[:_MOST_GROUPS]):
        label = key.partition("/")[2].removesuffix(".weight") if few else name if i == 0 else "_"
        _line(axes, series, key, label if named else "_", _FEW[i] if few else _GROUP, width=0.7)
        axes.lines[-1].set_gid(key.partition("/")[2])
    _line(axes, series, f"{quantity}/total", "total" if named else "_", _TRAIN)
    _equilibrium(axes, series, quantity, groups, few)
    _interval(axes, series, quantity)
    axes.set(title=title, xlabel="epoch", yscale=_scale(series, f"{quantity}/total"))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, ncols=2 if few and named else 1)


def _equilibrium(axes: Axes, series: Mapping[str, Series], quantity: str, groups: Sequence[str], few: bool) -> None:
    style: dict[str, Any] = {"linestyle": (0, (5, 2)), "linewidth": 1.1, "alpha": 0.8}
    label = "equilibrium (theory)"
    predicted = series.get(f"equilibrium/{quantity}")
    if predicted is not None and predicted != series.get(f"{quantity}/total"):
        of_total = "equilibrium of the total (theory)" if quantity == "elr" else label
        axes.plot(_at_epochs(predicted), predicted.values, label=of_total, color=_THEORY, **style)
    elif predicted is None and quantity == "elr":  # that of all groups is fixed
        levels = [_equilibrium_elr(series, key.partition("/")[2]) for key in groups]
        found = [(level, i) for i, level in enumerate(levels) if level is not None]
        if not few:
            # The prediction of a quantile of the gradient norms is one of the ELRs; of single groups they are taken.
            found = [(level, -1) for level in _least_median_greatest([level for level, _ in found])]
            style["linewidth"], label = 0.8, "equilibrium (theory): least, median, greatest"
        for n, (level, i) in enumerate(found):
            color = _FEW[i] if few else _THEORY
            axes.plot(_at_epochs(level), level.values, label=label if n == 0 else "_", color=color, **style)


def _equilibrium_elr(series: Mapping[str, Series], group: str) -> Series | None:
    """Where the ELR of a group would stay at its present gradient norm: at the step size of the equilibrium."""
    settled, norm = series.get("equilibrium/ess"), series.get(f"effective_grad_norm/{group}")
    if settled is None or norm is None:
        return None
    at = dict(zip(norm.steps, norm.values, strict=True))
    rows = zip(settled.epochs, settled.steps, settled.values, strict=True)
    points = [(epoch, step, ess / at[step]) for epoch, step, ess in rows if at.get(step, 0) > 0]
    return Series(*map(list, zip(*points, strict=True))) if points else None


def _least_median_greatest(levels: Sequence[Series]) -> list[Series]:
    at: dict[tuple[float, float], list[float]] = {}
    for epoch, step, value in (point for level in levels for point in zip(*level, strict=True)):
        at.setdefault((epoch, step), []).append(value)
    return [Series([e for e, _ in at], [s for _, s in at], list(map(of, at.values()))) for of in _LEVELS] if at else []


_LEVELS: tuple[Callable[[Iterable[float]], float], ...] = (min, median, max)


def _interval(axes: Axes, series: Mapping[str, Series], quantity: str) -> None:
    """Shade where the equilibrium lies, and leave out the epochs of which nothing is predicted."""
    low, high = (series.get(f"equilibrium/{quantity}_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return
    points = sorted(zip(_at_epochs(low), low.values, high.values, strict=True))
    half = min((after[0] - before[0] for before, after in pairwise(points)), default=1.0) / 2
    shaded = points[:1]
    for before, after in pairwise(points):
        if after[0] - before[0] > 3 * half:  # a single epoch is seen, too
            shaded += [(before[0] + half, *before[1:]), ((before[0] + after[0]) / 2, nan, nan)]
            shaded.append((after[0] - half, *after[1:]))
        shaded.append(after)
    x, bottom, top = zip(*shaded, strict=True)
    style: dict[str, Any] = {"color": _THEORY, "alpha": 0.13, "linewidth": 0, "zorder": 0}
    axes.fill_between(x, bottom, top, label="equilibrium interval (theory)", **style)


def _mark_groups(axes: Axes, not_scale_invariant: Collection[str]) -> None:
    """Dot the lines of groups that are not scale-invariant."""
    marked = [line for line in axes.lines if line.get_gid() in not_scale_invariant]
    for line in marked:
        line.set_linestyle(":")
    if marked and axes.get_legend() is not None:
        handles, labels = axes.get_legend_handles_labels()
        dotted = Line2D([], [], color=_GROUP, linewidth=0.7, linestyle=":")
        axes.legend([*handles, dotted], [*labels, "not scale-invariant"], fontsize=7)


def _mark_switches(axes: Axes, series: Mapping[str, Series], named: bool) -> None:
    switched: dict[float, list[str]] = {}
    for key in sorted(series):
        if key.startswith("switch/"):
            for epoch, value in zip(series[key].epochs, series[key].values, strict=True):
                if epoch <= 0:
                    continue  # so from the start
                switched.setdefault(epoch, []).append(f"{key.partition('/')[2]} {value:.3g}")
    for i, (epoch, changes) in enumerate(sorted(switched.items())):
        label = f"from epoch {epoch:g}: {', '.join(changes)}" if named and i < _MOST_SWITCHES else "_"
        # A value by epoch is a mean over the epoch: the change lies between two of them.
        axes.axvline(epoch - 0.5, color=_SWITCH, linewidth=0.8, linestyle=(0, (4, 1 + 2 * (i % 3))), label=label)
    if switched and named:
        axes.legend(fontsize=7)


def _scale(series: Mapping[str, Series], *keys: str) -> str:
    """Linear where nothing is positive, as a learning rate at the end of its schedule."""
    return "log" if any(value > 0 for key in keys if key in series for value in series[key].values) else "linear"


def _line(
    axes: Axes,
    series: Mapping[str, Series],
    key: str,
    label: str,
    color: str,
    scale: float = 1.0,
    width: float = 1.4,
) -> None:
    if key in series:
        values = [scale * value for value in series[key].values]
        marker = "" if len(values) > 1 else "o"
        axes.plot(_at_epochs(series[key]), values, label=label, color=color, linewidth=width, marker=marker)


def _at_epochs(one: Series) -> list[float]:
    if len(set(one.epochs)) == len(one.epochs):
        return one.epochs
    per_epoch = (max(one.steps) + 1) / (max(one.epochs) + 1)  # several steps of an epoch: parts of it
    return [step / per_epoch for step in one.steps]
