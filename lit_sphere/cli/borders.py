"""``lit-sphere borders``: both borders of the regimes, by bisection."""

import math
import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from lit_sphere.analysis.border_search import BorderSearch, SearchRange
from lit_sphere.analysis.regimes import SHORTEST_RUN
from lit_sphere.cli import main
from lit_sphere.cli.config_names import default_config
from lit_sphere.cli.equilibrium_split import Engine, SplitSearch, check_split
from lit_sphere.cli.errors import CommandLineError, written_to
from lit_sphere.cli.shipped_classes import LINKED
from lit_sphere.cli.subcommand_parser import make_subcommand_parser, split_arguments
from lit_sphere.cli.suggestions import option_strings, suggesting
from lit_sphere.cli.sweep import (
    PRELOAD,
    Resources,
    add_slurm_options,
    command_of,
    configs_in,
    digests,
    epochs_of,
    gpus_of,
    parsed_points,
    share_out,
    slurm_of,
)
from lit_sphere.files import write_whole
from lit_sphere.report.advice import advise
from lit_sphere.report.border_search import (
    BORDERS_FILE,
    BorderRun,
    SearchResult,
    border_chart,
    border_run,
    cost,
    evidence_line,
    sentences,
    write_result,
)
from lit_sphere.report.chart_figures import draw_chart
from lit_sphere.report.comparison import short_name, short_number
from lit_sphere.report.equilibrium_split import source_lines
from lit_sphere.report.picture import NoPicture, write_picture
from lit_sphere.report.runs import read_run, read_runs
from lit_sphere.sweep import Fit, LocalProcesses, Plan, Sweep, SweepError, SweepResult
from lit_sphere.sweep.border_chooser import BorderChooser, fitting_runs
from lit_sphere.sweep.local import import_early
from lit_sphere.sweep.plan import read_folder_plan
from lit_sphere.sweep.run import Chooser
from lit_sphere.sweep.slurm import SlurmJobs, SlurmOptions, check_submitit
from lit_sphere.sweep.view import Lines, LiveTable, one_line

_ELR = "model.elr"
_RANGE, _RANGE_LR = "1e-5:1", "1e-3:10"
_STOPS = "['convergence','chaotic equilibrium','divergence']"
_PICTURE = "borders.png"
_ADVISED = "advised.yaml"
_EXAMPLES = """All other options go to every run, see lit-sphere fit --help.

examples:
  lit-sphere borders --config elr.yaml                  on the digits: some 10 runs, a minute on two cores
  lit-sphere borders --config elr.yaml --seeds 3 --jobs 2
  lit-sphere borders --config resnet18.yaml --over model.elr=1e-4:0.1 --precision 1.5 --budget 1000
  lit-sphere borders --config elr.yaml --runs sweeps/digits      runs of a sweep are used where they fit
  lit-sphere borders --config elr.yaml --precision 1.1 --split-equilibrium       border 2A|2B, too
  lit-sphere borders --config whole_space.yaml --over model.optimizer.lr=1e-2:100
  lit-sphere borders --config elr.yaml --epochs 300     and what to train with for 300 epochs: advised.yaml

Each run is stopped once its regime is settled (RegimeMonitor with stop_when). An undecided run counts for neither side;
more epochs (--trainer.max_epochs) may tell. The same command again goes on where it was stopped, and makes no run
twice; with another range, precision, budget or number of seeds it uses the runs that are there. Ctrl-C stops all with
checkpoints. Status 0: the borders were found, or there are none in the range, which is said, or the budget is used up;
1: a run failed."""


@dataclass(frozen=True)
class _Asked:
    """What a search is to do."""

    option: str
    where: SearchRange
    seeds: int
    budget: int | None
    jobs: int | None
    epochs: int | None  # of the run that is advised on
    splits: bool
    converged_loss: float | None
    slurm: SlurmOptions | None = None

    @property
    def name(self) -> str:
        """Short name of what varies."""
        return short_name(self.option)


