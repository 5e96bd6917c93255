"""``lit-sphere interpolate A.ckpt B.ckpt``."""

import csv
import errno
import json
import shutil
from pathlib import Path

import matplotlib.image
import pytest
import torch
from conftest import LitSphere

from lit_sphere.analysis import ensemble_errors, loss_and_error, separation
from lit_sphere.cli import main
from lit_sphere.data import Digits
from lit_sphere.modules import SIConvNet

TINY = ("--trainer.max_epochs", "2", "--data.train_size", "256", "--model.width", "4", "--wandb", "disabled")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs from the same initialisation, and one of a wider network."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        barrier = ("--trainer.callbacks", "LinearInterpolationBarrier", "--trainer.callbacks.start")
        main(["fit", *TINY, "--run", "a"])
        main(["fit", *TINY, "--run", "b", "--model.elr", "3e-2", *barrier, "a/checkpoints/last.ckpt"])
        main(["fit", *TINY, "--run", "wide", "--model.width", "5", "--trainer.max_epochs", "1"])
    return folder


@pytest.fixture
def runs(trained: Path, empty_folder: Path) -> Path:
    for path in trained.iterdir():
        shutil.copytree(path, empty_folder / path.name)
    return empty_folder


A, B, WIDE = (f"{name}/checkpoints/last.ckpt" for name in ("a", "b", "wide"))


def curves(file: Path) -> dict[str, list[float]]:
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {key: [float(row[key]) for row in rows] for key in rows[0]}


