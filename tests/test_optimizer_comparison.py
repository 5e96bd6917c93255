"""OptimizerComparison against rivals trained by hand; its arguments and errors."""

import copy
import csv
import math
import re
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
from callback_fits import Memory, assert_equal, fit, fitted, quietly, trainer_for
from foreign_modules import BATCH, BATCHES, ForeignData, ForeignLayerNorm, ForeignManual, ForeignResNet, cases
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import LBFGS, SGD, Adam, Optimizer, SparseAdam
from torch.utils.data import DataLoader, default_collate

from lit_sphere.analysis import Directions
from lit_sphere.callbacks import FineTuneSwitch, FixedNorm, OptimizerComparison
from lit_sphere.groups import Group, find_groups
from lit_sphere.optim import AdaGradG, SphereSGD, adagrad_g_like_sgd
from lit_sphere.report import draw_optimizer_comparison
from lit_sphere.switching import Switch

pytestmark = quietly


def series(memory: Memory, key: str) -> list[float]:
    return [value for (_, name), value in sorted(memory.logged.items()) if name == f"optimizer_comparison/{key}"]


class Sgd(ForeignResNet):
    """Batch norm with affine parameters, biases and a head; plain SGD with weight decay."""

    options: ClassVar[dict[str, Any]] = {"lr": 0.05, "weight_decay": 1e-2}

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), **self.options)


class PlainLayerNorm(ForeignLayerNorm):
    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


class WithDropout(PlainLayerNorm):
    def make_model(self) -> nn.Module:
        return nn.Sequential(*super().make_model(), nn.Dropout(0.3))  # type: ignore[misc]


def own_of(module: LightningModule) -> dict[str, Any]:
    """The (first) optimizer of a module as its rival."""
    found: Any = module.configure_optimizers()
    optimizer: Any = found[0] if isinstance(found, list) else found
    names = {"lr", "momentum", "weight_decay"} & optimizer.defaults.keys()
    kind: Any = type(optimizer)
    return {"own": partial(kind, **{name: optimizer.defaults[name] for name in names})}


# --- the run's own optimizer as its rival ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "granularity"),
    [("resnet", "filter"), ("resnet", "tensor"), ("manual", "filter"), ("manual", "tensor"), ("lion", "tensor")],
)
def test_the_runs_own_optimizer_stays_with_the_run(case: str, granularity: Any, tmp_path: Path) -> None:
    memory = Memory()
    comparison = OptimizerComparison(own_of(cases()[case].make()), every_n_steps=1, granularity=granularity)
    fit(case, [comparison], tmp_path, memory)
    assert series(memory, "own_distance_max") == [0.0] * 3 * BATCHES
    assert min(series(memory, "start_distance_max")) > 1e-7
    if case != "manual":  # its training step returns no loss
        assert series(memory, "own_loss") == series(memory, "run_loss")


def test_a_sphere_stays_with_the_same_sphere(tmp_path: Path) -> None:
    memory = Memory()
    fit("ours", [OptimizerComparison({"own": partial(SphereSGD, elr=2e-2)}, every_n_steps=1)], tmp_path, memory)
    assert series(memory, "own_distance_max") == [0.0] * 3 * BATCHES
    assert series(memory, "own_loss") == series(memory, "run_loss")


def test_accumulated_batches_and_clipping_are_followed(tmp_path: Path) -> None:
    memory, module = Memory(), PlainLayerNorm()
    comparison = OptimizerComparison(own_of(module), every_n_steps=1, granularity="tensor")
    options: Any = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "limit_train_batches": 3}
    trainer_for("layer_norm", [comparison], tmp_path, logger=memory, **options).fit(module, ForeignData())
    assert series(memory, "own_distance_max") == [0.0] * 3 * 2, "the last batch of three steps alone"
    assert series(memory, "own_loss") == pytest.approx(series(memory, "run_loss"), rel=1e-6)


