"""Sweeps: what becomes of points, what is refused before any run starts, and (slow) real processes."""

import csv
import io
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, LitSphere, with_default_signals
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from lit_sphere.cli.subcommand_parser import split_arguments
from lit_sphere.cli.sweep import make_parser, run_sweep
from lit_sphere.files import release_folders
from lit_sphere.report.wandb_files import read_wandb
from lit_sphere.sweep import Fit, Plan, PointState, Sweep, SweepError, SweepResult
from lit_sphere.sweep import run as sweep_run
from lit_sphere.sweep.afterwards import commands_afterwards
from lit_sphere.sweep.local import LocalProcesses
from lit_sphere.sweep.plan import read_folder_plan
from lit_sphere.sweep.point_run import Outcome, Task
from lit_sphere.sweep.slurm import SlurmOptions
from lit_sphere.sweep.states import write_states
from lit_sphere.sweep.view import Lines, LiveTable, counts, one_line, seconds_left
from lit_sphere.sweep.wandb_sweep import wandb_sweep

PLAN = Plan(("--wandb", "disabled"), {"model.elr": ("1e-3", "1e-2", "1e-1")})
NAMES = [point.name for point in PLAN.points]


class Played:
    """Launcher that plays runs: each ends at the second look, as it is told, with a table of two epochs."""

    outlives = False

    def __init__(self, ends: Mapping[str, Outcome] = {}, jobs: int = 2, at_end: Callable[[str], None] = print) -> None:
        self.ends, self.jobs, self.at_end = ends, jobs, at_end
        self.running: dict[str, Task] = {}
        self.started: list[Task] = []
        self.stopped, self.most = 0, 0

    @property
    def has_room(self) -> bool:
        return len(self.running) < self.jobs

    def prepare(self) -> None:
        pass

    def goes_on(self, name: str, folder: Path, job: str) -> bool:
        return False

    def start(self, name: str, task: Task) -> str:
        task.folder.mkdir(exist_ok=True)
        (task.folder / "metrics.csv").write_text("epoch,step,train/loss\n0,9,2.0\n1,19,0.5\n")
        self.running[name] = task
        self.started.append(task)
        self.most = max(self.most, len(self.running))
        return ""

    def wait(self, seconds: float) -> Mapping[str, Outcome]:
        ended = {name: self.ends.get(name, Outcome(0, 3.0, "")) for name in self.running}
        for name in ended:
            self.at_end(name)
        self.running = {}
        return ended

    def stop(self) -> None:
        self.stopped += 1
        self.ends = {name: Outcome(143, 1.0, "interrupted in epoch 1") for name in self.running}

    def close(self) -> None:
        pass


def _nothing(arguments: list[str]) -> None:
    raise AssertionError(arguments)


def play(launcher: Played, plan: Plan = PLAN, folder: str = "s") -> SweepResult:
    fit = Fit(_nothing, {"elr.yaml": "x"}, [2] * len(plan.points))
    try:
        return Sweep(plan, Path(folder), fit, 1).run(launcher, Lines())
    finally:
        release_folders()


def _forget_configs(folder: str) -> None:
    """Played sweeps name a content of elr.yaml that is not the shipped one's."""
    path = Path(folder, "sweep.yaml")
    path.write_text(path.read_text().replace("configs:\n  elr.yaml: x\n", "configs: {}\n"))


def table(folder: str | Path) -> dict[str, dict[str, str]]:
    with (Path(folder) / "states.csv").open(newline="") as file:
        return {row.pop("point"): row for row in csv.DictReader(file)}


def test_what_is_the_sweeps_own_is_told_from_what_goes_to_the_runs() -> None:
    typed = ["--dry-run", "elr", "--model.elr", "1e-3", "--jobs=2", "--over", "a=1", "--trainer.devices", "2"]
    assert split_arguments(typed, make_parser()) == (
        ["elr"],
        ["--dry-run", "--jobs=2", "--over", "a=1"],
        ["--model.elr", "1e-3", "--trainer.devices", "2"],
    )


