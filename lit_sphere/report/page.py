"""The page of a comparison: one HTML file that needs no network."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

from lit_sphere.analysis.regimes import REGIME_NUMBERS
from lit_sphere.report.chart import Chart, Curve, Mark, Panel, colour_position, thinned
from lit_sphere.report.chart_figures import DARK_RANGE, LIGHT_RANGE, map_colour
from lit_sphere.report.table import Column, Table

_MOST_POINTS = 400_000  # of all curves together: some 6 MB
_FEWEST, _MOST = 60, 1500  # of one curve
_SHADES = 256
_LONG = 240  # characters of a finding


@dataclass(frozen=True)
class Section:
    """Charts that belong together.

    Attributes:
        charts: What is drawn.
        heading: Above them; empty where each chart's own title is enough.
        finding: Whether what must be seen is seen: ``holds``, ``does not`` or ``cannot tell``; empty for nothing.
        texts: What must be seen, and why it is or is not; a paragraph each.
    """

    charts: Sequence[Chart]
    heading: str = ""
    finding: str = ""
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """All that the page says.

    Attributes:
        title: Its title.
        what: What was compared, in one line.
        answer: The answer in words, a sentence or paragraph each.
        sections: The charts.
        scales: By what colours go by, of :func:`~lit_sphere.report.chart.colour_scale`.
        table: The runs.
        commands: That made them: a heading and the lines of each block.
        not_drawn: Id and reason of what could not be drawn.
        left_out: Folders that could not be read, and why.
        made: By whom and when.
        formats: In which the figures lie beside the page.
    """

    title: str
    what: str
    answer: Sequence[str]
    sections: Sequence[Section]
    scales: Mapping[str, Sequence[float]]
    table: Table
    commands: Sequence[tuple[str, Sequence[str]]] = ()
    not_drawn: Sequence[tuple[str, str]] = ()
    left_out: Sequence[str] = ()
    made: str = ""
    formats: Sequence[str] = ()


def page_html(page: Page) -> str:
    """Make the page.

    Args:
        page: What it says.

    Returns:
        HTML that holds all it needs: some 5 MB, most of it the plotting library.
    """
    charts = [chart for section in page.sections for chart in section.charts]
    curves = sum(len(panel.curves) for chart in charts for panel in chart.panels)
    most = max(_FEWEST, min(_MOST, _MOST_POINTS // max(1, curves)))
    data = {
        "light": [map_colour(i / (_SHADES - 1), LIGHT_RANGE) for i in range(_SHADES)],
        "dark": [map_colour(i / (_SHADES - 1), DARK_RANGE) for i in range(_SHADES)],
        "charts": [_chart_data(chart, page.scales.get(chart.colour_label, ()), most) for chart in charts],
    }
    thinned = any(len(curve.x) > most for chart in charts for panel in chart.panels for curve in panel.curves)
    thin = (
        f" Curves of more than {most} values are thinned on this page: of each stretch the first, the least and the "
        "greatest value are kept. The numbers beside it are whole."
    )
    inside = _read("page.css"), _read("page.js")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline' blob:; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>{escape(page.title)}</title>
<style>
{inside[0]}</style>
</head>
<body>
<header>
<h1>{escape(page.title)}</h1>
<p class="soft">{escape(page.what)}</p>
</header>
<section class="answer" aria-label="The answer in words">
{_paragraphs(page.answer)}
</section>
<p class="soft hint">Move over a curve for its run and values; click a curve, or its name below a figure, to hide it,
and the name with Shift to see it alone; drag to zoom, double-click to zoom back.{thin if thinned else ""}</p>
{_contents(page)}
<main>
{_sections(page)}
{_runs_table(page)}
{_commands(page)}
{_lists(page)}
</main>
<footer>{escape(page.made)}</footer>
<script type="application/json" id="data">{_json(data)}</script>
<script>{get_plotlyjs()}</script>
<script>
{inside[1]}</script>
</body>
</html>
"""


