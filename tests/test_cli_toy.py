"""``lit-sphere toy`` from an empty directory: pictures, numbers, and one line for bad input."""

import csv
from pathlib import Path

import matplotlib.image
import pytest
from conftest import LitSphere

_SMALL = ["--grid", "12", "--seeds", "4", "--run", "toy"]


def rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{key: float(cell) for key, cell in row.items()} for row in csv.DictReader(file)]


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
    assert matplotlib.image.imread(empty_folder / "toy" / "toy.png").std() > 0.05


def test_the_plane_shows_periods(empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("toy", "--weight-decay", "0", "0.03", "0.1", "--plane-steps", "50", "--run", "plane")
    assert result.status == 0, result.err
    periods = [line.split()[1] for line in result.out.splitlines() if line.startswith("  0")]
    assert periods[0] == "none"
    assert [float(period) for period in periods[1:]] == pytest.approx([17, 11], abs=0.5)
    assert len(rows(empty_folder / "plane" / "toy.csv")) == 150
    assert (empty_folder / "plane" / "toy.png").exists()


def test_help_names_every_option(lit_sphere: LitSphere) -> None:
    result = lit_sphere("toy", "--help")
    assert result.status == 0
    for option in ("--alphas", "--elrs", "--steps", "--grid", "--seeds", "--weight-decay", "--lr", "--run"):
        assert option in result.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--elrs", "0"], "must be positive"),
        (["--alphas", "-1"], "must be positive"),
        (["--elrs", "fast"], "--elrs"),
        (["--steps", "1"], "--steps must be at least 2"),
        (["--weight-decay", "1.5"], "below 1/lr"),
        (["--unknown", "1"], "unknown"),
    ],
)
def test_bad_input_gets_one_line(options: list[str], message: str, empty_folder: Path, lit_sphere: LitSphere) -> None:
    result = lit_sphere("toy", *_SMALL, *options)
    assert result.status != 0
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (empty_folder / "toy").exists()


def test_results_are_not_overwritten(empty_folder: Path, lit_sphere: LitSphere) -> None:
    options = ["toy", "--weight-decay", "0.1", "--run", "plane"]
    assert lit_sphere(*options).status == 0
    result = lit_sphere(*options)
    assert result.status == 2
    assert "choose another --run" in result.err
