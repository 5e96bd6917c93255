"""What every test gets: one thread, a look for leaks, and the command line in-process."""

import importlib.util
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from lightning_utilities.core import rank_zero

REPOSITORY = Path(__file__).resolve().parent.parent
_WATCHED = ("WANDB_MODE", "LIT_SPHERE_RUN", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK")
_WATCHED_PREFIXES = ("PL_", "MASTER_")
# By every run of Lightning (seed_everything, two processes): taken back without complaint.
_LIGHTNING_SETS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "MASTER_PORT")
_TOOLS_MAKE = ("__pycache__", "build", "dist")


# Tried by .ci/run with the lowest versions of the package without its extra cli; the others with those of the extra.
WITHOUT_COMMAND = {
    *("adagrad_g", "adagrad_g_precision", "aligned_filters", "barrier_callback", "callback_registry", "dynamics"),
    *("edge_of_stability", "effective", "groups", "interpolation", "pytorch_lightning", "sharpness", "similarity"),
    *("sphere_schedules", "sphere_sgd"),
}
# Tried with the newest versions only, for time.
_OF_THE_REPOSITORY = {"front_door", "house", "packaging", "readme", "site"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--lowest",
        choices=("callbacks", "command"),
        help="the part of the tests that .ci/run makes with the lowest versions: without the extra cli, and with it",
    )


class _Part:
    """Registered as a plugin, since what a conftest.py ignores lies in its own folder."""

    def __init__(self, without_command: bool) -> None:
        self._without_command = without_command

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        if collection_path.suffix != ".py":
            return None
        is_test = collection_path.parent == REPOSITORY / "tests"
        name = collection_path.stem.removeprefix("test_") if is_test else ""
        chosen = (name in WITHOUT_COMMAND) == self._without_command and name not in _OF_THE_REPOSITORY
        return None if chosen else True


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--lowest"):
        config.pluginmanager.register(_Part(config.getoption("--lowest") == "callbacks"))
    if importlib.util.find_spec("jsonargparse"):  # else pytest would not know what is to be ignored
        # Lightning 2.6.6 against jsonargparse 4.53 (2026-11)
        config.addinivalue_line("filterwarnings", "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # After torch.compile in the same process, autograd refuses to run in forked children. What takes the time that is
    # left comes last.
    items.sort(key=lambda item: (item.path.stem != "test_fsdp", item.get_closest_marker("if_time") is not None))


UNTIL = "LIT_SPHERE_SLOW_UNTIL"
"""Seconds since 1970 at which ``.ci/run`` wants the slow tests to be over; without it all of them are run."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker, until = item.get_closest_marker("if_time"), os.environ.get(UNTIL)
    if marker is not None and until is not None:
        (seconds,), left = marker.args, float(until) - time.time()
        if seconds > left:
            pytest.skip(f"takes some {seconds:.0f} s, and {max(left, 0):.0f} s are left for slow tests ({UNTIL})")


class Result(NamedTuple):
    """What one command line came to."""

    status: int
    out: str
    err: str


LitSphere = Callable[..., Result]

_DEFAULT_SIGNALS = (
    "import os, signal, sys\n"
    "for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(signum, signal.SIG_DFL)\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def with_default_signals(command: list[str]) -> list[str]:
    """A command that takes signals as from a terminal, though its parent may ignore them (``pytest &`` in a script).

    A child inherits that, and Python then installs no handler: a test that interrupts the child would wait for ever.
    """
    return [sys.executable, "-c", _DEFAULT_SIGNALS, *command]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name in _WATCHED or name.startswith(_WATCHED_PREFIXES)}


def _tree() -> set[str]:
    folders = (REPOSITORY, REPOSITORY / "tests", REPOSITORY / "lit_sphere")
    names = {str(path.relative_to(REPOSITORY)) for folder in folders for path in folder.iterdir()}
    return {name for name in names if not Path(name).name.startswith(".") and Path(name).name not in _TOOLS_MAKE}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    # Two tests that each take all cores slow each other down by far more than two.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    environment, dtype, tree = _environment(), torch.get_default_dtype(), _tree()
    yield
    for name in _LIGHTNING_SETS:
        os.environ.pop(name, None)
        if name in environment:
            os.environ[name] = environment[name]
    leaked = []
    if _environment() != environment:
        leaked.append(f"environment variables: {environment} became {_environment()}")
        for name in _environment().keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
    if torch.get_default_dtype() != dtype:
        leaked.append(f"the default dtype: {dtype} became {torch.get_default_dtype()}")
        torch.set_default_dtype(dtype)
    if dist.is_available() and dist.is_initialized():
        leaked.append("a process group")
        dist.destroy_process_group()
    if _tree() - tree:
        leaked.append(f"files in the repository: {', '.join(sorted(_tree() - tree))}")
    if leaked:
        pytest.fail("this test leaks " + "; ".join(leaked))


@pytest.fixture
def interrupts_ignored() -> Iterator[None]:
    """As in a suite that a script started with ``&``."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def lit_sphere(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> LitSphere:
    """Run ``lit-sphere ARGS`` in this process."""
    from lit_sphere.cli import main

    monkeypatch.delenv("WANDB_MODE", raising=False)
    # As in a process of the command: of two packages that hold Lightning, the last one imported has the messages.
    monkeypatch.setattr(rank_zero, "log", logging.getLogger("lightning.pytorch.utilities.rank_zero"))

    def call(*args: str) -> Result:
        capsys.readouterr()
        # Lightning writes to the standard error of the time when it was imported, or to pytest's log.
        log, handler = logging.getLogger("lightning.pytorch"), logging.StreamHandler(sys.stderr)
        log.addHandler(handler)
        status = 0
        try:
            main(list(args))
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            log.removeHandler(handler)
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return call
