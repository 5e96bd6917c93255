"""``lit-sphere sweep``: a grid of runs."""

import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml
from jsonargparse import ArgumentParser, Namespace

from lit_sphere.cli import main
from lit_sphere.cli.config_names import default_config, find_sweep, read_config, shipped_sweeps
from lit_sphere.cli.errors import CommandLineError, written_to
from lit_sphere.cli.quick_imports import quick_imports
from lit_sphere.cli.subcommand_parser import make_subcommand_parser, split_arguments
from lit_sphere.cli.suggestions import option_strings, suggesting
from lit_sphere.files import write_whole
from lit_sphere.sweep import Fit, LocalProcesses, Plan, Sweep, SweepError, SweepResult, read_plan
from lit_sphere.sweep.afterwards import commands_afterwards, run_afterwards
from lit_sphere.sweep.grid import read_over
from lit_sphere.sweep.local import import_early
from lit_sphere.sweep.plan import PLAN_FILE, digest
from lit_sphere.sweep.run import begun_in
from lit_sphere.sweep.slurm import SlurmJobs, SlurmOptions, batch_script, check_submitit
from lit_sphere.sweep.states import STATES_FILE, read_states
from lit_sphere.sweep.view import Lines, LiveTable, counts, one_line
from lit_sphere.sweep.wandb_sweep import wandb_sweep

PRELOAD = ("lit_sphere.cli.run_imports",)


def make_parser() -> ArgumentParser:
    """Make the parser of what is the sweep's own; all else goes to the runs.

    Returns:
        The parser.
    """
    parser = make_subcommand_parser("sweep", "[NAME] --over OPTION=VALUES [options] [options of fit]", _examples())
    add = parser.add_argument
    add(
        "--over",
        type=str,
        action="append",
        default=[],
        metavar="OPTION=VALUES",
        help="Option of fit and its values: A,B,C; log:LOW:HIGH:N or lin:LOW:HIGH:N; paper, the papers' grid of ELRs "
        "{1, 2, 5}·10^-k from 1e-7 to 5, or paper:LOW:HIGH. Several --over make a product.",
    )
    add(
        "--seeds",
        type=int | None,
        default=None,
        metavar="N",
        help="Each point with N seeds, 0 to N-1: of the weights (--seed_everything) and of the data (--data.seed: "
        "order of the batches, augmentation, subset, label noise). 0: those of the configs, whatever a file says.",
    )
    add(
        "--jobs",
        type=int | None,
        default=None,
        metavar="N",
        help="Runs at once. Default: one for each GPU, or without a GPU one for each core. Cores and GPUs are shared "
        "out; several runs may share a GPU. With --launcher slurm: jobs at once, all by default.",
    )
    add(
        "--sweep",
        type=str | None,
        default=None,
        metavar="DIR",
        help="Folder of the sweep. Default: sweeps/NAME, or sweeps/CONFIG-over-OPTIONS.",
    )
    add("--dry-run", action="store_true", help="Print what would be run, or submitted, and do nothing.")
    add("--launcher", type=Literal["local", "slurm"], default="local", help="Where the runs run.")
    add("--export", type=Literal["wandb"] | None, default=None, help="Write the grid as a sweep of W&B; run nothing.")
    add_slurm_options(parser)
    return parser


def add_slurm_options(parser: ArgumentParser) -> None:
    """Add what runs ask of Slurm."""
    parser.add_class_arguments(SlurmOptions, "slurm")


def _examples() -> str:
    shipped = textwrap.fill(", ".join(shipped_sweeps()), 110, initial_indent="  ", subsequent_indent="  ")
    return f"""NAME is a YAML file, the folder of a sweep, to go on with it, or one of the shipped sweeps:
{shipped}.
All other options go to every run, see lit-sphere fit --help.

examples:
  lit-sphere sweep elr                                  the papers' grid of ELRs on the digits
  lit-sphere sweep --over model.elr=1e-4,1e-3,1e-2 --seeds 3 --trainer.max_epochs 50
  lit-sphere sweep --config resnet18.yaml --over model.elr=log:1e-5:1:11 --over model.width=8,16 --jobs 2
  lit-sphere sweep elr --launcher slurm --slurm.partition gpu --slurm.time 120 --dry-run
  lit-sphere sweep elr --export wandb --project mine

a file:
  title: Widths of the ConvNet
  fit: --config elr.yaml --trainer.max_epochs 50        what every run is given
  over: {{model.elr: [1.0e-3, 1.0e-2], model.width: [4, 8]}}      a product
  zip: {{data.train_size: [256, 1024], trainer.max_epochs: [200, 50]}}     options that change together
  seeds: 3
  experiments: [E1]                                     what the report shows
  then: ["interpolate {{0}}/checkpoints/last.ckpt {{1}}/checkpoints/last.ckpt --run {{sweep}}/barrier"]
                                                        commands after the runs; {{0}} is the first run's folder; one
                                                        with {{seed}} is run for each seed, {{0}} is the first with it

Each run is what lit-sphere fit would do, bit for bit, with as many threads (OMP_NUM_THREADS; sweep.yaml names them).
The same command again skips the runs that are done, tries those that failed, goes on with those that were stopped or
killed, and adds new values. Ctrl-C stops all with checkpoints; a second one at once."""


