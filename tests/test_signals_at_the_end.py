"""Signals when no step is left to make: nothing is stopped, and the run ends as usual; a second one ends it at once."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from callback_fits import Memory, assert_equal, quietly
from conftest import with_default_signals
from lightning.pytorch import Callback, Trainer

from lit_sphere.callbacks import (
    CheckpointSimilarity,
    CosineRegimeAnalysis,
    EffectiveLearningRateMonitor,
    FineTuneSwitch,
    GracefulStop,
    Interrupted,
    RegimeMonitor,
    Switch,
)
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet

pytestmark = quietly
BATCHES = 3
_SAID = "lit-sphere: the signal came when training was over: nothing is left to stop, and the run ends as usual"
Act = Callable[[Trainer], None]


class At(Callback):
    """Does something in a hook of an epoch."""

    def __init__(self, hook: str, epoch: int, act: Act) -> None:
        self.ended = False

        def called(trainer: Trainer, *args: Any) -> None:
            if trainer.current_epoch == epoch:
                act(trainer)

        setattr(self, hook, called)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.ended = True


def interrupt(trainer: Trainer) -> None:
    signal.raise_signal(signal.SIGINT)


def end(trainer: Trainer) -> None:
    trainer.should_stop = True


def interrupt_at_the_last_batch(trainer: Trainer) -> None:
    if trainer.is_last_batch:
        interrupt(trainer)


def interrupt_after_five_steps(trainer: Trainer) -> None:
    if trainer.global_step == 5:
        interrupt(trainer)


def end_and_interrupt(trainer: Trainer) -> None:
    assert not trainer.is_last_batch
    end(trainer)
    interrupt(trainer)


def module() -> SIConvNet:
    torch.manual_seed(0)
    return SIConvNet(width=4, in_channels=1, elr=2e-2)


def trainer_of(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        **{
            "max_epochs": 3,
            "accelerator": "cpu",
            "callbacks": [*callbacks, GracefulStop(folder)],
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
            "default_root_dir": folder,
            **options,
        }
    )


def data() -> Digits:
    return Digits(train_size=32 * BATCHES, batch_size=32, val_size=60)


_LAST: dict[str, tuple[list[tuple[str, int, Act]], dict[str, Any]]] = {
    "validation": ([("on_validation_end", 2, interrupt)], {}),
    "last batch": ([("on_train_batch_end", 2, interrupt_at_the_last_batch)], {}),
    "max_steps": ([("on_validation_end", 2, interrupt)], {"max_epochs": -1, "max_steps": 3 * BATCHES}),
    "max_steps within an epoch": (
        [("on_train_batch_end", 1, interrupt_after_five_steps)],
        {"max_steps": 5},
    ),
    "should_stop": (
        [("on_validation_start", 1, end), ("on_validation_end", 1, interrupt)],
        {"max_epochs": 9, "min_epochs": 2},
    ),
    "should_stop within an epoch": (
        [
            ("on_train_batch_end", 1, end_and_interrupt),
        ],
        {},
    ),
    "end of fit": ([("on_train_end", 3, interrupt)], {}),
}


@pytest.mark.parametrize("name", _LAST)
def test_nothing_is_stopped_where_nothing_is_left(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    acts, options = _LAST[name]
    whole_log, log = Memory(), Memory()
    whole, late = module(), module()
    quiet = [At(hook, epoch, end) for hook, epoch, act in acts if act in (end, end_and_interrupt)]
    trainer_of(tmp_path, *quiet, logger=whole_log, **options).fit(whole, data())
    capfd.readouterr()
    watch = [At(*act) for act in acts]
    trainer_of(tmp_path, *watch, logger=log, **options).fit(late, data())
    assert watch[0].ended
    assert capfd.readouterr().err.count(_SAID) == 1
    assert_equal(whole.state_dict(), late.state_dict())
    assert log.logged == whole_log.logged
    assert not (tmp_path / "interrupted.ckpt").exists()


def test_a_wish_to_end_that_is_not_granted_yet_leaves_a_checkpoint(tmp_path: Path) -> None:
    acts = At("on_validation_start", 0, end), At("on_validation_end", 0, interrupt)
    with pytest.raises(Interrupted, match="interrupted in epoch 0 after 3 steps"):
        trainer_of(tmp_path, *acts, min_epochs=2).fit(module(), data())
    assert (tmp_path / "interrupted.ckpt").is_file()


def test_a_pass_is_finished_where_another_callback_may_end_the_run_after_it(tmp_path: Path) -> None:
    """Given up for a resumed run, it would be lost: there is none."""
    log, similarity = Memory(), CheckpointSimilarity(every_n_epochs=1)
    switch = FineTuneSwitch([Switch(epoch=1, elr=1e-3)], stop_after_last=1)
    signalled = At("on_validation_end", 1, interrupt)  # after the second epoch of nine
    trainer_of(tmp_path, signalled, similarity, switch, logger=log, max_epochs=9).fit(module(), data())
    assert [pair.epochs for pair in similarity.pairs] == [(1, 2)]
    assert (2 * BATCHES - 1, "ensemble/error") in log.logged


@pytest.mark.parametrize("kind", [RegimeMonitor, CosineRegimeAnalysis, EffectiveLearningRateMonitor])
def test_between_two_epochs_all_is_logged_once_and_the_next_begins_anew(kind: type[Callback], tmp_path: Path) -> None:
    """Monitors hear of the next epoch's start before the run stops there, and in the resumed run again."""
    whole_log, log = Memory(), Memory()
    whole, resumed = module(), module()
    trainer_of(tmp_path, kind(), logger=whole_log).fit(whole, data())
    with pytest.raises(Interrupted, match="interrupted in epoch 1 after 6 steps"):
        trainer_of(tmp_path, At("on_validation_end", 1, interrupt), kind(), logger=log).fit(module(), data())
    until = 2 * BATCHES
    assert log.logged == {key: value for key, value in whole_log.logged.items() if key[0] < until}
    trainer_of(tmp_path, kind(), logger=log).fit(resumed, data(), ckpt_path=tmp_path / "interrupted.ckpt")
    assert_equal(whole.state_dict(), resumed.state_dict())
    assert log.logged == whole_log.logged


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_twice_at_once_is_one(signum: signal.Signals, tmp_path: Path) -> None:
    """As ``timeout`` sends it."""

    def twice(trainer: Trainer) -> None:
        signal.raise_signal(signum)
        signal.raise_signal(signum)

    with pytest.raises(Interrupted, match="after 3 steps") as stopped:
        trainer_of(tmp_path, At("on_validation_end", 0, twice)).fit(module(), data())
    assert stopped.value.signum == signum
    assert (tmp_path / "interrupted.ckpt").is_file()


