"""Pictures to look at: the blend of a picture with its label colours, and a legend of the classes present."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.metrics import percent
from isnet_trt.opencv import cv2
from isnet_trt.pictures.files import Image
from isnet_trt.pictures.label_maps import class_shares, colours, with_void
from isnet_trt.settings import size_text

PAPER, _INK, _FAINT = (250, 250, 250), (30, 30, 30), (120, 120, 120)
_SMALLEST, _LARGEST = 18, 56
"""Height of a legend line in pixels; below the first the text could not be read."""
_LONGEST = 28
"""Characters of a class name."""


def draw(
    image: Image,
    labels: NDArray[np.unsignedinteger],
    names: Sequence[str],
    palette: NDArray[np.uint8],
    alpha: float = 0.5,
    legend: bool = True,
) -> Image:
    """``image`` blended with the colours of its label map, and a legend on the right; uint8 (H, W', 3) RGB.

    ``image`` is uint8 (H, W, 3) RGB, ``labels`` the class ids (H, W), ``palette`` uint8 (K, 3) RGB; where there is no
    class, the image stays as it is. ``alpha``, ``legend`` and the errors are those of `isnet_trt.Segmentation.overlay`.
    """
    if image.shape[:2] != labels.shape:
        raise ImageError(
            f"the picture is {size_text(image.shape[:2])}, the label map {size_text(labels.shape)}; "
            "pass the picture that was segmented"
        )
    if not 0 <= alpha <= 1:
        raise SettingsError(f"alpha {alpha} is the share of the colours and must be within 0..1")
    blended = np.asarray(cv2.addWeighted(image, 1 - alpha, colours(labels, palette), alpha, 0), np.uint8)
    is_void = with_void(labels, len(names)) >= len(names)
    if is_void.any():
        blended[is_void] = image[is_void]
    if not legend or is_void.all():
        return blended
    panel = _legend(names, palette, class_shares(labels, len(names)), len(image))
    height = max(len(blended), len(panel))
    return np.hstack([pad(blended, height), pad(panel, height)])


def pad(picture: Image, height: int, width: int = 0) -> Image:
    """``picture`` at the top left of a light sheet of at least this size."""
    below, beside = max(0, height - picture.shape[0]), max(0, width - picture.shape[1])
    return np.asarray(cv2.copyMakeBorder(picture, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=PAPER), np.uint8)


class _Entry(NamedTuple):
    colour: tuple[int, ...]
    name: str
    share: str


def _legend(names: Sequence[str], palette: NDArray[np.uint8], shares: Mapping[int, float], height: int) -> Image:
    """Swatch, name and share of each class, in as many columns as the height calls for."""
    entries = [
        _Entry(
            tuple(int(v) for v in palette[number]),
            names[number].split(",")[0][:_LONGEST],
            f"{percent(share, 1)} %" if share >= 0.001 else "< 0.1 %",
        )
        for number, share in shares.items()
    ]
    line = int(np.clip(height / 24, _SMALLEST, _LARGEST))
    columns_needed = -(-len(entries) // max(height // line - 1, 8))
    rows = -(-len(entries) // columns_needed)
    columns = [_column(entries[i : i + rows], line) for i in range(0, len(entries), rows)]
    tallest = max(map(len, columns))
    return np.hstack([pad(column, tallest) for column in columns])


def _column(entries: list[_Entry], line: int) -> Image:
    scale, stroke = line / 38, max(1, line // 22)
    text, gap = int(2.2 * line), line // 2
    right = text + max(_width(e.name, scale) for e in entries) + line + max(_width(e.share, scale) for e in entries)
    panel = np.full((line * (len(entries) + 1), right + gap, 3), PAPER, np.uint8)
    for row, entry in enumerate(entries):
        top = gap + row * line
        corners = (gap, top + line // 8), (int(1.7 * line), top + line - line // 8)
        cv2.rectangle(panel, *corners, entry.colour, -1)
        cv2.rectangle(panel, *corners, _FAINT, 1)
        baseline = top + int(0.7 * line)
        cv2.putText(panel, entry.name, (text, baseline), cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, stroke, cv2.LINE_AA)
        place = right - _width(entry.share, scale), baseline
        cv2.putText(panel, entry.share, place, cv2.FONT_HERSHEY_SIMPLEX, scale, _FAINT, stroke, cv2.LINE_AA)
    return panel


def _width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0])