def run_sweep_command(args: list[str]) -> None:
    """Run the subcommand.

    Args:
        args: Command line after ``sweep``.

    Raises:
        CommandLineError: If the sweep cannot be made as it is asked for; nothing has been run.
        SystemExit: With status 1 if a point failed, 130 or 143 if a signal stopped the sweep.
    """  # noqa: DOC502
    parser = make_parser()
    names, own, of_runs = split_arguments(args, parser)
    if len(names) > 1:
        raise CommandLineError(f"sweep takes one name, got {' and '.join(names)}; sweep one after the other")
    name = names[0] if names else None
    with suggesting(lambda: option_strings(parser)):
        config = parser.parse_args(own)
    try:
        plan = _plan(name, config, of_runs)
        _check_effect(own, config)
        folder = Path(config.sweep) if config.sweep else _default_folder(name, plan)
        if config.export is not None:
            _export(plan, folder)
            return
        slurm = slurm_of(own, config)
        if config.dry_run:
            _show_dry_run(plan, folder, slurm)
            return
        result = run_sweep(plan, folder, config.jobs, slurm)
    except SweepError as error:
        raise CommandLineError(str(error)) from error
    _finish(result)


def run_sweep(
    plan: Plan, folder: Path, jobs: int | None = None, slurm: SlurmOptions | None = None, cluster: str = "slurm"
) -> SweepResult:
    """Run a sweep, show it, and run the commands that come after it.

    Args:
        plan: What it is.
        folder: Where; an earlier part of it is gone on with.
        jobs: Runs at once; by default one for each GPU, or without one for each core.
        slurm: What each run asks of Slurm; None runs all on this machine.
        cluster: submitit's name of the queue: ``slurm``, or ``local`` for jobs of the same kind on this machine.

    Returns:
        What has become of its points.

    Raises:
        SweepError: If it cannot be made; nothing has been run.
        CommandLineError: If the command line of a point cannot be understood; nothing has been run.
    """  # noqa: DOC502
    if jobs is not None and jobs < 1:
        raise SweepError(f"--jobs must be at least 1, got {jobs}")
    if slurm is None:
        import_early(share_out(jobs, (), len(plan.points)).threads, PRELOAD)  # beside what this process imports now
    parsed = parsed_points(plan, with_files=slurm is None and not (folder / PLAN_FILE).exists())
    resources = share_out(jobs, gpus_of(parsed), len(plan.points))
    afterwards = commands_afterwards(plan, folder)
    command = command_of(parsed) if slurm is None else main
    fit = Fit(command, digests(plan), [epochs_of(each) for each in parsed])
    launcher: LocalProcesses | SlurmJobs
    if slurm is not None:
        slurm.parameters(folder.name)
        check_submitit()
    sweep = Sweep(plan, folder, fit, resources.threads if slurm is None else slurm.cpus)
    written_to.set(folder)
    if slurm is None:
        launcher = LocalProcesses(resources.jobs, sweep.threads, resources.gpus, PRELOAD)
    else:
        launcher = SlurmJobs(folder, slurm, jobs, cluster)
    _announce(sweep, resources, slurm)
    in_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    view = LiveTable(folder, resources.jobs) if in_terminal else Lines()
    result = sweep.run(launcher, view)
    if result.is_done and result.signum is None:
        succeeded = run_afterwards(afterwards, folder, lambda line: print(line, file=sys.stderr, flush=True))
        return replace(result, afterwards=succeeded)
    return result


