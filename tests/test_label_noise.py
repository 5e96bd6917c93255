"""Loss and error of training, apart for clean and for corrupted labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.nn import functional as F

from lit_sphere.callbacks import SharpnessMonitor
from lit_sphere.data import Digits
from lit_sphere.metrics import LossAndErrorByLabel
from lit_sphere.modules import SIConvNet

KEYS = {f"{name}_{labels}" for name in ("loss", "error") for labels in ("clean", "corrupted")}


class Samples(Callback):
    """Keeps logits and labels of each training sample of the last epoch, by its index in the train set."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Tensor, int]] = []
        self._logits: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.network.register_forward_hook(lambda _, __, logits: self._logits.append(logits.detach()))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.seen = []
        self._logits.clear()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loader: Any = trainer.train_dataloader
        indices = loader.rank_indices(batch_idx, loader.sampler.indices())
        self.seen += zip(indices.tolist(), torch.cat(self._logits), batch[1].tolist(), strict=True)
        self._logits.clear()


def fit(data: Digits, folder: Path, *callbacks: Callback, epochs: int = 2, **options: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )
    trainer.fit(SIConvNet(width=4, in_channels=1, **options), data)
    return trainer


def slow_means(samples: list[tuple[Tensor, int, bool]], loss: str) -> dict[str, float]:
    """One sample after the other."""
    found: dict[str, list[float]] = {}
    for logits, label, is_corrupted in samples:
        if loss == "mse":
            value = (logits - F.one_hot(torch.tensor(label), 10)).square().mean().item()
        else:
            value = -logits.log_softmax(0)[label].item()
        labels = "corrupted" if is_corrupted else "clean"
        found.setdefault(f"loss_{labels}", []).append(value)
        found.setdefault(f"error_{labels}", []).append(float(int(logits.argmax()) != label))
    return {name: sum(values) / len(values) for name, values in found.items()}


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("cross_entropy", {"batch_size": 64}),
        ("mse", {"batch_size": 64}),
        ("cross_entropy", {"full_batch": True, "chunk_size": 60}),
    ],
)
def test_means_of_clean_and_corrupted_labels_equal_the_slow_ones(
    loss: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    samples, true = Samples(), Digits(train_size=200)
    true.setup()
    trainer = fit(Digits(train_size=200, label_noise=0.5, **options), tmp_path, samples, elr=1e-3, loss=loss)
    clean_labels = true.train_set.labels.tolist()
    assert len(samples.seen) == 200
    wanted = slow_means([(logits, label, label != clean_labels[i]) for i, logits, label in samples.seen], loss)
    logged = {key: float(trainer.callback_metrics[f"train/{key}"]) for key in KEYS}
    assert logged == pytest.approx(wanted, rel=1e-5)
    assert abs(logged["loss_clean"] - logged["loss_corrupted"]) > 1e-3, "the two must be told apart"


def test_nothing_is_split_without_noise(tmp_path: Path) -> None:
    trainer = fit(Digits(train_size=64, batch_size=32), tmp_path, SharpnessMonitor(train_pass_every=1), elr=1e-3)
    assert "train_pass/loss" in trainer.callback_metrics
    assert not [key for key in trainer.callback_metrics if "clean" in key or "corrupted" in key]


@pytest.mark.parametrize("train_size", [129, 150])  # the last batch of a pass is joined to the one before, or shorter
def test_a_pass_at_fixed_weights_is_split_too(train_size: int, tmp_path: Path) -> None:
    data = Digits(train_size=train_size, batch_size=64, label_noise=0.5)
    trainer = fit(data, tmp_path, SharpnessMonitor(train_pass_every=1), epochs=1, elr=1e-3)
    network: Any = trainer.lightning_module
    network.train()
    loader, samples, at = data.train_pass_dataloader(), [], 0
    for images, labels in loader:
        for logits, label in zip(network(images).detach(), labels.tolist(), strict=True):
            samples.append((logits, label, bool(data.corrupted[at])))
            at += 1
    found = {key: float(trainer.callback_metrics[f"train_pass/{key}"]) for key in KEYS}
    assert found == pytest.approx(slow_means(samples, "cross_entropy"), rel=1e-4)
    both = sum(
        found[f"loss_{kind}"] * n
        for kind, n in (("clean", data.corrupted.logical_not().sum()), ("corrupted", data.corrupted.sum()))
    )
    assert float(both) / train_size == pytest.approx(float(trainer.callback_metrics["train_pass/loss"]), rel=1e-5)


def test_a_mean_of_nothing_is_left_out_and_a_loss_of_infinity_stays_with_its_labels() -> None:
    metric = LossAndErrorByLabel()
    assert metric.compute() == {}
    metric.update(torch.tensor([1.0, 3.0]), torch.tensor([True, False]), torch.tensor([False, False]))
    assert {key: float(value) for key, value in metric.compute().items()} == {"loss_clean": 2.0, "error_clean": 0.5}
    metric.update(torch.tensor([torch.inf]), torch.tensor([True]), torch.tensor([True]))
    assert {key: float(value) for key, value in metric.compute().items()}["loss_clean"] == 2.0
    assert metric.compute()["loss_corrupted"].isinf()


def test_state_of_another_form_begins_anew() -> None:
    metric = LossAndErrorByLabel()
    metric.update(torch.ones(2), torch.ones(2).bool(), torch.ones(2).bool())
    state = metric.state()
    metric.load_state(None)
    assert metric.compute() == {}
    metric.load_state(state)
    assert metric.compute()["error_corrupted"] == 1
