"""The order of an epoch, as a pure function of (seed, epoch).

Nothing here remembers more than the number of the epoch, so a resumed run, a run with another ELR and every
rank of a distributed run see the same images in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler


def keyed_generator(*key: int) -> torch.Generator:
    """Make a CPU generator whose numbers depend on ``key`` alone.

    Args:
        *key: Integers >= 0, such as (seed, purpose, epoch, batch); neighbouring keys give unrelated numbers.

    Returns:
        The seeded generator.
    """
    mixed = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


class EpochOrder(Sampler[int]):
    """Visits all indices once per epoch, in a permutation given by (seed, epoch).

    Args:
        size: Number of images.
        seed: Seed of all permutations.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning gives the number of those processed, which is right after a resume too.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.epoch = epoch

    def indices(self) -> Tensor:
        """Give the order of the present epoch.

        Returns:
            All indices, int64, shape (size,).
        """
        return torch.randperm(self.size, generator=keyed_generator(self.seed, self.epoch))

    def __iter__(self) -> Iterator[int]:
        """Yield the indices in this epoch's order."""
        yield from self.indices().tolist()

    def __len__(self) -> int:
        """Return the number of images."""
        return self.size


class FileOrder(EpochOrder, SequentialSampler):
    """Visits the images in their own order, every epoch.

    A ``SequentialSampler`` because Lightning asks for that class where it must know that nothing is shuffled.

    Args:
        size: Number of images.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.data_source = range(size)

    def indices(self) -> Tensor:
        """Give the order of the present epoch.

        Returns:
            0, 1, …, size - 1, int64.
        """
        return torch.arange(self.size)


class ChunkOrder(FileOrder):
    """Visits the images so that every rank gets whole chunks of neighbours in the files: those of one process.

    Args:
        size: Number of images, a multiple of ``chunk_size * world_size``.
        chunk_size: Images of a chunk.
        world_size: Number of ranks, each of which takes every ``world_size``-th image.
    """

    def __init__(self, size: int, chunk_size: int, world_size: int) -> None:
        super().__init__(size)
        self._shape = (-1, world_size, chunk_size)

    def indices(self) -> Tensor:
        """Give the order of the present epoch.

        Returns:
            All indices, int64, shape (size,).
        """
        return super().indices().view(self._shape).transpose(1, 2).reshape(-1)


def training_bounds(size: int, batch_size: int, world_size: int = 1) -> list[tuple[int, int]]:
    """Cut an epoch into global batches that every rank shares equally.

    DDP averages gradients over ranks, so unequal shares would weigh images unequally: the last, short batch
    loses up to ``world_size - 1`` images (other ones in each epoch, if the order changes). A last batch of a single
    image per rank is joined to the one before: batch norm has no variance of one value per channel.

    Args:
        size: Number of images.
        batch_size: Images per global batch, a multiple of ``world_size``.
        world_size: Number of ranks.

    Returns:
        Start and stop of each batch, as positions in the epoch's order.
    """
    usable = size - size % batch_size % world_size
    starts = list(range(0, usable, batch_size))
    if len(starts) > 1 and usable - starts[-1] == world_size < batch_size:
        del starts[-1]
    return list(pairwise([*starts, usable]))


def evaluation_bounds(size: int, batch_size: int, world_size: int = 1) -> list[tuple[int, int]]:
    """Cut an evaluation set into global batches, nothing dropped or repeated, as many on every rank.

    The sizes differ by at most one. Every rank gets a share of every batch, so whatever communicates in a
    batch (DDP's broadcast of BatchNorm's buffers in the first one, a metric logged per step) is answered.

    Args:
        size: Number of images, at least ``world_size``.
        batch_size: Images per global batch at most, unless that leaves some rank without an image.
        world_size: Number of ranks.

    Returns:
        Start and stop of each batch.
    """
    count = max(1, min(-(-size // batch_size), size // world_size))
    edges = [size * i // count for i in range(count + 1)]
    return list(pairwise(edges))
