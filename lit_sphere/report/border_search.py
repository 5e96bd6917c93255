"""What a search for the borders of the regimes came to: in words, as a figure, and as the file ``borders.json``."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_sphere.analysis.border_search import BORDERS, BorderSearch, Bracket, SearchRange, bracket_of, contradictions
from lit_sphere.analysis.epoch_rows import LOSS_KEYS
from lit_sphere.analysis.regimes import REGIME_NUMBERS, Regime
from lit_sphere.files import write_whole
from lit_sphere.report.chart import Chart, Curve, Mark, Panel
from lit_sphere.report.comparison import numbered, short_name, short_number
from lit_sphere.report.comparison_charts import REGIME_POINTS
from lit_sphere.report.equilibrium_split import (
    EquilibriumSplit,
    fine_tuning_cost,
    source_lines,
    split_content,
    split_of,
    split_panel,
    split_sentence,
)
from lit_sphere.report.page import Section
from lit_sphere.report.regime_curves import REGIME_COLORS
from lit_sphere.report.runs import Run

BORDERS_FILE = "borders.json"
"""Name of the result in the folder of a search."""

_NAMES = {1: "1|2", 2: "2|3"}
_SPREAD = 20  # ratio of values from which on an axis is logarithmic
_MARGIN = 1.3  # beyond the outermost runs


@dataclass(frozen=True)
class BorderRun:
    """A run of a search.

    Attributes:
        at: Its (effective) learning rate.
        seed: Number of its seed, from 0.
        regime: What it was named.
        evidence: Why, in words.
        epochs: That it was trained.
        loss: Train loss of its last epoch; None if not known.
        effective_grad_norm: Mean g̃ of its last epoch; None if not known.
        converged_after: Epochs until the train loss stayed below that of convergence; None if it did not converge.
        folder: Where it lies; empty if nowhere.
        is_old: Whether it was there before the search.
        decay_epochs: Time constant of weight decay, about 1/(2ηλ) steps, in epochs; None without weight decay.
    """

    at: float
    seed: int
    regime: Regime
    evidence: str
    epochs: int
    loss: float | None = None
    effective_grad_norm: float | None = None
    converged_after: int | None = None
    folder: str = ""
    is_old: bool = False
    decay_epochs: float | None = None


@dataclass(frozen=True)
class FoundBorder:
    """A border between two regimes, as all seeds together tell it.

    Attributes:
        number: 1 for the end of convergence, 2 for the beginning of divergence.
        last: Largest learning rate that is below the border for all seeds; None if a seed has none.
        first: Smallest one that is above it for all seeds; None if a seed has none.
        of_seeds: The bracket of each seed.
        is_closed: Whether each seed's is as close as was asked for.
    """

    number: int
    last: float | None
    first: float | None
    of_seeds: Sequence[Bracket]
    is_closed: bool


@dataclass(frozen=True)
class SearchResult:
    """What a search came to.

    Attributes:
        option: What varied, such as ``model.elr``.
        where: The range and the precision.
        seeds: Number of seeds.
        max_epochs: Epochs of a run that nothing stops; None if not known.
        runs: All runs that were used.
        advised_epochs: Length of the run to advise on; None for ``max_epochs``.
        split: Border 2A|2B within the equilibrium; None if it was not looked for.
    """

    option: str
    where: SearchRange
    seeds: int
    max_epochs: int | None
    runs: Sequence[BorderRun] = field(default_factory=list)
    advised_epochs: int | None = None
    split: EquilibriumSplit | None = None

    @property
    def epochs_of_advice(self) -> int | None:
        """Length of the run to advise on; None if it is not known."""
        return self.max_epochs if self.advised_epochs is None else self.advised_epochs

    @property
    def verdicts(self) -> list[dict[float, Regime]]:
        """Of each seed the regimes by learning rate."""
        return [{run.at: run.regime for run in self.runs if run.seed == seed} for seed in range(self.seeds)]

    @property
    def borders(self) -> list[FoundBorder]:
        """Both borders."""
        search, verdicts = BorderSearch(self.where, self.seeds), self.verdicts
        found = []
        for number in BORDERS:
            brackets = [bracket_of(each, number) for each in verdicts]
            last, first = min(each.last for each in brackets), max(each.first for each in brackets)
            closed = all(search.is_closed(each, number) for each in verdicts)
            ends = (last or None, first if first < math.inf else None)
            found.append(FoundBorder(number, *ends, brackets, closed))
        return found

    @property
    def epochs(self) -> int:
        """Epochs that were trained for the search."""
        return sum(run.epochs for run in self.runs if not run.is_old)

    @property
    def contradictory(self) -> list[tuple[BorderRun, BorderRun]]:
        """Pairs of runs of one seed, the one at the higher learning rate in the lower regime."""
        by_place = {(run.seed, run.at): run for run in self.runs}
        pairs = [(seed, pair) for seed, each in enumerate(self.verdicts) for pair in contradictions(each)]
        return [(by_place[seed, low], by_place[seed, high]) for seed, (low, high) in pairs]

    def at_edges(self, border: FoundBorder) -> list[BorderRun]:
        """Give the runs that are the evidence for a border: of each seed those next to it, and those between.

        Args:
            border: One of :attr:`borders`.

        Returns:
            The runs, the lowest learning rate first.
        """
        near = {
            (seed, at)
            for seed, bracket in enumerate(border.of_seeds)
            for at in (bracket.last, *bracket.unsure, bracket.first)
        }
        return sorted((run for run in self.runs if (run.seed, run.at) in near), key=lambda run: (run.at, run.seed))


def border_run(run: Run, at: float, seed: int, is_old: bool = False) -> BorderRun:
    """Take from a run what a search needs to know.

    Args:
        run: As it lies on the disk.
        at: Its (effective) learning rate.
        seed: Number of its seed, from 0.
        is_old: Whether it was there before the search.

    Returns:
        The same in short.
    """
    verdict, key = run.verdict, run.key(LOSS_KEYS)
    regime: Regime = verdict.regime if verdict else "undecided"
    converged = verdict.since + 1 if verdict and regime == "convergence" and verdict.since is not None else None
    return BorderRun(
        at,
        seed,
        regime,
        verdict.evidence if verdict else "no regime was named",
        run.epochs,
        run.final(key) if key else None,
        run.final("effective_grad_norm/total"),
        converged,
        str(run.folder),
        is_old,
        _decay_epochs(run),
    )


def _decay_epochs(run: Run) -> float | None:
    steps, last = run.final("equilibrium/steps"), run.rows[-1] if run.rows else None
    if steps is None or not math.isfinite(steps) or last is None or not (last["step"] and last["epoch"]):
        return None
    return steps * float(last["epoch"] / last["step"])


def sentences(result: SearchResult) -> list[str]:
    """Say in words where the borders are.

    Args:
        result: Of the search.

    Returns:
        A sentence for each border, and where runs contradict each other one for that; at the end one for 2A|2B, if that
        was looked for.
    """
    name = short_name(result.option)
    said = [_of_border(result, border, name) for border in result.borders]
    for low, high in result.contradictory:
        said.append(
            f"Contradictory: {_run(low, name, result.seeds)} is {numbered(low.regime)}, and "
            f"{_run(high, name, result.seeds)} above it {numbered(high.regime)}; the border lies anywhere between."
        )
    if result.split is not None:
        said.append(split_sentence(result.split))
    return said


def cost(result: SearchResult) -> str:
    """Say what a search has cost, and what the whole grid of its precision would have.

    Args:
        result: Of the search.

    Returns:
        One line.
    """
    new = [run for run in result.runs if not run.is_old]
    old = len(result.runs) - len(new)
    also = f", and {_count(old, 'old run')}" if old else ""
    also += f"; {fine_tuning_cost(result.split)}" if result.split is not None else ""
    said = f"{_count(len(new), 'run')}, {_count(result.epochs, 'epoch')}{also}"
    points = len(result.where.candidates) * result.seeds
    if result.max_epochs is None:
        return said
    whole = points * result.max_epochs
    return f"{said}; the whole grid: {_count(points, 'run')}, {whole} epochs ({result.epochs / whole:.1%} of them made)"


def evidence_line(run: BorderRun, name: str, seeds: int) -> str:
    """Say what a run came to.

    Args:
        run: The run.
        name: Short name of what varies.
        seeds: Number of seeds of the search.

    Returns:
        One line.
    """
    first = run.evidence.split("; ")[0]
    numbers = [
        "" if run.loss is None else f"loss {run.loss:.3g}",
        "" if run.effective_grad_norm is None else f"g̃ {run.effective_grad_norm:.3g}",
    ]
    return f"{_run(run, name, seeds)}: {run.regime}, {', '.join(filter(None, [first, *numbers]))}"


def _run(run: BorderRun, name: str, seeds: int) -> str:
    return f"{name} {short_number(run.at)}{f', seed {run.seed}' if seeds > 1 else ''}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _of_border(result: SearchResult, border: FoundBorder, name: str) -> str:
    tried = [run for run in result.runs if run.regime != "undecided"]
    if not tried:
        why = result.runs[0].evidence.split("; ")[0] if result.runs else "nothing was run"
        return f"Border {_NAMES[border.number]}: not to be told, since no run has a regime ({why})."
    below: Regime = "convergence" if border.number == 1 else "chaotic equilibrium"
    if border.last is not None and border.first is not None:
        return _bracketed(result, border, name)
    lowest, highest = (short_number(pick(run.at for run in result.runs)) for pick in (min, max))
    of_all = [bracket.last == 0 for bracket in border.of_seeds], [b.first == math.inf for b in border.of_seeds]
    if not border.is_closed:
        return _not_reached(border, name, (lowest, highest))
    if border.number == 1 and all(of_all[0]):
        return (
            f"No convergence at all, down to {name} {lowest}: the network may be too small for the data, the "
            "run too short, or the range too high."
        )
    if border.number == 2 and all(of_all[1]):
        return f"Nothing diverges up to {name} {highest}."
    if border.number == 1 and all(of_all[1]):
        up_to = short_number(min(bracket.last for bracket in border.of_seeds))
        if up_to != highest:
            return (
                f"Convergence up to {name} {up_to}; above it to {highest}, the end of the range, nothing can be told."
            )
        return f"Convergence up to {name} {highest}, the end of the range: the border lies above it."
    if border.number == 2 and all(of_all[0]):
        since = short_number(max(bracket.first for bracket in border.of_seeds))
        if since != lowest:
            told = f"below it to {lowest}, the beginning of the range, nothing can be told"
            return f"Divergence from {name} {since} on; {told}."
        return f"Divergence from {name} {lowest} on, the beginning of the range: the border lies below it."
    each = "; ".join(f"seed {seed}: {_edge(bracket, below, name)}" for seed, bracket in enumerate(border.of_seeds))
    return f"Border {_NAMES[border.number]} is not the same for all seeds: {each}."


def _not_reached(border: FoundBorder, name: str, ends: tuple[str, str]) -> str:
    """What the runs show of a border that the search has not come to."""
    head = f"Border {_NAMES[border.number]} was not reached before the search ended"
    lasts, firsts = (
        [b.last for b in border.of_seeds if b.last],
        [b.first for b in border.of_seeds if b.first < math.inf],
    )
    parts = []
    if lasts:
        parts.append(f"up to {name} {short_number(max(lasts))} runs are below it")
    if firsts:
        parts.append(f"from {name} {short_number(min(firsts))} on they are above it")
    return f"{head}: {', '.join(parts) or f'nothing is known of it between {name} {ends[0]} and {ends[1]}'}."


def _edge(bracket: Bracket, below: Regime, name: str) -> str:
    if bracket.last == 0:
        return f"no {below} at all"
    if bracket.first == math.inf:
        return f"{below} up to the end of the range"
    return f"between {name} {short_number(bracket.last)} and {short_number(bracket.first)}"


def _bracketed(result: SearchResult, border: FoundBorder, name: str) -> str:
    assert border.last is not None
    assert border.first is not None
    numbers = {
        at: sorted({REGIME_NUMBERS[run.regime] for run in result.runs if run.at == at} - {0})
        for at in (border.last, border.first)
    }
    named = {number: regime for regime, number in REGIME_NUMBERS.items()}
    below, above = named[numbers[border.last][-1]], named[numbers[border.first][0]]
    edges = f"{name} {short_number(border.last)} and {short_number(border.first)}"
    said = (
        f"{below[0].upper()}{below[1:]} ends, and {above} begins, between {edges} (×{border.first / border.last:.3g})"
    )
    notes = []
    own = [f"{short_number(each.last)} to {short_number(each.first)}" for each in border.of_seeds]
    if len(set(own)) > 1:
        notes.append("by seed: " + ", ".join(own))
    unsure = sorted({at for bracket in border.of_seeds for at in bracket.unsure})
    if unsure:
        notes.append(f"not to be told at {', '.join(map(short_number, unsure))}")
    if not border.is_closed:
        notes.append(f"not as close as ×{result.where.precision:g}: the search ended before")
    return "; ".join([said, *notes]) + "."


def border_chart(result: SearchResult) -> Chart:
    """Draw the runs over their learning rate, by regime: train loss, g̃, and epochs to convergence.

    Args:
        result: Of the search.

    Returns:
        One chart.
    """
    name = short_name(result.option)
    quantities: list[tuple[str, Callable[[BorderRun], float | None]]] = [
        ("train loss, last epoch", lambda run: run.loss),
        ("effective gradient norm g̃, last epoch", lambda run: run.effective_grad_norm),
        ("epochs to convergence", lambda run: run.converged_after),
    ]
    panels = []
    for title, value in quantities:
        curves = []
        for regime, (colour, symbol) in REGIME_POINTS.items():
            known = [
                (run, y) for run in result.runs if run.regime == regime and (y := value(run)) is not None and y > 0
            ]
            if known:
                curves.append(
                    Curve(
                        [run.at for run, _ in known],
                        [y for _, y in known],
                        numbered(regime),
                        colour=colour,
                        kind="points",
                        hover=[evidence_line(run, name, result.seeds) for run, _ in known],
                        symbol=symbol,
                        width=3,
                    )
                )
        if curves:
            values = [y for curve in curves for y in curve.y]
            log = max(values) > _SPREAD * min(values)
            panels.append(Panel(title, name, x_log=True, y_log=log, curves=curves, marks=_strips(result)))
    panel = None if result.split is None else split_panel(result.split)
    panels += [] if panel is None else [panel]
    caption = _CAPTION + ("" if panel is None else _CAPTION_OF_SPLIT)
    return Chart("borders", f"Borders of the regimes over {name}", caption, panels, name)


_CAPTION = (
    "A point is a run: its regime by colour and symbol. Grey strips: between the last run below a border and the first "
    "above it, of all seeds. Runs were stopped once their regime was settled, so their last epochs differ."
)
_CAPTION_OF_SPLIT = (
    " Last, of runs in the equilibrium: sharpness where the lower ELR of fine-tuning ends over that of the higher one, "
    "at equal losses; dotted from random weights, dashed the root of that, below which minima are flat."
)


def _strips(result: SearchResult) -> list[Mark]:
    """The regimes of all seeds, without colour where these are not told."""
    places = [run.at for run in result.runs]
    start, end = min(places) / _MARGIN, max(places) * _MARGIN
    one, two = result.borders
    spans: list[tuple[Regime, float, float]] = [
        ("convergence", start, one.last or start),
        ("undecided", one.last or start, one.first or end),
        ("chaotic equilibrium", one.first or end, two.last or start),
        ("undecided", max(two.last or start, one.first or end), two.first or end),
        ("divergence", two.first or end, end),
    ]
    return [Mark(x=low, to=high, colour=REGIME_COLORS[regime]) for regime, low, high in spans if low < high]


def border_section(result: SearchResult, where: str = "") -> Section:
    """Make the part of a report on a search.

    Args:
        result: Of the search.
        where: What tells it from others on the page; empty for the only one.

    Returns:
        The section.
    """
    name = short_name(result.option)
    evidence = [
        f"Border {_NAMES[border.number]}: "
        + "; ".join(evidence_line(run, name, result.seeds) for run in result.at_edges(border))
        + "."
        for border in result.borders
        if result.at_edges(border)
    ]
    if result.split is not None and result.split.sources:
        evidence.append(f"Border 2A|2B: {'; '.join(source_lines(result.split))}.")
    chart = border_chart(result)
    chart = replace(chart, id=f"{chart.id}{_word(where)}")
    return Section([chart], f"Borders{where}", texts=[*sentences(result), *evidence, f"{cost(result)}."])


def _word(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).rstrip("-")


def write_result(folder: Path, result: SearchResult) -> None:
    """Write ``borders.json``.

    Args:
        folder: Of the search.
        result: What it came to.
    """
    where = result.where
    content = {
        "option": result.option,
        "low": where.low,
        "high": where.high,
        "precision": where.precision,
        "seeds": result.seeds,
        "max_epochs": result.max_epochs,
        "advised_epochs": result.advised_epochs,
        "epochs": result.epochs,
        "answer": sentences(result),
        "borders": [
            {
                "border": _NAMES[each.number],
                "last": each.last,
                "first": each.first,
                "of_seeds": [[b.last or None, b.first if b.first < math.inf else None] for b in each.of_seeds],
                "is_closed": each.is_closed,
            }
            for each in result.borders
        ],
        "runs": [
            {name: _finite(value) for name, value in asdict(run).items()}
            for run in sorted(result.runs, key=lambda run: (run.at, run.seed))
        ],
    }
    if result.split is not None:
        content["split"] = split_content(result.split)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder / BORDERS_FILE, lambda file: file.write(text.encode()))


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_result(folder: Path) -> SearchResult:
    """Read ``borders.json``.

    Args:
        folder: Of the search.

    Returns:
        What it came to.

    Raises:
        ValueError: If the file is no such result.
    """
    path = folder / BORDERS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        where = SearchRange(*(float(content[name]) for name in ("low", "high", "precision")))
        runs = [BorderRun(**each) for each in content["runs"]]
        unknown = [run.regime for run in runs if run.regime not in REGIME_NUMBERS]
        if unknown:
            raise ValueError(f"no regime {unknown[0]!r}")
        asked = str(content["option"]), where, int(content["seeds"]), content["max_epochs"]
        split = split_of(content["split"]) if "split" in content else None
        return SearchResult(*asked, runs, content.get("advised_epochs"), split)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no result of lit-sphere borders ({error})") from error
