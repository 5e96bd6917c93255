"""What the site needs beyond Markdown: formulas as MathML, docstrings as Markdown, the gallery."""

import html
import json
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
        text: str = convert(html.unescape(formula[3]).strip(), display="block" if block else "inline")
        return text

    return _FORMULA.sub(mathml, content)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the gallery and the table of experiments where a page has their mark.

    Args:
        markdown: Text of a page.

    Returns:
        The text, with what ``gallery/gallery.json`` and the registry of experiments say.
    """
    parts = {"gallery": lambda: gallery(_GALLERY), "experiments": experiments}
    return _MARKS.sub(lambda mark: parts[mark[1]](), markdown)


def experiments() -> str:
    """Make a table of all experiments.

    Returns:
        Markdown: id, title, what it must show, source.
    """
    from lit_sphere.experiments import EXPERIMENTS

    rows = [["id", "experiment", "must show", "source"], ["---"] * 4]
    rows += [[f"`{each.id}`", each.title, each.must_show, each.source] for each in EXPERIMENTS.values()]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows)


def gallery(folder: Path) -> str:
    """Show the pictures of a folder with what was found, as ``collect.py`` in ``docs/gallery`` notes it.

    Args:
        folder: Holds ``gallery.json`` and the pictures.

    Returns:
        Markdown, a section for each experiment; one sentence where there is none.
    """
    notes = folder / "gallery.json"
    entries = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else []
    return "\n\n".join(_section(entry, folder.name) for entry in entries) or "No picture has been made yet."


def _section(entry: Mapping[str, Any], folder: str) -> str:
    title = f"{entry['id']}: {entry['title']}"
    seeds = ", ".join(map(str, entry["seeds"]))
    made = f"`{entry['command']}`, seed{'s' * (len(entry['seeds']) > 1)} {seeds}; {entry['date']}, "
    made += f"{entry['seconds']:.0f} s of runs on {entry['hardware']}"
    parts = [
        f"## {title}",
        f"{entry['must_show']} ({entry['source']})",
        f"![{title}]({folder}/{entry['picture']})",
        f"**{entry['verdict'].capitalize()}.** {entry['text']}",
        made,
    ]
    return "\n\n".join(parts)
