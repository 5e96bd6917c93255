"""Bad input: one line that names the mistake and the remedy, no traceback, nothing lost."""

import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LitSphere, Result

from lit_sphere.cli.config_names import shipped_configs
from lit_sphere.cli.shipped_classes import shipped_classes
from lit_sphere.cli.subcommands import SUBCOMMANDS

RUN = ("--run", "r", "--trainer.max_epochs", "2", "--data.train_size", "256", "--wandb", "disabled")


def refused(result: Result, *words: str, status: int | None = None) -> None:
    """One line that says it; nothing else on standard error, and nothing that looks like results."""
    assert result.status != 0
    assert "Traceback" not in result.err
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("lit-sphere: ")
    assert len(lines[0]) < 500, "too long for one line"
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
    if status is not None:
        assert result.status == status
    assert not Path("r/metrics.csv").exists()
    assert not Path("r/checkpoints").exists()


_SPHERE = "--model SphereModule --model.input_shape [1,8,8] --model.elr 1e-3 --model.network"

_BAD = {
    "unknown command": ("train", ["train", *SUBCOMMANDS]),
    "unknown config": ("fit --config nope.yaml", ["nope.yaml", *(Path(name).stem for name in shipped_configs())]),
    "config is a folder": ("fit --config folder", ["folder", "is a folder", "YAML"]),
    "config without a name": ("fit --config", ["--config", "elr.yaml"]),
    "unknown option": ("fit --bogus 3", ["--bogus"]),
    "a callback that is there already": (
        "fit --trainer.callbacks+=EffectiveLearningRateMonitor",
        ["EffectiveLearningRateMonitor twice", "--monitor"],
    ),
    "a callback twice": (
        "fit --trainer.callbacks+=RegimeMonitor --trainer.callbacks+=RegimeMonitor",
        ["RegimeMonitor twice", "leave one out"],
    ),
    "a switch to an ELR below 0": (
        "fit --trainer.callbacks+=FineTuneSwitch --trainer.callbacks.switches [{'epoch':1,'elr':-1}]",
        ["switch", "elr must be positive"],
    ),
    "a callback's argument out of range": (
        "fit --trainer.callbacks+=CheckpointSimilarity --trainer.callbacks.keep 1",
        ["CheckpointSimilarity", "keep"],
    ),
    "unknown model option": ("fit --model.widht 3", ["widht", "SIConvNet", "--model.help"]),
    "unknown data option": ("fit --data.bogus 3", ["bogus", "Digits", "--data.help"]),
    "unknown trainer option": ("fit --trainer.bogus 3", ["--trainer.bogus"]),
    "abbreviated option": ("fit --trainer.max_epoch 3", ["--trainer.max_epoch"]),
    "unknown model": ("fit --model Nope", ["Nope", *shipped_classes("--model")]),
    "unknown data": ("fit --data Nope", ["Nope", *shipped_classes("--data")]),
    "unknown callback": ("fit --trainer.callbacks+=Nope", ["Nope", *shipped_classes("--trainer.callbacks")]),
    "unknown network by short name": (f"fit {_SPHERE} Nope", ["Nope", *shipped_classes("--model.network")]),
    "trained batch norms on the sphere": (
        "fit --model SIResNet20 --model.affine true",
        ["--model.affine", "not scale-invariant", "--model SphereModule"],
    ),
    "trained batch norms and head on the sphere": (
        f"fit {_SPHERE} ResNet20 --model.network.width 2 --model.network.in_channels 1",
        ["not scale-invariant", "--model.lr", "freeze"],
    ),
    "unknown optimizer": ("fit --model.elr null --model.optimizer SGDD", ["SGDD", "torch.optim.SGD"]),
    "unknown network": (f"fit {_SPHERE} cli_networks.Nope", ["--model.network", "cli_networks.Nope"]),
    "missing network": ("fit --model SphereModule --model.elr 1", ["--model", "required: network"]),
    "no epochs": ("fit --trainer.max_epochs 0", ["--trainer.max_epochs 0", "nothing to train", "at least 1", "-1"]),
    "no steps": ("fit --trainer.max_steps 0", ["--trainer.max_steps 0", "nothing to train", "at least 1", "-1"]),
    "no batches": ("fit --trainer.limit_train_batches 0", ["--trainer.limit_train_batches 0", "nothing to train"]),
    "no part of the batches": (
        "fit --trainer.limit_train_batches 0.0",
        ["limit_train_batches 0", "lit-sphere validate"],
    ),
    "epochs no number": ("fit --trainer.max_epochs x", ["--trainer.max_epochs", "expected int", "x"]),
    "elr no number": ("fit --model.elr fast", ["--model.elr", "expected float", "fast"]),
    "elr 0": ("fit --model.elr 0", ["--model.elr", "positive", "0"]),
    "elr -1": ("fit --model.elr -1", ["--model.elr", "positive", "-1"]),
    "elr nan": ("fit --model.elr nan", ["--model.elr", "finite", "nan"]),
    "elr .nan": ("fit --model.elr .nan", ["--model.elr", "finite", "nan"]),
    "elr inf": ("fit --model.elr inf", ["--model.elr", "finite", "inf"]),
    "elr .inf": ("fit --model.elr .inf", ["--model.elr", "finite", "inf"]),
    "elr and optimizer": (
        "fit --model.optimizer SGD --model.optimizer.lr 0.1",
        ["both elr and optimizer", "--model.elr null"],
    ),
    "neither elr nor optimizer": ("fit --model.elr null", ["--model.elr", "--model.optimizer"]),
    "unknown loss": ("fit --model.loss l1", ["--model.loss", "cross_entropy", "mse", "l1"]),
    "unknown granularity": ("fit --model.granularity x", ["--model.granularity", "joint", "filter"]),
    "unknown precision": ("fit --trainer.precision 17", ["--trainer.precision", "bf16-mixed", "17"]),
    "no gpu": ("fit --trainer.accelerator gpu", ["no GPU", "--trainer.accelerator cpu"]),
    "unknown W&B mode": ("fit --wandb x", ["--wandb", "offline", "disabled"]),
    "train set too large": ("fit --data.train_size 10000", ["10000", "1797", "lower"]),
    "batch size 0": ("fit --data.batch_size 0", ["batch_size", "at least 1"]),
    "no data": ("fit --data CIFAR10 --data.root nowhere", ["nowhere", "--data.root", "--data.download"]),
    "corrupt data": ("fit --data CIFAR10 --data.root corrupt", ["data_batch_1", "missing", "fetch it anew"]),
    "damaged data": ("fit --data CIFAR10 --data.root damaged", ["data_batch_1", "damaged", "fetch it anew"]),
    "no parameters": (f"fit {_SPHERE} torch.nn.Flatten", ["Flatten", "no trainable parameter"]),
    "nothing invariant": (f"fit {_SPHERE} cli_networks.ReLUNet", ["ReLUNet", "scale-invariant"]),
    "input of a wrong shape": (
        f"fit {_SPHERE} cli_networks.ReLUNet --model.network.pixels 9",
        ["ReLUNet", "--model.input_shape"],
    ),
    "missing checkpoint": ("fit --ckpt_path nope.ckpt", ["--ckpt_path nope.ckpt", "no such file"]),
    "checkpoint without a name": ("fit --ckpt_path", ["--ckpt_path", "expected one argument"]),
    "test without a checkpoint": ("test", ["test needs a checkpoint", "--ckpt_path"]),
    "empty checkpoint": ("fit --ckpt_path empty.ckpt", ["empty.ckpt", "truncated", "another"]),
    "text as checkpoint": ("fit --ckpt_path text.ckpt", ["text.ckpt", "no checkpoint at all"]),
    "list as checkpoint": ("fit --ckpt_path list.ckpt", ["list.ckpt", "no checkpoint of Lightning"]),
    "run folder is a file": ("fit --run file", ["run folder file", "--run"]),
    "run folder below a file": ("fit --run file/r", ["run folder file/r", "--run"]),
    "run folder in /proc": ("fit --run /proc/nowhere/r", ["/proc/nowhere/r", "--run"]),
    "bad yaml": ("fit --config bad.yaml", ["bad.yaml", "line 2"]),
    "yaml list": ("fit --config list.yaml", ["list.yaml", "list", "model:"]),
    "yaml of another key": ("fit --config key.yaml", ["modle"]),
    "binary config": ("fit --config binary.yaml", ["binary.yaml", "no YAML"]),
    "nan in yaml": ("fit --config nan.yaml", ["--model.elr", "finite"]),
}


