"""The command ``lit-sphere``: answers what needs no Lightning at once, and turns errors into one line."""

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lit_sphere import __version__
from lit_sphere.cli.config_names import shipped_configs
from lit_sphere.cli.errors import CommandLineError, exit_status, written_to
from lit_sphere.cli.quick_imports import quick_imports
from lit_sphere.cli.streams import restart_in_utf8, steady_streams
from lit_sphere.cli.subcommands import SUBCOMMANDS
from lit_sphere.cli.suggestions import did_you_mean
from lit_sphere.files import release_folders


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line.

    Args:
        argv: Arguments without the program's name; those of the process if not given.

    Raises:
        SystemExit: With status 0 after help; 2 for a command line that cannot be understood; 1 for a run that
            failed; 129, 130 or 143 for one that a signal stopped.
    """  # noqa: DOC502
    if argv is None:
        restart_in_utf8()
    with steady_streams(), _pictures_in_files():
        _answer(list(sys.argv[1:] if argv is None else argv))


@contextmanager
def _pictures_in_files() -> Iterator[None]:
    """Have matplotlib draw to files only: a backend that is not there, or needs a display, does not matter."""
    before = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        yield
    finally:
        del os.environ["MPLBACKEND"]
        if before is not None:
            os.environ["MPLBACKEND"] = before


def _answer(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return
    if args[0] == "--version":
        print(f"lit-sphere {__version__}")
        return
    try:
        if not args[0].startswith("-") and args[0] not in SUBCOMMANDS:
            known = ", ".join(SUBCOMMANDS)
            raise CommandLineError(
                f"unknown command {args[0]!r}{did_you_mean(args[0], SUBCOMMANDS, cutoff=0.6) or ';'} there are {known}"
            )
        from lit_sphere.cli.extra import check_extra

        check_extra()
        if args[0].partition("=")[0] == "--print_shtab":
            from lit_sphere.cli.completion import print_completion

            print_completion((args[0].partition("=")[2] or " ".join(args[1:])).strip())
            return
        # A thread that spins while it waits takes the core from the one it waits for: on a busy machine small
        # networks then train ten times slower. OpenMP reads this when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        _check_ranks()
        # Lightning takes seconds to import: not before it is needed.
        if args[0] == "toy":
            from lit_sphere.cli.toy import run_toy

            run_toy(args[1:])
            return
        if args[0] == "interpolate":
            with quick_imports():
                from lit_sphere.cli.interpolate import run_interpolate

            run_interpolate(args[1:])
            return
        if args[0] == "report":
            from lit_sphere.cli.report import run_report

            run_report(args[1:])
            return
        if args[0] == "sweep":
            from lit_sphere.cli.sweep import run_sweep_command

            run_sweep_command(args[1:])
            return
        if args[0] == "borders":
            from lit_sphere.cli.borders import run_borders

            run_borders(args[1:])
            return
        if args[0] == "dashboard":
            from lit_sphere.cli.dashboard import run_dashboard

            run_dashboard(args[1:])
            return
        if args[0] == "reproduce":
            from lit_sphere.cli.reproduce import run_reproduce

            run_reproduce(args[1:])
            return
        with quick_imports():
            from lit_sphere.cli.sphere_cli import run

        run(args)
    except BaseException as error:
        status = exit_status(error, args[0])
        if status is None or os.environ.get("LIT_SPHERE_TRACEBACK"):
            raise
        sys.exit(status)
    finally:
        release_folders()
        written_to.set(None)


def _check_ranks() -> None:
    """Refuse ranks that are no numbers: Lightning reads them while it is imported."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        rank = os.environ.get(name, "0")
        if not rank.strip().isdecimal():
            raise CommandLineError(f"{name}={rank} in the environment is no number; take it out (unset {name})")


def _help() -> str:
    commands = "\n".join(f"  {name:<13}{each.summary}" for name, each in SUBCOMMANDS.items())
    configs = textwrap.fill(", ".join(shipped_configs()), 110, initial_indent="  ", subsequent_indent="  ")
    return f"""usage: lit-sphere COMMAND [options]

Train scale-invariant networks on the sphere with a fixed effective learning rate.

commands:
{commands}

examples:
  lit-sphere fit --config elr.yaml                      ConvNet on digits at ELR 1e-3, under a minute
  lit-sphere fit --config elr.yaml --model.elr 3e-2     chaotic equilibrium instead of convergence
  lit-sphere fit --config resnet18.yaml --data CIFAR10 --data.root DIR
  lit-sphere fit --ckpt_path runs/NAME/checkpoints/last.ckpt --trainer.max_epochs 200
  lit-sphere test --ckpt_path runs/NAME/checkpoints/last.ckpt
  lit-sphere interpolate runs/A/checkpoints/last.ckpt runs/B/checkpoints/last.ckpt
  lit-sphere report runs/A runs/B                       a page that compares runs
  lit-sphere sweep --config elr.yaml --over model.elr=1e-4,1e-3,1e-2     a grid of runs, two or more at once
  lit-sphere borders --config elr.yaml                  where convergence ends, and divergence begins
  lit-sphere toy                                        the three regimes of a function on the sphere
  lit-sphere dashboard --entity ME --dry-run            the W&B workspace that compares the runs of a project
  lit-sphere reproduce E1                               an experiment of the papers, and its page

shipped configs (a path of yours comes first):
{configs}

more help:
  lit-sphere fit --help                     all options
  lit-sphere fit --model.help SIConvNet     options of one model; likewise --data.help CIFAR10
  lit-sphere fit --trainer.callbacks.help RegimeMonitor     options of one callback
  lit-sphere --version
  lit-sphere --print_shtab bash             shell completion (bash, zsh, tcsh)

Set LIT_SPHERE_TRACEBACK=1 to see where an error was raised."""
