"""The regime of a run, named while it trains: scripted curves in a foreign module, and real runs on digits."""

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib.image
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lit_sphere.analysis import name_regime
from lit_sphere.analysis.regimes import RegimeVerdict
from lit_sphere.callbacks import EffectiveLearningRateMonitor, FineTuneSwitch, RegimeMonitor, RunSummary, Switch
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet
from lit_sphere.observe.stopping import can_stop
from lit_sphere.optim import SphereSGD
from lit_sphere.report import draw_regimes, read_metrics
from lit_sphere.report.regime_curves import RegimeSegment

pytestmark = pytest.mark.filterwarnings("ignore:.*many workers")
Reports = Literal["outputs", "training_step", "epoch_end", "accuracy", "nothing"]
STEPS = 3  # of an epoch


class Scripted(LightningModule):
    """Real gradients of a layer-norm network on a sphere; loss and error follow a script."""

    loss: str = "cross_entropy"

    def __init__(
        self, losses: Sequence[float], errors: Sequence[float] = (), reports: Reports = "outputs", elr: float = 0.5
    ) -> None:
        super().__init__()
        self.elr = elr
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(6, 5, bias=False), nn.LayerNorm(5, elementwise_affine=False)
        self.example_input_array = torch.zeros(2, 6)
        self.losses, self.reports = losses, reports
        self.errors = errors or [0.5] * len(losses)
        self.num_classes = 5

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        # Around the script's value, so that a mean is needed.
        loss = loss - loss.detach() + self.losses[self.current_epoch] * (1 + 0.1 * (batch_idx - 1))
        error = torch.tensor(self.errors[self.current_epoch] + 0.01 * (batch_idx - 1))
        if self.reports == "outputs":
            return {"loss": loss, "error": error}
        if self.reports == "training_step":
            self.log("train/error", error, on_step=False, on_epoch=True)
        if self.reports == "accuracy":
            self.log("train_acc", 1 - error, on_step=False, on_epoch=True)
        return {"loss": loss}

    def on_train_epoch_end(self) -> None:
        if self.reports == "epoch_end":
            self.log("train/error", self.errors[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return SphereSGD(self.parameters(), elr=self.elr)

    def train_dataloader(self) -> DataLoader[Any]:
        g = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.randn(STEPS * 4, 6, generator=g), torch.randint(5, (STEPS * 4,), generator=g))
        return DataLoader(data, batch_size=4)


def fit(module: LightningModule, *callbacks: Callback, folder: Path | None = None, **options: Any) -> Trainer:
    ckpt_path, datamodule = options.pop("ckpt_path", None), options.pop("datamodule", None)
    if isinstance(module, Scripted):
        options = {"max_epochs": len(module.losses), **options}
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version="") if folder else False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path)
    return trainer


def rows(monitor: RegimeMonitor) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = monitor.state_dict()["curves"]["rows"]
    return found


EQUILIBRIUM = [2.0, 2.2, 1.9] * 8
ERRORS = [0.4, 0.5, 0.45] * 8


@pytest.mark.parametrize("reports", ["outputs", "training_step", "epoch_end", "accuracy"])
def test_loss_and_error_are_the_means_of_the_epochs_wherever_they_are_reported(reports: Reports) -> None:
    monitor = RegimeMonitor()
    fit(Scripted(EQUILIBRIUM, ERRORS, reports), monitor)
    assert [row["epoch"] for row in rows(monitor)] == list(range(24))
    assert [row["step"] for row in rows(monitor)] == list(range(0, 24 * STEPS, STEPS))
    assert [row["loss"] for row in rows(monitor)] == pytest.approx(EQUILIBRIUM)
    assert [row["error"] for row in rows(monitor)] == pytest.approx(ERRORS)
    assert monitor.verdict is not None
    assert monitor.verdict.regime == "chaotic equilibrium"
    assert (monitor.verdict.since, monitor.verdict.since_step) == (0, 0)


