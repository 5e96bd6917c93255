"""A run that had entered or left the sphere in its middle goes on so, also without the callback that did it."""

import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from callback_fits import assert_equal, quietly
from conftest import LitSphere
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_sphere.callbacks import EffectiveLearningRateMonitor, FineTuneSwitch, Switch
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet
from lit_sphere.optim import joint_norm
from lit_sphere.switching import SwitchableOptions
from lit_sphere.switching.resume import stays_switched

pytestmark = [quietly, pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")]
ENTER = Switch(epoch=1, sphere=True, elr=1e-2)


def data() -> Digits:
    return Digits(batch_size=64, train_size=192)


def in_the_whole_space() -> SIConvNet:
    torch.manual_seed(0)
    return SIConvNet(width=4, in_channels=1, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))


def on_the_sphere() -> SIConvNet:
    torch.manual_seed(0)
    return SIConvNet(width=4, in_channels=1, elr=1e-2)


def trained(module: LightningModule, epochs: int, *callbacks: Callback, ckpt: Path | None = None) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data(), ckpt_path=ckpt)
    return trainer


@pytest.fixture
def entered(tmp_path: Path) -> Path:
    """A checkpoint of a run that SGD goes on with on the sphere."""
    trainer = trained(in_the_whole_space(), 2, FineTuneSwitch([ENTER]))
    trainer.save_checkpoint(tmp_path / "entered.ckpt")
    return tmp_path / "entered.ckpt"


def test_refused_where_nobody_would_go_on(entered: Path) -> None:
    said = "had entered the sphere by a switch, and would leave it without: give FineTuneSwitch with the same"
    with pytest.raises(ValueError, match=said):
        trained(in_the_whole_space(), 3, EffectiveLearningRateMonitor(), ckpt=entered)


def test_other_switches_that_would_leave_it_are_refused(entered: Path) -> None:
    other = FineTuneSwitch([Switch(epoch=3, lr=1e-2)])
    with pytest.raises(ValueError, match=r"begin the list with switch \{epoch: 1, elr: 0.01, sphere: True\}$"):
        trained(in_the_whole_space(), 3, other, ckpt=entered)


@pytest.mark.parametrize("more", [[], [Switch(epoch=3, augment=True)]])
def test_the_same_switches_go_on(more: list[Switch], entered: Path) -> None:
    whole, resumed = in_the_whole_space(), in_the_whole_space()
    trained(whole, 4, FineTuneSwitch([ENTER, *more]))
    trained(resumed, 4, FineTuneSwitch([ENTER, *more]), ckpt=entered)
    assert_equal(whole.state_dict(), resumed.state_dict())


def test_evaluation_and_weights_need_no_switches(entered: Path) -> None:
    module = in_the_whole_space()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.validate(module, data(), ckpt_path=entered, verbose=False)
    assert torch.equal(
        module.state_dict()["network.convs.0.weight"], torch.load(entered)["state_dict"]["network.convs.0.weight"]
    )


def test_a_sphere_that_was_left_stays_left_by_the_optimizers_own_state(tmp_path: Path) -> None:
    leave, path = [Switch(epoch=1, sphere=False, weight_decay=1e-2)], tmp_path / "left.ckpt"
    trained(on_the_sphere(), 2, FineTuneSwitch(leave)).save_checkpoint(path)
    whole, resumed = on_the_sphere(), on_the_sphere()
    trained(whole, 4, FineTuneSwitch(leave))
    trained(resumed, 4, ckpt=path)
    assert_equal(whole.state_dict(), resumed.state_dict())


def test_an_elr_typed_where_the_sphere_was_left_is_said_to_change_nothing(tmp_path: Path) -> None:
    leave, path = [Switch(epoch=1, sphere=False)], tmp_path / "left.ckpt"
    trained(on_the_sphere(), 2, FineTuneSwitch(leave)).save_checkpoint(path)
    whole, resumed = on_the_sphere(), SIConvNet(width=4, in_channels=1, elr=2e-2)
    trained(whole, 3, FineTuneSwitch(leave))
    with pytest.warns(UserWarning, match=r"^elr: 0.02 changes nothing: .* had left the sphere; FineTune"):
        trained(resumed, 3, ckpt=path)
    assert_equal(whole.state_dict(), resumed.state_dict())


class OfMyOwn(FineTuneSwitch):
    """A subclass, whose state is still that of switches."""


class Foreign(Callback):
    """Keeps options of its own, whatever they are."""

    def __init__(self, options: object) -> None:
        self.options = options

    def state_dict(self) -> dict[str, object]:
        return {"options": self.options}


