"""``lit-sphere reproduce ID…``: the runs of an experiment, its page, and whether they show what they must."""

import os
import platform
import shlex
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.subcommand_parser import make_subcommand_parser, split_arguments
from lit_sphere.cli.suggestions import did_you_mean, option_strings, suggesting
from lit_sphere.experiments import EXPERIMENTS, Experiment, judge
from lit_sphere.experiments.records import Record, read_record, shipped_records, write_record

if TYPE_CHECKING:
    from lit_sphere.sweep import Plan

_WIDTH = 110
_EXAMPLES = """examples:
  lit-sphere reproduce --list              all experiments: what each must show, its cost, whether the last check held
  lit-sphere reproduce E1                  on digits, minutes on two cores; the page is reproductions/E1/report.html
  lit-sphere reproduce E1 E3 E26           several, which share their runs
  lit-sphere reproduce E1 --seeds 3 --jobs 2
  lit-sphere reproduce E1 --paper --data.root DIR     in the papers' setting

Runs lie in reproductions/runs, pages and findings in reproductions/ID. The same command again goes on where it was
stopped, and makes no run twice. Status 0: all that was found holds, or there was too little to tell, which is said;
1: something does not hold, or a run failed."""


def make_parser() -> ArgumentParser:
    """Make the parser of what is the command's own; all else goes to the runs.

    Returns:
        The parser.
    """
    parser = make_subcommand_parser("reproduce", "ID... [options] [options of fit]", _EXAMPLES)
    add = parser.add_argument
    add("ids", type=str, nargs="*", metavar="ID", help="Experiments, such as E1; --list lists them.")
    add("--list", action="store_true", help="List the experiments, and do nothing else.")
    add("--paper", action="store_true", help="In the papers' setting, which needs their data and a GPU.")
    add("--seeds", type=int | None, default=None, metavar="N", help="Each run with N seeds, as of lit-sphere sweep.")
    add("--jobs", type=int | None, default=None, metavar="N", help="Runs at once, as of lit-sphere sweep.")
    add("--folder", type=str, default="reproductions", metavar="DIR", help="Where runs, pages and findings go.")
    return parser


def run_reproduce(args: list[str]) -> None:
    """Run the subcommand.

    Args:
        args: Command line after ``reproduce``.

    Raises:
        CommandLineError: If an id is not known or an option has no effect; nothing has been run.
        SystemExit: With status 1 if something does not hold or a run failed, 130 or 143 if a signal stopped it.
    """  # noqa: DOC502
    parser = make_parser()
    ids, own, of_runs = split_arguments(args, parser)
    with suggesting(lambda: option_strings(parser)):
        config = parser.parse_args([*ids, *own])
    experiments = [_find(name) for name in config.ids]
    if config.list:
        print(table(Path(config.folder), experiments or list(EXPERIMENTS.values())))
        return
    if not experiments:
        raise CommandLineError(f"reproduce needs an experiment: {', '.join(EXPERIMENTS)}; --list says what they show")
    _check_effect(experiments, config, of_runs)
    command = "lit-sphere reproduce " + shlex.join(args)
    made = _Made(experiments, config, of_runs)
    verdicts = set()
    for experiment in experiments:
        verdict = _report(experiment, made, config, command)
        verdicts.add(verdict)
        if verdict == "cannot tell":
            print(f"lit-sphere: {experiment.id}: too little was run to tell", file=sys.stderr)
    if made.failed:
        names = ", ".join(made.failed)
        print(f"lit-sphere: not all runs are done: {names}; the same command tries again", file=sys.stderr)
    if "does not" in verdicts or made.failed:
        sys.exit(1)