def test_two_checkpoints_are_all_that_is_needed(runs: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("interpolate", A, B)
    assert result.status == 0, result.err
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("interpolate-")
    assert {path.name for path in folder.iterdir()} == {
        "interpolation.csv",
        "interpolation.json",
        "interpolation.png",
    }
    found = curves(folder / "interpolation.csv")
    about = json.loads((folder / "interpolation.json").read_text())
    assert (about["start"], about["end"], about["great_circle"]) == (A, B, False)
    assert -1 < about["cosine"] < 1
    assert about["barriers"].keys() == found.keys() - {"position"}
    assert found["position"] == [i / 20 for i in range(21)]
    picture = matplotlib.image.imread(folder / "interpolation.png")
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.02

    # The ends are the checkpoints, on the data of their runs.
    data = Digits(train_size=256)
    data.setup()
    model = SIConvNet(width=4, in_channels=1)
    states = [torch.load(path, weights_only=True)["state_dict"] for path in (A, B)]
    for end, state in zip((0, -1), states, strict=True):
        for name, one_pass in {"train": data.train_pass_dataloader, "test": data.test_dataloader}.items():
            model.load_state_dict(state)
            expected = loss_and_error(model.train(), one_pass())
            assert found[f"{name}_loss"][end] == pytest.approx(expected.loss, rel=1e-6)
            assert found[f"{name}_error"][end] == pytest.approx(expected.error)

    together = ensemble_errors(model, states, data.test_dataloader())
    assert about["ensemble"]["error"] == pytest.approx(together.ensemble)
    assert about["ensemble"]["member_errors"] == pytest.approx(together.members)
    assert f"{together.ensemble:.2%} test error of both together" in result.out

    lines = {line[:13].strip(): line[13:].split() for line in result.out.splitlines() if line.startswith("  ")}
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    between = separation(states[0], states[1], names)
    assert float(lines["cosine"][0].rstrip(",")) == pytest.approx(between.cosine, abs=1e-3)
    assert [float(x) for x in lines["ρ"]] == pytest.approx(list(between.norms), rel=1e-4)
    loss = found["train_loss"]
    height = max(v - (1 - t) * loss[0] - t * loss[-1] for t, v in zip(found["position"], loss, strict=True))
    assert [float(x) for x in lines["train loss"]] == pytest.approx([loss[0], loss[-1], max(height, 0)], rel=0.01)
    assert lines[""] == ["a", "b", "barrier"]
    assert lines["test error"][0] == f"{found['test_error'][0]:.2%}"
    assert "SIConvNet on Digits, batch statistics: 21 points on the segment" in result.out
    assert str(folder) in result.out


def test_the_callback_finds_the_same(runs: Path, lit_sphere: LitSphere) -> None:
    assert lit_sphere("interpolate", A, B, "--run", "i").status == 0
    command, callback = curves(Path("i/interpolation.csv")), curves(Path("b/barrier-last-to-0002.csv"))
    for name, values in callback.items():
        assert command[name.replace("val", "test")] == pytest.approx(values, rel=1e-6)


def test_options(runs: Path, lit_sphere: LitSphere) -> None:
    options = ("--points", "5", "--great_circle", "--statistics", "reestimated", "--data.train_size", "128")
    result = lit_sphere("interpolate", A, B, *options, "--run", "i", "--device", "cpu")
    assert result.status == 0, result.err
    assert len(curves(Path("i/interpolation.csv"))["position"]) == 5
    assert "statistics re-estimated: 5 points on the great circle" in result.out
    assert lit_sphere("interpolate", A, B, "--points", "5", "--run", "j").status == 0
    assert curves(Path("i/interpolation.csv")) != curves(Path("j/interpolation.csv"))


def test_checkpoints_without_their_folders(runs: Path, lit_sphere: LitSphere) -> None:
    """The hyperparameters in them make the model, data and all else can be typed; a config lies under both."""
    assert lit_sphere("interpolate", A, B, "--points", "3", "--run", "i").status == 0
    shutil.copy(A, "one.ckpt")
    shutil.copy(B, "two.ckpt")
    result = lit_sphere(
        "interpolate", "one.ckpt", "two.ckpt", "--points", "3", "--run", "j", "--data.train_size", "256"
    )
    assert result.status == 0, result.err
    result = lit_sphere("interpolate", "one.ckpt", "two.ckpt", "--config", "a/config.yaml", "--points=3", "--run", "k")
    assert result.status == 0, result.err
    result = lit_sphere("interpolate", "one.ckpt", "two.ckpt", "--config=elr.yaml", "--points", "3", "--run", "l")
    assert "network.convs.0.weight is (4, 1, 3, 3) in the one and (8, 1, 3, 3) in the model" in result.err
    found = [curves(Path(name) / "interpolation.csv") for name in "ijk"]
    assert found[0] == found[1] == found[2]


_BAD = {
    "none": ("", ["needs two checkpoints", "interpolate A.ckpt B.ckpt"]),
    "one": (A, ["needs two checkpoints"]),
    "options first": (f"--points 3 {A} {B}", ["needs two checkpoints, first of all"]),
    "missing": (f"{A} nope.ckpt", ["nope.ckpt: no such file"]),
    "empty": (f"empty.ckpt {B}", ["empty.ckpt", "truncated", "another"]),
    "text": (f"{A} text.ckpt", ["text.ckpt", "no checkpoint at all"]),
    "others": (f"{A} {WIDE}", [WIDE, "another architecture than", "(5, 1, 3, 3) in the one and (4, 1, 3, 3)"]),
    "other model": (f"{A} {B} --model.width 5", [A, "than --model SIConvNet", "(5, 1, 3, 3) in the model", "give"]),
    "points": (f"{A} {B} --points 2", ["--points must be at least 3", "got 2"]),
    "no points": (f"{A} {B} --points x", ["--points", "expected int", "x"]),
    "statistics": (f"{A} {B} --statistics x", ["--statistics", "'reestimated'"]),
    "unknown option": (f"{A} {B} --bogus 3", ["--bogus"]),
    "unknown config": (f"{A} {B} --config nope.yaml", ["nope.yaml", "elr_optima"]),
    "data": (f"{A} {B} --data.train_size 100000", ["100000", "lower"]),
    "folder with results": (f"{A} {B} --run done", ["done/interpolation.csv exists already", "another --run"]),
    "folder is a file": (f"{A} {B} --run text.ckpt", ["--run text.ckpt", "cannot be made", "choose another folder"]),
    "not finite": (f"{A} nan.ckpt", ["nan.ckpt", "network.convs.0.weight", "NaN", "an earlier checkpoint"]),
}


@pytest.mark.parametrize("name", _BAD)
def test_one_line_names_mistake_and_remedy(name: str, runs: Path, lit_sphere: LitSphere) -> None:
    Path("empty.ckpt").write_bytes(b"")
    Path("text.ckpt").write_text("no checkpoint at all\n" * 20)
    checkpoint = torch.load(A, weights_only=True)
    checkpoint["state_dict"]["network.convs.0.weight"] *= torch.nan
    torch.save(checkpoint, "nan.ckpt")
    Path("done").mkdir()
    Path("done/interpolation.csv").write_text("")
    line, words = _BAD[name]
    result = lit_sphere("interpolate", *line.split())
    assert result.status == 2, result.err
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("lit-sphere: ")
    assert all(word in lines[0] for word in words), lines[0]
    assert not Path("runs").exists(), "a folder is left behind"
    assert "barrier" not in result.out


def test_a_picture_that_cannot_be_written_does_not_lose_the_numbers(runs: Path, lit_sphere: LitSphere) -> None:
    Path("r/interpolation.png").mkdir(parents=True)
    result = lit_sphere("interpolate", A, B, "--points", "3", "--run", "r")
    assert result.status == 0
    assert result.err.splitlines()[-1] == "lit-sphere: no picture r/interpolation.png: Is a directory"
    assert "train loss" in result.out
    assert len(curves(Path("r/interpolation.csv"))["position"]) == 3


def test_a_table_that_cannot_be_written_is_printed(
    runs: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "r/interpolation.csv")

    monkeypatch.setattr("lit_sphere.cli.interpolate.write_interpolation", full)
    result = lit_sphere("interpolate", A, B, "--points", "3", "--run", "r")
    assert result.status == 1
    assert "No space left on device" in result.err
    assert "train loss" in result.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(runs: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("interpolate", A, B, "--device", "cuda")
    assert result.status == 2
    assert "no GPU found; use --device cpu" in result.err


def test_help_and_completion(empty_folder: Path, lit_sphere: LitSphere) -> None:
    text = lit_sphere("interpolate", "--help").out
    for word in ("A.ckpt", "B.ckpt", "--points", "--great_circle", "--statistics", "--run", "--data", "--config"):
        assert word in text
    assert "lightning.pytorch.demos" not in text
    assert "interpolate" in lit_sphere("--help").out
    script = lit_sphere("--print_shtab", "bash").out
    assert "interpolate" in script
    assert "--great_circle" in script
