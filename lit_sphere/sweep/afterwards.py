"""Commands that are run once all points of a sweep are done."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lit_sphere.files import part_of
from lit_sphere.sweep.grid import SweepError
from lit_sphere.sweep.plan import NAMES_SEED, Plan


def commands_afterwards(plan: Plan, folder: Path) -> dict[str, list[str]]:
    """Put the folders into a plan's commands; one that names ``{seed}`` is there for each seed, with its points.

    Args:
        plan: The sweep.
        folder: Its folder.

    Returns:
        Command lines of ``lit-sphere`` by the names of their logs, such as ``then-1`` and ``then-1-seed=0``.

    Raises:
        SweepError: If a placeholder names no point, or a seed where there are none.
    """
    commands = {}
    for number, text in enumerate(plan.then, 1):
        for seed in range(plan.seeds) if NAMES_SEED in text else [None]:
            points = [point for point in plan.points if seed is None or point.values["seed"] == str(seed)]
            folders = [str(folder / point.name) for point in points]
            name = f"then-{number}" + ("" if seed is None else f"-seed={seed}")
            try:
                commands[name] = [word.format(*folders, sweep=folder, seed=seed) for word in shlex.split(text)]
            except (IndexError, KeyError, ValueError) as error:
                raise SweepError(
                    f"then: {text}: placeholders are {{0}} to {{{len(folders) - 1}}}, {{sweep}} and {{seed}} ({error})"
                ) from error
    return commands


def run_afterwards(commands: Mapping[str, Sequence[str]], folder: Path, said: Callable[[str], None]) -> bool:
    """Run the commands that have not been run yet, one after the other; the log of each stands in the folder.

    Args:
        commands: Command lines of ``lit-sphere`` by the names of their logs.
        folder: Of the sweep.
        said: Gets a line for each.

    Returns:
        Whether all have succeeded.
    """
    succeeded = True
    for name, command in commands.items():
        log = folder / f"{name}.log"
        if log.exists():
            continue
        said(f"lit-sphere {shlex.join(command)}")
        part = part_of(log)
        with part.open("wb") as file:
            status = subprocess.run(
                [sys.executable, "-m", "lit_sphere", *command],
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False,
            ).returncode  # fmt: skip
        if status == 0:
            part.replace(log)
            continue
        succeeded = False
        failed = log.with_suffix(".failed.log")
        part.replace(failed)
        lines = failed.read_text(encoding="utf-8", errors="replace").splitlines()
        said(f"  failed with status {status}: {lines[-1] if lines else 'it said nothing'} (see {failed})")
    return succeeded
