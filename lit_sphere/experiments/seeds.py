"""Several seeds of an experiment: each has to show it on its own, and the numbers say how far they are apart."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lit_sphere.experiments.experiment import Experiment, Finding, Verdict
from lit_sphere.experiments.grids import setting_of
from lit_sphere.report.runs import Run

_WORST_FIRST: tuple[Verdict, ...] = ("does not", "cannot tell", "holds")
_NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")


def judge(experiment: Experiment, runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Say whether runs show what an experiment must, with each of their seeds.

    Args:
        experiment: The experiment.
        runs: In whatever order.
        folders: That they were read from, searched for tables of paths between runs and of the toy.

    Returns:
        The finding of its check. Where each of several seeds has the same runs (``--seeds``), they have to show it on
        their own as well: a mean over seeds, and runs that a check leaves out, would hide one that does not. The worst
        verdict counts; the text gives numbers as ranges over the seeds, or the finding of each where these differ in
        more than numbers.
    """
    together = experiment.check(runs, folders)
    apart = runs_by_seed(runs)
    if experiment.over_seeds or len(apart) < 2:
        return together
    findings = {name: experiment.check(mine, folders) for name, mine in apart.items()}
    found = with_each(findings)
    if _WORST_FIRST.index(together.verdict) < _WORST_FIRST.index(found.verdict):
        return Finding(together.verdict, f"All seeds together ({together.verdict}): {together.text} {found.text}")
    return found


def runs_by_seed(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Sort runs by their seed, as ``--seeds`` sets it for initialisation and data.

    Args:
        runs: In whatever order.

    Returns:
        The runs of each seed by its name, such as ``Seed 0``; none where the seeds do not have the same settings, each
        as often, so that one alone may lack what others have.
    """
    found: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        if run.seed is None:
            return {}
        found.setdefault((run.seed, str(run.option("data.seed"))), []).append(run)
    points = [sorted((setting_of(run), run.elr or 0.0) for run in mine) for mine in found.values()]
    names = [seed for seed, _ in found]
    if any(each != points[0] for each in points) or len({*names}) < len(names):
        return {}
    return {f"Seed {seed}": found[seed, order] for seed, order in sorted(found)}


def with_each(findings: Mapping[str, Finding]) -> Finding:
    """Judge by several seeds, all of which must show it.

    Args:
        findings: What was found with each, at least one, by its name.

    Returns:
        The worst verdict; of one seed its finding. One text with the numbers as ranges where all say the same in other
        numbers; else all texts, those that decide first.
    """
    if len(findings) == 1:
        return next(iter(findings.values()))
    verdict = min((each.verdict for each in findings.values()), key=_WORST_FIRST.index)
    same = spanned([each.text for each in findings.values()])
    if same is not None and len({each.verdict for each in findings.values()}) == 1:
        return Finding(verdict, f"Each of {len(findings)} seeds, from least…to greatest of them: {same}")
    ordered = sorted(findings.items(), key=lambda each: _WORST_FIRST.index(each[1].verdict))
    return Finding(verdict, " ".join(f"{name} ({found.verdict}): {found.text}" for name, found in ordered))


def spanned(texts: Sequence[str]) -> str | None:
    """Say once what several texts say in different numbers.

    Args:
        texts: At least one.

    Returns:
        The text with the least and the greatest of each number; None if they differ in more than numbers.

    Example:
        >>> spanned(["The barrier is 0.2, at most 1.", "The barrier is 0.14, at most 1."])
        'The barrier is 0.14…0.2, at most 1.'
    """
    words = [_NUMBER.split(text) for text in texts]
    if any(each != words[0] for each in words):
        return None
    columns = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    numbers = ["…".join(dict.fromkeys((min(each, key=_value), max(each, key=_value)))) for each in columns]
    return "".join(word + number for word, number in zip(words[0], [*numbers, ""], strict=True))


def _value(number: str) -> float:
    return float(number.replace("−", "-"))
