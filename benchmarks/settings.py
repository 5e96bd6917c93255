"""How much is measured, and on which images."""

from dataclasses import dataclass
from typing import Any

import torch
from synthetic import SyntheticCIFAR

from lit_sphere.data import CIFAR10, Digits, ResidentDataModule


@dataclass(frozen=True)
class Settings:
    """Sizes of one run of the benchmark.

    Args:
        device: ``cpu`` or ``cuda``.
        root: Folder of CIFAR-10; None for random images.
        trials: Pairs of whole fits and loops in each of (b), (c) and (e); (a) and (f) take more.
        width: Of the networks that the papers have at 32.
        batch: Images per batch.
        images: Images in an epoch of (b1) and (c).
        test_images: Test images of (b1) and (c), where they are random.
        eval_batch: Images per evaluation batch; (b1) evaluates one batch in an epoch.
        epochs: Measured epochs of each fit or loop, after a first one that warms up.
        digits_epochs: The same for the digits, whose epochs take a tenth of a second.
        warm_steps: Optimizer steps per measurement of (a1).
        steps: Pairs of training steps per trial in (a2).
        memory_batches: Batches of the epoch in (d); None for all 50 000 images.
        imports: Modules whose import alone is what (e) is compared with.
    """

    device: str
    root: str | None
    trials: int
    width: int = 32
    batch: int = 128
    images: int = 2560
    test_images: int = 1000
    eval_batch: int = 1000
    epochs: int = 3
    digits_epochs: int = 20
    warm_steps: int = 50
    steps: int = 6
    memory_batches: int | None = None
    imports: str = "lightning.pytorch, wandb"

    def images_module(self) -> ResidentDataModule:
        """CIFAR-10, or random images of its size."""
        if self.root is not None:
            return CIFAR10(self.root, self.batch, self.images, eval_batch_size=self.eval_batch)
        return SyntheticCIFAR(
            self.test_images, batch_size=self.batch, train_size=self.images, eval_batch_size=self.eval_batch
        )

    def images_arguments(self, images: int | None, test_images: int) -> list[str]:
        """The same on the command line."""
        args = ["--data", "synthetic.SyntheticCIFAR", f"--data.test_size={test_images}"]
        if self.root is not None:
            args = ["--data", "CIFAR10", f"--data.root={self.root}"]
        if images is not None:
            args.append(f"--data.train_size={images}")
        return [*args, f"--data.batch_size={self.batch}", f"--data.eval_batch_size={self.eval_batch}"]

    def digits_module(self) -> ResidentDataModule:
        return Digits()

    def describe(self) -> dict[str, Any]:
        return {**vars(self), "root": "CIFAR-10" if self.root else "random images"}


def synchronise(device: str) -> None:
    """Wait for the GPU, so that a clock read on the host means something."""
    if device == "cuda":
        torch.cuda.synchronize()
