"""What README and the pages of docs/ show: commands and Python blocks run, the table is the one that is printed."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import REPOSITORY, LitSphere
from torch.utils.data import DataLoader

from lit_sphere.experiments import EXPERIMENTS
from lit_sphere.experiments.records import shipped_records

README = "README.md"


class Block(NamedTuple):
    """A fenced block; ``reason`` of ``<!-- not run: … -->`` on the line before, or None."""

    page: str
    kind: str
    text: str
    reason: str | None

    @property
    def commands(self) -> list[str]:
        lines = [line for line in self.text.splitlines() if line.startswith("lit-sphere ")]
        return [line.partition(" #")[0].removeprefix("lit-sphere ").strip() for line in lines]


def _read(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def _blocks(page: str) -> list[Block]:
    fence = r"^(?:<!-- not run: ?(.*?) ?-->\n)?```(\w*)\n(.*?)^```$"
    return [
        Block(page, match[2], match[3], match[1]) for match in re.finditer(fence, _read(page), re.MULTILINE | re.DOTALL)
    ]


PAGES = [README, *sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").rglob("*.md"))]
BLOCKS = [block for page in PAGES for block in _blocks(page)]
BASH = [block for block in BLOCKS if block.kind == "bash" and block.reason is None]
# README's single runs are part of the fast tests; what begins with a sweep is a story.
SINGLE = [
    command
    for block in BASH
    if block.page == README and all(each.startswith("fit ") for each in block.commands)
    for command in block.commands
]


def _stories() -> dict[str, list[str]]:
    """Each page's commands in order, on the folders of those before; single runs on the first page that has them.

    README and the first page show what other pages show as well, which is run there.
    """
    seen = set(SINGLE)
    stories: dict[str, list[str]] = {}
    summaries = [README, "docs/index.md"]
    for page in [*(page for page in PAGES if page not in summaries), *summaries]:
        before = seen | {command for story in stories.values() for command in story} if page in summaries else seen
        commands = [command for block in BASH if block.page == page for command in block.commands]
        stories[page] = [command for command in commands if command not in before]
        seen |= {command for command in commands if command.startswith("fit ") and "runs/" not in command}
    return {page: commands for page, commands in stories.items() if commands}


STORIES = _stories()
_SMALL = ["--trainer.max_epochs", "1", "--wandb", "disabled"]
_SMALLER = {
    "fit": [*_SMALL, "--data.train_size", "256"],
    "sweep": [*_SMALL, "--data.train_size", "128"],
    "borders": [*_SMALL[2:], "--trainer.max_epochs", "20", "--data.train_size", "128", "--budget", "40"],
    "reproduce": [*_SMALL, "--data.train_size", "128"],
    "interpolate": ["--points", "3", "--data.train_size", "256"],
    "report": ["--formats"],  # no files of figures, which take longest
}


def test_there_are_commands_to_test() -> None:
    assert len(SINGLE) > 5
    assert len(STORIES) > 5
    assert sum(map(len, STORIES.values())) > 20


def test_every_command_is_run_or_has_a_reason() -> None:
    assert len(BASH) > 10
    for block in BASH:
        assert len(block.commands) == len(block.text.splitlines()), f"{block.page}: not only lit-sphere:\n{block.text}"
    reasons = [block.reason for block in BLOCKS if block.reason is not None]
    assert len(reasons) >= 3
    assert all(len(reason.split()) > 3 for reason in reasons)
    assert {block.kind for block in BLOCKS} <= {"bash", "python", "yaml", "text"}


@pytest.mark.parametrize("command", SINGLE)
def test_command(command: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    _run(command, lit_sphere)
    if "DIR" not in command or "LIT_SPHERE_CIFAR10" in os.environ:
        (run,) = (empty_folder / "runs").iterdir()
        assert (run / "curves.png").exists()


def _run(command: str, lit_sphere: LitSphere) -> None:
    subcommand, *given = shlex.split(command.replace("=paper ", "=paper:1e-2:5e-2 "))  # 3 of the 24
    if "DIR" in given:
        _run_on_cifar([subcommand, *given], lit_sphere)
    elif " ddp" in command:
        _run_on_two_ranks([subcommand, *given])
    elif "slurm" in given and importlib.util.find_spec("submitit") is None:
        assert "needs submitit" in lit_sphere(subcommand, *given).err
    elif command == "toy":
        result = lit_sphere("toy", "--grid", "4", "--seeds", "2", "--steps", "50")
        assert result.status == 0, result.err
    else:
        small = [] if {"--list", "--dry-run", "--formats"} & set(given) else list(_SMALLER.get(subcommand, []))
        if "--trainer.max_epochs" in given:  # goes on with a run of one epoch
            small[small.index("--trainer.max_epochs") + 1] = "2"
        if "--data.train_size" in given:
            small = _SMALL
        result = lit_sphere(subcommand, *given, *small)
        assert result.status == 0, f"lit-sphere {command}\n{result.err}"


def _run_on_cifar(args: list[str], lit_sphere: LitSphere) -> None:
    root = os.environ.get("LIT_SPHERE_CIFAR10")
    args[args.index("DIR")] = str(REPOSITORY / root) if root else "nowhere"
    result = lit_sphere(*args, *_SMALL, "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1")
    if root:
        assert result.status == 0, result.err
    else:
        assert result.status == 1
        assert "no CIFAR-10 under 'nowhere'" in result.err


def _run_on_two_ranks(args: list[str]) -> None:
    """In a process of its own: Lightning starts the second one by the command line of the first."""
    before = set(Path("runs").glob("*"))
    small = [sys.executable, "-m", "lit_sphere", *args, *_SMALLER["fit"]]
    done = subprocess.run(small, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "run folder" in done.stdout
    assert len(set(Path("runs").glob("*")) - before) == 1, "both ranks share one folder"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(FineTuneSwitch|.*no switch was marked)")  # one epoch ends before it
@pytest.mark.parametrize("page", STORIES)
def test_story(page: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    for command in STORIES[page]:
        _run(command, lit_sphere)


def _execute(block: Block) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    text = re.sub(r"max_epochs=\d+", "max_epochs=1", block.text)
    quiet = "Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False, accelerator='cpu', "
    exec(text.replace("Trainer(", quiet), namespace)
    return namespace


def _python(page: str, number: int = 0) -> Block:
    return [block for block in BLOCKS if block.kind == "python" and block.page == page][number]


def test_python_block(empty_folder: Path) -> None:
    groups = _execute(_python(README))["groups"]
    assert isinstance(groups, list)
    assert len(groups) == 31


# One that two pages show is run once.
OTHERS = {block.text: block for block in BLOCKS if block.kind == "python" and block.page != README}
OTHERS.pop(_python(README).text, None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", OTHERS.values(), ids=lambda block: block.page)
def test_other_python_blocks(block: Block, empty_folder: Path) -> None:
    assert len(_execute(block)) > 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_module_without_forward(empty_folder: Path) -> None:
    namespace = _execute(_python("docs/watch.md", 1))
    words = torch.randint(0, 1000, (16, 8), generator=torch.Generator().manual_seed(0))
    batches: Any = DataLoader([{"input_ids": each, "labels": each} for each in words], 4)  # type: ignore[arg-type]
    namespace["trainer"].fit(namespace["LanguageModel"](), batches)
    assert namespace["trainer"].callback_metrics["elr/total"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(FineTuneSwitch|.*no switch was marked)")
@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "yaml"], ids=lambda block: block.page)
def test_configs_are_understood(block: Block, empty_folder: Path, lit_sphere: LitSphere) -> None:
    (empty_folder / "shown.yaml").write_text(block.text, encoding="utf-8")
    if "\nover: " in block.text:
        result = lit_sphere("sweep", "shown.yaml", "--dry-run")
    else:
        result = lit_sphere("fit", "--config", "elr.yaml", "--config", "shown.yaml", *_SMALLER["fit"])
    assert result.status == 0, result.err


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
    (block,) = [block.text for block in BLOCKS if block.page == README and "run folder" in block.text]
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
    """Those of sweeps by the ids of experiments, whose table is made from the registry."""
    text = "".join(map(_read, PAGES))
    of_experiments = {name for each in EXPERIMENTS.values() for name in (*each.sweeps, *each.paper_sweeps)}
    for path in (REPOSITORY / "configs").rglob("*.yaml"):
        name = path.relative_to(REPOSITORY / "configs").as_posix()
        if name.startswith("sweeps/"):
            short = name.removeprefix("sweeps/").removesuffix(".yaml")
            assert short in of_experiments or f"lit-sphere sweep {short}" in text
        else:
            assert f"`{name}`" in text


def test_the_table_of_experiments_is_made_from_the_registry() -> None:
    records = shipped_records()
    rows = [(f"`{each.id}`", each.title, each.source, records[each.id].verdict) for each in EXPERIMENTS.values()]
    lines = [f"| {' | '.join(row)} |" for row in [("id", "experiment", "source", "last check"), ("---",) * 4, *rows]]
    table = re.search(r"<!-- experiments -->\n\n(.+?)\n\n", _read(README), re.DOTALL)
    assert table is not None
    assert table[1].splitlines() == lines
