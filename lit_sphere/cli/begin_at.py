"""A new run that begins at the weights of another one (``--ckpt_weights``)."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_sphere.cli.checkpoints import base_config, option_of, read_checkpoint
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.optim import SphereSGD

OPTION = "--ckpt_weights"


def weights_of(args: list[str]) -> str | None:
    """Find the checkpoint whose weights a new run begins at, in a command line or in the configs that it names.

    Args:
        args: A command line, with paths of configs.

    Returns:
        The path; None if there is none, or if ``--ckpt_path`` goes on with a run, which has begun already.

    Raises:
        CommandLineError: If both are given, or it is given to another command than ``fit``.
    """
    typed, resumed = option_of(args, OPTION), option_of(args, "--ckpt_path")
    if args[0] != "fit":
        if typed is not None:
            raise CommandLineError(f"{OPTION} begins a new run, which {args[0]} does not; give --ckpt_path")
        return None
    if typed is not None and resumed is not None:
        raise CommandLineError(
            f"both --ckpt_path and {OPTION} are given: --ckpt_path goes on with a run, {OPTION} begins a new one at "
            "its weights; leave one out"
        )
    if typed is not None or resumed is not None:
        return typed
    found = None
    for config in _typed_configs(args):
        if config.get("ckpt_path"):
            return None
        found = config.get("ckpt_weights", found)
    return found


def check_model_named(args: list[str]) -> None:
    """Refuse a config that is made for the model of another run, without that run.

    Args:
        args: A command line of ``fit`` that names neither ``--ckpt_path`` nor ``--ckpt_weights``.

    Raises:
        CommandLineError: If options of the model are given, and no model.
    """
    models = [config["model"] for config in _typed_configs(args) if isinstance(config.get("model"), dict)]
    if models and option_of(args, "--model") is None and not any("class_path" in model for model in models):
        raise CommandLineError(
            f"the configs give options of the model, but no model: begin at another run's, {OPTION} "
            "runs/NAME/checkpoints/last.ckpt, or name one, --model SIConvNet"
        )


def _typed_configs(args: list[str]) -> Iterator[dict[str, Any]]:
    for i, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if option in ("--config", "-c") and (equals or i + 1 < len(args)):
            yield yaml.safe_load(Path(value if equals else args[i + 1]).read_text(encoding="utf-8"))


def base_of_weights(path: str, has_config: bool) -> str | None:
    """Choose what lies under the configs and options that the user typed: model and data of the checkpoint's run.

    Args:
        path: The checkpoint.
        has_config: Whether the user typed a ``--config``; otherwise all of that run's options are taken.

    Returns:
        Path or text of a config; None if nothing is to be added.
    """
    read_checkpoint(path, OPTION)
    beside = Path(path).parent.parent / "config.yaml"
    if not beside.is_file():
        return base_config(path, has_config)
    config = yaml.safe_load(beside.read_text(encoding="utf-8"))
    kept = ("model", "data") if has_config else tuple(config.keys() - {"ckpt_path", "ckpt_weights", "run"})
    return json.dumps({name: config[name] for name in kept if name in config})


class BeginAtWeights(Callback):
    """Control: gives the spheres the exact radii that they have in another run's checkpoint.

    Says where the run begins. The weights have been loaded before, so that a sphere without a counterpart there has
    their norm.

    Args:
        path: The checkpoint.
        checkpoint: Its content.
    """

    def __init__(self, path: str, checkpoint: dict[str, Any]) -> None:
        self._path, self._checkpoint = path, checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the radii over."""
        spheres = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, SphereSGD)]
        states = self._checkpoint.get("optimizer_states", [])
        for optimizer in spheres:
            if len(states) == 1:
                _take_radii(optimizer, states[0])
        radii = [group["radius"] for each in spheres for group in each.param_groups if group.get("radius")]
        loops = self._checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
        epoch = loops.get("current", {}).get("processed", self._checkpoint.get("epoch", 0))
        rho = f", ρ = {math.hypot(*radii):.5g}" if radii else ""
        rank_zero_info(f"begins at the weights of {self._path} (epoch {epoch}){rho}")


def _take_radii(optimizer: SphereSGD, state: dict[str, Any]) -> None:
    """Replace measured radii by those stored, where the spheres are the same."""
    saved = state.get("param_groups", [])
    kinds = [
        [(group.get("spheres"), len(group["params"])) for group in groups] for groups in (saved, optimizer.param_groups)
    ]
    if kinds[0] != kinds[1]:
        return
    for theirs, mine in zip(saved, optimizer.param_groups, strict=True):
        if mine.get("spheres") == "joint" and "radius" in theirs:
            mine["radius"] = theirs["radius"]
        elif mine.get("spheres") == "filter":
            for number, p in zip(theirs["params"], mine["params"], strict=True):
                radius = state["state"].get(number, {}).get("radius")
                if isinstance(radius, torch.Tensor) and radius.shape == optimizer.state[p]["radius"].shape:
                    optimizer.state[p]["radius"] = radius.to(optimizer.state[p]["radius"])
