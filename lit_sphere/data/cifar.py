"""CIFAR-10 and CIFAR-100 from torchvision's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lit_sphere.data.loader import Images
from lit_sphere.data.resident import ResidentDataModule

# CIFAR-10's mean and a widespread wrong standard deviation: what the papers' code normalises both sets with.
_PAPERS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class CIFAR10(ResidentDataModule):
    """60 000 colour photographs of 32×32 pixels in ten classes; 50 000 to train on, 10 000 to test on.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        root: Folder that holds ``cifar-10-batches-py`` (CIFAR-100: ``cifar-100-python``).
        batch_size: Images per training batch, over all devices together. The last batch of an epoch may be
            shorter; with several devices it is cut to a multiple of their number.
        train_size: Number of training images, a random subset; null for all that are not held out.
        val_size: Number of training images held out for validation, never trained on. 0 validates on the test
            set, as the papers do.
        label_noise: Fraction, 0 to below 1, of the training labels that are redrawn uniformly over all classes;
            the true class may be drawn again, so a fraction label_noise * (1 - 1/classes) ends up wrong. Then
            loss and error of training are logged for clean and for corrupted labels, too.
        augment: Shift each training image at random by up to 4 pixels each way and mirror half of them, anew
            in each epoch.
        full_batch: One batch holds the whole training set (gradient descent); batch_size is then ignored.
        chunk_size: With full_batch, images per forward and backward pass, so that a large set fits memory: the loss is
            the mean over chunks of the set in the order of its files, the same at every step, in which batch norm
            normalises each chunk by its own statistics. null: one pass, normalised by those of the whole set.
        normalisation: "dataset" takes mean and standard deviation of this set's own training pixels, "papers"
            the mean of CIFAR-10 and (0.2023, 0.1994, 0.2010), as the papers' code does for both sets.
        eval_batch_size: About the number of images per batch in validation and test, over all devices.
        seed: Seed >= 0 of subset, label noise, order and augmentation.
        order_seed: Seed >= 0 of order and augmentation, to change these alone; null for ``seed``.
        download: Fetch the files into root if they are not there.

    Raises:
        ValueError: If a value is out of its range.
    """

    title: ClassVar[str] = "CIFAR-10"
    num_classes = 10
    in_channels = 3
    image_size = 32
    available = 50_000
    augmentation_pad = 4
    augmentation_flip = True
    mean: ClassVar[tuple[float, float, float]] = (0.4914, 0.4822, 0.4465)
    """Of the training pixels in [0, 1], per channel."""
    std: ClassVar[tuple[float, float, float]] = (0.2470, 0.2435, 0.2616)

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        train_size: int | None = None,
        val_size: int = 0,
        label_noise: float = 0.0,
        augment: bool = False,
        full_batch: bool = False,
        normalisation: Literal["dataset", "papers"] = "dataset",
        eval_batch_size: int = 1000,
        seed: int = 0,
        download: bool = False,
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
        if not isinstance(root, str):
            raise ValueError(f"root (--data.root) must be a folder, got {root}")
        if normalisation not in ("dataset", "papers"):
            raise ValueError(f'normalisation must be "dataset" or "papers", got {normalisation!r}')
        self.root = root
        self.normalisation = normalisation
        self.download = download

    def check_files(self) -> None:
        """Find the folder of the files, unless they are to be downloaded.

        Raises:
            FileNotFoundError: If it is not there; names the remedy.
        """  # noqa: DOC502
        if not self.download:
            self._check_folder()

    def prepare_data(self) -> None:
        """Download the files if asked to and needed (one process per machine).

        Missing files are left for ``setup`` to complain of: that runs in every process, so none waits.

        Raises:
            FileNotFoundError: If the download failed.
        """
        if not self.download:
            return
        try:
            self._source()(self._folder().parent, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"could not download {self.title} into '{self.root}' ({error}): "
                f"fetch {self._source().url} by other means and unpack it there"
            ) from error

    def read(self) -> tuple[Images, Images | None]:
        """Read the images out of torchvision's files.

        Returns:
            Training and test images.

        Raises:
            ValueError: If files are missing or damaged.
        """
        self._check_folder()
        try:
            return self._images(train=True), self._images(train=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"{self.title} under '{self.root}' cannot be read: {self._damage() or error}. Delete "
                f"'{self._folder()}' and fetch it anew, e.g. with --data.download true"
            ) from error

    def statistics(self, train: Images) -> tuple[Tensor, Tensor]:
        """Give the constants of the full training set, whatever subset is trained on.

        Args:
            train: Not looked at.

        Returns:
            Mean and standard deviation per channel, in units of 1/255, each of shape (3,).
        """
        mean, std = (self.mean, self.std) if self.normalisation == "dataset" else _PAPERS
        return 255 * torch.tensor(mean).double(), 255 * torch.tensor(std).double()

    def _source(self) -> Any:
        # torchvision is imported late: it takes a second, which a run on digits need not spend.
        from torchvision.datasets import CIFAR10 as Source

        return Source

    def _folder(self) -> Path:
        folder: str = self._source().base_folder
        return Path(self.root).expanduser() / folder

    def _check_folder(self) -> None:
        folder = self._folder()
        try:
            is_there = folder.is_dir()
            resolved = Path(self.root).expanduser().resolve()
        except (OSError, RuntimeError) as error:  # Python 3.10 to 3.12 raise RuntimeError for a circle of links
            raise ValueError(
                f"--data.root '{self.root}' leads nowhere ({error}): give --data.root DIR that holds {folder.name}"
            ) from error
        if is_there:
            return
        inside = resolved.name == folder.name
        hint = f" (it is that folder itself: give '{folder.parent.resolve().parent}')" if inside else ""
        raise FileNotFoundError(
            f"no {self.title} under '{self.root}'{hint}: give --data.root DIR that holds {folder.name}, "
            f"or --data.download true"
        )

    def _images(self, train: bool) -> Images:
        source = self._source()(self._folder().parent, train=train)
        # torchvision shows (N, H, W, C), but the bytes lie as (N, C, H, W): put them in channels_last order.
        pixels = torch.from_numpy(source.data).contiguous().permute(0, 3, 1, 2)
        return Images(pixels, torch.tensor(source.targets))

    def _damage(self) -> str:
        from torchvision.datasets.utils import check_integrity

        source = self._source()
        files = [*source.train_list, *source.test_list, [source.meta["filename"], source.meta["md5"]]]
        for name, md5 in files:
            path = self._folder() / name
            if not path.is_file():
                return f"'{name}' is missing"
            if not check_integrity(path, md5):
                return f"'{name}' is damaged (its MD5 sum is wrong)"
        return ""


class CIFAR100(CIFAR10):
    """60 000 colour photographs of 32×32 pixels in a hundred classes; the same arguments as CIFAR10."""

    title = "CIFAR-100"
    num_classes = 100
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)

    def _source(self) -> Any:
        from torchvision.datasets import CIFAR100 as Source

        return Source
