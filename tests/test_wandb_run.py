"""W&B is asked before training, answers in one line, and its failures never end a training."""

import csv
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server

import pytest
import wandb
from conftest import LitSphere
from test_streams import environment
from wandb_file import wandb_rows

FIT = ("fit", "--trainer.max_epochs", "3", "--data.train_size", "256", "--model.width", "4", "--run", "r")
KEY = "a" * 40

Server = Callable[[int, str], str]


@pytest.fixture(autouse=True)
def fresh_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings of this test's environment, no key of the user's, no process left behind."""
    wandb.teardown()
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    yield
    wandb.teardown()


@pytest.fixture
def server() -> Iterator[Server]:
    """Start a W&B that knows the user, if it says 200, and answers whatever else it is asked with an error."""
    running: list[ThreadingHTTPServer] = []

    def start(status: int, message: str) -> str:
        class Answers(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = self.rfile.read(int(self.headers.get("content-length") or 0))
                known = status == 200 and b'"operationName":"Viewer"' in asked
                viewer = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}"}
                answer = {"data": {"viewer": {**viewer, "teams": {"edges": []}}}}
                body = json.dumps(answer if known else {"errors": [{"message": message}]}).encode()
                self.send_response(200 if known else max(status, 401))
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Answers))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}"

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


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
    assert sum("train/loss" in row for row in wandb_rows(file)) == 3


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