def parsed_points(plan: Plan, with_files: bool = False) -> list[Namespace]:
    """Parse the command lines of all points; Lightning, which takes seconds, is imported here.

    Args:
        plan: As of :func:`~lit_sphere.cli.fit_parser.parse_points`.
        with_files: As there.

    Returns:
        The configuration of each point.

    Raises:
        CommandLineError: As there.
    """  # noqa: DOC502
    with quick_imports():
        from lit_sphere.cli.fit_parser import parse_points

    return parse_points(plan, with_files)


def _announce(sweep: Sweep, resources: "Resources", slurm: SlurmOptions | None) -> None:
    done = sum(state.state == "done" for state in sweep.states)
    before = f", {done} of them done already" if done else ""
    threads = f"{sweep.threads} thread{'s' if sweep.threads > 1 else ''} each"
    at_once = f"{resources.jobs} at once" if resources.jobs > 1 else "one after the other"
    gpus = len(resources.gpus)
    where = f"{at_once} on {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else f"{at_once}, {threads}"
    where = "as jobs of Slurm" if slurm is not None else where
    print(f"{sweep.folder}: {len(sweep.states)} runs{before}; {where}", file=sys.stderr, flush=True)


def _show_dry_run(plan: Plan, folder: Path, slurm: SlurmOptions | None) -> None:
    parsed_points(plan)
    begun_in(folder, plan, digests(plan))
    left = [state.point for state in read_states(folder / STATES_FILE, plan.points) if state.state != "done"]
    commands = [
        shlex.join(["lit-sphere", "fit", *plan.arguments(point), "--run", str(folder / point.name)]) for point in left
    ]
    if len(left) < len(plan.points):
        print(f"# {len(plan.points) - len(left)} of {len(plan.points)} runs are done already")
    afterwards = [shlex.join(["lit-sphere", *command]) for command in commands_afterwards(plan, folder).values()]
    if slurm is not None:
        check_submitit()
        print(batch_script(folder, slurm, f"python -m submitit.core._submit {folder / 'slurm'}"))
        print(f"# {len(commands)} jobs of this kind, which run:")
    for command in [*commands, *afterwards]:
        print(command)


def _export(plan: Plan, folder: Path) -> None:
    parsed = parsed_points(plan)
    content = wandb_sweep(plan, folder.name, parsed[0].project)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "wandb-sweep.yaml"
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    write_whole(path, lambda file: file.write(text.encode()))
    print(f"{path}: {len(plan.points)} runs; wandb sweep {path} registers it and names the command of the agents")


@dataclass(frozen=True)
class Resources:
    """What runs get.

    Attributes:
        jobs: Runs at once.
        threads: Of each.
        gpus: Ids of the GPUs of a run each.
    """

    jobs: int
    threads: int
    gpus: tuple[str, ...]


