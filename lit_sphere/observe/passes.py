"""Passes over data at fixed weights, in the middle of a training that must not notice."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.apply_func import apply_to_collection, apply_to_collections
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from lit_sphere.analysis.curvature import sphere_hessian
from lit_sphere.analysis.evaluation import Criterion
from lit_sphere.analysis.sharpness import Objective, flatten
from lit_sphere.groups.sharded import whole_parameters
from lit_sphere.observe.quiet_step import StepLoss
from lit_sphere.observe.stopping import until_stopped

MACHINE_ERRORS: tuple[type[Exception], ...] = (
    MemoryError,
    torch.OutOfMemoryError,
    *([torch.AcceleratorError] if hasattr(torch, "AcceleratorError") else []),  # since torch 2.8
)
"""Not for a trial to explain: the batch and the module may be as they should."""


def choose_loss(
    owner: Callback,
    trainer: Trainer,
    pl_module: LightningModule,
    batch: Any,
    logits_fail: str | None,
    what: str = "a batch",
    differentiate: Callable[[StepLoss], object] | None = None,
) -> StepLoss | None:
    """Choose how batches are evaluated: by logits and their criterion, or else by the module's training step.

    Call it inside :func:`untouched`, on all ranks, which agree.

    Args:
        owner: The callback, to be named in errors.
        trainer: Its trainer.
        pl_module: Its module.
        batch: The first batch, of training; None if this rank has none.
        logits_fail: Why it cannot be by logits here, see :func:`logits_failure`; None if it can.
        what: The batch, in errors.
        differentiate: What must run with the loss by the training step, too.

    Returns:
        The loss by the training step; None where there are logits.

    Raises:
        ValueError: If neither runs.
    """
    if runs_everywhere(trainer, logits_fail):
        return None
    step = StepLoss(pl_module)
    step_fails = None if batch is None else failure_of(step.try_out, batch)
    if differentiate is not None and runs_everywhere(trainer, step_fails):
        step_fails = failure_of(differentiate, step)
    name, kind, elsewhere = type(owner).__name__, type(pl_module).__name__, "not in another process"
    if runs_everywhere(trainer, step_fails):
        rank_zero_info(
            f"{name}: {kind} gives no logits of {what} ({logits_fail or elsewhere}): the loss is that of its training "
            "step, and there is no error"
        )
        return step
    raise ValueError(
        f"{name} cannot evaluate {what} by {kind}: not by criterion(module(inputs), labels) "
        f"({logits_fail or elsewhere}), nor by its training step, run apart ({step_fails or elsewhere}); change what "
        f"fails, or leave {name} out"
    )


def runs_everywhere(trainer: Trainer, failure: str | None) -> bool:
    """Return whether something has failed on no rank; a collective.

    Args:
        trainer: The trainer.
        failure: What has failed on this rank.

    Returns:
        The same on all ranks.
    """
    return bool(trainer.strategy.reduce_boolean_decision(failure is None))


def logits_failure(pl_module: LightningModule, batch: Any, by_logits: Callable[[Any], object]) -> str | None:
    """Try to evaluate a batch by logits.

    Args:
        pl_module: The module.
        batch: Any batch.
        by_logits: Evaluates one of inputs and labels.

    Returns:
        Why that cannot be, in one line; None if it can.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor)):
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        return f"a batch is a {type(batch).__name__}{size}, no pair of inputs and labels"
    if batch[1].is_floating_point():
        return "labels are no whole numbers"
    if criterion_of(pl_module) is F.cross_entropy:
        failure = failure_of(lambda each: _check_classes(pl_module, *each), batch)
        if failure is not None:
            return failure
    return failure_of(by_logits, batch)


@torch.no_grad()
def _check_classes(pl_module: LightningModule, inputs: Any, labels: Tensor) -> None:
    """Refuse labels beyond the outputs: on a GPU cross-entropy of these ends the process's use of the device."""
    logits = pl_module(apply_to_collection(inputs, Tensor, torch.clone))
    largest = int(labels.max()) if labels.numel() else 0
    if isinstance(logits, Tensor) and logits.ndim > 1 and largest >= logits.shape[1]:
        raise ValueError(f"labels go up to {largest}, and there are {logits.shape[1]} outputs")


