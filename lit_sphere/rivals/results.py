"""What OptimizerComparison logs, draws and prints of a run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_sphere.observe.publishing import log_numbers, save_picture
from lit_sphere.report import draw_optimizer_comparison, write_optimizer_comparison

Row = dict[str, float]


def log_row(trainer: Trainer, row: Row, names: Sequence[str]) -> None:
    """Log what was measured, and its cosines.

    Args:
        trainer: The trainer.
        row: ``step``, ``epoch``, and quantities by name.
        names: Of the rivals.
    """
    metrics = {key: value for key, value in row.items() if key not in ("step", "epoch")}
    for name in ("start", *names):
        metrics[f"{name}_cosine_min"] = 1 - row[f"{name}_distance_max"]
        metrics[f"{name}_cosine_median"] = 1 - row[f"{name}_distance_median"]
    metrics = {f"optimizer_comparison/{key}": value for key, value in metrics.items()}
    trainer.callback_metrics.update({key: torch.tensor(value) for key, value in metrics.items()})
    log_numbers(trainer, {"epoch": row["epoch"], **metrics}, trainer.global_step - 1)


def leave_results(
    trainer: Trainer, folder: Path, rows: Sequence[Row], names: Sequence[str], run: str, title: str
) -> None:
    """Write the table and the picture, once for all ranks.

    Args:
        trainer: The trainer.
        folder: Where they go.
        rows: What was measured.
        names: Of the rivals.
        run: What the run is called in the legend.
        title: Line above the panels.
    """
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        write_optimizer_comparison(rows, folder / "optimizer_comparison.csv")
        picture = partial(draw_optimizer_comparison, rows, names, run, title)
        save_picture(trainer, folder, "optimizer_comparison", picture)


def log_final_distance(owner: str, row: Row, names: Sequence[str]) -> None:
    """Print the distances at the end.

    Args:
        owner: Name of the callback.
        row: The last one that was measured.
        names: Of the rivals.
    """
    far = ", ".join(f"{name} {row[f'{name}_distance_max']:.1e}" for name in names)
    rank_zero_info(
        f"{owner}: after {row['step']:.0f} steps, 1 - cos with the run, worst group: {far} (the run from its own "
        f"start: {row['start_distance_max']:.1e})"
    )


def warn_not_starting(owner: str, trainer: Trainer, start_epoch: int, steps: int | None, done: int) -> None:
    """Warn before training that a comparison that is over does not go on, or that it will never begin.

    Args:
        owner: Name of the callback.
        trainer: Its trainer.
        start_epoch: Epoch from which on it compares.
        steps: Steps requested; None for the rest of the run.
        done: Steps after which a comparison was over in the checkpoint; 0 if there was none.
    """
    if done and (steps is None or steps > done):
        rank_zero_warn(
            f"{owner}: the checkpoint's comparison was over after {done} steps, and its rivals are gone; it stays "
            "over, and more steps need a run of their own"
        )
    elif not done and never_begins(trainer, start_epoch):
        rank_zero_warn(
            f"{owner}: the run ends after {trainer.max_epochs} epochs, and the comparison from epoch {start_epoch} on "
            "will not take place; train longer, or lower start_epoch"
        )


def warn_incomplete(owner: str, trainer: Trainer, start_epoch: int, steps: int | None, done: int) -> None:
    """Warn after training that less was compared than requested, where no earlier warning said so.

    Args:
        owner: Name of the callback.
        trainer: Its trainer.
        start_epoch: Epoch from which on it compares.
        steps: Steps requested; None for the rest of the run.
        done: Steps compared.
    """
    if not done and not never_begins(trainer, start_epoch):
        rank_zero_warn(
            f"{owner}: the run ended after {trainer.current_epoch} epochs, and the comparison from epoch {start_epoch} "
            "on never took place; train longer, or lower start_epoch"
        )
    elif done and steps is not None and done < steps:
        rank_zero_info(
            f"{owner}: the run ended after {done} of the {steps} steps to compare; train longer, or lower steps (null: "
            "the rest of the run)"
        )


def never_begins(trainer: Trainer, start_epoch: int) -> bool:
    """Return whether a run has no such epoch, as far as its epochs show.

    Args:
        trainer: The trainer.
        start_epoch: Counted from 0.

    Returns:
        Whether that is sure.
    """
    return trainer.max_epochs not in (None, -1) and start_epoch >= trainer.max_epochs
