"""The modules with flat options: all that they train is scale-invariant; options reach the network by name."""

import inspect
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lit_sphere import modules, networks
from lit_sphere.cli.shipped_classes import shipped_classes
from lit_sphere.data import Digits
from lit_sphere.groups import find_groups
from lit_sphere.modules import (
    SIMLP,
    PracticalResNet20,
    PracticalTransformer,
    SIConvNet,
    SIResNet20,
    SITransformer,
    SphereModule,
)
from lit_sphere.modules.si_modules import _SIModule
from lit_sphere.networks.resnet20 import Normalisation

SHIPPED: dict[str, type[Any]] = dict(shipped_classes("--model"))
MODULES = {name: each for name, each in SHIPPED.items() if name.startswith("SI")}
PRACTICAL = {name: each for name, each in SHIPPED.items() if name.startswith("Practical")}
VERSIONS: list[Normalisation] = ["batch", "weight"]


def of_digits(kind: type[Any], **options: Any) -> Any:
    """A module of the size that its network takes, for 8×8 images."""
    parameters = inspect.signature(kind).parameters
    size = {"image_size": 8} if "image_size" in parameters else {}
    return kind(width=16 if size else 4, in_channels=1, **size, **options)


def trained(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def fit(module: SphereModule, epochs: int) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, num_sanity_val_steps=0, **quiet)
    trainer.fit(module, Digits(train_size=256))
    return trainer


