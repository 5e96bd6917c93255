"""Batches by index out of tensors that stay on the training device: no worker processes, no collation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_sphere.data.augment import Augmentation
from lit_sphere.data.order import EpochOrder


class Images(NamedTuple):
    """A set of images as it stays in memory.

    Attributes:
        pixels: uint8, shape (N, C, H, W), in channels_last memory order.
        labels: int64, shape (N,).
    """

    pixels: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Images:
        """Move both tensors; a no-op where they are there already.

        Args:
            device: Where to.

        Returns:
            The images on ``device``.
        """
        return Images(self.pixels.to(device), self.labels.to(device))

    def take(self, indices: Tensor) -> Images:
        """Copy some of the images.

        Args:
            indices: Which ones, int64.

        Returns:
            Those images, in that order.
        """
        pixels = self.pixels.permute(0, 2, 3, 1).index_select(0, indices).permute(0, 3, 1, 2)
        return Images(pixels, self.labels.index_select(0, indices))


class ResidentLoader:
    """Iterates over (images, labels) of one rank: floating point, normalised, channels_last.

    Lightning sees an iterable with a length, a ``sampler`` whose epoch it sets and a state that it saves; as
    this is no ``DataLoader``, ``Trainer(use_distributed_sampler=True)`` leaves it as it is. The dtype is
    torch's default at construction.

    Args:
        images: The whole set, on the device where batches are wanted.
        bounds: Start and stop of each global batch in the epoch's order.
        sampler: The epoch's order.
        mean: Per channel, in units of the stored pixels.
        std: Per channel, in units of the stored pixels.
        augmentation: Applied to the pixels before normalising; None for none.
        rank: This process takes images ``rank::world_size`` of each global batch.
        world_size: Number of processes.
        resumed: Asked once per pass for the number of batches that a resumed trainer has done already in this
            epoch; None where no resume is under way. It takes precedence over ``load_state_dict``.
    """

    # Lightning looks for this beside `sampler`.
    batch_sampler = None

    def __init__(
        self,
        images: Images,
        bounds: list[tuple[int, int]],
        sampler: EpochOrder,
        *,
        mean: Tensor,
        std: Tensor,
        augmentation: Augmentation | None = None,
        rank: int = 0,
        world_size: int = 1,
        resumed: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.images = images
        self.bounds = bounds
        self.sampler = sampler
        self.augmentation = augmentation
        self.rank = rank
        self.world_size = world_size
        self._resumed = resumed
        self._position = (0, 0)
        self._restored: tuple[int, int] | None = None
        self._order: tuple[int, Tensor] | None = None  # of an epoch
        # One scale and shift per value of an image, not per channel: the inner loop is then thousands long
        # instead of three, which is 5 times faster on CPU.
        positions = images.pixels[0, 0].numel()
        scale = (1 / std.double()).repeat(positions)
        shift = (-mean.double() / std.double()).repeat(positions)
        place: dict[str, Any] = {"device": images.pixels.device, "dtype": torch.get_default_dtype()}
        self._scale, self._shift = scale.to(**place), shift.to(**place)
        self._pixels = images.pixels.permute(0, 2, 3, 1)

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self.bounds)

    def rank_indices(self, batch: int, order: Tensor | None = None) -> Tensor:
        """Give the images that this rank gets in a batch of the sampler's present epoch.

        Args:
            batch: Number of the batch in the epoch.
            order: The epoch's order, if at hand.

        Returns:
            Indices into ``images``, int64.
        """
        start, stop = self.bounds[batch]
        order = self.sampler.indices() if order is None else order
        return order[start:stop][self.rank :: self.world_size]

    def indices_now(self, batch: int) -> Tensor:
        """Give the images that this rank gets in a batch of the epoch that is under way.

        Args:
            batch: Number of the batch in the epoch.

        Returns:
            Indices into ``images``, int64, on their device.
        """
        if self._order is None or self._order[0] != self.sampler.epoch:
            self._order = self.sampler.epoch, self.sampler.indices().to(self._pixels.device)
        return self.rank_indices(batch, self._order[1])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the rest of the epoch after a resume, over the whole epoch otherwise.

        Returns:
            Iterator over (images, labels).
        """
        # A loaded state is for the next iterator alone: Lightning makes its own right after loading.
        restored, self._restored = self._restored, None
        return self._batches(restored)

    def _batches(self, restored: tuple[int, int] | None) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator, so all this waits for the first batch: Lightning sets the epoch after it called iter().
        epoch = self.sampler.epoch
        first = self._resumed()
        if first is None:
            first = restored[1] if restored is not None and restored[0] == epoch else 0
        order = self.sampler.indices().to(self._pixels.device)
        self._order = epoch, order
        for batch in range(first, len(self)):
            self._position = (epoch, batch + 1)
            yield self._batch(self.rank_indices(batch, order), epoch, batch)

    def _batch(self, indices: Tensor, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        pixels = self._pixels.index_select(0, indices)
        if self.augmentation is not None:
            start, stop = self.bounds[batch]
            # Drawn for the global batch: an image's shift does not depend on the number of ranks.
            draws = self.augmentation.draw(stop - start, epoch, batch)
            pixels = self.augmentation(pixels, *(draw[self.rank :: self.world_size] for draw in draws))
        values = pixels.view(len(indices), -1).to(self._scale.dtype)
        values = torch.addcmul(self._shift, values, self._scale).view(pixels.shape)
        return values.permute(0, 3, 1, 2), self.images.labels.index_select(0, indices)

    def state_dict(self) -> dict[str, int]:
        """Give the place in the epoch.

        Returns:
            The epoch and the number of its batches handed out.
        """
        return {"epoch": self._position[0], "batches": self._position[1]}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Make the next iterator go on from a saved place, if the sampler stands at the same epoch then.

        Args:
            state_dict: What ``state_dict`` gave.
        """
        self._restored = (state_dict["epoch"], state_dict["batches"])
