"""EffectiveLearningRateMonitor with optimizers of all kinds: what it logs is what the weights did."""

import csv
import itertools
import logging
import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import matplotlib.image
import numpy as np
import pytest
import torch
import torch.distributed as dist
from callback_fits import Memory, fit, quietly, trainer_for
from foreign_modules import BATCHES, ForeignLayerNorm, ForeignManual, ForeignModule, ForeignResNet, cases
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from lit_sphere.analysis import equal_ess
from lit_sphere.callbacks import EffectiveLearningRateMonitor, FineTuneSwitch, FixedNorm, RunSummary, Switch
from lit_sphere.data import Digits
from lit_sphere.effective import QUANTITIES
from lit_sphere.modules import SIConvNet, SIResNet18
from lit_sphere.observe.module_groups import groups_of, short_names
from lit_sphere.optim import SphereSGD
from lit_sphere.report import draw_curves, read_metrics
from lit_sphere.theory import equilibrium_elrs, equilibrium_norms, sgd_elr

pytestmark = quietly

ELR = "equilibrium/elr"
ENDS = [f"equilibrium/{end}" for end in ("norm_low", "norm_high", "elr_low", "elr_high")]


class SignSGD(Optimizer):
    """Somebody's own optimizer; spoils the gradients, as some do."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - 0.1 * group["lr"]).sub_(p.grad.sign_(), alpha=group["lr"])
        return loss


class Nested(SGD):
    """Calls its parent's step, which has hooks of its own, and moves on."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(torch.ones_like(p), alpha=0.01)
        return loss


