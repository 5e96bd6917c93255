"""Switches in the middle of a run: at the right moment, the same after a resume, refused where they cannot be."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_fits import Memory, assert_equal, everything, quietly
from foreign_modules import ForeignData, ForeignLayerNorm, ForeignManual, ForeignResNet
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lit_sphere.callbacks import (
    EffectiveLearningRateMonitor,
    FineTuneSwitch,
    FixedNorm,
    LinearInterpolationBarrier,
    RegimeMonitor,
    Switch,
)
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet
from lit_sphere.optim import SphereSGD, joint_norm
from lit_sphere.report import Series, draw_curves, read_metrics
from lit_sphere.switching import SwitchableOptions

pytestmark = quietly
BATCHES = 3


class Killed(Exception):
    pass


class SaveAndDie(Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == self.step + 1:
            raise Killed


class Steps(Callback):
    """Notes the options before each step, and what the first image of each batch looks like."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, Any]] = {}
        self.images: dict[int, Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        group = trainer.optimizers[0].param_groups[0]
        self.seen[trainer.global_step] = {name: value for name, value in group.items() if name != "params"}
        self.images[trainer.global_step] = batch[0].clone()


def sgd(**options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return partial(torch.optim.SGD, **options)


def ours(**options: Any) -> LightningModule:
    torch.manual_seed(0)
    return SIConvNet(width=4, in_channels=1, **(options or {"elr": 1e-2}))


def data() -> Digits:
    return Digits(batch_size=64, train_size=64 * BATCHES)


def trainer_of(folder: Path, *callbacks: Callback, epochs: int = 5, **options: Any) -> Trainer:
    return Trainer(
        **{
            "max_epochs": epochs,
            "accelerator": "cpu",
            "callbacks": list(callbacks),
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
            "default_root_dir": folder,
            **options,
        }
    )


def seen(folder: Path, *switches: Switch, module: LightningModule | None = None, **options: Any) -> Steps:
    steps = Steps()
    trainer_of(folder, FineTuneSwitch(list(switches)), steps, **options).fit(module or ours(), data())
    return steps


def first_with(steps: Steps, name: str, value: float) -> int:
    return min(step for step, options in steps.seen.items() if options.get(name) == value)


# --- when


def test_an_epoch_a_step_and_epochs_after_each_other(tmp_path: Path) -> None:
    switches = [Switch(epoch=1, elr=1e-3), Switch(step=5, elr=2e-3), Switch(after_epochs=2, elr=3e-3)]
    steps = seen(tmp_path, *switches)
    assert [steps.seen[step]["elr"] for step in range(5 * BATCHES)] == [1e-2] * 3 + [1e-3] * 2 + [2e-3] * 4 + [3e-3] * 6


def test_the_train_loss_passes_a_threshold(tmp_path: Path) -> None:
    memory = Memory()
    trainer_of(tmp_path, logger=memory, epochs=8).fit(ours(), data())
    losses = [value for (_, key), value in sorted(memory.logged.items()) if key == "train/loss"]
    threshold = (losses[3] + losses[4]) / 2
    assert min(losses[:4]) > threshold > losses[4]
    steps = seen(tmp_path, Switch(loss_below=threshold, elr=1e-4), epochs=8)
    assert first_with(steps, "elr", 1e-4) == 5 * BATCHES


def test_a_logged_metric_passes_a_threshold(tmp_path: Path) -> None:
    """A foreign module under automatic optimisation; its loss is logged in the training step."""
    fired = []
    for key in ("train_loss", None):
        steps, switch = Steps(), FineTuneSwitch([Switch(loss_below=1.0, lr=1e-5)], loss_key=key)
        torch.manual_seed(0)
        trainer_of(tmp_path, switch, steps, epochs=12, use_distributed_sampler=True).fit(ForeignResNet(), ForeignData())
        assert switch.fired[0]["step"] == first_with(steps, "lr", 1e-5) > 4
        fired.append(switch.fired[0]["epoch"])
    assert fired[0] == fired[1]


@pytest.mark.parametrize("every", [1, 2])
def test_a_metric_that_nobody_logs_is_named_when_all_are_known(every: int, tmp_path: Path) -> None:
    switch = FineTuneSwitch([Switch(step=10**6, elr=1e-2), Switch(loss_below=1.0, elr=1e-3)], loss_key="nope")
    trainer = trainer_of(tmp_path, switch, epochs=-1, check_val_every_n_epoch=every)
    said = r"FineTuneSwitch: loss_key nope is not logged; the metrics that are: .*train/loss, .*val/loss; set loss_key"
    with pytest.raises(ValueError, match=said):
        trainer.fit(ours(), data())
    assert trainer.global_step == every * BATCHES


def test_a_metric_of_a_later_validation_is_waited_for(tmp_path: Path) -> None:
    switch = FineTuneSwitch([Switch(loss_below=1e3, elr=1e-3)], loss_key="val/loss")
    trainer_of(tmp_path, switch, check_val_every_n_epoch=3).fit(ours(), data())
    assert [each["epoch"] for each in switch.fired] == [3]


def test_a_wrong_metric_in_a_run_of_one_epoch(tmp_path: Path) -> None:
    switch = FineTuneSwitch([Switch(loss_below=1.0, elr=1e-3)], loss_key="nope")
    with (
        pytest.warns(UserWarning, match=r"will not take place: this run ends before \(1 epochs\)"),
        pytest.warns(UserWarning, match="never took place; loss_key nope is not logged; the metrics that are: regime"),
    ):
        trainer_of(tmp_path, RegimeMonitor(), switch, epochs=1).fit(ours(), data())


def test_the_regime_is_named(tmp_path: Path) -> None:
    class Scripted(RegimeMonitor):
        restarts: list[int] = []  # noqa: RUF012
        shortest_run = 1

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.announced = "convergence" if trainer.current_epoch == 2 else "undecided"

        def restart(self, epoch: int) -> None:
            self.restarts.append(epoch)
            self.announced = "undecided"

    monitor, steps = Scripted(), Steps()
    switch = FineTuneSwitch([Switch(regime="convergence", elr=2e-2)])
    trainer_of(tmp_path, monitor, switch, steps).fit(ours(), data())
    assert first_with(steps, "elr", 2e-2) == 3 * BATCHES
    assert monitor.restarts == [3]


@pytest.mark.slow
def test_a_regime_that_the_monitor_really_names(tmp_path: Path) -> None:
    monitor = RegimeMonitor()
    switch = FineTuneSwitch([Switch(regime="convergence", elr=3e-2)])
    torch.manual_seed(0)
    module = SIConvNet(width=8, in_channels=1, elr=1e-3)
    trainer_of(tmp_path, monitor, switch, epochs=100, logger=CSVLogger(tmp_path, name="", version="")).fit(
        module, Digits()
    )
    assert 10 < switch.fired[0]["epoch"] < 90
    assert monitor.segments[0].regime == "convergence"
    assert monitor.segments[-1].regime != "convergence"


def test_a_run_ends_some_epochs_after_the_last_switch(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, FineTuneSwitch([Switch(epoch=2, elr=1e-3)], stop_after_last=2), epochs=20)
    trainer.fit(ours(), data())
    assert trainer.current_epoch == 4


# --- what


def test_weight_decay_momentum_and_lr_of_the_whole_space(tmp_path: Path) -> None:
    module = ours(optimizer=sgd(lr=0.1, momentum=0.9))
    switch = FineTuneSwitch([Switch(epoch=1, momentum=0.0, lr=0.05), Switch(epoch=2, momentum=0.5, weight_decay=0.1)])
    steps = Steps()
    trainer = trainer_of(tmp_path, switch, steps, epochs=3)
    trainer.fit(module, data())
    got = [tuple(steps.seen[BATCHES * e][name] for name in ("lr", "momentum", "weight_decay")) for e in range(3)]
    assert got == [(0.1, 0.9, 0), (0.05, 0.0, 0), (0.05, 0.5, 0.1)]


def test_an_old_momentum_buffer_is_not_taken_up_again() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.ones(3)
    optimizer.step()
    options = SwitchableOptions([optimizer])
    assert options.apply({"momentum": 0.0}) == {"momentum": (0.9, 0.0)}
    assert "momentum_buffer" not in optimizer.state[weight]


def test_augmentation_holds_from_the_first_batch_of_the_epoch(tmp_path: Path) -> None:
    plain, switched = seen(tmp_path, Switch(epoch=4, elr=1e-3)), seen(tmp_path, Switch(epoch=2, augment=True))
    same = [torch.equal(plain.images[step], switched.images[step]) for step in range(5 * BATCHES)]
    assert same == [True] * (2 * BATCHES) + [False] * (3 * BATCHES)


def test_leaving_the_sphere_is_plain_sgd() -> None:
    torch.manual_seed(0)
    start = [torch.randn(4, 3), torch.randn(5)]
    mine, theirs = ([torch.nn.Parameter(t.clone()) for t in start] for _ in range(2))
    sphere = SphereSGD(mine, elr=0.02)
    radius = sphere.param_groups[0]["radius"]
    told = SwitchableOptions([sphere]).apply({"sphere": False, "weight_decay": 0.1})
    assert told["lr"][0] is None
    assert told["lr"][1] == pytest.approx(0.02 * radius**2)
    assert told["sphere"] == (True, False)
    plain = torch.optim.SGD(theirs, lr=told["lr"][1], weight_decay=0.1)
    for _ in range(5):
        for p, q in zip(mine, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        sphere.step()
        plain.step()
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))
    assert joint_norm(mine).item() != pytest.approx(radius, rel=1e-4)
    lr = sphere.param_groups[0]["lr"]
    fresh = SphereSGD([torch.nn.Parameter(t.clone()) for t in start], elr=0.02)
    fresh.load_state_dict(sphere.state_dict())  # as when a run is resumed
    assert (fresh.param_groups[0]["elr"], fresh.param_groups[0]["lr"]) == (None, lr)
    now = joint_norm(mine).item()
    assert SwitchableOptions([sphere]).apply({"sphere": True})["elr"][1] == pytest.approx(lr / now**2)
    sphere.step()
    assert joint_norm(mine).item() == pytest.approx(now, rel=1e-6)
    left = {"left_granularity"}
    assert sphere.param_groups[0].keys() == fresh.param_groups[0].keys() - left | {"granularity", "radius"}


def test_spheres_of_filters_are_left_and_entered_with_a_rate_of_ones_own() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3))
    optimizer = SphereSGD([weight], elr=0.02, granularity="filter")
    options = SwitchableOptions([optimizer])
    with pytest.raises(ValueError, match=r"spheres of filters .* give lr to leave them"):
        options.apply({"sphere": False})
    options.apply({"sphere": False, "lr": 0.1})
    assert not optimizer.state[weight]
    options.apply({"sphere": True, "elr": 0.1})
    assert torch.allclose(optimizer.state[weight]["radius"], weight.norm(dim=1, keepdim=True))


