"""Commands that are run once all points of a sweep are done."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lit_sphere.files import part_of
from lit_sphere.sweep.grid import SweepError
from lit_sphere.sweep.plan import Plan


def commands_afterwards(plan: Plan, folder: Path) -> list[list[str]]:
    """Put the folders into a plan's commands.

    Args:
        plan: The sweep.
        folder: Its folder.

    Returns:
        Command lines of ``lit-sphere``.

    Raises:
        SweepError: If a placeholder names no point.
    """
    folders = [str(folder / point.name) for point in plan.points]
    commands = []
    for text in plan.then:
        try:
            commands.append([word.format(*folders, sweep=folder) for word in shlex.split(text)])
        except (IndexError, KeyError, ValueError) as error:
            raise SweepError(
                f"then: {text}: placeholders are {{0}} to {{{len(folders) - 1}}} and {{sweep}} ({error})"
            ) from error
    return commands


def run_afterwards(commands: Sequence[Sequence[str]], folder: Path, said: Callable[[str], None]) -> bool:
    """Run the commands that have not been run yet, one after the other; the log of each stands in the folder.

    Args:
        commands: Command lines of ``lit-sphere``.
        folder: Of the sweep.
        said: Gets a line for each.

    Returns:
        Whether all have succeeded.
    """
    succeeded = True
    for number, command in enumerate(commands, 1):
        log = folder / f"then-{number}.log"
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
