"""Pictures of a run: into its folder and to W&B."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure


def run_folder_of(trainer: Trainer) -> Path | None:
    """Name the folder that the first logger writes to.

    Args:
        trainer: The trainer; all ranks must ask, since Lightning broadcasts the answer.

    Returns:
        The folder; None for a run without logger.
    """
    folder = trainer.log_dir if trainer.loggers else None
    return None if folder is None else Path(folder)


def save_picture(trainer: Trainer, folder: Path | None, name: str, figure: Figure) -> None:
    """Write ``NAME.png`` into the folder, and log it to W&B.

    Args:
        trainer: The trainer; other ranks than the first do nothing.
        folder: From :func:`run_folder_of`; None draws nothing.
        name: Without suffix.
        figure: What to write.
    """
    if folder is None or not trainer.is_global_zero:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=130)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)])