def test_the_verdict_is_that_of_the_rule_on_the_measured_curves(tmp_path: Path) -> None:
    monitor, losses = RegimeMonitor(every_n_steps=1), [2.0] * 6 + [1e-3] * 19
    fit(Scripted(losses, [0.0] * 25), monitor, folder=tmp_path)
    assert monitor.verdict == name_regime(
        [row["loss"] for row in rows(monitor)],
        [row["error"] for row in rows(monitor)],
        5,
        esses=[row["ess"] for row in rows(monitor)],
        steps=[row["step"] for row in rows(monitor)],
    )
    assert (monitor.verdict.regime, monitor.verdict.since, monitor.verdict.since_step) == ("convergence", 6, 18)
    series = read_metrics(tmp_path / "metrics.csv")["regime"]
    assert series.epochs == list(range(25))
    assert series.values == [0.0] * 19 + [1.0] * 6
    picture = matplotlib.image.imread(tmp_path / "regime.png")
    assert picture[..., :3].std() > 0.02


@pytest.mark.parametrize(("elr", "regime"), [(0.5, "chaotic equilibrium"), (500.0, "divergence")])
def test_without_an_error_the_steps_tell_divergence(elr: float, regime: str) -> None:
    # Of the two, only the larger turns this small network by a right angle at each step: 89.8° and more, 20° to 40°.
    monitor = RegimeMonitor(every_n_steps=1)
    fit(Scripted(EQUILIBRIUM, reports="nothing", elr=elr), monitor)
    assert all(row["error"] is None for row in rows(monitor))
    assert monitor.verdict is not None
    assert monitor.verdict.regime == regime, monitor.verdict
    assert "apart (cosine" in monitor.verdict.evidence


def test_a_regime_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        fit(Scripted([2.0] * 10 + [1e-3] * 25, [0.1] * 35), RegimeMonitor())
    told = [record.message for record in caplog.records if record.message.startswith("regime: ")]
    assert len(told) == 1
    assert told[0].startswith("regime: convergence: train loss below 0.01 since epoch 10")


class Cut(Callback):
    """As a switch of the ELR does."""

    def __init__(self, monitor: RegimeMonitor, epoch: int) -> None:
        self.monitor, self.epoch = monitor, epoch
        self.found: RegimeVerdict | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch - 1:
            self.found = self.monitor.verdict
            self.monitor.restart(self.epoch)
            assert self.monitor.verdict is None


def test_a_restart_cuts_the_curve(tmp_path: Path) -> None:
    monitor = RegimeMonitor()
    cut = Cut(monitor, 24)
    fit(Scripted(EQUILIBRIUM + [1e-3] * 22, ERRORS + [0.0] * 22), monitor, cut, folder=tmp_path)
    assert cut.found is not None
    assert cut.found.regime == "chaotic equilibrium"
    assert monitor.verdict is not None
    assert (monitor.verdict.regime, monitor.verdict.since, monitor.verdict.since_step) == ("convergence", 24, 72)
    assert monitor.segments == [
        RegimeSegment(0, 23, "chaotic equilibrium", 0),
        RegimeSegment(24, 45, "convergence", 24),
    ]
    # Undecided while the new curve is short.
    assert read_metrics(tmp_path / "metrics.csv")["regime"].values[24:] == [0.0] * 19 + [1.0] * 3
    figure = draw_regimes(rows(monitor), monitor.segments)
    assert len(figure.axes[0].patches) == 2
    assert len([line for line in figure.axes[0].lines if line.get_linestyle() == "--"]) == 1


@pytest.mark.parametrize(("reports", "epochs"), [("outputs", 12), ("epoch_end", 23)])
def test_a_resumed_run_goes_on_with_curves_and_verdict(reports: Reports, epochs: int, tmp_path: Path) -> None:
    losses, errors = EQUILIBRIUM + [1e-3] * 22, ERRORS + [0.0] * 22
    whole, begun, resumed = RegimeMonitor(), RegimeMonitor(), RegimeMonitor()
    fit(Scripted(losses, errors, reports), whole, Cut(whole, 10))
    keep = ModelCheckpoint(tmp_path, save_last=True)
    fit(Scripted(losses, errors, reports), begun, Cut(begun, 10), keep, max_epochs=epochs)
    fit(Scripted(losses, errors, reports), resumed, Cut(resumed, 10), ckpt_path=tmp_path / "last.ckpt")
    assert rows(resumed) == rows(whole)
    assert resumed.verdict == whole.verdict
    assert resumed.segments == whole.segments


