"""What `lit-sphere borders` advises, against other ways to choose a learning rate: test errors after the same epochs.

    python benchmarks/advice.py digits --out advice
    python benchmarks/advice.py resnet --out advice
    python benchmarks/advice.py cifar10 --out advice -- --data.root DIR --trainer.precision bf16-mixed

Compared, each with the same seeds of initialisation, subset and order:

    grid       each constant (effective) learning rate of the papers' grid; its best is chosen by the test errors
               themselves, which nobody could who had not trained them all
    advised    advised.yaml of `lit-sphere borders` with these seeds
    lr_find    a constant rate, that which Lightning's Tuner.lr_find suggests, for each seed by itself
    default    the recipe of torchvision's reference scripts: SGD in the whole space, learning rate 0.1, momentum 0.9,
               weight decay 1e-4, a tenth after each third
    end        on the sphere: the (effective) learning rate that the advice ends at, from the start

All runs are `lit-sphere sweep`s, which the same command goes on with. What follows `--` goes to every run.
"""

import argparse
import logging
import shlex
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.tuner import Tuner
from machine import hardware
from torch.nn import functional as F
from torch.optim import Optimizer

from lit_sphere.cli.fit_parser import config_of
from lit_sphere.modules import SphereModule
from lit_sphere.optim import SphereSGD
from lit_sphere.report.runs import Run, read_runs

TEST = "val/error"


@dataclass(frozen=True)
class Problem:
    """What is trained.

    Attributes:
        fit: Options of `lit-sphere fit`.
        option: What is chosen.
        grid: Its values.
        search: Options of `lit-sphere borders`.
    """

    fit: tuple[str, ...]
    option: str
    grid: str
    search: tuple[str, ...] = ()


PROBLEMS = {
    "digits": Problem(
        ("--config", "elr.yaml", "--data.train_size", "300", "--trainer.check_val_every_n_epoch", "10"),
        "model.elr",
        "1e-4,2e-4,5e-4,1e-3,2e-3,5e-3,1e-2,2e-2,5e-2",
    ),
    "resnet": Problem(
        (
            *("--config", "conventional.yaml", "--model", "PracticalResNet18", "--model.width", "8"),
            *("--model.optimizer.weight_decay", "1e-3", "--data.augment", "false", "--data.train_size", "300"),
            *("--data.batch_size", "32", "--trainer.max_epochs", "100", "--trainer.check_val_every_n_epoch", "10"),
        ),
        "model.optimizer.lr",
        "1e-3,2e-3,5e-3,1e-2,2e-2,5e-2,1e-1,2e-1,5e-1",
        ("--over", "model.optimizer.lr=1e-3:10", "--precision", "1.5", "--converged-loss", "0.05"),
    ),
    "cifar10": Problem(
        (
            *("--config", "elr.yaml", "--model.width", "8", "--data", "CIFAR10", "--data.train_size", "1000"),
            *("--trainer.max_epochs", "250", "--trainer.check_val_every_n_epoch", "25"),
        ),
        "model.elr",
        "5e-4,1e-3,2e-3,5e-3,1e-2,2e-2",
        ("--over", "model.elr=5e-4:1e-1", "--precision", "1.5"),
    ),
}
RECIPE = (
    *("--model.elr=null", "--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--model.optimizer.momentum=0.9"),
    *("--model.optimizer.weight_decay=1e-4", "--model.scheduler=StepLR", "--model.scheduler.gamma=0.1"),
)


