"""Collect the gallery, and the record that ``lit-sphere reproduce --list`` shows, from reproductions.

``python docs/gallery/collect.py DIR`` after ``lit-sphere reproduce … --folder DIR``: one picture for each experiment,
with the command, seeds and hardware that it was made by in gallery.json.
"""

import json
import re
import sys
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import yaml
from PIL import Image

from lit_sphere.experiments import EXPERIMENTS, NotDrawn
from lit_sphere.experiments.records import SHIPPED_FILE, Record, read_record
from lit_sphere.report.chart import Chart, colour_scale
from lit_sphere.report.chart_figures import draw_chart
from lit_sphere.report.runs import read_runs

_HERE = Path(__file__).resolve().parent
_SHIPPED = _HERE.parents[1] / "lit_sphere" / "experiments" / SHIPPED_FILE
_DPI, _COLOURS, _LARGEST = 100, 48, 80_000  # the last in bytes


def main(reproductions: Path) -> None:
    """Write pictures and records.

    Args:
        reproductions: Folder of the reproductions.
    """
    records, entries = [], []
    for experiment in EXPERIMENTS.values():
        record = read_record(reproductions / experiment.id)
        if record is None:
            continue
        records.append(asdict(record))
        paths = [reproductions / "runs" / name for name in experiment.sweeps or (experiment.toy_folder,)]
        charts = experiment.charts(read_runs(paths).runs, paths)
        if isinstance(charts, NotDrawn):
            continue
        save_small(charts[-1], _HERE / f"{experiment.id}.png")
        entries.append(
            {
                **asdict(record),
                "command": command_of(record),
                "title": experiment.title,
                "source": experiment.source,
                "must_show": experiment.must_show,
                "picture": f"{experiment.id}.png",
                "seeds": seeds_of(reproductions, experiment.sweeps),
            }
        )
    for path, content in ((_SHIPPED, records), (_HERE / "gallery.json", entries)):
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_small(chart: Chart, target: Path) -> None:
    """Draw a chart with few colours.

    Args:
        chart: The chart.
        target: The PNG file to write.

    Raises:
        ValueError: If it is too large all the same.
    """
    drawn = BytesIO()
    draw_chart(chart, colour_scale([chart])).savefig(drawn, dpi=_DPI)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(_COLOURS).save(target, optimize=True)
    if target.stat().st_size > _LARGEST:
        raise ValueError(f"{target} has {target.stat().st_size} bytes")


def command_of(record: Record) -> str:
    """Give the command that makes the runs of one experiment alone.

    Args:
        record: Of a command that may have been for several, and on some folder.

    Returns:
        The command, with the seeds that were asked for.
    """
    seeds = re.search(r" --seeds \d+", record.command)
    return f"lit-sphere reproduce {record.id}{seeds[0] if seeds else ''}"


def seeds_of(reproductions: Path, sweeps: tuple[str, ...]) -> list[int]:
    """Give the seeds of an experiment's runs.

    Args:
        reproductions: Folder of the reproductions.
        sweeps: Names of its sweeps; none for the toy, which has seed 0.

    Returns:
        The seeds.
    """
    configs = [path for name in sweeps for path in (reproductions / "runs" / name).glob("*/config.yaml")]
    return sorted({yaml.safe_load(path.read_text(encoding="utf-8"))["seed_everything"] for path in configs}) or [0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
