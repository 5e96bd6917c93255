"""What the command needs beyond the callbacks: the extra ``cli`` of the package."""

import importlib.metadata

from packaging.requirements import Requirement

from lit_sphere.cli.errors import CommandLineError


def check_extra() -> None:
    """Refuse to begin where something that the command needs is not installed, or is another release.

    Raises:
        CommandLineError: Names what, and how to install it.
    """
    try:
        requirements = importlib.metadata.requires("lit-sphere") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return
    wrong = [text for line in requirements if (text := _what_is_wrong(Requirement(line)))]
    if wrong:
        raise CommandLineError(
            f"the command needs {', '.join(wrong)}; install its extra, pip install 'lit-sphere[cli]' or, in a "
            "checkout, pip install -e '.[cli]'"
        )


def _what_is_wrong(requirement: Requirement) -> str | None:
    of_command = requirement.marker is not None and requirement.marker.evaluate({"extra": "cli"})
    if not of_command or requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return None
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{wanted} (not installed)"
    return None if requirement.specifier.contains(version, prereleases=True) else f"{wanted} ({version} is installed)"