def failure_of(run: Callable[[Any], object], what: Any) -> str | None:
    """Run something for a trial.

    Args:
        run: What may fail.
        what: Its argument, such as a batch.

    Returns:
        Why it fails, in one line; None if it does not.
    """
    try:
        run(what)
    except Exception as error:
        if isinstance(error, MACHINE_ERRORS):
            raise
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def seed_all(seed: int) -> None:
    """Seed what dropout, transforms and training steps draw from; inside :func:`untouched`, which gives it back.

    Args:
        seed: The seed.
    """
    for each in (torch.manual_seed, random.seed, np.random.seed):
        each(seed)


@contextmanager
def untouched(pl_module: LightningModule) -> Iterator[dict[nn.Parameter, nn.Parameter]]:
    """Leave weights, buffers, gradients, modes and random generators as they were, to the last bit.

    Parameters that are sharded over processes (FSDP2) are whole inside, so that a pass needs no other process; all must
    call this.

    Args:
        pl_module: The module in training.

    Yields:
        What stands in for each sharded parameter; inside, all of these may change.
    """
    with whole_parameters(pl_module) as copies, _put_back(pl_module, set(copies.values())):
        yield copies


@contextmanager
def _put_back(pl_module: LightningModule, copies: set[nn.Parameter]) -> Iterator[None]:
    tensors = [tensor for tensor in (*pl_module.parameters(), *pl_module.buffers()) if tensor not in copies]
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


