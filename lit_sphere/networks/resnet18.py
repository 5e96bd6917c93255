"""Pre-activation ResNet-18 for small images, practical and scale-invariant."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from lit_sphere.networks.frozen_head import freeze_head
from lit_sphere.networks.normalisation import ImageNormalisation, image_norm

_SMALLEST_NORMALISED = 9
"""Height and width from which on the images of the last stage, an eighth, have more than one pixel."""


class _Block(nn.Module):
    """Pre-activation residual block: norm, ReLU, conv, norm, ReLU, conv, plus the shortcut.

    Args:
        c_in: Channels of the images.
        c_out: Channels of the result.
        stride: Of the first convolution and the shortcut.
        norm: Makes a norm of images of so many channels.
        norm_shortcut: Whether to normalise once more before downsampling.
    """

    def __init__(
        self, c_in: int, c_out: int, stride: int, norm: Callable[[int], nn.Module], norm_shortcut: bool
    ) -> None:
        super().__init__()
        self.norm1 = norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.norm2 = norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            conv = nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(norm(c_in), conv) if norm_shortcut else conv

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(self.relu(self.norm2(self.conv1(out)))) + shortcut  # type: ignore[no-any-return]


class ResNet18(nn.Module):
    """Pre-activation ResNet-18: a 3×3 stem, stages [2, 2, 2, 2] of widths w, 2w, 4w, 8w (TR §4).

    The last features are normalised, rectified, averaged over the image and mapped by a linear head
    without bias.

    With ``scale_invariant`` the norms have no affine parameters, one more of them stands before each
    1×1 shortcut convolution, and the head is frozen. The first convolution of each block is then
    scale-invariant by itself (8 tensors); the stem, the second convolutions and the shortcuts that write
    into one residual stream only jointly (4 groups, one a stage). Radius at initialisation: about 28.3
    at ``width=32``, 40.0 at 64.

    Args:
        width: Channels w of the stem and the first stage.
        num_classes: Outputs.
        in_channels: Channels of the images.
        scale_invariant: Scale-invariant version, with the frozen head; otherwise everything is trained.
        head_norm: Frobenius norm of the frozen head's weight. Unused in the practical version.
        eps: Added to the variance by the norms. It breaks scale invariance slightly; identities
            are exact in float64 with 1e-30.
        normalisation: ``batch``, ``layer`` (over channels, height and width) or ``instance`` norms. With instance
            norm, images have at least 9×9 pixels: the last stage sees an eighth of them, and one is no sample.

    Raises:
        ValueError: If ``width`` is less than 1, ``normalisation`` unknown, or ``eps`` or ``head_norm`` not positive.
    """

    def __init__(
        self,
        width: int = 32,
        num_classes: int = 10,
        in_channels: int = 3,
        scale_invariant: bool = False,
        head_norm: float = 10.0,
        eps: float = 1e-5,
        normalisation: ImageNormalisation = "batch",
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.normalisation = normalisation
        norm = partial(image_norm, normalisation, eps=eps, affine=not scale_invariant)
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        c_in = width
        for factor in (1, 2, 4, 8):
            c_out = factor * width
            stride = 1 if factor == 1 else 2
            first = _Block(c_in, c_out, stride, norm, norm_shortcut=scale_invariant)
            stages.append(nn.Sequential(first, _Block(c_out, c_out, 1, norm, norm_shortcut=scale_invariant)))
            c_in = c_out
        self.stages = nn.Sequential(*stages)
        self.norm = norm(c_in)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(c_in, num_classes, bias=False)
        if scale_invariant:
            freeze_head(self.head, head_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes).

        Args:
            x: The images.

        Returns:
            The logits.

        Raises:
            ValueError: If images are too small for instance norm.
        """
        if self.normalisation == "instance" and max(x.shape[-2:]) < _SMALLEST_NORMALISED:
            raise ValueError(
                f"normalisation instance: images of {x.shape[-2]}×{x.shape[-1]} have one pixel in the last stage of "
                f"ResNet18, which has no variance; take images from {_SMALLEST_NORMALISED}×{_SMALLEST_NORMALISED} "
                "on, or normalisation batch or layer"
            )
        features = self.relu(self.norm(self.stages(self.stem(x))))
        logits: Tensor = self.head(self.pool(features).flatten(1))
        return logits
