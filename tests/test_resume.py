"""A run that is killed and resumed ends bit-identical to one that was not; two ranks are one run."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from lit_sphere.callbacks import EffectiveLearningRateMonitor, StopOnNonFinite
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet
from lit_sphere.optim import RandomWalk

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


class Memory(Logger):
    """What was logged, by step and key; a resumed run adds to it."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[tuple[int, str], float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.logged.update({(step, key): value for key, value in metrics.items()})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def run(
    folder: Path,
    *extra: Callback,
    memory: Memory | None = None,
    ckpt_path: Path | None = None,
    augment: bool = False,
    granularity: Literal["joint", "filter"] = "joint",
    watched: bool = True,
    label_noise: float = 0.0,
    optimizer: Any = None,
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = SIConvNet(width=4, in_channels=1, elr=2e-2, granularity=granularity, optimizer=optimizer)
    monitors: list[Callback] = [EffectiveLearningRateMonitor(), StopOnNonFinite()]
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=memory or False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=folder,
        callbacks=[*(monitors if watched else []), *extra],
    )
    trainer.fit(module, Digits(train_size=300, augment=augment, label_noise=label_noise), ckpt_path=ckpt_path)
    return module.state_dict()


@pytest.mark.parametrize("step", [1, BATCHES, BATCHES + 2, 2 * BATCHES])
@pytest.mark.parametrize(
    "options", [{}, {"augment": True, "label_noise": 0.4}, {"granularity": "filter", "optimizer": RandomWalk}]
)
def test_a_killed_and_resumed_run_is_bit_identical(step: int, options: dict[str, Any], tmp_path: Path) -> None:
    whole_log, resumed_log = Memory(), Memory()
    whole = run(tmp_path, memory=whole_log, **options)
    with pytest.raises(Killed):
        run(tmp_path, SaveAndDie(tmp_path, step), memory=resumed_log, **options)
    resumed = run(tmp_path, memory=resumed_log, ckpt_path=tmp_path / "kill.ckpt", **options)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    # Also the means of the epoch in which it was killed, its first steps included. (Lightning does not end an
    # epoch again whose last batch was the last thing saved; here it was logged before the run died.)
    last = [EPOCHS * BATCHES - 1] if step % BATCHES == 0 else [n * BATCHES - 1 for n in range(1, EPOCHS + 1)]
    compared = {key: value for key, value in whole_log.logged.items() if key[0] in last}
    assert {name for _, name in compared} >= {"train/loss", "val/error", "elr/total", "ess/convs.3.weight"}
    assert ("label_noise" in options) == any(name == "train/loss_corrupted" for _, name in compared)
    assert {key: resumed_log.logged.get(key) for key in compared} == compared


def test_monitors_leave_the_run_bit_identical(tmp_path: Path) -> None:
    watched, bare = run(tmp_path), run(tmp_path, watched=False)
    for name, value in bare.items():
        assert torch.equal(value, watched[name]), name
