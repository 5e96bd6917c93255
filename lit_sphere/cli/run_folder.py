"""One folder for each run: config.yaml, metrics.csv, checkpoints, curves.png and the W&B run."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger

from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.metrics_file import History, MetricsFile, set_aside
from lit_sphere.cli.results_folder import hold_folder
from lit_sphere.files import write_whole

WandbMode = Literal["offline", "online", "disabled"]

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


def _check_free(folder: Path) -> None:
    checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    table = folder / "metrics.csv"
    if not checkpoints and not (table.exists() and table.stat().st_size):
        return
    last = folder / "checkpoints" / "last.ckpt"
    last = last if last.exists() or not checkpoints else checkpoints[-1]
    go_on = f"go on with that run by --ckpt_path {last} --run {folder}" if checkpoints else "delete it"
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
        CommandLineError: If ``WANDB_MODE`` is no mode.
    """
    table = MetricsFile(folder)
    mode = mode or os.environ.get("WANDB_MODE") or "offline"  # type: ignore[assignment]
    if mode not in ("offline", "online", "disabled"):
        raise CommandLineError(f"WANDB_MODE={mode}: must be offline, online or disabled")
    if mode == "disabled":
        return [table]
    offline = mode == "offline"
    settings = wandb.Settings(console="off", silent=offline, show_warnings=not offline)
    wandb.termsetup(settings, None)  # Lightning sets an option that W&B warns of before it reads `settings`
    return [
        table,
        WandbLogger(
            name=folder.name,
            save_dir=str(folder.resolve()),  # W&B's own process may stand in another folder
            project=project,
            mode=mode,
            config=config,
            settings=settings,
        ),
    ]


class RecordRun(Callback):
    """Monitor: writes config.yaml, makes the epoch W&B's x-axis, and ends the W&B run with the fit.

    Args:
        folder: The run's folder.
        config: Text of config.yaml.
        history: Of the run that goes on here, if one does.
        steps: Optimizer steps in the checkpoint that it goes on from.
    """

    def __init__(self, folder: Path, config: str, history: History | None, steps: int = 0) -> None:
        self._folder, self._config, self._history, self._steps = folder, config, history, steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Record what is known before training."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                _plot_by_epoch(logger)
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
        _end_wandb(trainer, exit_code=0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the W&B run as a failed one."""
        _end_wandb(trainer, exit_code=1)


def _plot_by_epoch(logger: WandbLogger) -> None:
    """Make the epoch the x-axis of each key that is logged with one, whoever logs it.

    Keys by their full names, so that it does not matter that Lightning gives the pattern ``*`` the step as its axis.
    """
    log, known = logger.log_metrics, {"epoch"}
    logger.experiment.define_metric("epoch")

    def log_metrics(metrics: Mapping[str, float], step: int | None = None) -> None:
        if "epoch" in metrics and not known.issuperset(metrics):
            for key in metrics.keys() - known:
                logger.experiment.define_metric(key, step_metric="epoch")
            known.update(metrics)
        log(metrics, step)

    logger.log_metrics = log_metrics  # type: ignore[method-assign]


def _end_wandb(trainer: Trainer, exit_code: int) -> None:
    if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
        wandb.finish(exit_code)
