"""What the modules of a model hold, so that they can run on copies of it and leave no trace."""

import copy
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_NOT_OURS = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "wandb", "numpy")
_AS_IS = {bool, int, float, str, type(None)}
_BY_KEY = {dict, OrderedDict, defaultdict}


class HeldModules:
    """The attributes of all modules of a model, to be replaced by copies and put back, the very same objects.

    Copied are tensors, random generators, lists, dictionaries and plain objects that hold them; modules, functions and
    what belongs to torch and Lightning stay themselves.

    Args:
        model: Any module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held = [_Held(module) for module in model.modules()]

    def dress(self, memo: dict[int, Any], copied: Callable[[Tensor], Tensor]) -> None:
        """Give each module fresh copies of what it held at first: what a run left in the last ones is gone.

        Args:
            memo: What stands in for an object, by its identity; copies are added.
            copied: Copies a tensor.
        """
        for held in self._held:
            for name, value in held.scripted.items():
                setattr(held.module, name, _stand_in(value, memo, copied))
            if held.scripted:
                continue
            new = {name: _stand_in(value, memo, copied) for name, value in held.attributes.items()}
            vars(held.module).clear()
            vars(held.module).update(new)

    def put_back(self) -> None:
        """Give each module what it held, and its mode."""
        try:
            for each in self._held:
                each.put_back()
        except BaseException:  # an interrupt: once more, whole
            for each in self._held:
                each.put_back()
            raise


class _Held:
    def __init__(self, module: nn.Module) -> None:
        self.module, self.attributes, self._training = module, dict(vars(module)), module.training
        # Scripted modules keep their tensors elsewhere.
        scripted = isinstance(module, torch.jit.ScriptModule)
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        self.scripted = dict(tensors) if scripted else {}

    def put_back(self) -> None:
        vars(self.module).clear()
        vars(self.module).update(self.attributes)
        for name, value in self.scripted.items():
            setattr(self.module, name, value)
        if self.module.training != self._training:
            self.module.training = self._training


def _stand_in(value: Any, memo: dict[int, Any], copied: Callable[[Tensor], Tensor]) -> Any:
    """Copy tensors and what holds them; modules, functions and the like stay themselves."""
    kind: Any = type(value)
    if kind in _AS_IS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    new: Any
    if kind in _BY_KEY:
        new = memo[id(value)] = value.copy()
        for key, each in value.items():
            new[key] = _stand_in(each, memo, copied)
    elif kind in (list, deque):
        new = memo[id(value)] = value.copy()
        for place, each in enumerate(value):
            new[place] = _stand_in(each, memo, copied)
    elif kind is tuple:
        new = tuple(_stand_in(each, memo, copied) for each in value)
    elif kind is set:
        new = value.copy()
    elif isinstance(value, Tensor):
        new = copied(value)
    elif isinstance(value, torch.Generator):
        new = value.clone_state()
    elif isinstance(value, (np.random.Generator, np.random.RandomState, random.Random)):
        new = copy.deepcopy(value)
    elif _is_plain(kind) and isinstance(getattr(value, "__dict__", None), dict):
        new = memo[id(value)] = copy.copy(value)
        vars(new).update({key: _stand_in(each, memo, copied) for key, each in vars(value).items()})
    else:
        return value
    memo[id(value)] = new
    return new


@cache
def _is_plain(kind: type) -> bool:
    """Whether objects of a class are the user's own, such as a running average, and may be copied in parts."""
    homes = {each.__module__.partition(".")[0] for each in kind.__mro__[:-1]}  # a trainer of the user's own is none
    return (
        kind.__module__ != "builtins"
        and homes.isdisjoint(_NOT_OURS)
        and not issubclass(kind, type)
        and kind.__reduce_ex__ is object.__reduce_ex__
        and not hasattr(kind, "__deepcopy__")
        and not any("__call__" in vars(each) for each in kind.__mro__)
    )
