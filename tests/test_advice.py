"""What is advised from the borders: the choice, its words, and the config that follows it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import LitSphere
from hypothesis import given
from hypothesis import strategies as st
from test_borders import FOLDER, Played, borders, played

from lit_sphere.analysis.advice import Converged, CosineWindow, advise_constant, advise_cosine
from lit_sphere.analysis.border_search import SearchRange
from lit_sphere.analysis.regimes import Regime
from lit_sphere.cli.fit_parser import config_of
from lit_sphere.report.advice import advise
from lit_sphere.report.border_search import BorderRun, SearchResult

__all__ = ["played"]  # a fixture

RUNS = st.lists(st.builds(Converged, st.floats(1e-6, 10), st.integers(1, 200)), min_size=1, max_size=12)


@given(RUNS, st.floats(1e-6, 10), st.integers(1, 400))
def test_the_constant_was_tried_and_has_converged_in_time(runs: list[Converged], last: float, epochs: int) -> None:
    found = advise_constant(runs, last, epochs)
    below = [run for run in runs if run.at <= last]
    if found is None:
        for at in {run.at for run in below}:
            assert max(run.epochs for run in below if run.at == at) > epochs
        return
    assert found.converged_after == max(run.epochs for run in below if run.at == found.at) <= epochs
    faster = [run for run in below if run.at > found.at]
    for at in {run.at for run in faster}:
        slowest = max(run.epochs for run in faster if run.at == at)
        assert slowest > epochs / 4
        assert slowest > found.converged_after or found.converged_after <= epochs / 4


@given(RUNS, st.floats(1e-6, 10), st.integers(1, 400), st.none() | st.floats(1e-4, 1e4))
def test_a_cosine_begins_at_the_border_or_below(
    runs: list[Converged], last: float, epochs: int, decay: float | None
) -> None:
    constant, found = advise_constant(runs, last, epochs), advise_cosine(runs, last, epochs, decay=decay)
    if constant is None:
        assert found is None
        return
    assert found is not None
    assert found.first in (last, constant.at)
    assert found.first <= last
    settles = decay is not None and 4 * decay / last <= epochs
    assert (found.first == last) == (last == constant.at or (settles and found.high > last))


def test_the_window_ends_where_the_time_left_is_what_convergence_needs() -> None:
    """The cosine itself, epoch by epoch, falls to the constant advice 2 × 10 epochs before its end."""
    window = advise_cosine([Converged(0.01, 10)], 0.02, 100, decay=0.1)
    assert window is not None
    rates = [window.high / 2 * (1 + math.cos(math.pi * epoch / 100)) for epoch in range(101)]
    assert rates[79] > 0.01
    assert rates[80] == pytest.approx(0.01)


def test_the_window_ends_at_divergence() -> None:
    window = advise_cosine([Converged(0.01, 1)], 0.02, 1000, diverges=0.5, decay=0.1)
    assert window == CosineWindow(0.02, 0.5, 0.02, 1000)


def test_without_an_epoch_there_is_no_advice() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        advise_constant([Converged(0.01, 10)], 0.02, 0)


def search(option: str = "model.elr", decay: float | None = None, converges: bool = True) -> SearchResult:
    """Runs of two seeds around borders at 0.02 and 0.08."""
    told: dict[float, tuple[Regime, int | None]] = {
        0.005: ("convergence", 12),
        0.01: ("convergence", 20),
        0.02: ("convergence", 60),
        0.025: ("chaotic equilibrium", None),
        0.1: ("divergence", None),
    }
    runs = [
        BorderRun(at, seed, regime, "as made up", 100, converged_after=after, decay_epochs=decay and decay / at)
        for at, (regime, after) in told.items()
        for seed in (0, 1)
        if converges or after is None
    ]
    return SearchResult(option, SearchRange(0.001, 1, 1.5), 2, 100, runs)


def test_on_the_sphere_it_begins_just_above_the_border() -> None:
    advice = advise(search())
    assert advice.options("model.elr") == [
        "--model.elr=0.025",
        "--trainer.callbacks+=FineTuneSwitch",
        '--trainer.callbacks.switches=[{"epoch": 25, "elr": 0.01}]',
        "--trainer.max_epochs=100",
    ]
    assert advice.sentences[0] == (
        "Advice for 100 epochs: begin at ELR 0.025, just above the border of convergence; at epoch 25 switch to 0.01."
    )


def without(result: SearchResult, at: float) -> SearchResult:
    return replace(result, runs=[run for run in result.runs if run.at != at])


def test_a_border_not_known_closely_leaves_a_constant() -> None:
    advice = advise(without(search(), 0.025))
    assert advice.options("model.elr") == ["--model.elr=0.01", "--trainer.max_epochs=100"]
    assert advice.sentences[0] == "Advice for 100 epochs: a constant ELR of 0.01."


def test_no_run_begins_where_it_diverges() -> None:
    result = search()
    runs = [replace(run, regime="divergence") if run.at == 0.025 else run for run in result.runs]
    assert advise(replace(result, runs=runs)).sentences[0] == "Advice for 100 epochs: a constant ELR of 0.01."


def test_too_few_epochs_leave_the_first_to_converge_alone() -> None:
    assert advise(search(), 15).options("model.elr") == ["--model.elr=0.005", "--trainer.max_epochs=15"]


def test_one_seed_that_is_late_decides() -> None:
    result = without(search(), 0.025)
    late = [replace(run, converged_after=30) if (run.at, run.seed) == (0.01, 1) else run for run in result.runs]
    assert advise(replace(result, runs=late)).options("model.elr")[0] == "--model.elr=0.005"


@pytest.mark.parametrize(
    ("decay", "epochs", "first", "why"),
    [
        (0.1, 100, 0.02, "the useful window begins"),
        (0.1, 30, 0.005, "so few epochs leave no time"),
        (1.0, 100, 0.01, "time constant of 50 epochs"),
        (None, 100, 0.01, "without weight decay"),
    ],
)
def test_in_the_whole_space_it_is_a_cosine(decay: float | None, epochs: int, first: float, why: str) -> None:
    option = "model.optimizer.lr"
    advice = advise(search(option, decay), epochs)
    assert advice.options(option) == [
        f"--{option}={first:g}",
        "--model.scheduler=CosineAnnealingLR",
        f"--model.scheduler.T_max={epochs}",
        f"--trainer.max_epochs={epochs}",
    ]
    assert why in advice.sentences[0]


def test_there_may_be_no_advice() -> None:
    none = advise(search(converges=False))
    assert none.options("model.elr") == []
    assert none.sentences == (
        "No advice for 100 epochs: nothing has converged; give more epochs, search lower, or, where weight decay or "
        "augmentation keep the train loss up, say what counts as converged (--converged-loss).",
    )
    short = advise(search(), 5)
    assert short.found is None
    assert "no run has converged in so many epochs" in short.sentences[0]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        advise(search(converges=False), 0)
    with pytest.raises(ValueError, match="say for how many"):
        advise(replace(search(), max_epochs=None))


def test_the_command_writes_a_config_to_train_by(played: type[Played], lit_sphere: LitSphere) -> None:
    result = borders(lit_sphere, "--seeds", "2", "--epochs", "60", "--model.width", "4")
    assert result.status == 0, result.err
    assert f"To train so: lit-sphere fit --config {FOLDER}/advised.yaml" in result.out
    text = (FOLDER / "advised.yaml").read_text()
    assert text.startswith("# Advice for 60 epochs: begin at ELR 0.0")
    config = yaml.safe_load(text)
    (switch,) = config["trainer"]["callbacks"]  # what the search adds to its runs is not advised
    ((change,),) = (switch["init_args"]["switches"],)
    begin, end = config["model"]["init_args"]["elr"], change["elr"]
    advised = f"begin at ELR {begin:g}, just above the border of convergence; at epoch 15 switch to {end:g}."
    assert advised in result.out
    assert end < 0.021 <= begin
    assert change["epoch"] == 15
    assert config["model"]["init_args"]["width"] == 4
    assert config["trainer"]["max_epochs"] == 60
    assert config.get("non_finite", "error") == "error"
    assert yaml.safe_load(config_of(["--config", f"{FOLDER}/advised.yaml"])) == config
    page = lit_sphere("report", str(FOLDER), "--out", "page")
    assert page.status == 0, page.err
    assert advised in Path("page/report.html").read_text(encoding="utf-8")


def test_an_advice_that_fit_refuses_is_said_and_not_written(
    played: type[Played], lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_sphere.report.advice.Advice.options", lambda *_: ["--model.elr=none"])
    result = borders(lit_sphere)
    assert result.status == 0, result.err
    assert f"{FOLDER}/advised.yaml is not written, since fit refuses --model.elr=none: " in result.out
    assert not (FOLDER / "advised.yaml").exists()


def test_what_counts_as_converged_goes_to_the_runs(played: type[Played], lit_sphere: LitSphere) -> None:
    assert borders(lit_sphere, "--converged-loss", "0.05").status == 0
    assert all("--trainer.callbacks.converged_loss=0.05" in task.arguments for task in played.tasks)
    assert "converged_loss" not in (FOLDER / "advised.yaml").read_text()