def _read(name: str) -> str:
    return (files("lit_sphere.report") / name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """JSON that ends no script, and has null where a number is none."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _paragraphs(sentences: Sequence[str]) -> str:
    return "\n".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)


def _contents(page: Page) -> str:
    names = [(section.charts[0].id, section.heading or section.charts[0].title) for section in page.sections]
    rest = (("runs", "Runs", page.table.rows), ("commands", "Commands", page.commands))
    names += [(to, name) for to, name, there in (*rest, ("not-drawn", "Not drawn", page.not_drawn)) if there]
    links = "".join(f'<a href="#{escape(to)}">{escape(name)}</a>' for to, name in names)
    return f'<nav aria-label="Contents">{links}</nav>'


def _sections(page: Page) -> str:
    parts, number = [], 0
    for section in page.sections:
        if section.heading:
            badge = ""
            if section.finding:
                kind = section.finding.replace(" ", "-")
                words = f"{section.finding} hold" if kind == "does-not" else section.finding
                badge = f' <span class="badge {kind}">{escape(words)}</span>'
            first = escape(section.charts[0].id)
            parts.append(f'<section>\n<h2 id="{first}">{escape(section.heading)}{badge}</h2>')
            parts += [_text(text) for text in section.texts if text]
        for chart in section.charts:
            parts.append(_figure(page, chart, number, bool(section.heading)))
            number += 1
        if section.heading:
            parts.append("</section>")
    return "\n".join(parts)


def _text(text: str) -> str:
    """A paragraph; of a long one the first sentences, and the rest when asked for."""
    end = text.find(". ", _LONG) + 1
    if not 0 < end < len(text) - _LONG:
        return f"<p>{escape(text)}</p>"
    return f"<details><summary>{escape(text[:end])}</summary><p>{escape(text[end + 1 :])}</p></details>"


def _figure(page: Page, chart: Chart, number: int, within: bool) -> str:
    panels = "\n".join(
        f'<div class="panel"><h4>{escape(panel.title)}</h4><div class="plot" role="img" '
        f'aria-label="{escape(panel.title)}" data-chart="{number}" data-panel="{i}"></div></div>'
        for i, panel in enumerate(chart.panels)
    )
    name = escape(chart.id)
    links = [(form.upper(), f"figures/{name}.{form}") for form in page.formats] + [("CSV", f"numbers/{name}.csv")]
    files = "".join(f'<a href="{to}">{text}</a>' for text, to in links)
    title = f'<h2 id="{name}">{escape(chart.title)}</h2>' if not within else f"<h3>{escape(chart.title)}</h3>"
    return f"""<figure>
{title}
<figcaption>{escape(chart.caption)}</figcaption>
<div class="panels p{len(chart.panels)}">
{panels}
</div>
{_legend(chart, number, page.scales.get(chart.colour_label, ()))}
<p class="files">{files}</p>
</figure>"""


def _entries(chart: Chart) -> dict[str, tuple[int, Curve]]:
    """Entries of the legend: a number for each label, and the first curve that has it."""
    found: dict[str, tuple[int, Curve]] = {}
    for panel in chart.panels:
        for curve in panel.curves:
            if curve.label and curve.label not in found:
                found[curve.label] = (len(found), curve)
    return found


def _legend(chart: Chart, number: int, scale: Sequence[float]) -> str:
    entries = _entries(chart)
    if len(entries) < 2:
        return ""
    buttons = []
    for label, (entry, curve) in entries.items():
        position = colour_position(curve.elr, scale)
        if position is not None:
            light, dark = map_colour(position, LIGHT_RANGE), map_colour(position, DARK_RANGE)
        else:
            light = curve.colour or "currentColor"
            dark = f"color-mix(in srgb, {light}, white 40%)"  # as page.js mixes it
        shape = f"swatch points {curve.symbol}" if curve.kind == "points" else f"swatch {curve.dash}"
        buttons.append(
            f'<button type="button" aria-pressed="true" data-entry="{entry}"><span class="{shape}" '
            f'style="--light:{light};--dark:{dark}"></span>{escape(label)}</button>'
        )
    return f'<div class="legend" data-chart="{number}">{"".join(buttons)}</div>'


def _chart_data(chart: Chart, scale: Sequence[float], most: int) -> dict[str, Any]:
    entries = _entries(chart)
    return {"id": chart.id, "panels": [_panel_data(panel, entries, scale, most) for panel in chart.panels]}


def _panel_data(
    panel: Panel, entries: Mapping[str, tuple[int, Curve]], scale: Sequence[float], most: int
) -> dict[str, Any]:
    curves: list[dict[str, Any]] = []
    for curve in panel.curves:
        look = _look(curve, entries, scale)
        at = thinned(curve.y, most)
        if curve.low is not None and curve.high is not None:
            ends = [i for i in at if math.isfinite(curve.low[i]) and math.isfinite(curve.high[i])]
            x = [curve.x[i] for i in (*ends, *reversed(ends))]
            y = [*(curve.low[i] for i in ends), *(curve.high[i] for i in reversed(ends))]
            curves.append({**look, "x": _short(x), "y": _short(y), "kind": "line", "band": True})
        data = {**look, "x": _short([curve.x[i] for i in at]), "y": _short([curve.y[i] for i in at])}
        if curve.hover:
            data["hover"] = [_plotly_text(curve.hover[i]) for i in at]
        curves.append(data)
    data = {
        "title": _plotly_text(panel.title),
        "xLabel": _plotly_text(panel.x_label),
        "yLabel": _plotly_text(panel.y_label),
        "xLog": panel.x_log,
        "yLog": panel.y_log,
        "curves": curves,
        "marks": [_mark_data(mark) for mark in panel.marks],
    }
    edges = [edge for mark in panel.marks if mark.to is not None and mark.x is not None for edge in (mark.x, mark.to)]
    if edges:
        data["xRange"] = [math.log10(edge) if panel.x_log else edge for edge in (min(edges), max(edges))]
    return data


def _look(curve: Curve, entries: Mapping[str, tuple[int, Curve]], scale: Sequence[float]) -> dict[str, Any]:
    look: dict[str, Any] = {
        "label": _plotly_text(curve.label),
        "run": _plotly_text(curve.run),
        "kind": curve.kind,
        "dash": curve.dash,
        "width": curve.width,
        "symbol": curve.symbol,
    }
    position = colour_position(curve.elr, scale)
    if position is not None:
        look["t"] = round(position, 4)
    elif curve.colour:
        look["colour"] = curve.colour
    if curve.label:
        look["entry"] = entries[curve.label][0]
    return look


def _mark_data(mark: Mark) -> dict[str, Any]:
    known = {"x": mark.x, "y": mark.y, "to": mark.to, "colour": mark.colour, "label": _plotly_text(mark.label)}
    return {"dash": mark.dash, **{name: value for name, value in known.items() if value is not None}}


def _plotly_text(text: str) -> str:
    """Plotly reads some tags; a name is none, but for the line breaks of a hover."""
    return escape(text, quote=False).replace("&lt;br&gt;", "<br>")


def _short(values: Sequence[float]) -> list[float | int | None]:
    """Five digits are more than a screen shows; a whole number needs no point."""
    short = (float(f"{value:.5g}") if math.isfinite(value) else None for value in values)
    return [int(value) if value is not None and value == int(value) and abs(value) < 1e9 else value for value in short]


def _runs_table(page: Page) -> str:
    table = page.table
    if not table.rows:
        return ""
    shown = [i for i, column in enumerate(table.columns) if not _is_told_above(column, [row[i] for row in table.rows])]
    heads = "".join(_head(table.columns[i]) for i in shown)
    rows = "\n".join(f"<tr>{''.join(_cell(table.columns[i], row[i]) for i in shown)}</tr>" for row in table.rows)
    return f"""<h2 id="runs">Runs</h2>
<p class="soft"><span class="hint">Click a heading to sort.</span> Losses and errors of training, g̃ and the angles of
the evidence are means over an epoch.</p>
<div class="scroll" tabindex="0" role="region" aria-labelledby="runs">
<table class="sortable">
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
<p class="files"><a href="numbers/runs.csv">CSV</a></p>"""


def _is_told_above(column: Column, values: Sequence[Any]) -> bool:
    """Whether a column says the same of all runs: it stands in numbers/runs.csv only."""
    same = len(values) > 1 and len(set(values)) == 1
    return same and (column.name == "epochs" or (column.name == "state" and values[0] == "finished"))


def _head(column: Column) -> str:
    kind = "number" if column.numeric else "text"
    button = f'<button type="button" title="{escape(column.title)}">{escape(column.name)}</button>'
    return f'<th scope="col" class="{kind}{_minor(column)}">{button}</th>'


def _cell(column: Column, value: Any) -> str:
    text = column.text(value)
    if column.numeric:
        known = "" if value is None or not math.isfinite(value) else repr(float(value))
        return f'<td class="number{_minor(column)}" data-value="{known}">{escape(text)}</td>'
    if column.name == "regime" and value:
        number = REGIME_NUMBERS[value]
        return f'<td data-value="{number}"><span class="badge r{number}">{escape(text)}</span></td>'
    return f'<td class="{column.kind}{_minor(column)}">{escape(text)}</td>'


def _minor(column: Column) -> str:
    """What is left out on paper."""
    return " minor" if column.name.startswith("best ") or column.name in ("epochs", "state") else ""


def _commands(page: Page) -> str:
    if not page.commands:
        return ""
    blocks = "\n".join(
        f'<p>{escape(heading)}</p>\n<div class="commands"><button type="button" class="copy">copy</button>'
        f"<pre>{escape(chr(10).join(lines))}</pre></div>"
        for heading, lines in page.commands
    )
    return f'<h2 id="commands">Commands</h2>\n{blocks}'


def _lists(page: Page) -> str:
    parts = []
    if page.not_drawn:
        items = "".join(f"<li><b>{escape(name)}</b>: {escape(why)}</li>" for name, why in page.not_drawn)
        parts.append(f'<h2 id="not-drawn">Not drawn</h2>\n<ul>{items}</ul>')
    if page.left_out:
        items = "".join(f"<li>{escape(line)}</li>" for line in page.left_out)
        parts.append(f"<h2>Left out</h2>\n<ul>{items}</ul>")
    return "\n".join(parts)
