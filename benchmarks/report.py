"""Times ``lit-sphere report`` on made-up runs of a real run's size, and measures its page.

Each run logs what ``lit-sphere fit`` logs of a ConvNet: 50 columns, three rows for each epoch. By default 200 runs of
1 000 epochs: half of them differ in their ELR alone, and the other half by seeds, too.
"""

import argparse
import csv
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

_GROUPS = [f"convs.{i}.weight" for i in range(4)]
_QUANTITIES = ("elr", "ess", "effective_grad_norm", "norm", "angle", "radial", "step_length")
_GOAL_SECONDS, _GOAL_MEGABYTES = 60, 20


def write_run(folder: Path, elr: float, seed: int, epochs: int) -> None:
    """Write config.yaml and metrics.csv of a run in one of the three regimes."""
    folder.mkdir(parents=True)
    model = {"class_path": "lit_sphere.modules.SIConvNet", "init_args": {"width": 8, "elr": elr}}
    data = {"class_path": "lit_sphere.data.Digits", "init_args": {"train_size": 1500, "val_size": 0}}
    config = {"seed_everything": seed, "model": model, "data": data, "trainer": {"max_epochs": epochs}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    draw = random.Random(f"{elr} {seed}")
    of_step = [f"{quantity}/{name}" for quantity in _QUANTITIES for name in ("total", *_GROUPS)]
    learnt = ("epoch", "step", "train/loss", "train/error", "val/loss", "val/error")
    of_all = ("equilibrium/ess", "ess/step_max", "radial/step_max", "step_length/step_max")
    keys = sorted([*learnt, *of_all, *of_step])
    with (folder / "metrics.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, keys, restval="")
        table.writeheader()
        for epoch in range(epochs):
            noise = math.exp(0.1 * draw.gauss(0, 1))
            loss = noise * (2.3 * math.exp(-epoch * 2 / epochs / 0.1) + 1e-4 / elr * 1e-3 if elr < 2e-2 else 2 + elr)
            error = min(0.9, 0.3 * loss)
            at = {"epoch": epoch, "step": 12 * epoch + 11}
            table.writerow({**at, "val/loss": loss * 1.1, "val/error": error})
            measured = {key: noise * (elr if key.startswith("elr/") else elr * 30 * loss) for key in of_step}
            extremes = {"ess/step_max": 0.1, "radial/step_max": 0.0, "step_length/step_max": 0.1}
            table.writerow({**at, **measured, **extremes, "equilibrium/ess": elr * 20 * loss})
            table.writerow({**at, "train/loss": loss, "train/error": error})


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a report, and measure its page.", allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--keep", type=Path, help="make runs and report in this new folder, and keep them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        half = args.runs // 2
        points = [(10 ** (-4 + 4 * i / max(1, half - 1)), 0) for i in range(half)]
        points += [(1e-4 * 2 ** (i % 12), 1 + i // 12) for i in range(args.runs - half)]
        for elr, seed in points:
            write_run(folder / "runs" / f"elr={elr:.4g},seed={seed}", float(f"{elr:.4g}"), seed, args.epochs)
        megabytes = sum(path.stat().st_size for path in (folder / "runs").rglob("metrics.csv")) / 1e6
        out = folder / "report"
        command = [sys.executable, "-m", "lit_sphere", "report", str(folder / "runs"), "--out", str(out)]
        begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        of_cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        size = (out / "report.html").stat().st_size / 1e6
    print(f"{args.runs} runs of {args.epochs} epochs, {megabytes:.0f} MB of metrics.csv")
    memory = after.ru_maxrss / 1e6
    print(f"  report  {seconds:.1f} s (goal: {_GOAL_SECONDS} s), {of_cpu:.1f} s of CPU time, {memory:.1f} GB")
    print(f"  page    {size:.1f} MB (goal: {_GOAL_MEGABYTES} MB)")
    if args.json:
        args.json.write_text(
            json.dumps({"runs": args.runs, "seconds": seconds, "cpu_seconds": of_cpu, "page_megabytes": size})
        )


if __name__ == "__main__":
    main()
