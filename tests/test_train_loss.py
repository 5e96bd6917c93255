"""One train loss: what is logged, what callbacks judge and what they draw is the same mean over samples."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from callback_fits import quietly
from foreign_modules import ForeignData, ForeignLayerNorm
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from lit_sphere.callbacks import (
    CosineRegimeAnalysis,
    FineTuneSwitch,
    OptimizerComparison,
    RegimeMonitor,
    SharpnessMonitor,
)
from lit_sphere.data import Digits
from lit_sphere.metrics import MeanLossAndError
from lit_sphere.modules import SIConvNet, SphereModule
from lit_sphere.observe.train_loss import TrainLoss, samples_in
from lit_sphere.switching import Switch

pytestmark = [
    quietly,
    pytest.mark.filterwarnings("ignore:.*loss_below.*never took place"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
]
EPOCHS = 3


class Witness(Callback):
    """Adds up what each batch gave, one by one, and asks those who judge an epoch's loss for theirs."""

    def __init__(self, switch: FineTuneSwitch) -> None:
        self.switch = switch
        self.batches: list[tuple[float, float, int]] = []
        self.sizes: list[int] = []
        self.loss: list[float] = []
        self.error: list[float] = []
        self.by_batches: list[float] = []
        self.watched: list[float] = []
        self.of_the_module: list[dict[str, float]] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        _, outputs, batch, _ = args
        error = float(outputs.get("error", math.nan))
        self.batches.append((float(outputs["loss"]) * trainer.accumulate_grad_batches, error, len(batch[1])))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.sizes = [size for *_, size in self.batches]
        sums = torch.tensor([[loss * n, error * n, n] for loss, error, n in self.batches], dtype=torch.float64).sum(0)
        loss, error, samples = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        self.loss.append(loss / samples)
        self.error.append(error / samples)
        self.by_batches.append(math.fsum(loss for loss, *_ in self.batches) / len(self.batches))
        self.watched.append(self.switch._loss.value(trainer, trainer.current_epoch))
        if isinstance(pl_module, SphereModule):
            means = pl_module.train_metrics.compute()
            self.of_the_module.append({name: value.item() for name, value in means.items()})
        self.batches = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch:
            self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)


class Judges:
    """All callbacks that have a train loss."""

    def __init__(self, steps: int) -> None:
        self.regime, self.schedule, self.sharpness = RegimeMonitor(), CosineRegimeAnalysis(), SharpnessMonitor()
        self.switch = FineTuneSwitch([Switch(loss_below=1e-9, lr=1e-3)])
        rival = {"SGD": lambda params: SGD(params, lr=0.01)}
        self.comparison = OptimizerComparison(rival, steps=None, every_n_steps=steps, granularity="tensor")
        self.witness = Witness(self.switch)
        self.callbacks = [self.switch, self.regime, self.schedule, self.sharpness, self.comparison, self.witness]

    def check(self, with_error: bool) -> None:
        """All have the losses of the witness, and not the means over batches, on every rank."""
        witness = self.witness
        assert min(abs(one / two - 1) for one, two in zip(witness.loss, witness.by_batches, strict=True)) > 1e-4
        expected = pytest.approx(witness.loss, rel=1e-13)
        assert witness.watched == expected
        for curves in (self.regime.state_dict()["curves"], self.schedule.state_dict()):
            assert [row["loss"] for row in curves["rows"]] == witness.watched
            if with_error:
                assert [row["error"] for row in curves["rows"]] == pytest.approx(witness.error, rel=1e-13)
        assert [row["loss"] for row in self.sharpness.state_dict()["rows"]] == witness.watched
        assert [row["run_loss"] for row in self.comparison.rows] == witness.watched


def fit(module: LightningModule, data: LightningDataModule, folder: Path, *callbacks: Callback, **options: Any) -> None:
    ckpt_path = options.pop("ckpt_path", None)
    Trainer(
        **{
            "max_epochs": EPOCHS,
            "accelerator": "cpu",
            "callbacks": list(callbacks),
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "default_root_dir": folder,
            **options,
        }
    ).fit(module, data, ckpt_path=ckpt_path)


