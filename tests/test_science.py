"""The three regimes on digits, by the shipped config (SCIENCE §7)."""

import csv
from pathlib import Path

import pytest

from lit_sphere.cli import main

pytestmark = pytest.mark.slow


def final(folder: Path) -> tuple[list[float], list[float]]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    errors = [float(row["val/error"]) for row in rows if row["val/error"]]
    assert len(losses) == len(errors) == 100
    return losses, errors


@pytest.mark.parametrize("elr", ["1e-3", "3e-2", "2e-1"])
def test_three_effective_learning_rates_three_regimes(elr: str, tmp_path: Path) -> None:
    main(["fit", "--config", "elr.yaml", "--model.elr", elr, "--run", str(tmp_path / "run"), "--wandb", "disabled"])
    losses, errors = final(tmp_path / "run")
    if elr == "1e-3":
        assert losses[-1] < 2e-3
        assert errors[-1] <= 0.04
    elif elr == "3e-2":
        assert min(losses) > 0.5
        assert sum(losses[-20:]) / 20 < 6  # below the loss of guessing with this head
    else:
        assert min(errors[-20:]) > 0.6
        assert sum(errors[-20:]) / 20 == pytest.approx(0.9, abs=0.05)
