"""What a callback leaves: pictures in the run's folder and in W&B, numbers in the loggers."""

from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from matplotlib.figure import Figure

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


def save_picture(trainer: Trainer, folder: Path | None, name: str, draw: Callable[[], Figure]) -> None:
    """Write ``NAME.png`` into the folder, and log it to W&B; what goes wrong costs a warning, never the run.

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
    for logger in trainer.loggers:
        if is_a(logger, WandbLogger):
            try:
                logger.log_image(name, [str(path)])
            except Exception as error:
                rank_zero_warn(f"W&B did not take {path}: {in_short(error)}")


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
