"""Overlays: an image blended with its label colours, with outlines, hatching and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.metrics import percent
from isnet_trt.opencv import cv2
from isnet_trt.pictures import contrast
from isnet_trt.pictures.files import Image
from isnet_trt.pictures.label_maps import class_shares, colours, with_void
from isnet_trt.pictures.legend import PAPER, Entry, attach
from isnet_trt.settings import size_text

_SAMPLES = 1 << 15
"""Approximate number of pixels from which areas and mean colours are estimated."""
_CROWDED = 0.55
"""Share of edge pixels in a 7×7 neighbourhood above which labels are taken for noise and get no outlines."""
VOID_NAME = "(ignored)"


@dataclass(frozen=True)
class OverlayStyle:
    """How an overlay is drawn; the fields are those arguments of `isnet_trt.Segmentation.overlay`.

    ``void`` hatches the pixels without a class, which otherwise stay as they are, and gives them a line in the legend.
    """

    alpha: float = 0.5
    legend: bool = True
    outlines: bool = True
    hatching: bool = True
    side_by_side: bool = False
    void: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise SettingsError(f"alpha {self.alpha} is the share of the colours and must be within 0..1")


def draw(
    image: Image,
    labels: NDArray[np.unsignedinteger],
    names: Sequence[str],
    palette: NDArray[np.uint8],
    style: OverlayStyle,
) -> Image:
    """Blend ``image`` with the colours of its label map, and add what ``style`` has; uint8 (H', W', 3) RGB.

    ``image`` is uint8 (H, W, 3) RGB, ``labels`` the class ids (H, W), ``palette`` uint8 (K, 3) RGB. Pixels without a
    class keep the colours of the image.

    Raises:
        ImageError: the image has another size than the label map.
    """
    blended, entries = paint(image, labels, names, palette, style)
    if style.side_by_side:
        gap = np.full((len(image), max(2, image.shape[1] // 100), 3), PAPER, np.uint8)
        blended = np.hstack([image, gap, blended])
    return attach(blended, entries) if style.legend else blended


def paint(
    image: Image,
    labels: NDArray[np.unsignedinteger],
    names: Sequence[str],
    palette: NDArray[np.uint8],
    style: OverlayStyle,
) -> tuple[Image, list[Entry]]:
    """Blend ``image`` with the colours of its label map; also return the legend's entries, none without a legend.

    Arguments and errors are those of `draw`.
    """
    if image.shape[:2] != labels.shape:
        raise ImageError(
            f"the picture is {size_text(image.shape[:2])}, the label map {size_text(labels.shape)}; "
            "pass the picture that was segmented"
        )
    ids, classes = with_void(labels, len(names)), len(names)
    blended = np.asarray(cv2.addWeighted(image, 1 - style.alpha, colours(ids, palette), style.alpha, 0), np.uint8)
    is_void = ids >= classes
    if is_void.any():
        cv2.copyTo(image, is_void.view(np.uint8), blended)
    areas = _areas(ids, classes)
    patterns = _patterns(ids, image, palette, areas, style)
    if any(patterns.values()):
        contrast.draw_lines(blended, contrast.lines(ids.shape, patterns, ids), contrast.HATCHED)
    if style.outlines:
        contrast.draw_lines(blended, _outlines(ids, areas), 1.0)
    return blended, _entries(ids, names, palette, patterns) if style.legend else []


def _sampled(array: NDArray[np.unsignedinteger], shape: tuple[int, ...]) -> NDArray[np.unsignedinteger]:
    """Every n-th row and column, about `_SAMPLES` pixels in all."""
    step = max(1, int((shape[0] * shape[1] / _SAMPLES) ** 0.5))
    return array[::step, ::step]


def _areas(ids: NDArray[np.unsignedinteger], classes: int) -> NDArray[np.int64]:
    """Pixels of each class in the sample, (K,)."""
    return np.asarray(np.bincount(_sampled(ids, ids.shape).ravel(), minlength=classes)[:classes], np.int64)


def _patterns(
    ids: NDArray[np.unsignedinteger],
    image: Image,
    palette: NDArray[np.uint8],
    areas: NDArray[np.int64],
    style: OverlayStyle,
) -> dict[int, int]:
    """Value of the label map -> pattern of its lines."""
    patterns = {}
    if style.hatching:
        sample = _sampled(ids, ids.shape).ravel()
        like = contrast.like_image(sample, _sampled(image, ids.shape).reshape(-1, 3), palette)
        present = sorted(np.flatnonzero(areas), key=lambda number: (-areas[number], number))
        patterns = contrast.hatching(map(int, present), palette, map(int, like))
    if style.void:
        patterns[int(np.iinfo(ids.dtype).max)] = contrast.CROSSED
    return patterns


def _outlines(ids: NDArray[np.unsignedinteger], areas: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels (H, W) at the border of two classes, on the side of the larger one, so that small objects stay whole.

    At the border of a class and void they lie in the class. Where labels change at nearly every pixel there are none.
    """
    largest = np.iinfo(ids.dtype).max
    ranks = np.full(largest + 1, min(len(areas), largest), ids.dtype)
    ranks[np.argsort(-areas, kind="stable")] = np.arange(len(areas))
    ranked = contrast.look_up(ids, ranks)
    edges = np.asarray(cv2.dilate(ranked, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) > ranked)
    if np.count_nonzero(edges) > edges.size // 20:
        crowded = cv2.blur(edges.view(np.uint8) * 255, (7, 7)) > 255 * _CROWDED
        edges &= ~crowded
    return edges


def _entries(
    ids: NDArray[np.unsignedinteger], names: Sequence[str], palette: NDArray[np.uint8], patterns: Mapping[int, int]
) -> list[Entry]:
    """The legend's entries, the largest class first; void is the last where it is hatched."""
    void = int(np.iinfo(ids.dtype).max)
    shares = class_shares(ids, len(names))
    entries = [
        Entry(palette[number], patterns.get(number, contrast.PLAIN), names[number], _share_text(share))
        for number, share in shares.items()
    ]
    missing = 1 - sum(shares.values())
    if void in patterns and missing > 1e-9:
        entries.append(Entry(np.array(PAPER, np.uint8), patterns[void], VOID_NAME, _share_text(missing)))
    return entries


def _share_text(share: float) -> str:
    return f"{percent(share, 1)} %" if share >= 0.001 else "< 0.1 %"
