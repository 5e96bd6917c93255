"""A run that diverges: an error as a rule, and a finding where it is asked for."""

import csv
import math
from pathlib import Path

from conftest import LitSphere

from lit_sphere.report.runs import read_run
from lit_sphere.report.table import state_of

FIT = ["--data.train_size", "64", "--data.batch_size", "32", "--wandb", "disabled", "--config", "conventional.yaml"]


def test_a_finding_ends_the_run_with_all_that_belongs_to_one(empty_folder: Path, lit_sphere: LitSphere) -> None:
    diverge = [
        "--model.optimizer.lr",
        "1e-2",
        "--model.optimizer.weight_decay",
        "1e9",
        "--trainer.max_epochs",
        "20",
        "--run",
        "r",
    ]
    result = lit_sphere("fit", *FIT, *diverge)
    assert result.status == 0, result.err
    assert "Traceback" not in result.err
    assert "lower the learning rate" not in result.err
    line = next(line for line in result.out.splitlines() if "diverged" in line)
    for word in ("epoch", "step", "NaN or infinite"):
        assert word in line
    with Path("r/metrics.csv").open(newline="", encoding="utf-8") as file:
        losses = [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) > 1
    assert all(math.isfinite(float(loss)) for loss in losses[:-1])
    assert math.isnan(float(losses[-1]))
    assert Path("r/config.yaml").exists()
    assert Path("r/curves.png").exists()
    run = read_run(Path("r"))
    assert 1 < run.epochs < 20
    assert state_of(run) == f"diverged in epoch {run.epochs - 1}"
    assert f"epoch {run.epochs - 1}" in line


def test_without_it_the_run_has_failed(empty_folder: Path, lit_sphere: LitSphere) -> None:
    diverge = ["--model.optimizer.lr", "1e30", "--trainer.max_epochs", "20", "--non_finite", "error", "--run", "r"]
    result = lit_sphere("fit", *FIT, *diverge)
    assert result.status == 1
    assert "lower the learning rate" in result.err
    assert "diverged" not in result.out
