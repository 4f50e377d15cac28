"""Label maps as files and records that other programs read: palette PNG, RGBA image, COCO run lengths.

Every value of a label map that is no class (255, −100, …) is void: transparent in colours, and part of no mask.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import SettingsError, needs
from isnet_trt.opencv import cv2
from isnet_trt.pictures.results import png_chunk

LabelMap = NDArray[np.integer]
_PNG = b"\x89PNG\r\n\x1a\n"
_INDEXED = 3
"""PNG's colour type of palette images."""
_MOST_COLOURS = 256


def with_void(labels: LabelMap, classes: int) -> NDArray[np.unsignedinteger]:
    """Class ids (H, W) as uint8 or uint16, in which the largest value of the type stands for all that are no class.

    The type is that of ``labels`` where it is one of these and has room for all classes; otherwise the smaller one
    that has room.
    """
    if labels.dtype == np.uint16 or (labels.dtype == np.uint8 and classes <= _MOST_COLOURS):
        if labels.max(initial=0) < classes:
            return labels  # type: ignore[return-value]  # numpy's types do not follow from the comparison
        inside, dtype = labels < classes, labels.dtype
    else:
        inside = (labels >= 0) & (labels < classes)
        dtype = np.dtype(np.uint8 if classes + (not inside.all()) <= _MOST_COLOURS else np.uint16)
    return np.where(inside, labels, np.iinfo(dtype).max).astype(dtype)


def class_shares(labels: LabelMap, classes: int) -> dict[int, float]:
    """Class id -> share of the pixels (0..1), of the classes that occur, largest first; void pixels count in none."""
    counts = np.bincount(with_void(labels, classes).ravel(), minlength=classes)[:classes]
    order = sorted(np.flatnonzero(counts), key=lambda c: (-counts[c], c))
    return {int(c): float(counts[c] / labels.size) for c in order}


def color_mask(labels: LabelMap, palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Class colours, uint8 (H, W, 4) RGBA: alpha 255 where there is a class, 0 in all four channels where void is.

    ``labels`` is (H, W), ``palette`` uint8 (K, 3) RGB.
    """
    opaque = np.full((len(palette), 1), 255, np.uint8)
    return _looked_up(labels, np.hstack([palette, opaque]))


def colours(labels: LabelMap, palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Class colours, uint8 (H, W, 3) RGB; void is black. Arguments as for `color_mask`."""
    return _looked_up(labels, palette)


def _looked_up(labels: LabelMap, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The row of ``values`` (K, C) of each class, (H, W, C); zeros for void."""
    ids = with_void(labels, len(values))
    table = np.zeros((np.iinfo(ids.dtype).max + 1, values.shape[1]), np.uint8)
    table[: len(values)] = values
    if ids.dtype == np.uint8 and values.shape[1] == 3 and ids.size:  # four times as fast as numpy
        return np.asarray(cv2.applyColorMap(np.ascontiguousarray(ids), table[:, None]), np.uint8)
    return table.take(ids, 0)


def palette_png(labels: LabelMap, palette: NDArray[np.uint8]) -> bytes:
    """A PNG file whose pixels are class ids (8 bits) and whose palette has the class colours.

    Void is index 255, black and transparent. W3C PNG 3rd edition, 11.2.

    Raises:
        SettingsError: there are more than 256 classes, or 256 and void pixels.
    """
    ids = with_void(labels, len(palette))
    has_void = bool(ids.max(initial=0) >= len(palette))
    check_palette(len(palette) + has_void)
    unused = (_MOST_COLOURS - len(palette)) * has_void
    height, width = ids.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each begins with its filter: 0, none
    rows[:, 1:] = ids
    chunks = [
        png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _INDEXED, 0, 0, 0)),
        png_chunk(b"PLTE", palette.tobytes() + bytes(3 * unused)),
        png_chunk(b"tRNS", b"\xff" * len(palette) + bytes(unused)) if has_void else b"",
        png_chunk(b"IDAT", zlib.compress(rows, 6)),
        png_chunk(b"IEND", b""),
    ]
    return _PNG + b"".join(chunks)


def check_palette(colours: int) -> None:
    """Raise SettingsError for more colours than the palette of a PNG holds."""
    if colours > _MOST_COLOURS:
        raise SettingsError(
            f"a palette PNG has at most {_MOST_COLOURS} colours and the label map needs {colours}; save it as labels "
            "(16-bit PNG), color (RGBA PNG) or geotiff"
        )


def coco_dataset(labels: LabelMap, names: Sequence[str], file_name: str, image_id: int) -> dict[str, Any]:
    """A COCO data set of one picture: an annotation with the run lengths of each class that occurs.

    ``category_id`` is the class id, ``counts`` COCO's compressed run lengths as text.

    Raises:
        PackageMissing: pycocotools is not installed.
    """
    with needs("COCO run lengths", "coco"):
        from pycocotools import mask as coco
    ids = np.asfortranarray(with_void(labels, len(names)))  # the order of COCO's run lengths
    annotations: list[dict[str, Any]] = []
    for number in class_shares(ids, len(names)):
        run_lengths = coco.encode((ids == number).view(np.uint8))
        annotations.append(
            {
                "id": len(annotations) + 1,  # pycocotools takes 0 for "no match"
                "image_id": image_id,
                "category_id": number,
                "segmentation": {"size": list(ids.shape), "counts": run_lengths["counts"].decode("ascii")},
                "area": int(coco.area(run_lengths)),
                "bbox": coco.toBbox(run_lengths).tolist(),
                "iscrowd": 0,
            }
        )
    height, width = ids.shape
    return {
        "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": annotations,
    }
