"""E16: label noise, and the test error that rises and falls again with the sharpness while a run fits it."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from lit_sphere.experiments.drawing import GROUP_COLOURS, charts_of_settings, curve_over_epochs, moving_mean, percent
from lit_sphere.experiments.experiment import Claim, Finding, NotDrawn, conclude, conclude_over_settings
from lit_sphere.experiments.grids import name_of, setting_of
from lit_sphere.experiments.levels import by_epoch, last_level, listed, parts
from lit_sphere.report.chart import Chart, Panel, over_seeds
from lit_sphere.report.runs import BASELINES, Run

ERROR, SHARPNESS = "val/error", "effective_grad_norm/total"
CLEAN, CORRUPTED = "train/error_clean", "train/error_corrupted"

_SPAN = 5  # epochs of the moving mean: the running statistics of batch norm make single test errors jump
_FAR = 0.03  # rise and fall of the test error
_SHARP = 0.5  # of the greatest sharpness, at the peak
_FITTED = 0.05  # train error of corrupted labels
_CLEAN_WRONG = 0.25  # train error of clean labels when half of the corrupted ones are learned

Noises = Mapping[float, Sequence[Run]]
"""Runs of one setting and ELR by their label noise, which increases; of one, in the order of seeds."""


class Peak(NamedTuple):
    """How the test error of a run rises and falls again.

    Attributes:
        epoch: Of the peak of the smoothed test error.
        low: Least value before it.
        height: The peak.
        end: Level at the end.
        sharpest: Epoch, after that of ``low``, of the greatest smoothed sharpness.
        share: Sharpness at ``epoch``, as a share of the greatest.
    """

    epoch: int
    low: float
    height: float
    end: float
    sharpest: int
    share: float

    @property
    def rise(self) -> float:
        """How far the test error gets above both its least value before and its level at the end."""
        return self.height - max(self.low, self.end)


def peak_of(run: Run) -> Peak | None:
    """Find the peak of a run's test error.

    Args:
        run: The run.

    Returns:
        The peak; None without test errors or sharpness, or with fewer than 20 epochs.
    """
    errors, sharpness = (moving_mean(by_epoch(run, key), _SPAN) for key in (ERROR, SHARPNESS))
    at = [epoch for epoch in errors if epoch in sharpness]
    if len(at) < 4 * _SPAN:
        return None
    # The rise that is deepest on both sides; from the second epoch on, since all errors begin high.
    end = last_level(run, ERROR)
    assert end is not None
    lows: dict[int, tuple[float, int]] = {}
    for epoch in at[1:]:
        before = min(lows.values(), default=(errors[epoch], epoch))
        lows[epoch] = min(before, (errors[epoch], epoch))
    epoch = max(at[1:], key=lambda each: errors[each] - lows[each][0])
    low, since = lows[epoch]
    later = [each for each in at if each >= since]
    sharpest = max(later, key=lambda each: sharpness[each])
    return Peak(epoch, low, errors[epoch], end, sharpest, sharpness[epoch] / sharpness[sharpest])


def check_double_descent(runs: Sequence[Run], folders: Sequence[Path] = ()) -> Finding:
    """Judge E16 by runs that differ in their label noise."""
    findings = [(name, conclude(double_descent(found))) for name, found in _settings(runs)]
    return conclude_over_settings(findings, "Missing: runs of one setting with and without --data.label_noise.")


def double_descent(found: Noises) -> list[Claim]:
    """Claim what E16 must show.

    Args:
        found: Runs by label noise.

    Returns:
        The claims: with noise the test error rises and falls again, while the sharpness is at its peak, and the more,
        the more noise; corrupted labels are learned last.
    """
    peaks = {noise: [peak for run in mine if (peak := peak_of(run)) is not None] for noise, mine in found.items()}
    if len(found) < 2 or max(found) == 0 or not all(peaks.values()):
        return [Claim(None, "Missing: runs of 20 epochs or more with and without label noise, with val/error.")]
    claims = []
    for noise, mine in peaks.items():
        if noise > 0:
            claims += [_one_level(noise, mine, found[noise]), _learned_last(noise, found[noise])]
    rises = {noise: fmean(peak.rise for peak in mine) for noise, mine in peaks.items()}
    text = (
        f"The peak stands above what is before and after it by {listed([percent(each) for each in rises.values()])} % "
        f"at label noise {listed(list(rises))}."
    )
    return [*claims, Claim(all(low < high for low, high in pairwise(rises.values())), text)]


def _one_level(noise: float, peaks: Sequence[Peak], runs: Sequence[Run]) -> Claim:
    low, height, end = (fmean(values) for values in zip(*[(p.low, p.height, p.end) for p in peaks], strict=True))
    share = min(peak.share for peak in peaks)
    text = (
        f"Label noise {noise:g}: the test error falls to {percent(low):.2g} %, rises to {percent(height):.2g} % and "
        f"falls to {percent(end):.2g} % (must be {percent(_FAR):g} % apart); at its peak the sharpness is at least "
        f"{share:.0%} of its own (must be above {_SHARP:.0%})."
    )
    if not all(_is_fitted(run) for run in runs):
        return Claim(None, f"Missing: a run that is long and wide enough to fit all labels. {text}")
    return Claim(min(peak.rise for peak in peaks) > _FAR and share > _SHARP, text)


def _is_fitted(run: Run) -> bool:
    last = last_level(run, CORRUPTED)
    return last is not None and last < _FITTED


def _learned_last(noise: float, runs: Sequence[Run]) -> Claim:
    """When half of the corrupted labels are still wrong, the clean ones are right."""
    found = []
    for run in runs:
        clean, corrupted = by_epoch(run, CLEAN), by_epoch(run, CORRUPTED)
        half = [epoch for epoch, error in corrupted.items() if error < 0.5 and epoch in clean]
        if half:
            found.append(clean[half[0]])
    if not found:
        return Claim(None, f"Missing: {CLEAN} and {CORRUPTED} of a run that fits half of its corrupted labels.")
    text = f"When half of the corrupted labels are learned, {percent(fmean(found)):.2g} % of the clean ones are wrong "
    return Claim(max(found) < _CLEAN_WRONG, f"{text}(must be below {percent(_CLEAN_WRONG):g} %).")


def draw_double_descent(runs: Sequence[Run], folders: Sequence[Path] = ()) -> list[Chart] | NotDrawn:
    """Draw test error, sharpness and the train errors of clean and corrupted labels over epochs."""
    settings = []
    for name, found in _settings(runs):
        panels = [
            _panel(found, ERROR, "test error [%]", percent),
            _panel(found, SHARPNESS, "sharpness g̃", y_log=True),
            _panel(found, CORRUPTED, "train error of corrupted labels [%]", percent),
            _panel(found, CLEAN, "train error of clean labels [%]", percent),
        ]
        settings.append((name, panels))
    caption = (
        "With label noise the test error falls, rises while the corrupted labels are learned, and falls again once "
        "they are: its peak stands where the sharpness has its own, and is the higher, the more noise. Errors of "
        "training are against the labels trained on. TR app."
    )
    return charts_of_settings(
        "E16", settings, "Label noise", caption, "runs of one setting with and without --data.label_noise"
    )


def _panel(found: Noises, key: str, title: str, of: Any = float, y_log: bool = False) -> Panel:
    curves = []
    for number, (noise, runs) in enumerate(found.items()):
        style: dict[str, Any] = {
            "colour": GROUP_COLOURS[number % len(GROUP_COLOURS)],
            "label": f"label noise {noise:g}",
        }
        known = [curve for run in runs if (curve := curve_over_epochs(run, key, of=of, **style)).x]
        if known:
            curves.append(over_seeds(known, log=y_log))
    return Panel(title, "epoch", y_log=y_log, curves=curves)


def _settings(runs: Sequence[Run]) -> list[tuple[str, Noises]]:
    """Sort runs by setting and ELR; only where some have label noise."""
    found: dict[tuple[str, float], dict[float, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: (_noise(run), run.seed if run.seed is not None else -1, str(run.folder))):
        if run.elr is not None and len(parts(run)) == 1 and run.option("model.optimizer") not in BASELINES:
            found.setdefault((_without_noise(run), run.elr), {}).setdefault(_noise(run), []).append(run)
    noisy = {key: mine for key, mine in found.items() if max(mine) > 0 and len(mine) > 1}
    several = len({elr for _, elr in noisy}) > 1
    settings: list[tuple[str, Noises]] = []
    for key in sorted(noisy):
        name = name_of(noisy[key][min(noisy[key])][0])
        settings.append((name + (f" at ELR {key[1]:g}" if several else ""), noisy[key]))
    return settings


def _noise(run: Run) -> float:
    value = run.option("data.label_noise")
    return float(value) if isinstance(value, (int, float)) else 0.0


def _without_noise(run: Run) -> str:
    setting = json.loads(setting_of(run))
    setting["data"][1].pop("label_noise", None)
    return json.dumps(setting, sort_keys=True)
