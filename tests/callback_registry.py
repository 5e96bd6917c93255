"""Every public callback, set up so that it acts within three short epochs; generic tests run over all of them."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from torch.optim import SGD

import lit_sphere.callbacks
from lit_sphere.callbacks import (
    CheckpointSimilarity,
    CosineRegimeAnalysis,
    EffectiveLearningRateMonitor,
    FineTuneSwitch,
    FixedNorm,
    GracefulStop,
    LinearInterpolationBarrier,
    OptimizerComparison,
    PeriodMonitor,
    RegimeMonitor,
    RunCheckpoint,
    RunProgressBar,
    RunSummary,
    SharpnessMonitor,
    StopOnNonFinite,
)
from lit_sphere.optim import AdaGradG
from lit_sphere.switching import Switch

EPOCHS = 3
ANYWHERE = ("resnet", "layer_norm", "manual", "accumulated", "lion", "ours")
DECAYING = ANYWHERE[:-1]
"""Ours is on the sphere, where there is no weight decay."""

SHORT = dict.fromkeys(DECAYING, "this run of .* steps is shorter")

PUBLIC = {
    name: each
    for name in lit_sphere.callbacks.__all__
    if inspect.isclass(each := getattr(lit_sphere.callbacks, name)) and issubclass(each, Callback)
}


@dataclass(frozen=True)
class Entry:
    """One way to set a callback up.

    Args:
        make: Makes a fresh callback, given a folder for what it writes or reads.
        other: Makes one with other options, to be told apart from the first in a checkpoint.
        cases: Names of the modules that it works on.
        logs: Regular expressions of keys that it must log, on every module.
        needs_groups: Refuses a module without scale-invariant groups.
        stays_out: Warns of such a module, and does nothing.
        pictures: Files that it leaves in the run's folder.
        waits_for_nothing: Nothing is brought to the host between logging points.
        says: What it warns of, by module.
        changes: A control that changes these runs.
    """

    make: Callable[[Path], Callback]
    other: Callable[[Path], Callback] | None = None
    cases: tuple[str, ...] = ANYWHERE
    logs: tuple[str, ...] = ()
    needs_groups: bool = False
    stays_out: bool = False
    pictures: tuple[str, ...] = ()
    waits_for_nothing: bool = False
    says: dict[str, str] = field(default_factory=dict)
    changes: bool = False

    @property
    def kind(self) -> type[Callback]:
        """The class, found without making one."""
        return type(self.make(Path()))

    @property
    def is_monitor(self) -> bool:
        """As the first word of the docstring says."""
        return (inspect.getdoc(self.kind) or "").startswith("Monitor:")


RIVALS: dict[str, Any] = {
    "SGD": partial(SGD, lr=0.01, momentum=0.9),
    "AdaGradG": partial(AdaGradG, lr=0.01, granularity="joint"),
}

REGISTRY: dict[str, Entry] = {
    "elr": Entry(
        lambda _: EffectiveLearningRateMonitor(),
        lambda _: EffectiveLearningRateMonitor("filter"),
        logs=(r"(norm|effective_grad_norm|elr|ess|angle|radial)/total", r"(elr|ess)/.*weight.*"),
        stays_out=True,
        waits_for_nothing=True,
        says=SHORT,
    ),
    "elr-step": Entry(
        lambda _: EffectiveLearningRateMonitor("filter", per="step", every_n_steps=3),
        lambda _: EffectiveLearningRateMonitor("filter", per="step", every_n_steps=2),
        logs=(r"norm/total", r"effective_grad_norm/total"),
        stays_out=True,
        says=SHORT,
    ),
    "elr-scatter": Entry(
        lambda _: EffectiveLearningRateMonitor("filter", quantiles=[0.05, 0.5, 0.95], scatter_epochs=2),
        lambda _: EffectiveLearningRateMonitor("filter", quantiles=[0.05, 0.5, 0.95]),
        logs=(r"ess/q05", r"elr/median", r"equal_ess/spread"),
        stays_out=True,
        pictures=("equal_ess.png",),
        waits_for_nothing=True,
        says=SHORT,
    ),
    "elr-matrices": Entry(
        lambda _: EffectiveLearningRateMonitor(watch="matrices", scatter_epochs=1),
        lambda _: EffectiveLearningRateMonitor(watch=["*.weight"], scatter_epochs=1),
        cases=("layer_norm", "plain"),
        logs=(r"gradient_radial/total", r"gradient_radial/.*weight", r"ess/.*weight"),
        pictures=("equal_ess.png",),
        waits_for_nothing=True,
    ),
    "sharpness-pass": Entry(
        lambda _: SharpnessMonitor(train_pass_every=1, curvature_every=2, curvature_batches=1, curvature_vectors=2),
        lambda _: SharpnessMonitor(train_pass_every=1, weighting="batch"),
        logs=("sharpness/(train_pass|fisher_trace|hessian_trace|top_eigenvalue)", "train_pass/(loss|error)"),
        stays_out=True,
        pictures=("sharpness.png",),
        waits_for_nothing=True,
    ),
    "sharpness": Entry(
        lambda _: SharpnessMonitor(),
        lambda _: SharpnessMonitor(train_pass_every=1),
        logs=("sharpness/online",),
        stays_out=True,
        pictures=("sharpness.png",),
        waits_for_nothing=True,
    ),
    "barrier": Entry(
        lambda _: LinearInterpolationBarrier(every_n_epochs=1, points=3),
        lambda _: LinearInterpolationBarrier(every_n_epochs=1, points=3, statistics="reestimated"),
        logs=(r"barrier/(train|val)_(loss|error)", r"barrier/(train|val)_loss_dip", r"barrier/cosine"),
        stays_out=True,
        pictures=("barrier-0001-to-0002.png", "barrier-0002-to-0003.png"),
    ),
    "barrier-circle": Entry(
        lambda _: LinearInterpolationBarrier(every_n_epochs=1, points=3, great_circle=True, statistics="reestimated"),
        cases=("ours",),
        logs=(r"barrier/great_circle/cosine",),
        pictures=("barrier-0001-to-0002-great-circle-reestimated.png",),
    ),
    "similarity": Entry(
        lambda _: CheckpointSimilarity(every_n_epochs=1, keep=2),
        lambda _: CheckpointSimilarity(every_n_epochs=1, keep=3),
        logs=(r"similarity/(previous|first)", r"ensemble/(error|member_error|gain)"),
        stays_out=True,
        pictures=("similarity.png",),
    ),
    "regime": Entry(
        lambda _: RegimeMonitor(),
        lambda _: RegimeMonitor(every_n_steps=2),
        logs=("regime",),
        stays_out=True,
        pictures=("regime.png",),
        waits_for_nothing=True,
    ),
    "regime-stop": Entry(
        lambda _: RegimeMonitor(stop_when=["convergence", "divergence"], patience=2),
        lambda _: RegimeMonitor(every_n_steps=2, stop_when=["convergence"]),
        cases=("layer_norm", "ours"),
        logs=("regime",),
        stays_out=True,
        pictures=("regime.png",),
        waits_for_nothing=True,
    ),
    "schedule": Entry(
        lambda _: CosineRegimeAnalysis(),
        lambda _: CosineRegimeAnalysis(num_classes=3),
        logs=("schedule/lr", "schedule/elr", "schedule/sharpness"),
        stays_out=True,
        pictures=("cosine_regimes.png",),
        waits_for_nothing=True,
    ),
    "periods": Entry(
        lambda _: PeriodMonitor(),
        lambda _: PeriodMonitor(every_n_steps=2),
        cases=DECAYING,
        logs=("period/(norm_squared|elr|effective_grad_norm|distance)", "period/(count|phase)"),
        pictures=("periods.png",),
        waits_for_nothing=True,
    ),
    "periods-step": Entry(
        lambda _: PeriodMonitor(per="step", delta=1e-4, keep_minima=True),
        lambda _: PeriodMonitor(per="step", delta=1e-3),
        cases=("resnet", "layer_norm", "accumulated"),
        logs=("period/(norm_squared|elr|effective_grad_norm|distance|loss)", "period/jumps"),
        pictures=("periods.png",),
        waits_for_nothing=True,
    ),
    "comparison": Entry(
        lambda _: OptimizerComparison(RIVALS, every_n_steps=4, steps=None, granularity="tensor"),
        lambda _: OptimizerComparison({"SGD": RIVALS["SGD"]}, every_n_steps=4, granularity="tensor"),
        logs=(r"optimizer_comparison/SGD_(cosine|distance)_(min|max|median)", r"optimizer_comparison/AdaGradG_loss"),
        needs_groups=True,
        pictures=("optimizer_comparison.png",),
    ),
    "comparison-filters": Entry(
        lambda _: OptimizerComparison({**RIVALS, "AdaGradG": partial(AdaGradG, lr=0.01)}, every_n_steps=4),
        cases=("ours",),
        needs_groups=True,
        waits_for_nothing=True,  # elsewhere Adam's counts of steps are read, which lie on the CPU
    ),
    "comparison-later": Entry(
        lambda _: OptimizerComparison(RIVALS, start_epoch=1, every_n_steps=4, steps=6),
        lambda _: OptimizerComparison(RIVALS, start_epoch=1, every_n_steps=2, steps=6),
        cases=("resnet", "manual", "ours"),
        logs=(r"optimizer_comparison/.*_cosine_min",),
        needs_groups=True,
        pictures=("optimizer_comparison.png",),
    ),
    "switch": Entry(
        lambda _: FineTuneSwitch([Switch(epoch=1, lr=2e-4), Switch(after_epochs=1, lr=1e-4)]),
        lambda _: FineTuneSwitch([Switch(epoch=1, weight_decay=0.0)]),
        cases=("resnet", "manual", "lion"),
        logs=("switch/lr",),
        changes=True,
    ),
    "switch-decay": Entry(
        lambda _: FineTuneSwitch([Switch(step=5, weight_decay=0.1, momentum=0.5)]),
        lambda _: FineTuneSwitch([Switch(step=5, weight_decay=0.1)]),
        cases=("layer_norm", "accumulated"),
        logs=("switch/(weight_decay|momentum)",),
        changes=True,
    ),
    "switch-sphere": Entry(
        lambda _: FineTuneSwitch([Switch(epoch=1, elr=1e-3, augment=True), Switch(loss_below=1e3, sphere=False)]),
        lambda _: FineTuneSwitch([Switch(epoch=1, elr=1e-3)]),
        cases=("ours",),
        logs=("switch/(elr|augment|sphere)",),
        changes=True,
    ),
    "norm": Entry(
        lambda _: FixedNorm(from_epoch=1),
        lambda _: FixedNorm(norm=2.0),
        cases=("resnet", "layer_norm", "manual", "accumulated", "lion"),
        needs_groups=True,
        changes=True,
    ),
    "non-finite": Entry(lambda _: StopOnNonFinite()),
    "graceful": Entry(lambda folder: GracefulStop(folder)),
    "checkpoint": Entry(lambda folder: RunCheckpoint(folder / "checkpoints", keep_all=True)),
    "progress": Entry(lambda _: RunProgressBar({"train_loss": "loss {:.3f}"})),
    "summary": Entry(lambda _: RunSummary()),
}


def is_first(name: str) -> bool:
    """Whether this is the first entry of its class; the long tests leave the others to ``-m slow``."""
    return name == next(each for each, entry in REGISTRY.items() if entry.kind is REGISTRY[name].kind)


def documented_keys(kind: type[Callback]) -> list[re.Pattern[str]]:
    """Patterns of the keys in the first column of the docstring's table.

    Returns:
        One for each key; ``<group>`` and ``…`` stand for anything.
    """
    rows = re.findall(r"^\s*\| (``.*?) \|", inspect.getdoc(kind) or "", re.MULTILINE)
    keys = [key for row in rows for key in re.findall(r"``([^`]+)``", row)]
    assert all(re.fullmatch(r"[\w/<>….\-]+", key) for key in keys), f"{kind.__name__}: not a key: {keys}"
    return [re.compile(re.sub(r"<[^>]+>|…", ".+", re.sub(r"[.]", r"\\.", key))) for key in keys]
