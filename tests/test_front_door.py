"""Licence, changelog, citation, hooks and the script of CI: valid, and of one mind with pyproject.toml."""

import importlib.metadata
import os
import re
import runpy
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.version import Version

import lit_sphere

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

# Keep a Changelog 1.1; types of a reference in CFF 1.2.0 that ours may have.
_CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
_REFERENCES = {"article", "book", "conference-paper", "data", "report", "software", "thesis"}


def _read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(_read("pyproject.toml"))["project"]
    return project


def test_the_licence_is_apache_2_whole_and_named() -> None:
    text = _read("LICENSE")
    assert text.split()[:6] == ["Apache", "License", "Version", "2.0,", "January", "2004"]
    assert re.findall(r"^   (\d+)\. [A-Z]", text, re.MULTILINE) == [str(number) for number in range(1, 10)]
    assert text.index("9. Accepting Warranty") < text.index("END OF TERMS AND CONDITIONS")
    assert (_project()["license"], _project()["license-files"]) == ("Apache-2.0", ["LICENSE"])


def test_the_changelog_has_a_section_for_this_version_and_the_next() -> None:
    text = _read("CHANGELOG.md")
    versions = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert len(versions) == len(re.findall(r"^## ", text, re.MULTILINE))
    assert versions[0] == "Unreleased"
    assert versions[1] == lit_sphere.__version__
    assert versions[1:] == sorted(versions[1:], key=Version, reverse=True)
    for section in re.split(r"^## .*$", text, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.*)$", section, re.MULTILINE)
        assert kinds
        assert set(kinds) <= _CHANGES
        assert len(set(kinds)) == len(kinds)


