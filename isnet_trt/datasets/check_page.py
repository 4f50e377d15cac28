"""The page of ``data check``: classes with their counts, what is wrong, and samples under their label colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from isnet_trt import pages
from isnet_trt.datasets.coverage import Coverage
from isnet_trt.datasets.picture_set import PictureSet
from isnet_trt.metrics import percent
from isnet_trt.opencv import cv2
from isnet_trt.pictures.files import Image, encode_png, encode_result
from isnet_trt.pictures.legend import PAPER, Entry, pad, swatch
from isnet_trt.pictures.overlay import VOID_NAME, OverlayStyle, draw, paint
from isnet_trt.settings import Size, short_name

_TILE: Size = (260, 360)
"""Largest (height, width) of a picture on the sheet."""
_LARGE_TILE: Size = (480, 640)
"""The same on the HTML page."""
_OVERLAY = OverlayStyle(alpha=0.8, void=True)
_LINE = 22
_INK = (30, 30, 30)
_STYLE = """
.swatch { display: inline-block; width: 1.6em; height: .9em; border: 1px solid #888; vertical-align: -.1em; }
img.swatch { image-rendering: pixelated; } .legend { font-size: 14px; margin: -.25rem 0 1.5rem; }
.legend span { display: inline-block; white-space: nowrap; margin-right: 1rem; }
.ignored { background: repeating-linear-gradient(45deg, #333 0 1px, transparent 1px 5px),
  repeating-linear-gradient(-45deg, #333 0 1px, transparent 1px 5px); }
"""


@dataclass(frozen=True)
class Section:
    """A split on the page: its counts, lines about it, what is wrong with it, and the indices of its samples."""

    dataset: PictureSet
    coverage: Coverage
    facts: Sequence[str]
    problems: Sequence[str]
    samples: Sequence[int]

    @property
    def title(self) -> str:
        return f"{self.dataset.name} {self.dataset.split}"


def html(sections: Sequence[Section]) -> str:
    """All splits as one HTML page that needs no other file."""
    title = f"Data check of {sections[0].dataset.name}"
    body = [f"<h1>{escape(title)}</h1>", "<!-- contents -->"]
    for section in sections:
        body += [f"<h2>{escape(section.title)}</h2>", *_section(section)]
    return pages.page(title, pages.with_contents("\n".join(body)), _STYLE)


def _section(section: Section) -> Iterator[str]:
    yield "".join(f"<p>{escape(fact)}</p>" for fact in section.facts)
    yield "".join(f'<p class="note">{escape(problem)}</p>' for problem in section.problems)
    if section.coverage.total:
        yield f"<h3>Classes of {escape(section.dataset.split)}</h3>"
        yield pages.table(_class_rows(section))
    if section.samples:
        yield f"<h3>Samples of {escape(section.dataset.split)}</h3>"
        yield "<p>Each picture, and the same under the colours of its labels. Ignored pixels are hatched both ways.</p>"
    for index in section.samples:
        image, labels = _sample(section.dataset, index, _LARGE_TILE)
        overlay, entries = paint(image, labels, *_classes(section.dataset), _OVERLAY)
        caption = _file_name(section.dataset, index)
        figures = (
            pages.figure(encode_result(drawn, ".webp"), "image/webp", text)
            for drawn, text in ((image, caption), (overlay, f"{caption}: labels"))
        )
        yield f'<div class="figures">{"".join(figures)}</div>'
        yield f'<p class="legend">{"".join(map(_chip, entries))}</p>'


def _chip(entry: Entry) -> str:
    """A legend's entry: its swatch as an image, name and share."""
    uri = pages.data_uri(encode_png(swatch(entry, 14, 24)), "image/png")
    text = escape(f"{short_name(entry.name)} {entry.figure}")
    return f'<span><img class="swatch" src="{uri}" alt=""> {text}</span> '


def _class_rows(section: Section) -> Iterator[dict[str, object]]:
    """A row for each class, the most frequent first, and one for the ignored pixels."""
    coverage, labels = section.coverage, section.dataset.labels
    for c in np.argsort(-coverage.pixels, kind="stable"):
        red, green, blue = labels.palette[c]
        swatch = f'<span class="swatch" style="background: rgb({red},{green},{blue})"></span>'
        figures = _figures(int(coverage.pixels[c]), coverage.total)
        name = short_name(labels.names[c])
        yield {"": pages.Html(swatch), "id": c, "class": name, **figures, "pictures": f"{coverage.pictures[c]:,}"}
    swatch = pages.Html('<span class="swatch ignored"></span>')
    yield {"": swatch, "id": "–", "class": VOID_NAME, **_figures(coverage.ignored, coverage.total), "pictures": "–"}


def _figures(pixels: int, total: int) -> dict[str, object]:
    return {"pixels": f"{pixels:,}", "share": f"{percent(pixels / total, 2)} %" if pixels else "0 %"}


def page(samples: Sequence[tuple[PictureSet, int]]) -> Image:
    """Samples one below the other, uint8 RGB: the picture, and the picture under its label colours with a legend."""
    rows = [_row(dataset, index) for dataset, index in samples]
    width = max(row.shape[1] for row in rows)
    return np.vstack([pad(row, len(row), width) for row in rows])


def _row(dataset: PictureSet, index: int) -> Image:
    image, labels = _sample(dataset, index, _TILE)
    overlay = draw(image, labels, *_classes(dataset), _OVERLAY)
    height = max(len(image), len(overlay))
    pair = np.hstack([pad(image, height, _TILE[1] + _LINE // 2), pad(overlay, height)])
    return np.vstack([_caption(f"{dataset.split}: {_file_name(dataset, index)}", pair.shape[1]), pair])


def _sample(dataset: PictureSet, index: int, tile: Size) -> tuple[Image, NDArray[np.uint16]]:
    """A picture as large as a tile, RGB, and its class ids; ignored pixels have the largest value of the type."""
    bgr, labels = dataset[index]
    height, width = labels.shape
    factor = min(tile[0] / height, tile[1] / width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    image = np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_AREA), np.uint8)[..., ::-1]
    small: NDArray[np.int16] = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.int16)
    return np.ascontiguousarray(image), np.where(small < 0, np.iinfo(np.uint16).max, small).astype(np.uint16)


def _classes(dataset: PictureSet) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    return dataset.labels.names, np.array(dataset.labels.palette, np.uint8)


def _file_name(dataset: PictureSet, index: int) -> str:
    """The name of a picture in its set, with the suffix of its file."""
    return dataset.names[index] + dataset.files[index][0].suffix


def _caption(text: str, width: int) -> Image:
    strip = np.full((_LINE, width, 3), PAPER, np.uint8)
    cv2.putText(strip, text, (4, _LINE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
    return strip