@pytest.fixture
def bad_files(empty_folder: Path) -> None:
    for folder in ("folder", "corrupt/cifar-10-batches-py", "damaged/cifar-10-batches-py"):
        Path(folder).mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        Path("damaged/cifar-10-batches-py", name).write_bytes(b"damaged")
    Path("file").write_text("")
    Path("empty.ckpt").write_bytes(b"")
    Path("text.ckpt").write_text("no checkpoint at all\n" * 20)
    torch.save([1, 2], "list.ckpt")
    Path("bad.yaml").write_text("model: [1, 2\n  x: : :\n")
    Path("list.yaml").write_text("- 1\n- 2\n")
    Path("key.yaml").write_text("modle:\n  class_path: SIConvNet\n")
    Path("binary.yaml").write_bytes(bytes(range(256)))
    Path("nan.yaml").write_text("model: {class_path: SIConvNet, init_args: {elr: .nan}}\n")


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("name", _BAD)
def test_one_line_names_mistake_and_remedy(name: str, lit_sphere: LitSphere) -> None:
    line, words = _BAD[name]
    command, *rest = line.split()
    run: tuple[str, ...] = RUN if command == "fit" and rest[-1:] not in (["--config"], ["--ckpt_path"]) else ()
    if "--run" in rest:
        run = run[2:]
    if "--data.train_size" in rest:
        run = (*run[:4], *run[6:])
    if "CIFAR10" in line or "batch_size" in line:
        run = (*run[:4], *run[6:])
    refused(lit_sphere(command, *run, *rest), *words)


