"""Shipped configs, found by name from any folder."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.suggestions import did_you_mean

_MAPPINGS = ("trainer", "monitor", "checkpoint")
_CLASSES = ("model", "data")
_SWEEPS = "sweeps"  # folder of the plans that lit-sphere sweep finds by name
_TEXTS = ("ckpt_path", "ckpt_weights", "run", "project", "wandb")


def shipped_configs() -> list[str]:
    """List the names that ``--config`` knows, e.g. ``elr.yaml`` and ``paper/convnet_cifar10.yaml``.

    Returns:
        Sorted names; those of sub-folders last.
    """
    return [name for name in _names_below(_root()) if not name.startswith(f"{_SWEEPS}/")]


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
    nearest = did_you_mean(name, [each.removesuffix(suffix) for each in shipped_configs() for suffix in ("", ".yaml")])
    listed = " lit-sphere --help lists them" if nearest else f"; there are {_listed(shipped_configs())}"
    raise CommandLineError(f"--config {name}: no such file here, and no shipped config of this name{nearest}{listed}")


def shipped_sweeps() -> list[str]:
    """List the names that ``lit-sphere sweep`` knows, without suffix.

    Returns:
        Sorted names; those of sub-folders last.
    """
    return [name.removesuffix(".yaml") for name in _names_below(_root() / _SWEEPS)]


def _names_below(root: Path) -> list[str]:
    names = [path.relative_to(root).as_posix() for path in root.rglob("*.yaml")]
    return sorted(names, key=lambda name: (name.count("/"), name))


def find_sweep(name: str) -> str:
    """Find the plan of a sweep: a file at this path, or else a shipped one of this name.

    Args:
        name: What the user typed after ``sweep``.

    Returns:
        Path of the file.

    Raises:
        CommandLineError: If there is neither; names those that are shipped.
    """
    if Path(name).is_file():
        return name
    if (Path(name) / "sweep.yaml").is_file():
        return str(Path(name) / "sweep.yaml")
    if Path(name).is_dir():
        raise CommandLineError(f"sweep {name}: is a folder without a sweep in it; give a YAML file, or a shipped name")
    shipped = shipped_sweeps()
    if name.removesuffix(".yaml") in shipped:
        return str(_root() / _SWEEPS / f"{name.removesuffix('.yaml')}.yaml")
    nearest = did_you_mean(name, shipped) or "; lit-sphere sweep --help lists those that there are"
    raise CommandLineError(f"sweep {name}: no such file here, and no shipped sweep of this name{nearest}")


def read_config(config: str) -> dict[str, Any]:
    """Read what stands after ``--config``.

    Args:
        config: What :func:`find_config` finds, or the text of a config.

    Returns:
        Its sections.

    Raises:
        CommandLineError: If it is not found, no YAML mapping, or its sections are no options.
    """
    import yaml  # not for `lit-sphere --help`

    from lit_sphere.cli.yaml_text import check_yaml

    where = "--config {…}" if is_text(config) else f"--config {config}"
    try:
        text = config if is_text(config) else Path(find_config(config)).read_text(encoding="utf-8")
        check_yaml(text, where)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}: {getattr(error, 'problem', None)}" if mark else ""
        raise CommandLineError(f"{where}: is no YAML{line}; correct it or take another file") from error
    if not isinstance(content, dict):
        raise CommandLineError(f"{where}: must hold sections such as model: and trainer:, but is a {_kind(content)}")
    check_sections(content, where)
    return content


def check_sections(content: dict[Any, Any], where: str) -> None:
    """Refuse sections that are no options, and classes that are not named.

    Args:
        content: Of a config.
        where: Where it stands, for the message.

    Raises:
        CommandLineError: Names the section, and what it must be.
    """
    wanted: list[tuple[tuple[str, ...], tuple[type, ...], str]] = [
        (_MAPPINGS, (dict,), "options, e.g. max_epochs: 100"),
        (_CLASSES, (dict, str), "a class, e.g. class_path: SIConvNet, and its options under init_args:"),
        (_TEXTS, (str,), "text"),
    ]
    for names, types, meant in wanted:
        for name in names:
            if content.get(name) is not None and not isinstance(content[name], types):
                raise CommandLineError(f"{where}: {name}: must be {meant}, but is {_shown(content[name])}")
    for name in _CLASSES:
        given = content.get(name)
        if isinstance(given, dict) and not isinstance(given.get("class_path", ""), str):
            raise CommandLineError(f"{where}: {name}: class_path: must name a class, but is {given['class_path']}")
        if isinstance(given, dict) and not isinstance(given.get("init_args", {}), dict):
            raise CommandLineError(f"{where}: {name}: init_args: must be options, but is {_shown(given['init_args'])}")
    keys = [key for key in content if not isinstance(key, str)]
    if keys:
        raise CommandLineError(f"{where}: {keys[0]}: must be the name of a section, such as model:")


def is_text(config: str) -> bool:
    """Whether what stands after ``--config`` is the text of a config, in braces, and not its name."""
    return config.startswith("{")


def default_config() -> str:
    """Give the config that ``fit`` takes where none is named: the shipped one, whatever lies in this folder.

    Returns:
        Path of the file.
    """
    return str(_root() / "elr.yaml")


def _listed(names: list[str]) -> str:
    """All names in one line, without suffix: those that a folder has as well with a star, its others in braces."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, stem = name.removesuffix(".yaml").rpartition("/")
        folders.setdefault(folder, []).append(stem)
    here = folders.pop("", [])
    (folder, inside), *_ = folders.items() or [("", [])]
    starred = ", ".join(f"{stem}*" if stem in inside else stem for stem in here)
    only = ", ".join(stem for stem in inside if stem not in here)
    twins = f" (* in {folder}/ too)" if "*" in starred else ""
    return f"{starred}{twins}" + (f", {folder}/{{{only}}}" if only else "")


def _kind(content: object) -> str:
    return "list" if isinstance(content, list) else "single value" if content is not None else "blank file"


def _shown(value: object) -> str:
    return "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else f"{value}"


def _root() -> Path:
    return Path(str(files("lit_sphere.configs")))
