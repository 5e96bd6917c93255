"""A given network made scale-invariant: what is trained on the sphere, what is frozen, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_sphere.conversion.normalisation import (
    Site,
    fix_length,
    has_room,
    normalise_output,
    release_length,
    release_output,
    takes_output_norm,
)
from lit_sphere.conversion.roles import Inputs, Roles, find_roles, fresh, is_vector
from lit_sphere.groups import Group, search_groups

How = Literal["weights", "activations"]
Free = Literal["freeze", "train"]
Action = Literal["kept", "length fixed", "output normalised", "head", "frozen", "set to 1", "set to 0", "free"]

_SPHERE: tuple[Action, ...] = ("kept", "length fixed", "output normalised")
_FROZEN: tuple[Action, ...] = ("head", "frozen", "set to 1", "set to 0")
_ALREADY = "scale-invariant as it is"
_UNDONE = "nothing undid its scale"
_VECTOR = "a gain, a bias or a single vector"
_UNTREATED: tuple[Action, str] = ("free", "")
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class ConvertedTensor:
    """What became of one tensor that was trainable.

    Attributes:
        name: In the network as it was given.
        shape: Its shape.
        action: ``kept``, ``length fixed`` and ``output normalised`` are trained on the sphere; ``head``, ``frozen``,
            ``set to 1`` and ``set to 0`` are frozen; ``free`` is trained, and not scale-invariant.
        reason: Why.
    """

    name: str
    shape: tuple[int, ...]
    action: Action
    reason: str

    @property
    def numel(self) -> int:
        """Number of scalars."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Conversion:
    """What a conversion has done; printed, one line for each kind of tensor.

    Attributes:
        network: Class of the network.
        tensors: What became of each tensor that was trainable, in the network's order.
        groups: The scale-invariant groups that :func:`~lit_sphere.groups.find_groups` confirms.
    """

    network: str
    tensors: tuple[ConvertedTensor, ...]
    groups: tuple[Group, ...] = field(default=(), compare=False)

    @property
    def is_changed(self) -> bool:
        """Whether anything was changed; not where the network was scale-invariant before."""
        return any(each.action != "kept" for each in self.tensors)

    @property
    def plan(self) -> dict[str, str]:
        """Action by name: plain data, by which :func:`apply_plan` does the same to another copy of the network."""
        return {each.name: each.action for each in self.tensors}

    def table(self) -> str:
        """Give one line for each tensor: name, shape, what was done, and why."""
        rows = [
            (each.name, "×".join(map(str, each.shape)) or "scalar", each.action, each.reason) for each in self.tensors
        ]
        wide = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, wide, strict=False)), row[3]]) for row in rows
        )

    def __str__(self) -> str:
        """Give the title, and one line for each kind."""
        if not self.is_changed:
            return f"{self.network}: scale-invariant already, nothing was changed"
        kinds: dict[tuple[str, str], list[ConvertedTensor]] = {}
        for each in self.tensors:
            kinds.setdefault((each.action, each.reason), []).append(each)
        total, on_sphere = (
            sum(each.numel for each in self.tensors if each.action in actions)
            for actions in (get_args(Action), _SPHERE)
        )
        lines = [f"{self.network} made scale-invariant: {on_sphere:,} of {total:,} trained weights are on the sphere"]
        for (action, reason), members in kinds.items():
            names = ", ".join(each.name for each in members[:_NAMES_SHOWN])
            more = f" and {len(members) - _NAMES_SHOWN} more" if len(members) > _NAMES_SHOWN else ""
            lines.append(f"  {action:<17} {len(members):>3}  {reason}: {names}{more}")
        return "\n".join(lines)


