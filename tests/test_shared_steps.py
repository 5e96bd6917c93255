"""Several monitors of one run measure each optimizer step once, and log the same effective gradient norm."""

import gc
import math
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_fits import Log, Memory, quietly, trainer_for
from foreign_modules import BATCHES, CLASSES, ForeignLayerNorm, ForeignManual, cases
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

from lit_sphere.callbacks import (
    CosineRegimeAnalysis,
    EffectiveLearningRateMonitor,
    FineTuneSwitch,
    FixedNorm,
    RegimeMonitor,
    SharpnessMonitor,
)
from lit_sphere.effective import QUANTITIES, Atoms, EffectiveQuantities
from lit_sphere.groups import find_groups
from lit_sphere.observe.regime import RegimeWatch
from lit_sphere.optim import SphereSGD
from lit_sphere.switching import Switch

pytestmark = quietly

Make = Callable[[], LightningModule]


class SecondRegimeWatch(RegimeWatch):
    """A regime watch of a callback that is no RegimeMonitor."""


MONITORS: dict[str, Callable[[int], Callback]] = {
    "elr": lambda n: EffectiveLearningRateMonitor(every_n_steps=n),
    "sharpness": lambda n: SharpnessMonitor(),
    "regime": lambda n: RegimeMonitor(every_n_steps=n),
    "schedule": lambda n: CosineRegimeAnalysis(every_n_steps=n),
    "second regime watch": lambda n: SecondRegimeWatch(every_n_steps=n),
}
# By which callback a key is logged.
SECTIONS: dict[str, tuple[str, ...]] = {
    "elr": tuple(f"{quantity}/" for quantity in QUANTITIES),
    "sharpness": ("sharpness/",),
    "schedule": ("schedule/",),
}


def with_optimizer(make: Callable[[Any], Optimizer]) -> LightningModule:
    module = ForeignLayerNorm()
    module.configure_optimizers = lambda: make(module.parameters())  # type: ignore[method-assign]
    return module


class UnequalOptimizers(ForeignManual):
    """The first optimizer trains one scale-invariant tensor, the second all others."""

    def configure_optimizers(self) -> Any:
        first, *others = [p for g in find_groups(self, torch.randn(2, 3, 16, 16)) for p in g.parameters]
        rest = [p for p in self.parameters() if all(p is not q for q in (first, *others))]
        return [SGD([first, *rest], lr=0.05), AdamW(others, lr=1e-3)]


