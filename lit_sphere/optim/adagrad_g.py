"""AdaGradG: AdaGrad with one accumulator for each scale-invariant group, on the group's sphere (SP §4)."""

import math
from collections.abc import Callable
from typing import Any, get_args, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lit_sphere.optim.granularity import Granularity, granularity_of, rename_options
from lit_sphere.optim.norms import cell_norms, wide_type
from lit_sphere.optim.shards import distribute_rows, local_parts

State = dict[str, Tensor]


class AdaGradG(Optimizer):
    """AdaGrad without momentum and with one accumulator v for each group, on the sphere (SP §4; AdamG* there, too).

    On the unit sphere: x̂ = x − η∇L/√v; x ← x̂/‖x̂‖; v ← βv + ‖∇L‖². Here a group keeps the norm ρ that it has at
    construction (batch norm's eps would notice another), and gradients are those of the unit sphere, ρ∇L. To second
    order in the learning rate it takes the same steps as SGD with L2 regularisation, if its options are those of
    :func:`adagrad_g_like_sgd`: what L2 regularisation does to scale-invariant weights is to forget old gradients.
    Norms, accumulators and steps are worked out in float32 at least, and weights of half precision rounded once.
    Parameters may be sharded by FSDP2 (``fully_shard``): norms are those of the whole.

    Args:
        params: Scale-invariant parameters, or parameter groups with options of their own.
        lr: Learning rate η > 0.
        beta: Decay β in (0, 1] of the accumulator; 1 is AdaGrad's.
        accumulator: v₀/ρ⁴ > 0; on the unit sphere simply the accumulator's first value v₀.
        granularity: What one accumulator and one sphere belong to: ``filter``: each row of each tensor along its
            first dimension; ``tensor``: each tensor; ``joint``: all tensors of a parameter group together (tensors
            that are scale-invariant only jointly; one without a gradient in a step counts as one of gradient zero).
        per: Old name of ``granularity``.

    Raises:
        ValueError: If an option is out of its range, a norm is zero or not finite, ``filter`` meets a tensor of one
            dimension, or ``granularity`` is given under both names.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
        >>> optimizer = AdaGradG([weight], **adagrad_g_like_sgd(lr=0.01, weight_decay=0.1))
        >>> weight.grad = torch.tensor([[8.0, -6.0]], dtype=torch.float64)
        >>> optimizer.step()
        >>> direction = weight.detach() / 5
        >>> sgd = torch.tensor([[3.0, 4.0]]) * (1 - 0.01 * 0.1) - 0.01 * weight.grad
        >>> bool((direction - sgd / sgd.norm()).norm() < 1e-6)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        beta: float = 1.0,
        accumulator: float = 1.0,
        granularity: Granularity = "filter",
        per: Granularity | None = None,
    ) -> None:
        granularity = granularity_of("AdaGradG", granularity, "filter", per=per)
        super().__init__(params, {"lr": lr, "beta": beta, "accumulator": accumulator, "granularity": granularity})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its norms are taken now.

        Args:
            param_group: ``params`` and any of the options of the constructor.

        Raises:
            ValueError: As the constructor; the group is not added then.
        """
        rename_options([param_group])
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check(group)
            wide = wide_type(group["params"])
            params = [p.detach() for p in group["params"]]
            radii = [r.to(wide, copy=True) for r in cell_norms(local_parts(params), group["granularity"], params)]
            if group["granularity"] == "filter":
                radii = [distribute_rows(r, p) for r, p in zip(radii, params, strict=True)]
            if not all(bool((radius.isfinite() & (radius > 0)).all()) for radius in radii):
                raise ValueError("AdaGradG: the norm of a group must be positive and finite")
        except ValueError:
            self.param_groups.pop()
            raise
        for p, radius in zip(group["params"], radii, strict=True):
            self.state[p] = {"radius": radius, "accumulator": group["accumulator"] * radius**4}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore spheres, accumulators and options, as saved by :meth:`state_dict`.

        Args:
            state_dict: Of an AdaGradG with groups of the same sizes.

        Raises:
            ValueError: If it is another optimizer's, or does not fit the parameters, or a joint sphere has several
                accumulators (earlier versions parted them where a tensor had no gradient).
        """
        groups = [dict(group) for group in state_dict["param_groups"]]
        rename_options(groups)
        state_dict = {**state_dict, "param_groups": groups}
        if not all("granularity" in group and "accumulator" in group for group in groups):
            raise ValueError(
                "AdaGradG: the state to load belongs to another optimizer (no 'accumulator' in its groups)"
            )
        pairs = zip(self.param_groups, groups, strict=False)  # torch checks the number of groups, or of tensors
        restored = [_restored(group, saved, state_dict["state"]) for group, saved in pairs]
        super().load_state_dict(state_dict)  # rounds to the type of the parameters
        for p, state in (item for items in restored for item in items):
            self.state[p] = state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle or a state, of an earlier version too."""
        super().__setstate__(state)
        rename_options(self.param_groups)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: Evaluates the loss and the gradients again; called first.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            if group["granularity"] == "joint":  # its sphere and accumulator are those of all
                params = group["params"]
            held, granularity = local_parts(params), group["granularity"]
            grads = local_parts([torch.zeros_like(p) if p.grad is None else p.grad for p in params], params)
            # notation of SP §4: x̂ = x − η∇L(u)ρ/√v on the sphere of radius ρ, ∇L(u) = ρ∇L(x)
            radii, accumulators = (local_parts([self.state[p][k] for p in params]) for k in ("radius", "accumulator"))
            effective = torch._foreach_mul(cell_norms(grads, granularity, params), radii)
            rates = torch._foreach_mul(radii, radii)
            torch._foreach_div_(rates, torch._foreach_sqrt(accumulators))
            torch._foreach_mul_(rates, -group["lr"])
            moved = torch._foreach_mul(grads, rates)  # in the type of the radii, and so is all that follows
            torch._foreach_add_(moved, held)
            torch._foreach_mul_(moved, torch._foreach_div(radii, cell_norms(moved, granularity, params)))
            torch._foreach_copy_(held, moved)
            torch._foreach_mul_(accumulators, group["beta"])
            torch._foreach_add_(accumulators, torch._foreach_mul(effective, effective))
        return loss


