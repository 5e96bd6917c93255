"""CONTRIBUTING.md, followed to the letter in a copy of the tree: what is new is known by its short name."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from lit_sphere.report.wandb_files import read_wandb

pytestmark = pytest.mark.slow  # a copy of the repository
TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")

# Runs commands one after the other in one process, since to import Lightning takes longer than they do.
_DRIVER = """
import contextlib, io, json, sys
import lit_sphere
from lit_sphere.cli import main

done = {"where": lit_sphere.__file__}
for line in json.loads(sys.argv[1]):
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(line.split())
        except SystemExit as error:
            status = error.code
    done[line] = [status, out.getvalue(), err.getvalue()]
json.dump(done, open(sys.argv[2], "w"))
"""


def _blocks() -> list[tuple[str, str, str]]:
    """Path, kind and text of each fenced block of the recipes; the path is the last one named before it."""
    found, path = [], ""
    for named, kind, text in re.findall(
        r"`([\w/]+\.\w+|\w+\.md)`|^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL
    ):
        path = named or path
        if kind not in ("", "bash"):
            found.append((path, kind, text))
    return found


def _write(tree: Path, path: str, kind: str, text: str) -> None:
    file = tree / path
    if kind != "diff":
        assert not file.exists(), f"{path} is there already"
        file.write_text(text, encoding="utf-8")
        return
    lines = text.splitlines(keepends=True)
    assert {line[0] for line in lines if line.strip()} == {" ", "+"}
    before = "".join(line[1:] for line in lines if line[0] == " ")
    content = file.read_text(encoding="utf-8")
    assert content.count(before) == 1, f"{path} has {content.count(before)} times:\n{before}"
    file.write_text(content.replace(before, "".join(line[1:] for line in lines)), encoding="utf-8")


def _python(tree: Path, cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("WANDB_MODE", None)
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, with all that the recipes add."""
    copy = tmp_path_factory.mktemp("recipe") / "lit-sphere"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(REPOSITORY / name, copy)
    for name in ("lit_sphere", "callbacks", "configs", "docs", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=ignored)
    for block in _blocks():
        _write(copy, *block)
    return copy


def test_there_are_recipes() -> None:
    new = {path for path, kind, _ in _blocks() if kind != "diff"}
    assert {Path(path).parent.as_posix() for path in new} == {
        "lit_sphere/networks", "lit_sphere/data", "callbacks", "configs", "tests",
    }  # fmt: skip
    edited = [path for path, kind, _ in _blocks() if kind == "diff" and not path.startswith(("tests/", "docs/"))]
    assert sorted(set(edited)) == sorted(
        ["callbacks/__init__.py", "lit_sphere/data/__init__.py", "lit_sphere/networks/__init__.py"]
    ), "one export each, and nothing else of the package is touched"