def make_parser() -> ArgumentParser:
    """Make the parser of what is the command's own; all else goes to the runs.

    Returns:
        The parser.
    """
    parser = make_subcommand_parser("borders", "[options] [options of fit]", _EXAMPLES)
    add = parser.add_argument
    add(
        "--over",
        type=str,
        default=_ELR,
        metavar="OPTION=LOW:HIGH",
        help="What varies, and the range that is searched: the effective learning rate, or a learning rate in the "
        f"whole space. Without a range {_RANGE} for {_ELR}, and {_RANGE_LR} for others.",
    )
    add("--precision", type=float, default=1.25, help="Ratio of the two ends of a border that is close enough.")
    add(
        "--seeds",
        type=int | None,
        default=None,
        metavar="N",
        help="Find the borders of N seeds, 0 to N-1, as of lit-sphere sweep; the search of the others begins at those "
        "of the first. Default: one, that of the configs.",
    )
    add(
        "--budget",
        type=int | None,
        default=None,
        metavar="EPOCHS",
        help="Begin no run that could make more epochs in all.",
    )
    add(
        "--jobs",
        type=int | None,
        default=None,
        metavar="N",
        help="Runs, or jobs of Slurm, at once, as of lit-sphere sweep; by default no more than two for each seed.",
    )
    add(
        "--epochs",
        type=int | None,
        default=None,
        metavar="N",
        help="Length of the run that is advised on, in words and as advised.yaml. Default: that of the search's runs.",
    )
    _add_where(parser)
    add(
        "--converged-loss",
        type=float | None,
        default=None,
        metavar="LOSS",
        help="Train loss below which a run counts as converged, as of RegimeMonitor: 0.01 for cross-entropy, if not "
        "given; more where weight decay or augmentation keep it up.",
    )
    add(
        "--split-equilibrium",
        action="store_true",
        help="Find border 2A|2B within the chaotic equilibrium, too: below it fine-tuning with lower ELRs reaches only "
        "flat minima. Its runs lie in the folder FOLDER-fine-tuning.",
    )
    return parser


def _add_where(parser: ArgumentParser) -> None:
    """Add where runs are made, and where they lie."""
    add = parser.add_argument
    add("--launcher", type=Literal["local", "slurm"], default="local", help="Where the runs run.")
    add_slurm_options(parser)
    add("--runs", type=str, nargs="+", default=[], metavar="DIR", help="Folders of old runs, used where they fit.")
    add("--sweep", type=str | None, default=None, metavar="DIR", help="Folder. Default: sweeps/CONFIG-borders.")


def run_borders(args: list[str]) -> None:
    """Run the subcommand.

    Args:
        args: Command line after ``borders``.

    Raises:
        CommandLineError: If the search cannot be made as it is asked for; nothing has been run.
        SystemExit: With status 1 if a run failed, 130 or 143 if a signal stopped the search.
    """  # noqa: DOC502
    parser = make_parser()
    own, of_runs = _split(args, parser)
    with suggesting(lambda: option_strings(parser)):
        config = parser.parse_args(own)
    asked = replace(_asked(config), slurm=_slurm(own, config))
    if asked.splits:
        check_split(asked.option, of_runs)
    plan = Plan(tuple(of_runs), {asked.option: ()}, seeds=config.seeds or 0)
    folder = Path(config.sweep) if config.sweep else Path("sweeps") / _default_name(of_runs, asked.option)
    try:
        search = _Search(asked, plan, folder, config.runs)
        result = search.run()
    except SweepError as error:
        raise CommandLineError(str(error)) from error
    _finish(search, result)


def _split(args: Sequence[str], parser: ArgumentParser) -> tuple[list[str], list[str]]:
    """The command's own options, and those of the runs; --runs takes several folders."""
    folders: list[str] = []
    rest: list[str] = []
    left = list(args)
    while left:
        word = left.pop(0)
        if word != "--runs":
            rest.append(word)
            continue
        if not left or left[0].startswith("-"):
            raise CommandLineError("--runs: expected the folders of old runs, such as sweeps/digits")
        while left and not left[0].startswith("-"):
            folders.append(left.pop(0))
    words, own, of_runs = split_arguments(rest, parser)
    if words:
        raise CommandLineError(f"borders takes no name, got {words[0]}; give --config {words[0]}")
    return [*own, *(["--runs", *folders] if folders else [])], of_runs


