"""Logs effective learning rates, step sizes and gradient norms of scale-invariant groups."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lit_sphere.analysis import equal_ess
from lit_sphere.effective import (
    NOT_STEPPED,
    QUANTITIES,
    DecayRule,
    EquilibriumRule,
    Prediction,
    Settling,
    Source,
    StepSummary,
    mean_where_stepped,
    predicted_equilibrium,
    predicted_interval,
    predicted_rotation,
    quantile_name,
    quantiles_over_groups,
)
from lit_sphere.effective.settling import in_steps
from lit_sphere.observe.dynamics import controls_of
from lit_sphere.observe.module_groups import FindsGroups, GroupNames, GroupOptions, Network
from lit_sphere.observe.optimizer_steps import StepWatch
from lit_sphere.observe.publishing import log_numbers, run_folder_of, save_picture, send_log_log_scatter
from lit_sphere.observe.watched_groups import Watch
from lit_sphere.optim import Granularity
from lit_sphere.report import draw_equal_ess, write_equal_ess

_MOST_CURVES = 64
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
_EXTREME = ("radial", "ess", "step_length")  # what SP §5 takes to be small at every step
_NAME = "EffectiveLearningRateMonitor"


class EffectiveLearningRateMonitor(FindsGroups):
    """Monitor: logs the effective quantities of the scale-invariant groups of any module.

    The groups are found by Euler's identity (:func:`~lit_sphere.groups.find_groups`) in the module's
    ``forward``, from its ``example_input_array`` or else from the inputs of the first batch. Works under
    automatic and manual optimisation, under DDP, with gradient accumulation, clipping and AMP. What is measured
    waits on the device until it is logged. A mean is one over the steps that moved a group; of a group without any in
    an epoch nothing is logged, and the totals are those of the other groups. Where nothing is scale-invariant, or no
    optimizer trains a group as a whole, the monitor warns and stays out.

    | key | quantity (TR §3; SP Theorem 2) |
    |---|---|
    | ``elr/total``, ``elr/<group>`` | effective learning rate η̃, of plain SGD η/ρ² |
    | ``ess/total``, ``ess/<group>`` | effective step size: tangent of the angle of a step, η̃g̃ of plain SGD |
    | ``effective_grad_norm/total``, ``effective_grad_norm/<group>`` | effective gradient norm g̃ = ρg, unclipped |
    | ``norm/total``, ``norm/<group>`` | norm ρ |
    | ``angle/total``, ``angle/<group>`` | angle of the step in radians |
    | ``distance/total``, ``distance/<group>`` | cosine distance of the weights before and after a step, 1 − cos |
    | ``radial/total``, ``radial/<group>`` | share of the norm that the step takes away along the weights, A⟨c, u⟩ |
    | ``step_length/total``, ``step_length/<group>`` | length of the step across the weights, η‖∇L(u)‖/ρ of SGD |
    | ``gradient_radial/total``, ``gradient_radial/<group>`` | with ``watch``: share of the gradient along the \
    weights, ⟨∇, w⟩/(‖∇‖ρ) without its sign, 0 of what is scale-invariant |
    | ``radial/step_max``, ``ess/step_max``, ``step_length/step_max`` | largest of the groups' absolute values at a \
    measured step of the epoch: SP §5 bounds maxima |
    | ``equilibrium/ess`` | predicted: the ESS at which a group's ELR stays (TR eq. (5); PB §3); of momentum and \
    adaptive steps where norms stay (Kosson et al. 2023) |
    | ``equilibrium/elr`` | predicted from it: the ELR of all groups at the present g̃, in the whole space |
    | ``equilibrium/norm`` | predicted: the norm ρ of all groups at the present g̃, in the whole space |
    | ``equilibrium/steps`` | number of steps in which weight decay alone would bring ρ² to 1/e: about 1/(2ηλ) |
    | ``equilibrium/distance`` | with momentum or adaptive steps: predicted cosine distance of a step |
    | ``equilibrium/ess_by_update`` | the same: the ESS foretold from what updates now do to norms, whatever gradients \
    are like |
    | ``equilibrium/foretold`` | at the end of fit: number of steps after which the ESS should have been within 10 % \
    of the predicted, over half of ``equilibrium/steps`` |
    | ``equilibrium/elr_low``, ``equilibrium/elr_high`` | predicted: between these the ELR of all groups stays while \
    g̃ does as in this epoch, [√(2ηλ)/L, √(2ηλ)/ℓ] of PB §3 |
    | ``equilibrium/norm_low``, ``equilibrium/norm_high`` | the same of the norm ρ of all groups, κℓ ≤ ρ² ≤ κL |
    | ``equal_ess/slope`` | slope of the scatter at the end of fit: −1 where all (scale-invariant) groups have one ESS |
    | ``equal_ess/spread`` | standard deviation of ln ESS over the groups: 0 where all have one |

    Where the numbers come from is said once, and stands in :attr:`source` and in checkpoints
    (:class:`~lit_sphere.effective.EffectiveQuantities` has the formulas):

    * ``gradients``: norms before the step, for ``SphereSGD`` and ``torch.optim.SGD`` without momentum; no copies;
    * ``state``: the optimizer's own buffers after the step (SP Table 1), for ``torch.optim.SGD``, ``Adam`` and
      ``AdamW`` with any of their options, with gradients clipped too;
    * ``weights``: anything else (a third party's optimizer, a subclass with a ``step`` of its own, a gradient
      scaler), and parameters of half precision (``bf16-true``), to which steps are rounded: weights before and after
      the step, for which one copy of them is kept. ``elr`` = ``ess`` / g̃ then.

    Predictions are made under weight decay without ``FixedNorm``, at the present learning rate: for ``SphereSGD`` on
    one sphere and plain ``torch.optim.SGD`` those of the papers
    (:func:`~lit_sphere.effective.predicted_equilibrium`): a group's ELR rises while its ESS is below
    ``equilibrium/ess``. ℓ and L are the extremes of g̃ of all groups over the
    measured steps of the epoch (:func:`~lit_sphere.effective.predicted_interval`). For ``SGD`` with momentum,
    dampening or Nesterov's, ``AdamW`` and ``Adam`` with L2 those for gradients of random directions
    (:mod:`lit_sphere.theory.rotation`), and for any other optimizer that has ``lr`` and ``weight_decay`` those that its
    updates tell (:func:`~lit_sphere.effective.predicted_rotation`). None where weight decay or another option differs
    between the watched groups. :class:`~lit_sphere.callbacks.RunSummary` draws them dashed, and says when the
    equilibrium was reached (:attr:`settling`), which is logged as ``equilibrium/reached`` where it was. A run that is
    too short for it is warned of once.

    Of several optimizers the one that trains most of the groups is watched. Other callbacks find the totals in
    ``trainer.callback_metrics``.

    Networks that are not scale-invariant, or only in part, are watched with ``watch``. All quantities of a matrix are
    right for it, too: angles and effective step sizes are those of the real step. What says little of it is how the
    step depends on the norm. It is marked by its ``gradient_radial/<group>``, and dotted or hollow in pictures; totals
    are those of all that is watched, and no equilibrium is predicted.

    MLflow takes few characters in names: ``stem.weight+4`` is ``stem.weight and 4 more`` there, and
    ``conv.weight[3]`` is ``conv.weight row 3``.

    Args:
        granularity: ``tensor``: whole weight tensors, or the tensors that are scale-invariant jointly;
            ``filter``: single output channels, where these are scale-invariant; ``joint``: all scale-invariant
            parameters as one, that is ``…/total`` without groups.
        per: ``epoch``: mean over the measured steps of an epoch; ``step``: each measured step. Extremes over steps,
            and what follows from them, come at the end of an epoch.
        every_n_steps: Measure at every n-th optimizer step.
        quantiles: Log these quantiles over the groups in place of the groups: 0 as ``…/min``, 0.5 as
            ``…/median``, 1 as ``…/max``, others like ``…/q25``. None: the quartiles with more than 64 groups.
        scatter_epochs: At the end of fit draw the groups' mean η̃ and g̃ over this many last epochs, with the line
            of equal ESS: ``equal_ess.png`` and ``equal_ess.csv`` in the run's folder. 0: no picture.
        watch: ``scale_invariant``: the scale-invariant groups; ``matrices``: each other trainable tensor of two or
            more dimensions as well, embeddings too; a list of names or patterns such as ``*.attn.*``: these tensors
            only, with the scale-invariant group that one is in.
        example_input: Input of the network, in place of the module's ``example_input_array`` and of a batch: a tensor,
            a tuple of inputs by position, or a dictionary of inputs by name.
        network: What is searched for scale-invariant groups: the attribute that is the network, or a function of the
            input. None: the module itself, or where that does not run, its training step.
        groups: Names of the scale-invariant parameters, in place of a search: for each group one name (with ``*``, each
            that fits is a group), or a list of those that are scale-invariant together.

    Raises:
        ValueError: If an argument is out of range; at the start of ``fit``, if a pattern of ``watch`` matches nothing.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lit_sphere.data import Digits
        >>> from lit_sphere.modules import SIConvNet
        >>> monitor = EffectiveLearningRateMonitor("filter", quantiles=[0, 0.5, 1])
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> trainer = Trainer(max_epochs=1, callbacks=[monitor], enable_model_summary=False, **quiet)
        >>> trainer.fit(SIConvNet(width=4, in_channels=1, elr=0.01), Digits(train_size=256))
        >>> print(f"ELR {trainer.callback_metrics['elr/total']:.3g} from {monitor.source}")
        ELR 0.01 from gradients
    """

    def __init__(
        self,
        granularity: Granularity = "tensor",
        per: Literal["epoch", "step"] = "epoch",
        every_n_steps: int = 1,
        quantiles: Sequence[float] | None = None,
        scatter_epochs: int = 0,
        watch: Watch = "scale_invariant",
        example_input: Any = None,
        network: Network = None,
        groups: GroupNames | None = None,
    ) -> None:
        self.group_options = GroupOptions(example_input, network, groups)
        _check(granularity, per, every_n_steps, quantiles, scatter_epochs)
        _check_watch(watch)
        self.watch: Watch = watch if isinstance(watch, str) else list(watch)
        self.granularity, self.per, self.every_n_steps = granularity, per, every_n_steps
        self.quantiles = None if quantiles is None else [float(q) for q in quantiles]
        self.scatter_epochs = scatter_epochs
        self._watch = StepWatch(self, self._on_measured, every_n_steps, granularity, watch=self.watch)
        self._epoch = -1  # of the means: Lightning does not always end an epoch whose last batch was saved
        self._rule: EquilibriumRule | None = None  # of the last step
        self._decay: DecayRule | None = None  # of the last step, of any optimizer
        self._sizes: list[float] = []  # of the groups
        self._steps = 0  # up to and with the last measured one
        self._compared = False  # the length of the run with the time that the equilibrium takes
        self.settling = Settling()
        self._last_epochs: list[Tensor] = []  # (elr and effective gradient norm, groups), for the scatter
        self._folder: Path | None = None

    @property
    def state_key(self) -> str:
        """Differs between two monitors of one trainer."""
        options: dict[str, Any] = {
            "every": self.every_n_steps,
            "quantiles": self.quantiles,
            "scatter": self.scatter_epochs,
        }
        if self.watch != "scale_invariant":  # else as in checkpoints without this option
            options["watch"] = self.watch
        return self._generate_state_key(granularity=self.granularity, per=self.per, **options)

    @property
    def source(self) -> Source | None:
        """Where the numbers come from: ``gradients``, ``state`` or ``weights``; None before the groups are found."""
        return self._watch.source

    @property
    def not_scale_invariant(self) -> frozenset[str]:
        """Names, in keys, of the watched groups that are not scale-invariant."""
        return self._watch.others

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups before training, if the module says what its input looks like."""
        self._folder = run_folder_of(trainer) if self.scatter_epochs else None
        self._norm_is_fixed = bool(controls_of(trainer, "norm"))
        self._sizes = []
        if not self._watch.fit_start(trainer, pl_module):
            self._epoch, self._rule, self._last_epochs, self._decay = -1, None, [], None
            self._steps, self._compared, self.settling = 0, False, Settling()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Find the groups from the inputs of the first batch otherwise; and again for another optimizer."""
        self._watch.batch_start(trainer, pl_module, batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Observe; nothing is brought to the host, but to log a single step."""
        self._watch.before_step(trainer, optimizer)

    def _on_measured(self, trainer: Trainer) -> None:
        means = self._watch.means
        assert means is not None
        if self._epoch != trainer.current_epoch:
            self._see_rest_of_epoch(trainer)
            self._epoch = trainer.current_epoch
        means.add()
        self._steps = self._watch.steps
        # Of this step: options may be others at the end of the epoch.
        self._rule = None if self._norm_is_fixed else means.quantities.equilibrium
        self._decay = None if self._norm_is_fixed else means.quantities.decay
        if not self._compared and self._decay is not None:
            self._compare_length(trainer, self._decay.steps)
        if self.per == "step":
            self._log(trainer, means.last(), trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log means and extremes over the epoch; where single steps are logged, the means to other callbacks only."""
        summary = self._summary_of_epoch()
        if summary is None or self._epoch != trainer.current_epoch:
            return  # no step of this epoch was measured; those of the one before ended in the run that was resumed
        mean = summary.mean
        metrics = self._extremes(summary)
        if self.per == "epoch":
            self._log(trainer, mean, trainer.global_step - 1, metrics)
        else:
            _log(trainer, metrics, trainer.global_step - 1)
        # All ranks have the same gradients and weights, so the same totals: there is nothing to reduce, and
        # self.log would cost more than the measurement.
        names = [f"{quantity}/total" for quantity in self._quantities]
        totals = _present(dict(zip(names, mean[:, 0].tolist(), strict=True)))
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in totals.items()})

    @property
    def _quantities(self) -> tuple[str, ...]:
        return () if self._watch.means is None else self._watch.means.quantities.quantities

    def _summary_of_epoch(self) -> StepSummary | None:
        summary = None if self._watch.means is None else self._watch.means.summary()
        if summary is not None and self.scatter_epochs:
            self._last_epochs = [*self._last_epochs, summary.mean[[2, 1], 1:].cpu()][-self.scatter_epochs :]
        return summary

    def _extremes(self, summary: StepSummary) -> dict[str, float]:
        rows = [QUANTITIES.index(quantity) for quantity in _EXTREME]
        largest = torch.maximum(summary.high[rows, 1:], -summary.low[rows, 1:]).amax(1)
        grad_norms = torch.stack([summary.low, summary.high])[:, QUANTITIES.index("effective_grad_norm"), 0]
        *maxima, low, high = torch.cat([largest, grad_norms]).tolist()
        metrics = _present({f"{quantity}/step_max": value for quantity, value in zip(_EXTREME, maxima, strict=True)})
        interval = predicted_interval(self._rule, low, high)
        return {**metrics, **{f"equilibrium/{name}": value for name, value in interval.items()}}

    def _log(
        self, trainer: Trainer, measured: Tensor, step: int, more: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        quantiles = self.quantiles
        if quantiles is None and len(self._watch.names) > _MOST_CURVES:
            quantiles = list(_QUARTERS)
        names = ["total", *self._watch.names]
        means = dict(zip(self._quantities, measured.tolist(), strict=True))
        if quantiles is not None and self._watch.names:
            names = ["total", *map(quantile_name, quantiles)]
            measured = quantiles_over_groups(measured, quantiles)
        rows = dict(zip(self._quantities, measured.tolist(), strict=True))
        predicted = predicted_equilibrium(self._rule, rows["effective_grad_norm"][0], rows["ess"][0])
        predicted = self._predict(trainer, means) | predicted
        metrics = {**more}
        metrics.update({f"equilibrium/{quantity}": value for quantity, value in predicted.items()})
        for quantity, row in rows.items():
            metrics.update({f"{quantity}/{name}": value for name, value in zip(names, row, strict=False)})
        _log(trainer, _present(metrics), step)

    def _predict(self, trainer: Trainer, means: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Predict where norms settle from means over the last steps, and see whether they have."""
        assert self._watch.means is not None
        if self._decay is not None and not self._sizes:
            self._sizes = self._watch.means.quantities.sizes
        found = predicted_rotation(self._decay, means, self._sizes, self._watch.source == "weights")
        if found is not None:
            self._compare_length(trainer, found.steps)
        steps = self._steps - self.settling.steps
        self.settling.observe(self._steps, steps, means["ess"][0], means["norm"][0], found)
        return {} if found is None else _logged(found, self._rule is not None)

    def _see_rest_of_epoch(self, trainer: Trainer) -> None:
        """See what settled in an epoch that ended in the run that was resumed."""
        summary = self._summary_of_epoch()
        if summary is not None and self.per == "epoch":
            self._predict(trainer, dict(zip(self._quantities, summary.mean.tolist(), strict=True)))

    def _compare_length(self, trainer: Trainer, steps: float | None) -> None:
        """Warn once of a run that is shorter than the time to its equilibrium."""
        if self._compared or steps is None:
            return
        self._compared = True
        # Under a warm-up the rate is not yet what it will be.
        groups = () if self._watch.means is None else self._watch.means.quantities.param_groups
        peaks = [max(group["lr"], group.get("initial_lr", 0.0), group.get("max_lr", 0.0)) for group in groups]
        steps *= min(
            (float(group["lr"]) / peak for group, peak in zip(groups, peaks, strict=True) if peak), default=1.0
        )
        length = _length_of(trainer)
        if length < steps:
            about = in_steps(float(f"{steps:.2g}"))
            rank_zero_warn(
                f"{_NAME}: this run of {in_steps(length)} steps is shorter than the about {about} in which "
                "weight decay brings norms to their equilibrium: the initial norms still decide the effective learning "
                "rates of the groups. More steps, a higher learning rate or more weight decay get there"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log when the equilibrium was reached, and draw the scatter over the last epochs."""
        self._see_rest_of_epoch(trainer)
        found = {"reached": self.settling.reached, "foretold": self.settling.foretold}
        when = {f"equilibrium/{name}": float(each) for name, each in found.items() if each and math.isfinite(each)}
        if when:
            log_numbers(trainer, {"epoch": trainer.current_epoch - 1, **when}, trainer.global_step - 1)
        if not self._last_epochs:
            return
        elrs, grad_norms = mean_where_stepped(torch.stack(self._last_epochs)).tolist()
        title = f"{type(pl_module).__name__}: means over the last {len(self._last_epochs)} epochs"
        known = [each for each in zip(self._watch.names, elrs, grad_norms, strict=True) if NOT_STEPPED not in each]
        names, elrs, grad_norms = zip(*known, strict=True) if known else ((), (), ())
        marks = None if self.watch == "scale_invariant" else [name not in self._watch.others for name in names]
        report_equal_ess(self, trainer, self._folder, names, elrs, grad_norms, title, marks)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizer as it was."""
        self._watch.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizer as it was."""
        self._watch.detach()

    def state_dict(self) -> dict[str, Any]:
        """State of an unfinished epoch, so that a resumed run continues its series."""
        return {
            **self._watch.state(),
            "epoch": self._epoch,
            "rule": self._rule,
            "last_epochs": list(self._last_epochs),
            "decay": None if self._decay is None else tuple(self._decay),
            "steps_measured": self._steps,
            "compared": self._compared,
            "settling": self.settling.state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, once the groups are found."""
        self._watch.load_state(state_dict)
        self._epoch, self._last_epochs = state_dict["epoch"], state_dict.get("last_epochs", [])
        self._rule, decay = state_dict.get("rule"), state_dict.get("decay")
        self._decay = None if decay is None else DecayRule(*decay)
        self._steps = state_dict.get("steps_measured", state_dict["steps"])
        self._compared = state_dict.get("compared", True)
        self.settling.load_state(state_dict.get("settling", {}))


def _log(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    if metrics:  # else nothing was stepped
        log_numbers(trainer, {"epoch": trainer.current_epoch, **metrics}, step)


def _length_of(trainer: Trainer) -> float:
    """Steps of the whole run as it is set up; the trainer's own estimate refuses schedules of accumulation."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs)
    an_epoch = float(trainer.num_training_batches) / trainer.accumulate_grad_batches
    by_epochs = epochs * (math.ceil(an_epoch) if math.isfinite(an_epoch) else an_epoch)
    return min(by_epochs, trainer.max_steps) if trainer.max_steps > 0 else by_epochs


def _logged(found: Prediction, is_papers: bool) -> dict[str, float]:
    """Give the predictions by name; of momentum and adaptive steps also what the papers' equilibrium is without."""
    values = {"ess": found.ess, "norm": found.norm, "steps": found.steps}
    if not is_papers:
        values |= {"distance": found.distance, "ess_by_update": found.ess_by_update}
        if found.elr is not None:
            values["elr"] = found.elr
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _present(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if value != NOT_STEPPED}


def _check_watch(watch: Watch) -> None:
    known = ("scale_invariant", "matrices")
    names = () if isinstance(watch, str) else tuple(watch)
    if watch not in known and not (names and all(isinstance(name, str) for name in names)):
        raise ValueError(
            f"{_NAME}: watch must be one of {known}, or a list of parameters' names or patterns, at least one; got "
            f"{watch!r}"
        )


def _check(
    granularity: str, per: str, every_n_steps: int, quantiles: Sequence[float] | None, scatter_epochs: int
) -> None:
    if granularity not in get_args(Granularity):
        raise ValueError(f"{_NAME}: granularity must be 'tensor', 'filter' or 'joint', got {granularity!r}")
    if per not in ("epoch", "step"):
        raise ValueError(f"{_NAME}: per must be 'epoch' or 'step', got {per!r}")
    if every_n_steps < 1:
        raise ValueError(f"{_NAME}: every_n_steps must be at least 1, got {every_n_steps}")
    if quantiles is not None and not (quantiles and all(0 <= q <= 1 for q in quantiles)):
        raise ValueError(f"{_NAME}: quantiles must be numbers in [0, 1], at least one, got {list(quantiles)}")
    if scatter_epochs < 0 or (scatter_epochs and granularity == "joint"):
        raise ValueError(
            f"{_NAME}: scatter_epochs must be 0 or more, and 0 with granularity 'joint', which has no groups to "
            f"compare; got {scatter_epochs}"
        )


def report_equal_ess(
    owner: Callback,
    trainer: Trainer,
    folder: Path | None,
    names: Sequence[str],
    elrs: Sequence[float],
    grad_norms: Sequence[float],
    title: str,
    scale_invariant: Sequence[bool] | None = None,
) -> None:
    """Log ``equal_ess/slope`` and ``equal_ess/spread``, write ``equal_ess.png`` and ``equal_ess.csv``.

    W&B gets the points as a table and a chart, ``equal_ess/scatter``, too.

    Args:
        owner: The callback, to be named in warnings.
        trainer: The trainer.
        folder: The run's folder; None writes nothing.
        names: Names of the groups.
        elrs: Their effective learning rates.
        grad_norms: Their effective gradient norms.
        title: Of the picture.
        scale_invariant: Which groups are scale-invariant, where others are watched, too.
    """
    try:
        found = equal_ess(elrs, grad_norms, scale_invariant)
    except ValueError as error:
        rank_zero_warn(f"{type(owner).__name__} draws no scatter: {error}")
        return
    metrics: dict[str, float] = {"epoch": trainer.current_epoch - 1}
    for key, value in (("equal_ess/slope", found.slope), ("equal_ess/spread", found.spread)):
        if math.isfinite(value):  # neither is defined for too few groups
            metrics[key] = value
    log_numbers(trainer, metrics, trainer.global_step - 1)
    esses = [x * y for x, y in zip(elrs, grad_norms, strict=True)]
    columns: dict[str, Sequence[Any]] = {"group": names, "elr": elrs, "effective_grad_norm": grad_norms, "ess": esses}
    if scale_invariant is not None:
        columns["scale_invariant"] = scale_invariant
    send_log_log_scatter(trainer, "equal_ess/scatter", columns, f"slope {found.slope:.2f}; −1 where all ESS are equal")
    if folder is not None and trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        write_equal_ess(folder / "equal_ess.csv", names, elrs, grad_norms, scale_invariant)
        picture = (elrs, grad_norms, title, scale_invariant)
        save_picture(trainer, folder, "equal_ess", lambda: draw_equal_ess(*picture))
