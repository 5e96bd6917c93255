"""The usual training loop: PIL images through torchvision's transforms in workers, norms one by one."""

import time
from typing import Any

import torch
from PIL import Image
from settings import synchronise
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lit_sphere.data import Images

_WORKERS = 2


class PILImages(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR-10 hands them out: a PIL image, transformed when it is asked for."""

    def __init__(self, images: Images) -> None:
        self.pixels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels: list[int] = images.labels.tolist()
        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def conventional_epoch_seconds(
    network: nn.Module, images: Images, elr: float, batch: int, epochs: int, device: str
) -> list[float]:
    """Time ``epochs`` epochs of training, after one that starts the workers and is left out."""
    network.to(device)
    loader = DataLoader(
        PILImages(images), batch, shuffle=True, num_workers=_WORKERS, persistent_workers=True,
        pin_memory=device == "cuda",
    )  # fmt: skip
    params = [p for p in network.parameters() if p.requires_grad]
    radius = sum(p.norm().item() ** 2 for p in params) ** 0.5
    optimizer = torch.optim.SGD(params, lr=elr * radius**2)
    seconds = []
    for _ in range(epochs + 1):
        start = time.perf_counter()
        for pixels, labels in loader:
            _step(network, params, optimizer, radius, pixels.to(device), labels.to(device))
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _step(
    network: nn.Module,
    params: list[nn.Parameter],
    optimizer: torch.optim.SGD,
    radius: float,
    pixels: Tensor,
    labels: Tensor,
) -> dict[str, Any]:
    optimizer.zero_grad()
    logits = network(pixels)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    quantities: dict[str, Any] = {
        "loss": loss.item(),
        "correct": (logits.argmax(1) == labels).sum().item(),
        "norms": [p.norm().item() for p in params],
        "grad_norms": [p.grad.norm().item() for p in params if p.grad is not None],
    }
    lr = optimizer.param_groups[0]["lr"]
    quantities["elr"] = [lr / norm**2 for norm in quantities["norms"]]
    optimizer.step()
    with torch.no_grad():
        norm = sum(p.norm().item() ** 2 for p in params) ** 0.5
        for p in params:
            p.mul_(radius / norm)
    return quantities
