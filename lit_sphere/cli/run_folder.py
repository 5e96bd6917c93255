"""One folder for each run: config.yaml, metrics.csv, checkpoints, curves.png and the W&B run."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger

from lit_sphere.cli.checkpoints import newest_checkpoint
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.metrics_file import History, MetricsFile, set_aside
from lit_sphere.cli.results_folder import hold_folder
from lit_sphere.cli.wandb_labels import LoggedValues
from lit_sphere.cli.wandb_run import WandbMode, begin_wandb, end_wandb, make_wandb_logger
from lit_sphere.files import write_whole

# Ranks that Lightning starts run this program again: they must come to the same folder.
_SHARED_NAME = "LIT_SPHERE_RUN"


def run_folder(requested: str | None, name: str, ckpt_path: str | None, is_first_rank: bool) -> Path:
    """Choose the run's folder.

    Args:
        requested: The user's choice; None for ``runs/NAME-DATE-TIME``.
        name: Name for the default.
        ckpt_path: Checkpoint to resume from; if it lies in the folder, the run goes on in place.
        is_first_rank: Whether this process chooses, or follows.

    Returns:
        The folder, which the first rank has made and holds to the command's end.

    Raises:
        CommandLineError: If it cannot be made, another process trains there, or it holds another run's results.
    """  # noqa: DOC502
    if requested is None and not is_first_rank and _SHARED_NAME in os.environ:
        return Path(os.environ[_SHARED_NAME])
    job = os.environ.get("SLURM_JOB_ID") or time.strftime("%Y%m%d-%H%M%S")
    folder = Path(requested or Path("runs") / f"{name}-{job}")
    if is_first_rank:
        folder = hold_folder(folder, requested is None)
        os.environ[_SHARED_NAME] = str(folder)
        if not goes_on_in(folder, ckpt_path):
            _check_free(folder)
    return folder


def hold_checkpoint_folder(dirpath: Path, ckpt_path: str | None) -> None:
    """Make and hold a folder of checkpoints that lies elsewhere than in the run's folder.

    Args:
        dirpath: The folder.
        ckpt_path: Checkpoint to resume from; one in this folder may be replaced.

    Raises:
        CommandLineError: If another process holds it, it cannot be made, or it holds another run's checkpoints.
    """
    option = "--checkpoint.dirpath"
    hold_folder(dirpath, option=option)
    newest = newest_checkpoint(dirpath)
    if newest is not None and not goes_on_in(dirpath, ckpt_path):
        raise CommandLineError(
            f"{option} {dirpath}: holds another run's checkpoints: choose another folder, or go on with that run by "
            f"--ckpt_path {newest}"
        )


def _check_free(folder: Path) -> None:
    newest, table = newest_checkpoint(folder / "checkpoints"), folder / "metrics.csv"
    if newest is None and not (table.exists() and table.stat().st_size):
        return
    go_on = "delete it" if newest is None else f"go on with that run by --ckpt_path {newest} --run {folder}"
    raise CommandLineError(f"the run folder {folder} exists already: choose another --run, or {go_on}")


def goes_on_in(folder: Path, ckpt_path: str | None) -> bool:
    """Whether a run resumed from this checkpoint goes on in place: the checkpoint lies in its folder."""
    return ckpt_path is not None and folder.resolve() in Path(ckpt_path).resolve().parents


def forget_run_folder() -> None:
    """Take the folder's name out of the environment: what this process starts later is another run."""
    os.environ.pop(_SHARED_NAME, None)


def make_loggers(folder: Path, mode: WandbMode | None, project: str, config: dict[str, Any]) -> list[Logger]:
    """Make the CSV logger and, unless disabled, the W&B logger of a run.

    Args:
        folder: The run's folder.
        mode: W&B's mode; None for the environment's ``WANDB_MODE``, or else ``offline``.
        project: W&B project.
        config: The whole configuration, for W&B's table of runs.

    Returns:
        The loggers, CSV first.

    Raises:
        CommandLineError: If W&B cannot do what is asked of it.
    """  # noqa: DOC502
    of_wandb = make_wandb_logger(folder, mode, project, config)
    return [MetricsFile(folder), *([] if of_wandb is None else [of_wandb])]


class RecordRun(Callback):
    """Monitor: writes config.yaml, makes the epoch W&B's x-axis, and ends the W&B run with the fit and its summary.

    Args:
        folder: The run's folder.
        config: Text of config.yaml.
        history: Of the run that goes on here, if one does.
        steps: Optimizer steps in the checkpoint that it goes on from.
    """

    def __init__(self, folder: Path, config: str, history: History | None, steps: int = 0) -> None:
        self._folder, self._config, self._history, self._steps = folder, config, history, steps
        self._logged = LoggedValues()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Record what is known before training."""
        if not trainer.is_global_zero:
            return
        if self._history is not None:
            self._logged.add_rows(self._history.keys, self._history.rows)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                begin_wandb(logger, trainer, self._logged, is_resumed=self._steps > 0)
            elif isinstance(logger, MetricsFile) and self._history is not None:
                set_aside(self._folder / "metrics.csv", self._steps)
                logger.go_on(self._history)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config.yaml, not before model and data were found sound; that of a run that goes on is kept."""
        path = self._folder / "config.yaml"
        if not trainer.is_global_zero:
            return
        text = self._config.encode()
        if path.exists() and path.read_bytes() != text:
            set_aside(path, self._steps)
        write_whole(path, lambda file: file.write(text))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the W&B run: a second fit in this process is another one."""
        end_wandb(trainer, self._logged)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the W&B run, as a failed one unless it was to end so."""
        end_wandb(trainer, self._logged, exception)
