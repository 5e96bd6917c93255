"""Shipped configs, found by name from any folder."""

from importlib.resources import files
from pathlib import Path

from lit_sphere.cli.errors import CommandLineError

_OPTIONS = ("--config", "-c")


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
        CommandLineError: If there is neither; names those that are shipped. If the file is no YAML mapping.
    """
    if Path(name).is_file():
        _check_yaml(name)
        return name
    if Path(name).is_dir():
        raise CommandLineError(f"--config {name}: is a folder; give one of the YAML files in it")
    for shipped in shipped_configs():
        if name in (shipped, shipped.removesuffix(".yaml")):
            return str(_root() / shipped)
    raise CommandLineError(
        f"--config {name}: no such file here, and no shipped config of this name; there are {_listed()}"
    )


def replace_config_names(args: list[str]) -> list[str]:
    """Put paths in place of the names after ``--config`` and ``-c``.

    Args:
        args: A command line.

    Returns:
        The same command line with paths.

    Raises:
        CommandLineError: If a config is not found or its name is missing.
    """
    out = list(args)
    for i, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if option not in _OPTIONS:
            continue
        if equals:
            out[i] = f"{option}={find_config(value)}"
        elif i + 1 < len(args):
            out[i + 1] = find_config(args[i + 1])
        else:
            raise CommandLineError(f"{option} needs the name of a config, e.g. elr.yaml; there are {_listed()}")
    return out


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


def _check_yaml(path: str) -> None:
    import yaml  # not for `lit-sphere --help`

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}: {getattr(error, 'problem', None)}" if mark else ""
        raise CommandLineError(f"--config {path}: is no YAML{where}; correct it or take another file") from error
    if not isinstance(content, dict):
        raise CommandLineError(
            f"--config {path}: must hold sections such as model: and trainer:, but is a {_kind(content)}"
        )


def _kind(content: object) -> str:
    return "list" if isinstance(content, list) else "single value" if content is not None else "blank file"


def _root() -> Path:
    return Path(str(files("lit_sphere.configs")))
