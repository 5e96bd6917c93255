"""What every formula takes and refuses: one registry of all public functions of the theory, tested alike."""

import inspect
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_sphere import theory
from lit_sphere.theory import _arguments as arguments
from lit_sphere.theory import falling_gradients, schemes, sphere, toy, toy_equilibria, toy_plane, undetermined
from lit_sphere.theory import weight_decay as wd

Function = Callable[..., Any]

MODULES: tuple[ModuleType, ...] = (
    falling_gradients,
    schemes,
    sphere,
    toy,
    toy_equilibria,
    toy_plane,
    undetermined,
    wd,
)
# For use in each step of many: their docstrings say so.
UNCHECKED: tuple[Function, ...] = (schemes.elr_from_products, toy.toy_loss, toy.toy_gradient)


class Formula(NamedTuple):
    """A function, arguments that it takes, and the range of each."""

    function: Function
    arguments: dict[str, Any]
    ranges: dict[str, str]  # positive, not negative, finite


def formula(function: Function, **arguments: tuple[Any, str]) -> Formula:
    return Formula(
        function,
        {name: value for name, (value, _) in arguments.items()},
        {name: kind for name, (_, kind) in arguments.items()},
    )


P, N, F = "positive", "not negative", "finite"
STEP = {"norm": (2.0, P), "effective_grad_norm": (3.0, N), "lr": (0.25, P), "weight_decay": (0.5, N)}
BOUNDS = {"grad_min": (1.0, P), "grad_max": (3.0, P)}
RATES = {"lr": (0.25, P), "weight_decay": (0.0625, P)}

ELEMENTWISE = [
    formula(sphere.effective_lr, norm=(2.0, P), lr=(0.5, P)),
    formula(sphere.effective_grad_norm, norm=(2.0, P), grad_norm=(3.0, N)),
    formula(sphere.effective_step_size, norm=(2.0, P), grad_norm=(3.0, N), lr=(0.5, P)),
    formula(sphere.next_elr, elr=(2.0, P), ess=(1.0, N), ess_total=(3.0, N)),
    formula(sphere.largest_stable_eigenvalue, elr=(4.0, P)),
    formula(wd.next_norm, **STEP),
    formula(wd.step_cosine, **STEP),
    formula(wd.step_distance, **STEP),
    formula(wd.jump_norm, delta=(0.25, P), effective_grad_norm=(3.0, P), lr=(0.25, P), weight_decay=(0.5, N)),
    formula(wd.steps_before_jump, norm=(40.0, P), delta=(2.0**-14, P), **BOUNDS, **RATES),
    formula(wd.equilibrium_norms, **BOUNDS, **RATES),
    formula(wd.equilibrium_elrs, **BOUNDS, **RATES),
    formula(wd.equilibrium_ess, **RATES),
    formula(wd.rescaled, x=(-3.0, F), lr=(0.25, P), weight_decay=(0.5, N), factor=(2.0, P)),
    formula(undetermined.undetermined_interval, alpha=(0.125, P), low=(1.0, P), high=(4.0, P)),
    formula(
        falling_gradients.falling_grad_norms, steps=(5.0, F), start=(-3.0, F), factor_min=(1.0, P), factor_max=(4.0, P)
    ),
    formula(falling_gradients.distance_bounds, norm=(2.0, P), **BOUNDS, lr=(0.25, P), weight_decay=(0.5, N)),
    formula(schemes.radius_ratio, radial=(-1.0, F), ess=(2.0, N)),
    formula(schemes.sgd_elr, norm=(2.0, P), lr=(0.5, P), weight_decay=(0.25, N)),
    formula(schemes.momentum_elr, norm=(2.0, P), lr=(0.5, P), along=(-3.0, F)),
    formula(
        schemes.adam_elr,
        norm=(2.0, P),
        lr=(0.5, P),
        along=(-3.0, F),
        size=(4.0, P),
        decoupled_weight_decay=(0.25, N),
    ),
    formula(toy_equilibria.one_term_orbit, alpha=(2.0, P), elr=(4.0, P)),
]
VECTORS = torch.tensor([[1.0, 2.0, 4.0], [3.0, 2.0, 1.0]], dtype=torch.float64)
ALPHAS = VECTORS[0]
OF_VECTORS = [
    formula(sphere.total_elr, elrs=(VECTORS, P)),
    formula(sphere.total_ess, elrs=(VECTORS, P), esses=(VECTORS.flip(0), N)),
    formula(falling_gradients.factors_of, effective_grad_norms=(VECTORS, N), steps=(ALPHAS + 1, F), start=(1.0, F)),
    formula(
        schemes.spherical_step,
        x=(VECTORS, F),
        a=(-VECTORS.flip(0), F),
        lr=(0.5, P),
        b=(VECTORS + 1, P),
        decoupled_weight_decay=(0.5, N),
    ),
    formula(schemes.root_mean_square, b=(VECTORS, F)),
    formula(schemes.rates_without_l2, lr=(0.5, P), weight_decay=(0.25, N), steps=(3, "")),
    formula(toy_equilibria.terms, alphas=(ALPHAS, P)),
    formula(toy_equilibria.threshold_elr, alphas=(ALPHAS, P)),
    formula(toy_equilibria.equilibrium_loss, alphas=(ALPHAS, P), elr=(0.5, P)),
    formula(toy_equilibria.equilibrium_elrs, alphas=(ALPHAS, P), elr=(0.5, P)),
    formula(toy.toy_curves, alphas=(ALPHAS, P), elrs=(ALPHAS, P), epochs=(2, ""), steps_per_epoch=(1, "")),
    formula(toy.settled_losses, alphas=(ALPHAS, P), elrs=(ALPHAS, P), steps=(2, ""), seeds=([0, 1], "")),
    formula(toy_plane.plane_curves, weight_decays=(ALPHAS / 8, N), lr=(1.0, P), steps=(3, "")),
]
ALL = [*ELEMENTWISE, *OF_VECTORS]

