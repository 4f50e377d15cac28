"""From the source image to the network's input: resize, normalise, resample, crop, mirror.

`resize` is OpenCV's bilinear reduction or enlargement of uint8, in its fixed-point arithmetic. For output column x,
with f = float32((x + 0.5) · n_in / n_out − 0.5), s = floor(f) and 11-bit weights a1 = rint(2048 (f − s)),
a0 = rint(2048 (1 − (f − s))), where f − s is 0 outside the picture; rows y alike with b0, b1, but rows outside the
picture repeat its edge:

    H_r = a0 · p[r, s] + a1 · p[r, s + 1]
    q = (((b0 · (H_t >> 4)) >> 16) + ((b1 · (H_{t+1} >> 4)) >> 16) + 2) >> 2

`gather` reads that picture (or the source itself where the test resize changes nothing), normalises by a table of
3 × 256 values (isnet_trt.pictures.preprocess), resamples by 1 / scale at the positions of
isnet_trt.merging.resample.positions, and writes windows (B, 3, h, w). Nothing between the uint8 picture
and the batch is in memory. `gather_padded` writes a network's padding too.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from isnet_trt.kernels.device import taps
from isnet_trt.merging.resample import scale_rows


def resize_reference(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 (H, W, C) -> (height, width, C), the formula in whole numbers."""
    top, bottom, b0, b1 = _weights(image.shape[0], height, clamped=False)
    left, right, a0, a1 = _weights(image.shape[1], width, clamped=True)
    pixels = image.astype(np.int32)
    across = (pixels[:, left] * a0[:, None] + pixels[:, right] * a1[:, None]) >> 4
    upper, lower = (across[top] * b0[:, None, None]) >> 16, (across[bottom] * b1[:, None, None]) >> 16
    return np.clip((upper + lower + 2) >> 2, 0, 255).astype(np.uint8)


def _weights(n_in: int, n_out: int, clamped: bool) -> tuple[NDArray[np.int32], ...]:
    """Lower and upper sample, and their weights in units of 1 / 2048."""
    at = ((np.arange(n_out) + 0.5) * (1.0 / (n_out / n_in)) - 0.5).astype(np.float32)
    low = np.floor(at).astype(np.int32)
    part = at - low.astype(np.float32)
    if clamped:
        part = np.where((low < 0) | (low >= n_in - 1), np.float32(0), part)
    samples = (np.clip(low, 0, n_in - 1), np.clip(low + 1, 0, n_in - 1))
    return (*samples, *(np.rint(w * np.float32(2048)).astype(np.int32) for w in (np.float32(1) - part, part)))


def gather_reference(
    picture: NDArray[np.uint8], table: NDArray[np.float32], windows: NDArray[np.int32], steps: NDArray[np.float32],
    height: int, width: int,
) -> NDArray[np.float32]:  # fmt: skip
    """Windows (B, 3, height, width) of ``picture`` uint8 (H, W, 3) RGB; ``windows`` and ``steps`` as `gather` takes."""
    planes = np.stack([table[c][picture[:, :, c]] for c in range(3)])
    out = np.zeros((len(windows), 3, height, width), np.float32)
    for batch, (top, left, mirrored, used), step in zip(out, windows, steps, strict=True):
        if used:
            rows = scale_rows(planes, 1 / float(step), left + width, top, top + height)[:, :, left:]
            batch[...] = rows[:, :, ::-1] if mirrored else rows
    return out


@triton.jit
def resize_taps(index: tl.tensor, length: tl.tensor, target: tl.tensor, CLAMPED: tl.constexpr) -> tl.tensor:
    """Lower and upper sample of output ``index``, and their weights in units of 1 / 2048."""
    # OpenCV finds positions in float64 and rounds them to float32.
    step = 1.0 / (target.to(tl.float64) / length.to(tl.float64))
    at = ((index.to(tl.float64) + 0.5) * step - 0.5).to(tl.float32)
    low = tl.floor(at)
    part = at - low
    low = low.to(tl.int32)
    if CLAMPED:
        part = tl.where((low < 0) | (low >= length - 1), 0.0, part)
    # Adding and taking away 1.5 · 2^23 rounds to whole numbers, halves to even.
    first = ((1.0 - part) * 2048.0 + 12582912.0) - 12582912.0
    second = (part * 2048.0 + 12582912.0) - 12582912.0
    lower = tl.minimum(tl.maximum(low, 0), length - 1)
    upper = tl.minimum(tl.maximum(low + 1, 0), length - 1)
    return lower, upper, first.to(tl.int32), second.to(tl.int32)


@triton.jit
def resize_blend(upper: tl.tensor, lower: tl.tensor, b0: tl.tensor, b1: tl.tensor) -> tl.tensor:
    """A byte from the sums across of two rows and the rows' weights."""
    # OpenCV's order of shifts: they drop bits, so another order gives other values.
    value = (((b0 * (upper >> 4)) >> 16) + ((b1 * (lower >> 4)) >> 16) + 2) >> 2
    return tl.minimum(tl.maximum(value, 0), 255).to(tl.uint8)