def make_scale_invariant(
    network: nn.Module,
    example_input: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    how: How = "weights",
    *,
    free: Free = "freeze",
    head_norm: float = 10.0,
    progress: bool | None = None,
) -> Conversion:
    """Make a network scale-invariant, in place, so that all that is trained can be trained on the sphere.

    As the papers make theirs (TR §4): weight matrices are trained, each undone in its scale by a normalisation; gains
    and biases are frozen as they are, the head at a fixed norm. What is scale-invariant already is left alone; a
    network that is, as a whole, does not change. Everything is told by behaviour: no names, no list of layers.

    - **weights** (``how="weights"``): where nothing undoes a matrix's scale it gets a fixed length, w = ℓθ/‖θ‖. At
      initialisation the network computes what it did. This works for every tensor, attention's and tied ones too.
    - **activations** (``how="activations"``): the output of its module is normalised instead, by batch norm without
      affine parameters after convolutions and by layer norm after other modules, where that undoes the scale; the
      rest gets a fixed length. The network is another one then, whose activations are held back throughout: it trains
      faster where the network has no normalisation of its own, and alike where it has some.

    Gains that start at or near zero (layer scale, the last gain of a residual block) are set to 1: frozen there, what
    they multiply would never matter. Weights that are zero throughout are drawn anew, as those of a fresh layer. Both
    come from torch's global generator and change what the network computes, as does the norm of the head.

    Args:
        network: Any module that computes its outputs from its inputs; changed in place.
        example_input: As for :func:`~lit_sphere.groups.find_groups`.
        how: ``weights`` or ``activations``.
        free: What happens to tensors that are no matrices and stay as they are, such as gains and biases:
            ``freeze`` or ``train``. Where they are scale-invariant together with others, ``train`` leaves them to the
            sphere; the rest needs an optimizer of its own.
        head_norm: Frobenius norm of the frozen head; 10 in the papers, for 10 classes. A low one makes low losses
            unreachable (PB); for V outputs √(10 V) gives each the same reach.
        progress: As for :func:`~lit_sphere.groups.find_groups`.

    Returns:
        What was done to each tensor, and why.

    Raises:
        ValueError: If the network has no trainable matrix, or only a head; if it fails on the inputs; if an argument
            is not as described.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> print(make_scale_invariant(network, torch.zeros(2, 4)).table())
        0.weight  8×4  length fixed  nothing undid its scale
        0.bias    8    frozen        a gain, a bias or a single vector
        2.weight  3×8  head          the last linear map, frozen at norm 10
        2.bias    3    frozen        a gain, a bias or a single vector
    """  # noqa: DOC502
    _check(network, how, free, head_norm)
    inputs: Inputs = (example_input,) if isinstance(example_input, Tensor) else example_input
    work = _Work(network, inputs, how, free, progress)
    groups = work.groups()
    if work.in_groups(groups) >= work.trainable.keys():
        for name in work.trainable:
            work.done[name] = ("kept", _ALREADY)
        return work.conversion(groups)
    work.set_and_freeze(find_roles(network, inputs), head_norm)
    return work.conversion(work.normalise())


@torch.no_grad()
def apply_plan(network: nn.Module, plan: Mapping[str, str]) -> None:
    """Give a network the structure of a converted one, whose weights can be loaded into it then.

    Norms of heads and weights that were drawn anew are not repeated: the loaded ones take their place.

    Args:
        network: A network as it was before the conversion; changed in place, all but the values of its weights.
        plan: Of the conversion.

    Raises:
        ValueError: If the plan is another network's, or none.
    """
    parameters, sites = dict(network.named_parameters()), _sites(network)
    for name, action in plan.items():
        if name not in parameters or action not in get_args(Action):
            raise ValueError(
                f"the plan of a conversion says {action!r} of {name}, which {type(network).__name__} "
                f"{'cannot follow' if name in parameters else 'does not have'}; give the network that was converted"
            )
        parameter = parameters[name]
        if action in ("set to 0", "set to 1"):
            parameter.fill_(int(action[-1]))
        elif not parameter.any() and not is_vector(parameter):
            parameter.copy_(fresh(parameter, torch.Generator(parameter.device).manual_seed(0)))
        if action == "length fixed":
            fix_length(sites[parameter])
        elif action == "output normalised":
            normalise_output(sites[parameter][0][0])
        elif action in _FROZEN:
            parameter.requires_grad_(False)


