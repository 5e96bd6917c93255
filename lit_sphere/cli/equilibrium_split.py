"""``lit-sphere borders --split-equilibrium``: border 2A|2B, by fine-tuning from the chaotic equilibrium."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lit_sphere.analysis.border_search import bracket_of, is_close
from lit_sphere.analysis.equilibrium_split import FineTuned, name_minima, next_source, sharpness_ratio
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.sweep import digests
from lit_sphere.experiments.regimes import ERROR, LOSS, SHARPNESS, profile
from lit_sphere.report.border_search import BorderRun, SearchResult
from lit_sphere.report.equilibrium_split import EquilibriumSplit, FineTuning, Source, mean_reference
from lit_sphere.report.runs import Run, read_run
from lit_sphere.sweep import Plan, PointState, Sweep, SweepResult
from lit_sphere.sweep.border_chooser import BorderChooser
from lit_sphere.sweep.plan import read_folder_plan
from lit_sphere.sweep.run import begun_in

_ELR, _WEIGHTS = "model.elr", "ckpt_weights"
# The higher fine-tuning ELR below border 1|2, and the lower one below that: at a fifth sharpness differs too little on
# digits, at a thirtieth fine-tuning takes several hundred epochs.
_BELOW_BORDER, _APART = 2.0, 8.0


@dataclass(frozen=True)
class Engine:
    """How runs are made: what the search for the other borders lends.

    Attributes:
        plan: What all runs have.
        chooser: Of the search; makes plans of its runs.
        outcome: What the runs of the search have come to, given what has become of its sweep.
        more: Makes the runs of a plan in the search's folder.
        begin: Begins a sweep, or goes on with it.
        launch: Runs what is not done of one.
        epochs: Of a run that nothing stops; None if not known.
        budget: Epochs that may be trained in all; None for any number.
        say: Tells the user a line.
    """

    plan: Plan
    chooser: BorderChooser
    outcome: Callable[[SweepResult], SearchResult]
    more: Callable[[Plan], SweepResult]
    begin: Callable[[Plan, Path], Sweep]
    launch: Callable[[Sweep], SweepResult]
    epochs: int | None
    budget: int | None
    say: Callable[[str], None]


def check_split(option: str, of_runs: Sequence[str]) -> None:
    """Refuse to look for 2A|2B where that cannot be.

    Args:
        option: What varies in the search.
        of_runs: Options of its runs, as typed.

    Raises:
        CommandLineError: Says why.
    """
    if option != _ELR:
        raise CommandLineError(f"--split-equilibrium is for --over {_ELR}: fine-tuning takes place on the sphere")
    if any(each.partition("=")[0] == f"--{_WEIGHTS}" for each in of_runs):
        raise CommandLineError(f"--split-equilibrium begins runs at weights of its own: leave --{_WEIGHTS} out")


class SplitSearch:
    """Bisects border 2A|2B of each seed.

    Args:
        engine: Makes the runs.
        folder: Of the fine-tuned runs.

    Attributes:
        failed: Fine-tuned runs that failed.

    Raises:
        SweepError: If the folder holds something else.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._folder = engine, folder
        self._sweep: Sweep | None = None
        self._before = read_folder_plan(folder)
        if self._before is not None:
            plan = replace(self._before.plan, fit=engine.plan.fit)
            begun_in(folder, plan, digests(plan))
        self.failed: list[PointState] = []
        self._elrs = (math.nan, math.nan)
        self._is_closed = True

    def run(self, result: SweepResult) -> SweepResult:
        """Make the runs that it takes.

        Args:
            result: Of the search for the other borders.

        Returns:
            The same with the runs that were made beside them.
        """
        found = self._engine.outcome(result)
        elrs = fine_tuning_elrs(found)
        if elrs is None:
            self._is_closed = not self._engine.chooser.ran_out
            return result
        self._elrs = elrs
        if self._before is not None:
            self._sweep = self._engine.begin(replace(self._before.plan, fit=self._engine.plan.fit), self._folder)
        while wanted := self._wanted(found):
            runs = _by_place(found)
            known = {place for place, run in runs.items() if _has_weights(run) or run.regime != _EQUILIBRIUM}
            references = [(seed, elr) for seed in range(found.seeds) for elr in elrs]
            missing = [place for place in dict.fromkeys([*references, *wanted]) if place not in known]
            if not self._affords(len(missing) or 2 * len(wanted), found):
                break
            if missing:
                places = [*map(self._engine.chooser.place, (state.point for state in result.states)), *missing]
                result = self._engine.more(self._engine.chooser.plan_of(places))
            else:
                result = replace(result, signum=self._fine_tune(found, wanted))
            self.failed = [state for state in self._states if state.state == "failed"]
            if result.signum is not None or self.failed or any(state.state == "failed" for state in result.states):
                self._is_closed = False
                break
            found = self._engine.outcome(result)
        return result

    def _affords(self, runs: int, found: SearchResult) -> bool:
        budget, epochs = self._engine.budget, self._engine.epochs
        if budget is None:
            return True
        spent = found.epochs + sum(state.epoch or 0 for state in self._states)
        if spent + runs * (epochs or 0) <= budget:
            return True
        self._engine.chooser.ran_out = True
        self._is_closed = False
        return False

    def split(self, found: SearchResult) -> EquilibriumSplit:
        """Give what was found.

        Args:
            found: What the search has come to.

        Returns:
            The border with its evidence.
        """
        references = self._references(found)
        sources = self._sources(found, references)
        return EquilibriumSplit(*self._elrs, references, found.seeds, sources, self._is_closed)

    @property
    def _states(self) -> Sequence[PointState]:
        return self._sweep.states if self._sweep is not None else ()

    def _wanted(self, found: SearchResult) -> list[tuple[int, float]]:
        """Of each seed the run that is to be fine-tuned next."""
        split = self.split(found)
        wanted = []
        for seed in range(found.seeds):
            at = next_source(split.known(seed), equilibrium_elrs(found, seed), found.where.precision)
            if at is not None:
                wanted.append((seed, at))
        return wanted

    def _sources(self, found: SearchResult, references: Sequence[float | None]) -> list[Source]:
        tuned, reference = self._tuned(found), mean_reference(references)
        inside = [equilibrium_elrs(found, seed) for seed in range(found.seeds)]
        sources = []
        for (seed, at), run in _by_place(found).items():
            if not inside[seed] or not inside[seed][0] <= at <= inside[seed][-1]:
                continue
            both = [each for elr in self._elrs if (each := tuned.get((seed, at, elr))) is not None]
            if run.regime != _EQUILIBRIUM:
                sources.append(Source(at, seed, "cannot tell", f"the run there is {run.regime}"))
            elif len(both) == 2:
                verdict = name_minima(_fine_tuned(both[0]), _fine_tuned(both[1]), reference)
                told = (verdict.minima, verdict.evidence, verdict.ratio, verdict.share)
                sources.append(Source(at, seed, *told, tuple(map(_short, both))))
            elif not run.is_old and not _has_weights(run):
                sources.append(Source(at, seed, "cannot tell", f"{run.folder} has no checkpoint any more"))
        return sources

    def _tuned(self, found: SearchResult) -> dict[tuple[int, float, float], Run]:
        """Runs that were fine-tuned, by seed, the ELR they began from, and their own."""
        places = {_weights(run): place for place, run in _by_place(found).items() if _has_weights(run)}
        tuned = {}
        for state in self._states:
            place = places.get(state.point.values[_WEIGHTS])
            if place is not None and state.state == "done":
                tuned[(*place, float(state.point.values[_ELR]))] = read_run(state.folder)
        return tuned

    def _references(self, found: SearchResult) -> list[float | None]:
        ratios, runs = list[float | None](), _by_place(found)
        for seed in range(found.seeds):
            both = [runs.get((seed, elr)) for elr in self._elrs]
            known = [_fine_tuned(read_run(Path(run.folder))) for run in both if run is not None]
            ratios.append(sharpness_ratio(*known) if len(known) == 2 else None)
        return ratios

    def _fine_tune(self, found: SearchResult, wanted: Sequence[tuple[int, float]]) -> int | None:
        """Make the runs; give the signal that stopped them."""
        at = _by_place(found)
        new = {(_weights(at[place]), f"{elr:.6g}", place[0]) for place in wanted for elr in self._elrs}
        old = [] if self._sweep is None else [state.point.values for state in self._sweep.states]
        chosen = new | {(each[_WEIGHTS], each[_ELR], int(each.get("seed", 0))) for each in old}
        over = {_WEIGHTS: tuple(sorted({each[0] for each in chosen})), _ELR: tuple(sorted({e[1] for e in chosen}))}
        whole = replace(self._engine.plan, over=over, only=())
        names = [
            point.name
            for point in whole.points
            if (point.values[_WEIGHTS], point.values[_ELR], int(point.values.get("seed", 0))) in chosen
        ]
        plan = replace(whole, only=tuple(names))
        if self._sweep is None:
            self._sweep = self._engine.begin(plan, self._folder)
        else:
            self._sweep.extend(plan)
        listed, origins = " and ".join(f"{elr:g}" for elr in self._elrs), sorted({elr for _, elr in wanted})
        self._engine.say(f"{self._folder}: fine-tuning at ELR {listed} from {', '.join(f'{x:g}' for x in origins)}")
        return self._engine.launch(self._sweep).signum


