"""Tells when the optimizers of a run really step, however that comes about."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


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
