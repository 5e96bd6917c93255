"""Border 2A|2B: the rule on made-up profiles, and ``lit-sphere borders --split-equilibrium`` on made-up runs."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import LitSphere
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import write_run
from test_borders import FOLDER, Played, borders, played

from lit_sphere.analysis.equilibrium_split import (
    FineTuned,
    Minima,
    name_minima,
    next_source,
    sharpness_ratio,
    split_bracket,
)
from lit_sphere.analysis.profiles import profile_of, profile_ratio
from lit_sphere.report.border_search import read_result
from lit_sphere.report.equilibrium_split import EquilibriumSplit, Source, split_content, split_of, split_sentence
from lit_sphere.sweep.point_run import Outcome, Task

__all__ = ["played"]  # the fixture


def tuned(elr: float, height: float, converged: bool = True, lowest: float = 1e-3, slope: float = 0.9) -> FineTuned:
    """Sharpness e^height · loss^slope."""
    losses = {epoch: lowest * 1.5**epoch for epoch in range(9)}
    sharpness = {epoch: math.exp(height) * loss**slope for epoch, loss in losses.items()}
    return FineTuned(elr, converged, profile_of(losses, sharpness))


@given(st.floats(-3, 3), st.floats(-2, 2), st.floats(0.5, 1.2))
def test_the_ratio_is_that_of_the_sharpness_at_one_loss(height: float, apart: float, slope: float) -> None:
    low, high = tuned(1e-3, height + apart, slope=slope), tuned(1e-2, height, lowest=7e-4, slope=slope)
    assert sharpness_ratio(low, high) == pytest.approx(math.exp(apart), rel=1e-9)
    assert profile_ratio(low.profile, high.profile) == pytest.approx(math.exp(-apart), rel=1e-9)


@pytest.mark.parametrize(
    ("apart", "reference", "minima"),
    [
        (0.0, 0.6, "flat"),
        (-0.2, 0.6, "flat"),
        (0.29, 0.6, "flat"),
        (0.31, 0.6, "of many kinds"),
        (0.9, 0.6, "of many kinds"),
        (0.31, 0.7, "flat"),
    ],
)
def test_minima_are_named_by_what_random_weights_reach(apart: float, reference: float, minima: Minima) -> None:
    verdict = name_minima(tuned(1e-3, apart), tuned(1e-2, 0.0), math.exp(reference))
    assert verdict.minima == minima
    assert verdict.ratio == pytest.approx(math.exp(apart))
    assert verdict.share == pytest.approx(apart / reference)
    assert f"{math.exp(apart):.2f} times" in verdict.evidence


@pytest.mark.parametrize(
    ("low", "high", "reference", "words"),
    [
        (tuned(1e-3, 0.5, converged=False), tuned(1e-2, 0.0), 2.0, "at ELR 0.001 it has not converged"),
        (tuned(1e-3, 0.5), tuned(1e-2, 0.0, converged=False), 2.0, "at ELR 0.01 it has not converged"),
        (tuned(1e-3, 0.5, lowest=1e-6), tuned(1e-2, 0.0), 2.0, "fewer than 5 equal train losses"),
        (FineTuned(1e-3, True, []), tuned(1e-2, 0.0), 2.0, "fewer than 5 equal train losses"),
        (tuned(1e-3, 0.5), tuned(1e-2, 0.0), None, "from random weights not known"),
        (tuned(1e-3, 0.5), tuned(1e-2, 0.0), 1.1, "tells no kinds of minima apart"),
    ],
)
def test_it_says_why_it_cannot_tell(low: FineTuned, high: FineTuned, reference: float | None, words: str) -> None:
    verdict = name_minima(low, high, reference)
    assert verdict.minima == "cannot tell"
    assert verdict.share is None
    assert words in verdict.evidence


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=20, unique=True).map(sorted),
    st.floats(0, 210),
    st.sets(st.integers(1, 200)),
    st.floats(1.01, 3),
)
def test_bisection_brackets_the_border(places: list[int], border: float, unsure: set[int], precision: float) -> None:
    candidates = [1.02**place for place in places]
    known: dict[float, Minima] = {}
    while (at := next_source(known, candidates, precision)) is not None:
        assert at in candidates
        assert at not in known
        place = places[candidates.index(at)]
        known[at] = "cannot tell" if place in unsure else "flat" if place < border else "of many kinds"
    if not unsure & {*places}:
        assert len(known) <= math.log2(len(places)) + 2
    bracket = split_bracket(known)
    assert bracket.last < 1.02**border * (1 + 1e-9)
    assert bracket.first >= 1.02**border * (1 - 1e-9)
    for low, high in bracket.gaps():
        left = [at for at in candidates if low < at < high and at not in known]
        assert not left or high <= low * precision * 1.0011


def source(at: float, minima: Minima, seed: int = 0) -> Source:
    return Source(at, seed, minima, "it did not converge" if minima == "cannot tell" else "for a reason", 1.5, 0.4)


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([source(0.03, "flat"), source(0.04, "of many kinds")], "2A ends, and 2B begins, between ELR 0.03 and 0.04"),
        ([source(0.03, "of many kinds")], "No 2A is seen: fine-tuned at ELR 0.001 and 0.01"),
        ([source(0.03, "flat")], "No 2B is seen: fine-tuned"),
        ([source(0.03, "cannot tell")], "Border 2A|2B: cannot tell (it did not converge)."),
        ([], "Border 2A|2B: cannot tell (no run in chaotic equilibrium was fine-tuned)."),
        (
            [source(0.02, "flat"), source(0.03, "cannot tell"), source(0.04, "of many kinds")],
            "between ELR 0.02 and 0.04 (×2): fine-tuned at ELR 0.001 and 0.01, runs from below reach only flat minima; "
            "not to be told at 0.03.",
        ),
        (
            [source(0.04, "of many kinds"), source(0.03, "flat", 1), source(0.04, "of many kinds", 1)],
            "not the same for all seeds, fine-tuned at ELR 0.001 and 0.01: seed 0: no 2A, 2B from 0.04 on; seed 1: 2A",
        ),
    ],
)
def test_it_is_said_in_words_and_kept(sources: list[Source], words: str) -> None:
    seeds = 1 + max((each.seed for each in sources), default=0)
    split = EquilibriumSplit(1e-3, 1e-2, [2.0] * seeds, seeds, sources, is_closed=True)
    assert words in split_sentence(split)
    kept = split_of(json.loads(json.dumps(split_content(split))))
    assert kept == replace(split, sources=sorted(sources, key=lambda each: (each.at, each.seed)))
    unended = EquilibriumSplit(1e-3, 1e-2, [2.0] * seeds, seeds, sources, is_closed=False)
    assert not sources or sources[0].minima == "cannot tell" or "the search ended before" in split_sentence(unended)


class PlayedProfiles(Played):
    """Sharpness by ELR, but alike after the weights of an equilibrium below ``split``."""

    split: ClassVar[float] = 0.04
    slow: ClassVar[bool] = False

    def start(self, name: str, task: Task) -> str:
        if self.killed_after is not None and len(self.started) >= self.killed_after:
            raise KeyboardInterrupt
        options = dict(each.removeprefix("--").split("=", 1) for each in task.arguments if "=" in each)
        elr, seed = float(options["model.elr"]), int(options.get("seed_everything", 0))
        weights = options.get("ckpt_weights")
        origin = None if weights is None else float(Path(weights).parts[-3].split(",")[0].removeprefix("elr="))
        sharp = 1.0 if origin is not None and origin < self.split else elr**-0.3

        def change(row: dict[str, Any]) -> dict[str, Any]:
            loss = max(1e-4, 0.09 * math.exp(-0.2 * row["epoch"]))
            loss = 0.5 if self.slow and origin is not None and elr < 5e-3 else loss
            row |= {"train/loss": loss} if "train/loss" in row else {}
            return row | ({"effective_grad_norm/total": sharp * loss} if "elr/total" in row else {})

        first, second = self.borders[seed]
        regime = ("convergence", "chaotic equilibrium", "divergence")[(elr >= first) + (elr >= second)]
        shutil.rmtree(task.folder, ignore_errors=True)  # of a run whose end nobody saw
        same = regime != "convergence"
        write_run(task.folder, elr, seed=seed, regime=regime, change=(lambda row: row) if same else change)
        (task.folder / "checkpoints").mkdir()
        (task.folder / "checkpoints" / "last.ckpt").touch()
        self.running[name] = Outcome(0, 1.0, "")
        self.started.append(name)
        self.tasks.append(task)
        return ""


@pytest.fixture
def profiles(played: type[Played], monkeypatch: pytest.MonkeyPatch) -> type[PlayedProfiles]:
    """Plays the runs of this test."""

    class Mine(PlayedProfiles):
        borders = played.borders
        started: ClassVar[list[str]] = []
        tasks: ClassVar[list[Task]] = []

    monkeypatch.setattr("lit_sphere.cli.borders.LocalProcesses", Mine)
    return Mine


TUNED = FOLDER.with_name(f"{FOLDER.name}-fine-tuning")


def test_the_equilibrium_is_split(profiles: type[PlayedProfiles], lit_sphere: LitSphere) -> None:
    result = borders(lit_sphere, "--seeds", "2", "--split-equilibrium")
    assert result.status == 0, result.err
    content = json.loads((FOLDER / "borders.json").read_text())
    split = content["split"]
    assert split["last"] < 0.04 <= split["first"] <= 1.252 * split["last"]
    assert split["is_closed"]
    low, high = split["fine_tuning_elrs"]
    assert high == pytest.approx(content["borders"][0]["last"] / 2, rel=0.13)
    assert high / low == pytest.approx(8, rel=0.13)
    assert "2A ends, and 2B begins, between ELR" in content["answer"][-1] in result.out
    assert "seed 1: minima flat, sharpness at ELR" in result.out
    assert read_result(FOLDER).split == split_of(split)
    seeds = [[s for s in split["sources"] if s["seed"] == seed] for seed in (0, 1)]
    assert [len(each) <= 5 for each in seeds] == [True, True]
    for each in split["sources"]:
        assert each["share"] == pytest.approx(0.0 if each["at"] < 0.04 else 1.0, abs=1e-6)
    of_tuned = [task for task in profiles.tasks if TUNED.name in task.folder.parts]
    assert len(of_tuned) == 2 * len(split["sources"])
    assert "--trainer.callbacks+=RegimeMonitor" in of_tuned[0].arguments
    # The same command makes nothing anew; with a smaller precision what is there is used.
    profiles.started.clear()
    again = borders(lit_sphere, "--seeds", "2", "--split-equilibrium")
    assert again.status == 0, again.err
    assert profiles.started == []
    assert json.loads((FOLDER / "borders.json").read_text())["split"] == split
    report = lit_sphere("report", str(FOLDER), "--formats", "--experiments", "E1")
    assert report.status == 0
    assert "2A ends, and 2B begins" in (FOLDER / "report" / "report.html").read_text()


@pytest.mark.slow
def test_it_goes_on_where_it_was_killed(profiles: type[PlayedProfiles], lit_sphere: LitSphere) -> None:
    assert borders(lit_sphere).status == 0
    began = len(profiles.started)
    profiles.killed_after = began + 4  # two from random weights, one in the equilibrium, and one that is fine-tuned
    assert borders(lit_sphere, "--split-equilibrium").status == 130
    assert len(list(TUNED.glob("*/metrics.csv"))) == 1
    profiles.killed_after = None
    assert borders(lit_sphere, "--split-equilibrium").status == 0
    again = profiles.started[began:]
    assert len(again) <= len(set(again)) + 1  # the one whose end nobody saw
    assert json.loads((FOLDER / "borders.json").read_text())["split"]["is_closed"]


@pytest.mark.slow
def test_minima_that_are_not_reached_tell_nothing(profiles: type[PlayedProfiles], lit_sphere: LitSphere) -> None:
    profiles.slow = True
    result = borders(lit_sphere, "--split-equilibrium")
    assert result.status == 0, result.err
    assert "Border 2A|2B: cannot tell (fine-tuned at ELR" in result.out
    assert "it has not converged" in result.out
    split = json.loads((FOLDER / "borders.json").read_text())["split"]
    assert (split["last"], split["first"], split["is_closed"]) == (None, None, True)


@pytest.mark.slow
def test_without_an_equilibrium_nothing_is_fine_tuned(profiles: type[PlayedProfiles], lit_sphere: LitSphere) -> None:
    profiles.borders = dict.fromkeys(range(3), (0.02, 0.02))
    result = borders(lit_sphere, "--split-equilibrium")
    assert result.status == 0, result.err
    assert "no run in chaotic equilibrium was fine-tuned" in result.out
    assert not TUNED.exists()


@pytest.mark.slow
def test_the_budget_holds_for_fine_tuning_too(profiles: type[PlayedProfiles], lit_sphere: LitSphere) -> None:
    assert borders(lit_sphere).status == 0
    spent = json.loads((FOLDER / "borders.json").read_text())["epochs"]
    result = borders(lit_sphere, "--split-equilibrium", "--budget", str(spent + 50))
    assert result.status == 0
    assert "leaves room for no other run" in result.out
    assert json.loads((FOLDER / "borders.json").read_text())["split"]["is_closed"] is False
    assert not TUNED.exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--over", "model.optimizer.lr=1:10"), "--split-equilibrium is for --over model.elr"),
        (("--ckpt_weights", "sweeps/x/checkpoints/last.ckpt"), "leave --ckpt_weights out"),
    ],
)
def test_what_cannot_be_split(
    args: tuple[str, ...], words: str, profiles: type[PlayedProfiles], lit_sphere: LitSphere
) -> None:
    result = borders(lit_sphere, "--split-equilibrium", *args)
    assert result.status == 2
    assert words in result.err
    assert profiles.started == []
