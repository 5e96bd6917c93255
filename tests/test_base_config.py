"""What lies under what is typed: configs by name, the run of a checkpoint, in one parse."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import LitSphere
from test_bad_input import refused

from lit_sphere.cli.base_config import arguments_below, look_ahead
from lit_sphere.cli.config_names import default_config, find_config

TINY = ("fit", "--trainer.max_epochs", "1", "--data.train_size", "256", "--wandb", "disabled")


def shown(lit_sphere: LitSphere, *args: str) -> dict[str, Any]:
    result = lit_sphere("fit", *args, "--print_config")
    assert result.status == 0, result.err
    config: dict[str, Any] = yaml.safe_load(result.out)
    return config


@pytest.mark.parametrize(
    "form", [["--config", "cosine"], ["--config=cosine.yaml"], ["-c", "cosine"], ["-c=cosine"], ["-ccosine"]]
)
def test_a_shipped_config_by_name_in_every_form(form: list[str], empty_folder: Path, lit_sphere: LitSphere) -> None:
    scheduler = shown(lit_sphere, *form)["model"]["init_args"]["scheduler"]
    assert scheduler == shown(lit_sphere, "--config", find_config("cosine"))["model"]["init_args"]["scheduler"]
    assert scheduler is not None


def test_the_text_of_a_config_in_braces(empty_folder: Path, lit_sphere: LitSphere) -> None:
    config = shown(lit_sphere, "--config", "elr", "--config", '{"model": {"init_args": {"elr": 0.5}}}')
    assert config["model"]["init_args"]["elr"] == 0.5
    refused(lit_sphere("fit", "--config", "{model: 3"), "is no YAML", status=2)


def test_look_ahead_reads_the_last_of_each_option_and_skips_the_rest() -> None:
    args = ["--run", "r", "--config=a", "--trainer.max_epochs", "-1", "-c", "b", "--ckpt_path", "x", "--ckpt_path=y"]
    assert look_ahead([*args, "--model.width", "4"]) == (["a", "b"], "y", None, None, False)
    assert look_ahead(["--model", "SIConvNet", "--ckpt_weights=w"]) == ([], None, "w", "SIConvNet", False)


@pytest.mark.parametrize("args", [["-h"], ["--help"], ["--model.help", "SIConvNet"], ["--trainer.callbacks.help=X"]])
def test_help_needs_nothing_below(args: list[str]) -> None:
    assert arguments_below("fit", ["--ckpt_path", "nope.ckpt", *args]) == []


def test_a_folder_called_help_is_no_question() -> None:
    assert arguments_below("fit", ["--run", "my.helper"]) == ["--config", default_config()]


def test_of_two_checkpoints_the_last_gives_the_configuration(empty_folder: Path, lit_sphere: LitSphere) -> None:
    for width in ("2", "4"):
        assert lit_sphere(*TINY, "--run", width, "--model.width", width).status == 0
    two, four = (f"{width}/checkpoints/last.ckpt" for width in "24")
    args = ("fit", "--ckpt_path", two, "--ckpt_path", four, "--trainer.max_epochs", "2", "--run", "r")
    result = lit_sphere(*args)
    assert result.status == 0, result.err
    assert yaml.safe_load(Path("r/config.yaml").read_text())["model"]["init_args"]["width"] == 4


def test_a_checkpoint_alone_gives_the_folder_no_strange_name(empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere(*TINY, "--run", "a").status == 0
    shutil.copy("a/checkpoints/last.ckpt", "alone.ckpt")
    assert lit_sphere(*TINY, "--ckpt_weights", "alone.ckpt").status == 0
    assert [path.name.partition("-")[0] for path in Path("runs").iterdir()] == ["run"]


def test_weights_typed_beside_a_run_that_goes_on_are_not_put_aside(empty_folder: Path, lit_sphere: LitSphere) -> None:
    Path("on.yaml").write_text("ckpt_path: a/checkpoints/last.ckpt\n")
    args = ("fit", "--config", "elr", "--config", "on.yaml", "--ckpt_weights", "b.ckpt")
    refused(lit_sphere(*args), "both --ckpt_path and --ckpt_weights", "leave one out", status=2)
