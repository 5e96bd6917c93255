"""The edge of stability: whose steps have one, its value, and what gradient descent does on its two sides."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_fits import Memory, fit, quietly, trainer_for
from foreign_modules import BATCHES, ForeignLayerNorm, cases
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from matplotlib.lines import Line2D
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from lit_sphere.analysis.curvature import sphere_hessian, top_eigenvalue
from lit_sphere.analysis.edge_of_stability import Rate, descent_rate, edge_of_stability
from lit_sphere.analysis.sharpness import Objective, flatten
from lit_sphere.callbacks import FineTuneSwitch, SharpnessMonitor
from lit_sphere.groups import find_groups
from lit_sphere.optim import SphereSGD
from lit_sphere.report import draw_sharpness
from lit_sphere.switching import Switch

pytestmark = quietly

KEY = "sharpness/edge_of_stability"


class Nesterov(SGD):
    """A step that nobody knows."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def tensors() -> list[nn.Parameter]:
    """Of norms 3, 4 and 12: two that are looked at, and another."""
    return [nn.Parameter(torch.full((3, 3), norm / 3, dtype=torch.float64)) for norm in (3, 4, 12)]


def left(optimizer: SphereSGD) -> SphereSGD:
    optimizer.leave_sphere(lr=0.2)
    return optimizer


def split(**of_second: Any) -> Callable[[nn.Parameter, nn.Parameter], list[dict[str, Any]]]:
    """One parameter group for each, with options of the second's own."""
    return lambda a, b: [{"params": [a]}, {"params": [b], **of_second}]


Make = Callable[[nn.Parameter, nn.Parameter, nn.Parameter], Optimizer]


@pytest.mark.parametrize(
    ("make", "rate"),
    [
        (lambda a, b, c: SGD([a, b], lr=0.3), (0.3, 0.0, None)),
        (lambda a, b, c: SGD([a, b, c], lr=0.3, weight_decay=0.1), (0.3, 0.1, None)),
        (lambda a, b, c: SGD([*split()(a, b), *split(lr=9.0)(b, c)[1:]], lr=0.3), (0.3, 0.0, None)),
        (lambda a, b, c: SphereSGD([a, b], elr=0.01), (0.25, 0.0, 5.0)),
        (lambda a, b, c: SphereSGD([{"params": [a, b]}, {"params": [c]}], elr=0.01), (0.25, 0.0, 5.0)),
        (lambda a, b, c: SphereSGD([a, b], elr=None, lr=0.3, weight_decay=0.1), (0.3, 0.1, None)),
        (lambda a, b, c: left(SphereSGD([a, b, c], elr=0.01)), (0.2, 0.0, None)),
    ],
)
def test_the_rate_of_gradient_descent(make: Make, rate: Rate) -> None:
    a, b, c = tensors()
    found = descent_rate(make(a, b, c), {a, b})
    assert found is not None
    assert found[:2] == pytest.approx(rate[:2], rel=1e-12)
    assert found[2] == rate[2]
    lr, decay, _ = rate
    assert edge_of_stability(found, [a, b]) == pytest.approx(2 * 25 * (1 - lr * decay) / lr, rel=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b, c: SGD([a, b], lr=0.3, momentum=0.9),
        lambda a, b, c: SGD([a, b], lr=0.3, maximize=True),
        lambda a, b, c: SGD(split(lr=0.4)(a, b), lr=0.3),
        lambda a, b, c: SGD(split(weight_decay=0.4)(a, b), lr=0.3),
        lambda a, b, c: SGD([a, b], lr=0.0),
        lambda a, b, c: SGD([a, b], lr=2.0, weight_decay=0.5),
        lambda a, b, c: Nesterov([a, b], lr=0.3),
        lambda a, b, c: Adam([a, b], lr=0.3),
        lambda a, b, c: SphereSGD([a, b], elr=0.01, granularity="filter"),
        lambda a, b, c: SphereSGD(split()(a, b), elr=0.01),
        lambda a, b, c: SphereSGD(split(elr=None, lr=0.09)(a, b), elr=0.01),
        lambda a, b, c: SphereSGD([a, b, c], elr=0.01),
    ],
)
def test_other_steps_have_none(make: Make) -> None:
    a, b, c = tensors()
    assert descent_rate(make(a, b, c), {a, b}) is None