def test_another_run_with_the_same_callback_begins_anew() -> None:
    monitor = RegimeMonitor()
    fit(Scripted(EQUILIBRIUM, ERRORS), monitor, Cut(monitor, 10))
    fit(Scripted([1.0, 2.0]), monitor)
    assert [row["loss"] for row in rows(monitor)] == pytest.approx([1.0, 2.0])
    assert monitor.segments == [RegimeSegment(0, 1, "undecided", None)]


def test_a_loss_that_is_infinite_for_once_does_not_end_the_run() -> None:
    monitor = RegimeMonitor()
    fit(Scripted([2.0, math.inf, 2.0, *EQUILIBRIUM]), monitor)
    assert monitor.verdict is not None
    assert monitor.verdict.regime == "chaotic equilibrium"
    assert monitor.verdict.since is not None
    assert monitor.verdict.since >= 2
    fit(Scripted([2.0, 2.0, math.nan]), monitor := RegimeMonitor())
    assert monitor.verdict is not None
    assert monitor.verdict.evidence == "train loss NaN or infinite since epoch 2"


def test_the_threshold_follows_the_loss_of_the_module() -> None:
    for loss, threshold in (("cross_entropy", "0.01"), ("mse", "0.0016")):
        module, monitor = Scripted([1e-3] * 20), RegimeMonitor()
        module.loss = loss
        fit(module, monitor)
        assert monitor.verdict is not None
        assert f"below {threshold} since" in monitor.verdict.evidence  # (5 − 1)/(100 · 5²)
    fit(Scripted([0.05] * 20), monitor := RegimeMonitor(converged_loss=0.1))
    assert monitor.verdict is not None
    assert monitor.verdict.regime == "convergence"


def test_the_summary_says_what_the_monitor_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(Scripted([1e-3] * 20, [0.0] * 20), RegimeMonitor(), RunSummary(), folder=tmp_path)
    assert re.search(
        r"regime +convergence +train loss below 0.01 since epoch 0\n +consecutive", capsys.readouterr().out
    )


SETTLED = [2.0] * 4 + [1e-3] * 36
"""Converges from epoch 4 on: named first at the end of epoch 19, when there are twenty."""


@pytest.mark.parametrize("reports", ["outputs", "epoch_end"])
def test_a_settled_regime_ends_the_run(reports: Reports, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor, keep = RegimeMonitor(stop_when=["convergence"], patience=3), ModelCheckpoint(tmp_path, save_last=True)
    module = Scripted(SETTLED, [0.0] * 40, reports)
    trainer = fit(module, monitor, RunSummary(), keep, folder=tmp_path)
    # An error that is logged at the end of an epoch is known an epoch later.
    assert trainer.current_epoch == (22 if reports == "outputs" else 23)
    assert monitor.settled == ("convergence", 3)
    assert re.search(
        r"stopped early +2[23] of 40 epochs +convergence was named in 3 epochs in a row", capsys.readouterr().out
    )
    assert (tmp_path / "regime.png").exists()

    def again(**options: Any) -> int:
        return fit(Scripted(SETTLED, [0.0] * 40, reports), *callbacks, ckpt_path=tmp_path / "last.ckpt").current_epoch

    callbacks = [RegimeMonitor(stop_when=["convergence"], patience=3)]
    assert again() == trainer.current_epoch  # does not go on
    callbacks = [RegimeMonitor(stop_when=["convergence"], patience=5)]
    assert again() == trainer.current_epoch + 2
    callbacks = [RegimeMonitor()]
    assert again() == 40


def test_a_killed_run_stops_at_the_same_epoch(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, save_last=True)
    fit(Scripted(SETTLED, [0.0] * 40), RegimeMonitor(stop_when=["convergence"], patience=5), keep, max_epochs=21)
    resumed = RegimeMonitor(stop_when=["convergence"], patience=5)
    module = Scripted(SETTLED, [0.0] * 40)
    assert fit(module, resumed, ckpt_path=tmp_path / "last.ckpt").current_epoch == 24
    assert resumed.settled == ("convergence", 5)


def test_other_regimes_and_shorter_runs_are_not_stopped() -> None:
    other = RegimeMonitor(stop_when=["chaotic equilibrium", "divergence"], patience=1)
    assert fit(Scripted([1e-3] * 25, [0.0] * 25), other).current_epoch == 25
    assert other.settled is None
    least = RegimeMonitor(stop_when=["convergence"], patience=1)
    assert fit(Scripted([1e-3] * 25, [0.0] * 25), least, min_epochs=23).current_epoch == 23


def test_all_ranks_stop_at_once(tmp_path: Path) -> None:
    class Told(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            (tmp_path / str(trainer.global_rank)).write_text(str(trainer.current_epoch))

    monitor = RegimeMonitor(stop_when=["convergence"], patience=2)
    fit(Scripted(SETTLED, [0.0] * 40), monitor, Told(), devices=2, strategy="ddp_fork")
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["21", "21"]


def test_a_pass_is_not_interrupted_where_the_run_may_end() -> None:
    assert can_stop(Trainer(callbacks=[RegimeMonitor()], accelerator="cpu", logger=False))
    stops = RegimeMonitor(stop_when=["convergence"])
    assert not can_stop(Trainer(callbacks=[stops], accelerator="cpu", logger=False))


def test_a_run_without_a_loss_is_told_so() -> None:
    class Silent(Scripted):
        def __init__(self) -> None:
            super().__init__([1.0] * 3)
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    with pytest.warns(UserWarning, match=r"RegimeMonitor saw no train loss: .*loss_key"):
        fit(Silent(), monitor := RegimeMonitor())
    assert monitor.verdict is None


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 1},
        {"converged_loss": 0.0},
        {"converged_loss": math.nan},
        {"every_n_steps": 0},
        {"stop_when": ["undecided"]},
        {"patience": 0},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"RegimeMonitor: {next(iter(options))}"):
        RegimeMonitor(**options)


