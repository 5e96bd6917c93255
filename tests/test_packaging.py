"""Wheel, sdist and editable install hold the same package, and nothing but lit_sphere."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")


def _packages() -> list[str]:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        packages: list[str] = tomllib.load(file)["tool"]["setuptools"]["packages"]
    return packages


def _run(*command: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def _build(tree: Path, out: Path, *what: str) -> Path:
    _run(sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", str(out), str(tree), cwd=out.parent)
    (made,) = [path for path in out.iterdir() if path.is_file()]
    return made


def _names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what would be committed: building must leave nothing in the repository."""
    copy = tmp_path_factory.mktemp("tree") / "lit-sphere"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    for name in ("lit_sphere", "callbacks", "configs"):
        shutil.copytree(
            REPOSITORY / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tree, tmp_path_factory.mktemp("wheel"), "--wheel")


def test_packages_are_those_on_disk() -> None:
    found = {"lit_sphere"}
    for folder in (REPOSITORY / "lit_sphere").rglob("*"):
        if folder.is_dir() and not folder.is_symlink() and any(folder.glob("*.py")):
            found.add(".".join(folder.relative_to(REPOSITORY).parts))
    for name in ("callbacks", "configs"):
        found.add(f"lit_sphere.{name}")
        for folder in (REPOSITORY / name).rglob("*"):
            if folder.is_dir() and any(folder.glob("*.py")):
                found.add(".".join(["lit_sphere", *folder.relative_to(REPOSITORY).parts]))
    assert sorted(_packages()) == sorted(found)


def test_wheel_holds_the_licence_and_names_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        assert archive.read(licence) == (REPOSITORY / "LICENSE").read_bytes()
        head = archive.read(metadata).decode().partition("\n\n")[0].splitlines()
    assert "License-Expression: Apache-2.0" in head
    assert "License-File: LICENSE" in head


@pytest.mark.parametrize("name", ["callbacks", "configs"])
def test_links_of_the_checkout(name: str) -> None:
    link = REPOSITORY / "lit_sphere" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert (link / "__init__.py").samefile(REPOSITORY / name / "__init__.py")


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = _names(wheel)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lit_sphere"}
    assert len(tops) == 2
    wanted = {"lit_sphere/py.typed"}
    patterns = [(folder, "*.py") for folder in ("lit_sphere", "callbacks", "configs")]
    patterns += [("configs", "*.yaml"), ("lit_sphere", "*.json"), ("lit_sphere", "*.css"), ("lit_sphere", "*.js")]
    for folder, pattern in patterns:
        for path in (REPOSITORY / folder).rglob(pattern):
            relative = path.relative_to(REPOSITORY)
            inside = relative.parts[0] == "lit_sphere"
            wanted.add(relative.as_posix() if inside else f"lit_sphere/{relative.as_posix()}")
    assert "lit_sphere/configs/elr.yaml" in wanted
    assert wanted == {name for name in names if ".dist-info/" not in name}


def test_sdist_makes_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "sdist").mkdir()
    sdist = _build(tree, tmp_path / "sdist", "--sdist")
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(tmp_path / "unpacked", filter="data")
        else:
            archive.extractall(tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert (unpacked / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()
    (tmp_path / "again").mkdir()
    again = _build(unpacked, tmp_path / "again", "--wheel")
    assert _names(again) == _names(wheel)


@pytest.mark.slow
def test_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """Dependencies come from the running environment by a plain path, which activates no editable install."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    elsewhere = sysconfig.get_path("purelib")
    python = str(home / "bin" / "python")
    _run(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel),
        cwd=tmp_path,
    )  # fmt: skip
    (site / "dependencies.pth").write_text(elsewhere + "\n")
    code = (
        "import lit_sphere, lit_sphere.callbacks, lit_sphere.configs, importlib.util as u\n"
        "from lit_sphere.callbacks import EffectiveLearningRateMonitor\n"
        "from lit_sphere.cli.config_names import find_config\n"
        "assert u.find_spec('callbacks') is None and u.find_spec('configs') is None\n"
        "print(lit_sphere.__file__, lit_sphere.callbacks.__file__, lit_sphere.configs.__file__, find_config('elr'))"
    )
    for path in _run(python, "-c", code, cwd=tmp_path).split():
        assert Path(path).is_relative_to(site), f"{path} is not from the wheel"
    helped = _run(str(home / "bin" / "lit-sphere"), "--help", cwd=tmp_path)
    assert "elr.yaml" in helped
