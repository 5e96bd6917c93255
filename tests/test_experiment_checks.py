"""What each experiment must show, judged on made-up runs that show it, that do not, and that cannot tell."""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lit_sphere.experiments import EXPERIMENTS, Finding, NotDrawn, judge
from lit_sphere.experiments.grids import grids_of
from lit_sphere.experiments.seeds import spanned
from lit_sphere.report.chart import Chart
from lit_sphere.report.metrics_csv import Series
from lit_sphere.report.runs import Run

STEPS = 12  # an epoch
EPOCHS = 60


def wave(epoch: int) -> float:
    """Wanders without a trend over any quarter of a run."""
    return 1 + 0.05 * math.sin(2.1 * epoch)


def falling(level: float) -> Callable[[int], float]:
    return lambda epoch: level + 2 * math.exp(-epoch)


def steady(level: float) -> Callable[[int], float]:
    return lambda epoch: level * wave(epoch)


Curve = Callable[[int], float]


def make_run(
    elr: float | None,
    curves: Mapping[str, Curve],
    folder: Path = Path("none"),
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    options: Mapping[str, Any] | None = None,
    callbacks: Sequence[Mapping[str, Any]] = (),
    more: Mapping[str, Series] | None = None,
    model: str = "SIConvNet",
) -> Run:
    """A run with these curves, a value an epoch."""
    arguments = {"width": 8, "elr": elr, "loss": "cross_entropy", **(options or {})}
    config = {
        "seed_everything": seed,
        "model": {"class_path": f"lit_sphere.modules.{model}", "init_args": arguments},
        "data": {"class_path": "lit_sphere.data.Digits", "init_args": {"train_size": 1500, "seed": seed}},
        "trainer": {"max_epochs": epochs, "callbacks": list(callbacks)},
    }
    at = list(range(epochs))
    steps = [STEPS * (epoch + 1) - 1.0 for epoch in at]
    series = {key: Series([float(e) for e in at], steps, [curve(e) for e in at]) for key, curve in curves.items()}
    return Run(folder, config, {**series, **(more or {})})


def curves_of(loss: Curve, error: float, sharpness: Curve, ess: float) -> dict[str, Curve]:
    groups = {"a": 4.0, "b": 2.0, "c": 1.0}
    found: dict[str, Curve] = {
        "train/loss": loss,
        "train/error": lambda _: error,
        "val/error": lambda _: error,
        "effective_grad_norm/total": sharpness,
        "ess/total": lambda _: ess,
        "angle/total": lambda _: math.atan(ess),
        "equilibrium/ess": lambda _: ess,
    }
    for name, elr in groups.items():
        found[f"elr/{name}"] = lambda epoch, elr=elr: elr * wave(epoch)  # type: ignore[misc]
        found[f"effective_grad_norm/{name}"] = lambda epoch, elr=elr: ess / elr / wave(epoch)  # type: ignore[misc]
        found[f"ess/{name}"] = lambda _: ess
    return found


def converging(elr: float, folder: Path = Path("none"), **options: Any) -> Run:
    """Ends lower the higher the ELR, on a profile that lies lower."""
    level = 1e-6 / elr
    loss = falling(level)
    return make_run(elr, curves_of(loss, 0.0, lambda e: 100 * loss(e) * elr**-0.1, 1e-4), folder, **options)


def equilibrium(elr: float, folder: Path = Path("none"), **options: Any) -> Run:
    return make_run(elr, curves_of(steady(60 * elr), 0.5, lambda e: wave(e) / elr, 0.8), folder, **options)


def diverging(elr: float, folder: Path = Path("none"), **options: Any) -> Run:
    return make_run(elr, curves_of(steady(6), 0.9, lambda e: 1e4 * elr * wave(e), 20.0), folder, **options)


def grid(**options: Any) -> list[Run]:
    runs = [converging(elr, **options) for elr in (1e-3, 1e-2)]
    runs += [equilibrium(elr, **options) for elr in (3e-2, 4e-2)]
    return [*runs, diverging(5e-1, **options)]


def check(id_: str, runs: Sequence[Run], *folders: Path) -> Finding:
    """In whatever order runs come."""
    found = EXPERIMENTS[id_].check(runs, folders)
    shuffled = list(runs)
    for seed in range(3):
        random.Random(seed).shuffle(shuffled)
        assert EXPERIMENTS[id_].check(shuffled, folders) == found
    assert found.text
    return found


def drawn(id_: str, runs: Sequence[Run], *folders: Path) -> list[Chart]:
    charts = EXPERIMENTS[id_].charts(runs, folders)
    assert not isinstance(charts, NotDrawn), charts.missing
    assert all(
        panel.curves and all(len(curve.x) for curve in panel.curves) for chart in charts for panel in chart.panels
    )
    return charts


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda each: each.id)
def test_without_runs_nothing_can_be_told_or_drawn(experiment: Any, tmp_path: Path) -> None:
    foreign = make_run(None, {"train/loss": falling(0.1)}, tmp_path)
    for runs in ([], [foreign], [converging(1e-3, tmp_path, epochs=5)]):
        found = experiment.check(runs, [tmp_path])
        assert found.verdict == "cannot tell"
        assert "Missing" in found.text
    assert isinstance(experiment.charts([], [tmp_path]), NotDrawn)


# --- several seeds -------------------------------------------------------------------------------------------


def levels_of_seeds(*levels: float) -> list[Run]:
    """Runs of E10, by the level of the loss at the higher ELR."""
    return [switched([2.0, level, 2.0], [3e-2, 4e-2, 3e-2], seed) for seed, level in enumerate(levels)]


def test_each_seed_must_show_it() -> None:
    experiment = EXPERIMENTS["E10"]
    found = judge(experiment, levels_of_seeds(3.0, 2.8, 4.0))
    assert found.verdict == "holds"
    assert found.text.startswith("Each of 3 seeds, from least…to greatest of them: Train loss 2, 2.8…4 and 2 at ELR")
    assert "That of a higher ELR is 1.40…2.00 times as high (must be above 1.15)." in found.text
    found = judge(experiment, levels_of_seeds(3.0, 2.1, 3.0))
    assert found.verdict == "does not"
    assert found.text.startswith("Seed 1 (does not): That of a higher ELR is 1.05 times")
    assert "Seed 0 (holds): " in found.text


