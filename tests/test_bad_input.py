"""Bad input: one line that names the mistake and the remedy, no traceback, nothing lost."""

import errno
import os
import pickle
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import wandb
from bad_files import FILES
from conftest import REPOSITORY, LitSphere, Result

from lit_sphere.cli import main
from lit_sphere.cli.config_names import shipped_configs
from lit_sphere.cli.errors import exit_status
from lit_sphere.cli.shipped_classes import shipped_classes
from lit_sphere.cli.subcommands import SUBCOMMANDS
from lit_sphere.modules import SIConvNet

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


def _table() -> tuple[list[tuple[str, list[str]]], ...]:
    """The two parts of bad_commands.txt: command lines, and the words that their answers must hold."""
    parts: list[list[tuple[str, list[str]]]] = []
    for line in (REPOSITORY / "tests" / "bad_commands.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            parts.append([])
        elif line.startswith(" "):
            parts[-1][-1][1].extend(line.strip().split(" | "))
        elif line:
            parts[-1].append((line, []))
    return tuple(part for part in parts if part)


_EACH_KIND, _MORE = _table()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch, for all rows that need one."""
    folder = tmp_path_factory.mktemp("finished") / "done"
    command = ("--trainer.max_epochs", "1", "--data.train_size", "256", "--wandb", "disabled", "--run", str(folder))
    main(["fit", *command, "--trainer.enable_progress_bar", "false"])
    return folder


@pytest.fixture
def bad_files(empty_folder: Path, finished_run: Path) -> None:
    for name, content in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    torch.save([1, 2], "list.ckpt")
    Path("loop").symlink_to("loop")
    Path("done").symlink_to(finished_run)


def _answered_in_one_line(command: str, words: list[str], lit_sphere: LitSphere) -> None:
    before = set(Path().iterdir())
    result = lit_sphere(*shlex.split(command.replace("DONE", "done/checkpoints/last.ckpt")))
    assert result.status in (1, 2)
    assert set(Path().iterdir()) == before
    refused(result, *words)
    assert "unforeseen" not in result.err


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize(("command", "words"), _EACH_KIND, ids=[row[0] for row in _EACH_KIND])
def test_one_line_names_mistake_and_remedy(command: str, words: list[str], lit_sphere: LitSphere) -> None:
    _answered_in_one_line(command, words, lit_sphere)


@pytest.mark.slow
@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize(("command", "words"), _MORE, ids=[row[0] for row in _MORE])
def test_more_of_the_same(command: str, words: list[str], lit_sphere: LitSphere) -> None:
    _answered_in_one_line(command, words, lit_sphere)


def test_the_table_is_large_and_has_each_subcommand() -> None:
    commands = [command for command, _ in (*_EACH_KIND, *_MORE)]
    assert len(set(commands)) == len(commands) >= 300
    assert {command.split()[0] for command in commands} >= set(SUBCOMMANDS)
    assert all(words for _, words in (*_EACH_KIND, *_MORE))


def test_a_list_of_what_there_is(empty_folder: Path, lit_sphere: LitSphere) -> None:
    """What is added later is in these lines by itself."""
    lists = {
        "train": SUBCOMMANDS,
        "fit --config nope.yaml": [Path(name).stem for name in shipped_configs()],
        **{f"fit {option} Nope": shipped_classes(option) for option in ("--model", "--data")},
        "fit --trainer.callbacks+=Nope": shipped_classes("--trainer.callbacks"),
        f"fit {_SPHERE} Nope": shipped_classes("--model.network"),
    }
    for command, names in lists.items():
        refused(lit_sphere(*command.split()), *names)


def test_a_wandb_logger_that_cannot_begin(
    empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> NoReturn:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    result = lit_sphere("fit", "--trainer.logger", "WandbLogger")
    refused(result, "--trainer.logger WandbLogger", "No API key", "leave it out", "--wandb online", status=2)
    assert not any(empty_folder.iterdir())


def test_memory_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    status = exit_status(RuntimeError("DefaultCPUAllocator: you tried to allocate 36000000000 bytes. Error code 12"))
    assert status == 1
    assert "36000000000 bytes of memory are not there" in capsys.readouterr().err


def test_a_metric_that_was_never_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a callback that is not ours, whose keys nobody knows beforehand."""
    message = (
        "Early stopping conditioned on metric `foreign/x` which is not available. Pass in or modify your "
        "`EarlyStopping` callback to use any of the following: `val/loss`, `val/error`"
    )
    assert exit_status(RuntimeError(message)) == 1
    line = capsys.readouterr().err
    assert "monitor 'foreign/x' is logged by nobody; there are val/loss, val/error" in line


@pytest.mark.parametrize(
    ("command", "remedy"), [("fit", "resume from the last checkpoint"), ("toy", "run the command again")]
)
def test_a_full_disk_is_answered_as_the_command_can(
    command: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(OSError(errno.ENOSPC, "No space left on device", "f"), command) == 1
    assert f"No space left on device: f; free some space and {remedy}" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_not_to_be_made_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read all
    assert exit_status(PermissionError(errno.EACCES, "Permission denied", str(tmp_path))) == 1
    line = capsys.readouterr().err
    assert "allow to read it" in line
    assert "written" not in line


@pytest.mark.parametrize(("option", "value"), [("granularity", "tensor"), ("lr", 0.1)])
def test_options_of_the_sphere_do_nothing_without_it(option: str, value: Any) -> None:
    model = SIConvNet(width=2, in_channels=1, optimizer=torch.optim.SGD, **{option: value})
    with pytest.warns(UserWarning, match=rf"--model.{option}.* without elr it changes nothing"):
        model.check_trainable()


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


@pytest.mark.slow
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
