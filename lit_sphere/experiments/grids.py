"""Runs that differ in nothing but the effective learning rate and the seed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any

from lit_sphere.analysis.regimes import Regime
from lit_sphere.experiments.levels import last_level, parts
from lit_sphere.report.runs import BASELINES, Run

_ALL_IMAGES = {"Digits": 1500, "CIFAR10": 50000, "CIFAR100": 50000}
_USUAL = {"normalisation": "batch"}  # options that older runs lack; null is as good as not there
_CHANGES_DYNAMICS = ("FineTuneSwitch", "FixedNorm")


@dataclass(frozen=True)
class Grid:
    """Runs on the sphere of one setting, each at one effective learning rate from beginning to end.

    Attributes:
        name: Network and data.
        runs: Runs by effective learning rate, which increases; of one, in the order of seeds.
    """

    name: str
    runs: Mapping[float, Sequence[Run]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[float, Run]]:
        """Go through the runs, lowest effective learning rate first."""
        return ((elr, run) for elr, runs in self.runs.items() for run in runs)

    def of(self, regime: Regime) -> "Grid":
        """Give the part of the grid whose runs are in one regime."""
        kept = {elr: [run for run in runs if regime_of(run) == regime] for elr, runs in self.runs.items()}
        return Grid(self.name, {elr: runs for elr, runs in kept.items() if runs})

    def means(self, key: str) -> dict[float, float]:
        """Give the level that a curve ends at, for each effective learning rate the mean over seeds."""
        found = {elr: [last_level(run, key) for run in runs] for elr, runs in self.runs.items()}
        return {elr: fmean(v for v in values if v is not None) for elr, values in found.items() if None not in values}

    @property
    def elrs(self) -> list[float]:
        """The effective learning rates."""
        return list(self.runs)


def grids_of(runs: Sequence[Run]) -> list[Grid]:
    """Sort runs into grids.

    Args:
        runs: In any order. Those in the whole space, with a switch, that begin at the weights of others or that are no
            descent are left out.

    Returns:
        The grids; a run that stands alone is one, too.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        is_descent = run.option("model.optimizer") not in BASELINES and not _dynamics(run)
        if run.elr is not None and len(parts(run)) == 1 and not run.option("ckpt_weights") and is_descent:
            found.setdefault(setting_of(run), []).append(run)
    grids = []
    for key in sorted(found):
        mine = sorted(found[key], key=lambda run: (run.elr, run.seed if run.seed is not None else -1, str(run.folder)))
        by_elr: dict[float, list[Run]] = {}
        for run in mine:
            assert run.elr is not None
            by_elr.setdefault(run.elr, []).append(run)
        grids.append(Grid(name_of(mine[0]), by_elr))
    return grids


def regime_of(run: Run) -> Regime:
    """Name the regime of a run since its last switch.

    Args:
        run: The run.

    Returns:
        The regime, ``undecided`` also where none is named.
    """
    return "undecided" if run.verdict is None else run.verdict.regime


def setting_of(run: Run) -> str:
    """Tell settings apart: model, data and changes on the way, without ELR, seed and what only watches.

    Args:
        run: The run.

    Returns:
        A text that is the same for two runs of one setting.
    """
    config: dict[str, Any] = json.loads(json.dumps(dict(run.config), default=str))
    kept: dict[str, Any] = {"dynamics": _dynamics(run), "weights": config.get("ckpt_weights")}
    for part, left_out in (("model", ("elr", "head_seed")), ("data", ("seed", "order_seed", "root"))):
        section = config.get(part) or {}
        options = section.get("init_args") or {}
        telling = {k: v for k, v in options.items() if k not in left_out and v != _USUAL.get(k)}
        kept[part] = [section.get("class_path"), telling]
    return json.dumps(kept, sort_keys=True)


def name_of(run: Run) -> str:
    """Name the setting of a run.

    Args:
        run: The run.

    Returns:
        Network, its width, data, and what else is not the usual.
    """
    width = run.option("model.width")
    images = run.option("data.train_size")
    words = [str(run.network)]
    if width is not None:
        words.append(f"of width {width}")
    norm = run.option("model.normalisation")
    if norm is not None and norm != _USUAL["normalisation"]:
        words.append(f"with {norm} norm")
    words.append(f"on {run.data}")
    if images is not None and images != _ALL_IMAGES.get(run.data):
        words.append(f"({images} images)")
    noise = run.option("data.label_noise")
    if noise:
        words.append(f"with label noise {noise}")
    return " ".join(words) + (", MSE" if run.loss_name == "mse" else "")


def rises(values: Mapping[float, float], ratio: float, falls: bool = False) -> list[tuple[float, float]]:
    """Look for pairs of effective learning rates in which a level does not rise as it should.

    Args:
        values: Levels by effective learning rate.
        ratio: Of two effective learning rates, from which on they are compared.
        falls: It should fall instead.

    Returns:
        The pairs in which it does not.
    """
    pairs = [(a, b) for a, b in combinations(sorted(values), 2) if b >= ratio * a * (1 - 1e-9)]
    return [(a, b) for a, b in pairs if (values[b] >= values[a] if falls else values[b] <= values[a])]


def _dynamics(run: Run) -> list[Any]:
    callbacks = (run.config.get("trainer") or {}).get("callbacks") or []
    named = [each for each in callbacks if isinstance(each, Mapping)]
    return [dict(each) for each in named if str(each.get("class_path", "")).split(".")[-1] in _CHANGES_DYNAMICS]
