"""Copies of a network in training that other optimizers train beside it, on the same batches."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from lit_sphere.analysis import Directions
from lit_sphere.callbacks._fixed_weights import criterion_of
from lit_sphere.callbacks._running_loss import add_loss, mean_loss
from lit_sphere.callbacks._twin_optimizer import TwinOptimizer, needs_closure

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
_SAME_GRADIENT = 1e-2  # relative: far above what the order of sums changes, far below what another loss does


class Rivals:
    """Rivals of a run that begin at its present weights and buffers.

    Args:
        name: Of the callback, for errors.
        trainer: The trainer.
        pl_module: Its module.
        optimizers: What makes each rival's own optimizer, by name.
        own: Parameters that these train, in groups (one group: given as a plain list).
        main: Number of the run's optimizer that trains them.
        state: Of earlier rivals, to go on from.

    Raises:
        ValueError: If an optimizer cannot train them.
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
    ) -> None:
        self._name, self._trainer, self._module, self.main = name, trainer, pl_module, main
        with self._apart():
            self._rivals = {each: _Rival(name, each, make, self, own) for each, make in optimizers.items()}
        self._start: dict[Tensor, Tensor] = {p: p.detach().clone() for group in own for p in group}
        self._batches = [0] * len(trainer.optimizers)  # since the last step of each optimizer
        self._steps = 0  # of all optimizers
        self._unchecked, self._run_grads = state is None, list[Tensor]()
        if state is not None:
            self._steps = state["steps"]
            self._start = {p: was.to(p.device) for p, was in zip(self._start, state["start"], strict=True)}
            for each, rival in self._rivals.items():
                rival.load_state(state["rivals"][each])

    def learn(self, batch: Any) -> None:
        """Add each rival's gradient of a batch up, with the random numbers that the run will draw next.

        Args:
            batch: Inputs and labels.
        """
        automatic = self._module.automatic_optimization
        scale = self._trainer.accumulate_grad_batches if automatic else 1
        for rival in self._rivals.values():
            with self._apart(), torch.enable_grad():
                rival.learn(batch, scale)
        self._batches = [count + 1 for count in self._batches]

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
        for rival in self._rivals.values():
            rival.follow(number)

    def step(self, number: int) -> None:
        """Step as one of the run's optimizers just did.

        Args:
            number: Of the run's optimizer.

        Raises:
            ValueError: If the run's first step was not that of the same batches' mean loss, or there was no batch
                since the last step.
        """
        run = self._trainer.optimizers[number]
        count, self._batches[number] = self._batches[number], 0
        if not count:
            raise ValueError(
                f"{self._name}: {type(run).__name__} steps more than once a batch, which rivals cannot follow; leave "
                f"{self._name} out"
            )
        if not _has_gradient(run):  # the training step has skipped the batch
            for rival in self._rivals.values():
                rival.forget(number)
            return
        for rival in self._rivals.values():
            grads = [p.grad for p in rival.trained[number] if p.grad is not None]
            if count > 1 and not self._module.automatic_optimization:
                torch._foreach_div_(grads, count)
            self._average(grads)
        if self._run_grads:
            self._check(next(iter(self._rivals.values())))
        self._steps += 1
        for rival in self._rivals.values():
            self._clip(rival.trained[number])
            with self._apart():
                # Optimizers that draw shall draw other numbers at each step.
                torch.default_generator.manual_seed(self._steps)
                if self._on_cuda:
                    torch.cuda.manual_seed(self._steps)
                rival.step(number)

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
        if not most or not self._module.automatic_optimization:
            return
        if self._trainer.gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(params, most)
        else:
            nn.utils.clip_grad_norm_(params, most)

    def _check(self, rival: "_Rival") -> None:
        """The rival's weights were the run's: so must be its gradient."""
        pairs = list(zip(self._run_grads, map(_gradient, rival.trained[self.main]), strict=True))
        self._run_grads, self._unchecked = [], False
        norm = math.hypot(*(float(run.double().norm()) for run, _ in pairs))
        error = math.hypot(*(float((run.double() - mine.double()).norm()) for run, mine in pairs))
        if math.isfinite(norm) and error > _SAME_GRADIENT * norm:
            module = type(self._module).__name__
            raise ValueError(
                f"{self._name}: rivals learn by criterion(module(inputs), labels), whose gradient is not that of "
                f"{module}.training_step (it differs by {error / norm:.0%} at the first step); give {module} a method "
                f"criterion(outputs, labels) with the same loss, leave changes of the batch to on_after_batch_transfer "
                f"and clipping to the trainer, or leave {self._name} out"
            )

    def measure(self, directions: Directions) -> dict[str, float]:
        """Measure how far the rivals are from the run now, and their mean losses since the last time, over all ranks.

        Args:
            directions: Compares weights that the rivals' own optimizers train.

        Returns:
            ``NAME_distance_max`` and ``NAME_distance_median``, also of the weights at the ``start``; ``NAME_loss``.
        """
        params = directions.params
        others = {"start": [self._start[p] for p in params]}
        others |= {name: [rival.copies[p] for p in params] for name, rival in self._rivals.items()}
        found: dict[str, float] = {}
        for name, tensors in others.items():
            distances = directions.distances(params, tensors)
            largest, median = torch.stack([distances.max(), distances.quantile(0.5)]).tolist()
            found |= {f"{name}_distance_max": largest, f"{name}_distance_median": median}
        for name, rival in self._rivals.items():
            found |= mean_loss(f"{name}_loss", rival.losses, self._trainer)
            rival.losses = None
        return found

    def state(self) -> dict[str, Any]:
        """Give what the constructor takes: tensors and plain values."""
        rivals = {name: rival.state() for name, rival in self._rivals.items()}
        return {"steps": self._steps, "start": list(self._start.values()), "rivals": rivals}

    @property
    def run(self) -> tuple[LightningModule, list[Optimizer]]:
        """The module, and the optimizers that it is trained by."""
        return self._module, self._trainer.optimizers

    def loss_of(self, tensors: dict[str, Any], batch: Any) -> Tensor:
        """Evaluate the module at other weights, in the precision of the run's training step."""
        with self._trainer.precision_plugin.train_step_context():
            # A network may change its inputs in place, and the run needs them as they are.
            outputs = functional_call(self._module, tensors, (batch[0].clone(),))
            return criterion_of(self._module)(outputs, batch[1])


