"""Imports only go down, from the command line to the ground: optimizers, networks, data, theory."""

import ast
from pathlib import Path

import pytest
from conftest import REPOSITORY
from lightning.pytorch import Callback

from lit_sphere import callbacks

# From the roof to the ground; those on one floor do not know each other.
_FLOORS = [
    {"cli"},
    {"sweep"},
    {"callbacks"},
    {"switching", "rivals"},
    {"observe", "experiments"},
    {"report"},
    {"analysis"},
    {"modules"},
    {"effective", "conversion"},
    {"groups"},
    {"optim", "networks", "data", "theory", "configs", "metrics", "files"},
]
_FLOOR = {name: floor for floor, names in enumerate(_FLOORS) for name in names}
_LIGHTNING_IN = {
    "cli",
    "sweep",
    "callbacks",
    "switching",
    "rivals",
    "observe",
    "modules",
    "metrics",  # torchmetrics: sums over ranks
    "data",
    "__main__",
}
_PACKAGE = REPOSITORY / "lit_sphere"


def _files(folder: Path) -> list[Path]:
    """All modules below a folder, through the links to callbacks/ and configs/."""
    found = sorted(folder.glob("*.py"))
    for inner in sorted(each for each in folder.iterdir() if each.is_dir() and each.name != "__pycache__"):
        found += _files(inner)
    return found


_FILES = _files(_PACKAGE)


def _part_of(path: Path) -> str:
    return path.relative_to(_PACKAGE).with_suffix("").parts[0]


def _imports(path: Path) -> set[str]:
    """Full names of what a file imports, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                here = list(path.relative_to(REPOSITORY).with_suffix("").parts)
                module = ".".join([*here[: len(here) - node.level], *([module] if module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def _parts_imported(path: Path) -> set[str]:
    parts = {name.split(".")[1] for name in _imports(path) if name.startswith("lit_sphere.")}
    return {part for part in parts if not part.startswith("__")}


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_go_down(path: Path) -> None:
    part = _part_of(path)
    if part in ("__init__", "__main__"):
        return
    assert part in _FLOOR, f"{part} has no floor: give it one"
    for other in _parts_imported(path) - {part}:
        assert _FLOOR[other] > _FLOOR[part], f"{path.name} ({part}) imports {other}, which does not stand below it"
    if part == "callbacks":
        assert "modules" not in _parts_imported(path)


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_only_upper_floors_and_data_know_lightning(path: Path) -> None:
    part = _part_of(path)
    knows = any(name.split(".")[0] in ("lightning", "pytorch_lightning", "torchmetrics") for name in _imports(path))
    if part not in _LIGHTNING_IN:
        assert not knows, f"{path.name} imports Lightning"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "callbacks").glob("*.py")), ids=lambda path: path.name)
def test_callbacks_import_absolutely(path: Path) -> None:
    """The folder is lit_sphere.callbacks when installed and callbacks in the checkout."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 for node in nodes)
    assert not any(name.split(".")[0] == "callbacks" for name in _imports(path))


def test_the_scan_sees_imports() -> None:
    files = {path.name: _parts_imported(path) for path in _FILES if path.name in ("sphere_module.py", "sphere_cli.py")}
    assert {"modules", "optim"} <= files["sphere_module.py"]
    assert {"callbacks", "data", "modules", "cli"} <= files["sphere_cli.py"]
    assert any("lightning.pytorch.Callback" in _imports(path) for path in _FILES)
    assert {"callbacks/fine_tune_switch.py", "configs/__init__.py", "observe/passes.py", "cli/sphere_cli.py"} <= {
        path.relative_to(_PACKAGE).as_posix() for path in _FILES
    }


def test_callbacks_are_the_list_of_callbacks() -> None:
    """One file each, and glue only: callbacks do not know each other."""
    for path in sorted((_PACKAGE / "callbacks").iterdir()):
        if path.name in ("__init__.py", "__pycache__"):
            continue
        assert path.suffix == ".py"
        classes = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        public = {
            name for name in classes if name in callbacks.__all__ and issubclass(getattr(callbacks, name), Callback)
        }
        assert len(public) == 1, f"{path.name} holds {sorted(public)}"
        assert not any(name.startswith("lit_sphere.callbacks") for name in _imports(path)), path.name


def test_rooms_have_no_circles_inside() -> None:
    graph = {_module_of(path): _modules_imported(path) for path in _FILES if path.stem != "__init__"}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " imports ".join([*above[above.index(module) :], module])
        if module not in done:
            for other in graph.get(module, set()):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def _module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def _modules_imported(path: Path) -> set[str]:
    """Modules of this package that a file imports from directly."""
    known = {_module_of(each) for each in _FILES}
    return {module for name in _imports(path) for module in (name, name.rpartition(".")[0]) if module in known}


def test_warnings_are_errors_and_xfail_is_strict(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.getini("xfail_strict") is True
    assert "error" in pytestconfig.getini("filterwarnings")
    options = pytestconfig.getini("addopts")
    assert "--strict-markers" in options
    assert "--strict-config" in options


def test_warnings_really_are_errors() -> None:
    import warnings

    with pytest.raises(UserWarning, match="loud"):
        warnings.warn("loud", UserWarning, stacklevel=1)


def test_tests_have_unique_names_and_are_no_package() -> None:
    folder = REPOSITORY / "tests"
    names = [path.name for path in folder.rglob("*.py")]
    assert len(names) == len(set(names))
    assert "__init__.py" not in names
