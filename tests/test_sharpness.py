"""Sharpness and curvature against closed forms, dense matrices and slow references."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lit_sphere.analysis import (
    Objective,
    fisher_trace,
    hutchinson_trace,
    measure_curvature,
    sphere_hessian,
    top_eigenvalue,
    train_pass,
)
from lit_sphere.analysis.sharpness import flatten
from lit_sphere.effective import StepMean
from lit_sphere.report import draw_sharpness

Batches = list[tuple[Tensor, Tensor]]
BATCHES_OF = (6, 6, 3)


def network(scale: float = 1.0) -> nn.Sequential:
    """A convolution and a linear map in front of batch norms, then a frozen head; 40 scale-invariant scalars."""
    torch.manual_seed(0)
    eps = 1e-30
    layers = [
        nn.Conv2d(1, 2, 2, bias=False), nn.BatchNorm2d(2, eps, affine=False), nn.Tanh(), nn.Flatten(),
        nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4, eps, affine=False), nn.Tanh(), nn.Linear(4, 3),
    ]  # fmt: skip
    net = nn.Sequential(*layers).double()
    net[-1].requires_grad_(False)
    for p in trained(net):
        p.data *= scale
    return net


def trained(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]


def batches() -> Batches:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(sum(BATCHES_OF), 1, 3, 3, generator=g, dtype=torch.float64)
    y = torch.randint(3, (len(x),), generator=g)
    return list(zip(x.split(BATCHES_OF), y.split(BATCHES_OF), strict=True))


def objective(net: nn.Module, data: Batches | None = None, **options: Any) -> Objective:
    data = batches() if data is None else data
    return Objective(net, lambda: data, trained(net), **options)


def quadratic(A: Tensor, theta: Tensor, normalised: bool = True) -> Objective:
    """xᵀAx/xᵀx, or xᵀAx, as a loss that does not look at data; in batches of two sizes."""

    def criterion(logits: Tensor, labels: Tensor) -> Tensor:
        return theta @ A @ theta / (theta @ theta if normalised else 1)

    data = [(torch.zeros(n, 1), torch.zeros(n)) for n in (1, 3)]
    return Objective(lambda x: x, lambda: data, [theta], criterion)


def dense(product: Callable[[Tensor], Tensor], size: int) -> Tensor:
    return torch.stack([product(row) for row in torch.eye(size, dtype=torch.float64)])


@pytest.mark.parametrize("weighting", ["sample", "batch"])
def test_the_pass_equals_a_slow_loop(weighting: Any) -> None:
    net, data = network(), batches()
    rho = math.sqrt(sum(float(p.detach().square().sum()) for p in trained(net)))
    norms, losses, wrong = [], [], 0
    for x, y in data:
        net.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in trained(net) if p.grad is not None)))
        losses.append(loss.item() * len(y))
        wrong += int((net(x).argmax(1) != y).sum())
    weights = [len(y) if weighting == "sample" else 1 for _, y in data]
    sharpness = rho * sum(w * norm for w, norm in zip(weights, norms, strict=True)) / sum(weights)
    measured = train_pass(objective(net, data), weighting)
    assert measured.loss == pytest.approx(sum(losses) / 15)
    assert measured.error == wrong / 15
    assert measured.sharpness == pytest.approx(sharpness, rel=1e-12)


def test_weightings_differ_where_the_last_batch_is_short() -> None:
    net = network()
    assert train_pass(objective(net), "sample").sharpness != train_pass(objective(net), "batch").sharpness
    whole = batches()[:2]
    one, two = (train_pass(objective(net, whole), kind).sharpness for kind in ("sample", "batch"))
    assert one == pytest.approx(two, rel=1e-14)


@settings(max_examples=3, deadline=None)
@given(st.floats(1e-2, 1e2))
def test_all_measures_are_the_same_at_any_length_of_the_weights(scale: float) -> None:
    for measure in (train_pass, lambda each: measure_curvature(each, vectors=2)):
        one, other = measure(objective(network())), measure(objective(network(scale)))
        assert list(other) == pytest.approx(list(one), rel=1e-6)


def test_the_pass_leaves_no_gradient() -> None:
    net = network()
    train_pass(objective(net))
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("measure", [train_pass, fisher_trace])
def test_no_batch_is_an_error(measure: Callable[[Objective], Any]) -> None:
    with pytest.raises(ValueError, match="no mini-batch"):
        measure(objective(network(), []))


class Ranks:
    """Threads that add up what each of them has."""

    def __init__(self, count: int) -> None:
        self.count, self.barrier = count, Barrier(count, timeout=20)
        self.slots: list[Tensor] = [torch.empty(0)] * count

    def run(self, measure: Callable[[int, Callable[[Tensor], Tensor]], Any]) -> list[Any]:
        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(lambda rank: measure(rank, self._add_up(rank)), range(self.count)))

    def _add_up(self, rank: int) -> Callable[[Tensor], Tensor]:
        def add_up(mine: Tensor) -> Tensor:
            self.slots[rank] = mine
            self.barrier.wait()
            total = torch.stack(self.slots).sum(0)
            self.barrier.wait()
            return total

        return add_up


def linear_batches(sizes: Sequence[int]) -> Batches:
    g = torch.Generator().manual_seed(2)
    sets = [(torch.randn(n, 8, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g)) for n in sizes]
    return sets


def layer_norm_network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4, bias=False), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 3))
    net[-1].requires_grad_(False)
    return net.double()


@pytest.mark.parametrize("sizes", [(6, 4), (6, 5), (6, 1)])  # in the last, a rank has one batch less
def test_shares_of_a_batch_make_the_whole(sizes: tuple[int, ...]) -> None:
    data = linear_batches(sizes)

    net = layer_norm_network()

    def share(rank: int, add_up: Callable[[Tensor], Tensor]) -> list[float]:
        mine = [(x[rank::2], y[rank::2]) for x, y in data if len(y[rank::2])]
        each = objective(net, mine, add_up=add_up)
        # Signs are drawn for all samples of a batch, so that each must be shared equally to repeat them.
        fisher = fisher_trace(each, 2, rank=rank, world_size=2) if sum(sizes) % 2 == 0 else ()
        return [*train_pass(each), *fisher]

    one, two = Ranks(2).run(share)
    assert one == two
    whole = objective(net, data)
    expected = [*train_pass(whole), *(fisher_trace(whole, 2) if len(one) > 3 else ())]
    assert one == pytest.approx(expected, rel=1e-9)


def exact_fisher_trace(net: nn.Module, data: Batches) -> float:
    total = 0.0
    for x, _ in data:
        logs = net(x).log_softmax(1)
        for log in logs.flatten():
            grads = torch.autograd.grad(log, trained(net), retain_graph=True)
            total += log.exp().item() * sum(float(g.square().sum()) for g in grads)
    rho2 = sum(float(p.detach().square().sum()) for p in trained(net))
    return rho2 * total / sum(len(y) for _, y in data)


@pytest.mark.parametrize("gain", [1.0, 20.0])  # the second: predictions so sure that hardly any draw differs
def test_fisher_trace_against_all_labels_of_all_samples(gain: float) -> None:
    net = network()
    for p in net[-1].parameters():
        p.data *= gain
    exact = exact_fisher_trace(net, batches())
    value, error = fisher_trace(objective(net), vectors=100)
    assert abs(value - exact) < 4 * error
    assert error < 0.15 * exact
    again = fisher_trace(objective(net), vectors=100)
    assert again == (value, error)
    assert fisher_trace(objective(net), vectors=100, seed=1).value != value


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("size", [2, 4, 30])
@pytest.mark.parametrize("k", [0, 1, -1])
def test_rayleigh_quotient(size: int, k: int, normalised: bool) -> None:
    """At eigenvector k the Hessian on the sphere has the eigenvalues 2(λ_i − λ_k), all below zero at the greatest."""
    g = torch.Generator().manual_seed(3)
    M = torch.randn(size, size, generator=g, dtype=torch.float64)
    eigenvalues, vectors = torch.linalg.eigh(M + M.T)
    radius = 2.5
    theta = (radius * vectors[:, k]).requires_grad_()
    product = sphere_hessian(quadratic(M + M.T, theta, normalised))
    # × ρ²; of xᵀAx/xᵀx the second derivatives have 1/ρ² already
    known = 2 * (eigenvalues - eigenvalues[k]) * (1 if normalised else radius**2)
    found = torch.linalg.eigvalsh(dense(product, size))
    tangent = torch.cat([known[: k % size], known[k % size + 1 :], known.new_zeros(1)])  # 0 along θ
    torch.testing.assert_close(found, tangent.sort().values, rtol=1e-9, atol=1e-9)
    top = float(tangent[:-1].max())
    assert top_eigenvalue(product, theta, tolerance=1e-10) == pytest.approx(top, rel=1e-8)
    assert (top < 0) == (k == -1 or (size == 2 and k == 1))
    value, error = hutchinson_trace(product, theta, vectors=50)
    assert abs(value - float(known.sum())) < 4 * error + 1e-9


def dense_sphere_hessian(net: nn.Module, data: Batches) -> Tensor:
    """By autograd's own dense Hessian, projected by a dense matrix."""
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    theta = flatten(trained(net))

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in trained(net)])
        values = {n: part.view_as(p) for n, p, part in zip(names, trained(net), parts, strict=True)}
        sums = [F.cross_entropy(torch.func.functional_call(net, values, x), y, reduction="sum") for x, y in data]
        return torch.stack(sums).sum() / sum(len(y) for _, y in data)

    H: Tensor = torch.autograd.functional.hessian(loss, theta)
    P = torch.eye(len(theta), dtype=theta.dtype) - torch.outer(theta, theta) / (theta @ theta)
    return (theta @ theta) * P @ H @ P


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_curvature_of_a_network_against_its_dense_hessian(scale: float) -> None:
    net = network(scale)
    expected, product = dense_sphere_hessian(net, batches()), sphere_hessian(objective(net))
    theta = flatten(trained(net))
    assert len(theta) == 40
    torch.testing.assert_close(dense(product, 40), expected, rtol=1e-8, atol=1e-8)
    assert top_eigenvalue(product, theta, tolerance=1e-10) == pytest.approx(
        float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-8
    )
    value, error = hutchinson_trace(product, theta, vectors=200)
    assert abs(value - float(expected.trace())) < 4 * error


