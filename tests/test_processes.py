"""Runs of several processes: the death of one is told in one line, and nothing waits in silence."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import LitSphere, with_default_signals
from test_bad_input import refused

_TINY = ("--model.width", "4", "--data.train_size", "64", "--data.batch_size", "32", "--wandb", "disabled")


def start(*args: str, **variables: str) -> "subprocess.Popen[str]":
    command = with_default_signals([sys.executable, "-m", "lit_sphere", "fit", *_TINY, *args])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)


def until_saved(process: "subprocess.Popen[str]", folder: str) -> None:
    until = time.monotonic() + 150
    while not Path(folder, "checkpoints", "last.ckpt").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "no checkpoint"
        time.sleep(0.05)


def children(process: "subprocess.Popen[str]") -> list[int]:
    """Ranks that this one has started, in their order."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    ranks = {}
    for pid in map(int, text.split()):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks.update({each: pid for each in variables if each.startswith(b"LOCAL_RANK=")})
    return [ranks[each] for each in sorted(ranks)]


def is_alive(pid: int) -> bool:
    """Whether it runs: who inherits the orphans here may leave them as zombies."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def one_line(err: str) -> str:
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("lit-sphere: ")
    assert len(lines[0]) < 500
    return lines[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("devices", "victim"),
    [
        (2, 1),
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(3, 2, marks=pytest.mark.slow),
        pytest.param(3, 0, marks=pytest.mark.slow),
    ],
)
def test_a_killed_rank_is_told_in_one_line_with_the_checkpoint(devices: int, victim: int, empty_folder: Path) -> None:
    options = ("--trainer.devices", str(devices), "--data.batch_size", "48", "--trainer.enable_progress_bar", "false")
    process = start("--run", "r", "--trainer.max_epochs", "1000000", *options, "--data.train_size", "96")
    until_saved(process, "r")
    pids = [process.pid, *children(process)]
    assert len(pids) == devices
    os.kill(pids[victim], signal.SIGKILL)
    err = process.communicate(timeout=60)[1]  # until the last process that could write is gone
    assert process.returncode == (1 if victim else -signal.SIGKILL)
    until = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(is_alive, pids))
    line = one_line(err)
    assert f"rank {victim} of {devices}" in line
    assert "--ckpt_path r/checkpoints/last.ckpt" in line
    saved = torch.load("r/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in saved.values())


@pytest.mark.slow
def test_an_error_of_all_ranks_is_told_once(empty_folder: Path) -> None:
    network = ("--model", "SphereModule", "--model.network", "cli_networks.ReLUNet", "--model.elr", "1e-3")
    args = [sys.executable, "-m", "lit_sphere", "fit", *_TINY[2:], "--run", "r", "--trainer.devices", "2", *network]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(args, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert done.returncode == 1
    assert "no scale-invariant group found" in one_line(done.stderr)


@pytest.mark.slow
def test_a_node_says_where_it_waits_for_the_other(empty_folder: Path) -> None:
    args = ("--run", "r", "--trainer.max_epochs", "1", "--trainer.num_nodes", "2")
    first = start(*args)
    assert first.stderr is not None
    line = first.stderr.readline()
    said = re.search(r"waits for 1 more node at 127.0.0.1:(\d+); .* with NODE_RANK=1 MASTER_ADDR=127.0.0.1", line)
    assert said, line
    second = start(*args, NODE_RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=said[1])
    assert "waits for node 0" in second.communicate(timeout=100)[1]
    err = first.communicate(timeout=100)[1]
    assert (first.returncode, second.returncode) == (0, 0), err
    assert Path("r/checkpoints/last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [True, False])
def test_waiting_ends(interrupted: bool, empty_folder: Path) -> None:
    timeout = ("--trainer.strategy", "DDPStrategy", "--trainer.strategy.timeout", "0:00:03")
    process = start("--run", "r", "--trainer.num_nodes", "2", *(() if interrupted else timeout))
    assert process.stderr is not None
    assert "waits for 1 more node" in process.stderr.readline()
    if interrupted:
        process.send_signal(signal.SIGINT)
    line = one_line(process.communicate(timeout=60)[1])
    assert process.returncode == (130 if interrupted else 1)
    assert ("interrupted while waiting" if interrupted else "gave up: waits for 1 more node") in line


@pytest.mark.parametrize(
    ("variables", "options", "words"),
    [
        ({"LOCAL_RANK": "1"}, "", ["LOCAL_RANK=1", "unset LOCAL_RANK", "--trainer.devices"]),
        ({"LOCAL_RANK": "0"}, "--trainer.devices 2", ["LOCAL_RANK=0", "unset LOCAL_RANK"]),
        ({"LOCAL_RANK": "1", "MASTER_PORT": "29500"}, "--trainer.devices 1", ["LOCAL_RANK=1", "unset LOCAL_RANK"]),
        ({"LOCAL_RANK": "1", "MASTER_PORT": "29500"}, "", ["LOCAL_RANK=1", "unset LOCAL_RANK"]),
        ({"RANK": "1"}, "", ["RANK=1", "unset RANK"]),
        ({"NODE_RANK": "1"}, "", ["NODE_RANK=1", "unset NODE_RANK"]),
        ({"NODE_RANK": "1"}, "--trainer.num_nodes 2", ["NODE_RANK=1", "unset NODE_RANK"]),
        ({"LOCAL_RANK": "x"}, "", ["LOCAL_RANK=x", "no number", "unset LOCAL_RANK"]),
        ({"NODE_RANK": "two"}, "", ["NODE_RANK=two", "no number", "unset NODE_RANK"]),
        ({"SLURM_NTASKS": "2"}, "", ["SLURM_NTASKS=2", "srun", "--ntasks-per-node", "--ntasks=1"]),
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}, "", ["SLURM_NTASKS=2", "put srun before"]),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, "", ["SLURM_NTASKS=2", "--ntasks-per-node=2"]),
        ({"SLURM_NTASKS": "two"}, "", ["SLURM_NTASKS=two", "no number"]),
        ({}, "--trainer.devices 99", ["--trainer.devices 99", "cores", "give at most"]),
    ],
)
def test_refused_before_anything_waits(
    variables: dict[str, str],
    options: str,
    words: list[str],
    empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    lit_sphere: LitSphere,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(lit_sphere("fit", *_TINY, "--run", "r", *options.split()), *words, status=2)


@pytest.mark.parametrize(
    "variables",
    [
        {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "29500"},
        {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"},
    ],
)
def test_one_process_with_true_variables_trains(
    variables: dict[str, str], empty_folder: Path, monkeypatch: pytest.MonkeyPatch, lit_sphere: LitSphere
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = lit_sphere("fit", *_TINY, "--run", "r", "--trainer.max_epochs", "1")
    assert result.status == 0, result.err
    assert "1 epochs, 2 steps" in result.out
