"""``lit-sphere report RUNS…``: runs compared on one page, with figures for papers and numbers beside it."""

import csv
import shlex
import sys
import time
import webbrowser
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from jsonargparse import ArgumentParser
from matplotlib.figure import Figure
from tqdm import tqdm

from lit_sphere import __version__
from lit_sphere.cli.errors import CommandLineError, written_to
from lit_sphere.cli.subcommand_parser import make_subcommand_parser
from lit_sphere.cli.suggestions import did_you_mean, option_strings, suggesting
from lit_sphere.experiments import EXPERIMENTS, NotDrawn, judge
from lit_sphere.files import write_whole
from lit_sphere.report import in_short
from lit_sphere.report.advice import advise
from lit_sphere.report.border_search import BORDERS_FILE, border_section, read_result
from lit_sphere.report.chart import Chart, colour_scale, numbers
from lit_sphere.report.chart_figures import draw_chart
from lit_sphere.report.comparison import Comparison, answer
from lit_sphere.report.comparison_charts import GENERAL_CHARTS
from lit_sphere.report.page import Page, Section, page_html
from lit_sphere.report.runs import CONFIG, Run, read_runs
from lit_sphere.report.table import table_of
from lit_sphere.sweep.grid import SweepError
from lit_sphere.sweep.plan import PLAN_FILE, Plan, read_plan
from lit_sphere.sweep.states import STATES_FILE

