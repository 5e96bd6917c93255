"""Where the effective learning rate of an optimizer is taken from, and the steps that torch's optimizers took."""

import inspect
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from lit_sphere.optim import SphereSGD
from lit_sphere.optim.shards import local_parts

Source = Literal["gradients", "state", "weights"]

HALF = (torch.float16, torch.bfloat16)


def rounds_steps(params: Iterable[Tensor]) -> bool:
    """Return whether a step is rounded so much that the intended one says little of it.

    Args:
        params: The parameters.

    Returns:
        Whether one of them is of half precision: bfloat16 has 8 bits, and steps are often smaller than the last.
    """
    return any(p.dtype in HALF for p in params)


def source_of(optimizer: Optimizer, altered: bool = False, rounded: bool = False) -> Source:
    """Find where the effective learning rate and the step of an optimizer can be taken from.

    Args:
        optimizer: Any optimizer.
        altered: Something stands between the gradients and the step: clipping, or a gradient scaler.
        rounded: As :func:`rounds_steps` says.

    Returns:
        ``gradients``: the step is η∇, known beforehand: ``SphereSGD``, ``torch.optim.SGD`` without momentum.
        ``state``: known afterwards from the optimizer's buffers: ``torch.optim.SGD``, ``Adam``, ``AdamW``.
        ``weights``: anything else, subclasses with a ``step`` of their own and rounded steps included: from the
        weights before and after.
    """
    if rounded:
        return "weights"
    cls: Any = type(optimizer)
    kind = step_kind(cls)
    if kind is SphereSGD and not altered:
        return "gradients"
    if kind not in (SGD, Adam) or any(on_device(group) for group in optimizer.param_groups):
        return "weights"  # to read a learning rate from a device would wait for it
    if kind is SGD and not altered and not any(group["momentum"] for group in optimizer.param_groups):
        return "gradients"
    return "state"


class Step(NamedTuple):
    """A step x′ = (1 − ηλ)x − ηw, seen after it was taken; tensors aligned with the parameters asked for.

    Attributes:
        lr: η.
        shrink: −ηλ, of decoupled weight decay; 0 where weight decay is part of w.
        direction: w = a ⊘ b; zeros for parameters that had no gradient.
        divisor: b; None for 1.
        stepped: Which parameters had a gradient.
    """

    lr: float
    shrink: float
    direction: list[Tensor]
    divisor: list[Tensor] | None
    stepped: list[bool]


@torch.no_grad()
def step_taken(optimizer: Optimizer, group: dict[str, Any], params: Sequence[Tensor]) -> Step:
    """Read the step that ``torch.optim.SGD``, ``Adam`` or ``AdamW`` has just taken from its state.

    Args:
        optimizer: The optimizer, after its step and before its gradients are cleared.
        group: The parameter group.
        params: Parameters of that group.

    Returns:
        The step; of sharded parameters the parts that this process holds.
    """
    stepped = [p.grad is not None for p in params]
    mine = [p for p, moved in zip(params, stepped, strict=True) if moved]
    directions, divisors = (_adam if "betas" in group else _sgd)(group, mine, [optimizer.state[p] for p in mine])

    def all_of(found: Sequence[Tensor]) -> list[Tensor]:
        each = iter(found)
        pairs = zip(local_parts(params), stepped, strict=True)
        return [next(each) if moved else torch.zeros_like(p) for p, moved in pairs]

    return Step(*rate_of(group), all_of(directions), None if divisors is None else all_of(divisors), stepped)


Undone = tuple[Tensor, Tensor, Tensor | None, bool]
"""x before a step x′ = (1 − ηλ)x + Δ, Δ, b, and whether the parameter moved."""


def undo(step: Step, params: Sequence[Tensor]) -> list[Undone]:
    """Look back at a step from after it.

    Args:
        step: As :func:`step_taken` gives it.
        params: The parameters that it was asked for, after the step.

    Returns:
        x before the step, Δ, b and whether it moved, for each parameter.
    """
    delta = list(torch._foreach_mul(step.direction, -step.lr))
    x = torch._foreach_sub(list(params), delta)
    if step.shrink:
        torch._foreach_div_(x, [1 + step.shrink if moved else 1.0 for moved in step.stepped])
        # A parameter without gradient does not shrink either.
        delta = [d if moved else v * -step.shrink for d, v, moved in zip(delta, x, step.stepped, strict=True)]
    divisors: Sequence[Tensor | None] = step.divisor or [None] * len(x)
    return list(zip(x, delta, divisors, step.stepped, strict=True))


