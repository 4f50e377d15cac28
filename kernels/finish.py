"""The label map from volumes of scores.

    label[y, x] = argmax_k  1 / P · Σ_v resample(volume_v)[k, y, x]

over the volumes v of all scales, P passes in all; ``resample`` is bilinear straight to the source's size
(isnet_trt.merging.resample.positions, by size ratio), and the first of equal classes wins. Classes come in tiles and
the best so far stays in registers: neither K × H × W nor K values per pixel are ever in memory. Of each volume only the
rows that the written rows are interpolated from need to be in memory (`accumulate`).

`upsample_argmax` is the same for one whole pass, whose volume is the network's logits themselves; `threshold` compares
the score of a network of one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from isnet_trt.kernels.device import column_taps, divided, filled, interpolate, near_values, row_taps, weighted
from isnet_trt.merging.resample import ratio_positions


def reference(volumes: Sequence[NDArray[Any]], size: tuple[int, int], passes: int) -> NDArray[np.float64]:
    """Mean scores (K, *size) of whole volumes (K, h, w) in float64; their arg max over axis 0 are the labels."""
    total = np.zeros((len(volumes[0]), *size))
    for volume in volumes:
        total += upsample(volume, size)
    return total / passes


def upsample(scores: NDArray[Any], size: tuple[int, int], aligned: bool = False) -> NDArray[np.float64]:
    """Bilinear interpolation of scores (K, h, w) to (K, *size) in float64; ``aligned``: with aligned corners."""
    scores = scores.astype(np.float64)
    for axis, n_out in enumerate(size, start=1):
        n_in = scores.shape[axis]
        low, high, weight = ratio_positions(n_in, n_out, 0, n_out, aligned)
        share = weight.astype(np.float64).reshape((-1, 1) if axis == 1 else (-1,))
        scores = scores.take(low, axis) * (1 - share) + scores.take(high, axis) * share
    return scores


@triton.jit
def _better(scores: tl.tensor, k: tl.tensor, best: tl.tensor, labels: tl.tensor, ROWS: tl.constexpr) -> tl.tensor:
    """The best scores so far and their classes, for each row, after class ``k``; of equal classes the first wins."""
    tops = ()
    classes = ()
    for row in tl.static_range(ROWS):
        classes += (tl.where(scores[row] > best[row], k, labels[row]),)
        tops += (tl.maximum(best[row], scores[row]),)
    return tops, classes


@triton.jit
def _volume(
    volumes: tl.tensor, offset: tl.tensor, sizes: tl.tensor, steps: tl.tensor, y: tl.tensor, x: tl.tensor,
    ROWS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """What `_add` takes for the first class of one volume."""
    begin = tl.load(sizes)
    stored = tl.load(sizes + 1)
    width = tl.load(sizes + 3)
    # A row beyond those in memory belongs to no output row that is written, but must be one that can be read.
    rows, weights, crossed = row_taps(y, tl.load(steps), tl.load(sizes + 2), begin + stored - 1, ROWS)
    left, across = column_taps(x, tl.load(steps + 1), width)
    corner = volumes + tl.load(offset) + left
    pointers = ()
    for row in tl.static_range(3):
        pointers += (corner + (rows[row] - begin) * width,)
    return pointers, stored * width, across, width > 1, weights, crossed


@triton.jit
def _add(
    totals: tl.tensor, pointers: tl.tensor, start: tl.tensor, classes: tl.tensor, plane: tl.tensor, across: tl.tensor,
    pair: tl.tensor, weights: tl.tensor, crossed: tl.tensor, TILE: tl.constexpr, ROWS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``totals`` and the scores of TILE classes from ``start`` on: for each class a sum that all output rows share,
    then for each output row what is to be added to it.

    The last tile may reach beyond the last class, whose scores it then takes again: they never win.
    """
    if ROWS == 1:
        totals = _add_near(totals, pointers, start, classes, plane, across, pair, weights, TILE, ROWS, 2)
    else:
        # The same for a whole block: where no row of it lies beyond the second input row, the third is not read.
        if crossed:
            totals = _add_near(totals, pointers, start, classes, plane, across, pair, weights, TILE, ROWS, 3)
        else:
            totals = _add_near(totals, pointers, start, classes, plane, across, pair, weights, TILE, ROWS, 2)
    return totals