@pytest.mark.parametrize(
    ("elr", "regimes"),
    [
        (1e-2, {"convergence"}),
        # Named an equilibrium for seeds 0 to 3, iterates 34° to 43° apart; on another CPU 50°, at chance.
        (3e-2, {"chaotic equilibrium", "undecided"}),
        (5e-1, {"divergence"}),
    ],
)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_short_real_runs_on_digits(elr: float, regimes: set[str], seed: int) -> None:
    torch.manual_seed(seed)
    monitor, summary = RegimeMonitor(), RunSummary()
    data = Digits(train_size=512, batch_size=64, seed=seed)
    fit(SIConvNet(width=8, in_channels=1, elr=elr), monitor, datamodule=data, max_epochs=30, limit_val_batches=0)
    assert monitor.verdict is not None
    assert monitor.verdict.regime in regimes, monitor.verdict
    # The summary of a run without a monitor comes to the same verdict, word for word.
    torch.manual_seed(seed)
    with pytest.warns(UserWarning, match="draws no curves"):
        fit(SIConvNet(width=8, in_channels=1, elr=elr), summary, datamodule=data, max_epochs=30, limit_val_batches=0)
    assert summary.verdict == monitor.verdict


def test_step_sizes_are_right_where_momentum_is_switched_on() -> None:
    monitor = RegimeMonitor(every_n_steps=1)
    trainer = Trainer(
        max_epochs=3,
        callbacks=[EffectiveLearningRateMonitor(), monitor, FineTuneSwitch([Switch(epoch=1, momentum=0.9)])],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = SIConvNet(width=4, in_channels=1, optimizer=lambda params: torch.optim.SGD(params, lr=0.05))
    trainer.fit(module, Digits(train_size=256, batch_size=64))
    row = monitor._curves.rows[-1]
    for quantity in ("ess", "elr", "effective_grad_norm"):
        assert row[quantity][0] == pytest.approx(trainer.callback_metrics[f"{quantity}/total"].item(), rel=1e-6)


def test_a_summary_used_again_shows_no_other_runs_regime(tmp_path: Path) -> None:
    summary = RunSummary()
    fit(Scripted([1e-3] * 20, [0.0] * 20), summary, folder=tmp_path / "sphere")
    assert summary.verdict is not None
    module = SIConvNet(width=4, in_channels=1, optimizer=lambda params: torch.optim.SGD(params, lr=0.05))
    fit(module, summary, folder=tmp_path / "whole", datamodule=Digits(train_size=128, batch_size=64), max_epochs=1)
    assert summary.verdict is None
