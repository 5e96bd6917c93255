"""``lit-sphere interpolate A.ckpt B.ckpt``: loss and error between two checkpoints."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from lit_sphere.analysis import (
    EnsembleErrors,
    Interpolation,
    WeightPath,
    difference,
    ensemble_errors,
    interpolate,
    not_finite,
    path_positions,
    put_weights,
    read_checkpoint,
    tensors_of,
)
from lit_sphere.analysis.interpolation import Statistics
from lit_sphere.cli.base_config import base_config, look_ahead, parse_over_base
from lit_sphere.cli.config_names import read_config
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.parser import ConfigFile, Parser
from lit_sphere.cli.results_folder import leave_picture, results_folder
from lit_sphere.cli.shipped_classes import LINKED, class_options, classes_before_files
from lit_sphere.cli.subcommands import SUBCOMMANDS
from lit_sphere.cli.suggestions import option_strings, suggesting
from lit_sphere.cli.values_given import check_linked, check_no_null, check_values
from lit_sphere.data import ResidentDataModule
from lit_sphere.groups import find_groups
from lit_sphere.modules import SphereModule
from lit_sphere.report import draw_interpolation, write_interpolation

_USAGE = "lit-sphere interpolate A.ckpt B.ckpt [options]"


class _ModelAndData(ConfigFile):
    """Takes model and data of a config; the rest belongs to ``fit``."""

    def resolve(self, config: str) -> str:
        content = read_config(config)
        return json.dumps({key: content[key] for key in ("model", "data") if key in content})


def make_parser() -> LightningArgumentParser:
    """Make the parser of the subcommand.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="lit-sphere interpolate",
        usage=_USAGE,
        description=SUBCOMMANDS["interpolate"].description,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("start", type=str, metavar="A.ckpt", help="Checkpoint at t = 0.")
    parser.add_argument("end", type=str, metavar="B.ckpt", help="Checkpoint at t = 1, of the same network.")
    parser.add_argument(
        "-c", "--config", action=_ModelAndData, help="Path or shipped name; its model and data are taken."
    )
    parser.add_argument("--points", type=int, default=21, help="Points on the path, both ends among them.")
    parser.add_argument(
        "--great_circle", action="store_true", help="Along the great circle of the sphere, not along the segment."
    )
    parser.add_argument(
        "--statistics",
        type=Statistics,
        default="batch",
        help="batch: batch norms take each batch's own statistics (train mode), on the test images too. "
        "reestimated: estimated anew on the train images at each point, then eval mode.",
    )
    parser.add_argument(
        "--run", type=str | None, default=None, help="Folder for the results. Default: runs/interpolate-DATE-TIME."
    )
    parser.add_argument(
        "--device", type=Literal["cpu", "cuda"] | None, default=None, help="Default: cuda if there is one."
    )
    parser.add_lightning_class_args(SphereModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(ResidentDataModule, "data", subclass_mode=True)
    parser.set_defaults({"data": {"class_path": "lit_sphere.data.Digits"}})
    for name in LINKED:
        parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
    return parser


def run_interpolate(args: list[str]) -> None:
    """Run the subcommand.

    Args:
        args: Command line after ``interpolate``.

    Raises:
        CommandLineError: If the checkpoints do not match each other or the model, or the folder holds results.
    """
    parser = make_parser()
    typed = look_ahead(args)
    if typed.wants_help:
        parser.parse_args(args)
        return
    paths = args[:2]
    if len(paths) < 2 or any(path.startswith("-") for path in paths):
        raise CommandLineError(f"interpolate needs two checkpoints, first of all: {_USAGE}")
    check_values(args[2:])
    checkpoints = [_read(path) for path in paths]
    states = [tensors_of(checkpoint["state_dict"]) for checkpoint in checkpoints]
    _compare(states[1], states[0], f"{paths[1]}: of another architecture than {paths[0]}", "there")
    base = base_config(paths[0], bool(typed.configs))
    with suggesting(lambda: [*option_strings(parser), *class_options()]):
        below = ["--config", base] if base else []
        config = parse_over_base(parser.parse_args, paths, below, classes_before_files(args[2:]), paths[0])
    check_no_null(config)
    check_linked(args[2:], config)
    try:
        positions = path_positions(config.points)
    except ValueError as error:
        raise CommandLineError(f"--{error}") from error
    device = _device(config.device)
    made = parser.instantiate_classes(config)
    model, data = made.model, made.data
    model.restore_structure(checkpoints[0])
    model.take_shape(data)
    of_model = f"{paths[0]}: of another architecture than --model {type(model).__name__}"
    _compare(states[0], model.state_dict(), of_model, "in the model; give the --model that it was trained with")
    for path, state in zip(paths, states, strict=True):
        bad = not_finite(state, model.state_dict())
        if bad is not None:
            raise CommandLineError(f"{path}: {bad} is NaN or infinite in it; take an earlier checkpoint")
    data.prepare_data()
    data.setup()
    folder = results_folder(config.run, "interpolate", "interpolation.csv")
    result = _measure(model, data, states, config, positions, device)
    together = ensemble_errors(model, states, _on_device(data.test_dataloader, device)())
    names = _names(paths)
    statistics = "batch statistics" if config.statistics == "batch" else "statistics re-estimated"
    title = f"{type(model).__name__} on {type(data).__name__}, {statistics}"
    try:
        write_interpolation(result, folder / "interpolation.csv")
        about = _about(result, together, paths, config)
        (folder / "interpolation.json").write_text(about + "\n", encoding="utf-8")
    finally:  # a file that cannot be written does not lose what was measured
        print(_table(result, together, title, names, folder))
    leave_picture(folder / "interpolation.png", lambda: draw_interpolation(result, title, names))


def _about(result: Interpolation, together: EnsembleErrors, paths: list[str], config: Namespace) -> str:
    """What the curves do not say; ``lit-sphere report`` finds the runs at both ends by it."""
    between = result.separation
    about = {
        "start": paths[0],
        "end": paths[1],
        "statistics": config.statistics,
        "great_circle": result.great_circle,
        "cosine": between.cosine,
        "norms": list(between.norms),
        "barriers": {name: result.barrier(name) for name in result.curves},
        "ensemble": {"error": together.ensemble, "member_errors": list(together.members)},
    }
    return json.dumps(about, indent=2)


def _read(path: str) -> dict[str, Any]:
    try:
        return read_checkpoint(path)
    except ValueError as error:
        raise CommandLineError(str(error)) from error


def _compare(state: dict[str, Tensor], other: dict[str, Tensor], message: str, where: str) -> None:
    differs = difference(state, other)
    if differs is not None:
        name, one, two = differs
        raise CommandLineError(f"{message}: {name} is {one} in the one and {two} {where}")


def _device(requested: str | None) -> torch.device:
    if requested == "cuda" and not torch.cuda.is_available():
        raise CommandLineError("--device cuda: no GPU found; use --device cpu")
    return torch.device(requested or ("cuda" if torch.cuda.is_available() else "cpu"))


def _measure(
    model: SphereModule,
    data: ResidentDataModule,
    states: list[dict[str, Tensor]],
    config: Namespace,
    positions: tuple[float, ...],
    device: torch.device,
) -> Interpolation:
    put_weights(model, states[0])
    assert isinstance(model.example_input_array, Tensor)
    groups = [group for group in find_groups(model, model.example_input_array) if group.rows is None]
    path = WeightPath(states[0], states[1], [[name for group in groups for name in group.names]], config.great_circle)
    batches = {
        "train": _on_device(data.train_pass_dataloader, device),
        "test": _on_device(data.test_dataloader, device),
    }
    return interpolate(
        model.to(device),
        path,
        batches,
        positions,
        config.statistics,
        criterion=model.criterion,
        progress="interpolating",
    )


def _on_device(loader: Callable[[], Iterable[Any]], device: torch.device) -> Callable[[], Iterator[Any]]:
    return lambda: ((inputs.to(device), labels.to(device)) for inputs, labels in loader())


def _names(paths: list[str]) -> tuple[str, str]:
    """Shortest names that tell the two apart: of the runs' folders, of the files, or the paths."""
    for shorten in (lambda path: path.resolve().parent.parent.name, lambda path: path.stem, str):
        a, b = (shorten(Path(path)) for path in paths)
        if a and b and a != b:
            return a, b
    return "A", "B"


def _table(result: Interpolation, together: EnsembleErrors, title: str, names: tuple[str, str], folder: Path) -> str:
    between = result.separation
    kind = "great circle" if result.great_circle else "segment"
    wide = max(12, *(len(name) + 2 for name in names))
    lines = [
        f"\n{title}: {len(result.positions)} points on the {kind}",
        f"  {'':<13}{names[0]:<{wide}}{names[1]:<{wide}}barrier",
    ]
    for name, values in result.curves.items():
        form = "{:.2%}" if name.endswith("error") else "{:.3g}"
        cells = [form.format(value) for value in (values[0], values[-1], result.barrier(name))]
        lines.append(f"  {name.replace('_', ' '):<13}{cells[0]:<{wide}}{cells[1]:<{wide}}{cells[2]}")
    lines += [
        f"  {'ρ':<13}{between.norms[0]:<{wide}.5g}{between.norms[1]:<{wide}.5g}".rstrip(),
        f"  {'cosine':<13}{between.cosine:.4g}, between the scale-invariant weights",
        f"  {'ensemble':<13}{together.ensemble:.2%} test error of both together, "
        f"{together.members[0]:.2%} and {together.members[1]:.2%} of each, in eval mode",
        f"  {'run folder':<13}{folder}",
    ]
    return "\n".join(lines)
