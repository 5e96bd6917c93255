"""What makes one tensor scale-invariant: a fixed length of the tensor itself, or a norm of its module's output."""

from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

Site = tuple[nn.Module, str]
"""A module, and the attribute under which it holds a parameter."""

_BATCH_NORMS: Mapping[int, type[nn.Module]] = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_OUTPUT_NORM = "output_norm"


class FixedLength(nn.Module):
    """Parametrization w = ℓθ/‖θ‖ (Frobenius norm): the function of θ is scale-invariant, whatever follows.

    At θ = w nothing changes: ℓ is the norm that the tensor has when it is made. As in weight normalisation without
    its trained length, but for the tensor as a whole.

    Args:
        length: Norm ℓ of the tensor that the module uses, a scalar; kept as a buffer.
    """

    length: Tensor

    def __init__(self, length: Tensor) -> None:
        super().__init__()
        self.register_buffer("length", length.detach().clone())

    def forward(self, tensor: Tensor) -> Tensor:
        """Give the tensor its length, in float32 at least."""
        norm = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
        scaled: Tensor = tensor * (self.length / norm).to(tensor.dtype)
        return scaled


class LastDimNorm(nn.Module):
    """Layer norm over the last dimension, of any width and without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise vectors along the last dimension."""
        return F.layer_norm(x, x.shape[-1:])


def fix_length(sites: Iterable[Site]) -> None:
    """Make one parameter scale-invariant by :class:`FixedLength`, in all modules that share it.

    Args:
        sites: Where the parameter is held; at least once.
    """
    sites = list(sites)
    parameter = getattr(*sites[0])
    norm = torch.linalg.vector_norm(parameter.detach(), dtype=torch.promote_types(parameter.dtype, torch.float32))
    shared = FixedLength(norm)
    for module, name in sites:
        _register(module, name, shared)


def _register(module: nn.Module, name: str, fixed: nn.Module) -> None:
    parametrize.register_parametrization(module, name, fixed, unsafe=True)
    # torch has made a class for this one module, which refuses to be pickled.
    type(module).__reduce_ex__ = _reduce  # type: ignore[assignment, method-assign]


def _reduce(module: nn.Module, protocol: SupportsIndex) -> Any:
    """Pickle a module as it was before, and its fixed lengths."""
    lists = dict(module.get_submodule("parametrizations").named_children())
    lengths = {name: list(each.children()) for name, each in lists.items()}
    if not all(len(each) == 1 and isinstance(each[0], FixedLength) for each in lengths.values()):
        return object.__reduce_ex__(module, protocol)  # torch says why not
    state = vars(module).copy()
    state["_modules"] = {name: each for name, each in state["_modules"].items() if name != "parametrizations"}
    originals = {name: each.get_parameter("original") for name, each in lists.items()}
    state["_parameters"] = {**state["_parameters"], **originals}
    before = parametrize.type_before_parametrizations(module)
    return _rebuilt, (before, state, {name: each for name, (each,) in lengths.items()})


def _rebuilt(before: type[nn.Module], state: dict[str, Any], lengths: dict[str, nn.Module]) -> nn.Module:
    module = before.__new__(before)
    module.__setstate__(state)
    for name, fixed in lengths.items():
        _register(module, name, fixed)
    return module


def has_room(sites: Iterable[Site]) -> bool:
    """Tell whether :func:`fix_length` can be applied: not to what is inside another parametrisation.

    Args:
        sites: Where the parameter is held.

    Returns:
        Whether it can.
    """
    return not any(isinstance(module, parametrize.ParametrizationList) for module, _ in sites)


def release_length(sites: Iterable[Site]) -> None:
    """Undo :func:`fix_length`.

    Args:
        sites: Where the parameter was held.
    """
    for module, name in sites:
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)


def takes_output_norm(sites: Iterable[Site]) -> bool:
    """Tell whether a norm of the output could undo the scale of a parameter: the weight of one module, and no other's.

    Args:
        sites: Where the parameter is held.

    Returns:
        Whether there is one module, without children, that has no other weight and is no norm.
    """
    sites = list(sites)
    if len(sites) != 1:
        return False
    module, name = sites[0]
    others = [other for other, p in module.named_parameters(recurse=False) if other not in (name, "bias")]
    return not others and not any(module.children())


def normalise_output(module: nn.Module) -> RemovableHandle:
    """Normalise the output of a module: batch norm without affine parameters for convolutions, else layer norm.

    The norm is a child of the module, so that its statistics are saved, and runs in a forward hook, so that the
    network's own names stay.

    Args:
        module: A convolution, or any module that returns vectors along its last dimension.

    Returns:
        What :func:`release_output` takes.
    """
    norm: nn.Module = LastDimNorm()
    if isinstance(module, _ConvNd):
        norm = _BATCH_NORMS[module.weight.dim()](module.out_channels, affine=False).to(module.weight.device)
    module.add_module(_OUTPUT_NORM, norm.train(module.training))
    return module.register_forward_hook(_normalise)


def release_output(module: nn.Module, handle: RemovableHandle) -> None:
    """Undo :func:`normalise_output`.

    Args:
        module: The same module.
        handle: What it returned.
    """
    handle.remove()
    delattr(module, _OUTPUT_NORM)


def _normalise(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    normalised: Tensor = module.get_submodule(_OUTPUT_NORM)(output)
    return normalised
