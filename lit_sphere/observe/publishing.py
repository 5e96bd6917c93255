"""What a callback leaves: pictures in the run's folder and in W&B, numbers in the loggers."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from matplotlib.figure import Figure
from torch.optim import Optimizer

from lit_sphere.observe.both_lightnings import is_a
from lit_sphere.report import NoPicture, in_short, write_picture


def run_folder_of(trainer: Trainer) -> Path | None:
    """Name the folder that the first logger writes to.

    Args:
        trainer: The trainer; all ranks must call this, since Lightning broadcasts the answer.

    Returns:
        The folder; None for a run without logger.
    """
    folder = trainer.log_dir if trainer.loggers else None
    return None if folder is None else Path(folder)


def log_numbers(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Log to all loggers, with all digits, unlike through the module's own log.

    Args:
        trainer: The trainer.
        metrics: Numbers by key, ``epoch`` among them.
        step: The optimizer step that they belong to.
    """
    for logger in trainer.loggers:
        named = {plain_key(key): value for key, value in metrics.items()} if _is_mlflow(logger) else dict(metrics)
        logger.log_metrics(named, step=step)


def _is_mlflow(logger: Logger) -> bool:
    # By name, since pytorch_lightning has a class of its own.
    return any(each.__name__ == "MLFlowLogger" for each in type(logger).__mro__)


def plain_key(key: str) -> str:
    """Spell a key out for MLflow, whose names are of letters, digits and ``_ / . -`` and blanks.

    Lightning's logger would leave other characters out: two keys could become one.

    Args:
        key: A key.

    Returns:
        The same in words.

    Example:
        >>> plain_key("elr/stem.weight+4"), plain_key("elr/conv.weight[3]"), plain_key("elr/norm.weight+1[8:16]")
        ('elr/stem.weight and 4 more', 'elr/conv.weight row 3', 'elr/norm.weight and 1 more rows 8-15')
    """
    key = re.sub(r"\+(\d+)(?=$|\[)", r" and \1 more", key)
    key = re.sub(r"\[(\d+)\]$", r" row \1", key)
    key = re.sub(r"\[(\d+):(\d+)\]$", lambda rows: f" rows {rows[1]}-{int(rows[2]) - 1}", key)
    return re.sub(r"[^a-zA-Z0-9_/. -]", "_", key)


def save_picture(trainer: Trainer, folder: Path | None, name: str, draw: Callable[[], Figure]) -> None:
    """Write ``NAME.png`` into the folder, and log it to W&B as ``pictures/NAME``; what goes wrong costs a warning.

    In W&B a key has one kind of values: ``regime`` is a curve already.

    Args:
        trainer: The trainer; other ranks than the first do nothing.
        folder: From :func:`run_folder_of`; None draws nothing.
        name: Without suffix.
        draw: Makes the figure.
    """
    if folder is None or not trainer.is_global_zero:
        return
    path = folder / f"{name}.png"
    try:
        write_picture(path, draw)
    except NoPicture as error:
        rank_zero_warn(str(error))
        return
    _send_to_wandb(trainer, str(path), lambda logger: logger.log_image(f"pictures/{name}", [str(path)]))


def _send_to_wandb(trainer: Trainer, what: str, send: Callable[[WandbLogger], object]) -> None:
    for logger in trainer.loggers:
        if is_a(logger, WandbLogger):
            try:
                send(logger)
            except Exception as error:
                rank_zero_warn(f"W&B did not take {what}: {in_short(error)}")


def send_log_log_scatter(trainer: Trainer, key: str, columns: Mapping[str, Sequence[Any]], title: str) -> None:
    """Log points to W&B as a table, ``KEY_table``, and as a chart of it, whose marks answer to the mouse.

    W&B's chart has no logarithmic axes: the table has columns for the decimal logarithms as well.

    Args:
        trainer: The trainer; other ranks than the first do nothing.
        key: Of the chart.
        columns: Values of the points by name: first what they are called, then positive x and y, then others.
        title: Of the chart.
    """
    if not trainer.is_global_zero:
        return

    def send(logger: WandbLogger) -> None:
        import wandb

        _, x, y, *_ = columns
        rows = [row for row in zip(*columns.values(), strict=True) if row[1] > 0 and row[2] > 0]
        data = [[*row, math.log10(row[1]), math.log10(row[2])] for row in rows]
        log_x, log_y = f"log10 {x}", f"log10 {y}"
        table = wandb.Table(columns=[*columns, log_x, log_y], data=data)
        # As numbers are logged, so that whatever looks at these sees this, too.
        logger.log_metrics({key: wandb.plot.scatter(table, log_x, log_y, title)})  # type: ignore[dict-item]

    _send_to_wandb(trainer, key, send)


class PlannedRun(NamedTuple):
    """What is known of a run before it begins.

    Attributes:
        trainer: Its callbacks are known.
        pl_module: The module.
        data: Its data module, if any.
        optimizers: Gives those of the run; before ``fit`` they are made for it.
    """

    trainer: Trainer
    pl_module: LightningModule
    data: Any
    optimizers: Callable[[], Sequence[Optimizer]]

    @classmethod
    def at_fit_start(cls, trainer: Trainer, pl_module: LightningModule) -> "PlannedRun":
        """Give that of a trainer that is about to fit."""
        return cls(trainer, pl_module, getattr(trainer, "datamodule", None), lambda: trainer.optimizers)


@runtime_checkable
class ChecksRun(Protocol):
    """A callback that knows whether it can do anything in a run before this begins."""

    def check_run(self, run: PlannedRun) -> None:
        """Raise ``ValueError`` if it cannot; called again by the callback itself, where nobody called it before."""


def check_single(owner: Callback, kind: type[Callback], trainer: Trainer, writes: str) -> None:
    """Refuse another callback of one kind, before the run: each would overwrite what the other writes.

    Args:
        owner: A callback.
        kind: Its class, or the one among its bases that says what is written.
        trainer: Its trainer.
        writes: Logged keys and files, in words.

    Raises:
        ValueError: Names the kind, and what both would write.
    """
    others = [each for each in trainer.callbacks if isinstance(each, kind) and each is not owner]  # type: ignore[attr-defined]
    if others:
        raise ValueError(
            f"{kind.__name__}: there are two of them, and both would write {writes}; leave one out, or give each a run "
            "of its own"
        )
