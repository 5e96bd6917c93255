"""Every callback in a run that is killed and resumed, and in a run of two processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from callback_fits import Log, Memory, assert_equal, fit, fitted, quietly, trainer_for
from callback_registry import REGISTRY, is_first
from foreign_modules import BATCHES, cases
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger

pytestmark = quietly


class Killed(Exception):
    """The process ends here."""


class SaveAndDie(Checkpoint):
    """Saves a checkpoint at some moment, and dies at the end of the next batch."""

    def __init__(self, file: Path, moment: tuple[str, int, int], memory: Memory) -> None:
        self.file, self.moment, self.memory = file, moment, memory
        self.saved: Log | None = None

    def _at(self, trainer: Trainer, hook: str, batch: int = -1) -> None:
        if self.moment == (hook, trainer.current_epoch, batch):
            trainer.save_checkpoint(self.file)
            self.saved = dict(self.memory.logged)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.saved is not None:
            raise Killed
        self._at(trainer, "batch", batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._at(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._at(trainer, "epoch")


_MOMENTS = {
    "first batch": ("batch", 0, 0),
    "mid-epoch": ("batch", 1, 1),
    "last batch": ("batch", 1, BATCHES - 1),
    "validation": ("validation", 0, -1),
    "epoch end": ("epoch", 1, -1),
}
# Lightning does not end an epoch again whose last batch is in the checkpoint: what is logged then has been logged.
_ENDS_ONCE = ("last batch", "validation")
_BY_DEFAULT = {"mid-epoch": "ours", "last batch": "layer_norm", "epoch end": "layer_norm"}


def _quick_case(cases: tuple[str, ...], moment: str) -> str | None:
    case = _BY_DEFAULT.get(moment)
    return case if case is None or case in cases else cases[0]


def _interruptions() -> list[Any]:
    found = []
    for name, entry in REGISTRY.items():
        for case in entry.cases:
            for moment in _MOMENTS:
                if case == "accumulated" and moment == "first batch":
                    continue  # gradients that wait for the next batch are in no checkpoint of Lightning's
                if name == "periods" and case == "manual" and moment in _ENDS_ONCE:
                    continue  # phases go by the loss, which this module only logs: Lightning forgets that epoch's
                quick = is_first(name) and case == _quick_case(entry.cases, moment)
                found.append(pytest.param(name, case, moment, marks=[] if quick else pytest.mark.slow))
    return found


@pytest.mark.parametrize(("name", "case", "moment"), _interruptions())
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    name: str, case: str, moment: str, tmp_path: Path
) -> None:
    whole, memory = fitted(name, case), Memory()
    die = SaveAndDie(tmp_path / "kill.ckpt", _MOMENTS[moment], memory)
    with pytest.raises(Killed):
        fit(case, [REGISTRY[name].make(tmp_path), die], tmp_path, memory)
    assert die.saved is not None
    if moment not in _ENDS_ONCE:
        memory.logged = die.saved
    resumed = fit(case, [REGISTRY[name].make(tmp_path)], tmp_path, memory, ckpt_path=tmp_path / "kill.ckpt")
    # Lightning does not save the state of random generators.
    assert_equal(*({k: v for k, v in each.tensors.items() if "RNG" not in k} for each in (whole, resumed)))
    # Nor, in a module that is not ours, the means of an unfinished epoch.
    its_own = whole.keys - fitted(None, case).keys
    expected = {key: value for key, value in whole.logged.items() if key[1] in its_own}
    assert {key: value for key, value in resumed.logged.items() if key[1] in its_own} == expected


class WriteDown(Callback):
    """Leaves each rank's weights and log in a file."""

    def __init__(self, folder: Path, memory: Memory) -> None:
        self.folder, self.memory = folder, memory

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        metrics = {(-1, key): float(value) for key, value in trainer.callback_metrics.items()}
        found = {"weights": pl_module.state_dict(), "logged": self.memory.logged | metrics}
        torch.save(found, self.folder / f"{trainer.world_size}-{trainer.global_rank}.pt")


def _run(name: str, folder: Path, devices: int) -> list[Any]:
    memory = Memory()
    callbacks = [REGISTRY[name].make(folder / str(devices)), WriteDown(folder, memory)]
    options = {"devices": devices, "strategy": "ddp_fork" if devices > 1 else "auto", "precision": "64-true"}
    logger = [CSVLogger(folder / str(devices), name="", version=""), memory]
    trainer = trainer_for("layer_norm", callbacks, folder, logger=logger, **options)
    trainer.fit(cases()["layer_norm"].make(), cases()["layer_norm"].data())
    files = [folder / f"{devices}-{rank}.pt" for rank in range(devices)]
    return [torch.load(file, weights_only=True) for file in files]


@pytest.mark.timeout(120)
@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if is_first(name) else [pytest.mark.slow])
        for name, entry in REGISTRY.items()
        if "layer_norm" in entry.cases
    ],
)
def test_two_ranks_do_what_one_does(name: str, tmp_path: Path) -> None:
    (one,), (first, second) = _run(name, tmp_path, 1), _run(name, tmp_path, 2)
    assert_equal(first["weights"], second["weights"])
    both = first["logged"].keys() & second["logged"].keys()
    assert {key: first["logged"][key] for key in both} == {key: second["logged"][key] for key in both}
    assert first["logged"].keys() == one["logged"].keys()
    for key, value in one["logged"].items():
        assert first["logged"][key] == pytest.approx(value, rel=1e-5, abs=1e-9, nan_ok=True), key
    for key, value in one["weights"].items():
        torch.testing.assert_close(first["weights"][key], value, rtol=1e-6, atol=1e-9)
