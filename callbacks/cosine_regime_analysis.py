"""In which regimes a run with a learning rate schedule was."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lit_sphere.analysis.epoch_rows import Row, known_rows
from lit_sphere.analysis.schedule_regimes import ScheduleAnalysis, analyse_schedule
from lit_sphere.observe.epoch_curves import CurveCallback
from lit_sphere.observe.module_groups import GroupNames, GroupOptions, Network
from lit_sphere.observe.publishing import check_single, log_numbers, save_picture
from lit_sphere.observe.stopping import NonFinite
from lit_sphere.report.schedule_regimes import draw_schedule_regimes, schedule_report, write_schedule_regimes


class CosineRegimeAnalysis(CurveCallback):
    """Monitor: says in which of TR's regimes a run with a cosine, or any, learning rate schedule was.

    At the end it prints when the peak of the sharpness was passed, how much of training was spent in each regime, and
    a verdict in the paper's terms: started too low (a regime-1 path from the start), in the useful window (it
    began at the equilibrium and had time to converge), or no time left to converge; the rule is
    :func:`~lit_sphere.analysis.analyse_schedule`. ``cosine_regimes.json`` and ``cosine_regimes.png`` go into the run's
    folder. A run that ends by NaN, also one that :class:`~lit_sphere.callbacks.StopOnNonFinite` stops, is analysed
    and reported as diverged.

    | key | quantity, mean over an epoch |
    |---|---|
    | ``schedule/lr`` | learning rate of the scale-invariant parameters (of the first group, read at each step) |
    | ``schedule/elr`` | effective learning rate of all scale-invariant parameters together |
    | ``schedule/sharpness`` | their effective gradient norm |

    The learning rate of a sphere is its ELR. Train loss and error are found as by
    :class:`~lit_sphere.callbacks.RegimeMonitor`. Without an error, regime 3 is told by a loss at log(classes).

    Costs one pass over parameters and gradients at every n-th step and a few additions at each; nothing waits for the
    device within an epoch. Where nothing is scale-invariant, or no optimizer trains a group as a whole, it warns and
    stays out.

    ``cosine_regimes.json`` holds ``verdict``, ``evidence``, ``shares`` (part of training in each regime), ``peak`` and
    ``passed`` (``epoch``, ``step``, ``lr``, ``loss``, ``sharpness`` where the sharpness was greatest outside regime
    3, and where its peak was passed), and ``epochs``: a list of ``epoch``, ``step``, ``lr``, ``elr``, ``sharpness``,
    ``loss``, ``error``, ``regime``. What is not known, or not finite, is null.

    Args:
        num_classes: Number of classes; that of the data module or of the module if not given.
        loss_key: Logged key of the train loss, if the training step returns none.
        error_key: Logged key of the train error (a fraction), if the training step returns none.
        converged_loss: Loss below which a run counts as converged; as of ``RegimeMonitor`` if not given.
        every_n_steps: Sharpness is measured at the first and then every n-th optimizer step of an epoch.
        example_input: Input of the network, in place of the module's ``example_input_array`` and of a batch: a tensor,
            a tuple of inputs by position, or a dictionary of inputs by name.
        network: What is searched for scale-invariant groups: the attribute that is the network, or a function of the
            input. None: the module itself, or where that does not run, its training step.
        groups: Names of the scale-invariant parameters, in place of a search: for each group one name (with ``*``, each
            that fits is a group), or a list of those that are scale-invariant together.

    Raises:
        ValueError: If an argument is out of range; at the start of ``fit``, if there is another
            ``CosineRegimeAnalysis``.

    Attributes:
        analysis: The :class:`~lit_sphere.analysis.ScheduleAnalysis`, after training.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lit_sphere.data import Digits
        >>> from lit_sphere.modules import SIConvNet
        >>> options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = Trainer(
        ...     max_epochs=2, callbacks=[CosineRegimeAnalysis()], logger=False, enable_checkpointing=False, **options
        ... )
        >>> module = SIConvNet(width=4, in_channels=1, elr=1e-2)
        >>> trainer.fit(module, Digits(train_size=64, batch_size=32))  # doctest: +ELLIPSIS
        <BLANKLINE>
        Learning rate schedule, by regime: undecided
          only 2 epochs, at least 10 are needed
    """

    def __init__(
        self,
        num_classes: int | None = None,
        loss_key: str | None = None,
        error_key: str | None = None,
        converged_loss: float | None = None,
        every_n_steps: int = 1,
        example_input: Any = None,
        network: Network = None,
        groups: GroupNames | None = None,
    ) -> None:
        self.group_options = GroupOptions(example_input, network, groups)
        super().__init__(num_classes, loss_key, error_key, converged_loss, every_n_steps)
        self.analysis: ScheduleAnalysis | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups before training."""
        check_single(self, CosineRegimeAnalysis, trainer, "schedule/… and cosine_regimes.json")
        self.analysis = None
        super().on_fit_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's means."""
        self._curves.epoch_end(trainer)
        row = self._curves.rows[-1] if self._curves.rows else {}
        values = {"lr": row.get("lr"), "elr": row.get("elr"), "sharpness": row.get("effective_grad_norm")}
        totals = {name: value[0] if isinstance(value, list) else value for name, value in values.items()}
        metrics = {f"schedule/{name}": value for name, value in totals.items() if value is not None}
        if metrics:
            log_numbers(trainer, {**metrics, "epoch": trainer.current_epoch}, trainer.global_step - 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Analyse, print, and draw."""
        if self._curves.stays_out:
            return
        self._curves.settle(trainer)
        self._report(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Report a run that ended by NaN; the report never hides why it ended."""
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, NonFinite) and self._curves.open:
            self._curves.blow_up()
            try:
                self._report(trainer, pl_module)
            except Exception as error:
                rank_zero_warn(f"CosineRegimeAnalysis could not report: {error}")

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = known_rows([row for row in self._curves.rows if row["lr"] is not None])
        rows = [row for row in rows if row["effective_grad_norm"] is not None]
        if not rows:
            rank_zero_warn(
                "CosineRegimeAnalysis saw no train loss: return it from training_step, or log it and name its key "
                "(loss_key)"
            )
            return
        with_error = self._classes is not None and rows[0]["error"] is not None
        self.analysis = analyse_schedule(
            [row["lr"] for row in rows],
            [row["loss"] for row in rows],
            [row["effective_grad_norm"][0] for row in rows],
            [row["error"] for row in rows] if with_error else None,
            self._classes,
            esses=[row["ess"][0] for row in rows],
            steps=[row["step"] for row in rows],
            first_epoch=rows[0]["epoch"],
            converged_loss=self._converged,
            chance_loss=math.log(self._classes) if self._classes else None,
        )
        self._publish(trainer, rows, self.analysis)

    @rank_zero_only
    def _publish(self, trainer: Trainer, rows: list[Row], analysis: ScheduleAnalysis) -> None:
        print("\n" + schedule_report(analysis))
        epochs = [
            {
                **{key: row[key] for key in ("epoch", "step", "lr", "loss", "error")},
                "elr": None if row["elr"] is None else row["elr"][0],
                "sharpness": row["effective_grad_norm"][0],
                "regime": regime,
            }
            for row, regime in zip(rows, analysis.regimes, strict=True)
        ]
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_schedule_regimes(epochs, analysis, self._folder / "cosine_regimes.json")
        if len(epochs) > 1:
            save_picture(trainer, self._folder, "cosine_regimes", lambda: draw_schedule_regimes(epochs, analysis))

    def state_dict(self) -> dict[str, Any]:
        """Curves, so that a resumed run continues them."""
        return self._curves.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._curves.load_state(state_dict)