_Item = TypeVar("_Item")
_PAGE, _FIGURES, _NUMBERS = "report.html", "figures", "numbers"
_FORMATS = ("pdf", "svg", "png")
_MOST_CHARTS = 4  # of one experiment: some draw one for each run
_EXAMPLES = """examples:
  lit-sphere report runs/A runs/B                  two runs, in report-DATE-TIME/
  lit-sphere report sweeps/NAME                    a sweep, in its own folder: sweeps/NAME/report/
  lit-sphere report runs --title "Digits" --open   all runs below a folder, opened in the browser
  lit-sphere report runs --out comparison --formats pdf png"""


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
    parser = make_subcommand_parser("report", "RUNS... [options]", _EXAMPLES)
    add = parser.add_argument
    add("runs", type=str, nargs="+", metavar="RUNS", help="Folders of runs, or folders in which runs lie.")
    add(
        "--out",
        type=str | None,
        default=None,
        help="Folder for the report. Default: report/ in the folder of a sweep, else report-DATE-TIME.",
    )
    add(
        "--experiments",
        type=str,
        nargs="+",
        default=[],
        help="Ids of the experiments to draw, E1 E3 …. Default: all that the runs allow.",
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
    if not args:
        raise CommandLineError("name the folders to report on, such as runs or sweeps/NAME; --help has examples")
    with suggesting(lambda: option_strings(parser)):
        config = parser.parse_args(args)
    unknown = [name for name in config.formats if name not in _FORMATS]
    if unknown:
        raise CommandLineError(f"--formats {unknown[0]}: there are {', '.join(_FORMATS)}")
    strange = [id_ for id_ in config.experiments if id_ not in EXPERIMENTS]
    if strange:
        known = did_you_mean(strange[0], EXPERIMENTS) or f"; there are {', '.join(EXPERIMENTS)}"
        raise CommandLineError(f"--experiments {strange[0]}: there is no such id{known}")
    folder = Path(config.out) if config.out else _default_folder(config.runs)
    report = write_report(config.runs, folder, config.title, config.formats, config.experiments)
    print("\n".join(_last_lines(report)))
    if config.open and not webbrowser.open(report.page.resolve().as_uri()):
        print("lit-sphere: no browser to open it with", file=sys.stderr)


def _default_folder(paths: Sequence[str]) -> Path:
    if len(paths) == 1 and (Path(paths[0]) / PLAN_FILE).exists():
        return Path(paths[0]) / "report"
    return Path(f"report-{time.strftime('%Y%m%d-%H%M%S')}")


def write_report(
    paths: Sequence[str | Path],
    folder: Path,
    title: str | None = None,
    formats: Sequence[str] = ("pdf", "svg"),
    experiments: Sequence[str] = (),
) -> Report:
    """Read runs, and write their page, figures and numbers.

    Args:
        paths: Folders of runs, or in which runs lie.
        folder: Where the report goes; an older one in it is replaced.
        title: Heading of the page.
        formats: Of the figures.
        experiments: Ids to draw; all that the runs allow if none is given, those that sweeps' plans name first.

    Returns:
        What was written.

    Raises:
        CommandLineError: If there is neither a run nor a table of an experiment, or the folder cannot be made.
    """
    runs, left_out = read_runs(paths, lambda folders: _progress(folders, "reading"))
    if runs:
        _make_folders(folder)  # before the work
    comparison = Comparison(runs)
    plans = _plans(paths)
    left_out += [line for folder in plans for line in _unfinished(folder)]
    ids = list(experiments) or list(dict.fromkeys([*_ids_of(plans), *EXPERIMENTS]))
    sections, not_drawn = _sections(comparison, [Path(path) for path in paths], ids)
    sections = [*_searches(paths, left_out), *sections]
    if not runs and not sections:  # paths between runs, and the toy, are tables without a run
        raise CommandLineError(_no_run(paths, left_out))
    if not runs:
        left_out = []  # a table is no run, and no fault
        _make_folders(folder)
    charts = [chart for section in sections for chart in section.charts]
    scales = {
        label: colour_scale(chart for chart in charts if chart.colour_label == label)
        for label in {chart.colour_label for chart in charts}
    }
    sentences = [*answer(comparison), *_findings(sections)]
    page = Page(
        title or _title(plans, runs, sections),
        comparison.what(),
        sentences,
        sections,
        scales,
        table_of(comparison),
        _commands(plans, runs),
        not_drawn,
        left_out,
        f"Made by lit-sphere {__version__} on {time.strftime('%Y-%m-%d %H:%M')}.",
        formats,
    )
    # The page first: a full disk costs a figure rather than the answer.
    _write_text(folder / _PAGE, page_html(page))
    _write_text(folder / _NUMBERS / "runs.csv", page.table.csv())
    _write_charts(folder, charts, scales, formats)
    return Report(folder / _PAGE, sentences, not_drawn, left_out)


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


def _plans(paths: Sequence[str | Path]) -> dict[Path, Plan]:
    """The plans of sweeps among the paths; one that cannot be read tells nothing."""
    plans = {}
    for folder in map(Path, paths):
        if (folder / PLAN_FILE).exists():
            with suppress(SweepError):
                plans[folder] = read_plan(folder / PLAN_FILE)
    return plans


def _unfinished(folder: Path) -> list[str]:
    """Points of a sweep that are not done, with the last lines of those that failed."""
    path = folder / STATES_FILE
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [{key: cell or "" for key, cell in row.items()} for row in csv.DictReader(file)]
    points = [(row.get("point", ""), row.get("state", ""), row.get("line", "")) for row in rows]
    return [
        f"{folder / point}: {state}{f', {line}' if line else ''}"
        for point, state, line in points
        if state not in ("", "done")
    ]


def _searches(paths: Sequence[str | Path], left_out: list[str]) -> list[Section]:
    """What searches for borders among the paths came to."""
    sections = []
    for folder in map(Path, paths):
        if (folder / BORDERS_FILE).is_file():
            try:
                result = read_result(folder)
            except ValueError as error:
                left_out.append(str(error))
                continue
            if result.runs:
                section = border_section(result, "" if len(paths) == 1 else f" in {folder.name}")
                advice = advise(result).sentences if result.epochs_of_advice else ()
                sections.append(replace(section, texts=[*section.texts, *advice]))
    return sections


def _ids_of(plans: Mapping[Path, Plan]) -> list[str]:
    return [id_ for plan in plans.values() for id_ in plan.experiments if id_ in EXPERIMENTS]


def _title(plans: Mapping[Path, Plan], runs: Sequence[Run], sections: Sequence[Section]) -> str:
    titles = [plan.title for plan in plans.values() if plan.title]
    if titles:
        return ", ".join(titles)
    if not runs:
        return ", ".join(section.heading for section in sections)
    return f"Comparison of {len(runs)} runs" if len(runs) > 1 else runs[0].name


def _sections(
    comparison: Comparison, folders: Sequence[Path], ids: Sequence[str]
) -> tuple[list[Section], list[tuple[str, str]]]:
    """Charts of any runs, and between them those of the experiments."""
    overview, *curves = ([Section([chart]) for chart in draw(comparison)] for draw in GENERAL_CHARTS)
    drawn: list[Section] = []
    not_drawn: list[tuple[str, str]] = []
    for experiment in _progress([EXPERIMENTS[id_] for id_ in ids], "experiments"):
        try:
            charts = experiment.charts(comparison.runs, folders)
            if isinstance(charts, NotDrawn):
                not_drawn.append((experiment.id, charts.missing))
                continue
            found = judge(experiment, comparison.runs, folders)
        except Exception as error:  # one of them must not cost the others
            not_drawn.append((experiment.id, f"failed: {in_short(error)}"))
            continue
        must = f"{experiment.must_show} ({experiment.source})"
        heading = f"{experiment.id}: {experiment.title}"
        some = charts[:: -(-len(charts) // _MOST_CHARTS)]
        of_many = f"{len(some)} of {len(charts)} figures are drawn; name fewer runs for the others."
        texts = [must, found.text, of_many if len(some) < len(charts) else ""]
        drawn.append(Section(some, heading, found.verdict, texts))
    return [*overview, *drawn, *(section for each in curves for section in each)], not_drawn


def _findings(sections: Sequence[Section]) -> list[str]:
    named = {"holds": "Seen as in the papers", "does not": "Not seen", "cannot tell": "Not to be told from these runs"}
    parts = []
    for verdict, words in named.items():
        ids = [section.heading.partition(":")[0] for section in sections if section.finding == verdict]
        if ids:
            parts.append(f"{words}: {', '.join(ids)}.")
    return [" ".join(parts)] if parts else []


def _commands(plans: Mapping[Path, Plan], runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    blocks = []
    if plans:
        sweeps = [f"lit-sphere sweep {shlex.quote(str(folder / PLAN_FILE))}" for folder in plans]
        blocks.append(("All of it again, in a new folder:", sweeps))
    configs = [run.folder / CONFIG for run in runs if (run.folder / CONFIG).exists()]
    if configs:
        fits = [f"lit-sphere fit --config {shlex.quote(str(config))}" for config in configs]
        blocks.append(("Each run again, in a new folder:", fits))
    return blocks


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
    write_whole(path, lambda file: file.write(picture.getbuffer()))


def _last_lines(report: Report) -> list[str]:
    lines = [*report.answer, f"page: {report.page}"]
    if report.not_drawn:
        lines.append(f"not drawn: {', '.join(name for name, _ in report.not_drawn)}; the page says what is missing")
    if report.left_out:
        shown = [f"  {line}" for line in report.left_out[:5]]
        more = [f"  and {len(report.left_out) - 5} more, listed on the page"] if len(report.left_out) > 5 else []
        lines += ["left out:", *shown, *more]
    return lines
