"""The W&B run beside a fit: what it needs is asked for before training, and its failures never end a training."""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from lit_sphere.callbacks import Interrupted
from lit_sphere.cli import main
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.wandb_account import LONGEST_NAME, PATIENCE, check_name, is_unanswered, verify_key
from lit_sphere.cli.wandb_labels import LoggedValues, regime_table, run_labels
from lit_sphere.observe.dynamics import callbacks_of
from lit_sphere.observe.regime import RegimeWatch
from lit_sphere.observe.stopping import is_finding
from lit_sphere.report import in_short

WandbMode = Literal["offline", "online", "disabled"]

_LAST_UPLOADS = 60  # seconds for them after training


def make_wandb_logger(
    folder: Path, given: WandbMode | None, project: str, config: dict[str, Any]
) -> WandbLogger | None:
    """Make the W&B logger of a run; where the server does not answer, one that is offline.

    Args:
        folder: The run's folder; need not exist yet, but must when the logger begins.
        given: W&B's mode; None for the environment's ``WANDB_MODE``, or else ``offline``.
        project: W&B project.
        config: The whole configuration, for W&B's table of runs.

    Returns:
        The logger; None if W&B is disabled.

    Raises:
        CommandLineError: If ``WANDB_MODE`` is no mode, W&B takes no such names or tags, or it is to be online and there
            is no key, or none that the server accepts.
    """
    mode = given or os.environ.get("WANDB_MODE") or "offline"
    if mode not in ("offline", "online", "disabled"):
        raise CommandLineError(f"WANDB_MODE={mode}: must be offline, online or disabled")
    if mode == "disabled":
        return None
    check_name("--project", project, ", or --wandb disabled")
    if os.environ.get("WANDB_ENTITY"):
        check_name("WANDB_ENTITY", os.environ["WANDB_ENTITY"])
    labels = run_labels(config)
    if mode == "online" and getattr(rank_zero_only, "rank", 0) == 0:
        try:
            verify_key("--wandb online" if given else "WANDB_MODE=online", "--wandb offline")
        except TimeoutError:
            _announce_offline(folder)
            mode = "offline"
    settings = wandb.Settings(
        console="off",
        silent=True,  # errors are raised as well, and said in one line
        init_timeout=PATIENCE,
        finish_timeout=_LAST_UPLOADS,
        finish_timeout_raises=True,
    )
    wandb.termsetup(settings, None)  # some of W&B's lines are printed before it reads `settings`
    return _RunLogger(
        name=folder.name.encode(errors="replace").decode()[:LONGEST_NAME],
        save_dir=str(folder.resolve()),  # W&B's own process may stand in another folder
        project=project,
        mode=mode,
        config=config,
        group=labels.group,
        job_type=labels.job_type,
        tags=labels.tags,
        settings=settings,
    )


def _announce_offline(folder: Path) -> None:
    rank_zero_warn(
        f"W&B did not answer within {PATIENCE} s: the run goes on offline; later, `wandb sync "
        f"{folder / 'wandb' / 'offline-run-*'}` sends it"
    )


