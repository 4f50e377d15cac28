"""From the planes of a YUV 4:2:0 picture to RGB of the test size: conversion and resize in one.

Each of the four samples that a pixel is interpolated from is converted, in whole numbers as OpenCV does it, with the
factors of isnet_trt.pictures.formats.YuvFormat.coefficients; U and V are those of the sample's two by two pixels:

    R = clip((yy · max(Y − offset, 0) + rv · (V − 128) + 2^19) >> 20, 0, 255)

with gu · (U − 128) + gv · (V − 128) for G and bu · (U − 128) for B. The interpolation is that of
isnet_trt.kernels.gather_windows.resize; where the size stays its weights are 2048 and 0, and leave the colours as they
are. The planes are read at any pitch; in NV12 U and V lie two bytes apart (``chroma_step``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from isnet_trt.kernels.gather_windows import resize_blend, resize_reference, resize_taps


def reference(
    luma: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8], factors: Sequence[int], height: int, width: int
) -> NDArray[np.uint8]:
    """Y (H, W), U and V (H / 2, W / 2) -> RGB (height, width, 3); ``factors`` as `YuvFormat.coefficients` has them."""
    offset, yy, rv, gu, gv, bu = factors
    y = np.maximum(luma.astype(np.int64) - offset, 0) * yy + (1 << 19)
    blue, red = (np.kron(plane.astype(np.int64) - 128, np.ones((2, 2), np.int64)) for plane in (u, v))
    rgb = np.stack([y + rv * red, y + gu * blue + gv * red, y + bu * blue], axis=2) >> 20
    return resize_reference(np.clip(rgb, 0, 255).astype(np.uint8), height, width)


@triton.jit
def _clip(value: tl.tensor) -> tl.tensor:
    return tl.minimum(tl.maximum(value >> 20, 0), 255)


@triton.jit
def _rgb(
    source: tl.tensor, row: tl.tensor, column: tl.tensor, inside: tl.tensor, pitch: tl.tensor, u: tl.tensor,
    v: tl.tensor, chroma_pitch: tl.tensor, chroma_step: tl.tensor, offset: tl.tensor, yy: tl.tensor, rv: tl.tensor,
    gu: tl.tensor, gv: tl.tensor, bu: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Red, green and blue of the pixels at ``row`` and ``column``."""
    luma = tl.load(source + row * pitch + column, inside, 0).to(tl.int32)
    chroma = source + (row >> 1) * chroma_pitch + (column >> 1) * chroma_step
    blue_difference = tl.load(chroma + u, inside, 0).to(tl.int32) - 128
    red_difference = tl.load(chroma + v, inside, 0).to(tl.int32) - 128
    bright = tl.maximum(luma - offset, 0) * yy + (1 << 19)
    red = _clip(bright + rv * red_difference)
    green = _clip(bright + gu * blue_difference + gv * red_difference)
    return red, green, _clip(bright + bu * blue_difference)


@triton.jit
def yuv_resize(
    source: tl.tensor,  # uint8, Y in rows of `pitch` bytes
    picture: tl.tensor,  # (height, width, 3) uint8 RGB, written
    pitch: tl.tensor,  # int64, as are the next three
    u: tl.tensor,  # bytes from `source` to the first U
    v: tl.tensor,
    chroma_pitch: tl.tensor,  # of the rows of U and of V
    chroma_step: tl.tensor,  # bytes from one U to the next
    offset: tl.tensor, yy: tl.tensor, rv: tl.tensor, gu: tl.tensor, gv: tl.tensor, bu: tl.tensor,
    source_height: tl.tensor, source_width: tl.tensor, height: tl.tensor, width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    y = tl.program_id(1)
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    top, bottom, b0, b1 = resize_taps(y, source_height, height, False)
    left, right, a0, a1 = resize_taps(x, source_width, width, True)
    inside = x < width
    r0, g0, c0 = _rgb(source, top, left, inside, pitch, u, v, chroma_pitch, chroma_step, offset, yy, rv, gu, gv, bu)
    r1, g1, c1 = _rgb(source, top, right, inside, pitch, u, v, chroma_pitch, chroma_step, offset, yy, rv, gu, gv, bu)
    r2, g2, c2 = _rgb(source, bottom, left, inside, pitch, u, v, chroma_pitch, chroma_step, offset, yy, rv, gu, gv, bu)
    r3, g3, c3 = _rgb(source, bottom, right, inside, pitch, u, v, chroma_pitch, chroma_step, offset, yy, rv, gu, gv, bu)
    out = picture + (y.to(tl.int64) * width + x) * 3
    tl.store(out, resize_blend(a0 * r0 + a1 * r1, a0 * r2 + a1 * r3, b0, b1), inside)
    tl.store(out + 1, resize_blend(a0 * g0 + a1 * g1, a0 * g2 + a1 * g3, b0, b1), inside)
    tl.store(out + 2, resize_blend(a0 * c0 + a1 * c1, a0 * c2 + a1 * c3, b0, b1), inside)
