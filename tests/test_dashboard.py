"""Each panel of the W&B dashboard shows what real runs log; what goes wrong is one line."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from socket import create_server
from typing import Any

import pytest
import wandb
from conftest import LitSphere
from matplotlib.figure import Figure
from wandb_server import VIEWER, fresh_wandb, wandb_server

from lit_sphere.observe import publishing
from lit_sphere.report import read_metrics
from lit_sphere.report.wandb_files import WandbRun, read_wandb

pytestmark = pytest.mark.usefixtures(fresh_wandb.__name__)

KEY = "a" * 40
SMALL = ("--data.train_size", "128", "--data.batch_size", "64", "--data.val_size", "64", "--model.width", "2")


def dry_run(lit_sphere: LitSphere, *options: str) -> dict[str, Any]:
    result = lit_sphere("dashboard", "--entity", "me", "--dry-run", *options)
    assert (result.status, result.err) == (0, ""), result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def panels_of(workspace: dict[str, Any]) -> dict[str, dict[str, Any]]:
    sections = workspace["section"]["panelBankConfig"]["sections"]
    return {f"{each['name']} {i}": panel for each in sections for i, panel in enumerate(each["panels"])}


# --- what the panels show --------------------------------------------------------------------------------


def run_of(folder: str) -> WandbRun:
    wandb.teardown()  # its process writes the rest of the file after the run's end
    (path,) = Path(folder, "wandb").glob("offline-run-*")
    run = read_wandb(path)
    assert not run.fault
    return run


def keys_of(panel: dict[str, Any], runs: list[WandbRun]) -> list[set[str]]:
    """For each thing that a panel asks for, the keys of the runs that are it."""
    config = panel["config"]
    curves = {key for run in runs for key in run.series}
    values = {f"summary:{key}" for run in runs for key, value in run.summary.items() if isinstance(value, int | float)}
    tables = {key for run in runs for key, kind in run.objects.items() if kind == "table-file"}
    pictures = {key for run in runs for key, kind in run.objects.items() if kind == "images/separated"}
    match panel["viewType"]:
        case "Run History Line Plot":
            assert all(run.axes[key] == "epoch" for run in runs for key in run.series)
            if "metricRegex" in config:
                return [{key for key in curves if re.search(config["metricRegex"], key)}]
            return [curves & {key} for key in config["metrics"]]
        case "Scatter Plot":
            return [values & {config[axis]} for axis in ("xAxis", "yAxis", "zAxis")]
        case "Vega2" | "Weave":
            return [{key for key in tables if json.dumps(key) in json.dumps(config)}]
        case "Media Browser":
            return [pictures & {key} for key in config["mediaKeys"]]
    raise AssertionError(f"a panel of another kind: {panel['viewType']}")


def test_each_panel_shows_what_runs_log(
    empty_folder: Path, lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The figures are looked at elsewhere, and take most of the time.
    monkeypatch.setattr(publishing, "write_picture", lambda path, _: Figure(figsize=(1, 1)).savefig(path))
    one = (
        *("--config", "elr.yaml", "--monitor.granularity", "filter", "--monitor.scatter_epochs", "1", "--run", "one"),
        *("--trainer.callbacks+=SharpnessMonitor", "--trainer.callbacks.train_pass_every", "1"),
        *("--trainer.callbacks.curvature_at_end", "true", "--trainer.callbacks.curvature_batches", "1"),
        *("--trainer.callbacks.curvature_vectors", "2"),
        *("--trainer.callbacks+=LinearInterpolationBarrier", "--trainer.callbacks.every_n_epochs", "1"),
        *("--trainer.callbacks.points", "3", "--trainer.callbacks+=RegimeMonitor", "--trainer.max_epochs", "2"),
    )
    two = (
        *("--config", "sgd_momentum_elr.yaml", "--model.optimizer.momentum", "0", "--monitor.granularity", "tensor"),
        *("--trainer.max_epochs", "1", "--run", "two"),
    )
    for more in (one, two):
        result = lit_sphere("fit", *more, *SMALL)
        assert result.status == 0, result.err
    runs = [run_of("one"), run_of("two")]
    found = dry_run(lit_sphere)
    for name, panel in panels_of(found["workspace"]).items():
        assert all(keys_of(panel, runs)), f"{name}: {panel['config']} shows nothing of {[list(r.series) for r in runs]}"
    of_groups = re.compile(
        panels_of(found["workspace"])["Effective learning rate of each group 1"]["config"]["metricRegex"]
    )
    (shown_of_filters, shown_of_tensors) = ([key for key in run.series if of_groups.search(key)] for run in runs)
    assert len(shown_of_filters) == 2 * 15
    assert shown_of_tensors
    assert not any(key.endswith(("/total", "/step_max")) for key in [*shown_of_filters, *shown_of_tensors])
    (runset,) = found["workspace"]["section"]["runSets"]
    columns = {"run:displayName", "summary:since", *(f"summary:{key}" for key in runs[0].summary)}
    assert columns >= set(runset["runFeed"]["columnOrder"])  # "since" comes with a regime
    assert runset["grouping"] == [{"section": "config", "name": "model.value.init_args.elr"}]
    assert [run.config["model"]["init_args"]["elr"] for run in runs] == [1e-3, None]
    # What W&B holds is what metrics.csv holds.
    for folder, run in zip(("one", "two"), runs, strict=True):
        assert run.series.keys() == read_metrics(f"{folder}/metrics.csv").keys()
        for key, series in read_metrics(f"{folder}/metrics.csv").items():
            assert run.series[key] == series, key
        assert run.summary.get("regime") == ("undecided" if folder == "one" else None)  # nobody watched the other
        assert run.summary["final/train/loss"] == run.series["train/loss"].values[-1]
        assert run.summary["best/val/error"] == min(run.series["val/error"].values)
        assert run.exit_code == 0
    assert runs[0].tags == ["SIConvNet", "Digits", "sphere", "undecided"]
    assert runs[1].tags == ["SIConvNet", "Digits", "whole space", "SGD"]


def test_it_is_laid_out_to_be_read(lit_sphere: LitSphere) -> None:
    found = dry_run(lit_sphere, "--report", "--name", "ELR", "--project", "p")
    workspace, report = found["workspace"], found["report"]
    lines = [each for each in panels_of(workspace).values() if each["viewType"] == "Run History Line Plot"]
    assert {(each["config"]["xAxis"], each["config"]["smoothingType"]) for each in lines} == {("epoch", "none")}
    is_log = {each["config"]["chartTitle"]: each["config"]["yLogScale"] for each in lines}
    assert is_log["Train loss"]
    assert is_log["Effective gradient norm g̃"]
    assert not is_log["Train error"]
    assert all(each["config"].get("chartTitle") for each in lines)
    assert workspace["section"]["settings"]["smoothingActive"] is False
    for section in workspace["section"]["panelBankConfig"]["sections"]:
        grid = section["flowConfig"]
        assert len(section["panels"]) <= grid["columnsPerPage"] * grid["rowsPerPage"] < len(section["panels"]) + 3
    grids = [block["metadata"] for block in report["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == len(workspace["section"]["panelBankConfig"]["sections"])
    for grid in grids:
        places = [panel["layout"] for panel in grid["panelBankSectionConfig"]["panels"]]
        assert len({(place["x"], place["y"]) for place in places}) == len(places)
        assert all(place["x"] + place["w"] <= 24 for place in places)
    assert "report" not in dry_run(lit_sphere)


# --- what W&B says ---------------------------------------------------------------------------------------


@pytest.fixture
def saving() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A W&B that knows the project p, which has a run, and q, which has none, and takes workspaces and reports."""
    saved: list[dict[str, Any]] = []

    def answer(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        query, given = asked["query"], asked.get("variables") or {}
        data: dict[str, Any] = {"viewer": VIEWER}
        if "upsertView(" in query:
            saved.append(given)
            project = {"name": given["projectName"], "entityName": given["entityName"]}
            view = {"id": "Vmlldzox", "name": given["name"], "spec": given["spec"], "project": project}
            view |= {"displayName": given["displayName"], "description": "", "createdAt": None, "updatedAt": None}
            data["upsertView"] = {"view": view, "inserted": True}
        elif "project(" in query:
            page: dict[str, Any] = {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}
            known = {"p": 1, "q": 0}.get(given["project"])
            project = {"internalId": "1", "runCount": known, "runs": page, "readOnly": False}
            data["project"] = None if known is None else project
        elif "models(" in query:
            node = {
                "id": "1",
                "name": "p",
                "entityName": "me",
                "isBenchmark": False,
                "createdAt": "2026-01-01T00:00:00",
                "user": None,
            }
            page = {"endCursor": None, "hasNextPage": False}
            data["models"] = {"pageInfo": page, "edges": [{"node": node, "cursor": "1"}]}
        return 200, {"data": data}

    with wandb_server(answer) as address:
        yield address, saved


def test_it_is_saved(
    saving: tuple[str, list[dict[str, Any]]], lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, saved = saving
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    result = lit_sphere("dashboard", "--entity", "me", "--project", "p", "--report")
    assert (result.status, result.err) == (0, ""), result.err
    assert re.fullmatch(
        f"workspace: {address}/me/p\\?nw=\\w+\nreport: {address}/me/p/reports/Effective-learning-rates--Vmlldzox\n",
        result.out,
    )
    assert [(each["entityName"], each["projectName"], each["type"]) for each in saved] == [
        ("me", "p", "project-view"),
        ("me", "p", "runs"),
    ]
    shown = panels_of(json.loads(saved[0]["spec"]))
    assert [each["config"] for each in shown.values()] == [
        each["config"] for each in panels_of(dry_run(lit_sphere)["workspace"]).values()
    ]
    assert "holds no runs yet" in lit_sphere("dashboard", "--entity", "me", "--project", "q").out
    result = lit_sphere("dashboard", "--entity", "me", "--project", "unknown")
    assert result.status == 1
    assert "W&B knows no project me/unknown" in result.err
    assert "wandb sync" in result.err
    assert len(saved) == 3


@pytest.mark.slow
def test_nobody_answers(lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    result = lit_sphere("dashboard", "--entity", "me")
    assert result.status == 1
    assert result.err.splitlines() == [
        "lit-sphere: dashboard: W&B did not answer within 10 s; try again later, or see by --dry-run what it would save"
    ]


def test_a_server_that_refuses(lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        known = asked.get("operationName") == "Viewer"
        return (200, {"data": {"viewer": VIEWER}}) if known else (403, {"errors": [{"message": "permission denied"}]})

    with wandb_server(answer) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        result = lit_sphere("dashboard", "--entity", "me")
    assert result.status == 1
    assert len(result.err.splitlines()) == 1, result.err
    assert "W&B refuses me/lit-sphere" in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "dashboard needs --entity, your user or team at W&B (or WANDB_ENTITY)"),
        (("--entity", " "), "--entity is empty"),
        (("--entity", "a/b"), "--entity a/b holds /, which W&B refuses"),
        (("--entity", "a" * 129), "129 characters"),
        (("--entity", "a b"), "--entity 'a b' is no user or team: W&B's are of letters, digits and - _ ."),
        (("--entity", "me", "--project", "a?b"), "--project a?b holds ?, which W&B refuses"),
        (("--entity", "me", "--name", "n" * 129), "--name must have 1 to 128 characters"),
        (("--entity", "me", "--projet", "p"), "there is no option --projet; did you mean --project?"),
        (("--entity", "me"), "there is no API key; give one by `wandb login` or WANDB_API_KEY, or --dry-run"),
    ],
)
def test_bad_input_is_one_line(options: tuple[str, ...], words: str, lit_sphere: LitSphere) -> None:
    result = lit_sphere("dashboard", *options)
    assert result.status == 2
    assert len(result.err.splitlines()) == 1, result.err
    assert words in result.err


def test_without_its_extra(lit_sphere: LitSphere, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "wandb_workspaces" or name == "lit_sphere.cli.dashboard_panels":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    result = lit_sphere("dashboard", "--entity", "me", "--dry-run")
    assert (result.status, result.err) == (
        2,
        "lit-sphere: the dashboard needs the package wandb-workspaces: pip install 'lit-sphere[dashboard]'\n",
    )


def test_help_has_examples(lit_sphere: LitSphere) -> None:
    text = lit_sphere("dashboard", "--help").out
    assert "\n  lit-sphere dashboard --entity me --dry-run " in text
    assert "--report" in text
    assert "dashboard" in lit_sphere("--help").out
