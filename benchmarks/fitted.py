"""Runs of ``lit-sphere fit`` in this process: the callbacks and loggers are those that its users get."""

import contextlib
import io
import tempfile
from itertools import pairwise
from pathlib import Path

from run_probes import EpochClock

from lit_sphere.cli.sphere_cli import run


class _Terminal(io.StringIO):
    """Swallows what is written, but has the progress bar drawn as on a terminal."""

    def isatty(self) -> bool:
        return True


def fit(args: list[str], device: str) -> None:
    """Run ``lit-sphere fit`` with W&B offline, in a folder that is deleted afterwards."""
    accelerator = "gpu" if device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory(prefix="lit-sphere-benchmark-") as folder:
        place = ["--run", str(Path(folder) / "run"), "--wandb=offline"]
        fixed = ["--trainer.accelerator", accelerator, "--trainer.devices=1"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(_Terminal()):
            run(["fit", "--config=elr.yaml", *args, *place, *fixed])


def epoch_seconds(args: list[str], epochs: int, device: str, eval_batches: int) -> list[float]:
    """Time the epochs of one fit, the first left out: everything from one epoch's start to the next's.

    Refuses a fit that took other numbers of epochs, or of evaluation batches in each, than it is compared with.
    """
    clock = ["--trainer.callbacks=run_probes.EpochClock", f"--trainer.max_epochs={epochs + 1}"]
    fit([*args, *clock], device)
    seconds = [end - start for start, end in pairwise(EpochClock.marks)]
    if len(seconds) != epochs + 1:
        raise RuntimeError(f"the fit took {len(seconds)} epochs instead of {epochs + 1}")
    if EpochClock.evaluated != [eval_batches] * (epochs + 1):
        raise RuntimeError(f"the fit evaluated {EpochClock.evaluated} batches, not {eval_batches} in each epoch")
    return seconds[1:]
