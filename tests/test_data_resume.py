"""A run that was killed and resumed ends bit for bit like the one that was not; ranks share each batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_sphere.data import Digits

EPOCHS = 3
BATCHES = 4


class Killed(Exception):
    """Stands for whatever ends a run."""


class Linear(LightningModule):
    """A classifier whose weights depend on the order, the content and the number of batches seen."""

    def __init__(self, plan_steps: bool = False, batch_norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 10)
        self.norm = nn.BatchNorm1d(64) if batch_norm else nn.Identity()
        self.plan_steps = plan_steps
        self.fail_in_step = -1

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.layer(self.norm(images.flatten(1))), labels)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.global_step == self.fail_in_step:
            raise Killed
        return self.loss(batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.plan_steps:
            assert self.trainer.estimated_stepping_batches == EPOCHS * BATCHES
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Kill(Callback):
    """Saves a checkpoint in a chosen hook, then ends the run."""

    def __init__(self, path: Path, step: int, hook: str) -> None:
        self.path, self.step = path, step
        setattr(self, hook, self.save)

    def save(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)
            raise Killed


class SaveOnException(Callback):
    """Saves a checkpoint wherever the run ended, as on Ctrl-C."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.path)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(callbacks=list(callbacks), **settings | options)


def digits(**options: Any) -> Digits:
    return Digits(batch_size=100, train_size=350, augment=True, **options)


def weights(model: Linear) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def uninterrupted(**options: Any) -> Tensor:
    model = Linear()
    trainer(**options).fit(model, datamodule=digits())
    return weights(model)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Many tiny operations: threads that compete for busy cores make them 20 times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def expected(one_thread: None) -> Tensor:
    return uninterrupted()


def resumed(path: Path, **options: Any) -> Tensor:
    model = Linear(plan_steps=options.pop("plan_steps", False))
    second = trainer(**options)
    second.fit(model, datamodule=digits(), ckpt_path=path)
    if second.max_steps == -1:
        assert second.global_step == EPOCHS * BATCHES
    return weights(model)


@pytest.mark.parametrize("plan_steps", [False, True])
@pytest.mark.parametrize("step", [1, 3, 4, 5, 8, 11])
def test_killed_after_a_batch(tmp_path: Path, expected: Tensor, step: int, plan_steps: bool) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(Killed):
        trainer(Kill(path, step, "on_train_batch_end")).fit(Linear(plan_steps), datamodule=digits())
    assert torch.equal(resumed(path, plan_steps=plan_steps), expected)


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_validation_end"])
def test_killed_between_epochs(tmp_path: Path, expected: Tensor, hook: str) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(Killed):
        trainer(Kill(path, 2 * BATCHES, hook)).fit(Linear(), datamodule=digits())
    assert torch.equal(resumed(path), expected)


@pytest.mark.parametrize("step", [0, 2, 4, 6])
def test_killed_within_a_batch(tmp_path: Path, expected: Tensor, step: int) -> None:
    path, model = tmp_path / "last.ckpt", Linear()
    model.fail_in_step = step
    with pytest.raises(Killed):
        trainer(SaveOnException(path)).fit(model, datamodule=digits())
    assert torch.equal(resumed(path), expected)


@pytest.mark.parametrize("step", [2, 6, 7])
def test_limited_epochs_and_steps(tmp_path: Path, step: int) -> None:
    path, options = tmp_path / "last.ckpt", {"limit_train_batches": 3, "max_steps": 8, "max_epochs": -1}
    with pytest.raises(Killed):
        trainer(Kill(path, step, "on_train_batch_end"), **options).fit(Linear(), datamodule=digits())
    assert torch.equal(resumed(path, **options), uninterrupted(**options))


def test_loader_alone_resumes_by_its_own_state(tmp_path: Path, expected: Tensor) -> None:
    """Without the data module in the Trainer, the saved state of the loader is all there is."""

    def fit(model: Linear, *callbacks: Callback, ckpt_path: Path | None = None) -> None:
        data = digits()
        data.setup("fit")
        loaders = data.train_dataloader(), data.val_dataloader()
        trainer(*callbacks).fit(model, *loaders, ckpt_path=ckpt_path)

    path, model = tmp_path / "last.ckpt", Linear()
    with pytest.raises(Killed):
        fit(Linear(), Kill(path, 6, "on_train_batch_end"))
    fit(model, ckpt_path=path)
    assert torch.equal(weights(model), expected)


def test_another_pass_does_not_disturb_a_resumed_run(tmp_path: Path, expected: Tensor) -> None:
    class Pass(Callback):
        def on_train_start(self, trainer: Trainer, *args: Any) -> None:
            assert len(list(trainer.datamodule.train_pass_dataloader())) == BATCHES  # type: ignore[attr-defined]

        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            assert len(list(trainer.datamodule.train_dataloader())) == BATCHES  # type: ignore[attr-defined]
            assert len(list(trainer.train_dataloader)) == BATCHES  # type: ignore[arg-type]

    path, model = tmp_path / "last.ckpt", Linear()
    with pytest.raises(Killed):
        trainer(Kill(path, 5, "on_train_batch_start")).fit(model, datamodule=digits())
    model = Linear()
    trainer(Pass()).fit(model, datamodule=digits(), ckpt_path=path)
    assert torch.equal(weights(model), expected)


class Watch(Callback):
    """Writes down which batches each rank was given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, list[list[int]]] = {"train": [], "val": []}

    def note(self, kind: str, batch: tuple[Tensor, Tensor]) -> None:
        self.seen[kind].append([hash(image.numpy().tobytes()) for image in batch[0]])

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, *args: Any) -> None:
        self.note("train", batch)

    def on_validation_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, *args: Any) -> None:
        self.note("val", batch)

    def on_fit_end(self, trainer: Trainer, *args: Any) -> None:
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.seen))


@pytest.mark.parametrize("distributed_sampler", [False, True])
def test_two_processes_share_each_batch(tmp_path: Path, distributed_sampler: bool) -> None:
    """Of 7 images in batches of 2, the last would leave a rank without: there are 2, 2 and 3 instead."""
    options: dict[str, Any] = {"use_distributed_sampler": distributed_sampler, "max_epochs": 2}
    seen = {}
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        model = Linear(batch_norm=True)
        more = {"devices": 2, "strategy": "ddp_fork"} if world_size == 2 else {}
        runner = trainer(Watch(folder), **options, **more)
        runner.fit(model, datamodule=digits(val_size=7, eval_batch_size=2))
        seen[world_size] = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]
    one, (first, second) = seen[1][0], seen[2]
    for whole, mine, other in zip(one["train"], first["train"], second["train"], strict=True):
        assert whole[0::2] == mine
        assert whole[1::2] == other
    shards = first["val"] + second["val"]
    assert [len(batch) for batch in first["val"]] == [1, 1, 2] * 2
    assert [len(batch) for batch in second["val"]] == [1, 1, 1] * 2
    images = [sorted(image for batch in batches for image in batch) for batches in (shards, one["val"])]
    assert images[0] == images[1]


def test_overfit_batches_repeats_the_same_batches_without_a_warning(tmp_path: Path) -> None:
    data = Digits(batch_size=100, train_size=350)
    trainer(Watch(tmp_path), overfit_batches=2, max_epochs=3).fit(Linear(), datamodule=data)
    seen = json.loads((tmp_path / "0.json").read_text())["train"]
    assert seen == seen[:2] * 3
    assert seen[0] != seen[1]
