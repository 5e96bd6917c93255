"""ResNet-20 for small images, normalised by batch norm or by weight norm (SP §5)."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from lit_sphere.networks.frozen_head import freeze_head

Normalisation = Literal["batch", "weight"]


class ResNet20(nn.Module):
    """The CIFAR ResNet-20: a 3×3 stem and three stages of three blocks, widths w, 2w, 4w (He et al.; SP §5).

    Every convolution is followed by its norm before anything is added to it, so that every filter is scale-invariant
    by itself. Shortcuts between stages have no parameters: every second pixel, missing channels zero.

    Args:
        width: Channels w of the first stage; 16 in the paper.
        num_classes: Outputs.
        in_channels: Channels of the images.
        scale_invariant: Scale-invariant version: norms without trained parameters, frozen head. Otherwise everything
            is trained.
        head_norm: Frobenius norm of the frozen head's weight. Unused in the practical version.
        eps: Added to the variance by the batch norms.
        normalisation: ``batch``: batch norm after each convolution. ``weight``: weight norm of each filter, with a
            trained length and bias in the practical version; scale-invariant are then the directions.
        affine: Whether the batch norms of the practical version have trained weights and biases.

    Raises:
        ValueError: If ``width`` is less than 1, ``normalisation`` unknown, or ``eps`` or ``head_norm`` not positive.
    """

    def __init__(
        self,
        width: int = 16,
        num_classes: int = 10,
        in_channels: int = 3,
        scale_invariant: bool = False,
        head_norm: float = 10.0,
        eps: float = 1e-5,
        normalisation: Normalisation = "batch",
        affine: bool = True,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}")
        if normalisation not in get_args(Normalisation):
            raise ValueError(
                f"normalisation must be one of {', '.join(get_args(Normalisation))}, got {normalisation!r}"
            )
        trained = affine and not scale_invariant

        def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
            if normalisation == "batch":
                norm = nn.BatchNorm2d(c_out, eps=eps, affine=trained)
                return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), norm)
            return _weight_normed(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=not scale_invariant), not scale_invariant)

        self.stem = conv(in_channels, width)
        blocks: list[nn.Module] = []
        c_in = width
        for factor in (1, 2, 4):
            for depth in range(3):
                c_out, stride = factor * width, 2 if factor > 1 and depth == 0 else 1
                blocks.append(_Block(conv(c_in, c_out, stride), conv(c_out, c_out), c_out - c_in, stride))
                c_in = c_out
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(c_in, num_classes)
        if scale_invariant:
            freeze_head(self.head, head_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        features = self.blocks(F.relu(self.stem(x)))
        logits: Tensor = self.head(self.pool(features).flatten(1))
        return logits


class _Block(nn.Module):
    """Two normalised convolutions and a shortcut without parameters."""

    def __init__(self, first: nn.Module, second: nn.Module, more_channels: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.more_channels, self.stride = more_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[..., :: self.stride, :: self.stride]
        if self.more_channels:
            before = self.more_channels // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.more_channels - before))
        return F.relu(self.second(F.relu(self.first(x))) + shortcut)


def _weight_normed(conv: nn.Conv2d, train_length: bool) -> nn.Module:
    """Weight norm of each filter; lengths start so that outputs keep their variance, as no norm restores it."""
    normed: nn.Module = weight_norm(conv)
    lengths = normed.get_parameter("parametrizations.weight.original0")
    with torch.no_grad():
        lengths.fill_(2**0.5)  # of a filter before a ReLU, whatever its fan-in (He initialisation)
    lengths.requires_grad_(train_length)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return normed
