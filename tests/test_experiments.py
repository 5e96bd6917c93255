"""Each experiment of the registry shows what it must, each other config what its header says (digits, slow).

What an experiment must show is judged by its check, in ``lit_sphere/experiments/``; here stand the numbers of digits.
"""

import csv
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from conftest import LitSphere

from lit_sphere.cli.config_names import find_sweep
from lit_sphere.experiments import EXPERIMENTS
from lit_sphere.experiments.records import Record, read_record, shipped_records
from lit_sphere.experiments.seeds import runs_by_seed
from lit_sphere.experiments.step_sizes import in_equilibrium
from lit_sphere.optim import adagrad_g_like_sgd
from lit_sphere.report import Series, read_metrics
from lit_sphere.report.runs import Run, read_runs
from lit_sphere.sweep import read_plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # three ResNets in one test

Fit = Callable[..., dict[str, Series]]
Metrics = Mapping[str, Series]

# At the borders every run is another, and what is there is not there on every machine: E14. Of the mean squared error
# no equilibrium was found on a subset that small: E25.
NOT_ON_EVERY_MACHINE = {"E14", "E25"}


def groups_of_shared_runs() -> list[list[str]]:
    """Ids that are judged by the same runs."""
    groups: list[tuple[set[str], list[str]]] = []
    for experiment in EXPERIMENTS.values():
        sources = {"toy"} if experiment.toy else set(experiment.sweeps)
        sharing = [group for group in groups if group[0] & sources]
        ids = [id_ for group in sharing for id_ in group[1]] + [experiment.id]
        groups = [group for group in groups if group not in sharing]
        groups.append((sources.union(*(group[0] for group in sharing)), ids))
    return [ids for _, ids in groups if not NOT_ON_EVERY_MACHINE & set(ids)]


def has_three_seeds(ids: list[str]) -> bool:
    """Whether the shipped sweeps have three seeds or more."""
    plans = [read_plan(Path(find_sweep(name))) for id_ in ids for name in EXPERIMENTS[id_].sweeps]
    return all(plan.seeds >= 3 or "seed_everything" in plan.zipped for plan in plans)


def over_three_seeds() -> list[Any]:
    """Groups that want ``--seeds 3``, the cheapest first, with what they cost; the toys have no runs with a seed."""
    groups = [ids for ids in groups_of_shared_runs() if not EXPERIMENTS[ids[0]].toy and not has_three_seeds(ids)]
    costs = [(max(map(seconds_of_three, ids)), ids) for ids in groups]
    return [pytest.param(ids, marks=pytest.mark.if_time(cost)) for cost, ids in sorted(costs)]


def seconds_of_three(id_: str) -> float:
    """What three seeds cost by our own last check, which was of one seed or of three; more than there is if unknown."""
    record = shipped_records().get(id_)
    return math.inf if record is None else record.seconds * (1 if "--seeds 3" in record.command else 3)


def reproduce(ids: list[str], lit_sphere: LitSphere, *options: str) -> dict[str, Record]:
    """Reproduce experiments, and assert that they hold."""
    result = lit_sphere("reproduce", *ids, *options)
    folder, records = Path("reproductions"), {}
    for id_ in ids:
        record = read_record(folder / id_)
        assert record is not None, result.err
        assert record.verdict == "holds", f"{id_}: {record.text}"
        assert f"{id_}: " in (folder / id_ / "report.html").read_text(encoding="utf-8")
        records[id_] = record
    assert result.status == 0, result.err
    return records


@pytest.mark.parametrize("ids", groups_of_shared_runs(), ids="-".join)
def test_an_experiment_shows_what_it_must(ids: list[str], empty_folder: Path, lit_sphere: LitSphere) -> None:
    reproduce(ids, lit_sphere, *([] if EXPERIMENTS[ids[0]].toy else ["--wandb", "disabled"]))
    for id_ in ids:
        if id_ in ON_DIGITS:
            ON_DIGITS[id_](read_runs([empty_folder / "reproductions" / "runs"]).runs)


@pytest.mark.timeout(3 * 1800)
@pytest.mark.parametrize("ids", over_three_seeds(), ids="-".join)
def test_it_shows_it_with_each_of_three_seeds(ids: list[str], empty_folder: Path, lit_sphere: LitSphere) -> None:
    """By its own check, of each seed alone and of all together: the record has the numbers, and their limits."""
    records = reproduce(ids, lit_sphere, "--seeds", "3", "--wandb", "disabled")
    for record in records.values():
        assert record.text.startswith(("Each of 3 seeds", "Seed 0 (holds)")), record.text
    of_seeds = runs_by_seed(read_runs([empty_folder / "reproductions" / "runs"]).runs)
    assert list(of_seeds) == ["Seed 0", "Seed 1", "Seed 2"]
    for id_ in set(ids) & ON_DIGITS.keys():
        for runs in of_seeds.values():
            ON_DIGITS[id_](runs)


