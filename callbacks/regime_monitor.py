"""Names the regime of a run while it trains, and at its end."""

from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_sphere.analysis.regimes import REGIME_NUMBERS, SETTLED_AFTER, Regime
from lit_sphere.observe.module_groups import GroupNames, Network
from lit_sphere.observe.publishing import check_single, log_numbers, save_picture
from lit_sphere.observe.regime import RegimeWatch
from lit_sphere.report.regime_curves import draw_regimes


class RegimeMonitor(RegimeWatch):
    """Monitor: names TR's regime of a run at a fixed effective learning rate, with the evidence.

    At the end of every epoch, once there are 20, :func:`~lit_sphere.analysis.name_regime` looks at the curves since
    the start (or since a change of the dynamics, such as a switch): train loss, train error, and the effective step
    sizes (ESS) of the scale-invariant groups. A regime is announced in one line once it stands
    (:func:`~lit_sphere.analysis.regimes.announced_regime`), which ``FineTuneSwitch`` may wait for; at the end
    ``regime.png`` shows curves and regimes in the run's folder. For a run with a learning rate schedule see
    :class:`~lit_sphere.callbacks.CosineRegimeAnalysis`.

    | key | quantity |
    |---|---|
    | ``regime`` | 1 convergence, 2 chaotic equilibrium, 3 divergence, 0 undecided |

    Train loss and error are the means over the samples of what the training step returns, ``{"loss": …, "error": …}``,
    else the logged ``train/loss`` and ``train/error`` (or ``train_loss``, ``train_error``, ``train_acc``, …). Without
    an error, or where the number of classes is not known, chance is told by the loss of guessing, or by the angle
    between consecutive iterates, atan(ESS), alone. All ranks come to the same verdict.

    With ``stop_when`` the monitor also ends a run whose regime is settled: once one of these was named in ``patience``
    epochs in a row, the epoch is the last, with the usual checkpoint, table and pictures. A run that was stopped so
    does not go on when it is resumed, unless with more patience or without ``stop_when``. Of 90 runs on digits (100
    epochs, seeds 0 to 2: the papers' grid of ELRs, and eight about the borders) 57 would have been stopped after 15
    epochs of one verdict, and all of them had that verdict at their end; after 8 epochs, one of 60 had not.

    Costs one pass over parameters and gradients at every n-th step and a few additions at each; nothing waits for the
    device within an epoch. Where nothing is scale-invariant, or no optimizer trains a group as a whole, the monitor
    warns and stays out.

    Args:
        num_classes: Number of classes; that of the data module or of the module if not given.
        loss_key: Logged key of the train loss, if the training step returns none.
        error_key: Logged key of the train error (a fraction), if the training step returns none.
        converged_loss: Loss below which a run counts as converged; 1e-2 if not given, and for a module whose
            ``loss`` is ``"mse"`` :func:`~lit_sphere.analysis.regimes.converged_mse`.
        every_n_steps: ESS is measured at the first and then every n-th optimizer step of an epoch.
        example_input: Input of the network, in place of the module's ``example_input_array`` and of a batch: a tensor,
            a tuple of inputs by position, or a dictionary of inputs by name.
        network: What is searched for scale-invariant groups: the attribute that is the network, or a function of the
            input. None: the module itself, or where that does not run, its training step.
        groups: Names of the scale-invariant parameters, in place of a search: for each group one name (with ``*``, each
            that fits is a group), or a list of those that are scale-invariant together.
        stop_when: Regimes that end the run once they are settled; None to train to the end.
        patience: Epochs in a row in which such a regime must be named, as :func:`~lit_sphere.analysis.name_regime`
            sees the curves then; nothing is named before 20 epochs.

    Raises:
        ValueError: If an argument is out of range, or ``stop_when`` names no regime; at the start of ``fit``, if there
            is another ``RegimeMonitor``, or ``converged_loss`` is the threshold of another loss than the module's, or
            not below the loss of guessing.

    Attributes:
        verdict: The :class:`~lit_sphere.analysis.RegimeVerdict` of the present curve; None before the first epoch's
            end, and right after :meth:`restart`.
        announced: The regime that was announced last, ``undecided`` for none.
        settled: The regime that ended the run, and in how many epochs in a row it was named; None if none did.

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
        undecided - only 2 epochs, at least 20 are needed
    """

    announces: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int | None = None,
        loss_key: str | None = None,
        error_key: str | None = None,
        converged_loss: float | None = None,
        every_n_steps: int = 4,
        example_input: Any = None,
        network: Network = None,
        groups: GroupNames | None = None,
        stop_when: Sequence[Regime] | None = None,
        patience: int = SETTLED_AFTER,
    ) -> None:
        super().__init__(
            num_classes, loss_key, error_key, converged_loss, every_n_steps, example_input, network, groups
        )
        named = [stop_when] if isinstance(stop_when, str) else list(stop_when or ())
        known = [regime for regime, number in REGIME_NUMBERS.items() if number]
        for each in named:
            if each not in known:
                raise ValueError(f"RegimeMonitor: stop_when: {each!r} is no regime; there are {', '.join(known)}")
        if patience < 1:
            raise ValueError(f"RegimeMonitor: patience must be at least 1, got {patience}")
        self.stop_when, self.patience = named, patience

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups before training."""
        check_single(self, RegimeMonitor, trainer, "regime and regime.png")
        super().on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make no step more of a run that was stopped."""
        if self.settled is not None:
            regime, streak = self.settled
            if regime in self.stop_when and streak >= self.patience:
                trainer.should_stop = True
            else:  # asked for more
                self.settled = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the regime, log it, and end the run if it is settled."""
        if self.stays_out:
            return
        super().on_train_epoch_end(trainer, pl_module)
        number = float(REGIME_NUMBERS[self.verdict.regime] if self.verdict else 0)
        log_numbers(trainer, {"regime": number, "epoch": trainer.current_epoch}, trainer.global_step - 1)
        pl_module.log("regime", number, logger=False, sync_dist=True, batch_size=1)
        if self.verdict and self.verdict.regime in self.stop_when and self.streak >= self.patience:
            self.settled = (self.verdict.regime, self.streak)
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once more, at the last epoch as a whole, and draw."""
        if self.stays_out:
            return
        super().on_train_end(trainer, pl_module)
        if self.verdict is not None and self.verdict.regime not in (self.announced, "undecided"):
            rank_zero_info(f"regime at the end: {self.verdict.regime}: {self.verdict.evidence}")
        rows = [row for row in self._curves.rows if row["loss"] is not None]
        if not rows:
            rank_zero_warn(
                "RegimeMonitor saw no train loss: return it from training_step, or log it and name its key (loss_key)"
            )
        elif len(rows) > 1:
            given = (rows, self.segments, self._curves.group_names, self._converged)
            save_picture(trainer, self._folder, "regime", lambda: draw_regimes(*given))

    def _judge(self) -> None:
        before = self.announced
        super()._judge()
        if self.verdict is not None and self.announced != before:
            rank_zero_info(f"regime: {self.announced}: {self.verdict.evidence}")
