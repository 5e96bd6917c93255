"""Checkpoints on the command line: read, held against the model and what is left to train, begun at."""

import math
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from lit_sphere.analysis import difference
from lit_sphere.analysis import read_checkpoint as plain_checkpoint
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.optim import SphereSGD
from lit_sphere.optim.granularity import rename_options

CKPT_WEIGHTS = "--ckpt_weights"
"""Begins a new run at the weights of another one."""


def read_checkpoint(path: str, option: str = "--ckpt_path") -> dict[str, Any]:
    """Read a checkpoint as plain data; nothing in it is executed.

    Args:
        path: The file.
        option: Where it was given, for the message.

    Returns:
        Its content.

    Raises:
        CommandLineError: If it is missing, truncated, no Lightning checkpoint, or holds pickled code.
    """
    try:
        return plain_checkpoint(path)
    except ValueError as error:
        raise CommandLineError(f"{option} {error}") from error


def check_architecture(checkpoint: dict[str, Any], model: nn.Module, path: str, option: str = "--ckpt_path") -> None:
    """Refuse a checkpoint of another network, naming the first tensor that differs.

    Args:
        checkpoint: As read by :func:`read_checkpoint`.
        model: The module that is to load it.
        path: The file, for the message.
        option: Where it was given, for the message.

    Raises:
        CommandLineError: If names or shapes differ.
    """
    differs = difference(checkpoint["state_dict"], model.state_dict())
    if differs is not None:
        name, has, needs = differs
        raise CommandLineError(
            f"{option} {path}: of another architecture: {name} is {has} there and {needs} in "
            f"{type(model).__name__}; give the --model and its options that it was trained with"
        )


def check_something_to_train(checkpoint: dict[str, Any] | None, config: Namespace) -> None:
    """Refuse a run of no steps, and one that goes on where nothing is left; Lightning would say nothing.

    Args:
        checkpoint: What the run goes on from, if anything.
        config: The configuration of ``fit``.

    Raises:
        CommandLineError: Names the option, and the remedy.
    """
    trainer = config.trainer
    if trainer.fast_dev_run:
        # Lightning puts the other limits aside: one epoch of so many steps.
        if checkpoint is not None:
            raise CommandLineError(
                f"--trainer.fast_dev_run {trainer.fast_dev_run}: tries the first steps of a run, of which "
                f"--ckpt_path {config.ckpt_path} has done more: leave one of the two out"
            )
        return
    for name in ("max_epochs", "max_steps"):
        if trainer[name] == 0:
            raise CommandLineError(
                f"--trainer.{name} 0: there is nothing to train: give at least 1, or -1 for no limit"
            )
    if trainer.limit_train_batches == 0:
        raise CommandLineError(
            "--trainer.limit_train_batches 0: there is nothing to train: give a number of batches, or a fraction of "
            "them; a checkpoint is evaluated by lit-sphere validate or test"
        )
    if checkpoint is None:
        return
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] if "loops" in checkpoint else 0
    for name, count, of in (("max_epochs", done, "epochs"), ("max_steps", checkpoint["global_step"], "steps")):
        if count >= (math.inf if trainer[name] in (None, -1) else trainer[name]):
            raise CommandLineError(
                f"--ckpt_path {config.ckpt_path}: has done {count} {of} already, nothing is left of "
                f"--trainer.{name} {trainer[name]}: give a larger number to go on"
            )


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
        """Restore the radii."""
        spheres = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, SphereSGD)]
        states = self._checkpoint.get("optimizer_states", [])
        for optimizer in spheres:
            if len(states) == 1:
                _restore_radii(optimizer, states[0])
        radii = [group["radius"] for each in spheres for group in each.param_groups if group.get("radius")]
        loops = self._checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
        epoch = loops.get("current", {}).get("processed", self._checkpoint.get("epoch", 0))
        rho = f", ρ = {math.hypot(*radii):.5g}" if radii else ""
        rank_zero_info(f"begins at the weights of {self._path} (epoch {epoch}){rho}")


def _restore_radii(optimizer: SphereSGD, state: dict[str, Any]) -> None:
    """Replace measured radii by those stored, where the spheres are the same."""
    saved = [dict(group) for group in state.get("param_groups", [])]
    rename_options(saved)
    kinds = [
        [(group.get("granularity"), len(group["params"])) for group in groups]
        for groups in (saved, optimizer.param_groups)
    ]
    if kinds[0] != kinds[1]:
        return
    for old, group in zip(saved, optimizer.param_groups, strict=True):
        if group.get("granularity") == "joint" and "radius" in old:
            group["radius"] = old["radius"]
        elif group.get("granularity") == "filter":
            for number, p in zip(old["params"], group["params"], strict=True):
                radius = state["state"].get(number, {}).get("radius")
                if isinstance(radius, torch.Tensor) and radius.shape == optimizer.state[p]["radius"].shape:
                    optimizer.state[p]["radius"] = radius.to(optimizer.state[p]["radius"])
