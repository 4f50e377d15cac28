"""The legend of an overlay: colour, name and share of the classes, beside or below the image, as large as it allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isnet_trt.opencv import cv2
from isnet_trt.pictures import contrast
from isnet_trt.pictures.files import Image
from isnet_trt.settings import short_name

PAPER, _INK, _FAINT = (250, 250, 250), (30, 30, 30), (110, 110, 110)
_SMALLEST, _LARGEST = 15, 56
"""Limits of the height of a legend line in pixels; smaller text could not be read."""
_NARROWEST = 8
"""Least width of a column, its names cut, in line heights; an image too small for such a column gets no legend."""
_LONGEST = 28
"""Most characters of a class name."""


@dataclass(frozen=True)
class Entry:
    """A class: its colour, uint8 (3,) RGB, its lines (a pattern of `isnet_trt.pictures.contrast`), name and figure."""

    colour: NDArray[np.uint8]
    pattern: int
    name: str
    figure: str


@dataclass(frozen=True)
class _Layout:
    """Where the entries go: ``shown`` of them in ``columns`` of ``rows``, columns ``width`` pixels wide."""

    is_below: bool
    shown: int
    rows: int
    columns: int
    width: int


def attach(image: Image, entries: Sequence[Entry]) -> Image:
    """``image`` with a legend on its right, or below where more entries fit there; unchanged where none fits.

    The legend adds at most half the image's width, or half its height. Where not all entries fit, the last line says
    how many more there are.
    """
    height, width = image.shape[:2]
    line = int(np.clip(height / 24, _SMALLEST, max(_SMALLEST, min(_LARGEST, width // 12))))
    natural = _natural_width(entries, line)
    widest = min(natural, width // max(width // (_NARROWEST * line), 1))
    layouts = [
        _right(len(entries), line, natural, height, width),
        _below(len(entries), line, natural, height, width),
        _below(len(entries), line, widest, height, width),
    ]
    # An entry whose name is cut counts half; of equal layouts the first is taken.
    best = max(layouts, key=lambda layout: layout.shown * (1 if layout.width >= natural else 0.5))
    if best.shown <= 0 or best.width < min(natural, _NARROWEST * line):
        return image
    panel = _panel(entries, best, line)
    if best.is_below:
        return np.vstack([pad(image, 0, panel.shape[1]), pad(panel, 0, width)])
    return np.hstack([image, pad(panel, height)])


def pad(picture: Image, height: int, width: int = 0) -> Image:
    """``picture`` at the top left of a light sheet of at least this size."""
    below, beside = max(0, height - picture.shape[0]), max(0, width - picture.shape[1])
    return np.asarray(cv2.copyMakeBorder(picture, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=PAPER), np.uint8)


def _natural_width(entries: Sequence[Entry], line: int) -> int:
    """Width of a column in which no name is cut."""
    names = max((_width(short_name(entry.name, _LONGEST), line) for entry in entries), default=0)
    return _text_start(line) + names + line + _figure_width(entries, line) + line // 2


def _right(count: int, line: int, natural: int, height: int, width: int) -> _Layout:
    """Columns within half the image's width, as tall as the image."""
    rows = (height - line // 2) // line
    columns = min(max(width // 2 // natural, 0), -(-count // rows) if rows > 0 else 0)
    return _layout(False, count, rows, columns, natural)


def _below(count: int, line: int, column: int, height: int, width: int) -> _Layout:
    """Columns over the image's width, at most half as tall."""
    rows, columns = max((height // 2 - line // 2) // line, 0), width // column
    return _layout(True, count, min(rows, -(-count // columns)) if columns else 0, columns, column)


def _layout(is_below: bool, count: int, rows: int, columns: int, width: int) -> _Layout:
    cells = max(rows, 0) * columns
    return _Layout(is_below, count if cells >= count else cells - 1, rows, columns, width)


def _panel(entries: Sequence[Entry], layout: _Layout, line: int) -> Image:
    """The legend's sheet; cells are filled column by column."""
    rows = min(layout.rows, len(entries))
    panel = np.full((rows * line + line // 2, layout.columns * layout.width, 3), PAPER, np.uint8)
    shown, figures = entries[: layout.shown], _figure_width(entries, line)
    for number, entry in enumerate(shown):
        _draw_entry(panel, entry, (number % rows * line, number // rows * layout.width), layout.width, figures, line)
    if more := len(entries) - len(shown):
        row, column = len(shown) % rows, len(shown) // rows
        text = f"and {more} more"
        _write(panel, text, (column * layout.width + line // 2, row * line + line), line, _FAINT)
    return panel


def _draw_entry(panel: Image, entry: Entry, corner: tuple[int, int], width: int, figures: int, line: int) -> None:
    """Draw swatch, name and figure of an entry with its top left at ``corner`` (y, x)."""
    top, left = corner[0] + line // 4 + line // 8, corner[1] + line // 2
    height, across = line - 2 * (line // 8), int(1.2 * line)
    panel[top : top + height, left : left + across] = swatch(entry, height, across)
    cv2.rectangle(panel, (left, top), (left + across - 1, top + height - 1), _FAINT, 1)
    room = width - _text_start(line) - line - figures - line // 2
    baseline = corner[0] + line
    name = _cut(short_name(entry.name, _LONGEST), room, line)
    _write(panel, name, (corner[1] + _text_start(line), baseline), line, _INK)
    right = corner[1] + width - line // 2
    _write(panel, entry.figure, (right - _width(entry.figure, line), baseline), line, _FAINT)


def swatch(entry: Entry, height: int, width: int) -> Image:
    """A patch of the entry's colour with its lines, uint8 (height, width, 3) RGB."""
    patch = np.full((height, width, 3), entry.colour, np.uint8)
    if entry.pattern:
        ids = np.zeros((height, width), np.uint8)
        contrast.draw_lines(patch, contrast.lines(ids.shape, {0: entry.pattern}, ids), contrast.HATCHED)
    return patch


def _cut(text: str, room: int, line: int) -> str:
    """``text``, or as much of its beginning as ``room`` pixels take."""
    short = text
    while short and _width(short if short == text else f"{short}..", line) > room:
        short = short[:-1]
    return short if short == text else f"{short}.."


def _text_start(line: int) -> int:
    return int(2.1 * line)


def _figure_width(entries: Sequence[Entry], line: int) -> int:
    return max((_width(entry.figure, line) for entry in entries), default=0)


def _write(panel: Image, text: str, place: tuple[int, int], line: int, colour: tuple[int, ...]) -> None:
    """Write ``text`` with the left end of its baseline at ``place`` (x, y)."""
    cv2.putText(panel, text, place, cv2.FONT_HERSHEY_SIMPLEX, line / 38, colour, max(1, line // 22), cv2.LINE_AA)


def _width(text: str, line: int) -> int:
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, line / 38, max(1, line // 22))[0][0])
