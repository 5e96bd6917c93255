"""kill -9 at any moment: the run that goes on has the rows and the weights of one that was never stopped."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Runs the command in children of one process that has imported everything; each ends before its n-th change to a file
# in the run's folder. Rows are logged between these.
_RUNNER = """
import json, os, signal, sys
from lit_sphere.cli import main
import lit_sphere.cli.sphere_cli, torch
torch.set_num_threads(1)

def run(folder, args, die_at):
    changes = 0
    def watch(event, details):
        nonlocal changes
        if event == "open":
            changed = details[0] if isinstance(details[1], str) and set(details[1]) & set("wax+") else ""
        else:
            changed = details[0] if event in ("os.rename", "os.link", "os.remove", "os.mkdir") else ""
        name = os.fsdecode(changed) if isinstance(changed, (str, bytes, os.PathLike)) else ""
        if name and os.path.abspath(name).startswith(folder):
            changes += 1
            if changes == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.addaudithook(watch)
            main(args)
            status = 0
        except SystemExit as error:
            status = error.code
        finally:
            print("changes", changes, flush=True)
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for folder, args, die_at in json.load(sys.stdin):
    print("status", run(os.path.abspath(folder), args, die_at), flush=True)
"""
_RUN = [
    *("--trainer.max_epochs", "4", "--data.train_size", "256", "--model.width", "2", "--wandb", "disabled"),
    *("--checkpoint.least_seconds", "0", "--trainer.enable_progress_bar", "false"),
    *("--trainer.callbacks+=LinearInterpolationBarrier", "--trainer.callbacks.every_n_epochs", "2"),
]


def _run(*commands: tuple[str, list[str], int]) -> tuple[list[int], list[int]]:
    """Status of each command in a folder, and how many changes to files those made that ended by themselves."""
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER],
        input=json.dumps([(folder, ["fit", "--run", folder, *args], at) for folder, args, at in commands]),
        capture_output=True, text=True, timeout=900, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stdout.splitlines()
    changes = [int(line.split()[1]) for line in lines if line.startswith("changes")]
    return [int(line.split()[1]) for line in lines if line.startswith("status")], changes


def _go_on(folder: str) -> list[str]:
    return ["--ckpt_path", f"{folder}/checkpoints/last.ckpt", "--trainer.max_epochs", "4"]


def _rows(folder: str) -> list[dict[str, str]]:
    with open(f"{folder}/metrics.csv", newline="") as file:
        return [{key: cell for key, cell in row.items() if cell} for row in csv.DictReader(file)]


def _weights(folder: str) -> dict[str, bytes]:
    weights = torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return {name: each.numpy().tobytes() for name, each in weights.items()}


def _equal_the_whole_run(folders: list[str]) -> None:
    statuses, _ = _run(*((folder, _go_on(folder), 0) for folder in folders))
    for folder, status in zip(folders, statuses, strict=True):
        # 2: killed when the last checkpoint was in its place, so that nothing is left to train.
        assert status in (0, 2), folder
        assert _rows(folder) == _rows("whole"), folder
        assert _weights(folder) == _weights("whole"), folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_any_moment_loses_nothing_before_the_checkpoint(empty_folder: Path) -> None:
    statuses, (changes,) = _run(("whole", _RUN, 0))
    assert statuses == [0]
    assert changes > 20
    kills = [(f"killed-{n}", _RUN, n) for n in range(1, changes + 1)]
    statuses, _ = _run(*kills)
    assert statuses == [-signal.SIGKILL] * changes
    begun = [folder for folder, _, _ in kills if Path(folder, "checkpoints", "last.ckpt").exists()]
    assert len(begun) > changes // 2, "most kills come after a checkpoint"
    _equal_the_whole_run(begun)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_while_a_run_is_taken_up_loses_nothing(empty_folder: Path) -> None:
    early = [*_RUN, "--trainer.max_epochs", "2"]
    statuses, changes = _run(("whole", _RUN, 0), ("short", early, 0), ("short", _go_on("short"), 0))
    assert statuses == [0, 0, 0]
    kills = [(f"killed-{n}", _go_on(f"killed-{n}"), n) for n in range(1, changes[-1] + 1)]
    statuses, _ = _run(*(each for n, kill in enumerate(kills, 1) for each in ((f"killed-{n}", early, 0), kill)))
    assert statuses == [0, -signal.SIGKILL] * len(kills)
    _equal_the_whole_run([folder for folder, _, _ in kills])
