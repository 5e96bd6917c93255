"""Loss and error along a path between two points in weight space, and the barrier between them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from lit_sphere.analysis.evaluation import BatchLoss, Criterion, loss_and_error, mean_loss
from lit_sphere.analysis.weights import Separation, Weights, put_weights, separation, take_weights

Statistics = Literal["batch", "reestimated"]
"""What normalisation layers take: each batch's own statistics, or those of the train set, estimated anew."""

_ANTIPODAL = 1e-6  # norm of the sum of two unit vectors below which no path between them is distinguished
_MOST_POINTS = 10**6
_SECONDS_BEFORE_BAR = 2.0


@dataclass(frozen=True)
class Interpolation:
    """What was measured along a path.

    Attributes:
        positions: t from 0, the start, to 1, the end.
        curves: Values at these positions by name, e.g. ``train_loss``.
        separation: Norms of the end points, and how far their directions are apart, over the scale-invariant
            weights.
        great_circle: Along the great circle; otherwise along the segment, rescaled to the sphere.
    """

    positions: tuple[float, ...]
    curves: dict[str, tuple[float, ...]]
    separation: Separation
    great_circle: bool = False

    def barrier(self, name: str) -> float:
        """Give the barrier of one curve, see :func:`barrier_height`."""
        return barrier_height(self.positions, self.curves[name])

    def dip(self, name: str) -> float:
        """Give the depth below the chord of one curve, see :func:`dip_depth`."""
        return dip_depth(self.positions, self.curves[name])


def chord(positions: Sequence[float], values: Sequence[float]) -> list[float]:
    """Interpolate linearly between the first and the last value.

    Args:
        positions: Increasing positions, at least two.
        values: A value for each.

    Returns:
        The chord at these positions.
    """
    first, span = positions[0], positions[-1] - positions[0]
    return [values[0] + (t - first) / span * (values[-1] - values[0]) for t in positions]


def barrier_height(positions: Sequence[float], values: Sequence[float]) -> float:
    """Give the barrier between the ends of a path: max over it of (value − chord), at least 0.

    The end points' own difference is no barrier: it is what the chord takes off.

    Args:
        positions: Increasing positions, at least two.
        values: Loss or error at each.

    Returns:
        The height; NaN if a value is.

    Example:
        >>> barrier_height([0.0, 0.5, 1.0], [0.1, 0.9, 0.3]), dip_depth([0.0, 0.5, 1.0], [0.1, 0.9, 0.3])
        (0.7, 0.0)
    """
    return _largest([v - c for v, c in zip(values, chord(positions, values), strict=True)])


def dip_depth(positions: Sequence[float], values: Sequence[float]) -> float:
    """Give the depth of a path below its chord: max over it of (chord − value), at least 0.

    Positive without a barrier: the path is lower in the middle, as between checkpoints of one run in the
    chaotic equilibrium (TR §5).

    Args:
        positions: Increasing positions, at least two.
        values: Loss or error at each.

    Returns:
        The depth; NaN if a value is.
    """
    return _largest([c - v for v, c in zip(values, chord(positions, values), strict=True)])


def _largest(excesses: Sequence[float]) -> float:
    return math.nan if any(math.isnan(x) for x in excesses) else max(0.0, *excesses)


def path_positions(points: int) -> tuple[float, ...]:
    """Place points evenly from 0 to 1.

    Args:
        points: Their number, at least 3, at most a million; 21 in the papers.

    Returns:
        The positions, both ends among them.

    Raises:
        ValueError: If there are fewer than 3, or more than a million.
    """
    if points < 3:
        raise ValueError(f"points must be at least 3, both end points among them, got {points}")
    if points > _MOST_POINTS:
        raise ValueError(f"points must be at most {_MOST_POINTS}, each takes passes over the data, got {points}")
    return tuple(i / (points - 1) for i in range(points))


