"""A picture that cannot be drawn or written costs one line, never a run."""

import resource
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.image
import pytest
from conftest import LitSphere
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure

from lit_sphere.observe.publishing import save_picture
from lit_sphere.report import NoPicture, write_picture

FIT = ("fit", "--trainer.max_epochs", "2", "--data.train_size", "256", "--wandb", "disabled", "--run", "r")


def figure(label: str = "x") -> Figure:
    drawn = Figure(figsize=(2, 2))
    drawn.add_subplot().set_xlabel(label)
    return drawn


def broken() -> Figure:
    raise RuntimeError("no\n font")


@pytest.mark.parametrize(
    ("draw", "why"),
    [(broken, "RuntimeError: no font"), (lambda: figure("$x"), None), (lambda: figure("$\\nope$"), "nope")],
    ids=["building", "a lone dollar is text", "saving"],
)
def test_what_fails_is_named(draw: Any, why: str | None, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    if why is None:
        write_picture(path, draw)
        assert path.exists()
        return
    with pytest.raises(NoPicture, match=rf"no picture .*a\.png: .*{why}") as failed:
        write_picture(path, draw)
    assert "\n" not in str(failed.value)
    assert not list(tmp_path.rglob("*.p*"))


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(NoPicture, match=r"a\.png: Is a directory"):
        write_picture(tmp_path / "a.png", figure)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_full_disk_leaves_the_older_picture(tmp_path: Path) -> None:
    """A limit on the size of a file stands for it."""
    path = tmp_path / "a.png"
    write_picture(path, figure)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(NoPicture, match=r"no picture .*a\.png: File too large"):
            write_picture(path, figure)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


def test_tex_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with mpl.rc_context({"text.usetex": True}):
        with pytest.raises(RuntimeError, match="latex"):
            figure().savefig(tmp_path / "a.png")
        write_picture(tmp_path / "b.png", figure)
    assert matplotlib.image.imread(tmp_path / "b.png").std() > 0.02


def test_a_run_whose_pictures_fail_is_whole(
    empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails while it is built, one while it is written; in mid-run and at the end."""

    def fails(*_: object) -> Figure:
        raise RuntimeError("no font")

    monkeypatch.setattr("lit_sphere.callbacks.sharpness.draw_sharpness", fails)
    Path("r/curves.png").mkdir(parents=True)
    similarity = ("--trainer.callbacks+=CheckpointSimilarity", "--trainer.callbacks.every_n_epochs=1")
    with pytest.warns(UserWarning) as warned:  # noqa: PT030
        result = lit_sphere(*FIT, "--trainer.callbacks+=SharpnessMonitor", *similarity)
    assert result.status == 0
    assert "train loss" in result.out
    assert "run folder" in result.out
    lost = [str(each.message) for each in warned if "picture" in str(each.message)]
    assert lost == ["no picture r/sharpness.png: RuntimeError: no font", "no picture r/curves.png: Is a directory"]
    assert Path("r/similarity.png").is_file()
    assert Path("r/checkpoints/last.ckpt").is_file()


def test_curves_of_a_foreign_table_cost_a_warning(
    empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> None:
        raise ValueError(f"{path} is no metrics.csv: it has no column 'step'")

    monkeypatch.setattr("lit_sphere.callbacks.run_summary.read_metrics", fails)
    with pytest.warns(UserWarning, match="RunSummary draws no curves: ValueError: r/metrics.csv is no metrics"):
        result = lit_sphere(*FIT)
    assert result.status == 0
    assert "run folder" in result.out


class _Refuses(WandbLogger):
    def log_image(self, *_: Any, **__: Any) -> None:
        raise ConnectionResetError("Connection lost")


def test_a_picture_that_wandb_does_not_take_is_in_the_folder(tmp_path: Path) -> None:
    trainer = Trainer(logger=_Refuses(save_dir=tmp_path, offline=True), accelerator="cpu", default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"W&B did not take .*a\.png: ConnectionResetError: Connection lost"):
        save_picture(trainer, tmp_path, "a", figure)
    assert (tmp_path / "a.png").is_file()