class NotesHow(GracefulStop):
    """Leaves in a file how each rank's fit ended: Lightning tells no rank of its exception."""

    def _note(self, trainer: Trainer, how: str) -> None:
        (Path(trainer.default_root_dir) / f"{trainer.global_rank}.txt").write_text(how)
        dist.barrier()  # the first to fail takes the other with it

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        try:
            super().on_train_epoch_start(trainer, pl_module)
        except Interrupted as stopped:
            self._note(trainer, str(stopped))
            raise

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        self._note(trainer, "ended")


@pytest.mark.timeout(120)
@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize(("epoch", "said"), [(0, "interrupted in epoch 0 after 3 steps"), (1, "ended")])
def test_two_ranks_agree(epoch: int, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def on_one(trainer: Trainer) -> None:
        if trainer.global_rank == 1:
            interrupt(trainer)

    callbacks = [At("on_validation_end", epoch, on_one), NotesHow(tmp_path)]
    trainer = trainer_of(tmp_path, callbacks=callbacks, max_epochs=2, devices=2, strategy="ddp_fork")
    with nullcontext() if said == "ended" else pytest.raises(Exception, match="Interrupted: interrupted in epoch 0"):
        trainer.fit(module(), data())
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text().startswith(said)
    assert (tmp_path / "interrupted.ckpt").exists() == (said != "ended")
    assert capfd.readouterr().err.count(_SAID) == (said == "ended")


_LATE = """
import signal, time
from lightning.pytorch import Callback

class Late(Callback):
    "Signals in the last validation."
    def on_validation_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            signal.raise_signal(signal.SIGINT)

class Twice(Callback):
    "A long pass at the end of the run, and two signals."
    def __init__(self, signum: int):
        self.signum = signum
    def on_train_end(self, trainer, pl_module):
        signal.raise_signal(self.signum)
        time.sleep(0.5)
        signal.raise_signal(self.signum)
        time.sleep(100)
"""


def _command(callback: str, *more: str) -> "subprocess.CompletedProcess[str]":
    Path("late.py").write_text(_LATE)
    few = ("--data.train_size", "128", "--trainer.max_epochs", "2", "--wandb", "disabled", "--run", "a")
    command = [sys.executable, "-m", "lit_sphere", "fit", *few, "--model.width", "4", "--trainer.callbacks", callback]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = with_default_signals([*command, *more])
    return subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, check=False)


@pytest.mark.slow
def test_the_command_line_ends_a_run_that_is_whole(empty_folder: Path) -> None:
    done = _command("late.Late")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(_SAID) == 1
    assert "Traceback" not in done.stderr
    assert "2 epochs" in done.stdout  # the table
    assert Path("a/curves.png").is_file()
    assert [path.name for path in Path("a/checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.usefixtures("interrupts_ignored")
@pytest.mark.parametrize(
    ("signum", "status"), [pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_a_second_signal_ends_at_once(signum: signal.Signals, status: int, empty_folder: Path) -> None:
    done = _command("late.Twice", "--trainer.callbacks.signum", str(int(signum)))
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count(f"{_SAID}; interrupt once more to stop at once") == 1