def train_batches(owner: Callback, trainer: Trainer, pl_module: LightningModule) -> Iterable[Any]:
    """Give the batches of a pass over the train set: in order, this rank's share, on the device.

    The training loader itself is left alone: to iterate it would move its order and its count. A data module
    or a module with a method ``train_pass_dataloader()`` says itself how; otherwise a plain ``DataLoader`` is made
    over the dataset of the training loader. Random transforms of the dataset stay; call inside
    :func:`untouched`. A last batch of one sample, on which batch norm cannot work in train mode and which a training
    loader with ``drop_last`` never gives, is joined to the one before.

    Args:
        owner: The callback, to be named in errors.
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
            f"{type(owner).__name__} cannot pass over the train set of a {type(loader).__name__} in order: give the "
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


class CriterionByLabel:
    """The criterion of a pass over the train set, which also tells clean from corrupted labels.

    Args:
        criterion: Mean loss of a batch.
        corrupted: Which labels are corrupted, in the order of the pass: bool, shape (samples of this rank,).
    """

    def __init__(self, criterion: Criterion, corrupted: Tensor) -> None:
        self._criterion, self._corrupted = criterion, corrupted
        self._seen = 0
        self._sums = torch.zeros(2, 3, dtype=torch.float64, device=corrupted.device)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Give the mean loss of the next batch."""
        here = self._corrupted[self._seen : self._seen + len(labels)]
        self._seen += len(labels)
        with torch.no_grad():
            for row, mask in enumerate((~here, here)):
                some, of = logits[mask], labels[mask]
                if len(of):
                    wrong = (some.argmax(1) != of).sum()
                    sums = torch.stack([self._criterion(some, of).double() * len(of), wrong.double()])
                    self._sums[row] += torch.cat([sums, sums.new_tensor([len(of)])])
        return self._criterion(logits, labels)

    def means(self, add_up: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Give the means over all processes.

        Args:
            add_up: Adds a tensor up over them; each must call it.

        Returns:
            ``loss_clean``, ``error_clean``, ``loss_corrupted`` and ``error_corrupted``, where there are such labels.
        """
        found: dict[str, float] = {}
        for labels, (loss, wrong, count) in zip(("clean", "corrupted"), add_up(self._sums).tolist(), strict=True):
            if count:
                found |= {f"loss_{labels}": loss / count, f"error_{labels}": wrong / count}
        return found


def criterion_by_label(trainer: Trainer, criterion: Criterion) -> CriterionByLabel | None:
    """Give a criterion that tells clean from corrupted labels, where the data module knows which these are.

    Args:
        trainer: The trainer.
        criterion: Mean loss of a batch.

    Returns:
        It, for one pass over :func:`train_batches`; None without label noise.
    """
    corrupted_in_pass = getattr(getattr(trainer, "datamodule", None), "corrupted_in_pass", None)
    corrupted = None if corrupted_in_pass is None else corrupted_in_pass()
    return None if corrupted is None else CriterionByLabel(criterion, corrupted)


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
    """Join a batch of one sample to a larger one before it, where both hold nothing but tensors of that many."""
    kept: list[Any] = []
    for batch in batches:
        if kept and _samples(batch) == 1 < _samples(kept[0]) and _shape(batch) == _shape(kept[0]):
            kept = [apply_to_collections(kept[0], batch, Tensor, lambda *both: torch.cat(both))]
            continue
        yield from kept
        kept = [batch]
    yield from kept


def _samples(batch: Any) -> int:
    """Number of samples; 0 where it cannot be told."""
    parts = [each for _, each in _parts(batch)]
    counts = {len(each) if isinstance(each, Tensor) and each.ndim else 0 for each in parts}
    return counts.pop() if len(counts) == 1 else 0


def _shape(batch: Any) -> list[Any]:
    """Shapes of a sample, by their places in the batch."""
    return [(place, each.shape[1:]) for place, each in _parts(batch)]


def _parts(batch: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    inner: Mapping[Any, Any]
    if isinstance(batch, Mapping):
        inner = batch
    elif isinstance(batch, (tuple, list)):
        inner = dict(enumerate(batch))
    elif is_dataclass(batch):
        inner = {field.name: getattr(batch, field.name) for field in fields(batch)}
    else:
        yield place, batch
        return
    for key, each in inner.items():
        yield from _parts(each, (*place, key))


_SECONDS_BEFORE_BAR = 2.0


class TrainSetObjective:
    """Makes the objective in the weights' own precision, and leaves module and random generators as they were.

    Args:
        owner: The callback, to be named in errors.
        seed: Of dropout and random transforms, the same in each pass.

    Attributes:
        may_stop: Whether a signal ends a pass, by :class:`~lit_sphere.observe.stopping.PassStopped`.
        loss: The training step's, where there are no logits.
    """

    def __init__(self, owner: Callback, seed: int) -> None:
        self._owner, self._seed = owner, seed
        self.may_stop = False
        self.loss: StepLoss | None = None

    @contextmanager
    def at_fixed_weights(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        parameters: Sequence[Tensor],
        what: str,
        given: Iterable[Any] | None = None,
        most: int | None = None,
    ) -> Iterator[Objective]:
        """Give the objective, to be used inside.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            parameters: What to differentiate by.
            what: Name of the progress bar, which appears where it takes long.
            given: Batches in place of those of the train set.
            most: Only so many batches; None for all.

        Yields:
            The objective.
        """
        hidden = None if trainer.is_global_zero else True  # None: where there is no terminal
        bar = tqdm(desc=what, unit=" batches", leave=False, delay=_SECONDS_BEFORE_BAR, disable=hidden)

        def batches() -> Iterator[Any]:
            # Passes are to agree in dropout and random transforms; `untouched` gives the generators' states back.
            seed_all(self._seed + trainer.global_rank)
            source = given or train_batches(self._owner, trainer, pl_module)
            for batch in islice(until_stopped(trainer, source) if self.may_stop else source, most):
                yield trainer.precision_plugin.convert_input(batch)
                bar.update()

        # In the weights' own precision: autocast would blur second derivatives.
        full = torch.autocast(pl_module.device.type, enabled=False)
        with untouched(pl_module) as copies, bar, trainer.precision_plugin.forward_context(), full:
            held = [copies.get(p, p) for p in parameters]  # type: ignore[call-overload]
            yield Objective(pl_module, batches, held, criterion_of(pl_module), add_up_ranks(trainer), self.loss)

    def choose(
        self, trainer: Trainer, pl_module: LightningModule, parameters: Sequence[Tensor], batch: Any, twice: bool
    ) -> None:
        """Try a batch of the train set, before training, and choose how batches are evaluated.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            parameters: What to differentiate by.
            batch: Of the train set.
            twice: Whether second derivatives are needed.

        Raises:
            ValueError: If there is no way to.
        """  # noqa: DOC502
        self.loss, what = None, "a batch of the train set"

        def once(objective: Objective) -> None:
            for _ in objective.gradients():
                pass

        def as_needed(step: StepLoss) -> None:
            by_step = replace(objective, loss=step)
            if twice:
                sphere_hessian(by_step)(torch.ones_like(flatten(parameters)))
            else:
                once(by_step)

        with self.at_fixed_weights(trainer, pl_module, parameters, f"trying {what}", [batch]) as objective:
            fails = logits_failure(pl_module, batch, lambda _: once(objective))
            self.loss = choose_loss(self._owner, trainer, pl_module, batch, fails, what, as_needed)
