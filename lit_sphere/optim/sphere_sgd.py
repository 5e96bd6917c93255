"""Projected SGD with a fixed effective learning rate (TR eq. (2))."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lit_sphere.optim.granularity import granularity_of, rename_options
from lit_sphere.optim.norms import joint_norm, row_norms
from lit_sphere.optim.shards import distribute_rows, is_distributed, local_parts

SphereGranularity = Literal["joint", "filter"]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _traced(step: _Function) -> _Function:
    """Leave a step to compilers that have been seen to trace it, with groups that are no plain dictionaries."""
    release = tuple(int(number) for number in torch.__version__.split(".")[:2])
    return step if release >= (2, 14) else torch.compiler.disable(step)


class _ParamGroup(dict[str, Any]):
    """A parameter group; on a sphere ``elr`` and ``lr`` are one number in two units, whichever is set."""

    def __setitem__(self, key: str, value: Any) -> None:
        on_sphere = (value if key == "elr" else self.get("elr")) is not None
        if not on_sphere or key not in ("elr", "lr", "radius", "weight_decay", "momentum"):
            super().__setitem__(key, value)
            return
        # A tensor would be changed in place by torch's schedulers, unseen from here.
        number = float(value)
        if key in ("weight_decay", "momentum") and number != 0:
            raise ValueError(f"SphereSGD: {key} must be 0 on a sphere, but was set to {number}")
        if key == "elr" and "granularity" not in self:
            raise ValueError("SphereSGD: a group of plain SGD has no elr; give it lr, or enter_sphere what has left")
        super().__setitem__(key, number)
        if key == "lr":
            super().__setitem__("elr", number / self.get("radius", 1.0) ** 2)
        elif key in ("elr", "radius"):
            super().__setitem__("lr", self["elr"] * self.get("radius", 1.0) ** 2)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any) -> "_ParamGroup":  # type: ignore[override,misc]
        self.update(other)
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # item by item, lr would be rounded to fit elr again
        return type(self), (dict(self),)


class SphereSGD(Optimizer):
    """SGD on the sphere with a fixed effective learning rate η̃, TR eq. (2).

    θ̂ = θ − η ∇F(θ) with η = η̃ρ², then θ ← ρ θ̂/‖θ̂‖. Each parameter group with an ``elr`` is one sphere;
    its radius ρ is the norm of its parameters at construction and is saved with the state. A group with
    ``elr=None`` is trained by plain SGD with its ``lr`` and ``weight_decay`` (for parameters that are not
    scale-invariant). :meth:`leave_sphere` and :meth:`enter_sphere` turn one kind into the other.

    The parameter group of a sphere has ``elr`` and ``lr``, one number in two units: setting either sets the other
    at once, by η = η̃ρ² with the present ρ, and takes effect at the next step. ρ itself never follows them; where a
    sphere gets another ρ, ``elr`` is kept. (Spheres of filters have as many η as filters: there ``lr`` is what these
    have in common, η/ρ² = η̃.) So torch's schedulers schedule the ELR. Factors are the same for both; what a scheduler
    is told in absolute numbers, such as ``max_lr``, ``eta_min`` and ``swa_lr``, is η: multiply an ELR by
    ``group["radius"] ** 2``. An ELR of 0, at which some schedules end, rests. Under ``torch.compile`` a new value
    may compile the step once more, as for any optimizer; before torch 2.14 the step is not compiled.

    An average of points on a sphere (``torch.optim.swa_utils``, Lightning's ``StochasticWeightAveraging``) lies
    inside the sphere. For scale-invariant weights the function is that of the direction, so that it can be used as it
    is; where training goes on from it, the first step puts it back on the sphere of radius ρ, but is too long by the
    factor ρ²/‖θ‖², since gradients are larger inside. (Lightning's callback needs automatic optimisation, and is
    refused beside :class:`~lit_sphere.modules.SphereModule`, which steps by itself.)

    Args:
        params: Parameters, or parameter groups with keys ``elr``, ``granularity`` and ``lr`` of their own.
        elr: Effective learning rate η̃ > 0, dimensionless. A tensor is read once, when it is set.
        granularity: ``"joint"``: one sphere for all parameters of a group together. ``"filter"``: one for each
            row of each tensor along its first dimension (each output channel), all with the same ELR.
        lr: Learning rate η > 0 of groups with ``elr=None``.
        weight_decay: L2 coefficient λ ≥ 0 of groups with ``elr=None``. On a sphere it must be 0: the projection
            cancels it, so that it would only rescale the ELR.
        momentum: Must be 0: the fixed-ELR step of TR has none, and the buffer would leave the tangent space.
        spheres: Old name of ``granularity``.

    Raises:
        ValueError: If ``elr`` or ``lr`` is not positive and finite, if ``weight_decay`` (on a sphere) or
            ``momentum`` is not 0, if the radius is zero or not finite, if ``granularity="filter"`` meets a tensor of
            one dimension, if ``granularity`` is given under both names, or if FSDP1
            has flattened the parameters (each rank would normalise its own shard).

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = SphereSGD([weight], elr=0.01)
        >>> weight.grad = torch.tensor([8.0, -6.0])
        >>> optimizer.step()
        >>> print(weight, weight.norm())  # η = 0.01 · 5², tan of the angle = 0.25 · 10 / 5
        Parameter containing:
        tensor([0.8944, 4.9193], requires_grad=True) tensor(5., grad_fn=<LinalgVectorNormBackward0>)
    """

    _own_options: Mapping[str, Any] = MappingProxyType({})  # of a subclass, in its groups and so in its states

    def __init__(
        self,
        params: ParamsT,
        elr: float | None,
        *,
        granularity: SphereGranularity = "joint",
        lr: float | None = None,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        spheres: SphereGranularity | None = None,
    ) -> None:
        defaults = {
            "elr": elr,
            "granularity": granularity_of(self._name, granularity, "joint", spheres=spheres),
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            **self._own_options,
        }
        super().__init__(params, defaults)
        del self.defaults["momentum"]  # else torch's cyclic schedulers would set one, which no step takes

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a sphere (or, with ``elr=None``, a plain SGD group); its radius is taken now.

        Args:
            param_group: ``params`` and any of the options of the constructor.

        Raises:
            ValueError: As the constructor; the group is not added then.
        """
        rename_options([param_group])
        super().add_param_group({"momentum": self.defaults.get("momentum", 0.0), **param_group})
        group = self.param_groups[-1] = _ParamGroup(self.param_groups[-1])
        try:
            _check_names(self._name, group, self.defaults)
            _check(self._name, group)
            if group["elr"] is not None:
                self._measure_radius(group)
                group["elr"] = group["elr"]  # sets lr
        except ValueError:
            self.param_groups.pop()
            raise
        for key in ("momentum",) if group["elr"] is not None else ("momentum", "granularity"):
            del group[key]
        for p in filter(is_distributed, group["params"]):
            self.state.setdefault(p, {})  # torch's distributed checkpoints want a state of all parameters, or of none

    def leave_sphere(self, lr: float | None = None, weight_decay: float = 0.0) -> None:
        """Train the parameters of all spheres by plain SGD in the whole space from now on.

        The state stays such that it can be loaded by an optimizer constructed as this one was.

        Args:
            lr: Learning rate η > 0; None for that of the sphere, η̃ρ², so that the next step is the same to
                first order.
            weight_decay: L2 coefficient λ ≥ 0.

        Raises:
            ValueError: If there is no sphere, or ``lr`` is not given for spheres of filters, which have one
                learning rate each, or a value is out of its range.
        """
        spheres = [group for group in self.param_groups if group["elr"] is not None]
        if not spheres:
            raise ValueError(f"{self._name}: there is no sphere to leave")
        if lr is None and any(group["granularity"] == "filter" for group in spheres):
            raise ValueError(f"{self._name}: give lr to leave spheres of filters, which have one learning rate each")
        for group in spheres:
            plain = {"elr": None, "lr": group["elr"] * group["radius"] ** 2 if lr is None else lr}
            _check(self._name, {**group, **plain, "weight_decay": weight_decay, "momentum": 0.0})
            group.update(plain, weight_decay=weight_decay, left_granularity=group.pop("granularity"))
            group.pop("radius", None)
            for p in group["params"]:
                self.state[p].pop("radius", None)

    def enter_sphere(self, elr: float | None = None) -> None:
        """Put the parameters that have left their spheres on spheres again, of the radius that they have now.

        Args:
            elr: Effective learning rate η̃ > 0; None for η/ρ² of the learning rate so far.

        Raises:
            ValueError: If no sphere was left, or ``elr`` is not given for spheres of filters, or a value is out of
                its range.
        """
        left = [group for group in self.param_groups if "left_granularity" in group]
        if not left:
            raise ValueError(f"{self._name}: no sphere was left that could be entered")
        if elr is None and any(group["left_granularity"] == "filter" for group in left):
            raise ValueError(f"{self._name}: give elr to enter spheres of filters, which have one radius each")
        for group in left:
            granularity = group["left_granularity"]
            rate = group["lr"] / joint_norm(group["params"]).item() ** 2 if elr is None else elr
            _check(
                self._name,
                {**group, "elr": rate, "granularity": granularity, "weight_decay": 0.0, "momentum": 0.0},
            )
            group.update(weight_decay=0.0, granularity=granularity)
            self._measure_radius(group)
            group["elr"] = rate
            del group["left_granularity"]

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _measure_radius(self, group: dict[str, Any]) -> None:
        params = [p.detach() for p in group["params"]]
        if group["granularity"] == "joint":
            group["radius"] = joint_norm(params).item()
            radii = [torch.tensor(group["radius"])]
        else:
            radii = [distribute_rows(rows, p) for rows, p in zip(_row_norms(params), params, strict=True)]
            for p, radius in zip(group["params"], radii, strict=True):
                self.state[p]["radius"] = radius
        if not all(bool(r.isfinite().all()) for r in radii):
            raise ValueError(f"{self._name}: the radius must be positive and finite, but weights are NaN or infinite")
        if not all(bool((r > 0).all()) for r in radii):
            raise ValueError(f"{self._name}: the radius must be positive and finite; are these weights initialised?")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle or a state, of an earlier version too."""
        super().__setstate__(state)
        rename_options(self.param_groups)
        self.param_groups = [_ParamGroup(group) for group in self.param_groups]
        for group in self.param_groups:
            if group["elr"] is not None:
                _complete(group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore radii and effective learning rates, as saved by :meth:`state_dict`.

        Where ``elr`` and ``lr`` of a sphere contradict each other, ``elr`` is kept.

        Args:
            state_dict: Of a SphereSGD with groups of the same sizes.

        Raises:
            ValueError: If it is another optimizer's, has other spheres, or an ``elr`` or radius that is none.
        """
        state_dict = {**state_dict, "param_groups": [dict(group) for group in state_dict["param_groups"]]}
        rename_options(state_dict["param_groups"])
        if not all("elr" in group for group in state_dict["param_groups"]):
            raise ValueError(f"{self._name}: the state to load belongs to another optimizer (no 'elr' in its groups)")
        whose = sphere_optimizer_of(state_dict["param_groups"])
        if whose != sphere_optimizer_of(self.param_groups):
            raise ValueError(f"{self._name}: the state to load belongs to another optimizer, {whose}")
        saved, own = (
            [g.get("granularity", g.get("left_granularity")) for g in groups]
            for groups in (state_dict["param_groups"], self.param_groups)
        )
        if saved != own:
            raise ValueError(
                f"{self._name}: the spheres of the state to load are others: {_format(saved)} there, {_format(own)} "
                "here; a run goes on with the spheres that it began with"
            )
        for group in state_dict["param_groups"]:
            for name in ("elr", "radius") if group.get("granularity") == "joint" else ("elr",):
                value = group.get(name)
                is_number = isinstance(value, (int, float, Tensor)) and math.isfinite(value)
                if group["elr"] is not None and not (is_number and (value > 0 or (value == 0 and name == "elr"))):
                    raise ValueError(
                        f"{self._name}: {name} in the state to load must be positive and finite, got {value}"
                    )
        super().load_state_dict(state_dict)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Descend and project every sphere once.

        Args:
            closure: Evaluates the loss and the gradients again; called first.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take_step()
        return loss

    @_traced
    def _take_step(self) -> None:
        """Descend and project.

        Raises:
            ValueError: If an ``elr`` was set to a negative value or NaN.
        """
        # Under its own name torch's compiler takes plain dictionaries only.
        for group in self.__dict__["param_groups"] if torch.compiler.is_compiling() else self.param_groups:
            held = [p for p in group["params"] if p.grad is not None]
            params, grads = local_parts(held), local_parts([p.grad for p in held], held)
            if not params:
                continue
            if group.get("maximize"):
                grads = list(torch._foreach_neg(grads))
            if group["elr"] is None:
                if group.get("weight_decay"):
                    grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
                torch._foreach_add_(params, grads, alpha=-group["lr"])
            elif not group["elr"] >= 0:
                raise ValueError(f"{self._name}: elr must be positive, but was set to {group['elr']}")
            else:
                self._move(group, held, params, grads)

    def _move(self, group: dict[str, Any], held: list[Tensor], params: list[Tensor], grads: list[Tensor]) -> None:
        """Take a step on one joint sphere, or on those of filters.

        Args:
            group: Its parameter group.
            held: Its parameters that have a gradient, at least one.
            params: Of these what this process holds, to be changed in place.
            grads: The gradients of that.
        """
        if group["granularity"] == "joint":
            torch._foreach_add_(params, grads, alpha=-group["lr"])
            scale = group["radius"] / joint_norm(group["params"])
            torch._foreach_mul_(local_parts(group["params"]), scale.to(params[0].dtype))
        else:
            radii = local_parts([self.state[p]["radius"] for p in held])
            steps = torch._foreach_mul(grads, torch._foreach_mul(radii, radii))
            torch._foreach_add_(params, steps, alpha=-group["elr"])
            torch._foreach_mul_(params, torch._foreach_div(radii, _row_norms(held)))


def sphere_optimizer_of(param_groups: Sequence[Mapping[str, Any]]) -> str | None:
    """Name the optimizer on the sphere that parameter groups belong to, those of a checkpoint too.

    Args:
        param_groups: Of any optimizer.

    Returns:
        ``SphereSGD``, or ``GradientAscent`` or ``RandomWalk``, whose options it has; None for others.
    """
    if not any("elr" in group for group in param_groups):
        return None
    options = set[str]().union(*param_groups)
    return "RandomWalk" if "walked" in options else "GradientAscent" if "maximize" in options else "SphereSGD"


def _format(granularities: list[str | None]) -> str:
    return granularities[0] or "none" if len(granularities) == 1 else f"{len(granularities)} groups"


def _row_norms(params: list[Tensor]) -> list[Tensor]:
    """Norm of each row along the first dimension, shaped (rows, 1, …) to multiply the tensor (its local part) with."""
    return [
        row_norms(local_parts([p])[0], p)
        if is_distributed(p)
        else torch.linalg.vector_norm(p, dim=tuple(range(1, p.ndim)), keepdim=True)
        for p in params
    ]


def _complete(group: dict[str, Any]) -> None:
    """Give a sphere's loaded group, of an earlier version perhaps, numbers for all options, and an ``lr`` that fits."""
    lr = group.get("lr")
    for key in ("radius", "elr"):  # the last sets lr
        if key in group:
            group[key] = group[key]
    group.setdefault("weight_decay", 0.0)
    if isinstance(lr, (int, float, Tensor)) and math.isclose(lr, group["lr"], rel_tol=1e-9):
        dict.__setitem__(group, "lr", float(lr))  # a schedule's own, not rounded


def _check_names(name: str, group: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    unknown = group.keys() - {"params", "param_names", "name", "momentum"} - defaults.keys()
    if unknown:
        raise ValueError(f"{name}: a parameter group has no option {', '.join(sorted(unknown))}")


def _check(name: str, group: dict[str, Any]) -> None:
    rate = "lr" if group["elr"] is None else "elr"
    value = group[rate]
    if value is None:
        raise ValueError(f"{name}: a parameter group needs an elr (a sphere) or an lr (plain SGD)")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: {rate} must be positive and finite, got {value}")
    if group["elr"] is None and not (math.isfinite(group["weight_decay"]) and group["weight_decay"] >= 0):
        raise ValueError(f"{name}: weight_decay must be finite and not negative, got {group['weight_decay']}")
    if group["elr"] is not None and group["weight_decay"] != 0:
        raise ValueError(
            f"{name}: weight_decay must be 0, got {group['weight_decay']}: the projection undoes it; "
            "lower the elr, or use torch.optim.SGD to train in the whole space"
        )
    if group["momentum"] != 0:
        raise ValueError(
            f"{name}: momentum must be 0, got {group['momentum']}: the step of fixed ELR has none; "
            "use torch.optim.SGD to train in the whole space"
        )
    if group["granularity"] not in get_args(SphereGranularity):
        raise ValueError(f"{name}: granularity must be 'joint' or 'filter', got {group['granularity']!r}")
    if group["elr"] is not None and group["granularity"] == "filter" and any(p.ndim < 2 for p in group["params"]):
        raise ValueError(f"{name}: granularity='filter' needs tensors of two or more dimensions")
    if any(getattr(p, "_fsdp_flattened", False) for p in group["params"]):
        raise ValueError(
            f"{name}: FSDP1 shards would each be normalised alone, in silence; use DDP or FSDP2 (fully_shard)"
        )
