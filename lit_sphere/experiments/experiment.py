"""What an experiment of the papers must show, and whether runs show it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from lit_sphere.report.chart import Chart
from lit_sphere.report.runs import Run

Verdict = Literal["holds", "does not", "cannot tell"]


@dataclass(frozen=True)
class Finding:
    """Whether runs show what they must.

    Attributes:
        verdict: ``cannot tell`` where runs are missing, too short or undecided.
        text: Why, in sentences with their numbers; what is missing, if it cannot be told.
    """

    verdict: Verdict
    text: str

    @property
    def holds(self) -> bool | None:
        """The verdict as that of a claim: None if it cannot be told."""
        return {"holds": True, "does not": False, "cannot tell": None}[self.verdict]


@dataclass(frozen=True)
class NotDrawn:
    """There is no chart.

    Attributes:
        missing: What it would need.
    """

    missing: str


class Claim(NamedTuple):
    """One thing that must be so.

    Attributes:
        holds: Whether it is; None if it cannot be told.
        text: A sentence with the numbers, or with what is missing.
    """

    holds: bool | None
    text: str


class Check(Protocol):
    """Says whether runs show what they must, in whatever order they come."""

    def __call__(self, runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
        """Judge runs, and what else lies in the folders that they were read from."""


class Charts(Protocol):
    """Draws what runs show."""

    def __call__(self, runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
        """Give the charts, or what they would need."""


@dataclass(frozen=True)
class Experiment:
    """An experiment of the papers.

    Attributes:
        id: The papers' figure or claim by its short name, such as ``E1``.
        title: A few words.
        source: Paper, with figure, section or equation.
        must_show: One sentence.
        check: Whether runs show it, all together; :func:`~lit_sphere.experiments.judge` asks it of each seed, too.
            Takes runs and, where paths between runs or the toy count, the folders that are searched for their tables.
        charts: The charts, or what is missing for them; takes the same.
        sweeps: Names of the shipped sweeps that make the runs at laptop size, on digits.
        paper_sweeps: The same in the papers' setting; none where the experiment is the same.
        toy: It is about the theory's toy: the command ``lit-sphere toy`` makes what is judged.
        toy_options: Of that command; none for the toy on the sphere.
        over_seeds: It is a statement about several seeds, which a single one need not, or cannot, show.
    """

    id: str
    title: str
    source: str
    must_show: str
    check: Check
    charts: Charts
    sweeps: tuple[str, ...] = ()
    paper_sweeps: tuple[str, ...] = ()
    toy: bool = False
    toy_options: tuple[str, ...] = ()
    over_seeds: bool = False

    @property
    def toy_folder(self) -> str:
        """Name of the folder of what the toy left."""
        return "toy_plane" if self.toy_options else "toy"


def conclude(claims: Iterable[Claim]) -> Finding:
    """Judge by several claims, all of which must hold.

    Args:
        claims: At least one.

    Returns:
        ``does not`` if one does not hold; else ``cannot tell`` if one cannot be told; else ``holds``. The text has
        the sentences that decide, and after them the others.
    """
    known = list(claims)
    wrong, open_, right = ([claim.text for claim in known if claim.holds is holds] for holds in (False, None, True))
    verdict: Verdict = "does not" if wrong else "cannot tell" if open_ else "holds"
    return Finding(verdict, " ".join([*wrong, *open_, *right]))


_STRONGEST: tuple[Verdict, ...] = ("does not", "holds", "cannot tell")


def conclude_over_settings(findings: Sequence[tuple[str, Finding]], missing: str) -> Finding:
    """Judge by what was found in several settings, each on its own.

    Args:
        findings: Name and finding of each setting.
        missing: What is missing if there is no setting.

    Returns:
        ``does not`` if it does not hold in one; else ``holds`` if it does in one; else ``cannot tell``.
    """
    if not findings:
        return Finding("cannot tell", missing)
    if len(findings) == 1:
        return findings[0][1]
    found = {finding.verdict for _, finding in findings}
    verdict = next(each for each in _STRONGEST if each in found)
    order = [verdict, *(each for each in _STRONGEST if each != verdict)]
    ordered = sorted(findings, key=lambda each: (order.index(each[1].verdict), each[0]))
    return Finding(verdict, " ".join(f"{name} ({finding.verdict}): {finding.text}" for name, finding in ordered))
