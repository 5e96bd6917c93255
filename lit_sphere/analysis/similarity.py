"""How alike the points of a run are: directions of their weights, and what their ensembles gain."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_sphere.analysis.weights import Weights, put_weights, separation, take_weights


@dataclass(frozen=True)
class EnsembleErrors:
    """Errors of an ensemble and of its members on the same data.

    Attributes:
        ensemble: Fraction of wrong predictions of the mean of the members' softmax outputs.
        members: Fraction of each member's own.
    """

    ensemble: float
    members: tuple[float, ...]

    @property
    def member_error(self) -> float:
        """Mean error of the members."""
        return sum(self.members) / len(self.members)

    @property
    def gain(self) -> float:
        """By how much the ensemble errs less than its members do on average."""
        return self.member_error - self.ensemble


def cosine_matrix(points: Sequence[Weights], names: Sequence[str]) -> Tensor:
    """Cosine similarities between all pairs of points (PB, minima of different periods).

    Args:
        points: At least one.
        names: Tensors to compare, taken together as one vector: the scale-invariant ones.

    Returns:
        Symmetric float64 matrix, shape (points, points), ones on the diagonal.

    Raises:
        ValueError: If these tensors are all zero in one of the points.

    Example:
        >>> points = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([3.0, 4.0])}]
        >>> cosine_matrix(points, ["w"])
        tensor([[1.0000, 0.6000],
                [0.6000, 1.0000]], dtype=torch.float64)
    """  # noqa: DOC502
    matrix = torch.eye(len(points), dtype=torch.float64)
    for i, one in enumerate(points):
        for j, other in enumerate(points[:i]):
            matrix[i, j] = matrix[j, i] = separation(one, other, names).cosine
    return matrix


@torch.no_grad()
def ensemble_errors(
    model: nn.Module,
    members: Sequence[Weights],
    batches: Iterable[Any],
    add_up: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> EnsembleErrors:
    """Measure the error of an ensemble of points of one run against that of its members.

    All in eval mode, with the batch norm statistics that are stored in each point. Weights, buffers and modes
    of the model are put back afterwards.

    Args:
        model: Maps inputs (N, …) to logits (N, C).
        members: Parameters and buffers of each member, at least one.
        batches: Pairs of inputs and labels (N,), on the model's device; every member sees the same batch.
        add_up: Adds the counts of several processes up: float64 tensor to the same.

    Returns:
        The errors over all samples.

    Raises:
        ValueError: If there is no member, or no batch.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member")
    saved, modes = take_weights(model), [(module, module.training) for module in model.modules()]
    sums: Tensor | None = None
    try:
        model.eval()
        for inputs, labels in batches:
            outputs = []
            for member in members:
                put_weights(model, member)
                outputs.append(model(inputs).double().softmax(1))
            wrong = [(each.argmax(1) != labels).sum() for each in (sum(outputs), *outputs)]
            counts = torch.stack([*wrong, labels.new_tensor(len(labels))]).double()
            sums = counts if sums is None else sums + counts
    finally:
        put_weights(model, saved)
        for module, mode in modes:
            module.training = mode
    if sums is None:
        raise ValueError("nothing to evaluate: there is no batch")
    ensemble, *each, count = add_up(sums).tolist()
    return EnsembleErrors(ensemble / count, tuple(wrong / count for wrong in each))
