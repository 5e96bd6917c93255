"""Means and extremes over training steps, with next to no work at a step."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_sphere.effective.quantities import NOT_STEPPED, EffectiveQuantities
from lit_sphere.effective.step_options import StepOptions


class StepSummary(NamedTuple):
    """Values over the training steps that had one, each of a value's shape.

    Attributes:
        mean: Mean; ``NOT_STEPPED`` where no step had a value.
        low: Least value at a step; NaN where one is; ∞ where no step had a value.
        high: Greatest value at a step; NaN where one is; ``NOT_STEPPED`` where no step had a value.
    """

    mean: Tensor
    low: Tensor
    high: Tensor


def mean_where_stepped(values: Tensor) -> Tensor:
    """Give the mean over the first dimension, of what is there.

    Args:
        values: Shape (steps, ...), ``NOT_STEPPED`` where a step had no value.

    Returns:
        Shape (...), ``NOT_STEPPED`` where no step had one.

    Example:
        >>> mean_where_stepped(torch.tensor([[1.0, 4.0], [3.0, -math.inf]])).tolist()
        [2.0, 4.0]
    """
    return _mean(*_sum_and_count(values))


def _sum_and_count(values: Tensor) -> tuple[Tensor, Tensor]:
    there = values != NOT_STEPPED
    return torch.where(there, values, 0.0).sum(0), there.sum(0)


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return torch.where(count > 0, total / count, NOT_STEPPED)


class StepMean:
    """Mean over training steps: a step's observation is only kept on its device, and many are worked out at once.

    Mean and extremes are the same to the last bit wherever a run is interrupted, its state saved and restored.

    Args:
        evaluate: Makes the values of steps, stacked, of stacked observations; each of its own. ``NOT_STEPPED`` where a
            step has no value: it is not counted.
        shape: Of a value.
    """

    _CHUNK = 256  # steps; bounds the memory

    def __init__(self, evaluate: Callable[[Tensor], Tensor] = Tensor.double, shape: tuple[int, ...] = ()) -> None:
        self._work_out, self._shape = evaluate, shape
        self._observed: list[Tensor] = []
        self._values: list[Tensor] = []
        self._sum: Tensor | None = None
        self._count: Tensor | None = None  # of the values in the sum
        self._extremes: tuple[Tensor, Tensor] | None = None
        self._steps = 0

    @property
    def steps(self) -> int:
        """Number of observations since the last mean."""
        return self._steps

    def keep(self, observed: Tensor) -> None:
        """Keep what is observed at a step.

        Args:
            observed: A tensor that nobody changes later; of one shape and device.
        """
        if self._steps % self._CHUNK == 0:
            self._add_up()  # not before: the last step's value may be asked for
        self._observed.append(observed)
        self._steps += 1

    def evaluate(self) -> None:
        """Work out the values so far: due before something changes that they depend on."""
        if self._observed:
            self._values.append(self._work_out(torch.stack(self._observed)))
            self._observed = []

    def last(self) -> Tensor:
        """Give the value at the last step.

        Returns:
            Tensor of the values' shape.
        """
        self.evaluate()
        return self._values[-1][-1]

    def mean(self) -> Tensor | None:
        """Give the mean since the last call, and begin anew.

        Returns:
            Tensor of the values' shape; None if nothing was observed.
        """
        summary = self.summary()
        return None if summary is None else summary.mean

    def summary(self) -> StepSummary | None:
        """Give the mean and the extremes since the last call, and begin anew.

        Returns:
            Of the values; None if nothing was observed.
        """
        self._add_up()
        found = None
        if self._sum is not None and self._count is not None and self._extremes is not None:
            found = StepSummary(_mean(self._sum, self._count), *self._extremes)
        StepMean.load_state(self, {})
        return found

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load_state` takes.

        Returns:
            Tensors and plain values.
        """
        self.evaluate()
        return {
            "evaluated": list(self._values),
            "sum": self._sum,
            "count": self._count,
            "extremes": None if self._extremes is None else list(self._extremes),
            "steps": self._steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; from none with an empty one.

        Args:
            state: As given by :meth:`state`; one of values of another shape, or of another form, is passed over. One
                saved without extremes has only its mean for them, as far as its values were summed up; one without
                counts had a value at each step.
        """
        state = state if "evaluated" in state else {}
        values, total = state.get("evaluated", []), state.get("sum")
        shapes = [part.shape[1:] for part in values] + ([] if total is None else [total.shape])
        if any(shape != self._shape for shape in shapes):
            state = {}
        self._observed, self._values = [], list(state.get("evaluated", []))
        self._sum, self._steps, extremes = state.get("sum"), state.get("steps", 0), state.get("extremes")
        self._count = state.get("count")
        if self._sum is not None and self._count is None:
            self._count = torch.full_like(self._sum, self._steps - sum(map(len, self._values)), dtype=torch.long)
        if self._sum is not None and self._count is not None and extremes is None:
            extremes = [_mean(self._sum, self._count)] * 2
        self._extremes = None if extremes is None else (extremes[0], extremes[1])

    def _add_up(self) -> None:
        self.evaluate()
        if self._values:
            device = self._values[-1].device  # what was restored lies on the CPU
            chunk = torch.cat([part.to(device) for part in self._values])
            (total, count), high = _sum_and_count(chunk), chunk.amax(0)
            low = torch.where(chunk == NOT_STEPPED, math.inf, chunk).amin(0)
            if self._sum is None or self._count is None or self._extremes is None:
                self._sum, self._count, self._extremes = total, count, (low, high)
            else:
                before = [part.to(device) for part in self._extremes]
                self._sum, self._count = self._sum.to(device) + total, self._count.to(device) + count
                self._extremes = torch.minimum(before[0], low), torch.maximum(before[1], high)
            self._values = []


def mean_of_state(state: dict[str, Any]) -> Tensor | None:
    """Give the mean of what lies in a saved state, where it cannot be gone on from yet.

    Args:
        state: As given by :meth:`StepMean.state`, or empty.

    Returns:
        Tensor of the values' shape; None if nothing was observed.
    """
    known = [*state.get("evaluated", []), *([] if state.get("sum") is None else [state["sum"][None]])]
    if not known:
        return None
    means = StepMean(shape=tuple(known[0].shape[1:]))
    means.load_state(state)
    return means.mean()


class StepMeans(StepMean):
    """Means of the effective quantities over the steps that moved a group, float64 of shape (quantities, 1 + groups).

    Args:
        quantities: What is measured.

    Attributes:
        quantities: As given.
    """

    def __init__(self, quantities: EffectiveQuantities) -> None:
        self.quantities = quantities
        self._options: StepOptions | None = None  # at the observed steps
        super().__init__(lambda observed: quantities.evaluate(observed, self._options), quantities.shape)

    def add(self) -> None:
        """Observe the present step."""
        options = self.quantities.options()
        if options is not self._options:
            self.evaluate()
            self._options = options
        self.keep(self.quantities.observe())


class StepTrace(StepMeans):
    """Means as :class:`StepMeans`, and the totals of each step, kept on the device until they are asked for.

    Args:
        quantities: What is measured.
    """

    def __init__(self, quantities: EffectiveQuantities) -> None:
        self._trace: list[Tensor] = []
        super().__init__(quantities)

    def evaluate(self) -> None:
        """Work out the values so far, and keep the totals."""
        before = len(self._values)
        super().evaluate()
        self._trace += [part[..., 0] for part in self._values[before:]]

    def trace(self) -> Tensor | None:
        """Give the totals of the steps since the last call, and begin anew.

        Returns:
            Shape (steps, quantities), of ``NOT_STEPPED`` where no group was stepped; None if nothing was observed.
        """
        self.evaluate()
        trace, self._trace = self._trace, []
        return torch.cat([part.to(trace[-1].device) for part in trace]) if trace else None

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load_state` takes.

        Returns:
            Tensors and plain values.
        """
        return super().state() | {"trace": list(self._trace)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; from none with an empty one.

        Args:
            state: As given by :meth:`state`.
        """
        super().load_state(state)
        self._trace = list(state.get("trace", []))