@triton.jit
def _add_near(
    totals: tl.tensor, pointers: tl.tensor, start: tl.tensor, classes: tl.tensor, plane: tl.tensor, across: tl.tensor,
    pair: tl.tensor, weights: tl.tensor, TILE: tl.constexpr, ROWS: tl.constexpr, NEAR: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """`_add` from NEAR input rows."""
    # Offsets need 64 bits, but not in a tile: 900 classes at 1500 x 2000 logits are more than 2^31 values.
    tile = start * plane.to(tl.int64)
    corners = ()
    for row in tl.static_range(NEAR):
        corners += (pointers[row] + tile,)
    sums = ()
    for n in tl.static_range(TILE):
        behind = tl.minimum(n, classes - 1 - start)
        values = near_values(corners, behind * plane, across, pair, NEAR)
        if NEAR == 2 and ROWS > 2:
            # All rows lie between the same two input rows: one multiply-add for each.
            step = values[1] - values[0]
            sums += (totals[n * (ROWS + 1)] + values[0],)
            for row in tl.static_range(ROWS):
                weight = tl.zeros_like(step) + weights[3 * row + 1]
                sums += (tl.fma(step, weight, totals[n * (ROWS + 1) + 1 + row]),)
        else:
            sums += (totals[n * (ROWS + 1)],)
            for row in tl.static_range(ROWS):
                sums += (totals[n * (ROWS + 1) + 1 + row] + weighted(values, weights, row, NEAR),)
    return sums


@triton.jit
def _scores(totals: tl.tensor, n: tl.constexpr, ROWS: tl.constexpr) -> tl.tensor:
    """The sums of class ``n`` of a tile, for each row, from what `_add` returns."""
    scores = ()
    for row in tl.static_range(ROWS):
        scores += (totals[n * (ROWS + 1)] + totals[n * (ROWS + 1) + 1 + row],)
    return scores


@triton.jit
def finish(
    volumes: tl.tensor,  # all volumes, each (classes, rows in memory, width)
    offsets: tl.tensor,  # (count,) int64: where each begins, in elements
    sizes: tl.tensor,  # (count, 4) int32: first row in memory, rows in memory, height and width of the whole volume
    steps: tl.tensor,  # (count, 2) float32: height / output_height, width / output_width
    labels: tl.tensor,  # uint8 or uint16, rows of `pitch` elements, written
    pitch: tl.tensor,  # int64
    passes: tl.tensor,  # not read: the greatest sum is the greatest mean
    count: tl.tensor, classes: tl.tensor,
    first_row: tl.tensor,  # rows first_row .. first_row + rows - 1 of the output are written
    rows: tl.tensor, width: tl.tensor,
    TILE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = first_row + tl.program_id(1) * ROWS
    best = filled(float("-inf"), ROWS, BLOCK)
    label = filled(0, ROWS, BLOCK, tl.int32)
    for start in range(0, classes, TILE):
        totals = filled(0.0, TILE * (ROWS + 1), BLOCK)
        for v in range(count):
            pointers, plane, across, pair, weights, crossed = _volume(
                volumes, offsets + v, sizes + 4 * v, steps + 2 * v, y, x, ROWS
            )
            totals = _add(totals, pointers, start, classes, plane, across, pair, weights, crossed, TILE, ROWS)
        for n in tl.static_range(TILE):
            best, label = _better(_scores(totals, n, ROWS), start + n, best, label, ROWS)
    for row in tl.static_range(ROWS):
        inside = (x < width) & (y + row < first_row + rows)
        tl.store(labels + (y + row) * pitch + x, label[row].to(labels.dtype.element_ty), inside)


@triton.jit
def threshold(
    volumes: tl.tensor, offsets: tl.tensor, sizes: tl.tensor, steps: tl.tensor,
    labels: tl.tensor,  # uint8, rows of `pitch` elements, written: 1 where the mean score is above `limit`, else 0
    pitch: tl.tensor, passes: tl.tensor,
    limit: tl.tensor,  # float32
    count: tl.tensor, first_row: tl.tensor, rows: tl.tensor, width: tl.tensor,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """`finish` for volumes of one class."""
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = first_row + tl.program_id(1) * ROWS
    # Triton's `/` is approximate in float32, div_rn is rounded correctly.
    inverse = tl.div_rn(1.0, passes)
    totals = filled(0.0, ROWS + 1, BLOCK)
    for v in range(count):
        pointers, plane, across, pair, weights, crossed = _volume(
            volumes, offsets + v, sizes + 4 * v, steps + 2 * v, y, x, ROWS
        )
        totals = _add(totals, pointers, 0, 1, plane, across, pair, weights, crossed, 1, ROWS)
    scores = _scores(totals, 0, ROWS)
    for row in tl.static_range(ROWS):
        label = divided(scores[row], passes, inverse) > limit
        inside = (x < width) & (y + row < first_row + rows)
        tl.store(labels + (y + row) * pitch + x, label.to(labels.dtype.element_ty), inside)


@triton.jit
def upsample_argmax(
    logits: tl.tensor,  # (classes, coarse_height, coarse_width)
    labels: tl.tensor,  # uint8 or uint16, rows of `pitch` elements, written
    pitch: tl.tensor,  # int64
    classes: tl.tensor, coarse_height: tl.tensor, coarse_width: tl.tensor,
    step_y: tl.tensor,  # float32(coarse_height) / float32(height)
    step_x: tl.tensor, height: tl.tensor, width: tl.tensor,
    TILE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.program_id(1) * ROWS
    left, across = column_taps(x, step_x, coarse_width)
    rows, weights, _ = row_taps(y, step_y, coarse_height, coarse_height - 1, ROWS)
    corner = logits + left
    plane = coarse_height * coarse_width
    pair = coarse_width > 1
    best = filled(float("-inf"), ROWS, BLOCK)
    label = filled(0, ROWS, BLOCK, tl.int32)
    for start in range(0, classes, TILE):
        # Offsets need 64 bits, but not in a tile: 900 classes at 1500 x 2000 logits are more than 2^31 values.
        tile = corner + start * coarse_height.to(tl.int64) * coarse_width
        pointers = ()
        for row in tl.static_range(3):
            pointers += (tile + rows[row] * coarse_width,)
        # All loads of a tile come first: a block meets each class once, so that every one waits for the level-2 cache.
        scores = ()
        for n in tl.static_range(TILE):
            # The last tile may reach beyond the last class, whose scores it then takes again: they never win.
            behind = tl.minimum(n, classes - 1 - start)
            scores += (interpolate(pointers, behind * plane, across, pair, weights, ROWS, 2 if ROWS == 1 else 3),)
        for n in tl.static_range(TILE):
            best, label = _better(scores[n], start + n, best, label, ROWS)
    for row in tl.static_range(ROWS):
        inside = (x < width) & (y + row < height)
        tl.store(labels + (y + row) * pitch + x, label[row].to(labels.dtype.element_ty), inside)
