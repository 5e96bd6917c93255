"""Random shifts and flips of a batch of uint8 images, the random numbers given by (seed, epoch, batch)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lit_sphere.data.order import keyed_generator

# Keeps the augmentation's random numbers apart from the epoch's permutation.
_PURPOSE = 1


def shift_and_flip(pixels: Tensor, shifts: Tensor, flips: Tensor, pad: int) -> Tensor:
    """Cut each image out of its zero-padded self, and mirror some of them left to right.

    Args:
        pixels: Images, uint8, shape (N, H, W, C).
        shifts: Row and column of each cut's corner in the padded image, 0 to 2·pad, int64, shape (N, 2).
        flips: Which images to mirror, bool, shape (N,).
        pad: Zero pixels added on every side.

    Returns:
        Images of the same shape and type.
    """
    count, height, width, channels = pixels.shape
    wide = width + 2 * pad
    padded = functional.pad(pixels, (0, 0, pad, pad, pad, pad)).view(-1, channels)
    # One index_select over whole pixels is 3 times faster on CPU than advanced indexing by row and column.
    across = torch.arange(width, device=pixels.device)
    columns = shifts[:, 1:] + torch.where(flips[:, None], width - 1 - across, across)
    rows = shifts[:, :1] + torch.arange(height, device=pixels.device)
    rows += torch.arange(count, device=pixels.device)[:, None] * (height + 2 * pad)
    chosen = rows[:, :, None] * wide + columns[:, None, :]
    return padded.index_select(0, chosen.view(-1)).view(pixels.shape)


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images: a shift by up to ``pad`` pixels each way, and perhaps a mirror image.

    Args:
        pad: Largest shift in pixels.
        flip: Whether half of the images are mirrored left to right.
        seed: Seed of all random numbers.
    """

    pad: int
    flip: bool
    seed: int = 0

    def draw(self, count: int, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        """Draw shifts and flips for one global batch.

        The first images' numbers do not depend on ``count``, nor on the number of ranks.

        Args:
            count: Images in the global batch.
            epoch: Number of the epoch.
            batch: Number of the batch in the epoch.

        Returns:
            Shifts (count, 2) and flips (count,), on the CPU.
        """
        generator = keyed_generator(self.seed, epoch, batch, _PURPOSE)
        numbers = torch.randint(2**31, (count, 3), generator=generator)
        return numbers[:, :2] % (2 * self.pad + 1), (numbers[:, 2] % 2 == 0) & self.flip

    def __call__(self, pixels: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
        """Apply drawn shifts and flips; see :func:`shift_and_flip`.

        Args:
            pixels: Images, uint8, shape (N, H, W, C).
            shifts: From ``draw``.
            flips: From ``draw``.

        Returns:
            Changed images.
        """
        device = pixels.device
        shifts, flips = shifts.to(device, non_blocking=True), flips.to(device, non_blocking=True)
        return shift_and_flip(pixels, shifts, flips, self.pad)
