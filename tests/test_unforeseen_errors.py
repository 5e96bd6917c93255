"""An error that nobody foresaw ends in one line, too, and its traceback in a file."""

import re
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest
from conftest import LitSphere, Result

from lit_sphere.cli import toy

_RUN = ("--trainer.max_epochs", "1", "--data.train_size", "256", "--wandb", "disabled")
_LINE = (
    r"lit-sphere: unforeseen KeyError: 'x+…; the full traceback is in (\S+), and is printed with LIT_SPHERE_TRACEBACK=1"
)


def _crash(*_: object) -> NoReturn:
    raise KeyError("x" * 1000)


def _file(result: Result) -> Path:
    assert result.status == 1
    ours = [line for line in result.err.splitlines() if line.startswith("lit-sphere:")]
    assert len(ours) == 1
    assert "Traceback" not in result.err
    named = re.fullmatch(_LINE, ours[0])
    assert named, ours[0]
    text = Path(named[1]).read_text(encoding="utf-8")
    assert text.startswith("Traceback (most recent call last):")
    assert "in _crash" in text
    return Path(named[1])


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_of_a_run_in_its_folder(
    empty_folder: Path, temporary: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli_networks.CountBatches.on_train_batch_start", _crash)
    crashing = ("fit", *_RUN, "--run", "r", "--trainer.callbacks", "cli_networks.CountBatches")
    assert _file(lit_sphere(*crashing)).parent == empty_folder / "r"
    assert not any(temporary.glob("lit-sphere-*"))


def test_of_a_command_that_has_no_folder_yet(
    empty_folder: Path, temporary: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lit_sphere("toy", "--steps", "1", "--run", "earlier").status == 2
    monkeypatch.setattr(toy, "make_parser", _crash)
    assert _file(lit_sphere("toy")).parent == temporary
    assert not any(empty_folder.iterdir())


def test_of_a_toy_in_its_folder(
    empty_folder: Path, temporary: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "_plane", _crash)
    assert _file(lit_sphere("toy", "--weight-decay", "0.1", "--run", "t")).parent == empty_folder / "t"


def test_where_no_file_can_be_written(
    empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(empty_folder / "nowhere"))
    monkeypatch.setattr(toy, "make_parser", _crash)
    result = lit_sphere("toy")
    assert result.status == 1
    (line,) = result.err.splitlines()
    assert "unforeseen KeyError" in line
    assert "could not be written (No such file or directory)" in line
    assert "LIT_SPHERE_TRACEBACK=1" in line


def test_a_value_error_without_words_is_unforeseen(
    empty_folder: Path, temporary: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody refused a value: a conversion failed, or an unpacking."""

    def convert() -> float:
        return float("".join("word"))

    monkeypatch.setattr(toy, "make_parser", convert)
    (line,) = lit_sphere("toy").err.splitlines()
    assert "unforeseen ValueError: could not convert string to float: 'word'" in line
    assert len(list(temporary.iterdir())) == 1


def test_the_traceback_is_raised_on_demand(
    empty_folder: Path, temporary: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_SPHERE_TRACEBACK", "1")
    monkeypatch.setattr(toy, "make_parser", _crash)
    with pytest.raises(KeyError, match="xxx"):
        lit_sphere("toy")
    assert not any(temporary.iterdir())


def test_a_package_that_is_missing_is_no_surprise(
    empty_folder: Path, temporary: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning says so in words, once a callback begins; an import that fails otherwise is a fault of ours."""
    said = iter(
        ["`Monitor` needs `psutil`, which is not installed. Try `pip install psutil`", "cannot import name 'x'"]
    )

    def missing() -> None:
        raise ModuleNotFoundError(next(said))

    monkeypatch.setattr(toy, "make_parser", missing)
    result = lit_sphere("toy")
    expected = "lit-sphere: `Monitor` needs `psutil`, which is not installed. Try `pip install psutil`\n"
    assert (result.status, result.err) == (1, expected)
    assert "unforeseen ModuleNotFoundError: cannot import name 'x'" in lit_sphere("toy").err
