"""Quantiles over many groups in place of a curve for each."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_sphere.effective.quantities import NOT_STEPPED

_NAMES = {0.0: "min", 0.5: "median", 1.0: "max"}


def quantile_name(quantile: float) -> str:
    """Name a quantile in a key: ``min``, ``median``, ``max``, or ``q05``, ``q25``, ``q99.9`` for others.

    Args:
        quantile: In [0, 1].

    Returns:
        The name.
    """
    whole, _, rest = f"{100 * quantile:.6g}".partition(".")
    return _NAMES.get(quantile, f"q{whole.zfill(2)}" + (f".{rest}" if rest else ""))


def quantiles_over_groups(measured: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Replace the groups' values by quantiles, each of which is the value of a group.

    Args:
        measured: Shape (quantities, 1 + groups), the total first; ``NOT_STEPPED`` of groups to leave out.
        quantiles: In [0, 1]; the nearest rank is taken.

    Returns:
        Shape (quantities, 1 + quantiles), the total first; NaN where a group is, ``NOT_STEPPED`` where all are.
    """
    levels = torch.tensor(quantiles, dtype=measured.dtype, device=measured.device)
    groups = measured[:, 1:]
    absent = groups == NOT_STEPPED
    spread = torch.nanquantile(groups.masked_fill(absent, math.nan), levels, dim=1, interpolation="nearest").T
    spread = spread.masked_fill(groups.isnan().any(1, keepdim=True), math.nan)
    spread = spread.masked_fill(absent.all(1, keepdim=True), NOT_STEPPED)
    return torch.cat([measured[:, :1], spread], 1)
