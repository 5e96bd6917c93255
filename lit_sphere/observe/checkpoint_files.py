"""Checkpoint files that are whole, and that no kill makes newer than the tables of their run."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer

from lit_sphere.files import part_of, write_whole
from lit_sphere.observe.both_lightnings import both


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's way to save, with local files written beside their place and put there once they are on the disk.

    Lightning writes to the system's temporary folder and moves the file, which between two devices is a copy: killed
    or out of space in the middle of it, the only checkpoint of a run is gone.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint.

        Args:
            checkpoint: Its content.
            path: The file; one that is no local path is written as by Lightning.
            storage_options: Of Lightning's signature; none are taken.
        """
        if storage_options is not None or not is_local(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: torch.save(checkpoint, file))


def is_local(path: object) -> bool:
    """Whether a path names a file of this machine, and no ``s3://…`` or the like."""
    return "://" not in str(path)


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Let a trainer save by :class:`WholeCheckpointIO`, unless somebody chose another way to save.

    Args:
        trainer: The trainer.
    """
    if type(trainer.strategy.checkpoint_io) in both(TorchCheckpointIO):
        trainer.strategy.checkpoint_io = WholeCheckpointIO()


class PendingCheckpoint:
    """A checkpoint that is on the disk, but not yet in its place.

    Lightning logs an epoch after the callbacks that save it. A run that goes on from a checkpoint logs what comes after
    it, and no earlier row: so a checkpoint takes its place once what comes before it is in the tables.

    Args:
        trainer: Saves it now; all ranks must.
        path: Its place.
        weights_only: As for ``Trainer.save_checkpoint``.

    Raises:
        OSError: Of the system, with ``path`` as its file name.

    Attributes:
        path: Its place.
        epoch: At which it was saved.
    """

    def __init__(self, trainer: Trainer, path: str | Path, weights_only: bool = False) -> None:
        self.path, self.epoch = Path(path), trainer.current_epoch
        self._pending = self.path.with_name(f".{self.path.name}.pending")
        try:
            trainer.save_checkpoint(self._pending, weights_only)
        except OSError as error:
            error.filename = str(self.path)  # the name that means something to a user
            raise

    def put_in_place(self) -> None:
        """Replace the file that was there; on the first rank only."""
        if self._pending.is_dir() and self.path.is_dir():  # of sharded strategies
            shutil.rmtree(self.path)
        os.replace(self._pending, self.path)


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill left of checkpoints that never came to their places.

    Args:
        folder: Of the checkpoints.
    """
    for path in (*folder.glob(part_of(Path("*")).name), *folder.glob(".*.pending")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
