"""What networks for images of one size check: their sizes when they are made, the images when they are run."""

from typing import Protocol

from torch import Tensor


class OfOneShape(Protocol):
    """A network for images of one shape.

    Attributes:
        image_shape: Channels, height and width of the images.
    """

    image_shape: tuple[int, int, int]


def check_sizes(eps: float, **sizes: int) -> None:
    """Refuse sizes that are less than one.

    Args:
        eps: Of the norms.
        **sizes: Numbers that must be at least 1, by their options' names.

    Raises:
        ValueError: If one is less than 1, or ``eps`` not positive.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")


def check_images(x: Tensor, network: OfOneShape) -> None:
    """Refuse images of another shape.

    Args:
        x: A batch of images, shape (N, channels, height, width).
        network: That they are for.

    Raises:
        ValueError: If they do not fit.
    """
    if tuple(x.shape[1:]) != network.image_shape:
        given, expected = ("×".join(map(str, shape)) for shape in (x.shape[1:], network.image_shape))
        raise ValueError(
            f"{type(network).__name__} is made for images of {expected} (channels, height, width), got {given}; "
            "set its in_channels and image_size to those of the data"
        )