class Witness(Callback):
    """Weights before and after each step, and the gradients before they are clipped."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []  # norm, gradient norm, and ESS: total first
        self.names: list[str] = []
        self.shares: list[Tensor] = []  # of the norm, that the steps took away
        self._before: list[Tensor] | None = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self._before is None:
            groups = groups_of(self, pl_module, None if pl_module.example_input_array is not None else self._batch)
            assert groups is not None
            self.groups, self.names = groups, ["total", *short_names(groups)]
            self._before = self._vectors(lambda p: p.detach().clone())
            self._grads = self._vectors(lambda p: torch.zeros_like(p) if p.grad is None else p.grad.clone())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._before is None:
            return
        after = self._vectors(lambda p: p.detach())
        norms = torch.stack([x.norm() for x in self._before])
        grads = torch.stack([g.norm() for g in self._grads])
        tangents = torch.stack([_tangent(x, new) for x, new in zip(self._before, after, strict=True)])
        self.shares.append(torch.stack([1 - x @ new / (x @ x) for x, new in zip(self._before, after, strict=True)]))
        self.steps.append({"norm": norms, "effective_grad_norm": norms * grads, "ess": tangents})
        self._before = None

    def _vectors(self, take: Callable[[Any], Tensor]) -> list[Tensor]:
        each = [torch.cat([take(p).double().flatten() for p in group.parameters]) for group in self.groups]
        return [torch.cat(each), *each]


def _tangent(x: Tensor, new: Tensor) -> Tensor:
    along = x @ new / x.norm()
    tan: Tensor = (new - along * x / x.norm()).norm() / along
    return tan


class WithOptimizer(ForeignLayerNorm):
    make_optimizer: Callable[[Any], Any] = SGD

    def configure_optimizers(self) -> Any:
        return type(self).make_optimizer(self.parameters())


def with_optimizer(make: Callable[[Any], Any]) -> LightningModule:
    module: LightningModule = type("WithOptimizer", (WithOptimizer,), {"make_optimizer": staticmethod(make)})()
    return module


def watched(
    module: LightningModule, folder: Path, monitor: EffectiveLearningRateMonitor, *more: Callback, **options: Any
) -> tuple[Memory, Witness]:
    memory, witness = Memory(), Witness()
    options = {"max_epochs": 2, "logger": memory, "precision": "64-true", **options}
    # The witness is last: it looks at the gradients as they were before any clipping, too.
    trainer = trainer_for("layer_norm", [monitor, *more, witness], folder, **options)
    trainer.fit(module, cases()["layer_norm"].data())
    return memory, witness


SOURCES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "SGD": (lambda p: SGD(p, lr=0.05, weight_decay=1e-2), "gradients"),
    "momentum": (lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2), "state"),
    "nesterov": (lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2), "state"),
    "AdamW": (lambda p: AdamW(p, lr=1e-2, weight_decay=0.1), "state"),
    "AdamW, amsgrad": (lambda p: AdamW(p, lr=1e-2, weight_decay=0.1, amsgrad=True), "state"),
    "somebody's": (SignSGD, "weights"),
    "subclass": (lambda p: Nested(p, lr=0.05), "weights"),
    "NAdam": (lambda p: torch.optim.NAdam(p, lr=1e-2), "weights"),
}


@pytest.mark.parametrize("clip", [None, 1e-2])
@pytest.mark.parametrize("name", SOURCES)
def test_every_step_of_a_foreign_module_is_that_of_its_weights(name: str, clip: float | None, tmp_path: Path) -> None:
    make, source = SOURCES[name]
    SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)  # from now on the parent's step runs hooks, too
    monitor = EffectiveLearningRateMonitor(per="step")
    memory, witness = watched(with_optimizer(make), tmp_path, monitor, gradient_clip_val=clip)
    assert monitor.source == monitor.state_dict()["source"] == ("state" if clip and name == "SGD" else source)
    assert len(witness.steps) == monitor.state_dict()["steps"] == 2 * BATCHES
    # torch's layer norm has an eps, so that plain SGD's gradient is not quite orthogonal to the weights.
    tolerance = 1e-4 if monitor.source == "gradients" else 1e-8
    for step, seen in enumerate(witness.steps):
        for quantity, values in seen.items():
            for key, value in zip(witness.names, values.tolist(), strict=True):
                logged = memory.logged[step, f"{quantity}/{key}"]
                assert logged == pytest.approx(value, rel=tolerance), f"{quantity}/{key} at step {step}"
        for key in witness.names:
            ess, angle = (memory.logged[step, f"{quantity}/{key}"] for quantity in ("ess", "angle"))
            assert math.tan(angle) == pytest.approx(ess, rel=1e-12)
            if monitor.source == "weights":
                product = memory.logged[step, f"elr/{key}"] * memory.logged[step, f"effective_grad_norm/{key}"]
                assert product == pytest.approx(ess, rel=1e-12)


@pytest.mark.parametrize("name", ["momentum", "AdamW", "somebody's"])
def test_every_step_of_our_module_is_that_of_its_weights(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = SIConvNet(width=4, in_channels=1, optimizer=SOURCES[name][0])
    memory, witness = Memory(), Witness()
    monitor = EffectiveLearningRateMonitor(per="step")
    trainer = trainer_for("ours", [monitor, witness], tmp_path, max_epochs=1, logger=memory, precision="64-true")
    trainer.fit(module, Digits(batch_size=64, train_size=320))
    assert len(witness.steps) == 5
    for step, seen in enumerate(witness.steps):
        for key, value in zip(witness.names, seen["ess"].tolist(), strict=True):
            assert memory.logged[step, f"ess/{key}"] == pytest.approx(value, rel=1e-8)


def test_accumulated_gradients_and_every_third_step(tmp_path: Path) -> None:
    monitor = EffectiveLearningRateMonitor(per="step", every_n_steps=3)
    memory, witness = watched(
        with_optimizer(SignSGD), tmp_path, monitor, accumulate_grad_batches=2, max_epochs=3, gradient_clip_val=0.1
    )
    steps = sorted(step for step, key in memory.logged if key == "ess/total")
    assert steps == [0, 3]
    for step in steps:  # the witness sees a step at every second batch
        assert memory.logged[step, "ess/total"] == pytest.approx(witness.steps[step]["ess"][0].item(), rel=1e-8)


def test_the_mean_of_an_epoch_is_that_of_its_steps(tmp_path: Path) -> None:
    memory, witness = watched(with_optimizer(SOURCES["AdamW"][0]), tmp_path, EffectiveLearningRateMonitor())
    for epoch in (0, 1):
        mean = torch.stack([seen["ess"] for seen in witness.steps[BATCHES * epoch :][:BATCHES]]).mean(0)
        for key, value in zip(witness.names, mean.tolist(), strict=True):
            assert memory.logged[BATCHES * (epoch + 1) - 1, f"ess/{key}"] == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize("per", ["epoch", "step"])
@pytest.mark.parametrize("name", ["momentum", "somebody's"])
def test_the_largest_step_of_an_epoch_and_of_all_groups_is_logged(
    name: str, per: Literal["epoch", "step"], tmp_path: Path
) -> None:
    """The bounds of SP §5 are on maxima, which an epoch's mean hides; of these optimizers ‖c⊥‖ follows from both."""
    memory, witness = watched(with_optimizer(SOURCES[name][0]), tmp_path, EffectiveLearningRateMonitor(per=per))
    assert sum(key == "ess/step_max" for _, key in memory.logged) == 2
    for epoch in (0, 1):
        steps = slice(BATCHES * epoch, BATCHES * (epoch + 1))
        ess = torch.stack([seen["ess"] for seen in witness.steps[steps]])[:, 1:]
        shares = torch.stack(witness.shares[steps])[:, 1:]
        lengths = ess * (1 - shares) * torch.stack([seen["norm"] for seen in witness.steps[steps]])[:, 1:]
        for quantity, values in {"ess": ess, "radial": shares.abs(), "step_length": lengths}.items():
            logged = memory.logged[BATCHES * (epoch + 1) - 1, f"{quantity}/step_max"]
            assert logged == pytest.approx(values.max().item(), rel=1e-8)
            assert logged > values.mean(0).max().item()