@pytest.mark.parametrize("options", [["a", "b"], {"norm": 1.0}, "norm", None])
def test_options_of_other_callbacks_are_their_own_affair(options: object, tmp_path: Path) -> None:
    path = tmp_path / "foreign.ckpt"
    trained(on_the_sphere(), 1, Foreign(options)).save_checkpoint(path)
    assert trained(on_the_sphere(), 2, Foreign(options), ckpt=path).current_epoch == 2
    assert stays_switched(torch.load(path, weights_only=True), []) == []
    switch = FineTuneSwitch([Switch(epoch=1, elr=1e-3)])
    assert trained(on_the_sphere(), 2, Foreign(options), switch, ckpt=path).current_epoch == 2


@pytest.fixture
def entered_by_a_subclass(tmp_path: Path) -> Path:
    trainer = trained(in_the_whole_space(), 2, OfMyOwn([ENTER]))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    return tmp_path / "own.ckpt"


def test_a_subclass_is_missed_as_well(entered_by_a_subclass: Path) -> None:
    with pytest.raises(ValueError, match="had entered the sphere by a switch, and would leave it"):
        trained(in_the_whole_space(), 3, ckpt=entered_by_a_subclass)
    for kind in (FineTuneSwitch, OfMyOwn):
        with pytest.raises(ValueError, match=r"begin the list with switch \{epoch: 1, elr: 0.01, sphere: True\}$"):
            trained(in_the_whole_space(), 3, kind([Switch(epoch=3, lr=1e-2)]), ckpt=entered_by_a_subclass)


def test_a_subclass_goes_on_in_either_way(entered_by_a_subclass: Path) -> None:
    whole = in_the_whole_space()
    trained(whole, 3, OfMyOwn([ENTER]))
    stays = stays_switched(torch.load(entered_by_a_subclass, weights_only=True), [])
    longer = OfMyOwn([ENTER, Switch(epoch=4, augment=True)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FineTuneSwitch: .* (will not take|never took) place")
        for callbacks in (stays, [OfMyOwn([ENTER])], [FineTuneSwitch([ENTER])], [longer]):
            resumed = in_the_whole_space()
            trained(resumed, 3, *callbacks, ckpt=entered_by_a_subclass)
            assert_equal(whole.state_dict(), resumed.state_dict())


_SGD = """
model: {class_path: SIConvNet, init_args: {width: 4, elr: null, optimizer: {class_path: torch.optim.SGD, init_args:
  {lr: 0.05, momentum: 0.9}}}}
data: {class_path: Digits, init_args: {train_size: 256}}
"""
_SWITCHES = "[{epoch: 1, sphere: true, elr: 2.0e-3}, {epoch: 1, augment: true}]"


def test_the_command_line_goes_on_without_the_callback(empty_folder: Path, lit_sphere: LitSphere) -> None:
    Path("sgd.yaml").write_text(_SGD)
    switch = f"{{class_path: FineTuneSwitch, init_args: {{switches: {_SWITCHES}}}}}"
    Path("switch.yaml").write_text(f"trainer: {{callbacks: [{switch}]}}")

    def fit(run: str, epochs: int, *more: str) -> str:
        few = ("--trainer.max_epochs", str(epochs), "--wandb", "disabled", "--run", run)
        done = lit_sphere("fit", "--config", "sgd.yaml", *more, *few)
        assert done.status == 0, done.err
        return done.err

    fit("whole", 4, "--config", "switch.yaml")
    fit("begun", 2, "--config", "switch.yaml")
    said = fit("more", 3, "--ckpt_path", "begun/checkpoints/last.ckpt")
    line = "goes on as FineTuneSwitch left it, which is not given any more: on the sphere, ρ = "
    assert line in said
    assert "with augmentation" in said
    assert "Be aware" not in said
    assert line in fit("end", 4, "--ckpt_path", "more/checkpoints/last.ckpt")  # what was resumed is resumed again
    whole, end = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "end"))
    assert_equal(whole["state_dict"], end["state_dict"])
    assert SwitchableOptions.holds_sphere(next(v for k, v in end["callbacks"].items() if "Switch" in k)["options"])
    convs = [value for name, value in end["state_dict"].items() if "convs" in name and name.endswith("weight")]
    begun = torch.load("begun/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    before = [value for name, value in begun.items() if "convs" in name and name.endswith("weight")]
    assert joint_norm(convs).item() == pytest.approx(joint_norm(before).item(), rel=1e-6)
