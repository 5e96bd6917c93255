"""Old names of options: ``per`` and ``spheres`` are ``granularity`` now, and ``group`` is ``tensor``."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import LitSphere
from torch import Tensor
from torch.optim import Optimizer

from lit_sphere.callbacks import FixedNorm
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.old_names import rename_arguments, rename_in_text
from lit_sphere.modules import SIConvNet, SphereModule
from lit_sphere.networks import ConvNet
from lit_sphere.optim import AdaGradG, SphereSGD


def weights() -> list[Tensor]:
    return [torch.nn.Parameter(torch.arange(1.0, 7.0).view(2, 3)), torch.nn.Parameter(torch.ones(3, 2))]


def network() -> ConvNet:
    return ConvNet(width=2, in_channels=1, scale_invariant=True)


OLD: dict[str, tuple[Callable[..., Any], str, str]] = {
    "FixedNorm": (FixedNorm, "per", "group"),
    "AdaGradG": (lambda **given: AdaGradG(weights(), 0.1, **given), "per", "joint"),
    "SphereSGD": (lambda **given: SphereSGD(weights(), 0.1, **given), "spheres", "filter"),
    "SphereModule": (lambda **given: SphereModule(network(), elr=0.1, **given), "spheres", "group"),
    "SIConvNet": (lambda **given: SIConvNet(2, in_channels=1, elr=0.1, **given), "spheres", "group"),
}


def granularity(made: Any) -> str:
    options = made.param_groups[0]["granularity"] if isinstance(made, Optimizer) else made.granularity
    return str(options)


@pytest.mark.parametrize("name", OLD)
def test_an_old_name_is_taken_with_a_warning(name: str) -> None:
    make, old, value = OLD[name]
    with pytest.warns(FutureWarning, match=f"{name}: {old} is called granularity now"):
        made = make(**{old: value})
    assert granularity(made) == ("tensor" if value == "group" else value)
    assert granularity(make()) != granularity(made)  # it is not the default


@pytest.mark.parametrize("name", OLD)
def test_both_names_are_refused(name: str) -> None:
    make, old, value = OLD[name]
    other = granularity(make())
    new = next(each for each in ("joint", "filter", "tensor") if each != other)
    with pytest.raises(ValueError, match=f"{name}: granularity and {old}, its old name, are both given"):
        make(**{old: value}, granularity=new)


@pytest.mark.filterwarnings("ignore:SIConvNet. spheres is called granularity:FutureWarning")
def test_hyperparameters_hold_the_present_name() -> None:
    module = SIConvNet(2, in_channels=1, elr=0.1, spheres="group")
    assert module.hparams["granularity"] == "tensor"
    assert "spheres" not in module.hparams


def old_state(optimizer: Optimizer, *names: tuple[str, str]) -> dict[str, Any]:
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        for new, old in names:
            if new in group:
                group[old] = group.pop(new)
    return state


def test_old_states_of_optimizers_load() -> None:
    mine = AdaGradG(weights(), 0.1, granularity="joint")
    state = old_state(mine, ("granularity", "per"))
    mine.load_state_dict(state)
    assert mine.param_groups[0]["granularity"] == "joint"
    assert "per" in state["param_groups"][0]  # the checkpoint is left as it is
    sphere = SphereSGD(weights(), 0.1, granularity="filter")
    names = (("granularity", "spheres"), ("left_granularity", "left_spheres"))
    sphere.load_state_dict(old_state(sphere, *names))
    assert sphere.param_groups[0]["granularity"] == "filter"
    sphere.leave_sphere(lr=0.1)
    fresh = SphereSGD(weights(), 0.1, granularity="filter")
    fresh.load_state_dict(old_state(sphere, *names))
    fresh.enter_sphere(0.1)
    assert fresh.param_groups[0]["granularity"] == "filter"
    assert not {"spheres", "left_spheres", "left_granularity"} & fresh.param_groups[0].keys()


def test_an_old_pickle_of_an_optimizer_is_read() -> None:
    optimizer = SphereSGD(weights(), 0.1)
    optimizer.param_groups[0]["spheres"] = optimizer.param_groups[0].pop("granularity")
    assert pickle.loads(pickle.dumps(optimizer)).param_groups[0]["granularity"] == "joint"


def test_texts_and_arguments() -> None:
    assert yaml.safe_load(rename_in_text('{"a": {"per": "group"}, "per": "step"}')) == {
        "a": {"granularity": "tensor"},
        "per": "step",
    }
    assert rename_arguments(["--trainer.callbacks.per=group", "--model.spheres=x"]) == [
        "--trainer.callbacks.granularity=tensor",
        "--model.spheres=x",
    ]
    with pytest.raises(CommandLineError, match="per is the old name of granularity, and both are given"):
        rename_in_text("a: [{per: joint, granularity: filter}]")
    with pytest.raises(CommandLineError, match=r"--model.spheres is the old name of --model.granularity"):
        rename_arguments(["--model.spheres", "joint", "--model.granularity", "filter"])


def test_old_names_on_the_command_line(empty_folder: Path, lit_sphere: LitSphere) -> None:
    few = ("--data.train_size", "256", "--trainer.max_epochs", "1", "--wandb", "disabled")
    fixed = ("--trainer.callbacks+=FixedNorm", "--trainer.callbacks.per", "group")
    optimizer = ("--model.elr", "null", "--model.optimizer", "AdaGradG", "--model.optimizer.lr", "0.1")
    for run, options in (
        ("a", ("--model.spheres", "group")),
        ("b", (*optimizer, "--model.optimizer.per=joint", *fixed)),
    ):
        result = lit_sphere("fit", *few, *options, "--run", run)
        assert result.status == 0, result.err
        assert "is called granularity" not in result.err
    text = Path("a/config.yaml").read_text()
    assert yaml.safe_load(text)["model"]["init_args"]["granularity"] == "tensor"
    assert "spheres" not in text
    config = yaml.safe_load(Path("b/config.yaml").read_text())
    assert config["model"]["init_args"]["optimizer"]["init_args"]["granularity"] == "joint"
    assert config["trainer"]["callbacks"][0]["init_args"]["granularity"] == "tensor"
    assert [key for key in Path("b/config.yaml").read_text().split() if key == "per:"] == ["per:"]  # the monitor's
