"""Checkpoints on the command line: read, held against the model and what is left to train, begun at."""

import math
import re
import traceback
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from lit_sphere.analysis import difference, epochs_done, not_finite, tensors_of
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


def newest_checkpoint(folder: Path) -> Path | None:
    """Find the checkpoint to go on from.

    Args:
        folder: Of checkpoints; need not exist.

    Returns:
        The one that was written last; None if there is none.
    """
    return max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)


def check_weights(checkpoint: dict[str, Any], model: nn.Module, path: str, option: str = "--ckpt_path") -> None:
    """Refuse a checkpoint of another network, and weights that are not finite, naming the first tensor.

    Args:
        checkpoint: As read by :func:`read_checkpoint`.
        model: The module that is to load it.
        path: The file, for the message.
        option: Where it was given, for the message.

    Raises:
        CommandLineError: If names, shapes or kinds of numbers differ, or a weight is NaN or infinite.
    """
    state, own = checkpoint["state_dict"], model.state_dict()
    differs = difference(state, own)
    if differs is not None:
        name, has, needs = differs
        raise CommandLineError(
            f"{option} {path}: of another architecture: {name} is {has} there and {needs} in "
            f"{type(model).__name__}; give the --model and its options that it was trained with"
        )
    numbers = [tensor for tensor in tensors_of(state).values() if tensor.is_floating_point()]
    if numbers and not any(tensor.any() for tensor in numbers):
        raise CommandLineError(f"{option} {path}: damaged: all its weights are 0; take another checkpoint")
    bad = not_finite(state, own)
    if bad is not None:
        raise CommandLineError(f"{option} {path}: {bad} is NaN or infinite in it; take an earlier checkpoint")


def check_loadable(checkpoint: dict[str, Any], path: str) -> None:
    """Refuse what Lightning cannot load for an evaluation: it asks for the version that has saved it.

    Args:
        checkpoint: As read by :func:`read_checkpoint`.
        path: The file, for the message.

    Raises:
        CommandLineError: If the version is missing, or is none.
    """
    version = checkpoint.get("pytorch-lightning_version")
    if version is None or not re.match(r"\d+\.\d+", version):
        raise CommandLineError(
            f"--ckpt_path {path}: does not say which Lightning has saved it (pytorch-lightning_version {version}); "
            "take a checkpoint that a Trainer has saved"
        )


def check_resumable(checkpoint: dict[str, Any], path: str) -> None:
    """Refuse a checkpoint from which a run cannot go on.

    Args:
        checkpoint: As read by :func:`read_checkpoint`.
        path: The file, for the message.

    Raises:
        CommandLineError: If it holds weights only, or its states are damaged.
    """
    check_loadable(checkpoint, path)
    missing = [name for name in ("loops", "optimizer_states", "lr_schedulers") if name not in checkpoint]
    if missing or not checkpoint["optimizer_states"]:
        what = ", ".join(missing) or "optimizer_states"
        raise CommandLineError(
            f"--ckpt_path {path}: holds no {what} (weights only?), without which a run cannot go on; begin a new run "
            f"at its weights, {CKPT_WEIGHTS} {path}"
        )
    check_states(checkpoint, path)
    if epochs_done(checkpoint) is None:
        raise CommandLineError(
            f"--ckpt_path {path}: damaged: its loops do not say how many epochs are done; take another checkpoint, or "
            f"begin a new run at its weights by {CKPT_WEIGHTS}"
        )


def check_states(checkpoint: dict[str, Any], path: str, option: str = "--ckpt_path") -> None:
    """Refuse states of optimizers that are none, or not finite.

    Args:
        checkpoint: As read by :func:`read_checkpoint`.
        path: The file, for the message.
        option: Where it was given, for the message.

    Raises:
        CommandLineError: Says what is wrong.
    """
    for state in checkpoint.get("optimizer_states", []):
        wrong = _wrong_in(state)
        if wrong is not None:
            instead = f", or begin a new run at its weights by {CKPT_WEIGHTS}" if option != CKPT_WEIGHTS else ""
            raise CommandLineError(
                f"{option} {path}: damaged: in its optimizer_states {wrong}; take an earlier checkpoint{instead}"
            )


def _wrong_in(state: Any) -> str | None:
    groups, states = (
        (state.get(name) for name in ("param_groups", "state")) if isinstance(state, dict) else (None, None)
    )
    if not (isinstance(groups, list) and isinstance(states, dict)):
        return "there are no param_groups and state"
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            return "a parameter group holds no params"
        for name, value in group.items():
            is_number = isinstance(value, (int, float, torch.Tensor)) or (value is None and name == "elr")
            if (name in ("elr", "radius") and not is_number) or (isinstance(value, float) and not math.isfinite(value)):
                return f"{name} is {value}"
    for number, values in states.items():
        if not isinstance(values, dict):
            return f"that of parameter {number} is a {type(values).__name__}"
        for name, tensor in tensors_of(values).items():
            if not tensor.isfinite().all():
                return f"{name} of parameter {number} is NaN or infinite"
    return None


def unrestorable(error: BaseException, path: str, has_fit: bool) -> CommandLineError | None:
    """Say of an error that Lightning, a callback or an optimizer could not restore their part of a checkpoint.

    Args:
        error: What ended the command.
        path: The checkpoint.
        has_fit: Whether a run was to go on from it.

    Returns:
        What the user is to see; None if the error came from elsewhere.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not any(Path(each.filename).name == "checkpoint_connector.py" and "re" in each.name[:3] for each in frames):
        return None
    if isinstance(error, ValueError):
        return CommandLineError(f"--ckpt_path {path}: {error}")
    reason = " ".join(str(error).split())[:150]
    instead = f", or begin a new run at its weights by {CKPT_WEIGHTS}" if has_fit else ""
    return CommandLineError(
        f"--ckpt_path {path}: damaged, it cannot be restored ({type(error).__name__}: {reason}); take another "
        f"checkpoint{instead}"
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
    done = epochs_done(checkpoint) or 0
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
        done = epochs_done(self._checkpoint)
        epoch = self._checkpoint.get("epoch", 0) if done is None else done
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
