"""Perceptual distances of colours (OKLab), and the hatching of classes whose colour is too close to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from isnet_trt.opencv import cv2

TOO_CLOSE = 0.10
"""OKLab distance below which two colours are taken for one where they lie side by side on a photograph.

Black and white are 1 apart; about 0.02 can just be told apart on plain patches."""
PLAIN, CROSSED = 0, 16
"""Patterns of `hatching`: no lines; lines both ways, which no class gets."""
HATCHED = 0.7
"""Strength of the lines of hatching in `draw_lines`."""
_BITS = (1, 2, 4, 8)
"""Bits of the lines /, \\, ─ and │ in the tile that `lines` repeats."""
PATTERNS = (*_BITS, 4 | 8)
"""Patterns of classes that are not plain; the last is a grid."""
_LUMA, _GREY = np.array([0.299, 0.587, 0.114], np.float32), 118
"""Weights of R, G and B, and the level half as light as white."""
_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4).astype(np.float32)
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    np.float32,
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    np.float32,
)


def oklab(colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    """sRGB colours (..., 3), uint8, as lightness 0..1 and two opponent colours (..., 3).

    Distances between them are about as large as the differences look.
    Source: B. Ottosson, A perceptual color space for image processing, 2020.
    """
    return np.asarray(np.cbrt(_LINEAR[colours] @ _TO_CONES.T) @ _TO_LAB.T, np.float32)


def distance(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """OKLab distance of sRGB colours (..., 3), uint8; the leading axes are broadcast."""
    return np.asarray(np.linalg.norm(oklab(first) - oklab(second), axis=-1), np.float32)


def hatching(present: Iterable[int], palette: NDArray[np.uint8], like_image: Iterable[int]) -> dict[int, int]:
    """Class -> pattern of its lines, so that classes of close colours differ in their lines.

    ``present`` are the classes of the image, the largest first, ``palette`` uint8 (K, 3) RGB, ``like_image`` the
    classes whose colour is too close to the image under them; those are never plain. A class with more close
    neighbours than there are patterns shares that of the one least close.
    """
    order, unlike = list(present), set(like_image)
    options = np.array((PLAIN, *PATTERNS))
    colours = oklab(palette[order])
    apart = np.linalg.norm(colours[:, None] - colours, axis=2)
    nearest = np.full((len(order), len(options)), TOO_CLOSE)  # of the classes with each pattern; no further than needed
    nearest[[number in unlike for number in order], 0] = -1
    chosen = []
    for row in range(len(order)):
        chosen.append(int(nearest[row].argmax()))  # the first of equals
        np.minimum(nearest[:, chosen[-1]], apart[row], out=nearest[:, chosen[-1]])
    return dict(zip(order, map(int, options[chosen]), strict=True))


def like_image(
    ids: NDArray[np.unsignedinteger], image: NDArray[np.uint8], palette: NDArray[np.uint8]
) -> NDArray[np.intp]:
    """Classes whose colour is on average too close to the pixels of ``image`` (N, 3) that have them, ``ids`` (N,)."""
    has_class = ids < len(palette)
    ids, image = ids[has_class], image[has_class]
    apart = np.bincount(ids, np.linalg.norm(oklab(palette)[ids] - oklab(image), axis=1), len(palette))
    counts = np.bincount(ids, minlength=len(palette))
    return np.flatnonzero((counts > 0) & (apart < TOO_CLOSE * counts))


def lines(shape: tuple[int, ...], patterns: Mapping[int, int], ids: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
    """Where lines of hatching lie, (H, W): those of each pixel's class, one pixel wide."""
    bits = np.zeros(np.iinfo(ids.dtype).max + 1, np.uint8)
    bits[list(patterns)] = list(patterns.values())
    period = int(np.clip(min(shape) // 64, 5, 16))
    y, x = np.indices((period, period))
    on_lines = ((x + y) % period == 0, (x - y) % period == 0, y == 0, x == 0)
    tile = sum((on_line * bit for on_line, bit in zip(on_lines, _BITS, strict=True)), np.zeros_like(x))
    tile |= (on_lines[0] | on_lines[1]) * CROSSED
    repeats = -(-shape[0] // period), -(-shape[1] // period)
    sheet = np.tile(tile.astype(np.uint8), repeats)[: shape[0], : shape[1]]
    return np.asarray((look_up(ids, bits) & sheet) != 0)


def draw_lines(picture: NDArray[np.uint8], where: NDArray[np.bool_], strength: float) -> None:
    """Darken light and lighten dark pixels of an RGB picture (H, W, 3) where ``where`` (H, W) is True, in place.

    With ``strength`` 1 they become black and white.
    """
    places = np.flatnonzero(where)
    pixels = picture.reshape(-1, 3).take(places, 0).astype(np.float32)
    tone = np.where(pixels @ _LUMA < _GREY, strength * 255, 0).astype(np.float32)
    picture.reshape(-1, 3)[places] = ((1 - strength) * pixels + tone[:, None]).astype(np.uint8)


def look_up(ids: NDArray[np.unsignedinteger], table: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """``table[ids]``; ``table`` has an entry for each value of the type of ``ids``."""
    if ids.dtype == table.dtype == np.uint8:  # three times as fast as numpy
        return np.asarray(cv2.LUT(np.ascontiguousarray(ids), table), np.uint8)
    return table.take(ids)