@triton.jit
def resize(
    source: tl.tensor,  # uint8, rows of `pitch` bytes, `pixel` bytes a pixel, of which a fourth is passed over
    picture: tl.tensor,  # (height, width, 3) uint8 RGB, written
    pitch: tl.tensor,  # int64
    pixel: tl.tensor,  # 3 or 4
    bgr: tl.tensor,  # 1 where the source's channels are B, G, R
    source_height: tl.tensor, source_width: tl.tensor, height: tl.tensor, width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    y = tl.program_id(1)
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    top, bottom, b0, b1 = resize_taps(y, source_height, height, False)
    left, right, a0, a1 = resize_taps(x, source_width, width, True)
    inside = x < width
    upper = source + top * pitch
    lower = source + bottom * pitch
    for c in tl.static_range(3):
        channel = tl.where(bgr != 0, 2 - c, c)
        high = a0 * tl.load(upper + pixel * left + channel, inside, 0).to(tl.int32)
        high += a1 * tl.load(upper + pixel * right + channel, inside, 0).to(tl.int32)
        low = a0 * tl.load(lower + pixel * left + channel, inside, 0).to(tl.int32)
        low += a1 * tl.load(lower + pixel * right + channel, inside, 0).to(tl.int32)
        tl.store(picture + (y.to(tl.int64) * width + x) * 3 + c, resize_blend(high, low, b0, b1), inside)


@triton.jit
def _write(
    picture: tl.tensor, table: tl.tensor, windows: tl.tensor, steps: tl.tensor, out: tl.tensor, pitch: tl.tensor,
    pixel: tl.tensor, bgr: tl.tensor, picture_height: tl.tensor, picture_width: tl.tensor, height: tl.tensor,
    width: tl.tensor, window_height: tl.tensor, window_width: tl.tensor, PADDED: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """One row of a window of window_height x window_width in an input of height x width."""
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.program_id(1)
    b = tl.program_id(2)
    top = tl.load(windows + 4 * b)
    left = tl.load(windows + 4 * b + 1)
    mirrored = tl.load(windows + 4 * b + 2)
    used = tl.load(windows + 4 * b + 3)
    step = tl.load(steps + b)
    # Mirroring reverses the order of the columns within the window.
    column = left + tl.where(mirrored != 0, window_width - 1 - x, x)
    low, high, down = taps(top + y, step, picture_height)
    near, far, across = taps(column, step, picture_width)
    # An unused slot reads nothing and is written as zeros: the engine computes it all the same.
    inside = x < tl.where(used != 0, window_width, 0)
    if PADDED:
        inside = inside & (y < window_height)
    upper = picture + low * pitch
    lower = picture + high * pitch
    for c in tl.static_range(3):
        channel = tl.where(bgr != 0, 2 - c, c)
        # A table lookup gives the bits of the host's normalisation, and costs no division.
        values = table + 256 * c
        a = tl.load(values + tl.load(upper + pixel * near + channel, inside, 0), inside, 0.0)
        e = tl.load(values + tl.load(lower + pixel * near + channel, inside, 0), inside, 0.0)
        first = a + down * (e - a)
        a = tl.load(values + tl.load(upper + pixel * far + channel, inside, 0), inside, 0.0)
        e = tl.load(values + tl.load(lower + pixel * far + channel, inside, 0), inside, 0.0)
        second = a + down * (e - a)
        value = first + across * (second - first)
        if PADDED:
            value = tl.where(inside, value, tl.load(table + 768 + c))
        address = out + ((b.to(tl.int64) * 3 + c) * height + y) * width + x
        tl.store(address, value, x < width)


@triton.jit
def gather(
    picture: tl.tensor,  # uint8, rows of `pitch` bytes, `pixel` bytes a pixel, of which a fourth is passed over
    table: tl.tensor,  # (3, 256) float32, in the network's channel order: the normalised value of every byte
    windows: tl.tensor,  # (batch, 4) int32: top, left, mirrored, used; a window that is not used becomes 0
    steps: tl.tensor,  # (batch,) float32: 1 / scale of the window's pass
    out: tl.tensor,  # (batch, 3, height, width), written
    pitch: tl.tensor,  # int64
    pixel: tl.tensor,  # 3 or 4
    bgr: tl.tensor,  # 1 where the picture's channels are in the opposite order of the network's
    picture_height: tl.tensor, picture_width: tl.tensor, batch: tl.tensor, height: tl.tensor, width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    _write(
        picture, table, windows, steps, out, pitch, pixel, bgr, picture_height, picture_width, height, width, height,
        width, False, BLOCK,
    )  # fmt: skip


@triton.jit
def gather_padded(
    picture: tl.tensor,
    table: tl.tensor,  # as `gather` takes it, and behind it the value of the padding for each channel
    windows: tl.tensor, steps: tl.tensor,
    out: tl.tensor,  # (batch, 3, height, width), written: the window, below it and right of it the padding
    pitch: tl.tensor, pixel: tl.tensor, bgr: tl.tensor, picture_height: tl.tensor, picture_width: tl.tensor,
    batch: tl.tensor, height: tl.tensor, width: tl.tensor,
    window_height: tl.tensor, window_width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    _write(
        picture, table, windows, steps, out, pitch, pixel, bgr, picture_height, picture_width, height, width,
        window_height, window_width, True, BLOCK,
    )  # fmt: skip
