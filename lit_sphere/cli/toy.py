"""``lit-sphere toy``: the theory's toy systems, their pictures and the numbers they predict."""

import csv
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jsonargparse import ArgumentParser, Namespace
from matplotlib.figure import Figure
from torch import Tensor

from lit_sphere.analysis.periods import PLANE_RISE, segment_periods
from lit_sphere.analysis.regimes import SHORTEST_RUN, Regime, name_regime
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.results_folder import leave_picture, results_folder
from lit_sphere.cli.subcommand_parser import make_subcommand_parser
from lit_sphere.cli.suggestions import option_strings, suggesting
from lit_sphere.report.toy import ToyMap, draw_plane, draw_toy
from lit_sphere.theory.toy import (
    ToyCurves,
    equilibrium_elrs,
    equilibrium_loss,
    settled_losses,
    threshold_elr,
    toy_curves,
)
from lit_sphere.theory.toy_plane import PlaneCurves, plane_curves

_MOST_RUNS = 10**7  # of the map: a gigabyte
_MOST_STEPS = 10**6  # that are kept, each in tensors of its own: gigabytes
_MOST_NUMBERS = 10**8  # in these tensors, or in the table
_LARGE = 1e6  # beyond, and below its inverse, float64 ends before the runs do
_OF_THE_SPHERE = {"steps": (2, _MOST_STEPS), "grid": (2, _MOST_RUNS), "seeds": (1, _MOST_RUNS), "seed": (0, 2**32 - 1)}
_OF_THE_PLANE = ("lr", "plane_steps")
_STRETCHES = 40  # of a run, in which the medians of the groups' ELRs are written


def make_parser() -> ArgumentParser:
    """Make the parser of the subcommand.

    Returns:
        The parser.
    """
    parser = make_subcommand_parser("toy", "[options]")
    add = parser.add_argument
    add("--alphas", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="α of the terms, each positive.")
    add("--elrs", type=float, nargs="+", default=[0.1, 0.2, 0.5], help="Effective learning rates of the curves.")
    add("--steps", type=int, default=2000, help="Steps of each run on the sphere, and of the map.")
    add("--grid", type=int, default=200, help="Effective learning rates in the map, from 0.1/Σα to 10/Σα.")
    add("--seeds", type=int, default=100, help="Random starts for each of them.")
    add("--seed", type=int, default=0, help="Seed of the curves' start, and first seed of the map's.")
    add(
        "--weight-decay",
        type=float,
        nargs="+",
        default=None,
        help="λ of runs in the plane, below 1/lr: draws the plane instead of the sphere.",
    )
    add("--lr", type=float, default=1.0, help="With --weight-decay: learning rate in the plane.")
    add("--plane-steps", type=int, default=200, help="With --weight-decay: steps that are drawn.")
    add("--run", type=str | None, default=None, help="Folder for the results. Default: runs/toy-DATE-TIME.")
    return parser


def run_toy(args: list[str]) -> None:
    """Run the subcommand.

    Args:
        args: Command line after ``toy``.

    Raises:
        CommandLineError: If an option is out of its range, or has no effect beside the others.
    """  # noqa: DOC502
    parser = make_parser()
    with suggesting(lambda: option_strings(parser)):
        config = parser.parse_args(args)
    _check_no_unused_options(config, parser.get_defaults())
    (_check_sphere if config.weight_decay is None else _check_plane)(config)
    folder = results_folder(config.run, "toy", "toy.csv")
    table, draw, tables = (_sphere if config.weight_decay is None else _plane)(config)
    try:
        for name, rows in tables.items():
            with (folder / name).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)
    finally:  # a file that cannot be written does not lose what is known
        print("\n".join([*table, f"  folder  {folder}"]))
    leave_picture(folder / "toy.png", draw)


def _check_no_unused_options(config: Namespace, defaults: Namespace) -> None:
    plane = config.weight_decay is not None
    for name in ("alphas", "elrs", *_OF_THE_SPHERE) if plane else _OF_THE_PLANE:
        if config[name] != defaults[name]:
            option = f"--{name.replace('_', '-')}"
            remedy = (
                "is of the toy on the sphere: leave --weight-decay out" if plane else "needs --weight-decay as well"
            )
            raise CommandLineError(f"{option} {remedy}")


def _check_sphere(config: Namespace) -> None:
    for name, (least, most) in _OF_THE_SPHERE.items():
        _check_range(name, config[name], least, most)
    numbers = config.steps * len(config.elrs) * (3 + 2 * len(config.alphas))
    if numbers > _MOST_NUMBERS:
        raise CommandLineError(
            f"--steps {config.steps}: the curves of {len(config.elrs)} ELRs and {len(config.alphas)} terms are "
            f"{numbers} numbers, more than {_MOST_NUMBERS}: lower the steps"
        )
    if config.grid * config.seeds > _MOST_RUNS:
        raise CommandLineError(
            f"--grid {config.grid} times --seeds {config.seeds} is more than {_MOST_RUNS} runs: lower one of them"
        )
    for name in ("alphas", "elrs"):
        if not all(1 / _LARGE <= value <= _LARGE for value in config[name]):
            got = _listed(config[name])
            raise CommandLineError(f"--{name} must be positive, from {1 / _LARGE:g} to {_LARGE:g}, got {got}")


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise CommandLineError(f"--{name} must be at least {least}, and at most {most}, got {value}")


