"""What the site needs beyond Markdown: formulas as MathML, docstrings as Markdown, the gallery."""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

_GALLERY = Path(__file__).with_name("gallery")
_MARKS = re.compile(r"^<!-- (gallery|experiments) -->$", re.MULTILINE)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_ROLE = re.compile(r":(?:attr|class|func|meth|mod):`(~?)([\w.]+)`")


class _Docstrings(Preprocessor):  # type: ignore[misc]
    """Makes Markdown of the two things in docstrings that are none: roles, and examples that doctest runs."""

    def run(self, lines: list[str]) -> list[str]:
        """Turn roles into links, where the site has their target, and examples into blocks of code.

        Args:
            lines: Of a page or a docstring.

        Returns:
            They, in Markdown.
        """
        made: list[str] = []
        example = False
        for line in lines:
            if line.startswith(">>> ") and not example:
                made.append("```pycon")
                example = True
            elif example and not line.strip():
                made.append("```")
                example = False
            made.append(line if example else _ROLE.sub(_link, line))
        return [*made, "```"] if example else made


def _link(role: re.Match[str]) -> str:
    short, path = role.groups()
    shown = path.rpartition(".")[2] if short else path
    return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'


class Docstrings(Extension):  # type: ignore[misc]
    """The Markdown extension."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register the preprocessor.

        Args:
            md: To add it to.
        """
        md.preprocessors.register(_Docstrings(md), "docstrings", 30)  # before fenced code, 25


def on_config(config: Any) -> None:
    """Add the extension, for pages and docstrings.

    Args:
        config: The site's.
    """
    config.markdown_extensions.append(Docstrings())


def on_page_content(content: str, **_: object) -> str:
    """Write the formulas as MathML, which browsers draw without a script.

    Args:
        content: HTML of a page, formulas marked by pymdownx.arithmatex.

    Returns:
        The same with formulas drawn.
    """

    def mathml(formula: re.Match[str]) -> str:
        block = formula[2] == "["
        return convert(html.unescape(formula[3]).strip(), display="block" if block else "inline")

    return _FORMULA.sub(mathml, content)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the gallery and the table of experiments where a page has their mark.

    Args:
        markdown: Text of a page.

    Returns:
        The text, with what the pictures, the records and the registry of experiments say.
    """
    if not _MARKS.search(markdown):
        return markdown
    from lit_sphere.experiments.records import shipped_records

    parts = {"gallery": gallery(_GALLERY, shipped_records()), "experiments": experiments()}
    return _MARKS.sub(lambda mark: parts[mark[1]], markdown)


def experiments() -> str:
    """Make a table of all experiments.

    Returns:
        Markdown: id, title, what it must show, source.
    """
    from lit_sphere.experiments import EXPERIMENTS

    rows = [["id", "experiment", "must show", "source"], ["---"] * 4]
    rows += [[f"`{each.id}`", each.title, each.must_show, each.source] for each in EXPERIMENTS.values()]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows)


def gallery(folder: Path, records: Mapping[str, Any]) -> str:
    """Show the pictures of a folder, with what our own last check of each experiment came to.

    Args:
        folder: Holds ``ID.png`` or ``ID-….png`` of each experiment.
        records: The last check by id, as :func:`lit_sphere.experiments.records.shipped_records` gives them.

    Returns:
        Markdown, a section for each experiment that has a picture; one sentence where there is none.
    """
    from lit_sphere.experiments import EXPERIMENTS

    sections = []
    for id_, experiment in EXPERIMENTS.items():
        title = f"{id_}: {experiment.title}"
        pictures = [*folder.glob(f"{id_}.png"), *sorted(folder.glob(f"{id_}-*.png"))]
        if pictures:
            lines = [f"## {title}", f"{experiment.must_show} ({experiment.source})"]
            lines += [f"![{title}]({folder.name}/{picture.name})" for picture in pictures]
            sections.append("\n\n".join([*lines, *_check(records.get(id_))]))
    return "\n\n".join(sections) or "No picture has been made yet."


def _check(record: Any) -> list[str]:
    if record is None:
        return []
    made = f"`{record.command}` on {record.date}, {record.seconds:.0f} s of runs on {record.hardware}"
    return [f"**{record.verdict.capitalize()}.** {record.text}", made]
