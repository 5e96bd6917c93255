"""A signal in the midst of a long pass: it ends between two batches, and the resumed run makes it instead."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_fits import Memory, assert_equal, quietly
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_sphere.callbacks import (
    CheckpointSimilarity,
    FineTuneSwitch,
    GracefulStop,
    Interrupted,
    LinearInterpolationBarrier,
    SharpnessMonitor,
    Switch,
)
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet

pytestmark = quietly
EPOCHS = 4


class Signalled(SIConvNet):
    """Gets a signal in the midst of a pass, at a forward that is not one of training or validation."""

    def __init__(self, at: int) -> None:
        super().__init__(width=4, in_channels=1, elr=2e-2)
        self.at, self.count = at, 0
        self.begun = False  # a pass of this epoch

    def forward(self, x: Tensor) -> Tensor:
        if self.begun:
            self.count += 1
            if self.count == self.at:
                signal.raise_signal(signal.SIGINT)
        return super().forward(x)


class Watch(Callback):
    """Listed first: what comes after it at an epoch's end is a pass."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Signalled)
        pl_module.begun = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Signalled)
        pl_module.begun = False


def fit(
    folder: Path, module: LightningModule, first: Callback, memory: Memory, ckpt: Path | None = None, *more: Callback
) -> None:
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[Watch(), first, *more, GracefulStop(folder)],
        logger=memory,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    data = Digits(train_size=96, batch_size=32, val_size=300, eval_batch_size=30)
    trainer.fit(module, data, ckpt_path=ckpt)


def module(at: int = 0) -> Signalled:
    torch.manual_seed(0)
    return Signalled(at)


# Forwards of a pass: 3 points × (3 + 10) batches; 2 members × 10 batches.
_CALLBACKS: dict[str, tuple[Callable[[], Any], list[int]]] = {
    "snapshots": (lambda: LinearInterpolationBarrier(every_n_epochs=1, points=3), [1, 20, 38]),
    "reestimated": (lambda: LinearInterpolationBarrier(every_n_epochs=1, points=3, statistics="reestimated"), [5]),
    "similarity": (lambda: CheckpointSimilarity(every_n_epochs=1), [7]),
    "sharpness": (lambda: SharpnessMonitor(train_pass_every=2), [2]),
    "curvature": (lambda: SharpnessMonitor(curvature_every=2, curvature_vectors=2), [3, 12]),
}


@pytest.mark.parametrize(("name", "at"), [(name, at) for name, (_, ats) in _CALLBACKS.items() for at in ats])
def test_the_pass_ends_at_once_and_the_resumed_run_makes_it(name: str, at: int, tmp_path: Path) -> None:
    make = _CALLBACKS[name][0]
    whole, whole_log, one = make(), Memory(), module()
    fit(tmp_path, one, whole, whole_log)
    stopped, log, again = module(at), Memory(), module()
    with pytest.raises(Interrupted, match="interrupted in epoch 1 after 6 steps"):
        fit(tmp_path, stopped, make(), log)
    assert stopped.count <= at + 1, "the pass went on"
    mine = [key for key in log.logged if key[1].startswith(("barrier/", "similarity/", "ensemble/", "sharpness/"))]
    assert not [key for key in mine if key[0] == 5]
    assert log.logged[5, "val/error"] == whole_log.logged[5, "val/error"], "what was measured before is kept"
    resumed = make()
    fit(tmp_path, again, resumed, log, tmp_path / "interrupted.ckpt")
    assert_equal(one.state_dict(), again.state_dict())
    assert log.logged == whole_log.logged
    if name == "similarity":
        assert resumed.pairs == whole.pairs
    elif name not in ("sharpness", "curvature"):
        assert list(resumed.results) == list(whole.results)


def test_the_last_epochs_pass_is_finished(tmp_path: Path) -> None:
    """A run that goes on after it has no step before which the pass could be made up."""
    stopped, log = module(at=5), Memory()
    fit(tmp_path, stopped, CheckpointSimilarity(every_n_epochs=EPOCHS // 2), log)
    assert stopped.count == 2 * 10
    assert (3 * EPOCHS - 1, "ensemble/error") in log.logged
    assert not (tmp_path / "interrupted.ckpt").exists()


def test_a_path_between_switches_is_finished(tmp_path: Path) -> None:
    """``FineTuneSwitch``, listed later, may mark the next one."""
    stopped, log = module(at=5), Memory()
    barrier = LinearInterpolationBarrier(between="switches", points=3)
    switch = FineTuneSwitch([Switch(step=2, elr=1e-2), Switch(step=4, elr=1e-3)])
    with pytest.raises(Interrupted, match="interrupted in epoch 1 after 6 steps"):
        fit(tmp_path, stopped, barrier, log, None, switch)
    assert stopped.count == 3 * (3 + 10)
    assert list(barrier.results) == ["barrier-switch-1-to-switch-2"]
