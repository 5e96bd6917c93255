"""How alike the snapshots of a run are: a picture and a table."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_sphere.report.style import BLUE, RED, house_style

_MEMBERS, _ENSEMBLE = BLUE, RED
_MOST_NUMBERS = 12  # snapshots, with which a cell of the matrix still has room for its number


class PairOfSnapshots(NamedTuple):
    """Two snapshots of a run, compared.

    Attributes:
        epochs: Epochs finished at the one and at the other.
        cosine: Cosine similarity of their scale-invariant weights.
        ensemble_error: Error of both together, a fraction; None where it was not measured.
        member_errors: Errors of each.
    """

    epochs: tuple[int, int]
    cosine: float
    ensemble_error: float | None = None
    member_errors: tuple[float, ...] = ()


def draw_similarity(pairs: Sequence[PairOfSnapshots], title: str = "") -> Figure:
    """Draw the matrix of cosine similarities, and errors of ensembles beside those of their members.

    Args:
        pairs: At least one.
        title: Line above the panels.

    Returns:
        The figure; ``savefig`` writes it.
    """
    measured = [pair for pair in pairs if pair.ensemble_error is not None]
    with house_style():
        figure = Figure(figsize=(9.2 if measured else 4.6, 4.0), layout="constrained")
        _matrix(figure.add_subplot(1, 2 if measured else 1, 1), pairs)
        if measured:
            _errors(figure.add_subplot(1, 2, 2), measured)
        figure.suptitle(title, fontsize=10)
    return figure


def _matrix(axes: Axes, pairs: Sequence[PairOfSnapshots]) -> None:
    epochs = sorted({epoch for pair in pairs for epoch in pair.epochs})
    at = {epoch: i for i, epoch in enumerate(epochs)}
    cells = [[1.0 if i == j else math.nan for j in at.values()] for i in at.values()]
    for pair in pairs:
        i, j = (at[epoch] for epoch in pair.epochs)
        cells[i][j] = cells[j][i] = pair.cosine
    lowest = min(0.0, *(pair.cosine for pair in pairs))
    image = axes.imshow(cells, vmin=lowest, vmax=1, cmap="viridis", origin="lower")
    if len(epochs) <= _MOST_NUMBERS:
        for i, row in enumerate(cells):
            for j, value in enumerate(row):
                if not math.isnan(value):
                    color = "black" if value > 0.6 else "white"
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    shown = range(0, len(epochs), -(-len(epochs) // 10))
    axes.set_xticks(list(shown), [str(epochs[i]) for i in shown])
    axes.set_yticks(list(shown), [str(epochs[i]) for i in shown])
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(image, ax=axes, shrink=0.8)
    axes.set(title="cosine similarity", xlabel="epoch", ylabel="epoch")


def _errors(axes: Axes, pairs: Sequence[PairOfSnapshots]) -> None:
    epochs = [pair.epochs[1] for pair in pairs]
    means = [100 * sum(pair.member_errors) / len(pair.member_errors) for pair in pairs]
    together = [100 * (pair.ensemble_error or 0.0) for pair in pairs]
    axes.plot(epochs, means, color=_MEMBERS, marker=".", linewidth=1.4, label="mean of the two members")
    axes.plot(epochs, together, color=_ENSEMBLE, marker=".", linewidth=1.4, label="ensemble with the snapshot before")
    axes.set(title="validation error [%]", xlabel="epoch")
    axes.set_ylim(0, 1.3 * max(*means, *together, 0.1))  # room for the legend
    axes.legend(loc="upper left")


def write_similarity(pairs: Sequence[PairOfSnapshots], file: Path) -> None:
    """Write a row for each pair as CSV.

    Args:
        pairs: What was measured.
        file: The file; its folder is made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["epoch", "other_epoch", "cosine", "ensemble_error", "error", "other_error"])
        for pair in pairs:
            errors = [pair.ensemble_error, *pair.member_errors] if pair.member_errors else ["", "", ""]
            table.writerow([*pair.epochs, pair.cosine, *errors])
