"""What the search for border 2A|2B came to: in words, as a panel, and as a part of ``borders.json``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lit_sphere.analysis.border_search import Bracket
from lit_sphere.analysis.equilibrium_split import FLAT_SHARE, Minima, split_bracket
from lit_sphere.report.chart import Curve, Mark, Panel, Symbol
from lit_sphere.report.comparison import short_number

_POINTS: dict[Minima, tuple[str, Symbol]] = {
    "flat": ("#2a6f97", "circle"),
    "of many kinds": ("#d18f00", "square"),
    "cannot tell": ("#888888", "cross"),
}


@dataclass(frozen=True)
class FineTuning:
    """A run from the weights of another one, in short.

    Attributes:
        elr: Its effective learning rate.
        epochs: That it was trained.
        loss: Train loss of its last epoch; None if not known.
        effective_grad_norm: Mean g̃ of its last epoch; None if not known.
        test_error: After its last epoch; None if not known.
        folder: Where it lies.
    """

    elr: float
    epochs: int
    loss: float | None
    effective_grad_norm: float | None
    test_error: float | None
    folder: str


@dataclass(frozen=True)
class Source:
    """A run in chaotic equilibrium, and what fine-tuning found from its last weights.

    Attributes:
        at: Its ELR.
        seed: Number of its seed, from 0.
        minima: Kind of the minima.
        evidence: Why, in words.
        ratio: Sharpness g̃ of the lower fine-tuning ELR over that of the higher one, at equal train losses; None if not
            known.
        share: Its logarithm over that from random weights; None if not known.
        runs: The fine-tuned runs; empty where there are none.
    """

    at: float
    seed: int
    minima: Minima
    evidence: str
    ratio: float | None = None
    share: float | None = None
    runs: Sequence[FineTuning] = ()


@dataclass(frozen=True)
class EquilibriumSplit:
    """Border 2A|2B.

    Attributes:
        low: Lower ELR of fine-tuning; NaN where nothing could be fine-tuned.
        high: Higher one.
        references: Of each seed the ratio of sharpness from random weights; None if not known.
        seeds: Number of seeds.
        sources: All runs that were fine-tuned.
        is_closed: Whether nothing is left to try.
    """

    low: float
    high: float
    references: Sequence[float | None]
    seeds: int
    sources: Sequence[Source]
    is_closed: bool

    @property
    def of_seeds(self) -> list[Bracket]:
        """Bracket of each seed: 2A up to its lower end, 0 for none."""
        return [split_bracket(self.known(seed)) for seed in range(self.seeds)]

    def known(self, seed: int) -> dict[float, Minima]:
        """Give the kinds of minima by the ELR that fine-tuning began from.

        Args:
            seed: Number of the seed.

        Returns:
            The kinds.
        """
        return {source.at: source.minima for source in self.sources if source.seed == seed}

    @property
    def last(self) -> float | None:
        """Largest ELR in 2A for all seeds; None if a seed has none."""
        return min((bracket.last for bracket in self.of_seeds), default=0.0) or None

    @property
    def first(self) -> float | None:
        """Smallest ELR in 2B for all seeds; None if a seed has none."""
        first = max((bracket.first for bracket in self.of_seeds), default=math.inf)
        return first if first < math.inf else None


def split_sentence(split: EquilibriumSplit) -> str:
    """Say in words where the border is.

    Args:
        split: What was found.

    Returns:
        One sentence.
    """
    told = [source for source in split.sources if source.minima != "cannot tell"]
    if not told:
        why = split.sources[0].evidence if split.sources else "no run in chaotic equilibrium was fine-tuned"
        return f"Border 2A|2B: cannot tell ({why})."
    how = f"fine-tuned at ELR {short_number(split.low)} and {short_number(split.high)}"
    more = [] if split.is_closed else ["the search ended before all was tried"]
    unsure = sorted({at for bracket in split.of_seeds for at in bracket.unsure})
    if unsure:
        more.append(f"not to be told at {', '.join(map(short_number, unsure))}")
    if split.last is not None and split.first is not None:
        own = [f"{short_number(each.last)} to {short_number(each.first)}" for each in split.of_seeds]
        more[:0] = [f"by seed: {', '.join(own)}"] if len(set(own)) > 1 else []
        edges = f"{short_number(split.last)} and {short_number(split.first)} (×{split.first / split.last:.3g})"
        said = f"2A ends, and 2B begins, between ELR {edges}: {how}, runs from below reach only flat minima"
    else:
        said = _one_sided(split, told, how)
    return "; ".join([said, *more]) + "."


def _one_sided(split: EquilibriumSplit, told: Sequence[Source], how: str) -> str:
    lowest, highest = (short_number(pick(source.at for source in told)) for pick in (min, max))
    if all(source.minima == "of many kinds" for source in told):
        return f"No 2A is seen: {how}, runs reach minima of many kinds from ELR {lowest} on, the lowest that was tried"
    if all(source.minima == "flat" for source in told):
        return f"No 2B is seen: {how}, runs reach only flat minima up to ELR {highest}, the highest that was tried"
    each = "; ".join(f"seed {seed}: {_edges(bracket)}" for seed, bracket in enumerate(split.of_seeds))
    return f"Border 2A|2B is not the same for all seeds, {how}: {each}"


def _edges(bracket: Bracket) -> str:
    flat = f"2A up to ELR {short_number(bracket.last)}" if bracket.last else "no 2A"
    return f"{flat}, {f'2B from {short_number(bracket.first)} on' if bracket.first < math.inf else 'no 2B'}"


def source_lines(split: EquilibriumSplit) -> list[str]:
    """Say what each fine-tuned run came to.

    Args:
        split: What was found.

    Returns:
        A line for each, the lowest ELR first.
    """
    lines = []
    for source in sorted(split.sources, key=lambda source: (source.at, source.seed)):
        seed = f", seed {source.seed}" if split.seeds > 1 else ""
        errors = [f"{run.test_error:.2%}" for run in source.runs if run.test_error is not None]
        tested = f"; test error {' and '.join(errors)}" if errors else ""
        kind = "cannot tell" if source.minima == "cannot tell" else f"minima {source.minima}"
        lines.append(f"from ELR {short_number(source.at)}{seed}: {kind}, {source.evidence}{tested}")
    return lines


def fine_tuning_cost(split: EquilibriumSplit) -> str:
    """Say what fine-tuning has cost.

    Args:
        split: What was found.

    Returns:
        Runs and epochs.
    """
    runs = [run for source in split.sources for run in source.runs]
    return f"fine-tuned: {len(runs)} runs, {sum(run.epochs for run in runs)} epochs"


def split_panel(split: EquilibriumSplit) -> Panel | None:
    """Draw the ratio of sharpness over the ELR that fine-tuning began from; dotted that from random weights.

    Args:
        split: What was found.

    Returns:
        A panel; None where nothing was measured.
    """
    curves = []
    for minima, (colour, symbol) in _POINTS.items():
        mine = [(source.at, source.ratio) for source in split.sources if source.minima == minima and source.ratio]
        if mine:
            x, y = [at for at, _ in mine], [ratio for _, ratio in mine]
            label = minima if minima == "cannot tell" else f"minima {minima}"
            curves.append(Curve(x, y, label, colour=colour, kind="points", symbol=symbol, width=3))
    if not curves:
        return None
    reference = mean_reference(split.references)
    marks = [Mark(y=1.0)] if reference is None else [Mark(y=reference**FLAT_SHARE), Mark(y=reference, dash="dotted")]
    return Panel("sharpness ratio after fine-tuning", "ELR before", x_log=True, curves=curves, marks=marks)


def mean_reference(references: Sequence[float | None]) -> float | None:
    """Average the ratios of sharpness from random weights, in the logarithm.

    Args:
        references: Of each seed; None if not known.

    Returns:
        Their geometric mean; None if none is known.
    """
    known = [math.log(each) for each in references if each is not None]
    return math.exp(math.fsum(known) / len(known)) if known else None


def split_content(split: EquilibriumSplit) -> dict[str, Any]:
    """Give it as a part of ``borders.json``.

    Args:
        split: What was found.

    Returns:
        Numbers, texts and lists.
    """
    content = {name: value for name, value in asdict(split).items() if name not in ("sources", "low", "high")}
    return {
        "border": "2A|2B",
        "last": split.last,
        "first": split.first,
        "of_seeds": [[b.last or None, b.first if b.first < math.inf else None] for b in split.of_seeds],
        "fine_tuning_elrs": None if math.isnan(split.low) else [split.low, split.high],
        **content,
        "sources": [asdict(source) for source in sorted(split.sources, key=lambda source: (source.at, source.seed))],
    }


def split_of(content: Mapping[str, Any]) -> EquilibriumSplit:
    """Take it out of ``borders.json``.

    Args:
        content: As :func:`split_content` gives it.

    Returns:
        What was found.

    Raises:
        KeyError: If something is missing.
        TypeError: If something has another form.
        ValueError: If there is no such kind of minima.
    """  # noqa: DOC502
    sources = [
        Source(**{**each, "runs": tuple(FineTuning(**run) for run in each["runs"])}) for each in content["sources"]
    ]
    unknown = [source.minima for source in sources if source.minima not in _POINTS]
    if unknown:
        raise ValueError(f"no minima {unknown[0]!r}")
    low, high = content["fine_tuning_elrs"] or (math.nan, math.nan)
    rest = (content["references"], int(content["seeds"]), sources, bool(content["is_closed"]))
    return EquilibriumSplit(low, high, *rest)
