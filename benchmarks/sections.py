"""Runs the sections and reports them."""

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from comparison import Comparison
from epoch_cost import compare_with_bare_loop, compare_with_conventional_loop
from hot_path import check_hot_path
from machine import hardware, versions
from monitor_cost import compare_with_unwatched_epochs
from process_cost import measure_memory, measure_start
from settings import Settings
from step_cost import compare_steps

_SECTIONS: dict[str, Callable[[Settings], list[Comparison]]] = {
    "a": compare_steps,
    "b": compare_with_bare_loop,
    "c": compare_with_conventional_loop,
    "d": lambda settings: [measure_memory(settings)],
    "e": lambda settings: [measure_start(settings)],
    "f": compare_with_unwatched_epochs,
}


def _settings(args: argparse.Namespace) -> Settings:
    root = None if args.data is None else str(Path(args.data).expanduser().absolute())
    if not args.quick:
        return Settings(args.device, root, args.trials or 5)
    return Settings(
        args.device, root, args.trials or 1, width=8, batch=16, images=96, test_images=32, eval_batch=16, epochs=1,
        digits_epochs=1, warm_steps=2, steps=2, memory_batches=2, imports="numpy",
    )  # fmt: skip


def _compare(letters: list[str], settings: Settings, quick: bool) -> Iterator[Comparison]:
    """Run sections in order; with ``quick`` those that only wait for other processes go beside the rest."""
    with ThreadPoolExecutor(1) as beside:
        waits = [letter for letter in letters if quick and letter in "de"]
        waiting = {letter: beside.submit(_SECTIONS[letter], settings) for letter in waits}
        for letter in letters:
            yield from waiting[letter].result() if letter in waiting else _SECTIONS[letter](settings)


def run_sections(args: argparse.Namespace) -> None:
    """Run the sections that were asked for, print them, and write them as JSON."""
    settings = _settings(args)
    # Lightning repeats at each fit which options it was given.
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
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
    for comparison in _compare(sorted(set(args.sections)), settings, args.quick):
        print(*comparison.lines(judge=not args.quick), sep="\n", flush=True)
        report["comparisons"].append(comparison.as_json())
        _write(report, args.json)  # an interrupted run keeps what it has
    report["hot_path"] = check_hot_path(settings)
    print("\n".join(f"{name}: {answer}" for name, answer in report["hot_path"].items()))
    _write(report, args.json)


def _write(report: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
