"""A run with a learning rate schedule, analysed by a callback: foreign modules, NaN, resumed runs, real digits."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from lit_sphere.callbacks import CosineRegimeAnalysis, NonFinite, StopOnNonFinite
from lit_sphere.data import Digits
from lit_sphere.effective import EffectiveQuantities
from lit_sphere.groups import find_groups
from lit_sphere.modules import SphereModule
from lit_sphere.networks import ConvNet
from lit_sphere.report import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*many workers")
EPOCHS, STEPS = 12, 4


class LayerNormNet(LightningModule):
    """Automatic optimisation; the learning rate follows a cosine, by step or by epoch."""

    def __init__(self, lr: float = 0.5, interval: str = "step", blow_up_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
        self.lr, self.interval, self.blow_up_at = lr, interval, blow_up_at

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0])
        self.log("train_acc", (logits.argmax(1) == batch[1]).float().mean(), on_step=False, on_epoch=True)
        loss = F.cross_entropy(logits, batch[1])
        return loss * math.nan if self.global_step == self.blow_up_at else loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        steps = EPOCHS * (STEPS if self.interval == "step" else 1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": CosineAnnealingLR(optimizer, steps), "interval": self.interval},
        }

    def train_dataloader(self) -> DataLoader[Any]:
        g = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.randn(STEPS * 8, 6, generator=g), torch.randint(3, (STEPS * 8,), generator=g))
        return DataLoader(data, batch_size=8)


class Expect(Callback):
    """What each step was taken with."""

    def __init__(self) -> None:
        self.lrs: list[float] = []
        self.measured: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.lrs.append(optimizer.param_groups[0]["lr"])
        if not self.measured:
            self.groups = find_groups(pl_module, torch.zeros(2, 6))
        self.measured.append(EffectiveQuantities(self.groups, optimizer).measure())


def fit(module: LightningModule, *callbacks: Callback, folder: Path | None = None, **options: Any) -> Trainer:
    ckpt_path, datamodule = options.pop("ckpt_path", None), options.pop("datamodule", None)
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
        **{"max_epochs": EPOCHS, **options},
    )
    trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path)
    return trainer


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "cosine_regimes.json").read_text())
    return found


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_each_step_counts_with_its_own_learning_rate(interval: str, tmp_path: Path) -> None:
    expect, analysis = Expect(), CosineRegimeAnalysis()
    fit(LayerNormNet(interval=interval), analysis, expect, folder=tmp_path)
    assert len(set(expect.lrs)) == (EPOCHS * STEPS if interval == "step" else EPOCHS)
    series, epochs = read_metrics(tmp_path / "metrics.csv"), report(tmp_path)["epochs"]
    for epoch in range(EPOCHS):
        steps = slice(epoch * STEPS, (epoch + 1) * STEPS)
        lr = sum(expect.lrs[steps]) / STEPS
        assert series["schedule/lr"].values[epoch] == pytest.approx(lr)
        means = torch.stack(expect.measured[steps]).mean(0)[:, 0]
        assert series["schedule/sharpness"].values[epoch] == pytest.approx(means[1].item())
        assert series["schedule/elr"].values[epoch] == pytest.approx(means[2].item())
        assert epochs[epoch]["lr"] == pytest.approx(lr)
        assert epochs[epoch]["step"] == epoch * STEPS
        assert epochs[epoch]["sharpness"] == pytest.approx(means[1].item())


def test_it_prints_draws_and_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = CosineRegimeAnalysis(num_classes=3)
    fit(LayerNormNet(), callback, folder=tmp_path)
    assert callback.analysis is not None
    found = report(tmp_path)
    assert found["verdict"] == callback.analysis.verdict
    assert [row["regime"] for row in found["epochs"]] == callback.analysis.regimes
    assert all(0 <= row["error"] <= 1 for row in found["epochs"])
    assert sum(found["shares"].values()) == pytest.approx(1)
    out = capsys.readouterr().out.strip()
    assert out.startswith(f"Learning rate schedule, by regime: {callback.analysis.verdict}\n  {found['evidence']}")
    assert len(out.splitlines()) <= 5
    assert matplotlib.image.imread(tmp_path / "cosine_regimes.png")[..., :3].std() > 0.02


@pytest.mark.parametrize("stopped", [True, False])
def test_a_run_that_ends_by_nan_is_reported(stopped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = CosineRegimeAnalysis()
    module = LayerNormNet(blow_up_at=7 * STEPS + 2)
    if stopped:
        with pytest.raises(NonFinite):
            fit(module, callback, StopOnNonFinite(), folder=tmp_path)
    else:
        fit(module, callback, folder=tmp_path)
    assert callback.analysis is not None
    assert callback.analysis.verdict == "diverged"
    assert "train loss NaN or infinite since epoch 7" in capsys.readouterr().out
    found = json.loads((tmp_path / "cosine_regimes.json").read_text(), parse_constant=pytest.fail)
    assert found["epochs"][7]["loss"] is None
    assert (tmp_path / "cosine_regimes.png").exists()


def test_manual_optimisation_with_a_schedule_of_its_own(tmp_path: Path) -> None:
    module = SphereModule(
        ConvNet(width=4, in_channels=1),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4),
        scheduler=partial(CosineAnnealingLR, T_max=3),
        input_shape=(1, 8, 8),
    )
    fit(module, CosineRegimeAnalysis(), datamodule=Digits(train_size=64, batch_size=32), folder=tmp_path, max_epochs=3)
    found = report(tmp_path)["epochs"]
    assert [row["lr"] for row in found] == pytest.approx([0.1, 0.075, 0.025])
    assert all(row["error"] is not None and row["elr"] > 0 for row in found)


def test_a_resumed_run_says_the_same(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    fit(LayerNormNet(), CosineRegimeAnalysis(), folder=tmp_path / "whole")
    fit(LayerNormNet(), CosineRegimeAnalysis(), keep, folder=tmp_path / "begun", max_epochs=5)
    last = tmp_path / "checkpoints" / "last.ckpt"
    fit(LayerNormNet(), CosineRegimeAnalysis(), folder=tmp_path / "resumed", ckpt_path=last)
    assert report(tmp_path / "resumed") == report(tmp_path / "whole")


@pytest.mark.parametrize(
    "options", [{"num_classes": 1}, {"converged_loss": -1.0}, {"converged_loss": math.inf}, {"every_n_steps": 0}]
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"CosineRegimeAnalysis: {next(iter(options))}"):
        CosineRegimeAnalysis(**options)


class Practical(LightningModule):
    """A conventional network on digits: all parameters, momentum, weight decay on the convolutions."""

    def __init__(self, lr: float, epochs: int) -> None:
        super().__init__()
        self.net = ConvNet(width=8, in_channels=1)
        self.lr, self.epochs = lr, epochs
        self.example_input_array = torch.zeros(2, 1, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0])
        error = (logits.argmax(1) != batch[1]).float().mean()
        self.log("train/error", error, on_step=False, on_epoch=True, batch_size=len(logits))
        return F.cross_entropy(logits, batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/error", (self(batch[0]).argmax(1) != batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        convs = list(self.net.convs.parameters())
        others = [p for p in self.parameters() if not any(p is conv for conv in convs)]
        groups: list[dict[str, Any]] = [{"params": convs, "weight_decay": 3e-2}, {"params": others}]
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=0.9)
        return [optimizer], [CosineAnnealingLR(optimizer, self.epochs)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lr", "verdict"),
    [
        (1e-3, "started too low"),
        (1e-2, "started too low"),
        (1e-1, "useful window"),
        (3e-1, "useful window"),
        (2.0, "no time left to converge"),
    ],
)
def test_start_rates_of_a_cosine_on_digits_have_their_verdicts(lr: float, verdict: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    callback = CosineRegimeAnalysis()
    fit(
        Practical(lr, 60),
        callback,
        datamodule=Digits(),
        max_epochs=60,
        limit_val_batches=0,
        folder=tmp_path,
    )
    analysis = callback.analysis
    assert analysis is not None
    assert analysis.verdict == verdict, analysis.evidence
    final = report(tmp_path)["epochs"][-1]
    if verdict == "useful window":
        # At the equilibrium for more than half of the run, which no start below reaches, and lower in the end.
        assert analysis.shares["chaotic equilibrium"] > 0.5
        assert analysis.passed is not None
        assert analysis.passed.lr < 0.4 * lr
        assert final["loss"] < 1e-3
    elif verdict == "started too low":
        assert analysis.shares == {"convergence": 1.0}
        assert final["loss"] > 1e-3
    else:
        assert analysis.shares["divergence"] > 0.5
        assert final["error"] > 0.05


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_verdicts_go_from_too_low_through_the_window_to_too_high_and_never_back(seed: int) -> None:
    """cosine.yaml from 1e-6 to 10, three rates a decade; seen: too low up to 0.1, the window from 0.2 to 1."""
    order = {"started too low": 0, "undecided": 1, "useful window": 2, "no time left to converge": 3, "diverged": 3}
    found: list[str] = []
    for lr in (10 ** (-6 + k / 3) for k in range(22)):
        torch.manual_seed(seed)
        network = ConvNet(width=8, in_channels=1)
        optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=1e-2)
        schedule = partial(CosineAnnealingLR, T_max=60)
        module = SphereModule(network, optimizer=optimizer, scheduler=schedule, input_shape=(1, 8, 8))
        callback = CosineRegimeAnalysis()
        fit(module, callback, datamodule=Digits(seed=seed), max_epochs=60, limit_val_batches=0)
        assert callback.analysis is not None
        found.append(callback.analysis.verdict)
        print(f"LR {lr:.3g}: {callback.analysis.verdict}: {callback.analysis.evidence}")
    places = [order[verdict] for verdict in found]
    assert places == sorted(places), found
    assert {"started too low", "useful window", "no time left to converge"} <= set(found)
    assert found[:13] == ["started too low"] * 13  # up to 1e-2
    assert {"started too low", "useful window"}.isdisjoint(found[-3:])  # from 2.2 on
