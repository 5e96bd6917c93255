"""Each callback alone, in modules that are not ours."""

import math
import os
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

import matplotlib.image
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_sphere.callbacks import (
    EffectiveLearningRateMonitor,
    GracefulStop,
    Interrupted,
    NonFinite,
    RunCheckpoint,
    RunProgressBar,
    RunSummary,
    StopOnNonFinite,
)
from lit_sphere.effective import EffectiveQuantities
from lit_sphere.groups import find_groups
from lit_sphere.optim import SphereSGD
from lit_sphere.report import read_metrics

# On machines with more cores Lightning would have every DataLoader use them.
pytestmark = pytest.mark.filterwarnings("ignore:.*many workers")


class Foreign(LightningModule):
    """Automatic optimisation, affine batch norm, somebody else's names and keys."""

    def __init__(self, optimizer: str = "sgd", example: bool = False, blow_up_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 3),
        )
        self.kind, self.blow_up_at = optimizer, blow_up_at
        if example:
            self.example_input_array = torch.zeros(2, 1, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        if self.global_step == self.blow_up_at:
            loss = loss * math.inf
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.kind == "sgd":
            return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=1e-3)
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def loader() -> DataLoader[Any]:
    g = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(32, 1, 8, 8, generator=g), torch.randint(0, 3, (32,), generator=g))
    return DataLoader(data, batch_size=8)


def fit(module: LightningModule, *callbacks: Callback, folder: Path | None = None, **options: Any) -> Trainer:
    options = {
        "max_epochs": 2,
        "enable_progress_bar": any(isinstance(c, RunProgressBar) for c in callbacks),
        **options,
    }
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version="") if folder else False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        log_every_n_steps=1,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        **options,
    )
    trainer.fit(module, loader())
    return trainer


