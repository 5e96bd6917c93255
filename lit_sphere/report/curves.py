"""One picture of one run: what was lost, how large the steps were, and which path was taken."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_sphere.report.metrics_csv import Series
from lit_sphere.report.style import BLUE, GREEN, GREY, RED, house_style

_TRAIN, _VAL, _GROUP, _SWITCH = BLUE, RED, GREY, GREEN
_MOST_GROUPS, _MOST_SWITCHES = 24, 6


def draw_curves(series: Mapping[str, Series], title: str = "", validation_name: str = "val") -> Figure:
    """Draw training curves: losses, errors, effective quantities in total and per group, and g̃ against loss.

    Only panels with data are drawn. The last panel shows the run as a path in the plane of train loss and
    effective gradient norm, as TR fig. 1 does. Thin vertical lines stand where ``switch/…`` was logged, before the
    first epoch with the new value; the legend of the first panel says what was switched.

    Args:
        series: Series by key, as :func:`~lit_sphere.report.read_metrics` gives them.
        title: Line above the panels.
        validation_name: What ``val/…`` is called in the legends.

    Returns:
        The figure; ``savefig`` writes it.

    Raises:
        ValueError: If there is nothing to draw.
    """
    panels = [
        (_losses, ("train/loss", "val/loss")),
        (_errors, ("train/error", "val/error")),
        (_path, ("train/loss", "effective_grad_norm/total")),
        (_grad_norms, ("effective_grad_norm/total",)),
        (_elrs, ("elr/total",)),
        (_esses, ("ess/total",)),
    ]
    drawn = [draw for draw, keys in panels if (all if draw is _path else any)(key in series for key in keys)]
    if not drawn:
        raise ValueError("no curve to draw: none of the keys train/loss, val/loss, elr/total, … was logged")
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    with house_style():
        figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
        for i, draw in enumerate(drawn):
            axes = figure.add_subplot(rows, columns, i + 1)
            draw(axes, series, validation_name)
            if draw is not _path:
                _mark_switches(axes, series, named=i == 0)
        figure.suptitle(title, fontsize=10)
    return figure


def _losses(axes: Axes, series: Mapping[str, Series], validation_name: str) -> None:
    _line(axes, series, "train/loss", "train (mean of epoch)", _TRAIN)
    _line(axes, series, "val/loss", f"{validation_name} (eval mode)", _VAL)
    axes.set(title="loss", xlabel="epoch", yscale=_scale(series, "train/loss", "val/loss"))
    axes.legend(frameon=False)


def _errors(axes: Axes, series: Mapping[str, Series], validation_name: str) -> None:
    _line(axes, series, "train/error", "train (mean of epoch)", _TRAIN, scale=100)
    _line(axes, series, "val/error", f"{validation_name} (eval mode)", _VAL, scale=100)
    axes.set(title="error [%]", xlabel="epoch")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _path(axes: Axes, series: Mapping[str, Series], validation_name: str) -> None:
    loss, norm = series["train/loss"], series["effective_grad_norm/total"]
    at = dict(zip(norm.epochs, norm.values, strict=True))
    points = [(x, at[e], e) for e, x in zip(loss.epochs, loss.values, strict=True) if e in at]
    x, y, epoch = zip(*points, strict=True) if points else ((), (), ())
    axes.plot(x, y, color=_GROUP, linewidth=0.6, alpha=0.4)
    dots = axes.scatter(x, y, c=epoch, s=10, cmap="viridis", zorder=2)
    axes.figure.colorbar(dots, ax=axes, label="epoch")
    axes.set(title="path of the run", xlabel="train loss", xscale="log", yscale="log")
    axes.set_ylabel("effective gradient norm g̃")


def _grad_norms(axes: Axes, series: Mapping[str, Series], validation_name: str) -> None:
    _quantity(axes, series, "effective_grad_norm", "effective gradient norm g̃ = ρ‖∇‖ (sharpness)")


def _elrs(axes: Axes, series: Mapping[str, Series], validation_name: str) -> None:
    _quantity(axes, series, "elr", "effective learning rate η̃")


def _esses(axes: Axes, series: Mapping[str, Series], validation_name: str) -> None:
    _quantity(axes, series, "ess", "effective step size η̃g̃ (tan of the angle)")


def _quantity(axes: Axes, series: Mapping[str, Series], quantity: str, title: str) -> None:
    groups = [key for key in series if key.startswith(f"{quantity}/") and not key.endswith("/total")]
    shown = f" (the first {_MOST_GROUPS} of {len(groups)})" if len(groups) > _MOST_GROUPS else ""
    statistics = all(key.partition("/")[2] in ("min", "median", "max") or "/q" in key for key in groups)
    name = "quantiles over the groups" if statistics else f"single groups{shown}"
    for i, key in enumerate(groups[:_MOST_GROUPS]):
        # One legend entry for all groups: which is which stands in metrics.csv and W&B.
        _line(axes, series, key, name if i == 0 else "_", _GROUP, width=0.7)
    _line(axes, series, f"{quantity}/total", "total", _TRAIN)
    axes.set(title=title, xlabel="epoch", yscale=_scale(series, f"{quantity}/total"))
    axes.legend(frameon=False)


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
        axes.legend(fontsize=7, framealpha=0.7, edgecolor="none")


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
    if key not in series:
        return
    one = series[key]
    values = [scale * value for value in one.values]
    epochs = one.epochs
    if len(set(epochs)) < len(epochs):  # several steps of an epoch: parts of it
        per_epoch = (max(one.steps) + 1) / (max(epochs) + 1)
        epochs = [step / per_epoch for step in one.steps]
    axes.plot(epochs, values, label=label, color=color, linewidth=width, marker="" if len(values) > 1 else "o")
