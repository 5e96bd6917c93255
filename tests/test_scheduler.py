"""Learning rate schedules of the whole space: stepped once an epoch, the same after a resume."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_fits import Memory, quietly
from conftest import LitSphere
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from torch.optim import SGD
from torch.optim import lr_scheduler as schedulers

from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet

pytestmark = quietly
EPOCHS, BATCHES, LR = 5, 2, 0.1

_SCHEDULES: dict[str, Any] = {
    "cosine": partial(schedulers.CosineAnnealingLR, T_max=EPOCHS),
    "steps": partial(schedulers.MultiStepLR, milestones=[1, 3]),
    "lambda": partial(schedulers.LambdaLR, lr_lambda=lambda epoch: 1 / (1 + epoch)),
    "sequence": lambda optimizer: schedulers.SequentialLR(
        optimizer,
        [schedulers.ConstantLR(optimizer, 0.5, 10), schedulers.ExponentialLR(optimizer, 0.5)],
        milestones=[2],
    ),
    "chain": lambda optimizer: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(optimizer, 0.5, 2), schedulers.ExponentialLR(optimizer, 0.5)], optimizer
    ),
}


class Killed(Exception):
    pass


class Rates(Callback):
    """Notes the learning rate of each step; saves a checkpoint after one, and dies after the next."""

    def __init__(self, path: Path | None = None, kill: int = -1) -> None:
        self.path, self.kill, self.rates = path, kill, dict[int, float]()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.rates[trainer.global_step - 1] = trainer.optimizers[0].param_groups[0]["lr"]
        if trainer.global_step == self.kill:
            trainer.save_checkpoint(self.path or "")
        if trainer.global_step == self.kill + 1 and self.kill > 0:
            raise Killed


def fit(rates: Rates, schedule: Any, ckpt_path: Path | None = None, lr: float = LR, **options: Any) -> SIConvNet:
    torch.manual_seed(0)
    module = SIConvNet(width=4, in_channels=1, optimizer=partial(SGD, lr=lr), scheduler=schedule)
    trainer = Trainer(
        **{
            "max_epochs": EPOCHS,
            "accelerator": "cpu",
            "callbacks": [rates],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            **options,
        }
    )
    trainer.fit(module, Digits(batch_size=64, train_size=64 * BATCHES), ckpt_path=ckpt_path)
    return module


def expected(schedule: Any) -> list[float]:
    optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr=LR)
    scheduler = schedule(optimizer)
    rates = []
    for _ in range(EPOCHS):
        rates += [optimizer.param_groups[0]["lr"]] * BATCHES
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", _SCHEDULES)
def test_a_schedule_is_stepped_once_an_epoch(name: str) -> None:
    rates = Rates()
    fit(rates, _SCHEDULES[name])
    assert len(set(rates.rates.values())) > 1
    assert list(rates.rates.values()) == expected(_SCHEDULES[name])


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["cosine", "sequence"])
def test_a_resumed_run_goes_on_with_the_schedule(name: str, step: int, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(Rates(tmp_path / "a.ckpt", step), _SCHEDULES[name])
    rates = Rates()
    resumed = fit(rates, _SCHEDULES[name], tmp_path / "a.ckpt")
    assert list(rates.rates.values()) == expected(_SCHEDULES[name])[step:]
    whole = fit(Rates(), _SCHEDULES[name])
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_changed_learning_rate_scales_the_rest(empty_folder: Path, lit_sphere: LitSphere) -> None:
    line = "--data.train_size 256 --data.batch_size 128 --wandb disabled --model.elr null --model.optimizer SGD"
    cosine = "--model.optimizer.lr 0.1 --model.scheduler CosineAnnealingLR --model.scheduler.T_max 5"
    assert lit_sphere("fit", *line.split(), *cosine.split(), "--trainer.max_epochs", "2", "--run", "a").status == 0
    args = ("--ckpt_path", "a/checkpoints/last.ckpt", "--model.optimizer.lr", "0.2", "--trainer.max_epochs", "4")
    done = lit_sphere("fit", *args, "--run", "b", "--wandb", "disabled")
    assert done.status == 0, done.err
    group = _last("b")["optimizer_states"][0]["param_groups"][0]
    assert group["lr"] == pytest.approx(2 * _cosine(4))
    assert _last("b")["lr_schedulers"][0]["base_lrs"] == [pytest.approx(0.2)]


def _cosine(epoch: int) -> float:
    return 0.05 * (1 + math.cos(math.pi * epoch / 5))


def test_lightning_sees_it(tmp_path: Path) -> None:
    memory = Memory()
    fit(
        Rates(),
        _SCHEDULES["cosine"],
        logger=memory,
        log_every_n_steps=1,
        callbacks=[LearningRateMonitor("epoch"), Rates()],
    )
    logged = [value for (_, key), value in sorted(memory.logged.items()) if key == "lr-SGD"]
    assert logged == pytest.approx(expected(_SCHEDULES["cosine"])[::BATCHES])


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"both elr and scheduler.*FineTuneSwitch"):
        SIConvNet(width=4, elr=1e-3, scheduler=_SCHEDULES["cosine"])
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau waits for a metric.*FineTuneSwitch"):
        fit(Rates(), schedulers.ReduceLROnPlateau)


_PRACTICAL = """
model:
  class_path: SphereModule
  init_args:
    network:
      class_path: lit_sphere.networks.ConvNet
      init_args: {width: 4, in_channels: 1, scale_invariant: false}
    optimizer:
      class_path: torch.optim.SGD
      init_args: {lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4}
    scheduler:
      class_path: torch.optim.lr_scheduler.CosineAnnealingLR
      init_args: {T_max: 3}
    input_shape: [1, 8, 8]
