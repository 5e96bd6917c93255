"""Random images of CIFAR-10's size and number: what a step costs does not depend on what they show."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_sphere.data import Images, ResidentDataModule


class SyntheticCIFAR(ResidentDataModule):
    """Random pixels and labels, resident like CIFAR-10's.

    Args:
        test_size: Number of test images.
        **options: Of :class:`~lit_sphere.data.ResidentDataModule`.
    """

    num_classes: ClassVar[int] = 10
    in_channels: ClassVar[int] = 3
    image_size: ClassVar[int] = 32
    available: ClassVar[int] = 50_000
    augmentation_pad: ClassVar[int] = 4
    augmentation_flip: ClassVar[bool] = True

    def __init__(self, test_size: int = 10_000, **options: Any) -> None:
        super().__init__(**options)
        self.test_size = test_size

    def read(self) -> tuple[Images, Images]:
        return _random(self.train_size + self.val_size, 0), _random(self.test_size, 1)

    def statistics(self, train: Images) -> tuple[Tensor, Tensor]:
        return torch.full((3,), 127.5), torch.full((3,), 73.9)


def _random(count: int, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return Images(pixels.permute(0, 3, 1, 2), torch.randint(10, (count,), generator=generator))