def _asked(config: Namespace) -> _Asked:
    option, equals, text = config.over.partition("=")
    option = option.strip().removeprefix("--")
    wrong = f"--over {config.over}: expected OPTION=LOW:HIGH, e.g. {_ELR}={_RANGE}"
    if not equals:
        text = _RANGE if option == _ELR else _RANGE_LR
    try:
        ends = [float(end) for end in text.split(":")]
    except ValueError:
        raise CommandLineError(wrong) from None
    if len(ends) != 2 or not option:
        raise CommandLineError(wrong)
    for name in ("seeds", "budget", "jobs", "epochs"):
        value, least = config[name], 0 if name == "seeds" else 1
        if value is not None and not least <= value <= (1000 if name == "seeds" else value):
            raise CommandLineError(f"--{name} must be at least {least}, got {value}")
    try:
        where = SearchRange(ends[0], ends[1], config.precision)
    except ValueError as error:
        raise CommandLineError(f"--{'precision' if 'precision' in str(error) else 'over'}: {error}") from error
    asked = option, where, max(1, config.seeds or 0), config.budget, config.jobs
    return _Asked(*asked, config.epochs, config.split_equilibrium, _converged_loss(config))


def _converged_loss(config: Namespace) -> float | None:
    loss: float | None = config.converged_loss
    if loss is not None and not 0 < loss < math.inf:
        raise CommandLineError(f"--converged-loss must be positive, got {loss:g}")
    return loss


def _slurm(own: Sequence[str], config: Namespace) -> SlurmOptions | None:
    try:
        return slurm_of(own, config)
    except SweepError as error:
        raise CommandLineError(str(error)) from error


def _default_name(of_runs: Sequence[str], option: str) -> str:
    configs = configs_in(of_runs)
    path = Path(configs[-1] if configs and not configs[-1].startswith("{") else default_config())
    return f"{path.stem}-borders" + ("" if option == _ELR else f"-over-{option.rpartition('.')[2]}")