@pytest.fixture
def done(empty_folder: Path, lit_sphere: LitSphere) -> Path:
    """A finished run in the folder ``done``."""
    result = lit_sphere("fit", *RUN, "--run", "done")
    assert result.status == 0, result.err
    return Path("done/checkpoints/last.ckpt")


def test_checkpoints_that_do_not_fit(done: Path, lit_sphere: LitSphere) -> None:
    before = done.read_bytes()
    for size in (100, len(before) // 2, len(before) - 10):
        Path("cut.ckpt").write_bytes(before[:size])
        refused(lit_sphere("fit", *RUN, "--ckpt_path", "cut.ckpt"), "cut.ckpt", "truncated", "take another")
    resume = ("fit", *RUN, "--trainer.max_epochs", "3", "--ckpt_path", str(done))
    words = ("another architecture", "network.convs.0.weight", "(8, 1, 3, 3)", "(4, 1, 3, 3)", "--model")
    refused(lit_sphere(*resume, "--model", "SIConvNet", "--model.width", "4"), *words)
    refused(lit_sphere("test", "--ckpt_path", str(done), "--model.width", "4"), *words)
    refused(lit_sphere(*resume, "--model", "SIResNet18", "--model.width", "4"), "another architecture", "SIResNet18")
    refused(lit_sphere("fit", *RUN, "--ckpt_path", str(done)), "2 epochs already", "--trainer.max_epochs 2", "larger")
    assert done.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trainer.max_epochs", "2"], ["2 epochs already", "nothing is left of --trainer.max_epochs 2", "larger"]),
        (["--trainer.max_epochs", "1"], ["2 epochs already", "nothing is left of --trainer.max_epochs 1", "larger"]),
        (
            ["--trainer.max_epochs", "9", "--trainer.max_steps", "4"],
            ["4 steps already", "nothing is left of --trainer.max_steps 4", "larger"],
        ),
        (["--trainer.fast_dev_run", "true"], ["--trainer.fast_dev_run True", "first steps", "leave one of the two"]),
    ],
)
def test_a_run_that_goes_on_where_nothing_is_left(
    options: list[str], words: list[str], done: Path, lit_sphere: LitSphere
) -> None:
    refused(lit_sphere("fit", *RUN, "--ckpt_path", str(done), *options), *words, status=2)


