"""The training step of a module as a plain function of a batch: its losses, and nothing else."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.overrides import TorchFunctionMode

from lit_sphere.groups.held_modules import HeldModules
from lit_sphere.observe.train_loss import samples_in


class NoLoss(ValueError):
    """A training step that gives no loss, as one that skips its batch."""


class _Losses(TorchFunctionMode):
    """Collects what ``backward`` is called on, in place of the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.backward:
            self.found.append(args[0])
            return None
        return func(*args, **(kwargs or {}))


class _Idle:
    """An optimizer or scheduler that shows its options and makes no step; what is set in these stays with it."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        if hasattr(optimizer, "param_groups"):
            self.param_groups = [dict(group) for group in optimizer.param_groups]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self, closure: Callable[[], Any] | None = None, **_: Any) -> Any:
        return None if closure is None else closure()

    def zero_grad(self, *_: Any, **__: Any) -> None:
        """Leave the gradients."""

    @contextmanager
    def toggle_model(self, *_: Any, **__: Any) -> Any:
        yield


class StepLoss:
    """The loss of a batch by a module's training step, which leaves no trace, and the number of its samples.

    Under manual optimisation it is the sum of all that ``backward`` is called on.

    Args:
        pl_module: The module. Its weights, buffers and random generators may change: put them back.

    Attributes:
        needs_grad: Whether the step itself differentiates, so that it cannot run under ``torch.no_grad``.
    """

    def __init__(self, pl_module: LightningModule) -> None:
        self._module = pl_module
        self.needs_grad = False

    def __call__(self, batch: Any) -> tuple[Tensor, int] | None:
        """Run the step, and leave no trace.

        Args:
            batch: A batch for ``training_step``, which gets a copy.

        Returns:
            The mean loss, to be differentiated where gradients are enabled, and the number of samples; None if the
            step skips the batch.
        """
        with quiet(self._module):
            return self.run(batch, 0)

    def run(self, batch: Any, batch_idx: int) -> tuple[Tensor, int] | None:
        """Run the step, inside :func:`quiet`.

        Args:
            batch: A batch for ``training_step``, which gets a copy.
            batch_idx: Its number.

        Returns:
            As a call.
        """
        taken = apply_to_collection(batch, Tensor, torch.clone, allow_frozen=True)
        # What is compiled would be compiled anew for the copies.
        eagerly = torch.compiler.set_stance("force_eager")
        with eagerly, torch.set_grad_enabled(torch.is_grad_enabled() or self.needs_grad):
            try:
                returned, passed = _run_step(self._module, taken, batch_idx)
            except NoLoss:
                return None
        losses = torch.stack([loss.reshape(-1).sum() for loss in passed or returned])
        return losses.sum(), samples_in(batch)

    def try_out(self, batch: Any) -> None:
        """Run the step on a first batch, to learn whether it can be run apart from the training.

        Args:
            batch: The batch.

        Raises:
            NoLoss: If it gives none.
        """
        with torch.no_grad():
            try:
                found = self(batch)
            except RuntimeError:  # "does not require grad"; what else it is, it will be again
                self.needs_grad = True
                found = self(batch)
        if found is None:
            raise NoLoss("it gives no loss")


@contextmanager
def quiet(pl_module: LightningModule, stand_ins: Mapping[Tensor, Tensor] | None = None) -> Iterator[None]:
    """Inside, the code of a module leaves no trace: nothing is logged or stepped, its attributes are copies.

    Afterwards these are the very same objects as before. Trained parameters and buffers alone are the module's own
    inside, where nothing stands in for them.

    Args:
        pl_module: The module.
        stand_ins: What takes the place of parameters and buffers.

    Yields:
        Nothing.
    """
    # A teacher that follows the network is not trained, but written to by the step.
    kept = [p for p in pl_module.parameters() if p.requires_grad or type(p) is not nn.Parameter]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*kept, *pl_module.buffers())}
    memo |= {id(tensor): other for tensor, other in (stand_ins or {}).items()}
    held = HeldModules(pl_module)
    try:
        held.replace(memo, _copied)
        silence(pl_module)
        yield
    finally:
        held.restore()


def _copied(tensor: Tensor) -> Tensor:
    value = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value.requires_grad_(tensor.requires_grad)


def step_losses(pl_module: LightningModule, batch: Any) -> list[Tensor]:
    """Run a training step for its losses: nothing is logged, no backward pass is made, no optimizer stepped.

    The module's attributes are changed: call it where these are put back, as in a search for groups.

    Args:
        pl_module: The module, under automatic or manual optimisation.
        batch: A batch for ``training_step``.

    Returns:
        Its loss; under manual optimisation all that it calls ``backward`` on.

    Raises:
        NoLoss: If there is none.
    """  # noqa: DOC502
    silence(pl_module)
    returned, passed = _run_step(pl_module, batch, 0)
    return passed + returned


def _run_step(pl_module: LightningModule, batch: Any, batch_idx: int) -> tuple[list[Tensor], list[Tensor]]:
    """The loss that a training step returns, and what it calls ``backward`` on; there is one or the other."""
    takes_number = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
    losses = _Losses()
    with losses:
        result = pl_module.training_step(batch, *((batch_idx,) if takes_number else ()))
    if isinstance(result, Mapping):
        result = result.get("loss")
    returned = [result] if isinstance(result, Tensor) else []
    if not returned and not losses.found:
        raise NoLoss("training_step gives no loss")
    return returned, losses.found


def silence(pl_module: LightningModule) -> None:
    """Let ``self.log``, loggers, optimizers and schedulers of a module do nothing.

    Args:
        pl_module: The module. Its attributes are changed: call it where these are put back.
    """

    def nothing(*_: Any, **__: Any) -> None:
        return None

    # By attributes of the instance, which come before the class's methods.
    trainer = pl_module._trainer
    optimizers = [] if trainer is None else [_Idle(each) for each in trainer.optimizers]
    schedulers = pl_module.lr_schedulers() if trainer is not None else None
    if trainer is not None:
        trainer = copy.copy(trainer)
        trainer._loggers = [DummyLogger() for _ in trainer.loggers]
    for module in pl_module.modules():
        for name, value in vars(module).items():
            if isinstance(value, (Optimizer, LRScheduler)):
                vars(module)[name] = _Idle(value)
        if not hasattr(module, "log_dict"):
            continue
        vars(module).update(log=nothing, log_dict=nothing)
        if "_trainer" in vars(module):
            vars(module)["_trainer"] = trainer
    vars(pl_module).update(
        manual_backward=lambda loss, *_, **__: loss.backward(),
        optimizers=lambda *_, **__: optimizers[0] if len(optimizers) == 1 else optimizers,
        lr_schedulers=lambda: _idle(schedulers),
        toggle_optimizer=nothing,
        untoggle_optimizer=nothing,
        clip_gradients=nothing,
    )


def _idle(schedulers: Any) -> Any:
    if schedulers is None:
        return None
    if isinstance(schedulers, list):
        return [_Idle(each) for each in schedulers]
    return _Idle(schedulers)
