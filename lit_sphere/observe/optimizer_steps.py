"""An optimizer's real steps, and what they do to the scale-invariant groups: measured once for all who watch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lit_sphere.effective import (
    EffectiveQuantities,
    Source,
    StepMeans,
    StepTrace,
    mean_of_state,
    rounds_steps,
    source_of,
)
from lit_sphere.effective.step_options import StepOptions
from lit_sphere.groups import Group, GroupGranularity
from lit_sphere.observe.both_lightnings import overrides
from lit_sphere.observe.module_groups import (
    NoGroups,
    groups_of_one_optimizer,
    modules_in_eval_mode,
    short_names,
)
from lit_sphere.observe.watched_groups import Watch, WatchedGroups, stay_out, watched_groups
from lit_sphere.optim import Granularity


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


class StepWatch:
    """Says when an optimizer step is to be measured, and holds the means over these steps, for one callback.

    The callback passes its hooks on. All watches of the same groups share one observation of a step
    (:class:`SharedQuantities`), so that several monitors cost about as much as one and log the same numbers.

    Works under automatic and manual optimisation, with gradient accumulation, clipping, a gradient scaler that skips
    steps, and optimizers that call another's step. Of several optimizers the one that trains most of the groups as
    wholes is watched. If it is replaced in the middle of a run, or its momentum switched on, the groups are found
    again. Gradient norms are those of the unscaled gradients before Lightning clips them.

    Where there is nothing to watch it warns, and stays out for the rest of the run.

    Args:
        owner: The callback, to be named in errors.
        on_measured: Called at every step that is measured; it calls ``watch.means.add()``.
        every_n_steps: Every n-th step is measured.
        granularity: ``tensor``, ``filter``, or ``joint`` for all groups as one.
        announces: Print once where ``elr`` and ``ess`` come from; for callbacks that log them.
        watch: Which groups; all but ``scale_invariant`` have ``gradient_radial`` measured as well.
        kind: What keeps the measured steps.

    Attributes:
        means: Means over the measured steps; None before the groups are found.
        names: Short names of the groups; none for ``joint``.
        others: Those of them that are not scale-invariant.
        stays_out: There is nothing to watch.
        parameters: The tensors of the groups, each once, as keys.
        source: Where the numbers come from; None before the groups are found.
        steps: Real steps so far.
    """

    def __init__(
        self,
        owner: Callback,
        on_measured: Callable[[Trainer], None],
        every_n_steps: int = 1,
        granularity: Granularity = "tensor",
        announces: bool = True,
        watch: Watch = "scale_invariant",
        kind: type[StepMeans] = StepMeans,
    ) -> None:
        self._owner, self._on_measured, self._every, self._kind = owner, on_measured, every_n_steps, kind
        self._granularity, self._announces, self._watch = granularity, announces, watch
        self.means: StepMeans | None = None
        self.names: list[str] = []
        self.others: frozenset[str] = frozenset()
        self.stays_out = False
        self.parameters: dict[nn.Parameter, None] = {}
        self.source: Source | None = None
        self.steps = 0
        self._restored: dict[str, Any] = {}
        self._trainer: Trainer | None = None
        self._shared: _SharedSteps | None = None
        self._quantities: SharedQuantities | None = None

    def fit_start(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Find the groups before training, if the module says what its input looks like.

        Args:
            trainer: The trainer.
            pl_module: Its module.

        Returns:
            Whether a saved state is gone on from.
        """
        self.detach()
        self.means, self.stays_out = None, False
        resumed = bool(self._restored)
        if not resumed:
            self.steps = 0
        self._scales = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._altered = self._scales or clips_gradients(trainer, pl_module)
        self._find(trainer, pl_module)
        self._modes: list[str] | None = modules_in_eval_mode(pl_module)
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
        # Hooks at the start of training may have frozen norm layers since.
        frozen, self._modes = self._modes is not None and self._modes != modules_in_eval_mode(pl_module), None
        if self.stays_out and not frozen:
            return
        if (
            frozen
            or self.means is None
            or self.optimizer not in trainer.optimizers
            or source_of(self.optimizer, self._altered, self._rounded) != self.source
        ):
            self._find(trainer, pl_module, batch)

    def before_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Measure where that is done before the step; note the gradients otherwise.

        Args:
            trainer: The trainer.
            optimizer: The optimizer of ``on_before_optimizer_step``.
        """
        if self._quantities is None or not self.is_watched(optimizer):
            return
        self._quantities.arrive(self)
        due = self.is_due
        if self.source == "gradients":
            self.steps += 1
            if due:
                self._on_measured(trainer)
        elif due and not (self._scales and getattr(self.optimizer, "_step_supports_amp_scaling", False)):
            # Not yet clipped, nor changed in place by the step. (Scaled gradients a fused step unscales itself.)
            self._quantities.keep_gradients()

    def after_step(self) -> None:
        """Measure where that is done after the step; called by the optimizer's hook."""
        if self.source == "gradients" or self._trainer is None:
            return
        due = self.is_due
        self.steps += 1
        if due:
            self._on_measured(self._trainer)

    @property
    def is_due(self) -> bool:
        """Whether the next real step is measured."""
        return self.steps % self._every == 0

    def is_watched(self, optimizer: Optimizer) -> bool:
        """Return whether this, or what it wraps, is the watched optimizer."""
        return self.means is not None and getattr(optimizer, "optimizer", optimizer) is self.optimizer

    def learning_rate(self) -> float:
        """Give the present (effective) learning rate of the parameter group that trains the first group."""
        groups = self.optimizer.param_groups if self.means is None else self.means.quantities.param_groups
        group = groups[0]
        return float(group["elr"] if group.get("elr") is not None else group["lr"])

    def mean(self) -> Tensor | None:
        """Give the means since the last call; those that were restored, where no batch has come since.

        Returns:
            Float64 of shape (quantities, 1 + groups); None if nothing was measured.
        """
        return mean_of_state(self._restored.get("means", {})) if self.means is None else self.means.mean()

    def trace(self) -> Tensor | None:
        """Give the totals of each step since the last call, where they are kept (:class:`StepTrace`); as :meth:`mean`.

        Returns:
            Float64 of shape (steps, quantities); None if nothing was measured.
        """
        if isinstance(self.means, StepTrace):
            return self.means.trace()
        restored = self._restored.get("means", {}).get("trace", [])
        return torch.cat(restored) if restored else None

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        if self._shared is not None:
            self._shared.leave(self)
        self._shared = self._quantities = self._trainer = None

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

    def _find(self, trainer: Trainer, pl_module: LightningModule, batch: Any = None) -> None:
        granularity: GroupGranularity = "filter" if self._granularity == "filter" else "tensor"
        try:
            found = watched_groups(self._owner, pl_module, batch, granularity, self._watch, rows=True)
            if found is None:
                return
            number, watched = groups_of_one_optimizer(self._owner, trainer, found.groups, "watches")
        except NoGroups as reason:
            self.detach()
            self.means, self.stays_out = None, True
            stay_out(self._owner, trainer, reason, hint=self._watch == "scale_invariant")
            return
        self._begin(trainer, number, WatchedGroups(watched, found.others))

    def _begin(self, trainer: Trainer, number: int, found: WatchedGroups) -> None:
        self.detach()
        watched, several = found.groups, self._granularity != "joint"
        self.optimizer, self._trainer = trainer.optimizers[number], trainer
        self.names = short_names(watched) if several else []
        marked = zip(self.names, watched, strict=several)
        self.others = frozenset(name for name, group in marked if group in found.others)
        # Passes differentiate by whole tensors: queries and keys that share one with the values are left to the steps.
        whole = watched if self._granularity == "filter" else [group for group in watched if group.rows is None]
        self.parameters = dict.fromkeys(p for group in whole or watched for p in group.parameters)
        self._rounded = rounds_steps(p for group in watched for p in group.parameters)
        if not several and len(whole) == len(watched):
            watched = [Group("total", tuple(self.parameters))]
        before = self._restored.get("means", {}) if self.means is None else self.means.state()
        self._shared = _SharedSteps.of(self.optimizer)
        strict = self._watch == "scale_invariant"
        self._quantities = self._shared.join(self, watched, self._altered, not strict)
        self.means = self._kind(self._quantities)
        self.means.load_state(before)
        self._restored = {}
        if self._announces:
            self._announce(self._quantities.source)
        if self.others and self.source is None:
            rank_zero_info(
                f"{type(self._owner).__name__} watches {len(self.names)} groups, {len(self.others)} of them not "
                "scale-invariant: see gradient_radial/…"
            )
        self.source = self._quantities.source

    def _announce(self, source: Source) -> None:
        who, kind = f"{type(self._owner).__name__}: ", type(self.optimizer).__name__
        if source == "state" and self.source != source:
            rank_zero_info(f"{who}elr/… and ess/… come from the own state of {kind} (SP Theorem 2)")
        elif source == "weights" and self.source != source:
            why = "clipped or scaled gradients" if self._altered else "no step that is known"
            why = "parameters of half precision, to which its steps are rounded" if self._rounded else why
            rank_zero_info(
                f"{who}{kind} has {why}: ess/… and angle/… are measured from the weights before and after each "
                "step, and elr/… = ess/… / effective_grad_norm/…"
            )


