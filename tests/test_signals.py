"""Ctrl-C, SIGTERM and SIGKILL: what was computed can be gone on with, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import LitSphere, with_default_signals

_ARGUMENTS = (
    "--data.train_size",
    "1024",
    "--data.batch_size",
    "32",
    "--wandb",
    "disabled",
    "--model.width",
    "4",
)


def _start(folder: str, *more: str) -> "subprocess.Popen[str]":
    """Start a run that cannot end before it is stopped."""
    command = [sys.executable, "-m", "lit_sphere", "fit", *_ARGUMENTS, "--trainer.max_epochs", "100000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = with_default_signals([*command, "--run", folder, *more])
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    last, until = Path(folder) / "checkpoints" / "last.ckpt", time.monotonic() + 150
    while not last.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "no checkpoint"
        time.sleep(0.02)
    return process


@pytest.mark.usefixtures("interrupts_ignored")
def test_children_take_signals_though_their_parent_ignores_them() -> None:
    code = "import signal; signal.raise_signal(signal.SIGINT); print('ignored')"
    command = [sys.executable, "-c", code]
    bare = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (bare.returncode, bare.stdout) == (0, "ignored\n"), "a child inherits what its parent ignores"
    done = subprocess.run(with_default_signals(command), capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")
    assert "KeyboardInterrupt" in done.stderr


def _weights(path: str) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return weights


def _goes_on_like_one_run(path: str, lit_sphere: LitSphere) -> None:
    saved = torch.load(path, weights_only=True)
    epochs = str(saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] + 2)
    end = ("--trainer.max_epochs", epochs)
    resumed = lit_sphere("fit", "--ckpt_path", path, *end, "--run", "resumed")
    assert resumed.status == 0, resumed.err
    whole = lit_sphere("fit", *_ARGUMENTS, *end, "--run", "whole")
    assert whole.status == 0, whole.err
    a, b = _weights("resumed/checkpoints/last.ckpt"), _weights("whole/checkpoints/last.ckpt")
    before = saved["state_dict"]
    assert any(not torch.equal(before[name], a[name]) for name in a), "nothing was trained after the resume"
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.usefixtures("interrupts_ignored")
@pytest.mark.parametrize(
    ("signum", "status", "wandb"),
    [(signal.SIGINT, 130, "offline"), pytest.param(signal.SIGTERM, 143, "disabled", marks=pytest.mark.slow)],
)
def test_a_signal_leaves_a_checkpoint(
    signum: signal.Signals, status: int, wandb: str, empty_folder: Path, lit_sphere: LitSphere
) -> None:
    process = _start("a", "--wandb", wandb)
    time.sleep(0.3)  # into an epoch
    process.send_signal(signum)
    err = process.communicate(timeout=90)[1]
    assert process.returncode == status, err
    ours = [line for line in err.splitlines() if line.startswith("lit-sphere:")]
    assert len(ours) == 1, err
    assert "a/checkpoints/interrupted.ckpt" in ours[0]
    assert "Traceback" not in err
    _goes_on_like_one_run("a/checkpoints/interrupted.ckpt", lit_sphere)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_epoch(empty_folder: Path, lit_sphere: LitSphere) -> None:
    process = _start("a")
    process.kill()
    process.communicate(timeout=90)
    assert process.returncode == -signal.SIGKILL
    _goes_on_like_one_run("a/checkpoints/last.ckpt", lit_sphere)
