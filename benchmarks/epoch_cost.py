"""(b) What the Trainer costs over a bare loop, and (c) what all of it gains over a conventional one."""

from statistics import median

import torch
from bare_loop import BareLoop
from comparison import Comparison
from conventional_loop import conventional_epoch_seconds
from fitted import epoch_seconds
from machine import hardware
from settings import Settings

from lit_sphere.networks import ConvNet

_ELR = 1e-3
_EVAL_BATCHES = 1  # in each epoch of (b), on both sides


def compare_with_bare_loop(settings: Settings) -> list[Comparison]:
    """(b): median epochs of whole short fits and of bare loops, alternately."""
    args = [
        *_model(settings.width), *settings.images_arguments(settings.images, settings.test_images),
        f"--trainer.limit_val_batches={_EVAL_BATCHES}",
    ]  # fmt: skip

    def images_fit() -> float:
        return median(epoch_seconds(args, settings.epochs, settings.device, _EVAL_BATCHES))

    def images_loop() -> float:
        network, data = _network(settings.width), settings.images_module()
        return median(BareLoop(network, data, _ELR, settings.device, _EVAL_BATCHES).epoch_seconds(settings.epochs))

    def digits_fit() -> float:
        return median(epoch_seconds(_model(8), settings.digits_epochs, settings.device, _EVAL_BATCHES))

    def digits_loop() -> float:
        loop = BareLoop(_network(8, in_channels=1), settings.digits_module(), _ELR, settings.device, _EVAL_BATCHES)
        return median(loop.epoch_seconds(settings.digits_epochs))

    what = f"epoch of ConvNet w={settings.width}, {settings.images} images of 32×32, batch {settings.batch}"
    images = Comparison("b1", what, "fit", "bare loop", "s", ("<=", 1.10))
    digits = Comparison("b2", "epoch of ConvNet w=8, digits, batch 128", "fit", "bare loop", "s", ("<=", 1.5))
    return [
        images.measure(images_fit, images_loop, settings.trials),
        digits.measure(digits_fit, digits_loop, settings.trials),
    ]


def compare_with_conventional_loop(settings: Settings) -> list[Comparison]:
    """(c): images per second of training epochs without evaluation; the other side stays in fp32."""
    return [
        _conventional(settings, "c1", settings.width, "32-true", 1.5),
        _conventional(settings, "c2", 8, "32-true", 2.3),
        # The goal is for a CPU with AMX.
        _conventional(settings, "c3", settings.width, "bf16-mixed", 4.0),
    ]


def _conventional(settings: Settings, section: str, width: int, precision: str, goal: float) -> Comparison:
    data = settings.images_module()
    data.setup("fit")
    args = [
        *_model(width), *settings.images_arguments(settings.images, settings.test_images),
        "--trainer.limit_val_batches=0", f"--trainer.precision={precision}",
    ]  # fmt: skip

    def ours() -> float:
        return settings.images / median(epoch_seconds(args, settings.epochs, settings.device, 0))

    def theirs() -> float:
        seconds = conventional_epoch_seconds(
            _network(width), data.train_set, _ELR, settings.batch, settings.epochs, settings.device
        )
        return settings.images / median(seconds)

    what = f"training ConvNet w={width}, CIFAR-10's size, fit in {precision}, the other in fp32"
    comparison = Comparison(section, what, "fit", "conventional loop", "images/s", (">=", goal))
    if precision == "bf16-mixed":
        comparison.notes["amx_bf16 in /proc/cpuinfo"] = hardware(settings.device)["amx_bf16"]
    return comparison.measure(ours, theirs, settings.trials)


def _model(width: int) -> list[str]:
    return ["--model=SIConvNet", f"--model.width={width}", f"--model.elr={_ELR}"]


def _network(width: int, in_channels: int = 3) -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(width, in_channels=in_channels, scale_invariant=True)
