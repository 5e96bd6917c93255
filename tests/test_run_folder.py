"""A run's folder: one run at a time, and a table that goes on whatever cut it off."""

import csv
import os
import time
from pathlib import Path

import pytest
import yaml
from conftest import LitSphere

from lit_sphere.files import claim_folder

_TINY = ("--trainer.max_epochs", "1", "--data.train_size", "128", "--model.width", "2", "--wandb", "disabled")
_FIT = ("fit", *_TINY)
_RESUME = ("fit", "--ckpt_path", "a/checkpoints/last.ckpt", "--trainer.max_epochs", "2", "--run", "a")


def _rows(folder: str) -> list[dict[str, str]]:
    with open(f"{folder}/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_runs_of_one_second_have_folders_of_their_own(
    empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    for name in ("elr-20260101-000000", "elr-20260101-000000-2"):
        result = lit_sphere(*_FIT)
        assert result.status == 0, result.err
        assert f"runs/{name}\n" in result.out
        assert Path("runs", name, "checkpoints", "last.ckpt").exists()
    assert len(list(Path("runs").iterdir())) == 2


@pytest.mark.parametrize(
    "command",
    [(*_FIT, "--run", "r"), ("toy", "--run", "r"), ("fit", "--ckpt_path", "r/checkpoints/x.ckpt", "--run", "r")],
)
def test_the_folder_of_a_run_in_progress_is_refused(
    command: tuple[str, ...], empty_folder: Path, lit_sphere: LitSphere
) -> None:
    if "--ckpt_path" in command:
        assert lit_sphere(*_FIT, "--run", "a").status == 0
        Path("r/checkpoints").mkdir(parents=True)
        Path("a/checkpoints/last.ckpt").rename("r/checkpoints/x.ckpt")
        command = (*command, "--trainer.max_epochs", "2")
    claim_folder(Path("r"))
    before = sorted(Path("r").rglob("*"))
    result = lit_sphere(*command)
    assert result.status == 2
    (line,) = result.err.splitlines()
    assert f"--run r is in use: process {os.getpid()} on " in line
    assert "choose another --run" in line
    assert sorted(Path("r").rglob("*")) == [path for path in before if path.name != ".lock"]


def test_a_table_that_was_cut_off_goes_on(empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere(*_FIT, "--run", "whole", "--trainer.max_epochs", "2").status == 0
    assert lit_sphere(*_FIT, "--run", "a").status == 0
    table = Path("a/metrics.csv")
    before = table.read_bytes()
    table.write_bytes(before + before.splitlines()[-1][:-4])  # as of an epoch after the checkpoint
    result = lit_sphere(*_RESUME)
    assert result.status == 0, result.err
    assert "metrics.csv: its last row was cut off" in result.err
    assert _rows("a") == _rows("whole")


def test_a_table_of_something_else_names_the_line(empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere(*_FIT, "--run", "a").status == 0
    table = Path("a/metrics.csv")
    table.write_text(table.read_text() + "hello\n")
    before = table.read_bytes(), Path("a/checkpoints/last.ckpt").read_bytes()
    result = lit_sphere(*_RESUME)
    assert result.status == 2
    (line,) = result.err.splitlines()
    number = len(table.read_text().splitlines())
    assert f"a/metrics.csv: line {number} is no row of numbers" in line
    assert "move the file away" in line
    assert (table.read_bytes(), Path("a/checkpoints/last.ckpt").read_bytes()) == before


def test_what_a_failed_start_left_is_no_run(empty_folder: Path, lit_sphere: LitSphere) -> None:
    Path("a/checkpoints").mkdir(parents=True)
    Path("a/metrics.csv").touch()
    result = lit_sphere(*_FIT, "--run", "a")
    assert result.status == 0, result.err
    assert len(_rows("a")) >= 1


def test_rows_without_a_checkpoint_name_none(empty_folder: Path, lit_sphere: LitSphere) -> None:
    Path("a").mkdir()
    Path("a/metrics.csv").write_text("step\n1\n")
    result = lit_sphere(*_FIT, "--run", "a")
    assert result.status == 2
    assert result.err == "lit-sphere: the run folder a exists already: choose another --run, or delete it\n"
    Path("a/checkpoints").mkdir()
    Path("a/checkpoints/epoch0001.ckpt").touch()
    result = lit_sphere(*_FIT, "--run", "a")
    assert "go on with that run by --ckpt_path a/checkpoints/epoch0001.ckpt --run a" in result.err


def test_a_folder_that_was_made_for_nothing_is_taken_away(empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("fit", *_TINY, "--model.elr", "-1")
    assert result.status
    assert os.listdir() == []


def test_enums_of_lightning_are_written_by_their_values(empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere(*_FIT, "--run", "a", "--trainer.callbacks+=Timer")
    assert result.status == 0, result.err
    (timer,) = yaml.safe_load(Path("a/config.yaml").read_text())["trainer"]["callbacks"]
    assert timer["init_args"]["interval"] == "step"
    assert lit_sphere("fit", "--config", "a/config.yaml", "--run", "again").status == 0


def test_a_folder_of_checkpoints_is_of_one_run(empty_folder: Path, lit_sphere: LitSphere) -> None:
    there = ("--checkpoint.dirpath", "kept")
    assert lit_sphere(*_FIT, "--run", "a", *there).status == 0
    before = Path("kept/last.ckpt").read_bytes()
    result = lit_sphere(*_FIT, "--run", "b", *there)
    assert result.status == 2
    assert result.err == (
        "lit-sphere: --checkpoint.dirpath kept: holds another run's checkpoints: choose another folder, or go on with "
        "that run by --ckpt_path kept/last.ckpt\n"
    )
    assert Path("kept/last.ckpt").read_bytes() == before
    assert not Path("b").exists()
    claim_folder(Path("kept"))
    result = lit_sphere(*_FIT, "--run", "b", *there)
    assert "lit-sphere: --checkpoint.dirpath kept is in use: process" in result.err
    goes_on = ("--ckpt_path", "kept/last.ckpt", "--run", "a2", "--trainer.max_epochs", "2")
    assert lit_sphere("fit", *goes_on, *there).status == 0
    assert Path("kept/last.ckpt").read_bytes() != before


@pytest.mark.parametrize("left", [None, "", "step\n"])
def test_a_history_that_is_missing_is_said(left: str | None, empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere(*_FIT, "--run", "a").status == 0
    Path("a/metrics.csv").unlink()
    if left is not None:
        Path("a/metrics.csv").write_text(left)
    result = lit_sphere(*_RESUME)
    assert result.status == 0, result.err
    assert "a/metrics.csv holds no row of the run so far" in result.err
