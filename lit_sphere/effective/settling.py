"""Whether effective step sizes have come to their equilibrium, and when theory said that they would."""

from math import inf, isfinite
from typing import Any, NamedTuple

from lit_sphere.effective.equilibrium import Prediction
from lit_sphere.theory.rotation import Law, relaxed_norm, steps_to_equilibrium

TOLERANCE = 0.1
"""Relative distance of an effective step size from the predicted one that counts as there."""
_WINDOW = 0.5  # of the time constant
_ALIKE = 1.5  # factor between a time and one that was foretold
_FASTER = 1e4  # time constants beyond which nothing is left of the start


class _Model(NamedTuple):
    """Where theory says that the norm is: it knows the first measured norm, and all predictions since."""

    norm: float
    target: float
    steps: float
    law: Law

    @property
    def ratio(self) -> float:
        return min(max(self.norm / self.target, 1e-6), 1e6)

    def still(self) -> float:
        """Steps from here until the effective step size is there."""
        return steps_to_equilibrium(self.ratio, self.steps, self.law, TOLERANCE).item()

    def after(self, steps: float) -> "_Model":
        ratio = relaxed_norm(self.ratio, min(steps / self.steps, _FASTER), self.law).item()
        return self._replace(norm=ratio * self.target)


class Settling:
    """Follows a run to its equilibrium under weight decay, and foretells when it is there.

    *There* is where the mean effective step size over a window lies within 10 % of the predicted one for the first
    time. A window is half a time constant τ, and at least what is observed at once, such as an epoch. The first is
    passed over: momentum has yet to fill, and an untrained network's gradients are far from those to come.

    Foretold is it by the law of the optimizer (:data:`~lit_sphere.theory.rotation.Law`) from the norm in what is
    observed first: with it and with the predictions of each time, and so under any schedule, theory says where the norm
    is by now.

    Attributes:
        reached: Number of steps after which it was there: the end of that window. None before.
        foretold: Number of steps after which it should be there to stay, by what is known so far; None before
            anything is.
        steps: Number of steps observed.
        ratio: Effective step size in the last window over the predicted one; None before.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.reached: int | None = None
        self.steps = 0
        self.ratio: float | None = None
        self._foretold: float | None = None
        self._window_begins = 0
        self._model: _Model | None = None
        self._window = [0.0] * 3  # time in time constants; sums of the ESS, measured and predicted

    @property
    def foretold(self) -> float | None:
        """As said above."""
        if self._foretold is not None or self._model is None:
            return self._foretold
        return self.steps + self._model.still()

    def observe(self, last_step: int, steps: int, ess: float, norm: float, predicted: Prediction | None) -> None:
        """Take note of some steps.

        Args:
            last_step: Number of steps of the run up to and with the last of them.
            steps: How many they are.
            ess: Their mean effective step size.
            norm: Their mean norm.
            predicted: Where both settle, at the last of them; None where nothing is predicted.
        """
        self.steps = last_step
        if predicted is None or not (isfinite(ess) and isfinite(predicted.norm) and norm > 0 and predicted.norm > 0):
            self._window_begins, self._window = max(1, last_step), [0.0] * 3
            return
        if self.reached is None or self._foretold is None:
            self._foretell(last_step, steps, norm, predicted)
        if self.reached is not None:
            return
        more = (steps / predicted.steps, steps * ess, steps * predicted.ess)
        self._window = [a + b for a, b in zip(self._window, more, strict=True)]
        time, measured, expected = self._window
        if time < _WINDOW:
            return
        self.ratio, self._window = measured / expected, [0.0] * 3
        if self._window_begins > 0 and abs(self.ratio - 1) <= TOLERANCE:
            self.reached = last_step
        else:
            self._window_begins = last_step

    def _foretell(self, last_step: int, steps: int, norm: float, predicted: Prediction) -> None:
        span = float(steps)
        if self._model is None:
            # Of the means of an epoch that is long for the equilibrium the last norm is not known: they are its middle.
            span, start = steps / 2, norm
        else:
            start = self._model.norm
        model = _Model(start, predicted.norm, predicted.steps, predicted.law)
        still = model.still()
        if still > 0:
            self._foretold = None  # gradients or rates have moved the equilibrium away
        if self._foretold is None and still <= span:
            self._foretold = last_step - span + still
        self._model = model.after(span)

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load_state` takes.

        Returns:
            Plain values.
        """
        model = None if self._model is None else list(self._model)
        found = (self.reached, self.steps, self.ratio, self._foretold, self._window_begins, model, list(self._window))
        return dict(zip(_STATE, found, strict=True))

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; from none with an empty one.

        Args:
            state: As given by :meth:`state`.
        """
        self._begin()
        if not state:
            return
        self.reached, self.steps, self.ratio, self._foretold, self._window_begins, model, self._window = (
            state[name] for name in _STATE
        )
        self._model = None if model is None else _Model(*model)

    def in_words(self) -> tuple[str, str]:
        """Say what became of it.

        Returns:
            Whether it was reached, and beside what was foretold; two empty strings where nothing was predicted.
        """
        if self._model is None:
            return "", ""
        foretold = self.foretold
        assert foretold is not None
        when = f"after {in_steps(foretold)}" if isfinite(foretold) else "never"
        if self.reached is not None:
            alike = self._window_begins / _ALIKE <= foretold <= self.reached * _ALIKE
            return f"step {in_steps(self.reached)}", f"reached, as predicted {when}" if alike else (
                f"reached; predicted {when}"
            )
        note = f"in {in_steps(self.steps)} steps; predicted {when}"
        if foretold > self.steps:
            return "not reached", f"{note}: initial norms still decide the effective learning rates"
        if self.ratio is not None:
            note += f"; the effective step size is {self.ratio:.2g} times the predicted"
        return "not reached", note


_STATE = ("reached", "steps", "ratio", "foretold", "window_begins", "model", "window")


def in_steps(count: float) -> str:
    """Write a number of steps, rounded to a whole number, with a space before thousands.

    Args:
        count: Number of steps.

    Returns:
        The number in words; ∞ for an infinite one.

    Example:
        >>> in_steps(3100.2)
        '3 100'
    """
    return f"{count:,.0f}".replace(",", " ") if abs(count) < inf else "∞"
