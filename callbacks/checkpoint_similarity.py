"""How alike the points of a run are: cosine similarity of snapshots, and what their ensembles gain."""

from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_sphere.analysis import cosine_matrix, ensemble_errors, take_weights
from lit_sphere.observe.module_groups import GroupNames, GroupOptions, Network
from lit_sphere.observe.passes import add_up_ranks, runs_everywhere, untouched
from lit_sphere.observe.periods import needed_period_watch
from lit_sphere.observe.publishing import PlannedRun, check_single, save_picture
from lit_sphere.observe.snapshots import Snapshot, StoppablePasses, snapshot
from lit_sphere.report import PairOfSnapshots, draw_similarity, write_similarity


class CheckpointSimilarity(StoppablePasses):
    """Monitor: compares snapshots of a run: cosine similarity, and the error of ensembles of two.

    Snapshots are taken every few epochs, or are the minima of the periods that
    :class:`~lit_sphere.callbacks.PeriodMonitor` finds. The cosine is that of the scale-invariant weights, found from
    the module's behaviour, as one vector. Each snapshot and the one before it form an ensemble, the mean of their
    softmax outputs on the validation set, in eval mode with the batch norm statistics that were stored with
    them; its error is compared with the members' own. In training with weight decay minima of different periods
    grow apart, and their ensembles gain (PB §5).

    | key | quantity |
    |---|---|
    | ``similarity/previous`` | cosine similarity with the snapshot before |
    | ``similarity/first`` | cosine similarity with the first snapshot |
    | ``ensemble/error`` | error of the ensemble with the snapshot before, a fraction |
    | ``ensemble/member_error`` | mean error of its two members |
    | ``ensemble/gain`` | member error − ensemble error |

    Ensembles need validation batches of inputs and labels, and a ``forward`` that gives logits; elsewhere there are
    only cosines, which is said once.

    ``similarity.csv`` and, at the end, ``similarity.png`` lie in the run's folder: a matrix of all pairs that were
    kept at the same time, and the errors of ensembles and members. Cost: two passes over the validation set for
    each snapshot; ``keep`` copies of the weights in memory on the CPU, and as many in the run's checkpoints. Under
    FSDP2 the whole module is gathered on each device for it. Where nothing is scale-invariant it warns and stays out.

    Args:
        every_n_epochs: Epochs between two snapshots.
        between: ``epochs``: snapshots every so many of them. ``periods``: the weights at the end of the epoch of least
            train loss of each finished period, compared when its destabilisation has come; ``every_n_epochs`` does not
            count then. List ``PeriodMonitor`` before this callback.
        keep: Snapshots kept, at least 2: the first and the latest others. All of them are in the matrix; one that is
            no longer kept is not compared with later ones.
        example_input: Input of the network, in place of the module's ``example_input_array`` and of a batch: a tensor,
            a tuple of inputs by position, or a dictionary of inputs by name.
        network: What is searched for scale-invariant groups: the attribute that is the network, or a function of the
            input. None: the module itself, or where that does not run, its training step.
        groups: Names of the scale-invariant parameters, in place of a search: for each group one name (with ``*``, each
            that fits is a group), or a list of those that are scale-invariant together.

    Attributes:
        pairs: What was measured, for each pair of snapshots.

    Raises:
        ValueError: If an argument is out of range; at the start of ``fit``, if there is another
            ``CheckpointSimilarity``, or no ``PeriodMonitor`` where its periods count.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lit_sphere.data import Digits
        >>> from lit_sphere.modules import SIConvNet
        >>> similarity = CheckpointSimilarity(every_n_epochs=1)
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
        >>> trainer = Trainer(max_epochs=3, callbacks=[similarity], enable_model_summary=False, **quiet)
        >>> trainer.fit(SIConvNet(width=4, in_channels=1, elr=1e-3), Digits(train_size=256))
        >>> [(pair.epochs, pair.cosine > 0.9) for pair in similarity.pairs]
        [((1, 2), True), ((1, 3), True), ((2, 3), True)]
    """

    _sets = ("val",)
    _has_logits = True

    def __init__(
        self,
        every_n_epochs: int = 10,
        keep: int = 20,
        example_input: Any = None,
        network: Network = None,
        groups: GroupNames | None = None,
        between: Literal["epochs", "periods"] = "epochs",
    ) -> None:
        self.group_options = GroupOptions(example_input, network, groups)
        super().__init__()
        for name, value, least in (("every_n_epochs", every_n_epochs, 1), ("keep", keep, 2)):
            if value < least:
                raise ValueError(f"CheckpointSimilarity: {name} must be at least {least}, got {value}")
        if between not in ("epochs", "periods"):
            raise ValueError(f"CheckpointSimilarity: between must be epochs or periods, got {between!r}")
        self.every_n_epochs, self.keep, self.between = every_n_epochs, keep, between
        self.pairs: list[PairOfSnapshots] = []
        self._kept: list[Snapshot] = []
        self._minima = 0  # that were compared

    @property
    def state_key(self) -> str:
        """Names the options; a second one is refused, however it is set up."""
        options: dict[str, Any] = {"every": self.every_n_epochs, "keep": self.keep}
        if self.between != "epochs":  # else as in checkpoints without this option
            options["between"] = self.between
        return self._generate_state_key(**options)

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
        """Find what is scale-invariant, and say if there will be nothing to compare."""
        check_single(self, CheckpointSimilarity, trainer, "similarity/…, ensemble/… and similarity.csv")
        super().on_fit_start(trainer, pl_module)
        epochs = trainer.max_epochs
        if self.between == "periods":
            needed_period_watch(self, trainer).keep()
        if self._stays_out or self.between == "periods":
            return
        if epochs and 0 < epochs < 2 * self.every_n_epochs:
            rank_zero_warn(
                f"CheckpointSimilarity measures nothing: there are no two snapshots {self.every_n_epochs} epochs apart "
                f"in {epochs} epochs; lower every_n_epochs"
            )

    def _choose(
        self, trainer: Trainer, pl_module: LightningModule, firsts: dict[str, Any], bad: str, fails: str | None
    ) -> None:
        self._has_logits = runs_everywhere(trainer, fails)
        if not self._has_logits:
            rank_zero_info(
                f"CheckpointSimilarity: {type(pl_module).__name__} gives no logits of a batch of the {bad} set "
                f"({fails or 'not in another process'}): there are cosines, and no ensembles"
            )

    def _evaluate(self, pl_module: LightningModule, batch: Any) -> None:
        ensemble_errors(pl_module, [take_weights(pl_module)], [batch])

    def _after_epoch(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        if self.between == "periods":
            for each in needed_period_watch(self, trainer).minima[self._minima :]:
                self._add(trainer, pl_module, each, epochs)
                self._minima += 1
        elif epochs % self.every_n_epochs == 0:
            self._add(trainer, pl_module, snapshot(trainer, pl_module, epochs), epochs)

    def _add(self, trainer: Trainer, pl_module: LightningModule, now: Snapshot, epochs: int) -> None:
        if self._kept:
            self._compare(trainer, pl_module, now, epochs)
        self._kept.append(now)
        if len(self._kept) > self.keep:
            del self._kept[1]

    def _compare(self, trainer: Trainer, pl_module: LightningModule, now: Snapshot, epochs: int) -> None:
        weights = now["weights"]
        cosines = [cosine_matrix([each["weights"], weights], self._names)[0, 1].item() for each in self._kept]
        pairs = [
            PairOfSnapshots((each["epochs"], now["epochs"]), cosine)
            for each, cosine in zip(self._kept, cosines, strict=True)
        ]
        metrics = {"similarity/previous": cosines[-1], "similarity/first": cosines[0]}
        validation = self._batches(trainer, pl_module).get("val")
        if validation is not None and self._has_logits:
            with untouched(pl_module), trainer.precision_plugin.forward_context():
                members = [self._kept[-1]["weights"], weights]
                errors = ensemble_errors(pl_module, members, validation(), add_up_ranks(trainer))
            pairs[-1] = pairs[-1]._replace(ensemble_error=errors.ensemble, member_errors=errors.members)
            metrics["ensemble/error"] = errors.ensemble
            metrics |= {"ensemble/member_error": errors.member_error, "ensemble/gain": errors.gain}
        self.pairs += pairs
        self._send(trainer, metrics, epochs)
        if self._folder is not None and trainer.is_global_zero:
            write_similarity(self.pairs, self._folder / "similarity.csv")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the picture."""
        if self.pairs and self._folder is not None and trainer.is_global_zero:
            title = "minima of periods" if self.between == "periods" else "snapshots of the run"
            save_picture(trainer, self._folder, "similarity", lambda: draw_similarity(self.pairs, title))

    def state_dict(self) -> dict[str, Any]:
        """Snapshots and what was measured, as plain values."""
        return {
            "epochs": self._epochs,
            "kept": [dict(each) for each in self._kept],
            "pairs": [list(pair) for pair in self.pairs],
            "minima": self._minima,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._epochs, self._kept = state_dict["epochs"], state_dict["kept"]
        self._minima = state_dict.get("minima", 0)
        self.pairs = [PairOfSnapshots(*pair) for pair in state_dict["pairs"]]
