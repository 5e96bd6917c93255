"""Names the regime of a run while it trains, and at its end."""

import math
from dataclasses import asdict
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_sphere.analysis.regimes import REGIME_NUMBERS, SHORTEST_RUN, RegimeVerdict, after_blow_ups, name_regime
from lit_sphere.callbacks._curve_callback import CurveCallback
from lit_sphere.callbacks._epoch_curves import known_rows
from lit_sphere.callbacks._pictures import save_picture
from lit_sphere.callbacks._twins import refuse_twin
from lit_sphere.report.regime_curves import RegimeSegment, draw_regimes


class RegimeMonitor(CurveCallback):
    """Monitor: names TR's regime of a run at a fixed effective learning rate, with the evidence.

    At the end of every epoch, once there are 20, :func:`~lit_sphere.analysis.name_regime` looks at the curves since
    the start (or since :meth:`restart`): train loss, train error, and the effective step sizes (ESS) of the
    scale-invariant groups. A change is told in one line; at the end ``regime.png`` shows curves and regimes in
    the run's folder. For a run with a learning rate schedule see
    :class:`~lit_sphere.callbacks.CosineRegimeAnalysis`.

    | key | quantity |
    |---|---|
    | ``regime`` | 1 convergence, 2 chaotic equilibrium, 3 divergence, 0 undecided |

    Train loss and error are the means over the steps of what the training step returns, ``{"loss": …, "error": …}``,
    else the logged ``train/loss`` and ``train/error`` (or ``train_loss``, ``train_error``, ``train_acc``, …). Without
    an error, or where the number of classes is not known, divergence is told by the angle between consecutive
    iterates, atan(ESS). All ranks come to the same verdict.

    Costs one pass over parameters and gradients at every n-th step and a few additions at each; nothing waits for the
    device within an epoch.

    Args:
        num_classes: Number of classes; that of the data module or of the module if not given.
        loss_key: Logged key of the train loss, if the training step returns none.
        error_key: Logged key of the train error (a fraction), if the training step returns none.
        converged_loss: Loss below which a run counts as converged; 1e-2 if not given, and for a module whose
            ``loss`` is ``"mse"`` :func:`~lit_sphere.analysis.regimes.converged_mse`.
        every_n_steps: ESS is measured at the first and then every n-th optimizer step of an epoch.

    Raises:
        ValueError: If an argument is out of range; at the start of ``fit``, if the module has no
            scale-invariant group, or there is another ``RegimeMonitor``.

    Attributes:
        verdict: The :class:`~lit_sphere.analysis.RegimeVerdict` of the present curve; None before the first epoch's
            end, and right after :meth:`restart`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lit_sphere.data import Digits
        >>> from lit_sphere.modules import SIConvNet
        >>> monitor = RegimeMonitor()
        >>> options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = Trainer(max_epochs=2, callbacks=[monitor], logger=False, enable_checkpointing=False, **options)
        >>> module = SIConvNet(width=4, in_channels=1, elr=1e-2)
        >>> trainer.fit(module, Digits(train_size=64, batch_size=32))
        >>> print(monitor.verdict.regime, "-", monitor.verdict.evidence)
        undecided - only 2 epochs; at least 20 are needed
    """

    def __init__(
        self,
        num_classes: int | None = None,
        loss_key: str | None = None,
        error_key: str | None = None,
        converged_loss: float | None = None,
        every_n_steps: int = 4,
    ) -> None:
        super().__init__(num_classes, loss_key, error_key, converged_loss, every_n_steps)
        self.verdict: RegimeVerdict | None = None
        self._first_epoch = 0  # of the present curve
        self._segments: list[dict[str, Any]] = []  # those before it, with their verdicts
        self._told = "undecided"

    def restart(self, epoch: int) -> None:
        """Cut the curve: only epochs from this one on are looked at, since the effective learning rate changed.

        Args:
            epoch: Number of the first epoch after the change.
        """
        if self.verdict is not None:
            self._segments.append({"first_epoch": self._first_epoch, "last_epoch": epoch - 1, **asdict(self.verdict)})
        self._first_epoch, self.verdict, self._told = epoch, None, "undecided"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups before training."""
        refuse_twin(self, RegimeMonitor, trainer, "regime and regime.png")
        super().on_fit_start(trainer, pl_module)
        if self._anew:
            self.verdict, self._segments, self._first_epoch, self._told = None, [], 0, "undecided"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the regime, and log it."""
        self._curves.epoch_end(trainer)
        self._judge()
        number = float(REGIME_NUMBERS[self.verdict.regime] if self.verdict else 0)
        for logger in trainer.loggers:
            logger.log_metrics({"regime": number, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
        pl_module.log("regime", number, logger=False, sync_dist=True, batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once more, at the last epoch as a whole, and draw."""
        self._curves.settle(trainer)
        self._judge()
        rows = [row for row in self._curves.rows if row["loss"] is not None]
        if not rows:
            rank_zero_warn(
                "RegimeMonitor saw no train loss: return it from training_step, or log it and name its key (loss_key)"
            )
        elif len(rows) > 1:
            figure = draw_regimes(rows, self.segments, self._curves.group_names, self._converged)
            save_picture(trainer, self._folder, "regime", figure)

    @property
    def segments(self) -> list[RegimeSegment]:
        """The curve's parts between changes of the effective learning rate, the present one last."""
        rows = self._curves.rows
        past = [
            RegimeSegment(each["first_epoch"], each["last_epoch"], each["regime"], each["since"])
            for each in self._segments
        ]
        if self.verdict is None or not rows:
            return past
        return [*past, RegimeSegment(self._first_epoch, rows[-1]["epoch"], self.verdict.regime, self.verdict.since)]

    def _judge(self) -> None:
        rows = known_rows([row for row in self._curves.rows if row["epoch"] >= self._first_epoch])
        rows = rows[after_blow_ups([row["loss"] for row in rows]) :]
        if not rows:
            return
        errors = [row["error"] for row in rows] if self._classes and rows[0]["error"] is not None else None
        esses = [row["ess"] for row in rows] if all(row["ess"] is not None for row in rows) else None
        self.verdict = name_regime(
            [row["loss"] for row in rows],
            errors,
            self._classes,
            rows[0]["epoch"],
            converged_loss=self._converged,
            chance_loss=math.log(self._classes) if self._classes else None,
            esses=esses,
            steps=[row["step"] for row in rows],
        )
        if self.verdict.regime != self._told and len(rows) >= SHORTEST_RUN:
            self._told = self.verdict.regime
            rank_zero_info(f"regime: {self.verdict.regime}: {self.verdict.evidence}")

    def state_dict(self) -> dict[str, Any]:
        """Curves and verdicts, so that a resumed run continues them."""
        verdict = None if self.verdict is None else asdict(self.verdict)
        return {
            "curves": self._curves.state(),
            "first_epoch": self._first_epoch,
            "segments": [dict(segment) for segment in self._segments],
            "verdict": verdict,
            "told": self._told,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._curves.load_state(state_dict["curves"])
        self._first_epoch, self._told = state_dict["first_epoch"], state_dict["told"]
        self._segments = [dict(segment) for segment in state_dict["segments"]]
        verdict = state_dict["verdict"]
        self.verdict = None if verdict is None else RegimeVerdict(**verdict)


def regime_monitor_of(trainer: Trainer) -> RegimeMonitor | None:
    """Give the first ``RegimeMonitor`` among the trainer's callbacks, or None."""
    named = [each for each in trainer.callbacks if isinstance(each, RegimeMonitor)]  # type: ignore[attr-defined]
    return named[0] if named else None