class WeightPath:
    """A path between two points in weight space that stays on the sphere of the scale-invariant weights.

    The scale-invariant tensors of one sphere are interpolated jointly, linearly and then rescaled, or along the
    great circle; their norm is ρ(t) = (1 − t)ρ₀ + tρ₁, which is ρ where both ends have it. What is not
    scale-invariant is interpolated linearly, buffers too; whole numbers are those of the nearer end. At t = 0
    and t = 1 the end points are given as they are, bit for bit.

    Args:
        start: Parameters and buffers at t = 0.
        end: Those at t = 1, same names and shapes.
        spheres: Names of the tensors of each sphere. One for all, the joint sphere, is the usual choice; a list
            for each group makes each its own sphere, which on the segment gives the same functions. Empty: a
            segment in the whole space.
        great_circle: Along the great circle of each sphere.

    Attributes:
        separation: Of the end points, over all spheres (without any: over all that is not whole numbers).

    Raises:
        ValueError: If the points differ in names or shapes, or if their weights on a sphere are zero or point in
            opposite directions, between which no path is distinguished.

    Example:
        >>> path = WeightPath({"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([0.0, 2.0])}, [["w"]])
        >>> path.at(0.5)["w"], path.separation.cosine
        (tensor([1.4142, 1.4142]), 0.0)
    """

    def __init__(
        self, start: Weights, end: Weights, spheres: Sequence[Sequence[str]], great_circle: bool = False
    ) -> None:
        differs = [name for name in {**start, **end} if _shape(start, name) != _shape(end, name)]
        if differs:
            raise ValueError(f"no path between different architectures: {differs[0]} differs in name or shape")
        self._start, self._end, self.great_circle = start, end, great_circle
        on_spheres = [name for names in spheres for name in names]
        floating = [name for name, value in start.items() if value.is_floating_point() or value.is_complex()]
        self.separation = separation(start, end, on_spheres or floating)
        self._spheres = [(names, separation(start, end, names)) for names in spheres]
        for names, each in self._spheres:
            if each.together < _ANTIPODAL:
                raise ValueError(f"{names[0]} … of the two points are opposite: no path between them is distinguished")

    def at(self, t: float) -> dict[str, Tensor]:
        """Give the point at one position.

        Args:
            t: From 0 to 1.

        Returns:
            Parameters and buffers, as new tensors.
        """
        if t in (0, 1):
            return {name: value.clone() for name, value in (self._end if t else self._start).items()}
        weights = dict.fromkeys(self._start, (1 - t, t))
        for names, between in self._spheres:
            weights.update(dict.fromkeys(names, _on_sphere(between, t, self.great_circle)))
        return {name: _combination(self._start[name], self._end[name], *ab) for name, ab in weights.items()}


