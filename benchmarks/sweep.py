"""What a sweep costs beyond its training: the papers' grid on the digits, several runs at once.

    python benchmarks/sweep.py

Prints wall time of ``lit-sphere sweep elr --jobs N`` / (sum of the runs' bare training times / cores).

The bare training time of a run is what it prints of itself: from the start of training to its end, with validation,
monitors and checkpoints, but without start-up, data, W&B's beginning and end, and pictures. It is measured while the
run is alone on the machine, one run after the other (the same sweep with ``--jobs 1``). The wall time begins with the
process of the sweep, so it holds all imports. Runs have one thread each in both. W&B is offline, as by default.

Takes about seven minutes on two cores; run it on an idle machine. ``--points 4`` takes two.
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

from machine import hardware, versions

from lit_sphere.sweep.grid import read_over

_TRAINED = re.compile(r"^\S+ on \S+: \d+ epochs, \d+ steps; ([\d.]+) s,", re.MULTILINE)


def _sweep(folder: Path, over: str, epochs: int, jobs: int) -> float:
    """Run the sweep; give its wall time."""
    command = [
        *(sys.executable, "-m", "lit_sphere", "sweep", "--config", "elr.yaml", "--over", over, "--jobs", str(jobs)),
        *("--trainer.max_epochs", str(epochs), "--wandb", "offline", "--sweep", str(folder)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"the sweep failed:\n{done.stderr[-3000:]}")
    return seconds


def _bare(folder: Path) -> list[float]:
    """Training time of each run, by its own account."""
    found = [_TRAINED.findall(log.read_text(encoding="utf-8")) for log in sorted(folder.glob("*/output.log"))]
    return [float(seconds) for (seconds,) in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=22, help="points of the papers' grid (default: 22, 1e-7 to 1)")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of each (default: 100)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers to this file")
    args = parser.parse_args()
    option, values = read_over("model.elr=paper:1e-7:1")
    step = max(1, len(values) // args.points)
    over = f"{option}={','.join(values[::step][: args.points])}"
    machine = hardware("cpu")
    with tempfile.TemporaryDirectory(prefix="lit-sphere-benchmark-") as folder:
        alone = _sweep(Path(folder, "alone"), over, args.epochs, 1)
        bare = _bare(Path(folder, "alone"))
        together = _sweep(Path(folder, "together"), over, args.epochs, args.jobs)
        beside = _bare(Path(folder, "together"))
    found = {
        "runs": len(bare),
        "jobs": args.jobs,
        "bare_seconds": bare,
        "sum_of_bare_seconds": sum(bare),
        "bare_seconds_beside_others": beside,
        "wall_seconds_one_job": alone,
        "wall_seconds": together,
        "ratio": together / (sum(bare) / machine["cores"]),
    }
    print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average_at_start']} at the start")
    print(f"{len(bare)} runs of {args.epochs} epochs: {sum(bare):.1f} s of bare training, each run alone")
    print(f"one after the other: {alone:.1f} s in all, {alone / sum(bare):.2f} × the bare training")
    print(f"{args.jobs} at once: {together:.1f} s in all; training itself took {sum(beside) / sum(bare):.2f} × as long")
    print(f"ratio to the bare training / {machine['cores']} cores: {found['ratio']:.2f} (at most 1.25)")
    if args.json:
        args.json.write_text(json.dumps({"hardware": machine, "versions": versions(), **found}, indent=2))


if __name__ == "__main__":
    main()