def test_points_run_and_leave_a_table(empty_folder: Path) -> None:
    launcher = Played()
    result = play(launcher)
    assert result.is_done
    assert launcher.most == 2
    assert launcher.started[0].arguments == ("--wandb", "disabled", "--model.elr=1e-3")
    assert launcher.started[0].environment["WANDB_RUN_GROUP"] == "s"
    assert launcher.started[0].environment["WANDB_JOB_TYPE"] == "sweep"
    assert launcher.started[0].environment["WANDB_TAGS"] == "model.elr=1e-3"
    rows = table("s")
    assert list(rows) == NAMES
    assert rows["elr=0.01"] == {
        **{"model.elr": "1e-2", "state": "done", "epoch": "2", "epochs": "2", "loss": "0.5", "regime": ""},
        **{"seconds": "3.0", "line": "", "job": ""},
    }


def test_a_failed_point_stops_nobody_and_is_tried_again(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = play(Played({"elr=0.01": Outcome(1, 2.0, "the loss is NaN")}))
    assert not result.is_done
    rows = table("s")
    assert [row["state"] for row in rows.values()] == ["done", "failed", "done"]
    assert rows["elr=0.01"]["line"] == "the loss is NaN"
    assert "elr=0.01  failed in epoch 2, loss 0.5: the loss is NaN" in capsys.readouterr().err
    again = Played()
    assert play(again).is_done
    assert [task.folder.name for task in again.started] == ["elr=0.01"]
    nothing = Played()
    assert play(nothing).is_done
    assert nothing.started == []


def test_new_points_are_added_to_an_old_grid(empty_folder: Path) -> None:
    play(Played())
    more = Plan(PLAN.fit, {"model.elr": ("0.001", "1e-2", "1e-1", "1")})
    launcher = Played()
    assert play(launcher, more).is_done
    assert [task.folder.name for task in launcher.started] == ["elr=1"]
    assert len(table("s")) == 4


def test_other_sweeps_and_other_folders_are_refused(empty_folder: Path) -> None:
    play(Played())
    with pytest.raises(SweepError, match="s holds another sweep"):
        play(Played(), Plan(("--wandb", "offline"), PLAN.over))
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    with pytest.raises(SweepError, match=r"mine holds something else than a sweep, e\.g\. thesis\.tex"):
        play(Played(), folder="mine")
    Path("file").touch()
    with pytest.raises(SweepError, match="file is no folder"):
        play(Played(), folder="file")
    Path("s/states.csv").write_text("point,state\nelr=0.001,flying\n")
    with pytest.raises(SweepError, match=r"states\.csv: is no table of a sweep"):
        play(Played())


def test_two_sweeps_at_once_in_a_folder_are_refused(empty_folder: Path) -> None:
    Sweep(PLAN, Path("s"), Fit(_nothing, {}, [2] * 3), 1)
    other = subprocess.run(
        [sys.executable, "-c", "from lit_sphere.files import claim_folder; from pathlib import Path\n"
         "try: claim_folder(Path('s'))\nexcept Exception as error: print(error)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "s is in use: process" in other.stdout
    with pytest.raises(SweepError, match=r"s is in use: .*; wait until that has ended"):
        Sweep(PLAN, Path("s"), Fit(_nothing, {}, [2] * 3), 1)
    release_folders()


def test_a_signal_stops_all_and_the_rest_stays_for_later(empty_folder: Path) -> None:
    def interrupt(name: str) -> None:
        if name == "elr=0.001":
            signal.raise_signal(signal.SIGINT)

    launcher = Played(jobs=1, at_end=interrupt)
    result = play(launcher)
    assert result.signum == signal.SIGINT
    assert [state.state for state in result.states] == ["done", "waiting", "waiting"]

    class Slow(Played):
        def wait(self, seconds: float) -> Mapping[str, Outcome]:
            if not self.stopped:
                signal.raise_signal(signal.SIGTERM)
                return {}
            return super().wait(seconds)

    slow = Slow()
    result = play(slow)
    assert (result.signum, slow.stopped) == (signal.SIGTERM, 1)
    assert [state.state for state in result.states] == ["done", "interrupted", "interrupted"]
    assert play(Played()).is_done


def test_jobs_of_a_queue_outlive_the_sweep_and_are_taken_up(empty_folder: Path) -> None:
    class Queue(Played):
        outlives = True

        def start(self, name: str, task: Task) -> str:
            super().start(name, task)
            return f"job-{name}"

        def wait(self, seconds: float) -> Mapping[str, Outcome]:
            signal.raise_signal(signal.SIGINT)
            return {}

    result = play(Queue(jobs=2))
    assert result.signum == signal.SIGINT
    assert [row["state"] for row in table("s").values()] == ["running", "running", "waiting"]

    class Later(Played):
        def goes_on(self, name: str, folder: Path, job: str) -> bool:
            if job == "job-elr=0.001":
                self.running[name] = Task(folder, (), {}, 1, _nothing)
            return name in self.running

    later = Later(jobs=3)
    assert play(later).is_done
    assert [task.folder.name for task in later.started] == ["elr=0.01", "elr=0.1"]


def test_a_table_that_cannot_be_written_stops_nobody(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, full = write_states, [True]

    def write_unless_full(path: Path, states: Sequence[PointState]) -> None:
        if full and any(state.state == "done" for state in states):
            raise OSError(28, "No space left on device", str(path))
        write(path, states)

    monkeypatch.setattr(sweep_run, "write_states", write_unless_full)
    result = play(Played(jobs=1))
    assert result.is_done
    assert [row["state"] for row in table("s").values()] == ["running", "waiting", "waiting"]
    full.clear()
    for name in NAMES:  # what the runs themselves left
        Path("s", name, "outcome.json").write_text('{"status": 0, "seconds": 1.0, "line": ""}')
    assert [state.state for state in Sweep(PLAN, Path("s"), Fit(_nothing, {}, [2] * 3), 1).states] == ["done"] * 3
    release_folders()


def test_a_point_that_cannot_be_started_fails_alone(empty_folder: Path) -> None:
    class Refusing(Played):
        def start(self, name: str, task: Task) -> str:
            if name == "elr=0.01":
                raise OSError(12, "Cannot allocate memory")
            return super().start(name, task)

    result = play(Refusing())
    assert [state.state for state in result.states] == ["done", "failed", "done"]
    assert result.states[1].line == "could not be started: Cannot allocate memory"


def test_commands_afterwards_know_the_folders() -> None:
    plan = Plan((), PLAN.over, then=("interpolate {0}/a {2}/b --run '{sweep}/x y'",))
    command = ["interpolate", "s/elr=0.001/a", "s/elr=0.1/b", "--run", "s/x y"]
    assert commands_afterwards(plan, Path("s")) == {"then-1": command}
    for wrong in ("interpolate {3}", "toy {nobody}", "toy '"):
        with pytest.raises(SweepError, match=re.escape(wrong)):
            commands_afterwards(Plan((), PLAN.over, then=(wrong,)), Path("s"))


def test_commands_for_each_seed_have_its_points() -> None:
    plan = Plan((), {"model.elr": ("1e-3", "1e-2")}, seeds=2, then=("interpolate {0} {1} --run {sweep}/b{seed}", "toy"))
    assert commands_afterwards(plan, Path("s")) == {
        "then-1-seed=0": ["interpolate", "s/elr=0.001,seed=0", "s/elr=0.01,seed=0", "--run", "s/b0"],
        "then-1-seed=1": ["interpolate", "s/elr=0.001,seed=1", "s/elr=0.01,seed=1", "--run", "s/b1"],
        "then-2": ["toy"],
    }
    assert len(commands_afterwards(plan.with_seeds(3), Path("s"))) == 4
    with pytest.raises(SweepError, match="is for each seed; give --seeds N"):
        plan.with_seeds(0)
    counting = Plan((), {"model.elr": ("1e-3", "1e-2")}, then=("interpolate {0} {1}",))
    assert counting.with_seeds(None) == counting.with_seeds(0) == counting
    with pytest.raises(SweepError, match=r"command interpolate \{0\} \{1\}; leave --seeds out"):
        counting.with_seeds(3)


def test_the_live_table_shows_what_runs_where_not_all_fits() -> None:
    from rich.console import Console

    plan = Plan((), {"model.elr": tuple(f"{i}e-3" for i in range(1, 201))}, seeds=1)
    states = [PointState(point, Path("s") / point.name, epochs=100) for point in plan.points]
    for state in states[:50]:
        state.state, state.epoch, state.loss, state.regime, state.seconds = "done", 100, 0.01, "convergence", 10.0
    states[7].state, states[7].line = "failed", f"the loss is NaN {'and more ' * 30}"
    for state in states[50:52]:
        state.state, state.epoch, state.seconds, state.seconds_left = "running", 40, 4.0, 6.0
    console = Console(record=True, width=120, height=30, file=io.StringIO())
    live = LiveTable(Path("s"), 2, console)
    live.close()
    console.export_text()
    console.print(live.table(states))
    text = console.export_text()
    for shown in ("8e-3 ", "the loss is NaN", "51e-3", "52e-3", " 40/100", "50e-3", "s · 49 done, 2 running, 1 failed"):
        assert shown in text
    assert "199e-3" not in text
    assert "about 12 min 26 s left" in text  # 148 of 10 s, two at once, and the two that run
    assert max(map(len, text.splitlines())) <= 120
    assert len(text.splitlines()) <= 32


def test_words() -> None:
    (state, *_) = [PointState(point, Path("s"), epochs=10) for point in PLAN.points]
    assert one_line(state) == "elr=0.001  waiting"
    state.state, state.epoch, state.loss, state.regime, state.seconds = "done", 10, 0.25, "divergence", 75.0
    assert one_line(state) == "elr=0.001  done after 1 min 15 s, loss 0.25, divergence"
    assert counts([state]) == "1 done"
    assert seconds_left([state], 2) is None


# --- the command line ------------------------------------------------------------------------------------


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_sphere.cli.sweep.import_early", lambda *_: None)
    monkeypatch.setattr(LocalProcesses, "start", _nothing)


OVER = ("--over", "model.elr=1e-3,1e-2")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "nothing varies: give --over OPTION=VALUES, or --seeds N"),
        (("nope",), "sweep nope: no such file here, and no shipped sweep of this name; lit-sphere sweep --help lists "),
        (("--over", "model.elr"), "--over model.elr: expected OPTION=VALUES"),
        (("--over", "model.elr=1,fast"), "the point elr=fast: --model.elr: expected float, got fast"),
        (
            ("--over", "model.widht=1,2"),
            "the point widht=1: --model: SIConvNet has no option 'widht'; did you mean",
        ),
        ((*OVER, "--trainer.max_epoch", "3"), "there is no option --trainer.max_epoch; did you mean --trainer.max_ep"),
        ((*OVER, "--jobs", "0"), "--jobs must be at least 1, got 0"),
        ((*OVER, "--jobs", "0", "--dry-run"), "--jobs must be at least 1, got 0"),
        (("--over", "model.elr=1e-3,-1"), "the point elr=-1: elr (--model.elr) must be positive and finite"),
        (("--over", "data.train_size=999,0"), "the point train_size=0: train_size must be at least 1, got 0"),
        (("--over", "trainer.max_epochs=1,0"), "the point max_epochs=0: --trainer.max_epochs 0: there is nothing to"),
        ((*OVER, "--data", "CIFAR10", "--data.root", "no"), "no CIFAR-10 under 'no': give --data.root DIR"),
        ((*OVER, "--slurm.time", "9"), "--slurm.time is for jobs of Slurm: add --launcher slurm"),
        ((*OVER, "--seeds", "-1"), "--seeds must be at least 0"),
        ((*OVER, *OVER), "--over model.elr: stands twice"),
        ((*OVER, "--model.elr", "1"), "--model.elr is given to every run, and varied by the sweep"),
        (("--over", "model.elr=1e-3,1e-3"), "the same value twice"),
        ((*OVER, "--model.help", "SIConvNet"), "options of the runs are listed by lit-sphere fit --help"),
        ((*OVER, "--launcher", "pbs"), "--launcher: "),
        ((*OVER, "--launcher", "slurm", "--slurm.time", "0"), "--slurm.time must be at least 1"),
        ((*OVER, "--launcher", "slurm", "--sweep", "new"), "--launcher slurm: there is no sbatch here"),
    ],
)
def test_mistakes_are_told_in_one_line_before_any_run(
    args: tuple[str, ...], said: str, empty_folder: Path, lit_sphere: LitSphere, no_processes: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(empty_folder))
    result = lit_sphere("sweep", *args)
    (line,) = result.err.splitlines()
    assert said in line
    assert result.status == 2
    assert not list(Path().rglob("output.log"))


def test_a_sweep_in_a_file_says_where_its_mistake_is(
    empty_folder: Path, lit_sphere: LitSphere, no_processes: None
) -> None:
    Path("mine.yaml").write_text("fit: --config elr.yaml\nover: {model.elr: [1, 2]}\nzipp: {}\n")
    result = lit_sphere("sweep", "mine.yaml")
    assert result.status == 2
    keys = "title, fit, over, zip, seeds, only, experiments, then"
    assert result.err == f"lit-sphere: mine.yaml: zipp is no part of a plan; there are {keys}\n"


def test_help_and_dry_run(empty_folder: Path, lit_sphere: LitSphere, no_processes: None) -> None:
    shown = lit_sphere("sweep", "--help")
    assert shown.status == 0
    for word in ("--over", "--seeds", "--slurm.partition", "lit-sphere sweep elr", "then:"):
        assert word in shown.out
    dry = lit_sphere("sweep", *OVER, "--seeds", "1", "--dry-run", "--trainer.max_epochs", "3")
    assert dry.out.splitlines()[0] == (
        "lit-sphere fit --trainer.max_epochs 3 --model.elr=1e-3 --seed_everything=0 --data.seed=0 "
        "--run sweeps/elr-over-elr/elr=0.001,seed=0"
    )
    jobs = lit_sphere(
        "sweep", *OVER, "--launcher", "slurm", "--slurm.partition", "gpu", "--slurm.gpus", "2", "--dry-run"
    )
    for line in ("#SBATCH --partition=gpu", "#SBATCH --gpus-per-node=2", "#SBATCH --ntasks-per-node=2", "# 2 jobs"):
        assert line in jobs.out
    assert not list(Path().iterdir())


def test_a_dry_run_shows_the_commands_of_each_seed(
    empty_folder: Path, lit_sphere: LitSphere, no_processes: None
) -> None:
    dry = lit_sphere("sweep", "elr_optima", "--seeds", "2", "--dry-run")
    assert dry.status == 0, dry.err
    for seed, line in enumerate(dry.out.splitlines()[-2:]):
        low, high = (f"sweeps/elr_optima/elr={elr},seed={seed}/checkpoints/last.ckpt" for elr in ("0.001", "0.01"))
        assert line == f"lit-sphere interpolate {low} {high} --run sweeps/elr_optima/interpolate-seed={seed}"


def test_a_dry_run_shows_what_is_left(empty_folder: Path, lit_sphere: LitSphere, no_processes: None) -> None:
    play(Played({NAMES[1]: Outcome(1, 1.0, "no")}), folder="s")
    _forget_configs("s")
    dry = lit_sphere("sweep", "s", "--dry-run")
    assert dry.out.splitlines() == [
        "# 2 of 3 runs are done already",
        f"lit-sphere fit --wandb disabled --model.elr=1e-2 --run s/{NAMES[1]}",
    ]
    other = lit_sphere("sweep", "--over", "model.elr=1,2", "--sweep", "s", "--dry-run")
    assert other.status == 2
    assert "s holds another sweep" in other.err


def test_the_folder_that_is_taken_is_the_same_for_the_same_command(
    empty_folder: Path, lit_sphere: LitSphere, no_processes: None
) -> None:
    play(Played(), folder="begun")
    _forget_configs("begun")
    Path("mine.yaml").write_text("over: {model.elr: [1, 2]}\n")
    for args, folder in (
        (("begun", "--over", "model.elr=1e-3,1e-2,1e-1,1"), "begun"),
        (("begun/sweep.yaml",), "sweeps/begun-again"),
        (("mine.yaml",), "sweeps/mine"),
        (("elr",), "sweeps/elr"),
        (("--config", "cosine.yaml", "--seeds", "2"), "sweeps/cosine-over-seed"),
        (("--over", "data.train_size=256", "--over", "model.elr=1", "--sweep", "own"), "own"),
    ):
        shown = lit_sphere("sweep", *args, "--dry-run")
        assert f"--run {folder}/" in shown.out, shown


def test_options_of_a_class_go_with_the_class_that_varies(
    empty_folder: Path, lit_sphere: LitSphere, no_processes: None
) -> None:
    args = ("--over", "model=SIConvNet,SIResNet18", "--model.width", "4", "--over", "data.train_size=128,256")
    dry = lit_sphere("sweep", *args, "--dry-run")
    assert dry.status == 0, dry.err
    shown = lit_sphere(*dry.out.splitlines()[-1].split()[1:], "--print_config")
    parsed = yaml.safe_load(shown.out)
    assert parsed["model"]["class_path"].endswith("SIResNet18")
    assert (parsed["model"]["init_args"]["width"], parsed["data"]["init_args"]["train_size"]) == (4, 256)


def test_the_same_grid_as_a_sweep_of_wandb(empty_folder: Path, lit_sphere: LitSphere, no_processes: None) -> None:
    args = ("--over", "model.elr=1e-7,0.5", "--over", "data.augment=true,false")
    done = lit_sphere("sweep", *args, "--export", "wandb", "--sweep", "w", "--data.batch_size", "64")
    assert done.status == 0, done.err
    content = yaml.safe_load(Path("w/wandb-sweep.yaml").read_text())
    assert (content["method"], content["project"]) == ("grid", "lit-sphere")
    names = {name: each["values"] for name, each in content["parameters"].items()}
    assert names["model.elr"] == [1e-7, 0.5]
    last = create_sweep_command_args({"args": {name: {"value": values[-1]} for name, values in names.items()}})
    assert content["command"][0] == "${env}"
    command = [word for each in content["command"][1:] for word in (last["args"] if each == "${args}" else [each])]
    assert command[0] == content["program"] == "lit-sphere"
    shown = lit_sphere(*command[1:], "--print_config")
    assert shown.status == 0, shown.err
    parsed = yaml.safe_load(shown.out)
    data = parsed["data"]["init_args"]
    assert (data["augment"], data["batch_size"]) == (False, 64)
    assert parsed["model"]["init_args"]["elr"] == 0.5
    assert "seeds sets two options together" in lit_sphere("sweep", *OVER, "--seeds", "2", "--export", "wandb").err
    assert play(Played(), folder="w").is_done, "the grid can still be run here, in the same folder"


# --- real processes --------------------------------------------------------------------------------------

TINY = (
    *("--trainer.max_epochs", "4", "--data.train_size", "256", "--model.width", "2", "--wandb", "disabled"),
    *("--checkpoint.least_seconds", "0"),
)


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "PL_"))}
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def begin(*args: str) -> "subprocess.Popen[str]":
    command = with_default_signals([sys.executable, "-m", "lit_sphere", *args])
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def command(*args: str) -> tuple[int, str, str]:
    process = begin(*args)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def without_times(folder: str | Path) -> dict[str, dict[str, str]]:
    return {name: {**row, "seconds": ""} for name, row in table(folder).items()}


