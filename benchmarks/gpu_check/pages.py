"""A report as parts (headings, text, tables, figures), and the two pages made from them."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; vertical-align: top; }
.n { text-align: right; white-space: nowrap; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: 13px; } .warning { color: #a40; }
"""


@dataclass(frozen=True)
class Heading:
    """A title of ``level`` 1, 2 or 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; ``warning`` sets it off."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text under ``head``; a page shows columns of numbers on the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A picture as SVG text; ``name`` is a file's stem, ``caption`` says what it shows."""

    name: str
    svg: str
    caption: str


Part = Heading | Text | Table | Figure


def markdown(parts: Sequence[Part], figures: str = "") -> str:
    """The parts as Markdown; figures are linked as ``<figures><name>.svg``, or left out where that is empty."""
    return "\n\n".join(filter(None, (_markdown(part, figures) for part in parts))) + "\n"


def _markdown(part: Part, figures: str) -> str:
    if isinstance(part, Heading):
        return f"{'#' * part.level} {part.text}"
    if isinstance(part, Text):
        return f"**Warning:** {part.text}" if part.warning else part.text
    if isinstance(part, Figure):
        return f"![{part.caption}]({figures}{part.name}.svg)" if figures else ""
    lines = [part.head, ["---", *["---:"] * (len(part.head) - 1)], *part.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def page(parts: Sequence[Part], title: str) -> str:
    """The parts as one HTML file that needs nothing else."""
    body = "\n".join(map(_html, parts))
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _html(part: Part) -> str:
    if isinstance(part, Heading):
        return f"<h{part.level}>{html.escape(part.text)}</h{part.level}>"
    if isinstance(part, Text):
        kind = ' class="warning"' if part.warning else ""
        text = re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(part.text))
        return f"<p{kind}>{text}</p>"
    if isinstance(part, Figure):
        return f"<figure>{part.svg}<figcaption>{html.escape(part.caption)}</figcaption></figure>"
    columns = [_figures([row[i] for row in part.rows]) for i in range(len(part.head))]
    rows = [_cells("th", part.head, columns), *(_cells("td", row, columns) for row in part.rows)]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _cells(tag: str, cells: Sequence[str], figures: Sequence[bool]) -> str:
    kinds = (' class="n"' if is_figure else "" for is_figure in figures)
    return "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))


def _figures(column: Sequence[str]) -> bool:
    """Whether a column holds numbers, which stand right; what is missing stands with them."""
    told = [cell for cell in column if cell not in ("", "–", "not available")]
    return bool(told) and all(re.fullmatch(r"[-+≈]?\d[^a-z]*(\([^)]*\))?", cell) for cell in told)