def table(folder: Path, experiments: Sequence[Experiment]) -> str:
    """List experiments.

    Args:
        folder: Of the reproductions, whose findings come before those that are shipped.
        experiments: Those to list.

    Returns:
        The text.
    """
    shipped = shipped_records()
    lines = [f"{'id':<5}{'runs [s]':>9}  what must be seen, and whether the last check held"]
    for experiment in experiments:
        mine = read_record(folder / experiment.id)
        record = mine or shipped.get(experiment.id)
        cost = f"{shipped[experiment.id].seconds:.0f}" if experiment.id in shipped else ""
        lines.append(f"{experiment.id:<5}{cost:>9}  {experiment.title} ({experiment.source})")
        held = (
            "not checked yet" if record is None else f"{record.verdict}, {record.date}, {_where(record, mine, folder)}"
        )
        for text in (experiment.must_show, f"Last check: {held}."):
            lines += textwrap.wrap(text, _WIDTH, initial_indent=" " * 16, subsequent_indent=" " * 16)
    lines += textwrap.wrap(
        "Seconds of all runs together, one after the other, as of our own last check, beside other work on two cores: "
        "alone they take a third or less; --jobs N makes N at once.",
        _WIDTH,
    )
    return "\n".join(lines)


def _where(record: Record, mine: Record | None, folder: Path) -> str:
    if mine is not None:
        return f"in {folder / record.id}"
    return f"shipped ({record.hardware}, {record.command})"  # of one seed or of several, as its cost


def _find(name: str) -> Experiment:
    found = EXPERIMENTS.get(name.upper())
    if found is None:
        nearest = did_you_mean(name.upper(), list(EXPERIMENTS)) or ";"
        raise CommandLineError(f"no experiment {name!r}{nearest} there are {', '.join(EXPERIMENTS)}")
    return found


def _check_effect(experiments: Sequence[Experiment], config: Namespace, of_runs: Sequence[str]) -> None:
    """Refuse what would change nothing, or cannot be."""
    if config.paper:
        for each in experiments:
            if not each.paper_sweeps:
                remedy = "it is the same there" if each.toy else "its configs are of digits only"
                raise CommandLineError(f"--paper: {each.id} has no papers' setting ({remedy}); leave it out")
    if all(each.toy for each in experiments):
        given = [*(["--seeds"] if config.seeds is not None else []), *of_runs]
        if given:
            raise CommandLineError(f"{given[0]} is of runs, and {experiments[0].id} is of the toy: leave it out")


def _sources(experiment: Experiment, paper: bool) -> tuple[str, ...]:
    """Names of the folders below ``runs`` that an experiment is judged by."""
    if experiment.toy:
        return (experiment.toy_folder,)
    return experiment.paper_sweeps if paper else experiment.sweeps


class _Made:
    """What was run, each sweep once, however many experiments are judged by it.

    Args:
        experiments: All that will be asked for.
        config: Options of the command.
        of_runs: Options of every run.

    Attributes:
        failed: Names of sweeps that are not done.

    Raises:
        CommandLineError: If a sweep cannot be made; nothing has been run.
    """

    def __init__(self, experiments: Sequence[Experiment], config: Namespace, of_runs: Sequence[str]) -> None:
        self._base, self._jobs = Path(config.folder) / "runs", config.jobs
        self._seconds: dict[str, float] = {}
        self.failed: list[str] = []
        names = dict.fromkeys(name for each in experiments for name in _sources(each, config.paper))
        self._toys = {each.toy_folder: each.toy_options for each in experiments if each.toy}
        self._plans: dict[str, Plan] = {}
        sweeps = [name for name in names if name not in self._toys]
        if sweeps:
            with _sweep_errors():
                self._plans = {name: _plan(name, config.seeds, of_runs) for name in sweeps}
                _check_plans(list(self._plans.values()))

    def make(self, name: str) -> tuple[Path, float]:
        """Make what is not there yet, and give its folder and the seconds that were spent on it."""
        folder = self._base / name
        if name not in self._seconds:
            toy = self._toys.get(name)
            self._seconds[name] = self._run(name, folder) if toy is None else _make_toy(folder, toy)
        return folder, self._seconds[name]

    def _run(self, name: str, folder: Path) -> float:
        from lit_sphere.cli.sweep import run_sweep

        with _sweep_errors():
            result = run_sweep(self._plans[name], folder, self._jobs)
        if result.signum is not None:
            print("lit-sphere: interrupted; the same command goes on", file=sys.stderr)
            sys.exit(128 + result.signum)
        if not (result.is_done and result.afterwards):
            self.failed.append(name)
        return sum(state.seconds for state in result.states)