def test_a_seed_that_a_check_leaves_out_is_seen() -> None:
    runs = levels_of_seeds(3.0, 0.2, 3.0)
    assert EXPERIMENTS["E10"].check(runs).verdict == "holds"
    found = judge(EXPERIMENTS["E10"], runs)
    assert found.verdict == "cannot tell"
    assert found.text.startswith("Seed 1 (cannot tell): Missing: a run in chaotic equilibrium")


def test_a_mean_over_seeds_does_not_hide_one() -> None:
    low = [whole_space(0.03, seed=seed) for seed in range(3)]
    high = [whole_space(100.0, level=5.0, error=0.9, seed=seed) for seed in range(3)]
    between = [whole_space(lr, apart=apart, seed=seed) for seed in range(3) for lr, apart in ((0.5, 20), (1.0, 8))]
    assert judge(EXPERIMENTS["P10"], [*low, *between, *high]).verdict == "holds"
    between[1] = whole_space(1.0, apart=20, seed=0)
    assert EXPERIMENTS["P10"].check([*low, *between, *high]).verdict == "holds"
    found = judge(EXPERIMENTS["P10"], [*low, *between, *high])
    assert found.verdict == "does not"
    assert found.text.startswith("Seed 0 (does not): Where there are periods")


def test_seeds_are_judged_together_too() -> None:
    runs = [each for seed in range(2) for each in rates_of(seed)]
    assert [EXPERIMENTS["E17"].check(rates_of(seed)).verdict for seed in range(2)] == ["holds", "holds"]
    found = judge(EXPERIMENTS["E17"], runs)
    assert found.verdict == "cannot tell"
    assert found.text.startswith("All seeds together (cannot tell): Missing: jumps in periods")


def rates_of(seed: int) -> list[Run]:
    """E17 with each seed, but at which learning rate there are periods depends on it."""
    periods = [whole_space(0.5, apart=20), whole_space(1.0, level=1.0, error=0.4)]
    if seed:
        periods = [whole_space(0.5, seed=seed), whole_space(1.0, apart=8, seed=seed)]
    rest = [whole_space(10.0, level=1.0, error=0.4, seed=seed), whole_space(100.0, level=5.0, error=0.9, seed=seed)]
    return [whole_space(0.03, seed=seed), *periods, *rest]


def test_seeds_of_other_runs_are_judged_together() -> None:
    """Each seed alone would lack what the others have."""
    runs = [converging(1e-3, seed=0), converging(1e-2, seed=1)]
    runs += [equilibrium(3e-2, seed=1), equilibrium(4e-2, seed=2), diverging(5e-1, seed=0)]
    found = judge(EXPERIMENTS["E1"], runs)
    assert found == EXPERIMENTS["E1"].check(runs)
    assert found.verdict == "holds"


def test_only_texts_of_the_same_words_are_one() -> None:
    slopes = [f"ELR 0.01 → 1e-3: slope −{slope}." for slope in ("0.92", "1.1", "1")]
    assert spanned(slopes) == "ELR 0.01 → 1e-3: slope −1.1…−0.92."
    assert spanned(["ResNet20 has 3 periods.", "ResNet18 has 3 periods."]) is None
    assert spanned(["There are no periods.", "There are 2 periods."]) is None
    assert spanned(["It is 9%."]) == "It is 9%."


# --- grids ---------------------------------------------------------------------------------------------------


def test_three_regimes() -> None:
    found = check("E1", grid())
    assert found.verdict == "holds"
    assert "Convergence at ELR 0.001 to 0.01" in found.text
    (chart,) = drawn("E1", grid())
    assert [len(panel.curves) for panel in chart.panels] == [5, 5, 5, 5]


@pytest.mark.parametrize("left_out", [0, 2, 4])
def test_a_regime_that_is_missing_cannot_be_told(left_out: int) -> None:
    runs = grid()
    del runs[left_out]
    assert check("E1", runs).verdict == "cannot tell"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (converging(1.0), "Out of order"),
        (make_run(5e-3, curves_of(falling(5e-3), 0, falling(9), 1e-4)), "do not both fall"),
        (make_run(6e-2, curves_of(steady(0.9), 0.5, steady(9), 0.8)), "the loss does not rise"),
        (make_run(1.0, curves_of(steady(6), 0.9, steady(2), 20)), "stays near that of the start"),
    ],
)
def test_three_regimes_that_are_not(wrong: Run, words: str) -> None:
    found = check("E1", [*grid(), wrong])
    assert found.verdict == "does not"
    assert words in found.text


def test_settings_are_judged_apart() -> None:
    other = [each for each in grid(options={"width": 16}) if each.elr != 5e-1]
    assert check("E1", [*grid(), *other]).verdict == "holds"
    wrong = [*grid(options={"width": 16}), converging(1.0, options={"width": 16})]
    found = check("E1", [*grid(), *wrong])
    assert found.verdict == "does not"
    assert "width 16" in found.text.partition("(does not)")[0]
    assert [chart.id for chart in drawn("E1", [*grid(), *other])] == ["E1-1", "E1-2"]


def test_profiles() -> None:
    found = check("E3", grid())
    assert found.verdict == "holds"
    assert "0.79 times" in found.text
    higher = make_run(1e-2, curves_of(falling(1e-4), 0, lambda e: 900 * falling(1e-4)(e), 1e-4))
    assert check("E3", [converging(1e-3), higher]).verdict == "does not"
    steeper = make_run(1e-2, curves_of(falling(1e-4), 0, lambda e: 9 * falling(1e-4)(e) ** 1.5, 1e-4))
    found = check("E3", [converging(1e-3), steeper])
    assert found.verdict == "does not"
    assert "slopes" in found.text
    assert check("E3", [converging(1e-3), converging(1.5e-3)]).verdict == "cannot tell"
    drawn("E3", grid())


