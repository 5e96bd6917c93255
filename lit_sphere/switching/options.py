"""The options of a run's optimizers, changed in place, entering and leaving the sphere among them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import SGD, Optimizer

from lit_sphere.optim.norm_keeper import KEPT_NORM, NormKeeper
from lit_sphere.optim.shards import is_distributed
from lit_sphere.optim.sphere_sgd import SphereSGD
from lit_sphere.switching.switch import Value


class SwitchableOptions:
    """The options of a run's optimizers under common names, the sphere being one of them.

    ``SphereSGD`` leaves and enters its spheres in place. ``torch.optim.SGD`` enters the joint sphere of the
    scale-invariant parameters by the same step: η = η̃ρ², no momentum, no weight decay, and a rescaling to ρ after
    each step; parameters that are not scale-invariant stay as they were, in parameter groups of their own.

    Args:
        optimizers: The optimizers.
        invariant: All scale-invariant parameters; needed to enter the sphere from ``torch.optim.SGD`` only.
    """

    def __init__(self, optimizers: Sequence[Optimizer], invariant: Sequence[Tensor] | None = None) -> None:
        self._optimizers = list(optimizers)
        self.invariant = None if invariant is None else list(invariant)
        self._keeper: NormKeeper | None = None
        self._entered: dict[str, Any] | None = None  # how the sphere was entered from torch.optim.SGD
        self._spheres = [each for each in self._optimizers if isinstance(each, SphereSGD)]

    @property
    def on_sphere(self) -> bool:
        """Whether anything is trained on a sphere now."""
        groups = [group for optimizer in self._spheres for group in optimizer.param_groups]
        return self._keeper is not None or any(group["elr"] is not None for group in groups)

    @property
    def needs_invariant(self) -> bool:
        """Whether the scale-invariant parameters are needed to enter a sphere."""
        return not self._spheres

    def check(self, changes: Mapping[str, Value], on_sphere: bool) -> bool:
        """Refuse what these optimizers cannot change.

        Args:
            changes: New values by name.
            on_sphere: Whether the run is on the sphere before.

        Returns:
            Whether it is afterwards.

        Raises:
            ValueError: Says what is wrong, and the remedy.
        """
        names = " and ".join(dict.fromkeys(type(each).__name__ for each in self._optimizers))
        after = bool(changes.get("sphere", on_sphere))
        if after and not on_sphere and not self._spheres and type(self._sgd()) is not SGD:
            raise ValueError(f"{names} cannot enter a sphere; take torch.optim.SGD, or FixedNorm to keep the norm")
        if after and not on_sphere and not self._spheres and self._shards:
            raise ValueError(
                f"{names} would get parameter groups for the sphere that no checkpoint of a sharded run restores; take "
                "SphereSGD, which enters spheres by itself, or the strategy ddp"
            )
        filters = any(
            "filter" in (g.get("granularity"), g.get("left_granularity")) for o in self._spheres for g in o.param_groups
        )
        if filters and after != on_sphere and not {"lr", "elr"} & changes.keys():
            raise ValueError("spheres of filters have one learning rate each; give lr to leave them, elr to enter them")
        if "elr" in changes and not after:
            raise ValueError(f"{names} in the whole space has no elr; give lr, or sphere: true to enter the sphere")
        for name in ("lr", "weight_decay", "momentum"):
            if name in changes and not self._has(name, after):
                where = "on the sphere" if after else f"of {names}"
                raise ValueError(
                    f"there is no {name} {where} to change; "
                    + ("give elr, or sphere: false to leave it" if after else "take torch.optim.SGD, or leave it out")
                )
        return after

    @property
    def _shards(self) -> bool:
        return any(is_distributed(p) for o in self._optimizers for group in o.param_groups for p in group["params"])

    def _has(self, name: str, on_sphere: bool) -> bool:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                if isinstance(optimizer, SphereSGD):
                    plain = not on_sphere or (group["elr"] is None and "left_granularity" not in group)
                    if plain and name != "momentum":
                        return True
                elif name in group and (not on_sphere or bool(self._others(group))):
                    return True
        return False

    def _others(self, group: dict[str, Any]) -> list[int]:
        """Positions of the group's parameters that are not scale-invariant."""
        invariant = set(self.invariant or [])
        return [i for i, p in enumerate(group["params"]) if p not in invariant]

    def _sgd(self) -> Optimizer | None:
        """The optimizer that trains the scale-invariant parameters; the first as long as these are not known."""
        if self.invariant is None:
            return self._optimizers[0]
        for optimizer in self._optimizers:
            trained = {p for group in optimizer.param_groups for p in group["params"]}
            if trained.issuperset(self.invariant):
                return optimizer
        return None

    def apply(self, changes: Mapping[str, Value]) -> dict[str, tuple[Value | None, Value]]:
        """Change options, from the next step on.

        Args:
            changes: New values by name; what is not known here (``augment``) is passed over.

        Returns:
            Old and new value by name; old is None where there was none. A change of sphere names the learning rate
            that follows from it, too.
        """
        before = self._values()
        self.check(changes, self.on_sphere)
        rest = dict(changes)
        goal = rest.pop("sphere", None)
        if goal is not None and bool(goal) != self.on_sphere:
            self._enter(rest.pop("elr", None)) if goal else self._leave(rest)
        for name in ("elr", "lr", "weight_decay", "momentum"):
            if name in rest:
                self._set(name, rest[name])
        after = self._values()
        changed = [
            name for name in after if name in changes or ("sphere" in changes and before.get(name) != after[name])
        ]
        return {name: (before.get(name), after[name]) for name in changed}

    def _values(self) -> dict[str, Value]:
        """Present values; of the first group that has the option."""
        found: dict[str, Value] = {"sphere": self.on_sphere}
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                if self._is_entered(group):
                    assert self._keeper is not None
                    found.setdefault("elr", float(group["lr"]) / math.fsum(n * n for n in self._keeper.norms))
                elif group.get("elr") is not None:
                    found.setdefault("elr", group["elr"])
                else:
                    for name in ("lr", "weight_decay", "momentum"):
                        if group.get(name) is not None:
                            found.setdefault(name, float(group[name]))
        return found

    def _is_entered(self, group: dict[str, Any]) -> bool:
        return self._keeper is not None and group["params"][0] in set(self.invariant or [])

    def _set(self, name: str, value: float) -> None:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                entered = self._is_entered(group)
                if name == "elr":
                    if entered and self._keeper is not None:
                        _assign(group, "lr", value * math.fsum(n * n for n in self._keeper.norms))
                    elif group.get("elr") is not None:
                        group["elr"] = value
                elif not entered and group.get("elr") is None and name in group:
                    _assign(group, name, value)
                    if name == "momentum" and value == 0:
                        _forget_momentum(optimizer, group)

    def _leave(self, rest: dict[str, Value]) -> None:
        for optimizer in self._spheres:
            if any(group["elr"] is not None for group in optimizer.param_groups):
                optimizer.leave_sphere(rest.get("lr"), rest.get("weight_decay", 0.0))
        if self._keeper is not None:
            self._keeper.detach()
        self._keeper = None
        if self._entered is not None:
            self._entered["norm"] = None
            self._note_norm(self._optimizers[self._entered["optimizer"]], None)

    def _enter(self, elr: float | None) -> None:
        for each in self._spheres:
            each.enter_sphere(elr)
        if self._spheres:
            return
        optimizer, invariant = self._sgd(), self.invariant
        if optimizer is None or not invariant:
            raise ValueError("no torch.optim.SGD trains all scale-invariant parameters; give them to one optimizer")
        if self._entered is None:
            number = self._optimizers.index(optimizer)
            self._entered = {"optimizer": number, "moved": [self._others(group) for group in optimizer.param_groups]}
            self._split()
        self._keep(None)
        assert self._keeper is not None
        for group in optimizer.param_groups:
            if self._is_entered(group):
                _assign(group, "momentum", 0.0)
                _assign(group, "weight_decay", 0.0)
                _forget_momentum(optimizer, group)
        if elr is not None:
            self._set("elr", elr)

    def _split(self) -> None:
        """Give the parameters that stay in the whole space groups of their own, after the others."""
        assert self._entered is not None
        optimizer = self._optimizers[self._entered["optimizer"]]
        for group, moved in zip(list(optimizer.param_groups), self._entered["moved"], strict=True):
            if 0 < len(moved) < len(group["params"]):
                others = [group["params"][i] for i in moved]
                group["params"] = [p for i, p in enumerate(group["params"]) if i not in set(moved)]
                optimizer.param_groups.append({**group, "params": others})

    def _keep(self, norm: float | None) -> None:
        assert self._entered is not None
        assert self.invariant is not None
        self._keeper = NormKeeper([self.invariant], None if norm is None else [norm])
        self._entered["norm"] = self._keeper.norms[0]
        optimizer = self._optimizers[self._entered["optimizer"]]
        self._keeper.attach(optimizer)
        self._note_norm(optimizer, self._entered["norm"])

    def _note_norm(self, optimizer: Optimizer, norm: float | None) -> None:
        """Note the norm in the optimizer's own state, for resumed runs without what keeps it."""
        invariant = set(self.invariant or [])
        for group in optimizer.param_groups:
            if group["params"][0] in invariant:
                group[KEPT_NORM] = norm

    def detach(self) -> None:
        """Leave the optimizers alone."""
        if self._keeper is not None:
            self._keeper.detach()
        self._keeper = None

    def state(self) -> dict[str, Any]:
        """Give what :meth:`load_state` needs: plain values.

        Returns:
            How the sphere was entered from ``torch.optim.SGD``; empty otherwise.
        """
        if self._entered is None or self.invariant is None:
            return {}
        place = self._optimizers[self._entered["optimizer"]]
        order = {p: i for i, p in enumerate(p for group in place.param_groups for p in group["params"])}
        return {**self._entered, "params": [order[p] for p in self.invariant]}

    @staticmethod
    def holds_sphere(state: Mapping[str, Any]) -> bool:
        """Return from a saved state whether the run was on a sphere that no optimizer's own state knows of.

        Args:
            state: As given by :meth:`state`.

        Returns:
            Whether :meth:`load_state` would enter the sphere of ``torch.optim.SGD`` again.
        """
        return state.get("norm") is not None

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; before the optimizers' own states are loaded.

        Args:
            state: As given by :meth:`state`.
        """
        if not state:
            return
        self._entered = {name: value for name, value in state.items() if name != "params"}
        self._split()
        optimizer = self._optimizers[state["optimizer"]]
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self.invariant = [params[i] for i in state["params"]]
        if state["norm"] is not None:
            self._keep(state["norm"])


def _assign(group: dict[str, Any], name: str, value: float) -> None:
    if isinstance(group[name], Tensor):
        group[name].fill_(value)  # the optimizer, or what it was compiled to, holds this very tensor
    else:
        group[name] = value


def _forget_momentum(optimizer: Optimizer, group: dict[str, Any]) -> None:
    """A buffer of long ago would be taken up again where momentum returns."""
    for p in group["params"]:
        optimizer.state[p].pop("momentum_buffer", None)
