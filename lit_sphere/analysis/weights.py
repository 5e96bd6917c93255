"""The weights of a model as a point: taken, put back, read from a checkpoint, compared."""

import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_sphere.optim.shards import whole

Weights = Mapping[str, Tensor]
"""Parameters and buffers by their names in the ``state_dict``."""


def take_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copy parameters and buffers to the CPU.

    Args:
        model: Any module; if its parameters are sharded over processes (FSDP2), all must call this.

    Returns:
        A copy of every tensor of its ``state_dict``, whole.
    """
    return {name: whole(value).to("cpu", copy=True) for name, value in tensors_of(model.state_dict()).items()}


def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Leave out what is no tensor in a ``state_dict``: extra state of modules that have some."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


@torch.no_grad()
def put_weights(model: nn.Module, weights: Weights) -> None:
    """Copy parameters and buffers into a model, in place and on its own device.

    Args:
        model: The module that they were taken from, or one like it.
        weights: Every tensor of its ``state_dict``, or some of them.
    """
    state = model.state_dict()
    for name, value in weights.items():
        state[name].copy_(value)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a Lightning checkpoint as plain data on the CPU; nothing in it is executed.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ValueError: If it is missing, truncated, no Lightning checkpoint, or holds pickled code.
    """
    if (Path(path) / ".metadata").is_file():  # as torch.distributed.checkpoint writes
        raise ValueError(
            f"{path}: a sharded checkpoint; take one that is whole, of ModelParallelStrategy("
            "save_distributed_checkpoint=False)"
        )
    if Path(path).is_dir():
        raise ValueError(f"{path}: is a folder; give the file in it, such as checkpoints/last.ckpt")
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that Lightning does not write
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: holds pickled code (or no checkpoint at all), which is not loaded; save tensors and plain "
            "values only"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a readable checkpoint, it may be truncated; take another one") from error
    reason = _not_of_lightning(checkpoint)
    if reason is not None:
        raise ValueError(f"{path}: {reason}")
    return dict(checkpoint)


_PARTS = {
    "state_dict": dict,
    "global_step": int,
    "epoch": int,
    "pytorch-lightning_version": str,
    "hyper_parameters": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "train_metrics": dict,
    "scheduled_epochs": int,
}


def epochs_done(checkpoint: dict[str, Any]) -> int | None:
    """Count the epochs that a run has made.

    Args:
        checkpoint: As read by :func:`read_checkpoint`.

    Returns:
        Their number; None if the checkpoint does not say.
    """
    found: Any = checkpoint.get("loops")
    for name in ("fit_loop", "epoch_progress", "current", "processed"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, int) and found >= 0 else None


def _not_of_lightning(checkpoint: Any) -> str | None:
    """Say why a file's content is no checkpoint of Lightning; None if it is one."""
    if not isinstance(checkpoint, dict):
        return f"no checkpoint of Lightning, but a {type(checkpoint).__name__}; take one that a Trainer has saved"
    if "state_dict" not in checkpoint:
        bare = bool(checkpoint) and all(isinstance(value, Tensor) for value in checkpoint.values())
        what = "bare weights, as of torch.save(model.state_dict())" if bare else "there is no state_dict in it"
        return f"no checkpoint of Lightning ({what}); take one that a Trainer has saved"
    for name, kind in _PARTS.items():
        value = checkpoint.get(name)
        if name in checkpoint and (not isinstance(value, kind) or isinstance(value, bool)):
            return f"damaged: its {name} is a {type(value).__name__}, not a {kind.__name__}; take another checkpoint"
    if "global_step" not in checkpoint:
        return "no checkpoint of Lightning (a state_dict, but no global_step); take one that a Trainer has saved"
    for name, value in checkpoint["state_dict"].items():
        if not isinstance(name, str):
            return f"damaged: {name!r} in its state_dict is no name; take another checkpoint"
        if not (_is_dense(value) or name.endswith("_extra_state")):
            return f"damaged: {name} in its state_dict is no dense tensor, but {_kind(value)}; take another checkpoint"
    return None


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_quantized)


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return "one without values" if value.is_meta else "quantized" if value.is_quantized else f"of {value.layout}"


def not_finite(weights: Weights, own: Weights) -> str | None:
    """Find the first tensor that is NaN or infinite where a network's own is not (masks of attention may be −∞).

    Args:
        weights: Of a checkpoint.
        own: Of the network that is to load them.

    Returns:
        Its name; None if all is well.

    Example:
        >>> not_finite({"w": torch.tensor([1.0, torch.nan])}, {"w": torch.zeros(2)})
        'w'
    """
    for name, tensor in tensors_of(weights).items():
        if not tensor.isfinite().all() and (name not in own or bool(own[name].isfinite().all())):
            return name
    return None


def difference(weights: Weights, others: Weights) -> tuple[str, str, str] | None:
    """Find the first tensor in which two architectures differ: in its shape, or in the kind of its numbers.

    Args:
        weights: Of one model; what is no tensor is passed over.
        others: Of another.

    Returns:
        Its name, its shape in the one and in the other ("nothing" where it is missing, with the type where only
        that differs: whole, real or complex); None if all agree.

    Example:
        >>> difference({"w": torch.zeros(2, 3)}, {"w": torch.zeros(4, 3)})
        ('w', '(2, 3)', '(4, 3)')
    """
    shapes, wanted = ({name: str(tuple(t.shape)) for name, t in tensors_of(each).items()} for each in (weights, others))
    for name in [*wanted, *shapes]:
        if shapes.get(name) != wanted.get(name):
            return name, shapes.get(name, "nothing"), wanted.get(name, "nothing")
        one, other = weights[name], others[name]
        if (one.is_floating_point(), one.is_complex()) != (other.is_floating_point(), other.is_complex()):
            return name, f"{shapes[name]} of {one.dtype}", f"{wanted[name]} of {other.dtype}"
    return None


class Separation(NamedTuple):
    """How two points of one sphere, or of two concentric ones, lie to each other.

    With the unit vectors u₀, u₁ of the points:

    Attributes:
        norms: Norms of the two points.
        apart: ‖u₀ − u₁‖, 0 for the same direction.
        together: ‖u₀ + u₁‖, 0 for opposite directions.
    """

    norms: tuple[float, float]
    apart: float
    together: float

    @property
    def cosine(self) -> float:
        """Cosine similarity ⟨u₀, u₁⟩."""
        return (self.together**2 - self.apart**2) / 4

    @property
    def angle(self) -> float:
        """Angle between the points, in radians; accurate for small and for nearly straight angles too."""
        return 2 * math.atan2(self.apart, self.together)


def separation(weights: Weights, others: Weights, names: Sequence[str]) -> Separation:
    """Compare some tensors of two points, taken together as one vector each.

    Args:
        weights: One point.
        others: The other.
        names: Which tensors, at least one: the scale-invariant ones.

    Returns:
        Norms and distances of the directions, computed in float64; NaN where the weights are not finite.

    Raises:
        ValueError: If one of the vectors is zero.

    Example:
        >>> separation({"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}, ["w"]).cosine
        0.7071067811865...
    """
    points = [[_wide(each[name]) for name in names] for each in (weights, others)]
    norms = (_norm(points[0]), _norm(points[1]))
    if 0 in norms:
        raise ValueError(f"the weights to compare are all zero: their norms are {norms[0]} and {norms[1]}")
    pairs = [(a / norms[0], b / norms[1]) for a, b in zip(*points, strict=True)]
    return Separation(norms, _norm([a - b for a, b in pairs]), _norm([a + b for a, b in pairs]))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float64))


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(tensor)) for tensor in tensors))
