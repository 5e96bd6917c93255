"""How far the run in a folder has come, from the table that it writes."""

from pathlib import Path
from typing import NamedTuple


class Progress(NamedTuple):
    """How far a run has come.

    Attributes:
        epoch: Epochs that were trained.
        loss: Train loss of the last one; None if there is none yet.
        regime: Regime up to now; empty in the whole space.
    """

    epoch: int
    loss: float | None
    regime: str


def read_progress(folder: Path) -> Progress | None:
    """Read how far a run has come.

    Args:
        folder: Of the run.

    Returns:
        What its metrics.csv says; None if there is nothing in it yet, or nothing that can be read.
    """
    from lit_sphere.analysis.epoch_rows import LOSS_KEYS  # with torch, which takes seconds to import
    from lit_sphere.report.runs import read_run

    try:
        run = read_run(folder)
    except (OSError, ValueError):
        return None
    if not run.epochs:
        return None
    key, verdict = run.key(LOSS_KEYS), run.verdict
    return Progress(run.epochs, run.final(key) if key else None, verdict.regime if verdict else "")