BAD = {P: (0.0, -1.0, math.nan, math.inf, -math.inf), N: (-1.0, math.nan, math.inf), F: (math.nan, math.inf), "": ()}


def name_of(case: Formula) -> str:
    return case.function.__name__


def tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def assert_same(result: Any, expected: Any) -> None:
    if not isinstance(expected, (Tensor, tuple)):
        assert result == expected
        return
    for one, other in zip(tensors(result), tensors(expected), strict=True):
        assert one.dtype == torch.float64
        assert torch.equal(one, other)


def public_functions() -> Iterator[Function]:
    for module in MODULES:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                yield function


def test_every_public_function_is_in_the_registry() -> None:
    functions = list(public_functions())
    assert len(functions) > 35
    registered = [case.function for case in ALL] + list(UNCHECKED)
    assert len(set(registered)) == len(registered)
    assert set(registered) == set(functions)
    for case in ALL:
        names = inspect.signature(case.function).parameters
        assert set(case.arguments) <= set(names)


def test_every_public_function_has_its_place_in_the_package() -> None:
    for function in public_functions():
        name = function.__name__
        if function.__module__ in (toy.__name__, toy_equilibria.__name__, toy_plane.__name__):
            home: Any = theory.toy_plane if function.__module__ == toy_plane.__name__ else theory.toy
            if name != "terms":
                assert getattr(home, name) is function
        else:
            assert name in theory.__all__
            assert getattr(theory, name) is function
    for name in theory.__all__:
        if inspect.isfunction(getattr(theory, name)):
            assert f"``{name}``" in (theory.__doc__ or "")


@pytest.mark.parametrize("function", list(public_functions()), ids=lambda function: function.__name__)
def test_docstrings_say_what_is_returned_and_refused(function: Function) -> None:
    text = function.__doc__ or ""
    assert "Returns:" in text
    if function in UNCHECKED:
        assert "othing is checked" in text
        assert "Raises:" not in text
    else:
        assert "Raises:\n        ValueError:" in text


REFUSED = [
    pytest.param(case, name, bad, id=f"{name_of(case)}-{name}-{bad}")
    for case in ALL
    for name, kind in case.ranges.items()
    for bad in BAD[kind]
]