def rate_of(group: dict[str, Any]) -> tuple[float, float]:
    """Give η and −ηλ of a parameter group, λ as far as it acts as a decay of its own.

    Args:
        group: Of ``SphereSGD``, ``torch.optim.SGD``, ``Adam`` or ``AdamW``.

    Returns:
        Both; for spheres of filters η/ρ_i², which they have in common, in place of η.
    """
    if group.get("elr") is not None:
        return float(group["elr"]) * group.get("radius", 1.0) ** 2, 0.0
    lr = float(group["lr"])
    # SGD adds λx to the gradient: with plain momentum it goes into the buffer, otherwise straight into the step.
    buffered = group.get("momentum") and not group["nesterov"]
    decoupled = group["decoupled_weight_decay"] if "betas" in group else not buffered
    return lr, -lr * float(group.get("weight_decay", 0.0)) if decoupled else 0.0


def _sgd(
    group: dict[str, Any], params: Sequence[Tensor], states: Sequence[dict[str, Any]]
) -> tuple[list[Tensor], None]:
    if not params:
        return [], None
    grads = local_parts([p.grad for p in params if p.grad is not None], params)
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    if not group["momentum"]:
        return grads, None
    buffers = local_parts([state["momentum_buffer"] for state in states], params)
    if not group["nesterov"]:
        return buffers, None
    return list(torch._foreach_add(grads, buffers, alpha=group["momentum"])), None


def _adam(
    group: dict[str, Any], params: Sequence[Tensor], states: Sequence[dict[str, Any]]
) -> tuple[list[Tensor], list[Tensor]]:
    if not params:
        return [], []
    steps = torch.stack([state["step"] for state in states]).double()
    beta1, beta2 = map(float, group["betas"])
    first, second = 1 - beta1**steps, (1 - beta2**steps).sqrt()  # bias corrections
    squares = local_parts([state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"] for state in states], params)
    divisor = list(torch._foreach_sqrt(squares))
    averages = local_parts([state["exp_avg"] for state in states], params)
    if steps.device.type == "cpu":  # as it is but for fused and capturable steps
        torch._foreach_div_(divisor, second.tolist())
        averages = list(torch._foreach_div(averages, first.tolist()))
    else:
        torch._foreach_div_(divisor, list(second.unbind()))
        averages = list(torch._foreach_div(averages, list(first.unbind())))
    torch._foreach_add_(divisor, float(group["eps"]))
    return list(torch._foreach_div(averages, divisor)), divisor


@lru_cache(maxsize=64)
def step_kind(cls: type[Optimizer]) -> type[Optimizer] | None:
    """Find the known class whose step an optimizer takes; its name or its ancestry alone say nothing.

    Args:
        cls: Its class.

    Returns:
        ``SphereSGD``, ``torch.optim.SGD`` or ``Adam``; None for any other step.
    """
    for known in (SphereSGD, SGD, Adam):
        if issubclass(cls, known) and all(
            _own(cls, name) is _own(known, name) for name in ("step", "_move", "_init_group")
        ):
            return known
    return None


def _own(cls: type[Optimizer], name: str) -> Any:
    # Optimizers wrap their step for hooks when the first of a class is made.
    return inspect.unwrap(getattr(cls, name)) if hasattr(cls, name) else None


def on_device(group: dict[str, Any]) -> bool:
    """Return whether to read a parameter group's options would wait for a device.

    Args:
        group: Of any optimizer.

    Returns:
        Whether one of them is a tensor that does not lie on the CPU.
    """
    options = (group["lr"], group.get("weight_decay"), *group.get("betas", ()))
    return any(isinstance(value, Tensor) and value.device.type != "cpu" for value in options)
