"""A run that is killed and resumed ends bit-identical to one that was not; two ranks are one run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_sphere.callbacks import EffectiveLearningRateMonitor, StopOnNonFinite
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet

EPOCHS, BATCHES = 3, 3


class Killed(Exception):
    pass


class SaveAndDie(Callback):
    """Saves a checkpoint after a step, and dies some steps later."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.folder / "kill.ckpt")
        if trainer.global_step == self.step + 1:
            raise Killed


class Series(Callback):
    """What an epoch logged."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows[trainer.current_epoch] = {k: v.item() for k, v in trainer.callback_metrics.items()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows[trainer.current_epoch] = {k: v.item() for k, v in trainer.callback_metrics.items()}


def run(
    folder: Path, *extra: Callback, ckpt_path: Path | None = None, augment: bool = False, spheres: str = "joint"
) -> tuple[SIConvNet, Trainer]:
    torch.manual_seed(0)
    module = SIConvNet(width=4, in_channels=1, elr=2e-2, spheres=spheres)
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, default_root_dir=folder,
        callbacks=[EffectiveLearningRateMonitor(), StopOnNonFinite(), *extra],
    )
    trainer.fit(module, Digits(train_size=300, augment=augment), ckpt_path=ckpt_path)
    return module, trainer


@pytest.mark.parametrize("step", [1, BATCHES, BATCHES + 2, 2 * BATCHES])
@pytest.mark.parametrize("options", [{}, {"augment": True}, {"spheres": "filter"}])
def test_a_killed_and_resumed_run_is_bit_identical(step: int, options: dict[str, Any], tmp_path: Path) -> None:
    whole_series, resumed_series = Series(), Series()
    whole, _ = run(tmp_path, whole_series, **options)
    with pytest.raises(Killed):
        run(tmp_path, SaveAndDie(tmp_path, step), **options)
    resumed, _ = run(tmp_path, resumed_series, ckpt_path=tmp_path / "kill.ckpt", **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert resumed_series.rows[EPOCHS] == whole_series.rows[EPOCHS]
    # The epoch in which it was killed is logged as if it had not been, its first steps included.
    interrupted = (step - 1) // BATCHES + 1
    if step % BATCHES:
        assert resumed_series.rows[interrupted] == whole_series.rows[interrupted]


def test_monitors_leave_the_run_bit_identical(tmp_path: Path) -> None:
    watched, _ = run(tmp_path)
    torch.manual_seed(0)
    bare = SIConvNet(width=4, in_channels=1, elr=2e-2)
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    )
    trainer.fit(bare, Digits(train_size=300))
    for name, value in bare.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
