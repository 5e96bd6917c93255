"""What a sweep costs beyond its training: the papers' grid on the digits, several runs at once.

    python benchmarks/sweep.py

Prints the wall time of ``lit-sphere sweep elr --jobs N`` / (training time of the runs / cores), for three such times:

- alone: each run alone on the machine, one after the other (the same sweep with ``--jobs 1``);
- by hand: N runs at once by ``lit-sphere fit``, without a sweep: what the cores can do. Of a few runs, each by its
  ratio to the same run alone, times the first;
- in the sweep: by the runs' own account, beside each other.

The training time of a run is what it prints of itself: from the start of training to its end, with validation,
monitors and checkpoints, but without start-up, data, W&B's beginning and end, and pictures. The wall time begins with
the process of the sweep, so it holds all imports. Runs have one thread each in all. W&B is offline, as by default.

Takes about eight minutes on two cores; run it on an idle machine. ``--points 4`` takes three.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import hardware, versions

from lit_sphere.sweep.grid import canonical, read_over

_TRAINED = re.compile(r"^\S+ on \S+: \d+ epochs, \d+ steps; ([\d.]+) s,", re.MULTILINE)


_BY_HAND = 3  # times as many runs by hand as there are at once
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def _sweep(folder: Path, over: str, options: list[str], jobs: int) -> float:
    """Run the sweep; give its wall time."""
    command = [sys.executable, "-m", "lit_sphere", "sweep", *options]
    command += ["--over", over, "--jobs", str(jobs), "--sweep", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"the sweep failed:\n{done.stderr[-3000:]}")
    return seconds


def _training(folder: Path, values: list[str]) -> list[float]:
    """Training time of each run of a sweep, by its own account."""
    logs = [folder / f"elr={canonical(value)}" / "output.log" for value in values]
    return [_seconds_in(log.read_text(encoding="utf-8")) for log in logs]


def _seconds_in(said: str) -> float:
    (seconds,) = _TRAINED.findall(said)
    return float(seconds)


def _by_hand(folder: Path, option: str, values: list[str], options: list[str]) -> list[float]:
    """Training time of runs that begin together."""
    runs = []
    for value in values:
        command = [sys.executable, "-m", "lit_sphere", "fit", *options, f"--{option}", value]
        command += ["--run", str(folder / value)]
        runs.append(subprocess.Popen(command, env=_ENVIRONMENT, stdout=subprocess.PIPE, text=True))
    return [_seconds_in(run.communicate()[0]) for run in runs]


def _measure(option: str, values: list[str], epochs: int, jobs: int) -> dict[str, Any]:
    options = ["--config", "elr.yaml", "--trainer.max_epochs", str(epochs), "--wandb", "offline"]
    over = f"{option}={','.join(values)}"
    few = values[:: max(1, len(values) // (_BY_HAND * jobs))][: _BY_HAND * jobs]
    with tempfile.TemporaryDirectory(prefix="lit-sphere-benchmark-") as name:
        folder = Path(name)
        wall_alone = _sweep(folder / "alone", over, options, 1)
        alone = dict(zip(values, _training(folder / "alone", values), strict=True))
        wall = _sweep(folder / "together", over, options, jobs)
        beside = _training(folder / "together", values)
        pairs = [few[i : i + jobs] for i in range(0, len(few) - jobs + 1, jobs)]
        by_hand = [each for pair in pairs for each in _by_hand(folder / "by-hand", option, pair, options)]
    slower = sum(by_hand) / sum(alone[value] for pair in pairs for value in pair)
    return {
        "runs": len(values),
        "jobs": jobs,
        "wall_seconds_one_job": wall_alone,
        "wall_seconds": wall,
        "training_seconds": {
            "alone": sum(alone.values()),
            "by hand": slower * sum(alone.values()),
            "in the sweep": sum(beside),
        },
        "training_seconds_of_each_alone": alone,
        "training_seconds_of_each_in_the_sweep": beside,
        "training_seconds_of_some_by_hand": by_hand,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=22, help="points of the papers' grid (default: 22, 1e-7 to 1)")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of each (default: 100)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, at most the points (default: 2)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers to this file")
    args = parser.parse_args()
    option, grid = read_over("model.elr=paper:1e-7:1")
    values = list(grid[:: max(1, len(grid) // args.points)][: args.points])
    if not 1 <= args.jobs <= len(values):
        parser.error(f"--jobs must be 1 to {len(values)}, the points, got {args.jobs}")
    machine = hardware("cpu")
    found = _measure(option, values, args.epochs, args.jobs)
    training, wall, cores = found["training_seconds"], found["wall_seconds"], machine["cores"]
    found["ratio"] = {which: wall / (seconds / cores) for which, seconds in training.items()}
    print(f"{machine['cpu']}, {cores} cores, load {machine['load_average_at_start']} at the start")
    print(f"{len(values)} runs of {args.epochs} epochs, {args.jobs} at once: {wall:.1f} s in all")
    print(f"one after the other: {found['wall_seconds_one_job']:.1f} s")
    print(f"ratio to training / {cores}, where training is that of each run (asked for: at most 1.25)")
    words = {
        "alone": "alone on the machine",
        "by hand": f"beside another by hand, {len(found['training_seconds_of_some_by_hand'])} of them measured",
        "in the sweep": "in the sweep, by its own account",
    }
    for which, seconds in training.items():
        longer = seconds / training["alone"]
        print(f"  {found['ratio'][which]:.2f}  {words[which]}: {seconds:.1f} s, {longer:.2f} × as long as alone")
    if args.json:
        args.json.write_text(json.dumps({"hardware": machine, "versions": versions(), **found}, indent=2))


if __name__ == "__main__":
    main()
