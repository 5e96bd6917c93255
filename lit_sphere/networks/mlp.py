"""A multilayer perceptron with layer norm, practical and scale-invariant."""

from torch import Tensor, nn

from lit_sphere.networks.frozen_head import freeze_head
from lit_sphere.networks.images import check_images, check_sizes


class MLP(nn.Module):
    """Linear layers without bias, each followed by layer norm and ReLU, on all pixels at once.

    With ``scale_invariant`` the norms have no affine parameters and the head is frozen: the weights of each layer are
    a scale-invariant tensor, ``depth`` in all. A row of them is not scale-invariant by itself, since layer norm has
    one variance for all units of a layer.

    Args:
        width: Units of each layer, at least 3: of two values layer norm leaves but their order.
        num_classes: Outputs.
        in_channels: Channels of the images.
        scale_invariant: Scale-invariant version, with the frozen head; otherwise everything is trained.
        head_norm: Frobenius norm of the frozen head's weight. Unused in the practical version.
        eps: Added to the variance by the norms. It breaks scale invariance slightly; identities are exact in float64
            with 1e-30.
        image_size: Height and width of the images; taken from the data on the command line.
        depth: Number of layers before the head.

    Raises:
        ValueError: If ``width`` is less than 3, ``depth`` or ``image_size`` less than 1, or ``eps`` or ``head_norm``
            not positive.
    """

    def __init__(
        self,
        width: int = 256,
        num_classes: int = 10,
        in_channels: int = 3,
        scale_invariant: bool = False,
        head_norm: float = 10.0,
        eps: float = 1e-5,
        image_size: int = 32,
        depth: int = 2,
    ) -> None:
        super().__init__()
        check_sizes(eps, depth=depth, image_size=image_size)
        if width < 3:
            raise ValueError(f"width must be at least 3, got {width}: of two values layer norm leaves but their order")
        self.image_shape = (in_channels, image_size, image_size)
        layers: list[nn.Module] = [nn.Flatten()]
        units = in_channels * image_size**2
        for _ in range(depth):
            norm = nn.LayerNorm(width, eps=eps, elementwise_affine=not scale_invariant)
            layers += [nn.Linear(units, width, bias=False), norm, nn.ReLU(inplace=True)]
            units = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes)
        if scale_invariant:
            freeze_head(self.head, head_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, image_size, image_size) to logits (N, num_classes)."""
        check_images(x, self)
        logits: Tensor = self.head(self.layers(x))
        return logits