def test_clipped_steps_have_none() -> None:
    a, b, _ = tensors()
    for optimizer in (SGD([a, b], lr=0.3), SphereSGD([a, b], elr=0.01)):
        assert descent_rate(optimizer, {a, b}) is not None
        assert descent_rate(optimizer, {a, b}, altered=True) is None


def test_weights_that_are_not_finite_have_nan() -> None:
    assert math.isnan(edge_of_stability((0.1, 0.0, None), [torch.tensor([1.0, math.nan])]))


@pytest.mark.parametrize("kind", ["sphere", "sgd"])
@pytest.mark.parametrize(("below", "stays"), [(0.98, True), (1.02, False)])
def test_gradient_descent_leaves_what_lies_above_and_nothing_below(kind: str, below: float, stays: bool) -> None:
    """Beside the minimum of a Rayleigh quotient, whose largest curvature is 2(λ_max − λ_min)."""
    A = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    theta = nn.Parameter(torch.tensor([3.0, 0.0, 1e-6], dtype=torch.float64))

    def loss(*_: Any) -> torch.Tensor:
        return theta @ A @ theta / (theta @ theta)

    elr = below * 2 / 8
    optimizer = SphereSGD([theta], elr=elr) if kind == "sphere" else SGD([theta], lr=9 * elr)
    rate = descent_rate(optimizer, {theta})
    assert rate is not None
    batches = [(torch.zeros(1, 1), torch.zeros(1))]
    curvature = top_eigenvalue(sphere_hessian(Objective(lambda x: x, lambda: batches, [theta], loss)), flatten([theta]))
    assert (curvature < edge_of_stability(rate, [theta])) is stays
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    aside = float((theta[1:].norm() / theta.norm()).detach()) / (1e-6 / 3)
    assert aside < 0.4 if stays else aside > 2.5


def monitor(**options: Any) -> SharpnessMonitor:
    return SharpnessMonitor(**{"curvature_every": 1, "curvature_batches": 1, "curvature_vectors": 2, **options})


def curve(memory: Memory, key: str = KEY) -> list[float]:
    return [value for (_, name), value in sorted(memory.logged.items()) if name == key]


def test_on_the_sphere_it_is_two_by_the_elr(tmp_path: Path) -> None:
    memory = Memory()
    trainer = trainer_for("ours", [monitor()], tmp_path, logger=memory)
    trainer.fit(module := cases()["ours"].make(), cases()["ours"].data())
    elr = module.optimizers().param_groups[0]["elr"]  # type: ignore[union-attr]
    assert curve(memory) == pytest.approx([2 / elr] * 3, rel=1e-12)
    assert float(trainer.callback_metrics[KEY]) == pytest.approx(2 / elr, rel=1e-6)
    assert len(curve(memory, "sharpness/top_eigenvalue")) == 3


class Decaying(ForeignLayerNorm):
    """Without momentum, with weight decay."""

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.05, weight_decay=0.1)


def test_of_sgd_it_is_that_of_all_parameters_together(tmp_path: Path) -> None:
    module, data, memory = Decaying(), cases()["layer_norm"].data(), Memory()
    at_end = monitor(curvature_every=None, curvature_at_end=True)
    trainer_for("layer_norm", [at_end], tmp_path, logger=memory).fit(module, data)
    groups = find_groups(module, next(iter(data.train_dataloader()))[0])
    squares = sum(float(p.detach().double().square().sum()) for group in groups for p in group.parameters)
    assert curve(memory) == [pytest.approx(2 * squares * (1 - 0.05 * 0.1) / 0.05, rel=1e-6)]


@pytest.mark.parametrize("case", ["resnet", "layer_norm", "lion"])  # AdamW, momentum, and something else
def test_other_optimizers_have_no_such_key(case: str, tmp_path: Path) -> None:
    memory = Memory()
    fit(case, [monitor(curvature_every=3)], tmp_path, memory)
    assert len(curve(memory, "sharpness/top_eigenvalue")) == 1
    assert curve(memory) == []


class Scheduled(ForeignLayerNorm):
    """The learning rate falls after each epoch."""

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)]


