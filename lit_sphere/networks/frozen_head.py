"""The frozen linear head that makes all trainable parameters of a normalised network scale-invariant."""

import torch
from torch import nn


@torch.no_grad()
def freeze_head(head: nn.Linear, norm: float) -> None:
    """Rescale the weight of ``head`` to a Frobenius norm and stop its training, as TR §4 does.

    A trained head would be no scale-invariant group; a frozen one is a fixed linear map of the last
    normalised features. The bias keeps its initial values.

    Args:
        head: The last layer; changed in place.
        norm: Frobenius norm of the weight afterwards. The papers use 10: a low norm makes low
            cross-entropy unreachable (PB, fig. on the head's norm).

    Raises:
        ValueError: If ``norm`` is not positive.
    """
    if not norm > 0:
        raise ValueError(f"head_norm must be positive, got {norm}")
    head.weight.mul_(norm / torch.linalg.vector_norm(head.weight))
    head.requires_grad_(False)
