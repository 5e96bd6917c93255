"""P12, P13, P17, P22 and P23, judged on made-up runs that show them, that do not, and that cannot tell."""

import csv
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lit_sphere.experiments import EXPERIMENTS, Finding, NotDrawn
from lit_sphere.report.chart import Chart
from lit_sphere.report.metrics_csv import Series
from lit_sphere.report.runs import Run
from lit_sphere.theory.toy_plane import plane_curves

STEPS = 10  # an epoch
LENGTH = 120  # steps of a period
LR, DECAY = 0.3, 3e-2


def columns(
    periods: int, *, lead: int = 3, noise: float = 0.3, destabilises: bool = True, fall: float = 1.0
) -> dict[str, list[float]]:
    """Steps of a run whose gradients fall as (t − t₀)^−fall, and whose loss rises ``lead`` steps before the norm."""
    noises = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in ("loss", "norm_squared", "elr", "grad", "distance")}
    norm = 10.0
    for step in range(periods * LENGTH):
        at = step % LENGTH if destabilises else step
        left = LENGTH - 1 - at if destabilises else LENGTH
        grad = 20 / (at + 1) ** fall * math.exp(noise * noises.uniform(-1, 1))
        loss = 3 / (at + 1) ** 2
        if left < lead:
            loss *= 10.0 ** (4 * (lead - left) / lead)
        norm = 10.0 if at == 3 else 10.0 - (3 - at) if at < 3 else norm * 0.98 if destabilises else 10.0
        tangent = LR * grad / ((1 - LR * DECAY) * norm**2)
        distance = 1 - 1 / math.hypot(1, tangent)
        for name, value in zip(found, (loss, norm**2, LR / norm**2, grad, distance), strict=True):
            found[name].append(value)
    return found


