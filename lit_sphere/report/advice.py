"""What the borders of a search advise, in words and as options of ``lit-sphere fit``."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lit_sphere.analysis.advice import ConstantAdvice, Converged, CosineWindow, advise_constant, advise_cosine
from lit_sphere.report.border_search import FoundBorder, SearchResult
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
    found: ConstantAdvice | CosineWindow | None
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
        if isinstance(self.found, ConstantAdvice):
            return [f"--{option}={self.found.at:.4g}", *length]
        schedule = ["--model.scheduler=CosineAnnealingLR", f"--model.scheduler.T_max={self.epochs}"]
        return [f"--{option}={self.found.first:.4g}", *schedule, *length]


def advise(result: SearchResult, epochs: int | None = None) -> Advice:
    """Say with which (effective) learning rate and schedule to train.

    On the sphere it is a constant ELR below the border of convergence, in the whole space a cosine from within its
    useful window: see :func:`~lit_sphere.analysis.advice.advise_constant` and
    :func:`~lit_sphere.analysis.advice.advise_cosine`.

    Args:
        result: Of the search for borders.
        epochs: Length of the run to advise on; None for that which the result names, or else of the search's runs.

    Returns:
        The advice.

    Raises:
        ValueError: If ``epochs`` is not positive, or not given and not known.
    """
    epochs = epochs or result.advised_epochs or result.max_epochs
    if epochs is None:
        raise ValueError("the runs have no limit of epochs: say for how many the advice is to be")
    name, (first_border, second_border) = short_name(result.option), result.borders
    converged = [Converged(run.at, run.converged_after, run.seed) for run in result.runs if run.converged_after]
    if first_border.last is None or not converged:
        return Advice(epochs, None, (f"No advice for {epochs} epochs: {_why_none(result)}.",))
    if name == "ELR":
        constant = advise_constant(converged, first_border.last, epochs)
        if constant is not None:
            return Advice(epochs, constant, tuple(_of_constant(constant, first_border, name)))
    else:
        decay = _decay(result)
        window = advise_cosine(
            converged, first_border.last, epochs, diverges=second_border.first or float("inf"), decay=decay
        )
        if window is not None:
            return Advice(epochs, window, tuple(_of_window(window, decay, name)))
    return Advice(epochs, None, (f"No advice for {epochs} epochs: {_CONVERGING}.",))


def _why_none(result: SearchResult) -> str:
    if not any(run.converged_after for run in result.runs):
        return (
            "nothing has converged; give more epochs, search lower, or, where weight decay or augmentation keep the "
            "train loss up, give RegimeMonitor a converged_loss"
        )
    return "no learning rate is known to converge with all seeds"


def _of_constant(found: ConstantAdvice, border: FoundBorder, name: str) -> Sequence[str]:
    at = short_number(found.at)
    said = [
        f"Advice for {found.epochs} epochs: a constant {name} of {at}. Below the border of convergence a higher one "
        "reaches flatter optima, but converges ever later; of those tried this is the highest at which all seeds had "
        f"converged in a quarter of the epochs, or else the first (here after {found.converged_after})."
    ]
    if border.first is not None:
        said.append(
            f"A start above the border, from {name} {short_number(border.first)} on, stays in equilibrium until it is "
            "switched down; on digits that has gained nothing."
        )
    return said


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