def test_small_networks() -> None:
    def small(elr: float, curves: dict[str, Curve], **options: Any) -> Run:
        return make_run(elr, curves, options={"width": 1}, **options)

    runs = [
        small(1e-3, curves_of(lambda e: 1 / (1 + 0.1 * e), 0.3, steady(5), 1e-4)),
        small(3e-2, curves_of(steady(1), 0.5, steady(5), 0.8)),
        small(3e-1, curves_of(steady(6), 0.9, steady(50), 20)),
    ]
    assert check("E21", runs).verdict == "holds"
    assert check("E21", [*runs, small(1e-2, curves_of(falling(1e-3), 0, falling(1), 1e-4))]).verdict == "does not"
    assert (
        check("E21", [*runs, small(1e-2, curves_of(steady(1), 0.5, steady(5), 0.8), epochs=30)]).verdict
        == "cannot tell"
    )
    assert check("E21", grid()).verdict == "cannot tell"
    # They are no runs of E1, which says so.
    told = EXPERIMENTS["E1"].charts(runs)
    assert isinstance(told, NotDrawn)
    assert told.missing.endswith("with cross-entropy (SIConvNet of width 1 on Digits, too small to converge, is E21's)")
    assert told.missing in check("E1", runs).text
    assert check("E1", runs).verdict == "cannot tell"
    drawn("E21", runs)


def test_other_networks() -> None:
    mlp, transformer = grid(model="SIMLP"), grid(model="SITransformer")
    assert check("E22", [*mlp, *transformer, *grid()]).verdict == "holds"
    found = check("E22", mlp)
    assert found.verdict == "cannot tell"
    assert found.text.startswith("SITransformer (cannot tell): Missing: runs")
    assert "SIMLP (holds): " in found.text
    assert check("E22", [*mlp, *transformer[:-1]]).verdict == "cannot tell"
    assert check("E22", [*mlp, *transformer, *grid(model="SIMLP", options={"width": 9})[:-1]]).verdict == "holds"
    assert check("E22", [*mlp, *transformer, diverging(2e-3, model="SIMLP")]).verdict == "does not"
    assert check("E1", [*mlp, *transformer]).verdict == "cannot tell"
    assert check("E1", [*grid(), *mlp, diverging(2e-3, model="SIMLP")]).verdict == "holds"
    assert len(drawn("E22", [*mlp, *transformer])) == 2


def test_norms_tell_settings_apart_and_runs_without_the_option_had_batch_norm() -> None:
    older = [converging(elr) for elr in (1e-3, 1e-2)]
    newer = [equilibrium(3e-2, options={"normalisation": "batch"}), diverging(5e-1, options={"normalisation": "batch"})]
    other = grid(options={"normalisation": "layer"})
    found = {each.name: each.elrs for each in grids_of([*older, *newer, *other])}
    assert found == {
        "SIConvNet of width 8 on Digits": [1e-3, 1e-2, 3e-2, 5e-1],
        "SIConvNet of width 8 with layer norm on Digits": [1e-3, 1e-2, 3e-2, 4e-2, 5e-1],
    }


def test_seeds() -> None:
    runs = [run for seed in range(3) for run in grid(seed=seed)]
    assert check("E23", runs).verdict == "holds"
    assert check("E23", grid()).verdict == "cannot tell"
    assert check("E23", [*runs, diverging(1e-3, seed=3)]).verdict == "does not"
    undecided = make_run(1e-3, curves_of(lambda e: 1 / (1 + 0.1 * e), 0.3, steady(5), 1e-4), seed=3)
    assert check("E23", [*runs, undecided]).verdict == "cannot tell"
    (chart,) = drawn("E23", runs)
    assert all(curve.low is not None for curve in chart.panels[0].curves)
    of_heads = [run for head in range(2) for run in grid(options={"head_seed": head})]
    found = check("E23", of_heads)
    assert found.verdict == "holds"
    assert "ELR 0.001, 2 seeds" in found.text


def beside(walk: float = 6.5, ascent: float = 9.0, distance: float = 0.97) -> list[Run]:
    """SGD that diverges, a random walk and gradient ascent, of two seeds."""
    runs = []
    for optimizer, loss in ((None, 7.5), ("RandomWalk", walk), ("GradientAscent", ascent)):
        named = None if optimizer is None else {"class_path": f"lit_sphere.optim.{optimizer}", "init_args": {}}
        for seed in range(2):
            curves = curves_of(steady(loss + seed), 0.9, steady(2e3), 20.0) | {"distance/total": lambda _: distance}
            runs.append(make_run(0.2, curves, seed=seed, options={"optimizer": named}))
    return runs


def test_beside_a_random_walk() -> None:
    found = check("E13", beside())
    assert found.verdict == "holds"
    assert "The train loss of the random walk lies below that of SGD: 6.5 against 7.5, 7.5 against 8.5;" in found.text
    assert "; 0.88 times at the closest (must be below 0.98)." in found.text
    assert check("E13", beside(walk=7.45)).verdict == "does not"
    assert check("E13", beside(ascent=7.0)).verdict == "does not"
    correlated = check("E13", beside(distance=0.5))
    assert correlated.verdict == "does not"
    assert correlated.text.startswith("The mean cosine between consecutive iterates is at most 0.5 in SGD")
    assert "Missing: runs of gradient ascent" in check("E13", beside()[:4]).text
    others = [converging(0.2), converging(0.2, seed=1), *beside()[2:]]
    assert "an ELR at which SGD diverges" in check("E13", others).text
    (chart,) = drawn("E13", beside())
    assert [curve.label for curve in chart.panels[0].curves] == ["SGD", "random walk", "gradient ascent"]
    # They are no runs of SGD at another ELR.
    assert check("E1", [*grid(), *beside()[2:]]).verdict == "holds"


