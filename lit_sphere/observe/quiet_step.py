"""The training step of a module as a plain function of a batch: its losses, and nothing else."""

import copy
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.overrides import TorchFunctionMode


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


class _IdleOptimizer:
    """An optimizer that shows its options and makes no step."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self, closure: Callable[[], Any] | None = None, **_: Any) -> Any:
        return None if closure is None else closure()

    def zero_grad(self, *_: Any, **__: Any) -> None:
        """Leave the gradients."""

    @contextmanager
    def toggle_model(self, *_: Any, **__: Any) -> Any:
        yield


def step_losses(pl_module: LightningModule, batch: Any) -> list[Tensor]:
    """Run a training step for its losses: nothing is logged, no backward pass is made, no optimizer stepped.

    The module's attributes are changed: call it where these are put back, as in a search for groups.

    Args:
        pl_module: The module, under automatic or manual optimisation.
        batch: A batch for ``training_step``.

    Returns:
        Its loss; under manual optimisation all that it calls ``backward`` on.

    Raises:
        ValueError: If there is none.
    """
    silence(pl_module)
    takes_number = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
    losses = _Losses()
    with losses:
        result = pl_module.training_step(batch, *((0,) if takes_number else ()))
    if isinstance(result, Mapping):
        result = result.get("loss")
    found = [*losses.found, *([result] if isinstance(result, Tensor) else [])]
    if not found:
        raise ValueError("training_step gives no loss")
    return found


def silence(pl_module: LightningModule) -> None:
    """Let ``self.log``, loggers, optimizers and schedulers of a module do nothing.

    Args:
        pl_module: The module. Its attributes are changed: call it where these are put back.
    """

    def nothing(*_: Any, **__: Any) -> None:
        return None

    # By attributes of the instance, which come before the class's methods.
    trainer = pl_module._trainer
    optimizers = [] if trainer is None else [_IdleOptimizer(each) for each in trainer.optimizers]
    schedulers = pl_module.lr_schedulers() if trainer is not None else None
    if trainer is not None:
        trainer = copy.copy(trainer)
        trainer._loggers = [DummyLogger() for _ in trainer.loggers]
    for module in pl_module.modules():
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
        return [_IdleOptimizer(each) for each in schedulers]
    return _IdleOptimizer(schedulers)
