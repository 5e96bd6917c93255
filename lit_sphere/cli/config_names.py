"""Shipped configs, found by name from any folder."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from lit_sphere.cli.errors import CommandLineError


def shipped_configs() -> list[str]:
    """List the names that ``--config`` knows, e.g. ``elr.yaml`` and ``paper/convnet_cifar10.yaml``.

    Returns:
        Sorted names; those of sub-folders last.
    """
    root = _root()
    names = [path.relative_to(root).as_posix() for path in root.rglob("*.yaml")]
    return sorted(names, key=lambda name: (name.count("/"), name))


def find_config(name: str) -> str:
    """Find a config: a file at this path, or else a shipped one of this name (``.yaml`` may be left out).

    Args:
        name: What the user typed after ``--config``.

    Returns:
        Path of the file.

    Raises:
        CommandLineError: If there is neither; names those that are shipped.
    """
    if Path(name).is_file():
        return name
    if Path(name).is_dir():
        raise CommandLineError(f"--config {name}: is a folder; give one of the YAML files in it")
    for shipped in shipped_configs():
        if name in (shipped, shipped.removesuffix(".yaml")):
            return str(_root() / shipped)
    raise CommandLineError(
        f"--config {name}: no such file here, and no shipped config of this name; there are {_listed()}"
    )


def read_config(config: str) -> dict[str, Any]:
    """Read what stands after ``--config``.

    Args:
        config: What :func:`find_config` finds, or the text of a config.

    Returns:
        Its sections.

    Raises:
        CommandLineError: If it is not found, or no YAML mapping.
    """
    import yaml  # not for `lit-sphere --help`

    try:
        content = yaml.safe_load(config if is_text(config) else Path(find_config(config)).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}: {getattr(error, 'problem', None)}" if mark else ""
        raise CommandLineError(f"--config {config}: is no YAML{where}; correct it or take another file") from error
    if not isinstance(content, dict):
        raise CommandLineError(
            f"--config {config}: must hold sections such as model: and trainer:, but is a {_kind(content)}"
        )
    return content


def is_text(config: str) -> bool:
    """Whether what stands after ``--config`` is the text of a config, in braces, and not its name."""
    return config.startswith("{")


def default_config() -> str:
    """Give the config that ``fit`` takes where none is named: the shipped one, whatever lies in this folder.

    Returns:
        Path of the file.
    """
    return str(_root() / "elr.yaml")


def _listed() -> str:
    """All names in one line: without suffix, each folder's in braces."""
    folders: dict[str, list[str]] = {}
    for name in shipped_configs():
        folder, _, stem = name.removesuffix(".yaml").rpartition("/")
        folders.setdefault(folder, []).append(stem)
    lists = {folder: ", ".join(stems) for folder, stems in folders.items()}
    return ", ".join(f"{folder}/{{{stems}}}" if folder else stems for folder, stems in lists.items())


def _kind(content: object) -> str:
    return "list" if isinstance(content, list) else "single value" if content is not None else "blank file"


def _root() -> Path:
    return Path(str(files("lit_sphere.configs")))
