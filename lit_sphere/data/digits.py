"""scikit-learn's handwritten digits: real data that needs no download."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_sphere.data.loader import Images
from lit_sphere.data.resident import ResidentDataModule


class Digits(ResidentDataModule):
    """1797 real 8×8 handwritten digits that come with scikit-learn; ten classes, one channel.

    Test set: all images that are neither trained nor validated on, 297 by default. Pixels, 0 to 16, are
    normalised by mean and standard deviation over the training images.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998.

    Args:
        batch_size: Images per training batch, over all devices together. The last batch of an epoch may be
            shorter; with several devices it is cut to a multiple of their number.
        train_size: Number of training images, a random subset.
        val_size: Number of images held out for validation, neither trained nor tested on. 0 validates on the
            test set.
        label_noise: Fraction, 0 to below 1, of the training labels that are redrawn uniformly over all classes;
            the true class may be drawn again, so a fraction label_noise * (1 - 1/classes) ends up wrong. Then
            loss and error of training are logged for clean and for corrupted labels, too.
        augment: Shift each training image at random by up to 1 pixel each way, anew in each epoch.
        full_batch: One batch holds the whole training set (gradient descent); batch_size is then ignored.
        chunk_size: With full_batch, images per forward and backward pass, so that a large set fits memory: the loss is
            the mean over chunks of the set in the order of its files, the same at every step, in which batch norm
            normalises each chunk by its own statistics. null: one pass, normalised by those of the whole set.
        eval_batch_size: About the number of images per batch in validation and test, over all devices.
        seed: Seed >= 0 of subset, label noise, order and augmentation.
        order_seed: Seed >= 0 of order and augmentation, to change these alone; null for ``seed``.

    Raises:
        ValueError: If a value is out of its range, or no image is left to test on.
    """

    num_classes = 10
    in_channels = 1
    image_size = 8
    available = 1797
    augmentation_pad = 1
    augmentation_flip = False

    def __init__(
        self,
        batch_size: int = 128,
        train_size: int = 1500,
        val_size: int = 0,
        label_noise: float = 0.0,
        augment: bool = False,
        full_batch: bool = False,
        eval_batch_size: int = 1000,
        seed: int = 0,
        chunk_size: int | None = None,
        order_seed: int | None = None,
    ) -> None:
        super().__init__(
            batch_size,
            train_size,
            val_size,
            label_noise,
            augment,
            full_batch,
            eval_batch_size,
            seed,
            chunk_size,
            order_seed,
        )
        if train_size + val_size == self.available:
            raise ValueError(
                f"train_size {train_size} and val_size {val_size} leave none of the {self.available} digits "
                f"to test on: lower one of the two"
            )

    def read(self) -> tuple[Images, Images | None]:
        """Read the images out of scikit-learn.

        Returns:
            All 1797 images, and None: what is left of them is the test set.
        """
        # Imported here, since it takes a second that a CIFAR run need not spend.
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = torch.from_numpy(digits.images).to(torch.uint8)
        return Images(pixels[..., None].permute(0, 3, 1, 2), torch.from_numpy(digits.target).long()), None

    def statistics(self, train: Images) -> tuple[Tensor, Tensor]:
        """Compute mean and standard deviation over all pixels.

        Args:
            train: The training images.

        Returns:
            Mean and standard deviation, each of shape (1,).
        """
        std, mean = torch.std_mean(train.pixels.double(), correction=0)
        return mean[None], std[None]
