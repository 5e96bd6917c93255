"""Two callbacks of one kind in one trainer: told before training, where they would overwrite each other."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from callback_fits import Memory, quietly
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger

from lit_sphere.callbacks import (
    CheckpointSimilarity,
    CosineRegimeAnalysis,
    FineTuneSwitch,
    LinearInterpolationBarrier,
    RegimeMonitor,
    SharpnessMonitor,
    Switch,
)
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet

pytestmark = quietly


class Derived(RegimeMonitor):
    """Writes what its base writes."""


def fit(folder: Path, *callbacks: Callback, logger: Logger | None = None) -> None:
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger or Memory(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    torch.manual_seed(0)
    trainer.fit(SIConvNet(width=4, in_channels=1, elr=1e-2), Digits(train_size=64, batch_size=32))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: [CheckpointSimilarity(1), CheckpointSimilarity(1, keep=3)], "similarity.csv; leave one out"),
        (lambda: [SharpnessMonitor(), SharpnessMonitor(train_pass_every=1)], "sharpness.png; leave one out"),
        (lambda: [RegimeMonitor(), RegimeMonitor(every_n_steps=2)], "regime and regime.png; leave one out"),
        (lambda: [RegimeMonitor(), Derived(every_n_steps=2)], "^RegimeMonitor: there are two"),
        (lambda: [CosineRegimeAnalysis(), CosineRegimeAnalysis(every_n_steps=2)], "cosine_regimes.json; leave one out"),
    ],
)
def test_refused_where_files_and_curves_are_the_same(
    make: Callable[[], list[Callback]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        fit(tmp_path, *make())


def test_different_kinds_stand_beside_each_other(tmp_path: Path) -> None:
    circle = LinearInterpolationBarrier(every_n_epochs=1, points=3, great_circle=True)
    barrier = LinearInterpolationBarrier(every_n_epochs=1, points=3)
    fit(tmp_path, RegimeMonitor(), CosineRegimeAnalysis(), CheckpointSimilarity(1), barrier, circle)


def test_barriers_whose_files_are_apart_but_not_their_curves(tmp_path: Path) -> None:
    one = LinearInterpolationBarrier(every_n_epochs=1, points=3)
    two = LinearInterpolationBarrier(every_n_epochs=1, points=3, statistics="reestimated")
    said = "2 of them log barrier/…, which mixes their curves; look at their files"
    with pytest.warns(UserWarning, match=said) as told:
        fit(tmp_path, one, two)
    assert len([each for each in told if "of them" in str(each.message)]) == 1


def test_two_lists_of_switches_keep_a_checkpoint_each(tmp_path: Path) -> None:
    switches = [FineTuneSwitch([Switch(epoch=1, elr=1e-3)]), FineTuneSwitch([Switch(epoch=1, augment=True)])]
    fit(tmp_path, *switches, logger=CSVLogger(tmp_path, name="", version=""))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["before-switch-1-epoch0001.ckpt", "before-switch-2-epoch0001.ckpt"]
    first = torch.load(tmp_path / "checkpoints" / names[0], weights_only=True)
    assert first["optimizer_states"][0]["param_groups"][0]["elr"] == 1e-2
