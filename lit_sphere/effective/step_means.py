"""Means over training steps, with next to no work at a step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_sphere.effective.quantities import EffectiveQuantities


class StepMean:
    """Mean over training steps: a step's observation is only kept on its device, and many are worked out at once.

    The mean is the same to the last bit wherever a run is interrupted, its state saved and restored.

    Args:
        evaluate: Makes the values of steps, stacked, of stacked observations; each of its own.
        shape: Of a value.
    """

    _CHUNK = 256  # steps; bounds the memory

    def __init__(self, evaluate: Callable[[Tensor], Tensor] = Tensor.double, shape: tuple[int, ...] = ()) -> None:
        self._work_out, self._shape = evaluate, shape
        self._observed: list[Tensor] = []
        self._values: list[Tensor] = []
        self._sum: Tensor | None = None
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
        self._add_up()
        mean = None if self._sum is None else self._sum / self._steps
        self.load_state({})
        return mean

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load_state` takes.

        Returns:
            Tensors and plain values.
        """
        self.evaluate()
        return {"evaluated": list(self._values), "sum": self._sum, "steps": self._steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; from none with an empty one.

        Args:
            state: As given by :meth:`state`; one of values of another shape, or of another form, is passed over.
        """
        state = state if "evaluated" in state else {}
        values, total = state.get("evaluated", []), state.get("sum")
        shapes = [part.shape[1:] for part in values] + ([] if total is None else [total.shape])
        if any(shape != self._shape for shape in shapes):
            state = {}
        self._observed, self._values = [], list(state.get("evaluated", []))
        self._sum, self._steps = state.get("sum"), state.get("steps", 0)

    def _add_up(self) -> None:
        self.evaluate()
        if self._values:
            device = self._values[-1].device  # what was restored lies on the CPU
            chunk = torch.cat([part.to(device) for part in self._values]).sum(0)
            self._sum = chunk if self._sum is None else self._sum.to(device) + chunk
            self._values = []


class StepMeans(StepMean):
    """Means of the effective quantities over steps, float64 of shape (len(QUANTITIES), 1 + groups).

    Args:
        quantities: What is measured.

    Attributes:
        quantities: As given.
    """

    def __init__(self, quantities: EffectiveQuantities) -> None:
        self.quantities = quantities
        self._rates: Tensor | None = None  # at the observed steps
        super().__init__(lambda observed: quantities.evaluate(observed, self._rates), quantities.shape)

    def add(self) -> None:
        """Observe the present step."""
        rates = self.quantities.learning_rates()
        if rates is not self._rates:
            self.evaluate()
            self._rates = rates
        self.keep(self.quantities.observe())