def test_the_product_along_one_scale_invariant_tensor_is_its_gradient() -> None:
    """∇L is homogeneous of degree −1 in each tensor: H θ_1 = −∇_1, and H θ = −∇."""
    net, data = network(2.0), batches()
    loss = torch.stack([F.cross_entropy(net(x), y, reduction="sum") for x, y in data]).sum() / 15
    grads = torch.autograd.grad(loss, trained(net))
    theta, gradient = flatten(trained(net)), flatten(grads)
    first = torch.arange(len(theta)) < trained(net)[0].numel()
    share = float(theta[first].square().sum() / theta.square().sum())
    expected = -theta.square().sum() * (gradient * first - share * gradient)
    assert expected.norm() > 0.1
    torch.testing.assert_close(sphere_hessian(objective(net))(theta * first), expected)


def test_single_precision_comes_close() -> None:
    exact, net = network(), network().float()
    data = [(x.float(), y) for x, y in batches()]
    one, other = measure_curvature(objective(exact)), measure_curvature(objective(net, data))
    assert list(other) == pytest.approx(list(one), rel=2e-3)


def test_what_is_not_finite_gives_nan() -> None:
    theta = torch.ones(30, dtype=torch.float64, requires_grad=True)
    for size in (3, 30):
        assert math.isnan(top_eigenvalue(lambda v: v * math.nan, theta[:size]))


