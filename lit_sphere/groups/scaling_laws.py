"""How the tensors of a computation scale with the parameters, operation by operation.

Scaling symmetries are local: multiply a convolution's kernel by c and its output grows by c; the sum of two tensors
scales only where both scale alike; a normalisation's output does not scale at all. Each operation is measured, not
looked up: the derivatives of its output along each of its inputs, and the output itself, are vectors, and the linear
relations between these are its scaling law. One forward finds the laws of all of them, where a null space of whole
functions takes as many backward passes as there are tensors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from lit_sphere.groups.precision import Precision
from lit_sphere.groups.symmetries import Form, Symmetries

_MOST_REGIONS = 16
Law = tuple[list[Form], Form]
"""Equations over the exponents of an operation's inputs, and its output's exponent as a form of these."""


@dataclass
class _Scaling:
    """The exponent with which a piece of memory scales, and what must hold for it to scale at all."""

    memory: StorageWeakRef  # held, so that no other memory takes its place
    form: Form
    required: list[Form] = field(default_factory=list)
    blank: bool = False  # all zeros: these scale with anything
    # Parts of a concatenation, or of what is written slice by slice, may scale apart, until an operation mixes them.
    forms: list[Form] = field(default_factory=list)
    labels: Tensor | None = None  # for each element of the memory the number of its form; -1 for zeros


class ScalingLaws(TorchDispatchMode):
    """Collects the scaling laws of what runs inside, as equations over the exponents of the parameters.

    Args:
        parameters: For each column its tensor, the very one that the computation uses. Other tensors are constants.
        precision: Of the computation.
    """

    def __init__(self, parameters: Mapping[int, Tensor], precision: Precision) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.symmetries = Symmetries()
        self._precision = precision
        self._scalings: dict[int, _Scaling] = {}
        for column, parameter in parameters.items():
            self._record(parameter, {column: Fraction(1)}, [])

    def require_constant(self, outputs: Iterable[Tensor]) -> None:
        """Let only symmetries through that keep these tensors as they are.

        Args:
            outputs: Results of the computation.
        """
        for output in outputs:
            self.symmetries.require_zero(self._form(output))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and find how its outputs scale."""
        leaves, spec = tree_flatten((args, dict(kwargs or {})))
        written = _written(func, args, kwargs or {})
        if not written and any(result.alias_info is not None for result in func._schema.returns):
            return func(*args, **(kwargs or {}))  # a view: it shares its memory, and so its exponent
        if func.__name__.startswith(("empty", "new_empty")):
            # Memory without content: none of what it happens to hold is a result.
            out = func(*args, **(kwargs or {})).zero_()
            self._record(out, {}, [], blank=True)
            return out
        if func in (torch.ops.aten.cat.default, torch.ops.aten.stack.default):
            return self._put_together(func, args, kwargs or {})
        # What has the same exponent scales together: it is one input.
        classes: dict[frozenset[tuple[int, Fraction]], list[tuple[int, Tensor | None]]] = {}
        parted: list[list[Tensor]] = []  # where the parts of each input are
        for place, leaf in enumerate(leaves):
            parts = self._parts(leaf) if _scales(leaf) else []
            parted += [[where for where, _ in parts if where is not None]]
            for part, form in parts:
                classes.setdefault(frozenset(form.items()), []).append((place, part))
        states = _generator_states(func, leaves)

        def run(scaled: Sequence[tuple[int, Tensor | None]] = (), copies: bool = True) -> Any:
            _restore(states)
            changed = list(leaves)
            if copies:
                changed = [leaf.clone() if any(leaf is each for each in written) else leaf for leaf in leaves]
            for place, part in scaled:
                changed[place] = _stretched(changed[place], part, 1 + self._precision.step)
            new_args, new_kwargs = tree_unflatten(changed, spec)
            return func(*new_args, **new_kwargs)

        moved = [tree_leaves(run(places)) for places in classes.values()]
        out = run(copies=False)
        keys = [dict(key) for key in classes]
        for number, result in enumerate(tree_leaves(out)):
            if not _scales(result):
                continue
            derivatives = [(leaf[number] - result) / self._precision.step for leaf in moved]
            into = any(result is each for each in written)
            regions = [] if into else _regions(parted, result)
            if regions:
                self._record_parts(result, regions, derivatives, keys)
                continue
            law = scaling_law(derivatives, result, self._precision)
            form, required = _applied(law, keys)
            self._record(result, form, required, blank=law is None, into=into)
        return out

    def _record_parts(
        self, result: Tensor, regions: Sequence[Tensor], derivatives: Sequence[Tensor], inputs: Sequence[Form]
    ) -> None:
        """Give each region of an output an exponent of its own, by its own law."""
        self._record(result, {}, [])
        scaling = self._scalings[_memory(result)]
        labels = _no_labels(result)
        for region in regions:
            law = scaling_law([each[region] for each in derivatives], result[region], self._precision)
            form, required = _applied(law, inputs)
            _seen_by(labels, result)[region] = -1 if law is None else len(scaling.forms)
            if law is not None:
                scaling.forms.append(form)
                scaling.required += required
        scaling.labels = labels if scaling.forms else None

    def _put_together(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Concatenate or stack; each tensor keeps its exponent."""
        tensors = args[0]
        forms = [self._form(tensor) if _scales(tensor) else {} for tensor in tensors]
        out: Tensor = func(*args, **kwargs)
        self._record(out, {}, [])
        if not any(forms):
            return out
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % max(1, out.dim())
        stacked = func is torch.ops.aten.stack.default
        sizes = [1 if stacked else each.shape[dim] if each.dim() == out.dim() else 0 for each in tensors]
        labels = _no_labels(out)
        start = 0
        for number, (tensor, size) in enumerate(zip(tensors, sizes, strict=True)):
            _seen_by(labels, out).narrow(dim, start, size).fill_(number if tensor.any() else -1)
            start += size
        scaling = self._scalings[_memory(out)]
        scaling.forms, scaling.labels = forms, labels
        return out

    def _form(self, tensor: Tensor) -> Form:
        """Exponent of a tensor that is about to be used as one: its parts must scale alike from now on."""
        parts = self._parts(tensor, constants=True)
        for _, form in parts[1:]:
            self.symmetries.require_zero(_difference(form, parts[0][1]))
        return self.symmetries.reduce(parts[0][1]) if parts else {}

    def _parts(self, tensor: Tensor, constants: bool = False) -> list[tuple[Tensor | None, Form]]:
        """Exponents of the parts of a tensor that is about to be used, each with where it is; None: everywhere."""
        scaling = self._scalings.get(_memory(tensor))
        if scaling is None:
            return []
        for form in scaling.required:
            self.symmetries.require_zero(form)
        scaling.required = []
        forms = [self.symmetries.reduce(form) for form in scaling.forms]
        if scaling.labels is None or all(form == forms[0] for form in forms):
            form = forms[0] if scaling.labels is not None else self.symmetries.reduce(scaling.form)
            return [(None, form)] if form else []
        labels = _seen_by(scaling.labels, tensor)
        seen = [number for number in labels.unique().tolist() if number >= 0]
        if len(seen) == 1:
            return [(None, forms[seen[0]])] if forms[seen[0]] else []
        return [(labels == number, forms[number]) for number in seen if constants or forms[number]]

    def _record(
        self, tensor: Tensor, form: Form, required: list[Form], blank: bool = False, into: bool = False
    ) -> None:
        memory = StorageWeakRef(tensor.untyped_storage())
        before = self._scalings.get(memory.cdata)
        if not into or tensor.numel() >= tensor.untyped_storage().nbytes() // tensor.element_size():
            self._scalings[memory.cdata] = _Scaling(memory, form, required, blank)
            return
        # The rest of this memory keeps what it holds.
        for each in (*required, *(before.required if before is not None else ())):
            self.symmetries.require_zero(each)
        forms, labels = [before.form if before is not None else {}], _no_labels(tensor)
        if before is not None and before.labels is not None:
            forms, labels = before.forms, before.labels
        elif before is not None and before.blank:
            labels.fill_(-1)
        _seen_by(labels, tensor).fill_(-1 if blank else len(forms))
        self._scalings[memory.cdata] = _Scaling(memory, {}, [], False, [*forms, form], labels)


def scaling_law(derivatives: Sequence[Tensor], output: Tensor, precision: Precision) -> Law | None:
    """Find for which exponents of its inputs an operation's output scales, and with which exponent.

    Args:
        derivatives: Derivative of the output along each input, Σ_j ∂y/∂x_j x_j.
        output: The output y.
        precision: Of both.

    Returns:
        Equations over the inputs' exponents, each a linear form that must vanish, and the output's exponent as such
        a form; None for an output that is zero, which scales with any exponent.
    """
    vectors = [_flat(each) for each in (*derivatives, output)]
    finite = torch.stack([vector.isfinite().all() for vector in vectors]).all()
    if not finite:  # scores of −∞ stay −∞ when they are scaled
        kept = torch.stack([vector.isfinite() for vector in vectors]).all(0)
        vectors = [vector[kept] for vector in vectors]
    columns = torch.stack(vectors)
    norms = torch.linalg.vector_norm(columns, dim=1)
    size = float(norms[-1])
    if size == 0:
        return None
    live = [j for j, norm in enumerate(norms.tolist()) if norm > precision.vanishing * size]
    units = columns[live] / norms[live, None]
    values, basis = torch.linalg.eigh((units @ units.T).double().cpu())
    null = (basis.T[values <= precision.relation**2 * len(live)]) / norms[live].double().cpu()
    return _law(null * size, live[:-1], precision)


def _law(
    null: Tensor, inputs: list[int], precision: Precision
) -> tuple[list[dict[int, Fraction]], dict[int, Fraction]]:
    """Write null vectors, whose last column is minus the output's exponent, as equations."""
    pivots: list[tuple[int, int]] = []
    free = list(range(len(null)))
    while free:
        # Full pivoting: with pivots in column order, one symmetry smears over the others.
        row, column = divmod(int(null[free, :-1].abs().argmax()), null.shape[1] - 1)
        row = free.pop(row)
        null[row] /= null[row, column].clone()
        others = [other for other in range(len(null)) if other != row]
        null[others] -= torch.outer(null[others, column], null[row])
        pivots.append((row, column))
    exact = [(inputs[column], _exact(null[row].tolist(), precision)) for row, column in pivots]
    # What is not exact is no exponent, but a direction along which the output is merely almost flat.
    rows = {name: values for name, values in exact if values is not None}
    equations = [
        {name: Fraction(-1), **{pivot: values[place] for pivot, values in rows.items() if values[place]}}
        for place, name in enumerate(inputs)
        if name not in rows
    ]
    return equations, {pivot: -values[-1] for pivot, values in rows.items() if values[-1]}


def _exact(values: Sequence[float], precision: Precision) -> list[Fraction] | None:
    fractions = [Fraction(value).limit_denominator(precision.denominator) for value in values]
    close = all(abs(value - near) <= precision.snap for value, near in zip(values, fractions, strict=True))
    return fractions if close else None


def _applied(law: Law | None, inputs: Sequence[Form]) -> tuple[Form, list[Form]]:
    """Put the inputs' own exponents into a law."""
    if law is None:
        return {}, []
    equations, output = law

    def combined(factors: Mapping[int, Fraction]) -> Form:
        total: Form = {}
        for place, factor in factors.items():
            for column, share in inputs[place].items():
                total[column] = total.get(column, Fraction(0)) + factor * share
        return total

    return combined(output), [combined(equation) for equation in equations]


def _difference(form: Form, other: Form) -> Form:
    difference = dict(form)
    for column, factor in other.items():
        difference[column] = difference.get(column, Fraction(0)) - factor
    return difference


def _stretched(tensor: Tensor, where: Tensor | None, factor: float) -> Tensor:
    return tensor * factor if where is None else torch.where(where, tensor * factor, tensor)


def _regions(parted: Sequence[Sequence[Tensor]], result: Tensor) -> list[Tensor]:
    """Regions of an output in which each of its inputs has one exponent; none if all have one everywhere."""
    mixed = torch.zeros(result.shape, dtype=torch.int32, device=result.device)
    for parts in parted:
        if parts and parts[0].shape == result.shape:
            mixed *= len(parts) + 1
            for number, where in enumerate(parts, start=1):
                mixed += number * where
    numbers = mixed.unique().tolist() if any(parts and parts[0].shape == result.shape for parts in parted) else [0]
    return [mixed == number for number in numbers] if 1 < len(numbers) <= _MOST_REGIONS else []


def _no_labels(tensor: Tensor) -> Tensor:
    """Zeros, one for each element of a tensor's memory."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return torch.zeros(count, dtype=torch.int16, device=tensor.device)


def _seen_by(labels: Tensor, tensor: Tensor) -> Tensor:
    """Labels of the elements that a tensor, which may be a view, has in its memory."""
    return labels.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _scales(value: object) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()) and value.numel() > 0


def _flat(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).flatten()


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Tensors that an operation changes in place."""
    written: list[Tensor] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            written += [each for each in tree_leaves(value) if isinstance(each, Tensor)]
    return written


def _generator_states(func: Any, leaves: Sequence[Any]) -> list[tuple[torch.Generator, Tensor]]:
    """States of the generators that a random operation draws from, so that it can be repeated."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return []
    generators = [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]
    if not generators:
        generators = [torch.default_generator]
        devices = {leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.device.type == "cuda"}
        generators += [torch.cuda.default_generators[device.index] for device in devices]
    return [(generator, generator.get_state()) for generator in generators]


def _restore(states: Sequence[tuple[torch.Generator, Tensor]]) -> None:
    for generator, state in states:
        generator.set_state(state)