@pytest.mark.parametrize(("case", "name", "bad"), REFUSED)
def test_values_out_of_range_are_refused_by_name(case: Formula, name: str, bad: float) -> None:
    good = case.arguments[name]
    if isinstance(good, Tensor):
        one_bad = good.clone()
        one_bad.view(-1)[-1] = bad  # among good ones, and not the first
        all_bad: Any = torch.full_like(good, bad)
    else:
        one_bad, all_bad = torch.tensor([good, bad], dtype=torch.float64), bad
    called = "α" if name == "alphas" else "ELR" if case.function in (toy.toy_curves, toy.settled_losses) else name
    called = "weight_decay" if name == "decoupled_weight_decay" else called
    for value in (all_bad, one_bad, all_bad if isinstance(all_bad, Tensor) else torch.tensor(bad)):
        if case.function is toy_plane.plane_curves and name == "lr" and isinstance(value, Tensor) and value.ndim:
            continue  # one number
        with pytest.raises(ValueError, match=rf"(?i){called}\b.*(positive|not negative|finite)"):
            case.function(**{**case.arguments, name: value})


@pytest.mark.parametrize("case", ALL, ids=name_of)
def test_any_real_dtype_is_worked_out_in_double(case: Formula) -> None:
    expected = case.function(**case.arguments)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given = {
            name: torch.as_tensor(value, dtype=dtype) if case.ranges[name] else value
            for name, value in case.arguments.items()
        }
        # The values of the registry are the same in any precision.
        assert all(
            not kind or given[name].double().equal(doubled(case.arguments[name])) for name, kind in case.ranges.items()
        )
        if case.function is toy_plane.plane_curves:
            given["lr"] = float(given["lr"])
        kept = {name: value.clone() for name, value in given.items() if isinstance(value, Tensor)}
        assert_same(case.function(**given), expected)
        assert all(torch.equal(given[name], value) for name, value in kept.items()), "an argument was changed"


