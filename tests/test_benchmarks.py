"""The benchmark runs and reports every section; what it measures is nothing for a test."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "overhead.py"


def run_script(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark in ``folder``, on one thread: other tests may be running beside it."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *args]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_quick_run_reports_every_section_and_leaves_nothing_else(tmp_path: Path) -> None:
    done = run_script(tmp_path, "--quick", "--json", "out.json")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    report = json.loads((tmp_path / "out.json").read_text())
    sections = [comparison["section"] for comparison in report["comparisons"]]
    assert sections == ["a1", "a2", "a1", "a2", "b1", "b2", "c1", "c2", "c3", "d", "e", "f1", "f2", "f3", "f4"]
    for comparison in report["comparisons"]:
        ratios = [ours / theirs for ours, theirs in comparison["pairs"]]
        summary = comparison["ratio"]
        assert summary["pairs"] == len(ratios)
        assert 0 < summary["min"] <= summary["median"] <= summary["max"] < math.inf
        assert (summary["min"], summary["max"]) == (min(ratios), max(ratios))
        assert comparison["what"] in done.stdout
    assert report["hardware"]["cores"] >= 1
    assert report["versions"]["torch"] in done.stdout
    assert report["hot_path"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--trials", "0"], "--trials must be at least 1, got 0"),
        (["--sections", "ax"], "--sections takes letters among abcdef, got 'ax'"),
        (["--data", "nowhere"], "--data nowhere: no folder cifar-10-batches-py in it"),
        (["--json", "."], "--json .: is a folder"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--json", "nowhere/out.json"], "--json nowhere/out.json: there is no folder"),
    ],
)
def test_bad_arguments_get_one_line(tmp_path: Path, args: list[str], message: str) -> None:
    done = run_script(tmp_path, "--quick", *args)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line


@pytest.mark.slow
def test_a_report_of_200_runs_is_a_page_to_be_sent(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "report.py"
    command = [sys.executable, str(script), "--epochs", "150", "--json", "out.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert json.loads((tmp_path / "out.json").read_text())["page_megabytes"] < 20
