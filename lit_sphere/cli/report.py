"""``lit-sphere report RUNS…``: runs compared on one page, with figures for papers and numbers beside it."""

import shlex
import sys
import time
import webbrowser
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from matplotlib.figure import Figure
from tqdm import tqdm

from lit_sphere import __version__
from lit_sphere.cli.errors import CommandLineError, written_to
from lit_sphere.cli.subcommands import SUBCOMMANDS
from lit_sphere.cli.suggestions import option_strings, suggesting
from lit_sphere.files import write_whole
from lit_sphere.report import in_short
from lit_sphere.report.chart import Chart, colour_scale, numbers
from lit_sphere.report.chart_figures import draw_chart
from lit_sphere.report.comparison import Comparison, answer
from lit_sphere.report.comparison_charts import GENERAL_CHARTS
from lit_sphere.report.page import Page, Section, page_html
from lit_sphere.report.runs import CONFIG, Run, read_run, run_folders
from lit_sphere.report.table import table_of

_Item = TypeVar("_Item")
_PAGE, _FIGURES, _NUMBERS = "report.html", "figures", "numbers"
_FORMATS = ("pdf", "svg", "png")
_SWEEP = "sweep.yaml"
_EXAMPLES = """examples:
  lit-sphere report runs/A runs/B                  two runs, in report-DATE-TIME/
  lit-sphere report sweeps/NAME                    a sweep, in its own folder: sweeps/NAME/report/
  lit-sphere report runs --title "Digits" --open   all runs below a folder, opened in the browser
  lit-sphere report runs --out comparison --formats pdf png"""


class _Help(DefaultHelpFormatter):
    """Keeps the lines of the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        page: The HTML file.
        answer: The answer in words.
        not_drawn: Id and reason of what could not be drawn.
        left_out: Folders that could not be read, and why.
    """

    page: Path
    answer: Sequence[str]
    not_drawn: Sequence[tuple[str, str]]
    left_out: Sequence[str]