def clips_gradients(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Return whether gradients may be clipped between the backward pass and the step.

    Args:
        trainer: The trainer.
        pl_module: Its module.

    Returns:
        Whether the trainer clips, or the module has a clipping of its own.
    """
    return bool(trainer.gradient_clip_val) or overrides("configure_gradient_clipping", pl_module)


class SharedQuantities(EffectiveQuantities):
    """Effective quantities that are observed once a step, for the callback that needs them first, and given to all.

    Args:
        groups: As of :class:`~lit_sphere.effective.EffectiveQuantities`.
        optimizer: As there.
        altered: As there.
        radial_gradients: As there.
    """

    def __init__(
        self, groups: Sequence[Group], optimizer: Optimizer, altered: bool, radial_gradients: bool = False
    ) -> None:
        super().__init__(groups, optimizer, altered, radial_gradients)
        self._key = _key(groups)
        self._arrived: set[StepWatch] = set()
        self._has_gradients = False
        self._observed: Tensor | None = None
        self._observed_with: StepOptions | None = None

    def measures(self, groups: Sequence[Group], source: Source, radial_gradients: bool = False) -> bool:
        """Return whether these are the same quantities of the same tensors in the same groups, from the same source.

        Args:
            groups: Groups.
            source: Where the numbers come from.
            radial_gradients: Whether ⟨x, ∇⟩ is measured.

        Returns:
            Whether an observation can be shared.
        """
        same = self.source == source and self._radial_gradients == radial_gradients
        return same and self._key == _key(groups)

    def arrive(self, watch: StepWatch) -> None:
        """Note that a watch has come to the point right before a step.

        One that is there for the second time has come to other gradients: the step before was skipped by a gradient
        scaler, or this one calls its closure several times.

        Args:
            watch: The watch.
        """
        if watch in self._arrived:
            self.forget()
        self._arrived.add(watch)

    def keep_gradients(self) -> None:
        """Note the norms of the present gradients, once a step."""
        if not self._has_gradients:
            super().keep_gradients()
            self._has_gradients = True

    def observe(self) -> Tensor:
        """Take what the quantities are worked out from, once a step.

        Returns:
            As of :meth:`~lit_sphere.effective.EffectiveQuantities.observe`; the same tensor to all callers.
        """
        # A callback between two callers may have changed them. Not read elsewhere: that may wait for the device.
        options = self._options.now() if self._blocks else None
        if self._observed is None or self._observed_with is not options:
            self._observed, self._observed_with = super().observe(), options
        return self._observed

    def forget(self) -> None:
        """Let go of what was observed: the next step is another."""
        self._arrived.clear()
        self._has_gradients, self._observed, self._observed_with = False, None, None


def _key(groups: Sequence[Group]) -> list[tuple[Any, ...]]:
    # Tensors by identity; the quantities hold them, so that these numbers stay theirs.
    return [(group.rows, *map(id, group.parameters)) for group in groups]


class _SharedSteps:
    """The real steps of one optimizer, hooked once for all who watch it.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._watches: dict[StepWatch, SharedQuantities] = {}
        self._real_steps = RealSteps([optimizer], self._before, self._after)

    @classmethod
    def of(cls, optimizer: Optimizer) -> "_SharedSteps":
        """Give those of an optimizer, the same to all who watch it."""
        shared = _steps.get(id(optimizer))
        if shared is None:
            shared = _steps[id(optimizer)] = cls(optimizer)
        return shared

    def join(
        self, watch: StepWatch, groups: Sequence[Group], altered: bool, radial_gradients: bool
    ) -> SharedQuantities:
        """Let a watch know of the steps; give the quantities of its groups, those of another watch if it has them."""
        source = source_of(self._optimizer, altered, rounds_steps(p for group in groups for p in group.parameters))
        known = (each for each in self._watches.values() if each.measures(groups, source, radial_gradients))
        shared = next(known, None) or SharedQuantities(groups, self._optimizer, altered, radial_gradients)
        self._watches[watch] = shared
        return shared

    def leave(self, watch: StepWatch) -> None:
        """Forget a watch; with the last one the hooks go, too."""
        self._watches.pop(watch, None)
        if not self._watches:
            self._real_steps.detach()
            _steps.pop(id(self._optimizer), None)

    def _before(self, _: int) -> None:
        for quantities in {quantities for watch, quantities in self._watches.items() if watch.is_due}:
            quantities.keep_weights()

    def _after(self, _: int) -> None:
        for watch in list(self._watches):
            watch.after_step()
        for quantities in self._watches.values():
            quantities.forget()


# By identity, which the value's own reference to the optimizer keeps unique; gone with the last watch.
_steps: WeakValueDictionary[int, _SharedSteps] = WeakValueDictionary()
