"""The shipped networks with flat options, ready to be trained: scale-invariant, or practical for comparison."""

import inspect
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import nn

from lit_sphere import networks
from lit_sphere.modules.options import unsaved
from lit_sphere.modules.sphere_module import SphereModule
from lit_sphere.networks import ConvNet, ResNet18, ResNet20
from lit_sphere.networks.resnet20 import Normalisation

_COMMON_OPTIONS = {"width", "num_classes", "in_channels", "scale_invariant", "head_norm", "eps"}
_POSITIONAL = ("width", "num_classes", "in_channels")
_OF_THE_NETWORK = {"self", "network", "num_classes", "input_shape"}
"""Parameters of :class:`SphereModule` that follow from the network."""


class _NetworkModule(SphereModule):
    """A network with flat options.

    Args:
        width: Of the network's layers.
        num_classes: Classes; taken from the data on the command line.
        in_channels: Channels of the images; taken from the data on the command line.
        **options: Other options of the network, and those of :class:`SphereModule`: ``elr``, ``granularity``,
            ``optimizer``, ``scheduler``, ``loss``, ``compile``, ``head_seed``.
    """

    network_class: ClassVar[type[nn.Module]]
    scale_invariant: ClassVar[bool]

    def __init_subclass__(cls) -> None:
        """Give the class of a network a constructor whose signature and help name the network's own options."""
        super().__init_subclass__()
        if "network_class" in vars(cls) and "__init__" not in vars(cls):
            own, common = _options_of_network(cls), _NetworkModule.__init__
            assert isinstance(common, FunctionType)
            defaults = tuple(own[name].default for name in _POSITIONAL)
            made = FunctionType(common.__code__, common.__globals__, "__init__", defaults, common.__closure__)
            made.__qualname__, made.__doc__ = f"{cls.__qualname__}.__init__", cls.network_class.__doc__
            training = {n: p for n, p in inspect.signature(SphereModule.__init__).parameters.items() if n not in own}
            rest = [p for name, p in training.items() if name not in _OF_THE_NETWORK]
            myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
            made.__signature__ = inspect.Signature([myself, *own.values(), *rest])  # type: ignore[attr-defined]
            setattr(cls, "__init__", made)  # noqa: B010 (type checkers keep to the common one)

    def __init__(self, width: int = 32, num_classes: int = 10, in_channels: int = 3, **options: Any) -> None:
        own = _options_of_network(type(self))
        defaults = {name: p.default for name, p in own.items() if name not in _POSITIONAL}
        options = {**defaults, **options}  # all of the network's are saved as hyperparameters
        of_network = {name: options[name] for name in defaults}
        of_network |= {"width": width, "num_classes": num_classes, "in_channels": in_channels}
        network = self.network_class(scale_invariant=self.scale_invariant, **of_network)
        training = {name: value for name, value in options.items() if name not in own}
        super().__init__(network, num_classes=num_classes, **training)
        size = options.get("image_size", 32)
        self.example_input_array = torch.zeros(2, in_channels, size, size)
        self.save_hyperparameters(logger=False, ignore=["spheres", *unsaved("optimizer", "scheduler")])
        self.hparams["granularity"] = self.granularity


def _options_of_network(module: type[_NetworkModule]) -> dict[str, inspect.Parameter]:
    """Parameters of a module's network, but for those that the module sets."""
    unused = {"scale_invariant"} if module.scale_invariant else {"scale_invariant", "head_norm"}
    parameters = inspect.signature(module.network_class).parameters
    return {name: parameters[name] for name in [*_POSITIONAL, *parameters] if name not in unused}


class _SIModule(_NetworkModule):
    """A scale-invariant network."""

    scale_invariant = True


class _PracticalModule(_NetworkModule):
    """A network whose norms and head are trained."""

    scale_invariant = False


# `_derived` would make these as well; they are written out for type checkers.
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


class PracticalConvNet(_PracticalModule):
    """The papers' ConvNet as in practice (see :class:`~lit_sphere.networks.ConvNet`): norms and head are trained."""

    network_class = ConvNet


class PracticalResNet18(_PracticalModule):
    """ResNet-18 as in practice (see :class:`~lit_sphere.networks.ResNet18`): norms and head are trained."""

    network_class = ResNet18


class PracticalResNet20(_PracticalModule):
    """SP's ResNet-20 in its three versions (see :class:`~lit_sphere.networks.ResNet20`), the head trained.

    Batch norm, batch norm without trained weights and biases (``affine`` false), or weight norm.
    """

    network_class = ResNet20


def _derived() -> dict[str, type[SphereModule]]:
    """Modules of the other networks that ``lit_sphere.networks`` exports, if they take the common options."""
    found: dict[str, type[SphereModule]] = {}
    for name in networks.__all__:
        network = getattr(networks, name)
        if not inspect.signature(network).parameters.keys() >= _COMMON_OPTIONS:
            continue
        for prefix, base, what in (
            ("SI", _SIModule, f"The scale-invariant :class:`~lit_sphere.networks.{name}`, frozen head."),
            ("Practical", _PracticalModule, f":class:`~lit_sphere.networks.{name}`, norms and head trained."),
        ):
            if f"{prefix}{name}" not in globals():
                members = {"__module__": __name__, "__doc__": what, "network_class": network}
                found[f"{prefix}{name}"] = type(f"{prefix}{name}", (base,), members)
    return found


DERIVED = _derived()
globals().update(DERIVED)  # configs, checkpoints and pickle find classes by module and name
