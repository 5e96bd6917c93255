"""Streams that are closed, full, gone, or lack characters: nothing is lost, no error, files in UTF-8."""

import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, LitSphere

from lit_sphere.cli.streams import _Steady, plain, steady_streams

COMMAND = [sys.executable, "-m", "lit_sphere"]
TOY = ["toy", "--steps", "100", "--grid", "4", "--seeds", "2", "--run", "toy"]
FIT = ["fit", "--data.train_size", "256", "--model.width", "4", "--wandb", "disabled", "--run", "r"]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LEFT = {"config.yaml", "metrics.csv", "curves.png", "checkpoints"}


def environment(**more: str) -> dict[str, str]:
    """Of a user: no variables of ours, buffered streams, which keep what they could not write until the end."""
    ours = ("PYTHON", "LC_", "LANG", "WANDB")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **more}


def run(args: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    variables = options.pop("variables", {})
    return subprocess.run([*COMMAND, *args], env=environment(**variables), timeout=120, check=False, **options)


# --- characters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("ρ θ λ Λ Σα", "rho theta lambda Lambda sum alpha"),
        ("g̃ η̃ Δ", "g~ eta~ Delta"),
        ("3 × 10⁻³ ± ½", "3 x 10^-3 +- 1/2"),
        ("‖∇‖ ≤ √2 — x² … → “y”", '||grad|| <= sqrt2 - x^2 ... -> "y"'),
        ("λ₁ é ω\N{COMBINING ACUTE ACCENT}", "lambda1 e omega"),
        ("💡 plain", "? plain"),
    ],
)
def test_plain_text_says_the_same(text: str, written: str) -> None:
    assert plain(text) == written


def test_whatever_the_help_says_can_be_said_plainly(lit_sphere: LitSphere) -> None:
    for command in ("fit", "interpolate", "toy"):
        told = lit_sphere(command, "--help").out
        assert plain(told).isascii()
        assert plain(told).count("?") == told.count("?")


@pytest.mark.parametrize(
    ("encoding", "written"), [("latin-1", "rho = \xe9\xb2".encode("latin-1")), ("ascii", b"rho = e^2")]
)
def test_only_missing_characters_are_replaced(encoding: str, written: bytes) -> None:
    assert "ρ = é²".encode(encoding, "lit_sphere.plain") == written


def test_names_that_are_no_text_keep_their_bytes() -> None:
    assert "θ\udcffρ".encode("ascii", "lit_sphere.plain") == b"theta\xffrho"


# --- streams ---------------------------------------------------------------------------------------------


def test_a_descriptor_takes_everything() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for fd in (writer, full):
        assert _Steady(fd, "w", closefd=False).write(b"abc") == 3
        os.close(fd)


def test_a_busy_reader_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    got: list[bytes] = []

    def read_late() -> None:
        time.sleep(0.2)
        while sum(map(len, got)) < 300_000:
            got.append(os.read(reader, 65536))

    thread = threading.Thread(target=read_late)
    thread.start()
    assert _Steady(writer, "w", closefd=False).write(b"a" * 300_000) == 300_000
    thread.join(10)
    assert b"".join(got) == b"a" * 300_000
    os.close(reader)
    os.close(writer)


def test_a_process_without_streams_gets_some_and_loses_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with steady_streams():
        print("nowhere", file=sys.stderr, flush=True)
        assert sys.stdout.writable()
    assert sys.stdout is None
    assert sys.stderr is None


def test_the_streams_of_others_stay(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with steady_streams():
        assert (sys.stdout, sys.stderr) == before
        print("ρ")
    assert capsys.readouterr().out == "ρ\n"


@pytest.mark.parametrize("buffered", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("args", [["--help"], ["--version"], ["nonsense"]], ids=lambda args: args[0])
def test_a_closed_pipe_is_no_error(args: list[str], buffered: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run(args, stdout=writer, stderr=subprocess.PIPE, variables=buffered)
    os.close(writer)
    assert done.returncode == (2 if args == ["nonsense"] else 0)
    assert b"Error" not in done.stderr


def test_toy_leaves_all_it_knows_with_nobody_listening_and_a_broken_matplotlib(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run(
            TOY,
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            variables={**ASCII, "MPLBACKEND": "nonsense"},
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {"toy.csv", "toy_elrs.csv", "toy.png"}


@pytest.mark.slow
@pytest.mark.parametrize("variables", [ASCII, {"PYTHONIOENCODING": "latin-1"}], ids=["ascii", "latin-1"])
def test_help_in_plain_characters(variables: dict[str, str]) -> None:
    done = run(["toy", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, variables=variables)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"alpha of the terms" in done.stdout


# --- trainings -------------------------------------------------------------------------------------------


def epochs_in(folder: Path) -> int:
    lines = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    place = lines[0].split(",").index("epoch")
    return 1 + max(int(float(line.split(",")[place])) for line in lines[1:])


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full 2>&1", "2>&1 | head -1"])
@pytest.mark.slow
def test_a_training_without_streams_is_whole(redirection: str, tmp_path: Path) -> None:
    command = " ".join([*COMMAND, *FIT, "--trainer.max_epochs", "20", redirection])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, env=environment(), timeout=120, check=False
    )
    assert done.returncode == 0
    assert {path.name for path in (tmp_path / "r").iterdir()} == LEFT
    assert epochs_in(tmp_path / "r") == 20


@pytest.mark.slow
def test_a_training_goes_on_when_its_terminal_is_gone(tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    args = [*COMMAND, *FIT, "--trainer.max_epochs", "200"]
    process = subprocess.Popen(args, cwd=tmp_path, env=environment(), stdin=end, stdout=end, stderr=end)
    os.close(end)
    seen = b""
    while b"epoch" not in seen:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    assert process.wait(timeout=120) == 0
    assert epochs_in(tmp_path / "r") == 200


@pytest.mark.slow
def test_a_run_is_resumed_in_ascii(tmp_path: Path) -> None:
    """The config names a folder that the locale cannot, and W&B's project."""
    (tmp_path / "ρ").mkdir()
    names = ["--trainer.default_root_dir", "ρ", "--project", "θ"]
    for epochs, variables in ((1, {}), (2, ASCII), (3, {"PYTHONIOENCODING": "latin-1"})):
        more = ["--ckpt_path", "r/checkpoints/last.ckpt"] if epochs > 1 else names
        args = [*FIT, *more, "--trainer.max_epochs", str(epochs)]
        done = run(args, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, variables=variables)
        assert done.returncode == 0, done.stderr
        assert (b" rho " in done.stdout) == (epochs > 1)
    assert epochs_in(tmp_path / "r") == 3
    written = (tmp_path / "r" / "config.yaml").read_text(encoding="utf-8")
    assert "project: θ" in written
    assert "default_root_dir: ρ" in written
