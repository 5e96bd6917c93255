"""E1, E3, E21, E22, E23, E25: the three regimes over effective learning rates, and where they are another picture."""

import math
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean
from typing import Any

from lit_sphere.analysis.profiles import FEWEST_LOSSES, profile_of, profile_ratio
from lit_sphere.analysis.regimes import REGIME_NUMBERS, Regime
from lit_sphere.experiments.drawing import against, charts_of_settings, over_epochs, percent
from lit_sphere.experiments.experiment import Claim, Finding, NotDrawn, conclude, conclude_over_settings
from lit_sphere.experiments.grids import Grid, grids_of, regime_of, rises
from lit_sphere.experiments.levels import by_epoch, level, listed
from lit_sphere.report.chart import Chart, Panel
from lit_sphere.report.runs import Run

LOSS, ERROR, SHARPNESS = "train/loss", "val/error", "effective_grad_norm/total"

_NAMES: dict[int, Regime] = {number: name for name, number in REGIME_NUMBERS.items()}
_FACTOR = 5.0  # between ELRs whose last levels are compared where runs converge
_EQUILIBRIUM_FACTOR = 1.2  # the same of losses in equilibrium, which is narrow on digits
_SHARPNESS_FACTOR = 2.0  # and of sharpness, which wanders more
_PROFILE_FACTOR = 10.0  # between ELRs whose profiles are compared: at twice the ELR sharpness is but 2 % lower
_ABOVE_THE_START = 2.0  # sharpness at the highest ELR over that of the start
_BELOW, _PARALLEL = 0.95, 0.2  # sharpness at one loss; difference of slopes
_TOO_SMALL = {  # greatest width without regime 1, by network and data; on digits as seen here
    ("SIConvNet", "Digits"): 2,
    ("SIConvNet", "CIFAR10"): 8,
    ("SIConvNet", "CIFAR100"): 8,
    ("SIResNet18", "CIFAR10"): 4,
    ("SIResNet18", "CIFAR100"): 4,
}
_OTHER_NETWORKS = ("SIMLP", "SITransformer")  # which are E22's


