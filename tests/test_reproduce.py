"""lit-sphere reproduce: runs, page, record and status; the runs are made up here, and real in test_experiments.py."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, LitSphere

from lit_sphere.cli.config_names import find_sweep, shipped_sweeps
from lit_sphere.cli.report import Report
from lit_sphere.cli.reproduce import hardware
from lit_sphere.experiments import EXPERIMENTS
from lit_sphere.experiments.records import Record, read_record, shipped_records, write_record
from lit_sphere.sweep import Plan, SweepResult, read_plan
from lit_sphere.sweep.states import PointState

RECORD = Record("E1", "holds", "It does.", 12.0, "lit-sphere reproduce E1", "2026-11-28", "2 cores", {"torch": "2.15"})


def write_run(folder: Path, elr: float, losses: Sequence[float], switches: dict[int, float]) -> None:
    """A run as ``fit`` leaves it, as far as E10 looks at it."""
    folder.mkdir(parents=True)
    model = {"class_path": "SIConvNet", "init_args": {"elr": elr}}
    config = {"seed_everything": 0, "model": model, "data": {"class_path": "Digits", "init_args": {"seed": 0}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = ["epoch,step,train/loss,switch/elr"]
    for epoch, loss in enumerate(losses):
        if epoch in switches:
            lines.append(f"{epoch},{12 * epoch - 1},,{switches[epoch]}")
        lines.append(f"{epoch},{12 * epoch + 11},{loss},")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def without_figures(
    paths: Sequence[Path], folder: Path, title: str, formats: Sequence[str], experiments: Sequence[str]
) -> Report:
    folder.mkdir(parents=True)
    (folder / "report.html").write_text(f"{title}, of {', '.join(experiments)}")
    return Report(folder / "report.html", [], [], [])


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Plan, Path, int | None]]]:
    """Stand in for the sweep: the level of the loss at 4e-2, and what else becomes of it."""

    def stand_in(
        level: float | None, signum: int | None = None, state: Any = "done", page: bool = False
    ) -> list[tuple[Plan, Path, int | None]]:
        calls: list[tuple[Plan, Path, int | None]] = []

        def run_sweep(plan: Plan, folder: Path, jobs: int | None = None) -> SweepResult:
            calls.append((plan, folder, jobs))
            (point,) = plan.points
            if level is not None and not (folder / "seed=0").exists():
                losses = [2.0] * 30 + [level] * 30 + [2.0] * 30
                write_run(folder / "seed=0", 3e-2, losses, {30: 4e-2, 60: 3e-2})
            return SweepResult(folder, [PointState(point, folder / "seed=0", state, seconds=30.0)], signum)

        monkeypatch.setattr("lit_sphere.cli.sweep.run_sweep", run_sweep)
        if not page:  # seconds
            monkeypatch.setattr("lit_sphere.cli.report.write_report", without_figures)
        return calls

    return stand_in


def test_a_finding_that_holds(empty_folder: Path, lit_sphere: LitSphere, made_up: Any) -> None:
    calls = made_up(3.0, page=True)
    result = lit_sphere("reproduce", "e10", "--jobs", "2", "--trainer.max_epochs", "90")
    assert result.status == 0, result.err
    ((plan, folder, jobs),) = calls
    assert plan.fit[-2:] == ("--trainer.max_epochs", "90")
    assert (folder, jobs) == (Path("reproductions/runs/equilibrium_levels"), 2)
    assert "E10    holds: Levels of the equilibrium (TR §5)" in result.out
    assert "That of a higher ELR is 1.50 times as high (must be above 1.15)." in result.out
    page = empty_folder / "reproductions" / "E10" / "report.html"
    assert f"page: {page.relative_to(empty_folder)}" in result.out
    assert "holds" in page.read_text(encoding="utf-8")
    record = read_record(page.parent)
    assert record is not None
    assert (record.verdict, record.seconds) == ("holds", 30.0)
    assert record.command == "lit-sphere reproduce e10 --jobs 2 --trainer.max_epochs 90"
    listed = lit_sphere("reproduce", "--list")
    assert listed.status == 0
    assert "Last check: holds, " + record.date + ", in reproductions/E10." in listed.out
    (one,) = re.findall("Last check: .*", lit_sphere("reproduce", "--list", "E10").out)
    assert one.startswith("Last check: holds")


def test_a_finding_that_does_not_hold(empty_folder: Path, lit_sphere: LitSphere, made_up: Any) -> None:
    made_up(2.0)
    result = lit_sphere("reproduce", "E10")
    assert result.status == 1
    assert "E10    does not: Levels of the equilibrium" in result.out
    assert (empty_folder / "reproductions" / "E10" / "report.html").exists()


def test_too_little_to_tell_is_said(empty_folder: Path, lit_sphere: LitSphere, made_up: Any) -> None:
    made_up(0.01)
    result = lit_sphere("reproduce", "E10")
    assert result.status == 0
    assert "E10    cannot tell" in result.out
    assert result.err.splitlines()[-1] == "lit-sphere: E10: too little was run to tell"


def test_a_run_that_failed_costs_the_status_and_not_the_page(
    empty_folder: Path, lit_sphere: LitSphere, made_up: Any
) -> None:
    made_up(3.0, state="failed")
    result = lit_sphere("reproduce", "E10")
    assert result.status == 1
    assert "not all runs are done: equilibrium_levels; the same command tries again" in result.err
    assert "E10    holds" in result.out


def test_where_all_runs_failed_the_sweep_is_named(empty_folder: Path, lit_sphere: LitSphere, made_up: Any) -> None:
    made_up(None, state="failed")
    result = lit_sphere("reproduce", "E10")
    assert result.status == 1
    table = Path("reproductions", "runs", "equilibrium_levels", "states.csv")
    assert f"lit-sphere: E10: no run of its sweep came to an end; see {table}" in result.err.splitlines()
    assert "E10" not in result.out


def test_a_signal_ends_it(empty_folder: Path, lit_sphere: LitSphere, made_up: Any) -> None:
    made_up(3.0, signum=2, state="interrupted")
    result = lit_sphere("reproduce", "E10")
    assert result.status == 130
    assert "the same command goes on" in result.err
    assert not (empty_folder / "reproductions" / "E10").exists()


def test_experiments_share_their_runs(empty_folder: Path, lit_sphere: LitSphere, made_up: Any) -> None:
    calls = made_up(3.0)
    shared = replace(EXPERIMENTS["E11"], sweeps=EXPERIMENTS["E10"].sweeps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXPERIMENTS, "E11", shared)
        result = lit_sphere("reproduce", "E10", "E11")
    assert result.status == 0, result.err
    assert len(calls) == 1
    assert {"E10", "E11", "runs"} == {path.name for path in (empty_folder / "reproductions").iterdir()}


def test_the_toy_has_a_page_without_runs(empty_folder: Path, lit_sphere: LitSphere) -> None:
    toy = empty_folder / "r" / "runs" / "toy"
    small = ("--grid", "12", "--seeds", "5", "--steps", "400", "--elrs", "0.1", "0.2", "--run", str(toy))
    assert lit_sphere("toy", *small).status == 0
    result = lit_sphere("reproduce", "T8", "--folder", "r")
    assert result.status == 0, result.err
    assert "T8     holds" in result.out
    assert (empty_folder / "r" / "T8" / "report.html").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "reproduce needs an experiment: E1, "),
        ("E99", "no experiment 'E99'"),
        ("E1 E2", "no experiment 'E2'"),
        ("R12 --paper", "--paper: R12 has no papers' setting"),
        ("T7 --paper", "--paper: T7 has no papers' setting (it is the same there)"),
        ("T7 --seeds 3", "--seeds is of runs, and T7 is of the toy"),
        ("T7 --model.elr 1", "--model.elr is of runs, and T7 is of the toy"),
        ("E10 --jobs many", "--jobs"),
        ("E10 --seeds -1", "--seeds must be at least 0, and at most 1000, got -1"),
        ("P17 --seeds 3", "minima: --seeds would give other runs to the sweep's command interpolate {0}/minima/"),
        ("E6 --seeds 0", "elr_optima: then: interpolate {0}/checkpoints/last.ckpt"),
        ("E23 --seeds 3", "--seed_everything is set by --seeds"),
        ("E10 --run here", "--run is not for a sweep"),
    ],
)
def test_bad_input_gets_one_line(args: str, message: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("reproduce", *args.split())
    assert result.status == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not list(empty_folder.iterdir())


def test_help(lit_sphere: LitSphere) -> None:
    result = lit_sphere("reproduce", "--help")
    assert result.status == 0
    for word in ("--list", "--paper", "--seeds", "--jobs", "--folder", "lit-sphere reproduce E1 E3 E26"):
        assert word in result.out
    assert "reproduce" in lit_sphere("--help").out


def test_the_list_names_all(empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("reproduce", "--list")
    assert result.status == 0
    for experiment in EXPERIMENTS.values():
        assert f"{experiment.title} ({experiment.source})" in result.out
    assert max(map(len, result.out.splitlines())) <= 110


# --- the registry --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda each: each.id)
def test_every_sweep_is_shipped_and_names_its_experiments(experiment: Any) -> None:
    assert experiment.toy or experiment.sweeps
    assert set(experiment.sweeps + experiment.paper_sweeps) <= set(shipped_sweeps())
    for name in experiment.sweeps + experiment.paper_sweeps:
        plan = read_plan(Path(find_sweep(name)))
        assert experiment.id in plan.experiments
        assert plan.points
        assert plan.title
        header = (REPOSITORY / "configs" / "sweeps" / f"{name}.yaml").read_text(encoding="utf-8")
        assert header.startswith("# ")


def test_every_experiment_that_a_sweep_names_is_known() -> None:
    for name in shipped_sweeps():
        assert set(read_plan(Path(find_sweep(name))).experiments) <= EXPERIMENTS.keys()


def test_sentences_end() -> None:
    for experiment in EXPERIMENTS.values():
        assert experiment.must_show.endswith(".")
        assert not experiment.title.endswith(".")


def test_records_are_kept(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path) == RECORD
    for broken in ("", "[]", '{"verdict": "maybe"}', '{"verdict": "holds", "more": 1}'):
        (tmp_path / "finding.json").write_text(broken)
        assert read_record(tmp_path) is None


def test_the_shipped_records_are_of_known_experiments_and_name_no_machine() -> None:
    records = shipped_records()
    assert records.keys() <= EXPERIMENTS.keys()
    for record in records.values():
        assert record.command.startswith("lit-sphere reproduce ")
        assert "/" not in record.command
        assert record.seconds > 0
    assert "core" in hardware()


def test_shipped_records_are_json() -> None:
    text = (REPOSITORY / "lit_sphere" / "experiments" / "evidence.json").read_text(encoding="utf-8")
    assert isinstance(json.loads(text), list)
