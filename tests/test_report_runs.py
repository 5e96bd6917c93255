"""Runs are read from the disk as they are: whole, cut, old, foreign, with NaN; and judged as they were."""

import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import LitSphere
from synthetic_runs import write_grid, write_run

from lit_sphere.report.comparison import Comparison, answer
from lit_sphere.report.comparison_charts import regime_map
from lit_sphere.report.runs import Run, read_columns, read_run, read_runs


def test_options_are_found_within_classes(tmp_path: Path) -> None:
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": "1e-1"}}
    run = read_run(write_run(tmp_path / "a", 2e-3, seed=3, options={"optimizer": optimizer}))
    assert (run.name, run.elr, run.seed, run.network, run.data) == ("a", 2e-3, 3, "SIConvNet", "Digits")
    assert (run.loss_name, run.num_classes, run.epochs) == ("cross_entropy", 10, 40)
    assert run.option("model.optimizer") == "SGD"
    assert run.lr == 0.1  # YAML takes 1e-1 for text
    assert run.option("model.nothing.below") is None
    assert run.callback("RegimeMonitor") is None


def test_callbacks_are_found_by_their_short_names() -> None:
    monitor = {"class_path": "lit_sphere.callbacks.RegimeMonitor", "init_args": {"num_classes": 7}}
    run = Run(Path("a"), {"trainer": {"callbacks": [monitor, {"class_path": "lightning.Timer"}]}}, {})
    assert run.callback("RegimeMonitor") == {"num_classes": 7}
    assert run.callback("Timer") == {}
    assert run.num_classes == 7


def test_series_keep_what_was_logged(tmp_path: Path) -> None:
    def blow_up(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "train/loss": math.nan} if row["epoch"] >= 30 and "train/loss" in row else row

    run = read_run(write_run(tmp_path / "a", change=blow_up))
    losses = run.series["train/loss"]
    assert losses.epochs == list(range(40))
    assert losses.steps[:2] == [11, 23]
    assert math.isnan(losses.values[-1])
    assert math.isnan(run.final("train/loss") or 0)
    assert run.best("train/loss") == pytest.approx(1e-3 * 0.95, rel=0.01)
    assert run.final("nothing") is None
    assert run.verdict is not None
    assert (run.verdict.regime, run.verdict.since, run.verdict.since_step) == ("divergence", 30, 360)


@pytest.mark.parametrize("regime", ["convergence", "chaotic equilibrium", "divergence"])
def test_regimes_are_named(tmp_path: Path, regime: str) -> None:
    run = read_run(write_run(tmp_path / "a", 1e-2, regime=regime))
    assert run.verdict is not None
    assert run.verdict.regime == regime


def test_only_epochs_since_the_last_switch_are_judged(tmp_path: Path) -> None:
    def switch(row: dict[str, Any]) -> dict[str, Any]:
        if row["epoch"] < 15 and "train/loss" in row:
            row = {**row, "train/loss": 3.0}
        return {**row, "switch/elr": 1e-3} if row["epoch"] == 15 and "val/loss" in row else row

    run = read_run(write_run(tmp_path / "a", change=switch))
    assert run.switched_at == [15]
    assert run.verdict is not None
    assert (run.verdict.regime, run.verdict.since) == ("convergence", 15)


def test_in_the_whole_space_a_regime_is_named_where_it_was_watched(tmp_path: Path) -> None:
    assert read_run(write_run(tmp_path / "a", None)).verdict is None
    watched = write_run(tmp_path / "b", None, change=lambda row: {**row, "regime": 1})
    verdict = read_run(watched).verdict
    assert verdict is not None
    assert verdict.regime == "convergence"


def test_a_run_that_went_on_elsewhere_counts_the_steps_before(tmp_path: Path) -> None:
    late = write_run(tmp_path / "a", change=lambda row: {**row, "epoch": row["epoch"] + 10, "step": row["step"] + 120})
    assert [row["step"] for row in read_run(late).rows[:2]] == [120, 132]


def test_folders_are_searched_and_each_run_is_read_once(tmp_path: Path) -> None:
    write_grid(tmp_path / "sweep" / "inner")
    write_run(tmp_path / "sweep" / "seed=10")
    write_run(tmp_path / "sweep" / "seed=2")
    (tmp_path / "sweep" / "link").symlink_to(tmp_path / "sweep" / "seed=2")
    found = read_runs([tmp_path / "sweep", tmp_path / "sweep" / "seed=2" / "metrics.csv"])
    assert len(found.runs) == 9
    assert not found.left_out
    assert [run.name for run in found.runs if run.name.startswith("seed")] == ["seed=2", "seed=10"]


def _cut(folder: Path) -> None:
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text[:-20])