def until(happened: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


GRID = (*OVER, "--seeds", "2", "--jobs", "2", *TINY, "--trainer.max_epochs", "12", "--wandb", "offline")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing has stopped."""
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    status, out, err = command("sweep", *GRID, "--sweep", str(folder))
    assert status == 0, err
    assert f"{folder}: 4 done" in out
    return folder


@pytest.mark.slow
def test_each_point_is_the_fit_alone_bit_for_bit(whole: Path, empty_folder: Path) -> None:
    alone = ("--model.elr=1e-2", "--seed_everything=1", "--data.seed=1", "--run", "alone")
    status, _, err = command("fit", *TINY, "--trainer.max_epochs", "12", *alone)
    assert status == 0, err
    point = whole / "elr=0.01,seed=1"
    assert Path("alone/metrics.csv").read_bytes() == (point / "metrics.csv").read_bytes()
    (of_wandb,) = point.glob("wandb/offline-run-*")
    run = read_wandb(of_wandb)
    assert (run.group, run.job_type, run.name) == ("whole", "sweep", point.name)
    assert {"model.elr=1e-2", "seed=1", "sphere"} <= set(run.tags)
    assert (point / "curves.png").exists()
    assert {row["state"] for row in table(whole).values()} == {"done"}


@pytest.mark.slow
def test_a_sweep_killed_three_times_ends_as_one_that_was_not(whole: Path, empty_folder: Path) -> None:
    moments, killed = random.Random(0), Path("killed")

    def sizes() -> dict[Path, int]:
        return {path: path.stat().st_size for path in killed.glob("*/metrics.csv")}

    for _ in range(3):
        before = sizes()
        process = begin("sweep", *GRID, "--sweep", "killed")
        while sizes() == before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.7))
        assert process.poll() is None, "it was over before it was killed: train longer"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    status, _, err = command("sweep", *GRID, "--sweep", "killed")
    assert status == 0, err
    assert without_times("killed") == without_times(whole)
    for name in table(whole):
        assert Path("killed", name, "metrics.csv").read_bytes() == (whole / name / "metrics.csv").read_bytes(), name


@pytest.mark.slow
def test_an_interrupted_sweep_and_a_killed_run_go_on(empty_folder: Path) -> None:
    args = (*OVER, "--jobs", "2", *TINY, "--trainer.max_epochs", "60", "--sweep", "s")
    process = begin("sweep", *args)
    until(lambda: len(list(Path("s").glob("*/checkpoints/last.ckpt"))) == 2)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "lit-sphere: interrupted; the same command goes on with s"
    assert {row["state"] for row in table("s").values()} == {"interrupted"}
    assert {path.name for path in Path("s").glob("*/checkpoints/interrupted.ckpt")} == {"interrupted.ckpt"}

    process = begin("sweep", *args)
    log = Path("s/elr=0.001/metrics.csv")
    size = log.stat().st_size
    until(lambda: log.stat().st_size > size)
    holder = re.search(r"process (\d+)", Path("s/elr=0.001/.lock").read_text())
    assert holder is not None
    os.kill(int(holder[1]), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "s: 1 done, 1 failed" in out
    assert "was ended by SIGKILL (out of memory?)" in table("s")["elr=0.001"]["line"]

    status, out, err = command("sweep", *args)
    assert (status, table("s")["elr=0.001"]["state"], table("s")["elr=0.001"]["epoch"]) == (0, "done", "60"), err


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_process_group_interrupts_the_runs(signum: int, empty_folder: Path) -> None:
    """As of timeout(1), or of a terminal that is closed: it goes to the process that forks the runs, too."""
    args = (*OVER, "--jobs", "2", *TINY, "--trainer.max_epochs", "60", "--sweep", "s")
    process = begin("sweep", *args)
    until(lambda: len(list(Path("s").glob("*/checkpoints/last.ckpt"))) == 2)
    os.killpg(process.pid, signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    assert {row["state"] for row in table("s").values()} == {"interrupted"}, table("s")
    assert len(list(Path("s").glob("*/checkpoints/interrupted.ckpt"))) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Exception ignored in. .function Popen.__del__")  # of submitit's local jobs
def test_jobs_of_submitit_and_commands_afterwards(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    last = "checkpoints/last.ckpt"
    plan = Plan(
        TINY, {"model.elr": ("1e-3", "1e-2")}, then=(f"interpolate {{0}}/{last} {{1}}/{last} --run {{sweep}}/b",)
    )
    result = run_sweep(plan, Path("s"), slurm=SlurmOptions(cpus=1, time=5), cluster="local")
    assert result.is_done
    assert result.afterwards
    assert all(state.job for state in result.states)
    assert Path("s/b/interpolation.csv").exists()
    assert "segment" in Path("s/then-1.log").read_text()
    assert "SIConvNet on Digits" in Path("s/elr=0.001/output.log").read_text()
    assert os.environ["OMP_NUM_THREADS"] == "1"
    release_folders()
    Path("s/b").rename("done")
    assert run_sweep(plan, Path("s"), slurm=SlurmOptions(cpus=1, time=5), cluster="local").afterwards
    assert not Path("s/b").exists(), "a command that has succeeded was run again"
    release_folders()


def test_only_some_points_of_a_grid(empty_folder: Path) -> None:
    plan = Plan(PLAN.fit, PLAN.over, only=(NAMES[2], NAMES[0]))
    assert [point.name for point in plan.points] == [NAMES[0], NAMES[2]]
    assert play(Played(), plan).is_done
    begun = read_folder_plan(Path("s"))
    assert begun is not None
    assert begun.plan.points == plan.points
    with pytest.raises(SweepError, match="elr=5 is no point of the grid"):
        _ = Plan(PLAN.fit, PLAN.over, only=("elr=5",)).points
    with pytest.raises(SweepError, match="only some points"):
        wandb_sweep(plan, "s", "p")


def test_points_that_are_chosen_as_the_sweep_goes(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def choose(states: Sequence[PointState]) -> Plan | None:
        done = [state.point.name for state in states if state.state == "done"]
        return Plan(PLAN.fit, PLAN.over, only=(NAMES[1], NAMES[len(done) + 1])) if len(done) == 1 else None

    launcher, plan = Played(), Plan(PLAN.fit, PLAN.over, only=(NAMES[1],))
    try:
        result = Sweep(plan, Path("s"), Fit(_nothing, {}, [2]), 1).run(launcher, Lines(grows=True), choose)
    finally:
        release_folders()
    assert result.is_done
    assert [task.folder.name for task in launcher.started] == NAMES[1:]
    assert [state.point.name for state in result.states] == NAMES[1:]
    assert list(table("s")) == NAMES[1:]
    assert capsys.readouterr().err.startswith(f"1  {NAMES[1]}")
