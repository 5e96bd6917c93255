"""Passes over data at fixed weights, in the middle of a training that must not notice."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lit_sphere.analysis.evaluation import Criterion


@contextmanager
def untouched(pl_module: LightningModule) -> Iterator[None]:
    """Leave weights, buffers, gradients, modes and random generators as they were, to the last bit.

    Args:
        pl_module: The module in training.

    Yields:
        Nothing; inside, all of these may change.
    """
    tensors = [*pl_module.parameters(), *pl_module.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    grads = [(p, p.grad, p.requires_grad) for p in pl_module.parameters()]
    modes = [(module, module.training) for module in pl_module.modules()]
    for p, _, _ in grads:
        p.grad = None  # what is computed inside goes into a tensor of its own
    with isolate_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, old in zip(tensors, kept, strict=True):
                    tensor.copy_(old)
            for p, grad, requires_grad in grads:
                p.grad = grad
                p.requires_grad_(requires_grad)
            for module, mode in modes:
                module.training = mode


def train_batches(asks: Callback, trainer: Trainer, pl_module: LightningModule) -> Iterable[Any]:
    """Give the batches of a pass over the train set: in order, this rank's share, on the device.

    The training loader itself is left alone: to iterate it would move its order and its count. A data module
    or a module with a method ``train_pass_dataloader()`` says itself how; otherwise a plain ``DataLoader`` is made
    over the dataset of the training loader. Random transforms of the dataset stay; call inside
    :func:`untouched`. A last batch of one sample, on which batch norm cannot work in train mode and which a training
    loader with ``drop_last`` never gives, is joined to the one before.

    Args:
        asks: The callback, to be named in errors.
        trainer: Its trainer.
        pl_module: Its module.

    Returns:
        An iterable for one pass.

    Raises:
        ValueError: If the training data cannot be read in order.
    """
    sources: tuple[Any, ...] = (getattr(trainer, "datamodule", None), pl_module)
    for source in sources:
        if hasattr(source, "train_pass_dataloader"):
            return _on_device(trainer, source.train_pass_dataloader())
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        raise ValueError(
            f"{type(asks).__name__} cannot pass over the train set of a {type(loader).__name__} in order: give the "
            f"data module or {type(pl_module).__name__} a method train_pass_dataloader()"
        )
    share = range(trainer.global_rank, len(loader.dataset), trainer.world_size)  # type: ignore[arg-type]
    in_order = DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=share,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )
    return _on_device(trainer, in_order)


def val_batches(trainer: Trainer) -> Iterable[Any] | None:
    """Give the batches of the (first) validation set: this rank's share, on the device.

    A last batch of one sample is joined to the one before, as in :func:`train_batches`.

    Args:
        trainer: The trainer, not before its first validation where the loader was given to ``fit``.

    Returns:
        An iterable for one pass; None if there is no validation set.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "train_pass_dataloader"):
        return _on_device(trainer, datamodule.val_dataloader())
    loaders = trainer.val_dataloaders
    if isinstance(loaders, (list, tuple)):
        loaders = loaders[0] if loaders else None
    return None if loaders is None else _on_device(trainer, loaders)


def add_up_ranks(trainer: Trainer) -> Callable[[Tensor], Tensor]:
    """Give the function that adds tensors of all ranks up.

    Args:
        trainer: The trainer.

    Returns:
        A collective: every rank must call it.
    """

    def add_up(sums: Tensor) -> Tensor:
        total: Tensor = trainer.strategy.reduce(sums, reduce_op="sum")
        return total

    return add_up


def criterion_of(pl_module: LightningModule) -> Criterion:
    """Give the module's own ``criterion(logits, labels)`` where it has one, cross-entropy otherwise.

    Args:
        pl_module: Any module.

    Returns:
        Mean loss of a batch.
    """
    criterion = getattr(pl_module, "criterion", None)
    return criterion if callable(criterion) else F.cross_entropy


def _on_device(trainer: Trainer, loader: Iterable[Any]) -> Iterator[Any]:
    """As Lightning's own loops bring batches to the module."""
    for batch in _none_of_one_sample(loader):
        converted = trainer.precision_plugin.convert_input(batch)
        before = trainer.lightning_module._on_before_batch_transfer(converted)
        yield trainer.strategy.batch_to_device(before)


def _none_of_one_sample(batches: Iterable[Any]) -> Iterator[Any]:
    """Join a batch of one sample to a larger one before it, where both are tuples or lists of tensors."""
    kept: list[Any] = []
    for batch in batches:
        if kept and _samples(batch) == 1 < _samples(kept[0]) and _shape(batch) == _shape(kept[0]):
            parts = [torch.cat(pair) for pair in zip(kept[0], batch, strict=True)]
            kept = [type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)]
            continue
        yield from kept
        kept = [batch]
    yield from kept


def _samples(batch: Any) -> int:
    """Number of samples; 0 where it cannot be told."""
    if not isinstance(batch, (tuple, list)) or not all(isinstance(each, Tensor) and each.ndim for each in batch):
        return 0
    counts = {len(each) for each in batch}
    return counts.pop() if len(counts) == 1 else 0


def _shape(batch: Any) -> list[torch.Size]:
    """Shapes of a sample."""
    return [each.shape[1:] for each in batch]
