"""W&B runs are found by group, job type and tags, and compared by their summary, however they ended."""

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from conftest import LitSphere
from lightning.pytorch import Callback
from wandb_server import fresh_wandb

from lit_sphere.analysis import RegimeVerdict
from lit_sphere.callbacks import Interrupted
from lit_sphere.cli.config_names import read_config, shipped_configs
from lit_sphere.cli.errors import CommandLineError
from lit_sphere.cli.wandb_labels import LoggedValues, regime_table, run_labels
from lit_sphere.report.wandb_files import WandbRun, read_wandb

pytestmark = pytest.mark.usefixtures(fresh_wandb.__name__)

FIT = (
    "fit",
    "--config",
    "elr.yaml",
    "--data.train_size",
    "64",
    "--data.full_batch",
    "true",
    "--model.width",
    "2",
    "--run",
    "r",
)


# --- group, job type, tags -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "group", "tags"),
    [
        ("elr.yaml", "SIConvNet on Digits", ["SIConvNet", "Digits", "sphere"]),
        (
            "cosine.yaml",
            "PracticalConvNet on Digits",
            ["PracticalConvNet", "Digits", "whole space", "SGD", "CosineAnnealingLR"],
        ),
        ("adam_elr.yaml", "SIConvNet on Digits", ["SIConvNet", "Digits", "whole space", "Adam"]),
        ("converted_vit.yaml", "VisionTransformer on Digits", ["VisionTransformer", "Digits", "sphere"]),
        ("fine_tune_up.yaml", "SIConvNet on Digits", ["SIConvNet", "Digits", "sphere", "switch"]),
        (
            "adagradg.yaml",
            "ResNet20 on Digits",
            ["ResNet20", "Digits", "whole space", "switch", "optimizer comparison", "SGD"],
        ),
    ],
)
def test_labels_of_shipped_configs(config: str, group: str, tags: list[str]) -> None:
    assert run_labels(read_config(config)) == (group, "fit", tags)


def test_a_fixed_norm_is_a_protocol_of_its_own() -> None:
    config = read_config("adam_elr.yaml")
    config["trainer"]["callbacks"] = [{"class_path": "lit_sphere.callbacks.FixedNorm"}]
    assert run_labels({**config, "ckpt_weights": "a.ckpt"}).tags == [
        *("SIConvNet", "Digits", "fixed norm", "Adam", "fine-tuning")
    ]


@pytest.mark.parametrize("config", [{}, {"model": None, "data": 3, "trainer": {"callbacks": "x"}}])
def test_what_is_not_there_is_left_out(config: dict[str, Any]) -> None:
    assert run_labels(config) == ("", "fit", [])


def test_all_shipped_configs_have_tags_that_wandb_takes() -> None:
    configs = [read_config(name) for name in shipped_configs()]
    for config in (each for each in configs if "data" in each):  # fine_tune.yaml goes over another run's
        labels = run_labels(config)
        assert 1 <= len(labels.group) <= 128
        assert len(labels.tags) >= 2
        assert all(1 <= len(tag) <= 64 for tag in labels.tags)
    long = run_labels({"model": {"class_path": "a." + "b" * 200}, "data": {"class_path": "c.d"}})
    assert len(long.group) == 128
    assert long.tags[0] == "b" * 64


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "grid")
    monkeypatch.setenv("WANDB_JOB_TYPE", "sweep")
    monkeypatch.setenv("WANDB_TAGS", "mine, sphere,,")
    assert run_labels(read_config("elr.yaml")) == ("grid", "sweep", ["mine", "sphere", "SIConvNet", "Digits"])
    monkeypatch.setenv("WANDB_TAGS", "ok," + "a" * 65)
    with pytest.raises(CommandLineError, match=r"^WANDB_TAGS: a{20}… is 65 characters long; W&B takes 64$"):
        run_labels({})
    monkeypatch.delenv("WANDB_TAGS")
    monkeypatch.setenv("WANDB_RUN_GROUP", "a" * 129)
    with pytest.raises(CommandLineError, match=r"^WANDB_RUN_GROUP: "):
        run_labels({})


# --- summary ---------------------------------------------------------------------------------------------


