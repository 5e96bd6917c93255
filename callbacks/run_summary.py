"""A table of final numbers and a picture of the curves at the end of a run."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lit_sphere.observe.both_lightnings import is_a
from lit_sphere.observe.publishing import save_picture
from lit_sphere.observe.regime import RegimeWatch, regime_watch_of
from lit_sphere.observe.stopping import NonFinite, is_finding
from lit_sphere.observe.watched_groups import marked_groups, settling_of
from lit_sphere.optim import SphereSGD, joint_norm
from lit_sphere.report import draw_curves, in_short, read_metrics

_Line = tuple[str, float | None, str, str]


class RunSummary(RegimeWatch):
    """Monitor: prints the final numbers of a fit and draws ``curves.png`` from the run's ``metrics.csv``.

    The regime is what ``RegimeMonitor`` says. Of a run on the sphere without one, this callback watches it in the same
    way and at the same steps, and comes to the same verdict.

    With an ``EffectiveLearningRateMonitor`` beside it the table says when effective step sizes came to their
    equilibrium under weight decay, and when theory said that they would (:class:`~lit_sphere.effective.Settling`).

    The figure needs a ``CSVLogger`` among the trainer's loggers, beside whose file it is put; W&B gets it too.
    It is drawn for interrupted and failed runs as well. Groups that are not scale-invariant are dotted.

    Args:
        folder: Folder to name as the run's, and to draw the figure in; that of the ``CSVLogger`` if not given.
        title: Name of the run in table and figure; class and data names if not given.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.loggers import CSVLogger, WandbLogger
        >>> trainer = Trainer(callbacks=[RunSummary()], logger=CSVLogger("logs"))
    """

    def __init__(self, folder: str | Path | None = None, title: str | None = None) -> None:
        super().__init__()
        self.folder, self.title = folder, title
        self._judges = False
        self._started = 0.0
        self._first_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch a run on the sphere, unless another callback judges it."""
        on_sphere = any(isinstance(optimizer, SphereSGD) for optimizer in trainer.optimizers)
        self._judges = on_sphere and regime_watch_of(trainer) is None
        if self._judges:
            super().on_fit_start(trainer, pl_module)
        else:
            self._curves.rows, self.verdict = [], None  # of another run

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Open the epoch."""
        if self._judges:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started, self._first_step = time.perf_counter(), trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table, then draw the figure."""
        folder = trainer.log_dir  # a collective: all ranks must call this
        sphere = _sphere_lines(trainer)  # of sharded parameters a collective, too
        self._print(trainer, pl_module, self.folder or folder, sphere)
        self._draw(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw what there is; the picture of a run that failed never hides why it failed.

        A run that was to end where it diverged has its table, too.
        """
        super().on_exception(trainer, pl_module, exception)
        if is_finding(exception):
            folder = next((each.log_dir for each in trainer.loggers if is_a(each, CSVLogger)), None)
            self._print(trainer, pl_module, self.folder or folder, [], exception)
        if self._started:
            try:
                for logger in trainer.loggers:
                    with suppress(OSError):  # which may have ended the run, and is said there
                        logger.save()
                self._draw(trainer, pl_module)
            except Exception as error:
                rank_zero_warn(f"RunSummary could not draw the curves: {error}")

    @rank_zero_only
    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if is_a(logger, CSVLogger)]
        if not loggers:
            rank_zero_warn("RunSummary draws no curves: there is no CSVLogger")
            return
        metrics = Path(loggers[0].log_dir) / "metrics.csv"
        if not metrics.exists():
            return
        try:
            series = read_metrics(metrics)
        except Exception as error:  # a row may be cut
            rank_zero_warn(f"RunSummary draws no curves: {in_short(error)}")
            return
        if any(key in series for key in ("train/loss", "val/loss", "elr/total", "effective_grad_norm/total")):
            of_run = (series, self._name(trainer, pl_module), _validation_name(trainer), marked_groups(trainer))
            save_picture(trainer, Path(self.folder or loggers[0].log_dir), "curves", lambda: draw_curves(*of_run))

    def _name(self, trainer: Trainer, pl_module: LightningModule) -> str:
        data = getattr(trainer, "datamodule", None)
        return self.title or type(pl_module).__name__ + (f" on {type(data).__name__}" if data else "")

    @rank_zero_only
    def _print(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        folder: str | Path | None,
        sphere: Sequence[_Line],
        diverged: NonFinite | None = None,
    ) -> None:
        seconds = time.perf_counter() - self._started
        steps = trainer.global_step - self._first_step
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        validation = _validation_name(trainer)
        lines = [
            ("train loss", metrics.get("train/loss"), "{:.3g}", "mean over the last epoch"),
            ("train error", _percent(metrics.get("train/error")), "{:.2f} %", "mean over the last epoch"),
            (f"{validation} error", _percent(metrics.get("val/error")), "{:.2f} %", "eval mode"),
            (
                "sharpness",
                metrics.get("effective_grad_norm/total"),
                "{:.3g}",
                "mean of ρ‖∇‖ over the last epoch",
            ),
            ("ELR", metrics.get("elr/total"), "{:.4g}", "effective learning rate"),
            *sphere,
        ]
        watch = regime_watch_of(trainer) or self
        regime = watch.verdict if diverged is None else None
        table = [(name, form.format(value), note) for name, value, form, note in lines if value is not None]
        if diverged is not None:
            table = [(name, value, note.replace("last", "last whole")) for name, value, note in table]
            table.append(("diverged", f"epoch {diverged.epoch}", str(diverged).partition(", ")[2]))
        settling = settling_of(trainer)
        if settling is not None:
            when, beside = settling.in_words()
            table += [("equilibrium", when, beside)] if when else []
        if regime is not None:
            first, *more = regime.evidence.split("; ")
            table += [("regime", regime.regime, first), *(("", "", each) for each in more)]
        if watch.settled is not None:
            of_all = f" of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
            epochs = f"{trainer.current_epoch}{of_all} epochs"
            table.append(("stopped early", epochs, "{} was named in {} epochs in a row".format(*watch.settled)))
        table.append(("run folder", str(folder or "none"), ""))
        wide = max(len(name) for name, _, _ in table)
        took = f"; {seconds:.1f} s, {steps / seconds:.0f} steps/s" if self._started else ""
        print(f"\n{self._name(trainer, pl_module)}: {trainer.current_epoch} epochs, {trainer.global_step} steps{took}")
        column = max((len(value) for _, value, note in table if note), default=0)
        for name, value, note in table:
            print(f"  {name:<{wide}}  {value:<{column}}  {note}".rstrip())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the curves, if there are any."""
        if self._judges:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Curves and verdict of a run that is watched; nothing otherwise."""
        return super().state_dict() if self._judges else {}


def _sphere_lines(trainer: Trainer) -> list[_Line]:
    """Radius of the joint sphere, or of several together, and how far the points are from them."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups if "radius" in group]
    if not groups:
        return []
    drift = max(abs(joint_norm(group["params"]).item() / group["radius"] - 1) for group in groups)
    radius = math.hypot(*(group["radius"] for group in groups))
    several = f" ({len(groups)} spheres)" if len(groups) > 1 else ""
    return [("ρ", radius, "{:.5g}", f"relative drift {drift:.0e}{several}")]


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _validation_name(trainer: Trainer) -> str:
    return str(getattr(getattr(trainer, "datamodule", None), "validates_on", "val"))
