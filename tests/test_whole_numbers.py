"""A whole number stays one: ``1`` is one batch, ``1.0`` are all, typed, in YAML, and in a config.yaml read again."""

from pathlib import Path
from typing import Any, Optional, Union, get_args

import pytest
import yaml
from cli_networks import CountBatches
from conftest import LitSphere

from lit_sphere.cli.parser import int_before_float

# Three batches to train on, three to evaluate.
DATA = ("--model.width", "2", "--data.train_size", "1500", "--data.batch_size", "500", "--data.eval_batch_size", "100")
COUNT = ("--trainer.max_epochs", "1", "--wandb", "disabled", "--trainer.callbacks", "cli_networks.CountBatches")
LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches")


@pytest.mark.parametrize(("written", "batches"), [("1", 1), ("1.0", 3)])
def test_validation_batches(written: str, batches: int, empty_folder: Path, lit_sphere: LitSphere) -> None:
    def validated(*args: str) -> int:
        result = lit_sphere(*args)
        assert result.status == 0, result.err
        assert CountBatches.seen["train"] == 3
        return CountBatches.seen["val"]

    assert validated("fit", *DATA, *COUNT, "--run", "typed", "--trainer.limit_val_batches", written) == batches
    Path("mine.yaml").write_text(f"trainer: {{limit_val_batches: {written}}}\n")
    assert validated("fit", "--config", "elr", "--config", "mine.yaml", *DATA, *COUNT, "--run", "yaml") == batches
    assert validated("fit", "--config", "typed/config.yaml", "--run", "again") == batches


@pytest.mark.parametrize("written", ["1", "1.0"])
def test_the_trainer_gets_what_is_typed(written: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    typed = [f"--trainer.{name}={written}" for name in (*LIMITS, "val_check_interval")]
    result = lit_sphere("fit", *DATA, *COUNT, "--run", "r", *typed)
    assert result.status == 0, result.err
    expected = yaml.safe_load(written)
    for name in (*LIMITS, "val_check_interval"):
        assert (name, repr(CountBatches.limits[name])) == (name, repr(expected))
    assert CountBatches.seen["train"] == (1 if written == "1" else 3)
    result = lit_sphere("fit", *DATA, *COUNT, "--run", "s", f"--trainer.overfit_batches={written}")
    assert result.status == 0, result.err
    assert CountBatches.seen["train"] == CountBatches.seen["val"] == (1 if written == "1" else 3)


@pytest.mark.parametrize(("written", "batches"), [("1", 1), ("1.0", 3)])
def test_evaluation_batches(written: str, batches: int, empty_folder: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere("fit", *DATA, *COUNT, "--run", "a").status == 0
    ckpt = ("--ckpt_path", "a/checkpoints/last.ckpt")
    assert lit_sphere("test", *ckpt, "--trainer.limit_test_batches", written).status == 0
    assert CountBatches.seen == {"test": batches}
    assert lit_sphere("validate", *ckpt, "--trainer.limit_val_batches", written).status == 0
    assert CountBatches.seen == {"val": batches}


# typing gives the order of the first one to the second.
_LIGHTNING_WRITES = [Optional[Union[float, int]], Optional[Union[int, float]]]  # noqa: UP007, UP045


@pytest.mark.parametrize("annotation", [*_LIGHTNING_WRITES, float | str | int])
def test_int_comes_first_in_whichever_union(annotation: Any) -> None:
    ordered = int_before_float(annotation)
    assert ordered == annotation
    assert get_args(ordered).index(int) < get_args(ordered).index(float)


@pytest.mark.parametrize("annotation", [float, int | None, list[float | int], str])
def test_other_annotations_are_left_alone(annotation: Any) -> None:
    assert int_before_float(annotation) is annotation
