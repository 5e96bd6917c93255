"""What the borders of a search advise, in words and as options of ``lit-sphere fit``."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lit_sphere.analysis.advice import Converged, CosineWindow, SwitchAdvice, advise_cosine, advise_switch
from lit_sphere.report.border_search import SearchResult
from lit_sphere.report.comparison import short_name, short_number

_CONVERGING = "no run has converged in so many epochs: give more, or search lower"


@dataclass(frozen=True)
class Advice:
    """What to train with.

    Attributes:
        epochs: Length of the run that it is for.
        found: The numbers; None if there is no advice.
        sentences: It and its reasons in words; the reason why there is none.
    """

    epochs: int
    found: SwitchAdvice | CosineWindow | None
    sentences: tuple[str, ...]

    def options(self, option: str) -> list[str]:
        """Give the options of ``lit-sphere fit`` that follow it.

        Args:
            option: The one that varied in the search, such as ``model.elr``.

        Returns:
            Words of the command line; none without an advice.
        """
        if self.found is None:
            return []
        length = [f"--trainer.max_epochs={self.epochs}"]
        if isinstance(self.found, SwitchAdvice):
            begin = f"--{option}={self.found.begin:.4g}"
            if not self.found.switch:
                return [begin, *length]
            switches = json.dumps([{"epoch": self.found.switch, "elr": float(f"{self.found.end:.4g}")}])
            callback = ["--trainer.callbacks+=FineTuneSwitch", f"--trainer.callbacks.switches={switches}"]
            return [begin, *callback, *length]
        schedule = ["--model.scheduler=CosineAnnealingLR", f"--model.scheduler.T_max={self.epochs}"]
        return [f"--{option}={self.found.first:.4g}", *schedule, *length]


def advise(result: SearchResult, epochs: int | None = None) -> Advice:
    """Say with which (effective) learning rate and schedule to train.

    On the sphere it is a quarter of the run just above the border of convergence, and the rest below it; in the whole
    space a cosine: see :func:`~lit_sphere.analysis.advice.advise_switch` and
    :func:`~lit_sphere.analysis.advice.advise_cosine`.

    Args:
        result: Of the search for borders.
        epochs: Length of the run to advise on; None for that which the result names, or else of the search's runs.

    Returns:
        The advice.

    Raises:
        ValueError: If ``epochs`` is not positive, or not given and not known.
    """
    epochs = result.epochs_of_advice if epochs is None else epochs
    if epochs is None:
        raise ValueError("the runs have no limit of epochs: say for how many the advice is to be")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    name, (first_border, second_border) = short_name(result.option), result.borders
    converged = [Converged(run.at, run.converged_after) for run in result.runs if run.converged_after]
    if first_border.last is None or not converged:
        return Advice(epochs, None, (f"No advice for {epochs} epochs: {_why_none(result)}.",))
    if name == "ELR":
        switch = advise_switch(converged, first_border.last, _in_equilibrium(result), epochs)
        if switch is not None:
            return Advice(epochs, switch, tuple(_of_switch(switch, name)))
    else:
        decay = _decay(result)
        window = advise_cosine(
            converged, first_border.last, epochs, diverges=second_border.first or math.inf, decay=decay
        )
        if window is not None:
            return Advice(epochs, window, tuple(_of_window(window, decay, name)))
    return Advice(epochs, None, (f"No advice for {epochs} epochs: {_CONVERGING}.",))


def _in_equilibrium(result: SearchResult) -> float | None:
    """The first learning rate above convergence, if it does not diverge there."""
    above, diverging = (border.first for border in result.borders)
    return above if above is not None and (diverging is None or above < diverging) else None


def _why_none(result: SearchResult) -> str:
    if not any(run.converged_after for run in result.runs):
        return (
            "nothing has converged; give more epochs, search lower, or, where weight decay or augmentation keep the "
            "train loss up, say what counts as converged (--converged-loss)"
        )
    return "no learning rate is known to converge with all seeds"


def _of_switch(found: SwitchAdvice, name: str) -> Sequence[str]:
    begin, end = short_number(found.begin), short_number(found.end)
    chosen = (
        "the highest tried at which all seeds had converged in a quarter of them" if found.in_time else "the first to"
    )
    why = (
        f"Below the border of convergence a higher {name} reaches flatter optima, but converges ever later: {end} was "
        f"{chosen}, after {found.converged_after}."
    )
    head = f"Advice for {found.epochs} epochs:"
    if not found.switch:
        return [f"{head} a constant {name} of {end}.", why]
    return [
        f"{head} begin at {name} {begin}, just above the border of convergence; at epoch {found.switch} switch to "
        f"{end}.",
        "From an equilibrium just above the border runs come to flat optima; from farther above to those of all kinds.",
        why,
    ]


def _of_window(found: CosineWindow, decay: float | None, name: str) -> Sequence[str]:
    low, high, first = map(short_number, (found.low, found.high, found.first))
    begins = f"Advice for {found.epochs} epochs: a cosine to zero from {name} {first}"
    if found.first == found.low:
        return [
            f"{begins}, the border of convergence. Here the useful window begins; from {name} {high} on no time would "
            "be left to converge. With another weight decay the border moves: the product of both stays (PB §3)."
        ]
    if found.high <= found.low:
        why = "so few epochs leave no time to converge to a schedule that begins above the border"
    elif decay is None:
        why = "without weight decay there is no equilibrium to begin from"
    else:
        why = (
            f"weight decay has a time constant of {decay / found.low:.0f} epochs at the border, too long for norms to "
            "settle"
        )
    return [f"{begins}, below the border at {low}, since it converges soon: {why}."]


def _decay(result: SearchResult) -> float | None:
    """Time constant of weight decay, in epochs, times the learning rate."""
    known = [run.decay_epochs * run.at for run in result.runs if run.decay_epochs is not None]
    return median(known) if known else None
