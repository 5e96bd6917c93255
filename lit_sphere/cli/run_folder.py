"""One folder for each run: config.yaml, metrics.csv, checkpoints, curves.png and the W&B run."""

import csv
import os
import time
from itertools import count
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.wandb_run import WandbMode, begin_wandb, end_wandb, make_wandb_logger

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
        The folder; not made yet.

    Raises:
        CommandLineError: If it holds another run's results.
    """
    if requested is None and not is_first_rank and _SHARED_NAME in os.environ:
        return Path(os.environ[_SHARED_NAME])
    job = os.environ.get("SLURM_JOB_ID") or time.strftime("%Y%m%d-%H%M%S")
    folder = Path(requested or Path("runs") / f"{name}-{job}")
    if is_first_rank:
        os.environ[_SHARED_NAME] = str(folder)
        if not goes_on_in(folder, ckpt_path) and (folder / "metrics.csv").exists() | (folder / "checkpoints").exists():
            raise CommandLineError(
                f"the run folder {folder} exists already: choose another --run, or go on with that run by "
                f"--ckpt_path {folder / 'checkpoints' / 'last.ckpt'} --run {folder}"
            )
    return folder


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
        CommandLineError: If W&B cannot do what is asked of it, or the folder cannot be made.
    """
    table = CSVLogger(folder.parent, name=folder.name, version="")
    of_wandb = make_wandb_logger(folder, mode, project, config)
    # Must exist, or W&B falls back to the system's temporary folder; a folder that cannot be made raises now.
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandLineError(
            f"cannot make the run folder {folder}: {error.strerror}; choose another --run"
        ) from error
    return [table] if of_wandb is None else [table, of_wandb]


class RecordRun(Callback):
    """Monitor: writes config.yaml, makes the epoch W&B's x-axis, and ends the W&B run with the fit.

    Args:
        folder: The run's folder.
        config: Text of config.yaml.
        history: Rows of the metrics.csv of the run that goes on here; logged again.
        steps: Optimizer steps in the checkpoint that it goes on from.
    """

    def __init__(self, folder: Path, config: str, history: list[dict[str, float]], steps: int = 0) -> None:
        self._folder, self._config, self._history, self._steps = folder, config, history, steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Record what is known before training."""
        if not trainer.is_global_zero:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                begin_wandb(logger)
            elif isinstance(logger, CSVLogger):
                for row in self._history:
                    logger.log_metrics({**row}, step=int(row["step"]))
                logger.save()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config.yaml, not before model and data were found sound; that of a run that goes on is kept."""
        path = self._folder / "config.yaml"
        if not trainer.is_global_zero:
            return
        if path.exists() and path.read_text(encoding="utf-8") != self._config:
            _set_aside(path, self._steps)
        path.write_text(self._config, encoding="utf-8")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the W&B run: a second fit in this process is another one."""
        end_wandb(trainer, exit_code=0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the W&B run as a failed one."""
        end_wandb(trainer, exit_code=1)


def _set_aside(path: Path, steps: int) -> None:
    """Rename a file to ``…-before-step-N``; what was set aside before stays."""
    name = f"{path.stem}-before-step-{steps}"
    free = (path.with_stem(name if n == 1 else f"{name}-{n}") for n in count(1))
    path.rename(next(each for each in free if not each.exists()))


def load_history(folder: Path, steps: int) -> list[dict[str, float]]:
    """Set the metrics.csv of a run that goes on in its folder aside, and give the rows to log again.

    Args:
        folder: The run's folder.
        steps: Optimizer steps in the checkpoint; later rows will be logged anew.

    Returns:
        Rows up to there, without empty cells; none if there is no metrics.csv.
    """
    path = folder / "metrics.csv"
    # A resume that failed early has set the file aside already.
    aside = sorted(folder.glob("metrics-before-step-*.csv"), key=lambda file: file.stat().st_mtime)
    source = path if path.exists() else aside[-1] if aside else None
    if source is None:
        return []
    with source.open(newline="", encoding="utf-8") as file:
        rows = [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]
    # CSVLogger starts its file anew; the old one is kept until the run is deleted.
    if source == path:
        _set_aside(path, steps)
    return [row for row in rows if row["step"] < steps]