def test_the_new_code_has_the_style_of_the_old(tree: Path) -> None:
    for command in (("check",), ("format", "--check")):
        done = _python(tree, tree, "-m", "ruff", *command, "--no-cache", ".")
        assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def commands(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What each command line came to: status, standard output, standard error."""
    folder = tmp_path_factory.mktemp("runs")
    short = "--trainer.max_epochs 2 --data.train_size 256 --trainer.callbacks+=WeightNorm"
    lines = [
        f"fit --config elr --model SIPlainNet --model.width 4 --data Parity --run new --wandb offline {short}",
        "fit --config label_noise --print_config",
        "fit --config nope",
        "fit --model Nope",
        "fit --data Nope",
        "fit --trainer.callbacks+=Nope",
        "fit --model SphereModule --model.network Nope",
        "fit --help",
        "fit --model.help SIPlainNet",
        "--help",
        "--print_shtab bash",
    ]
    done = _python(tree, folder, "-c", _DRIVER, json.dumps(lines), "done.json")
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads((folder / "done.json").read_text())
    assert Path(results.pop("where")).is_relative_to(tree)
    return folder, results


def _result(commands: tuple[Path, dict[str, Any]], start: str) -> list[Any]:
    (found,) = [result for line, result in commands[1].items() if line.startswith(start)]
    assert isinstance(found, list)
    return found


def test_the_network_trains_on_the_data_by_their_short_names(commands: tuple[Path, dict[str, Any]]) -> None:
    status, out, err = _result(commands, "fit --config elr --model SIPlainNet")
    assert status == 0, err
    assert "SIPlainNet on Parity: 2 epochs, 4 steps" in out
    assert "relative drift" in out, "it is on the sphere"


def test_keys_of_the_callback_have_the_epoch_as_their_axis(commands: tuple[Path, dict[str, Any]]) -> None:
    (file,) = (commands[0] / "new" / "wandb").glob("offline-run-*/*.wandb")
    run = read_wandb(file)
    assert run.series["weights/norm"].epochs == [0, 1]
    assert run.axes["weights/norm"] == "epoch"


def test_the_experiment_goes_by_its_name(commands: tuple[Path, dict[str, Any]]) -> None:
    status, out, err = _result(commands, "fit --config label_noise")
    assert status == 0, err
    assert "label_noise: 0.5" in out


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("fit --model Nope", "SIPlainNet"),
        ("fit --model SphereModule", "PlainNet"),
        ("fit --data Nope", "Parity"),
        ("fit --trainer.callbacks+=Nope", "WeightNorm"),
        ("fit --config nope", "label_noise"),
    ],
)
def test_errors_name_what_is_new(line: str, name: str, commands: tuple[Path, dict[str, Any]]) -> None:
    status, _, err = _result(commands, line)
    assert status == 2
    assert re.search(rf"\b{name}\b", err)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("fit --help", {"SIPlainNet", "Parity"}),
        ("fit --model.help", {"--model.width", "--model.elr"}),
        ("--help", {"label_noise.yaml"}),
        ("--print_shtab", {"SIPlainNet", "PlainNet", "Parity", "WeightNorm"}),
    ],
)
def test_help_and_completion_name_what_is_new(
    line: str, names: set[str], commands: tuple[Path, dict[str, Any]]
) -> None:
    status, out, err = _result(commands, line)
    assert status == 0, err
    assert not [name for name in names if not re.search(rf"(?<!\w){name}\b", out)]


def test_nothing_of_this_is_there_without_the_recipes() -> None:
    folders = [REPOSITORY / name for name in ("lit_sphere", "callbacks", "configs")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml")]
    words = {word for path in files for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    assert "SIConvNet" in words
    assert not words & {"SIPlainNet", "PlainNet", "Parity", "WeightNorm"}


def _passed(tree: Path, files: str, wanted: str) -> str:
    """Run tests of the copy, all of which pass; their names."""
    paths = [f"tests/{name}.py" for name in files.split()]
    options = ("-v", "-n", "0", "-p", "no:cacheprovider", "-m", "slow or not slow", "-k", wanted)
    done = _python(tree, tree, "-m", "pytest", *options, *paths)
    assert done.returncode == 0, done.stdout[-3000:]
    return "\n".join(re.findall(r"^(.*) PASSED", done.stdout, re.MULTILINE))


def test_the_tests_of_network_data_and_house_pass(tree: Path) -> None:
    files = "test_plain_net test_parity test_si_modules test_house test_packaging"
    passed = _passed(tree, files, "plain or Plain or parity or house or packages_are")
    for name in ("half_of_the_digits", "any_size[8]", "head_is_frozen[SIPlainNet]", "packages_are_those_on_disk"):
        assert name in passed
    for file in ("networks/plain_net.py", "data/parity.py", "callbacks/weight_norm.py"):
        assert f"test_imports_go_down[lit_sphere/{file}]" in passed


def test_the_tests_of_callback_and_experiment_pass(tree: Path) -> None:
    passed = _passed(tree, "test_callback_registry", "weight-norm or WeightNorm")
    for name in ("table_of_keys_is_true[WeightNorm]", "leaves_the_run_bit_identical[weight-norm-resnet]"):
        assert name in passed
    passed = _passed(tree, "test_experiments test_readme", "by_heart or every_shipped")
    assert "by_heart" in passed
    assert "every_shipped_config_is_named" in passed


def test_the_set_up_is_the_one_of_the_readme() -> None:
    (ours,) = re.findall(r"^python3 -m venv .*$", TEXT, re.MULTILINE)
    assert ours in README


def test_what_is_named_is_there() -> None:
    made = {path for path, kind, _ in _blocks() if kind != "diff"}
    named = set(re.findall(r"`((?:[\w.]+/)*[\w.]+\.(?:py|toml)|\.ci/run)`", TEXT))
    assert {".ci/run", "pyproject.toml", "tests/test_house.py"} <= named
    assert not [path for path in named - made if not (REPOSITORY / path).exists()]