def test_a_row_that_was_cut_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    _cut(folder)
    run = read_run(folder)
    assert run.epochs == 39
    assert run.verdict is not None
    assert run.verdict.regime == "convergence"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.csv", b"", "names no column 'step' or 'epoch'"),
        ("metrics.csv", b"a,b\n1,2\n", "names no column 'step' or 'epoch'"),
        (
            "metrics.csv",
            b"epoch,step,train/loss\n0,1,0.5\n1,2,half\n",
            "metrics.csv, column train/loss holds no numbers",
        ),
        (
            "metrics.csv",
            b"epoch,step,train/loss\n1e300,1,1\n",
            "column epoch holds 1e+300, which is no epoch",
        ),
        ("metrics.csv", b"\xff\xfe\x00epoch", "is no text"),
        ("metrics.csv", b'epoch,step\n0,"' + b"x" * 200_000, "metrics.csv, line 2"),
        ("config.yaml", b"a: [1, 2", ": is no YAML"),
        ("config.yaml", b"- 1\n- 2\n", "config.yaml holds no options"),
        ("config.yaml", b"#" * (2**20 + 1), "larger than any config"),
        ("metrics.csv", None, "no metrics.csv: it has not begun"),
    ],
)
def test_what_cannot_be_read_is_left_out_in_words(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    write_run(tmp_path / "good")
    bad = write_run(tmp_path / "bad")
    (bad / name).unlink()
    if content is not None:
        (bad / name).write_bytes(content)
    found = read_runs([tmp_path])
    assert [run.name for run in found.runs] == ["good"]
    (line,) = found.left_out
    assert line.startswith(f"{bad}: ")
    assert message in line
    assert "\n" not in line


def test_missing_and_empty_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = read_runs([tmp_path / "empty", tmp_path / "nowhere"])
    assert not found.runs
    assert found.left_out == [
        f"{tmp_path / 'empty'}: holds no run: no metrics.csv, no config.yaml and no run-ID.wandb",
        f"{tmp_path / 'nowhere'}: there is no such folder",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "metrics.csv").chmod(0)
    (line,) = read_runs([folder]).left_out
    assert "Permission denied" in line


def test_a_foreign_table_without_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "version_0").mkdir()
    text = "epoch,step,train_loss\n" + "".join(f"{i},{i},{1 / (i + 1)}\n" for i in range(30))
    (tmp_path / "version_0" / "metrics.csv").write_text(text)
    run = read_run(tmp_path / "version_0")
    assert (run.epochs, run.elr, run.verdict, run.network) == (30, None, None, "")
    assert run.final("train/loss") == pytest.approx(1 / 30)
    assert Comparison([run]).what() == "1 run · 30 epochs"


def test_columns_without_epochs_are_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n2,inf\n")
    series = read_columns(tmp_path / "metrics.csv")["loss"]
    assert series.values == [0.5, math.inf]
    assert all(map(math.isnan, series.epochs))


def test_configs_of_the_first_version_are_read() -> None:
    folder = Path(__file__).parent / "runs_of_0_1"
    for path in sorted(folder.glob("*.yaml")):
        run = Run(folder, yaml.safe_load(path.read_text()), {})
        assert run.network
        assert run.data == "Digits"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--model.elr", "3e-2"),
        ("--model.elr", "1"),
        ("--model.elr", "1e-2", "--model.loss", "mse"),
        ("--model.elr", "1e-2", "--monitor.granularity", "joint"),
    ],
)
def test_the_verdict_is_what_the_run_printed(
    empty_folder: Path, lit_sphere: LitSphere, options: tuple[str, ...]
) -> None:
    """Angles are means over every step here, and over each fourth there: the numbers of the evidence differ."""
    epochs = ("--trainer.max_epochs", "25", "--wandb", "disabled", "--run", "a")
    done = lit_sphere("fit", "--config", "elr.yaml", *options, *epochs)
    assert done.status == 0, done.err
    (line,) = (line for line in done.out.splitlines() if line.startswith("  regime"))
    verdict = read_run(Path("a")).verdict
    assert verdict is not None
    printed, first = line.split(maxsplit=1)[1], verdict.evidence.split("; ")[0]
    assert printed.startswith(verdict.regime)
    exact = first.startswith("train")  # of losses and errors; angles and what follows from them differ a little
    assert printed.endswith(first) if exact else _words(printed).endswith(_words(first))


def _words(text: str) -> str:
    return re.sub(r"[\d.]+", "#", text)


def test_the_answer_names_borders_and_what_lies_between(tmp_path: Path) -> None:
    comparison = Comparison(read_runs([write_grid(tmp_path, seeds=2)]).runs)
    assert comparison.what() == "14 runs · SIConvNet on Digits · 40 epochs · 7 values of ELR · up to 2 seeds"
    assert answer(comparison) == [
        "Regime 1 (convergence) up to ELR 0.02; regime 2 (chaotic equilibrium) from 0.03 to 0.04; "
        "regime 3 (divergence) from 0.1. Between 0.02 and 0.03 nothing was run. Between 0.04 and 0.1 nothing was run.",
        "Lowest test error at the end: 0.50 % (mean of 2 seeds, 0.00 % to 1.00 %) at ELR 0.001.",
    ]


