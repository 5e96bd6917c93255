"""W&B is asked before training, answers in one line, and its failures never end a training."""

import csv
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from socket import create_server
from typing import Any

import pytest
import wandb
from conftest import LitSphere
from test_streams import environment
from wandb_server import VIEWER, fresh_wandb, wandb_server

from lit_sphere.cli import wandb_run
from lit_sphere.report.wandb_files import read_wandb

FIT = ("fit", "--trainer.max_epochs", "3", "--data.train_size", "256", "--model.width", "4", "--run", "r")
KEY = "a" * 40

Server = Callable[[int, str], str]

pytestmark = pytest.mark.usefixtures(fresh_wandb.__name__)


@pytest.fixture
def server() -> Iterator[Server]:
    """Start a W&B that knows the user, if it says 200, and answers whatever else it is asked with an error."""
    with ExitStack() as running:

        def start(status: int, message: str) -> str:
            def answer(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
                known = status == 200 and asked.get("operationName") == "Viewer"
                return (
                    (200, {"data": {"viewer": VIEWER}})
                    if known
                    else (max(status, 401), {"errors": [{"message": message}]})
                )

            return running.enter_context(wandb_server(answer))

        yield start


def epochs() -> int:
    with open("r/metrics.csv", newline="", encoding="utf-8") as file:
        return 1 + max(int(float(row["epoch"])) for row in csv.DictReader(file))


def one_line(result: tuple[int, str, str], *words: str) -> None:
    status, _, err = result
    assert status == 2, err
    assert err.startswith("lit-sphere: ")
    assert len(err.splitlines()) == 1, err
    assert len(err) < 500
    assert all(word in err for word in words), err
    assert not Path("r").exists()


# --- before training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["--wandb online", "WANDB_MODE=online"])
def test_online_needs_a_key(
    asked: str, empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    if asked.startswith("--"):
        result = lit_sphere(*FIT, *asked.split())
    else:
        monkeypatch.setenv("WANDB_MODE", "online")
        result = lit_sphere(*FIT)
    one_line(result, asked, "there is no API key", "wandb login", "WANDB_API_KEY", "--wandb offline")


@pytest.mark.parametrize(
    ("project", "words"),
    [
        ("", "--project: is followed by an empty text"),
        ("  ", "--project is empty"),
        ("a" * 129, "129 characters"),
        *((f"a{char}b", f"--project a{char}b holds {char}") for char in "/\\#?%:"),
    ],
)
def test_names_that_wandb_refuses(project: str, words: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    one_line(lit_sphere(*FIT, "--project", project), words)


def test_a_longest_name_is_taken(empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere(*FIT, "--project", "ρ" * 128, "--wandb", "offline", "--trainer.max_epochs", "1")
    assert result.status == 0, result.err


def test_an_entity_that_wandb_refuses(
    empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_ENTITY", "a/b")
    one_line(lit_sphere(*FIT), "WANDB_ENTITY a/b holds /")


def test_a_refused_key(
    server: Server, empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server(401, "user is not logged in"))
    for key, why in ((KEY, "user is not logged in"), ("abc", "40+ characters")):
        monkeypatch.setenv("WANDB_API_KEY", key)
        one_line(lit_sphere(*FIT, "--wandb", "online"), "--wandb online", why, "WANDB_API_KEY", "--wandb offline")


def test_a_refused_run(
    server: Server, empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server(200, "permission denied"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    result = lit_sphere(*FIT, "--wandb", "online")
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith("lit-sphere: W&B refuses the run: ")
    assert "permission denied" in result.err
    assert not Path("r/metrics.csv").exists()


def test_nobody_answers(empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")  # 10 s otherwise
    with pytest.warns(UserWarning, match="goes on offline; later, `wandb sync r/wandb/offline-run") as warned:
        result = lit_sphere(*FIT, "--wandb", "online")
    assert result.status == 0, result.err
    assert len([each for each in warned if "W&B" in str(each.message)]) == 1
    assert epochs() == 3
    wandb.teardown()  # its process writes the rest of the file after the run's end
    (file,) = Path("r/wandb").glob("offline-run-*/*.wandb")
    assert len(read_wandb(file).series["train/loss"].values) == 3


# --- in mid-run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_what_fails_costs_a_warning(
    where: str, empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def fails(*args: object, **options: object) -> object:
        if options.get("mode") == "disabled":
            return init(mode="disabled")
        calls.append(args)
        if where == "log" and len(calls) == 1:
            return None
        raise ConnectionResetError("Connection lost")

    init = wandb.init
    broken = {"init": (wandb, "init"), "log": (wandb.Run, "log"), "finish": (wandb, "finish")}
    monkeypatch.setattr(*broken[where], fails)
    with pytest.warns(UserWarning, match="W&B failed: ConnectionResetError: Connection lost") as warned:
        result = lit_sphere(*FIT, "--wandb", "offline")
    assert result.status == 0, result.err
    assert len([each for each in warned if "W&B" in str(each.message)]) == 1
    assert calls
    assert epochs() == 3
    assert wandb.run is None, "the next fit of this process would take it for its own"


@pytest.mark.slow
def test_a_training_outlives_wandbs_own_process(tmp_path: Path) -> None:
    args = [*FIT, "--trainer.max_epochs", "300", "--wandb", "offline"]
    command = [sys.executable, "-m", "lit_sphere", *args]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
    found, begin = "", time.monotonic()
    while not (found and (tmp_path / "r" / "metrics.csv").exists()):
        assert time.monotonic() - begin < 60
        time.sleep(0.1)
        listed = subprocess.run(["pgrep", "-P", str(process.pid), "-x", "wandb-core"], capture_output=True, check=False)
        found = listed.stdout.decode().strip()
    subprocess.run(["kill", "-9", found], check=True)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    said = [line for line in err.decode().splitlines() if not line.startswith("epoch ")]
    assert said == [
        "lit-sphere: warning: W&B failed: ConnectionResetError: Connection lost; the run goes on without it, see "
        "metrics.csv"
    ]


def test_a_run_of_a_sweep_does_not_wait_for_wandbs_own_process_which_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, run = threading.Event(), threading.Event()

    def begins(settings: wandb.Settings) -> None:
        begun.set()
        assert run.wait(60), "the run waits"
        raise OSError("no process")

    def fails(argv: list[str]) -> None:
        assert begun.wait(60)
        run.set()
        sys.exit(len(argv))

    monkeypatch.setattr(wandb, "setup", begins)
    monkeypatch.setattr(wandb_run, "main", fails)
    before = threading.active_count()
    with pytest.raises(SystemExit, match="2"):
        wandb_run.main_beside_service(["fit", "--help"])
    assert threading.active_count() == before, "it would be left behind"
