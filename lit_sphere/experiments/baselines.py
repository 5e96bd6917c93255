"""E13: SGD where it diverges, beside a random walk with steps of its size and beside gradient ascent."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_sphere.experiments.drawing import GROUP_COLOURS, charts_of_settings, curve_over_epochs
from lit_sphere.experiments.experiment import Claim, Finding, NotDrawn, conclude, conclude_over_settings
from lit_sphere.experiments.grids import name_of, regime_of, setting_of
from lit_sphere.experiments.levels import by_epoch, level
from lit_sphere.experiments.step_sizes import ANGLE, DISTANCE, distance, distances_of
from lit_sphere.report.chart import Chart, Panel, over_seeds
from lit_sphere.report.runs import BASELINES, Run

LOSS, SHARPNESS = "train/loss", "effective_grad_norm/total"

_KINDS = ("SphereSGD", *BASELINES)
_NAMES = {"SphereSGD": "SGD", "RandomWalk": "the random walk", "GradientAscent": "gradient ascent"}
_UNCORRELATED = 0.2  # cosine of consecutive iterates
_APART = 1.02  # ratio of losses; on digits the least of three seeds was 1.07
_SHORTEST = 20

Beside = Mapping[str, Sequence[Run]]
"""Runs of one setting and ELR by their optimizer; of one, in the order of seeds."""


def check_baselines(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E13 by the runs at one ELR of SGD that diverges, of a random walk and of gradient ascent."""
    findings = [(name, conclude(beside_sgd(found))) for name, found in _settings(runs)]
    return conclude_over_settings(
        findings,
        "Missing: runs at one ELR at which SGD diverges with --model.optimizer null, RandomWalk and GradientAscent.",
    )


def beside_sgd(found: Beside) -> list[Claim]:
    """Claim what E13 must show.

    Args:
        found: Runs by optimizer.

    Returns:
        The claims: SGD diverges; consecutive iterates are uncorrelated in all; with each seed the train loss of the
        walk lies below that of SGD, and that of the ascent above.
    """
    missing = [_NAMES[kind] for kind in _KINDS if not found.get(kind)]
    if missing:
        return [Claim(None, f"Missing: runs of {' and of '.join(missing)}.")]
    claims = []
    regimes = {regime_of(run) for run in found["SphereSGD"]}
    if regimes != {"divergence"}:
        claims.append(
            Claim(None, f"Missing: an ELR at which SGD diverges; here it is in {', '.join(sorted(regimes))}.")
        )
    return [*claims, _uncorrelated(found), *(_losses(found, kind) for kind in BASELINES)]


def _uncorrelated(found: Beside) -> Claim:
    cosines = {}
    for kind in _KINDS:
        means = [_late(distances_of(run), run) for run in found[kind]]
        if None in means:
            return Claim(None, f"Missing: distance/total of {_NAMES[kind]}.")
        cosines[kind] = max((1 - mean for mean in means if mean is not None), key=abs)
    words = ", ".join(f"{value:.2g} in {_NAMES[kind]}" for kind, value in cosines.items())
    return Claim(
        max(map(abs, cosines.values())) < _UNCORRELATED,
        f"The mean cosine between consecutive iterates is at most {words} (must be below {_UNCORRELATED:g}).",
    )


def _late(values: Mapping[int, float], run: Run) -> float | None:
    late = [value for epoch, value in values.items() if epoch >= run.epochs // 2]
    return sum(late) / len(late) if late else None


def _losses(found: Beside, kind: str) -> Claim:
    """The walk below SGD, the ascent above it, seed by seed."""
    by_seed = {run.seed: run for run in found["SphereSGD"]}
    pairs = [(by_seed[run.seed], run) for run in found[kind] if run.seed in by_seed]
    levels = [[level(each, LOSS, each.epochs // 2, each.epochs) for each in pair] for pair in pairs]
    known = [(a, b) for a, b in levels if a is not None and b is not None]
    if not known or min(run.epochs for pair in pairs for run in pair) < _SHORTEST:
        return Claim(None, f"Missing: {_NAMES[kind]} with a seed of SGD's, of {_SHORTEST} epochs at least.")
    ratios = [b / a for a, b in known]
    below = kind == "RandomWalk"
    worst = max(ratios) if below else min(ratios)
    numbers = ", ".join(f"{b:.3g} against {a:.3g}" for a, b in known)
    side = "below" if below else "above"
    holds = worst < 1 / _APART if below else worst > _APART
    limit = f"below {1 / _APART:.2f}" if below else f"above {_APART:g}"
    closest = f"{worst:.2f} times at the closest (must be {limit})"
    text = f"The train loss of {_NAMES[kind]} lies {'' if holds else 'not clearly '}{side} that of SGD: {numbers}; "
    text += f"{closest}."
    return Claim(holds, text)


def draw_baselines(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw train loss, cosine of consecutive iterates and sharpness of SGD, walk and ascent over epochs."""
    settings = []
    for name, found in _settings(runs):
        if any(kind not in found for kind in _KINDS):
            continue
        logged = all(by_epoch(run, DISTANCE) for mine in found.values() for run in mine)
        cosine = (DISTANCE, lambda far: 1 - far) if logged else (ANGLE, lambda angle: 1 - distance(angle))
        panels = [
            _panel(found, LOSS, "train loss"),
            _panel(found, cosine[0], "cosine of consecutive iterates", cosine[1]),
        ]
        settings.append((name, [*panels, _panel(found, SHARPNESS, "sharpness g̃", y_log=True)]))
    caption = (
        "SGD at an ELR at which it diverges, a random walk with steps of the same angle at each point, and gradient "
        "ascent. In all three consecutive iterates are next to uncorrelated; by its loss SGD is neither a walk nor an "
        "ascent. Mean over seeds, and a band from the least to the greatest. TR app."
    )
    missing = "runs with --model.optimizer null, RandomWalk and GradientAscent at one ELR"
    return charts_of_settings("E13", settings, "Beside a random walk", caption, missing)


def _panel(found: Beside, key: str, title: str, of: Any = float, y_log: bool = False) -> Panel:
    curves = []
    for number, kind in enumerate(_KINDS):
        style: dict[str, Any] = {"colour": GROUP_COLOURS[number], "label": _NAMES[kind].removeprefix("the ")}
        known = [curve for run in found[kind] if (curve := curve_over_epochs(run, key, of=of, **style)).x]
        if known:
            curves.append(over_seeds(known, log=y_log))
    return Panel(title, "epoch", y_log=y_log, curves=curves)


def _settings(runs: Sequence[Run]) -> list[tuple[str, Beside]]:
    """Sort runs by setting and ELR; only where there is one of the two others beside SGD."""
    found: dict[tuple[str, float], dict[str, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: (run.seed if run.seed is not None else -1, str(run.folder))):
        kind = str(run.option("model.optimizer") or "SphereSGD")
        if run.elr is not None and kind in _KINDS:
            found.setdefault((_without_optimizer(run), run.elr), {}).setdefault(kind, []).append(run)
    with_others = {key: mine for key, mine in found.items() if not mine.keys().isdisjoint(BASELINES)}
    several = len({elr for _, elr in with_others}) > 1
    settings: list[tuple[str, Beside]] = []
    for key in sorted(with_others):
        first = next(run for kind in _KINDS for run in with_others[key].get(kind, []))
        settings.append((name_of(first) + (f" at ELR {key[1]:g}" if several else ""), with_others[key]))
    return settings


def _without_optimizer(run: Run) -> str:
    setting = json.loads(setting_of(run))
    setting["model"][1].pop("optimizer", None)
    return json.dumps(setting, sort_keys=True)
