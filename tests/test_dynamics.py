"""One event tells of changed dynamics, whoever changes them: a switch, or a norm that begins to be fixed."""

from functools import partial
from typing import Any

import pytest
import torch
from callback_fits import quietly
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_sphere.callbacks import FineTuneSwitch, FixedNorm, LinearInterpolationBarrier, RegimeMonitor, Switch
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet
from lit_sphere.observe.dynamics import Control, DynamicsObserver, controls_of

pytestmark = quietly
STEPS = 3  # of an epoch


class Hears(DynamicsObserver):
    """Notes the step, the first epoch after the change, and the options before and after it."""

    def __init__(self) -> None:
        self.before: list[tuple[int, float]] = []
        self.after: list[tuple[int, int, float]] = []

    def before_dynamics_change(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before.append((trainer.global_step, _norm(pl_module) if _fixes(trainer) else _lr(trainer)))

    def on_dynamics_change(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        self.after.append((trainer.global_step, epoch, _norm(pl_module) if _fixes(trainer) else _lr(trainer)))


def _fixes(trainer: Trainer) -> bool:
    return bool(controls_of(trainer, "norm"))


def _lr(trainer: Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def _norm(module: LightningModule) -> float:
    trained = [p.detach().double().square().sum() for p in module.parameters() if p.requires_grad]
    return float(torch.stack(trained).sum().sqrt())


def fit(*callbacks: Callback, epochs: int = 4) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    module = SIConvNet(width=4, in_channels=1, optimizer=partial(torch.optim.SGD, lr=0.05))
    trainer.fit(module, Digits(train_size=192, batch_size=64))
    return trainer


@pytest.mark.parametrize("first", [True, False])
def test_a_switch_is_heard_of_before_and_after_wherever_the_observer_stands(first: bool) -> None:
    hears, switch = Hears(), FineTuneSwitch([Switch(epoch=2, lr=0.01)])
    fit(*((hears, switch) if first else (switch, hears)))
    assert hears.before == [(2 * STEPS, 0.05)]
    assert hears.after == [(2 * STEPS, 2, 0.01)]


def test_a_norm_that_begins_to_be_fixed_is_heard_of() -> None:
    hears = Hears()
    fit(hears, FixedNorm(norm=2.0, from_epoch=1))
    ((step, norm),), ((after_step, epoch, fixed),) = hears.before, hears.after
    assert (step, after_step, epoch) == (STEPS, STEPS, 1)
    assert norm > 3  # as it had grown
    assert fixed == pytest.approx(2.0, rel=1e-6)


def test_a_norm_fixed_from_the_start_changes_nothing_in_the_middle() -> None:
    hears = Hears()
    fit(hears, FixedNorm())
    assert not hears.before
    assert not hears.after


@pytest.mark.parametrize("control", [FineTuneSwitch([Switch(epoch=2, lr=0.01)]), FixedNorm(from_epoch=2)])
def test_curves_are_cut_and_snapshots_taken_at_any_change(control: Control) -> None:
    monitor, barrier = RegimeMonitor(), LinearInterpolationBarrier(between="switches", points=3)
    fit(monitor, control, barrier)
    assert [(each.first_epoch, each.last_epoch) for each in monitor.segments] == [(0, 1), (2, 3)]
    assert list(barrier.results) == ["barrier-switch-1-to-0004"]


def test_controls_are_found_by_what_they_change() -> None:
    class Other(Control):
        @property
        def changes(self) -> set[str]:
            return {"temperature"}

    controls: list[Any] = [FixedNorm(), FineTuneSwitch([Switch(epoch=1, lr=0.01)]), Other(), RegimeMonitor()]
    trainer = fit(*controls, epochs=2)
    assert controls_of(trainer, "norm") == controls[:1]
    assert controls_of(trainer, "lr") == controls[1:2]
    assert controls_of(trainer, "temperature") == controls[2:3]
    assert controls_of(trainer, "elr") == []
