"""Models whose parameters are sharded over processes (FSDP2), made whole for a while."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_sphere.optim.shards import is_distributed, whole

# Of torch's composable parallelism, among the attributes of a module; it cannot be copied.
_STATE = "__composable_api_state_key"


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[dict[nn.Parameter, nn.Parameter]]:
    """Put full, plain copies in place of all DTensors of a model, and let nothing of FSDP act.

    Inside, the model is as on one process: its forward makes no collective, so that each process may call it as often
    as it likes; gradients belong to the copies; autocasts of FSDP's mixed precision are off; it can be copied
    (``copy.deepcopy`` refuses modules of FSDP otherwise), and compiled parts run eagerly. Afterwards parameters,
    buffers, hooks and classes are those of before, by identity; what was changed in the copies is gone. It takes
    memory for the whole model on each process's device.

    A model without DTensors is left alone.

    Args:
        model: Any module; all processes that hold its shards must call this, between two steps.

    Yields:
        The plain copy of each sharded parameter.
    """
    reshard(model)
    modules = list(model.modules())
    if not any(is_distributed(tensor) for module in modules for tensor in _tensors(module).values()):
        yield {}
        return
    copies: dict[Tensor, Tensor] = {}
    with ExitStack() as stack:
        for module in modules:
            _replace_tensors(module, copies, stack)
            _take_hooks_off(module, stack)
        for module in _fully_sharded(model):
            _take_class_off(module, stack)
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # instead of once more for these parameters
        yield {p: copy for p, copy in copies.items() if isinstance(p, nn.Parameter) and isinstance(copy, nn.Parameter)}


def reshard(model: nn.Module) -> None:
    """Let go of parameters that FSDP2 has gathered: those of a model are then those that its optimizer holds.

    After a forward without a backward, as of a validation, the root holds gathered ones.

    Args:
        model: Any module, between two steps.
    """
    for module in _fully_sharded(model):
        module.reshard()


def _fully_sharded(model: nn.Module) -> list[Any]:
    """Modules to which ``fully_shard`` was applied; its own module is imported then, which takes a while."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return [] if kind is None else [module for module in model.modules() if isinstance(module, kind)]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def _replace_tensors(module: nn.Module, copies: dict[Tensor, Tensor], stack: ExitStack) -> None:
    for name, tensor in _tensors(module).items():
        if not is_distributed(tensor):
            continue
        if tensor not in copies:
            plain = whole(tensor)
            is_parameter = isinstance(tensor, nn.Parameter)
            copies[tensor] = nn.Parameter(plain, requires_grad=tensor.requires_grad) if is_parameter else plain
        stack.callback(_put, module, name, tensor)
        _put(module, name, copies[tensor])


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    if type(module).__setattr__ is nn.Module.__setattr__:
        (module._parameters if name in module._parameters else module._buffers)[name] = tensor  # type: ignore[assignment]
    else:
        setattr(module, name, tensor)  # recurrent networks note their parameters elsewhere, too


def _take_hooks_off(module: nn.Module, stack: ExitStack) -> None:
    """Take off what gathers parameters, casts and distributes inputs: the hooks of FSDP and of tensor parallelism."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        taken = {key for key, hook in hooks.items() if _is_of_torch_distributed(hook)}
        if taken:
            stack.callback(_put_back, hooks, list(hooks.items()))
            for key in taken:
                del hooks[key]


def _take_class_off(module: nn.Module, stack: ExitStack) -> None:
    """Give a module its own class, which ``fully_shard`` replaced by a subclass, and lay FSDP's state aside."""
    replaced = type(module)
    stack.callback(object.__setattr__, module, "__class__", replaced)
    object.__setattr__(module, "__class__", replaced.__mro__[getattr(replaced, "_orig_cls_mro_index", 2)])
    states = {name: value for name, value in vars(module).items() if name.startswith(_STATE)}
    stack.callback(vars(module).update, states)
    for name in states:
        del vars(module)[name]


def _put_back(hooks: dict[int, Callable[..., Any]], before: Sequence[tuple[int, Callable[..., Any]]]) -> None:
    """Put hooks back in their order, before those that came meanwhile and without those that went."""
    keys = {key for key, hook in before if not _is_of_torch_distributed(hook) and key not in hooks}
    meanwhile = dict(hooks)
    hooks.clear()
    hooks.update({key: hook for key, hook in before if key not in keys})
    hooks.update({key: hook for key, hook in meanwhile.items() if key not in hooks})


def _is_of_torch_distributed(hook: Callable[..., Any]) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith("torch.distributed.")
