"""Between two logging points a monitor brings nothing to the host, which would wait for the device."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_fits import Memory, quietly, trainer_for
from callback_registry import REGISTRY
from foreign_modules import BATCHES, cases
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lit_sphere.observe.optimizer_steps import RealSteps

pytestmark = quietly

_CASES = ("resnet", "layer_norm", "manual", "ours")
_NO_SYNC = [
    (name, case)
    for name, entry in REGISTRY.items()
    if entry.waits_for_nothing
    for case in _CASES
    if case in entry.cases
]
# What waits for a GPU: reading values, results whose size depends on values, and numbers copied to it.
_METHODS = {
    getattr(Tensor, name)
    for name in (
        *("item", "tolist", "numpy", "cpu", "nonzero", "equal", "masked_select", "unique"),
        *("__bool__", "__float__", "__int__", "__index__", "__format__", "__contains__"),
    )
}
_OPERATORS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim"}


# Callbacks, and what they are made of: much of it is called by hooks of the optimizer, with no callback on the stack.
_ROOMS = {"callbacks", "observe", "rivals", "switching"}


class _Waits(list[str]):
    """What was read by callbacks of this project, and the rooms below them.

    Adam's counts of steps lie on the CPU, also beside a GPU, and so does what is computed from them alone.
    """

    def __init__(self) -> None:
        self.on_host = WeakIdKeyDictionary()

    def look(self, reads: bool, func: Any, args: Any, kwargs: Any) -> Any:
        """Call ``func``, and note it if it reads what would lie on the device."""
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        on_host = bool(tensors) and all(each in self.on_host for each in tensors)
        if reads and not on_host:
            self._note(getattr(func, "__name__", str(func)))
        found = func(*args, **(kwargs or {}))
        if on_host:
            self.on_host.update({each: True for each in tree_leaves(found) if isinstance(each, Tensor)})
        return found

    def _note(self, what: str) -> None:
        stack = traceback.extract_stack()
        ours = [f for f in stack if Path(f.filename).parent.name in _ROOMS and "lightning" not in f.filename]
        ours += [f for f in stack if f.name == "waiting_hook"]
        if ours:
            self.append(f"{what} in {Path(ours[-1].filename).name}:{ours[-1].lineno} ({ours[-1].name})")


class _Methods(TorchFunctionMode):
    def __init__(self, waits: _Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        copies = func in (torch.tensor, torch.as_tensor, torch.asarray) and "device" in (kwargs or {})
        reads = func in _METHODS or copies or (func is Tensor.__getitem__ and _has_mask(args[1]))
        return self.waits.look(reads, func, args, kwargs)


class _Operators(TorchDispatchMode):
    def __init__(self, waits: _Waits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.waits.look(func.overloadpacket.__name__ in _OPERATORS, func, args, kwargs)


def _has_mask(index: Any) -> bool:
    indices = index if isinstance(index, tuple) else (index,)
    return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in indices)


class Watch(Callback):
    """Looks at what happens from the start of a batch to its end, in the middle of an epoch."""

    def __init__(self, waits: _Waits) -> None:
        self.waits, self.modes = waits, (_Methods(waits), _Operators(waits))
        self.watched = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if 0 < batch_idx < BATCHES - 1:
            self.watched += 1
            states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
            self.waits.on_host.update({state["step"]: True for state in states if "step" in state})
            for mode in self.modes:
                mode.__enter__()  # type: ignore[no-untyped-call]


class LookAway(Checkpoint):
    """Ends the watch, after the hooks of all other callbacks."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if 0 < batch_idx < BATCHES - 1:
            for mode in reversed(self.watch.modes):
                mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def waits_of(callback: Callback, case: str, folder: Path) -> list[str]:
    waits = _Waits()
    watch = Watch(waits)
    trainer = trainer_for(case, [watch, callback, LookAway(watch)], folder, logger=Memory())
    trainer.fit(cases()[case].make(), cases()[case].data())
    assert watch.watched == 3 * (BATCHES - 2)
    return list(waits)


@pytest.mark.parametrize(("name", "case"), _NO_SYNC)
def test_nothing_is_read_between_logging_points(name: str, case: str, tmp_path: Path) -> None:
    assert waits_of(REGISTRY[name].make(tmp_path), case, tmp_path) == []


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).any()),
        lambda x: float(x.norm()),
        lambda x: f"{x.norm():.3f}",
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.nonzero(x),
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.cpu(),
    ],
)
def test_the_watch_sees_what_waits(read: Callable[[Tensor], Any], tmp_path: Path) -> None:
    class Waits(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            def waiting_hook() -> None:
                read(next(pl_module.parameters()).detach())

            waiting_hook()

    assert len(waits_of(Waits(), "manual", tmp_path)) >= 3 * (BATCHES - 2)


def test_the_watch_sees_what_a_hook_of_the_optimizer_waits_for(tmp_path: Path) -> None:
    class Waits(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            weights = next(pl_module.parameters())
            RealSteps(trainer.optimizers, before=lambda _: None, after=lambda _: weights.detach().sum().item())

    seen = waits_of(Waits(), "manual", tmp_path)
    assert len(seen) >= 3 * (BATCHES - 2)
    assert all("optimizer_steps.py" in each for each in seen)


class Forbid(Callback):
    """On a GPU: every wait is an error from the second batch of an epoch to the last but one."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == BATCHES - 2:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", sorted({name for name, _ in _NO_SYNC}))
def test_nothing_synchronises_a_gpu_between_logging_points(name: str, tmp_path: Path) -> None:
    # In lit-sphere's module the data lie on the device; elsewhere to bring them there may wait.
    callbacks = [Forbid(), REGISTRY[name].make(tmp_path)]
    trainer = trainer_for("ours", callbacks, tmp_path, logger=Memory(), accelerator="gpu", devices=1)
    try:
        trainer.fit(cases()["ours"].make(), cases()["ours"].data())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.global_step == 3 * BATCHES