def _shape(weights: Weights, name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None


def _combination(start: Tensor, end: Tensor, a: float, b: float) -> Tensor:
    if not (start.is_floating_point() or start.is_complex()):
        return (start if a >= b else end).clone()
    wide = torch.promote_types(start.dtype, torch.float64)
    return (a * start.to(wide) + b * end.to(wide)).to(start.dtype)


def _on_sphere(between: Separation, t: float, great_circle: bool) -> tuple[float, float]:
    """Weights of the two ends in a point of the path; both kinds of path lie in the plane of the ends."""
    norms, angle = between.norms, between.angle
    if great_circle and math.sin(angle) > 0:
        a, b = (math.sin(part * angle) / math.sin(angle) for part in (1 - t, t))
    else:
        a, b = ((1 - t) * norms[0], t * norms[1])
    # Norm of a u₀ + b u₁, without cancellation where the ends are close or nearly opposite.
    norm = math.hypot((a + b) * between.together, (a - b) * between.apart) / 2
    radius = (1 - t) * norms[0] + t * norms[1]
    return a * radius / (norm * norms[0]), b * radius / (norm * norms[1])


def interpolate(
    model: nn.Module,
    path: WeightPath,
    batches: Mapping[str, Callable[[], Iterable[Any]]],
    positions: Sequence[float],
    statistics: Statistics = "batch",
    *,
    criterion: Criterion = F.cross_entropy,
    loss: BatchLoss | None = None,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    add_up: Callable[[Tensor], Tensor] = lambda sums: sums,
    progress: str | None = None,
) -> Interpolation:
    """Measure loss and error of a classifier along a path, or the loss alone of any model.

    Weights, buffers and modes of the model are put back afterwards. Dropout is off throughout.

    Args:
        model: Maps inputs (N, …) to logits (N, C).
        path: Where to measure.
        batches: For each set of data, ``train`` and any others, what gives the batches (inputs, labels) of one
            pass, on the model's device.
        positions: Increasing, from 0 to 1.
        statistics: ``batch``: normalisation by each batch's own statistics, on all sets. ``reestimated``: batch
            norm statistics are estimated anew from a pass over the train set at each point
            (``torch.optim.swa_utils.update_bn``: mean over its batches, and over processes), then all sets are
            seen in eval mode.
        criterion: Mean loss of a batch.
        loss: Mean loss and size of a batch of any kind, by the model, in place of logits and criterion; then there are
            no errors.
        context: Entered for each point, e.g. autocast.
        add_up: Adds tensors of several processes up.
        progress: Text of a progress bar on a terminal; None for none.

    Returns:
        Curves ``<set>_loss`` and, of a classifier, ``<set>_error``.

    Raises:
        ValueError: If a set has no batch.
    """  # noqa: DOC502
    saved, modes = take_weights(model), [(module, module.training) for module in model.modules()]
    measured = ("loss", "error") if loss is None else ("loss",)
    curves: dict[str, list[float]] = {f"{name}_{what}": [] for name in batches for what in measured}
    hidden = True if progress is None else None  # None: shown on a terminal
    try:
        with _without_dropout(model):
            for t in tqdm(positions, progress, leave=False, delay=_SECONDS_BEFORE_BAR, disable=hidden):
                put_weights(model, path.at(t))
                with context():
                    model.train()
                    if statistics == "reestimated":
                        if loss is None:
                            update_bn(batches["train"](), model)
                        else:
                            update_bn(((batch,) for batch in batches["train"]()), _Runs(model, loss))
                        _average_over_processes(model, add_up)
                        model.eval()
                    for name, one_pass in batches.items():
                        values: tuple[float, ...]
                        if loss is None:
                            values = loss_and_error(model, one_pass(), criterion, add_up)
                        else:
                            values = (mean_loss(loss, one_pass(), add_up),)
                        for what, value in zip(measured, values, strict=True):
                            curves[f"{name}_{what}"].append(value)
    finally:
        put_weights(model, saved)
        for module, mode in modes:
            module.training = mode
    result = {name: tuple(curve) for name, curve in curves.items()}
    return Interpolation(tuple(positions), result, path.separation, path.great_circle)


class _Runs(nn.Module):
    """A model whose forward is what is evaluated, for ``update_bn``."""

    def __init__(self, model: nn.Module, run: Callable[[Any], Any]) -> None:
        super().__init__()
        self._model, self._run = model, run

    def forward(self, batch: Any) -> None:
        self._run(batch)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """In train mode too, where it would be noise along the path."""
    layers = [(module, module.p) for module in model.modules() if isinstance(module, _DropoutNd)]
    for module, _ in layers:
        module.p = 0.0
    try:
        yield
    finally:
        for module, p in layers:
            module.p = p


@torch.no_grad()
def _average_over_processes(model: nn.Module, add_up: Callable[[Tensor], Tensor]) -> None:
    estimated = [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if not estimated:
        return
    one = torch.ones(1, dtype=torch.float64, device=estimated[0].device)
    sums = add_up(torch.cat([one, *(buffer.flatten().to(one) for buffer in estimated)]))
    means = (sums[1:] / sums[0]).split([buffer.numel() for buffer in estimated])
    for buffer, mean in zip(estimated, means, strict=True):
        buffer.copy_(mean.view_as(buffer))