def whole_space(width: int = 4) -> SIConvNet:
    torch.manual_seed(0)
    return SIConvNet(width=width, in_channels=1, optimizer=lambda params: SGD(params, lr=0.05))


def check_ours(judges: Judges) -> None:
    judges.check(with_error=True)
    witness = judges.witness
    rows = judges.regime.state_dict()["curves"]["rows"]
    assert [each["loss"] for each in witness.of_the_module] == witness.watched
    assert [each["error"] for each in witness.of_the_module] == [row["error"] for row in rows]
    for name in ("loss", "error"):
        assert [each[f"train/{name}"] for each in witness.logged] == [row[name] for row in rows]


def test_a_short_last_batch_counts_for_less_wherever_a_loss_is_judged(tmp_path: Path) -> None:
    judges = Judges(steps=4)
    fit(whole_space(), Digits(train_size=200, batch_size=64), tmp_path, *judges.callbacks)
    assert judges.witness.sizes == [64, 64, 64, 8]
    check_ours(judges)


def test_the_threshold_of_a_switch_lies_between_the_two_means(tmp_path: Path) -> None:
    """What is logged decides, and nothing else."""
    judges = Judges(steps=4)
    fit(whole_space(), Digits(train_size=200, batch_size=64), tmp_path, judges.switch, judges.witness)
    by_samples, by_batches = judges.witness.loss[0], judges.witness.by_batches[0]
    fired = {}
    for threshold in (by_samples * (1 - 1e-6), by_samples * (1 + 1e-6)):
        switch = FineTuneSwitch([Switch(loss_below=threshold, lr=1e-3)])
        fit(whole_space(), Digits(train_size=200, batch_size=64), tmp_path, switch, max_epochs=2)
        fired[threshold < by_samples] = [each["epoch"] for each in switch.fired]
    assert abs(by_batches / by_samples - 1) > 1e-4
    assert fired == {True: [], False: [1]}


class Uneven(LightningDataModule):
    """Two ranks have 15 and 13 samples, in three batches each."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.images, self.labels = torch.randn(28, 1, 8, 8, generator=g), torch.randint(10, (28,), generator=g)

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        mine = slice(0, 15) if self.trainer.global_rank == 0 else slice(15, 28)
        return DataLoader(TensorDataset(self.images[mine], self.labels[mine]), batch_size=5)


class CheckInRanks(Callback):
    """Judges the losses where they are: callbacks of a forked rank do not come back."""

    def __init__(self, judges: Judges, folder: Path) -> None:
        self.judges, self.folder = judges, folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert trainer.world_size == 2
        assert self.judges.witness.sizes == ([5, 5, 5] if trainer.is_global_zero else [5, 5, 3])
        check_ours(self.judges)
        (self.folder / f"{trainer.global_rank}").touch()


@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
def test_ranks_with_unequal_shares(tmp_path: Path) -> None:
    judges = Judges(steps=3)
    fit(
        whole_space(),
        Uneven(),
        tmp_path,
        *judges.callbacks,
        CheckInRanks(judges, tmp_path),
        devices=2,
        strategy="ddp_fork",
    )
    assert {"0", "1"} <= {each.name for each in tmp_path.iterdir()}


class Told(ForeignLayerNorm):
    """A foreign module that keeps its losses for itself, before Lightning divides them."""

    def __init__(self) -> None:
        super().__init__()
        self.own: list[tuple[float, int]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        self.own.append((loss.item(), len(batch[1])))
        return {"loss": loss, "error": (torch.arange(len(batch[1])) < 3 + batch_idx % 2).float().mean()}

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.05, momentum=0.9)


class Short(ForeignData):
    """Batches of 8, 8, 8 and 5."""

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*self.train[:29]), batch_size=8)


def test_a_foreign_module_that_accumulates_gradients(tmp_path: Path) -> None:
    judges, module = Judges(steps=2), Told()
    fit(module, Short(), tmp_path, *judges.callbacks, accumulate_grad_batches=2)
    assert judges.witness.sizes == [8, 8, 8, 5]
    judges.check(with_error=True)
    own = [module.own[4 * epoch : 4 * epoch + 4] for epoch in range(EPOCHS)]
    means = [math.fsum(loss * n for loss, n in each) / 29 for each in own]
    assert judges.witness.watched == pytest.approx(means, rel=1e-13)  # halves are exact
    assert [each["train_loss"] for each in judges.witness.logged] == pytest.approx(means, rel=1e-6)


class SaveAtStep(Callback):
    """Saves a checkpoint after the second batch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path, weights_only=False)