class _RunLogger(WandbLogger):
    """Goes offline where the server stops to answer, and gives up where W&B fails otherwise.

    Here, because Lightning begins the run before any callback is asked.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            try:
                self._begin()
            except CommandLineError:
                raise
            except Exception as error:
                _give_up(self, error)
        return self._experiment

    def _begin(self) -> None:
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, even of None
        try:
            run = super().experiment
        except wandb.Error as error:
            if self._wandb_init["mode"] != "online":
                raise
            if not is_unanswered(error):
                raise CommandLineError(f"W&B refuses the run: {in_short(error)}; or give --wandb offline") from error
            self._wandb_init["mode"] = "offline"
            _announce_offline(Path(self.save_dir or "."))
            run = super().experiment
        if not run.offline:
            rank_zero_info(f"W&B shows this run at {run.url}")


def main_beside_service(argv: list[str]) -> None:
    """Run a command line while W&B's own process starts, for which a run waits 0.2 s otherwise.

    Args:
        argv: As of :func:`~lit_sphere.cli.main`.

    Raises:
        SystemExit: As there.
    """  # noqa: DOC502
    start = threading.Thread(target=_start_service, daemon=True)
    start.start()
    try:
        main(argv)
    finally:
        start.join()  # the process may end now only: W&B's would be left behind


def _start_service() -> None:
    with suppress(Exception):  # the run tries again, and says what is wrong
        wandb.setup(wandb.Settings(silent=True))


def check_given_wandb(logger: WandbLogger) -> None:
    """Begin the W&B run of a logger that the user gives, before anything else is begun.

    Args:
        logger: Not ours.

    Raises:
        CommandLineError: If W&B refuses it.
    """
    wandb.termsetup(wandb.Settings(show_warnings=False), None)  # Lightning sets an option that W&B warns of
    try:
        _ = logger.experiment
    except wandb.Error as error:
        raise CommandLineError(
            f"--trainer.logger WandbLogger: {error}; leave it out: each run has a W&B logger, offline or --wandb online"
        ) from error


def begin_wandb(logger: WandbLogger, trainer: Trainer, logged: LoggedValues, is_resumed: bool) -> None:
    """Make the epoch the run's x-axis, and let no failure from now on end the training.

    Args:
        logger: Ours, or the user's own.
        trainer: Its trainer.
        logged: Takes note of what is logged from now on.
        is_resumed: Whether the run goes on from a checkpoint, for its tags.
    """
    try:
        logger.experiment.define_metric("epoch")
        if is_resumed:
            _add_tag(logger.experiment, "resumed")
    except Exception as error:
        _give_up(logger, error)
    _plot_by_epoch(logger, trainer, logged)
    for name in ("log_metrics", "log_hyperparams"):
        setattr(logger, name, _guarded(logger, getattr(logger, name)))


def _plot_by_epoch(logger: WandbLogger, trainer: Trainer, logged: LoggedValues) -> None:
    """Log the epoch with everything, and make it the x-axis of each key, whoever logs it.

    Keys by their full names, so that it does not matter that Lightning gives the pattern ``*`` the step as its axis.
    """
    log, known = logger.log_metrics, {"epoch"}

    def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
        # Not `current_epoch`, which counts on at the end of the run, where pictures come.
        metrics = {"epoch": max(0, trainer.fit_loop.epoch_progress.current.ready - 1), **metrics}
        logged.add(metrics)
        if not known.issuperset(metrics):
            for key in metrics.keys() - known:
                # The summary holds the regime in words.
                logger.experiment.define_metric(key, step_metric="epoch", summary="none" if key == "regime" else None)
            known.update(metrics)
        log(metrics, step)

    logger.log_metrics = log_metrics  # type: ignore[method-assign]


def _add_tag(run: Any, *tags: str) -> None:
    run.tags = tuple(dict.fromkeys([*(run.tags or ()), *tags]))


def _guarded(logger: WandbLogger, send: Callable[..., None]) -> Callable[..., None]:
    def send_or_give_up(*args: Any, **kwargs: Any) -> None:
        try:
            send(*args, **kwargs)
        except Exception as error:
            _give_up(logger, error)

    return send_or_give_up


def _give_up(logger: WandbLogger, error: Exception) -> None:
    """Go on without W&B: what is logged from now on goes nowhere."""
    rank_zero_warn(f"W&B failed: {in_short(error)}; the run goes on without it, see metrics.csv")
    _forget(error)
    logger._experiment = wandb.init(mode="disabled")


def _forget(error: Exception) -> None:
    """Leave a broken run; the next fit of this process begins another."""
    log = logging.getLogger("wandb")
    for handler in list(log.handlers):  # their file may be on the disk that is full
        log.removeHandler(handler)
        with suppress(OSError):
            handler.close()
    log.addHandler(logging.NullHandler())  # without any, Python prints
    if isinstance(error, ConnectionError):  # W&B's own process has died: it must not be waited for at exit
        with suppress(Exception):
            wandb.teardown(exit_code=1)
    wandb.run = None


def end_wandb(trainer: Trainer, logged: LoggedValues, exception: BaseException | None = None) -> None:
    """End the W&B run, with regime and final values in its summary: a second fit in this process is another one.

    Args:
        trainer: The trainer.
        logged: What was logged.
        exception: Why the fit failed or was interrupted; None if it did not.
    """
    if wandb.run is None or not any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
        return
    folder = Path(wandb.run.dir).parent
    try:
        try:
            _leave_summary(trainer, wandb.run, logged, exception)
        finally:
            wandb.finish(0 if exception is None or is_finding(exception) else 1)
    except Exception as error:
        late = isinstance(error, TimeoutError)
        what = f"not all was sent within {_LAST_UPLOADS} s" if late else f"W&B failed: {in_short(error)}"
        rank_zero_warn(f"{what}; metrics.csv is whole, and `wandb sync {folder}` may send the rest")
        _forget(error)


def _leave_summary(trainer: Trainer, run: Any, logged: LoggedValues, exception: BaseException | None) -> None:
    """Put the regime into summary and tags, of a run that did not come to its end, too."""
    watches = [each for each in callbacks_of(trainer) if isinstance(each, RegimeWatch) and each.verdict is not None]
    watches.sort(key=lambda watch: not watch.announces)  # RegimeMonitor says more than RunSummary
    verdict = watches[0].verdict if watches else None
    tags: list[str] = [] if verdict is None else [verdict.regime]
    if is_finding(exception):
        tags.append("diverged")
    elif exception is not None:
        tags.append("interrupted" if isinstance(exception, (Interrupted, KeyboardInterrupt)) else "failed")
    _add_tag(run, *tags)
    summary = logged.summary(verdict)
    if verdict is not None:
        columns, row = regime_table(run.name or "", summary)
        run.log({"tables/regime": wandb.Table(columns=[*columns], data=[row])})
    run.summary.update(summary)
