"""Looks through a dataset before training: every picture and label map is read, classes are counted, samples drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from isnet_trt.datasets.picture_set import PictureSet
from isnet_trt.errors import DataError
from isnet_trt.pictures.files import Image
from isnet_trt.pictures.overlay import draw
from isnet_trt.settings import Size

_LISTED = 20
_COMMON = 8
_TILE: Size = (260, 360)
"""Largest (height, width) of a picture on the page."""
_LINE = 22
_PAPER, _INK = (250, 250, 250), (30, 30, 30)


@dataclass
class Findings:
    """What was found in one split.

    ``pixels`` int64 (K,) and ``pictures`` int64 (K,): of each class, how many pixels, and pictures it occurs in.
    ``sizes`` are the (height, width) of the usable pictures, ``usable`` their indices, ``problems`` a sentence for
    each of the others.
    """

    pixels: NDArray[np.int64]
    pictures: NDArray[np.int64]
    ignored: int = 0
    sizes: list[Size] = field(default_factory=list)
    usable: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def examine(dataset: PictureSet, limit: int | None = None, workers: int = 4) -> Findings:
    """Read pictures and labels of a split, all or ``limit`` of them evenly spaced, in ``workers`` threads."""
    found = Findings(np.zeros(dataset.labels.count, np.int64), np.zeros(dataset.labels.count, np.int64))
    indices = spread(len(dataset), limit or len(dataset))
    pool = ThreadPoolExecutor(workers)
    try:
        counted = pool.map(lambda index: _count(dataset, index), indices)
        bar = tqdm(counted, f"{dataset.name} {dataset.split}", len(indices), unit="picture", dynamic_ncols=True)
        for index, result in zip(indices, bar, strict=True):
            _add(found, index, result)
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _count(dataset: PictureSet, index: int) -> tuple[NDArray[np.int64], int, Size] | str:
    """Pixels of each class, ignored pixels, and size; or what is wrong."""
    try:
        labels = dataset[index][1]
    except DataError as error:
        return str(error)
    valid = labels[labels >= 0]
    return np.bincount(valid, minlength=dataset.labels.count), labels.size - valid.size, labels.shape


def _add(found: Findings, index: int, result: tuple[NDArray[np.int64], int, Size] | str) -> None:
    if isinstance(result, str):
        found.problems.append(result)
        return
    pixels, ignored, size = result
    found.pixels += pixels
    found.pictures += pixels > 0
    found.ignored += ignored
    found.sizes.append(size)
    found.usable.append(index)


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` indices below ``count`` (all, if there are fewer), evenly spaced from 0 on."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


def report(dataset: PictureSet, found: Findings, complete: int | None) -> str:
    """The findings in some lines; ``complete`` is how many pictures the whole dataset has, if that is known."""
    looked = len(found.usable) + len(found.problems)
    whole = f" (the complete dataset has {complete})" if complete and complete != len(dataset) else ""
    lines = [
        f"{dataset.name} {dataset.split}: {len(dataset)} pictures{whole}, {looked} read, {len(found.problems)} bad"
    ]
    lines += [*_sizes(found.sizes), *_classes(dataset, found)] if found.usable else []
    lines += [f"  cannot be used: {text}" for text in found.problems[:_LISTED]]
    more = len(found.problems) - _LISTED
    return "\n".join([*lines, *([f"  … and {more} more"] if more > 0 else [])])


def _sizes(sizes: list[Size]) -> Iterator[str]:
    small, large = (pick(sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
    yield f"  sizes:   {small[0]}x{small[1]} to {large[0]}x{large[1]} (height x width)"


def _classes(dataset: PictureSet, found: Findings) -> Iterator[str]:
    total = int(found.pixels.sum()) + found.ignored
    yield f"  ignored: {100 * found.ignored / total:.1f} % of the pixels"
    yield "  pixels   pictures  most common classes"
    for c in np.argsort(-found.pixels, kind="stable")[:_COMMON]:
        if found.pixels[c]:
            name = dataset.labels.names[c].split(",")[0]
            yield f"  {100 * found.pixels[c] / total:6.1f} % {found.pictures[c]:8}  {name}"
    absent = [dataset.labels.names[c].split(",")[0] for c in np.flatnonzero(found.pixels == 0)]
    if absent:
        more = f", … ({len(absent) - _LISTED} more)" if len(absent) > _LISTED else ""
        yield f"  absent:  {len(absent)} of {dataset.labels.count} classes: {', '.join(absent[:_LISTED])}{more}"


def page(samples: Sequence[tuple[PictureSet, int]]) -> Image:
    """Samples one below the other, uint8 RGB: the picture, and the picture under its label colours with a legend."""
    rows = [_row(dataset, index) for dataset, index in samples]
    width = max(row.shape[1] for row in rows)
    return np.vstack([_fill(row, len(row), width) for row in rows])


def _row(dataset: PictureSet, index: int) -> Image:
    bgr, labels = dataset[index]
    height, width = labels.shape
    factor = min(_TILE[0] / height, _TILE[1] / width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    image = np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_AREA), np.uint8)[..., ::-1]
    small = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.int16)
    shown = _drawn(dataset, np.ascontiguousarray(image), small)
    height = max(len(image), len(shown))
    pair = np.hstack([_fill(image, height, _TILE[1] + _LINE // 2), _fill(shown, height, shown.shape[1])])
    return np.vstack([_caption(f"{dataset.split}: {dataset.names[index]}", pair.shape[1]), pair])


def _drawn(dataset: PictureSet, image: Image, labels: NDArray[np.int16]) -> Image:
    """``image`` under its labels' colours; ignored pixels are a class more, drawn black."""
    count = dataset.labels.count
    palette = np.array([*dataset.labels.palette, (0, 0, 0)], np.uint8)
    stored = np.where(labels < 0, count, labels).astype(np.uint16)
    return draw(image, stored, (*dataset.labels.names, "(ignored)"), palette, alpha=0.8)


def _caption(text: str, width: int) -> Image:
    strip = np.full((_LINE, width, 3), _PAPER, np.uint8)
    cv2.putText(strip, text, (4, _LINE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
    return strip


def _fill(picture: Image, height: int, width: int) -> Image:
    """``picture`` at the top left of a sheet of at least this size."""
    below, beside = max(0, height - picture.shape[0]), max(0, width - picture.shape[1])
    return np.asarray(cv2.copyMakeBorder(picture, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=_PAPER), np.uint8)