def doubled(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("case", ALL, ids=name_of)
def test_whole_numbers_are_taken(case: Formula) -> None:
    expected = case.function(**case.arguments)
    for name, kind in case.ranges.items():
        value = doubled(case.arguments[name]) if kind else None
        if value is None or not bool((value == value.round()).all()):
            continue
        whole = value.long() if value.ndim else int(value)
        assert_same(case.function(**{**case.arguments, name: whole}), expected)


@pytest.mark.parametrize("case", ELEMENTWISE, ids=name_of)
def test_batches_are_single_numbers(case: Formula) -> None:
    """Every argument in turn, and two at once in shapes that broadcast."""
    factors = torch.tensor([[1.0], [0.75]], dtype=torch.float64)
    names = list(case.arguments)
    for first, second in zip(names, names[1:] + names[:1], strict=True):
        given = dict(case.arguments)
        given[first] = case.arguments[first] * factors
        given[second] = given[second] * torch.tensor([1.0, 0.875, 1.0], dtype=torch.float64)
        shape = torch.broadcast_shapes(*(doubled(value).shape for value in given.values()))
        batch = [part.broadcast_to(shape) for part in tensors(case.function(**given))]
        expanded = {name: doubled(value).expand(shape) for name, value in given.items()}
        for at in torch.cartesian_prod(*(torch.arange(n) for n in shape)).view(-1, len(shape)).tolist():
            single = tensors(case.function(**{name: value[tuple(at)].item() for name, value in expanded.items()}))
            for many, one in zip(batch, single, strict=True):
                torch.testing.assert_close(many[tuple(at)], one, rtol=1e-14, atol=0)


def pretended(value: Any, device: str, number: bool) -> Any:
    """A value as a tensor that only pretends to lie somewhere; numbers stay, or become vectors of one element."""
    if not isinstance(value, Tensor):
        return value if number else torch.tensor([value], dtype=torch.float64, device=device)
    return torch.tensor(value.tolist(), dtype=torch.float64, device=device)


ON_ANY_DEVICE = [
    pytest.param(case, name, id=f"{name_of(case)}-{name}")
    for case in ALL
    if case.function not in (toy.toy_curves, toy.settled_losses, toy_plane.plane_curves)
    for name, kind in case.ranges.items()
    if kind
]


@pytest.mark.parametrize("numbers", [True, False])
@pytest.mark.parametrize(("case", "name"), ON_ANY_DEVICE)
def test_one_argument_on_a_gpu_takes_the_others_there(
    case: Formula, name: str, numbers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers and the CPU's tensors stand beside it. No GPU is needed: values are not worked out, only devices."""
    for module in (arguments, *MODULES):
        monkeypatch.setattr(module, "require", lambda *_: None, raising=False)  # it asks for values
    # Autograd makes its threads at the first backward; for a pretended GPU too, and then no later test could fork.
    torch.ones(1, requires_grad=True).sum().backward()
    with FakeTensorMode():
        given = {
            other: pretended(value, "cpu", numbers) if case.ranges[other] else value
            for other, value in case.arguments.items()
        }
        given[name] = pretended(case.arguments[name], "cuda", number=False)
        for part in tensors(case.function(**given)):
            assert part.device.type == "cuda"
            assert part.dtype == torch.float64


@pytest.mark.parametrize("case", ELEMENTWISE, ids=name_of)
def test_intervals_have_one_shape(case: Formula) -> None:
    result = case.function(**case.arguments)
    if isinstance(result, undetermined.Interval):
        for name in case.arguments:
            batch = case.function(**{**case.arguments, name: case.arguments[name] * torch.ones(3)})
            assert batch.low.shape == batch.high.shape == (3,)


@pytest.mark.parametrize("case", ELEMENTWISE, ids=name_of)
def test_of_nothing_comes_nothing(case: Formula) -> None:
    result = case.function(**{name: torch.empty(0) for name in case.arguments})
    for part in tensors(result):
        assert part.shape == (0,)
        assert part.dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sphere.total_elr(torch.empty(2, 0)), "at least one group"),
        (lambda: sphere.total_elr(0.1), "at least one group"),
        (lambda: sphere.total_ess(torch.ones(2), 1.0), "at least one group"),
        (lambda: falling_gradients.factors_of(torch.empty(2, 0), torch.empty(0), 0), "at least one step"),
        (lambda: falling_gradients.factors_of(1.0, 2.0, 0), "at least one step"),
        (lambda: schemes.root_mean_square(torch.empty(2, 0)), "at least one element"),
        (lambda: schemes.root_mean_square(torch.tensor(1.0)), "at least one element"),
        (lambda: schemes.spherical_step(torch.empty(2, 0), torch.empty(2, 0), 0.1), "x must not be zero"),
        (lambda: toy.threshold_elr([]), "at least one α"),
        (lambda: toy.equilibrium_elrs(torch.empty(0), 0.1), "at least one α"),
        (lambda: toy.threshold_elr(torch.ones(2, 2)), "at least one α"),
        (lambda: toy.toy_curves([], [0.1]), "at least one α"),
        (lambda: toy.toy_curves([1.0], []), "at least one ELR and one seed"),
        (lambda: toy.toy_curves([1.0], [0.1], seeds=[]), "at least one ELR and one seed"),
        (lambda: toy.toy_curves([1.0], [0.1], epochs=0), "at least one epoch and one step"),
        (lambda: toy.toy_curves([1.0], [0.1], steps_per_epoch=0), "at least one epoch and one step"),
        (lambda: toy.settled_losses([1.0], torch.empty(0)), "at least one ELR and one seed"),
        (lambda: toy.settled_losses([1.0], [0.1], 1), "second half from 2 steps on, got 1"),
        (lambda: toy_plane.plane_curves([]), "at least one weight decay"),
        (lambda: toy_plane.plane_curves([0.1], steps=0), "one step"),
        (lambda: toy_plane.plane_curves([0.1], start=(0.0, 0.0)), "not the origin"),
        (lambda: toy_plane.plane_curves([0.1], start=(math.nan, 1.0)), "start must be finite"),
        (lambda: toy_plane.plane_curves([0.1], start=(math.inf, 1.0)), "start must be finite"),
    ],
)
def test_of_nothing_there_is_no_total(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("case", [case for case in ALL if {"lr", "weight_decay"} <= set(case.arguments)], ids=name_of)
@pytest.mark.parametrize("decay", [4.0, 5.0, 1e9])
def test_decay_must_leave_something_of_the_weights(case: Formula, decay: float) -> None:
    for value in (decay, torch.tensor([0.125, decay])):
        with pytest.raises(ValueError, match=r"lr · weight_decay must be below 1"):
            case.function(**{**case.arguments, "lr": 0.25, "weight_decay": value})


X, EAST = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wd.jump_norm(1.0, 1.0, 0.1, 0.1), "delta must be below 1"),
        (lambda: wd.steps_before_jump(1.0, 1.0, 1.0, 1.0, 0.1, 0.1), "delta must be below 1"),
        (lambda: wd.steps_before_jump(1.0, 0.1, 2.0, 1.0, 0.1, 0.1), "grad_min must not be above grad_max"),
        (lambda: wd.equilibrium_norms(2.0, 1.0, 0.1, 0.1), "grad_min must not be above grad_max"),
        (lambda: wd.equilibrium_elrs(2.0, 1.0, 0.1, 0.1), "grad_min must not be above grad_max"),
        (lambda: wd.equilibrium_norms(1.0, 40.0, 0.1, 0.2), "the interval can be left"),
        (lambda: wd.equilibrium_elrs(1.0, 1.0, 1.0, 0.4), "the interval can be left"),
        (lambda: undetermined.undetermined_interval(0.6, 1.0, 1.0), "the interval can be left"),
        (lambda: undetermined.undetermined_interval(0.1, 1.0, 82.0), "the interval can be left"),
        (lambda: undetermined.undetermined_interval(0.1, 2.0, 1.0), "low must not be above high"),
        (lambda: falling_gradients.distance_bounds(1.0, 2.0, 1.0, 0.1, 0.0), "grad_min must not be above grad_max"),
        (lambda: falling_gradients.falling_grad_norms(1.0, 1.0, 1.0, 2.0), "after start"),
        (lambda: falling_gradients.falling_grad_norms(2.0, 1.0, 3.0, 2.0), "factor_min must not be above"),
        (lambda: falling_gradients.falling_grad_norms(2.0, 1.0, 1.0, 2.0, 0.0), "power must be positive"),
        (lambda: falling_gradients.falling_grad_norms(2.0, 1.0, 1.0, 2.0, math.nan), "power must be positive"),
        (lambda: falling_gradients.factors_of(X, X, 1.0), "after start"),
        (lambda: schemes.spherical_step(0 * X, X, 0.1), "x must not be zero"),
        (lambda: schemes.spherical_step(torch.stack([X, 0 * X]), X, 0.1), "x must not be zero"),
        (lambda: schemes.spherical_step(X, X, 0.1, None, 10.0), "lr · weight_decay must be below 1"),
        (lambda: schemes.spherical_step(X, 20 * X, 0.1), "right angle"),
        (lambda: schemes.spherical_step(EAST, 4 * EAST, 0.25), "right angle"),
        (lambda: schemes.radius_ratio(1.0, 0.1), "right angle"),
        (lambda: schemes.momentum_elr(1.0, 0.1, 10.0), "right angle"),
        (lambda: schemes.adam_elr(1.0, 0.1, 20.0, 1.0), "right angle"),
        (lambda: schemes.adam_elr(1.0, 0.1, 0.0, 1.0, 10.0), "lr · weight_decay must be below 1"),
        (lambda: schemes.rates_without_l2(0.1, 0.1, -1), "steps must be a whole number"),
        (lambda: schemes.rates_without_l2(0.1, 0.1, 2.5), "steps must be a whole number"),  # type: ignore[arg-type]
        (lambda: toy_plane.plane_curves([0.1], lr=10.0), "below 1/lr = 0.1"),
    ],
)
def test_arguments_that_do_not_fit_each_other_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_borders_themselves() -> None:
    """What is allowed right up to what is not."""
    assert undetermined.undetermined_interval(0.5, 1.0, 1.0).low.item() == pytest.approx(math.sqrt(2))
    assert undetermined.undetermined_interval(0.1, 1.0, 80.9).high.item() == pytest.approx(math.sqrt(809))
    assert schemes.rates_without_l2(0.1, 0.0, 0).shape == (0,)
    assert wd.next_norm(2.0, 0.0, 0.1, 0.0).item() == 2
    assert wd.step_cosine(2.0, 0.0, 0.1, 0.0).item() == 1
    assert wd.step_distance(2.0, 0.0, 0.1, 0.0).item() == 0
    assert schemes.radius_ratio(0.999, 0.0).item() == pytest.approx(0.001)
