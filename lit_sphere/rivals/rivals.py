"""Copies of a network in training that other optimizers train beside it, on the same batches."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_sphere.analysis import Directions
from lit_sphere.observe.quiet_step import StepLoss
from lit_sphere.rivals.network_copy import NetworkCopy, OptimizerCallable

_SAME_GRADIENT = 1e-2  # relative: far above what the order of sums changes, far below what another loss does
_SAME_LOSS = 1e-2


class ComparedCopies:
    """Copies of a run's network that begin at its present weights and buffers.

    Args:
        name: Of the callback, for errors.
        trainer: The trainer.
        pl_module: Its module.
        optimizers: What makes each copy's own optimizer, by name.
        own: Parameters that these train, in groups (one group: given as a plain list).
        main: Number of the run's optimizer that trains them.
        state: Of earlier copies, to go on from.
        step: The loss by the training step; None for that of logits.

    Attributes:
        main: As above.
        steps: Steps taken so far, of all of the run's optimizers.

    Raises:
        ValueError: If an optimizer cannot train them, or is of another kind than in the state.
    """

    def __init__(
        self,
        name: str,
        trainer: Trainer,
        pl_module: LightningModule,
        optimizers: Mapping[str, OptimizerCallable],
        own: Sequence[Sequence[Tensor]],
        main: int,
        state: Mapping[str, Any] | None = None,
        step: StepLoss | None = None,
    ) -> None:
        self._name, self._trainer, self._module, self.main = name, trainer, pl_module, main
        with self._apart():
            self._copies = {
                each: NetworkCopy(name, each, make, trainer, pl_module, own, step) for each, make in optimizers.items()
            }
        self._by_logits = step is None
        self._start: dict[Tensor, Tensor] = {p: p.detach().clone() for group in own for p in group}
        self._batches = [0] * len(trainer.optimizers)  # taken since the last step of each optimizer
        self._passed: Tensor | None = None  # sum of what the run has passed to its backward passes of this batch
        self._parts: int | None = None  # what a module divides its loss by under manual optimisation
        self.steps = 0
        self._unchecked, self._run_grads = state is None, list[Tensor]()
        if state is not None:
            self.steps, self._parts = state["steps"], state["parts"]
            self._start = {p: was.to(p.device) for p, was in zip(self._start, state["start"], strict=True)}
            for each, one in self._copies.items():
                one.load_state(state["copies"][each])

    def learn(self, batch: Any, batch_idx: int) -> None:
        """Compute each copy's gradient of a batch, with the random numbers that the run will draw next.

        Args:
            batch: Of the run.
            batch_idx: Its number.
        """
        self._passed = None
        for one in self._copies.values():
            one.drop()  # one that lies there is of a batch that the run has left before its end
            with self._apart(), torch.enable_grad():
                one.learn(batch, batch_idx, self._trainer.accumulate_grad_batches)

    def see_backward(self, loss: Tensor) -> None:
        """Note that the run takes the batch.

        Args:
            loss: What is about to be differentiated.
        """
        if self._passed is None:
            for number, run in enumerate(self._trainer.optimizers):
                if self._batches[number] and not _has_gradient(run):  # dropped by the run without a step
                    self._forget(number)
        loss = loss.detach().double()
        self._passed = loss if self._passed is None else self._passed + loss

    def accumulate(self) -> None:
        """Add the gradients of the batch up, if the run has taken it and that is not done yet."""
        if self._passed is None or self._waiting is None:
            return
        left = 1
        if not self._module.automatic_optimization:
            left = self._parts = self._parts or _parts(self._waiting, self._passed)
        for one in self._copies.values():
            one.accumulate(left)
        self._batches = [count + 1 for count in self._batches]

    @property
    def _waiting(self) -> Tensor | None:
        return next(iter(self._copies.values())).waiting

    @property
    def _on_cuda(self) -> bool:
        return self._module.device.type == "cuda"

    def _apart(self) -> AbstractContextManager[None]:
        """Let the run's random generators be."""
        context: AbstractContextManager[None] = isolate_rng(include_cuda=self._on_cuda)
        return context

    def see_gradients(self, optimizer: Optimizer) -> None:
        """Keep the run's gradients of the first step.

        Args:
            optimizer: That of the run which is about to step.
        """
        if self._unchecked and optimizer is self._trainer.optimizers[self.main] and _has_gradient(optimizer):
            params = (p for group in optimizer.param_groups for p in group["params"])
            self._run_grads = [_gradient(p).clone() for p in params if p.requires_grad]

    def before_step(self, number: int) -> None:
        """Take over the options that the run's optimizer will step with.

        Args:
            number: Of the run's optimizer.
        """
        for one in self._copies.values():
            one.follow(number)

    def step(self, number: int) -> None:
        """Step as one of the run's optimizers just did.

        Args:
            number: Of the run's optimizer.

        Raises:
            ValueError: If the run's first step was not that of the same batches' losses, or there was no batch
                since the last step.
        """
        self.accumulate()
        run = self._trainer.optimizers[number]
        if not _has_gradient(run):  # the training step has skipped all batches
            self._forget(number)
            return
        if not self._batches[number]:
            raise ValueError(self._cannot_follow(run))
        self._batches[number] = 0
        for one in self._copies.values():
            self._average([p.grad for p in one.trained[number] if p.grad is not None])
        if self._run_grads:
            self._check(next(iter(self._copies.values())))
        self.steps += 1
        for one in self._copies.values():
            self._clip(one.trained[number])
            with self._apart():
                # Optimizers that draw shall draw other numbers at each step.
                torch.default_generator.manual_seed(self.steps)
                if self._on_cuda:
                    torch.cuda.manual_seed(self.steps)
                one.step(number, owns=number == self.main)

    def _forget(self, number: int) -> None:
        self._batches[number] = 0
        for one in self._copies.values():
            one.forget(number)

    def _cannot_follow(self, run: Optimizer) -> str:
        if self._passed is not None:
            how, remedy = "steps more than once a batch", ""
        else:
            how = "steps on a gradient of no batch since its last step"
            remedy = "take self.manual_backward(loss) and zero_grad(set_to_none=True), or "
        return f"{self._name}: {type(run).__name__} {how}, which rivals cannot follow; {remedy}leave {self._name} out"

    def _average(self, grads: Sequence[Tensor]) -> None:
        """Over the ranks, all at once."""
        if self._trainer.world_size == 1 or not grads:
            return
        flat = self._trainer.strategy.reduce(torch.cat([g.reshape(-1) for g in grads]), reduce_op="mean")
        assert isinstance(flat, Tensor)
        for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view(grad.shape))

    def _clip(self, params: Sequence[Tensor]) -> None:
        most = self._trainer.gradient_clip_val
        if not most:
            return
        if self._trainer.gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(params, most)
        else:
            nn.utils.clip_grad_norm_(params, most)

    def _check(self, one: NetworkCopy) -> None:
        """The copy's weights were the run's: so must be its gradient."""
        pairs = list(zip(self._run_grads, map(_gradient, one.trained[self.main]), strict=True))
        self._run_grads, self._unchecked = [], False
        norm = math.hypot(*(float(run.double().norm()) for run, _ in pairs))
        error = math.hypot(*(float((run.double() - copy.double()).norm()) for run, copy in pairs))
        if math.isfinite(norm) and error > _SAME_GRADIENT * norm:
            module = type(self._module).__name__
            how, remedy = "the loss of a training step", "take one loss a step, which nothing that it keeps changes, "
            if self._by_logits:
                how = "criterion(module(inputs), labels)"
                remedy = f"give {module} a method criterion(outputs, labels) with the same loss, "
            raise ValueError(
                f"{self._name}: rivals learn by {how}, whose gradient is not that of "
                f"{module}.training_step (it differs by {error / norm:.0%} at the first step); {remedy}leave changes "
                f"of the batch to on_after_batch_transfer and clipping to the trainer, or leave {self._name} out"
            )

    def measure(self, directions: Directions) -> dict[str, float]:
        """Measure how far the copies are from the run now, and their mean losses since the last time, over all ranks.

        Args:
            directions: Compares weights that the copies' own optimizers train.

        Returns:
            ``NAME_distance_max`` and ``NAME_distance_median``, also of the weights at the ``start``; ``NAME_loss``.
        """
        params = directions.params
        others = {"start": [self._start[p] for p in params]}
        others |= {name: [one.copies[p] for p in params] for name, one in self._copies.items()}
        found: dict[str, float] = {}
        for name, tensors in others.items():
            distances = directions.distances(params, tensors)
            largest, median = torch.stack([distances.max(), distances.quantile(0.5)]).tolist()
            found |= {f"{name}_distance_max": largest, f"{name}_distance_median": median}
        for name, one in self._copies.items():
            found |= {f"{name}_{quantity}": mean for quantity, mean in one.loss.means(self._trainer).items()}
            one.loss.reset()
        return found

    def state(self) -> dict[str, Any]:
        """Give what the constructor takes: tensors and plain values."""
        copies = {name: one.state() for name, one in self._copies.items()}
        return {"steps": self.steps, "parts": self._parts, "start": list(self._start.values()), "copies": copies}


def _parts(loss: Tensor, passed: Tensor) -> int:
    """Find what a module divides its losses by; 1 where it is no whole number, which the first step will show."""
    ratio = float(loss.double() / passed)
    parts = round(ratio) if math.isfinite(ratio) else 1
    return parts if parts > 1 and abs(ratio - parts) < _SAME_LOSS * parts else 1


def _has_gradient(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _gradient(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad.detach()