def test_the_summary_holds_last_and_best_values_of_the_run_as_a_whole() -> None:
    logged = LoggedValues()
    keys = ["epoch", "step", "train/loss", "elr/total", "elr/convs.0.weight", "val/error"]
    logged.add_rows(keys, [["0", "3", "2.5", "0.1", "7", ""], ["0", "3", "", "", "", "0.25"]])
    logged.add({"epoch": 1, "train/loss": 0.5, "elr/total": 0.2, "val/error": 0.5})
    logged.add({"epoch": 2, "train/loss": math.nan, "lr-SGD": 3.0, "regime": 1.0, "pictures/x": [object()]})
    logged.add({"epoch": 2, "val/error": 0.25, "barrier/train_loss": 4})
    assert logged.summary(None) == {
        "final/train/loss": 0.5,
        "final/elr/total": 0.2,
        "final/val/error": 0.25,
        "final/barrier/train_loss": 4.0,
        "best/train/loss": 0.5,
        "best/train/loss_epoch": 1.0,
        "best/val/error": 0.25,
        "best/val/error_epoch": 0.0,
    }
    verdict = RegimeVerdict("chaotic equilibrium", "steady", 12)
    summary = logged.summary(verdict)
    assert {key: value for key, value in summary.items() if "/" not in key} == {
        "regime": "chaotic equilibrium",
        "regime_number": 2.0,
        "evidence": "steady",
        "since": 12.0,
    }
    columns, row = regime_table("r", summary)
    assert dict(zip(columns, row, strict=True)) == {
        "run": "r",
        "ELR": 0.2,
        "regime": "chaotic equilibrium",
        "since epoch": 12.0,
        "evidence": "steady",
        "train loss": 0.5,
        "sharpness": None,
        "best validation error": 0.25,
    }
    assert "since" not in logged.summary(RegimeVerdict("undecided", "short"))
    assert LoggedValues().summary(None) == {}


# --- real runs -------------------------------------------------------------------------------------------


class Raises(Callback):
    """Ends the fit in its second epoch."""

    def __init__(self, what: str) -> None:
        self.error: BaseException = {
            "failed": RuntimeError("no more"),
            "interrupted": Interrupted(signal.SIGTERM, Path("x.ckpt"), 1, 2),
        }[what]

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            raise self.error


def runs_of(folder: str) -> list[WandbRun]:
    wandb.teardown()  # its process writes the rest of the file after the run's end
    return [read_wandb(path) for path in sorted(Path(folder, "wandb").glob("offline-run-*"))]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["failed", "interrupted"])
def test_a_run_that_does_not_come_to_its_end(how: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere(
        *FIT,
        "--trainer.max_epochs",
        "3",
        "--trainer.callbacks+=test_wandb_labels.Raises",
        "--trainer.callbacks.what",
        how,
    )
    assert result.status in (1, 128 + signal.SIGTERM)
    (run,) = runs_of("r")
    assert run.exit_code == 1
    assert run.tags == ["SIConvNet", "Digits", "sphere", "undecided", how]
    assert run.summary["final/train/loss"] == run.series["train/loss"].values[-1]
    assert run.series["train/loss"].epochs == [0]
    assert run.summary["evidence"] == "only 1 epochs, at least 20 are needed"
    assert run.objects["pictures/curves"] == "images/separated"


@pytest.mark.slow
def test_a_resumed_run_counts_what_was_before(empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere(*FIT, "--trainer.max_epochs", "2").status == 0
    (whole,) = runs_of("r")
    resume = ("fit", "--ckpt_path", "r/checkpoints/last.ckpt", "--run", "r", "--trainer.max_epochs", "3")
    # At an ELR at which nothing is learnt.
    assert lit_sphere(*resume, "--model.elr", "10").status == 0
    _, rest = runs_of("r")
    assert rest.tags == ["SIConvNet", "Digits", "sphere", "resumed", "undecided"]
    assert rest.series["val/loss"].epochs == [2]
    best = min(whole.series["val/loss"].values)
    assert rest.summary["best/val/loss"] == best < rest.summary["final/val/loss"]
    assert rest.summary["best/val/loss_epoch"] == whole.series["val/loss"].values.index(best)


def test_keys_that_come_without_an_epoch_get_one(empty_folder: Path, lit_sphere: LitSphere) -> None:
    yaml_text = {"trainer": {"callbacks": [{"class_path": "LearningRateMonitor"}]}}
    Path("more.yaml").write_text(yaml.safe_dump(yaml_text))
    result = lit_sphere(*FIT, "--config", "more.yaml", "--trainer.max_epochs", "2")
    assert result.status == 0, result.err
    (run,) = runs_of("r")
    assert set(run.series["lr-SphereSGD"].epochs) == {0, 1}
    assert set(run.axes.values()) == {"", "epoch"}
    assert {key for key, axis in run.axes.items() if not axis} == {"epoch", "trainer/global_step"}
    assert run.axes.keys() >= {*run.series, "pictures/curves"}