@contextmanager
def _sweep_errors() -> Iterator[None]:
    """Word the errors of sweeps for this command."""
    from lit_sphere.sweep import SweepError

    try:
        yield
    except SweepError as error:
        raise CommandLineError(str(error).replace("--sweep", "--folder")) from error


def _plan(name: str, seeds: int | None, of_runs: Sequence[str]) -> "Plan":
    from lit_sphere.cli.config_names import find_sweep
    from lit_sphere.sweep import SweepError, read_plan

    try:
        plan = read_plan(Path(find_sweep(name))).with_seeds(seeds)
    except SweepError as error:
        raise SweepError(f"{name}: {error}") from error
    return replace(plan, fit=(*plan.fit, *of_runs))


def _check_plans(plans: Sequence["Plan"]) -> None:
    """Find what is wrong with a later sweep before the first one runs; that of the first is found when it begins."""
    if len(plans) > 1:
        from lit_sphere.cli.sweep import parsed_points

        for plan in plans[1:]:
            parsed_points(plan)


def _make_toy(folder: Path, options: tuple[str, ...]) -> float:
    from lit_sphere.cli.toy import run_toy

    started = time.perf_counter()
    if not (folder / ("toy.csv" if options else "toy_elrs.csv")).exists():
        run_toy([*options, "--run", str(folder)])
    return time.perf_counter() - started


def _report(experiment: Experiment, made: _Made, config: Namespace, command: str) -> str:
    """Make the runs, judge, write page and record, and say so."""
    from lit_sphere.cli.report import write_report
    from lit_sphere.report.runs import read_runs
    from lit_sphere.sweep.states import STATES_FILE

    sources = [made.make(name) for name in _sources(experiment, config.paper)]
    paths, seconds = [path for path, _ in sources], sum(spent for _, spent in sources)
    runs = read_runs(paths).runs
    if not runs and not experiment.toy:
        places = " and ".join(str(path / STATES_FILE) for path in paths)
        print(f"lit-sphere: {experiment.id}: no run of its sweep came to an end; see {places}", file=sys.stderr)
        return "cannot tell"
    finding = judge(experiment, runs, paths)
    folder = Path(config.folder) / (f"{experiment.id}-paper" if config.paper else experiment.id)
    title, formats = f"{experiment.id}: {experiment.title}", ("pdf", "svg", "png")
    report = write_report(paths, folder, title, formats, [experiment.id])
    date = time.strftime("%Y-%m-%d")
    before = read_record(folder)
    if not seconds and before is not None:  # nothing was run anew
        seconds = before.seconds
    record = Record(
        experiment.id, finding.verdict, finding.text, round(seconds, 1), command, date, hardware(), versions()
    )
    write_record(folder, record)
    indent = " " * 7
    print(f"\n{experiment.id:<7}{finding.verdict}: {experiment.title} ({experiment.source})")
    for text in (experiment.must_show, finding.text):
        print(textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent))
    print(f"{indent}page: {report.page}", flush=True)
    return finding.verdict


def hardware() -> str:
    """Say in words on what this runs, without the name of the machine.

    Returns:
        Cores and the kind of processor, and a GPU if there is one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    kind = platform.processor() or platform.machine()
    with suppress(OSError):  # not Linux
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kind = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), kind)
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cores} core{'s' if cores > 1 else ''} of {kind}{gpu}"


def versions() -> Mapping[str, str]:
    """Give the versions of the packages that results depend on.

    Returns:
        By name; those that are not installed are left out.
    """
    found = {}
    for name in ("lit-sphere", "torch", "lightning"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