def noisy(
    noise: float, peak: float, end: float, seed: int = 0, sharpest: int = 20, width: int = 8, fitted_at: int = 30
) -> Run:
    """Its test error has a peak at epoch 20, in percent."""

    def bump(epoch: int, at: int = 20) -> float:
        return math.exp(-(((epoch - at) / 6) ** 2))

    curves: dict[str, Curve] = {
        "train/loss": falling(1e-3),
        "val/error": lambda e: 0.05 + (end - 0.05) * (e > 20) + (peak - end) * bump(e),
        "effective_grad_norm/total": lambda e: 1.0 + 40 * bump(e, sharpest),
        "train/error_clean": lambda e: 0.03 * (e < 30),
        "train/error_corrupted": lambda e: max(0.0, 1 - e / fitted_at),
    }
    run = make_run(1e-3, curves, seed=seed, options={"width": width})
    run.config["data"]["init_args"]["label_noise"] = noise
    return run


def test_double_descent() -> None:
    runs = [noisy(0.0, 0.05, 0.05), *(noisy(0.2, 0.2, 0.1, seed) for seed in range(2)), noisy(0.4, 0.5, 0.2)]
    found = check("E16", runs)
    assert found.verdict == "holds"
    assert "at label noise 0, 0.2 and 0.4" in found.text
    assert "Label noise 0.4: the test error falls to 5 %, rises to" in found.text
    assert check("E16", [*runs[:3], noisy(0.4, 0.15, 0.1)]).verdict == "does not", "less with more noise"
    assert check("E16", [*runs[:3], noisy(0.4, 0.5, 0.49)]).verdict == "does not", "no descent"
    assert check("E16", [*runs[:3], noisy(0.4, 0.5, 0.2, sharpest=45)]).verdict == "does not", "peaks elsewhere"
    assert check("E16", runs[1:3]).verdict == "cannot tell"
    assert check("E16", [*runs, noisy(0.4, 0.1, 0.1, width=16)]).verdict == "holds", "settings are judged apart"
    (chart,) = drawn("E16", runs)
    assert [curve.label for curve in chart.panels[0].curves] == [
        f"label noise {noise}" for noise in ("0", "0.2", "0.4")
    ]
    unfitted = check("E16", [*runs[:3], noisy(0.4, 0.5, 0.2, fitted_at=300)])
    assert unfitted.verdict == "cannot tell"
    assert "long and wide enough to fit all labels" in unfitted.text


def test_squared_error() -> None:
    options = {"loss": "mse"}
    runs = [make_run(1e-3, curves_of(falling(1e-4), 0, falling(1), 1e-4), options=options)]
    runs += [equilibrium(3e-2, options=options), diverging(0.5, options=options)]
    assert check("E25", runs).verdict == "holds"
    assert check("E25", grid()).verdict == "cannot tell"
    assert check("E25", [*runs, diverging(1e-2, options=options)]).verdict == "does not"
    assert check("E1", runs).verdict == "cannot tell"
    drawn("E25", runs)


def test_distances() -> None:
    found = check("E26", grid())
    assert found.verdict == "holds"
    near = make_run(3e-2, curves_of(steady(2), 0.5, steady(9), 0.8) | {"angle/total": lambda _: 1.3})
    assert check("E26", [*grid(), near]).verdict == "does not"
    # Where the distance itself was logged, which is no function of the mean angle, it is taken.
    logged = curves_of(steady(2), 0.5, steady(9), 0.8) | {"angle/total": lambda _: 1.3, "distance/total": lambda _: 0.2}
    assert check("E26", [*grid(), make_run(3e-2, logged)]).verdict == "holds"
    assert check("E26", grid()[:4]).verdict == "cannot tell"
    drawn("E26", grid())


# --- step sizes ----------------------------------------------------------------------------------------------


def test_equal_steps(tmp_path: Path) -> None:
    assert check("E7", [equilibrium(3e-2)]).verdict == "holds"
    assert check("E7", [converging(1e-3), diverging(0.5)]).verdict == "cannot tell"
    lines = ["group,elr,effective_grad_norm,ess,scale_invariant"]
    lines += [f"g{i},{2.0**i},{3 * 2.0**-i},3,1" for i in range(8)]
    (tmp_path / "equal_ess.csv").write_text("\n".join([*lines, "gain,1,1000,1000,0"]) + "\n")
    found = check("E7", [equilibrium(3e-2, tmp_path)])
    assert found.verdict == "holds"
    assert "8 groups" in found.text
    (points, line) = drawn("E7", [equilibrium(3e-2, tmp_path)])[0].panels[0].curves
    assert (points.kind, len(points.x), line.dash) == ("points", 8, "dashed")
    (tmp_path / "equal_ess.csv").write_text("\n".join([*lines[:1], *(f"g{i},{2.0**i},3,3,1" for i in range(8))]) + "\n")
    assert check("E7", [equilibrium(3e-2, tmp_path)]).verdict == "does not"


def test_settling() -> None:
    run = equilibrium(3e-2)
    assert check("E8", [run]).verdict == "holds"
    (chart,) = drawn("E8", [run])
    assert [len(panel.curves) for panel in chart.panels] == [6, 3]
    curves = curves_of(steady(2), 0.5, steady(9), 0.8)
    assert check("E8", [make_run(3e-2, curves | {"elr/a": lambda e: 4 * 1.1**e})]).verdict == "does not"
    assert check("E8", [make_run(3e-2, curves | {"elr/a": lambda _: 9.0})]).verdict == "does not"
    del curves["equilibrium/ess"]
    assert check("E8", [make_run(3e-2, curves)]).verdict == "cannot tell"


# --- paths ---------------------------------------------------------------------------------------------------


def write_path(file: Path, ends: tuple[float, float], middle: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"0,{ends[0]},0,0", f"0.5,{middle},0,0", f"1,{ends[1]},0,0"]
    file.write_text("position,train_loss,train_error,val_error\n" + "\n".join(rows) + "\n")


