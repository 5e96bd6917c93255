"""Arguments of the formulas: numbers or tensors of any dtype, taken as float64, refused where they have no meaning."""

from collections.abc import Sequence

import torch
from torch import Tensor

Number = Tensor | float
Numbers = Sequence[float] | Tensor
"""Several numbers: a list, or a tensor of shape (n,)."""


def double(value: Number | Numbers) -> Tensor:
    """Take a number or tensor as float64 at once: through float32 a Python float would lose digits.

    Args:
        value: One or several, of any real dtype and shape.

    Returns:
        The same value, shape and device.
    """
    return torch.as_tensor(value, dtype=torch.float64)


def on_one_device(*values: Number | Numbers) -> list[Tensor]:
    """Take several arguments of one formula: a CPU's numbers may stand beside a GPU's tensors.

    torch mixes devices only where what lies on the CPU has no dimension, and broadcasting gives it some.

    Args:
        values: As of :func:`double`.

    Returns:
        Each in float64, on the device of the first that is not on the CPU, if there is one.
    """
    tensors = [double(value) for value in values]
    device = next((t.device for t in tensors if t.device.type != "cpu"), None)
    return tensors if device is None else [t.to(device) for t in tensors]


def require(holds: Tensor, message: str) -> None:
    """Refuse arguments out of range.

    Args:
        holds: What must be true of every element. Comparisons with NaN are false, so NaN is refused too.
        message: What to tell otherwise.

    Raises:
        ValueError: If it does not hold everywhere.
    """
    if not bool(holds.all()):
        raise ValueError(message)


def positive(name: str, value: Number | Numbers) -> Tensor:
    """Take a value that must be positive.

    Args:
        name: Of the argument.
        value: Its value.

    Returns:
        It in float64.

    Raises:
        ValueError: If an element is zero, negative, infinite or NaN.
    """  # noqa: DOC502
    tensor = double(value)
    require(tensor.isfinite() & (tensor > 0), f"{name} must be positive and finite")
    return tensor


def not_negative(name: str, value: Number | Numbers) -> Tensor:
    """Take a value that must not be negative.

    Args:
        name: Of the argument.
        value: Its value.

    Returns:
        It in float64.

    Raises:
        ValueError: If an element is negative, infinite or NaN.
    """  # noqa: DOC502
    tensor = double(value)
    require(tensor.isfinite() & (tensor >= 0), f"{name} must be finite and not negative")
    return tensor


def finite(name: str, value: Number | Numbers) -> Tensor:
    """Take a value of any sign.

    Args:
        name: Of the argument.
        value: Its value.

    Returns:
        It in float64.

    Raises:
        ValueError: If an element is infinite or NaN.
    """  # noqa: DOC502
    tensor = double(value)
    require(tensor.isfinite(), f"{name} must be finite")
    return tensor


def kept(lr: Number, weight_decay: Number) -> Tensor:
    """1 − ηλ, the share of the weights that a step's decay leaves.

    Args:
        lr: η > 0.
        weight_decay: λ ≥ 0, with ηλ < 1.

    Returns:
        In (0, 1], broadcast.

    Raises:
        ValueError: If an argument is out of its range.
    """  # noqa: DOC502
    lr, weight_decay = on_one_device(lr, weight_decay)
    product = positive("lr", lr) * not_negative("weight_decay", weight_decay)
    require(product < 1, "lr · weight_decay must be below 1")
    return 1 - product
