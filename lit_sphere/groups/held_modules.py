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
_LARGE = 2**24  # bytes: more than that is data, which a step reads
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
        self._held = [_Held(module) for module in _all_modules(model)]

    def replace(self, memo: dict[int, Any], copied: Callable[[Tensor], Tensor]) -> None:
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

    def restore(self) -> None:
        """Give each module what it held, and its mode."""
        try:
            for each in self._held:
                each.restore()
        except BaseException:  # an interrupt: once more, whole
            for each in self._held:
                each.restore()
            raise


def _all_modules(model: nn.Module) -> list[nn.Module]:
    """Modules of a model, and those that it hides in plain lists and dictionaries: a teacher, often."""
    found = dict.fromkeys(model.modules())
    waiting = list(found)
    while waiting:
        for value in vars(waiting.pop()).values():
            parts = value.values() if type(value) in _BY_KEY else value if type(value) in (list, tuple) else ()
            for hidden in (each for each in parts if isinstance(each, nn.Module)):
                more = [module for module in hidden.modules() if module not in found]
                found.update(dict.fromkeys(more))
                waiting += more
    return list(found)


class _Held:
    def __init__(self, module: nn.Module) -> None:
        self.module, self.attributes, self._training = module, dict(vars(module)), module.training
        # Scripted modules keep their tensors elsewhere.
        scripted = isinstance(module, torch.jit.ScriptModule)
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        self.scripted = dict(tensors) if scripted else {}

    def restore(self) -> None:
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
    elif isinstance(value, np.ndarray) and value.nbytes < _LARGE:
        new = value.copy()
    elif isinstance(value, (np.random.Generator, np.random.RandomState, random.Random)):
        new = copy.deepcopy(value)
    elif _is_plain(kind):
        new = memo[id(value)] = copy.copy(value)
        for key in _attributes(value):
            object.__setattr__(new, key, _stand_in(getattr(value, key), memo, copied))
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
    )


def _attributes(value: Any) -> list[str]:
    """Names of the attributes that an object itself has, in its dictionary or in slots."""
    slots = [name for each in type(value).__mro__ for name in _names(vars(each).get("__slots__", ()))]
    here = [name for name in slots if not name.startswith("__") and hasattr(value, name)]
    return [*getattr(value, "__dict__", {}), *here]


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
