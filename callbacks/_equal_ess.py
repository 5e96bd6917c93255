"""The equal-ESS scatter of a run: its numbers to the loggers, its picture and data into the run's folder."""

import math
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_sphere.analysis import equal_ess
from lit_sphere.callbacks._pictures import save_picture
from lit_sphere.report import draw_equal_ess, write_equal_ess


def report_equal_ess(
    asks: Callback,
    trainer: Trainer,
    folder: Path | None,
    names: Sequence[str],
    elrs: Sequence[float],
    grad_norms: Sequence[float],
    title: str,
) -> None:
    """Log ``equal_ess/slope`` and ``equal_ess/spread``, write ``equal_ess.png`` and ``equal_ess.csv``.

    Args:
        asks: The callback, to be named in warnings.
        trainer: The trainer.
        folder: The run's folder; None writes nothing.
        names: Names of the groups.
        elrs: Their effective learning rates.
        grad_norms: Their effective gradient norms.
        title: Of the picture.
    """
    try:
        found = equal_ess(elrs, grad_norms)
    except ValueError as error:
        rank_zero_warn(f"{type(asks).__name__} draws no scatter: {error}")
        return
    metrics: dict[str, float] = {"epoch": trainer.current_epoch - 1}
    for key, value in (("equal_ess/slope", found.slope), ("equal_ess/spread", found.spread)):
        if math.isfinite(value):  # neither is defined for too few groups
            metrics[key] = value
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step - 1)
    if folder is not None and trainer.is_global_zero:
        save_picture(trainer, folder, "equal_ess", draw_equal_ess(elrs, grad_norms, title))
        write_equal_ess(folder / "equal_ess.csv", names, elrs, grad_norms)