def test_each_exported_network_has_its_module() -> None:
    own = set(networks.__all__) - {"Resized"}  # which wraps others
    assert {f"SI{name}" for name in own} == MODULES.keys()
    assert {f"Practical{name}" for name in own} == PRACTICAL.keys()
    assert SHIPPED.keys() <= set(modules.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_all_that_is_trained_is_scale_invariant_and_the_head_is_frozen(name: str) -> None:
    torch.manual_seed(0)
    module = of_digits(MODULES[name], num_classes=7, head_norm=5.0)
    groups = find_groups(module.network, torch.zeros(2, 1, 8, 8))
    assert {each for group in groups for each in group.names} == trained(module.network)
    assert not any(p.requires_grad for p in module.network.head.parameters())
    assert module.network.head.weight.norm().item() == pytest.approx(5, rel=1e-6)
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize("name", PRACTICAL)
def test_practical_modules_train_everything_with_the_options_of_their_network(name: str) -> None:
    module = of_digits(PRACTICAL[name], num_classes=7)
    assert all(p.requires_grad for p in module.network.parameters())
    options = inspect.signature(PRACTICAL[name]).parameters
    own = inspect.signature(getattr(networks, name.removeprefix("Practical"))).parameters
    assert options.keys() >= own.keys() - {"scale_invariant", "head_norm"}
    assert options["width"].default == own["width"].default
    assert "scale_invariant" not in options
    assert module.hparams.keys() >= own.keys() - {"scale_invariant", "head_norm"}


def test_resnet20_has_its_three_versions() -> None:
    """Of SP: batch norm, batch norm without trained weights and biases, weight norm; all have a trained head."""
    kinds: list[dict[str, Any]] = [{}, {"affine": False}, {"normalisation": "weight"}]
    networks_ = [PracticalResNet20(width=2, in_channels=1, **options).network for options in kinds]
    names = [{name.rpartition(".")[2] for name in trained(each.get_submodule("stem"))} for each in networks_]
    assert names == [{"weight", "bias"}, {"weight"}, {"original0", "original1", "bias"}]
    assert all({"head.weight", "head.bias"} <= trained(each) for each in networks_)


class _Mine(SIConvNet):
    """A user's class with an option of its own."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(**options)
        self.name = name


def test_a_checkpoint_makes_a_class_derived_from_a_module_again(tmp_path: Path) -> None:
    module = _Mine("mine", width=2, in_channels=1, normalisation="layer", elr=1e-3)
    trainer = Trainer(logger=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    loaded = _Mine.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu")
    assert (loaded.name, loaded.elr, loaded.hparams["normalisation"]) == ("mine", 1e-3, "layer")


@pytest.mark.parametrize("normalisation", VERSIONS)
def test_resnet20_outputs_do_not_change_when_what_is_trained_is_scaled(normalisation: Normalisation) -> None:
    """The convolutions one by one, each by another factor; find_groups alone could be wrong with the network."""
    torch.manual_seed(0)
    module = SIResNet20(width=2, in_channels=1, eps=1e-30, normalisation=normalisation).double()
    assert len(trained(module)) == 19
    x = torch.randn(8, 1, 8, 8, dtype=torch.float64)
    before = module(x)
    with torch.no_grad():
        for i, p in enumerate(p for p in module.parameters() if p.requires_grad):
            p.mul_(0.5 + 0.3 * i)
    torch.testing.assert_close(module(x), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [SIMLP, SITransformer])
def test_mlp_and_transformer_train_on_the_sphere(kind: type[SphereModule]) -> None:
    torch.manual_seed(0)
    module = of_digits(kind, elr=3e-3)
    norm = sum(float(p.detach().double().pow(2).sum()) for p in module.parameters() if p.requires_grad)
    first = fit(module, 1).callback_metrics["train/loss"]
    assert fit(module, 4).callback_metrics["train/loss"] < 0.8 * first
    after = sum(float(p.detach().double().pow(2).sum()) for p in module.parameters() if p.requires_grad)
    assert after == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("options", [{"elr": 1e-3}, {"elr": 1e-5, "normalisation": "weight"}], ids=VERSIONS)
def test_resnet20_trains_on_the_sphere(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = SIResNet20(width=4, in_channels=1, **options)
    norm = sum(float(p.detach().double().pow(2).sum()) for p in module.parameters() if p.requires_grad)
    first = fit(module, 1).callback_metrics["train/loss"]
    # Of four seeds: 0.07 to 0.27 with batch norm after four epochs, 0.28 to 0.53 with weight norm.
    assert fit(module, 6).callback_metrics["train/loss"] < 0.8 * first
    after = sum(float(p.detach().double().pow(2).sum()) for p in module.parameters() if p.requires_grad)
    assert after == pytest.approx(norm, rel=1e-5)


def test_the_version_with_trained_norms_is_refused() -> None:
    with pytest.raises(ValueError, match="not scale-invariant; leave it out, or train that version in the whole space"):
        SIResNet20(affine=True)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SIConvNet, {"normalisation": "instance"}),
        (SIResNet20, {"normalisation": "weight"}),
        (SIMLP, {"depth": 2}),
        (SITransformer, {"patch_size": 2, "heads": 2, "norm": "rms"}),
        (PracticalTransformer, {"depth": 1}),
    ],
)
def test_a_checkpoint_makes_the_module_again(kind: type[SphereModule], options: dict[str, Any], tmp_path: Path) -> None:
    module = of_digits(kind, num_classes=5, elr=1e-4, **options)
    assert dict(module.hparams).items() >= options.items()
    trainer = Trainer(logger=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    loaded = kind.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu")
    assert dict(loaded.hparams) == dict(module.hparams)
    assert loaded.state_dict().keys() == module.state_dict().keys()


class _Reordered(nn.Linear):
    """Takes the common options in another order."""

    def __init__(
        self, eps: float, head_norm: float, scale_invariant: bool, in_channels: int, num_classes: int, width: int
    ) -> None:
        super().__init__(in_channels, num_classes)
        self.got = {"eps": eps, "head_norm": head_norm, "scale_invariant": scale_invariant, "width": width}


class _SIReordered(_SIModule):
    network_class: ClassVar[type[nn.Module]] = _Reordered


def test_options_reach_the_network_by_name() -> None:
    network: Any = _SIReordered(width=3, num_classes=5, in_channels=2, head_norm=7.0, eps=1e-3).network
    assert network.got == {"eps": 1e-3, "head_norm": 7.0, "scale_invariant": True, "width": 3}
    assert network.weight.shape == (5, 2)