_EQUILIBRIUM = "chaotic equilibrium"


def fine_tuning_elrs(found: SearchResult) -> tuple[float, float] | None:
    """Choose the ELRs of fine-tuning: half of the highest that converges for all seeds, and an eighth of that.

    Args:
        found: What the search for the other borders has come to.

    Returns:
        The lower and the higher one, of the search's grid where that reaches so far; None without convergence or
        chaotic equilibrium.
    """
    last = found.borders[0].last
    if last is None or not any(equilibrium_elrs(found, seed) for seed in range(found.seeds)):
        return None

    def near(elr: float) -> float:
        nearest = min(found.where.candidates, key=lambda at: abs(math.log(at / elr)))
        return nearest if is_close(sorted((nearest, elr)), found.where.precision) else float(f"{elr:.4g}")

    high = near(last / _BELOW_BORDER)
    return near(high / _APART), high


def equilibrium_elrs(found: SearchResult, seed: int) -> list[float]:
    """Give the ELRs that lie in the chaotic equilibrium, between both borders of a seed.

    Args:
        found: What the search for these has come to.
        seed: Number of the seed.

    Returns:
        Those of the search's grid and those that were run, the lowest first.
    """
    verdicts = found.verdicts[seed]
    start, end = bracket_of(verdicts, 1).first, bracket_of(verdicts, 2).last
    return sorted(at for at in {*found.where.candidates, *verdicts} if start <= at <= end)


def _by_place(found: SearchResult) -> dict[tuple[int, float], BorderRun]:
    """Runs by seed and ELR; of an old one and one that was made for its weights, the latter."""
    return {(run.seed, run.at): run for run in found.runs}


def _has_weights(run: BorderRun) -> bool:
    return bool(run.folder) and bool(_checkpoints(run))


def _checkpoints(run: BorderRun) -> list[Path]:
    """The last one last."""
    found = (Path(run.folder) / "checkpoints").glob("*.ckpt")
    return sorted(found, key=lambda path: (path.name == "last.ckpt", path.stat().st_mtime))


def _weights(run: BorderRun) -> str:
    return str(_checkpoints(run)[-1])


def _fine_tuned(run: Run) -> FineTuned:
    verdict = run.verdict
    return FineTuned(run.elr or math.nan, verdict is not None and verdict.regime == "convergence", profile(run))


def _short(run: Run) -> FineTuning:
    loss, norm, error = (_finite(run.final(key)) for key in (LOSS, SHARPNESS, ERROR))
    return FineTuning(run.elr or math.nan, run.epochs, loss, norm, error, str(run.folder))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
