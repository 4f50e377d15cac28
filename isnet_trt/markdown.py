"""Reports as Markdown, and the same Markdown as one HTML page that needs no other file."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from isnet_trt import pages

if TYPE_CHECKING:
    from markdown_it.renderer import RendererHTML
    from markdown_it.token import Token

_STYLE = """
blockquote { margin: 1rem 0; padding: .25rem 1rem; border-left: .4rem solid #567; background: #f4f6f8; }
.figures figure { flex-basis: 11rem; } .wide figure { flex-basis: 19rem; }
figure img { width: 100%; } td code { overflow-wrap: anywhere; }
@media (min-width: 601px) { td:first-child code { overflow-wrap: normal; } }
"""
_SORTED = """
th { cursor: pointer; } th[aria-sort]::after { content: " ▾"; color: #567; }
th[aria-sort=ascending]::after { content: " ▴"; }
"""
_VERDICT = {
    None: "",
    True: "blockquote { border-color: #2b7a2b; background: #eef7ee; }",
    False: "blockquote { border-color: #b3261e; background: #fdeeed; }",
}
_SCRIPT = Path(__file__).with_suffix(".js")
_FIGURES = re.compile(r"<p>((?:\s*<figure>.*?</figure>)+)\s*</p>", re.DOTALL)
_BARE_BAR = re.compile(r"(?<!\\)\|")
_MARKS = re.compile(r"[\\`*\[\]<>|#]|(?<!\w)_|_(?!\w)")


def plain(text: object) -> str:
    """``text`` on one line and with Markdown's marks escaped, so that it is shown as it is."""
    return _MARKS.sub(r"\\\g<0>", " ".join(str(text).split()))


def code(text: str) -> str:
    """``text`` on one line as Markdown code, whatever backticks it holds."""
    text, fence = " ".join(text.split()), "`"
    while fence in text:
        fence += "`"
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first ``left`` columns are aligned to the left. Cells are Markdown, but for ``|``."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    escaped = ([_BARE_BAR.sub(r"\\|", cell) for cell in line] for line in (head, rule, *rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def html_page(
    text: str,
    title: str,
    files: Mapping[str, bytes | str],
    good: bool | None = None,
    *,
    sortable: bool = True,
    style: str = "",
) -> str:
    """Markdown as one HTML page; if ``sortable``, a click on a column's head sorts its table.

    ``files`` are what the images of ``text`` refer to, by path: bytes are embedded, text is markup (SVG, HTML) that
    takes the place of the image. Images alone in a paragraph become figures side by side, captioned with their
    alternative text. HTML in ``text`` is shown as text. ``good`` colours block quotes, green or red; ``style`` is
    further CSS.

    Raises:
        ImportError: markdown-it-py is missing.
        KeyError: an image is not among ``files``.
    """
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("image", _image(files))
    body = _FIGURES.sub(r'<div class="figures">\1</div>', markdown.render(text))
    body = re.sub(r"<table>.*?</table>", lambda match: pages.scrolling(match[0]), body, flags=re.DOTALL)
    script = f"<script>{_SCRIPT.read_text('utf-8')}</script>" if sortable else ""
    style = _STYLE + _VERDICT[good] + (_SORTED if sortable else "") + style
    return pages.page(title, pages.with_contents(body) + script, style)


def _image(files: Mapping[str, bytes | str]) -> Callable[..., str]:
    def render(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
        path = PurePosixPath(str(tokens[index].attrs["src"])).as_posix()
        content, caption = files[path], tokens[index].content
        if isinstance(content, bytes):
            return pages.figure(content, mimetypes.guess_type(path)[0] or "", caption)
        return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"

    return render
