"""Logs the sharpness of the loss on the sphere of scale-invariant parameters, and its curvature."""

import math
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from lit_sphere.analysis.curvature import measure_curvature
from lit_sphere.analysis.edge_of_stability import Rate, descent_rate, edge_of_stability
from lit_sphere.analysis.sharpness import Weighting, train_pass
from lit_sphere.effective import NOT_STEPPED, QUANTITIES
from lit_sphere.observe.module_groups import FindsGroups, GroupNames, GroupOptions, Network
from lit_sphere.observe.optimizer_steps import StepWatch, clips_gradients
from lit_sphere.observe.passes import TrainSetObjective, criterion_by_label, train_batches, untouched
from lit_sphere.observe.publishing import check_single, log_numbers, run_folder_of, save_picture
from lit_sphere.observe.stopping import PassStopped, can_stop
from lit_sphere.observe.train_loss import TrainLoss
from lit_sphere.report.sharpness import draw_sharpness

_MOST_VECTORS = 10_000  # a trace to one per cent of its standard deviation


class SharpnessMonitor(FindsGroups):
    """Monitor: logs how sharp the loss is along the scale-invariant parameters of any module.

    Sharpness is the mean norm of stochastic gradients, made effective by the norm ρ of the parameters (TR §4), so that
    it is the same at any length of the weights. *Online*, it is taken from the training steps at next to no cost:
    gradients of single batches (where batches are accumulated: their mean), unscaled and not yet clipped by Lightning,
    at weights that move. It is the ``effective_grad_norm/total`` of
    :class:`~lit_sphere.callbacks.EffectiveLearningRateMonitor`, measured once for both; of several optimizers the one
    that trains most of the groups is watched. By an extra *pass*, which costs as much as an epoch, it is measured at
    fixed weights, with the normalisation of train mode and the data in order, as in TR; values depend on how the data
    fall into batches (on digits, shuffled ones had a top eigenvalue 13 to 22 % higher). *Curvature* is of second order,
    at fixed weights and in train mode too, on the tangent space of the sphere of radius ρ, and effective, that is × ρ²;
    it takes the time of some 200 training steps for each mini-batch. Passes are made in the weights' own precision,
    without autocast.

    | key | quantity, over all scale-invariant parameters of one optimizer together |
    |---|---|
    | ``sharpness/online`` | mean of ρ‖∇‖ over the steps of an epoch |
    | ``sharpness/train_pass`` | mean of ρ‖∇‖ over mini-batches at fixed weights, see ``weighting`` |
    | ``train_pass/loss``, ``train_pass/error`` | of the same pass; means over samples |
    | ``sharpness/fisher_trace`` | ρ² tr F, mean over samples of ρ² Σ_c p_c ‖∇ log p_c‖², p = softmax(logits) |
    | ``sharpness/hessian_trace`` | ρ² tr PHP, P the projection on the tangent space (Hutchinson) |
    | ``sharpness/fisher_trace_error``, ``sharpness/hessian_trace_error`` | standard errors of these estimates |
    | ``sharpness/top_eigenvalue`` | largest eigenvalue of ρ² PHP (Lanczos) |
    | ``sharpness/edge_of_stability`` | 2/η̃, beside it: gradient descent leaves minima of larger eigenvalues |

    The edge of stability (Cohen et al., 2021) is that of the last step's learning rate. It is logged where a step is
    one of plain gradient descent, with one learning rate for all scale-invariant parameters: by ``SphereSGD`` on one
    joint sphere over just these, or ``torch.optim.SGD`` without momentum, η̃ = η/(ρ²(1 − ηλ)); and nothing is clipped.
    Where steps are made on mini-batches, their noise lets the eigenvalue settle lower: it is an upper bound then.

    With ``label_noise`` of our data modules the pass over the train set also logs ``train_pass/loss_clean``,
    ``…/error_clean``, ``…/loss_corrupted`` and ``…/error_corrupted``, of the samples whose labels it left alone, or
    made wrong. Other callbacks find these in ``trainer.callback_metrics``. ``sharpness.png`` is drawn into the folder
    of the first logger, and sent to W&B, when training ends. Under DDP a mini-batch is the global one, batch statistics
    each rank's. Under FSDP2 a pass gathers the whole module on each device.

    The passes evaluate batches of (inputs, labels) by the module itself and its ``criterion(logits, labels)``,
    cross-entropy where it has none. Where that does not run (no ``forward``, batches that are dictionaries, labels that
    are no classes), they take the loss of the training step, which is run so that it leaves no trace; there is no error
    then, and no Fisher trace. Where nothing is scale-invariant, or no optimizer trains a group as a whole, the monitor
    warns and stays out.

    Args:
        train_pass_every: Make the extra pass every n epochs; null for never.
        weighting: How the extra pass counts mini-batches: ``sample``: by their size, so that a short last batch counts
            for less; ``batch``: all alike.
        curvature_every: Measure curvature every n epochs; null for never.
        curvature_at_end: Measure curvature when training ends.
        curvature_batches: Use only the first n batches of the train set for it; null for all.
        curvature_vectors: Random vectors for each trace, at least 2, at most 10 000.
        seed: Seed of the random vectors, the same at each measurement.
        example_input: Input of the network, in place of the module's ``example_input_array`` and of a batch: a tensor,
            a tuple of inputs by position, or a dictionary of inputs by name.
        network: What is searched for scale-invariant groups: the attribute that is the network, or a function of the
            input. None: the module itself, or where that does not run, its training step.
        groups: Names of the scale-invariant parameters, in place of a search: for each group one name (with ``*``, each
            that fits is a group), or a list of those that are scale-invariant together.

    Raises:
        ValueError: If an argument is out of range; at the start of ``fit``, if the train set cannot be passed over, its
            batches have no loss, or there is another ``SharpnessMonitor``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lit_sphere.data import Digits
        >>> from lit_sphere.modules import SIConvNet
        >>> monitor = SharpnessMonitor(train_pass_every=1, curvature_at_end=True, curvature_vectors=2)
        >>> quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
        >>> trainer = Trainer(max_epochs=1, callbacks=[monitor], enable_checkpointing=False, **quiet)
        >>> trainer.fit(SIConvNet(width=4, in_channels=1, elr=1e-3), Digits(train_size=256))
        >>> sorted(key[10:] for key in trainer.callback_metrics if key.startswith("sharpness/"))
        ['edge_of_stability', 'fisher_trace', 'fisher_trace_error', 'hessian_trace', 'hessian_trace_error', 'online',
         'top_eigenvalue', 'train_pass']
    """

    def __init__(
        self,
        train_pass_every: int | None = None,
        weighting: Weighting = "sample",
        curvature_every: int | None = None,
        curvature_at_end: bool = False,
        curvature_batches: int | None = None,
        curvature_vectors: int = 16,
        seed: int = 0,
        example_input: Any = None,
        network: Network = None,
        groups: GroupNames | None = None,
    ) -> None:
        self.group_options = GroupOptions(example_input, network, groups)
        if weighting not in ("sample", "batch"):
            raise ValueError(f"SharpnessMonitor: weighting must be 'sample' or 'batch', got {weighting!r}")
        counts = {
            "train_pass_every": (train_pass_every, 1),
            "curvature_every": (curvature_every, 1),
            "curvature_batches": (curvature_batches, 1),
            "curvature_vectors": (curvature_vectors, 2),
            "seed": (seed, 0),
        }
        for name, (count, least) in counts.items():
            if count is not None and count < least:
                raise ValueError(f"SharpnessMonitor: {name} must be at least {least}, got {count}")
        if curvature_vectors > _MOST_VECTORS:
            raise ValueError(
                f"SharpnessMonitor: curvature_vectors must be at most {_MOST_VECTORS}, each takes passes over the "
                f"train set, got {curvature_vectors}"
            )
        self.train_pass_every, self.weighting = train_pass_every, weighting
        self.curvature_every, self.curvature_at_end = curvature_every, curvature_at_end
        self.curvature_batches, self.curvature_vectors, self.seed = curvature_batches, curvature_vectors, seed
        self._objective = TrainSetObjective(self, seed)
        self._watch = StepWatch(self, self._on_measured, announces=False)
        self._loss = TrainLoss()
        self._epoch = -1  # of the means: Lightning does not always end an epoch whose last batch was saved
        self._rows: list[dict[str, float]] = []
        self._rate: Rate | None = None  # of the last step

    @property
    def state_key(self) -> str:
        """Names the options; a second monitor is refused, however it is set up."""
        return self._generate_state_key(
            train_pass=(self.train_pass_every, self.weighting),
            curvature=(self.curvature_every, self.curvature_at_end, self.curvature_batches, self.curvature_vectors),
            seed=self.seed,
        )

    @property
    def _measures_curvature(self) -> bool:
        return self.curvature_at_end or self.curvature_every is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a new series; a checkpoint is loaded later."""
        if stage == "fit":
            check_single(self, SharpnessMonitor, trainer, "sharpness/… and sharpness.png")
            self._rows, self._epoch, self._rate = [], -1, None
            self._watch.forget()
            self._loss.reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the scale-invariant parameters, if the module says what its input looks like."""
        self._folder = run_folder_of(trainer)
        self._clips = clips_gradients(trainer, pl_module)
        self._watch.fit_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try a batch of the train set, if it is to be passed over."""
        if self._watch.stays_out or (self.train_pass_every is None and not self._measures_curvature):
            return
        with untouched(pl_module):
            batch = next(iter(train_batches(self, trainer, pl_module)))
        self._watch.batch_start(trainer, pl_module, batch)
        if self._watch.stays_out:
            return
        self._objective.choose(trainer, pl_module, list(self._watch.parameters), batch, self._measures_curvature)
        if self._objective.loss is not None and self._measures_curvature:
            rank_zero_info("SharpnessMonitor: without logits there is no Fisher information, whose trace is left out")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Find the parameters from the first batch otherwise; and again for another optimizer."""
        self._watch.batch_start(trainer, pl_module, batch)
        if self._has_steps and self._epoch != trainer.current_epoch:
            self._end_epoch(trainer, pl_module)  # the resumed run's last epoch, all of whose batches were done

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Observe; nothing is brought to the host."""
        self._watch.before_step(trainer, optimizer)

    def _on_measured(self, trainer: Trainer) -> None:
        assert self._watch.means is not None
        self._epoch = trainer.current_epoch
        self._watch.means.add()
        if self._measures_curvature:  # now, since a scheduler moves on before the epoch's end
            self._rate = descent_rate(self._watch.optimizer, self._watch.parameters.keys(), self._clips)

    @property
    def _has_steps(self) -> bool:
        return self._watch.means is not None and self._watch.means.steps > 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss for the picture, where the training step gives one."""
        if self._watch.stays_out:
            return
        self._loss.add(trainer, outputs, batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's mean, and make the passes that are due; a signal leaves them to the resumed run."""
        means = self._watch.means
        if means is None or not self._has_steps:
            self._loss.reset()
            return
        norms = means.state()
        self._objective.may_stop = can_stop(trainer)
        try:
            self._end_epoch(trainer, pl_module)
        except PassStopped:
            means.load_state(norms)
        finally:
            self._objective.may_stop = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure curvature if requested, and draw the picture."""
        if not self._rows:
            return
        last = self._rows[-1]
        if self.curvature_at_end and "sharpness/top_eigenvalue" not in last:
            row = self._curvature(trainer, pl_module)
            last.update(row)
            self._log(trainer, row)
        if self._folder is not None and trainer.is_global_zero:
            title = f"{type(pl_module).__name__}, {len(self._watch.parameters)} scale-invariant tensors"
            save_picture(trainer, self._folder, "sharpness", lambda: draw_sharpness(self._rows, title))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizer as it was."""
        self._watch.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizer as it was."""
        self._watch.detach()

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        means = None if self._watch.means is None else self._watch.means.mean()
        assert means is not None
        online = means[QUANTITIES.index("effective_grad_norm"), 0].item()
        row = {} if online == NOT_STEPPED else {"sharpness/online": online}
        if self.train_pass_every is not None and (self._epoch + 1) % self.train_pass_every == 0:
            what = (trainer, pl_module, list(self._watch.parameters), "pass over the train set")
            with self._objective.at_fixed_weights(*what) as objective:
                split = None if objective.loss else criterion_by_label(trainer, objective.criterion)
                measured = train_pass(replace(objective, criterion=split or objective.criterion), self.weighting)
                by_label = {} if split is None else split.means(objective.add_up)
            row |= {f"train_pass/{name}": value for name, value in by_label.items()}
            row |= _known({f"train_pass/{name}": getattr(measured, name) for name in ("loss", "error")})
            row["sharpness/train_pass"] = measured.sharpness
        if self.curvature_every is not None and (self._epoch + 1) % self.curvature_every == 0:
            row |= self._curvature(trainer, pl_module)
        losses = self._loss.means(trainer)
        self._loss.reset()
        self._rows.append({"epoch": self._epoch, **row})
        if "loss" in losses:
            self._rows[-1]["loss"] = losses["loss"]
        self._log(trainer, row)

    def _curvature(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        share = {"rank": trainer.global_rank, "world_size": trainer.world_size}
        what = (trainer, pl_module, list(self._watch.parameters), "curvature")
        with self._objective.at_fixed_weights(*what, most=self.curvature_batches) as objective:
            measured = measure_curvature(objective, self.curvature_vectors, self.seed, **share)
        if math.isnan(measured.top_eigenvalue):
            rank_zero_warn(
                "SharpnessMonitor: Lanczos' method gave no top eigenvalue of the Hessian; it is logged as NaN"
            )
        row = _known({f"sharpness/{name}": value for name, value in measured._asdict().items()})
        if self._rate is not None:
            row["sharpness/edge_of_stability"] = edge_of_stability(self._rate, list(self._watch.parameters))
        return row

    def _log(self, trainer: Trainer, row: dict[str, float]) -> None:
        log_numbers(trainer, {"epoch": self._epoch, **row}, trainer.global_step - 1)
        # All ranks have the same numbers: there is nothing to reduce, and self.log costs more than the steps' norms.
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in row.items()})

    def state_dict(self) -> dict[str, Any]:
        """The series so far, and the state of an unfinished epoch."""
        means = {"watch": self._watch.state(), "losses": self._loss.state()}
        return {"rows": [dict(row) for row in self._rows], "epoch": self._epoch, "rate": self._rate, **means}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._rows = [dict(row) for row in state_dict["rows"]]
        self._epoch, self._rate = state_dict["epoch"], state_dict.get("rate")
        if "watch" in state_dict:  # older checkpoints hold a mean of another form, and lose that of their last epoch
            self._watch.load_state(state_dict["watch"])
        self._loss.load_state(state_dict["losses"])


def _known(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
