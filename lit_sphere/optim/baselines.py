"""What SGD on the sphere is held against where it diverges: a random walk, and gradient ascent (TR, regime 3)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lit_sphere.optim.norms import cell_norms, wide_type
from lit_sphere.optim.shards import local_parts, local_slices
from lit_sphere.optim.sphere_sgd import SphereGranularity, SphereSGD


class GradientAscent(SphereSGD):
    """Gradient ascent on the sphere: :class:`SphereSGD` with θ̂ = θ + η∇F(θ), for comparison with its regime 3.

    Spheres, radii, ``elr`` and ``lr`` are those of :class:`SphereSGD`; groups of plain SGD ascend, too.

    Args:
        params: Parameters, or parameter groups with options of their own.
        elr: Effective learning rate η̃ > 0 of groups without one of their own; None for plain SGD.
        granularity: ``joint`` or ``filter``, as there.
        lr: Learning rate η > 0 of groups without a sphere.
        weight_decay: L2 coefficient λ ≥ 0 of groups without a sphere; it shrinks weights here, too.

    Raises:
        ValueError: As :class:`SphereSGD`.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = GradientAscent([weight], elr=0.01)
        >>> weight.grad = torch.tensor([-8.0, 6.0])
        >>> optimizer.step()
        >>> print(weight, weight.norm())  # as SphereSGD with the other sign of the gradient
        Parameter containing:
        tensor([0.8944, 4.9193], requires_grad=True) tensor(5., grad_fn=<LinalgVectorNormBackward0>)
    """

    def __init__(
        self,
        params: ParamsT,
        elr: float | None = None,
        *,
        granularity: SphereGranularity = "joint",
        lr: float | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        self._own_options = {"maximize": True}
        super().__init__(params, elr, granularity=granularity, lr=lr, weight_decay=weight_decay)


class RandomWalk(SphereSGD):
    """A random walk on the sphere with steps of the size of SGD's, for comparison with its regime 3.

    Each step goes in a random tangent direction: Gaussian, the same in all directions of the tangent space of the
    sphere. It turns the weights by the angle of the step that :class:`SphereSGD` would take from the same point, of
    tangent η̃g̃ = η‖∇F‖/ρ, so that the gradient tells how far to go, and never where; or by a given one. (TR asks for
    "the same step size"; where SGD diverges both are nearly right angles.) Spheres, radii, ``elr`` and ``lr`` are
    those of :class:`SphereSGD`; a parameter of the sphere without gradient walks with the others, and groups of plain
    SGD are trained by it.

    The directions follow from the seed, the number of steps so far and the kind of device, and from nothing else.
    They are the same on all ranks, for sharded parameters (FSDP2; each process draws the whole), and in a run that is
    resumed; torch's own generators are left alone. The step is not compiled.

    Args:
        params: Parameters, or parameter groups with options of their own, ``seed`` and ``step_size`` too.
        elr: Effective learning rate η̃ > 0 of groups without one of their own; None for plain SGD.
        granularity: ``joint`` or ``filter``, as there. Each filter turns by the angle of its own gradient.
        lr: Learning rate η > 0 of groups without a sphere.
        weight_decay: L2 coefficient λ ≥ 0 of groups without a sphere.
        step_size: Tangent > 0 of the angle of each step, in place of η̃g̃; ``elr`` changes nothing then.
        seed: Seed ≥ 0 of the directions.

    Raises:
        ValueError: As :class:`SphereSGD`; if ``step_size`` is not positive and finite, ``seed`` negative, or a sphere
            has one element only and so no direction.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0, 0.0]))
        >>> optimizer = RandomWalk([weight], elr=0.01, seed=1)
        >>> weight.grad = torch.tensor([8.0, -6.0, 0.0])
        >>> optimizer.step()
        >>> cosine = weight.detach() @ torch.tensor([3.0, 4.0, 0.0]) / 25
        >>> print(f"norm {weight.norm():.4g}, tangent {(1 / cosine**2 - 1).sqrt():.4g}")  # 0.25 · 10 / 5
        norm 5, tangent 0.5
    """

    def __init__(
        self,
        params: ParamsT,
        elr: float | None = None,
        *,
        granularity: SphereGranularity = "joint",
        lr: float | None = None,
        weight_decay: float = 0.0,
        step_size: float | None = None,
        seed: int = 0,
    ) -> None:
        self._own_options = {"step_size": step_size, "seed": seed, "walked": 0}
        super().__init__(params, elr, granularity=granularity, lr=lr, weight_decay=weight_decay)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a sphere, or a group of plain SGD.

        Args:
            param_group: ``params`` and any of the options of the constructor.

        Raises:
            ValueError: As the constructor; the group is not added then.
        """
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _move(self, group: dict[str, Any], held: list[Tensor], params: list[Tensor], grads: list[Tensor]) -> None:
        every, granularity = group["params"], group["granularity"]
        weights = local_parts(every)
        moved = self._noise(group)
        radii = self._radii(group, moved)

        def norms(parts: Sequence[Tensor]) -> list[Tensor]:
            return cell_norms(parts, granularity, every)

        # Noise as long as the weights: their inner product is right to round-off of the norms' squares.
        torch._foreach_mul_(moved, torch._foreach_div(radii, norms(moved)))
        longer, shorter = norms(torch._foreach_add(moved, weights)), norms(torch._foreach_sub(moved, weights))
        along = torch._foreach_sub(torch._foreach_mul(longer, longer), torch._foreach_mul(shorter, shorter))
        torch._foreach_div_(along, torch._foreach_mul(torch._foreach_mul(radii, radii), -4.0))
        torch._foreach_add_(moved, torch._foreach_mul(along, weights))  # tangent now
        if group["step_size"] is None:
            of = dict(zip(held, grads, strict=True))
            present = [of[p] if p in of else torch.zeros_like(w) for p, w in zip(every, weights, strict=True)]
            sizes = torch._foreach_mul(norms(present), torch._foreach_mul(radii, radii))
            torch._foreach_mul_(sizes, group["elr"])
        else:
            sizes = torch._foreach_mul(radii, group["step_size"])
        torch._foreach_mul_(moved, torch._foreach_div(sizes, norms(moved)))
        torch._foreach_add_(moved, weights)
        torch._foreach_mul_(moved, torch._foreach_div(radii, norms(moved)))
        torch._foreach_copy_(weights, moved)
        group["walked"] += 1

    def _radii(self, group: dict[str, Any], like: Sequence[Tensor]) -> list[Tensor]:
        if group["granularity"] == "joint":
            radius = like[0].new_full((), group["radius"])
            return [radius.view((1,) * part.ndim) for part in like]
        return [radius.to(like[0].dtype) for radius in local_parts([self.state[p]["radius"] for p in group["params"]])]

    def _noise(self, group: dict[str, Any]) -> list[Tensor]:
        """Standard normal numbers in the shapes of a group's parameters, or of what this process holds of them."""
        params = group["params"]
        number = next(i for i, each in enumerate(self.param_groups) if each is group)
        key = np.random.SeedSequence((group["seed"], group["walked"], number)).generate_state(1, np.uint64)
        device = local_parts(params)[0].device
        generator = torch.Generator(device).manual_seed(int(key[0]))
        flat = torch.empty(sum(p.numel() for p in params), dtype=wide_type(params), device=device)
        whole = flat.normal_(generator=generator).split([p.numel() for p in params])
        return [part.view(p.shape)[local_slices(p)] for part, p in zip(whole, params, strict=True)]


def _check(group: dict[str, Any]) -> None:
    size, seed = group["step_size"], group["seed"]
    if size is not None and not (math.isfinite(size) and size > 0):
        raise ValueError(f"RandomWalk: step_size must be positive and finite, got {size}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"RandomWalk: seed must be a whole number of at least 0, got {seed}")
    if group["elr"] is not None:
        sizes = [p.numel() for p in group["params"]]
        rows = [p[0].numel() for p in group["params"]] if group["granularity"] == "filter" else [sum(sizes)]
        if min(rows) < 2:
            raise ValueError("RandomWalk: a sphere of a single element has no direction to walk in")