def test_the_answer_says_where_seeds_differ_and_what_is_undecided(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 1e-3)
    write_run(tmp_path / "b", 1e-2)
    write_run(tmp_path / "c", 1e-2, seed=1, regime="divergence")
    write_run(tmp_path / "d", 1e-1, regime="divergence")
    write_run(tmp_path / "e", 1.0, regime="divergence", epochs=10)
    (first, *_) = answer(Comparison(read_runs([tmp_path]).runs))
    assert first == (
        "Regime 1 (convergence) up to ELR 0.001; regime 3 (divergence) from 0.1. Between 0.001 and 0.1: 0.01 "
        "convergence or divergence. Undecided at ELR 1."
    )


def test_runs_alike_are_no_seeds_and_each_regime_has_its_place(tmp_path: Path) -> None:
    for elr in (1e-3, 1e-2):
        write_run(tmp_path / f"a{elr}", elr)
        write_run(tmp_path / f"b{elr}", elr, regime="divergence")
    comparison = Comparison(read_runs([tmp_path]).runs)
    assert comparison.what().endswith("2 values of ELR · up to 2 runs alike")
    first, second = answer(comparison)
    assert first == (
        "Regime 1 (convergence) at ELR 0.001, 0.01; regime 3 (divergence) at ELR 0.001, 0.01; no border was seen."
    )
    assert "(mean of 2 runs alike, " in second


def test_one_regime_and_none_are_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "1", 1e-3)
    assert answer(Comparison(read_runs([tmp_path / "a"]).runs))[0] == (
        "Regime 1 (convergence) at ELR 0.001; no border was seen."
    )
    write_run(tmp_path / "b" / "1", 1e-3, epochs=5)
    assert answer(Comparison(read_runs([tmp_path / "b"]).runs))[0] == (
        "No regime could be named: only 5 epochs, at least 20 are needed."
    )
    write_run(tmp_path / "c" / "1", None, change=lambda row: {"epoch": row["epoch"], "step": row["step"], "other": 1})
    assert answer(Comparison(read_runs([tmp_path / "c"]).runs)) == ["The runs logged neither a regime nor an error."]


def test_families_are_told_apart_by_what_varies_beside_the_elr(tmp_path: Path) -> None:
    for width in (8, 16):
        for elr, regime in ((1e-3, "convergence"), (1e-1, "divergence")):
            write_run(tmp_path / f"{width}-{elr}", elr, regime=regime, options={"width": width})
    comparison = Comparison(read_runs([tmp_path]).runs)
    assert comparison.varies == ["model.elr", "model.width"]
    assert [family.name for family in comparison.families] == ["width 8", "width 16"]
    assert answer(comparison)[1].startswith("Width 16: regime 1 (convergence) up to ELR 0.001; regime 3")


def test_where_no_elr_varies_another_number_is_the_axis(tmp_path: Path) -> None:
    for lr in ("1e-1", "1e-2"):
        optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": lr}}
        write_run(tmp_path / lr, None, options={"optimizer": optimizer})
    comparison = Comparison(read_runs([tmp_path]).runs)
    assert (comparison.axis, comparison.axis_name) == ("model.optimizer.lr", "LR")
    assert [comparison.label(point) for point in comparison.points] == ["LR 0.01", "LR 0.1"]


def test_errors_on_two_data_sets_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 1e-3)
    other = write_run(tmp_path / "b", 1e-3) / "config.yaml"
    other.write_text(other.read_text().replace("Digits", "CIFAR10"))
    sentences = answer(Comparison(read_runs([tmp_path]).runs))
    assert [sentence.split(":")[0] for sentence in sentences[-2:]] == [
        "Lowest test error at the end on CIFAR10",
        "Lowest test error at the end on Digits",
    ]


def test_errors_of_two_losses_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 1e-3)
    write_run(tmp_path / "b", 1e-3, options={"loss": "mse"})
    sentences = answer(Comparison(read_runs([tmp_path]).runs))
    assert [sentence.split(":")[0] for sentence in sentences[-2:]] == [
        "Lowest test error at the end with cross-entropy",
        "Lowest test error at the end with mean squared error",
    ]
    (chart,) = regime_map(Comparison(read_runs([tmp_path]).runs))
    assert [panel.title for panel in chart.panels] == ["loss cross_entropy", "loss mse"]


def test_only_the_equilibrium_of_the_papers_asks_for_equal_steps(tmp_path: Path) -> None:
    """With momentum and adaptive steps it is logged with its distance; a run does not judge by it either."""
    for name, predicted in {"papers": ("ess",), "any": ("ess", "distance")}.items():

        def unequal(row: dict[str, Any], predicted: tuple[str, ...] = predicted) -> dict[str, Any]:
            keys = {f"equilibrium/{key}": 0.6 for key in predicted}
            return {**row, "ess/a": 0.1, **keys} if "ess/a" in row else row

        run = read_run(write_run(tmp_path / name, 1e-2, epochs=100, regime="chaotic equilibrium", change=unequal))
        assert run.verdict is not None
        assert run.verdict.regime == ("undecided" if name == "papers" else "chaotic equilibrium"), run.verdict
