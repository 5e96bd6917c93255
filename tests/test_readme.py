"""What README shows: every command and the Python block run, the table is the one that is printed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, LitSphere
from torch.utils.data import DataLoader

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def _commands(block: str) -> list[str]:
    lines = [line for line in block.splitlines() if line.startswith("lit-sphere ")]
    return [line.partition(" #")[0].removeprefix("lit-sphere ").strip() for line in lines]


BASH = [block for kind, block in BLOCKS if kind == "bash"]
# In a story each command builds on the folders of those before it.
STORIES = [_commands(block) for block in BASH if "interpolate" in block]
COMMANDS = [command for block in BASH if "interpolate" not in block for command in _commands(block)]
_SMALL = ["--trainer.max_epochs", "1", "--wandb", "disabled"]


def test_there_are_commands_to_test() -> None:
    assert len(COMMANDS) > 8
    assert len(STORIES) == 1
    assert len(STORIES[0]) > 4


@pytest.mark.parametrize(
    "command", [pytest.param(each, marks=[pytest.mark.slow] if " ddp" in each else []) for each in COMMANDS]
)
def test_command(command: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    args = [*shlex.split(command), *_SMALL]
    if "DIR" in args:
        root = os.environ.get("LIT_SPHERE_CIFAR10")
        args[args.index("DIR")] = str(REPOSITORY / root) if root else "nowhere"
        result = lit_sphere(*args, "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1")
        if not root:
            assert result.status == 1
            assert "no CIFAR-10 under 'nowhere'" in result.err
            return
    elif "ddp" in args:  # Lightning starts its second process by this process's own command line
        small = [sys.executable, "-m", "lit_sphere", *args, "--data.train_size", "256"]
        done = subprocess.run(small, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert "run folder" in done.stdout
        assert len(list((empty_folder / "runs").iterdir())) == 1, "both ranks share one folder"
        return
    else:
        result = lit_sphere(*args, *([] if "--data.train_size" in args else ["--data.train_size", "256"]))
    assert result.status == 0, result.err
    (run,) = (empty_folder / "runs").iterdir()
    assert (run / "curves.png").exists()


@pytest.mark.parametrize("commands", STORIES)
def test_story(commands: list[str], empty_folder: Path, lit_sphere: LitSphere) -> None:
    small = {
        "fit": [*_SMALL, "--data.train_size", "256"],
        "interpolate": ["--points", "3", "--data.train_size", "256"],
        "toy": [],
    }
    for command in commands:
        args = shlex.split(command)
        sphere = ["--grid", "4", "--seeds", "2", "--steps", "50"] if args == ["toy"] else []
        result = lit_sphere(*args, *small[args[0]], *sphere, *(["--run", "t2"] if "--weight-decay" in args else []))
        assert result.status == 0, result.err
    for picture in ("runs/interpolate-*/interpolation.png", "runs/toy-*/toy.png", "runs/fine_tune-*/curves.png"):
        assert len(list(empty_folder.glob(picture))) == 1
    assert (empty_folder / "t2" / "toy.png").exists()


def test_python_block(empty_folder: Path) -> None:
    block, _ = [block for kind, block in BLOCKS if kind == "python"]
    namespace: dict[str, object] = {}
    exec(block.replace("Trainer(", "Trainer(logger=False, enable_checkpointing=False, "), namespace)
    groups = namespace["groups"]
    assert isinstance(groups, list)
    assert len(groups) == 31


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_module_without_forward(empty_folder: Path) -> None:
    _, block = [block for kind, block in BLOCKS if kind == "python"]
    namespace: dict[str, Any] = {}
    exec(block.replace("Trainer(", "Trainer(logger=False, accelerator='cpu', "), namespace)
    words = torch.randint(0, 1000, (16, 8), generator=torch.Generator().manual_seed(0))
    batches: Any = DataLoader([{"input_ids": each, "labels": each} for each in words], 4)  # type: ignore[arg-type]
    namespace["trainer"].fit(namespace["LanguageModel"](), batches)
    assert namespace["trainer"].callback_metrics["elr/total"] > 0


def _table(text: str) -> tuple[str, dict[str, list[str]]]:
    """Title and rows of a run's last table: value and note by name."""
    title = [line for line in text.splitlines() if line.startswith("SIConvNet on Digits: ")][-1]
    lines = text[text.rindex(title) :].splitlines()[1:]
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines if line.startswith("  ")]
    return title, {name: cells for name, *cells in rows}


def _without(numbers: str, text: str) -> str:
    return re.sub(numbers, "N", text)


def test_the_table_shown_is_the_one_printed(empty_folder: Path, lit_sphere: LitSphere) -> None:
    """The whole run: at this ELR it converges alike everywhere.

    Seen in other arithmetics (no vector instructions, AVX2, AVX-512, double precision) and releases of torch: losses
    within 0.2 %, sharpness within 1 %, the same two images wrong, the same epoch.
    """
    (block,) = [block for kind, block in BLOCKS if "run folder" in block]
    title, shown = _table(block)
    real_title, printed = _table(lit_sphere("fit", "--config", "elr.yaml", "--wandb", "disabled").out)
    assert _without(r"[\d.]+ s, \d+ steps/s", real_title) == _without(r"[\d.]+ s, \d+ steps/s", title)
    assert list(printed) == list(shown)
    for name in ("ELR", "train error"):
        assert printed[name] == shown[name]
    for name, tolerance in (("train loss", 0.05), ("sharpness", 0.05)):
        assert float(printed[name][0]) == pytest.approx(float(shown[name][0]), rel=tolerance), name
        assert printed[name][1] == shown[name][1]
    percent = [float(table["test error"][0].removesuffix(" %")) for table in (printed, shown)]
    assert percent[0] == pytest.approx(percent[1], abs=0.68)  # two of the 297 images
    assert printed["test error"][1] == shown["test error"][1]
    assert printed["ρ"][0] == shown["ρ"][0]
    for table in (printed, shown):
        assert float(table["ρ"][1].removeprefix("relative drift ")) < 1e-6
    assert printed["regime"][0] == shown["regime"][0] == "convergence"
    (since, evidence), (since_shown, evidence_shown) = (
        (int(table["regime"][1].split()[-1]), _without(r"\d+$", table["regime"][1])) for table in (printed, shown)
    )
    assert abs(since - since_shown) <= 2
    assert evidence == evidence_shown
    assert _without(r"\d+", printed["run folder"][0]) == _without(r"\d+", shown["run folder"][0])
    assert Path(printed["run folder"][0]).is_dir()


def test_every_shipped_config_is_named() -> None:
    for path in (REPOSITORY / "configs").rglob("*.yaml"):
        assert f"`{path.relative_to(REPOSITORY / 'configs').as_posix()}`" in README
