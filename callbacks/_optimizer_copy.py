"""A copy of a run's optimizer that trains other tensors in the same way."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


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
    """Say whether the step of an optimizer evaluates the loss by itself.

    Args:
        optimizer: Any optimizer.

    Returns:
        Whether its closure is no option.
    """
    closure = inspect.signature(inspect.unwrap(type(optimizer).step)).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
