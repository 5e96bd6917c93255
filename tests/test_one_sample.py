"""Train sets whose last batch would hold one sample, on which batch norm cannot work in train mode."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from callback_fits import Memory, quietly
from conftest import LitSphere
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lit_sphere.callbacks import CheckpointSimilarity, LinearInterpolationBarrier, SharpnessMonitor
from lit_sphere.data.order import training_bounds
from lit_sphere.observe.passes import _none_of_one_sample

pytestmark = quietly
_BATCH = 8


class ForeignBatchNorm(LightningModule):
    """Its training loader leaves the last sample out, as many do because of batch norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 3)
        )
        self.example_input_array = torch.randn(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _loader(batches: int, drop_last: bool) -> DataLoader[Any]:
    g = torch.Generator().manual_seed(batches)
    count = batches * _BATCH + 1
    data = TensorDataset(torch.randn(count, 6, generator=g), torch.randint(3, (count,), generator=g))
    return DataLoader(data, _BATCH, drop_last=drop_last)


@pytest.mark.parametrize(
    ("callback", "key"),
    [
        (SharpnessMonitor(train_pass_every=1, curvature_at_end=True, curvature_vectors=2), "train_pass/loss"),
        (LinearInterpolationBarrier(every_n_epochs=1, points=3), "barrier/val_loss"),
        (LinearInterpolationBarrier(every_n_epochs=1, points=3, statistics="reestimated"), "barrier/train_loss"),
        (CheckpointSimilarity(every_n_epochs=1), "ensemble/error"),
    ],
)
def test_passes_of_callbacks(callback: Callback, key: str, tmp_path: Path) -> None:
    memory = Memory()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[callback],
        logger=memory,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
    )
    trainer.fit(ForeignBatchNorm(), _loader(4, drop_last=True), _loader(2, drop_last=False))
    assert trainer.global_step == 8
    assert any(name == key and value == value for (_, name), value in memory.logged.items())


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Sample:
    x: Tensor
    y: Tensor


@pytest.mark.parametrize("kind", [lambda x, y: [x, y], lambda x, y: (x, y), Pair])
def test_the_last_sample_is_joined_and_none_is_lost(kind: Any) -> None:
    x, y = torch.arange(33.0).view(33, 1), torch.arange(33)
    passed = list(_none_of_one_sample(kind(a, b) for a, b in zip(x.split(8), y.split(8), strict=True)))
    assert [len(batch[1]) for batch in passed] == [8, 8, 8, 9]
    assert type(passed[-1]) is type(kind(x, y))
    assert torch.equal(torch.cat([batch[0] for batch in passed]), x)
    assert torch.equal(torch.cat([batch[1] for batch in passed]), y)


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        (lambda x, y: {"x": x, "y": y}, lambda batch: batch["x"]),
        (lambda x, y: ([x, -x], y), lambda batch: batch[0][0]),
        (Sample, lambda batch: batch.x),
        (lambda x, y: x, lambda batch: batch),
    ],
)
def test_so_it_is_whatever_holds_the_tensors(kind: Any, first: Any) -> None:
    x, y = torch.arange(33.0).view(33, 1), torch.arange(33)
    passed = list(_none_of_one_sample(kind(a, b) for a, b in zip(x.split(8), y.split(8), strict=True)))
    assert [len(first(batch)) for batch in passed] == [8, 8, 8, 9]
    assert type(passed[-1]) is type(kind(x, y))
    assert torch.equal(torch.cat([first(batch) for batch in passed]), x)


@pytest.mark.parametrize(
    "batches",
    [
        [],
        [(torch.zeros(1, 2), torch.zeros(1))],
        [(torch.zeros(1, 2), torch.zeros(1))] * 3,
        [(torch.zeros(3, 2), torch.zeros(3)), (torch.zeros(2, 2), torch.zeros(2))],
        [(torch.zeros(3, 2), torch.zeros(3)), (torch.zeros(1, 5), torch.zeros(1))],
        [{"x": torch.zeros(3)}, {"y": torch.zeros(1)}],
        [{"x": torch.zeros(3), "file": ["a", "b", "c"]}, {"x": torch.zeros(1), "file": ["d"]}],
        [torch.zeros(3, 2), torch.zeros(1, 5)],
    ],
)
def test_other_batches_are_left_alone(batches: list[Any]) -> None:
    assert all(one is two for one, two in zip(_none_of_one_sample(batches), batches, strict=True))


def test_our_own_loaders_train_on_it_too(empty_folder: Path, lit_sphere: LitSphere) -> None:
    """ResNet-18 leaves one pixel of a digit, and so one value per channel of one image."""
    assert training_bounds(65, 32) == [(0, 32), (32, 65)]
    assert training_bounds(66, 32, 2) == [(0, 32), (32, 66)]
    assert training_bounds(5, 2, 2) == [(0, 2), (2, 4)]
    few = ("--data.train_size", "65", "--data.batch_size", "32", "--trainer.max_epochs", "2", "--wandb", "disabled")
    sharpness = ("--trainer.callbacks+=SharpnessMonitor", "--trainer.callbacks.train_pass_every", "1")
    done = lit_sphere("fit", "--model", "SIResNet18", "--model.width", "2", "--model.elr", "1e-3", *few, *sharpness)
    assert done.status == 0, done.err
    assert "2 epochs, 4 steps" in done.out
