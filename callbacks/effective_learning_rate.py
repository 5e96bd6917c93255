"""Logs effective learning rates, step sizes and gradient norms of scale-invariant groups."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lit_sphere.callbacks._module_groups import groups_of, short_names
from lit_sphere.effective import EffectiveQuantities, StepMeans
from lit_sphere.groups import Group

_MOST_CURVES = 64


class EffectiveLearningRateMonitor(Callback):
    """Monitor: logs the effective quantities of the scale-invariant groups of any module.

    The groups are found by Euler's identity (:func:`~lit_sphere.groups.find_groups`) in the module's
    ``forward``, from its ``example_input_array`` or else from the inputs of the first batch. Works under
    automatic and manual optimisation, under DDP, with gradient accumulation and AMP. Quantities are measured
    just before each optimizer step, from one pass over parameters and gradients, and wait on the device
    until they are logged.

    | key | quantity (TR §3) |
    |---|---|
    | ``elr/total``, ``elr/<group>`` | effective learning rate η̃ = η/ρ² |
    | ``ess/…`` | effective step size η̃g̃, tangent of the angle of the step |
    | ``effective_grad_norm/…`` | effective gradient norm g̃ = ρg |
    | ``norm/…`` | norm ρ |

    Gradients are seen before Lightning clips them; ``ess`` is left out where it does. ``elr`` and ``ess`` are logged
    for optimizers whose steps follow the gradient: ``SphereSGD`` and
    ``torch.optim.SGD`` without momentum. With more than 64 groups, ``…/min``, ``…/median`` and ``…/max`` over
    the groups take the place of the single groups. Other callbacks find the totals in ``trainer.callback_metrics``.

    Args:
        granularity: ``tensor``: whole weight tensors, or the tensors that are scale-invariant jointly;
            ``filter``: single output channels, where these are scale-invariant.
        per: ``epoch``: mean over the measured steps of an epoch; ``step``: each measured step.
        every_n_steps: Measure at every n-th optimizer step.

    Raises:
        ValueError: If an argument is out of range; at the start of ``fit``, if the module has no
            scale-invariant group.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[EffectiveLearningRateMonitor(per="step", every_n_steps=50)], logger=False)
    """

    def __init__(
        self,
        granularity: Literal["tensor", "filter"] = "tensor",
        per: Literal["epoch", "step"] = "epoch",
        every_n_steps: int = 1,
    ) -> None:
        if granularity not in ("tensor", "filter"):
            raise ValueError(f"granularity must be 'tensor' or 'filter', got {granularity!r}")
        if per not in ("epoch", "step"):
            raise ValueError(f"per must be 'epoch' or 'step', got {per!r}")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.granularity, self.per, self.every_n_steps = granularity, per, every_n_steps
        self._means: StepMeans | None = None
        self._restored: dict[str, Any] = {}
        self._names: list[str] = []
        self._epoch = -1  # of the means: Lightning does not always end an epoch whose last batch was saved
        self._steps = 0

    @property
    def state_key(self) -> str:
        """Differs between two monitors of one trainer."""
        return self._generate_state_key(granularity=self.granularity, per=self.per, every=self.every_n_steps)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups before training, if the module says what its input looks like."""
        self._means = None
        self._find(trainer, groups_of(self, pl_module, granularity=self.granularity))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Find the groups from the inputs of the first batch otherwise."""
        if self._means is None:
            self._find(trainer, groups_of(self, pl_module, batch, self.granularity))

    def _find(self, trainer: Trainer, groups: list[Group] | None) -> None:
        if groups is None:
            return
        for optimizer in trainer.optimizers:
            trained = {p for group in optimizer.param_groups for p in group["params"]}
            mine = [group for group in groups if trained.issuperset(group.parameters)]
            if mine:
                break
        else:
            raise ValueError("EffectiveLearningRateMonitor: no optimizer trains a scale-invariant group as a whole")
        if len(mine) < len(groups):
            rank_zero_warn(
                f"EffectiveLearningRateMonitor watches the {len(mine)} groups of {type(optimizer).__name__}; "
                f"{len(groups) - len(mine)} are trained elsewhere"
            )
        self._optimizer = optimizer
        self._names = short_names(mine)
        quantities = EffectiveQuantities(mine, optimizer)
        self._logged: tuple[str, ...] = quantities.quantities
        if trainer.gradient_clip_val and "ess" in self._logged:
            self._logged = self._logged[:-1]  # the last row is measured and not logged
            rank_zero_warn("EffectiveLearningRateMonitor logs no step sizes: Lightning clips the gradients only later")
        self._means = StepMeans(quantities)
        self._means.load_state(self._restored)
        self._restored = {}
        if "elr" not in self._logged:
            rank_zero_warn(
                f"EffectiveLearningRateMonitor logs norms and effective gradient norms only: η/ρ² is no effective "
                f"learning rate of {type(optimizer).__name__} (momentum or adaptive steps)"
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Observe; nothing is brought to the host, but to log a single step."""
        if self._means is None or getattr(optimizer, "optimizer", optimizer) is not self._optimizer:
            return
        self._steps += 1
        if (self._steps - 1) % self.every_n_steps:
            return
        if self._epoch != trainer.current_epoch:
            self._means.load_state({})
            self._epoch = trainer.current_epoch
        self._means.add()
        if self.per == "step":
            self._log(trainer, self._means.last(), trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means over the epoch; where single steps are logged, to other callbacks only."""
        mean = None if self._means is None else self._means.mean()
        if mean is None:
            return
        if self.per == "epoch":
            self._log(trainer, mean, trainer.global_step - 1)
        # Callbacks get the totals: to pass each group through Lightning's bookkeeping costs more than to measure it.
        totals = {
            f"{quantity}/total": value for quantity, value in zip(self._logged, mean[:, 0].tolist(), strict=False)
        }
        pl_module.log_dict(totals, logger=False, sync_dist=True, batch_size=1)

    def _log(self, trainer: Trainer, measured: Tensor, step: int) -> None:
        metrics: dict[str, float] = {"epoch": trainer.current_epoch}
        names = ["total", *self._names]
        if len(self._names) > _MOST_CURVES:
            names = ["total", "min", "median", "max"]
            single = measured[:, 1:]
            spread = [single.amin(1), single.median(1).values, single.amax(1)]
            measured = torch.stack([measured[:, 0], *spread], 1)
        for quantity, row in zip(self._logged, measured.tolist(), strict=False):
            metrics.update({f"{quantity}/{name}": value for name, value in zip(names, row, strict=True)})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def state_dict(self) -> dict[str, Any]:
        """State of an unfinished epoch, so that a resumed run continues its series."""
        means = self._restored if self._means is None else self._means.state()
        return {"means": means, "epoch": self._epoch, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, once the groups are found."""
        self._restored = state_dict["means"]
        self._epoch, self._steps = state_dict["epoch"], state_dict["steps"]