def test_dropout_masks_are_the_runs(tmp_path: Path) -> None:
    memory, module = Memory(), WithDropout()
    comparison = OptimizerComparison(own_of(module), every_n_steps=1, granularity="tensor")
    trainer_for("layer_norm", [comparison], tmp_path, logger=memory).fit(module, ForeignData())
    assert series(memory, "own_distance_max") == [0.0] * 3 * BATCHES
    assert series(memory, "own_loss") == series(memory, "run_loss")


def test_bf16_is_followed(tmp_path: Path) -> None:
    memory = Memory()
    module = PlainLayerNorm()
    comparison = OptimizerComparison(own_of(module), granularity="tensor")
    trainer = trainer_for("layer_norm", [comparison], tmp_path, logger=memory, precision="bf16-mixed")
    trainer.fit(module, ForeignData())
    assert series(memory, "own_distance_max") == [0.0, 0.0]


# --- against a slow reference ------------------------------------------------------------------------------


def trained_by_hand(module: LightningModule, make: Any, steps: int) -> LightningModule:
    """A float64 copy, its convolutions by an optimizer of their own, the rest by that of :class:`Sgd`."""
    module = copy.deepcopy(module).double().train()
    rest = SGD([p for p in module.parameters() if p.ndim != 4], **Sgd.options)
    both = [make([p for p in module.parameters() if p.ndim == 4]), rest]
    batches = list(ForeignData().train_dataloader())
    for step in range(steps):
        x, y = batches[step % BATCHES]
        module.zero_grad()
        F.cross_entropy(module(x.double()), y).backward()
        for optimizer in both:
            optimizer.step()
    return module


def cosines(one: LightningModule, other: LightningModule) -> Tensor:
    pairs = [pair for pair in zip(one.parameters(), other.parameters(), strict=True) if pair[0].ndim == 4]
    return torch.cat([F.cosine_similarity(p.double().flatten(1), q.double().flatten(1)) for p, q in pairs]).detach()


def test_rivals_are_what_training_by_hand_gives(tmp_path: Path) -> None:
    memory, module = Memory(), Sgd()
    begin = copy.deepcopy(module)
    makes: dict[str, Any] = {"Adam": partial(Adam, lr=3e-3), "AdaGradG": partial(AdaGradG, lr=0.5)}
    comparison = OptimizerComparison(makes, every_n_steps=3, steps=7)
    trainer = trainer_for("resnet", [comparison], tmp_path, logger=memory, precision="64-true")
    trainer.fit(module, ForeignData())
    assert [step for step, key in sorted(memory.logged) if key.endswith("Adam_cosine_min")] == [2, 5, 6]
    run = trained_by_hand(begin, partial(SGD, **Sgd.options), 7)
    for name, make in makes.items():
        expected = cosines(run, trained_by_hand(begin, make, 7))
        assert expected.min() < 0.9999
        assert series(memory, f"{name}_cosine_min")[-1] == pytest.approx(expected.min().item(), abs=1e-11)
        assert series(memory, f"{name}_cosine_median")[-1] == pytest.approx(expected.quantile(0.5).item(), abs=1e-11)
    assert series(memory, "start_cosine_min")[-1] == pytest.approx(cosines(run, begin).min().item(), abs=1e-11)


def test_adagrad_g_takes_the_steps_of_sgd_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    """In float64: to second order in the learning rate, so closer by far than the run turns."""

    class Slow(Sgd):
        options: ClassVar[dict[str, Any]] = {"lr": 2e-3, "weight_decay": 0.5}

    memory, module = Memory(), Slow()
    like: dict[str, Any] = {**adagrad_g_like_sgd(Slow.options["lr"], Slow.options["weight_decay"])}
    makes = {"G": partial(AdaGradG, **like), "constant": partial(AdaGradG, **{**like, "beta": 1.0})}
    trainer = trainer_for("resnet", [OptimizerComparison(makes)], tmp_path, logger=memory, precision="64-true")
    trainer.fit(module, ForeignData())
    turned, close, wrong = (series(memory, f"{name}_distance_max")[-1] for name in ("start", "G", "constant"))
    assert turned > 1e-4
    assert close < 1e-9 * turned
    assert wrong > 1e6 * close


