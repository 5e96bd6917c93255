"""Times lit-sphere against plain PyTorch, in one process and one run: ``python benchmarks/overhead.py``.

Every ratio is the median over pairs of measurements taken one right after the other, with the smallest and
largest; see the sections' modules for what is timed.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comparison import Comparison
from epoch_cost import compare_with_bare_loop, compare_with_conventional_loop
from hot_path import check_hot_path
from machine import hardware, versions
from process_cost import measure_memory, measure_start
from settings import Settings
from step_cost import compare_steps

_SECTIONS: dict[str, Callable[[Settings], list[Comparison]]] = {
    "a": compare_steps,
    "b": compare_with_bare_loop,
    "c": compare_with_conventional_loop,
    "d": lambda settings: [measure_memory(settings)],
    "e": lambda settings: [measure_start(settings)],
}
_ABOUT = """\
sections:
  a  SphereSGD.step against torch.optim.SGD.step: back to back (a1), and inside training steps (a2)
  b  an epoch of `lit-sphere fit`, all default callbacks on, against a bare PyTorch loop with the same
     arithmetic: images of CIFAR-10's size (b1), digits (b2)
  c  images/s of `lit-sphere fit` against a conventional loop (PIL images and transforms in 2 workers,
     contiguous format, norms by .item()), both in fp32 (c1, c2); fit in bf16-mixed (c3)
  d  peak memory of training on 50 000 images, above importing torch
  e  seconds from the start of the process to the first training step

Takes about a quarter of an hour on two cores; run it on an idle machine."""


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time lit-sphere against plain PyTorch; print ratios.",
        epilog=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny sizes, to see that all works; the ratios mean nothing")
    add("--data", metavar="ROOT", help="folder with cifar-10-batches-py (default: random images)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: cpu)")
    add("--json", type=Path, metavar="OUT", help="write all pairs to this file")
    add("--trials", type=int, metavar="N", help="pairs in (b) and (c); (a) takes more (default: 5, quick: 1)")
    add("--sections", default="abcde", metavar="LETTERS", help="which to run (default: %(default)s)")
    args = parser.parse_args(argv)
    problem = _problem(args)
    if problem:
        parser.error(problem)
    return args


def _problem(args: argparse.Namespace) -> str | None:
    """What is wrong with the arguments, before minutes are spent."""
    if args.trials is not None and args.trials < 1:
        return f"--trials must be at least 1, got {args.trials}"
    if not args.sections or set(args.sections) - set(_SECTIONS):
        return f"--sections takes letters among {''.join(_SECTIONS)}, got {args.sections!r}"
    if args.device == "cuda" and not torch.cuda.is_available():
        return "--device cuda: torch finds no GPU here; use --device cpu"
    if args.data is not None and not (Path(args.data).expanduser() / "cifar-10-batches-py").is_dir():
        return f"--data {args.data}: no folder cifar-10-batches-py in it; leave --data out for random images"
    if args.json is not None and not args.json.absolute().parent.is_dir():
        return f"--json {args.json}: there is no folder {args.json.absolute().parent}"
    return None


def _settings(args: argparse.Namespace) -> Settings:
    root = None if args.data is None else str(Path(args.data).expanduser().absolute())
    if not args.quick:
        return Settings(args.device, root, args.trials or 5)
    return Settings(
        args.device, root, args.trials or 1, width=8, batch=16, images=96, test_images=32, epochs=1,
        digits_epochs=1, warm_steps=2, steps=2, memory_batches=2,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Run the sections that were asked for."""
    args = _arguments(argv)
    settings = _settings(args)
    # Of Lightning: how many workers to use, and that there is a GPU that is not asked for.
    warnings.filterwarnings("ignore", module="lightning")
    report: dict[str, Any] = {
        "quick": args.quick,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "hardware": hardware(args.device),
        "versions": versions(),
        "settings": settings.describe(),
        "comparisons": [],
    }
    for title in ("hardware", "versions", "settings"):
        print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in report[title].items()))
    if args.quick:
        print("--quick: the ratios below mean nothing")
    for letter in sorted(set(args.sections)):
        for comparison in _SECTIONS[letter](settings):
            print(*comparison.lines(), sep="\n", flush=True)
            report["comparisons"].append(comparison.as_json())
    report["hot_path"] = check_hot_path(settings)
    print("\n".join(f"{name}: {answer}" for name, answer in report["hot_path"].items()))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        print(f"written: {args.json}")


if __name__ == "__main__":
    main()
