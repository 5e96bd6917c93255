"""A copy of a network in training that another optimizer trains beside it, and of the run's own optimizers."""

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_sphere.observe.passes import MACHINE_ERRORS, criterion_of
from lit_sphere.observe.quiet_step import StepLoss, quiet
from lit_sphere.observe.train_loss import TrainLoss, samples_in

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]


class NetworkCopy:
    """Tensors by the module's names, an optimizer of their own for some, and copies of the run's for all the rest.

    The gradient of a batch waits until it is known whether the run's ``training_step`` has taken the batch.

    Args:
        owner: Name of the callback, for errors.
        name: Of the copy.
        make: What makes its own optimizer.
        trainer: The trainer.
        pl_module: Its module.
        own: Parameters that its own optimizer trains, in groups (one group: given as a plain list).
        step: The loss by the training step; None for that of logits.

    Attributes:
        copies: Its tensor for each parameter of the run.
        trained: Its tensors, as each of the run's optimizers trains the originals.
        loss: Its mean loss since it was last measured.
        waiting: The loss of the batch whose gradient waits, a scalar; None if none does.

    Raises:
        ValueError: If the optimizer cannot train them, or owner for the loss several times a step.
    """

    def __init__(
        self,
        owner: str,
        name: str,
        make: OptimizerCallable,
        trainer: Trainer,
        pl_module: LightningModule,
        own: Sequence[Sequence[Tensor]],
        step: StepLoss | None = None,
    ) -> None:
        self._owner, self._name, self._trainer, self._module = owner, name, trainer, pl_module
        self._step_loss = step
        params = [[p for g in each.param_groups for p in g["params"] if p.requires_grad] for each in trainer.optimizers]
        self.copies: dict[Tensor, nn.Parameter] = {
            p: nn.Parameter(p.detach().clone()) for group in params for p in group
        }
        self.trained = [[self.copies[p] for p in group] for group in params]
        self._leaves = list(self.copies.values())
        self._tensors: dict[str, Tensor] = {
            n: self.copies[p] for n, p in pl_module.named_parameters() if p in self.copies
        } | {n: buffer.detach().clone() for n, buffer in pl_module.named_buffers()}
        if step is not None:  # which may write to what it does not train: a teacher that follows the network
            self._tensors |= {
                n: nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
                for n, p in pl_module.named_parameters()
                if p not in self.copies and type(p) is nn.Parameter
            }
        self.loss = TrainLoss()
        self.waiting: Tensor | None = None
        self._gradient: Sequence[Tensor | None] = ()  # of that batch
        self._samples = 0  # in it
        self._skips = False  # it has no loss here
        groups: list[Any] = [{"params": [self.copies[p] for p in group]} for group in own]
        try:
            self._own = make(groups if len(groups) > 1 else groups[0]["params"])
            _check_finite(self._own)
        except Exception as error:
            raise ValueError(
                f"{owner}: {name} cannot train the scale-invariant weights ({error}); change its options in "
                "optimizers, or granularity"
            ) from error
        if needs_closure(self._own):
            raise ValueError(
                f"{owner}: {name} ({type(self._own).__name__}) evaluates the loss anew in its step, and rivals have "
                "one gradient a step; leave it out of optimizers"
            )
        self._who, self._stepped = f"{owner}: {name}", False
        self._given: dict[str, Any] = {"class": type(self._own).__name__, "options": _options(self._own)}
        compared = {p for group in own for p in group}
        self._others = [OptimizerCopy(each, self.copies, compared) for each in trainer.optimizers]

    def learn(self, batch: Any, batch_idx: int, parts: int) -> None:
        """Compute the gradient of a batch, to wait.

        Args:
            batch: Of the run.
            batch_idx: Its number.
            parts: What the loss is divided by.
        """
        module, mine = self._module, self._tensors
        tensors = [*module.named_parameters(), *module.named_buffers()]
        stand_ins = {tensor: mine.get(name, tensor) for name, tensor in tensors}
        with self._trainer.precision_plugin.train_step_context(), quiet(module, stand_ins):
            found = self._loss_of(batch) if self._step_loss is None else self._step_loss.run(batch, batch_idx)
            # Inside: what was checkpointed is computed once more.
            loss = None if found is None else found[0]
            self._gradient = [None] * len(self._leaves)
            if loss is not None:
                self._gradient = torch.autograd.grad(loss / parts, self._leaves, allow_unused=True)
            self._tensors |= {name: buffer.detach() for name, buffer in module.named_buffers() if name in mine}
        self._skips = loss is None  # and the run perhaps does not
        self.waiting = torch.full((), math.nan) if loss is None else loss.detach()
        self._samples = samples_in(batch)

    def _loss_of(self, batch: Any) -> tuple[Tensor, int]:
        # A network may change its inputs in place, and the run needs them as they are.
        outputs = self._module(apply_to_collection(batch[0], Tensor, torch.clone))
        return criterion_of(self._module)(outputs, batch[1]), samples_in(batch)

    def accumulate(self, parts: int) -> None:
        """Add the gradient that waits up, and its loss.

        Args:
            parts: What it is to be divided by yet.
        """
        assert self.waiting is not None
        grads = [grad for grad in self._gradient if grad is not None]
        if parts > 1 and grads:
            torch._foreach_div_(grads, parts)
        reached = [p for p, grad in zip(self._leaves, self._gradient, strict=True) if grad is not None]
        before = [(p.grad, grad) for p, grad in zip(reached, grads, strict=True) if p.grad is not None]
        for p, grad in zip(reached, grads, strict=True):
            if p.grad is None:
                p.grad = grad
        if before:
            torch._foreach_add_([was for was, _ in before], [grad for _, grad in before])
        self.loss.add_batch(None if self._skips else self.waiting, None, self._samples)
        self.drop()

    def drop(self) -> None:
        """Forget the gradient that waits."""
        self._gradient, self.waiting = (), None

    def follow(self, number: int) -> None:
        """Take over the options of one of the run's optimizers."""
        self._others[number].follow(self._trainer.optimizers[number])

    def step(self, number: int, owns: bool) -> None:
        """Step as one of the run's optimizers did.

        Args:
            number: Of the run's optimizer.
            owns: Whether its own optimizer takes that one's place.
        """
        if owns:
            self._step_own()
        if self._others[number].optimizer.param_groups:
            self._others[number].optimizer.step()
        self.forget(number)

    def _step_own(self) -> None:
        try:
            self._own.step()
        except Exception as error:
            if self._stepped or isinstance(error, MACHINE_ERRORS):
                raise
            raise ValueError(
                f"{self._who} cannot train the scale-invariant weights ({error}); change its options in optimizers"
            ) from error
        self._stepped = True

    def forget(self, number: int) -> None:
        """Forget the gradient of what one of the run's optimizers trains."""
        for p in self.trained[number]:
            p.grad = None

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load_state` takes: tensors and plain values."""
        return {
            "tensors": {name: tensor.detach() for name, tensor in self._tensors.items()},
            "losses": self.loss.state(),
            "given": self._given,
            "own": self._own.state_dict(),
            "others": [other.optimizer.state_dict() for other in self._others],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, and say which options that were given now are not taken.

        Args:
            state: As given by :meth:`state`.

        Raises:
            ValueError: If it is that of another kind of optimizer.
        """
        now, self._given = self._given, state["given"]
        if now["class"] != self._given["class"]:
            raise ValueError(
                f"{self._owner}: {self._name} is {now['class']} now, but was {self._given['class']} in the checkpoint; "
                "give the new one another name, which begins a comparison anew"
            )
        changed = _changes(self._given["options"], now["options"])
        if changed:
            rank_zero_warn(
                f"{self._owner}: {self._name} goes on as the checkpoint has it, and does not take "
                f"{', '.join(changed)}; give the new one another name, which begins a comparison anew"
            )
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                if name in state["tensors"]:  # those of earlier versions hold only what is trained, and buffers
                    tensor.copy_(state["tensors"][name])
        self._own.load_state_dict(state["own"])
        for other, saved in zip(self._others, state["others"], strict=True):
            other.optimizer.load_state_dict(saved)
        self.loss.load_state(state["losses"])


def _check_finite(optimizer: Optimizer) -> None:
    """Refuse what torch's optimizers take: a learning rate that is NaN or infinite."""
    for name in ("lr", "elr"):
        for group in optimizer.param_groups:
            value = group.get(name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}")


def _options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Of each parameter group, those that have defaults; others, such as radii, may come from the weights."""
    return [
        {key: _kept(group[key]) for key in optimizer.defaults if key in group and (key, sphere) != ("lr", True)}
        for group in optimizer.param_groups
        for sphere in (group.get("elr") is not None,)  # whose lr comes from elr and radius
    ]


def _kept(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _changes(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name what differs, once, however many groups have it: ``lr=0.01 (it has 0.001)``."""
    found = {
        f"{key}={group[key]} (it has {was[key]})": None
        for was, group in zip(before, now, strict=True)
        for key in group
        if key in was and not _same(was[key], group[key])
    }
    return list(found)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        one, other = torch.as_tensor(one).cpu(), torch.as_tensor(other).cpu()
        return bool(one.shape == other.shape and torch.equal(one, other.to(one.dtype)))
    return bool(one == other)


class OptimizerCopy:
    """A copy of a run's optimizer with its state, for the parameters that no rival's own optimizer trains.

    Args:
        run: The run's optimizer.
        copies: What takes the place of its parameters.
        left_out: Its parameters that are trained otherwise.

    Attributes:
        optimizer: The copy; without parameter groups where nothing is left.
    """

    def __init__(self, run: Optimizer, copies: Mapping[Any, Tensor], left_out: set[Any]) -> None:
        self._copies = copies
        params = [p for group in run.param_groups for p in group["params"]]
        self.optimizer: Optimizer = copy.deepcopy(run, {id(p): copies.get(p, p) for p in params})
        kept = {copies[p] for p in params if p in copies and p not in left_out}
        for group in self.optimizer.param_groups:
            inside = [i for i, p in enumerate(group["params"]) if p in kept]
            for key in {"params", "param_names"} & group.keys():
                group[key] = [group[key][i] for i in inside]
        for p in set(self.optimizer.state) - kept:
            del self.optimizer.state[p]
        self._numbers = [i for i, group in enumerate(self.optimizer.param_groups) if group["params"]]
        self.optimizer.param_groups = [group for group in self.optimizer.param_groups if group["params"]]
        self._count = len(run.param_groups)

    def follow(self, run: Optimizer) -> None:
        """Take the run's present options over.

        Args:
            run: The run's optimizer.
        """
        if len(run.param_groups) != self._count:  # some were split, or added
            number = {self._copies.get(p): i for i, g in enumerate(run.param_groups) for p in g["params"]}
            self._numbers = [number[group["params"][0]] for group in self.optimizer.param_groups]
            self._count = len(run.param_groups)
        for group, i in zip(self.optimizer.param_groups, self._numbers, strict=True):
            for key, value in run.param_groups[i].items():
                if key not in ("params", "param_names"):
                    group[key] = value.clone() if isinstance(value, Tensor) else value


def needs_closure(optimizer: Optimizer) -> bool:
    """Return whether the step of an optimizer evaluates the loss by itself.

    Args:
        optimizer: Any optimizer.

    Returns:
        Whether its closure is no option.
    """
    closure = inspect.signature(inspect.unwrap(type(optimizer).step)).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
