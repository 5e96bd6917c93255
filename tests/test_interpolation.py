"""Paths between two points of weight space, and what is measured along them."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lit_sphere.analysis import (
    WeightPath,
    barrier_height,
    difference,
    dip_depth,
    interpolate,
    path_positions,
    put_weights,
    read_checkpoint,
    separation,
    take_weights,
)
from lit_sphere.analysis.interpolation import Statistics
from lit_sphere.groups import find_groups
from lit_sphere.networks import ConvNet

_SIZE = 5
vectors = st.lists(st.floats(-10, 10, width=32), min_size=_SIZE, max_size=_SIZE).map(
    lambda x: torch.tensor(x, dtype=torch.float64)
)
fractions = st.floats(0, 1)


def point(x: Tensor) -> dict[str, Tensor]:
    """A vector, divided among two tensors of one sphere."""
    return {"a": x[:2].clone(), "b": x[2:].view(-1, 1).clone()}


def whole(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights["a"], weights["b"].flatten()])


def path_between(x: Tensor, y: Tensor, great_circle: bool = False) -> WeightPath:
    return WeightPath(point(x), point(y), [["a", "b"]], great_circle)


def apart(x: Tensor, y: Tensor) -> None:
    assume(x.norm() > 1e-3)
    assume(y.norm() > 1e-3)
    assume((x / x.norm() + y / y.norm()).norm() > 1e-3)


# --- the path ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(vectors, vectors, fractions, st.booleans())
def test_every_point_lies_on_the_sphere(x: Tensor, y: Tensor, t: float, great_circle: bool) -> None:
    apart(x, y)
    found = whole(path_between(x, y, great_circle).at(t))
    assert found.norm().item() == pytest.approx(((1 - t) * x.norm() + t * y.norm()).item(), rel=1e-9)


@settings(deadline=None)
@given(vectors, vectors, fractions)
def test_the_segment_is_the_rescaled_chord(x: Tensor, y: Tensor, t: float) -> None:
    apart(x, y)
    chord = (1 - t) * x + t * y
    assume(chord.norm() > 1e-3)
    radius = (1 - t) * x.norm() + t * y.norm()
    torch.testing.assert_close(whole(path_between(x, y).at(t)), radius * chord / chord.norm(), rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(vectors, vectors, fractions)
def test_the_great_circle_turns_at_a_constant_rate(x: Tensor, y: Tensor, t: float) -> None:
    """Against Gram and Schmidt: cos(tω) u₀ + sin(tω) v, v the part of u₁ that is orthogonal to u₀."""
    apart(x, y)
    u, w = x / x.norm(), y / y.norm()
    v = w - (w @ u) * u
    assume(v.norm() > 1e-3)
    omega = math.atan2(v.norm(), w @ u)
    expected = math.cos(t * omega) * u + math.sin(t * omega) * v / v.norm()
    path = path_between(x, y, great_circle=True)
    found = whole(path.at(t))
    assert path.separation.angle == pytest.approx(omega, rel=1e-9)
    torch.testing.assert_close(found / found.norm(), expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(vectors, vectors, fractions, st.booleans())
def test_a_path_is_the_same_backwards(x: Tensor, y: Tensor, t: float, great_circle: bool) -> None:
    apart(x, y)
    there, back = path_between(x, y, great_circle), path_between(y, x, great_circle)
    torch.testing.assert_close(whole(there.at(t)), whole(back.at(1 - t)), rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(vectors, vectors, st.booleans())
def test_the_ends_are_the_end_points_bit_for_bit(x: Tensor, y: Tensor, great_circle: bool) -> None:
    apart(x, y)
    path = path_between(x, y, great_circle)
    assert torch.equal(whole(path.at(0)), x)
    assert torch.equal(whole(path.at(1)), y)


@pytest.mark.parametrize("great_circle", [True, False])
@pytest.mark.parametrize("distance", [0.0, 1e-16, 1e-9, 1e-5])
def test_points_that_are_nearly_equal(distance: float, great_circle: bool) -> None:
    x, away = torch.tensor([3.0, 4, 0, 0, 0]).double(), torch.tensor([0.0, 0, 1, 0, 0]).double()
    y = (x / 5 * math.cos(distance) + away * math.sin(distance)) * 5
    path = path_between(x, y, great_circle)
    assert path.separation.angle == pytest.approx(distance, rel=1e-6, abs=1e-15)
    expected = (x / 5 * math.cos(distance / 4) + away * math.sin(distance / 4)) * 5
    torch.testing.assert_close(whole(path.at(0.25)), expected, rtol=0, atol=1e-14)


def test_points_that_are_nearly_opposite() -> None:
    x, away = torch.tensor([3.0, 4, 0, 0, 0]).double(), torch.tensor([0.0, 0, 1, 0, 0]).double()
    angle = math.pi - 1e-5
    y = (x / 5 * math.cos(angle) + away * math.sin(angle)) * 5
    for great_circle in (True, False):
        middle = whole(path_between(x, y, great_circle).at(0.5))
        torch.testing.assert_close(middle, 5 * away, rtol=0, atol=1e-4)
    quarter = whole(path_between(x, y, great_circle=True).at(0.25)) / 5
    assert math.acos(quarter @ x / 5) == pytest.approx(math.pi / 4, abs=1e-5)
    with pytest.raises(ValueError, match="opposite"):
        path_between(x, -x)


def test_spheres_of_their_own_and_what_is_on_none() -> None:
    start = {"a": torch.tensor([2.0, 0]), "b": torch.tensor([4.0, 0]), "c": torch.tensor([1.0]), "n": torch.tensor(3)}
    end = {"a": torch.tensor([0.0, 2]), "b": torch.tensor([0.0, 8]), "c": torch.tensor([5.0]), "n": torch.tensor(9)}
    middle = WeightPath(start, end, [["a"], ["b"]]).at(0.5)
    assert [middle[name].norm().item() for name in "ab"] == pytest.approx([2, 6])
    assert middle["c"].item() == 3
    assert WeightPath(start, end, [["a"], ["b"]]).at(0.25)["n"].item() == 3
    assert WeightPath(start, end, [["a"], ["b"]]).at(0.75)["n"].item() == 9
    plain = WeightPath(start, end, [])
    assert plain.at(0.5)["a"].tolist() == [1, 1]
    assert plain.separation.cosine == pytest.approx(5 / math.sqrt((4 + 16 + 1) * (4 + 64 + 25)))


def test_a_path_keeps_the_types() -> None:
    start, end = torch.nn.Linear(3, 3).bfloat16(), torch.nn.Linear(3, 3).bfloat16()
    path = WeightPath(take_weights(start), take_weights(end), [["weight"]], great_circle=True)
    assert {value.dtype for value in path.at(0.3).values()} == {torch.bfloat16}


def test_no_path_between_what_does_not_match() -> None:
    with pytest.raises(ValueError, match="different architectures: b differs"):
        WeightPath(point(torch.ones(5)), {**point(torch.ones(5)), "b": torch.ones(4)}, [["a"]])
    with pytest.raises(ValueError, match="different architectures: c differs"):
        WeightPath(point(torch.ones(5)), {**point(torch.ones(5)), "c": torch.ones(4)}, [["a"]])
    with pytest.raises(ValueError, match="all zero"):
        path_between(torch.zeros(5), torch.ones(5))


def test_positions() -> None:
    assert path_positions(5) == (0, 0.25, 0.5, 0.75, 1)
    assert len(path_positions(21)) == 21
    with pytest.raises(ValueError, match="at least 3"):
        path_positions(2)


# --- the barrier -------------------------------------------------------------------------------------------

curves = st.lists(st.floats(0, 10), min_size=3, max_size=12)


@settings(deadline=None)
@given(curves, st.floats(-5, 5), st.floats(-5, 5))
def test_a_barrier_is_measured_from_the_chord(values: list[float], offset: float, slope: float) -> None:
    positions = path_positions(len(values))
    height = barrier_height(positions, values)
    assert height >= 0
    tilted = [v + offset + slope * t for t, v in zip(positions, values, strict=True)]
    assert barrier_height(positions, tilted) == pytest.approx(height, abs=1e-9)
    assert barrier_height(positions, values[::-1]) == pytest.approx(height, abs=1e-9)
    assert dip_depth(positions, values) == pytest.approx(barrier_height(positions, [-v for v in values]), abs=1e-9)


def test_barriers_of_known_curves() -> None:
    positions = path_positions(21)
    hill = [4 * t * (1 - t) + 2 * t for t in positions]
    assert barrier_height(positions, hill) == pytest.approx(1)
    assert dip_depth(positions, hill) == pytest.approx(0, abs=1e-12)
    convex = [(t - 0.5) ** 2 for t in positions]
    assert barrier_height(positions, convex) == 0
    assert dip_depth(positions, convex) == pytest.approx(0.25)
    assert math.isnan(barrier_height(positions, [1.0] * 20 + [math.nan]))
    assert barrier_height(positions, [1.0, math.inf] + [1.0] * 19) == math.inf


# --- measuring ---------------------------------------------------------------------------------------------


def images(count: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=g, dtype=torch.float64), torch.randint(0, 3, (count,), generator=g)


def in_batches(x: Tensor, y: Tensor, size: int = 8) -> Callable[[], Iterable[Any]]:
    return lambda: zip(x.split(size), y.split(size), strict=True)


def net(seed: int) -> ConvNet:
    torch.manual_seed(seed)
    model = ConvNet(width=4, num_classes=3, in_channels=1, scale_invariant=True, eps=1e-30)
    model.double()
    return model


def spheres_of(model: nn.Module) -> list[list[str]]:
    return [[name for group in find_groups(model, torch.zeros(2, 1, 8, 8)) for name in group.names]]


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_curves_are_those_of_the_points() -> None:
    start, end, model = net(0), net(1), net(2)
    end.head.load_state_dict(start.head.state_dict())
    (x, y), (x2, y2) = images(), images(16, seed=1)
    path = WeightPath(take_weights(start), take_weights(end), spheres_of(model))
    passes = {"train": in_batches(x, y), "test": in_batches(x2, y2)}
    found = interpolate(model, path, passes, path_positions(3))
    assert found.curves.keys() == {"train_loss", "train_error", "test_loss", "test_error"}
    assert found.separation == path.separation
    for i, t in enumerate((0.0, 0.5, 1.0)):
        reference = net(3)
        for p, a, b in zip(reference.parameters(), start.parameters(), end.parameters(), strict=True):
            # without rescaling: the function is the same
            p.data = (1 - t) * a.data + t * b.data
        logits = torch.cat([reference.train()(part) for part in x.split(8)])
        assert found.curves["train_loss"][i] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-9)
        assert found.curves["train_error"][i] == pytest.approx((logits.argmax(1) != y).double().mean().item())
        logits = torch.cat([reference.train()(part) for part in x2.split(8)])
        assert found.curves["test_loss"][i] == pytest.approx(F.cross_entropy(logits, y2).item(), rel=1e-9)


@pytest.mark.parametrize("statistics", ["batch", "reestimated"])
def test_nothing_changes_between_points_that_differ_only_in_length(statistics: Any) -> None:
    start, model = net(0), net(0)
    end = take_weights(start)
    spheres = spheres_of(model)
    end.update({name: 3 * end[name] for name in spheres[0]})
    path = WeightPath(take_weights(start), end, spheres, great_circle=True)
    found = interpolate(model, path, {"train": in_batches(*images())}, path_positions(5), statistics)
    assert found.curves["train_loss"] == pytest.approx([found.curves["train_loss"][0]] * 5, rel=1e-9)
    assert path.separation.norms[1] == pytest.approx(3 * path.separation.norms[0])
    assert path.separation.cosine == pytest.approx(1)


def test_reestimated_statistics_are_means_over_the_batches_of_the_train_set() -> None:
    linear = nn.Linear(4, 3, bias=False)
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False), linear).double()
    torch.manual_seed(0)
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randint(0, 3, (30,))
    passes = {"train": in_batches(x, y, 10), "test": in_batches(2 * x, y, 3)}
    path = WeightPath(take_weights(model), take_weights(model), [["1.weight"]])
    found = interpolate(model, path, passes, path_positions(3), "reestimated")
    mean = torch.stack([part.mean(0) for part in x.split(10)]).mean(0)
    var = torch.stack([part.var(0) for part in x.split(10)]).mean(0)
    for name, data in (("train", x), ("test", 2 * x)):
        logits = ((data - mean) / (var + 1e-5).sqrt()) @ linear.weight.t()
        expected = F.cross_entropy(logits, y).item()
        assert found.curves[f"{name}_loss"] == pytest.approx([expected] * 3)


def test_the_model_is_put_back_and_dropout_is_off() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))
    model.double()[2].eval()
    before, modes = states(model), [module.training for module in model.modules()]
    other = {name: value + 1 for name, value in take_weights(model).items()}
    path = WeightPath(take_weights(model), other, [])
    passes = {"train": in_batches(*images())}
    choices: tuple[Statistics, ...] = ("batch", "reestimated")
    for statistics in choices:
        found, again = (interpolate(model, path, passes, path_positions(3), statistics) for _ in range(2))
        assert found == again, "dropout is noise"
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert model[3].p == 0.5
        assert model[2].momentum == 0.1
        assert all(p.grad is None for p in model.parameters())

    def fails() -> Iterable[Any]:
        raise OSError("no data")

    with pytest.raises(OSError, match="no data"):
        interpolate(model, path, {"train": fails}, path_positions(3))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[3].p == 0.5


# --- weights -----------------------------------------------------------------------------------------------


def test_weights_are_copies() -> None:
    model = net(0)
    taken = take_weights(model)
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert taken["convs.0.weight"].abs().sum() > 0
    put_weights(model, taken)
    assert all(torch.equal(value, taken[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("angle", [1e-12, 1e-7, 0.5, 1.5, 3.0, math.pi - 1e-9])
def test_angles_are_accurate_everywhere(angle: float) -> None:
    x, y = (r * torch.tensor([math.cos(a), math.sin(a)], dtype=torch.float64) for r, a in ((2, 0.0), (7, angle)))
    found = separation({"w": x}, {"w": y}, ["w"])
    assert found.angle == pytest.approx(angle, rel=1e-6)
    assert found.cosine == pytest.approx(math.cos(angle), abs=1e-15)
    assert found.norms == pytest.approx((2, 7))


def test_separation_of_what_is_not_finite_is_not_finite() -> None:
    found = separation({"w": torch.tensor([1.0, math.nan])}, {"w": torch.ones(2)}, ["w"])
    assert math.isnan(found.cosine)


def test_the_first_difference_is_named() -> None:
    one = {"a": torch.ones(2), "b": torch.ones(3)}
    assert difference(one, {"a": torch.zeros(2), "b": torch.zeros(3)}) is None
    assert difference(one, {"a": torch.ones(2)}) == ("b", "(3,)", "nothing")
    assert difference({"a": torch.ones(2)}, one) == ("b", "nothing", "(3,)")


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code was run')",)


def test_a_checkpoint_is_data_only(tmp_path: Any) -> None:
    file = tmp_path / "a.ckpt"
    torch.save({"state_dict": {}, "global_step": 3}, file)
    assert read_checkpoint(file)["global_step"] == 3
    for content, words in ((Evil(), "pickled code"), ([1], "no checkpoint of Lightning"), (None, "no such file")):
        file.unlink()
        if content is not None:
            torch.save(content, file)
        with pytest.raises(ValueError, match=words) as refused:
            read_checkpoint(file)
        assert str(file) in str(refused.value)


def test_extra_state_is_no_weight() -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    model = Counting(2, 2)
    assert take_weights(model).keys() == {"weight", "bias"}
    assert difference(model.state_dict(), take_weights(model)) is None
