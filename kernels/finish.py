"""The label map from volumes of scores.

    label[y, x] = argmax_k  1 / P · Σ_v resample(volume_v)[k, y, x]

over the volumes v of all scales, P passes in all; ``resample`` is bilinear straight to the source's size
(isnet_trt.merging.resample.positions, by size ratio), and the first of equal classes wins. Classes come in tiles and
the best so far stays in registers: neither K × H × W nor K values per pixel are ever in memory. Of each volume only the
rows that the written rows are interpolated from need to be in memory (`accumulate`).

`upsample_argmax` is the same for one whole pass, whose volume is the network's logits themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from isnet_trt.kernels.device import bilinear, taps
from isnet_trt.merging.resample import positions


def reference(volumes: Sequence[NDArray[Any]], size: tuple[int, int], passes: int) -> NDArray[np.float64]:
    """Mean scores (K, *size) of whole volumes (K, h, w) in float64; their arg max over axis 0 are the labels."""
    total = np.zeros((len(volumes[0]), *size))
    for volume in volumes:
        total += upsample(volume, size)
    return total / passes


def upsample(scores: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
    """Bilinear interpolation of scores (K, h, w) to (K, *size) in float64."""
    scores = scores.astype(np.float64)
    for axis, n_out in enumerate(size, start=1):
        n_in = scores.shape[axis]
        low, high, weight = positions(n_in, np.float32(n_in) / np.float32(n_out), 0, n_out)
        share = weight.astype(np.float64).reshape((-1, 1) if axis == 1 else (-1,))
        scores = scores.take(low, axis) * (1 - share) + scores.take(high, axis) * share
    return scores


@triton.jit
def finish(
    volumes: tl.tensor,  # all volumes, each (classes, rows in memory, width)
    offsets: tl.tensor,  # (count,) int64: where each begins, in elements
    sizes: tl.tensor,  # (count, 4) int32: first row in memory, rows in memory, height and width of the whole volume
    steps: tl.tensor,  # (count, 2) float32: height / output_height, width / output_width
    labels: tl.tensor,  # uint8 or uint16, rows of `pitch` elements, written
    pitch: tl.tensor,  # int64
    passes: tl.tensor, count: tl.tensor, classes: tl.tensor,
    first_row: tl.tensor,  # rows first_row .. first_row + rows - 1 of the output are written
    rows: tl.tensor, width: tl.tensor,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = first_row + tl.program_id(1)
    inside = x[None, :] < width
    # The best score so far and its class stay in registers; only their last values are written.
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    label = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        total = tl.zeros((BLOCK_K, BLOCK), tl.float32)
        for v in range(count):
            first = tl.load(sizes + 4 * v)
            stored = tl.load(sizes + 4 * v + 1)
            height = tl.load(sizes + 4 * v + 2)
            across_size = tl.load(sizes + 4 * v + 3)
            low, high, down = taps(y, tl.load(steps + 2 * v), height)
            near, far, across = taps(x, tl.load(steps + 2 * v + 1), across_size)
            plane = volumes + tl.load(offsets + v) + k.to(tl.int64) * (stored * across_size)
            total += bilinear(
                plane[:, None], (low - first) * across_size, (high - first) * across_size, down,
                near[None, :], far[None, :], across[None, :], (k[:, None] < classes) & inside,
            )  # fmt: skip
        # Triton's `/` is approximate in float32, div_rn is rounded correctly.
        total = tl.where(k[:, None] < classes, tl.div_rn(total, tl.zeros_like(total) + passes), float("-inf"))
        # A later tile must be greater, not equal: of equal classes the first wins, in a tile as well.
        top, at = tl.max(total, 0, return_indices=True)
        label = tl.where(top > best, start + at, label)
        best = tl.maximum(best, top)
    tl.store(labels + y * pitch + x, label.to(labels.dtype.element_ty), x < width)


@triton.jit
def upsample_argmax(
    logits: tl.tensor,  # (classes, coarse_height, coarse_width)
    labels: tl.tensor,  # uint8 or uint16, rows of `pitch` elements, written
    pitch: tl.tensor,  # int64
    classes: tl.tensor, coarse_height: tl.tensor, coarse_width: tl.tensor,
    step_y: tl.tensor,  # float32(coarse_height) / float32(height)
    step_x: tl.tensor, height: tl.tensor, width: tl.tensor,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.program_id(1)
    low, high, down = taps(y, step_y, coarse_height)
    near, far, across = taps(x, step_x, coarse_width)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    label = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        # Offsets of planes need 64 bits: 900 classes at a low resolution of 1500 x 2000 are more than 2^31 values.
        plane = logits + k.to(tl.int64) * (coarse_height * coarse_width)
        score = bilinear(
            plane[:, None], low * coarse_width, high * coarse_width, down,
            near[None, :], far[None, :], across[None, :], (k[:, None] < classes) & (x[None, :] < width),
        )  # fmt: skip
        top, at = tl.max(tl.where(k[:, None] < classes, score, float("-inf")), 0, return_indices=True)
        label = tl.where(top > best, start + at, label)
        best = tl.maximum(best, top)
    tl.store(labels + y * pitch + x, label.to(labels.dtype.element_ty), x < width)