def _earlier(checkpoint: dict[str, Any]) -> None:
    """Turn the sums of a checkpoint into those of the version before, after two batches of 64."""
    state, metrics = checkpoint["callbacks"], checkpoint["train_metrics"]
    samples, half = metrics.pop("loss_samples"), metrics["loss_sum"] / 64
    wrong = metrics.pop("error_sum")
    assert samples == metrics.pop("error_samples") == 128
    metrics |= {"wrong": wrong, "count": samples}
    for key in state:
        kind = key.partition("{")[0]
        if kind in ("RegimeMonitor", "CosineRegimeAnalysis"):
            opened = (state[key]["curves"] if kind == "RegimeMonitor" else state[key])["open"]
            del opened["means"]
            opened |= {"sums": {"loss": half, "error": wrong / 64}, "batches": 2}
        elif kind == "SharpnessMonitor":
            state[key]["losses"] = {"evaluated": [torch.stack([half, half]) / 2], "sum": None, "steps": 2}
        elif kind == "FineTuneSwitch":
            assert state[key]["loss"].keys() >= {"loss_sum", "epoch", "logged"}
            state[key]["loss"] = {"epoch": 0, "sum": metrics["loss_sum"], "count": 128, "logged": None}
        elif kind == "OptimizerComparison":
            state[key]["run_losses"] = torch.stack([half, torch.tensor(2.0, dtype=torch.float64)])
            for rival in state[key]["rivals"]["copies"].values():
                rival["losses"] = state[key]["run_losses"]


def test_a_checkpoint_of_an_earlier_version_from_within_an_epoch(tmp_path: Path) -> None:
    """Where samples were not counted, a batch that was seen counts as one; all epochs after it are right."""
    whole, resumed = Judges(steps=4), Judges(steps=4)
    path = tmp_path / "old.ckpt"
    fit(whole_space(), Digits(train_size=200, batch_size=64), tmp_path, *whole.callbacks, SaveAtStep(path))
    checkpoint = torch.load(path, weights_only=True)
    _earlier(checkpoint)
    torch.save(checkpoint, path)
    fit(whole_space(), Digits(train_size=200, batch_size=64), tmp_path, *resumed.callbacks, ckpt_path=path)
    assert resumed.witness.watched == pytest.approx(whole.witness.watched, rel=1e-12)
    assert resumed.witness.of_the_module[0] == pytest.approx(whole.witness.of_the_module[0], rel=1e-12)
    seen = checkpoint["train_metrics"]["loss_sum"].item()
    first = (seen / 64 + whole.witness.loss[0] * 200 - seen) / (2 + 64 + 8)
    losses = [
        [row["loss"] for row in resumed.regime.state_dict()["curves"]["rows"]],
        [row["loss"] for row in resumed.schedule.state_dict()["rows"]],
        [row["loss"] for row in resumed.sharpness.state_dict()["rows"]],
        [row["run_loss"] for row in resumed.comparison.rows],
    ]
    assert losses == [pytest.approx([first, *whole.witness.loss[1:]], rel=1e-12)] * 4


# --- the sum itself


def test_batches_count_by_their_size_and_sums_are_float64() -> None:
    means = MeanLossAndError()
    batches = [(1.0 + i * 1e-6, (i % 5) / 5, 1 + i % 7) for i in range(1000)]
    for loss, error, samples in batches:
        means.update(torch.tensor(loss), torch.tensor(error, dtype=torch.float64), samples)
    total = sum(samples for *_, samples in batches)
    losses = math.fsum(torch.tensor(loss).double().item() * samples for loss, _, samples in batches)
    errors = math.fsum(error * samples for _, error, samples in batches)
    found = means.compute()
    assert found["loss"].item() == pytest.approx(losses / total, rel=1e-14)
    assert found["error"].item() == pytest.approx(errors / total, rel=1e-14)


