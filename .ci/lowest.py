"""Prints pip constraints, ``name==lower bound``, for the package with the extras named on the command line."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib


def lowest(pyproject: Path, extras: Sequence[str] = ()) -> list[str]:
    """The lower bound of each requirement, of the package and of some extras; the highest of several of one name.

    Args:
        pyproject: The file that names the requirements.
        extras: Of the package; those that they name in turn are taken, too.

    Returns:
        Lines for pip's ``--constraint``, in the order of the file.

    Raises:
        ValueError: If a requirement has not exactly one lower bound, so that there is no lowest version to try.
    """
    bounds: dict[str, Version] = {}
    for line in _requirements(tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"], extras):
        requirement = Requirement(line)
        least = [Version(specifier.version) for specifier in requirement.specifier if specifier.operator == ">="]
        if len(least) != 1:
            raise ValueError(f"pyproject.toml: {line!r} needs one lower bound (>=)")
        name = canonicalize_name(requirement.name)
        bounds[name] = max(least[0], bounds.get(name, least[0]))
    return [f"{name}=={bound}" for name, bound in bounds.items()]


def _requirements(project: dict[str, Any], extras: Sequence[str]) -> Iterator[str]:
    yield from project["dependencies"]
    taken, waiting = set(), list(extras)
    while waiting:
        extra = waiting.pop(0)
        if extra in taken:
            continue
        taken.add(extra)
        for line in project["optional-dependencies"][extra]:
            if Requirement(line).name == project["name"]:
                waiting += sorted(Requirement(line).extras)
            else:
                yield line


if __name__ == "__main__":
    print("\n".join(lowest(Path(__file__).parents[1] / "pyproject.toml", sys.argv[1:])))
