"""Short fits with a callback, and all that can be said of a run afterwards, for tests to compare."""

import random
import re
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from callback_registry import EPOCHS, REGISTRY
from foreign_modules import cases
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch import Tensor

# On machines with more cores Lightning would have every DataLoader use them.
_NOISE = r".*many workers|.*self\.log.* but have no logger|.*LeafSpec|.*ModelCheckpoint|.*jsonargparse"
quietly = pytest.mark.filterwarnings(f"ignore:{_NOISE}")

HAS_WANDB = find_spec("wandb") is not None  # of the extra cli

Log = dict[tuple[int, str], float]


class Memory(Logger):
    """What was logged, by step and key, on every rank; a resumed run adds to it."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: Log = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.logged.update({(step, key): value for key, value in metrics.items()})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Wandb(WandbLogger):
    """Notes the pictures that a W&B run would get."""

    name = version = save_dir = experiment = None

    def __init__(self) -> None:
        self.images: set[str] = set()

    def log_metrics(self, *_: Any, **__: Any) -> None:
        pass

    log_hyperparams = after_save_checkpoint = save = finalize = log_metrics

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        assert all(Path(image).is_file() for image in images)
        self.images.add(f"{key.removeprefix('pictures/')}.png")


@dataclass
class Outcome:
    """What a fit came to."""

    folder: Path
    logged: Log
    images: set[str]
    tensors: dict[str, Tensor]
    warned: list[str]
    callback_state: Any

    @property
    def keys(self) -> set[str]:
        return {key for _, key in self.logged}


def trainer_for(case: str, callbacks: list[Callback], folder: Path, **options: Any) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": EPOCHS,
            "callbacks": callbacks,
            "default_root_dir": folder,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "enable_progress_bar": any(isinstance(each, ProgressBar) for each in callbacks),
            "enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks),
            "use_distributed_sampler": False,
            **cases()[case].options,
            **options,
        }
    )


def fit(case: str, callbacks: list[Callback], folder: Path, memory: Memory | None = None, **options: Any) -> Outcome:
    """Fit a fresh module; the first callback is the one in question."""
    ckpt_path = options.pop("ckpt_path", None)
    memory, wandb = Memory() if memory is None else memory, Wandb()
    loggers = [CSVLogger(folder, name="", version=""), memory, *([wandb] if HAS_WANDB else [])]
    options.setdefault("logger", loggers)
    random.seed(0)
    np.random.seed(0)
    module = cases()[case].make()  # seeds torch
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = trainer_for(case, callbacks, folder, **options)
        trainer.fit(module, cases()[case].data(), ckpt_path=ckpt_path)
    warned = [f"{each.category.__name__}: {each.message}" for each in caught]
    surprises = [one for one in warned if not re.search(_NOISE, one, re.DOTALL)]
    state = callbacks[0].state_dict() if callbacks else None
    return Outcome(folder, memory.logged, wandb.images, everything(trainer, module), surprises, state)


def everything(trainer: Trainer, module: LightningModule) -> dict[str, Tensor]:
    """All of a run that a monitor could disturb."""
    found = {f"weights {name}": value for name, value in module.state_dict().items()}
    for number, optimizer in enumerate(trainer.optimizers):
        for name, state in optimizer.state_dict()["state"].items():
            found |= {f"optimizer {number} {name} {key}": torch.as_tensor(value) for key, value in state.items()}
        for index, group in enumerate(optimizer.param_groups):
            numbers = {key: value for key, value in group.items() if isinstance(value, (int, float))}
            found |= {f"option {number} {index} {key}": torch.tensor(value) for key, value in numbers.items()}
    found["torch RNG"] = torch.get_rng_state()
    numpy_state: Any = np.random.get_state()
    found["numpy RNG"] = torch.from_numpy(numpy_state[1].astype(np.int64))
    found["python RNG"] = torch.tensor(random.getstate()[1])
    found["modes"] = torch.tensor([each.training for each in module.modules()])
    found["trained"] = torch.tensor([p.requires_grad for p in module.parameters()])
    return found


_folders = tempfile.TemporaryDirectory(prefix="lit-sphere-test-")


@cache
def fitted(name: str | None, case: str) -> Outcome:
    """Fit with an entry of the registry, or with none, once for all tests."""
    folder = Path(_folders.name) / f"{name}-{case}"
    return fit(case, [REGISTRY[name].make(folder)] if name else [], folder)


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    different = [name for name, value in one.items() if not torch.equal(value, two[name])]
    assert not different, different[:5]
