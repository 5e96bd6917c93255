"""Optimizers, schedules, callbacks and options of Lightning's that cannot work here: refused before training."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_fits import quietly
from conftest import LitSphere
from lightning.pytorch.callbacks import EMAWeightAveraging, GradientAccumulationScheduler, LearningRateMonitor
from test_bad_input import refused

from lit_sphere.modules.lightning_options import check_trainer
from lit_sphere.modules.optimizers import check_optimizer, check_same_optimizer
from lit_sphere.optim import AdaGradG, SphereSGD

pytestmark = quietly
RUN = ("fit", "--run", "r", "--trainer.max_epochs", "4", "--data.train_size", "64", "--data.batch_size", "32")
SGD = partial(torch.optim.SGD, lr=0.1)

_WHOLE = "--model.elr null --model.optimizer"
_SCHEDULE = f"{_WHOLE} Adagrad --model.optimizer.lr 0.1 --model.scheduler"
_BAD = {
    "clipping": ("--trainer.gradient_clip_val 1", ["--trainer.gradient_clip_val 1", "lower", "--model.elr"]),
    "clipping in the whole space": (f"{_WHOLE} SGD --trainer.gradient_clip_val 1", ["gradient_clip_val 1", "the lr"]),
    "accumulation": ("--trainer.accumulate_grad_batches 2", ["accumulate_grad_batches 2", "--data.batch_size"]),
    "averaging": (
        "--trainer.callbacks StochasticWeightAveraging --trainer.callbacks.swa_lrs 0.1",
        ["StochasticWeightAveraging", "EMAWeightAveraging"],
    ),
    "search of a rate": ("--trainer.callbacks LearningRateFinder", ["LearningRateFinder", "--model.elr"]),
    "pruning": ("--trainer.callbacks ModelPruning --trainer.callbacks.pruning_fn l1_unstructured", ["ModelPruning"]),
    "backbone": ("--trainer.callbacks BackboneFinetuning", ["BackboneFinetuning", "FineTuneSwitch"]),
    "LBFGS": (f"{_WHOLE} LBFGS", ["--model.optimizer", "LBFGS", "SGD or Adam"]),
    "SparseAdam": (f"{_WHOLE} SparseAdam", ["--model.optimizer", "SparseAdam", "torch.optim.Adam"]),
    "a rate below 0": (f"{_WHOLE} SGD --model.optimizer.lr -1", ["--model.optimizer", "Invalid learning rate: -1"]),
    "T_max 0": (f"{_SCHEDULE} CosineAnnealingLR --model.scheduler.T_max 0", ["CosineAnnealingLR", "at least 1"]),
    "step_size 0": (f"{_SCHEDULE} StepLR --model.scheduler.step_size 0", ["--model.scheduler", "StepLR", "at least 1"]),
    "no momentum": (
        f"{_SCHEDULE} CyclicLR --model.scheduler.base_lr 0.1 --model.scheduler.max_lr 1",
        ["CyclicLR", "momentum", "--model.scheduler.cycle_momentum false"],
    ),
    "no steps": (f"{_SCHEDULE} OneCycleLR --model.scheduler.max_lr 1", ["OneCycleLR", "total_steps"]),
    "too few steps": (
        f"{_SCHEDULE} OneCycleLR --model.scheduler.max_lr 1 --model.scheduler.total_steps 2 "
        "--model.scheduler.cycle_momentum false",
        ["OneCycleLR at epoch 3", "Tried to step"],
    ),
    "a metric": (
        f"{_SCHEDULE} torch.optim.lr_scheduler.ReduceLROnPlateau",
        ["ReduceLROnPlateau waits for a metric", "FineTuneSwitch"],
    ),
    "a rate without end": (f"{_SCHEDULE} ExponentialLR --model.scheduler.gamma 1e300", ["ExponentialLR", "1e+299"]),
}  # fmt: skip
_QUICK = {"clipping", "accumulation", "averaging", "LBFGS", "T_max 0", "too few steps"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in _QUICK else pytest.mark.slow) for n in _BAD])
def test_one_line_says_what_to_do_here(name: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    line, words = _BAD[name]
    result = lit_sphere(*RUN, "--wandb", "disabled", *line.split())
    refused(result, *words, status=1)
    assert "automatic optimization" not in result.err


@pytest.mark.parametrize(
    ("metric", "status", "words"),
    [
        ("val/los", 2, ["monitor 'val/los' is logged by nobody", "did you mean val/loss?"]),
        ("elr/nobody", 1, ["elr/nobody", "train/loss"]),  # keys of callbacks are known once they are logged
    ],
)
def test_a_metric_that_is_not_there(
    metric: str, status: int, words: list[str], empty_folder: Path, lit_sphere: LitSphere
) -> None:
    stop = ("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", metric)
    result = lit_sphere(*RUN, "--wandb", "disabled", "--trainer.enable_progress_bar", "false", *stop)
    assert result.status == status
    (line,) = result.err.strip().splitlines()
    assert line.startswith("lit-sphere: --trainer.callbacks: EarlyStopping: ")
    for word in words:
        assert word in line
    assert len(line) < 500


@pytest.mark.parametrize("on_sphere", [True, False])
def test_accumulation_by_a_callback(on_sphere: bool) -> None:
    with pytest.raises(ValueError, match=r"GradientAccumulationScheduler cannot work here.*--data.batch_size"):
        check_trainer([GradientAccumulationScheduler({1: 2})], None, 1, on_sphere)


def test_others_are_taken() -> None:
    for on_sphere in (False, True):
        check_trainer([LearningRateMonitor()], 0.0, 1, on_sphere)
    check_trainer([EMAWeightAveraging()], None, 1, on_sphere=True)


_SOUND: dict[str, Any] = {
    "cosine": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=5),
    "one cycle": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=4),
    "lambda": partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1 / (epoch + 1)),
    "none": None,
}


@pytest.mark.parametrize("name", _SOUND)
def test_sound_schedules_pass_and_leave_no_trace(name: str) -> None:
    state = torch.get_rng_state()
    check_optimizer(partial(SGD, momentum=0.9), _SOUND[name], epochs=4)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "make",
    [
        SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adafactor,
        torch.optim.Rprop,
        torch.optim.NAdam,
        torch.optim.ASGD,
        partial(AdaGradG, lr=0.1),
        partial(SphereSGD, elr=0.1),
    ],
)
def test_states_of_the_same_optimizer_pass(make: Any) -> None:
    def stepped() -> torch.optim.Optimizer:
        params = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4, 4))]
        optimizer: torch.optim.Optimizer = make(params)
        sum(p.pow(2).sum() for p in params).backward()  # type: ignore[union-attr]
        optimizer.step()
        return optimizer

    check_optimizer(make, None, epochs=1)
    check_same_optimizer(stepped(), [stepped().state_dict()], None)
    older = stepped().state_dict()
    older["param_groups"][0].pop("foreach", None)  # an option that a newer torch has
    check_same_optimizer(stepped(), [older], None)
