"""Gradient descent: one gradient of the whole set for each step, in chunks that fit memory."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lit_sphere.callbacks import EffectiveLearningRateMonitor
from lit_sphere.data import CIFAR10, Digits
from lit_sphere.modules import SIConvNet

LR, WEIGHT_DECAY = 0.1, 0.01


def module_of(seed: int = 0) -> SIConvNet:
    torch.manual_seed(seed)
    return SIConvNet(
        width=2,
        in_channels=1,
        optimizer=lambda params: torch.optim.SGD(params, lr=LR, weight_decay=WEIGHT_DECAY),
    )


def run(
    folder: Path,
    epochs: int = 2,
    devices: int = 1,
    ckpt_path: Path | None = None,
    callbacks: tuple[Callback, ...] = (),
    precision: Any = "64-true",
    **data: Any,
) -> tuple[SIConvNet, dict[str, float]]:
    module = module_of()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[EffectiveLearningRateMonitor(), *callbacks],
    )
    trainer.fit(module, Digits(full_batch=True, **data), ckpt_path=ckpt_path)
    return module, {key: float(value) for key, value in trainer.callback_metrics.items()}


def weights(module: SIConvNet) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.network.parameters()])


class SaveAt(Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path, weights_only=False)


def test_a_step_is_the_mean_gradient_of_the_chunks_in_the_order_of_the_files(tmp_path: Path) -> None:
    module, logged = run(tmp_path, epochs=1, train_size=100, chunk_size=30)
    data = Digits(train_size=100, full_batch=True)
    data.setup("fit")
    network = copy.deepcopy(module_of().network).double()
    with torch.no_grad():
        images, labels = (torch.cat(each) for each in zip(*data.train_pass_dataloader(), strict=True))
    losses = []
    for start, stop in ((0, 30), (30, 60), (60, 90), (90, 100)):
        loss = torch.nn.functional.cross_entropy(network(images[start:stop].double()), labels[start:stop])
        losses.append(loss * (stop - start) / 100)
    torch.stack(losses).sum().backward()
    with torch.no_grad():
        for p in network.parameters():
            if p.grad is not None:
                p.sub_(LR * (p.grad + WEIGHT_DECAY * p))
    for ours, theirs in zip(module.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert logged["train/loss"] == pytest.approx(sum(each.item() for each in losses), rel=1e-5)


def test_a_chunk_of_all_images_changes_nothing(tmp_path: Path) -> None:
    whole, _ = run(tmp_path, train_size=64)
    in_one, _ = run(tmp_path, train_size=64, chunk_size=64)
    assert torch.equal(weights(whole), weights(in_one))
    in_two, _ = run(tmp_path, train_size=64, chunk_size=32)
    assert not torch.allclose(weights(whole), weights(in_two), rtol=1e-6)  # other statistics


def test_two_ranks_take_the_steps_of_one_with_batch_norm(tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_size": 96, "chunk_size": 24}
    (one, logged_by_one), (two, logged_by_two) = (run(tmp_path, devices=devices, **options) for devices in (1, 2))
    # From forked ranks the weights come back into a float32 module.
    torch.testing.assert_close(weights(one).float(), weights(two).float(), rtol=1e-6, atol=1e-7)
    for key in ("train/loss", "train/error", "elr/total", "effective_grad_norm/total"):
        assert logged_by_one[key] == pytest.approx(logged_by_two[key], rel=1e-9), key


def test_a_resumed_run_is_bit_identical(tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_size": 90, "chunk_size": 40, "precision": "32-true", "epochs": 4}
    whole, logged = run(tmp_path, callbacks=(SaveAt(tmp_path / "at.ckpt", 2),), **options)
    resumed, logged_again = run(tmp_path, ckpt_path=tmp_path / "at.ckpt", **options)
    assert torch.equal(weights(whole), weights(resumed))
    assert logged == logged_again


def test_a_pass_over_the_train_set_is_in_the_same_chunks() -> None:
    data = Digits(train_size=100, full_batch=True, chunk_size=33)
    data.setup("fit")
    assert [len(labels) for _, labels in data.train_pass_dataloader()] == [33, 33, 34]  # a single one is joined
    assert [len(labels) for _, labels in data.train_dataloader()] == [100]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"full_batch": True, "augment": True}, "full_batch and augment are both true"),
        ({"chunk_size": 100}, "chunk_size 100 is of a full batch"),
        ({"full_batch": True, "chunk_size": 1}, "chunk_size must be at least 2"),
    ],
)
def test_bad_input(options: dict[str, Any], words: str) -> None:
    for data in (Digits, CIFAR10):
        with pytest.raises(ValueError, match=words):
            data(**options)
