"""Checkpoints are whole files, in their places no earlier than what was logged before them."""

import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_sphere.callbacks import GracefulStop, RunCheckpoint
from lit_sphere.observe.checkpoint_files import WholeCheckpointIO


class _Logger(CSVLogger):
    """Notes what last.ckpt holds when a row has just been logged, and fails at a step."""

    def __init__(self, folder: Path, fails_at: int | None = None, error: type[Exception] = OSError) -> None:
        super().__init__(folder, name="", version="")
        self.folder, self.fails_at, self.error = folder, fails_at, error
        self.seen: list[tuple[int, int | None]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        assert step is not None
        self.seen.append((step + 1, _step_in(self.folder / "last.ckpt")))
        if step + 1 == self.fails_at:
            raise self.error("no row was written")
        super().log_metrics(metrics, step)


def _step_in(path: Path) -> int | None:
    return torch.load(path, weights_only=True)["global_step"] if path.exists() else None


class Foreign(LightningModule):
    """Logs every epoch, and every step if that is asked for."""

    def __init__(self, on_step: bool = False) -> None:
        super().__init__()
        self.model, self.logs_steps = nn.Linear(2, 1), on_step

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.model(batch[0]).square().mean()
        self.log("said", loss, on_step=self.logs_steps, on_epoch=True)
        return loss  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: LightningModule, *callbacks: Callback, max_epochs: int = 2, logger: Any = False, **more: Any) -> None:
    """Epochs of four steps."""
    data = DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=2)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    trainer = Trainer(
        accelerator="cpu", callbacks=list(callbacks), max_epochs=max_epochs, logger=logger, **quiet, **more
    )
    trainer.fit(module, data)


def test_a_checkpoint_takes_its_place_when_its_epoch_is_logged(tmp_path: Path) -> None:
    logger = _Logger(tmp_path)
    fit(Foreign(), RunCheckpoint(tmp_path, least_seconds=0), max_epochs=3, logger=logger)
    ends = [seen for seen in logger.seen if seen[0] in (4, 8, 12)]
    assert {seen for seen in ends if seen[0] == 4} == {(4, None)}
    assert {seen for seen in ends if seen[0] == 8} == {(8, 4)}
    assert {seen for seen in ends if seen[0] == 12} == {(12, 8)}
    assert _step_in(tmp_path / "last.ckpt") == 12


def test_a_checkpoint_of_a_step_takes_its_place_when_the_step_is_logged(tmp_path: Path) -> None:
    logger = _Logger(tmp_path)
    fit(Foreign(on_step=True), RunCheckpoint(tmp_path, every_n_steps=1), max_epochs=1, logger=logger)
    steps = {step: held for step, held in logger.seen if step < 4}
    assert steps == {1: None, 2: 1, 3: 2}


@pytest.mark.parametrize(("error", "held"), [(OSError, 4), (RuntimeError, 8)])
def test_what_could_not_be_logged_is_not_in_the_checkpoint(error: type[Exception], held: int, tmp_path: Path) -> None:
    """A full disk: the run that goes on logs that epoch itself. Another failure costs no epoch."""
    with pytest.raises(error, match="no row"):
        fit(Foreign(), RunCheckpoint(tmp_path, least_seconds=0), max_epochs=3, logger=_Logger(tmp_path, 8, error))
    assert _step_in(tmp_path / "last.ckpt") == held


class _Fails(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise RuntimeError("at the start of an epoch")


def test_an_epoch_that_was_logged_survives_what_fails_next(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="start of an epoch"):
        fit(Foreign(), _Fails(), RunCheckpoint(tmp_path, least_seconds=0), max_epochs=3, logger=_Logger(tmp_path))
    assert _step_in(tmp_path / "last.ckpt") == 8


def test_no_other_folder_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning goes through the temporary folder, which may be on another device or full."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    fit(Foreign(), RunCheckpoint(tmp_path / "ours"), GracefulStop(tmp_path / "ours"))
    assert os.listdir(tmp_path / "ours") == ["last.ckpt"]
    with pytest.raises(OSError, match="nowhere"):
        TorchCheckpointIO().save_checkpoint({}, tmp_path / "theirs.ckpt")


def test_a_full_disk_names_the_checkpoint(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large") as raised:
            fit(Foreign(), RunCheckpoint(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == str(tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == []


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    for name in (".last.ckpt.pending", "..last.ckpt.pending.part", ".epoch0001-step000008.ckpt.pending", "mine.ckpt"):
        (tmp_path / name).write_bytes(b"half")
    fit(Foreign(), RunCheckpoint(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "mine.ckpt"]


def test_a_way_to_save_that_was_chosen_is_kept(tmp_path: Path) -> None:
    class Mine(TorchCheckpointIO):
        saved: int = 0

        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            self.saved += 1
            super().save_checkpoint(checkpoint, path, storage_options)

    mine = Mine()
    fit(Foreign(), RunCheckpoint(tmp_path), plugins=[mine])
    assert mine.saved
    assert _step_in(tmp_path / "last.ckpt") == 8


def test_the_files_are_as_lightning_writes_them(tmp_path: Path) -> None:
    content = {"state_dict": {"weight": torch.arange(3.0)}, "epoch": 1}
    WholeCheckpointIO().save_checkpoint(content, tmp_path / "new" / "ours.ckpt")
    read = TorchCheckpointIO().load_checkpoint(tmp_path / "new" / "ours.ckpt", weights_only=True)
    assert torch.equal(read["state_dict"]["weight"], content["state_dict"]["weight"])  # type: ignore[index]
    with pytest.raises(TypeError, match="storage_options"):
        WholeCheckpointIO().save_checkpoint(content, tmp_path / "ours.ckpt", storage_options={})


def test_a_checkpoint_of_the_last_step_is_one_of_the_epoch(tmp_path: Path) -> None:
    """A run that went on from a checkpoint before the end of the epoch would end it, and log it, a second time."""
    fit(Foreign(), RunCheckpoint(tmp_path, every_n_steps=4, keep_all=True))
    saved = torch.load(tmp_path / "epoch0000-step000004.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 1
