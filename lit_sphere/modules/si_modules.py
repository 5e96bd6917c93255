"""The papers' scale-invariant networks with flat options, ready to be trained."""

import inspect
from typing import Any, ClassVar

from torch import nn

from lit_sphere import networks
from lit_sphere.modules.options import unsaved
from lit_sphere.modules.sphere_module import SphereModule
from lit_sphere.networks import ConvNet, ResNet18, ResNet20
from lit_sphere.networks.resnet20 import Normalisation


class _SIModule(SphereModule):
    """A scale-invariant network with flat options.

    Args:
        width: Channels of the first convolution; 32 or 64 in the papers, 8 for digits.
        num_classes: Classes; taken from the data on the command line.
        in_channels: Channels of the images; taken from the data on the command line.
        head_norm: Frobenius norm of the frozen head.
        eps: Added to the variance by the batch norms.
        **training: Options of :class:`SphereModule`: ``elr``, ``granularity``, ``optimizer``, ``scheduler``,
            ``loss``, ``compile``, ``head_seed``.
    """

    network_class: ClassVar[type[nn.Module]]

    def __init__(
        self,
        width: int = 32,
        num_classes: int = 10,
        in_channels: int = 3,
        head_norm: float = 10.0,
        eps: float = 1e-5,
        **training: Any,
    ) -> None:
        network = self.network_class(
            width=width,
            num_classes=num_classes,
            in_channels=in_channels,
            scale_invariant=True,
            head_norm=head_norm,
            eps=eps,
        )
        super().__init__(network, num_classes=num_classes, input_shape=(in_channels, 32, 32), **training)
        self.save_hyperparameters(logger=False, ignore=["spheres", *unsaved("optimizer", "scheduler")])
        self.hparams["granularity"] = self.granularity


# `_derived` would make these two as well; they are written out for type checkers.
class SIConvNet(_SIModule):
    """The papers' scale-invariant ConvNet (see :class:`~lit_sphere.networks.ConvNet`), frozen head."""

    network_class = ConvNet


class SIResNet18(_SIModule):
    """The papers' scale-invariant ResNet-18 (see :class:`~lit_sphere.networks.ResNet18`), frozen head."""

    network_class = ResNet18


class SIResNet20(SphereModule):
    """SP's ResNet-20 in its scale-invariant versions (see :class:`~lit_sphere.networks.ResNet20`), frozen head.

    With ``batch`` the filters of all convolutions are trained, each scale-invariant by itself; with ``weight`` the
    directions of all filters, at fixed lengths.

    Args:
        width: Channels of the first stage; 16 in the paper, 8 for digits.
        num_classes: Classes; taken from the data on the command line.
        in_channels: Channels of the images; taken from the data on the command line.
        head_norm: Frobenius norm of the frozen head.
        eps: Added to the variance by the batch norms; unused with ``weight``.
        normalisation: ``batch``: batch norm without affine parameters after each convolution. ``weight``: weight norm
            of each filter; nothing holds the outputs back then, so that only lower ELRs train (on digits 1e-5).
        affine: Only false: trained weights and biases of batch norms are not scale-invariant.
        **training: Options of :class:`SphereModule`: ``elr``, ``granularity``, ``optimizer``, ``scheduler``,
            ``loss``, ``compile``, ``head_seed``.

    Raises:
        ValueError: If ``affine`` is true.
    """

    def __init__(
        self,
        width: int = 16,
        num_classes: int = 10,
        in_channels: int = 3,
        head_norm: float = 10.0,
        eps: float = 1e-5,
        normalisation: Normalisation = "batch",
        affine: bool = False,
        **training: Any,
    ) -> None:
        if affine:
            raise ValueError(
                "affine (--model.affine) true: trained weights and biases of batch norms are not scale-invariant; "
                "leave it out, or train that version in the whole space: --model SphereModule --model.network "
                "ResNet20 --model.optimizer SGD"
            )
        network = ResNet20(
            width=width,
            num_classes=num_classes,
            in_channels=in_channels,
            scale_invariant=True,
            head_norm=head_norm,
            eps=eps,
            normalisation=normalisation,
        )
        super().__init__(network, num_classes=num_classes, input_shape=(in_channels, 32, 32), **training)
        self.save_hyperparameters(logger=False, ignore=["spheres", *unsaved("optimizer", "scheduler")])
        self.hparams["granularity"] = self.granularity


_COMMON_OPTIONS = {"width", "num_classes", "in_channels", "scale_invariant", "head_norm", "eps"}


def _derived() -> dict[str, type[SphereModule]]:
    """Modules of the other networks that ``lit_sphere.networks`` exports, if they take the common options."""
    found: dict[str, type[SphereModule]] = {}
    for name in networks.__all__:
        network = getattr(networks, name)
        if f"SI{name}" not in globals() and inspect.signature(network).parameters.keys() >= _COMMON_OPTIONS:
            doc = f"The scale-invariant :class:`~lit_sphere.networks.{name}`, frozen head."
            members = {"__module__": __name__, "__doc__": doc, "network_class": network}
            found[f"SI{name}"] = type(f"SI{name}", (_SIModule,), members)
    return found


DERIVED = _derived()
globals().update(DERIVED)  # configs, checkpoints and pickle find classes by module and name