@pytest.fixture
def fit(empty_folder: Path, lit_sphere: LitSphere) -> Fit:
    """Run a config and give its metrics."""

    def run(config: str, *options: str, name: str = "run") -> dict[str, Series]:
        result = lit_sphere("fit", "--config", config, "--run", name, "--wandb", "disabled", *options)
        assert result.status == 0, result.err
        return read_metrics(empty_folder / name / "metrics.csv")

    return run


def level(series: Series, start: int, stop: int) -> float:
    """Mean over the epochs from start to stop."""
    return fmean(value for epoch, value in zip(series.epochs, series.values, strict=True) if start <= epoch < stop)


def largest(metrics: Metrics, quantity: str, first_epoch: int = 0) -> float:
    """Largest absolute value over filters and steps, since an epoch."""
    series = metrics[f"{quantity}/step_max"]
    return max(value for epoch, value in zip(series.epochs, series.values, strict=True) if epoch >= first_epoch)


def regimes_on_digits(runs: list[Run]) -> None:
    """SCIENCE's table of the digits."""
    named = {1e-4: 1e-2, 1e-3: 2e-3, 1e-2: 5e-4}  # and the greatest loss at the end
    for run in runs:
        losses, errors = run.series["train/loss"].values, run.series["val/error"].values
        sharpness = run.series["effective_grad_norm/total"].values[-20:]
        assert len(losses) == len(errors) == 100
        assert run.elr is not None
        if run.elr < 2e-2:
            assert losses[-1] < named[run.elr]
            assert errors[-1] <= 0.04
        elif 2.8e-2 < run.elr < 5e-2:
            assert min(losses) > 0.5
            assert 15 < fmean(sharpness) < 60
        elif run.elr > 1e-1:
            assert fmean(errors[-20:]) == pytest.approx(0.9, abs=0.05)
            assert min(sharpness) > 100


def pictures_of_paths(runs: list[Run]) -> None:
    tuned = [run for run in runs if run.epochs == 200]
    assert len(tuned) == 2
    assert all((run.folder / "barrier-switch-1-to-0200.png").exists() for run in tuned)


def nine_paths(runs: list[Run]) -> None:
    assert [len(run.series["barrier/train_loss"].values) for run in runs] == [9, 9]


def regimes_in_turn(runs: list[Run]) -> None:
    """From equilibrium to convergence, to a loss that goes by the ELR."""
    for run in runs:
        assert level(run.series["train/loss"], 50, 100) > 0.3
        assert run.series["regime"].values[-1] == 1
        assert 2 in run.series["regime"].values
        assert run.series["train/loss"].values[-1] < (5e-3 if run.series["switch/elr"].values[-1] == 1e-2 else 1e-2)


def maxima_over_filters_and_steps(runs: list[Run]) -> None:
    """Bounds of SP §5 (R12 to R14); in brackets what seeds 0, 1, 2 gave."""
    (momentum,), (plain,), (adam,) = (
        [run.series for run in runs if run.option("model.optimizer") == name and run.lr == lr]
        for name, lr in (("SGD", 0.01), ("SGD", 0.1), ("Adam", 1e-3))
    )
    elr, ess = (plain[key].values[-1] / momentum[key].values[-1] for key in ("elr/total", "ess/total"))
    assert 7 < elr < 14, "momentum takes the factor"
    assert 1 < ess < elr, "and not all of the step"
    assert 0.01 < largest(momentum, "radial") < 0.2  # ≪ 1 (.022, .100, .053)
    assert largest(momentum, "radial", first_epoch=1) < 0.08  # (.016, .037, .027)
    assert 0.04 < largest(momentum, "ess") < 0.6  # < π (.090, .261, .163)
    assert largest(plain, "radial") == pytest.approx(1e-4, rel=1e-6), "weight decay alone"
    assert 0.3 < largest(plain, "ess") < math.pi  # (.76, 1.44, 1.63)
    assert 2e-3 < max(plain["step_length/max"].values) ** 2 < 2e-2  # in the mean about 1e-2 (.0061, .0084, .0083)
    assert largest(plain, "step_length") ** 2 > 0.05, "no bound on single steps"  # (.20, .29, .89)
    assert largest(plain, "step_length", first_epoch=1) ** 2 < 6e-3  # (.0016, .0029, .0024)
    # The effective learning rate of Adam rises, and its steps shrink.
    norm, elrs, esses = (adam[f"{quantity}/total"].values for quantity in ("norm", "elr", "ess"))
    assert norm[-1] == pytest.approx(norm[0], rel=0.05)
    assert elrs[-1] > 5 * elrs[0]
    assert esses[-1] < esses[0] / 10
    assert 1e-3 < largest(adam, "radial") < 8e-3  # ≪ 1 (.0037, .0036, .0036)
    assert 0.01 < largest(adam, "ess") < 0.06  # < π (.031, .032, .031)


