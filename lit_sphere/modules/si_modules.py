"""The papers' scale-invariant networks with flat options, ready to be trained."""

from typing import Any, ClassVar

from lit_sphere.modules.options import unsaved
from lit_sphere.modules.sphere_module import SphereModule
from lit_sphere.networks import ConvNet, ResNet18


class _SIModule(SphereModule):
    """A scale-invariant network of the papers with flat options.

    Args:
        width: Channels of the first convolution; 32 or 64 in the papers, 8 for digits.
        num_classes: Classes; taken from the data on the command line.
        in_channels: Channels of the images; taken from the data on the command line.
        head_norm: Frobenius norm of the frozen head.
        eps: Added to the variance by the batch norms.
        **training: Options of :class:`SphereModule`: ``elr``, ``spheres``, ``optimizer``, ``scheduler``, ``loss``,
            ``compile``.
    """

    network_class: ClassVar[type[ConvNet] | type[ResNet18]]

    def __init__(
        self,
        width: int = 32,
        num_classes: int = 10,
        in_channels: int = 3,
        head_norm: float = 10.0,
        eps: float = 1e-5,
        **training: Any,
    ) -> None:
        network = self.network_class(width, num_classes, in_channels, True, head_norm, eps)
        super().__init__(network, num_classes=num_classes, input_shape=(in_channels, 32, 32), **training)
        self.save_hyperparameters(logger=False, ignore=unsaved("optimizer", "scheduler"))


class SIConvNet(_SIModule):
    """The papers' scale-invariant ConvNet (see :class:`~lit_sphere.networks.ConvNet`), frozen head."""

    network_class = ConvNet


class SIResNet18(_SIModule):
    """The papers' scale-invariant ResNet-18 (see :class:`~lit_sphere.networks.ResNet18`), frozen head."""

    network_class = ResNet18