def test_single_steps_of_a_long_epoch_are_logged(tmp_path: Path) -> None:
    memory = Memory()
    trainer = trainer_for("ours", [EffectiveLearningRateMonitor(per="step")], tmp_path, max_epochs=1, logger=memory)
    trainer.fit(SIConvNet(width=4, in_channels=1, elr=1e-3), Digits(train_size=1200, batch_size=4))
    assert len([step for step, key in memory.logged if key == "elr/total"]) == trainer.global_step == 300


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SGD", None),
        ("AdamW", "come from the own state of AdamW"),
        ("somebody's", "SignSGD has no step that is known: .* measured from the weights before and after"),
    ],
)
def test_it_says_once_where_the_numbers_come_from(
    name: str, said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        watched(with_optimizer(SOURCES[name][0]), tmp_path, EffectiveLearningRateMonitor())
    told = [record.message for record in caplog.records if "EffectiveLearningRateMonitor" in record.message]
    assert len(told) == (said is not None)
    if said is not None:
        assert re.search(said, told[0])


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_go_with_the_fit_and_with_an_exception(fails: bool, tmp_path: Path) -> None:
    kept: list[Optimizer] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            kept[:] = trainer.optimizers
            assert len(kept[0]._optimizer_step_post_hooks) == 1
            if fails:
                raise RuntimeError("over")

    with pytest.raises(RuntimeError, match="over") if fails else nullcontext():
        watched(with_optimizer(SOURCES["AdamW"][0]), tmp_path, EffectiveLearningRateMonitor(), Look())
    assert not kept[0]._optimizer_step_post_hooks
    assert not kept[0]._optimizer_step_pre_hooks


def test_momentum_that_is_switched_on_is_noticed(tmp_path: Path) -> None:
    class SwitchOn(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                trainer.optimizers[0].param_groups[0]["momentum"] = 0.9

    monitor = EffectiveLearningRateMonitor(per="step")
    memory, witness = watched(with_optimizer(SOURCES["SGD"][0]), tmp_path, monitor, SwitchOn())
    assert monitor.source == "state"
    for step, seen in enumerate(witness.steps):
        assert memory.logged[step, "ess/total"] == pytest.approx(seen["ess"][0].item(), rel=1e-4)


def test_another_optimizer_in_the_run_is_noticed(tmp_path: Path) -> None:
    class Exchange(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                trainer.strategy.optimizers = [AdamW(pl_module.parameters(), lr=1e-2)]

    monitor = EffectiveLearningRateMonitor(per="step")
    memory, witness = watched(with_optimizer(SOURCES["momentum"][0]), tmp_path, monitor, Exchange())
    for step, seen in enumerate(witness.steps):
        assert memory.logged[step, "ess/total"] == pytest.approx(seen["ess"][0].item(), rel=1e-8)


def test_steps_that_a_gradient_scaler_skips_are_none(tmp_path: Path) -> None:
    class Real(Callback):
        steps = 0

        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.optimizers[0].register_step_post_hook(self.count)

        def count(self, *_: Any) -> None:
            self.steps += 1

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000, backoff_factor=2.0**-30)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    real, monitor = Real(), EffectiveLearningRateMonitor(per="step")
    options = {"precision": None, "plugins": [plugin], "max_epochs": 3}
    memory, _ = watched(with_optimizer(SOURCES["SGD"][0]), tmp_path, monitor, real, **options)
    assert 0 < real.steps < 3 * BATCHES, "some steps must have been skipped"
    assert monitor.source == "state"
    assert monitor.state_dict()["steps"] == real.steps
    logged = [value for (_, key), value in memory.logged.items() if key == "ess/total"]
    assert len(logged) == real.steps
    assert all(0 < value < 1 for value in logged), logged


def test_of_two_optimizers_the_one_with_most_groups_is_watched(tmp_path: Path) -> None:
    class Both(ForeignManual):
        def configure_optimizers(self) -> Any:
            groups = groups_of(EffectiveLearningRateMonitor(), self, torch.randn(2, 3, 16, 16))
            assert groups is not None
            (first, *others) = [p for group in groups for p in group.parameters]
            rest = [p for p in self.parameters() if p is not first and all(p is not q for q in others)]
            return [SGD([first, *rest], lr=0.05), AdamW(others, lr=1e-3)]

    monitor = EffectiveLearningRateMonitor()
    trainer = trainer_for("manual", [monitor], tmp_path, max_epochs=1, logger=False)
    with pytest.warns(UserWarning, match="watches the 2 groups of AdamW; 1 are trained elsewhere"):
        trainer.fit(Both(), cases()["manual"].data())
    assert monitor.source == "state"


def test_the_equilibrium_of_the_papers_is_predicted_where_their_theory_holds(tmp_path: Path) -> None:
    lr, decay = 0.05, 1e-2
    for name, its_own in {"SGD": True, "momentum": False, "AdamW": False}.items():
        memory, _ = watched(with_optimizer(SOURCES[name][0]), tmp_path / name, EffectiveLearningRateMonitor())
        assert any(key == "equilibrium/distance" for _, key in memory.logged) != its_own, name
        for step in {step for step, key in memory.logged if key == "equilibrium/ess"} if its_own else ():
            ess = memory.logged[step, "equilibrium/ess"]
            assert ess == pytest.approx(math.tan(math.acos(1 - lr * decay)), rel=1e-10)
            grad_norm = memory.logged[step, "effective_grad_norm/total"]
            assert memory.logged[step, "equilibrium/elr"] == pytest.approx(ess / grad_norm, rel=1e-12)
            norm, steps = (memory.logged[step, f"equilibrium/{name}"] for name in ("norm", "steps"))
            assert sgd_elr(norm, lr, decay).item() == pytest.approx(memory.logged[step, "equilibrium/elr"], rel=1e-9)
            assert steps == pytest.approx(-0.5 / math.log1p(-lr * decay))


def test_the_interval_of_the_equilibrium_is_that_of_the_epochs_gradients(tmp_path: Path) -> None:
    lr, decay = 0.05, 1e-2
    options: list[tuple[Literal["epoch", "step"], str]] = [("epoch", "SGD"), ("step", "SGD"), ("epoch", "AdamW")]
    for per, name in options:
        monitor = EffectiveLearningRateMonitor(per=per)
        memory, witness = watched(with_optimizer(SOURCES[name][0]), tmp_path / f"{name}-{per}", monitor)
        intervals = [key for _, key in memory.logged if re.fullmatch("equilibrium/.*_(low|high)", key)]
        assert len(intervals) == (8 if name == "SGD" else 0), (name, per)
        for epoch in (0, 1) if intervals else ():
            last = BATCHES * (epoch + 1) - 1
            norms = [seen["effective_grad_norm"][0] for seen in witness.steps[last + 1 - BATCHES : last + 1]]
            found = {end: memory.logged[last, f"equilibrium/{end}"] for end in ("norm_low", "norm_high")}
            expected = equilibrium_norms(min(norms), max(norms), lr, decay)
            assert list(found.values()) == pytest.approx([end.item() for end in expected], rel=1e-9)
            elrs = equilibrium_elrs(min(norms), max(norms), lr, decay)  # η/ρ², without SP's 1 − ηλ
            found = {end: memory.logged[last, f"equilibrium/{end}"] for end in ("elr_low", "elr_high")}
            assert list(found.values()) == pytest.approx([end.item() / (1 - lr * decay) for end in elrs], rel=1e-9)
            if per == "epoch":
                assert found["elr_low"] < memory.logged[last, "equilibrium/elr"] < found["elr_high"]


def test_a_whole_space_run_on_digits_stays_about_its_predicted_equilibrium(tmp_path: Path) -> None:
    """ηλ = 0.03 is settled after some 8 of 12 steps of an epoch; of such a run theory is seen, in numbers and drawn."""
    lr, decay = 1.0, 3e-2
    torch.manual_seed(0)
    callbacks: list[Callback] = [EffectiveLearningRateMonitor(), RunSummary()]
    options = {"max_epochs": 10, "logger": CSVLogger(tmp_path), "limit_val_batches": 0}
    trainer = trainer_for("ours", callbacks, tmp_path, **options)
    module = SIConvNet(width=8, in_channels=1, optimizer=lambda p: SGD(p, lr=lr, weight_decay=decay))
    trainer.fit(module, Digits())
    assert trainer.log_dir is not None
    metrics = read_metrics(Path(trainer.log_dir) / "metrics.csv")
    norms, elrs, mean, *ends = (
        dict(zip(metrics[key].steps, metrics[key].values, strict=True))
        for key in ("norm/total", "elr/total", ELR, *ENDS)
    )
    assert len(ends[0]) >= 5, "most epochs' gradients are bounded well enough"
    for step in ends[0]:
        low, high, elr_low, elr_high = (each[step] for each in ends)
        assert 0 < low < high < math.inf
        assert 0 < elr_low < mean[step] < elr_high < math.inf
        for norm, elr in ((low, elr_high), (high, elr_low)):
            assert elr == pytest.approx(sgd_elr(norm, lr, decay).item(), rel=1e-9)
        # The gradients ℓ and L at which these norms stay are those of the epoch.
        grads = [norm**2 * math.sqrt(1 - (1 - lr * decay) ** 2) / lr for norm in (low, high)]
        assert equilibrium_norms(grads[0], grads[1], lr, decay).low.item() == pytest.approx(low, rel=1e-9)
        # A norm follows over some epochs, and not at once: over four seeds it was .72⁻¹ low to 1.8 high.
        assert low < norms[step] < 3 * high
        assert elr_low / 9 < elrs[step] < elr_high
    assert (Path(trainer.log_dir) / "curves.png").exists()
    figure = draw_curves(metrics)
    for title in ("norm", "effective learning rate"):
        (axes,) = [axes for axes in figure.axes if axes.get_title().startswith(title)]
        assert [band.get_label() for band in axes.collections] == ["equilibrium interval (theory)"]


@pytest.mark.parametrize("decay", [None, 3e-2])
def test_predictions_are_drawn_for_the_groups_of_a_resnet18(decay: float | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    logger = CSVLogger(tmp_path)
    options = {"max_epochs": 2, "logger": logger, "limit_val_batches": 0}
    how: dict[str, Any] = {"elr": 1e-2}
    if decay is not None:
        how = {"optimizer": lambda p: SGD(p, lr=0.1, weight_decay=decay)}
    trainer = trainer_for("ours", [EffectiveLearningRateMonitor()], tmp_path, **options)
    trainer.fit(SIResNet18(width=2, in_channels=1, **how), Digits(train_size=256))
    figure = draw_curves(read_metrics(Path(logger.log_dir) / "metrics.csv"))
    (axes,) = [axes for axes in figure.axes if axes.get_title().startswith("effective learning rate")]
    lines = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert len(axes.lines) - len(lines) == 13, "twelve groups and the total"
    assert len(lines) == (3 if decay is None else 1)
    assert len(axes.collections) == (decay is not None)
    assert all(0 < value < math.inf for line in lines for value in np.asarray(line.get_ydata()))


@pytest.mark.parametrize("listed_first", [True, False])
def test_the_predicted_equilibrium_is_that_of_the_epochs_own_learning_rate(listed_first: bool, tmp_path: Path) -> None:
    memory, monitor = Memory(), EffectiveLearningRateMonitor()
    switch = FineTuneSwitch([Switch(epoch=1, lr=0.01)], snapshot=False)
    callbacks: list[Callback] = [monitor, switch] if listed_first else [switch, monitor]
    module = with_optimizer(lambda p: SGD(p, lr=0.1, weight_decay=1e-2))
    trainer_for("layer_norm", callbacks, tmp_path, max_epochs=3, logger=memory).fit(
        module, cases()["layer_norm"].data()
    )
    predicted = [value for (_, key), value in sorted(memory.logged.items()) if key == "equilibrium/ess"]
    assert predicted == pytest.approx([math.tan(math.acos(1 - lr * 1e-2)) for lr in (0.1, 0.01, 0.01)])


def test_a_fixed_norm_has_no_equilibrium_to_go_to(tmp_path: Path) -> None:
    memory, monitor = Memory(), EffectiveLearningRateMonitor()
    watched_by: list[Callback] = [FixedNorm(), monitor]
    module = with_optimizer(lambda p: SGD(p, lr=0.1, weight_decay=1e-2))
    trainer = trainer_for("layer_norm", watched_by, tmp_path, max_epochs=1, logger=memory)
    trainer.fit(module, cases()["layer_norm"].data())
    keys = {key for _, key in memory.logged}
    assert "elr/total" in keys
    assert not [key for key in keys if key.startswith("equilibrium/")]


def test_on_one_sphere_the_equilibrium_is_the_step_of_the_whole(tmp_path: Path) -> None:
    """TR eq. (5): in each step the ELRs of the groups move towards the predicted ones."""
    monitor, memory = EffectiveLearningRateMonitor(per="step"), Memory()
    trainer = trainer_for("ours", [monitor], tmp_path, max_epochs=1, logger=memory, precision="64-true")
    trainer.fit(SIConvNet(width=4, in_channels=1, elr=3e-2, eps=1e-30), Digits(train_size=500))
    assert not any(key == "equilibrium/elr" for _, key in memory.logged), "fixed, not predicted"
    names = [key[5:] for step, key in memory.logged if step == 1 and key.startswith("norm/") and "total" not in key]
    steps = sorted({step for step, key in memory.logged if key == "equilibrium/ess"})
    assert len(names) == 4
    assert len(steps) > 3
    for step, after in itertools.pairwise(steps):
        ess = memory.logged[step, "equilibrium/ess"]
        assert ess == memory.logged[step, "ess/total"]
        for name in names:
            elr, goes_to = memory.logged[step, f"elr/{name}"], ess / memory.logged[step, f"effective_grad_norm/{name}"]
            assert (memory.logged[after, f"elr/{name}"] > elr) == (goes_to > elr), (step, name)


def test_joint_is_the_totals_alone(tmp_path: Path) -> None:
    whole, _ = watched(with_optimizer(SOURCES["AdamW"][0]), tmp_path, EffectiveLearningRateMonitor())
    joint, _ = watched(with_optimizer(SOURCES["AdamW"][0]), tmp_path, EffectiveLearningRateMonitor("joint"))
    keys = {key for _, key in joint.logged if "/" in key and key != "train_loss"}
    extremes = {f"{quantity}/step_max" for quantity in ("radial", "ess", "step_length")}
    predicted = {key for key in keys if key.startswith("equilibrium/")}
    assert keys - predicted == {f"{quantity}/total" for quantity in QUANTITIES} | extremes
    for (step, key), value in joint.logged.items():
        if key not in extremes:
            assert whole.logged[step, key] == pytest.approx(value, rel=1e-12)
    last = max(step for step, key in joint.logged if key == "ess/total")
    assert joint.logged[last, "ess/total"] < joint.logged[last, "ess/step_max"]


def test_quantiles_take_the_place_of_groups(tmp_path: Path) -> None:
    monitor = EffectiveLearningRateMonitor(quantiles=[0, 0.75, 1])
    memory, _ = watched(with_optimizer(SOURCES["SGD"][0]), tmp_path, monitor)
    assert {key for _, key in memory.logged if key.startswith("elr/")} == {
        *("elr/total", "elr/min", "elr/q75", "elr/max")
    }


def test_the_scatter_goes_on_where_a_run_was_killed_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    class Die(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 2 * BATCHES:
                trainer.save_checkpoint(tmp_path / "kill.ckpt")
                raise KeyboardInterrupt

    def monitor() -> EffectiveLearningRateMonitor:
        return EffectiveLearningRateMonitor("filter", scatter_epochs=2)

    whole, memory = fit("ours", [monitor()], tmp_path / "whole"), Memory()
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit("ours", [monitor(), Die()], tmp_path / "killed", memory)
    fit("ours", [monitor()], tmp_path / "resumed", memory, ckpt_path=tmp_path / "kill.ckpt")
    last = 3 * BATCHES - 1
    for key in ("equal_ess/slope", "equal_ess/spread"):
        assert memory.logged[last, key] == whole.logged[last, key]
    written, resumed = ((tmp_path / name / "equal_ess.csv").read_text() for name in ("whole", "resumed"))
    assert written == resumed
    rows = list(csv.DictReader(written.splitlines()))
    assert len(rows) == 60
    elrs, grads = ([float(row[key]) for row in rows] for key in ("elr", "effective_grad_norm"))
    assert equal_ess(elrs, grads).slope == whole.logged[last, "equal_ess/slope"]
    assert matplotlib.image.imread(tmp_path / "whole" / "equal_ess.png").std() > 0.05


def test_an_unknown_optimizer_killed_and_resumed_logs_the_same(tmp_path: Path) -> None:
    class Die(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == BATCHES + 2:
                trainer.save_checkpoint(tmp_path / "kill.ckpt")
                raise KeyboardInterrupt

    def run(memory: Memory, *more: Callback, ckpt_path: Path | None = None) -> None:
        monitor = EffectiveLearningRateMonitor(every_n_steps=2)
        trainer = trainer_for("layer_norm", [monitor, *more], tmp_path, logger=memory)
        trainer.fit(with_optimizer(SignSGD), cases()["layer_norm"].data(), ckpt_path=ckpt_path)

    whole, resumed = Memory(), Memory()
    run(whole)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        run(resumed, Die())
    run(resumed, ckpt_path=tmp_path / "kill.ckpt")
    ours = {key: value for key, value in whole.logged.items() if "/" in key[1]}
    assert ours
    assert {key: resumed.logged[key] for key in ours} == ours


class Keep(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = {key: float(value) for key, value in trainer.callback_metrics.items() if "/total" in key}
        torch.save(logged, self.folder / f"{trainer.world_size}-{trainer.global_rank}.pt")


@pytest.mark.timeout(120)
@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize("name", ["AdamW", "somebody's"])
def test_two_ranks_log_what_one_logs(name: str, tmp_path: Path) -> None:
    for devices in (1, 2):
        trainer = trainer_for(
            "layer_norm",
            [EffectiveLearningRateMonitor(), Keep(tmp_path)],
            tmp_path,
            logger=False,
            devices=devices,
            strategy="ddp_fork" if devices > 1 else "auto",
            precision="64-true",
            max_epochs=2,
        )
        trainer.fit(with_optimizer(SOURCES[name][0]), cases()["layer_norm"].data())
    one, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    assert first == second
    assert first.keys() == one.keys() >= {"elr/total", "ess/total"}
    for key, value in one.items():
        assert first[key] == pytest.approx(value, rel=1e-5), key


def test_a_residual_network_with_adamw_has_its_joint_groups(tmp_path: Path) -> None:
    memory = Memory()
    trainer = trainer_for("resnet", [EffectiveLearningRateMonitor()], tmp_path, max_epochs=1, logger=memory)
    trainer.fit(ForeignResNet(), cases()["resnet"].data())
    logged = {key: value for (_, key), value in memory.logged.items()}
    assert any("+" in key for key in logged)
    single = [key for key in logged if key.startswith("norm/") and key != "norm/total"]
    squares = sum(logged[key] ** 2 for key in single)
    assert squares == pytest.approx(logged["norm/total"] ** 2, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantiles": []}, "quantiles"),
        ({"quantiles": [0.5, 2]}, "quantiles"),
        ({"scatter_epochs": -1}, "scatter_epochs"),
        ({"granularity": "joint", "scatter_epochs": 5}, "no groups to compare"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"EffectiveLearningRateMonitor: .*{message}"):
        EffectiveLearningRateMonitor(**options)


def test_it_stays_out_where_no_optimizer_trains_a_whole_group(tmp_path: Path) -> None:
    class Halves(ForeignModule):
        def make_model(self) -> torch.nn.Module:
            nn = torch.nn
            net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten())
            return nn.Sequential(net, nn.Linear(784, 3))

        def configure_optimizers(self) -> Optimizer:
            return SphereSGD([self.model[1].weight], elr=1e-3)  # type: ignore[index]

    memory = Memory()
    trainer = trainer_for("layer_norm", [EffectiveLearningRateMonitor()], tmp_path, logger=memory, max_epochs=1)
    with pytest.warns(UserWarning, match="EffectiveLearningRateMonitor stays out of this run: no optimizer trains"):
        trainer.fit(Halves(), cases()["layer_norm"].data())
    assert trainer.global_step == BATCHES
    assert {key for _, key in memory.logged} == {"epoch", "train_loss", "val_acc"}


@pytest.mark.slow
def test_filters_settle_at_one_effective_step_size_in_the_chaotic_equilibrium(tmp_path: Path) -> None:
    # Equal effective step sizes (TR §5), on the digits: ELR 3e-2 is in regime 2.
    torch.manual_seed(0)
    memory = Memory()
    monitor = EffectiveLearningRateMonitor("filter", scatter_epochs=20)
    trainer = trainer_for("ours", [monitor], tmp_path, max_epochs=100, logger=memory, limit_val_batches=0)
    trainer.fit(SIConvNet(width=8, in_channels=1, elr=3e-2), Digits())
    last = {key: value for (_, key), value in memory.logged.items()}
    assert -1.1 < last["equal_ess/slope"] < -0.85
    assert last["equal_ess/spread"] < 0.15
    assert last["elr/max"] > 3 * last["elr/min"], "the filters' ELRs must differ to lie on a line"
