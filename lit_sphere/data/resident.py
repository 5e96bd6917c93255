"""The base of all data modules here: images in memory, split, noise and order given by one seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lit_sphere.data.augment import Augmentation
from lit_sphere.data.loader import Images, ResidentLoader
from lit_sphere.data.order import ChunkOrder, EpochOrder, FileOrder, evaluation_bounds, training_bounds
from lit_sphere.data.split import redraw_labels, split_indices


class ResidentDataModule(LightningDataModule, ABC):
    """Images as uint8 tensors on the training device; subclasses read them.

    Split, noise, order and augmentation depend on ``seed`` and on nothing else: not on the model's seed, the
    ELR, the number of ranks, or where a run was resumed. Hyperparameters are not saved: a checkpoint holds
    the model's alone.

    Args:
        batch_size: Images per training batch, over all devices together. The last batch of an epoch may be
            shorter; with several devices it is cut to a multiple of their number. One of a single image per device,
            on which batch norm cannot work, is joined to the batch before.
        train_size: Number of training images, a random subset; null for all that are not held out.
        val_size: Number of training images held out for validation, never trained on. 0 validates on the test
            set, as the papers do.
        label_noise: Fraction, 0 to below 1, of the training labels that are redrawn uniformly over all classes;
            the true class may be drawn again, so a fraction label_noise * (1 - 1/classes) ends up wrong. Then
            loss and error of training are logged for clean and for corrupted labels, too.
        augment: Shift each training image at random by up to ``augmentation_pad`` pixels each way and mirror
            half of them if ``augmentation_flip``, anew in each epoch.
        full_batch: One batch holds the whole training set (gradient descent); batch_size is then ignored.
        chunk_size: With full_batch, images per forward and backward pass, so that a large set fits memory: the loss is
            the mean over chunks of the set in the order of its files, the same at every step, in which batch norm
            normalises each chunk by its own statistics. null: one pass, normalised by those of the whole set.
        eval_batch_size: About the number of images per batch in validation and test, over all devices.
        seed: Seed >= 0 of subset, label noise, order and augmentation.
        order_seed: Seed >= 0 of order and augmentation, to change these alone; null for ``seed``.

    Raises:
        ValueError: If a value is out of its range.
    """

    num_classes: ClassVar[int]
    in_channels: ClassVar[int]
    image_size: ClassVar[int]
    available: ClassVar[int]
    """Number of images that training and validation may take."""
    augmentation_pad: ClassVar[int]
    augmentation_flip: ClassVar[bool]

    def __init__(
        self,
        batch_size: int = 128,
        train_size: int | None = None,
        val_size: int = 0,
        label_noise: float = 0.0,
        augment: bool = False,
        full_batch: bool = False,
        eval_batch_size: int = 1000,
        seed: int = 0,
        chunk_size: int | None = None,
        order_seed: int | None = None,
    ) -> None:
        super().__init__()
        least = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "train_size": train_size}
        for name, value in least.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, value in {"val_size": val_size, "seed": seed, "order_seed": order_seed}.items():
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if not 0 <= label_noise < 1:
            raise ValueError(f"label_noise is a fraction from 0 to below 1, got {label_noise}")
        self.batch_size = batch_size
        self.train_size = self.available - val_size if train_size is None else train_size
        self.val_size = val_size
        self.label_noise = label_noise
        self._augment = augment
        _check_full_batch(full_batch, augment, chunk_size)
        self.full_batch, self.chunk_size = full_batch, chunk_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.order_seed = seed if order_seed is None else order_seed
        if self.train_size < 1 or self.train_size + val_size > self.available:
            wanted = val_size if train_size is None else f"{train_size} + {val_size}"
            raise ValueError(
                f"train_size and val_size ask for {wanted} images, but {type(self).__name__} has "
                f"{self.available} for both, at least 1 of them to train on: lower one of the two"
            )
        if not full_batch and batch_size > self.train_size:
            raise ValueError(
                f"batch_size {batch_size} is larger than the train set of {self.train_size} images: "
                f"use batch_size {self.train_size} or less, or full_batch true"
            )
        self._training_loader: ResidentLoader | None = None
        self._sets: dict[str, Images] = {}
        self._corrupted = torch.empty(0, dtype=torch.bool)
        self._has_noise = False

    @abstractmethod
    def read(self) -> tuple[Images, Images | None]:
        """Read the images.

        Returns:
            The ``available`` images to train and validate on, and the test set; None makes the test set of
            all images that are neither trained nor validated on.
        """

    @abstractmethod
    def statistics(self, train: Images) -> tuple[Tensor, Tensor]:
        """Give what the pixels are normalised with.

        Args:
            train: The training images.

        Returns:
            Mean and standard deviation per channel, in units of the stored pixels, each of shape (C,).
        """

    @property
    def validates_on(self) -> str:
        """What the validation metrics are measured on: "test" or "held-out train"."""
        return "held-out train" if self.val_size else "test"

    @property
    def augment(self) -> bool:
        """Whether training images are augmented; may be set in the middle of a run, for the batches that follow."""
        return self._augment

    @augment.setter
    def augment(self, value: bool) -> None:
        self._augment = value
        if self._training_loader is not None:
            self._training_loader.augmentation = self._augmentation()

    @property
    def train_set(self) -> Images:
        """The training images in the order of the files, with the noise in their labels."""
        return self._set("train")

    @property
    def val_set(self) -> Images:
        """The images validated on."""
        return self._set("val" if self.val_size else "test")

    @property
    def test_set(self) -> Images:
        """The test images."""
        return self._set("test")

    @property
    def corrupted(self) -> Tensor:
        """Which labels of ``train_set`` noise made wrong: bool, shape (train_size,)."""
        return self._corrupted.to(self.train_set.labels.device)

    def corrupted_in(self, batch: int) -> Tensor | None:
        """Tell which labels of a training batch noise made wrong; nothing is brought to the host.

        Args:
            batch: Its number in the present epoch.

        Returns:
            bool, shape of the labels of this rank; None where not both clean and corrupted labels are trained on.
        """
        if not self._has_noise or self._training_loader is None:
            return None
        return self._corrupted.index_select(0, self._training_loader.indices_now(batch))

    def corrupted_in_pass(self) -> Tensor | None:
        """Tell which labels noise made wrong, in the order in which :meth:`train_pass_dataloader` gives them.

        Returns:
            bool, shape (images of this rank,); None where not both clean and corrupted labels are trained on.
        """
        if not self._has_noise:
            return None
        loader = self.train_pass_dataloader()
        order = torch.cat([loader.rank_indices(batch) for batch in range(len(loader))])
        return self._corrupted[order.to(self._corrupted.device)]

    def check_files(self) -> None:
        """Complain of files that are not there, if the data has any."""

    def setup(self, stage: str | None = None) -> None:
        """Read, split and corrupt the data on the first call; move it to the training device on every call.

        Args:
            stage: Ignored: all sets are set up together.

        Raises:
            ValueError: If batch size or set sizes do not suit the number of devices.
        """
        world_size = self._rank_and_world()[1]
        if not self.full_batch and self.batch_size % world_size:
            raise ValueError(
                f"batch_size {self.batch_size} is the batch of all {world_size} devices together and must be "
                f"a multiple of {world_size}: use {max(1, self.batch_size // world_size) * world_size}"
            )
        if self.chunk_size is not None and world_size > 1 and self.train_size % (self.chunk_size * world_size):
            raise ValueError(
                f"{self.train_size} training images are no whole number of chunks of {self.chunk_size} on each of "
                f"{world_size} devices: choose --data.train_size a multiple of {self.chunk_size * world_size}, or "
                "another --data.chunk_size"
            )
        if not self._sets:
            self._split()
        for name, images in self._sets.items():
            if len(images.labels) < world_size:
                raise ValueError(
                    f"{len(images.labels)} {name} images cannot be shared by {world_size} devices: "
                    f"use more images (train_size, val_size) or fewer devices"
                )
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        self._sets = {name: images.to(device) for name, images in self._sets.items()}
        self._corrupted = self._corrupted.to(device)

    def train_dataloader(self) -> ResidentLoader:
        """Make the training loader: shuffled anew in each epoch, augmented if asked for.

        Returns:
            The loader of this rank.
        """
        # Lightning's overfit_batches means the same few batches in each epoch.
        fixed = self.full_batch or getattr(self.trainer, "overfit_batches", 0) > 0
        self._training_loader = self._loader(
            self.train_set,
            self._training_bounds(),
            self._file_order() if fixed else EpochOrder(self.train_size, self.order_seed),
            self._augmentation(),
            self._resumed_batches,
        )
        return self._training_loader

    def _augmentation(self) -> Augmentation | None:
        return Augmentation(self.augmentation_pad, self.augmentation_flip, self.order_seed) if self._augment else None

    def train_pass_dataloader(self) -> ResidentLoader:
        """Make a loader for a pass over the train set at fixed weights: in order and without augmentation.

        Returns:
            The loader of this rank; batches are as large as in training, the last one too. Of a full batch in chunks
            each is a batch.
        """
        bounds = self._training_bounds()
        if self.chunk_size is not None:
            world_size = self._rank_and_world()[1]
            bounds = training_bounds(self.train_size, self.chunk_size * world_size, world_size)
        return self._loader(self.train_set, bounds, self._file_order())

    def val_dataloader(self) -> ResidentLoader:
        """Make the validation loader: in order, each image once.

        Returns:
            The loader of this rank.
        """
        return self._loader(self.val_set, self._evaluation_bounds(self.val_set))

    def test_dataloader(self) -> ResidentLoader:
        """Make the test loader: in order, each image once.

        Returns:
            The loader of this rank.
        """
        return self._loader(self.test_set, self._evaluation_bounds(self.test_set))

    def _loader(
        self,
        images: Images,
        bounds: list[tuple[int, int]],
        sampler: EpochOrder | None = None,
        augmentation: Augmentation | None = None,
        resumed: Callable[[], int | None] = lambda: None,
    ) -> ResidentLoader:
        mean, std = self.statistics(self.train_set)
        rank, world_size = self._rank_and_world()
        return ResidentLoader(
            images,
            bounds,
            sampler or FileOrder(len(images.labels)),
            mean=mean,
            std=std,
            augmentation=augmentation,
            rank=rank,
            world_size=world_size,
            resumed=resumed,
        )

    def _training_bounds(self) -> list[tuple[int, int]]:
        batch_size = self.train_size if self.full_batch else self.batch_size
        return training_bounds(self.train_size, batch_size, self._rank_and_world()[1])

    def _file_order(self) -> FileOrder:
        world_size = self._rank_and_world()[1]
        if self.chunk_size is None or world_size == 1:
            return FileOrder(self.train_size)
        return ChunkOrder(self.train_size, self.chunk_size, world_size)

    def _evaluation_bounds(self, images: Images) -> list[tuple[int, int]]:
        return evaluation_bounds(len(images.labels), self.eval_batch_size, self._rank_and_world()[1])

    def _split(self) -> None:
        pool, test = self.read()
        train, val, rest = split_indices(len(pool.labels), self.train_size, self.val_size, self.seed)
        # Taking all images would only copy them.
        clean = pool if self.train_size == len(pool.labels) else pool.take(train)
        labels = redraw_labels(clean.labels, self.label_noise, self.num_classes, self.seed)
        self._corrupted = labels != clean.labels
        self._has_noise = bool(self._corrupted.any()) and not bool(self._corrupted.all())
        self._sets = {
            "train": Images(clean.pixels, labels),
            "test": pool.take(rest) if test is None else test,
        }
        if self.val_size:
            self._sets["val"] = pool.take(val)

    def _set(self, name: str) -> Images:
        if not self._sets:
            raise RuntimeError(f'call setup("fit") of {type(self).__name__} before its images are used')
        return self._sets[name]

    def _rank_and_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _resumed_batches(self) -> int | None:
        # Lightning's own count, not the loader's: right also for a checkpoint written in the middle of a
        # batch, and where configure_optimizers asks for estimated_stepping_batches, after which Lightning 2.6
        # forgets to load the loader's state.
        if self.trainer is None or not self.trainer.fit_loop.epoch_loop.restarting:
            return None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current
        # They differ while a batch is under way: then a callback iterates, and it gets all batches.
        return done.completed if done.ready == done.completed else None


def _check_full_batch(full_batch: bool, augment: bool, chunk_size: int | None) -> None:
    if chunk_size is not None and not full_batch:
        raise ValueError(
            f"chunk_size {chunk_size} is of a full batch: give --data.full_batch true, too, or leave it out"
        )
    if chunk_size is not None and chunk_size < 2:
        raise ValueError(f"chunk_size must be at least 2, got {chunk_size}: batch norm has no variance of one image")
    if full_batch and augment:
        raise ValueError(
            "full_batch and augment are both true: gradient descent is on one and the same set at every step, and "
            "augmentation draws other images for each step and chunk; leave one of them out"
        )