def fine_tuned(folder: Path, elrs: tuple[float, float], barrier: float, jump: float, last: float, cosine: float) -> Run:
    """Converges, goes over at epoch 30, jumps, converges again."""

    def loss(epoch: int) -> float:
        return falling(1e-3)(epoch) if epoch < 30 else jump if epoch == 30 else last

    write_path(folder / "barrier-switch-1-to-0060.csv", (1e-3, last), barrier + (1e-3 + last) / 2)
    more = {
        "switch/elr": Series([30.0], [30.0 * STEPS - 1], [elrs[1]]),
        "barrier/cosine": Series([60.0], [60.0 * STEPS - 1], [cosine]),
    }
    return make_run(elrs[0], curves_of(loss, 0, steady(1), 1e-4), folder, more=more)


def test_fine_tuning(tmp_path: Path) -> None:
    down = fine_tuned(tmp_path / "down", (1e-2, 1e-3), 0.0, 1e-3, 9e-4, 0.99)
    up = fine_tuned(tmp_path / "up", (1e-4, 2e-2), 0.9, 2.0, 1e-4, 0.01)
    flat = fine_tuned(tmp_path / "flat", (1e-3, 2e-2), 0.01, 2e-3, 5e-4, 0.9)
    assert check("E4", [down, up]).verdict == "holds"
    assert check("E4", [down, up, flat]).verdict == "holds"
    assert (
        check("E4", [down]).verdict == check("E4", [up]).verdict == check("E4", [down, flat]).verdict == "cannot tell"
    )
    assert len(drawn("E4", [down, up, flat])) == 3
    for number, (wrong, words) in enumerate(
        [
            (((1e-2, 1e-3), 0.2, 1e-3, 9e-4, 0.99), "not below 0.05"),
            (((1e-2, 1e-3), 0.0, 1e-3, 9e-4, 0.5), "cosine of the weights is 0.500"),
            (((1e-2, 1e-3), 0.0, 1e-3, 2e-2, 0.99), "It ends at a train loss of 0.02"),
            (((1e-4, 2e-2), 0.1, 2.0, 1e-4, 0.01), "The barrier to where it was is 0.1"),
            (((1e-4, 2e-2), 0.9, 2.0, 5e-3, 0.01), "no lower than before"),
            (((1e-4, 2e-2), 0.9, 1e-3, 5e-4, 0.9), "it does not jump"),
        ]
    ):
        found = check("E4", [down, up, fine_tuned(tmp_path / str(number), *wrong)])
        assert found.verdict == "does not"
        assert words in found.text


def test_barriers(tmp_path: Path) -> None:
    low, high = converging(1e-3, tmp_path / "low"), converging(1e-2, tmp_path / "high")
    down = fine_tuned(tmp_path / "down", (1e-2, 1e-3), 0.0, 1e-3, 9e-4, 0.99)
    up = fine_tuned(tmp_path / "up", (1e-4, 2e-2), 0.9, 2.0, 1e-4, 0.01)
    runs = [low, high, down, up]
    for run in runs:
        run.folder.mkdir(exist_ok=True)
    assert check("E6", runs).verdict == "cannot tell"
    ends = {"start": "x/low/checkpoints/last.ckpt", "end": "y/high/checkpoints/last.ckpt"}  # moved since
    for barrier, verdict in ((0.4, "holds"), (0.05, "does not")):
        write_path(tmp_path / "between" / "interpolation.csv", (1e-3, 1e-3), barrier + 1e-3)
        (tmp_path / "between" / "interpolation.json").write_text(json.dumps({**ends, "cosine": 0.3}))
        found = check("E6", runs)
        assert found.verdict == verdict
        assert f"{barrier} between ELR 0.001 and 0.01" in found.text
    (chart,) = drawn("E6", runs)
    assert [curve.label for curve in chart.panels[0].curves if curve.label != "chord"] == [
        "optima of 0.001 and 0.01: barrier 0.05",
        "fine-tuned 0.01 → 0.001: barrier 0",
        "fine-tuned 0.0001 → 0.02: barrier 0.9",
    ]
    (tmp_path / "between" / "interpolation.csv").write_text("position,train_loss\n0,")
    assert check("E6", runs).verdict == "cannot tell"


def test_paths_in_equilibrium(tmp_path: Path) -> None:
    more = {"barrier/cosine": Series([20.0, 40.0], [1.0, 2.0], [0.2, 0.3])}
    run = equilibrium(3e-2, tmp_path, more=more)
    for middle, verdict in ((1.0, "holds"), (1.9, "does not")):
        write_path(tmp_path / "barrier-0020-to-0040.csv", (2.0, 2.0), middle)
        write_path(tmp_path / "barrier-0040-to-0060.csv", (2.0, 2.0), 2.05)
        assert check("E9", [run]).verdict == verdict
    turned = equilibrium(3e-2, tmp_path, more={"barrier/cosine": Series([20.0, 40.0], [1.0, 2.0], [0.2, 0.9])})
    assert check("E9", [turned]).verdict == "does not"
    assert len(drawn("E9", [run])[0].panels[0].curves) == 4
    (tmp_path / "barrier-0040-to-0060.csv").unlink()
    assert check("E9", [run]).verdict == "cannot tell"


# --- switches ------------------------------------------------------------------------------------------------