def test_sgd_on_the_sphere_takes_the_steps_of_sphere_sgd() -> None:
    torch.manual_seed(0)
    start = [torch.randn(4, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64), torch.randn(2)]
    mine, theirs = ([torch.nn.Parameter(t.clone()) for t in start] for _ in range(2))
    sgd_ = torch.optim.SGD(mine, lr=0.1, momentum=0.9, weight_decay=0.1)
    options = SwitchableOptions([sgd_], mine[:2])
    told = options.apply({"sphere": True, "elr": 0.02})
    assert told["elr"][1] == pytest.approx(0.02)
    assert [len(group["params"]) for group in sgd_.param_groups] == [2, 1]
    assert sgd_.param_groups[1]["momentum"] == 0.9, "what is not scale-invariant stays as it was"
    sphere = SphereSGD([{"params": theirs[:2]}], elr=0.02)
    for step in range(6):
        if step == 3:
            assert list(options.apply({"elr": 0.05})["elr"]) == pytest.approx([0.02, 0.05])
            sphere.param_groups[0]["elr"] = 0.05
        for p, q in zip(mine, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        sgd_.step()
        sphere.step()
    assert all(torch.allclose(p, q, rtol=1e-12) for p, q in zip(mine[:2], theirs[:2], strict=True))
    options.apply({"sphere": False, "lr": 0.3})
    before = joint_norm(mine[:2]).item()
    sgd_.step()
    assert joint_norm(mine[:2]).item() != pytest.approx(before, rel=1e-6)
    assert [group["lr"] for group in sgd_.param_groups] == [0.3, 0.3]


def test_the_monitor_follows_at_once(tmp_path: Path) -> None:
    memory, module = Memory(), ours(optimizer=sgd(lr=0.1))
    switches = [Switch(epoch=1, sphere=True, elr=1e-3), Switch(epoch=2, elr=4e-3), Switch(epoch=3, sphere=False)]
    trainer = trainer_of(tmp_path, EffectiveLearningRateMonitor(), FineTuneSwitch(switches), logger=memory, epochs=4)
    trainer.fit(module, data())
    elr = [value for (_, key), value in sorted(memory.logged.items()) if key == "elr/total"]
    norm = [value for (_, key), value in sorted(memory.logged.items()) if key == "norm/total"]
    assert elr[1:3] == pytest.approx([1e-3, 4e-3], rel=1e-6)
    assert norm[1] == pytest.approx(norm[2], rel=1e-6)
    assert norm[0] != pytest.approx(norm[1], rel=1e-6)
    assert norm[3] != pytest.approx(norm[2], rel=1e-5)


# --- marks


def test_marks_snapshots_and_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger, memory = CSVLogger(tmp_path, name="", version=""), Memory()
    switch = FineTuneSwitch([Switch(epoch=2, elr=1e-3), Switch(step=10, augment=True)])
    barrier = LinearInterpolationBarrier(between="switches", points=3)
    trainer_of(tmp_path, switch, barrier, logger=[logger, memory]).fit(ours(), data())
    assert memory.logged[2 * BATCHES - 1, "switch/elr"] == 1e-3
    assert memory.logged[9, "switch/augment"] == 1
    assert [(each["epoch"], each["step"]) for each in switch.fired] == [(2, 6), (3, 10)]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["before-switch-1-epoch0002.ckpt", "before-switch-2-epoch0003.ckpt"]
    kept = torch.load(tmp_path / "checkpoints" / names[0], weights_only=True)
    assert kept["global_step"] == 6
    assert kept["optimizer_states"][0]["param_groups"][0]["elr"] == 1e-2
    assert len(barrier.results) == 2


def test_pictures_show_where_the_switches_were() -> None:
    epochs = [float(i) for i in range(6)]
    series = {
        "train/loss": Series(epochs, epochs, [1.0 - i / 10 for i in range(6)]),
        "elr/total": Series(epochs, epochs, [1e-2] * 3 + [1e-3] * 3),
    }
    bare = draw_curves(series)
    marks = {"switch/elr": Series([3.0], [3.0], [1e-3]), "switch/sphere": Series([3.0, 5.0], [3.0, 5.0], [0.0, 1.0])}
    marked = draw_curves({**series, **marks})
    for before, after in zip(bare.axes, marked.axes, strict=True):
        added: list[Any] = [line.get_xdata() for line in after.lines[len(before.lines) :]]
        assert [list(x) for x in added] == [[2.5, 2.5], [4.5, 4.5]]
    legend = marked.axes[0].get_legend()
    assert legend is not None
    said = [text.get_text() for text in legend.get_texts()]
    assert "from epoch 3: elr 0.001, sphere 0" in said
    assert "from epoch 5: sphere 1" in said


def test_a_run_goes_on_from_the_snapshot_before_a_switch(tmp_path: Path) -> None:
    switch = [Switch(epoch=2, elr=1e-3, augment=True)]
    logger = CSVLogger(tmp_path, name="", version="")
    whole, again = ours(), ours()
    trainer_of(tmp_path, FineTuneSwitch(switch), logger=logger).fit(whole, data())
    snapshot = tmp_path / "checkpoints" / "before-switch-1-epoch0002.ckpt"
    trainer_of(tmp_path, FineTuneSwitch(switch)).fit(again, data(), ckpt_path=snapshot)
    assert_equal(whole.state_dict(), again.state_dict())


# --- resume and ranks

_CHAINS: dict[str, list[Switch]] = {
    "epochs": [Switch(epoch=2, elr=1e-3, augment=True), Switch(after_epochs=1, elr=5e-3)],
    "step": [Switch(step=7, elr=1e-3, augment=True)],
    "loss": [Switch(loss_below=2.2, elr=1e-3)],
    "sphere": [Switch(epoch=2, sphere=False, weight_decay=1e-2), Switch(epoch=3, sphere=True)],
}


@pytest.mark.parametrize(
    ("chain", "step"),
    [
        *(("epochs", step) for step in (5, 6, 7, 9)),
        *(("step", step) for step in (6, 7, 8)),
        *(("loss", step) for step in (5, 6, 8)),
        *(("sphere", step) for step in (5, 6, 7, 10)),
    ],
)
def test_a_killed_and_resumed_run_is_bit_identical(chain: str, step: int, tmp_path: Path) -> None:
    _compare_with_killed(tmp_path, step, lambda: FineTuneSwitch(_CHAINS[chain]), ours)


@pytest.mark.parametrize("step", [6, 7])
def test_also_where_sgd_enters_the_sphere(step: int, tmp_path: Path) -> None:
    switches = [Switch(epoch=2, sphere=True, elr=1e-2), Switch(epoch=3, elr=2e-2), Switch(epoch=4, sphere=False)]
    make = partial(ours, optimizer=sgd(lr=0.1, momentum=0.9, weight_decay=1e-3))
    _compare_with_killed(tmp_path, step, lambda: FineTuneSwitch(switches), make)


@pytest.mark.parametrize("key", ["train/loss", "val/loss"])
@pytest.mark.parametrize("step", [5, 7])
def test_also_where_a_logged_metric_is_waited_for(key: str, step: int, tmp_path: Path) -> None:
    memory = Memory()
    trainer_of(tmp_path, logger=memory, epochs=5).fit(ours(), data())
    losses = [value for (_, name), value in sorted(memory.logged.items()) if name == key]
    # A checkpoint in epoch 1 or 2, of which the first has the metric of epoch 0 alone.
    threshold = (losses[0] + losses[1]) / 2 if step == 5 else (losses[1] + losses[2]) / 2
    switches = [Switch(loss_below=threshold, elr=1e-3)]
    _compare_with_killed(tmp_path, step, lambda: FineTuneSwitch(switches, loss_key=key), ours)


def test_a_run_goes_on_from_a_validation_with_the_metric_that_was_waited_for(tmp_path: Path) -> None:
    class SaveAtValidation(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 2:
                trainer.save_checkpoint(tmp_path / "val.ckpt")

    memory, one, two = Memory(), ours(), ours()
    trainer_of(tmp_path, SaveAtValidation(), logger=memory).fit(ours(), data())
    losses = [value for (_, name), value in sorted(memory.logged.items()) if name == "val/loss"]
    assert min(losses[:2]) > losses[2]
    make = partial(FineTuneSwitch, [Switch(loss_below=(min(losses[:2]) + losses[2]) / 2, elr=1e-3)], "val/loss")
    whole, resumed = make(), make()
    trainer_of(tmp_path, whole, SaveAtValidation()).fit(one, data())
    trainer_of(tmp_path, resumed).fit(two, data(), ckpt_path=tmp_path / "val.ckpt")
    assert [each["epoch"] for each in resumed.fired] == [each["epoch"] for each in whole.fired] == [3]
    assert_equal(one.state_dict(), two.state_dict())


def _compare_with_killed(
    folder: Path, step: int, switch: Callable[[], Callback], make: Callable[[], LightningModule]
) -> None:
    results = []
    for killed in (False, True):
        memory, path = Memory(), folder / "kill.ckpt"
        if killed:
            with pytest.raises(Killed):
                trainer_of(folder, switch(), SaveAndDie(path, step), logger=memory).fit(make(), data())
        mine, module = switch(), make()
        trainer = trainer_of(folder, mine, logger=memory)
        trainer.fit(module, data(), ckpt_path=path if killed else None)
        assert isinstance(mine, FineTuneSwitch)
        assert len(mine.fired) == len(mine.switches)
        switched = {key: value for key, value in memory.logged.items() if key[1].startswith("switch/")}
        results.append((everything(trainer, module), mine.fired, switched))
    (one, fired, logged), (two, fired_too, logged_too) = results
    assert_equal(one, two)
    assert fired == fired_too
    assert logged == logged_too


@pytest.mark.parametrize("shorter", [{"epochs": 2}, {"max_steps": 2 * BATCHES}])
@pytest.mark.parametrize("switch", [Switch(epoch=2, elr=1e-3), Switch(loss_below=1e9, elr=1e-3)], ids=["epoch", "loss"])
@pytest.mark.filterwarnings("ignore:.*(will not take|never took) place")
def test_a_run_that_ended_where_a_switch_is_due_switches_there_when_it_goes_on(
    switch: Switch, shorter: dict[str, Any], tmp_path: Path
) -> None:
    def fit(steps: Steps, ckpt: Path | None = None, **options: Any) -> Trainer:
        switches = [switch] if switch.epoch else [Switch(epoch=1, elr=2e-2), switch]
        trainer = trainer_of(tmp_path, steps, FineTuneSwitch(switches, snapshot=False), **options)
        trainer.fit(ours(), data(), ckpt_path=ckpt)
        return trainer

    whole, rest = Steps(), Steps()
    fit(whole, epochs=4)
    fit(Steps(), **shorter).save_checkpoint(tmp_path / "end.ckpt")
    fit(rest, tmp_path / "end.ckpt", epochs=4)
    assert first_with(whole, "elr", 1e-3) == 2 * BATCHES
    assert rest.seen == {step: options for step, options in whole.seen.items() if step >= 2 * BATCHES}


def test_other_switches_after_a_resume_are_told(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trainer_of(tmp_path, SaveAndDie(tmp_path / "a.ckpt", 4), FineTuneSwitch([Switch(epoch=1, elr=1e-3)])).fit(
            ours(), data()
        )
    with pytest.warns(UserWarning, match="made 1 switches already, not the first of those given"):
        trainer_of(tmp_path, FineTuneSwitch([Switch(epoch=1, elr=2e-3)])).fit(
            ours(), data(), ckpt_path=tmp_path / "a.ckpt"
        )


class RanksAgree(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mine = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        others = [torch.empty_like(mine) for _ in range(2)]
        torch.distributed.all_gather(others, mine)
        assert torch.equal(others[0], others[1])
        (switch,) = [each for each in trainer.callbacks if isinstance(each, FineTuneSwitch)]  # type: ignore[attr-defined]
        assert len(switch.fired) == len(switch.switches)


def test_two_ranks_switch_together(tmp_path: Path) -> None:
    switches = [Switch(loss_below=2.25, elr=1e-3), Switch(after_epochs=1, sphere=False)]
    logger = CSVLogger(tmp_path, name="", version="")
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp_fork", "logger": logger, "epochs": 8}
    trainer_of(tmp_path, FineTuneSwitch(switches), RanksAgree(), **options).fit(ours(), data())
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


# --- refused, warned of


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"elr": 1e-3}, "exactly one of epoch, step, after_epochs, loss_below, regime; none is given"),
        ({"epoch": 1, "step": 2, "elr": 1e-3}, "exactly one of .* got epoch and step"),
        ({"epoch": 1}, "changes nothing; give elr"),
        ({"epoch": 0, "elr": 1e-3}, "epoch must be at least 1"),
        ({"epoch": 1, "elr": 0.0}, "elr must be positive and finite, got 0.0"),
        ({"epoch": 1, "elr": float("nan")}, "elr must be positive and finite, got nan"),
        ({"epoch": 1, "lr": -1.0}, "lr must be positive"),
        ({"loss_below": 0.0, "lr": 1.0}, "loss_below must be positive"),
        ({"epoch": 1, "weight_decay": -1.0}, "weight_decay must be finite and not negative"),
        ({"epoch": 1, "momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"epoch": 1, "sphere": False, "elr": 1.0}, "leaves the sphere, where there is no elr; give lr"),
        ({"epoch": 1, "sphere": True, "momentum": 0.9}, "enters the sphere, where there is an elr only"),
    ],
)
def test_a_switch_that_is_none(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"switch \{{.*\}}: .*{said}"):
        Switch(**options)


def test_lists_that_are_none() -> None:
    with pytest.raises(ValueError, match="there is no switch; give at least one"):
        FineTuneSwitch([])
    with pytest.raises(ValueError, match="epoch falls"):
        FineTuneSwitch([Switch(epoch=2, elr=1.0), Switch(epoch=1, elr=2.0)])
    with pytest.raises(ValueError, match="stop_after_last must be at least 1"):
        FineTuneSwitch([Switch(epoch=2, elr=1.0)], stop_after_last=0)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("made", [{"elr": 1e-3}, {"sphere": False}])
def test_a_resumed_run_with_more_switches_repeats_none(made: dict[str, Any], tmp_path: Path) -> None:
    """The list goes on with an option that was not changed before."""
    first, path = Switch(after_epochs=1, **made), tmp_path / "last.ckpt"
    trainer = trainer_of(tmp_path, FineTuneSwitch([first]), epochs=2)
    trainer.fit(ours(), data())
    trainer.save_checkpoint(path)
    longer = FineTuneSwitch([first, Switch(after_epochs=2, augment=True)])
    trainer_of(tmp_path, longer, epochs=4).fit(ours(), data(), ckpt_path=path)
    assert [(each["epoch"], sorted(each["values"])[0]) for each in longer.fired] == [
        (1, "elr" if "elr" in made else "lr"),
        (3, "augment"),
    ]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_with_other_switches_makes_them_all(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    trainer = trainer_of(tmp_path, FineTuneSwitch([Switch(epoch=1, elr=1e-3)]), epochs=2)
    trainer.fit(ours(), data())
    trainer.save_checkpoint(path)
    other = FineTuneSwitch([Switch(epoch=3, sphere=False)])
    trainer_of(tmp_path, other, epochs=4).fit(ours(), data(), ckpt_path=path)
    assert [each["epoch"] for each in other.fired] == [3]


@pytest.mark.parametrize("switches", [[{"epoch": 1, "elr": 1.0}], Switch(epoch=1, elr=1.0), "x"])
def test_what_is_no_list_of_switches(switches: Any) -> None:
    with pytest.raises(ValueError, match=r"FineTuneSwitch: switches must be a list of Switch, e.g. \["):
        FineTuneSwitch(switches)


def test_a_regime_that_does_not_exist_is_refused_when_it_is_written() -> None:
    with pytest.raises(ValueError, match=r"FineTuneSwitch: .*no such regime; regime is one of .*convergence, chaotic"):
        FineTuneSwitch([Switch(regime="convergense", elr=1.0)])


def cosine() -> LightningModule:
    return ForeignLayerNorm()


_AT: dict[str, Any] = {"epoch": 1}


@pytest.mark.parametrize(
    ("make", "switches", "others", "said"),
    [
        (ForeignResNet, [{"elr": 1.0}], [], "AdamW in the whole space has no elr; give lr"),
        (ForeignResNet, [{"momentum": 0.5}], [], "there is no momentum of AdamW to change; take torch.optim.SGD"),
        (ForeignResNet, [{"sphere": True}], [], "AdamW cannot enter a sphere; take torch.optim.SGD, or FixedNorm"),
        (ours, [{"lr": 1.0}], [], "no lr on the sphere to change; give elr, or sphere: false"),
        (ours, [{"sphere": False}, {"elr": 1.0}], [], "SphereSGD in the whole space has no elr"),
        (ours, [{"sphere": False}, {"momentum": 0.9}], [], "no momentum of SphereSGD"),
        (ours, [{"elr": 1.0, "regime": "convergence"}], [], "nobody names it; add RegimeMonitor"),
        (ForeignResNet, [{"augment": True}], [], "ForeignData has no attribute augment"),
        (
            ours,
            [{"elr": 1.0}],
            [FineTuneSwitch([Switch(epoch=1, elr=2.0, augment=True)])],
            "another FineTuneSwitch changes elr",
        ),
        (
            ours,
            [{"sphere": False}],
            [FineTuneSwitch([Switch(step=4, elr=2.0)])],
            "another FineTuneSwitch changes elr",
        ),
        (
            ours,
            [{"elr": 1.0, "regime": "convergence"}],
            [RegimeMonitor()],
            "RegimeMonitor comes after it in the list of callbacks and would name the regime too late",
        ),
        (cosine, [{"lr": 1.0}], [], "CosineAnnealingLR sets the learning rate too; remove the scheduler"),
        (ForeignResNet, [{"lr": 1.0}], [LearningRateFinder()], "LearningRateFinder sets the learning rate"),
        (ForeignResNet, [{"lr": 1.0}], [StochasticWeightAveraging(0.1)], "StochasticWeightAveraging sets the learning"),
        (
            partial(ours, optimizer=sgd(lr=0.1)),
            [{"sphere": True}],
            [FixedNorm()],
            "FixedNorm fixes the norm, as a sphere does; remove one",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
def test_refused_before_training(
    make: Any, switches: list[dict[str, Any]], others: list[Callback], said: str, tmp_path: Path
) -> None:
    listed = [Switch(**({} if "regime" in each else _AT), **each) for each in switches]
    trainer = trainer_of(tmp_path, FineTuneSwitch(listed), *others)
    module = make()
    with pytest.raises(ValueError, match=f"FineTuneSwitch: .*{re.escape(said)}"):
        trainer.fit(module, data() if isinstance(module, SIConvNet) else ForeignData())
    assert trainer.global_step == 0


def test_a_switch_without_effect_and_one_that_never_came_are_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"switch \{epoch: 1, elr: 0.01\} changes nothing"):
        trainer_of(tmp_path, FineTuneSwitch([Switch(epoch=1, elr=1e-2)]), epochs=2).fit(ours(), data())
    switch = r"switch \{epoch: 2, elr: 0.001\}"
    with (
        pytest.warns(UserWarning, match=rf"{switch} will not take place: this run ends before \(2 epochs\)"),
        pytest.warns(UserWarning, match=rf"after 2 epochs, and {switch} never took place; train longer, or remove it"),
    ):
        trainer_of(tmp_path, FineTuneSwitch([Switch(epoch=2, elr=1e-3)]), epochs=2).fit(ours(), data())


@pytest.mark.parametrize(
    ("switches", "options", "enough", "said"),
    [
        (
            [{"epoch": 5}],
            {},
            {"epochs": 6},
            r"switch \{epoch: 5, .* will not take place: this run ends before \(5 epochs\)",
        ),
        ([{"epoch": 2}], {"max_steps": 6}, {"max_steps": 7}, r"\{epoch: 2, .* ends before \(5 epochs, 6 steps\)"),
        ([{"step": 15}], {}, {"epochs": 6}, r"\{step: 15, .* before \(5 epochs, 15 steps, one for each batch\)"),
        ([{"step": 6}], {"max_steps": 6, "epochs": -1}, {"max_steps": 7}, r"\{step: 6, .* ends before \(6 steps\)"),
        (
            [{"epoch": 3}, {"after_epochs": 2}, {"loss_below": 1.0}],
            {},
            {"epochs": 7},
            r"\{after_epochs: 2, .*\} and 1 after it will",
        ),
        ([{"step": 14}, {"loss_below": 1e9}], {}, {"epochs": 6}, r"\{loss_below: .* ends before \(5 epochs\)"),
        (
            [{"regime": "convergence"}],
            {"epochs": 20},
            {"epochs": 21},
            r"\{regime: convergence, .* ends before \(20 epochs\)",
        ),
    ],
)
def test_a_switch_that_cannot_come_is_told_before_the_first_step(
    switches: list[dict[str, Any]], options: dict[str, Any], enough: dict[str, Any], said: str, tmp_path: Path
) -> None:
    class End(Exception):
        pass

    class EndAtOnce(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            raise End

    def fit(**options: Any) -> None:
        switch = FineTuneSwitch([Switch(**each, augment=True) for each in switches])
        monitors = [RegimeMonitor()] if "regime" in switches[0] else []
        with pytest.raises(End):
            trainer_of(tmp_path, *monitors, switch, EndAtOnce(), **options).fit(ours(), data())

    with pytest.warns(UserWarning, match=said) as told:
        fit(**options)
    assert len([each for each in told if "FineTuneSwitch" in str(each.message)]) == 1
    fit(**{**options, **enough})


class Stream(IterableDataset[tuple[Tensor, int]]):
    """Images without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for image, label in zip(torch.randn(64 * BATCHES, 1, 8, 8), range(64 * BATCHES), strict=True):
            yield image, label % 10


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize(
    "options", [{}, {"max_steps": 4 * BATCHES}, {"max_steps": 4 * BATCHES, "limit_train_batches": 100}]
)
def test_nothing_is_said_of_steps_where_nobody_knows_how_many_there_are(
    options: dict[str, Any], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    switches = [
        Switch(epoch=1, elr=1e-3),
        Switch(after_epochs=1, elr=2e-3),
        Switch(step=3 * BATCHES - 1, elr=3e-3),
        Switch(loss_below=1e9, elr=4e-3),
    ]
    fit = FineTuneSwitch(switches)
    torch.manual_seed(0)
    loader = DataLoader(Stream(), batch_size=64)
    trainer_of(tmp_path, fit, epochs=4, limit_val_batches=0, **options).fit(ours(), loader)
    assert [each["epoch"] for each in fit.fired] == [1, 2, 2, 3]
    assert not [each for each in recwarn if "FineTuneSwitch" in str(each.message)]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("options", [{"epochs": 2}, {"epochs": 2, "limit_train_batches": 2}])
def test_too_few_epochs_are_told_also_where_their_length_is_unknown(options: dict[str, Any], tmp_path: Path) -> None:
    fit = FineTuneSwitch([Switch(epoch=2, elr=1e-3)])
    with (
        pytest.warns(UserWarning, match=r"will not take place: this run ends before \(2 epochs\)"),
        pytest.warns(UserWarning, match="never took place"),
    ):
        trainer_of(tmp_path, fit, limit_val_batches=0, **options).fit(ours(), DataLoader(Stream(), batch_size=64))


def test_a_step_that_returns_no_loss(tmp_path: Path) -> None:
    switch = FineTuneSwitch([Switch(loss_below=1.0, lr=1e-3)])
    with pytest.raises(ValueError, match=r"training_step returns no loss.*set loss_key"):
        trainer_of(tmp_path, switch).fit(ForeignManual(), ForeignData())


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        ("[{epoch: 1, elr: 0}]", ["elr must be positive"]),
        ("[{epoch: 1}]", ["changes nothing; give elr"]),
        ("[{epoch: 1, lr: 0.1}]", ["FineTuneSwitch", "no lr on the sphere", "give elr"]),
        ("[{epoch: 1, elrr: 0.1}]", ["elrr"]),
        ("[{regime: convergence, elr: 0.1}]", ["FineTuneSwitch", "add RegimeMonitor"]),
    ],
)
def test_one_line_on_the_command_line(
    switches: str, words: list[str], empty_folder: Path, lit_sphere: Callable[..., Any]
) -> None:
    text = f"trainer:\n  callbacks:\n    - class_path: FineTuneSwitch\n      init_args: {{switches: {switches}}}\n"
    Path("c.yaml").write_text(text)
    done = lit_sphere("fit", "--config", "elr.yaml", "--config", "c.yaml", "--wandb", "disabled")
    assert done.status != 0
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert all(word in done.err for word in words), done.err


def test_a_switch_on_the_command_line(empty_folder: Path, lit_sphere: Callable[..., Any]) -> None:
    switch = "class_path: FineTuneSwitch, init_args: {switches: [{epoch: 1, elr: 2.0e-3}]}"
    text = f"trainer: {{callbacks: [{{{switch}}}]}}"
    Path("c.yaml").write_text(text)
    few = ("--trainer.max_epochs", "2", "--data.train_size", "256", "--wandb", "disabled", "--run", "r")
    done = lit_sphere("fit", "--config", "elr.yaml", "--config", "c.yaml", *few)
    assert done.status == 0, done.err
    assert "FineTuneSwitch: from epoch 1, step 2 on: elr 0.001 → 0.002" in done.err
    assert Path("r/checkpoints/before-switch-1-epoch0001.ckpt").is_file()
    on = ("--ckpt_path", "r/checkpoints/last.ckpt", "--run", "r", "--trainer.max_epochs", "3", "--wandb", "disabled")
    done = lit_sphere("fit", *on)
    assert done.status == 0, done.err
    series = read_metrics("r/metrics.csv")
    assert series["elr/total"].values == pytest.approx([1e-3, 2e-3, 2e-3], rel=1e-6)
    assert series["switch/elr"] == ([1.0], [1.0], [2e-3])
