"""The common parts of HTML pages."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

from isnet_trt import pages


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def balanced(text: str) -> bool:
    parser = _Balance()
    parser.feed(text)
    return not parser.open


def test_contents_link_to_every_heading_and_ids_are_unique():
    body = "<!-- contents --><h2>A &amp; B</h2><h3>same</h3><h2>C <code>x</code></h2><h3>same</h3>"
    text = pages.page("t <x>", pages.with_contents(body))
    for name in ("a--b", "same", "c-x", "same-1"):
        assert text.count(f'id="{name}"') == 1
        assert text.count(f'href="#{name}"') == 1
    assert "<title>t &lt;x&gt;</title>" in text
    assert balanced(text)


def test_tables_escape_their_cells_and_align_numbers():
    text = pages.table([{"name": "<a>", "share": "1.5 %"}, {"name": "b", "share": "–"}, {"name": "c"}])
    assert "<td>&lt;a&gt;</td>" in text
    assert '<td class="number">1.5 %</td>' in text
    assert '<th class="number">share</th>' in text
    assert balanced(text)
    assert pages.table([]) == ""


def test_figures_hold_their_image():
    text = pages.figure(b"\x89PNG", "image/png", 'a "b"')
    assert base64.b64encode(b"\x89PNG").decode() in text
    assert 'alt="a &quot;b&quot;"' in text
