"""Folders of runs as ``lit-sphere fit`` leaves them, made up in no time."""

import csv
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

LEVELS = {"convergence": 1e-3, "chaotic equilibrium": 1.0, "divergence": 2.3}
"""Train loss at the end, by regime."""


def write_run(
    folder: Path,
    elr: float | None = 1e-3,
    *,
    seed: int = 0,
    epochs: int = 40,
    regime: str = "convergence",
    options: Mapping[str, Any] | None = None,
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row,
) -> Path:
    """Write config.yaml and metrics.csv.

    Args:
        folder: The run's.
        elr: Its ELR; None in the whole space.
        seed: Its seed.
        epochs: Epochs that it was trained.
        regime: What its curves look like.
        options: More options of the model.
        change: Changes rows of the table.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    model = {
        "class_path": "lit_sphere.modules.SIConvNet",
        "init_args": {"elr": elr, "loss": "cross_entropy", **(options or {})},
    }
    data = {"class_path": "lit_sphere.data.Digits", "init_args": {"val_size": 0, "seed": seed}}
    config = {"seed_everything": seed, "model": model, "data": data, "trainer": {"max_epochs": epochs}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    rows = [change(row) for epoch in range(epochs) for row in _rows(epoch, elr, regime, seed)]
    keys = sorted({key for row in rows for key in row})
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, keys, restval="")
        table.writeheader()
        table.writerows(rows)
    return folder


def _rows(epoch: int, elr: float | None, regime: str, seed: int) -> list[dict[str, Any]]:
    level = LEVELS[regime]
    # A wave rather than noise: no trend over any quarter of the run.
    wave = 1 + 0.05 * math.sin(2.1 * epoch + seed)
    loss = max(level, 2.0 * math.exp(-epoch)) * wave
    error = {"convergence": 0.0, "chaotic equilibrium": 0.4, "divergence": 0.9}[regime]
    ess = {"convergence": 1e-3, "chaotic equilibrium": 0.6, "divergence": 30.0}[regime]
    at = {"epoch": epoch, "step": 12 * epoch + 11}
    measured = {"elr/total": elr or 0.1, "effective_grad_norm/total": ess / (elr or 0.1)}
    for name in ("total", "a", "b"):
        measured[f"ess/{name}"] = ess
        measured[f"elr/{name}"] = elr or 0.1
    return [
        {**at, "val/loss": loss, "val/error": error / 2 + 0.01 * seed},
        {**at, **measured},
        {**at, "train/loss": loss, "train/error": error},
    ]


def write_grid(folder: Path, seeds: int = 1) -> Path:
    """Write seven ELRs through all three regimes.

    Args:
        folder: In which the runs come to lie.
        seeds: Runs of each ELR.

    Returns:
        The folder.
    """
    regimes = ["convergence"] * 3 + ["chaotic equilibrium"] * 2 + ["divergence"] * 2
    for elr, regime in zip((1e-3, 1e-2, 2e-2, 3e-2, 4e-2, 0.1, 0.5), regimes, strict=True):
        for seed in range(seeds):
            write_run(folder / f"elr={elr:g},seed={seed}", elr, seed=seed, regime=regime)
    return folder