def _check(network: nn.Module, how: str, free: str, head_norm: float) -> None:
    for name, value, known in (("how", how, get_args(How)), ("free", free, get_args(Free))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if not 0 < head_norm < float("inf"):
        raise ValueError(f"head_norm must be positive and finite, got {head_norm}")
    if any(nn.parameter.is_lazy(p) for p in network.parameters()):
        raise ValueError(f"{type(network).__name__} has lazy parameters: run it once on real data first")
    if not any(p.requires_grad and not is_vector(p) for p in network.parameters()):
        raise ValueError(
            f"{type(network).__name__} has no trainable weight matrix, nothing that could be made scale-invariant"
        )


def _sites(network: nn.Module) -> dict[nn.Parameter, list[Site]]:
    """All modules and attributes under which each parameter is held: several where it is shared."""
    sites: dict[nn.Parameter, list[Site]] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            sites.setdefault(parameter, []).append((module, name))
    return sites


class _Work:
    """A conversion on its way: what was done to which tensor."""

    def __init__(self, network: nn.Module, inputs: Inputs, how: How, free: Free, progress: bool | None) -> None:
        self._network, self._inputs, self._how, self._free, self._progress = network, inputs, how, free, progress
        self.trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._shapes = {name: tuple(p.shape) for name, p in self.trainable.items()}
        self._sites = _sites(network)
        self._handles: dict[str, tuple[RemovableHandle, list[tuple[str, Tensor]]]] = {}  # and biases
        self._drawn: frozenset[str] = frozenset()
        self.done: dict[str, tuple[Action, str]] = {}

    def conversion(self, groups: list[Group]) -> Conversion:
        tensors = []
        for name, shape in self._shapes.items():
            action, reason = self.done[name]
            if name in self._drawn:
                reason += "; was zero, drawn anew"
            tensors.append(ConvertedTensor(name, shape, action, reason))
        return Conversion(type(self._network).__name__, tuple(tensors), tuple(groups))

    def groups(self) -> list[Group]:
        found = search_groups(self._network, self._inputs, progress=self._progress).groups
        return [group for group in found if group.rows is None]  # what becomes of a tensor becomes of all its rows

    def in_groups(self, groups: list[Group]) -> set[str]:
        members = {p for group in groups for p in group.parameters}
        return {name for name, p in self.trainable.items() if p in members}

    @torch.no_grad()
    def set_and_freeze(self, roles: Roles, head_norm: float) -> None:
        """Deal with all that is no matrix, and with heads; refuses a network that has no other matrix."""
        done: dict[str, tuple[Action, str]] = {}
        for name, p in self.trainable.items():
            if name in roles.heads:
                done[name] = ("head", f"the last linear map, frozen at norm {head_norm:g}")
            elif name in roles.idle:
                done[name] = ("frozen", "without influence on the output")
            elif name in roles.gates and self._free == "freeze":
                done[name] = ("set to 1", "a gain that starts at or near zero, where it hides what it multiplies")
            elif is_vector(p):
                done[name] = ("frozen", _VECTOR) if self._free == "freeze" else ("free", _VECTOR)
        if done.keys() >= self.trainable.keys():
            raise ValueError(
                f"{type(self._network).__name__} has no weight matrix but its head, whose scale matters: nothing is "
                "left to be trained on the sphere"
            )
        self.done, self._drawn = done, frozenset(roles.redrawn)
        for name, value in roles.redrawn.items():
            self.trainable[name].copy_(value)
        for name, (action, _) in done.items():
            p = self.trainable[name]
            if action == "head":
                p.mul_(head_norm / torch.linalg.vector_norm(p))
            elif action == "set to 1":
                p.fill_(1)
            p.requires_grad_(action == "free")

    def normalise(self) -> list[Group]:
        """Normalise matrices until all are scale-invariant that can be; the groups that there are then."""
        matrices = [name for name in self.trainable if name not in self.done]
        while True:
            groups = self.groups()
            members = self.in_groups(groups)
            for name in members:
                if self.done.get(name, _UNTREATED)[0] == "free":
                    self.done[name] = ("kept", _ALREADY)
            missing = [name for name in matrices if name not in members]
            if not missing:
                break
            for name in missing:
                if not self._normalise_next(name):
                    matrices.remove(name)
        if not groups:
            raise ValueError(f"{type(self._network).__name__}: no normalisation undoes the scale of its weights")
        for name in self.trainable.keys() - members:  # vectors of groups that later normalisations have dissolved
            if self.done[name][0] == "kept":
                self.done[name] = ("free", _VECTOR)
        return groups

    def _normalise_next(self, name: str) -> bool:
        """Try the next way to undo the scale of a matrix; False where there is none left."""
        sites, tried = self._sites[self.trainable[name]], self.done.get(name, _UNTREATED)[0]
        if tried == "free" and self._how == "activations" and takes_output_norm(sites):
            self._normalise_output(name, sites[0][0])
            return True
        if tried == "output normalised":
            self._release_output(name, sites[0][0])
        if tried != "length fixed" and has_room(sites):
            fix_length(sites)
            self.done[name] = ("length fixed", _UNDONE)
            return True
        if tried == "length fixed":
            release_length(sites)
        self.trainable[name].requires_grad_(self._free == "train")
        self.done[name] = ("free" if self._free == "train" else "frozen", "no normalisation undoes its scale")
        return False

    @torch.no_grad()
    def _normalise_output(self, name: str, module: nn.Module) -> None:
        biases = [
            (other, p.clone())
            for other, p in self.trainable.items()
            if self._free == "freeze" and p is getattr(module, "bias", None)
        ]
        self._handles[name] = normalise_output(module), biases
        self.done[name] = ("output normalised", _UNDONE)
        for other, _ in biases:
            self.trainable[other].zero_()
            self.done[other] = ("set to 0", "a bias that would tell the norm behind it the scale of the weight")

    @torch.no_grad()
    def _release_output(self, name: str, module: nn.Module) -> None:
        handle, biases = self._handles.pop(name)
        release_output(module, handle)
        for other, value in biases:
            self.trainable[other].copy_(value)
            self.done[other] = ("frozen", _VECTOR)