def make_parser() -> ArgumentParser:
    """Make the parser of the subcommand.

    Returns:
        The parser.
    """
    parser = ArgumentParser(
        prog="lit-sphere report",
        usage="lit-sphere report RUNS... [options]",
        description=SUBCOMMANDS["report"].description,
        epilog=_EXAMPLES,
        formatter_class=_Help,
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("runs", type=str, nargs="+", metavar="RUNS", help="Folders of runs, or folders in which runs lie.")
    add(
        "--out",
        type=str | None,
        default=None,
        help="Folder for the report. Default: report/ in the folder of a sweep, else report-DATE-TIME.",
    )
    add("--title", type=str | None, default=None, help="Heading of the page.")
    add(
        "--formats",
        type=str,
        nargs="*",
        default=["pdf", "svg"],
        help="Formats of the figures beside the page: pdf, svg, png.",
    )
    add("--open", action="store_true", help="Open the page in the browser.")
    return parser


def run_report(args: list[str]) -> None:
    """Run the subcommand.

    Args:
        args: Command line after ``report``.

    Raises:
        CommandLineError: If an option cannot be understood, or there is no run.
    """
    parser = make_parser()
    with suggesting(lambda: option_strings(parser)):
        config = parser.parse_args(args)
    unknown = [name for name in config.formats if name not in _FORMATS]
    if unknown:
        raise CommandLineError(f"--formats {unknown[0]}: there are {', '.join(_FORMATS)}")
    folder = Path(config.out) if config.out else _default_folder(config.runs)
    report = write_report(config.runs, folder, config.title, config.formats)
    print("\n".join(_last_lines(report)))
    if config.open and not webbrowser.open(report.page.resolve().as_uri()):
        print("lit-sphere: no browser to open it with", file=sys.stderr)


def _default_folder(paths: Sequence[str]) -> Path:
    if len(paths) == 1 and (Path(paths[0]) / _SWEEP).exists():
        return Path(paths[0]) / "report"
    return Path(f"report-{time.strftime('%Y%m%d-%H%M%S')}")


def write_report(
    paths: Sequence[str | Path], folder: Path, title: str | None = None, formats: Sequence[str] = ("pdf", "svg")
) -> Report:
    """Read runs, and write their page, figures and numbers.

    Args:
        paths: Folders of runs, or in which runs lie.
        folder: Where the report goes; an older one in it is replaced.
        title: Heading of the page.
        formats: Of the figures.

    Returns:
        What was written.

    Raises:
        CommandLineError: If there is no run, or the folder cannot be made.
    """
    runs, left_out = _read(paths)
    if not runs:
        raise CommandLineError(_no_run(paths, left_out))
    _make_folders(folder)
    comparison = Comparison(runs)
    sections, not_drawn = _sections(comparison)
    charts = [section.chart for section in sections]
    scales = {
        label: colour_scale(chart for chart in charts if chart.colour_label == label)
        for label in {chart.colour_label for chart in charts}
    }
    sentences = answer(comparison)
    page = Page(
        title or f"Comparison of {len(runs)} runs" if len(runs) > 1 else title or runs[0].name,
        comparison.what(),
        sentences,
        sections,
        scales,
        table_of(comparison),
        _commands(paths, runs),
        not_drawn,
        left_out,
        f"Made by lit-sphere {__version__} on {time.strftime('%Y-%m-%d %H:%M')}.",
    )
    # The page first: a full disk costs a figure rather than the answer.
    _write_text(folder / _PAGE, page_html(page))
    _write_text(folder / _NUMBERS / "runs.csv", page.table.csv())
    _write_charts(folder, charts, scales, formats)
    return Report(folder / _PAGE, sentences, not_drawn, left_out)


def _read(paths: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    runs: list[Run] = []
    left_out: list[str] = []
    for folder in _progress(run_folders(paths, left_out), "reading"):
        try:
            runs.append(read_run(folder))
        except (OSError, ValueError) as error:
            left_out.append(f"{folder}: {in_short(error) if isinstance(error, OSError) else error}")
    return runs, left_out


def _progress(items: Sequence[_Item], what: str) -> Iterable[_Item]:
    bar: Iterable[_Item] = tqdm(items, what, leave=False, delay=2.0, disable=not sys.stderr.isatty())
    return bar


def _no_run(paths: Sequence[str | Path], left_out: Sequence[str]) -> str:
    reasons = "; ".join(left_out[:3]) or f"nothing below {', '.join(map(str, paths))}"
    more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    return f"no run to report on: {reasons}{more}. A run's folder holds metrics.csv and config.yaml"


def _make_folders(folder: Path) -> None:
    """Make the folders; of an older report there, what this one would not write is removed."""
    try:
        is_report = (folder / _PAGE).exists()
        for name in (_FIGURES, _NUMBERS):
            (folder / name).mkdir(parents=True, exist_ok=True)
            if is_report:
                for old in (folder / name).iterdir():
                    if old.suffix.removeprefix(".") in (*_FORMATS, "csv"):
                        old.unlink()
        written_to.set(folder)
    except OSError as error:
        reason = error.strerror or in_short(error)
        raise CommandLineError(f"--out {folder}: cannot be made ({reason}); choose another folder") from error


def _sections(comparison: Comparison) -> tuple[list[Section], list[tuple[str, str]]]:
    return [Section(chart) for draw in GENERAL_CHARTS for chart in draw(comparison)], []


def _commands(paths: Sequence[str | Path], runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    fits = [
        f"lit-sphere fit --config {shlex.quote(str(run.folder / CONFIG))}"
        for run in runs
        if (run.folder / CONFIG).exists()
    ]
    return [("Each run again, in a new folder:", fits)] if fits else []


def _write_charts(
    folder: Path, charts: Sequence[Chart], scales: dict[str, list[float]], formats: Sequence[str]
) -> None:
    for chart in _progress(charts, "figures"):
        _write_text(folder / _NUMBERS / f"{chart.id}.csv", numbers(chart))
        if formats:
            figure = draw_chart(chart, scales[chart.colour_label])
            for suffix in formats:
                _write_figure(folder / _FIGURES / f"{chart.id}.{suffix}", figure)


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode()))


def _write_figure(path: Path, figure: Figure) -> None:
    picture = BytesIO()
    metadata = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None} if path.suffix == ".pdf" else {}
    figure.savefig(picture, format=path.suffix[1:], dpi=200, metadata=metadata)
    figure.set_layout_engine("none")  # as it is laid out now: to lay it out takes longer than to draw it
    write_whole(path, lambda file: file.write(picture.getbuffer()))


def _last_lines(report: Report) -> list[str]:
    lines = [*report.answer, f"page: {report.page}"]
    if report.not_drawn:
        lines.append(f"not drawn: {'; '.join(f'{name} ({why})' for name, why in report.not_drawn)}")
    if report.left_out:
        shown = [f"  {line}" for line in report.left_out[:5]]
        more = [f"  and {len(report.left_out) - 5} more, listed on the page"] if len(report.left_out) > 5 else []
        lines += ["left out:", *shown, *more]
    return lines