def all_in_equilibrium(runs: list[Run]) -> None:
    assert len(in_equilibrium(runs)) == len(runs)


def fifty_comparisons(runs: list[Run]) -> None:
    for run in runs:
        with (run.folder / "optimizer_comparison.csv").open(newline="") as file:
            assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(10, 501, 10))


ON_DIGITS: dict[str, Callable[[list[Run]], None]] = {
    "E1": regimes_on_digits,
    "E4": pictures_of_paths,
    "E7": all_in_equilibrium,
    "E9": nine_paths,
    "E11": regimes_in_turn,
    "R11": fifty_comparisons,
    "R12": maxima_over_filters_and_steps,
}


def test_a_flatter_optimum_is_not_left(fit: Fit) -> None:
    metrics = fit("fine_tune_up.yaml", "--model.elr", "1e-3")
    assert metrics["barrier/train_loss"].values[-1] < 0.05


@pytest.mark.parametrize(
    ("lr", "verdict"), [("1e-2", "started too low"), ("0.3", "useful window"), ("2.0", "no time left to converge")]
)
def test_a_cosine_schedule_has_its_verdict(lr: str, verdict: str, fit: Fit, empty_folder: Path) -> None:
    fit("cosine.yaml", "--model.optimizer.lr", lr)
    assert json.loads((empty_folder / "run" / "cosine_regimes.json").read_text())["verdict"] == verdict


def test_adagrad_g_stays_with_sgd_in_a_convnet(fit: Fit, empty_folder: Path) -> None:
    fit("adagradg.yaml", "--model", "SIConvNet", "--model.width", "8")
    runs = read_runs([empty_folder / "run"]).runs
    finding = EXPERIMENTS["R11"].check(runs)
    assert finding.verdict == "holds", finding.text
    fifty_comparisons(runs)


def test_a_whole_run_by_adagrad_g_is_that_of_its_sgd(fit: Fit) -> None:
    """From random weights, at a high learning rate; norms stay under AdaGradG."""
    like: dict[str, float] = adagrad_g_like_sgd(0.1, 1e-3)
    model = ("--model", "SIConvNet", "--model.width", "8", "--model.elr", "null", "--monitor.granularity", "filter")
    options = [f"--model.optimizer.{name}={value}" for name, value in like.items()]
    sgd_options = ("--model.optimizer.lr", "0.1", "--model.optimizer.weight_decay", "1e-3")
    mine = fit("elr.yaml", *model, "--model.optimizer", "lit_sphere.optim.AdaGradG", *options)
    sgd = fit("elr.yaml", *model, "--model.optimizer", "SGD", *sgd_options, name="sgd")
    for ours, theirs in zip(mine["train/loss"].values[1:], sgd["train/loss"].values[1:], strict=True):
        assert ours == pytest.approx(theirs, rel=0.25)
    norms = mine["norm/total"].values
    assert max(norms) == pytest.approx(min(norms), rel=1e-5)
    assert max(sgd["norm/total"].values) > 1.002 * min(sgd["norm/total"].values)


@pytest.mark.parametrize(("elr", "epochs", "regime"), [("3e-4", 30, 1), ("1e-1", 25, 3)])
def test_a_converted_transformer_converges_or_diverges(elr: str, epochs: int, regime: int, fit: Fit) -> None:
    """Converged since epoch 16. The equilibrium between, at 5e-3, takes 100 epochs to be named: not tested."""
    metrics = fit("converted_vit.yaml", "--model.elr", elr, "--trainer.max_epochs", str(epochs))
    assert metrics["regime"].values[-1] == regime
    loss, error = metrics["train/loss"].values, metrics["train/error"].values
    assert (loss[-1] < 1e-2) == (regime == 1)
    assert (fmean(error[-10:]) > 0.85) == (regime == 3)


@pytest.mark.parametrize("config", ["adagradg.yaml", "paper/adagradg.yaml"])
def test_the_config_has_the_options_of_its_sgd(config: str) -> None:
    text = yaml.safe_load((Path(__file__).parent.parent / "configs" / config).read_text())
    switch, comparison = (each["init_args"] for each in text["trainer"]["callbacks"])
    last = switch["switches"][-1]
    written = comparison["optimizers"]["AdaGradG"]["init_args"]
    assert written == pytest.approx(adagrad_g_like_sgd(last["lr"], last["weight_decay"]), rel=1e-11)
    assert last["epoch"] == comparison["start_epoch"]
