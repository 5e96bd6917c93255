"""``lit-sphere borders`` from its options to its answer, on made-up runs; and (slow) on real ones."""

import csv
import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import matplotlib.image
import pytest
import torch
import yaml
from conftest import REPOSITORY, LitSphere, with_default_signals
from foreign_modules import ForeignModule
from lightning.pytorch import LightningModule
from synthetic_runs import write_run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_sphere.analysis.border_search import SearchRange
from lit_sphere.analysis.regimes import Regime
from lit_sphere.report.border_search import (
    BorderRun,
    SearchResult,
    border_chart,
    border_run,
    read_result,
    sentences,
    write_result,
)
from lit_sphere.report.runs import read_run
from lit_sphere.sweep.border_chooser import fitting_runs
from lit_sphere.sweep.borders import search_borders
from lit_sphere.sweep.point_run import Outcome, Task
from lit_sphere.sweep.slurm import SlurmJobs

REGIMES = ("convergence", "chaotic equilibrium", "divergence")


class Played:
    """Launcher whose runs end at once, with the curves of a regime."""

    outlives = False
    borders: ClassVar[Mapping[int, tuple[float, float]]]
    failing: ClassVar[float | None] = None
    killed_after: ClassVar[int | None] = None
    started: ClassVar[list[str]]
    tasks: ClassVar[list[Task]]

    def __init__(self, jobs: int, *_: object) -> None:
        self.jobs, self.running = jobs, dict[str, Outcome]()

    @property
    def has_room(self) -> bool:
        return len(self.running) < self.jobs

    def prepare(self) -> None:
        pass

    def goes_on(self, name: str, folder: Path, job: str) -> bool:
        return False

    def start(self, name: str, task: Task) -> str:
        if self.killed_after is not None and len(self.started) >= self.killed_after:
            raise KeyboardInterrupt
        options = dict(each.removeprefix("--").split("=", 1) for each in task.arguments if "=" in each)
        elr, seed = float(options["model.elr"]), int(options.get("seed_everything", 0))
        first, second = self.borders[seed]
        regime = REGIMES[(elr >= first) + (elr >= second)]
        if elr == self.failing:
            self.running[name] = Outcome(1, 1.0, "the disk is full")
        else:
            write_run(task.folder, elr, seed=seed, regime=regime, options={"width": 8})
            self.running[name] = Outcome(0, 1.0, "")
        self.started.append(name)
        self.tasks.append(task)
        return ""

    def wait(self, seconds: float) -> Mapping[str, Outcome]:
        ended, self.running = self.running, {}
        return ended

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def played(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> type[Played]:
    """Plays the runs of this test."""

    class Mine(Played):
        borders: ClassVar[Mapping[int, tuple[float, float]]] = dict.fromkeys(range(3), (0.021, 0.08))
        started: ClassVar[list[str]] = []
        tasks: ClassVar[list[Task]] = []

    monkeypatch.setattr("lit_sphere.cli.borders.LocalProcesses", Mine)
    monkeypatch.setattr("lit_sphere.cli.borders.import_early", lambda *_: None)
    return Mine


FOLDER = Path("sweeps/elr-borders")


def borders(lit_sphere: LitSphere, *more: str) -> Any:
    return lit_sphere("borders", "--config", "elr.yaml", "--trainer.max_epochs", "40", "--jobs", "2", *more)


def test_both_borders_are_found(played: type[Played], lit_sphere: LitSphere) -> None:
    played.borders = {0: (0.021, 0.08), 1: (0.021, 0.08), 2: (0.027, 0.08)}
    result = borders(lit_sphere, "--seeds", "3")
    assert result.status == 0, result.err
    content = json.loads((FOLDER / "borders.json").read_text())
    first, second = content["borders"]
    assert first["last"] < 0.021 < 0.027 <= first["first"]
    assert second["last"] < 0.08 <= second["first"] <= 1.252 * second["last"]
    assert [high / low <= 1.252 for low, high in first["of_seeds"]] == [True] * 3
    assert first["of_seeds"][2] != first["of_seeds"][0]
    assert "Convergence ends, and chaotic equilibrium begins, between ELR" in result.out
    assert "by seed: " in result.out
    assert re.search(r"^  ELR 0\.\d+, seed 2: convergence, train loss below 0.01 since epoch", result.out, re.MULTILINE)
    assert len(content["runs"]) == len(played.started) <= 26
    assert content["epochs"] == 40 * len(played.started)
    assert f"\n{len(played.started)} runs, {40 * len(played.started)} epochs; the whole grid: 159 runs" in result.out
    assert matplotlib.image.imread(FOLDER / "borders.png")[..., :3].std() > 0.02
    task = played.tasks[0]
    assert "--trainer.callbacks+=RegimeMonitor" in task.arguments
    assert "--non_finite=finding" in task.arguments
    assert {"--seed_everything=0", "--data.seed=0"} <= {*task.arguments}
    plan = yaml.safe_load((FOLDER / "sweep.yaml").read_text())
    assert sorted(plan["only"]) == sorted(played.started)
    # The same command makes nothing anew.
    played.started.clear()
    assert borders(lit_sphere, "--seeds", "3").status == 0
    assert played.started == []


@pytest.mark.slow
def test_what_is_there_is_used_and_reported(played: type[Played], lit_sphere: LitSphere) -> None:
    assert borders(lit_sphere, "--seeds", "2").status == 0
    played.started.clear()
    assert borders(lit_sphere, "--seeds", "2", "--precision", "1.1").status == 0
    assert 0 < len(played.started) <= 12
    played.started.clear()
    assert borders(lit_sphere, "--seeds", "1").status == 0
    assert played.started == []
    assert borders(lit_sphere, "--seeds", "3").status == 0
    assert {name.rpartition("=")[2] for name in played.started} == {"2"}
    report = lit_sphere("report", str(FOLDER), "--formats", "png", "--experiments", "E1")
    assert report.status == 0
    page = (FOLDER / "report" / "report.html").read_text()
    assert "Convergence ends, and chaotic equilibrium begins" in page
    assert (FOLDER / "report" / "figures" / "borders.png").exists()
    (FOLDER / "borders.json").write_text("{}")
    report = lit_sphere("report", str(FOLDER), "--formats", "--experiments", "E1")
    assert report.status == 0
    assert "borders.json: is no result of lit-sphere borders" in report.out


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on(played: type[Played], lit_sphere: LitSphere) -> None:
    played.killed_after = 4
    assert borders(lit_sphere).status == 130
    before = list(played.started)
    played.killed_after = None
    assert borders(lit_sphere).status == 0
    again = played.started[len(before) :]
    assert len(again) == len(set(again))
    ended = {name for name in before if read_run(FOLDER / name).epochs == 40}
    assert len(ended & {*again}) <= 2  # those whose end nobody saw
    assert json.loads((FOLDER / "borders.json").read_text())["borders"][0]["is_closed"]


@pytest.mark.slow
def test_a_run_that_fails_ends_the_search(played: type[Played], lit_sphere: LitSphere) -> None:
    played.failing = 0.003162
    result = borders(lit_sphere)
    assert result.status == 1
    assert "the disk is full" in result.err
    assert "the same command tries again" in result.err
    assert len(played.started) <= 3
    played.failing = None
    assert borders(lit_sphere).status == 0


@pytest.mark.slow
def test_a_budget_is_kept(played: type[Played], lit_sphere: LitSphere) -> None:
    result = borders(lit_sphere, "--budget", "200")
    assert result.status == 0
    assert len(played.started) == 5
    assert "The budget of 200 epochs" in result.out
    assert "not as close as ×1.25" in result.out
    assert borders(lit_sphere, "--budget", "2000").status == 0
    assert json.loads((FOLDER / "borders.json").read_text())["borders"][0]["is_closed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("both", "words"),
    [
        ((1e-9, 0.08), "No convergence at all, down to ELR 1e-5"),
        ((0.02, 3.0), "Nothing diverges up to ELR 1"),
        ((3.0, 3.0), "Convergence up to ELR 1, the end of the range"),
        ((1e-9, 1e-9), "Divergence from ELR 1e-5 on"),
    ],
)
def test_a_range_without_a_border_is_an_answer(
    both: tuple[float, float], words: str, played: type[Played], lit_sphere: LitSphere
) -> None:
    played.borders = {0: both}
    result = borders(lit_sphere)
    assert result.status == 0
    assert words in result.out


def test_old_runs_are_used_where_they_fit(tmp_path: Path) -> None:
    wanted = read_run(write_run(tmp_path / "wanted", 1e-4, epochs=1)).config
    write_run(tmp_path / "fits", 2e-2, seed=1)
    write_run(tmp_path / "again", 2e-2, seed=1, regime="divergence")
    write_run(tmp_path / "linked", 3e-2, options={"num_classes": 10}, regime="divergence")
    write_run(tmp_path / "third seed", 3e-2, seed=2)
    write_run(tmp_path / "wider", 3e-2, options={"width": 9})
    write_run(tmp_path / "short", 3e-2, epochs=20)
    write_run(tmp_path / "whole space", None, options={"optimizer": "SGD"})
    names = ["fits", "again", "linked", "third seed", "wider", "short", "whole space"]
    runs = [read_run(tmp_path / name) for name in names]
    found, refused = fitting_runs(runs, wanted, "model.elr", 2, 40, ["model.num_classes"])
    assert [(run.seed, run.at, run.regime, run.is_old) for run in found] == [
        (1, 2e-2, "convergence", True),
        (0, 3e-2, "divergence", True),
    ]
    assert [line.partition(f"{tmp_path}/")[2] for line in refused] == [
        "third seed: its seed is another one",
        "wider: it differs in width 9",
        "short: it was trained for 20 epochs",
        "whole space: no regime was named",
    ]
    # Without seeds, those of the configuration.
    assert [run.at for run in fitting_runs(runs, wanted, "model.elr", 0, 40, ["model.num_classes"])[0]] == [3e-2]


@pytest.mark.slow
def test_a_search_on_old_runs_alone(played: type[Played], lit_sphere: LitSphere) -> None:
    assert borders(lit_sphere, "--sweep", "first").status == 0
    made = len(played.started)
    result = borders(lit_sphere, "--runs", "first")
    assert re.search(rf"^\d+ of {made} old runs fit", result.err, re.MULTILINE)
    assert result.status == 0


def test_a_border_that_was_not_reached() -> None:
    runs = [BorderRun(0.01, 0, "convergence", "why", 30), BorderRun(0.02, 0, "convergence", "why", 30)]
    said = sentences(SearchResult("model.elr", SearchRange(1e-3, 1.0, 1.5), 1, 100, runs))
    assert said[0] == "Border 1|2 was not reached before the search ended: up to ELR 0.02 runs are below it."
    undecided = [BorderRun(1.0, 0, "undecided", "too short; more", 30)]
    said = sentences(SearchResult("model.elr", SearchRange(1e-3, 1.0, 1.5), 1, 100, undecided))
    assert said[0] == "Border 1|2: not to be told, since no run has a regime (too short)."


def test_runs_that_contradict_each_other_are_named(empty_folder: Path) -> None:
    def run(at: float, regime: Any) -> BorderRun:
        return BorderRun(at, 0, regime, f"because of {at}", 30, 1.0, 2.0)

    runs = [run(0.01, "convergence"), run(0.02, "divergence"), run(0.03, "convergence"), run(0.04, "divergence")]
    result = SearchResult("model.elr", SearchRange(0.01, 0.04, 1.5), 1, 100, runs)
    said = " ".join(sentences(result))
    assert "Contradictory: ELR 0.02 is regime 3 (divergence), and ELR 0.03 above it regime 1 (convergence)" in said
    assert "not to be told at 0.02, 0.03" in said
    assert result.borders[0].last == 0.01
    assert result.borders[0].first == 0.04
    write_result(empty_folder, result)
    assert read_result(empty_folder) == result
    assert {panel.title for panel in border_chart(result).panels} >= {"train loss, last epoch"}


def test_a_run_that_ended_by_nan_has_diverged(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 1.0, epochs=8, regime="divergence")
    keys = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    row = {"epoch": "8", "step": "100", "train/loss": "nan"}  # as StopOnNonFinite leaves it, without an error
    with (folder / "metrics.csv").open("a") as file:
        file.write(",".join(row.get(key, "") for key in keys) + "\n")
    run = border_run(read_run(folder), 1.0, 0)
    assert (run.regime, run.evidence) == ("divergence", "train loss NaN or infinite since epoch 8")
    result = SearchResult("model.elr", SearchRange(0.1, 1.0, 1.5), 1, 100, [run])
    write_result(tmp_path, result)
    assert read_result(tmp_path).runs[0].loss is None
    assert "nan" not in sentences(result)[0]


@pytest.mark.parametrize("text", ["[]", "{", '{"runs": []}', '{"option": "a", "low": 1, "high": 0}'])
def test_a_result_that_is_none(text: str, empty_folder: Path) -> None:
    Path("borders.json").write_text(text)
    with pytest.raises(ValueError, match=r"borders.json: is no result"):
        read_result(empty_folder)


class Foreign(ForeignModule):
    """A layer-norm network of somebody else."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.example_input_array = torch.zeros(2, 6)

    def make_model(self) -> nn.Module:
        norm = nn.LayerNorm(16, elementwise_affine=False)
        return nn.Sequential(nn.Linear(6, 16, bias=False), norm, nn.ReLU(), nn.Linear(16, 3).requires_grad_(False))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model[0].parameters(), lr=self.lr)  # type: ignore[index]


def _data() -> DataLoader[Any]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(24, 6, generator=g)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8)


@pytest.mark.filterwarnings("ignore:.*many workers", "ignore:.*no .val_dataloader")
def test_a_foreign_module_is_searched_from_python() -> None:
    made: list[float] = []

    def make(lr: float) -> LightningModule:
        made.append(lr)
        return Foreign(lr)

    result = search_borders(
        make,
        _data,
        {"max_epochs": 30, "accelerator": "cpu", "limit_val_batches": 0, "log_every_n_steps": 1},
        0.1,
        1e4,
        precision=30,
        monitor_options={"num_classes": 3, "converged_loss": 0.7},
    )
    assert made == [run.at for run in result.runs]
    assert len(made) <= 4
    assert all(run.epochs <= 30 and run.loss is not None for run in result.runs)
    assert all(border.is_closed for border in result.borders)
    assert sentences(result)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"low": 1.0, "high": 0.1}, "LOW must be positive and below HIGH"),
        ({"precision": 0.5}, "precision"),
        ({"budget": 3}, "budget 3 is too small for one run of 30 epochs"),
        ({"seeds": 0}, "seeds"),
        ({"trainer_options": {}}, "max_epochs"),
    ],
)
def test_a_search_from_python_that_cannot_be_made(options: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"trainer_options": {"max_epochs": 30}, "low": 0.1, "high": 1.0, **options}
    with pytest.raises(ValueError, match=re.escape(words)):
        search_borders(Foreign, _data, **given)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (
            {0.01: "undecided", 0.03: "undecided", 1.0: "divergence"},
            "Divergence from ELR 1 on; below it to 0.01, the beginning of the range, nothing can be told.",
        ),
        (
            {0.01: "convergence", 0.03: "undecided", 1.0: "undecided"},
            "Convergence up to ELR 0.01; above it to 1, the end of the range, nothing can be told.",
        ),
    ],
)
def test_undecided_runs_at_an_end_of_the_range_are_no_border(told: dict[float, Regime], words: str) -> None:
    runs = [BorderRun(at, 0, regime, "as made up", 40) for at, regime in told.items()]
    assert words in sentences(SearchResult("model.elr", SearchRange(0.01, 1, 200), 1, 40, runs))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Exception ignored in. .function Popen.__del__")  # of submitit's local jobs
def test_runs_of_a_search_as_jobs_of_submitit(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, lit_sphere: LitSphere
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr("lit_sphere.cli.borders.SlurmJobs", partial(SlurmJobs, cluster="local"))
    few = ["--model.width", "2", "--data.train_size", "256", "--trainer.max_epochs", "20", "--wandb", "disabled"]
    asked = ["--config", "elr.yaml", "--over", "model.elr=1e-2:1", "--precision", "10", *few]
    slurm = ["--launcher", "slurm", "--slurm.cpus", "1", "--slurm.time", "5"]
    result = lit_sphere("borders", *asked, *slurm)
    assert result.status == 0, result.err
    with (FOLDER / "states.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["state"] for row in rows} == {"done"}
    assert all(row["job"] for row in rows)
    assert 2 <= len(rows) <= 3
    assert len(read_result(FOLDER).runs) == len(rows)
    # The same command reads what is there.
    before = (FOLDER / "states.csv").read_bytes()
    assert lit_sphere("borders", *asked, *slurm).status == 0
    assert (FOLDER / "states.csv").read_bytes() == before


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_real_runs_are_searched_killed_and_gone_on_with(empty_folder: Path) -> None:
    few = ["--model.width", "4", "--data.train_size", "512", "--trainer.max_epochs", "40", "--wandb", "disabled"]
    asked = ["--over", "model.elr=5e-3:0.5", "--precision", "3", "--jobs", "2", "--config", "elr.yaml", *few]
    command = with_default_signals([sys.executable, "-m", "lit_sphere", "borders", *asked])
    lines = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as first:
        assert first.stderr is not None
        for line in first.stderr:
            lines.append(line)
            if re.match(r"2  elr=", line):
                first.send_signal(signal.SIGTERM)
    assert first.returncode == 128 + signal.SIGTERM, lines
    began = {path.parent.name for path in FOLDER.glob("elr=*/checkpoints")}
    second = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert second.returncode == 0, second.stderr
    result = read_result(FOLDER)
    assert began <= {Path(run.folder).name for run in result.runs}
    assert all(20 <= run.epochs <= 40 for run in result.runs)
    assert any(run.epochs == 34 for run in result.runs)  # named at the end of the twentieth epoch, and 14 more
    one, two = result.borders
    assert one.last is not None
    assert 5e-3 <= one.last < 0.1
    assert two.first is not None
    assert two.first > one.last
    assert len(result.runs) <= 10
    assert "Convergence ends" in second.stdout
    advised = subprocess.run(
        [sys.executable, "-m", "lit_sphere", "fit", "--config", str(FOLDER / "advised.yaml"), "--run", "advised"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert advised.returncode == 0, advised.stderr
    assert read_run(Path("advised")).verdict.regime == "convergence"  # type: ignore[union-attr]