def check_three_regimes(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E1 by all grids of convolutional networks with cross-entropy, that are not too small."""
    grids = [grid for grid in grids_of(runs) if _is_usual(grid)]
    findings = [(grid.name, conclude(three_regimes(grid))) for grid in _several(grids)]
    return conclude_over_settings(findings, f"Missing: {_missing_usual(runs)}.")


def three_regimes(grid: Grid) -> list[Claim]:
    """Claim what E1 must show.

    Args:
        grid: Runs of one setting.

    Returns:
        The claims: the regimes in their order, and what a higher ELR does in each.
    """
    return [
        _named(grid, (1, 2, 3)),
        _order(grid),
        _lower_in_convergence(grid.of("convergence")),
        _equilibrium_levels(grid.of("chaotic equilibrium")),
        _above_the_start(grid),
    ]


def _named(grid: Grid, wanted: Sequence[int]) -> Claim:
    """All regimes are there."""
    found: dict[Regime, list[float]] = {}
    for elr, run in grid:
        found.setdefault(regime_of(run), []).append(elr)
    words = [
        f"{name} at ELR {_span(found[name])}" for name in (_NAMES[number] for number in (1, 2, 3, 0)) if name in found
    ]
    missing = [_NAMES[number] for number in wanted if _NAMES[number] not in found]
    text = "; ".join(words)
    text = f"{text[:1].upper()}{text[1:]}."
    if missing:
        return Claim(None, f"Missing: a run of at least 20 epochs in {' and in '.join(missing)}. {text}")
    return Claim(True, text)


def _order(grid: Grid) -> Claim:
    """A higher ELR is never in a lower regime."""
    decided: dict[float, list[int]] = {}
    for elr, run in grid:
        if regime_of(run) != "undecided":
            decided.setdefault(elr, []).append(REGIME_NUMBERS[regime_of(run)])
    for (low, before), (high, after) in pairwise(decided.items()):
        one, other = max(before), min(after)
        if other < one:
            return Claim(False, f"Out of order: {_NAMES[one]} at ELR {low:g}, but {_NAMES[other]} at {high:g}.")
    return Claim(True, "A higher ELR is never in a lower regime.") if len(decided) > 1 else Claim(None, "")


def _lower_in_convergence(grid: Grid) -> Claim:
    losses, sharpness = grid.means(LOSS), grid.means(SHARPNESS)
    if len([elr for elr in losses if elr >= _FACTOR * min(losses) * (1 - 1e-9)]) < 1:
        return Claim(None, f"Missing: two ELRs that converge, {_FACTOR:g} times apart.")
    bad = rises(losses, _FACTOR, falls=True) or rises(sharpness, _FACTOR, falls=True)
    numbers = f"train loss {listed(list(losses.values()))}, sharpness {listed(list(sharpness.values()))}"
    at = f"at ELR {listed(list(losses))}"
    if bad:
        low, high = bad[0]
        return Claim(
            False,
            f"Where runs converge, loss and sharpness do not both fall from ELR {low:g} to {high:g}: {at} {numbers}.",
        )
    return Claim(True, f"Where runs converge, a higher ELR ends at a lower loss and sharpness: {at} {numbers}.")


def _equilibrium_levels(grid: Grid) -> Claim:
    def tail(key: str) -> dict[float, float]:
        found = {elr: [level(run, key, run.epochs // 2, run.epochs) for run in runs] for elr, runs in grid.runs.items()}
        return {elr: fmean(v for v in values if v is not None) for elr, values in found.items() if None not in values}

    losses, sharpness = tail(LOSS), tail(SHARPNESS)
    if not any(elr >= _EQUILIBRIUM_FACTOR * min(losses) * (1 - 1e-9) for elr in losses):
        return Claim(None, f"Missing: two ELRs in equilibrium, {_EQUILIBRIUM_FACTOR:g} times apart.")
    numbers = f"train loss {listed(list(losses.values()))}, sharpness {listed(list(sharpness.values()))}"
    at = f"at ELR {listed(list(losses))} {numbers}"
    bad = rises(losses, _EQUILIBRIUM_FACTOR)
    if bad:
        return Claim(False, f"In equilibrium, the loss does not rise from ELR {bad[0][0]:g} to {bad[0][1]:g}: {at}.")
    bad = rises(sharpness, _FACTOR, falls=True)
    if bad:
        return Claim(
            False, f"In equilibrium, the sharpness does not fall from ELR {bad[0][0]:g} to {bad[0][1]:g}: {at}."
        )
    return Claim(True, f"In equilibrium, a higher ELR stays at a higher loss: {at}.")


def _above_the_start(grid: Grid) -> Claim:
    """Where runs diverge, g̃ is above that of the first epoch of the slowest run, which is closest to the start."""
    levels = grid.of("divergence").means(SHARPNESS)
    first = next(iter(by_epoch(grid.runs[grid.elrs[0]][0], SHARPNESS).values()), None)
    if not levels or first is None:
        return Claim(None, "Missing: the sharpness of a run that diverges, and at the start.")
    start = f"{first:.3g} in the first epoch at ELR {grid.elrs[0]:g}"
    above = f"must be above {_ABOVE_THE_START:g} times that"
    numbers = f"{listed(list(levels.values()))} at ELR {listed(list(levels))}, {start} ({above})"
    if levels[max(levels)] > _ABOVE_THE_START * first:
        return Claim(True, f"Where runs diverge, the sharpness gets far above that of the start: {numbers}.")
    return Claim(False, f"Where runs diverge, the sharpness stays near that of the start: {numbers}.")


def check_profiles(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E3 by the runs that converge."""
    grids = [grid.of("convergence") for grid in grids_of(runs) if _loss(grid) == "cross_entropy"]
    findings = [(grid.name, conclude(profiles(grid))) for grid in grids if len(grid.elrs) > 1]
    return conclude_over_settings(findings, _NO_PROFILES)


def profiles(grid: Grid) -> list[Claim]:
    """Claim what E3 must show: sharpness over loss, both logarithmic, as parallel lines, higher ELRs below.

    Args:
        grid: Runs of one setting that converged.

    Returns:
        A claim for each two ELRs, of those at least a factor of ten apart.
    """
    claims = []
    apart: list[float] = []
    for elr in grid.elrs:
        if not apart or elr >= _PROFILE_FACTOR * apart[-1] * (1 - 1e-9):
            apart.append(elr)
    for low, high in pairwise(apart):
        pairs = list(product(grid.runs[low], grid.runs[high]))
        of_one_seed = [(a, b) for a, b in pairs if a.seeds == b.seeds]
        ratios = [ratio for a, b in of_one_seed or pairs if (ratio := profile_ratio(profile(a), profile(b)))]
        if not ratios:
            claims.append(Claim(None, f"Missing: losses that runs at ELR {low:g} and {high:g} both come through."))
            continue
        ratio = fmean(ratios)
        text = f"At one train loss the sharpness at ELR {high:g} is {ratio:.2g} times that at {low:g}"
        claims.append(Claim(ratio < _BELOW, f"{text} (must be below {_BELOW:g})."))
    slopes = [slope for _, run in grid if (slope := profile_slope(run)) is not None]
    if claims and len(slopes) > 1:
        text = f"The lines rise with slopes from {min(slopes):.2f} to {max(slopes):.2f}"
        parallel = max(slopes) - min(slopes) < _PARALLEL
        claims.append(Claim(parallel, f"{text} (must be less than {_PARALLEL:g} apart)."))
    if len(apart) < 2:
        claims.append(Claim(None, _NO_PROFILES))
    return claims


_NO_PROFILES = "Missing: runs that converge at two ELRs, a factor of ten apart."


def profile_slope(run: Run) -> float | None:
    """Fit the slope of log sharpness over log train loss, by least squares; None for fewer than five losses."""
    line = profile(run)
    if len(line) < FEWEST_LOSSES:
        return None
    x, y = (fmean(values) for values in zip(*line, strict=True))
    spread = math.fsum((a - x) ** 2 for a, _ in line)
    return math.fsum((a - x) * (b - y) for a, b in line) / spread if spread > 0 else None


def profile(run: Run) -> list[tuple[float, float]]:
    """Give the profile of a run, as :func:`~lit_sphere.analysis.profiles.profile_of` has it."""
    return profile_of(by_epoch(run, LOSS), by_epoch(run, SHARPNESS))


def check_small_networks(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E21 by the grids of networks that are too small for their data."""
    findings = [(grid.name, conclude(no_convergence(grid))) for grid in grids_of(runs) if is_small(grid)]
    return conclude_over_settings(
        findings, "Missing: runs of a network too small for its data, such as --model.width 2 on digits."
    )


def no_convergence(grid: Grid) -> list[Claim]:
    """Claim what E21 must show.

    Args:
        grid: Runs of a small network, of at least 50 epochs.

    Returns:
        The claims: none converges, though ELRs reach over two orders of magnitude; the other two regimes are there.
    """
    short = [run.name for _, run in grid if run.epochs < _LONG]
    converged = grid.of("convergence").elrs
    best = min((min(by_epoch(run, LOSS).values(), default=math.inf) for _, run in grid), default=math.inf)
    if converged:
        first = Claim(False, f"It converges at ELR {_span(converged)}.")
    elif short or len(grid.elrs) < 3 or grid.elrs[-1] < 100 * grid.elrs[0]:
        first = Claim(None, f"Missing: at least three ELRs, two orders of magnitude apart, of {_LONG} epochs each.")
    else:
        first = Claim(
            True,
            f"None of {len(grid.elrs)} ELRs from {grid.elrs[0]:g} on converges; the lowest train loss is {best:.2g}.",
        )
    return [first, _named(grid, (2, 3)), _order(grid)]


_LONG = 50


def check_other_networks(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E22 by the grids of networks that are not convolutional: it must hold for each network."""
    claims = []
    for name in _OTHER_NETWORKS:
        grids = _several([grid for grid in _grids_of_others(runs) if grid.runs[grid.elrs[0]][0].network == name])
        findings = [(grid.name, conclude(three_regimes(grid))) for grid in grids]
        found = conclude_over_settings(findings, "Missing: runs on the sphere at several ELRs, cross-entropy.")
        claims.append(Claim(found.holds, f"{name} ({found.verdict}): {found.text}"))
    return conclude(claims)


def _grids_of_others(runs: Sequence[Run]) -> list[Grid]:
    return [grid for grid in grids_of(runs) if _is_other(grid) and _loss(grid) == "cross_entropy"]


def check_seeds(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E23 by grids with several seeds."""
    findings = []
    for grid in grids_of(runs):
        several = {elr: mine for elr, mine in grid.runs.items() if len({run.seeds for run in mine}) > 1}
        if several:
            findings.append((grid.name, conclude(same_picture(Grid(grid.name, several)))))
    return conclude_over_settings(findings, "Missing: runs of one setting with several seeds (--seeds 3).")


def same_picture(grid: Grid) -> list[Claim]:
    """Claim what E23 must show.

    Args:
        grid: Runs with several seeds at each ELR.

    Returns:
        The claims: all seeds have one regime at each ELR, and all three regimes are there.
    """
    claims = [_named(grid, (1, 2, 3))]
    for elr, runs in grid.runs.items():
        regimes = [regime_of(run) for run in runs]
        seeds = len({run.seeds for run in runs})
        if len(set(regimes)) == 1 and regimes[0] != "undecided":
            losses = [value for run in runs if (value := level(run, LOSS, run.epochs - 10, run.epochs)) is not None]
            claims.append(
                Claim(
                    True,
                    f"ELR {elr:g}, {seeds} seeds: {regimes[0]}, train loss {min(losses):.2g} to {max(losses):.2g}.",
                )
            )
        else:
            text = f"ELR {elr:g}, {seeds} seeds: {', '.join(dict.fromkeys(regimes))}."
            claims.append(Claim(None if "undecided" in regimes and len(set(regimes)) < 3 else False, text))
    return claims


def check_squared_error(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E25 by grids with the mean squared error."""
    grids = [grid for grid in grids_of(runs) if _loss(grid) == "mse" and not is_small(grid)]
    findings = [(grid.name, conclude([_named(grid, (1, 2, 3)), _order(grid)])) for grid in _several(grids)]
    return conclude_over_settings(
        findings, "Missing: runs with the mean squared error at several ELRs (--model.loss mse --data.train_size 500)."
    )


def is_small(grid: Grid) -> bool:
    """Say whether the network of a grid is one of those too small to fit its data."""
    run = grid.runs[grid.elrs[0]][0]
    most = _TOO_SMALL.get((run.network, run.data), 0)
    width = run.option("model.width")
    return isinstance(width, int) and width <= most


def _is_usual(grid: Grid) -> bool:
    return not is_small(grid) and not _is_other(grid) and _loss(grid) == "cross_entropy"


def _is_other(grid: Grid) -> bool:
    return grid.runs[grid.elrs[0]][0].network in _OTHER_NETWORKS


def _loss(grid: Grid) -> str:
    return grid.runs[grid.elrs[0]][0].loss_name


def _several(grids: Sequence[Grid]) -> list[Grid]:
    """Leave single runs out, where there are others."""
    return [grid for grid in grids if len(grid.elrs) > 1] or list(grids)


def _span(elrs: Sequence[float]) -> str:
    return f"{min(elrs):g} to {max(elrs):g}" if max(elrs) > min(elrs) else f"{elrs[0]:g}"


def draw_three_regimes(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw TR fig. 1: train loss, test error and sharpness over epochs, and sharpness against loss."""
    grids = _several([grid for grid in grids_of(runs) if _is_usual(grid)])
    return _draw_grids("E1", grids, "Three regimes", _E1_CAPTION, _missing_usual(runs))


def _missing_usual(runs: Sequence[Run]) -> str:
    """Say which runs E1 needs, and where those belong that are there."""
    needed = "runs on the sphere at several ELRs, of a convolutional network that can fit its data, with cross-entropy"
    grids = grids_of(runs)
    elsewhere = [
        f"{grid.name}, {why}"
        for why, fits in (
            ("too small to converge, is E21's", is_small),
            ("which is not convolutional, is E22's", _is_other),
            ("with the mean squared error, is E25's", lambda grid: _loss(grid) == "mse"),
        )
        for grid in grids
        if fits(grid)
    ]
    return f"{needed} ({'; '.join(elsewhere)})" if elsewhere else needed


_E1_CAPTION = (
    "Runs of one setting at fixed effective learning rates. Converging runs end lower at higher ELRs; in chaotic "
    "equilibrium the loss stays at a level that rises with the ELR; diverging runs stay at chance. Right: each run as "
    "a path in the plane of train loss and sharpness, a point for each epoch. Several seeds: mean, and a band from the "
    "least to the greatest. TR fig. 1."
)


def _draw_grids(id: str, grids: Sequence[Grid], title: str, caption: str, missing: str) -> list[Chart] | NotDrawn:
    settings = [(grid.name, _grid_panels(grid)) for grid in grids]
    return charts_of_settings(id, settings, title, caption, missing)


def _grid_panels(grid: Grid) -> list[Panel]:
    paths = [against(run, LOSS, SHARPNESS, f"ELR {elr:g}", elr) for elr, run in grid]
    return [
        over_epochs(grid, LOSS, "train loss"),
        over_epochs(grid, ERROR, "test error [%]", y_log=False, of=percent),
        over_epochs(grid, SHARPNESS, "sharpness g̃"),
        Panel("sharpness g̃ against train loss", "train loss", x_log=True, y_log=True, curves=[c for c in paths if c.x]),
    ]


def draw_profiles(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw TR fig. 4: sharpness and test error against train loss of the runs that converge."""
    settings = []
    for grid in grids_of(runs):
        mine = grid.of("convergence")
        if _loss(grid) == "cross_entropy" and len(mine.elrs) > 1:
            sharpness, errors = (
                [against(run, LOSS, key, f"ELR {elr:g}", elr, of=of) for elr, run in mine]
                for key, of in ((SHARPNESS, float), (ERROR, percent))
            )
            log: dict[str, Any] = {"x_log": True, "y_log": True}
            panels = [
                Panel("sharpness g̃ against train loss", "train loss", curves=[c for c in sharpness if c.x], **log),
                Panel("test error [%] against train loss", "train loss", curves=[c for c in errors if c.x], **log),
            ]
            settings.append((grid.name, panels))
    caption = (
        "Runs that converge, a point for each epoch, both axes logarithmic. The profiles are parallel lines; that of a "
        "higher ELR lies lower: at one train loss it is at a flatter place. TR §4."
    )
    return charts_of_settings("E3", settings, "Profiles of converging runs", caption, "runs that converge at two ELRs")


def draw_small_networks(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the runs of networks that are too small to converge."""
    grids = [grid for grid in grids_of(runs) if is_small(grid)]
    caption = (
        "A network too small to fit its data has no convergence: equilibrium reaches down to the lowest ELRs. TR app."
    )
    missing = "runs on the sphere of a network too small for its data, such as --model.width 2 on digits"
    return _draw_grids("E21", grids, "Too small to converge", caption, missing)


def draw_other_networks(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the runs of networks that are not convolutional, a chart for each network."""
    missing = f"runs on the sphere of {' or '.join(_OTHER_NETWORKS)}, with cross-entropy"
    return _draw_grids("E22", _several(_grids_of_others(runs)), "Three regimes", _E22_CAPTION, missing)


_E22_CAPTION = (
    "The regimes come from scale invariance, not from convolutions: an MLP with layer norm, and a vision transformer "
    "all of whose trained weights are scale-invariant. Right: each run as a path in the plane of train loss and "
    "sharpness, a point for each epoch. TR app."
)


def draw_seeds(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the runs with several seeds: means, in bands from the least to the greatest."""
    grids = []
    for grid in grids_of(runs):
        several = {elr: mine for elr, mine in grid.runs.items() if len({run.seeds for run in mine}) > 1}
        if several:
            grids.append(Grid(grid.name, several))
    caption = (
        "Other seeds for initialisation and order of the batches: mean, and a band from the least to the greatest."
    )
    settings = [(grid.name, _grid_panels(grid)) for grid in grids]
    return charts_of_settings("E23", settings, "Other seeds", caption, "runs of one setting with several seeds")


def draw_squared_error(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw the runs with the mean squared error, a chart for each subset."""
    grids = [grid for grid in grids_of(runs) if _loss(grid) == "mse" and not is_small(grid)]
    caption = "The mean squared error between outputs and one-hot labels in place of cross-entropy. KT; TR app."
    missing = "runs on the sphere with the mean squared error (--model.loss mse)"
    return _draw_grids("E25", grids, "Mean squared error", caption, missing)
