"""Loss barriers between points of a run, along the path in weight space that joins them."""

from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_sphere.analysis import (
    Interpolation,
    WeightPath,
    difference,
    interpolate,
    loss_and_error,
    path_positions,
    read_checkpoint,
    tensors_of,
)
from lit_sphere.analysis.interpolation import Statistics
from lit_sphere.observe.dynamics import DynamicsObserver
from lit_sphere.observe.module_groups import GroupNames, GroupOptions, Network
from lit_sphere.observe.passes import add_up_ranks, criterion_of, untouched
from lit_sphere.observe.periods import needed_period_watch
from lit_sphere.observe.publishing import PlannedRun, save_picture
from lit_sphere.observe.snapshots import Snapshot, StoppablePasses, snapshot
from lit_sphere.report import draw_interpolation, write_interpolation

Between = Literal["snapshots", "checkpoint", "switches", "periods"]


class LinearInterpolationBarrier(StoppablePasses, DynamicsObserver):
    """Monitor: measures loss and error on the path between two points of weight space, and their barrier.

    The path runs between consecutive snapshots of a run (TR §5), from a checkpoint of any run of the same
    network to the weights now, from the weights before a switch of the learning rate (marked by
    ``FineTuneSwitch``, or by :meth:`mark`) to the next one and to the end, or between the minima of consecutive periods
    of training with weight decay (PB §5). The scale-invariant weights, found
    from the module's behaviour, stay on their joint sphere: at every point they are rescaled to ρ, the norm of
    the end points (between two norms, where these differ). A barrier is the height of the curve above its chord:
    max over the path of (value − chord), at least 0; the dip is the depth below it.

    | key | quantity |
    |---|---|
    | ``barrier/train_loss``, ``barrier/train_error`` | barrier on the train set, in order |
    | ``barrier/val_loss``, ``barrier/val_error`` | the same on the validation set, where there is one |
    | ``barrier/train_loss_dip``, ``barrier/val_loss_dip`` | depth below the chord |
    | ``barrier/cosine`` | cosine similarity of the end points' scale-invariant weights |
    | ``barrier/great_circle/<key>`` | all of these, with ``great_circle`` |

    A batch of inputs and labels is evaluated by ``criterion(module(inputs), labels)``, cross-entropy where the module
    has no ``criterion``. Where that does not run (no ``forward``, batches that are dictionaries, labels that are no
    classes), it is by the loss of the training step, which is run so that it leaves no trace; errors are left out then,
    in files, too, and so is a validation set whose batches the training step does not take. What the step draws at
    random is the same at all points.

    ``barrier-….csv`` and ``.png`` of each path lie in the run's folder, and :attr:`results` holds the curves. Cost:
    ``points`` forward passes over both sets for each path (twice over the train set with ``reestimated``), one
    or two copies of the weights in memory on the CPU, and one in the run's checkpoints (with ``switches``, one
    for each since the last epoch). Under FSDP2 the whole module is gathered on each device for a path. Where nothing
    is scale-invariant it warns and stays out.

    Args:
        between: ``snapshots``: consecutive ones, ``every_n_epochs`` apart; ``checkpoint``: from ``start`` to the
            weights now; ``switches``: from each :meth:`mark` to the next and from the last to the weights now;
            ``periods``: from the weights at the end of the epoch of least train loss of each finished period to those
            of the next one, measured when its destabilisation has come. List
            :class:`~lit_sphere.callbacks.PeriodMonitor`, which finds them, before this callback.
            Default: ``checkpoint`` if ``start`` is given, ``snapshots`` otherwise.
        start: A Lightning checkpoint, for ``checkpoint``.
        every_n_epochs: Epochs between two snapshots (default 20), or between two paths to the weights now
            (default: only at the end of ``fit``); none with ``periods``.
        points: Number of points on the path, both ends among them.
        great_circle: Along the great circle of the sphere, not along the segment.
        statistics: ``batch``: batch norms take each batch's own statistics, on all sets. ``reestimated``: their
            statistics are estimated anew on the train set at each point, and both sets seen in eval mode.
        example_input: Input of the network, in place of the module's ``example_input_array`` and of a batch: a tensor,
            a tuple of inputs by position, or a dictionary of inputs by name.
        network: What is searched for scale-invariant groups: the attribute that is the network, or a function of the
            input. None: the module itself, or where that does not run, its training step.
        groups: Names of the scale-invariant parameters, in place of a search: for each group one name (with ``*``, each
            that fits is a group), or a list of those that are scale-invariant together.

    Attributes:
        results: What was measured, by the name of the picture.

    Raises:
        ValueError: If an argument is out of range; at the start of ``fit``, if ``start`` cannot be read or is of
            another architecture, if there is no ``PeriodMonitor`` where its periods count, or batches cannot be read in
            order or give no loss.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lit_sphere.data import Digits
        >>> from lit_sphere.modules import SIConvNet
        >>> barrier = LinearInterpolationBarrier(every_n_epochs=1, points=5)
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
        >>> trainer = Trainer(max_epochs=2, callbacks=[barrier], enable_model_summary=False, **quiet)
        >>> trainer.fit(SIConvNet(width=4, in_channels=1, elr=1e-3), Digits(train_size=256))
        >>> path = barrier.results["barrier-0001-to-0002"]
        >>> len(path.curves["train_loss"]), path.separation.cosine > 0.9
        (5, True)
    """

    def __init__(
        self,
        between: Between | None = None,
        start: str | Path | None = None,
        every_n_epochs: int | None = None,
        points: int = 21,
        great_circle: bool = False,
        statistics: Statistics = "batch",
        example_input: Any = None,
        network: Network = None,
        groups: GroupNames | None = None,
    ) -> None:
        self.group_options = GroupOptions(example_input, network, groups)
        super().__init__()
        between = between or ("snapshots" if start is None else "checkpoint")
        for name, value, known in (
            ("between", between, get_args(Between)),
            ("statistics", statistics, get_args(Statistics)),
        ):
            if value not in known:
                raise ValueError(f"LinearInterpolationBarrier: {name} must be one of {known}, got {value!r}")
        if (between == "checkpoint") != (start is not None):
            raise ValueError(
                f"LinearInterpolationBarrier: between {between!r} and start {start!r}: give start, the path of a "
                "checkpoint, with 'checkpoint' and only there"
            )
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"LinearInterpolationBarrier: every_n_epochs must be at least 1, got {every_n_epochs}")
        if between == "periods" and every_n_epochs is not None:
            raise ValueError(
                "LinearInterpolationBarrier: between 'periods' paths are as long as periods; leave every_n_epochs out"
            )
        if between == "snapshots" and every_n_epochs is None:
            every_n_epochs = 20
        try:
            self.positions = path_positions(points)
        except ValueError as error:
            raise ValueError(f"LinearInterpolationBarrier: {error}") from error
        self.between, self.start, self.every_n_epochs = between, start, every_n_epochs
        self.points, self.great_circle, self.statistics = points, great_circle, statistics
        self.results: dict[str, Interpolation] = {}
        self._marks = 0
        self._ends: list[tuple[str, Snapshot]] = []  # named starts of paths that are to be measured
        self._measured: tuple[str, int] = ("", -1)

    @property
    def state_key(self) -> str:
        """Differs between two callbacks of one trainer."""
        start = None if self.start is None else str(self.start)
        return self._generate_state_key(
            between=self.between,
            start=start,
            every=self.every_n_epochs,
            points=self.points,
            great_circle=self.great_circle,
            statistics=self.statistics,
        )

    def check_run(self, run: PlannedRun) -> None:
        """Refuse a run in which nobody looks for the periods that are asked for.

        Args:
            run: The run.

        Raises:
            ValueError: If there is no ``PeriodMonitor``.
        """  # noqa: DOC502
        if self.between == "periods":
            needed_period_watch(self, run.trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the checkpoint to start from, and find what is scale-invariant."""
        twins = [each for each in trainer.callbacks if isinstance(each, LinearInterpolationBarrier)]  # type: ignore[attr-defined]
        if any(each is not self and each._files == self._files for each in twins):
            raise ValueError(
                "LinearInterpolationBarrier: two of them measure the same paths, and would write the same files; "
                "leave one out"
            )
        mixed = [each for each in twins if each._section == self._section]
        if trainer.loggers and len(mixed) > 1 and mixed[0] is self:
            rank_zero_warn(
                f"LinearInterpolationBarrier: {len(mixed)} of them log {self._section}…, which mixes their curves; "
                "look at their files, which are apart, or give each a run of its own"
            )
        if self.start is not None:
            self._ends = [(Path(self.start).stem, self._read(self.start, pl_module))]
        if self.between == "periods":
            needed_period_watch(self, trainer).keep()
        super().on_fit_start(trainer, pl_module)
        epochs = trainer.max_epochs
        if self._stays_out:
            return
        if self.between == "snapshots" and epochs and 0 < epochs < 2 * (self.every_n_epochs or 1):
            rank_zero_warn(
                f"LinearInterpolationBarrier measures nothing: there are no two snapshots {self.every_n_epochs} epochs "
                f"apart in {epochs} epochs; lower every_n_epochs"
            )

    def _read(self, path: str | Path, pl_module: LightningModule) -> Snapshot:
        try:
            checkpoint = read_checkpoint(path)
        except ValueError as error:
            raise ValueError(f"LinearInterpolationBarrier: start {error}") from error
        weights = tensors_of(checkpoint["state_dict"])
        differs = difference(weights, pl_module.state_dict())
        if differs is not None:
            name, there, here = differs
            raise ValueError(
                f"LinearInterpolationBarrier: start {path} is of another architecture: {name} is {there} there and "
                f"{here} in {type(pl_module).__name__}; give a checkpoint of the same network"
            )
        bad = next((name for name, each in weights.items() if not each.isfinite().all()), None)
        if bad is not None:
            raise ValueError(
                f"LinearInterpolationBarrier: start {path}: {bad} is NaN or infinite there; give an earlier checkpoint"
            )
        return {"epochs": int(checkpoint.get("epoch", 0)), "step": int(checkpoint["global_step"]), "weights": weights}

    def _evaluate(self, pl_module: LightningModule, batch: Any) -> None:
        pl_module.eval()
        loss_and_error(pl_module, [batch], criterion_of(pl_module))

    @property
    def _can_be_made_up(self) -> bool:
        return self.between != "switches"  # FineTuneSwitch may mark the next one at the same epoch's end

    @property
    def _files(self) -> tuple[Any, ...]:
        """What tells the names of the written files apart."""
        start = None if self.start is None else Path(self.start).stem
        return self.between, start, self.every_n_epochs, self.great_circle, self.statistics

    @property
    def _section(self) -> str:
        return "barrier/great_circle/" if self.great_circle else "barrier/"

    def mark(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take a snapshot now, before a switch; the path from here is measured later.

        All ranks must call it. A second mark at the same step is the same one.

        Args:
            trainer: The trainer, in ``fit``.
            pl_module: Its module.

        Raises:
            ValueError: If this callback is not made with ``between="switches"``.
        """
        if self.between != "switches":
            raise ValueError(f"LinearInterpolationBarrier marks switches with between='switches', not {self.between!r}")
        if self._stays_out:
            return
        if self._ends and self._ends[-1][1]["step"] == trainer.global_step:
            return
        self._marks += 1
        self._ends.append((f"switch-{self._marks}", snapshot(trainer, pl_module, trainer.current_epoch)))

    def before_dynamics_change(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take a snapshot, where paths run between switches."""
        if self.between == "switches":
            self.mark(trainer, pl_module)

    def _after_epoch(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        if self.between == "periods":
            new = needed_period_watch(self, trainer).minima[self._marks :]
            self._ends += [(f"period-{self._marks + 1 + i}", each) for i, each in enumerate(new)]
            self._marks += len(new)
        while len(self._ends) > 1:
            self._measure(trainer, pl_module, self._ends[0], self._ends[1], epochs)
            del self._ends[0]
        if self.every_n_epochs is not None and epochs % self.every_n_epochs == 0:
            self._to_now(trainer, pl_module, epochs)

    def _to_now(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        now = (f"{epochs:04d}", snapshot(trainer, pl_module, epochs))
        if self._ends:
            self._measure(trainer, pl_module, self._ends[-1], now, epochs)
        if self.between == "snapshots":
            self._ends = [now]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the path to the end, unless that is done."""
        if self._stays_out:
            return
        if self.between == "switches" and not self._ends:
            rank_zero_warn(
                "LinearInterpolationBarrier measured nothing: no switch was marked; add FineTuneSwitch, or call mark"
            )
        if self.between == "periods" and self._marks < 2:
            rank_zero_info(
                f"LinearInterpolationBarrier measured nothing: it needs the minima of two finished periods, and there "
                f"{'is one' if self._marks else 'are none'}; train longer, or with a higher LR or weight decay"
            )
        epochs = trainer.current_epoch
        done = self._ends and self._measured == (self._ends[-1][0], trainer.global_step)
        if self.between in ("checkpoint", "switches") and self._ends and not done:
            self._to_now(trainer, pl_module, epochs)

    def _measure(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        start: tuple[str, Snapshot],
        end: tuple[str, Snapshot],
        epochs: int,
    ) -> None:
        path = WeightPath(start[1]["weights"], end[1]["weights"], [self._names], self.great_circle)
        ends = start[0], end[0]
        with untouched(pl_module):
            result = interpolate(
                pl_module,
                path,
                self._batches(trainer, pl_module),
                self.positions,
                self.statistics,
                criterion=criterion_of(pl_module),
                loss=self._loss,
                context=trainer.precision_plugin.forward_context,
                add_up=add_up_ranks(trainer),
                progress=f"barrier {ends[0]} to {ends[1]}" if trainer.is_global_zero else None,
            )
        self._measured = start[0], end[1]["step"]
        self._report(trainer, result, ends, epochs)

    def _report(self, trainer: Trainer, result: Interpolation, ends: tuple[str, str], epochs: int) -> None:
        section = self._section
        metrics = {f"{section}{name}": result.barrier(name) for name in result.curves}
        metrics |= {f"{section}{name}_dip": result.dip(name) for name in result.curves if name.endswith("loss")}
        self._send(trainer, {**metrics, f"{section}cosine": result.separation.cosine}, epochs)
        name = f"barrier-{ends[0]}-to-{ends[1]}"
        name += "-great-circle" * self.great_circle + "-reestimated" * (self.statistics == "reestimated")
        self.results[name] = result
        if self._folder is not None and trainer.is_global_zero:
            write_interpolation(result, self._folder / f"{name}.csv")
            statistics = "batch statistics" if self.statistics == "batch" else "statistics re-estimated"
            title = f"interpolation from {_format_end(ends[0])} to {_format_end(ends[1])}, {statistics}"
            at = (_format_end(ends[0]), _format_end(ends[1]))
            save_picture(trainer, self._folder, name, lambda: draw_interpolation(result, title, at))

    def state_dict(self) -> dict[str, Any]:
        """Snapshots that paths will start from; those of a checkpoint are read again."""
        ends = [] if self.between == "checkpoint" else [[name, dict(each)] for name, each in self._ends]
        return {"epochs": self._epochs, "marks": self._marks, "ends": ends, "measured": list(self._measured)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._epochs, self._marks = state_dict["epochs"], state_dict["marks"]
        self._ends = [(name, each) for name, each in state_dict["ends"]]
        self._measured = (state_dict["measured"][0], state_dict["measured"][1])


def _format_end(end: str) -> str:
    """Format the name of an end point."""
    if end.isdigit():
        return f"epoch {int(end)}"
    if end.startswith("period-"):
        return end.replace("-", " ")
    return f"before {end.replace('-', ' ')}" if end.startswith("switch-") else end
