"""A new run that begins at the weights of another one, on its sphere."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import LitSphere
from test_bad_input import refused

from lit_sphere.report import read_metrics

TINY = ("--data.train_size", "256", "--wandb", "disabled")
A = ("fit", *TINY, "--model.width", "4", "--trainer.max_epochs", "2", "--run", "a")
CKPT = "a/checkpoints/last.ckpt"


def read(path: str) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def radius(path: str) -> Any:
    return read(path)["optimizer_states"][0]["param_groups"][0]["radius"]


@pytest.fixture
def another(empty_folder: Path, lit_sphere: LitSphere) -> Path:
    done = lit_sphere(*A)
    assert done.status == 0, done.err
    return empty_folder


def test_it_begins_there_with_the_model_of_that_run_and_what_is_typed(another: Path, lit_sphere: LitSphere) -> None:
    # No number of fp32 arithmetic: only the checkpoint's own radius can be this.
    state = read(CKPT)
    state["optimizer_states"][0]["param_groups"][0]["radius"] *= 1 + 1e-9
    torch.save(state, CKPT)
    args = ("fit", "--config", "fine_tune.yaml", "--ckpt_weights", CKPT, "--trainer.max_epochs", "1")
    done = lit_sphere(*args, "--run", "b", "--wandb", "disabled", "--trainer.limit_train_batches", "1")
    assert done.status == 0, done.err
    assert f"begins at the weights of {another / CKPT} (epoch 2), ρ = {radius(CKPT):.5g}" in done.err
    config = yaml.safe_load(Path("b/config.yaml").read_text())
    assert config["model"]["init_args"]["width"] == 4
    assert config["model"]["init_args"]["elr"] == 1e-3
    assert config["data"]["init_args"]["train_size"] == 256
    assert radius("b/checkpoints/last.ckpt") == radius(CKPT)
    assert read("b/checkpoints/last.ckpt")["epoch"] == 0
    one, two = read(CKPT)["state_dict"], read("b/checkpoints/last.ckpt")["state_dict"]
    largest = max(float((one[name] - two[name]).abs().max()) for name in one if "weight" in name)
    assert 0 < largest < 0.1, "one step at a small ELR moves the weights little"
    typed = lit_sphere(*args, "--run", "c", "--wandb", "disabled", "--model.elr", "2e-3")
    assert typed.status == 0
    assert yaml.safe_load(Path("c/config.yaml").read_text())["model"]["init_args"]["elr"] == 2e-3


def test_without_training_the_weights_and_buffers_are_the_same(another: Path, lit_sphere: LitSphere) -> None:
    args = ("fit", "--ckpt_weights", CKPT, "--trainer.max_epochs", "1", "--model.elr", "1e-30", "--run", "b")
    assert lit_sphere(*args, "--wandb", "disabled", "--trainer.val_check_interval", "1").status == 0
    one, two = read(CKPT)["state_dict"], read("b/checkpoints/last.ckpt")["state_dict"]
    weights = [name for name in one if "conv" in name or "head" in name]
    assert weights
    assert all(torch.allclose(one[name], two[name], rtol=1e-6) for name in weights)
    moved = [(one[name] - two[name]).abs().max() for name in one if "running_mean" in name]
    fresh = [one[name].abs().max() for name in one if "running_mean" in name]
    assert max(moved) < 0.6 * max(fresh)


def test_its_config_repeats_it_and_it_resumes(another: Path, lit_sphere: LitSphere) -> None:
    args = ("--config", "fine_tune.yaml", "--ckpt_weights", CKPT, "--trainer.max_epochs", "2", "--wandb", "disabled")
    assert lit_sphere("fit", *args, "--run", "b").status == 0
    assert lit_sphere("fit", "--config", "b/config.yaml", "--run", "c").status == 0
    losses = [read_metrics(f"{run}/metrics.csv")["train/loss"].values for run in ("b", "c")]
    assert losses[0] == losses[1]
    # It goes on in place, and a while after the other run is gone.
    shutil.rmtree("a")
    on = ("fit", "--ckpt_path", "b/checkpoints/last.ckpt", "--run", "b", "--trainer.max_epochs", "3")
    done = lit_sphere(*on)
    assert done.status == 0, done.err
    assert "begins at" not in done.err
    assert read_metrics("b/metrics.csv")["train/loss"].epochs == [0, 1, 2]
    assert yaml.safe_load(Path("b/config.yaml").read_text())["ckpt_weights"] == str(another / CKPT)


def test_from_the_sphere_to_the_whole_space_and_back(another: Path, lit_sphere: LitSphere) -> None:
    whole = "--model.elr null --model.optimizer SGD --model.optimizer.lr 0.1 --model.optimizer.weight_decay 1e-2"
    few = ("--trainer.max_epochs", "1", "--wandb", "disabled")
    done = lit_sphere("fit", "--ckpt_weights", CKPT, *whole.split(), *few, "--run", "b")
    assert done.status == 0, done.err
    there = "b/checkpoints/last.ckpt"
    back = lit_sphere("fit", "--config", "fine_tune.yaml", "--ckpt_weights", there, *few, "--run", "c")
    refused_for = "--model.optimizer null"
    assert back.status != 0
    assert refused_for in back.err
    args = ("fit", "--config", "fine_tune.yaml", "--ckpt_weights", there, *refused_for.split(), *few, "--run", "d")
    assert lit_sphere(*args).status == 0
    weights = [p for name, p in read(there)["state_dict"].items() if "convs" in name]
    assert radius("d/checkpoints/last.ckpt") == pytest.approx(sum(float(p.pow(2).sum()) for p in weights) ** 0.5)
    assert radius("d/checkpoints/last.ckpt") != pytest.approx(radius(CKPT), rel=1e-4)


@pytest.mark.parametrize("granularity", ["tensor", "filter"])
def test_several_spheres(granularity: str, another: Path, lit_sphere: LitSphere) -> None:
    few = ("--trainer.max_epochs", "1", "--wandb", "disabled")
    for run, ckpt in (("b", CKPT), ("c", "b/checkpoints/last.ckpt")):
        args = ("fit", "--ckpt_weights", ckpt, "--model.granularity", granularity, *few, "--run", run)
        done = lit_sphere(*args)
        assert done.status == 0, done.err
    one, two = (read(f"{run}/checkpoints/last.ckpt")["optimizer_states"][0] for run in "bc")
    assert len(one["param_groups"]) == (4 if granularity == "tensor" else 1)
    for theirs, mine in zip(one["param_groups"], two["param_groups"], strict=True):
        assert theirs.get("radius") == mine.get("radius")
    for number, state in one["state"].items():
        assert torch.equal(state["radius"], two["state"][number]["radius"])


@pytest.mark.parametrize(
    ("line", "words", "status"),
    [
        ("--ckpt_weights nope.ckpt", ["--ckpt_weights nope.ckpt", "no such file"], 2),
        ("--ckpt_weights torn.ckpt", ["--ckpt_weights torn.ckpt", "truncated"], 2),
        ("--ckpt_weights pickled.ckpt", ["--ckpt_weights pickled.ckpt", "pickled code"], 2),
        (f"--ckpt_weights {CKPT} --model.width 8", ["--ckpt_weights", "another architecture", "--model"], 2),
        (f"--ckpt_weights {CKPT} --ckpt_path {CKPT}", ["both --ckpt_path and --ckpt_weights", "leave one out"], 2),
        ("", ["no model", "--ckpt_weights"], 2),
    ],
)
def test_refused(line: str, words: list[str], status: int, another: Path, lit_sphere: LitSphere) -> None:
    Path("torn.ckpt").write_bytes(Path(CKPT).read_bytes()[:3000])
    torch.save({"state_dict": Path("x"), "global_step": 1}, "pickled.ckpt")
    args = ("--config", "fine_tune.yaml", "--run", "r", "--wandb", "disabled")
    refused(lit_sphere("fit", *args, *line.split()), *words, status=status)


def test_only_fit_begins_a_run(another: Path, lit_sphere: LitSphere) -> None:
    refused(lit_sphere("test", "--ckpt_weights", CKPT), "--ckpt_weights begins a new run", "--ckpt_path", status=2)
