"""Files that are whole or not there, and folders that one process holds."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lit_sphere.files import FolderInUse, claim_folder, release_folders, write_whole


def _python(code: str, *more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *more], capture_output=True, text=True, timeout=100, check=False)


def test_a_file_replaces_the_one_before(empty_folder: Path) -> None:
    for text in (b"one", b"two"):
        write_whole("file", lambda file, text=text: file.write(text))  # type: ignore[misc]
        assert Path("file").read_bytes() == text
    assert os.listdir() == ["file"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_was_there_stays_until_the_new_one_is_whole(error: BaseException, empty_folder: Path) -> None:
    Path("file").write_text("before")

    def write(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise error

    with pytest.raises(type(error)) as raised:
        write_whole("file", write)
    assert Path("file").read_text() == "before"
    assert os.listdir() == ["file"]
    if isinstance(error, OSError):
        assert raised.value.filename == "file"  # type: ignore[attr-defined]


def test_a_kill_leaves_what_was_there(empty_folder: Path) -> None:
    Path("file").write_text("before")
    done = _python(
        "import os; from lit_sphere.files import write_whole\n"
        "write_whole('file', lambda file: (file.write(b'half'), file.flush(), os.kill(os.getpid(), 9)))"
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Path("file").read_text() == "before"
    write_whole("file", lambda file: file.write(b"after"))
    assert os.listdir() == ["file"]


def test_a_full_disk_leaves_what_was_there_and_is_named(empty_folder: Path) -> None:
    """On a small file system of its own; where no process may mount one, a limit on files stands for it."""
    code = (
        "import sys, resource, torch; from lit_sphere.files import write_whole\n"
        "if sys.argv[1] == 'limit': resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        "write_whole('disk/file', lambda file: torch.save(torch.zeros(10), file))\n"
        "try: write_whole('disk/file', lambda file: torch.save(torch.zeros(10**6), file))\n"
        "except OSError as error: print(error.errno, error.filename)\n"
        "import os; print(os.listdir('disk'), torch.load('disk/file').shape)"
    )
    Path("disk").mkdir()
    mounted = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=2m none disk && exec "$@"', "sh"]
    can_mount = subprocess.run([*mounted, "true"], capture_output=True, check=False).returncode == 0
    command = [*(mounted if can_mount else []), sys.executable, "-c", code, "disk" if can_mount else "limit"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    errno = 28 if can_mount else 27
    assert done.stdout == f"{errno} disk/file\n['file'] {torch.Size([10])}\n"


def test_nobody_else_gets_a_folder_that_is_held(empty_folder: Path) -> None:
    folder = claim_folder(Path("runs/a"))
    assert folder == Path("runs/a")
    code = (
        "import sys; from pathlib import Path; from lit_sphere.files import claim_folder\n"
        "claim_folder(Path(sys.argv[1]))"
    )
    refused = _python(code, "runs/a")
    assert refused.returncode == 1
    said = refused.stderr.splitlines()[-1]
    assert re.search(rf"FolderInUse: runs/a is in use: process {os.getpid()} on \S+, since 20\d\d-\d\d-\d\d ", said)
    release_folders()
    assert _python(code, "runs/a").returncode == 0


def test_a_lock_goes_with_its_process(empty_folder: Path) -> None:
    done = _python(
        "import os; from pathlib import Path; from lit_sphere.files import claim_folder\n"
        "claim_folder(Path('a')); os.kill(os.getpid(), 9)"
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Path("a/.lock").exists()
    claim_folder(Path("a"))
    release_folders()


def test_runs_that_start_together_get_folders_of_their_own(empty_folder: Path) -> None:
    code = (
        "from pathlib import Path; from lit_sphere.files import claim_folder\n"
        "folder = claim_folder(Path('runs/a'), among=True); (folder / 'x').touch(); print(folder)"
    )
    with ThreadPoolExecutor(4) as pool:
        names = [done.stdout.strip() for done in pool.map(lambda _: _python(code), range(4))]
    assert sorted(names) == ["runs/a", "runs/a-2", "runs/a-3", "runs/a-4"]


def test_folders_that_stay_empty_are_taken_away(empty_folder: Path) -> None:
    claim_folder(Path("runs/2026/a"))
    release_folders()
    assert os.listdir() == []
    Path("mine").mkdir()
    claim_folder(Path("mine"))
    claim_folder(Path("runs/b"))
    Path("runs/b/file").touch()
    release_folders()
    assert sorted(str(path) for path in Path().rglob("*")) == ["mine", "runs", "runs/b", "runs/b/file"]


def test_a_folder_is_held_once_in_a_process(empty_folder: Path) -> None:
    claim_folder(Path("a"))
    with pytest.raises(FolderInUse):
        claim_folder(Path("a"))
    release_folders()
