"""``lit-sphere toy`` from an empty directory: pictures, numbers, and one line for bad input."""

import csv
import math
from pathlib import Path

import matplotlib.image
import pytest
from conftest import LitSphere, Result

_SMALL = ["--grid", "12", "--seeds", "4", "--run", "toy"]


def rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{k: float(cell) for k, cell in row.items() if k != "regime"} for row in csv.DictReader(file)]


def regimes(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["regime"] for row in csv.DictReader(file)]


def test_the_sphere_shows_three_regimes_and_the_levels_of_the_theory(empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("toy", *_SMALL)
    assert result.status == 0, result.err
    lines = {line.split()[0]: line.split() for line in result.out.splitlines() if line.startswith("  0.")}
    assert set(lines) == {"0.1", "0.2", "0.5"}
    seen = {elr: float(cells[2]) for elr, cells in lines.items()}
    assert seen["0.1"] < 1e-6
    assert seen["0.2"] == pytest.approx(1.0, abs=5e-3)
    assert seen["0.5"] == pytest.approx(2.53, abs=0.1)
    groups = [float(cell.strip("()")) for cell in lines["0.2"][3:]]
    assert groups == pytest.approx([1.4, 1.4, 0.7, 0.7, 0.35, 0.35], rel=5e-3)
    table = rows(empty_folder / "toy" / "toy.csv")
    assert len(table) == 12
    for row in table:
        assert row["median"] == pytest.approx(row["predicted_loss"], abs=0.12)
    # Borders 1/Σα = 1/7, and 2/Σα, where the angle of a step at equilibrium reaches 60°.
    expected = [
        "convergence" if row["elr"] < 1 / 7 else "chaotic equilibrium" if row["elr"] < 2 / 7 else "divergence"
        for row in table
    ]
    assert regimes(empty_folder / "toy" / "toy.csv") == expected
    assert matplotlib.image.imread(empty_folder / "toy" / "toy.png").std() > 0.05
    settled = [row for row in rows(empty_folder / "toy" / "toy_elrs.csv") if row["elr"] == 0.2 and row["step"] > 1000]
    assert {row["alpha"] for row in settled} == {1, 2, 4}
    for row in settled:
        assert row["predicted_elr"] == pytest.approx(1.4 / row["alpha"])
        assert row["median_elr"] == pytest.approx(row["predicted_elr"], rel=0.05)


def test_the_plane_shows_periods(empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("toy", "--weight-decay", "0", "0.03", "0.1", "--plane-steps", "50", "--run", "plane")
    assert result.status == 0, result.err
    periods = [line.split()[1] for line in result.out.splitlines() if line.startswith("  0")]
    assert periods[0] == "none"
    assert [float(period) for period in periods[1:]] == pytest.approx([17, 11], abs=0.5)
    assert len(rows(empty_folder / "plane" / "toy.csv")) == 150
    assert (empty_folder / "plane" / "toy.png").exists()


def test_a_picture_that_cannot_be_written_does_not_lose_the_numbers(empty_folder: Path, lit_sphere: LitSphere) -> None:
    Path("toy/toy.png").mkdir(parents=True)
    result = lit_sphere("toy", *_SMALL, "--steps", "100")
    assert result.status == 0
    assert result.err == "lit-sphere: no picture toy/toy.png: Is a directory\n"
    assert "predicted loss" in result.out
    assert len(rows(Path("toy/toy.csv"))) == 12


def test_help_names_every_option(lit_sphere: LitSphere) -> None:
    result = lit_sphere("toy", "--help")
    assert result.status == 0
    for option in ("--alphas", "--elrs", "--steps", "--grid", "--seeds", "--weight-decay", "--lr", "--run"):
        assert option in result.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--elrs", "0"], "--elrs must be positive, from 1e-06 to 1e+06, got 0"),
        (["--elrs", "0.1", "-0.2"], "--elrs must be positive, from 1e-06 to 1e+06, got 0.1, -0.2"),
        (["--elrs", "1e300"], "--elrs must be positive"),
        (["--elrs", "nan"], "--elrs"),
        (["--elrs", "inf"], "--elrs"),
        (["--elrs", "fast"], "--elrs"),
        (["--alphas", "-1"], "--alphas must be positive, from 1e-06 to 1e+06, got -1"),
        (["--alphas", "1", "nan"], "--alphas"),
        (["--alphas"], "--alphas"),
        (["--steps", "1"], "--steps must be at least 2"),
        (["--grid", "100000", "--seeds", "100000"], "is more than 10000000 runs: lower one of them"),
        (["--grid", "1"], "--grid must be at least 2"),
        (["--grid", "1.5"], "--grid"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--unknown", "1"], "unknown"),
        (["--elr", "0.1"], "--elr"),
        (["--lr", "2"], "--lr needs --weight-decay as well"),
        (["--plane-steps", "5"], "--plane-steps needs --weight-decay as well"),
    ],
)
def test_bad_input_gets_one_line(options: list[str], message: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("toy", *_SMALL, *options)
    refused(result, message, empty_folder / "toy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weight-decay", "1.5"], "--weight-decay must be at least 0, and below 1/lr = 1, got 1.5"),
        (["--weight-decay", "1"], "below 1/lr = 1, got 1"),
        (["--weight-decay", "0.1", "--lr", "10"], "below 1/lr = 0.1, got 0.1"),
        (["--weight-decay", "0.1", "-0.1"], "--weight-decay must be at least 0"),
        (["--weight-decay", "0.1", "nan"], "--weight_decay"),
        (["--weight-decay"], "--weight-decay"),
        (["--weight-decay", "0.1", "--lr", "0"], "--lr must be positive, from 1e-06 to 1e+06, got 0"),
        (["--weight-decay", "0.1", "--lr", "nan"], "--lr"),
        (["--weight-decay", "0.1", "--plane-steps", "0"], "--plane-steps must be at least 1"),
        (["--weight-decay", "0.1", "--elrs", "0.3"], "--elrs is of the toy on the sphere"),
        (["--weight-decay", "0.1", "--seeds", "3"], "--seeds is of the toy on the sphere"),
    ],
)
def test_bad_input_of_the_plane_gets_one_line(
    options: list[str], message: str, empty_folder: Path, lit_sphere: LitSphere
) -> None:
    refused(lit_sphere("toy", "--run", "toy", *options), message, empty_folder / "toy")


