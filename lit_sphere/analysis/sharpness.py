"""Sharpness: the mean effective norm of stochastic gradients (TR §4), at fixed weights."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_sphere.analysis.evaluation import BatchLoss, Criterion
from lit_sphere.optim import joint_norm

Weighting = Literal["sample", "batch"]
"""Mini-batches count by their size, or all alike."""


@dataclass(frozen=True)
class Objective:
    """The loss of a model over mini-batches as a function of some of its parameters, the others fixed.

    Batch or running statistics are the model's mode. Several processes share each mini-batch: its gradient is that of
    the mean loss over the samples of all of them.

    Args:
        forward: Maps inputs (N, …) to logits (N, C).
        batches: Gives pairs of inputs and labels (N,), the same ones at each call, on the parameters' device.
        parameters: Trainable tensors, at least one.
        criterion: Mean loss of a batch.
        add_up: Adds a tensor up over several processes; each must call it as often.
        loss: Mean loss and size of a batch of any kind, in place of logits and criterion; then there are no errors and
            no Fisher information.
    """

    forward: Callable[[Any], Tensor]
    batches: Callable[[], Iterable[Any]]
    parameters: Sequence[Tensor]
    criterion: Criterion = F.cross_entropy
    add_up: Callable[[Tensor], Tensor] = lambda sums: sums
    loss: BatchLoss | None = None

    def loss_sum(self, batch: Any) -> tuple[Tensor, int] | None:
        """Evaluate a mini-batch.

        Args:
            batch: The mini-batch.

        Returns:
            The sum of the loss over its samples, and their number; None if it is to be left out.
        """
        if self.loss is None:
            inputs, labels = batch
            return self.criterion(self.forward(inputs), labels) * len(labels), len(labels)
        found = self.loss(batch)
        return None if found is None else (found[0] * found[1], found[1])

    def gradients(self, score: Callable[[Tensor], Tensor] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Go over the mini-batches and differentiate each.

        Args:
            score: Makes a sum over samples from logits (N, C), to be differentiated instead of the loss.

        Yields:
            The gradient of the mini-batch's mean as one vector, and a float64 tensor of three: the sum over the
            samples, the number of wrong predictions (0 where there are no logits), and the number of samples.
        """
        batches = iter(self.batches())
        while True:
            batch = next(batches, None)
            found = None if batch is None else self._one(batch, score)
            gradient, sums = map(self.add_up, self._nothing() if found is None else found)
            if found is None and not sums[2]:
                if batch is None:  # other processes may have one batch more
                    return
                continue
            yield gradient / sums[2].to(gradient.dtype), sums

    def _one(self, batch: Any, score: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor] | None:
        if self.loss is not None:
            return self._one_by_loss(batch)
        inputs, labels = batch
        with torch.enable_grad():
            logits = self.forward(inputs)
            loss = self.criterion(logits, labels) * len(labels) if score is None else score(logits)
            grads = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        wrong = (logits.argmax(1) != labels).sum().double()
        return flatten(grads), torch.stack([loss.detach().double(), wrong, wrong.new_tensor(len(labels))])

    def _one_by_loss(self, batch: Any) -> tuple[Tensor, Tensor] | None:
        with torch.enable_grad():
            found = self.loss_sum(batch)
            if found is None:
                return None
            loss, count = found
            grads = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        total = loss.detach().double()
        return flatten(grads), torch.stack([total, torch.zeros_like(total), total.new_tensor(count)])

    def _nothing(self) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(flatten(self.parameters))
        return zero, zero.new_zeros(3, dtype=torch.float64)


class TrainPass(NamedTuple):
    """What a pass over the train set at fixed weights gives.

    Attributes:
        loss: Mean over samples.
        error: Fraction of wrong predictions, in [0, 1]; None where there are no logits.
        sharpness: Mean over mini-batches of the effective gradient norm.
    """

    loss: float
    error: float | None
    sharpness: float


def train_pass(objective: Objective, weighting: Weighting = "sample") -> TrainPass:
    """Measure loss, error and sharpness at fixed weights.

    Sharpness is ρ Σ_b w_b ‖∇L_b‖ / Σ_b w_b over mini-batches b (TR §4: the mean norm of stochastic gradients on the
    sphere of radius ρ), L_b the mean loss of a mini-batch, with w_b its number of samples, so that a short last batch,
    whose gradient is noisier, counts for less; or w_b = 1.

    Args:
        objective: Loss and mini-batches; its parameters are those that are scale-invariant.
        weighting: ``sample``: w_b is the size of the batch; ``batch``: all batches count alike.

    Returns:
        The three means.

    Raises:
        ValueError: If there is no mini-batch.

    Example:
        >>> theta = torch.tensor([0.6, 0.8], requires_grad=True)
        >>> def forward(x):  # scale-invariant: logits ±cos of the angle to the input
        ...     cosine = torch.nn.functional.cosine_similarity(x, theta)
        ...     return torch.stack([cosine, -cosine], 1)
        >>> batches = [(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))]
        >>> measured = train_pass(Objective(forward, lambda: batches, [theta]))
        >>> [round(value, 4) for value in measured]
        [1.0236, 0.5, 0.6844]
    """
    radius = joint_norm(objective.parameters)
    total: Tensor | None = None
    for gradient, sums in objective.gradients():
        weight = sums[2] if weighting == "sample" else torch.ones_like(sums[2])
        batch = torch.cat([sums, torch.stack([weight, weight * joint_norm([gradient])])])
        total = batch if total is None else total + batch
    if total is None:
        raise ValueError("nothing to measure: there is no mini-batch")
    loss, wrong, count, weight, norms, rho = [*total.tolist(), radius.item()]
    return TrainPass(loss / count, wrong / count if objective.loss is None else None, rho * norms / weight)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Make one vector of tensors, in at least single precision.

    Args:
        tensors: At least one.

    Returns:
        Tensor of shape (elements,), detached.
    """
    vector = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    return vector.to(torch.promote_types(vector.dtype, torch.float32))
