"""The command line does its main job: every flag, every shipped config, from an empty folder."""

import csv
import gc
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
import wandb
import yaml
from conftest import LitSphere

from lit_sphere import __version__
from lit_sphere.cli.config_names import find_config, find_sweep, shipped_configs, shipped_sweeps
from lit_sphere.cli.quick_imports import quick_imports
from lit_sphere.cli.shipped_classes import shipped_classes
from lit_sphere.cli.subcommands import SUBCOMMANDS
from lit_sphere.modules import sphere_module
from lit_sphere.report.wandb_files import read_wandb
from lit_sphere.sweep import read_plan

TINY = ("fit", "--trainer.max_epochs", "2", "--data.train_size", "256", "--wandb", "disabled")


def checkpoint(folder: Path | str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(Path(folder) / "checkpoints" / "last.ckpt", weights_only=True)
    return loaded


def same_weights(a: dict[str, Any], b: dict[str, Any]) -> bool:
    first, second = a["state_dict"], b["state_dict"]
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def config(folder: Path | str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    return loaded


def metrics(folder: Path | str) -> list[dict[str, float]]:
    with (Path(folder) / "metrics.csv").open(newline="") as file:
        return [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]


def column(folder: Path | str, key: str) -> list[float]:
    return [row[key] for row in metrics(folder) if key in row]


# --- the main job ----------------------------------------------------------------------------------------


def test_fit_leaves_everything_in_one_folder(empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere(*TINY, "--wandb", "offline", "--run", "a", "--trainer.callbacks", "cli_networks.LogsItsOwn")
    assert result.status == 0, result.err
    assert [path.name for path in empty_folder.iterdir()] == ["a"], "files outside the run's folder"
    names = {path.name for path in Path("a").iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints", "curves.png", "wandb"} <= names
    assert checkpoint("a")["global_step"] == 4
    picture = matplotlib.image.imread("a/curves.png")
    assert picture.shape[0] > 300
    assert picture.shape[1] > 300
    assert picture[..., :3].std() > 0.02, "nothing is drawn"
    for word in (
        "SIConvNet on Digits",
        "train loss",
        "test error",
        "sharpness",
        "ELR",
        "ρ",
        "drift",
        "run folder",
    ):
        assert word in result.out
    assert len(column("a", "train/loss")) == len(column("a", "val/error")) == 2
    wandb.teardown()  # its process writes the rest of the file after the run's end
    (folder,) = Path("a/wandb").glob("offline-run-*")
    run = read_wandb(folder)
    assert run.series["train/loss"].values == pytest.approx(column("a", "train/loss"))
    assert run.series["elr/total"].values == pytest.approx([1e-3, 1e-3])
    wanted = {"train/loss", "val/error", "elr/total", "step_length/convs.0.weight", "foreign/value", "foreign/bare"}
    assert wanted <= run.series.keys()
    by_epoch = [*run.series, "pictures/curves"]
    assert {key: run.axes[key] for key in by_epoch} == dict.fromkeys(by_epoch, "epoch")
    assert all(math.isfinite(epoch) for series in run.series.values() for epoch in series.epochs)


def test_default_folder_is_named_after_the_config(empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere(*TINY, "--trainer.max_epochs", "1").status == 0
    folders = list(Path("runs").iterdir())
    assert len(folders) == 1
    assert folders[0].name.startswith("elr-")
    assert "LIT_SPHERE_RUN" not in os.environ


def test_config_yaml_repeats_the_run_bit_for_bit(empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere(*TINY, "--run", "a", "--data.augment", "true", "--seed_everything", "3").status == 0
    assert lit_sphere("fit", "--config", "a/config.yaml", "--run", "b").status == 0
    assert same_weights(checkpoint("a"), checkpoint("b"))
    assert metrics("a") == metrics("b")
    assert lit_sphere("fit", "--config", "a/config.yaml", "--run", "c", "--seed_everything", "4").status == 0
    assert not same_weights(checkpoint("a"), checkpoint("c")), "the comparison sees no difference at all"


def test_two_runs_in_one_process_are_two_wandb_runs(empty_folder: Path, lit_sphere: LitSphere) -> None:
    # The first fails, and must close its run all the same.
    fails = ["--trainer.callbacks", "cli_networks.Break", "--trainer.max_epochs", "2"]
    for arguments in (fails, [], []):
        lit_sphere(
            *TINY,
            "--trainer.max_epochs",
            "1",
            "--wandb",
            "offline",
            "--run",
            f"r{len(os.listdir())}",
            *arguments,
        )
    files = [list(folder.glob("wandb/offline-run-*/*.wandb")) for folder in sorted(empty_folder.iterdir())]
    assert [len(found) for found in files] == [1, 1, 1]
    assert len({found[0].name for found in files}) == 3


# --- shipped configs -------------------------------------------------------------------------------------


def holds(parsed: Any, shipped: Any) -> bool:
    """Whether what was parsed is what the file says, with defaults where it says nothing."""
    if isinstance(shipped, dict):
        return all(key in parsed and holds(parsed[key], value) for key, value in shipped.items())
    return bool(parsed == shipped)


@pytest.mark.filterwarnings(
    "ignore:.*never took place",
    "ignore:FineTuneSwitch.*will not take place",
    "ignore:OptimizerComparison.*will not take place",
    "ignore:LinearInterpolationBarrier measure",
)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name.startswith("paper/") else ()) for name in shipped_configs()],
)
def test_shipped_config(name: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    shipped = yaml.safe_load(Path(find_config(name)).read_text())
    begin: list[str] = []
    if "class_path" not in shipped["model"]:  # the model is that of another run
        assert lit_sphere(*TINY, "--run", "another").status == 0
        begin = ["--ckpt_weights", "another/checkpoints/last.ckpt"]
    shown = lit_sphere("fit", "--config", name, *begin, "--print_config")
    assert shown.status == 0, shown.err
    parsed = yaml.safe_load(shown.out)
    for key, value in shipped["model"].get("init_args", {}).items():
        assert holds(parsed["model"]["init_args"][key], value)
    data = parsed["data"]["class_path"].rpartition(".")[2]
    few = ["--trainer.max_epochs", "1", "--wandb", "disabled", "--run", "r", "--data.train_size", "64"]
    few += [
        "--data.batch_size",
        "16",
        "--trainer.limit_train_batches",
        "2",
        "--trainer.limit_val_batches",
        "1",
    ]
    few += ["--data.eval_batch_size", "16", *begin]
    if "ResNet18" in str(shipped["model"]):  # of full width, 11 million parameters, the search for groups takes long
        few += ["--model.network.width" if "network" in shipped["model"]["init_args"] else "--model.width", "8"]
    if data == "Digits":
        result = lit_sphere("fit", "--config", name, *few)
        assert result.status == 0, result.err
        assert column("r", "train/loss")
        return
    # Made, and then refused for want of data only.
    result = lit_sphere("fit", "--config", name, *few, "--data.root", "nowhere")
    assert result.status == 1
    assert "no CIFAR" in result.err
    root = os.environ.get("LIT_SPHERE_CIFAR10")
    if root and data == "CIFAR10":
        root = str(Path(__file__).resolve().parent.parent / root)
        result = lit_sphere("fit", "--config", name, *few, "--data.root", root)
        assert result.status == 0, result.err
        assert column("r", "train/loss")


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*never took place",
    "ignore:FineTuneSwitch.*will not take place",
    "ignore:OptimizerComparison.*will not take place",
    "ignore:LinearInterpolationBarrier measure",
)
@pytest.mark.parametrize("name", [name for name in shipped_sweeps() if name.startswith("paper/")])
def test_a_sweep_of_the_papers_trains(name: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    root = os.environ.get("LIT_SPHERE_CIFAR10")
    planned = lit_sphere("sweep", name, "--dry-run", "--data.root", "nowhere")
    assert planned.status == 0, planned.err
    if not root:
        pytest.skip("LIT_SPHERE_CIFAR10 names no folder with CIFAR-10")
    plan = read_plan(Path(find_sweep(name)))
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    few += ["--data.train_size", "64", "--data.batch_size", "16", "--data.eval_batch_size", "16"]
    few += ["--data.root", str(Path(__file__).resolve().parent.parent / root), "--wandb", "disabled", "--run", "r"]
    for width in ("--model.width", "--model.network.width"):
        result = lit_sphere("fit", *plan.arguments(plan.points[0]), *few, width, "16")
        if result.status != 2:
            break
    assert result.status == 0, result.err
    assert column("r", "train/loss")


@pytest.mark.parametrize("name", ["elr.yaml", "elr"])
def test_config_by_name_from_anywhere_and_a_path_wins(name: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    shown = yaml.safe_load(lit_sphere("fit", "--config", name, "--print_config").out)
    assert shown["model"]["init_args"]["elr"] == 1e-3
    Path(name).write_text("model: {class_path: SIConvNet, init_args: {elr: 0.25}}\n")
    shown = yaml.safe_load(lit_sphere("fit", "--config", name, "--print_config").out)
    assert shown["model"]["init_args"]["elr"] == 0.25
    # A file that nobody named is not taken.
    shown = yaml.safe_load(lit_sphere("fit", "--print_config").out)
    assert shown["model"]["init_args"]["elr"] == 1e-3


def test_later_configs_and_flags_win(empty_folder: Path, lit_sphere: LitSphere) -> None:
    Path("mine.yaml").write_text("model: {class_path: SIConvNet, init_args: {elr: 0.25}}\n")

    def elr(*args: str) -> float:
        return float(yaml.safe_load(lit_sphere("fit", *args, "--print_config").out)["model"]["init_args"]["elr"])

    assert elr("--config", "elr.yaml", "--config=mine.yaml") == 0.25
    assert elr("--config", "mine.yaml", "--config", "elr.yaml") == 1e-3
    assert elr("--config", "mine.yaml", "--model.elr", "0.5") == 0.5
    assert elr("--config", "mine.yaml", "--model.elr", "0.5", "--model.elr=0.125") == 0.125


# --- one flag changes one thing --------------------------------------------------------------------------


def _weight(folder: str, name: str) -> torch.Tensor:
    tensor: torch.Tensor = checkpoint(folder)["state_dict"][name]
    return tensor


_ONE_FLAG: dict[str, tuple[str, Callable[[], bool]]] = {
    "resnet": ("--model SIResNet18 --model.width 4", lambda: len(_weight("r", "network.stem.weight")) == 4),
    "resnet20": ("--model SIResNet20 --model.width 4", lambda: len(_weight("r", "network.stem.0.weight")) == 4),
    "resnet20 with weight norm": (
        "--model SIResNet20 --model.width 4 --model.normalisation weight --model.elr 1e-5",
        lambda: len(_weight("r", "network.stem.parametrizations.weight.original1")) == 4,
    ),
    "width": ("--model.width 4", lambda: len(_weight("r", "network.convs.0.weight")) == 4),
    "elr": ("--model.elr 5e-3", lambda: column("r", "elr/total") == pytest.approx([5e-3, 5e-3])),
    "train_size": ("--data.train_size 384", lambda: checkpoint("r")["global_step"] == 6),
    "epochs": ("--trainer.max_epochs 1", lambda: len(column("r", "train/loss")) == 1),
    "bf16": (
        "--trainer.precision bf16-mixed",
        lambda: (
            _weight("r", "network.convs.0.weight").dtype == torch.float32
            and column("r", "norm/total")[1] == pytest.approx(column("plain", "norm/total")[0], rel=1e-6)
            and column("r", "train/loss") != column("plain", "train/loss")
        ),
    ),
    "mse": ("--model.loss mse", lambda: column("r", "train/loss")[0] != column("plain", "train/loss")[0]),
    "spheres": (
        "--model.granularity filter --monitor.granularity filter",
        # Each of the 120 filters is a group; their spread is logged, and each keeps its norm.
        lambda: (
            column("r", "norm/min") == pytest.approx([column("r", "norm/min")[0]] * 2, rel=1e-6)
            and column("r", "elr/max") == pytest.approx([1e-3, 1e-3], rel=1e-5)
        ),
    ),
    "per_step": ("--monitor.per step", lambda: len(column("r", "elr/total")) == 4),
    "whole_space": (
        "--model.elr null --model.optimizer SGD --model.optimizer.lr 0.1 --model.optimizer.weight_decay 0.01",
        lambda: (
            checkpoint("r")["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.01
            and column("r", "norm/total")[0] != column("r", "norm/total")[1]
        ),
    ),
    "keep_all": (
        "--checkpoint.keep_all true",
        lambda: len(list(Path("r/checkpoints").glob("epoch*.ckpt"))) == 2,
    ),
}


@pytest.mark.parametrize("name", _ONE_FLAG)
def test_one_flag_changes_one_thing(name: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    flags, holds = _ONE_FLAG[name]
    if "plain" in holds.__code__.co_consts or name in ("bf16", "mse"):
        assert lit_sphere(*TINY, "--run", "plain").status == 0
    result = lit_sphere(*TINY, "--run", "r", *flags.split())
    assert result.status == 0, result.err
    assert holds()
    plain = yaml.safe_load(lit_sphere(*TINY, "--print_config").out)
    typed = flags.split()[::2]
    for section in ("trainer", "monitor", "checkpoint"):
        for key, value in config("r")[section].items():
            if f"--{section}.{key}" not in typed:
                assert value == plain[section][key], f"{section}.{key} changed too"


# --- checkpoints -----------------------------------------------------------------------------------------


def test_last_checkpoint_is_written_while_training(empty_folder: Path, lit_sphere: LitSphere) -> None:
    """Else a killed run would leave nothing; a run that fails in its second epoch has that of the first."""
    result = lit_sphere(*TINY, "--run", "a", "--trainer.max_epochs", "3", "--trainer.callbacks", "cli_networks.Break")
    assert result.status == 1
    assert "epoch 1, step 3" in result.err
    assert "network.convs.0.weight" in result.err
    assert "a/checkpoints/last.ckpt" in result.err
    saved = checkpoint("a")
    assert saved["global_step"] == 2
    assert Path("a/curves.png").exists()
    assert len(column("a", "train/loss")) == 1
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


def test_the_end_is_saved_between_two_intervals_too(empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere(*TINY, "--run", "a", "--trainer.max_epochs", "3", "--checkpoint.every_n_epochs", "2").status == 0
    assert checkpoint("a")["global_step"] == 6
    assert lit_sphere(*TINY, "--run", "b", "--checkpoint.every_n_steps", "3").status == 0
    assert checkpoint("b")["global_step"] == 4


@pytest.mark.parametrize(("command", "key"), [("test", "test/error"), ("validate", "val/error")])
def test_evaluate_with_a_checkpoint_alone(command: str, key: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere(*TINY, "--run", "a", "--model.width", "4").status == 0
    before = {path: path.stat().st_mtime_ns for path in Path("a").rglob("*")}
    result = lit_sphere(command, "--ckpt_path", "a/checkpoints/last.ckpt")
    assert result.status == 0, result.err
    line = next(line for line in result.out.splitlines() if key in line)
    assert float(re.findall(r"\d[\d.e-]*", line)[-1]) == pytest.approx(column("a", "val/error")[-1], abs=1e-6)
    assert {path: path.stat().st_mtime_ns for path in Path("a").rglob("*")} == before
    # Without the run's config.yaml the checkpoint's own hyperparameters make the model.
    shutil.copy("a/checkpoints/last.ckpt", "alone.ckpt")
    alone = lit_sphere(command, "--ckpt_path", "alone.ckpt", "--data.train_size", "256")
    assert alone.status == 0, alone.err
    assert line in alone.out


def test_resume_in_a_new_folder_and_in_place_equals_one_run(empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere(*TINY, "--run", "whole", "--trainer.max_epochs", "3").status == 0
    assert lit_sphere(*TINY, "--run", "a", "--trainer.max_epochs", "1").status == 0
    first = checkpoint("a")
    resume = ("fit", "--ckpt_path", "a/checkpoints/last.ckpt", "--trainer.max_epochs", "3")
    result = lit_sphere(*resume, "--run", "b")
    assert result.status == 0, result.err
    assert same_weights(checkpoint("b"), checkpoint("whole"))
    assert same_weights(checkpoint("a"), first), "the first run's checkpoint was touched"
    result = lit_sphere(*resume, "--run", "a")
    assert result.status == 0, result.err
    assert same_weights(checkpoint("a"), checkpoint("whole"))
    for key in ("step", "train/loss", "val/error", "elr/total", "effective_grad_norm/total"):
        assert column("a", key) == column("whole", key)
    # Repeated from its start, the run passes the checkpoint by itself; what it was before is kept beside it.
    (kept,) = Path("a").glob("config-before-step-*.yaml")
    assert kept.stem.rpartition("-")[2] == str(int(column("a", "step")[0]) + 1)
    assert lit_sphere("fit", "--config", "a/config.yaml", "--run", "again").status == 0
    assert same_weights(checkpoint("again"), checkpoint("whole"))


def test_what_was_set_aside_once_stays(empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere(*TINY, "--run", "a", "--trainer.max_epochs", "1").status == 0
    Path("a/checkpoints/last.ckpt").rename("first.ckpt")
    for epochs in ("2", "3"):
        more = ("--trainer.max_epochs", epochs, "--run", "a")
        Path("a/checkpoints/last.ckpt").write_bytes(Path("first.ckpt").read_bytes())
        assert lit_sphere("fit", "--ckpt_path", "a/checkpoints/last.ckpt", *more).status == 0
    kept = sorted(Path("a").glob("config-before-step-*.yaml"), key=lambda path: path.stem)
    assert [yaml.safe_load(path.read_text())["trainer"]["max_epochs"] for path in kept] == [1, 2]
    assert len(list(Path("a").glob("metrics-before-step-*.csv"))) == 2


def test_a_resumed_run_does_not_search_for_its_spheres(
    empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lit_sphere(*TINY, "--run", "a", "--trainer.max_epochs", "1").status == 0

    def search(*_: Any) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(sphere_module, "find_spheres", search)
    resumed = lit_sphere("fit", "--run", "a", "--ckpt_path", "a/checkpoints/last.ckpt", "--trainer.max_epochs", "2")
    assert resumed.status == 0, resumed.err


def test_a_failed_resume_in_place_loses_no_history(empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere(*TINY, "--run", "a", "--trainer.max_epochs", "1").status == 0
    first = column("a", "train/loss")
    resume = ("fit", "--ckpt_path", "a/checkpoints/last.ckpt", "--trainer.max_epochs", "2", "--run", "a")
    assert lit_sphere(*resume, "--model.elr", "null").status == 1
    result = lit_sphere(*resume)
    assert result.status == 0, result.err
    assert column("a", "train/loss")[:1] == first
    assert len(column("a", "train/loss")) == 2


def test_what_is_typed_wins_over_the_checkpoint(empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere(*TINY, "--run", "a", "--trainer.max_epochs", "1", "--model.elr", "2e-3").status == 0
    resume = ("fit", "--ckpt_path", "a/checkpoints/last.ckpt", "--trainer.max_epochs", "2")
    result = lit_sphere(*resume, "--run", "b", "--model.elr", "0.25")
    assert result.status == 0, result.err
    assert column("b", "elr/total") == pytest.approx([0.25])
    assert config("b")["model"]["init_args"]["elr"] == 0.25
    assert "elr: 0.002 in the checkpoint, 0.25 from now on" in result.err
    # Unless typed, the checkpoint's stays.
    result = lit_sphere(*resume, "--run", "c")
    assert column("c", "elr/total") == pytest.approx([2e-3])
    assert "from now on" not in result.err


def test_optimizer_option_typed_on_resume_wins(empty_folder: Path, lit_sphere: LitSphere) -> None:
    sgd = ("--model.elr", "null", "--model.optimizer", "SGD", "--model.optimizer.lr")
    assert lit_sphere(*TINY, "--run", "a", "--trainer.max_epochs", "1", *sgd, "0.1").status == 0
    resume = ("fit", "--ckpt_path", "a/checkpoints/last.ckpt", "--trainer.max_epochs", "2")
    result = lit_sphere(*resume, "--run", "b", "--model.optimizer.lr", "0.025")
    assert result.status == 0, result.err
    assert checkpoint("b")["optimizer_states"][0]["param_groups"][0]["lr"] == 0.025
    assert "lr: 0.1 in the checkpoint, 0.025 from now on" in result.err


# --- help ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_main_help_does_not_import_lightning(argument: str, empty_folder: Path) -> None:
    code = (
        "import sys; from lit_sphere.cli import main; main(sys.argv[1:]); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'jsonargparse')))"
    )
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{argument} imports torch or Lightning: {done.stderr}"
    wanted = [*SUBCOMMANDS, *shipped_configs()] if argument == "--help" else [__version__]
    assert all(word in done.stdout for word in wanted)


def test_help_names_every_option(empty_folder: Path, lit_sphere: LitSphere) -> None:
    text = lit_sphere("fit", "--help").out
    for option in (
        "--config",
        "--model",
        "--data",
        "--run",
        "--wandb",
        "--monitor.granularity",
        "--trainer.max_epochs",
    ):
        assert option in text
    assert "lightning.pytorch.demos" not in text, "the help lists classes that nobody asked for"
    for option in ("--model", "--data"):
        assert all(f".{name}" in text for name in shipped_classes(option)), option
    assert "--model.normalisation" in lit_sphere("fit", "--model.help", "SIResNet20").out
    model = lit_sphere("fit", "--model.help", "SIConvNet").out
    assert "--model.elr" in model
    assert "dimensionless" in model
    assert "--data.root" in lit_sphere("fit", "--data.help", "CIFAR10").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("--print_shtab", shell)
    assert result.status == 0, result.err
    for word in (
        "fit",
        "validate",
        "--trainer.max_epochs",
        "--ckpt_path",
        "--model.elr",
        "--data.train_size",
        "--data.root",
        "--model.normalisation",
        *(name for option in ("--model", "--data", "--trainer.callbacks") for name in shipped_classes(option)),
        *SUBCOMMANDS,
    ):
        assert (word.lstrip("-") if shell == "tcsh" else word) in result.out
    if shell == "bash":
        done = subprocess.run(["bash", "-n"], input=result.out, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr


def test_the_garbage_collector_rests_while_the_command_imports() -> None:
    program = """
import gc
from lit_sphere.cli.quick_imports import quick_imports
with quick_imports():
    assert not gc.isenabled()
assert gc.isenabled() and gc.get_freeze_count()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    frozen = gc.get_freeze_count()
    with quick_imports():  # of a program that has imported Lightning: here
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
