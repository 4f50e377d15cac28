"""The mean of the overlapping windows of one scale: rows of a volume of scores.

For pixel (y, x) of the scaled picture, with the windows W that cover it in a pass:

    volume[k, y, x] = Σ_passes 1 / |W| · Σ_{w in W} s_w[k],    s_w = upsample(logits_w) or its softmax over the classes

``upsample`` is bilinear from the coarse grid to the window (isnet_trt.merging.resample.positions, by size ratio), in
the orientation in which the network saw the window; for a mirrored pass the column is then read from the other end and
left and right classes change places (``swap``). The plain and the mirrored pass of a scale share one volume.

Each block gathers: it sums in registers what all windows contribute to its pixels and writes every value once, without
atomics, so that the result does not depend on the order of blocks. Only the rows that the caller needs are made.

A whole pass whose scores are softmaxed on the coarse grid, or whose mirrored twin is added to it, is the same kernel
with one window per pass, of the size of the coarse grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from isnet_trt.kernels.device import bilinear, taps
from isnet_trt.kernels.finish import upsample


def reference(
    logits: NDArray[Any], windows: NDArray[np.int32], swap: NDArray[np.int32], plain: int, size: tuple[int, int],
    window: tuple[int, int], softmax: bool,
) -> NDArray[np.float64]:  # fmt: skip
    """The whole volume (K, *size) in float64; arguments as `accumulate` takes them, ``window`` (height, width)."""
    volume = np.zeros((logits.shape[1], *size))
    for part in (windows[:plain], windows[plain:]):
        total, cover = np.zeros_like(volume), np.zeros(size)
        for slot, top, left, mirrored in part:
            scores = upsample(logits[slot], window)
            if softmax:
                scores = np.exp(scores - scores.max(axis=0))
                scores /= scores.sum(axis=0)
            y, x = slice(top, top + window[0]), slice(left, left + window[1])
            total[:, y, x] += scores[swap][:, :, ::-1] if mirrored else scores
            cover[y, x] += 1
        volume += total / np.maximum(cover, 1)
    return volume


@triton.jit
def _mean(
    logits: tl.tensor, windows: tl.tensor, swap: tl.tensor, begin: tl.tensor, end: tl.tensor, y: tl.tensor,
    x: tl.tensor, classes: tl.tensor, coarse_height: tl.tensor, coarse_width: tl.tensor, window_height: tl.tensor,
    window_width: tl.tensor, step_y: tl.tensor, step_x: tl.tensor, softmax: tl.tensor, CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The mean (CLASSES, BLOCK) over windows ``begin:end`` of one pass that cover pixels (y, x)."""
    k = tl.arange(0, CLASSES)
    swapped = tl.load(swap + k, k < classes, 0)
    total = tl.zeros((CLASSES, BLOCK), tl.float32)
    cover = tl.zeros((BLOCK,), tl.int32)
    for i in range(begin, end):
        top = tl.load(windows + 4 * i + 1)
        left = tl.load(windows + 4 * i + 2)
        # A row outside the window has no columns, which makes the test of both axes one comparison.
        reach = tl.where(y >= top, tl.where(y < top + window_height, window_width, 0), 0)
        inside = (x >= left) & (x < left + reach)
        # Most windows miss a block: they cost no loads.
        if tl.max(inside.to(tl.int32), 0) != 0:
            slot = tl.load(windows + 4 * i).to(tl.int64)
            mirrored = tl.load(windows + 4 * i + 3) != 0
            # The network saw the mirrored window, so its column is read from the other end.
            column = tl.where(mirrored, window_width - 1 - (x - left), x - left)
            low, high, down = taps(y - top, step_y, coarse_height)
            near, far, across = taps(column, step_x, coarse_width)
            plane = (slot * classes + tl.where(mirrored, swapped, k)) * coarse_height * coarse_width
            mask = (k[:, None] < classes) & inside[None, :]
            rows = (logits + plane)[:, None]
            score = bilinear(
                rows, low * coarse_width, high * coarse_width, down, near[None, :], far[None, :], across[None, :], mask
            )
            if softmax != 0:
                # Classes beyond `classes` are padding and must not take a share.
                score = tl.where(k[:, None] < classes, score, float("-inf"))
                score = tl.exp(score - tl.max(score, 0)[None, :])
                score = score / tl.sum(score, 0)[None, :]
            total += tl.where(mask, score, 0.0)
            cover += inside.to(tl.int32)
    return total / tl.maximum(cover, 1).to(tl.float32)[None, :]


@triton.jit
def accumulate(
    logits: tl.tensor,  # (slots, classes, coarse_height, coarse_width)
    windows: tl.tensor,  # (count, 4) int32: slot, top, left, mirrored; those of the plain pass first
    swap: tl.tensor,  # (classes,) int32: the class that each one is in a mirrored picture
    volume: tl.tensor,  # (classes, rows, width) float32, written: rows first_row .. first_row + rows - 1
    classes: tl.tensor, coarse_height: tl.tensor, coarse_width: tl.tensor, window_height: tl.tensor,
    window_width: tl.tensor,
    step_y: tl.tensor,  # float32(coarse_height) / float32(window_height)
    step_x: tl.tensor,
    plain: tl.tensor,  # windows of the first pass
    count: tl.tensor,  # windows of both passes
    first_row: tl.tensor, rows: tl.tensor, width: tl.tensor, softmax: tl.tensor,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = first_row + tl.program_id(1)
    score = tl.zeros((CLASSES, BLOCK), tl.float32)
    # Each pass is divided by its own cover: the mirrored pass has reflected windows, which overlap elsewhere.
    for part in range(2):
        begin = tl.where(part == 0, 0, plain)
        end = tl.where(part == 0, plain, count)
        score += _mean(
            logits, windows, swap, begin, end, y, x, classes, coarse_height, coarse_width,
            window_height, window_width, step_y, step_x, softmax, CLASSES, BLOCK,
        )  # fmt: skip
    k = tl.arange(0, CLASSES)
    address = volume + (k.to(tl.int64)[:, None] * rows + tl.program_id(1)) * width + x[None, :]
    tl.store(address, score, (k[:, None] < classes) & (x[None, :] < width))
