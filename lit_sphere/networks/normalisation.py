"""Normalisation of images between the layers of a convolutional network."""

from typing import Literal, get_args

from torch import nn

ImageNormalisation = Literal["batch", "layer", "instance"]


def image_norm(kind: ImageNormalisation, channels: int, eps: float, affine: bool) -> nn.Module:
    """Make a norm of images (N, channels, H, W).

    What precedes it is scale-invariant in parts: after batch and instance norm, which normalise each channel by
    itself, every filter; after layer norm, which has one mean and variance for all values of an image, only the
    whole tensor.

    Args:
        kind: ``batch``, ``layer`` (over channels, height and width) or ``instance``. The last two treat each image by
            itself, and are the same in eval mode.
        channels: Of the images.
        eps: Added to the variance.
        affine: Whether to train a gain and a bias for each channel.

    Returns:
        The norm.

    Raises:
        ValueError: If ``kind`` is unknown, or ``eps`` not positive.
    """
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=eps, affine=affine)
    if kind == "layer":
        return nn.GroupNorm(1, channels, eps=eps, affine=affine)  # of one group: for images of any size
    if kind == "instance":
        return nn.InstanceNorm2d(channels, eps=eps, affine=affine)
    raise ValueError(f"normalisation must be one of {', '.join(get_args(ImageNormalisation))}, got {kind!r}")