def test_a_trace_needs_two_vectors() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        hutchinson_trace(lambda v: v, torch.ones(3), vectors=1)
    with pytest.raises(ValueError, match="at least 2"):
        fisher_trace(objective(network()), vectors=1)


def test_the_fisher_information_needs_logits() -> None:
    net = network()
    with pytest.raises(ValueError, match="that of logits"):
        fisher_trace(objective(net, loss=lambda batch: (net(batch[0]).square().mean(), len(batch[0]))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj, self.norm, self.head = nn.Linear(16, 16, bias=False), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        q = self.proj(x).unsqueeze(1)
        logits: Tensor = self.head(self.norm(F.scaled_dot_product_attention(q, q, q)[:, 0].mean(1)))
        return logits


def test_fast_attention_has_curvature_too() -> None:
    net = Attention()
    x, y = torch.randn(5, 4, 16), torch.arange(5) % 3
    params = list(net.parameters())
    first = torch.autograd.grad(F.cross_entropy(net(x), y), params, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):  # without this, the test would prove nothing
        torch.autograd.grad(first, params, [torch.ones_like(p) for p in params])
    assert math.isfinite(measure_curvature(objective(net, [(x, y)]), 2).top_eigenvalue)


def norms(observed: Tensor) -> Tensor:
    each: Tensor = torch.linalg.vector_norm(observed, dim=-1)
    return each


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 700), st.data())
def test_means_survive_an_interruption_to_the_last_bit(steps: int, data: st.DataObject) -> None:
    observed = torch.rand(steps, 6, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
    saved_at = data.draw(st.integers(0, steps))
    whole, first, second = (StepMean(norms) for _ in range(3))
    for step, each in enumerate(observed):
        whole.keep(each)
        if step < saved_at:
            first.keep(each)
    second.load_state(first.state())
    assert second.steps == saved_at
    for each in observed[saved_at:]:
        second.keep(each)
    mean = whole.mean()
    assert mean is not None
    resumed = second.mean()
    assert resumed is not None
    assert torch.equal(mean, resumed)
    torch.testing.assert_close(mean, norms(observed).mean())
    assert whole.mean() is None


def test_the_last_value_is_there_at_every_step_and_means_of_others_are_passed_over() -> None:
    means = StepMean(lambda observed: 2 * observed, shape=(2,))
    for step in range(600):  # a chunk is added up at steps 257 and 513
        means.keep(torch.tensor([step, 1.0], dtype=torch.float64))
        if step % 100 == 55 or step in (255, 256, 511, 512):
            assert means.last().tolist() == [2 * step, 2]
    other, same = StepMean(shape=(3,)), StepMean(shape=(2,))
    other.load_state(means.state())
    same.load_state(means.state())
    assert other.steps == 0
    assert other.mean() is None
    for one in (same, means):
        assert (mean := one.mean()) is not None
        assert mean.tolist() == [599, 2]


def test_the_picture_takes_all_signs_and_gaps() -> None:
    rows = [
        {"epoch": 0.0, "sharpness/online": 3.0, "loss": 2.0},
        {"epoch": 1.0, "sharpness/online": math.nan, "sharpness/hessian_trace": -5.0, "sharpness/fisher_trace": 0.1},
    ]
    assert [len(draw_sharpness(rows[:n]).axes) for n in (1, 2)] == [3, 4]  # one of them the colour bar
    assert draw_sharpness(rows).axes[-1].get_yscale() == "symlog"
    assert len(draw_sharpness([{"epoch": 0.0, "sharpness/online": 3.0}]).axes) == 1
    with pytest.raises(ValueError, match="no sharpness"):
        draw_sharpness([])


def test_means_pass_over_a_state_of_another_form() -> None:
    mean = StepMean()
    mean.keep(torch.tensor(1.0))
    mean.load_state({"observed": torch.ones(3), "sum": None, "steps": 3})
    assert mean.steps == 0
    assert mean.mean() is None
