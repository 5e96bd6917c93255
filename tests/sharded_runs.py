"""Two forked gloo processes, and a module that is sharded over them by FSDP2."""

import importlib
import os
import socket
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from callback_fits import Memory, trainer_for
from foreign_modules import ForeignData, ForeignLayerNorm
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

RANKS = 2


def on_two_ranks(work: Callable[[int], None], folder: Path) -> None:
    """Call a function on two forked processes, which Lightning takes for its own; what fails there fails here."""
    importlib.import_module("torch.distributed.fsdp")  # once, not in each process
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    try:
        start_processes(_child, args=(work, folder, port), nprocs=RANKS, start_method="fork")
    except ProcessExitedException as error:
        said = [file.read_text() for file in sorted(folder.glob("failed-*.txt"))]
        raise AssertionError("\n".join(said) or str(error)) from None


def _child(rank: int, work: Callable[[int], None], folder: Path, port: str) -> None:
    names = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    # Once, while there is one thread: two that come to torch's pool together after a fork find none.
    torch.set_num_threads(1)
    try:
        work(rank)
    except BaseException:
        (folder / f"failed-{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)  # the other process waits for this one
    if dist.is_initialized():
        dist.destroy_process_group()


class Sharded(ForeignLayerNorm):
    """Each layer sharded by itself, in rows that two ranks cannot share evenly; one that a rank has nothing of."""

    def make_model(self) -> nn.Module:
        widths = [3 * 16 * 16, 9, 7]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()]
        return nn.Sequential(*layers, nn.Linear(7, 1), nn.Linear(1, 3))

    def configure_model(self) -> None:
        self.double()
        if self.device_mesh is None or hasattr(next(self.parameters()), "placements"):
            return
        self.shard(self.device_mesh["data_parallel"])

    def shard(self, mesh: Any) -> None:
        from torch.distributed.fsdp import fully_shard

        for layer in self.model.children():
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


def trainer_of(callbacks: list[Callback], folder: Path, memory: Memory, ranks: int, **options: Any) -> Trainer:
    if ranks > 1:
        strategy = ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1)
        options = {"strategy": strategy, "devices": ranks, **options}
    logger = [CSVLogger(folder, name="", version=""), memory]
    return trainer_for("layer_norm", callbacks, folder, logger=logger, **options)


def run(module: LightningModule, callbacks: list[Callback], folder: Path, ranks: int, **options: Any) -> dict[str, Any]:
    """Fit, and give all that was logged and the whole weights."""
    memory, ckpt_path = Memory(), options.pop("ckpt_path", None)
    trainer = trainer_of(callbacks, folder, memory, ranks, **options)
    trainer.fit(module, ForeignData(), ckpt_path=ckpt_path)
    metrics = {(-1, key): float(value) for key, value in trainer.callback_metrics.items()}
    whole: Any = module.state_dict()
    weights = {name: value.full_tensor() if ranks > 1 else value for name, value in whole.items()}
    return {"weights": weights, "logged": memory.logged | metrics}
