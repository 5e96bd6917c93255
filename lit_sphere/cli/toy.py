"""``lit-sphere toy``: the theory's toy systems, their pictures and the numbers they predict."""

import csv
import math
from collections.abc import Sequence

import torch
from jsonargparse import ArgumentParser, Namespace
from matplotlib.figure import Figure

from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.results_folder import free_folder, make_folder
from lit_sphere.report.toy import ToyMap, draw_plane, draw_toy
from lit_sphere.theory.toy import equilibrium_loss, settled_losses, toy_curves
from lit_sphere.theory.toy_plane import mean_period, plane_curves

_MOST = 2**32
_DESCRIPTION = (
    "Train F = Σ α x²/(x² + y²) on the sphere at fixed effective learning rates, and leave toy.png and toy.csv in a "
    "folder: the loss at a few ELRs, the ELRs of the single groups with the levels that the theory predicts, and a "
    "map of settled losses over ELR. With --weight-decay instead: x²/(x² + y²) in the plane under SGD with weight "
    "decay, and its periods."
)


def make_parser() -> ArgumentParser:
    """Make the parser of the subcommand.

    Returns:
        The parser.
    """
    parser = ArgumentParser(
        prog="lit-sphere toy",
        usage="lit-sphere toy [options]",
        description=_DESCRIPTION,
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--alphas", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="α of the terms, each positive.")
    add("--elrs", type=float, nargs="+", default=[0.1, 0.2, 0.5], help="Effective learning rates of the curves.")
    add("--steps", type=int, default=2000, help="Steps of each run on the sphere, and of the map.")
    add("--grid", type=int, default=200, help="Effective learning rates in the map.")
    add("--seeds", type=int, default=100, help="Random starts for each of them.")
    add("--seed", type=int, default=0, help="Seed of the curves' start, and first seed of the map's.")
    add("--weight-decay", type=float, nargs="+", default=None, help="λ of the plane's runs; draws the plane instead.")
    add("--lr", type=float, default=1.0, help="Learning rate in the plane.")
    add("--plane-steps", type=int, default=200, help="Steps of each run in the plane.")
    add("--run", type=str | None, default=None, help="Folder for the results. Default: runs/toy-DATE-TIME.")
    return parser


def run_toy(args: list[str]) -> None:
    """Run the subcommand.

    Args:
        args: Command line after ``toy``.
    """
    config = make_parser().parse_args(args)
    folder = free_folder(config.run, "toy", "toy.csv")
    table, figure, rows = _plane(config) if config.weight_decay else _sphere(config)
    make_folder(folder)
    figure.savefig(folder / "toy.png", dpi=130)
    with (folder / "toy.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    print("\n".join([*table, f"  folder  {folder}"]))


def _sphere(config: Namespace) -> tuple[list[str], Figure, list[list[object]]]:
    for name, least in (("steps", 2), ("grid", 2), ("seeds", 1), ("seed", 0)):
        if not least <= config[name] < _MOST:
            raise CommandLineError(f"--{name} must be at least {least}, and below {_MOST}, got {config[name]}")
    alphas, elrs, half = config.alphas, config.elrs, config.steps // 2
    curves = toy_curves(alphas, elrs, epochs=2 * half, steps_per_epoch=1, seeds=[config.seed])
    grid = torch.logspace(-1, 1, config.grid, dtype=torch.float64) / sum(alphas)
    seeds = range(config.seed, config.seed + config.seeds)
    settled = settled_losses(alphas, grid.tolist(), config.steps, seeds)
    table = [
        f"F = Σ α x²/(x² + y²) on the sphere, α = {_listed(alphas)}: converges below ELR 1/Σα = {1 / sum(alphas):.4g}",
        f"  {'ELR':<8}{'predicted loss':<16}{'seen':<10}ELRs of the groups, predicted (seen)",
    ]
    for i, elr in enumerate(elrs):
        seen = curves.losses[i, 0, half:].mean().item()
        groups = [
            f"{elr * sum(alphas) / alpha:.3g} ({curves.elrs[i, 0, half:, 1 + j].median().item():.3g})"
            for j, alpha in enumerate(alphas)
        ]
        levels = "—" if elr <= 1 / sum(alphas) else "  ".join(groups)
        table.append(f"  {elr:<8g}{equilibrium_loss(alphas, elr):<16.4g}{seen:<10.4g}{levels}")
    rows: list[list[object]] = [["elr", "predicted_loss", "mean_loss", "low_10", "median", "high_90"]]
    for elr, losses in zip(grid.tolist(), settled, strict=True):
        spread = [losses.quantile(q).item() for q in (0.1, 0.5, 0.9)]
        rows.append([elr, equilibrium_loss(alphas, elr), losses.mean().item(), *spread])
    return table, draw_toy(curves, alphas, elrs, ToyMap(grid, settled)), rows


def _plane(config: Namespace) -> tuple[list[str], Figure, list[list[object]]]:
    if not (math.isfinite(config.lr) and config.lr > 0) or config.plane_steps < 1:
        raise CommandLineError("--lr must be positive and finite, and --plane-steps at least 1")
    curves = plane_curves(config.weight_decay, config.lr, steps=config.plane_steps)
    # Of more steps than are drawn: a mean of few periods is rough.
    long = plane_curves(config.weight_decay, config.lr, steps=max(1000, config.plane_steps))
    periods = [mean_period(losses.tolist()) for losses in long.losses]
    table = ["SGD with weight decay on x²/(x² + y²), from (0.01, 1)", f"  {'λ':<8}period [steps]"]
    table += [
        f"  {d:<8g}{'none' if p is None else f'{p:.1f}'}" for d, p in zip(config.weight_decay, periods, strict=True)
    ]
    rows: list[list[object]] = [["weight_decay", "step", "loss", "norm", "elr"]]
    for i, decay in enumerate(config.weight_decay):
        columns = zip(*(curve[i].tolist() for curve in curves), strict=True)
        rows += [[decay, step, *values] for step, values in enumerate(columns)]
    return table, draw_plane(curves, config.weight_decay, periods), rows


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
