"""Fixes the norm of the scale-invariant parameters, under any optimizer."""

import math
from contextlib import nullcontext
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lit_sphere.groups import Group
from lit_sphere.observe.both_lightnings import is_a
from lit_sphere.observe.dynamics import Control, dynamics_change
from lit_sphere.observe.module_groups import FindsGroups, GroupNames, GroupOptions, Network, groups_of
from lit_sphere.observe.publishing import log_numbers
from lit_sphere.optim import NormKeeper, SphereSGD
from lit_sphere.optim.granularity import granularity_of

NormGranularity = Literal["joint", "tensor"]


class FixedNorm(Control, FindsGroups):
    """Control: fixes the norm of the scale-invariant parameters, from the start or from an epoch or step on.

    After each optimizer step the parameters are rescaled to the norm that they had when fixing began, or to
    ``norm``: the network's function stays the same, its effective learning rate no longer drifts with the norm
    (PB: without a changing norm, training with weight decay has no periods). Works with any optimizer, under
    automatic and manual optimisation, with gradient accumulation, under DDP and FSDP2 (``fully_shard``). Momentum
    buffers and second moments stay as the optimizer left them. ``EffectiveLearningRateMonitor`` shows ``norm/…``
    flat; ``RegimeMonitor`` begins anew where fixing begins.

    | key | quantity |
    |---|---|
    | ``switch/fixed_norm`` | norm ρ of all scale-invariant parameters, once, when fixing begins |

    Args:
        norm: Norm of all scale-invariant parameters together; they are scaled to it when fixing begins. None: the
            norm that they have then.
        from_epoch: Fixing begins before the first step of this epoch, counted from 0.
        from_step: Fixing begins when this number of optimizer steps is done, instead.
        granularity: ``joint``: the norm of all scale-invariant parameters together is fixed. ``tensor``: that of each
            scale-invariant tensor, or of the tensors that are scale-invariant jointly.
        per: Old name of ``granularity``, and ``group`` of ``tensor``.
        example_input: Input of the network, in place of the module's ``example_input_array`` and of a batch: a tensor,
            a tuple of inputs by position, or a dictionary of inputs by name.
        network: What is searched for scale-invariant groups: the attribute that is the network, or a function of the
            input. None: the module itself, or where that does not run, its training step.
        groups: Names of the scale-invariant parameters, in place of a search: for each group one name (with ``*``, each
            that fits is a group), or a list of those that are scale-invariant together.

    Raises:
        ValueError: If an argument is out of its range; at the start of ``fit``, if the module has no
            scale-invariant group, a group is not trained as a whole, or an optimizer is ``SphereSGD``.

    Example:
        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from lit_sphere.data import Digits
        >>> from lit_sphere.modules import SIConvNet
        >>> from lit_sphere.optim import joint_norm
        >>> def sgd(params):
        ...     return torch.optim.SGD(params, lr=0.1, weight_decay=1e-2)
        >>> module = SIConvNet(4, in_channels=1, optimizer=sgd)
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
        >>> trainer = Trainer(max_epochs=1, callbacks=[FixedNorm(norm=2.0)], enable_model_summary=False, **quiet)
        >>> trainer.fit(module, Digits(train_size=256))
        >>> print(round(joint_norm([p for p in module.parameters() if p.requires_grad]).item(), 5))
        2.0
    """

    def __init__(
        self,
        norm: float | None = None,
        from_epoch: int = 0,
        from_step: int | None = None,
        granularity: NormGranularity = "joint",
        per: Literal["joint", "group"] | None = None,
        example_input: Any = None,
        network: Network = None,
        groups: GroupNames | None = None,
    ) -> None:
        self.group_options = GroupOptions(example_input, network, groups)
        super().__init__()
        if norm is not None and not (math.isfinite(norm) and norm > 0):
            raise ValueError(f"FixedNorm: norm must be positive and finite, got {norm}")
        if from_epoch < 0 or (from_step is not None and from_step < 0):
            raise ValueError(f"FixedNorm: must begin at 0 or later, got from_epoch {from_epoch}, from_step {from_step}")
        if from_epoch and from_step is not None:
            raise ValueError("FixedNorm: both from_epoch and from_step are given; leave one out")
        granularity = granularity_of("FixedNorm", granularity, "joint", per=per)
        known = get_args(NormGranularity)
        if granularity not in known:
            raise ValueError(f"FixedNorm: granularity must be one of {', '.join(known)}, got {granularity!r}")
        self.norm, self.from_epoch, self.from_step, self.granularity = norm, from_epoch, from_step, granularity
        self._groups: list[list[Tensor]] = []
        self._keeper: NormKeeper | None = None
        self._norms: list[float] = []  # once fixing has begun

    @property
    def changes(self) -> set[str]:
        """The norm."""
        return {"norm"}

    @property
    def state_key(self) -> str:
        """Differs between two of one trainer."""
        per = "group" if self.granularity == "tensor" else self.granularity  # as in the checkpoints of 0.1
        return self._generate_state_key(norm=self.norm, from_epoch=self.from_epoch, from_step=self.from_step, per=per)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check optimizers, strategy and callbacks, and find the groups if the module has an example input."""
        if any(isinstance(optimizer, SphereSGD) for optimizer in trainer.optimizers):
            raise ValueError(
                "FixedNorm: SphereSGD keeps the norm already; remove FixedNorm, or train in the whole space (elr null, "
                "torch.optim.SGD)"
            )
        if is_a(trainer.strategy, FSDPStrategy):
            raise ValueError("FixedNorm: FSDP1 would have each shard rescaled by itself; use --trainer.strategy ddp")
        others = [each for each in trainer.callbacks if isinstance(each, FixedNorm) and each is not self]  # type: ignore[attr-defined]
        if others:
            raise ValueError("FixedNorm: there are two of them, which would fight over the norm; remove one")
        self._detach()
        self._groups, self._sure = [], False
        self._find(trainer, groups_of(self, pl_module))

    def _find(self, trainer: Trainer, groups: list[Group] | None) -> None:
        if groups is None:
            return
        trained = {p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        for group in groups:
            if not trained.issuperset(group.parameters):
                raise ValueError(
                    f"FixedNorm: no optimizer trains the scale-invariant group {group.name} as a whole; "
                    "give all its parameters to the optimizers, or freeze them"
                )
        together: list[Tensor] = list(dict.fromkeys(p for group in groups for p in group.parameters))
        self._groups = [list(group.parameters) for group in groups] if self.granularity == "tensor" else [together]
        if self._norms and len(self._norms) != len(self._groups):
            raise ValueError(
                f"FixedNorm: the checkpoint holds the norms of {len(self._norms)} groups, the module has "
                f"{len(self._groups)}; take the module that it was saved with"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to fix the norm when it is time; go on with it after a resume."""
        if self._keeper is not None:
            return
        if not self._sure:  # hooks at the start of training may have frozen norm layers since
            self._find(trainer, groups_of(self, pl_module, batch))
            if not self._groups:
                return  # a batch that the training step skips
            self._sure = True
        reached = trainer.current_epoch >= self.from_epoch
        if self.from_step is not None:
            reached = trainer.global_step >= self.from_step
        if self._norms:
            self._keeper = NormKeeper(self._groups, self._norms)
        elif reached:
            # From the start on nothing changes for those that look at the run.
            changes = dynamics_change(trainer, pl_module, trainer.current_epoch)
            with changes if trainer.global_step else nullcontext():
                self._keeper = self._begin()
            self._announce(trainer, math.hypot(*self._keeper.norms))
        else:
            return
        fixed = {p for group in self._groups for p in group}
        self._keeper.attach(
            *(
                optimizer
                for optimizer in trainer.optimizers
                if any(p in fixed for group in optimizer.param_groups for p in group["params"])
            )
        )

    def _announce(self, trainer: Trainer, norm: float) -> None:
        epoch, step = trainer.current_epoch, trainer.global_step
        rank_zero_info(f"FixedNorm: from epoch {epoch}, step {step} on, ρ = {norm:.5g}")
        log_numbers(trainer, {"epoch": epoch, "switch/fixed_norm": norm}, max(0, step - 1))

    def _begin(self) -> NormKeeper:
        norms = NormKeeper(self._groups).norms
        if self.norm is not None:
            scale = self.norm / math.hypot(*norms)
            norms = [scale * norm for norm in norms]
        keeper = NormKeeper(self._groups, norms)
        if self.norm is not None:
            keeper.rescale()
        self._norms = keeper.norms
        return keeper

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if fixing never began."""
        if not self._norms:
            rank_zero_warn(
                f"FixedNorm: the run ended after {trainer.current_epoch} epochs and {trainer.global_step} steps, "
                "before fixing began: it changed nothing; begin earlier or train longer"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers alone."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizers alone."""
        self._detach()

    def _detach(self) -> None:
        if self._keeper is not None:
            self._keeper.detach()
        self._keeper = None

    def state_dict(self) -> dict[str, Any]:
        """Give the norms that are kept; none before fixing began."""
        return {"norms": list(self._norms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with these norms."""
        self._norms = list(state_dict["norms"])