class Reference(Callback):
    """The gradient norm times the weights' norm at every step, by a slow and independent way."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.epochs = scale, dict[int, list[float]]()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and not self.epochs:
            groups = find_groups(pl_module, batch[0])
            trained = [{p for g in each.param_groups for p in g["params"]} for each in trainer.optimizers]
            whole = [[g for g in groups if params.issuperset(g.parameters)] for params in trained]
            number = max(range(len(whole)), key=lambda n: len(whole[n]))
            self._optimizer = trainer.optimizers[number]
            self._parameters = [p for group in whole[number] for p in group.parameters]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if getattr(optimizer, "optimizer", optimizer) is self._optimizer:
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
            norms = [
                math.sqrt(sum(float(t.detach().double().square().sum()) for t in ts))
                for ts in (self._parameters, grads)
            ]
            self.epochs.setdefault(trainer.current_epoch, []).append(norms[0] * norms[1] / self.scale)

    @property
    def means(self) -> list[float]:
        return [sum(values) / len(values) for _, values in sorted(self.epochs.items())]


def curve(logged: Log, key: str) -> list[float]:
    return [value for (_, name), value in sorted(logged.items()) if name == key]


def rows_of(callback: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = callback.state_dict()["curves"]["rows"]
    return rows


def run(
    case: str,
    callbacks: list[Callback],
    folder: Path,
    make: Make | None = None,
    **options: Any,
) -> Log:
    memory = options.pop("logger", None) or Memory()
    ckpt_path = options.pop("ckpt_path", None)
    torch.manual_seed(0)
    trainer = trainer_for(case, callbacks, folder, logger=memory, **options)
    trainer.fit((make or cases()[case].make)(), cases()[case].data(), ckpt_path=ckpt_path)
    return memory.logged


def found(name: str, callback: Callback, logged: Log) -> Any:
    """What one monitor gave: what it logged, or the curves that it judges by."""
    if name in SECTIONS:
        mine = {key: value for key, value in logged.items() if key[1].startswith(SECTIONS[name])}
        assert mine
        return mine
    return rows_of(callback)


def together_and_alone(
    monitors: dict[str, Callable[[], Callback]], run_with: Callable[[list[Callback], str], Log]
) -> None:
    """Compare what monitors of one run give with what each gives alone, to the last bit."""
    five = {name: make() for name, make in monitors.items()}
    logged = run_with(list(five.values()), "together")
    for name, make in monitors.items():
        alone = make()
        assert found(name, five[name], logged) == found(name, alone, run_with([alone], name)), name


def fresh(every: dict[str, int] | None = None) -> dict[str, Callable[[], Callback]]:
    """All five, each with its own interval between measured steps, 1 if not given."""
    intervals = {name: (every or {}).get(name, 1) for name in MONITORS}
    return {name: lambda name=name: MONITORS[name](intervals[name]) for name in MONITORS}  # type: ignore[misc]


CASES: dict[str, tuple[str, Make | None, dict[str, Any]]] = {
    "SphereSGD": ("ours", None, {}),
    "SGD": ("layer_norm", lambda: with_optimizer(lambda p: SGD(p, lr=0.05)), {}),
    "momentum": ("layer_norm", None, {}),
    "clipping": ("layer_norm", None, {"gradient_clip_val": 1e-3}),
    "clipping of SphereSGD": (
        "layer_norm",
        lambda: with_optimizer(lambda p: SphereSGD(p, elr=1e-4)),
        {"gradient_clip_val": 1e-3},
    ),
    "clipping of a fused step": (
        "layer_norm",
        lambda: with_optimizer(lambda p: Adam(p, lr=1e-3, fused=True)),
        {"gradient_clip_val": 1e-3},
    ),
    "accumulation": ("layer_norm", None, {"accumulate_grad_batches": 2}),
    "two optimizers": ("manual", UnequalOptimizers, {}),
    "foreign module": ("resnet", None, {}),
    "optimizer of a third party": ("lion", None, {}),
}


@pytest.mark.filterwarnings("ignore:.*1 are trained elsewhere")
@pytest.mark.parametrize("name", CASES)
def test_all_log_one_effective_gradient_norm_that_of_the_raw_gradient(name: str, tmp_path: Path) -> None:
    case, make, options = CASES[name]
    reference, regime = Reference(), RegimeMonitor(every_n_steps=1)
    monitors = [EffectiveLearningRateMonitor(), SharpnessMonitor(), CosineRegimeAnalysis(num_classes=CLASSES)]
    logged = run(case, [reference, *monitors, regime], tmp_path, make, max_epochs=2, **options)
    total = curve(logged, "effective_grad_norm/total")
    assert len(total) == 2
    assert curve(logged, "sharpness/online") == pytest.approx(total, rel=1e-12)
    assert curve(logged, "schedule/sharpness") == pytest.approx(total, rel=1e-12)
    assert [row["effective_grad_norm"][0] for row in rows_of(regime)] == pytest.approx(total, rel=1e-12)
    assert total == pytest.approx(reference.means, rel=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_gradient_scaler_it_is_that_of_the_unscaled_gradient(fused: bool, tmp_path: Path) -> None:
    scale = 2.0**10
    # The reference looks before a fused step, which unscales the gradients itself.
    reference = Reference(scale if fused else 1.0)
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    options = {"precision": None, "plugins": [plugin], "max_epochs": 1}
    monitors: list[Callback] = [EffectiveLearningRateMonitor(), SharpnessMonitor(), CosineRegimeAnalysis()]
    make = lambda: with_optimizer(lambda p: SGD(p, lr=0.05, fused=fused))  # noqa: E731
    logged = run("layer_norm", [reference, *monitors], tmp_path, make, **options)
    for key in ("effective_grad_norm/total", "sharpness/online", "schedule/sharpness"):
        assert curve(logged, key) == pytest.approx(reference.means, rel=1e-5), key


def test_of_filters_the_total_is_the_same_but_for_rounding(tmp_path: Path) -> None:
    logged = run("ours", [EffectiveLearningRateMonitor("filter"), SharpnessMonitor()], tmp_path)
    assert curve(logged, "sharpness/online") == pytest.approx(curve(logged, "effective_grad_norm/total"), rel=1e-6)


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count observations, and the passes over tensors that they consist of."""
    calls: Counter[str] = Counter()

    def count(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    for owner, names in ((EffectiveQuantities, ("observe", "keep_gradients")), (Atoms, ("norms", "products"))):
        for name in names:
            count(owner, name)
    return calls


@pytest.mark.parametrize("case", ["ours", "layer_norm", "accumulated", "lion", "manual", "resnet"])
def test_five_monitors_measure_a_step_once(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    run(case, [make() for make in fresh().values()], tmp_path)
    together = dict(calls)
    steps = 3 * BATCHES // cases()[case].options.get("accumulate_grad_batches", 1)
    assert together["observe"] == steps
    calls.clear()
    run(case, [EffectiveLearningRateMonitor()], tmp_path)
    assert together == calls


@pytest.mark.parametrize("case", ["ours", "accumulated", "lion", "resnet"])
def test_they_give_what_each_gives_alone(case: str, tmp_path: Path) -> None:
    together_and_alone(fresh(), lambda callbacks, name: run(case, callbacks, tmp_path / name, max_epochs=2))


@pytest.mark.parametrize("case", ["ours", "layer_norm", "lion"])
def test_each_may_measure_at_other_steps(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = {"elr": 3, "regime": 2, "schedule": 5, "second regime watch": 3}
    together_and_alone(fresh(every), lambda callbacks, name: run(case, callbacks, tmp_path / name))
    del (monitors := fresh(every))["sharpness"]
    calls = counted(monkeypatch)
    run(case, [make() for make in monitors.values()], tmp_path)
    # The monitor of learning rates goes on counting; the curves begin with each epoch of four steps.
    assert calls["observe"] == len({0, 3, 6, 9} | {0, 2, 4, 6, 8, 10} | {0, 4, 8} | {0, 3, 4, 7, 8, 11})


class SwitchMomentumOn(Callback):
    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == BATCHES + 2:
            trainer.optimizers[0].param_groups[0]["momentum"] = 0.9


class ExchangeOptimizer(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            trainer.strategy.optimizers = [AdamW(pl_module.parameters(), lr=1e-2)]


CHANGES: dict[str, tuple[str, Make | None, Callable[[], Callback]]] = {
    "momentum": ("layer_norm", lambda: with_optimizer(lambda p: SGD(p, lr=0.05)), SwitchMomentumOn),
    "another optimizer": ("layer_norm", lambda: with_optimizer(lambda p: SGD(p, lr=0.05)), ExchangeOptimizer),
    "fixed norm": ("layer_norm", None, lambda: FixedNorm(from_epoch=1)),
    "switch": ("layer_norm", None, lambda: FineTuneSwitch([Switch(step=5, weight_decay=0.1, momentum=0.5)])),
    "switch of the sphere": (
        "ours",
        None,
        lambda: FineTuneSwitch([Switch(epoch=1, elr=1e-3), Switch(loss_below=1e3, sphere=False)]),
    ),
}


@pytest.mark.parametrize(
    ("name", "where"),
    [
        *(("momentum", where) for where in ("first", "in the middle", "last")),
        *(("another optimizer", where) for where in ("first", "in the middle")),
        *((name, "in the middle") for name in ("fixed norm", "switch", "switch of the sphere")),
    ],
)
def test_changes_in_mid_run_are_seen_by_all(name: str, where: str, tmp_path: Path) -> None:
    case, make, change = CHANGES[name]

    def with_change(callbacks: list[Callback], folder: str) -> Log:
        # Alone, on the same side of the change as in the company of the others.
        late = where == "last" or (where == "in the middle" and isinstance(callbacks[0], early))
        place = {"first": 0, "last": len(callbacks), "in the middle": 2 if len(callbacks) > 1 else int(late)}[where]
        epochs = 3 if case == "ours" else 2
        return run(case, [*callbacks[:place], change(), *callbacks[place:]], tmp_path / folder, make, max_epochs=epochs)

    early = (EffectiveLearningRateMonitor, SharpnessMonitor)
    together_and_alone(fresh(), with_change)


def test_a_step_that_calls_its_closure_several_times_is_measured_at_its_last_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> LightningModule:
        return with_optimizer(lambda p: LBFGS(list(p), lr=0.1, max_iter=3))

    calls = counted(monkeypatch)
    options = {"precision": "64-true", "max_epochs": 2}
    together_and_alone(fresh(), lambda callbacks, name: run("layer_norm", callbacks, tmp_path / name, make, **options))
    assert calls["keep_gradients"] > 2 * calls["observe"], "or the closure was called once a step"


class Latecomer(EffectiveLearningRateMonitor):
    """Sees no step before the third."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.global_step > 2:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)


@pytest.mark.parametrize("case", ["ours", "layer_norm"])
def test_who_comes_late_is_not_given_the_step_before(case: str, tmp_path: Path) -> None:
    def late() -> Callback:
        return Latecomer(per="step")

    alone = run(case, [late()], tmp_path / "alone", max_epochs=2)
    together = run(case, [late(), SharpnessMonitor()], tmp_path / "together", max_epochs=2)
    assert found("elr", late(), alone) == found("elr", late(), together)


def test_steps_that_a_gradient_scaler_skips_leave_nothing_behind(tmp_path: Path) -> None:
    def with_scaler(callbacks: list[Callback], name: str) -> Log:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000, backoff_factor=2.0**-30)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        options = {"precision": None, "plugins": [plugin]}
        module = lambda: with_optimizer(lambda p: SGD(p, lr=0.05, momentum=0.9))  # noqa: E731
        return run("layer_norm", callbacks, tmp_path / name, module, **options)

    # Epoch 0 begins with a skipped step; the curves of the others would not be finite if one were counted.
    together_and_alone(fresh(), with_scaler)
    logged = with_scaler([make() for make in fresh().values()], "finite")
    assert all(math.isfinite(value) for value in curve(logged, "sharpness/online"))


@pytest.mark.parametrize("case", ["ours", "layer_norm", "lion"])
def test_killed_in_mid_epoch_and_resumed_they_log_the_same(case: str, tmp_path: Path) -> None:
    class Die(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == BATCHES + 2:
                trainer.save_checkpoint(tmp_path / "kill.ckpt")
                raise KeyboardInterrupt

    def five() -> dict[str, Callback]:
        return {name: make() for name, make in fresh({"elr": 3, "regime": 2}).items()}

    first, last, memory = five(), five(), Memory()
    whole = run(case, list(first.values()), tmp_path)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        run(case, [*five().values(), Die()], tmp_path, logger=memory)
    resumed = run(case, list(last.values()), tmp_path, logger=memory, ckpt_path=tmp_path / "kill.ckpt")
    for name in first:
        assert found(name, first[name], whole) == found(name, last[name], resumed), name


def test_a_checkpoint_of_before_the_watch_was_shared_is_gone_on_from(tmp_path: Path) -> None:
    means = {"evaluated": [torch.ones(2, dtype=torch.float64)], "sum": None, "steps": 2}
    rows = [{"epoch": 0, "sharpness/online": 1.0, "loss": 1.0}]
    old = {"rows": rows, "epoch": 1, "rate": None, "norms": means, "losses": means}
    monitor = SharpnessMonitor()

    class Restore(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            monitor.load_state_dict(old)

    logged = run("layer_norm", [Restore(), monitor], tmp_path, max_epochs=2)
    assert monitor.state_dict()["rows"][0] == rows[0]
    assert [row["epoch"] for row in monitor.state_dict()["rows"]] == [0, 0, 1]
    fresh_run = run("layer_norm", [SharpnessMonitor()], tmp_path, max_epochs=2)
    assert curve(logged, "sharpness/online") == curve(fresh_run, "sharpness/online")


@pytest.mark.parametrize("case", ["ours", "layer_norm"])
def test_the_hooks_are_there_once_and_nothing_outlives_the_run(case: str, tmp_path: Path) -> None:
    hooks: list[tuple[int, int]] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            optimizer = trainer.optimizers[0]
            hooks.append((len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)))

    callbacks = [make() for make in fresh().values()]
    trainer = trainer_for(case, [*callbacks, Look()], tmp_path, logger=False, max_epochs=1)
    trainer.fit(cases()[case].make(), cases()[case].data())
    assert set(hooks) == {(1, 1)}
    optimizer = trainer.optimizers[0]
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    gone = weakref.ref(optimizer)
    del callbacks, trainer, optimizer
    gc.collect()
    assert gone() is None
