"""An optimizer's real steps, and what they do to the scale-invariant groups."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lit_sphere.effective import EffectiveQuantities, Source, StepMeans, source_of
from lit_sphere.groups import Group
from lit_sphere.observe.module_groups import groups_of, groups_of_one_optimizer, short_names


class RealSteps:
    """Calls back around each real step: under accumulation, of several optimizers, of classes that call their parent's.

    Steps that a gradient scaler skips are none.

    Args:
        optimizers: The optimizers.
        before: Called with the optimizer's number before its step (and, where the step takes a closure, before that).
        after: The same after its step, its gradients still there.
    """

    def __init__(
        self, optimizers: Sequence[Optimizer], before: Callable[[int], None], after: Callable[[int], None]
    ) -> None:
        self._before, self._after = before, after
        self._depths = [0] * len(optimizers)
        self._hooks: list[RemovableHandle] = []
        for number, optimizer in enumerate(optimizers):
            self._hooks.append(optimizer.register_step_pre_hook(partial(self._enter, number)))
            self._hooks.append(optimizer.register_step_post_hook(partial(self._leave, number)))

    def detach(self) -> None:
        """Leave the optimizers as they were."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # The step of a subclass that calls its parent's runs the hooks of both.
    def _enter(self, number: int, *_: Any) -> None:
        self._depths[number] += 1
        if self._depths[number] == 1:
            self._before(number)

    def _leave(self, number: int, *_: Any) -> None:
        self._depths[number] -= 1
        if self._depths[number] == 0:
            self._after(number)


Views = Literal["tensor", "filter", "joint"]


class StepWatch:
    """Says when an optimizer step is measured; the owner passes its hooks on.

    Works under automatic and manual optimisation, with gradient accumulation, clipping, a gradient scaler that skips
    steps, and optimizers that call another's step. Of several optimizers the one that trains most of the groups is
    watched. If it is replaced in the middle of a run, or its momentum switched on, the watch begins anew.

    Args:
        owner: The callback, to be named in errors.
        take: Called at every measured step; it calls ``watch.means.add()``.
        every_n_steps: Every n-th step is measured.
        view: ``tensor``, ``filter``, or ``joint`` for all groups as one.
        tells: Say once where ``elr`` and ``ess`` come from; for callbacks that log them.

    Attributes:
        means: Means over the measured steps; None before the groups are found.
        names: Short names of the groups; none for ``joint``.
        source: Where the numbers come from; None before the groups are found.
        steps: Real steps so far.
    """

    def __init__(
        self,
        owner: Callback,
        take: Callable[[Trainer], None],
        every_n_steps: int = 1,
        view: Views = "tensor",
        tells: bool = True,
    ) -> None:
        self._owner, self._take, self._every, self._view, self._tells = owner, take, every_n_steps, view, tells
        self.means: StepMeans | None = None
        self.names: list[str] = []
        self.source: Source | None = None
        self.steps = 0
        self._restored: dict[str, Any] = {}
        self._real_steps: RealSteps | None = None

    def fit_start(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Find the groups before training, if the module says what its input looks like.

        Args:
            trainer: The trainer.
            pl_module: Its module.

        Returns:
            Whether a saved state is gone on from.
        """
        self.means = None
        resumed = bool(self._restored)
        if not resumed:
            self.steps = 0
        clips = bool(trainer.gradient_clip_val) or is_overridden("configure_gradient_clipping", pl_module)
        self._altered = clips or getattr(trainer.precision_plugin, "scaler", None) is not None
        self._find(trainer, self._groups(pl_module))
        return resumed

    def forget(self) -> None:
        """Begin anew, whatever was restored."""
        self._restored, self.steps = {}, 0

    def batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Find the groups from the inputs of the first batch otherwise; and again for another optimizer.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            batch: The batch.
        """
        if (
            self.means is None
            or self._optimizer not in trainer.optimizers
            or source_of(self._optimizer, self._altered) != self.source
        ):
            self._find(trainer, self._groups(pl_module, batch))

    def before_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Measure where that is done before the step; note the gradients otherwise.

        Args:
            trainer: The trainer.
            optimizer: The optimizer of ``on_before_optimizer_step``.
        """
        if self.means is None or not self.is_watched(optimizer):
            return
        due = self.steps % self._every == 0
        if self.source == "gradients":
            self.steps += 1
            if due:
                self._take(trainer)
        elif due and not getattr(self._optimizer, "_step_supports_amp_scaling", False):
            # Not yet clipped, nor changed in place by the step. (A fused step unscales them itself.)
            self.means.quantities.keep_gradients()

    def is_watched(self, optimizer: Optimizer) -> bool:
        """Say whether this, or what it wraps, is the watched optimizer."""
        return self.means is not None and getattr(optimizer, "optimizer", optimizer) is self._optimizer

    def rate(self) -> float:
        """Give the present (effective) learning rate of the parameter group that trains the first group."""
        groups = self._optimizer.param_groups if self.means is None else self.means.quantities.param_groups
        group = groups[0]
        return float(group["elr"] if group.get("elr") is not None else group["lr"])

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        if self._real_steps is not None:
            self._real_steps.detach()
        self._real_steps = None

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load_state` takes.

        Returns:
            Tensors and plain values.
        """
        means = self._restored.get("means", {}) if self.means is None else self.means.state()
        return {"means": means, "steps": self.steps, "source": self.source}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, once the groups are found.

        Args:
            state: As given by :meth:`state`.
        """
        self._restored, self.steps = state, state["steps"]

    def _groups(self, pl_module: LightningModule, batch: Any = None) -> list[Group] | None:
        return groups_of(self._owner, pl_module, batch, "filter" if self._view == "filter" else "tensor")

    def _find(self, trainer: Trainer, groups: list[Group] | None) -> None:
        if groups is None:
            return
        number, mine = groups_of_one_optimizer(self._owner, trainer, groups, "watches")
        self._optimizer = trainer.optimizers[number]
        self.names = short_names(mine)
        if self._view == "joint":
            self.names, mine = [], [Group("total", tuple(p for group in mine for p in group.parameters))]
        before = self._restored.get("means", {}) if self.means is None else self.means.state()
        self.means = StepMeans(EffectiveQuantities(mine, self._optimizer, self._altered))
        self.means.load_state(before)
        self._restored = {}
        if self._tells:
            self._say(self.means.quantities.source)
        self.source = self.means.quantities.source
        self._attach(trainer)

    def _say(self, source: Source) -> None:
        who, kind = f"{type(self._owner).__name__}: ", type(self._optimizer).__name__
        if source == "state" and self.source != source:
            rank_zero_info(f"{who}elr/… and ess/… come from the own state of {kind} (SP Theorem 2)")
        elif source == "weights" and self.source != source:
            why = "clipped or scaled gradients" if self._altered else "no step that is known"
            rank_zero_info(
                f"{who}{kind} has {why}: ess/… and angle/… are measured from the weights before and after each "
                "step, and elr/… = ess/… / effective_grad_norm/…"
            )

    def _attach(self, trainer: Trainer) -> None:
        """Be called around each real step, where the step is to be seen."""
        self.detach()
        if self.source != "gradients":
            after = partial(self._after_real_step, trainer)
            self._real_steps = RealSteps([self._optimizer], self._before_real_step, after)

    def _before_real_step(self, _: int) -> None:
        if self.means is not None and self.steps % self._every == 0:
            self.means.quantities.keep_weights()

    def _after_real_step(self, trainer: Trainer, _: int) -> None:
        self.steps += 1
        if (self.steps - 1) % self._every == 0:
            self._take(trainer)
