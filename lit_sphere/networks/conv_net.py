"""The papers' small convolutional network ("3-layer ConvNet" of TR and PB)."""

from itertools import pairwise

from torch import Tensor, nn

from lit_sphere.networks.frozen_head import freeze_head
from lit_sphere.networks.normalisation import ImageNormalisation, image_norm


class ConvNet(nn.Module):
    """Four 3×3 convolutions of widths w, 2w, 4w, 8w, each followed by a norm and ReLU (TR §4, PB §4).

    A 2×2 max-pool follows the second, third and fourth block and a global one the last, so that 32×32
    images give 1×1 features, and any size from 8×8 on works. The linear head has a bias.

    With ``scale_invariant`` the norms have no affine parameters and the head is frozen: every
    trainable parameter is scale-invariant, per tensor and, but for layer norm, per filter (387 936 of them
    at ``width=32``, radius at initialisation about 12.65).

    Args:
        width: Channels w of the first convolution.
        num_classes: Outputs.
        in_channels: Channels of the images.
        scale_invariant: Scale-invariant version, with the frozen head; otherwise everything is trained.
        head_norm: Frobenius norm of the frozen head's weight. Unused in the practical version.
        eps: Added to the variance by the norms. It breaks scale invariance slightly; identities
            are exact in float64 with 1e-30.
        normalisation: ``batch``, ``layer`` or ``instance`` norm after each convolution. Layer norm is over
            channels, height and width: the tensors of weights are then scale-invariant, their filters are not.

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
        channels = [in_channels, width, 2 * width, 4 * width, 8 * width]
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False) for c_in, c_out in pairwise(channels)
        )
        self.norms = nn.ModuleList(
            image_norm(normalisation, c_out, eps, affine=not scale_invariant) for c_out in channels[1:]
        )
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.global_pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(channels[-1], num_classes)
        if scale_invariant:
            freeze_head(self.head, head_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W), H and W at least 8, to logits (N, num_classes)."""
        for depth, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))
            # max and ReLU commute, values and gradients: to pool first leaves a quarter of the work.
            x = self.relu(self.pool(x) if depth > 0 else x)
        logits: Tensor = self.head(self.global_pool(x).flatten(1))
        return logits