def adagrad_g_like_sgd(lr: float, weight_decay: float) -> dict[str, float]:
    """Give the options of :class:`AdaGradG` that equal SGD with L2 regularisation to second order in η (SP §4).

    β = (1 − ηλ)⁴, step (2β)^-½, v₀ = r₀⁴/(2η²β^½) from the same start of norm r₀.

    Args:
        lr: η > 0 of SGD without momentum.
        weight_decay: λ ≥ 0 of SGD, with ηλ < 1.

    Returns:
        ``lr``, ``beta`` and ``accumulator`` for :class:`AdaGradG`.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if not (math.isfinite(lr) and lr > 0 and weight_decay >= 0 and lr * weight_decay < 1):
        raise ValueError(f"needs lr > 0, weight_decay >= 0 and lr * weight_decay < 1, got {lr} and {weight_decay}")
    beta = (1 - lr * weight_decay) ** 4
    return {"lr": (2 * beta) ** -0.5, "beta": beta, "accumulator": 1 / (2 * lr**2 * beta**0.5)}


def _restored(group: dict[str, Any], saved: dict[str, Any], states: dict[Any, Any]) -> list[tuple[Tensor, State]]:
    """States of a group's parameters from a saved group, in the type and shape that they have here."""
    granularity, wide = saved["granularity"], wide_type(group["params"])
    restored: list[tuple[Tensor, State]] = []
    for p, number in zip(group["params"], saved["params"], strict=False):
        shape = [len(p) if granularity == "filter" and i == 0 else 1 for i in range(p.ndim)]
        state: State = {}
        for key in ("radius", "accumulator"):
            value = states.get(number, {}).get(key)
            if not isinstance(value, Tensor) or value.numel() != math.prod(shape):
                raise ValueError(f"AdaGradG: the state to load has no {key} for a tensor of shape {tuple(p.shape)}")
            if not bool((value.isfinite() & (value > 0)).all()):
                raise ValueError(f"AdaGradG: the state to load has a {key} that is not positive and finite")
            state[key] = value.to(p.device, wide, copy=True).reshape(shape)
        restored.append((p, state))
    if granularity == "joint":
        sums = [state["accumulator"].item() for _, state in restored]
        if max(sums) > 1.01 * min(sums):  # more than bfloat16 rounds
            raise ValueError(
                "AdaGradG: the state to load has several accumulators for one joint sphere, as earlier versions left "
                "them where a tensor had no gradient; this run cannot be resumed"
            )
        for _, state in restored:
            state["accumulator"].fill_(sums[0])
    return restored


def _check(group: dict[str, Any]) -> None:
    for name, most in (("lr", math.inf), ("beta", 1.0), ("accumulator", math.inf)):
        value = group[name]
        if not (math.isfinite(value) and 0 < value <= most):
            bound = "positive and finite" if most == math.inf else f"in (0, {most:g}]"
            raise ValueError(f"AdaGradG: {name} must be {bound}, got {value}")
    if group["granularity"] not in get_args(Granularity):
        raise ValueError(
            f"AdaGradG: granularity must be one of {', '.join(get_args(Granularity))}, got {group['granularity']!r}"
        )
    if group["granularity"] == "filter" and any(p.ndim < 2 for p in group["params"]):
        raise ValueError("AdaGradG: granularity='filter' needs tensors of two or more dimensions")
