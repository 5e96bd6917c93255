"""Command lines of ``fit`` after which Lightning would train no step, and say nothing."""

import math
from typing import Any

from jsonargparse import Namespace

from lit_sphere.cli.errors import CommandLineError


def check_something_to_train(checkpoint: dict[str, Any] | None, config: Namespace) -> None:
    """Refuse a run of no steps, and one that goes on where nothing is left.

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
