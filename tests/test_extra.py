"""Callbacks without what only the command needs, and the command without it."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, WITHOUT_COMMAND, LitSphere
from packaging.requirements import Requirement
from test_bad_input import refused

from lit_sphere.cli.extra import check_extra

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

_OF_COMMAND = {
    *("torch", "torchvision", "jsonargparse", "wandb", "scikit-learn", "pyyaml", "torchmetrics", "lightning"),
    *("plotly", "rich"),
}

_BLOCKED = """
import sys
import torch
from lightning.pytorch import LightningModule, Trainer

# As if not installed; after Lightning, since torchmetrics asks pip and not Python what is there.
sys.modules.update(dict.fromkeys(["wandb", "sklearn", "jsonargparse", "torchvision"]))
from lit_sphere.callbacks import *
from lit_sphere.groups import find_groups

class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

data = torch.utils.data.TensorDataset(torch.randn(16, 4), torch.randint(2, (16,)))
trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                  enable_progress_bar=False, enable_model_summary=False, callbacks=[EffectiveLearningRateMonitor()])
trainer.fit(Tiny(), torch.utils.data.DataLoader(data, 4))
assert "lit_sphere.cli" not in sys.modules
print("elr", float(trainer.callback_metrics["elr/total"]))
"""


@pytest.mark.slow  # imports Lightning anew
def test_callbacks_need_nothing_of_the_command(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _BLOCKED], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    name, value = done.stdout.split()[-2:]
    assert name == "elr"
    assert 0 < float(value) < 1


def _cli_extra() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines: list[str] = project["optional-dependencies"]["cli"]
    return lines


def test_the_extra_of_the_command_holds_what_only_it_needs() -> None:
    assert {Requirement(line).name for line in _cli_extra()} == _OF_COMMAND


def _installed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """As if the package were installed with the requirements of today, beside these releases."""
    lines = [f'{line.partition("#")[0].strip()}; extra == "cli"' for line in _cli_extra()]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["numpy>=99", 'ruff>=99; extra == "test"', *lines])
    real = importlib.metadata.version

    def version(name: str) -> str:
        found = versions.get(name.replace("-", "_"), real(name))
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize("command", ["fit", "toy", "interpolate", "--print_shtab"])
def test_a_missing_extra_is_one_line(
    command: str, empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(monkeypatch, wandb=None, jsonargparse="4.40.0", scikit_learn=None)
    words: list[Any] = ["jsonargparse<5,>=4.53 (4.40.0 is installed)", "wandb>=0.31 (not installed)"]
    refused(lit_sphere(command), *words, "scikit-learn", "pip install 'lit-sphere[cli]'", status=2)


def test_help_needs_no_extra(lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, wandb=None)
    assert lit_sphere("--help").status == 0
    assert lit_sphere("--version").status == 0


def test_the_whole_extra_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch)
    check_extra()


def test_a_checkout_that_is_not_installed_is_run_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    check_extra()


def test_the_tests_of_callbacks_need_no_command() -> None:
    """The first of the two parts in which .ci/run tries the lowest versions."""
    needs = re.compile(r"^\s*(from|import) (lit_sphere\.cli|jsonargparse|wandb|yaml)|\bLitSphere\b", re.MULTILINE)
    for name in WITHOUT_COMMAND:
        text = (REPOSITORY / "tests" / f"test_{name}.py").read_text(encoding="utf-8")
        assert not needs.search(text), name
    assert needs.search((REPOSITORY / "tests" / "test_cli.py").read_text(encoding="utf-8"))