def test_distances_keep_their_digits() -> None:
    weight = nn.Parameter(torch.randn(5, 3, 3, 3, dtype=torch.float64))
    filters = [Group(f"[{i}]", (weight,), slice(i, i + 1)) for i in range(5)]
    one = weight.detach()
    other = one.clone()
    across = torch.randn_like(one)
    across -= one * ((across * one).sum((1, 2, 3), keepdim=True) / one.square().sum((1, 2, 3), keepdim=True))
    angles = torch.tensor([0.0, 1e-10, 1e-6, 1e-2, 1.0], dtype=torch.float64)
    length = one.flatten(1).norm(dim=1) / across.flatten(1).norm(dim=1)
    other = 3 * (one + across * (angles.tan() * length).view(-1, 1, 1, 1))
    expected = 2 * (angles / 2).sin().square()
    torch.testing.assert_close(Directions(filters).distances([one], [other]), expected, rtol=1e-5, atol=1e-31)


def test_a_joint_group_is_one_direction() -> None:
    p, q, r = (nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (4,), (2, 2)))
    groups = [Group("a", (p, q)), Group("b", (r,))]
    others = [torch.randn_like(each) for each in (p, q, r)]
    flat = [torch.cat([a.reshape(-1), b.reshape(-1)]).double() for a, b in ((p, q), others[:2])]
    expected = [
        1 - F.cosine_similarity(flat[0], flat[1], dim=0),
        1 - F.cosine_similarity(r.view(-1), others[2].view(-1), dim=0),
    ]
    found = Directions(groups).distances([p, q, r], others)
    torch.testing.assert_close(found, torch.stack(expected).detach().double(), rtol=1e-5, atol=1e-6)


# --- when ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_a_switch_at_the_same_epoch_has_acted(first: bool, tmp_path: Path) -> None:
    memory, module = Memory(), Sgd()
    comparison = OptimizerComparison({"own": partial(SGD, lr=0.2, weight_decay=0.0)}, start_epoch=1, every_n_steps=1)
    switch = FineTuneSwitch([Switch(epoch=1, lr=0.2, weight_decay=0.0)], snapshot=False)
    callbacks: list[Callback] = [comparison, switch] if first else [switch, comparison]
    trainer_for("resnet", callbacks, tmp_path, logger=memory).fit(module, ForeignData())
    steps = [step for step, key in sorted(memory.logged) if key == "optimizer_comparison/own_distance_max"]
    assert steps == list(range(BATCHES, 3 * BATCHES))
    assert series(memory, "own_distance_max") == [0.0] * 2 * BATCHES


class Scheduled(Sgd):
    """With momentum, and a schedule each step; the biases' momentum is years old when the rivals begin."""

    def configure_optimizers(self) -> Any:
        filters: dict[str, Any] = {"params": [p for p in self.parameters() if p.ndim == 4]}
        others: dict[str, Any] = {"params": [p for p in self.parameters() if p.ndim != 4], "momentum": 0.9}
        optimizer = SGD([filters, others], lr=0.05)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _: 1.0, lambda step: 0.9**step])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_the_rest_is_trained_as_the_run_trains_it(tmp_path: Path) -> None:
    memory = Memory()
    comparison = OptimizerComparison({"own": partial(SGD, lr=0.05)}, start_epoch=1, every_n_steps=1)
    trainer_for("resnet", [comparison], tmp_path, logger=memory).fit(Scheduled(), ForeignData())
    assert series(memory, "own_distance_max") == [0.0] * 2 * BATCHES


