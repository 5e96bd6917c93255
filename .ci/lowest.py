"""Prints pip constraints, ``name==lower bound``, for each requirement of pyproject.toml that has one."""

import sys
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib


def lowest(pyproject: Path) -> list[str]:
    """The lower bound of each requirement, of the package and of its extras.

    Args:
        pyproject: The file that names the requirements.

    Returns:
        Lines for pip's ``--constraint``, in the order of the file.

    Raises:
        ValueError: If a requirement has not exactly one lower bound, so that there is no lowest version to try.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = []
    for line in [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]:
        requirement = Requirement(line)
        bounds = [specifier.version for specifier in requirement.specifier if specifier.operator == ">="]
        if len(bounds) != 1:
            raise ValueError(f"pyproject.toml: {line!r} needs one lower bound (>=)")
        lines.append(f"{requirement.name}=={bounds[0]}")
    return lines


if __name__ == "__main__":
    print("\n".join(lowest(Path(__file__).parents[1] / "pyproject.toml")))