def test_it_is_that_of_the_last_step_not_of_the_next(tmp_path: Path) -> None:
    module, data, memory = Scheduled(), cases()["layer_norm"].data(), Memory()
    trainer_for("layer_norm", [monitor()], tmp_path, logger=memory).fit(module, data)
    groups = find_groups(module, next(iter(data.train_dataloader()))[0])
    squares = sum(float(p.detach().double().square().sum()) for group in groups for p in group.parameters)
    assert curve(memory) == pytest.approx([2 * squares / lr for lr in (1e-3, 1e-4, 1e-5)], rel=1e-2)


def test_lightnings_clipping_makes_it_another_step(tmp_path: Path) -> None:
    memory = Memory()
    trainer = trainer_for("layer_norm", [monitor()], tmp_path, logger=memory, gradient_clip_val=1.0, max_epochs=1)
    trainer.fit(Scheduled(), cases()["layer_norm"].data())
    assert len(curve(memory, "sharpness/top_eigenvalue")) == 1
    assert curve(memory) == []


@pytest.mark.parametrize("first", ["switch", "monitor"])
def test_it_follows_a_switch(first: str, tmp_path: Path) -> None:
    memory = Memory()
    switch = FineTuneSwitch([Switch(epoch=1, elr=0.05), Switch(epoch=2, sphere=False)], snapshot=False)
    callbacks: list[Callback] = [switch, monitor()] if first == "switch" else [monitor(), switch]
    trainer = trainer_for("ours", callbacks, tmp_path, logger=memory)
    trainer.fit(module := cases()["ours"].make(), cases()["ours"].data())
    group = module.optimizers().param_groups[0]  # type: ignore[union-attr]
    before = 2 / cases()["ours"].make().hparams["elr"]
    squares = sum(float(p.detach().double().square().sum()) for p in group["params"])
    assert curve(memory) == pytest.approx([before, 40, 2 * squares / group["lr"]], rel=1e-6)
    assert curve(memory)[2] != pytest.approx(40, rel=1e-3)


class SaveLastBatch(Checkpoint):
    """Of the second epoch, which Lightning does not end again."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2 * BATCHES:
            trainer.save_checkpoint(self.file)


def test_a_resumed_run_has_the_same(tmp_path: Path) -> None:
    whole, resumed, file = Memory(), Memory(), tmp_path / "last.ckpt"
    switch = [Switch(epoch=2, elr=0.05)]
    fit("ours", [monitor(), FineTuneSwitch(switch, snapshot=False), SaveLastBatch(file)], tmp_path, whole)
    fit("ours", [monitor(), FineTuneSwitch(switch, snapshot=False)], tmp_path, resumed, ckpt_path=file)
    assert len(set(curve(whole))) == 2
    assert len(curve(whole)) == 3
    assert curve(resumed) == curve(whole)[1:]


def dashed(rows: list[dict[str, float]]) -> list[Line2D]:
    return [line for line in draw_sharpness(rows).axes[-1].lines if line.get_linestyle() == "--"]


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_picture_has_the_dashed_line_in_the_eigenvalues_colour(epochs: int) -> None:
    kinds = {"sharpness/hessian_trace": 90.0, "sharpness/fisher_trace": 80.0, "sharpness/top_eigenvalue": 7.0}
    rows = [{"epoch": float(epoch), **kinds} for epoch in range(epochs)]
    assert dashed(rows) == []
    (line,) = dashed([{**row, KEY: 200.0} for row in rows])
    assert set(line.get_ydata()) == {200.0}  # type: ignore[arg-type]
    assert "Edge of stability 2/η̃, last 200" in str(line.get_label())
    assert line.axes is not None
    assert line in line.axes.get_lines()
    (eigenvalue,) = (each for each in line.axes.lines if "eigenvalue" in str(each.get_label()))
    assert line.get_color() == eigenvalue.get_color()
    legend = line.axes.get_legend()
    assert legend is not None
    assert [text.get_text().split("\n")[0] for text in legend.get_texts()][-1] == "Edge of stability 2/η̃, last 200:"
    low, high = line.axes.get_ylim()
    assert low < 7 < 200 < high


def test_the_pictures_ticks_are_whole_epochs_and_plain_numbers() -> None:
    rows = [{"epoch": float(epoch), "sharpness/online": 45.0 - 10 * epoch, "loss": 3.0} for epoch in range(3)]
    figure = draw_sharpness(rows)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert {"20", "30", "40"} <= {label.get_text() for label in axes.get_yticklabels(which="minor")}
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