data:
  class_path: Digits
  init_args: {train_size: 256}
trainer: {max_epochs: 3}
"""


def _last(run: str) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(Path(run) / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


def test_a_practical_network_in_yaml(empty_folder: Path, lit_sphere: LitSphere) -> None:
    Path("c.yaml").write_text(_PRACTICAL)
    done = lit_sphere("fit", "--config", "c.yaml", "--run", "r", "--wandb", "disabled")
    assert done.status == 0, done.err
    assert _last("r")["lr_schedulers"][0]["last_epoch"] == 3
    assert _last("r")["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-12)
    args = ("--ckpt_path", "r/checkpoints/last.ckpt", "--trainer.max_epochs", "4", "--wandb", "disabled")
    other = lit_sphere("fit", *args, "--run", "s", "--model.scheduler.T_max", "9")
    assert other.status == 2
    assert "scheduler (--model.scheduler)" in other.err
    assert "--ckpt_weights" in other.err
    assert lit_sphere("fit", *args, "--run", "t").status == 0


@pytest.mark.parametrize("model", ["SIConvNet", "SphereModule --model.network ConvNet --model.network.in_channels 1"])
def test_flags(model: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    line = (
        f"fit --model {model} --model.elr null --model.optimizer SGD --model.optimizer.lr 0.1 --model.scheduler "
        "CosineAnnealingLR --model.scheduler.T_max 2 --data.train_size 256 --trainer.max_epochs 2 --wandb disabled "
        "--run r"
    )
    done = lit_sphere(*line.split())
    assert done.status == 0, done.err
    assert _last("r")["lr_schedulers"][0]["T_max"] == 2


def test_flags_with_a_sphere(empty_folder: Path, lit_sphere: LitSphere) -> None:
    line = "fit --model.scheduler CosineAnnealingLR --model.scheduler.T_max 2 --wandb disabled"
    done = lit_sphere(*line.split())
    assert done.status != 0
    assert "FineTuneSwitch" in done.err
    assert len(done.err.strip().splitlines()) == 1