def refused(result: Result, message: str, folder: Path) -> None:
    assert result.status in (1, 2)
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(
    empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "file").touch()
    monkeypatch.setattr("lit_sphere.cli.toy.settled_losses", lambda *_: pytest.fail("worked already"))
    result = lit_sphere("toy", *_SMALL[:-1], "file/toy")
    assert result.status == 2
    assert "--run file/toy: cannot be made" in result.err
    assert len(result.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--alphas", "1", "--elrs", "0.5", "2"],  # one group: its ELR is that of all
        ["--elrs", "0.1", "0.12", "0.2", "0.3", "0.5"],  # more than fit in a row
        ["--elrs", "1e6", "--steps", "250"],
        ["--elrs", "0.2", "--steps", "250"],  # long enough for medians
    ],
)
def test_other_toys_are_drawn(options: list[str], empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("toy", *_SMALL, *([] if "--steps" in options else ["--steps", "20"]), *options)
    assert result.status == 0, result.err
    assert "nan" not in result.out
    assert matplotlib.image.imread(empty_folder / "toy" / "toy.png").std() > 0.03
    assert all(math.isfinite(cell) for row in rows(empty_folder / "toy" / "toy.csv") for cell in row.values())


def test_results_are_not_overwritten(empty_folder: Path, lit_sphere: LitSphere) -> None:
    options = ["toy", "--weight-decay", "0.1", "--run", "plane"]
    assert lit_sphere(*options).status == 0
    result = lit_sphere(*options)
    assert result.status == 2
    assert "choose another --run" in result.err


def test_two_in_one_second_have_a_folder_each(
    empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_sphere.cli.results_folder.time.strftime", lambda *_: "20260101-000000")
    for _ in range(2):
        assert lit_sphere("toy", "--grid", "2", "--seeds", "1", "--steps", "20").status == 0
    assert {path.parent.name for path in Path("runs").rglob("toy.csv")} == {
        "toy-20260101-000000",
        "toy-20260101-000000-2",
    }