class _Search:
    """A search in its folder: everything is checked before the first run begins.

    Raises:
        SweepError: If the folder holds something else.
        CommandLineError: If a run cannot be made as it is asked for, or the budget is too small for one.
    """

    def __init__(self, asked: _Asked, plan: Plan, folder: Path, old_folders: Sequence[str]) -> None:
        self.asked, self.folder, self.typed = asked, folder, plan.fit
        # More at once would mostly be in anticipation.
        most = asked.jobs or 2 * asked.seeds
        if asked.slurm is None:
            import_early(share_out(asked.jobs, (), most).threads, PRELOAD)  # beside what this process imports now
        candidates = asked.where.candidates
        some = tuple(f"{at:.6g}" for at in dict.fromkeys((candidates[0], candidates[1], candidates[-1])))
        parsed = parsed_points(replace(plan, over={asked.option: some}), with_files=asked.slurm is None)[0]
        self.command = command_of([parsed]) if asked.slurm is None else main
        self.epochs = epochs_of(parsed)
        self._check_epochs()
        before = _begun(folder)
        seeds = plan.seeds if before is None else max(plan.seeds, before.seeds if plan.seeds else 0)
        self.plan = replace(plan, fit=(*plan.fit, *_of_search(plan.fit, parsed, asked.converged_loss)), seeds=seeds)
        self.resources = share_out(asked.jobs, gpus_of([parsed]), most)
        if asked.slurm is not None:
            asked.slurm.parameters(folder.name)
            check_submitit()
            self.resources = Resources(most, asked.slurm.cpus, ())
        self.old = self._old_runs(old_folders, parsed.as_dict(), plan.seeds)
        search = BorderSearch(asked.where, asked.seeds)
        self.chooser = BorderChooser(self.plan, asked.option, search, self.old, self.epochs, asked.budget)
        if before is not None:
            self.plan = replace(self.plan, over=before.over, only=before.only)
        else:
            self.plan = self.chooser([]) or self.plan
        self.sweep: Sweep | None = None
        self.split = self._split() if asked.splits else None

    def _split(self) -> SplitSearch:
        budget, folder = self.asked.budget, self.folder.with_name(f"{self.folder.name}-fine-tuning")
        ways = (self.chooser, self.found_of, self.more, self.begin, self.launch)
        return SplitSearch(Engine(replace(self.plan, over={}, only=()), *ways, self.epochs, budget, _say), folder)

    def _check_epochs(self) -> None:
        budget = self.asked.budget
        if self.epochs is not None and self.epochs < SHORTEST_RUN:
            raise CommandLineError(
                f"--trainer.max_epochs {self.epochs}: no regime is named before {SHORTEST_RUN} epochs; give more"
            )
        if budget is None:
            return
        if self.epochs is None:
            raise CommandLineError(
                "--budget counts epochs, and the runs have no limit of these: give --trainer.max_epochs"
            )
        if budget < self.epochs:
            raise CommandLineError(
                f"--budget {budget} is too small for one run of {self.epochs} epochs: give at least that, or a smaller "
                "--trainer.max_epochs"
            )

    def _old_runs(self, folders: Sequence[str], wanted: dict[str, Any], seeds: int) -> list[BorderRun]:
        if not folders:
            return []
        runs, left_out = read_runs(folders)
        if not runs:
            raise CommandLineError(f"--runs: no run there: {'; '.join(left_out[:3])}")
        linked = {f"model.{name}" for name in LINKED}
        fitting, refused = fitting_runs(runs, wanted, self.asked.option, seeds, self.epochs, linked)
        inside = [run for run in fitting if self.folder.resolve() not in Path(run.folder).resolve().parents]
        more = f"; the others not, e.g. {refused[0]}" if refused else ""
        _say(f"{len(inside)} of {len(runs)} old runs fit{more}")
        return inside

    def run(self) -> SweepResult:
        """Make the runs, and show them."""
        result = self._run_borders()
        failed = any(state.state == "failed" for state in result.states)
        if self.split is None or result.signum is not None or failed or self.chooser.names_nothing:
            return result
        return self.split.run(result)

    def _run_borders(self) -> SweepResult:
        asked = self.asked
        if not self.plan.only:  # old runs are enough
            self.folder.mkdir(parents=True, exist_ok=True)
            return SweepResult(self.folder, [])
        self.sweep = sweep = self.begin(self.plan, self.folder)
        written_to.set(self.folder)
        jobs, threads, where = self.resources.jobs, sweep.threads, asked.where
        seeds = f", {asked.seeds} seeds" if asked.seeds > 1 else ""
        done = sum(state.state == "done" for state in sweep.states)
        before = f"; {done} run{'s are' if done > 1 else ' is'} done already" if done else ""
        at_once = f"{jobs} run{'s' if jobs > 1 else ''} at once, {threads} thread{'s' if threads > 1 else ''} each"
        _say(
            f"{self.folder}: {asked.name} from {short_number(where.low)} to {short_number(where.high)}, as close as "
            f"×{where.precision:g}{seeds}; {at_once}{before}"
        )
        return self.launch(sweep, self.chooser)

    def begin(self, plan: Plan, folder: Path) -> Sweep:
        """Begin a sweep of runs of the search, or go on with it."""
        return Sweep(
            plan, folder, Fit(self.command, digests(plan), [self.epochs] * len(plan.points)), self.resources.threads
        )

    def launch(self, sweep: Sweep, choose: Chooser | None = None) -> SweepResult:
        """Run what is not done of a sweep."""
        jobs = self.resources.jobs
        slurm, gpus = self.asked.slurm, self.resources.gpus
        launcher: LocalProcesses | SlurmJobs
        if slurm is None:
            launcher = LocalProcesses(jobs, sweep.threads, gpus, PRELOAD)
        else:
            launcher = SlurmJobs(sweep.folder, slurm, jobs)
        in_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        return sweep.run(launcher, LiveTable(sweep.folder, jobs) if in_terminal else Lines(grows=True), choose)

    def more(self, plan: Plan) -> SweepResult:
        """Make the runs of a plan beside those of the search."""
        if self.sweep is None:
            self.sweep = self.begin(plan, self.folder)
        else:
            self.sweep.extend(plan)
        return self.launch(self.sweep)

    def outcome(self, result: SweepResult) -> SearchResult:
        """Read what the runs came to."""
        found = self.found_of(result)
        return found if self.split is None else replace(found, split=self.split.split(found))

    def found_of(self, result: SweepResult) -> SearchResult:
        """Read what the runs of the search came to, apart from border 2A|2B."""
        runs = list(self.old)
        for state in result.states:
            seed, at = self.chooser.place(state.point)
            if state.state == "done" and seed < self.asked.seeds:
                runs.append(border_run(read_run(state.folder), at, seed))
        asked = self.asked
        return SearchResult(asked.option, asked.where, asked.seeds, self.epochs, runs, asked.epochs)