def share_out(jobs: int | None, gpus: tuple[str, ...], most: int) -> Resources:
    """Share out the cores, or the GPUs.

    Args:
        jobs: Runs at once; None for one for each GPU, or without one for each core.
        gpus: Ids of the GPUs of a run each.
        most: Runs that there are at all.

    Returns:
        What each gets.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs or len(gpus) or cores, most)
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdecimal() and int(given) else max(1, cores // jobs)
    return Resources(jobs, threads, gpus)


def gpus_of(parsed: Sequence[Namespace]) -> tuple[str, ...]:
    """Find the GPUs.

    Args:
        parsed: The configuration of each run.

    Returns:
        Ids of those of a run each; several with commas between them where a run takes several.
    """
    import torch

    if all(each.trainer.accelerator == "cpu" for each in parsed):
        return ()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = given.split(",") if given is not None else [str(i) for i in range(torch.cuda.device_count())]
    ids = [each for each in ids if each.strip()][: torch.cuda.device_count()]
    several = max(1, *(each.trainer.devices for each in parsed if isinstance(each.trainer.devices, int)), 1)
    return tuple(",".join(ids[i : i + several]) for i in range(0, len(ids) - several + 1, several))


def _plan(name: str | None, config: Namespace, of_runs: list[str]) -> Plan:
    plan = read_plan(Path(find_sweep(name))) if name is not None else Plan()
    over = dict(plan.over)
    typed = [read_over(text) for text in config.over]
    for option, values in typed:
        if sum(option == other for other, _ in typed) > 1:
            raise SweepError(f"--over {option}: stands twice; put all values behind one")
        over[option] = values
    return replace(plan.with_seeds(config.seeds), fit=(*plan.fit, *of_runs), over=over)


def _check_effect(own: Sequence[str], config: Namespace) -> None:
    """Refuse what would change nothing, or cannot be, whatever else is asked for."""
    if config.jobs is not None and config.jobs < 1:
        raise SweepError(f"--jobs must be at least 1, got {config.jobs}")
    slurm_of(own, config)


def slurm_of(own: Sequence[str], config: Namespace) -> SlurmOptions | None:
    """Give what each run asks of Slurm.

    Args:
        own: The command's own options, as typed.
        config: The same, parsed.

    Returns:
        The options; None for runs on this machine.

    Raises:
        SweepError: If there are some, and no job of Slurm.
    """
    of_slurm = [each.partition("=")[0] for each in own if each.startswith("--slurm")]
    if of_slurm and config.launcher != "slurm":
        raise SweepError(f"{of_slurm[0]} is for jobs of Slurm: add --launcher slurm, or leave it out")
    return SlurmOptions(**config.slurm.as_dict()) if config.launcher == "slurm" else None


def _default_folder(name: str | None, plan: Plan) -> Path:
    """The folder that is taken where none is given: the same for the same command."""
    if name is not None:
        path = Path(find_sweep(name))
        if path.name == PLAN_FILE:  # of a sweep: its folder goes on with it, the file makes all of it again
            return path.parent if Path(name).is_dir() else Path("sweeps") / f"{path.resolve().parent.name}-again"
        is_file = Path(name).exists()
        return Path("sweeps") / (path.stem if is_file else name.removesuffix(".yaml").replace("/", "-"))
    configs = configs_in(plan.fit)
    path = Path(configs[-1] if configs and not configs[-1].startswith("{") else default_config())
    varied = [option.rpartition(".")[2] for option in (*plan.over, *plan.zipped)]
    return Path("sweeps") / "-".join([path.stem, "over", *(varied or ["seed"])])


def configs_in(arguments: Sequence[str]) -> list[str]:
    """Find the configs of a command line.

    Args:
        arguments: Of a run.

    Returns:
        What stands behind each --config.
    """
    return [
        text.removeprefix("--config=") if text.startswith("--config=") else after
        for text, after in zip(arguments, [*arguments[1:], ""], strict=False)
        if text.startswith("--config=") or text in ("-c", "--config")
    ]


def digests(plan: Plan) -> dict[str, str]:
    """Tell whether a config has changed since a sweep began.

    Args:
        plan: The sweep.

    Returns:
        A digest of the content of each config by name.
    """
    names = {name for point in plan.points for name in configs_in(plan.arguments(point))}
    return {name: digest(read_config(name)) for name in sorted(names or {Path(default_config()).name})}


def command_of(parsed: Sequence[Namespace]) -> Callable[[list[str]], None]:
    """Choose what runs a command line in a process that has imported everything.

    Args:
        parsed: The configuration of each run.

    Returns:
        The command; where runs log to W&B, it begins with W&B's process.
    """
    from lit_sphere.cli.wandb_run import main_beside_service

    logs = any(each.wandb != "disabled" and each.trainer.logger in (None, True) for each in parsed)
    return main_beside_service if logs else main


def epochs_of(parsed: Namespace) -> int | None:
    """Give the epochs that a run is to train.

    Args:
        parsed: Its configuration.

    Returns:
        The number; None without a limit.
    """
    epochs = parsed.trainer.max_epochs
    return epochs if isinstance(epochs, int) and epochs > 0 else None


def _finish(result: SweepResult) -> None:
    """Say what is not done, and end with its status."""
    left = [state for state in result.states if state.state != "done"]
    print(f"{result.folder}: {counts(result.states)}; table in {result.folder / STATES_FILE}", flush=True)
    if result.signum is not None:
        print(f"lit-sphere: interrupted; the same command goes on with {result.folder}", file=sys.stderr)
        sys.exit(128 + result.signum)
    if left:
        for state in left:
            print(f"  {one_line(state)}", file=sys.stderr)
        these = "1 run is" if len(left) == 1 else f"{len(left)} runs are"
        print(f"lit-sphere: {these} not done; the same command tries again", file=sys.stderr)
    if left or not result.afterwards:
        sys.exit(1)
    print(f"compare them: lit-sphere report {shlex.quote(str(result.folder))}")