class Ramp(LightningModule):
    """The network of one of our modules under automatic optimisation, which ``Tuner.lr_find`` needs.

    Args:
        module: Ours.
        lr: Learning rate η; on a sphere of radius ρ the ELR is η/ρ².
    """

    def __init__(self, module: SphereModule, lr: float = 1e-3) -> None:
        super().__init__()
        self.module, self.lr = module, lr

    def training_step(self, batch: Sequence[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.module(batch[0]), batch[1])

    def configure_optimizers(self) -> Optimizer:
        trained = [p for p in self.module.parameters() if p.requires_grad]
        make_optimizer = self.module._optimizer
        optimizer = SphereSGD(trained, 1.0) if make_optimizer is None else make_optimizer(trained)
        for group in optimizer.param_groups:
            group["lr"] = self.lr
        return optimizer


def suggested(fit: Sequence[str], seed: int) -> float:
    """What ``Tuner.lr_find`` suggests, with its own defaults: an ELR on the sphere, else a learning rate."""
    config = yaml.safe_load(config_of([*fit, *seeded(seed)]))
    seed_everything(seed, verbose=False)
    data = make(LightningDataModule, config["data"])
    linked = {name: getattr(data, name) for name in ("num_classes", "in_channels")}  # by the command line
    config["model"]["init_args"].update(linked)
    module = make(SphereModule, config["model"])
    ramp = Ramp(module)
    with tempfile.TemporaryDirectory() as folder:
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(max_epochs=1000, accelerator="cpu", default_root_dir=folder, **quiet)
        finder = Tuner(trainer).lr_find(ramp, datamodule=data, update_attr=False)
    lr = None if finder is None else finder.suggestion()
    if lr is None:
        raise RuntimeError("lr_find suggests nothing")
    if module.elr is None:
        return lr
    return lr / sum(float(p.detach().square().sum()) for p in module.parameters() if p.requires_grad)


def make(kind: type[Any], config: Any) -> Any:
    """Make what a config names."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(kind, "it")
    return parser.instantiate_classes(parser.parse_object({"it": config})).it


def seeded(seed: int) -> tuple[str, ...]:
    """Options of one seed, as `--seeds` sets them."""
    return f"--seed_everything={seed}", f"--data.seed={seed}"


def command(*words: str) -> None:
    """Run `lit-sphere`, and show it."""
    print(shlex.join(["lit-sphere", *words]), file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "lit_sphere", *words], check=True, stdout=subprocess.DEVNULL)


def errors(runs: Iterable[Run]) -> dict[int, float]:
    """The last test error of each seed, in percent; a run that ended NaN is at chance."""
    found = {run.seed or 0: run.final(TEST) for run in runs}
    return {seed: 100 * (0.9 if error is None else error) for seed, error in sorted(found.items())}


def compare(problem: Problem, seeds: int, out: Path, more: Sequence[str]) -> dict[str, tuple[str, dict[int, float]]]:
    """Train all; give for each way what it chose, and its errors by seed."""
    fit, option = (*problem.fit, "--wandb", "disabled", *more), problem.option
    of_seeds = ("--seeds", str(seeds))
    search = out / "borders"
    command("borders", *fit, *problem.search, *of_seeds, "--sweep", str(search))
    command("sweep", *fit, "--over", f"{option}={problem.grid}", *of_seeds, "--sweep", str(out / "grid"))
    advised = search / "advised.yaml"
    known: dict[str, tuple[str, dict[int, float]]] = {}
    by_value: dict[float, list[Run]] = {}
    for run in read_runs([out / "grid"]).runs:
        by_value.setdefault(float(run.option(option)), []).append(run)
    for value, runs in sorted(by_value.items()):
        known[f"constant {value:g}"] = ("", errors(runs))
    command("sweep", "--config", str(advised), "--wandb", "disabled", *of_seeds, "--sweep", str(out / "advised"))
    said = [line.removeprefix("# ") for line in advised.read_text(encoding="utf-8").splitlines() if line[0] == "#"]
    known["advised"] = (" ".join(said).partition(". ")[0], errors(read_runs([out / "advised"]).runs))
    values = [suggested(fit, seed) for seed in range(seeds)]
    for seed, value in enumerate(values):
        folder = out / "lr_find" / f"seed-{seed}"
        if not (folder / "metrics.csv").exists():
            command("fit", *fit, *seeded(seed), f"--{option}={value:.4g}", "--run", str(folder))
    told = ", ".join(f"{value:.2g}" for value in values)
    known["lr_find"] = (told, errors(read_runs([out / "lr_find"]).runs))
    epochs = yaml.safe_load(config_of(fit))["trainer"]["max_epochs"]
    recipe = [*RECIPE, f"--model.scheduler.step_size={max(1, epochs // 3)}"]
    command("sweep", *fit, *recipe, *of_seeds, "--sweep", str(out / "default"))
    known["default"] = ("", errors(read_runs([out / "default"]).runs))
    switch = yaml.safe_load(advised.read_text(encoding="utf-8"))["trainer"].get("callbacks")
    if switch is not None:
        end = switch[0]["init_args"]["switches"][0]["elr"]
        command("sweep", *fit, f"--{option}={end:g}", *of_seeds, "--sweep", str(out / "end"))
        known["end"] = (f"{end:g}", errors(read_runs([out / "end"]).runs))
    return known


def main() -> None:
    typed, more = sys.argv[1:], []
    if "--" in typed:
        typed, more = typed[: typed.index("--")], typed[typed.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--seeds", type=int, default=3, help="seeds from 0 (default: 3)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the runs")
    args = parser.parse_args(typed)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    machine = hardware("cpu")
    known = compare(PROBLEMS[args.problem], args.seeds, args.out / args.problem, more)
    of_grid = {name: found for name, (_, found) in known.items() if name.startswith("constant")}
    best = min(of_grid, key=lambda name: fmean(of_grid[name].values()))
    print(f"{args.problem}, {args.seeds} seeds, {machine['cores']} cores of {machine['cpu']}")
    print(f"{'test error, %':<16}{'mean':>8}  by seed")
    for name, (told, found) in known.items():
        mark = "  the best of the grid" if name == best else f"  {told}" if told else ""
        print(f"{name:<16}{fmean(found.values()):>8.2f}  {', '.join(f'{e:.2f}' for e in found.values())}{mark}")


if __name__ == "__main__":
    main()