def test_one_step_more_is_enough(done: Path, lit_sphere: LitSphere) -> None:
    few = ("--trainer.max_epochs", "-1", "--trainer.max_steps", "5", "--ckpt_path", str(done))
    result = lit_sphere("fit", *RUN, *few)
    assert result.status == 0, result.err
    assert torch.load("r/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


def test_run_folder_that_exists(done: Path, lit_sphere: LitSphere) -> None:
    kept = {path: path.read_bytes() for path in Path("done").rglob("*") if path.is_file()}
    result = lit_sphere("fit", *RUN, "--run", "done")
    refused(result, "done exists already", "--run", "--ckpt_path done/checkpoints/last.ckpt", status=2)
    assert {path: path.read_bytes() for path in Path("done").rglob("*") if path.is_file()} == kept


class _Code:
    """Pickles to code that makes a file."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("command", ["fit", "test", "validate"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_pickled_code_is_not_executed(form: str, command: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    content = {"state_dict": {}, "global_step": 1, "code": _Code()}
    if form == "torch":
        torch.save(content, "evil.ckpt")
    else:
        Path("evil.ckpt").write_bytes(pickle.dumps(content))
    refused(lit_sphere(command, "--ckpt_path", "evil.ckpt"), "evil.ckpt", "pickled code", "not loaded")
    assert not Path("executed").exists()
    # The file is a threat indeed.
    with Path("evil.ckpt").open("rb") as file:
        torch.load(file, weights_only=False) if form == "torch" else pickle.load(file)
    assert Path("executed").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "--model.elr null --model.optimizer SGD --model.optimizer.lr 1e30 --model.optimizer.weight_decay 1e8",
        "--model.elr 1e30",
    ],
)
def test_weights_that_are_not_finite_are_not_saved(arguments: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("fit", *RUN, *arguments.split())
    assert result.status == 1
    assert "Traceback" not in result.err
    ours = [line for line in result.err.splitlines() if line.startswith("lit-sphere:")]
    assert len(ours) == 1
    for word in ("epoch 0", "step 1", "network.convs.0", "NaN or infinite", "lower the learning rate", "none yet"):
        assert word in ours[0]
    assert not Path("r/checkpoints/last.ckpt").exists()


def test_a_late_failure_keeps_its_message_beside_wandb(empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere(
        "fit",
        *RUN,
        "--wandb",
        "offline",
        "--trainer.callbacks",
        "cli_networks.Break",
        "--checkpoint.every_n_epochs",
        "1",
    )
    assert result.status == 1
    ours = [line for line in result.err.splitlines() if line.startswith("lit-sphere:")]
    assert len(ours) == 1
    assert "epoch 1, step 3" in ours[0]
    assert "r/checkpoints/last.ckpt" in ours[0]
    assert Path("r/curves.png").exists()


def test_full_disk_while_training_keeps_what_there_was(empty_folder: Path) -> None:
    """A limit on the size of a file stands for a full disk: metrics.csv grows until it is reached."""
    limit = 150_000

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-m", "lit_sphere", "fit", *RUN, "--monitor.per", "step", "--trainer.max_epochs", "100000"],
        capture_output=True, text=True, timeout=100, preexec_fn=limit_files,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    warned, *ours = [line for line in done.stderr.splitlines() if line.startswith("lit-sphere:")]
    assert warned.startswith("lit-sphere: warning: no picture ")
    assert len(ours) == 1
    assert "File too large" in ours[0]
    assert "resume from the last checkpoint" in ours[0]
    saved = torch.load("r/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] > 2
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())
    assert Path("r/metrics.csv").stat().st_size > limit // 2
