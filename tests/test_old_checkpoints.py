"""Configs and checkpoints of lit-sphere 0.1 still load: its runs go on, and are repeated from their config.yaml.

``runs_of_0_1`` holds checkpoints after six of nine steps, mid-epoch state included: of all callbacks with a state, of a
sphere that SGD had entered by a switch, of fixed norms, and of several spheres; each with its run's config.yaml.
"""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY, LitSphere

from lit_sphere.report import Series, read_metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:FineTuneSwitch.* (will not take|never took) place"),
    pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning"),  # of a newer one
]
RUNS = REPOSITORY / "tests" / "runs_of_0_1"
NAMES = sorted(path.stem for path in RUNS.glob("*.ckpt"))
STEPS, DONE = 12, 6
LOGS = {
    "callbacks": {
        *("elr/total", "sharpness/online", "sharpness/train_pass", "regime", "schedule/sharpness", "barrier/cosine"),
        *("similarity/previous", "ensemble/error", "optimizer_comparison/AdaGradG_loss", "equal_ess/spread"),
    },
    "entered_sphere": {"elr/total", "norm/total"},
    "fixed_norm": {"norm/total"},
    "spheres": {"elr/total", "norm/total"},
}


def run_of(name: str, folder: Path) -> Path:
    """The checkpoint and its config.yaml, as they lay in the run's folder."""
    (folder / "old" / "checkpoints").mkdir(parents=True)
    shutil.copy(RUNS / f"{name}.yaml", folder / "old" / "config.yaml")
    return Path(shutil.copy(RUNS / f"{name}.ckpt", folder / "old" / "checkpoints" / "epoch0001-step000006.ckpt"))


def constant_norm(series: dict[str, Series], start: int) -> bool:
    norms = series["norm/total"]
    values = [value for step, value in zip(norms.steps, norms.values, strict=True) if step >= start]
    return len(values) > 0 and max(values) - min(values) < 1e-5 * max(values)


def test_there_are_old_runs() -> None:
    assert set(NAMES) == set(LOGS)


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_goes_on(name: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("fit", "--ckpt_path", str(run_of(name, empty_folder)), "--run", "new", "--wandb", "disabled")
    assert result.status == 0, result.err
    assert f"3 epochs, {STEPS} steps" in result.out
    series = read_metrics(empty_folder / "new" / "metrics.csv")
    assert series.keys() >= LOGS[name]
    assert series["train/loss"].epochs == [1, 2]
    if name in ("entered_sphere", "fixed_norm", "spheres"):
        assert constant_norm(series, DONE)
    if name in ("callbacks", "entered_sphere"):
        assert series["elr/total"].values[-1] == pytest.approx(2e-2, rel=1e-5)  # the switch's, at epoch 1


@pytest.mark.parametrize("name", NAMES)
def test_an_old_config_is_run_again(name: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    run_of(name, empty_folder)
    result = lit_sphere("fit", "--config", "old/config.yaml", "--run", "again", "--wandb", "disabled")
    assert result.status == 0, result.err
    assert read_metrics(empty_folder / "again" / "metrics.csv").keys() >= LOGS[name]
    text = (empty_folder / "again" / "config.yaml").read_text()  # with the present names only
    assert "spheres:" not in text
    assert text.count(" per:") == text.count(" per: epoch") == 1
    model = yaml.safe_load(text)["model"]["init_args"]
    assert model["granularity"] == ("tensor" if name == "spheres" else "joint")


def test_several_spheres_of_an_old_run_go_on(empty_folder: Path, lit_sphere: LitSphere) -> None:
    checkpoint = run_of("spheres", empty_folder)
    result = lit_sphere("fit", "--ckpt_path", str(checkpoint), "--run", "new", "--wandb", "disabled")
    assert result.status == 0, result.err
    old, new = (
        torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"]
        for path in (checkpoint, empty_folder / "new" / "checkpoints" / "last.ckpt")
    )
    assert len(old) > 1
    assert [group["radius"] for group in new] == [group["radius"] for group in old]
    assert {group["granularity"] for group in new} == {group["spheres"] for group in old} == {"joint"}
    assert all("spheres" not in group for group in new)


def test_an_old_checkpoint_without_its_config_goes_on(empty_folder: Path, lit_sphere: LitSphere) -> None:
    checkpoint = run_of("entered_sphere", empty_folder)
    (empty_folder / "old" / "config.yaml").unlink()
    result = lit_sphere("test", "--ckpt_path", str(checkpoint))
    assert result.status == 0, result.err
    assert "granularity" not in result.err


@pytest.mark.parametrize("name", NAMES)
def test_an_old_checkpoint_is_evaluated_and_begun_at(name: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    checkpoint = str(run_of(name, empty_folder))
    assert lit_sphere("test", "--ckpt_path", checkpoint).status == 0
    small = ["--trainer.max_epochs", "1", "--run", "new", "--wandb", "disabled", "--trainer.callbacks", "null"]
    result = lit_sphere("fit", "--ckpt_weights", checkpoint, *small)
    assert result.status == 0, result.err
    assert "begins at the weights of" in result.err
