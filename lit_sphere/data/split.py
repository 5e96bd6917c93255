"""Which images are trained on, and with which labels: pure functions of a seed."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_sphere.data.order import keyed_generator

# Keep these random numbers apart from each other and from those of the order and the augmentation.
_SPLIT, _NOISE = 2, 3


def split_indices(available: int, train_size: int, val_size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose training and validation images at random.

    A larger ``train_size`` keeps the images of a smaller one; the validation images do not depend on it.

    Args:
        available: Number of images to choose from.
        train_size: Number to train on.
        val_size: Number to validate on.
        seed: Seed of the choice.

    Returns:
        Ascending indices of the training images, the validation images and the rest.
    """
    order = torch.randperm(available, generator=keyed_generator(seed, _SPLIT, available))
    edge = available - val_size
    train, rest, val = order[:train_size], order[train_size:edge], order[edge:]
    return train.sort().values, val.sort().values, rest.sort().values


def redraw_labels(labels: Tensor, fraction: float, num_classes: int, seed: int) -> Tensor:
    """Replace a random fraction of the labels by uniformly drawn ones, the true class among them.

    A larger fraction redraws the labels of a smaller one and more, to the same values.

    Args:
        labels: True labels, int64, shape (N,).
        fraction: round(fraction · N) labels are redrawn; fraction · (1 - 1/num_classes) of all end up wrong.
        num_classes: Classes to draw from.
        seed: Seed of choice and draws.

    Returns:
        New labels, a copy.
    """
    generator = keyed_generator(seed, _NOISE, len(labels))
    chosen = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    drawn = torch.randint(num_classes, labels.shape, generator=generator)
    noisy = labels.clone()
    noisy[chosen] = drawn[chosen]
    return noisy
