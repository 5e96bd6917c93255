import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F

from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet, SIResNet18, SphereModule
from lit_sphere.networks import MLP, ConvNet
from lit_sphere.optim import SphereSGD

SGD = partial(torch.optim.SGD, lr=0.1, weight_decay=1e-3)


def fit(module: SphereModule, epochs: int = 1, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    options = {"logger": False, "enable_checkpointing": False, **options}
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, Digits(train_size=256), ckpt_path=ckpt_path)
    return trainer


def si_conv_net(**options: Any) -> SIConvNet:
    torch.manual_seed(0)
    return SIConvNet(width=4, in_channels=1, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: si_conv_net(elr=1e-2),
        lambda: si_conv_net(elr=1e-2, granularity="filter"),
        lambda: si_conv_net(elr=1e-2, loss="mse"),
        lambda: si_conv_net(optimizer=SGD),
        lambda: SIResNet18(width=2, in_channels=1, elr=1e-2),
        lambda: SphereModule(ConvNet(4, in_channels=1), elr=1e-2, lr=0.1, input_shape=(1, 8, 8)),
    ],
)
def test_training_lowers_the_loss_and_logs_the_public_keys(make: Callable[[], SphereModule]) -> None:
    module = make()
    first = fit(module, 1).callback_metrics["train/loss"]
    trainer = fit(module, 4)
    metrics = trainer.callback_metrics
    assert metrics["train/loss"] < 0.8 * first
    assert {"train/loss", "train/error", "val/loss", "val/error"} <= metrics.keys()
    assert 0 <= metrics["train/error"] < 0.9
    test = trainer.test(module, Digits(train_size=256), verbose=False)[0]
    assert test.keys() == {"test/loss", "test/error"}


def test_train_metrics_are_the_means_over_samples() -> None:
    module = si_conv_net(elr=1e-2)
    losses, wrong, count = 0.0, 0, 0
    original = module.criterion

    def spy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal losses, wrong, count
        loss = original(logits, labels)
        if module.training:
            losses += loss.item() * len(labels)
            wrong += int((logits.argmax(1) != labels).sum())
            count += len(labels)
        return loss

    module.criterion = spy  # type: ignore[method-assign]
    torch.manual_seed(0)
    trainer = fit(module)
    assert count == 256
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(losses / count, rel=1e-5)
    assert trainer.callback_metrics["train/error"].item() == pytest.approx(wrong / count, rel=1e-5)


def test_mse_is_the_mean_over_samples_and_classes() -> None:
    module = si_conv_net(elr=1e-2, loss="mse")
    logits, labels = torch.randn(5, 10), torch.tensor([0, 3, 9, 3, 1])
    expected = sum(((logits[i] - F.one_hot(labels[i], 10)) ** 2).sum() for i in range(5)) / 50
    torch.testing.assert_close(module.criterion(logits, labels), expected)


def test_the_whole_network_lies_on_one_sphere_or_beside_it() -> None:
    module = SphereModule(ConvNet(4, in_channels=1), elr=1e-2, lr=0.1, input_shape=(1, 8, 8))
    optimizer = fit(module).optimizers[0]
    assert isinstance(optimizer, SphereSGD)
    sphere, rest = optimizer.param_groups
    # Each hidden batch norm's (γ, β) is scale-invariant with the convolution after it; the last one's is not.
    assert len(sphere["params"]) == 4 + 2 * 3
    assert len(rest["params"]) == 2 + 2
    norm = math.sqrt(sum(float(p.detach().double().pow(2).sum()) for p in sphere["params"]))
    assert norm == pytest.approx(sphere["radius"], rel=1e-6)


def test_one_sphere_for_each_group() -> None:
    module = SIResNet18(width=2, in_channels=1, elr=1e-2, granularity="tensor")
    optimizer = fit(module).optimizers[0]
    assert sorted(len(group["params"]) for group in optimizer.param_groups) == 8 * [1] + 4 * [3]
    for group in optimizer.param_groups:
        norm = math.sqrt(sum(float(p.detach().double().pow(2).sum()) for p in group["params"]))
        assert group["elr"] == 1e-2
        assert norm == pytest.approx(group["radius"], rel=1e-6)


def test_filters_that_are_scale_invariant_only_together_get_no_spheres() -> None:
    with pytest.raises(ValueError, match=r"filter: stem\.weight\+2\[0\] is scale-invariant only as a whole"):
        fit(SIResNet18(width=2, in_channels=1, elr=1e-2, granularity="filter"))


def test_rows_that_are_normalised_in_blocks_get_no_spheres_of_their_own() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.GroupNorm(2, 8, affine=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 10).requires_grad_(False),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"granularity filter: 0\.weight\[0:4\] is scale-invariant only as a whole"):
        fit(SphereModule(network, elr=1e-2, granularity="filter", input_shape=(1, 8, 8)))


