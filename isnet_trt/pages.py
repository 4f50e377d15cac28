"""Self-contained HTML pages: one style, tables, embedded images and contents for every report of the project."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape, unescape

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem 1.25rem 3rem;
  color: #222; background: #fff; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 .75rem; } h1 { margin-top: 1rem; }
h2 { border-bottom: 1px solid #ddd; padding-bottom: .25rem; }
a { color: #1257a0; }
nav, h1 + ul { background: #f4f6f8; border-radius: 6px; padding: .75rem 1rem; } h1 + ul { padding-left: 2.25rem; }
nav ul { margin: 0; padding-left: 1.25rem; } nav ul ul, h1 + ul ul { font-size: 14px; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left; vertical-align: top; }
thead th { background: #f4f6f8; vertical-align: bottom; }
td[style*=right], td.number { white-space: nowrap; }
.scroll td:first-child, .scroll th:first-child { position: sticky; left: 0; max-width: 45vw; }
.scroll td:first-child { background: #fff; }
td.number, th.number { text-align: right; }
figure { margin: 1.5rem 0; } figure img, figure svg { max-width: 100%; height: auto; display: block; }
.figures { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.figures figure { margin: 0; flex: 1 1 15rem; min-width: 0; }
figcaption { color: #555; font-size: 14px; margin-top: .25rem; }
code { background: #f4f6f8; padding: 0 .2em; border-radius: 3px; font-size: .9em; }
.note { border-left: 4px solid #d9a400; background: #fff8e1; padding: .5rem .75rem; margin: 1rem 0; }
@media (max-width: 600px) {
  body { font-size: 15px; padding: .5rem .75rem 2rem; } h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; }
  table { font-size: 13px; } th, td { padding: .25rem .4rem; }
  .scroll td:first-child:nth-last-child(n+4) { min-width: 38vw; }
  .scroll td:nth-child(n+3):last-child:not([style*=right]):not(.number) { min-width: 50vw; }
}
"""
# A page may hold any text of a model or a file name; whatever slips through must not load or send anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_NUMBER = re.compile(r"(?:[-+≈≥]|&lt;)?\s?\d[\d,.’ ]*\s?%?|–|")
_HEADING = re.compile(r"<h([2-4])>(.*?)</h\1>", re.DOTALL)


def page(title: str, body: str, style: str = "") -> str:
    """An HTML document that needs no other file: ``body`` is HTML, ``title`` plain text, ``style`` further CSS."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


class Anchors:
    """Names of a page's headings, as GitHub makes them from their text; no two alike."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    def __call__(self, text: str) -> str:
        stem = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        self._taken[stem] += 1
        return stem if self._taken[stem] == 1 else f"{stem}-{self._taken[stem] - 1}"


def with_contents(body: str) -> str:
    """``body`` with an id on each heading below <h1>, and links to <h2> and <h3> in place of ``<!-- contents -->``."""
    anchors, entries = Anchors(), list[tuple[int, str, str]]()

    def anchor(heading: re.Match[str]) -> str:
        level, text = int(heading[1]), re.sub("<.*?>", "", heading[2])
        entries.append((level, anchors(unescape(text)), text))
        return f'<h{level} id="{entries[-1][1]}">{heading[2]}</h{level}>'

    body = _HEADING.sub(anchor, body)
    return body.replace("<!-- contents -->", _contents([entry for entry in entries if entry[0] in (2, 3)]), 1)


def _contents(entries: Sequence[tuple[int, str, str]]) -> str:
    """Links to headings as nested lists."""
    lines, depth = [], 1
    for level, name, text in entries:
        while depth < level:
            lines.append("<ul>")
            depth += 1
        while depth > level:
            lines.append("</ul>")
            depth -= 1
        lines.append(f'<li><a href="#{name}">{text}</a></li>')
    return "<nav>" + "".join(lines) + "</ul>" * (depth - 1) + "</nav>" if entries else ""


class Html(str):
    """Markup that a table holds as it is; other cells are escaped."""

    __slots__ = ()


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as a table with a column for each key, in a box that scrolls sideways; columns of numbers align right."""
    cells = [{k: v if isinstance(v, Html) else escape(str(v)) for k, v in row.items()} for row in rows]
    keys = list(dict.fromkeys(key for row in cells for key in row))
    if not cells:
        return ""
    kinds = [' class="number"' if all(_NUMBER.fullmatch(row.get(key, "")) for row in cells) else "" for key in keys]
    head = "".join(f"<th{kind}>{escape(key)}</th>" for key, kind in zip(keys, kinds, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{row.get(key, '')}</td>" for key, kind in zip(keys, kinds, strict=True))
        + "</tr>\n"
        for row in cells
    )
    return scrolling(f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>")


def scrolling(content: str) -> str:
    """``content`` in a box that scrolls sideways where the window is too narrow."""
    return f'<div class="scroll">{content}</div>'


def figure(content: bytes, media_type: str, caption: str) -> str:
    """An image embedded as a data URI, with its caption below; ``media_type`` such as "image/png"."""
    uri, text = data_uri(content, media_type), escape(caption)
    return f'<figure><img src="{uri}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def data_uri(content: bytes, media_type: str) -> str:
    """A file as a URI that holds it; ``media_type`` such as "image/png"."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
