"""``lit-sphere report``: the page, its figures and numbers, and what is said of bad input."""

import csv
import dataclasses
import errno
import json
import math
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import pytest
from conftest import LitSphere
from synthetic_runs import write_grid, write_run

from lit_sphere.experiments import EXPERIMENTS
from lit_sphere.files import write_whole
from lit_sphere.report.chart import Chart, Curve, Mark, Panel, colour_scale, numbers, over_seeds, thinned
from lit_sphere.report.chart_figures import draw_chart
from lit_sphere.report.page import Page, Section, page_html
from lit_sphere.report.runs import Run
from lit_sphere.report.table import Table


class _Page(HTMLParser):
    """What a page holds: cells of its table, addresses, texts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', self.html, re.DOTALL)
        self.charts: list[dict[str, Any]] = json.loads(text)["charts"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def rows(self) -> list[list[str]]:
        body = re.findall(r"<tbody>(.*?)</tbody>", self.html, re.DOTALL)[0]
        rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
        return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]


def test_a_grid_becomes_a_page_with_figures_and_numbers(empty_folder: Path, lit_sphere: LitSphere) -> None:
    write_grid(empty_folder / "runs", seeds=2)
    done = lit_sphere(
        "report", "runs", "--out", "out", "--formats", "svg", "--experiments", "E3", "--title", "A <b>grid</b>"
    )
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("Regime 1 (convergence) up to ELR 0.02; regime 2")
    assert f"page: {Path('out') / 'report.html'}" in lines
    page = _Page(empty_folder / "out" / "report.html")
    assert "<title>A &lt;b&gt;grid&lt;/b&gt;</title>" in page.html
    assert lines[0] in page.html
    assert "14 runs · SIConvNet on Digits · 40 epochs · 7 values of ELR · up to 2 seeds" in page.html
    addresses = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href") and value]
    assert all(address.startswith(("#", "figures/", "numbers/")) for address in addresses)
    beside = [address for address in addresses if address.startswith(("figures/", "numbers/"))]
    assert set(beside) == {
        path.relative_to(empty_folder / "out").as_posix() for path in (empty_folder / "out").glob("*/*.*")
    }
    assert len(page.rows()) == 14
    assert page.rows()[0][:4] == ["elr=0.001,seed=0", "0.001", "0", "convergence"]
    assert "lit-sphere fit --config runs/elr=0.001,seed=0/config.yaml" in page.html
    assert {"regimes", "learning", "sphere", "ends"} <= {chart["id"] for chart in page.charts}


def test_numbers_are_those_of_the_runs(empty_folder: Path, lit_sphere: LitSphere) -> None:
    write_grid(empty_folder / "runs")
    assert lit_sphere("report", "runs", "--out", "out", "--formats").status == 0
    assert not list((empty_folder / "out" / "figures").iterdir())
    with (empty_folder / "out" / "numbers" / "learning.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["panel"] == "train loss" and row["ELR"] == "0.03"]
    with (empty_folder / "runs" / "elr=0.03,seed=0" / "metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert [float(row["y"]) for row in rows] == losses
    with (empty_folder / "out" / "numbers" / "runs.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["regime"] for row in table] == ["convergence"] * 3 + ["chaotic equilibrium"] * 2 + ["divergence"] * 2


def test_one_run_is_enough(empty_folder: Path, lit_sphere: LitSphere) -> None:
    write_run(empty_folder / "only", 1e-3)
    done = lit_sphere("report", "only", "--out", "out", "--formats")
    assert done.status == 0, done.err
    page = _Page(empty_folder / "out" / "report.html")
    assert "<h1>only</h1>" in page.html
    assert len(page.rows()) == 1


def test_runs_in_the_whole_space_go_by_their_learning_rate(empty_folder: Path, lit_sphere: LitSphere) -> None:
    for lr in (0.1, 1.0):
        optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": lr}}
        write_run(empty_folder / "runs" / str(lr), None, options={"optimizer": optimizer})
    assert lit_sphere("report", "runs", "--out", "out", "--formats").status == 0
    page = _Page(empty_folder / "out" / "report.html")
    charts = {chart["id"]: chart for chart in page.charts}
    assert "regimes" not in charts
    assert charts["ends"]["panels"][0]["xLabel"] == "LR"
    assert [curve["label"] for curve in charts["learning"]["panels"][0]["curves"]] == ["LR 0.1", "LR 1"]


def test_mixed_losses_never_share_an_axis(empty_folder: Path, lit_sphere: LitSphere) -> None:
    write_run(empty_folder / "runs" / "a", 1e-3)
    write_run(empty_folder / "runs" / "b", 1e-3, options={"loss": "mse"})
    assert lit_sphere("report", "runs", "--out", "out", "--formats").status == 0
    charts = {chart["id"]: chart for chart in _Page(empty_folder / "out" / "report.html").charts}
    for loss in ("cross_entropy", "mse"):
        for panel in charts[f"learning-{loss}"]["panels"]:
            assert len(panel["curves"]) == 1


def test_nan_is_a_gap(empty_folder: Path, lit_sphere: LitSphere) -> None:
    def blow_up(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "train/loss": math.nan} if row["epoch"] >= 30 and "train/loss" in row else row

    write_run(empty_folder / "runs" / "a", 1e-3, change=blow_up)
    write_run(empty_folder / "runs" / "b", 1e-2, change=lambda row: {**row, "train/loss": math.inf})
    done = lit_sphere("report", "runs", "--out", "out", "--formats")
    assert done.status == 0, done.err
    page = _Page(empty_folder / "out" / "report.html")
    (panel,) = (each for chart in page.charts if chart["id"] == "learning" for each in chart["panels"][:1])
    assert panel["curves"][0]["y"][30:] == [None] * 10
    assert "finished, loss not finite" in page.html


def test_names_cannot_break_the_page(empty_folder: Path, lit_sphere: LitSphere) -> None:
    write_run(empty_folder / "runs" / "<script>alert(1)&lt;'\"", 1e-3)
    write_run(empty_folder / "runs" / "b", 1e-2, options={"note": "</script><script>alert(2)</script>"})
    assert lit_sphere("report", "runs", "--out", "out", "--formats").status == 0
    page = _Page(empty_folder / "out" / "report.html")
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert "<script>alert" not in page.html


def test_a_sweep_has_its_report_in_its_own_folder(empty_folder: Path, lit_sphere: LitSphere) -> None:
    write_grid(empty_folder / "sweeps" / "s")
    (empty_folder / "sweeps" / "s" / "sweep.yaml").write_text(
        "title: Digits over ELR\nfit: [--config, elr.yaml]\nover: {model.elr: [1.0e-3]}\nexperiments: [E3]\n"
    )
    (empty_folder / "sweeps" / "s" / "states.csv").write_text(
        "point,model.elr,state,line\nelr=0.001,0.001,done,\nelr=9,9,failed,it blew up\n"
    )
    for _ in range(2):  # the second in the place of the first
        done = lit_sphere("report", "sweeps/s", "--formats")
        assert done.status == 0, done.err
    page = _Page(empty_folder / "sweeps" / "s" / "report" / "report.html")
    assert "<h1>Digits over ELR</h1>" in page.html
    assert "lit-sphere sweep sweeps/s/sweep.yaml" in page.html
    assert "elr=9: failed, it blew up" in page.html
    ids = [chart["id"] for chart in page.charts]
    assert ids[0] == "regimes"
    experiments = [id_ for id_ in ids if id_.startswith("E")]
    assert experiments[0].startswith("E3")
    assert len(experiments) > 1


def test_a_long_finding_is_folded(empty_folder: Path) -> None:
    sentences = [f"Sentence {i} of a finding that has many numbers." for i in range(20)]
    chart = Chart("E0", "title", "", [Panel("p", "x")])
    section = Section([chart], "E0: long", "holds", [" ".join(sentences), "Short."])
    html = page_html(Page("t", "w", ["a"], [section], {}, Table([], [])))
    assert "<p>Short.</p>" in html
    (summary,) = re.findall("<details><summary>(.*?)</summary>", html)
    assert summary.startswith(sentences[0])
    assert summary.endswith("numbers.")
    assert f"<p>{sentences[len(summary) // len(sentences[0])]}" in html


def test_tables_without_a_run_are_reported_on(empty_folder: Path, lit_sphere: LitSphere) -> None:
    small = ("--steps", "200", "--grid", "8", "--seeds", "3")
    assert lit_sphere("toy", *small, "--run", "toy").status == 0
    done = lit_sphere("report", "toy", "--out", "out", "--formats")
    assert done.status == 0, done.err
    page = _Page(empty_folder / "out" / "report.html")
    assert any(chart["id"].startswith("T7") for chart in page.charts)
    assert "<table" not in page.html


def test_an_older_report_leaves_nothing_behind(empty_folder: Path, lit_sphere: LitSphere) -> None:
    write_grid(empty_folder / "runs")
    (empty_folder / "out" / "figures").mkdir(parents=True)
    (empty_folder / "out" / "figures" / "mine.pdf").write_text("mine")
    assert lit_sphere("report", "runs", "--out", "out", "--formats").status == 0
    assert (empty_folder / "out" / "figures" / "mine.pdf").exists()  # there was no report yet
    (empty_folder / "out" / "numbers" / "E99.csv").write_text("")
    assert lit_sphere("report", "runs", "--out", "out", "--formats").status == 0
    assert not (empty_folder / "out" / "numbers" / "E99.csv").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nowhere",), "no run to report on: nowhere: there is no such folder"),
        (("empty",), "no run to report on: empty: holds no run"),
        ((), "name the folders to report on, such as runs or sweeps/NAME"),
        (("file",), "no run to report on: file: is no file of a run; name its folder, or its metrics.csv"),
        (("runs", "--formats", "gif"), "--formats gif: there are pdf, svg, png"),
        (("runs", "--experiments", "E99"), "--experiments E99: there is no such id"),
        (("runs", "--titel", "x"), "there is no option --titel; did you mean --title?"),
        (("runs", "--out", "file/below"), "--out file/below: cannot be made"),
    ],
)
def test_bad_input_gets_one_line(
    empty_folder: Path, lit_sphere: LitSphere, args: tuple[str, ...], message: str
) -> None:
    write_run(empty_folder / "runs" / "a")
    (empty_folder / "empty").mkdir()
    (empty_folder / "file").write_text("")
    done = lit_sphere("report", *args)
    assert done.status == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(empty_folder.glob("report-*"))


def test_what_is_left_out_is_said_and_costs_nothing_else(empty_folder: Path, lit_sphere: LitSphere) -> None:
    write_grid(empty_folder / "runs")
    bad = write_run(empty_folder / "runs" / "bad")
    (bad / "metrics.csv").write_text("no,table\n")
    done = lit_sphere("report", "runs", "--out", "out", "--formats")
    assert done.status == 0
    assert "left out:" in done.out
    assert f"{Path('runs') / 'bad'}: metrics.csv names no column" in done.out
    page = _Page(empty_folder / "out" / "report.html")
    assert "metrics.csv names no column" in page.html
    assert len(page.rows()) == 7


def test_an_experiment_that_fails_costs_itself_only(
    empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_grid(empty_folder / "runs")

    def fail(runs: Sequence[Run], folders: Sequence[Path] = ()) -> NoReturn:
        raise ZeroDivisionError("by zero")

    monkeypatch.setitem(EXPERIMENTS, "E1", dataclasses.replace(EXPERIMENTS["E1"], charts=fail))
    assert lit_sphere("report", "runs", "--out", "out", "--formats").status == 0
    assert "failed: ZeroDivisionError: by zero" in _Page(empty_folder / "out" / "report.html").html


def test_a_full_disk_leaves_the_page(
    empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, write: Callable[[BinaryIO], object]) -> None:
        if path.suffix == ".csv":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_whole(path, write)

    monkeypatch.setattr("lit_sphere.cli.report.write_whole", write)
    write_grid(empty_folder / "runs")
    done = lit_sphere("report", "runs", "--out", "out", "--formats", "--experiments", "E3")
    assert done.status == 1
    assert "No space left on device" in done.err
    assert "free some space and run the command again" in done.err
    assert len(_Page(empty_folder / "out" / "report.html").rows()) == 7


def test_curves_of_seeds_are_joined() -> None:
    seeds = [Curve([0, 1, 2], [1.0, 2.0, math.nan], "a", elr=0.1), Curve([0, 1], [4.0, 8.0], "a", elr=0.1)]
    joined = over_seeds(seeds)
    assert (joined.x, joined.y, joined.low, joined.high) == ([0, 1], [2.5, 5.0], [1.0, 2.0], [4.0, 8.0])
    assert over_seeds(seeds, log=True).y == pytest.approx([2.0, 4.0])
    assert over_seeds(seeds[:1]) is seeds[0]


def test_a_curve_has_as_many_values_as_places() -> None:
    with pytest.raises(ValueError, match="curve 'a': 2 x but 1 y"):
        Curve([0, 1], [1.0], "a")


def test_thinned_curves_keep_their_extremes() -> None:
    values = [math.sin(i / 50) for i in range(5000)]
    values[1234], values[2345] = 9.0, -9.0
    chosen = thinned(values, 200)
    assert len(chosen) <= 200
    assert {0, 1234, 2345, 4999} <= set(chosen)
    assert thinned([math.nan] * 100, 10)[-1] == 99


def test_every_kind_of_chart_is_drawn_and_written() -> None:
    curves = [
        Curve([1, 10], [1.0, 2.0], "a", "run", 1e-3, low=[0.5, 1.0], high=[2.0, 3.0]),
        Curve([1, 10], [2.0, math.nan], "b", elr=1e-2, kind="points", symbol="cross", hover=["x", "y"]),
        Curve([1, 10], [2.0, 3.0], "theory", colour="#0b5394", kind="both", dash="dotted"),
    ]
    marks = [Mark(x=1, to=5, colour="#b6d7a8"), Mark(x=2, label="here"), Mark(y=1.5, label="level"), Mark(y=1, to=2)]
    nothing = Panel("q", "x", y_log=True, curves=[Curve([0, 1], [math.inf, math.nan], "blown up")])
    panel = Panel("p", "x", x_log=True, y_log=True, curves=curves, marks=marks)
    chart = Chart("x", "title", "", [panel, nothing])
    figure = draw_chart(chart, colour_scale([chart]))
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes] == ["p", "q"]
    assert numbers(chart).splitlines()[:2] == ["panel,curve,run,ELR,x,y,low,high", "p,a,run,0.001,1,1.0,0.5,2.0"]


def test_many_curves_get_a_bar_of_colours() -> None:
    curves = [Curve([0, 1], [i, i + 1.0], f"ELR {i}", elr=float(i + 1)) for i in range(30)]
    chart = Chart("x", "title", "", [Panel("p", "x", curves=curves)])
    figure = draw_chart(chart, colour_scale([chart]))
    assert figure.axes[-1].get_title() == "ELR"
    assert not figure.legends