def test_a_mean_of_nothing_is_nan_and_no_reason_to_warn() -> None:
    means = MeanLossAndError()
    assert means.compute()["loss"].isnan()
    means.update(torch.tensor(2.0), None, 3)
    found = means.compute()
    assert found["loss"] == 2
    assert found["error"].isnan()


def test_sums_go_on_after_they_were_begun_in_a_validation() -> None:
    means = MeanLossAndError()
    with torch.inference_mode():
        means.reset()
        means.update(torch.tensor(1.0), None, 1)
    means.update(torch.tensor(4.0), None, 2)
    assert means.compute()["loss"] == 3


def test_a_saved_state_goes_on_to_the_last_bit_and_does_not_change_any_more() -> None:
    values = torch.rand(20, generator=torch.Generator().manual_seed(0))
    whole, resumed = MeanLossAndError(), MeanLossAndError()
    for i, value in enumerate(values):
        if i == 7:
            saved = whole.state()
            before = {name: value.item() for name, value in saved.items()}
        whole.update(value, value / 3, i + 1)
    assert {name: value.item() for name, value in saved.items()} == before
    resumed.update(torch.tensor(99.0), None, 5)
    resumed.load_state(saved)
    for i, value in list(enumerate(values))[7:]:
        resumed.update(value, value / 3, i + 1)
    assert resumed.state() == whole.state()


EARLIER: dict[str, tuple[Any, float, float | None]] = {
    "SphereModule": (
        {"epoch": 3, "loss_sum": torch.tensor(6.0), "wrong": torch.tensor(1.0), "count": torch.tensor(4.0)},
        1.5,
        0.25,
    ),
    "curves": (
        {"epoch": 3, "sums": {"loss": torch.tensor(6.0), "error": torch.tensor(1.0)}, "batches": 4},
        1.5,
        0.25,
    ),
    "curves without an error": ({"epoch": 3, "sums": {"loss": torch.tensor(6.0)}, "batches": 4}, 1.5, None),
    "loss_below": ({"epoch": 3, "sum": torch.tensor(6.0), "count": 4, "logged": None}, 1.5, None),
    "sharpness": (
        {"evaluated": [torch.tensor([1.0, 2.0]), torch.tensor([0.5])], "sum": torch.tensor(2.5), "steps": 4},
        1.5,
        None,
    ),
    "comparison": (torch.tensor([6.0, 4.0], dtype=torch.float64), 1.5, None),
}


@pytest.mark.parametrize("kind", EARLIER)
def test_sums_of_earlier_versions_are_gone_on_with(kind: str) -> None:
    state, loss, error = EARLIER[kind]
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    means = TrainLoss()
    means.load_state(state)
    assert means.means(trainer) == {"loss": loss, **({} if error is None else {"error": error})}
    means.add_batch(torch.tensor(9.0), None, 4)
    assert means.means(trainer)["loss"] == (loss + 9) / 2


@pytest.mark.parametrize(
    "state", [None, {}, {"epoch": -1, "sum": None, "count": 0}, {"evaluated": [], "sum": None, "steps": 0}, {"x": 1}]
)
def test_a_state_of_nothing_begins_anew(state: Any) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    means = TrainLoss()
    means.add_batch(torch.tensor(9.0), None, 4)
    means.load_state(state)
    assert means.means(trainer) == {}


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (torch.zeros(5, 2), 5),
        (torch.tensor(3.0), 1),
        ((torch.zeros(5, 2), torch.zeros(4)), 5),
        ([torch.zeros(3), None], 3),
        ({"text": ["a", "b"], "x": torch.zeros(7, 1), "y": torch.zeros(6)}, 7),
        ({"a": {"b": (torch.tensor(1), torch.zeros(2))}}, 2),
        ("abc", 1),
        ([], 1),
        (None, 1),
    ],
)
def test_samples_in_a_batch(batch: Any, samples: int) -> None:
    assert samples_in(batch) == samples