def test_spheres_cannot_change_when_a_run_is_resumed(tmp_path: Path) -> None:
    fit(si_conv_net(elr=1e-2)).save_checkpoint(tmp_path / "a.ckpt")
    for granularity, message in (("filter", "joint there, filter here"), ("tensor", "joint there, 4 groups here")):
        with pytest.raises(ValueError, match=message):
            fit(si_conv_net(elr=1e-2, granularity=granularity), 2, tmp_path / "a.ckpt")


def test_load_from_checkpoint_needs_no_argument(tmp_path: Path) -> None:
    module = SIConvNet(width=4, in_channels=1, head_norm=5.0, elr=1e-2, loss="mse")
    trainer = fit(module, enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = SIConvNet.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu")
    assert (loaded.elr, loaded.loss, dict(loaded.hparams)["head_norm"]) == (1e-2, "mse", 5.0)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded.eval()(x), module.eval()(x))


def test_a_resumed_run_keeps_the_checkpoints_radius_and_takes_the_given_elr(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = si_conv_net(elr=1e-2)
    trainer = fit(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    radius = trainer.optimizers[0].param_groups[0]["radius"]
    torch.manual_seed(7)
    other = SIConvNet(width=4, in_channels=1, elr=5e-3)  # another initialisation, so another radius
    with caplog.at_level("INFO"):
        resumed = fit(other, 2, tmp_path / "a.ckpt")
    group = resumed.optimizers[0].param_groups[0]
    assert (group["elr"], group["radius"]) == (5e-3, radius)
    assert "elr: 0.01 in the checkpoint, 0.005 from now on" in caplog.text


def test_an_elr_changed_during_the_run_survives_a_resume_with_the_same_options(tmp_path: Path) -> None:
    trainer = fit(si_conv_net(elr=1e-2))
    trainer.optimizers[0].param_groups[0]["elr"] = 3e-3  # as a schedule would
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = fit(si_conv_net(elr=1e-2), 2, tmp_path / "a.ckpt")
    assert resumed.optimizers[0].param_groups[0]["elr"] == 3e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elr": 0.0}, "elr .* must be positive and finite, got 0.0"),
        ({"elr": math.nan}, "elr .* must be positive"),
        ({"elr": 0.1, "optimizer": SGD}, "both elr and optimizer"),
        ({"elr": 0.1, "granularity": "row"}, "granularity .* must be one of joint, tensor, filter"),
        ({"elr": 0.1, "loss": "hinge"}, "loss .* must be one of cross_entropy, mse"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        si_conv_net(**options)


def test_neither_elr_nor_optimizer_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="neither elr nor optimizer"):
        fit(si_conv_net())


def test_parameters_that_are_not_scale_invariant_are_named() -> None:
    with pytest.raises(ValueError, match=r"4 of 14 trainable tensors .*head\.bias"):
        fit(SphereModule(ConvNet(4, in_channels=1), elr=1e-2, input_shape=(1, 8, 8)))


def test_a_network_without_scale_invariance_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    with pytest.raises(ValueError, match="no scale-invariant group"):
        fit(SphereModule(network, elr=1e-2, input_shape=(1, 8, 8)))


def test_bf16_mixed_keeps_float32_weights_on_the_sphere() -> None:
    module = si_conv_net(elr=1e-2)
    trainer = fit(module, 2, precision="bf16-mixed")
    group = trainer.optimizers[0].param_groups[0]
    assert all(p.dtype == torch.float32 for p in group["params"])
    norm = math.sqrt(sum(float(p.detach().double().pow(2).sum()) for p in group["params"]))
    assert norm == pytest.approx(group["radius"], rel=1e-6)


@pytest.mark.slow
def test_the_compiled_network_trains_alike_and_keeps_its_checkpoint_keys() -> None:
    eager, compiled = si_conv_net(elr=1e-2), si_conv_net(elr=1e-2, compile=True)
    a, b = fit(eager, 2), fit(compiled, 2)
    assert eager.state_dict().keys() == compiled.state_dict().keys()
    assert b.callback_metrics["train/loss"].item() == pytest.approx(a.callback_metrics["train/loss"].item(), rel=0.05)


def test_a_network_that_does_not_take_the_images_is_refused_before_training_in_the_whole_space() -> None:
    module = SphereModule(MLP(4, in_channels=1, image_size=16), optimizer=SGD)
    with pytest.raises(ValueError, match=r"forward of MLP fails on images of shape \(2, 1, 8, 8\): .* 1×16×16"):
        module.check_trainable(Digits(train_size=256))
    taken = si_conv_net(optimizer=SGD).train()
    before = {name: value.clone() for name, value in taken.state_dict().items()}
    state = torch.get_rng_state()
    taken.check_trainable(Digits(train_size=256))
    assert taken.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in taken.state_dict().items())
