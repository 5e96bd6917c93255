"""Trains the same network by other optimizers beside the run, and compares directions of weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.optim import Optimizer

from lit_sphere.analysis import Directions
from lit_sphere.groups import Group, GroupGranularity
from lit_sphere.observe.module_groups import FindsGroups, GroupNames, GroupOptions, Network, groups_of
from lit_sphere.observe.optimizer_steps import RealSteps
from lit_sphere.observe.passes import choose_loss, criterion_of, logits_failure, untouched
from lit_sphere.observe.publishing import check_single, run_folder_of
from lit_sphere.observe.quiet_step import StepLoss
from lit_sphere.observe.train_loss import TrainLoss
from lit_sphere.rivals.checks import check_arguments, check_run, comparable
from lit_sphere.rivals.network_copy import OptimizerCallable
from lit_sphere.rivals.results import (
    leave_results,
    log_final_distance,
    log_row,
    warn_incomplete,
    warn_not_starting,
)
from lit_sphere.rivals.rivals import ComparedCopies

_NAME = "OptimizerComparison"


class OptimizerComparison(FindsGroups):
    """Monitor: trains the network by other optimizers beside the run, and logs how far their weights get from its own.

    From some epoch on, each *rival* is a copy of the network that sees the same batches and the same dropout masks as
    the run, and steps when the run steps. Its own optimizer trains the scale-invariant weights; whatever else there is
    (biases, norms, heads) is trained by a copy of the run's optimizer, state and options included, or all rivals would
    differ for its sake. What is compared are directions, since lengths of scale-invariant weights mean nothing. SP §5
    shows so that ``AdaGradG`` takes the steps of SGD with L2 regularisation, while AdaGrad goes elsewhere.

    | key | quantity |
    |---|---|
    | ``optimizer_comparison/<name>_cosine_min`` | cosine between rival's and run's weights, of the worst group |
    | ``optimizer_comparison/<name>_cosine_median`` | the same of the median group |
    | ``optimizer_comparison/<name>_distance_max`` | 1 − cosine of the worst group, without cancellation |
    | ``optimizer_comparison/<name>_distance_median`` | the same of the median group |
    | ``optimizer_comparison/<name>_loss`` | mean train loss of the rival since it was last logged, over samples |
    | ``optimizer_comparison/run_loss`` | the same of the run, where its ``training_step`` returns the loss |
    | ``optimizer_comparison/start_…`` | as ``<name>_…``, of the first weights: how far the run itself has turned |

    The last values are in ``trainer.callback_metrics``, too. ``optimizer_comparison.png`` and ``.csv`` are left
    in the folder of the first logger when training ends, the picture sent to W&B.

    Copies are made before the first batch of the epoch, when a ``FineTuneSwitch`` at that epoch has acted, wherever it
    stands in the list of callbacks. Optimizers of rivals begin without a past; their options stay as given, whatever a
    schedule does to the run's. A rival costs about one training step a step, and the memory (also in checkpoints) of
    one more network with its optimizer. Gradients are added up over accumulated batches as the run does, averaged over
    ranks, and clipped as the trainer clips the run's. Batches that the run's ``training_step`` skips, rivals skip.
    Under manual optimisation a batch counts that ``manual_backward`` is called for, and its loss is divided by the
    whole number by which the run divides the first one. In a resumed run rivals go on with the options of the
    checkpoint, and a comparison that was over stays over.

    Rivals learn by ``criterion(module(inputs), labels)``, cross-entropy where the module has no ``criterion``. Where
    that does not run (no ``forward``, batches that are dictionaries, labels that are no classes), they learn by the
    loss of the training step (under manual optimisation: the sum of what it passes to backward passes), which is run so
    that it leaves no trace in the run. At the first step of a fit this is tried, and refused where its gradient is not
    that of the run.

    Args:
        optimizers: What makes the optimizer of each rival, by name; called with the scale-invariant weights. On the
            command line ``--trainer.callbacks.optimizers.NAME Adam --trainer.callbacks.optimizers.NAME.lr 1e-3``.
        start_epoch: Epoch, counted from 0, before whose first batch the copies are made.
        steps: Optimizer steps to compare over; null for the rest of the run.
        every_n_steps: Compare after every n-th of these steps, and after the last.
        granularity: ``filter``: what is compared, and what the rivals' optimizers train, are the single output
            channels that are scale-invariant. ``tensor``: all scale-invariant tensors, and those that are so only
            jointly; each of these groups is one parameter group of the rivals' optimizers.
        example_input: Input of the network, in place of the module's ``example_input_array`` and of a batch: a tensor,
            a tuple of inputs by position, or a dictionary of inputs by name.
        network: What is searched for scale-invariant groups: the attribute that is the network, or a function of the
            input. None: the module itself, or where that does not run, its training step.
        groups: Names of the scale-invariant parameters, in place of a search: for each group one name (with ``*``, each
            that fits is a group), or a list of those that are scale-invariant together.

    Raises:
        ValueError: If an argument is out of range; at the start of ``fit`` or at its first step, if the module has no
            such groups, none is trained as a whole by one optimizer, or only a part of one joint sphere is compared;
            if a rival's optimizer cannot train them; if an optimizer evaluates the loss anew in its step, as ``LBFGS``
            does; if a batch gives the run's loss by neither ``criterion`` nor the training step; if gradients are
            scaled, parameters sharded or norms fixed by ``FixedNorm``; if there are two comparisons in the trainer. At
            any step, if it is not the first of its batch, or there was no batch. On resuming, if a name stands for
            another kind of optimizer than in the checkpoint.

    Example:
        >>> from functools import partial
        >>> from lightning.pytorch import Trainer
        >>> from torch.optim import SGD, Adam
        >>> from lit_sphere.data import Digits
        >>> from lit_sphere.modules import SIConvNet
        >>> rivals = {"SGD": partial(SGD, lr=0.1), "Adam": partial(Adam, lr=1e-3)}
        >>> comparison = OptimizerComparison(rivals)
        >>> quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar"], False)
        >>> trainer = Trainer(max_epochs=1, callbacks=[comparison], enable_model_summary=False, **quiet)
        >>> trainer.fit(SIConvNet(4, in_channels=1, optimizer=rivals["SGD"]), Digits(train_size=256))
        >>> sgd, adam = (trainer.callback_metrics[f"optimizer_comparison/{name}_cosine_min"] for name in rivals)
        >>> print(f"{sgd:.6f}", bool(adam < 0.99))
        1.000000 True
    """

    def __init__(
        self,
        optimizers: Mapping[str, OptimizerCallable],
        start_epoch: int = 0,
        steps: int | None = 500,
        every_n_steps: int = 10,
        granularity: GroupGranularity = "filter",
        example_input: Any = None,
        network: Network = None,
        groups: GroupNames | None = None,
    ) -> None:
        self.group_options = GroupOptions(example_input, network, groups)
        numbers = {"start_epoch": (start_epoch, 0), "steps": (steps, 1), "every_n_steps": (every_n_steps, 1)}
        check_arguments(_NAME, optimizers, numbers, granularity)
        self.optimizers, self.start_epoch, self.steps = dict(optimizers), start_epoch, steps
        self.every_n_steps, self.granularity = every_n_steps, granularity
        self._folder: Path | None = None
        self._begin()

    def _begin(self) -> None:
        self.rows: list[dict[str, float]] = []
        """What was measured: ``step`` of the comparison, ``epoch``, and the logged quantities."""
        self._done = 0  # steps compared
        self._epoch = -1  # of the last of them
        self._main = 0  # number of the run's optimizer that trains the groups
        self._run_loss = TrainLoss()  # since it was last logged
        self._rivals: ComparedCopies | None = None
        self._restored: dict[str, Any] | None = None
        self._groups: list[Group] = []
        self._watch: RealSteps | None = None
        self._tries = self._tried = self._over = self._chosen = False
        self._step_loss: StepLoss | None = None

    @property
    def state_key(self) -> str:
        """Differs between differently set up ones."""
        return self._generate_state_key(
            optimizers=sorted(self.optimizers),
            start=self.start_epoch,
            every=self.every_n_steps,
            granularity=self.granularity,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew; a checkpoint is loaded later."""
        if stage == "fit":
            self._begin()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the run can be followed, and find the groups, if the module has an example input."""
        self._folder = run_folder_of(trainer)
        check_single(self, OptimizerComparison, trainer, "optimizer_comparison/… and optimizer_comparison.png")
        check_run(self, trainer, pl_module)
        over_after = self._done if self._over else 0
        warn_not_starting(_NAME, trainer, self.start_epoch, self.steps, over_after)
        self._find(trainer, groups_of(self, pl_module, granularity=self.granularity))

    def _find(self, trainer: Trainer, groups: list[Group] | None) -> None:
        if groups is not None:
            self._groups, self._main = comparable(self, trainer, groups, self.granularity)
            self._directions = Directions(self._groups)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Make the rivals when it is time, and have them learn from the batch."""
        if not self._chosen and not self._is_over():
            self._choose(trainer, pl_module, batch)
        if not self._groups:
            self._find(trainer, groups_of(self, pl_module, batch, self.granularity))
        if self._restored is not None:
            self._make(trainer, pl_module)
        self._log_if_due(trainer)
        self._epoch = trainer.current_epoch
        if self._is_over():
            return
        begins = self._epoch >= self.start_epoch
        if begins and self._tries:  # all batches of the earlier epochs were skipped
            self._dismiss()
        if self._rivals is None and (begins or not self._tried):
            self._make(trainer, pl_module, trial=not begins)
        if self._rivals is not None:
            self._rivals.learn(batch, batch_idx)

    def _choose(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Choose the loss that rivals learn by."""
        trained = [p for p in pl_module.parameters() if p.requires_grad]

        def by_logits(batch: Any) -> None:
            outputs = pl_module(apply_to_collection(batch[0], Tensor, torch.clone))
            torch.autograd.grad(criterion_of(pl_module)(outputs, batch[1]), trained, allow_unused=True)

        def by_step(step: StepLoss) -> None:
            found = step(batch)
            torch.autograd.grad([] if found is None else [found[0]], trained, allow_unused=True)

        with untouched(pl_module), trainer.precision_plugin.train_step_context():
            fails = logits_failure(pl_module, batch, by_logits)
            self._step_loss = choose_loss(self, trainer, pl_module, batch, fails, differentiate=by_step)
        self._chosen = True

    def _make(self, trainer: Trainer, pl_module: LightningModule, trial: bool = False) -> None:
        joint: list[list[Tensor]] = [list(group.parameters) for group in self._groups]
        own = [self._directions.params] if self.granularity == "filter" else joint
        state, self._restored = self._restored, None
        self._rivals = ComparedCopies(
            _NAME, trainer, pl_module, self.optimizers, own, self._main, state, self._step_loss
        )
        self._tries = trial
        self._watch = RealSteps(trainer.optimizers, self._rivals.before_step, self._after_step)
        if not trial and state is None:
            rank_zero_info(
                f"{_NAME}: from epoch {trainer.current_epoch}, step {trainer.global_step} on, "
                f"{', '.join(self.optimizers)} beside the run, on {len(self._groups)} scale-invariant "
                f"{'filters' if self.granularity == 'filter' else 'groups'}"
            )

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note that the run uses the batch, which it may have skipped."""
        if self._rivals is not None:
            self._rivals.see_backward(loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keep the gradients of the first step, complete and unclipped."""
        if self._rivals is not None:
            self._rivals.see_gradients(getattr(optimizer, "optimizer", optimizer))

    def _after_step(self, number: int) -> None:
        if self._rivals is not None and not self._is_over():
            self._rivals.step(number)
            if number == self._main:
                self._tried = self._tried or self._rivals.steps > 0
                self._done += not self._tries

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare, if it is time."""
        if self._tries and self._tried:
            self._dismiss()
        if self._rivals is not None:
            self._rivals.accumulate()
        if self._rivals is not None and not self._tries:
            self._run_loss.add(trainer, outputs, batch)
        self._log_if_due(trainer)

    def _is_over(self) -> bool:
        return self._over or (self.steps is not None and self._done >= self.steps)

    def _log_if_due(self, trainer: Trainer, ends: bool = False) -> None:
        if self._rivals is None or self._tries or self._done <= (self.rows[-1]["step"] if self.rows else 0):
            return
        if not (ends or self._is_over() or self._done % self.every_n_steps == 0):
            return
        row: dict[str, float] = {"step": self._done, "epoch": self._epoch}
        row |= self._rivals.measure(self._directions)
        means = self._run_loss.means(trainer)
        if "loss" in means:
            row["run_loss"] = means["loss"]
        self._run_loss.reset()
        self.rows.append(row)
        log_row(trainer, row, list(self.optimizers))
        if self._is_over():
            self._dismiss()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare a last time, and draw the picture."""
        self._log_if_due(trainer, ends=True)
        if not self._over:
            warn_incomplete(_NAME, trainer, self.start_epoch, self.steps, self._done)
        if self.rows:
            log_final_distance(_NAME, self.rows[-1], list(self.optimizers))
        if self.rows and self._folder is not None:
            run = f"the run ({type(trainer.optimizers[self._main]).__name__})"
            what = f"{len(self._groups)} {'filters' if self.granularity == 'filter' else 'groups'}"
            title = f"{type(pl_module).__name__}, {what}, from epoch {self.start_epoch} on"
            leave_results(trainer, self._folder, self.rows, list(self.optimizers), run, title)

    def _dismiss(self) -> None:
        self._detach()
        self._rivals, self._tries = None, False

    def _detach(self) -> None:
        if self._watch is not None:
            self._watch.detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers as they were; the rivals stay, for checkpoints that are saved later."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizers as they were."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """The rivals, and what was measured, as tensors and plain values."""
        return {
            "rows": [dict(row) for row in self.rows],
            "done": self._done,
            "epoch": self._epoch,
            "run_losses": self._run_loss.state(),
            "rivals": self._restored if self._rivals is None or self._tries else self._rivals.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.rows, self._done = [dict(row) for row in state_dict["rows"]], state_dict["done"]
        self._epoch = state_dict["epoch"]
        self._run_loss.load_state(state_dict["run_losses"])
        self._restored = state_dict["rivals"]
        self._tried = self._restored is not None
        self._over = self._done > 0 and self._restored is None