class Skips(Sgd):
    """Every second batch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:  # type: ignore[override]
        return super().training_step(batch, batch_idx) if batch_idx % 2 else None


@pytest.mark.filterwarnings("ignore:.*returned.*None")
def test_batches_that_the_run_skips_are_skipped(tmp_path: Path) -> None:
    memory = Memory()
    comparison = OptimizerComparison(own_of(Skips()), every_n_steps=1)
    trainer_for("resnet", [comparison], tmp_path, logger=memory).fit(Skips(), ForeignData())
    assert series(memory, "own_distance_max") == [0.0] * 3 * BATCHES
    assert series(memory, "start_distance_max")[-1] > 1e-7
    assert series(memory, "own_loss") == series(memory, "run_loss")


class SkipsAnEpoch(Sgd):
    """The first."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:  # type: ignore[override]
        return super().training_step(batch, batch_idx) if self.current_epoch else None


@pytest.mark.filterwarnings("ignore:.*returned.*None")
def test_a_trial_that_meets_no_batch_ends_when_the_comparison_begins(tmp_path: Path) -> None:
    memory = Memory()
    comparison = OptimizerComparison(own_of(SkipsAnEpoch()), start_epoch=1, every_n_steps=1)
    trainer_for("resnet", [comparison], tmp_path, logger=memory).fit(SkipsAnEpoch(), ForeignData())
    assert series(memory, "own_distance_max") == [0.0] * 2 * BATCHES
    assert series(memory, "own_loss") == series(memory, "run_loss")


class SkipsOne(Sgd):
    """The first or the second of each two."""

    skipped = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:  # type: ignore[override]
        return None if batch_idx == 2 + self.skipped else super().training_step(batch, batch_idx)


@pytest.mark.parametrize("skipped", [0, 1])
@pytest.mark.filterwarnings("ignore:.*returned.*None")
def test_accumulated_batches_that_the_run_skips_are_skipped(skipped: int, tmp_path: Path) -> None:
    memory, module = Memory(), SkipsOne()
    module.skipped = skipped
    comparison = OptimizerComparison(own_of(module), every_n_steps=1)
    trainer_for("resnet", [comparison], tmp_path, logger=memory, accumulate_grad_batches=2).fit(module, ForeignData())
    assert series(memory, "own_distance_max") == [0.0] * 3 * 2
    assert series(memory, "start_distance_max")[-1] > 1e-7
    assert series(memory, "own_loss") == pytest.approx(series(memory, "run_loss"), rel=1e-6)


