"""The frozen linear head that makes all trainable parameters of a normalised network scale-invariant."""

import numpy as np
import torch
from torch import nn

_HEAD = 5  # keeps its random numbers apart from those of an initialisation with the same seed


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


@torch.no_grad()
def redraw_head(network: nn.Module, seed: int) -> None:
    """Draw the last linear map of a network anew, as torch does, from a seed of its own.

    All other parameters, and torch's own generators, are left as they are. A frozen head keeps its norm.

    Args:
        network: Its ``head``, or else the last ``nn.Linear`` that it holds, is changed in place.
        seed: Seed >= 0 of the head.

    Raises:
        ValueError: If the seed is negative, or there is no ``nn.Linear``.
    """
    if seed < 0:
        raise ValueError(f"head_seed (--model.head_seed) must not be negative, got {seed}")
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    named = getattr(network, "head", None)
    if not linear:
        raise ValueError(f"head_seed (--model.head_seed): {type(network).__name__} has no linear map to draw anew")
    head = named if isinstance(named, nn.Linear) else linear[-1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence((seed, _HEAD)).generate_state(1, np.uint64)[0]))
        drawn = nn.Linear(head.in_features, head.out_features, head.bias is not None, device="cpu")
    if not head.weight.requires_grad:
        drawn.weight.mul_(torch.linalg.vector_norm(head.weight).cpu() / torch.linalg.vector_norm(drawn.weight))
    head.weight.copy_(drawn.weight)
    if head.bias is not None:
        head.bias.copy_(drawn.bias)