class Expect(Callback):
    """Measures what the monitor must log, step by step."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not self.steps:
            self.groups = find_groups(pl_module, torch.zeros(2, 1, 8, 8))
        self.steps.append(EffectiveQuantities(self.groups, optimizer).measure())


@pytest.mark.parametrize("example", [True, False])
def test_elr_monitor_logs_the_means_of_an_epoch_in_a_foreign_module(example: bool, tmp_path: Path) -> None:
    expect = Expect()
    metrics = fit(Foreign(example=example), EffectiveLearningRateMonitor(), expect, folder=tmp_path).callback_metrics
    series = read_metrics(tmp_path / "metrics.csv")
    means = torch.stack(expect.steps[-4:]).mean(0)
    names = ["total"] + [group.name.removeprefix("model.") for group in expect.groups]
    assert names[1:] == ["0.weight", "3.weight", "1.weight+1"] or sorted(names[1:]) == [
        "0.weight",
        "1.weight+1",
        "3.weight",
    ]
    for row, quantity in enumerate(("norm", "effective_grad_norm", "elr", "ess")):
        for column, name in enumerate(names):
            assert series[f"{quantity}/{name}"].values[-1] == pytest.approx(means[row, column].item(), rel=1e-12)
            assert series[f"{quantity}/{name}"].steps == [3, 7]
        assert metrics[f"{quantity}/total"].item() == pytest.approx(means[row, 0].item(), rel=1e-6)


def test_elr_monitor_logs_single_steps(tmp_path: Path) -> None:
    expect = Expect()
    monitor = EffectiveLearningRateMonitor(per="step", every_n_steps=3)
    fit(Foreign(), monitor, expect, folder=tmp_path)
    series = read_metrics(tmp_path / "metrics.csv")["ess/total"]
    assert series.steps == [0, 3, 6]
    assert series.values == pytest.approx([expect.steps[i][3, 0].item() for i in (0, 3, 6)])


def test_elr_monitor_sees_accumulated_gradients_once() -> None:
    expect = Expect()
    fit(Foreign(), EffectiveLearningRateMonitor(), expect, accumulate_grad_batches=2)
    assert len(expect.steps) == 4


def test_elr_monitor_takes_each_step_with_its_own_learning_rate(tmp_path: Path) -> None:
    class Scheduled(Foreign):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    expect = Expect()
    fit(Scheduled(), EffectiveLearningRateMonitor(), expect, folder=tmp_path)
    series = read_metrics(tmp_path / "metrics.csv")
    for epoch in (0, 1):
        steps = torch.stack(expect.steps[4 * epoch : 4 * epoch + 4])
        assert steps[0, 2, 0] > 6 * steps[3, 2, 0], "the learning rate must have changed"
        for row, quantity in ((2, "elr"), (3, "ess")):
            assert series[f"{quantity}/total"].values[epoch] == pytest.approx(steps[:, row, 0].mean().item())


def test_elr_monitor_asks_for_the_network_where_a_step_cannot_be_run() -> None:
    class Dictionaries(Foreign):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return {"x": batch[0], "y": batch[1]}

    with pytest.raises(ValueError, match=r"a training step of Dictionaries cannot be run .*conv2d.*network="):
        fit(Dictionaries(), EffectiveLearningRateMonitor())


def test_elr_monitor_gives_quantiles_of_many_filters(tmp_path: Path) -> None:
    class Wide(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(
                nn.Conv2d(1, 70, 3, bias=False),
                nn.BatchNorm2d(70),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(70, 3),
            )

    fit(Wide(), EffectiveLearningRateMonitor("filter"), folder=tmp_path)
    metrics = {key: one.values[-1] for key, one in read_metrics(tmp_path / "metrics.csv").items()}
    assert metrics["elr/min"] < metrics["elr/q25"] < metrics["elr/median"] < metrics["elr/q75"] < metrics["elr/max"]
    # TR eq. (3): 1/η̃ = Σ 1/η̃_i over 70 filters
    assert metrics["elr/min"] / 70 < metrics["elr/total"] < metrics["elr/max"] / 70
    assert not any("weight" in key for key in metrics)


@pytest.mark.parametrize("options", [{"granularity": "layer"}, {"per": "batch"}, {"every_n_steps": 0}])
def test_elr_monitor_refuses_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        EffectiveLearningRateMonitor(**options)


def test_two_monitors_have_states_of_their_own() -> None:
    one, two = EffectiveLearningRateMonitor(), EffectiveLearningRateMonitor(per="step")
    assert one.state_key != two.state_key


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_that_blows_up_is_stopped_before_its_weights_are_spoilt(optimizer: str, tmp_path: Path) -> None:
    module = Foreign(optimizer, blow_up_at=5)
    checkpoint = RunCheckpoint(tmp_path)
    with pytest.raises(
        NonFinite, match=r"epoch 1, step 5: the gradient of model\.0\..* and \d more is NaN or infinite"
    ) as e:
        fit(module, StopOnNonFinite(), checkpoint)
    assert str(tmp_path / "last.ckpt") in str(e.value)
    assert all(p.isfinite().all() for p in module.parameters())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 0
    assert all(v.isfinite().all() for v in saved["state_dict"].values())


def test_what_an_accelerator_remembers_names_the_first_bad_step() -> None:
    # As on a GPU, where nothing is looked at before the end of the epoch.
    callback = StopOnNonFinite()

    class FakeTrainer:
        global_step, current_epoch, callbacks = 0, 3, ()

    trainer: Any = FakeTrainer()
    callback._tensors[1, 2] = ["the gradient of a", "the gradient of b"]
    for step, values in enumerate([[1.0, 2.0], [1.0, math.nan], [math.inf, 1.0]]):
        trainer.global_step = step
        bad = ~torch.tensor(values).isfinite()
        first = callback._first_bad.get((1, 2), torch.full((2,), -1))
        callback._first_bad[1, 2] = torch.where((first < 0) & bad, step, first)
    with pytest.raises(NonFinite, match="epoch 3, step 1: the gradient of b is NaN"):
        callback._look(trainer)


def test_graceful_stop_gives_the_signals_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    fit(Foreign(), GracefulStop())
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_progress_prints_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Foreign(), RunProgressBar({"train_loss": "loss {:.3f}"}), max_epochs=20)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert [line.split()[1] for line in lines] == [f"{i}/20" for i in range(2, 20, 2)]
    assert all("loss 0." in line or "loss 1." in line for line in lines)


def test_a_signal_waits_for_accumulated_gradients(tmp_path: Path) -> None:
    class Kill(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="after 1 steps"):
        fit(Foreign(), Kill(), GracefulStop(tmp_path), accumulate_grad_batches=2)
    assert torch.load(tmp_path / "interrupted.ckpt", weights_only=True)["global_step"] == 1


def test_summary_prints_the_table_and_draws_the_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class OnSphere(Foreign):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            groups = find_groups(self, torch.zeros(2, 1, 8, 8))
            return SphereSGD([p for group in groups for p in group.parameters], elr=1e-2)

    fit(OnSphere(), EffectiveLearningRateMonitor(), RunSummary(), folder=tmp_path)
    table = capsys.readouterr().out
    assert "OnSphere: 2 epochs, 8 steps" in table
    assert "ELR" in table
    assert "relative drift" in table
    assert str(tmp_path) in table
    image = matplotlib.image.imread(tmp_path / "curves.png")
    assert image.shape[0] > 300
    assert image.std() > 0.05


def test_summary_without_a_csv_logger_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="there is no CSVLogger"):
        fit(Foreign(), RunSummary())
    assert "2 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({}, ["last.ckpt"]),
        ({"keep_all": True}, ["epoch0000-step000004.ckpt", "epoch0001-step000008.ckpt", "last.ckpt"]),
        ({"every_n_epochs": 2, "keep_all": True}, ["epoch0001-step000008.ckpt", "last.ckpt"]),
        (
            {"every_n_steps": 3, "keep_all": True},
            ["epoch0000-step000003.ckpt", "epoch0001-step000006.ckpt", "last.ckpt"],
        ),
        (
            {"every_n_steps": 4, "keep_all": True},
            ["epoch0000-step000004.ckpt", "epoch0001-step000008.ckpt", "last.ckpt"],
        ),
    ],
)
def test_run_checkpoint_keeps_what_was_asked_for(options: dict[str, Any], files: list[str], tmp_path: Path) -> None:
    fit(Foreign(), RunCheckpoint(tmp_path, **options))
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_run_checkpoint_refuses_an_interval_of_zero() -> None:
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1"):
        RunCheckpoint(every_n_epochs=0)


@pytest.mark.parametrize(("least_seconds", "saved"), [(0.0, [4, 8, 12, 16]), (1e9, [4, 16])])
def test_run_checkpoint_leaves_out_epochs_that_follow_at_once(
    least_seconds: float, saved: list[int], tmp_path: Path
) -> None:
    class Spy(RunCheckpoint):
        steps: ClassVar[list[int]] = []

        def on_save_checkpoint(self, trainer: Trainer, *args: Any) -> None:
            self.steps.append(trainer.global_step)

    Spy.steps = []
    fit(Foreign(), Spy(tmp_path, least_seconds=least_seconds), max_epochs=4)
    assert Spy.steps == saved
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 16


def test_run_checkpoint_refuses_negative_seconds() -> None:
    with pytest.raises(ValueError, match="least_seconds must not be negative"):
        RunCheckpoint(least_seconds=-1.0)


def test_graceful_stop_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lit_sphere.callbacks.graceful_stop._PATIENCE", 0.05)
    stop = GracefulStop()
    stop._receive(signal.SIGTERM, None)
    assert capsys.readouterr().err == "", "a quick stop needs no words"
    time.sleep(0.5)
    assert "interrupt once more to stop at once" in capsys.readouterr().err
    stop._receive(signal.SIGTERM, None)
    stop._give_back()
    time.sleep(0.2)
    assert capsys.readouterr().err == "", "stopped in time"
