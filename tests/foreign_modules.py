"""LightningModules as somebody else writes them: other names, other keys, other optimizers, none of them ours.

And one of ours, so that a callback can be tried on all of them by name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, cast

import torch
import torchvision
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.resnet import BasicBlock

from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet

CLASSES = 3
BATCHES = 4
"""Training batches, on one process, of an epoch of all modules here (of ours, too)."""
BATCH = 8
_SIDE = 16


class ForeignModule(LightningModule):
    """Classification with automatic optimisation, logged under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = self.make_model()

    def make_model(self) -> nn.Module:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean(), sync_dist=True)


class NarrowResNet(torchvision.models.ResNet):  # type: ignore[misc]
    """torchvision's, an eighth as wide; its constructor knows only the width of 64."""

    def __init__(self, blocks: tuple[int, int, int, int]) -> None:
        super().__init__(BasicBlock, list(blocks), num_classes=CLASSES)
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(64, CLASSES)

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        self.inplanes: int = 8 if planes == 64 else self.inplanes
        return cast(nn.Sequential, super()._make_layer(block, planes // 8, *args, **kwargs))


class ForeignResNet(ForeignModule):
    """Convolutions and affine batch norms of a residual network, AdamW."""

    def make_model(self) -> nn.Module:
        return NarrowResNet((1, 1, 0, 0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=1e-2)


class ForeignResNet18(ForeignResNet):
    """torchvision's resnet18 itself."""

    def make_model(self) -> nn.Module:
        return cast(nn.Module, torchvision.models.resnet18(num_classes=CLASSES))


class ForeignLayerNorm(ForeignModule):
    """No batch statistics, so that two ranks compute what one computes; momentum and a cosine schedule per step."""

    def make_model(self) -> nn.Module:
        widths = [3 * _SIDE * _SIDE, 16, 16]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()]
        return nn.Sequential(*layers, nn.Linear(16, CLASSES))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        # Not trainer.estimated_stepping_batches: it loads the data before Lightning restores the loader's place.
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3 * BATCHES)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class ForeignManual(ForeignModule):
    """Manual optimisation: one optimizer for the body, another for the head."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def make_model(self) -> nn.Module:
        body = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)]
        return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        x, y = batch
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = F.cross_entropy(self(x), y)
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        *body, weight, bias = self.parameters()
        return [torch.optim.SGD(body, lr=0.05, weight_decay=1e-3), torch.optim.Adam([weight, bias], lr=1e-3)]


class Lion(torch.optim.Optimizer):
    """A third party's optimizer: signs of averaged gradients (Chen et al., 2023)."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(torch.lerp(p.grad, average, 0.9).sign(), alpha=group["lr"])
                average.lerp_(p.grad, 0.01)
        return loss


class ForeignLion(ForeignLayerNorm):
    """An optimizer that nobody here has heard of."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Lion(self.parameters(), lr=1e-3, weight_decay=0.1)


class PlainMLP(ForeignModule):
    """Nothing in it is scale-invariant."""

    def make_model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * _SIDE * _SIDE, 8), nn.ReLU(), nn.Linear(8, CLASSES))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class ForeignTurns(ForeignModule):
    """Two heads behind a common body; each batch trains one of them. All but the last layers are scale-invariant."""

    optimizer: Callable[[Any], Any] = torch.optim.AdamW

    def make_model(self) -> nn.Module:
        heads = [nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, CLASSES)) for _ in range(2)]
        body = nn.Sequential(nn.Flatten(), nn.Linear(3 * _SIDE * _SIDE, 8), nn.LayerNorm(8), nn.ReLU())
        return nn.ModuleDict({"body": body, "heads": nn.ModuleList(heads)})

    def forward(self, x: Tensor) -> Any:
        body = self.model["body"](x)  # type: ignore[index]
        return tuple(head(body) for head in self.model["heads"])  # type: ignore[index]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x)[int(batch_idx == 1)], y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = type(self).optimizer(self.parameters())
        return optimizer


class CountingLoader(DataLoader[Any]):
    """A loader that goes on where a checkpoint was saved, as torchdata's does."""

    _seen = 0
    _skip = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        skip, self._skip = self._skip, 0
        for number, batch in enumerate(super().__iter__()):
            if number >= skip:
                self._seen = number + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"seen": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._skip = state["seen"] % len(self)


class ForeignData(LightningDataModule):
    """Random images of three classes, each with a pattern of its own that can be learned.

    In order, and each rank its share of every batch: Lightning's sampler for several ranks would shuffle.
    """

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        count = (BATCHES + 1) * BATCH
        labels = torch.randint(CLASSES, (count,), generator=g)
        patterns = torch.randn(CLASSES, 3, _SIDE, _SIDE, generator=g)
        images = patterns[labels] + torch.randn(count, 3, _SIDE, _SIDE, generator=g)
        self.train = TensorDataset(images[:-BATCH], labels[:-BATCH])
        self.val = TensorDataset(images[-BATCH:], labels[-BATCH:])

    def train_dataloader(self) -> CountingLoader:
        return CountingLoader(self.train, BATCH // self._ranks, sampler=self._share(self.train))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, BATCH // self._ranks, sampler=self._share(self.val))

    @property
    def _ranks(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _share(self, data: TensorDataset) -> range:
        return range(self.trainer.global_rank if self.trainer else 0, len(data), self._ranks)


@dataclass(frozen=True)
class Case:
    """A module, its data, and options of the trainer.

    Args:
        make: Makes the module.
        data: Makes the data.
        options: Of the trainer.
    """

    make: Callable[[], LightningModule]
    data: Callable[[], LightningDataModule] = ForeignData
    options: dict[str, Any] = field(default_factory=dict)


def _ours() -> LightningModule:
    torch.manual_seed(0)
    return SIConvNet(width=4, in_channels=1, elr=2e-2)


@cache
def cases() -> dict[str, Case]:
    return {
        "resnet": Case(ForeignResNet),
        "layer_norm": Case(ForeignLayerNorm),
        "manual": Case(ForeignManual),
        "accumulated": Case(ForeignLayerNorm, options={"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}),
        "lion": Case(ForeignLion),
        "ours": Case(_ours, lambda: Digits(batch_size=32, train_size=32 * BATCHES)),
        "resnet18": Case(ForeignResNet18),
        "plain": Case(PlainMLP),
    }
