"""Means of effective quantities over steps."""

from typing import Any

import torch
from torch import Tensor

from lit_sphere.effective.quantities import EffectiveQuantities


class StepMeans:
    """Means of the effective quantities over steps, with next to no work at a step.

    A step's norms are kept on the device; the arithmetic is done for many steps at once. The means are the same to
    the last bit wherever a run is interrupted, its state saved and restored.

    Args:
        quantities: What is measured.

    Attributes:
        quantities: As given.
    """

    _CHUNK = 256  # steps; bounds the memory

    def __init__(self, quantities: EffectiveQuantities) -> None:
        self.quantities = quantities
        self._observed: list[Tensor] = []
        self._rates: Tensor | None = None  # at the observed steps
        self._evaluated: list[Tensor] = []
        self._sum: Tensor | None = None
        self._steps = 0

    def add(self) -> None:
        """Observe the present step."""
        rates = self.quantities.learning_rates()
        if rates is not self._rates:
            self._evaluate()
            self._rates = rates
        self._observed.append(self.quantities.observe())
        self._steps += 1
        if self._steps % self._CHUNK == 0:
            self._add_up()

    def last(self) -> Tensor:
        """Give the quantities at the last observed step.

        Returns:
            float64 tensor of shape (len(QUANTITIES), 1 + groups).
        """
        self._evaluate()
        return self._evaluated[-1][-1]

    def mean(self) -> Tensor | None:
        """Give the means since the last call, and begin anew.

        Returns:
            float64 tensor of shape (len(QUANTITIES), 1 + groups); None if no step was observed.
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
        self._evaluate()
        return {"evaluated": list(self._evaluated), "sum": self._sum, "steps": self._steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; from none with an empty one.

        Args:
            state: As given by :meth:`state`; one of other groups or quantities is passed over.
        """
        kept = [value for value in (*state.get("evaluated", []), state.get("sum")) if value is not None]
        if any(value.shape[-2:] != self.quantities.shape for value in kept):
            state = {}
        self._observed = []
        self._evaluated = list(state.get("evaluated", []))
        self._sum, self._steps = state.get("sum"), state.get("steps", 0)

    def _evaluate(self) -> None:
        if self._observed:
            self._evaluated.append(self.quantities.evaluate(torch.stack(self._observed), self._rates))
            self._observed = []

    def _add_up(self) -> None:
        self._evaluate()
        if self._evaluated:
            device = self._evaluated[-1].device  # what was restored lies on the CPU
            chunk = torch.cat([part.to(device) for part in self._evaluated]).sum(0)
            self._sum = chunk if self._sum is None else self._sum.to(device) + chunk
            self._evaluated = []
