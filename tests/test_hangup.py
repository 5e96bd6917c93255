"""SIGHUP, of a closed terminal: a run ends with a checkpoint, unless nohup had it ignored."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_fits import quietly
from conftest import with_default_signals
from lightning.pytorch import Callback, Trainer

from lit_sphere.callbacks import GracefulStop, Interrupted
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet

pytestmark = quietly


class HangUp(Callback):
    """Closes the terminal in the second batch."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 1:
            signal.raise_signal(signal.SIGHUP)


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def fit(folder: Path) -> Trainer:
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=True, callbacks=[HangUp(), GracefulStop(folder)], num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(SIConvNet(width=4, in_channels=1, elr=1e-2), Digits(train_size=256, batch_size=64))
    return trainer


@pytest.mark.usefixtures("handler")
def test_it_leaves_a_checkpoint(tmp_path: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(Interrupted) as stopped:
        fit(tmp_path)
    assert stopped.value.signum == signal.SIGHUP
    assert torch.load(tmp_path / "interrupted.ckpt", weights_only=True)["global_step"] == 2
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL, "given back"


@pytest.mark.usefixtures("handler")
def test_it_stays_ignored(tmp_path: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert fit(tmp_path).global_step == 4
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.slow
def test_a_terminal_that_goes_away_ends_the_run_with_a_checkpoint(empty_folder: Path) -> None:
    terminal, inside = pty.openpty()
    args = ("--model.width", "4", "--data.train_size", "1024", "--trainer.max_epochs", "100000", "--run", "r")
    command = [sys.executable, "-m", "lit_sphere", "fit", *args, "--wandb", "disabled"]
    process = subprocess.Popen(
        with_default_signals(command),
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: _login(inside),
    )
    os.close(inside)
    until = time.monotonic() + 150
    os.set_blocking(terminal, False)
    while not Path("r/checkpoints/last.ckpt").exists():
        assert process.poll() is None
        assert time.monotonic() < until, "no checkpoint"
        _read(terminal)
        time.sleep(0.05)
    os.close(terminal)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert Path("r/checkpoints/interrupted.ckpt").exists()


def _login(terminal: int) -> None:
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def _read(terminal: int) -> None:
    """Keep its buffer from filling up."""
    try:
        os.read(terminal, 65536)
    except BlockingIOError:
        return