def switched(losses: Sequence[float], elrs: Sequence[float], seed: int = 0) -> Run:
    """Thirty epochs at each ELR, at these levels."""
    at = [30 * i for i in range(1, len(elrs))]
    steps = [STEPS * epoch - 1.0 for epoch in at]
    more = {"switch/elr": Series([float(epoch) for epoch in at], steps, list(elrs[1:]))}
    error = 0.5 if losses[-1] > 0.1 else 0.0
    curves = curves_of(lambda e: losses[e // 30] * wave(e), error, steady(9), 0.8 if losses[-1] > 0.1 else 1e-4)
    return make_run(elrs[0], curves, seed=seed, epochs=30 * len(elrs), more=more)


def test_levels() -> None:
    run = switched([2.0, 3.0, 2.1], [3e-2, 4e-2, 3e-2])
    assert check("E10", [run]).verdict == "holds"
    assert check("E10", [switched([2.0, 2.1, 2.0], [3e-2, 4e-2, 3e-2])]).verdict == "does not"
    assert check("E10", [switched([2.0, 3.0, 2.6], [3e-2, 4e-2, 3e-2])]).verdict == "does not"
    assert check("E10", [switched([2.0, 3.0], [3e-2, 4e-2])]).verdict == "cannot tell"
    assert check("E10", [equilibrium(3e-2)]).verdict == "cannot tell"
    (panel,) = drawn("E10", [run])[0].panels
    assert [mark.x for mark in panel.marks] == [29.5, 59.5]


def test_leaving_the_equilibrium() -> None:
    run = switched([2.0, 1e-3], [3e-2, 1e-2])
    assert check("E11", [run]).verdict == "holds"
    assert check("E11", [switched([2.0, 0.4], [3e-2, 1e-2])]).verdict == "cannot tell", "thirty epochs only"
    long = switched([2.0, 0.4, 0.4, 0.4], [3e-2, 1e-2, 1e-2, 1e-2])
    assert check("E11", [long]).verdict == "cannot tell", "three switches"
    assert check("E11", [switched([1e-3, 1e-3], [1e-2, 1e-3])]).verdict == "cannot tell", "from convergence"
    drawn("E11", [run])


def test_a_run_that_does_not_leave() -> None:
    more = {"switch/elr": Series([30.0], [30.0 * STEPS - 1], [1e-2])}
    run = make_run(3e-2, curves_of(steady(2), 0.5, steady(9), 0.8), epochs=100, more=more)
    assert check("E11", [run]).verdict == "does not"


def test_borders() -> None:
    fall = make_run(2.4e-2, curves_of(lambda e: 2 * wave(e) if e < 25 else 1e-3, 0.0, steady(9), 1e-3))
    dipping = curves_of(lambda e: 4.0 if e % 10 == 5 else 6 * wave(e), 0.9, steady(50), 2.5)
    escapes = make_run(5e-2, dipping)
    found = check("E14", [fall, escapes, *grid()])
    assert found.verdict == "holds"
    assert "up to epoch 24, and below 1e-2 since epoch 25" in found.text
    assert check("E14", [fall, *grid()]).verdict == check("E14", [escapes, *grid()]).verdict == "cannot tell"
    slow = make_run(2.4e-2, curves_of(lambda e: 2 * 0.7**e, 0.0, steady(9), 1e-3))
    assert check("E14", [slow, escapes]).verdict == "cannot tell"
    drawn("E14", [fall, escapes])


# --- optimizers ----------------------------------------------------------------------------------------------


def compared(ours: float, theirs: float, loss: float = 1.0, unforgetting: float | None = None) -> Run:
    start = 1e-5
    last = {
        "start_distance_max": start,
        "AdaGradG_distance_max": ours,
        "AdaGrad_distance_max": theirs,
        "run_loss": 1.0,
        "AdaGradG_loss": loss,
    }
    if unforgetting is not None:
        last["AdaGradG_unforgetting_distance_max"] = unforgetting
    more = {f"optimizer_comparison/{key}": Series([0.0], [10.0], [value]) for key, value in last.items()}
    network = {"network": {"class_path": "lit_sphere.networks.ResNet20", "init_args": {"affine": False}}}
    return make_run(None, {"train/loss": falling(0.1)}, options=network, more=more)


def test_adagrad_g() -> None:
    assert check("R11", [compared(1e-11, 2e-3)]).verdict == "holds"
    assert check("R11", [compared(1e-11, 2e-3, unforgetting=1e-9)]).verdict == "holds"
    for wrong in (compared(1e-6, 2e-3), compared(1e-11, 1e-5), compared(1e-11, 2e-3, loss=1.1)):
        assert check("R11", [wrong]).verdict == "does not"
    assert check("R11", [compared(1e-11, 2e-3, unforgetting=1.5e-11)]).verdict == "does not"
    drawn("R11", [compared(1e-11, 2e-3)])


def in_space(optimizer: str, radial: float, ess: float, length: float, momentum: float = 0.0) -> Run:
    options = {"optimizer": {"class_path": f"torch.optim.{optimizer}", "init_args": {"lr": 0.1, "momentum": momentum}}}
    maxima = {"radial": radial, "ess": ess, "step_length": 2 * length}
    curves: dict[str, Curve] = {"train/loss": falling(0.1), "step_length/max": lambda e: length / (1 + e) ** 2}
    for key, value in maxima.items():
        curves[f"{key}/step_max"] = lambda e, value=value: value / (1 + e) ** 2  # type: ignore[misc]
    return make_run(None, curves, options=options)


def test_small_terms() -> None:
    plain = in_space("SGD", 1e-4, 1.5, 0.09)
    momentum, adam = in_space("SGD", 0.1, 0.2, 0.01, momentum=0.9), in_space("Adam", 4e-3, 0.03, 0.01)
    runs = [plain, momentum, adam]
    assert [check(id_, runs).verdict for id_ in ("R12", "R13", "R14")] == ["holds"] * 3
    assert check("R12", [plain, momentum]).verdict == check("R13", [momentum, adam]).verdict == "cannot tell"
    assert check("R14", [momentum, adam]).verdict == "cannot tell"
    assert check("R12", [momentum, in_space("Adam", 0.9, 0.03, 0.01)]).verdict == "does not"
    assert check("R13", [*runs, in_space("SGD", 1e-4, 3.2, 0.09)]).verdict == "does not"
    assert check("R14", [in_space("SGD", 1e-4, 1.5, 0.3)]).verdict == "does not"
    for id_ in ("R12", "R13", "R14"):
        drawn(id_, runs)


# --- the toy -------------------------------------------------------------------------------------------------


def write_toy(folder: Path, level: float = 1.0, off: float = 1.0) -> None:
    folder.mkdir(exist_ok=True)
    rows = ["elr,predicted_loss,mean_loss,low_10,median,high_90,regime"]
    for elr in (0.05, 0.1, 0.14, 0.2, 0.25, 0.5, 1.0):
        predicted = max(0.0, (7 - 1 / elr) / 2)
        regime = "convergence" if elr < 1 / 7 else "chaotic equilibrium" if elr < 2 / 7 else "divergence"
        rows.append(f"{elr},{predicted},{predicted},{predicted},{level * predicted},{predicted},{regime}")
    (folder / "toy.csv").write_text("\n".join(rows) + "\n")
    rows = ["elr,alpha,step,median_elr,predicted_elr"]
    for step in (50, 100, 150, 200):
        rows += [f"0.2,{alpha},{step},{off * 1.4 / alpha},{1.4 / alpha}" for alpha in (1, 2, 4)]
    (folder / "toy_elrs.csv").write_text("\n".join(rows) + "\n")


def test_toy(tmp_path: Path) -> None:
    toy = tmp_path / "toy"
    write_toy(toy)
    for folder in (toy, tmp_path):
        assert check("T7", [], folder).verdict == check("T8", [], folder).verdict == "holds"
    assert len(drawn("T8", [], toy)[0].panels[0].curves) == 6
    drawn("T7", [], toy)
    write_toy(toy, level=1.2, off=1.2)
    assert check("T7", [], toy).verdict == check("T8", [], toy).verdict == "does not"
    (toy / "toy.csv").write_text("weight_decay,step,loss\n0,0,1\n")
    assert check("T7", [], toy).verdict == "cannot tell"


# --- the whole space -----------------------------------------------------------------------------------------


def jumping(epochs_apart: int, lowest: float, peak: float) -> tuple[Curve, Curve]:
    """Loss and norm of a run in periods; the norm rises over a part of each."""

    def place(epoch: int) -> float:
        return (epoch % epochs_apart) / epochs_apart

    def loss(epoch: int) -> float:
        return max(lowest, 2 * math.exp(-14 * place(epoch)))

    def norm(epoch: int) -> float:
        at = place(epoch)
        return 2 + 4 * (at / peak if at < peak else (1 - at) / (1 - peak))

    return loss, norm


def whole_space(
    lr: float,
    decay: float = 1e-2,
    apart: int = 0,
    lowest: float = 1e-3,
    *,
    level: float | None = None,
    error: float = 0.0,
    warm: int = 1,
    peak: float = 0.0,
    elr: float = 0.01,
    optimizer: str = "SGD",
    momentum: float = 0.0,
    model: Mapping[str, Any] | None = None,
    network: str = "SIConvNet",
    data: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Run:
    """A run under weight decay: in periods, or at a level, or converging."""
    loss, norm = falling(1e-3) if level is None else steady(level), steady(3)
    if apart:
        loss, norm = jumping(apart, lowest, peak)
    ess = 1e-4 if level is None else 20.0 if error > 0.85 else 0.8
    curves = {
        **curves_of(loss, error, steady(ess / elr), ess),
        "norm/total": norm,
        "elr/total": lambda epoch: elr if epoch >= warm else elr / 10,
    }
    options = {"lr": lr, "weight_decay": decay, "momentum": momentum}
    made = {"class_path": f"torch.optim.{optimizer}", "init_args": options}
    run = make_run(None, curves, seed=seed, options={"optimizer": made, "head_norm": 10.0, **(model or {})})
    run.config["model"]["class_path"] = f"lit_sphere.modules.{network}"
    run.config["data"]["init_args"].update(data or {})
    return run


def rates() -> list[Run]:
    return [
        whole_space(0.03),
        whole_space(0.5, apart=20),
        whole_space(1.0, apart=8),
        whole_space(10.0, level=1.0, error=0.4),
        whole_space(100.0, level=5.0, error=0.9),
    ]


def test_numbers_of_periods() -> None:
    found = check("P10", rates())
    assert found.verdict == "holds", found.text
    for words in ("0 at LR 0.03, 2 at LR 0.5, 7 at LR 1, 0 at LR 10", "never comes below 4.8"):
        assert words in found.text
    assert "by 100-fold ones, which PeriodMonitor names: 0 at LR 0.03, 2 at LR 0.5, 7 at LR 1" in found.text
    fewer = [*rates()[:2], whole_space(1.0, apart=30), *rates()[3:]]
    assert check("P10", fewer).verdict == "does not"
    assert check("P10", [whole_space(0.03, apart=9), *rates()[1:]]).verdict == "does not"
    assert check("P10", [*rates()[:3], whole_space(10.0)]).verdict == "does not"  # it converges
    assert check("P10", rates()[:2]).verdict == "cannot tell"
    assert len(drawn("P10", rates())) == 1


def test_three_regimes_in_the_whole_space() -> None:
    found = check("E17", rates())
    assert found.verdict == "holds", found.text
    assert "0.5 periods; 1 periods; 10 chaotic equilibrium; 100 divergence" in found.text
    assert check("E17", rates()[:4]).verdict == "cannot tell"
    swapped = [*rates()[:3], whole_space(10.0, level=5.0, error=0.9), whole_space(100.0, level=1.0, error=0.4)]
    assert check("E17", swapped).verdict == "does not"
    other_seed = whole_space(100.0, level=1.0, error=0.4, seed=1)
    assert check("E17", [*rates(), other_seed]).verdict == "cannot tell"
    assert len(drawn("E17", rates())) == 1


def test_no_periods_at_the_extremes() -> None:
    decays = [whole_space(1.0, 1e-3), whole_space(1.0, 1e-1, level=1.0, error=0.4)]
    found = check("P15", [*rates(), *decays])
    assert found.verdict == "holds", found.text
    assert "At WD 0.1, the highest" in found.text
    assert "At LR 100, the highest" in found.text
    assert check("P15", rates()).verdict == "cannot tell"
    assert check("P15", [*rates(), decays[0], whole_space(1.0, 1e-1, apart=10)]).verdict == "does not"
    assert len(drawn("P15", [*rates(), *decays])) == 2


def test_one_product() -> None:
    def runs(**options: Any) -> list[Run]:
        return [whole_space(1.0, 1e-2, 10), whole_space(10.0, 1e-3, **{"apart": 12, "warm": 12, **options})]

    found = check("P14", runs())
    assert found.verdict == "holds", found.text
    for wrong in ({"apart": 2, "lowest": 1e-8}, {"elr": 0.05}, {"lowest": 0.05}, {"warm": 1}):
        assert check("P14", runs(**wrong)).verdict == "does not", wrong
    assert check("P14", runs(apart=50)).verdict == "cannot tell"
    assert check("P14", [whole_space(1.0, apart=10), whole_space(3.0, apart=10)]).verdict == "cannot tell"
    assert len(drawn("P14", runs())) == 1


def test_norms_of_the_head() -> None:
    low = whole_space(1.0, level=1.5, error=0.0, model={"head_norm": 0.3})
    found = check("P16", [low, whole_space(1.0, apart=10)])
    assert found.verdict == "holds", found.text
    assert check("P16", [low, whole_space(1.0)]).verdict == "does not"
    assert check("P16", [low]).verdict == "cannot tell"
    assert check("P16", [whole_space(1.0, apart=10, model={"head_norm": 0.3}), whole_space(1.0, apart=10)]).verdict == (
        "does not"
    )
    assert len(drawn("P16", [low, whole_space(1.0, apart=10)])) == 1


@pytest.mark.parametrize(
    ("id_", "kinds"),
    [
        ("P18", [{"momentum": 0.9}, {"data": {"augment": True}}, {"network": "PracticalConvNet"}]),
        ("P19", [{"model": {"normalisation": "layer"}}, {"model": {"normalisation": "instance"}}]),
        ("P20", [{"optimizer": "Adam"}]),
    ],
)
def test_periods_remain(id_: str, kinds: list[dict[str, Any]]) -> None:
    runs = [whole_space(1.0, apart=10, **kind) for kind in kinds]
    found = check(id_, [*runs, whole_space(1.0)])
    assert found.verdict == "holds", found.text
    swings = [whole_space(1.0, apart=10, lowest=0.04, **kind) for kind in kinds]
    told = check(id_, swings)
    assert told.verdict == "holds", told.text
    assert "by 10-fold swings of the loss: 5 (LR 1); by 100-fold ones, which PeriodMonitor names: 0." in told.text
    assert check(id_, runs[1:]).verdict == "cannot tell"
    assert check(id_, [whole_space(1.0, **kinds[0]), *runs[1:]]).verdict == "does not"
    assert sum(len(panel.curves) for panel in drawn(id_, runs)[0].panels) == 3 * len(kinds)


def test_gradient_descent() -> None:
    descent = whole_space(1.0, apart=10, data={"full_batch": True})
    stochastic = whole_space(1.0, apart=10, peak=0.7)
    found = check("P21", [descent, stochastic])
    assert found.verdict == "holds", found.text
    assert (
        check(
            "P21", [whole_space(1.0, apart=10, peak=0.7, data={"full_batch": True}), whole_space(1.0, apart=10)]
        ).verdict
        == "does not"
    )
    assert check("P21", [descent]).verdict == "cannot tell"
    assert check("P21", [stochastic]).verdict == "cannot tell"
    assert check("P21", [whole_space(1.0, data={"full_batch": True}), stochastic]).verdict == "does not"
    assert len(drawn("P21", [descent, stochastic])) == 2


# --- conventional training -----------------------------------------------------------------------------------


def conventional(
    lr: float, loss: Curve, sharpness: Curve, *, error: float = 0.1, schedule: Curve | None = None, epochs: int = EPOCHS
) -> Run:
    made = {"class_path": "torch.optim.SGD", "init_args": {"lr": lr, "momentum": 0.9, "weight_decay": 1e-2}}
    curves: dict[str, Curve] = {LOSS: loss, "effective_grad_norm/total": sharpness, "val/error": lambda _: error}
    more: dict[str, Any] = {"optimizer": made}
    if schedule is not None:
        curves["schedule/lr"] = schedule
        more["scheduler"] = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": EPOCHS}}
    run = make_run(None, curves, options=more, epochs=epochs)
    run.config["model"]["class_path"] = "lit_sphere.modules.PracticalConvNet"
    return run


LOSS = "train/loss"


def passing(at: int) -> tuple[Curve, Curve]:
    """Loss and sharpness that fall for good from an epoch on."""

    def part(epoch: int) -> float:
        return wave(epoch) * max(1e-3, math.exp(-max(0, epoch - at) / 2))

    return part, lambda epoch: 30 * part(epoch)


def constant() -> list[Run]:
    diverged = conventional(1e3, lambda e: 3.0 if e == 0 else math.nan, steady(1e4), epochs=2)
    low = [conventional(lr, *passing(3)) for lr in (1e-3, 1e-2)]
    return [*low, conventional(1e-1, steady(0.5), steady(30)), conventional(3e-1, steady(0.7), steady(30)), diverged]


def test_constant_rates() -> None:
    found = check("E18", constant())
    assert found.verdict == "holds", found.text
    assert "the loss is NaN from epoch 1 on" in found.text
    assert "LR 0.01 passes the peak; LR 0.1 stays at the peak" in found.text
    assert check("E18", constant()[:4]).verdict == "cannot tell"
    swapped = [conventional(1e-3, steady(0.5), steady(30)), *constant()[1:]]
    assert check("E18", swapped).verdict == "does not"
    assert len(drawn("E18", constant())) == 1


def scheduled(errors: Sequence[float] = (0.08, 0.02, 0.05)) -> list[Run]:
    starts = ((1e-2, *passing(3)), (3e-1, *passing(40)), (2.0, steady(0.7), steady(30)))

    def schedule(lr: float) -> Curve:
        return lambda epoch: lr * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2

    return [
        conventional(lr, loss, sharpness, error=error, schedule=schedule(lr))
        for (lr, loss, sharpness), error in zip(starts, errors, strict=True)
    ]


def test_schedules() -> None:
    found = check("E19", scheduled())
    assert found.verdict == "holds", found.text
    assert "from LR 0.01 started too low; from LR 0.3 useful window; from LR 2 no time left to converge" in found.text
    assert check("E19", scheduled((0.02, 0.08, 0.05))).verdict == "does not"
    assert check("E19", scheduled()[:2]).verdict == "cannot tell"
    assert check("E18", scheduled()).verdict == "cannot tell"
    assert len(drawn("E19", scheduled())) == 1