def _check_plane(config: Namespace) -> None:
    if not 1 / _LARGE <= config.lr <= _LARGE:
        raise CommandLineError(f"--lr must be positive, from {1 / _LARGE:g} to {_LARGE:g}, got {config.lr:g}")
    _check_range("plane-steps", config.plane_steps, 1, _MOST_STEPS)
    if not all(decay >= 0 and config.lr * decay < 1 for decay in config.weight_decay):
        got, most = _listed(config.weight_decay), 1 / config.lr
        raise CommandLineError(f"--weight-decay must be at least 0, and below 1/lr = {most:g}, got {got}")


_Table = list[list[object]]


def _sphere(config: Namespace) -> tuple[list[str], Callable[[], Figure], dict[str, _Table]]:
    alphas, elrs, half = config.alphas, config.elrs, config.steps // 2
    curves = toy_curves(alphas, elrs, epochs=2 * half, steps_per_epoch=1, seeds=[config.seed], progress="curves")
    threshold = threshold_elr(alphas).item()
    grid = threshold * torch.logspace(-1, 1, config.grid, dtype=torch.float64)
    seeds = range(config.seed, config.seed + config.seeds)
    settled = settled_losses(alphas, grid, config.steps, seeds, progress="map")
    table = [
        f"F = Σ α x²/(x² + y²) on the sphere, α = {_listed(alphas)}: converges below ELR 1/Σα = {threshold:.4g}",
        f"  {'ELR':<8}{'predicted loss':<16}{'seen':<10}ELRs of the groups, predicted (median seen)",
    ]
    for i, elr in enumerate(elrs):
        seen = curves.losses[i, 0, half:].mean().item()
        medians = curves.elrs[i, 0, half:, 1:].median(0).values.tolist()
        pairs = zip(equilibrium_elrs(alphas, elr).tolist(), medians, strict=True)
        levels = "—" if elr <= threshold else "  ".join(f"{level:.3g} ({median:.3g})" for level, median in pairs)
        table.append(f"  {elr:<7g} {equilibrium_loss(alphas, elr).item():<15.4g} {seen:<9.4g} {levels}")
    rows: _Table = [["elr", "predicted_loss", "mean_loss", "low_10", "median", "high_90", "regime"]]
    quantiles = settled.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), dim=1)
    columns = torch.stack([grid, equilibrium_loss(alphas, grid), settled.mean(1), *quantiles], 1)
    regimes = _regimes(alphas, grid, config.steps, config.seed)
    rows += [[*row, regime] for row, regime in zip(columns.tolist(), regimes, strict=True)]
    tables = {"toy.csv": rows, "toy_elrs.csv": _group_elrs(curves, alphas, elrs)}
    return table, lambda: draw_toy(curves, alphas, elrs, ToyMap(grid, settled, regimes)), tables


def _group_elrs(curves: ToyCurves, alphas: Sequence[float], elrs: Sequence[float]) -> _Table:
    """Median ELR of each group in some stretches of the run, by the step that ends them, and the predicted level."""
    rows: _Table = [["elr", "alpha", "step", "median_elr", "predicted_elr"]]
    for elr, of_groups in zip(elrs, curves.elrs[:, 0, :, 1:], strict=True):
        ends = [len(of_groups) * (i + 1) // _STRETCHES for i in range(_STRETCHES)]
        for group, (alpha, level) in enumerate(zip(alphas, equilibrium_elrs(alphas, elr).tolist(), strict=True)):
            for start, end in pairwise([0, *ends]):
                if end > start:
                    rows.append([elr, alpha, end, of_groups[start:end, group].median().item(), level])
    return rows


def _regimes(alphas: Sequence[float], elrs: Tensor, steps: int, seed: int) -> list[Regime]:
    """Regime of one run at each ELR, by the rule for any run, with twenty epochs."""
    span = max(1, steps // SHORTEST_RUN)
    curves = toy_curves(alphas, elrs, epochs=steps // span, steps_per_epoch=span, seeds=[seed])
    begins = range(0, steps // span * span, span)
    # There is no error, so the angle between consecutive iterates tells divergence.
    return [
        name_regime(
            losses.tolist(), None, None, converged_loss=1e-3 * sum(alphas), esses=esses.tolist(), steps=begins
        ).regime
        for losses, esses in zip(curves.losses[:, 0], curves.esses[:, 0], strict=True)
    ]


def _plane(config: Namespace) -> tuple[list[str], Callable[[], Figure], dict[str, _Table]]:
    # Of more steps than are drawn: a mean of few periods is rough.
    long = plane_curves(config.weight_decay, config.lr, steps=max(1000, config.plane_steps), progress="curves")
    curves = PlaneCurves(*(curve[:, : config.plane_steps] for curve in long))
    given = zip(long.losses.tolist(), long.norms.tolist(), strict=True)
    periods = [segment_periods(*curve, loss_rise=PLANE_RISE).mean_length for curve in given]
    table = ["SGD with weight decay on x²/(x² + y²), from (0.01, 1)", f"  {'λ':<8}period [steps]"]
    table += [
        f"  {d:<7g} {'none' if p is None else f'{p:.1f}'}" for d, p in zip(config.weight_decay, periods, strict=True)
    ]
    rows: _Table = [["weight_decay", "step", "loss", "norm", "elr"]]
    for i, decay in enumerate(config.weight_decay):
        columns = zip(*(curve[i].tolist() for curve in curves), strict=True)
        rows += [[decay, step, *values] for step, values in enumerate(columns)]
    return table, lambda: draw_plane(curves, config.weight_decay, periods), {"toy.csv": rows}


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
