"""A training loop in plain PyTorch with the arithmetic of a fit, and nothing else."""

import time

import torch
from settings import synchronise
from torch import Tensor, nn
from torch.nn import functional as F

from lit_sphere.data import ResidentDataModule, ResidentLoader
from lit_sphere.optim import SphereSGD


class BareLoop:
    """SphereSGD on resident channels_last images in the data module's order, and an evaluation pass an epoch.

    Args:
        network: Scale-invariant.
        data: Not set up yet.
        elr: Effective learning rate.
        device: Of network and data.
        eval_batches: Batches of the evaluation pass.
    """

    def __init__(
        self, network: nn.Module, data: ResidentDataModule, elr: float, device: str, eval_batches: int
    ) -> None:
        data.setup("fit")
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train, self.val = (
            _on(device, data, loader) for loader in (data.train_dataloader(), data.val_dataloader())
        )
        self.optimizer = SphereSGD([p for p in network.parameters() if p.requires_grad], elr=elr)
        self.device, self.eval_batches = device, eval_batches
        self.log: list[tuple[float, float, float, float]] = []

    def epoch_seconds(self, epochs: int) -> list[float]:
        """Time ``epochs`` epochs, after one that is left out."""
        seconds = []
        for epoch in range(epochs + 1):
            synchronise(self.device)
            start = time.perf_counter()
            self._epoch(epoch)
            synchronise(self.device)
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    def _epoch(self, epoch: int) -> None:
        self.train.sampler.set_epoch(epoch)
        self.network.train()
        loss_sum, wrong, count = self._zeros()
        for images, labels in self.train:
            self.optimizer.zero_grad()
            logits = self.network(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.detach() * len(labels)
            wrong += (logits.detach().argmax(1) != labels).sum()
            count += len(labels)
        self.log.append(((loss_sum / count).item(), (wrong / count).item(), *self._evaluate()))

    @torch.inference_mode()
    def _evaluate(self) -> tuple[float, float]:
        self.network.eval()
        loss_sum, wrong, count = self._zeros()
        for _, (images, labels) in zip(range(self.eval_batches), self.val, strict=False):
            logits = self.network(images)
            loss_sum += F.cross_entropy(logits, labels) * len(labels)
            wrong += (logits.argmax(1) != labels).sum()
            count += len(labels)
        return (loss_sum / count).item(), (wrong / count).item()

    def _zeros(self) -> tuple[Tensor, Tensor, int]:
        return torch.zeros((), device=self.device), torch.zeros((), device=self.device), 0


def _on(device: str, data: ResidentDataModule, loader: ResidentLoader) -> ResidentLoader:
    mean, std = data.statistics(data.train_set)
    images = loader.images.to(torch.device(device))
    return ResidentLoader(images, loader.bounds, loader.sampler, mean=mean, std=std)