def test_the_citation_is_valid_and_names_the_papers() -> None:
    citation = yaml.safe_load(_read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["title"] == _project()["name"]
    assert citation["version"] == lit_sphere.__version__
    assert citation["license"] == _project()["license"]
    assert [author["name"] for author in citation["authors"]] == ["lit-sphere contributors"]
    sources = " ".join(_read("README.md").rpartition("## Sources")[2].split())
    assert len(citation["references"]) == 4
    for reference in citation["references"]:
        assert reference["type"] in _REFERENCES
        assert reference["title"]
        assert all(author.keys() == {"family-names", "given-names"} for author in reference["authors"])
        assert all(author["family-names"] in sources for author in reference["authors"])
        if reference["type"] != "thesis":
            assert f"*{reference['title']}*" in sources


def test_the_hooks_are_the_checks_of_ci_by_the_projects_own_versions() -> None:
    (repository,) = yaml.safe_load(_read(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"
    tools = {Requirement(line).name for line in _project()["optional-dependencies"]["test"]}
    in_ci = re.findall(r'^step "(ruff check|ruff format|mypy)" "\$python" -m (.*)$', _read(".ci/run"), re.MULTILINE)
    assert [hook["name"] for hook in repository["hooks"]] == [name for name, _ in in_ci]
    for hook, (_, command) in zip(repository["hooks"], in_ci, strict=True):
        assert hook["id"]
        assert hook["language"] == "system"
        python, flag, *words = hook["entry"].split()
        assert (python, flag) == (".venv/bin/python", "-m")
        assert words[0] in tools
        assert [word for word in words if not word.startswith("--")] == command.removesuffix(" --check").split()


@pytest.mark.parametrize("number", [0, 1])
def test_the_hooks_of_ruff_mend_a_file(number: int, tmp_path: Path) -> None:
    hook = yaml.safe_load(_read(".pre-commit-config.yaml"))["repos"][0]["hooks"][number]
    file = tmp_path / "untidy.py"
    file.write_text('"""Untidy."""\n\nimport os\nx = {  }\n')
    command = [sys.executable, *hook["entry"].split()[1:], str(file)]
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=60, check=True)
    mended = file.read_text()
    assert ("import os" in mended, "{  }" in mended) == ((False, True) if number == 0 else (True, False))


# --- .ci ---------------------------------------------------------------------------------------------------


def _lowest(pyproject: Path, *extras: str) -> list[str]:
    lines: list[str] = runpy.run_path(str(REPOSITORY / ".ci" / "lowest.py"))["lowest"](pyproject, extras)
    return lines


@pytest.mark.parametrize("extras", [["test-callbacks"], ["test", "cli", "dashboard", "test-callbacks"]])
def test_every_requirement_is_tried_at_its_lowest_version(extras: list[str]) -> None:
    project = _project()
    lines = dict(line.split("==") for line in _lowest(REPOSITORY / "pyproject.toml", extras[0]))
    named = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    requirements = [each for each in map(Requirement, named) if each.name != "lit-sphere"]
    assert lines.keys() == {each.name for each in requirements}
    assert len(lines) > 12
    for requirement in requirements:
        version = lines[requirement.name]
        assert requirement.specifier.contains(version)
        assert Version(version) <= Version(importlib.metadata.version(requirement.name))
    assert any(f">={lines['lightning']}" in str(each.specifier) for each in requirements if each.name == "lightning")


def test_the_command_needs_a_newer_lightning_than_the_callbacks() -> None:
    callbacks, whole = (_lowest(REPOSITORY / "pyproject.toml", extra) for extra in ("test-callbacks", "test"))
    assert "lightning==2.4" in callbacks
    assert "lightning==2.6" in whole
    assert not any(line.startswith(("wandb", "jsonargparse")) for line in callbacks)


def test_lowest_reads_bounds_and_refuses_what_has_none(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    text = (
        '[project]\nname = "me"\ndependencies = ["a[b]>=1.2,<2,!=1.3", {}]\n'
        'optional-dependencies = {{ x = ["d>=4", "a>=1.10"], y = ["me[x]", "D>=3"] }}\n'
    )
    file.write_text(text.format("\"c>3,>=3.1; python_version > '3'\""))
    assert _lowest(file) == ["a==1.2", "c==3.1"]
    assert _lowest(file, "y") == ["a==1.10", "c==3.1", "d==4"]
    file.write_text(text.format('"c<3"'))
    with pytest.raises(ValueError, match="'c<3' needs one lower bound"):
        _lowest(file)


_PYTHON = """#!/usr/bin/env bash
# Stands for every Python: notes what it is asked for, and fails at $FAILS.
echo "$0 $*" >> "$NOTES"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  ".ci/lowest.py "*) echo "torch==2.9" ;;
esac
if [[ "$0 $*" == $FAILS ]]; then exit 1; fi
"""
_README = "## Tests\n\n```bash\nmkdir -p .venv/bin && cp bin/python3.10 .venv/bin/python\n```\n"


@pytest.mark.parametrize(
    ("fails", "seconds", "said"),
    [
        ("", 5400, []),
        ("*/venv/bin/python -m pytest --lowest=callbacks", 5400, ["FAILED: lowest versions of test-callbacks"]),
        ("*/venv/bin/python -m pytest --lowest=command", 5400, ["FAILED: lowest versions of test"]),
        ("*.ci/lowest.py test", 5400, ["FAILED: lowest versions of test"]),
        ("* -m pytest -m slow -rs", 5400, ["FAILED: slow tests"]),
        ("*/venv/bin/python -m pytest*", 800, []),  # no time for them
    ],
)
def test_ci_ends_with_the_lowest_versions_where_there_is_time(
    fails: str, seconds: int, said: list[str], tmp_path: Path
) -> None:
    """The real script, with a stand-in for Python."""
    for name in (".ci", "bin", "temporary"):
        (tmp_path / name).mkdir()
    (tmp_path / ".ci" / "run").write_text(_read(".ci/run"))
    (tmp_path / "README.md").write_text(_README)
    (tmp_path / "bin" / "python3.10").write_text(_PYTHON)
    (tmp_path / "bin" / "chromium").write_text("#!/bin/sh\n")  # else it is installed
    for program in (tmp_path / "bin").iterdir():
        program.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path / "temporary"),
        "NOTES": str(tmp_path / "notes"),
        "FAILS": fails,
        "LIT_SPHERE_CI_SECONDS": str(seconds),
    }
    command = ["bash", str(tmp_path / ".ci" / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == bool(said), done.stderr
    assert done.stderr.splitlines() == said
    assert ("all checks passed" in done.stdout) == (not said)
    asked = [line.partition(" ")[2] for line in (tmp_path / "notes").read_text().splitlines()]
    style, site = ["-m ruff check", "-m ruff format --check", "-m mypy"], "-m mkdocs build -q --strict"
    assert asked[:6] == [*style, "-m pip install -q -e .[docs]", site, "-m pytest -m slow -rs"]
    if seconds < 2400:
        assert done.stdout.count("left out: ") == 2
        assert asked[6:] == ["-c import ensurepip"]
    elif not fails:
        install = r"-m pip install .*-c \S+/constraints\.txt -e \.\[{}\]"
        for extra, part, done_now in (
            ("test-callbacks", "callbacks", asked[-6:-3]),
            ("test", "command", asked[-3:]),
        ):
            assert re.fullmatch(install.format(extra), done_now[1])
            assert done_now[2] == f"-m pytest --lowest={part}"
    assert not list((tmp_path / "temporary").iterdir()), "gigabytes are left"


def test_ci_can_be_run() -> None:
    assert (REPOSITORY / ".ci" / "run").stat().st_mode & stat.S_IXUSR