def _begun(folder: Path) -> Plan | None:
    """The runs of an earlier search in the folder."""
    begun = read_folder_plan(folder)
    if begun is not None and not begun.plan.only:
        raise SweepError(
            f"{folder} holds a sweep that is no search for borders: give another folder by --sweep; to use its runs, "
            f"add --runs {folder}"
        )
    return None if begun is None else begun.plan


def _of_search(fit: Sequence[str], parsed: Namespace, converged_loss: float | None) -> list[str]:
    """Options that the runs of a search have, where nothing else is asked for."""
    listed = parsed.trainer.callbacks or []
    names = [str(each.class_path) for each in (listed if isinstance(listed, list) else [listed])]
    more = []
    if any(name.endswith("RegimeMonitor") for name in names):
        if converged_loss is not None:
            raise CommandLineError("--converged-loss: the runs have a RegimeMonitor of their own; give it to that one")
        _say("the RegimeMonitor of the runs is taken as it is: without stop_when they go on to their ends")
    else:
        more += ["--trainer.callbacks+=RegimeMonitor", f"--trainer.callbacks.stop_when={_STOPS}"]
        if converged_loss is not None:
            more.append(f"--trainer.callbacks.converged_loss={converged_loss:g}")
    if not any(each.partition("=")[0] == "--non_finite" for each in fit):
        more.append("--non_finite=finding")
    return more


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _finish(search: _Search, result: SweepResult) -> None:
    """Write and say what was found, and end with the status."""
    failed = [state for state in result.states if state.state == "failed"]
    failed += search.split.failed if search.split is not None else []
    found = search.outcome(result)
    write_result(search.folder, found)
    if found.runs:
        try:
            write_picture(search.folder / _PICTURE, lambda: draw_chart(border_chart(found), []))
        except NoPicture as error:
            _say(f"lit-sphere: {error}")
    if result.signum is not None:
        _say(f"lit-sphere: interrupted; the same command goes on with {search.folder}")
        sys.exit(128 + result.signum)
    if search.chooser.names_nothing:
        where = search.folder / search.chooser.names_nothing
        _say(f"lit-sphere: no regime can be named, see {where}/output.log; is anything in the network scale-invariant?")
        sys.exit(1)
    print("\n".join(_answer(found, search)), flush=True)
    for state in failed:
        _say(f"  {one_line(state)}")
    if failed:
        _say("lit-sphere: the search ended since a run failed; the same command tries again")
        sys.exit(1)


def _answer(found: SearchResult, search: _Search) -> list[str]:
    """What was found, with the runs that show it."""
    lines = []
    for border, sentence in zip(found.borders, sentences(found), strict=False):
        lines.append(sentence)
        lines += [f"  {evidence_line(run, search.asked.name, found.seeds)}" for run in found.at_edges(border)]
    lines += sentences(found)[len(found.borders) :]
    if found.split is not None:
        lines += [f"  {line}" for line in source_lines(found.split)]
    if search.chooser.ran_out:
        lines.append(f"The budget of {search.asked.budget} epochs leaves room for no other run; a larger one goes on.")
    folder = shlex.quote(str(search.folder))
    return [
        *lines,
        f"{cost(found)}.",
        *_advise(found, search),
        f"{search.folder / BORDERS_FILE}, {_PICTURE}; lit-sphere report {folder}",
    ]


def _advise(found: SearchResult, search: _Search) -> list[str]:
    """Say what the borders advise, and write it down as a config."""
    if found.epochs_of_advice is None:
        return ["Advice is for a number of epochs: give --epochs."]
    advice = advise(found)
    path = search.folder / _ADVISED
    options = advice.options(found.option)
    if not options:
        path.unlink(missing_ok=True)  # of an earlier search
        return list(advice.sentences)
    from lit_sphere.cli.fit_parser import config_of

    try:
        config = config_of([*search.typed, *options])
    except CommandLineError as error:
        return [*advice.sentences, f"{path} is not written, since fit refuses {shlex.join(options)}: {error}"]
    words = "".join(f"# {line}\n" for sentence in advice.sentences for line in textwrap.wrap(sentence, 110))
    write_whole(path, lambda file: file.write(f"{words}{config}".encode()))
    return [*advice.sentences, f"To train so: lit-sphere fit --config {shlex.quote(str(path))}"]