class Manual(Sgd):
    """Manual optimisation in several ways; of the four batches of an epoch, ``skipped`` is left out."""

    def __init__(self, way: str, skipped: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.way, self.skipped = way, skipped

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:  # type: ignore[override]
        if batch_idx == self.skipped and self.way != "drops":
            return None
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        if self.way == "two parts":
            self.manual_backward(loss / 2, retain_graph=True)
            self.manual_backward(loss / 2)
        else:
            self.manual_backward(loss / 4 if self.way == "fourths" else loss)
        if self.way == "drops" and batch_idx == self.skipped:  # a gradient that it does not like
            return loss
        optimizer.step()
        return loss


class Accumulates(Manual):
    """Steps after each second batch, whatever came before."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        loss = None
        if batch_idx != self.skipped:
            loss = Sgd.training_step(self, batch, batch_idx)
            self.manual_backward(loss / 2 if self.way == "halves" else loss)
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()
        return loss


@pytest.mark.parametrize(
    ("module", "steps"),
    [
        (lambda: Manual("plain"), 4),
        (lambda: Manual("plain", skipped=0), 3),
        (lambda: Manual("plain", skipped=2), 3),
        (lambda: Manual("drops", skipped=2), 3),
        (lambda: Manual("fourths"), 4),
        (lambda: Manual("two parts", skipped=1), 3),
        (lambda: Accumulates("halves"), 2),
        (lambda: Accumulates("halves", skipped=0), 2),
        (lambda: Accumulates("halves", skipped=2), 2),
        (lambda: Accumulates("halves", skipped=3), 2),
        (lambda: Accumulates("sums", skipped=2), 2),
    ],
)
@pytest.mark.parametrize("start_epoch", [0, 1])
def test_manual_optimisation_is_followed_whatever_it_skips(
    module: Any, steps: int, start_epoch: int, tmp_path: Path
) -> None:
    memory, one = Memory(), module()
    comparison = OptimizerComparison(own_of(one), start_epoch=start_epoch, every_n_steps=1)
    trainer_for("resnet", [comparison], tmp_path, logger=memory).fit(one, ForeignData())
    assert series(memory, "own_distance_max") == [0.0] * (3 - start_epoch) * steps
    assert series(memory, "start_distance_max")[-1] > 1e-7
    assert series(memory, "own_loss") == series(memory, "run_loss")


class Noisy(SGD):
    """Draws at every step, and notes what."""

    def step(self, closure: Any = None) -> Any:
        self.drawn = [*getattr(self, "drawn", []), torch.rand(()).item()]
        return super().step(closure)


def test_optimizers_that_draw_leave_the_run_alone_and_draw_anew(tmp_path: Path) -> None:
    made: list[Noisy] = []

    def make(params: Any) -> Noisy:
        made.append(Noisy(params, lr=0.01))
        return made[-1]

    outcome = fit("resnet", [OptimizerComparison({"noisy": make})], tmp_path)
    assert_equal(outcome.tensors, fitted(None, "resnet").tensors)
    assert len(set(made[-1].drawn)) == 3 * BATCHES


def test_it_ends_after_its_steps_and_leaves_nothing(tmp_path: Path) -> None:
    memory = Memory()
    comparison = OptimizerComparison({"SGD": partial(SGD, lr=0.05)}, steps=5, every_n_steps=2)
    trainer = trainer_for("resnet", [comparison], tmp_path, logger=memory)
    trainer.fit(Sgd(), ForeignData())
    assert [step for step, key in sorted(memory.logged) if key == "optimizer_comparison/run_loss"] == [1, 3, 4]
    assert comparison.state_dict()["rivals"] is None
    assert not trainer.optimizers[0]._optimizer_step_post_hooks
    trainer.fit_loop.max_epochs = 4
    trainer.fit(Sgd(), ForeignData())
    assert [row["step"] for row in comparison.rows] == [2, 4], "another fit begins anew"


def test_table_and_picture_hold_what_was_logged(tmp_path: Path) -> None:
    outcome = fitted("comparison", "resnet")
    with (outcome.folder / "optimizer_comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [4, 8, 12]
    for key in ("SGD_distance_max", "AdaGradG_loss", "start_distance_median", "run_loss"):
        assert [float(row[key]) for row in rows] == [
            value for (_, name), value in sorted(outcome.logged.items()) if name == f"optimizer_comparison/{key}"
        ]
    rows_of_zeros = [
        {"step": 1, "epoch": 0, **{f"{n}_distance_{k}": 0.0 for n in ("A", "start") for k in ("max", "median")}}
    ]
    legend = draw_optimizer_comparison(rows_of_zeros, ["A"]).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "the run's own start: the same weights",
        "A: the same weights",
    ]
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_optimizer_comparison([], ["A"])


# --- refusals ------------------------------------------------------------------------------------------------

SGDS: dict[str, Any] = {"SGD": partial(SGD, lr=0.05)}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optimizers": {}}, "optimizers must map at least one name"),
        ({"optimizers": [SGD]}, "optimizers must map at least one name"),
        ({"optimizers": {1: SGD}}, "1 cannot name an optimizer"),
        ({"optimizers": {"my sgd": SGD}}, "'my sgd' cannot name an optimizer"),
        ({"optimizers": {"run": SGD}}, "'run' cannot name an optimizer"),
        ({"start_epoch": -1}, "start_epoch must be at least 0, got -1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"granularity": "joint"}, "granularity must be 'filter' or 'tensor', got 'joint'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^OptimizerComparison: {says}"):
        OptimizerComparison(**{"optimizers": SGDS, **options})


class Smoothed(Sgd):
    """Another loss than its ``criterion`` would be."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y, label_smoothing=0.1)


class SmoothedCriterion(Smoothed):
    def criterion(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, label_smoothing=0.1)


class TwoStepsABatch(ForeignManual):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        super().training_step(batch, batch_idx)
        for optimizer in cast(Any, self.optimizers()):
            optimizer.step()


class Lbfgs(Sgd):
    def configure_optimizers(self) -> Optimizer:
        return LBFGS(self.parameters())


class OneSphere(Sgd):
    """Convolutions and (γ, β) pairs on one sphere."""

    def configure_optimizers(self) -> Optimizer:
        found = find_groups(self, torch.zeros(2, 3, 16, 16))
        mine = list(dict.fromkeys(p for group in found for p in group.parameters))
        rest = [p for p in self.parameters() if p not in set(mine)]
        groups: list[dict[str, Any]] = [{"params": mine}, {"params": rest, "elr": None, "lr": 0.05}]
        return SphereSGD(groups, elr=1e-3)


class Triples(ForeignData):
    def train_dataloader(self) -> Any:
        return DataLoader(self.train, BATCH, collate_fn=lambda pairs: [*default_collate(pairs), 1])


class Apart(Sgd):
    """A step that can only be made in training."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if "log" in vars(self):
            raise RuntimeError("not alone")
        return super().training_step(batch[:2], batch_idx)


def refused(
    module: LightningModule, tmp_path: Path, data: Any = None, optimizers: Any = None, **options: Any
) -> tuple[str, int]:
    arguments = {key: options.pop(key) for key in ("granularity", "start_epoch") if key in options}
    callbacks = [OptimizerComparison(optimizers or SGDS, **arguments), *options.pop("callbacks", [])]
    trainer = trainer_for("resnet", callbacks, tmp_path, logger=False, **options)
    with pytest.raises(ValueError, match="OptimizerComparison") as error:
        trainer.fit(module, data or ForeignData())
    assert "\n" not in str(error.value)
    return str(error.value), trainer.global_step


@pytest.mark.parametrize("start_epoch", [0, 2])
@pytest.mark.parametrize(
    ("module", "how", "says"),
    [
        (Smoothed, {}, "criterion.* whose gradient is not that of Smoothed.training_step.*give Smoothed a method"),
        (
            Apart,
            {"data": Triples},
            r"by criterion.*a list of 3, no pair of inputs and labels.*nor by its training step.* \(not alone\)",
        ),
        (Lbfgs, {}, "LBFGS evaluates the loss anew in its step.*leave OptimizerComparison out"),
        (Sgd, {"optimizers": {"newton": LBFGS}}, "newton .LBFGS. evaluates the loss anew"),
        (Sgd, {"optimizers": {"bad": partial(SGD, lr=-1.0)}}, "bad cannot train .*Invalid learning rate.*change"),
        (Sgd, {"optimizers": {"nan": partial(SGD, lr=math.nan)}}, "nan cannot train .*lr is nan"),
        (Sgd, {"optimizers": {"G": AdaGradG}}, "G cannot train .*missing.*lr"),
        (Sgd, {"optimizers": {"S": partial(SparseAdam, lr=0.1)}}, "S cannot train .*does not support dense gradients"),
        (
            Sgd,
            {"callbacks": [FixedNorm()]},
            "norms are not fixed as FixedNorm fixes the run's; leave one",
        ),
        (ForeignLayerNorm, {}, "no single filter is scale-invariant here; set granularity: tensor"),
        (OneSphere, {}, "SphereSGD has 32 tensors on one joint sphere, but only 12 .*set granularity: tensor"),
        (
            Sgd,
            {"callbacks": [OptimizerComparison(SGDS, every_n_steps=7)]},
            "there are two of them, and both would write optimizer_comparison/… and",
        ),
        (
            ForeignLayerNorm,
            {"optimizers": {"G": partial(AdaGradG, lr=0.1)}, "granularity": "tensor"},
            "G cannot train .*granularity='filter' needs tensors of two",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(
    module: Any, how: dict[str, Any], says: str, start_epoch: int, tmp_path: Path
) -> None:
    options = {**how, "data": how["data"]()} if "data" in how else how
    message, steps = refused(module(), tmp_path, start_epoch=start_epoch, **options)
    assert re.search(says, message), message
    assert steps == 0


def test_more_than_one_step_a_batch_is_refused(tmp_path: Path) -> None:
    message, steps = refused(TwoStepsABatch(), tmp_path)
    assert "SGD steps more than once a batch" in message
    assert steps <= 2


class OwnBackward(Manual):
    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()


class KeepsZeros(Skips):
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        optimizer.zero_grad(set_to_none=False)


@pytest.mark.parametrize("module", [partial(OwnBackward, "plain"), KeepsZeros])
@pytest.mark.filterwarnings("ignore:.*returned.*None")
def test_a_step_on_a_gradient_of_no_batch_is_refused(module: Any, tmp_path: Path) -> None:
    message, _ = refused(module(), tmp_path)
    assert "SGD steps on a gradient of no batch since its last step" in message
    assert "take self.manual_backward(loss) and zero_grad(set_to_none=True), or leave" in message


@pytest.mark.parametrize(
    "kind",
    [torch.OutOfMemoryError, *([torch.AcceleratorError] if hasattr(torch, "AcceleratorError") else []), MemoryError],
)
def test_a_device_that_fails_is_not_called_a_wrong_criterion(kind: Any, tmp_path: Path) -> None:
    class Fails(Sgd):
        def criterion(self, outputs: Tensor, labels: Tensor) -> Tensor:
            raise kind("the device is full")

    with pytest.raises(kind, match="the device is full"):
        trainer_for("resnet", [OptimizerComparison(SGDS)], tmp_path, logger=False).fit(Fails(), ForeignData())


def test_where_the_criterion_fails_the_training_step_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(Sgd):
        def criterion(self, outputs: Tensor, labels: Tensor) -> Tensor:
            raise RuntimeError("no such labels")

    memory = Memory()
    own = OptimizerComparison({"own": partial(SGD, **Sgd.options)}, every_n_steps=1)
    with caplog.at_level("INFO"):
        trainer_for("resnet", [own], tmp_path, logger=memory).fit(Fails(), ForeignData())
    assert series(memory, "own_distance_max") == [0.0] * 3 * BATCHES
    assert sum("(no such labels): the loss is that of its training step" in each for each in caplog.messages) == 1


def test_a_criterion_of_its_own_is_followed(tmp_path: Path) -> None:
    memory = Memory()
    own = OptimizerComparison({"own": partial(SGD, **Sgd.options)}, every_n_steps=1)
    trainer_for("resnet", [own], tmp_path, logger=memory).fit(SmoothedCriterion(), ForeignData())
    assert series(memory, "own_distance_max") == [0.0] * 3 * BATCHES


def test_a_gradient_scaler_is_refused(tmp_path: Path) -> None:
    class Scaled(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            trainer.precision_plugin.scaler = object()  # type: ignore[attr-defined]

    message, _ = refused(Sgd(), tmp_path, callbacks=[Scaled()])
    assert "no gradient scaler; use the precision bf16-mixed" in message


def test_other_clipping_is_said(tmp_path: Path) -> None:
    class Clips(Sgd):
        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            self.clip_gradients(optimizer, 0.1, "norm")

    with pytest.warns(UserWarning, match="rivals do not follow Clips.configure_gradient_clipping"):
        trainer_for("resnet", [OptimizerComparison(SGDS)], tmp_path, logger=False, max_epochs=1).fit(
            Clips(), ForeignData()
        )


def test_a_comparison_that_never_came_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ends after 3 epochs, and the comparison from epoch 7 on will not take"):
        trainer_for("resnet", [OptimizerComparison(SGDS, start_epoch=7)], tmp_path, logger=False).fit(
            Sgd(), ForeignData()
        )


def test_a_comparison_that_a_run_ends_before_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ended after 1 epochs, and the comparison from epoch 2 on never took place"):
        trainer_for(
            "resnet", [OptimizerComparison(SGDS, start_epoch=2)], tmp_path, logger=False, max_steps=BATCHES
        ).fit(Sgd(), ForeignData())


def test_fewer_steps_than_asked_for_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No warning: the steps asked for by default are more than a short run has."""
    for steps in (None, 2, 500):
        caplog.clear()
        with caplog.at_level("INFO"):
            trainer_for("resnet", [OptimizerComparison(SGDS, steps=steps)], tmp_path, logger=False, max_epochs=1).fit(
                Sgd(), ForeignData()
            )
        said = [record.getMessage() for record in caplog.records if "steps to compare" in record.getMessage()]
        assert len(said) == (steps == 500)
    assert said == [
        "OptimizerComparison: the run ended after 4 of the 500 steps to compare; train longer, or lower steps (null: "
        "the rest of the run)"
    ]


# --- resuming ------------------------------------------------------------------------------------------------


def rows_of(
    tmp_path: Path, epochs: int, steps: int | None, optimizers: Any = None, resumes: bool = False
) -> list[dict[str, float]]:
    """What the comparison of a run has measured, whose checkpoint stays."""
    file = tmp_path / "last.ckpt"
    comparison = OptimizerComparison(optimizers or {"Adam": partial(Adam, lr=1e-3)}, steps=steps, every_n_steps=2)
    trainer = trainer_for("resnet", [comparison], tmp_path, logger=False, max_epochs=epochs)
    trainer.fit(Sgd(), ForeignData(), ckpt_path=file if resumes else None)
    trainer.save_checkpoint(file)
    return comparison.rows


def test_a_comparison_that_was_over_stays_over(tmp_path: Path) -> None:
    before = rows_of(tmp_path, 2, 6)
    assert [row["step"] for row in before] == [2, 4, 6]
    with pytest.warns(UserWarning, match="was over after 6 steps, and its rivals are gone; it stays over"):
        assert rows_of(tmp_path, 3, 10, resumes=True) == before
    assert rows_of(tmp_path, 4, 6, resumes=True) == before


def test_a_comparison_goes_on_with_more_steps(tmp_path: Path) -> None:
    whole = rows_of(tmp_path, 3, 10)
    rows_of(tmp_path, 1, 6)
    assert rows_of(tmp_path, 3, 10, resumes=True) == whole


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (partial(Adam, lr=1e-2), r"does not take lr=0.01 \(it has 0.001\); give the new one another name"),
        (partial(Adam, lr=1e-2, betas=(0.8, 0.9)), r"lr=0.01 .*, betas=\(0.8, 0.9\) \(it has \(0.9, 0.999\)\)"),
    ],
)
def test_options_that_a_resumed_run_does_not_take_are_said(now: Any, says: str, tmp_path: Path) -> None:
    whole = rows_of(tmp_path, 3, 10)
    rows_of(tmp_path, 1, 10)
    with pytest.warns(UserWarning, match=f"Adam goes on as the checkpoint has it, and .*{says}"):
        assert rows_of(tmp_path, 2, 10, {"Adam": now}, resumes=True) == whole[:4]
    assert rows_of(tmp_path, 3, 10, resumes=True) == whole, "what it was made with is kept, and is what is given now"


def test_another_kind_of_optimizer_is_refused_on_resuming(tmp_path: Path) -> None:
    rows_of(tmp_path, 1, 10)
    with pytest.raises(ValueError, match="Adam is SGD now, but was Adam in the checkpoint; give the new one another"):
        rows_of(tmp_path, 2, 10, {"Adam": partial(SGD, lr=0.1)}, resumes=True)


@pytest.mark.parametrize("options", [{"elr": 2e-2}, {"elr": 2e-2, "granularity": "filter"}])
def test_radii_are_no_options_that_were_given(options: dict[str, Any], tmp_path: Path) -> None:
    optimizers = {"sphere": partial(SphereSGD, **options)}
    whole = rows_of(tmp_path, 2, None, optimizers)
    rows_of(tmp_path, 1, None, optimizers)
    assert rows_of(tmp_path, 2, None, optimizers, resumes=True) == whole