def make_run(
    periods: int = 6,
    folder: Path = Path("none"),
    *,
    seed: int = 0,
    callbacks: Sequence[dict[str, Any]] = (),
    per_step: bool = True,
    momentum: float = 0.0,
    **options: Any,
) -> Run:
    of_steps = columns(periods, **options)
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": LR, "weight_decay": DECAY, "momentum": momentum}}
    config = {
        "seed_everything": seed,
        "model": {"class_path": "lit_sphere.modules.SIConvNet", "init_args": {"width": 8, "optimizer": sgd}},
        "data": {"class_path": "lit_sphere.data.Digits", "init_args": {}},
        "trainer": {"callbacks": list(callbacks)},
    }
    at = list(range(len(of_steps["loss"])))
    epochs = [float(step // STEPS) for step in at]
    keys = {"loss": "loss", "norm_squared": "norm_squared", "elr": "elr", "grad": "effective_grad_norm"}
    series = {}
    if per_step:
        steps = [float(step) for step in at]
        named = [*keys.items(), ("distance", "distance")]
        series = {f"period/{key}": Series(epochs, steps, of_steps[name]) for name, key in named}
    ends = [float(step) for step in at[STEPS - 1 :: STEPS]]
    for key, values in (
        ("train/loss", of_steps["loss"]),
        ("norm/total", [math.sqrt(each) for each in of_steps["norm_squared"]]),
    ):
        means = [sum(values[i : i + STEPS]) / STEPS for i in range(0, len(values), STEPS)]
        series[key] = Series([float(epoch) for epoch in range(len(means))], ends, means)
    return Run(folder, config, series)


def check(id_: str, runs: Sequence[Run], *folders: Path) -> Finding:
    found = EXPERIMENTS[id_].check(runs, folders)
    assert EXPERIMENTS[id_].check(list(reversed(runs)), folders) == found
    return found


def drawn(id_: str, runs: Sequence[Run], *folders: Path) -> list[Chart]:
    charts = EXPERIMENTS[id_].charts(runs, folders)
    assert not isinstance(charts, NotDrawn), charts.missing
    assert all(panel.curves for chart in charts for panel in chart.panels)
    return charts


def test_phases_step_by_step() -> None:
    runs = [make_run(seed=seed) for seed in (0, 1)]
    finding = check("P12", runs)
    assert finding.verdict == "holds", finding.text
    assert "in 100% of 5 periods (must be 50% or more)" in finding.text
    assert len(drawn("P12", runs)) == 2


def test_a_norm_that_does_not_wait_for_the_loss() -> None:
    assert check("P12", [make_run(lead=1)]).verdict == "does not"


@pytest.mark.parametrize("id_", ["P12", "P13"])
def test_single_steps_are_needed(id_: str) -> None:
    finding = check(id_, [make_run(per_step=False)])
    assert finding.verdict == "cannot tell"
    assert "per step" in finding.text
    assert isinstance(EXPERIMENTS[id_].charts([make_run(per_step=False)]), NotDrawn)
    assert check(id_, [make_run(1)]).verdict == "cannot tell"


def test_bounds_of_falling_gradients() -> None:
    finding = check("P13", [make_run()])
    assert finding.verdict == "holds", finding.text
    held, by_constants = map(int, re.findall(r"for (\d+)%", finding.text))
    assert held > 90 > 40 > by_constants
    assert "g̃ goes as (t − t₀)^−1." in finding.text
    (chart,) = drawn("P13", [make_run()])
    assert {curve.label for curve in chart.panels[0].curves} == {"observed", "least", "greatest"}
    assert check("P13", [make_run(momentum=0.9)]).verdict == "cannot tell"  # the theory is that of plain SGD


def test_gradients_that_do_not_fall_are_not_bounded_so() -> None:
    finding = check("P13", [make_run(fall=0.0)])
    assert finding.verdict == "does not"
    held, by_constants = map(int, re.findall(r"for (\d+)%", finding.text))
    assert held < 50 < by_constants, finding.text


def write_pairs(folder: Path, cosine: float, ensemble: float, falls: float = 0.3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    at = [10, 20, 30, 40]
    with (folder / "similarity.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["epoch", "other_epoch", "cosine", "ensemble_error", "error", "other_error"])
        for j, second in enumerate(at):
            for i, first in enumerate(at[:j]):
                errors = [ensemble, 0.02, 0.03] if j - i == 1 else ["", "", ""]
                table.writerow([first, second, cosine * falls ** (j - i - 1), *errors])


OF_PERIODS = {"class_path": "CheckpointSimilarity", "init_args": {"between": "periods"}}


@pytest.mark.parametrize(
    ("cosine", "ensemble", "verdict"), [(0.5, 0.02, "holds"), (0.99, 0.02, "does not"), (0.5, 0.03, "does not")]
)
def test_minima(cosine: float, ensemble: float, verdict: str, tmp_path: Path) -> None:
    write_pairs(tmp_path, cosine, ensemble)
    runs = [make_run(folder=tmp_path, callbacks=[OF_PERIODS])]
    finding = check("P17", runs)
    assert finding.verdict == verdict, finding.text
    (chart,) = drawn("P17", runs)
    assert len(chart.panels) == 2


def write_independent(folder: Path, runs: Sequence[Run], cosine: float, left: float) -> None:
    """What ``lit-sphere interpolate`` says of minima of two runs."""
    folder.mkdir(exist_ok=True)
    start, end = (f"x/{run.folder.name}/minima/period-02.ckpt" for run in runs)
    ensemble = {"error": 0.1 * left, "member_errors": [0.08, 0.12]}
    about = {"start": start, "end": end, "cosine": cosine, "ensemble": ensemble}
    (folder / "interpolation.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "interpolation.csv").write_text("position,train_loss\n0,0\n0.5,1\n1,0\n", encoding="utf-8")


def test_minima_beside_independent_networks(tmp_path: Path) -> None:
    runs = [make_run(folder=tmp_path / f"seed={seed}", seed=seed, callbacks=[OF_PERIODS]) for seed in range(2)]
    for run in runs:
        write_pairs(run.folder, 0.5, 0.02)
    assert "independent" not in check("P17", runs).text
    write_independent(tmp_path / "independent", runs, 0.01, 0.4)
    finding = check("P17", runs)
    assert finding.verdict == "holds", finding.text
    assert "of different seeds is at most 0.01 (must be below 0.1), of one run 0.31 in the mean." in finding.text
    assert "80% of their members' error, and do not reach those of two seeds, which have 40% of it" in finding.text
    assert [mark.label for chart in drawn("P17", runs) for mark in chart.panels[0].marks] == ["other seeds"] * 2
    write_independent(tmp_path / "independent", runs, 0.01, 0.9)
    assert "and reach those of two seeds" in check("P17", runs).text
    write_independent(tmp_path / "independent", runs, 0.4, 0.4)
    assert check("P17", runs).verdict == "does not"


def test_minima_that_nobody_compared(tmp_path: Path) -> None:
    write_pairs(tmp_path, 0.5, 0.02)
    snapshots = {"class_path": "CheckpointSimilarity", "init_args": {}}
    assert check("P17", [make_run(folder=tmp_path, callbacks=[snapshots])]).verdict == "cannot tell"


def fixed(**options: Any) -> dict[str, Any]:
    return {"class_path": "FixedNorm", "init_args": options}


def test_fixed_norms() -> None:
    free = make_run(folder=Path("free"))
    still = make_run(folder=Path("fixed"), callbacks=[fixed()], destabilises=False)
    restless = make_run(folder=Path("restless"), callbacks=[fixed(norm=3.0)])
    assert check("P22", [free, still]).verdict == "holds"
    assert check("P22", [free, still, restless]).verdict == "does not"
    assert check("P22", [still]).verdict == "cannot tell"
    assert check("P22", [free]).verdict == "cannot tell"
    once = [
        make_run(2, Path("before"), seed=1),
        make_run(2, Path("kept"), seed=1, callbacks=[fixed()], destabilises=False),
    ]
    assert check("P22", [free, still, *once]).verdict == "cannot tell", "one seed has no periods at a free norm"
    (chart,) = drawn("P22", [free, still])
    assert {curve.label for curve in chart.panels[0].curves} == {"free norm", "norm 10"}


def write_plane(folder: Path, factor: float = 1.0) -> None:
    decays = [0.0, 0.03, 0.1, 0.2]
    curves = plane_curves([factor * decay for decay in decays], steps=1000)
    with (folder / "toy.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["weight_decay", "step", "loss", "norm", "elr"])
        for decay, *of_run in zip(decays, *(curve.tolist() for curve in curves), strict=True):
            table.writerows([[decay, step, *values] for step, values in enumerate(zip(*of_run, strict=True))])


def test_the_toy_in_the_plane(tmp_path: Path) -> None:
    assert check("P23", [], tmp_path).verdict == "cannot tell"
    write_plane(tmp_path)
    finding = check("P23", [], tmp_path)
    assert finding.verdict == "holds", finding.text
    assert len(drawn("P23", [], tmp_path)[0].panels) == 2
    write_plane(tmp_path, 1.5)
    assert check("P23", [], tmp_path).verdict == "does not"