class _Rival:
    """One copy: its tensors by the module's names, its own optimizer, and copies of the run's for all the rest."""

    def __init__(
        self, asks: str, name: str, make: OptimizerCallable, rivals: Rivals, own: Sequence[Sequence[Tensor]]
    ) -> None:
        module, optimizers = rivals.run
        self._rivals = rivals
        params = [[p for g in each.param_groups for p in g["params"] if p.requires_grad] for each in optimizers]
        self.copies: dict[Tensor, nn.Parameter] = {
            p: nn.Parameter(p.detach().clone()) for group in params for p in group
        }
        self.trained = [[self.copies[p] for p in group] for group in params]
        self._leaves = list(self.copies.values())
        self._tensors: dict[str, Tensor] = {
            n: self.copies[p] for n, p in module.named_parameters() if p in self.copies
        } | {n: buffer.detach().clone() for n, buffer in module.named_buffers()}
        self.losses: Tensor | None = None  # their sum and number
        groups: list[Any] = [{"params": [self.copies[p] for p in group]} for group in own]
        try:
            self._own = make(groups if len(groups) > 1 else groups[0]["params"])
        except Exception as error:
            raise ValueError(
                f"{asks}: {name} cannot train the scale-invariant weights ({error}); change its options in optimizers, "
                "or granularity"
            ) from error
        if needs_closure(self._own):
            raise ValueError(
                f"{asks}: {name} ({type(self._own).__name__}) evaluates the loss anew in its step, and rivals have one "
                "gradient a step; leave it out of optimizers"
            )
        mine = {p for group in own for p in group}
        self._twins = [TwinOptimizer(each, self.copies, mine) for each in optimizers]

    def learn(self, batch: Any, scale: int) -> None:
        loss = self._rivals.loss_of(self._tensors, batch)
        (loss / scale).backward(inputs=self._leaves)
        self.losses = add_loss(self.losses, loss)

    def follow(self, number: int) -> None:
        self._twins[number].follow(self._rivals.run[1][number])

    def step(self, number: int) -> None:
        if number == self._rivals.main:
            self._own.step()
        if self._twins[number].optimizer.param_groups:
            self._twins[number].optimizer.step()
        self.forget(number)

    def forget(self, number: int) -> None:
        for p in self.trained[number]:
            p.grad = None

    def state(self) -> dict[str, Any]:
        return {
            "tensors": {name: tensor.detach() for name, tensor in self._tensors.items()},
            "losses": self.losses,
            "own": self._own.state_dict(),
            "others": [twin.optimizer.state_dict() for twin in self._twins],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(state["tensors"][name])
        self._own.load_state_dict(state["own"])
        for twin, saved in zip(self._twins, state["others"], strict=True):
            twin.optimizer.load_state_dict(saved)
        self.losses = state["losses"]


def _has_gradient(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _gradient(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad.detach()
