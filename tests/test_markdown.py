"""Markdown as one HTML page: what it embeds, what it escapes, and that nothing is loaded."""

from __future__ import annotations

import base64
import re

import pytest

from isnet_trt.markdown import html_page, plain, table

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")
HOSTILE = 'a|b <script>alert(1)</script> ![x](https://example.org/x.png) "q" _c_ *d* `e`\n# f'


def test_images_are_embedded_side_by_side_with_captions() -> None:
    page = html_page("![an *input*](./a/1.png)\n![second](two.svg)\n", "T", {"a/1.png": PNG, "two.svg": "<svg></svg>"})
    (figures,) = re.findall(r'<div class="figures">(.*?)</div>', page, re.DOTALL)
    assert figures.count("<figure>") == 2
    assert base64.b64encode(PNG).decode() in figures
    assert "<figure><svg></svg><figcaption>second</figcaption></figure>" in figures
    with pytest.raises(KeyError):
        html_page("![elsewhere](https://example.org/x.png)", "T", {})


def test_text_of_others_is_shown_and_never_run() -> None:
    text = f"# {plain(HOSTILE)}\n\n{table(('name', 'n'), [(plain(HOSTILE), '1')])}\n"
    page = html_page(text, HOSTILE, {})
    body = page.split("<body")[1].split("<script>")[0]
    assert page.count("<script>") == 1
    assert not re.search(r"<(img|a|em|code)\b", body)
    shown = "a|b &lt;script&gt;alert(1)&lt;/script&gt; ![x](https://example.org/x.png) &quot;q&quot; _c_ *d* `e` # f"
    assert f"<h1>{shown}</h1>" in body
    assert f"<td>{shown}</td>" in body
    assert body.count("<td") == 2
    assert "default-src 'none'" in page


def test_columns_are_aligned() -> None:
    assert table(("a", "b"), [("1", "2|3")]) == "| a | b |\n| --- | ---: |\n| 1 | 2\\|3 |"
