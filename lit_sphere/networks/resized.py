"""Images of any size and number of channels for networks that expect others, such as those made for photographs."""

from torch import Tensor, nn
from torch.nn import functional as F


class Resized(nn.Module):
    """A network behind a map of its images to the channels and the size that it expects; the map has no parameters.

    Args:
        network: Maps images (N, channels, size, size) to logits.
        channels: Channels that it expects: images of one channel are repeated. None: those of the images.
        size: Height and width that it expects, by bilinear interpolation. None: those of the images.

    Raises:
        ValueError: If ``channels`` or ``size`` is less than 1.
    """

    def __init__(self, network: nn.Module, channels: int | None = None, size: int | None = None) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("size", size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.network, self.channels, self.size = network, channels, size

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W), C either 1 or as the network expects, to logits."""
        if self.channels is not None and x.shape[1] == 1:
            x = x.expand(-1, self.channels, -1, -1)
        if self.size is not None:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        logits: Tensor = self.network(x)
        return logits
