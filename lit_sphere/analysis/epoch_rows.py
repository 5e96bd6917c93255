"""Rows of a run, one for each epoch, and the regime that they tell: the same while it trains and from its files."""

import math
from collections.abc import Sequence
from typing import Any

from lit_sphere.analysis.regimes import CONVERGED_LOSS, RegimeVerdict, after_blow_ups, converged_mse, name_regime

Row = dict[str, Any]
"""An epoch: numbers ``epoch``, ``step`` (before it), ``loss``, ``error``, ``lr``, and lists ``elr``, ``ess``,
``effective_grad_norm``: the total first, then each group. What is not known is None, and the value of a group that was
not stepped."""

LOSS_KEYS = ("train/loss", "train_loss")
ERROR_KEYS = ("train/error", "train_error")
ACCURACY_KEYS = ("train/acc", "train_acc", "train/accuracy", "train_accuracy")


def known_rows(rows: Sequence[Row]) -> list[Row]:
    """Leave out epochs whose loss is not known, and the last one where only its error is not known yet.

    An epoch whose loss is NaN or infinite stays, with or without an error: it tells that the run has blown up.

    Args:
        rows: An epoch each.

    Returns:
        Rows with a loss; an epoch that Lightning did not end, so that its error was never logged, has that of the
        epoch before.
    """
    rows = [row for row in rows if row["loss"] is not None]
    blew_up = bool(rows) and not math.isfinite(rows[-1]["loss"])  # and ended the run, before its error was logged
    if rows and rows[-1]["error"] is None and not blew_up and any(row["error"] is not None for row in rows):
        rows = rows[:-1]
    known: list[Row] = []
    for row in rows:
        known.append({**row, "error": known[-1]["error"]} if row["error"] is None and known else row)
    return known


def default_converged_loss(loss: str | None, num_classes: int | None) -> float:
    """Choose the loss below which a run counts as converged, where nobody did.

    Args:
        loss: ``mse`` for the mean squared error; anything else is taken for cross-entropy.
        num_classes: Number of classes, if known.

    Returns:
        The threshold.
    """
    return converged_mse(num_classes) if loss == "mse" and num_classes else CONVERGED_LOSS


def check_converged_loss(converged_loss: float, loss: str | None, num_classes: int | None) -> None:
    """Refuse a threshold that is meant for another loss, or that guessing is below.

    Args:
        converged_loss: Loss below which a run is to count as converged.
        loss: ``mse`` or ``cross_entropy``; of others nothing is known, and nothing refused.
        num_classes: Number of classes, if known.

    Raises:
        ValueError: Names the threshold that fits.
    """
    if num_classes is None or loss not in _LOSSES:
        return
    other = next(each for each in _LOSSES if each != loss)
    name, usual = _LOSSES[loss], default_converged_loss(loss, num_classes)
    guessing = 100 * converged_mse(num_classes) if loss == "mse" else math.log(num_classes)
    if math.isclose(converged_loss, default_converged_loss(other, num_classes), rel_tol=0.05):
        wrong = f"is the threshold of the {_LOSSES[other]}, and this run's loss is the {name}"
    elif converged_loss >= guessing:
        wrong = f"is not below {guessing:.3g}, the {name} of guessing among {num_classes} classes"
    else:
        return
    raise ValueError(f"converged_loss {converged_loss:g} {wrong}: leave it out for {usual:g}, or give one that fits")


_LOSSES = {"cross_entropy": "cross-entropy", "mse": "mean squared error"}


def rows_to_judge(rows: Sequence[Row], first_epoch: int = 0) -> list[Row]:
    """Choose the rows that tell the regime of a run: since its effective learning rate changed, and since a blow-up.

    Args:
        rows: Of the whole run.
        first_epoch: The first epoch after that change; 0 without one.

    Returns:
        Rows with a loss, of which only the last may be NaN or infinite.
    """
    known = known_rows([row for row in rows if row["epoch"] >= first_epoch])
    return known[after_blow_ups([row["loss"] for row in known]) :]


def regime_of_rows(
    rows: Sequence[Row], num_classes: int | None, converged_loss: float, equal_steps: bool
) -> RegimeVerdict:
    """Name the regime that rows tell.

    Args:
        rows: At least one, of :func:`rows_to_judge`.
        num_classes: Number of classes, if known.
        converged_loss: Loss below which a run counts as converged.
        equal_steps: Whether the theory predicts equal effective step sizes of all groups in regime 2.

    Returns:
        The verdict of :func:`~lit_sphere.analysis.name_regime`.
    """
    errors = [row["error"] for row in rows] if num_classes and rows[0]["error"] is not None else None
    return name_regime(
        [row["loss"] for row in rows],
        errors,
        num_classes,
        rows[0]["epoch"],
        converged_loss=converged_loss,
        chance_loss=math.log(num_classes) if num_classes else None,
        esses=_step_sizes(rows),
        steps=[row["step"] for row in rows],
        equal_steps=equal_steps,
    )


def _step_sizes(rows: Sequence[Row]) -> list[list[float]] | None:
    """Give the ESS of all groups together and of each that was stepped in every epoch; None where not known."""
    esses = [row["ess"] for row in rows]
    if None in esses:
        return None
    if not any(None in each for each in esses):
        return esses
    columns = [column for column in zip(*esses, strict=False) if None not in column]
    return [list(each) for each in zip(*columns, strict=True)]
