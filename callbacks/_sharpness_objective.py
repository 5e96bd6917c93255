"""The loss over the train set at fixed weights, for SharpnessMonitor in the middle of a training."""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from lit_sphere.analysis.sharpness import Objective
from lit_sphere.callbacks._batch_trial import MACHINE_ERRORS
from lit_sphere.callbacks._fixed_weights import add_up_ranks, criterion_of, train_batches, untouched
from lit_sphere.callbacks._stoppable_passes import until_asked

_SECONDS_BEFORE_BAR = 2.0


class TrainSetObjective:
    """Makes the objective in the weights' own precision, and leaves module and random generators as they were.

    Args:
        asks: The callback, to be named in errors.
        seed: Of dropout and random transforms, the same in each pass.

    Attributes:
        may_stop: Whether a signal ends a pass, by :class:`~lit_sphere.callbacks._stoppable_passes.PassStopped`.
    """

    def __init__(self, asks: Callback, seed: int) -> None:
        self._asks, self._seed = asks, seed
        self.may_stop = False

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
            for seed in (torch.manual_seed, random.seed, np.random.seed):
                seed(self._seed + trainer.global_rank)
            source = given or train_batches(self._asks, trainer, pl_module)
            for batch in islice(until_asked(trainer, source) if self.may_stop else source, most):
                yield trainer.precision_plugin.convert_input(batch)
                bar.update()

        # In the weights' own precision: autocast would blur second derivatives.
        full = torch.autocast(pl_module.device.type, enabled=False)
        with untouched(pl_module), bar, trainer.precision_plugin.forward_context(), full:
            yield Objective(pl_module, batches, parameters, criterion_of(pl_module), add_up_ranks(trainer))

    def check(self, trainer: Trainer, pl_module: LightningModule, parameters: Sequence[Tensor], batch: Any) -> None:
        """Try a batch of the train set, before training.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            parameters: What to differentiate by.
            batch: Of the train set.

        Raises:
            ValueError: If it is no pair, or has no loss.
        """
        name, module = type(self._asks).__name__, type(pl_module).__name__
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
            size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise ValueError(
                f"{name}: a pass over the train set needs batches of (inputs, labels), not a {type(batch).__name__}"
                f"{size}; leave out train_pass_every and curvature_… to watch only the steps"
            )
        with self.at_fixed_weights(trainer, pl_module, parameters, "trying a batch", [batch]) as objective:
            try:
                for _ in objective.gradients():
                    pass
            except Exception as error:
                if isinstance(error, MACHINE_ERRORS):
                    raise
                raise ValueError(
                    f"{name}: {module} gives no loss of a batch by criterion(module(inputs), labels) ({error}); give "
                    "it a method criterion(logits, labels), or leave out train_pass_every and curvature_…"
                ) from error
