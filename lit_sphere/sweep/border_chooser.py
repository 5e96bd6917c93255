"""The borders of the regimes, found by the runs of a sweep that are chosen one after the other."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_sphere.analysis.border_search import BorderSearch, Verdicts
from lit_sphere.analysis.regimes import REGIME_NUMBERS, Regime
from lit_sphere.report.border_search import BorderRun, border_run
from lit_sphere.report.comparison import Comparison, shown
from lit_sphere.report.runs import Run
from lit_sphere.sweep.grid import Point
from lit_sphere.sweep.plan import Plan
from lit_sphere.sweep.states import PointState

_REGIMES: dict[str, Regime] = {regime: regime for regime in REGIME_NUMBERS}


class BorderChooser:
    """Chooses the runs of a search, as long as the budget lasts.

    Args:
        plan: What all runs have; its seeds are those of the search.
        option: What varies.
        search: Chooses learning rates.
        old: Runs of other sweeps that are used.
        epochs: Of a run that nothing stops; None if not known.
        budget: Epochs that may be trained; None for any number.

    Attributes:
        ran_out: Whether a run was not made for want of budget.
        names_nothing: Name of a run in which no regime could be named at all; empty if there is none.
    """

    def __init__(
        self,
        plan: Plan,
        option: str,
        search: BorderSearch,
        old: Sequence[BorderRun] = (),
        epochs: int | None = None,
        budget: int | None = None,
    ) -> None:
        self._plan, self._option, self._search = plan, option, search
        self._old, self._epochs, self._budget = old, epochs, budget
        self.ran_out, self.names_nothing = False, ""

    def place(self, point: Point) -> tuple[int, float]:
        """Give seed and learning rate of a point."""
        return int(point.values.get("seed", 0)), float(point.values[self._option])

    def __call__(self, states: Sequence[PointState]) -> Plan | None:
        """Give the plan with one more point.

        Args:
            states: Of the points so far.

        Returns:
            The plan; None if there is nothing to try now, the budget is used up, or a run has failed.
        """
        known: list[dict[float, Regime]] = [{} for _ in range(self._search.seeds)]
        running: list[list[float]] = [[] for _ in range(self._search.seeds)]
        for run in self._old:
            known[run.seed][run.at] = run.regime
        for state in states:
            seed, at = self.place(state.point)
            if state.state == "failed":
                return None
            if state.state == "done" and not state.regime:
                self.names_nothing = state.point.name
                return None
            if seed >= len(known):  # of an earlier search, with more seeds
                continue
            if state.state == "done":
                known[seed][at] = _REGIMES.get(state.regime, "undecided")
            else:
                running[seed].append(at)
        choice = self._next(known, running, states)
        return None if choice is None else self.plan_of([*map(self.place, (s.point for s in states)), choice])

    def _next(
        self, known: Sequence[Verdicts], running: Sequence[Sequence[float]], states: Sequence[PointState]
    ) -> tuple[int, float] | None:
        choice = self._search.next_run(known, running)
        if choice is None or self._budget is None:
            return choice
        spent = sum((state.epoch or 0) if state.state == "done" else state.epochs or 0 for state in states)
        if spent + (self._epochs or 0) <= self._budget:
            return choice
        self.ran_out = True
        return None

    def plan_of(self, places: Iterable[tuple[int, float]]) -> Plan:
        """Make the plan of some runs.

        Args:
            places: Seed and learning rate of each.

        Returns:
            The plan, by learning rate.
        """
        chosen = {(seed, f"{at:.6g}") for seed, at in places}
        values = sorted({text for _, text in chosen}, key=float)
        whole = replace(self._plan, over={self._option: tuple(values)}, only=())
        names = [
            point.name
            for point in whole.points
            if (int(point.values.get("seed", 0)), point.values[self._option]) in chosen
        ]
        return replace(whole, only=tuple(names))


def fitting_runs(
    runs: Sequence[Run],
    wanted: Mapping[str, Any],
    option: str,
    seeds: int,
    epochs: int | None,
    follows: Collection[str] = (),
) -> tuple[list[BorderRun], list[str]]:
    """Choose old runs that are like those of a search, but for what varies.

    Args:
        runs: Of other sweeps.
        wanted: Configuration of a run of the search.
        option: What varies in it.
        seeds: Number of seeds; 0 for those of the configuration.
        epochs: Of a run that nothing stops; None if not known.
        follows: Options that follow from others, and may stand in one configuration only.

    Returns:
        Those that fit, one for each seed and learning rate, and a line for each of the others.
    """
    like = Run(Path(), wanted, {})
    found: dict[tuple[int, float], BorderRun] = {}
    refused = []
    for run in runs:
        at = run.option(option)
        seed = _seed_of(run, like, seeds)
        why = _why_not(run, like, {option, *follows}, epochs)
        if why is None and seed is None:
            why = "its seed is another one"
        if why is None and (isinstance(at, bool) or not isinstance(at, (int, float)) or at <= 0):
            why = f"its {option} is no positive number"
        if why is not None or seed is None:
            refused.append(f"{run.folder}: {why}")
        else:
            found.setdefault((seed, float(at)), border_run(run, float(at), seed, is_old=True))
    return list(found.values()), refused


def _seed_of(run: Run, like: Run, seeds: int) -> int | None:
    if seeds:
        seed = run.seed
        return seed if seed is not None and seed < seeds and run.option("data.seed") == seed else None
    return 0 if run.seeds == like.seeds else None


def _why_not(run: Run, like: Run, free: Collection[str], epochs: int | None) -> str | None:
    if run.verdict is None:
        return "no regime was named"
    bare = [Run(each.folder, _without_monitor(each.config), {}) for each in (like, run)]
    comparison = Comparison(bare)
    differs = [name for name in comparison.varies if name not in free]
    if differs:
        return f"it differs in {shown(differs[0], comparison.value(bare[1], differs[0]))}"
    if run.epochs < (epochs or 0) and run.option("trainer.max_epochs") != epochs:
        return f"it was trained for {run.epochs} epochs"
    if run.epochs < (epochs or 0) and run.verdict.regime == "undecided":
        return f"it is not done, and undecided after {run.epochs} epochs"
    return None


def _without_monitor(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """RegimeMonitor changes nothing of a run but when it ends."""
    trainer = config.get("trainer")
    listed = trainer.get("callbacks") if isinstance(trainer, Mapping) else None
    if not isinstance(trainer, Mapping) or not isinstance(listed, list):
        return config
    kept = [
        each
        for each in listed
        if not (isinstance(each, Mapping) and str(each.get("class_path", "")).endswith("RegimeMonitor"))
    ]
    return {**config, "trainer": {**trainer, "callbacks": kept or None}}
