"""The mean of the overlapping windows of one scale: rows of a volume of scores.

For pixel (y, x) of the scaled picture, with the windows W that cover it in a pass:

    volume[k, y, x] = Σ_passes 1 / |W| · Σ_{w in W} s_w[k],    s_w = upsample(logits_w) or its softmax over the classes

(of one class: its sigmoid). ``upsample`` is bilinear from the coarse grid to the window
(isnet_trt.merging.resample.positions, by size ratio), in the orientation in which the network saw the window; for a
mirrored pass the column is then read from the other end and left and right classes change places (``swap``). The
plain and the mirrored pass of a scale share one volume.

Each block gathers: it sums in registers what all windows contribute to its pixels and writes every value once, without
atomics, so that the result does not depend on the order of blocks. Only the rows that the caller needs are made.

A whole pass whose scores are softmaxed on the coarse grid, or whose mirrored twin is added to it, is the same kernel
with one window per pass, of the size of the coarse grid.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from isnet_trt.kernels.device import column_taps, filled, interpolate, row_taps
from isnet_trt.kernels.finish import upsample

LOG2_E = tl.constexpr(math.log2(math.e))


def reference(
    logits: NDArray[Any], windows: NDArray[np.int32], swap: NDArray[np.int32], plain: int, size: tuple[int, int],
    window: tuple[int, int], softmax: bool, enlarged: tuple[int, int] | None = None,
    aligned: bool = False,
) -> NDArray[np.float64]:  # fmt: skip
    """The whole volume (K, *size) in float64; arguments as `accumulate` takes them, ``window`` (height, width).

    ``enlarged`` is the size of a network's input that is larger than the window, padded below and on the right;
    ``aligned``: scores are upsampled with aligned corners.
    """
    volume = np.zeros((logits.shape[1], *size))
    for part in (windows[:plain], windows[plain:]):
        total, cover = np.zeros_like(volume), np.zeros(size)
        for slot, top, left, mirrored in part:
            scores = upsample(logits[slot], enlarged or window, aligned)[:, : window[0], : window[1]]
            if softmax and len(scores) == 1:
                scores = 1 / (1 + np.exp(-scores))
            elif softmax:
                scores = np.exp(scores - scores.max(axis=0))
                scores /= scores.sum(axis=0)
            y, x = slice(top, top + window[0]), slice(left, left + window[1])
            total[:, y, x] += scores[swap][:, :, ::-1] if mirrored else scores
            cover[y, x] += 1
        volume += total / np.maximum(cover, 1)
    return volume


@triton.jit
def _touches(
    windows: tl.tensor, i: tl.tensor, y: tl.tensor, window_height: tl.tensor, window_width: tl.tensor,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Whether window ``i`` has a pixel of this block: the same for all threads, so that most windows cost no loads."""
    top = tl.load(windows + 4 * i + 1)
    left = tl.load(windows + 4 * i + 2)
    x = tl.program_id(0) * BLOCK
    rows = (y + ROWS > top) & (y < top + window_height)
    return rows & (x + BLOCK > left) & (x < left + window_width)


@triton.jit
def _covers(
    windows: tl.tensor, y: tl.tensor, x: tl.tensor, window_height: tl.tensor, window_width: tl.tensor,
    plain: tl.tensor, count: tl.tensor, ROWS: tl.constexpr, BLOCK: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """1 / (the number of windows that cover a pixel), for the rows of the plain pass, then of the mirrored one.

    Each pass is divided by its own cover: the mirrored pass has reflected windows, which overlap elsewhere. Counted
    before the scores are summed, it lets one sum serve both passes.
    """
    covers = filled(0.0, 2 * ROWS, BLOCK)
    for i in range(count):
        if _touches(windows, i, y, window_height, window_width, ROWS, BLOCK):
            top = tl.load(windows + 4 * i + 1)
            left = tl.load(windows + 4 * i + 2)
            inside = (x >= left) & (x < left + window_width)
            counted = ()
            for n in tl.static_range(2 * ROWS):
                row = y + n % ROWS
                covered = (row >= top) & (row < top + window_height) & ((i < plain) == (n < ROWS))
                counted += (covers[n] + tl.where(inside & covered, 1.0, 0.0),)
            covers = counted
    shares = ()
    for n in tl.static_range(2 * ROWS):
        shares += (1.0 / tl.maximum(covers[n], 1.0),)
    return shares


@triton.jit
def _window(
    logits: tl.tensor, windows: tl.tensor, i: tl.tensor, y: tl.tensor, x: tl.tensor, classes: tl.tensor,
    coarse_height: tl.tensor, coarse_width: tl.tensor, window_height: tl.tensor, window_width: tl.tensor,
    step_y: tl.tensor, step_x: tl.tensor, plain: tl.tensor, covers: tl.tensor, ROWS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """What `_scores` takes for window ``i``, whether it is mirrored, and the share of its scores in each row."""
    slot = tl.load(windows + 4 * i).to(tl.int64)
    top = tl.load(windows + 4 * i + 1)
    left = tl.load(windows + 4 * i + 2)
    mirrored = tl.load(windows + 4 * i + 3) != 0
    # The network saw the mirrored window, so its column is read from the other end.
    column = tl.where(mirrored, window_width - 1 - (x - left), x - left)
    near, across = column_taps(column, step_x, coarse_width)
    rows, weights, crossed = row_taps(y - top, step_y, coarse_height, coarse_height - 1, ROWS)
    corner = logits + slot * classes * coarse_height * coarse_width + near
    pointers = ()
    for row in tl.static_range(3):
        pointers += (corner + rows[row] * coarse_width,)
    inside = (x >= left) & (x < left + window_width)
    shares = ()
    for row in tl.static_range(ROWS):
        covered = inside & (y + row >= top) & (y + row < top + window_height)
        shares += (tl.where(covered, tl.where(i < plain, covers[row], covers[ROWS + row]), 0.0),)
    return pointers, across, weights, crossed, mirrored, shares


@triton.jit
def _scores(
    pointers: tl.tensor, swap: tl.tensor, mirrored: tl.tensor, start: tl.tensor, classes: tl.tensor, plane: tl.tensor,
    across: tl.tensor, pair: tl.tensor, weights: tl.tensor, crossed: tl.tensor, TILE: tl.constexpr,
    ROWS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Scores of TILE classes from ``start`` on: for each class a tensor for each row, one after the other.

    ``plane`` is the size of a class, of the type that the offsets of all classes fit. Classes beyond the last are the
    last one.
    """
    if ROWS == 1:
        scores = _between(pointers, swap, mirrored, start, classes, plane, across, pair, weights, TILE, ROWS, 2)
    else:
        # The rows of most blocks lie between two low-resolution rows: a third of the loads are saved.
        if crossed:
            scores = _between(pointers, swap, mirrored, start, classes, plane, across, pair, weights, TILE, ROWS, 3)
        else:
            scores = _between(pointers, swap, mirrored, start, classes, plane, across, pair, weights, TILE, ROWS, 2)
    return scores


@triton.jit
def _between(
    pointers: tl.tensor, swap: tl.tensor, mirrored: tl.tensor, start: tl.tensor, classes: tl.tensor, plane: tl.tensor,
    across: tl.tensor, pair: tl.tensor, weights: tl.tensor, TILE: tl.constexpr, ROWS: tl.constexpr,
    NEAR: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """`_scores` from NEAR low-resolution rows."""
    scores = ()
    for n in tl.static_range(TILE):
        k = tl.minimum(start + n, classes - 1)
        # Plain windows do without the table: a load that is masked out takes no bandwidth.
        k = tl.load(swap + k, mirrored, k)
        scores += interpolate(pointers, k * plane, across, pair, weights, ROWS, NEAR)
    return scores


@triton.jit
def _tops(scores: tl.tensor, tops: tl.tensor, COUNT: tl.constexpr, ROWS: tl.constexpr) -> tl.tensor:
    """The greatest of ``tops`` and of COUNT classes' scores, for each row."""
    for n in tl.static_range(COUNT):
        higher = ()
        for row in tl.static_range(ROWS):
            higher += (tl.maximum(tops[row], scores[n * ROWS + row]),)
        tops = higher
    return tops


@triton.jit
def _powers(scores: tl.tensor, tops: tl.tensor, COUNT: tl.constexpr, ROWS: tl.constexpr) -> tl.tensor:
    """exp(score - top) of COUNT classes."""
    shifts = ()
    for row in tl.static_range(ROWS):
        shifts += (tops[row] * LOG2_E,)
    powers = ()
    for n in tl.static_range(COUNT * ROWS):
        powers += (tl.exp2(tl.fma(scores[n], tl.full(scores[n].shape, LOG2_E, tl.float32), -shifts[n % ROWS])),)
    return powers


@triton.jit
def _added(totals: tl.tensor, values: tl.tensor, COUNT: tl.constexpr, ROWS: tl.constexpr) -> tl.tensor:
    """``totals`` and COUNT classes' values, for each row."""
    for n in tl.static_range(COUNT):
        sums = ()
        for row in tl.static_range(ROWS):
            sums += (totals[row] + values[n * ROWS + row],)
        totals = sums
    return totals


@triton.jit
def _weighted(
    totals: tl.tensor, scores: tl.tensor, shares: tl.tensor, COUNT: tl.constexpr, ROWS: tl.constexpr
) -> tl.tensor:
    """``totals`` of COUNT classes and ``scores`` times the rows' ``shares``."""
    sums = ()
    for n in tl.static_range(COUNT * ROWS):
        sums += (tl.fma(scores[n], shares[n % ROWS], totals[n]),)
    return sums


@triton.jit
def _divided(shares: tl.tensor, norms: tl.tensor, ROWS: tl.constexpr) -> tl.tensor:
    """Each row's share over its softmax's normaliser."""
    quotients = ()
    for row in tl.static_range(ROWS):
        quotients += (shares[row] / norms[row],)
    return quotients


@triton.jit
def accumulate(
    logits: tl.tensor,  # (slots, classes, coarse_height, coarse_width)
    windows: tl.tensor,  # (count, 4) int32: slot, top, left, mirrored; those of the plain pass first
    swap: tl.tensor,  # (classes,) int32: the class that each one is in a mirrored picture
    volume: tl.tensor,  # (classes, rows, width) float32, written: rows first_row .. first_row + rows - 1
    classes: tl.tensor,  # CLASSES
    coarse_height: tl.tensor, coarse_width: tl.tensor, window_height: tl.tensor, window_width: tl.tensor,
    step_y: tl.tensor,  # float32(coarse_height) / float32(window_height), of the padded window where it is padded;
    # negative for aligned corners: float32(1 - coarse_height) / float32(window_height - 1)
    step_x: tl.tensor,
    plain: tl.tensor,  # windows of the first pass
    count: tl.tensor,  # windows of both passes
    first_row: tl.tensor, rows: tl.tensor, width: tl.tensor, softmax: tl.tensor,
    CLASSES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Few classes: all scores of a pixel, and their sums over the windows, are in the registers of one thread."""
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    line = tl.program_id(1) * ROWS
    y = first_row + line
    # 32 bits are enough for the scores of one window, and halve the work for addresses.
    plane = coarse_height * coarse_width
    covers = _covers(windows, y, x, window_height, window_width, plain, count, ROWS, BLOCK)
    totals = filled(0.0, CLASSES * ROWS, BLOCK)
    for i in range(count):
        if _touches(windows, i, y, window_height, window_width, ROWS, BLOCK):
            pointers, across, weights, crossed, mirrored, shares = _window(
                logits, windows, i, y, x, classes, coarse_height, coarse_width, window_height, window_width,
                step_y, step_x, plain, covers, ROWS,
            )  # fmt: skip
            scores = _scores(
                pointers, swap, mirrored, 0, CLASSES, plane, across, coarse_width > 1, weights, crossed, CLASSES, ROWS
            )
            if softmax != 0:
                norms = filled(0.0, ROWS, BLOCK)
                if CLASSES == 1:
                    # The sigmoid of one class is its softmax beside a class whose score is 0.
                    tops = _tops(scores, norms, CLASSES, ROWS)
                    norms = _powers(norms, tops, CLASSES, ROWS)
                else:
                    tops = _tops(scores, scores, CLASSES, ROWS)
                scores = _powers(scores, tops, CLASSES, ROWS)
                shares = _divided(shares, _added(norms, scores, CLASSES, ROWS), ROWS)
            totals = _weighted(totals, scores, shares, CLASSES, ROWS)
    _store(volume, totals, 0, CLASSES, line, rows, x, width, CLASSES, ROWS)


@triton.jit
def _store(
    volume: tl.tensor, values: tl.tensor, start: tl.tensor, classes: tl.tensor, line: tl.tensor, rows: tl.tensor,
    x: tl.tensor, width: tl.tensor, COUNT: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """Write COUNT classes from ``start`` on, those that there are, to rows ``line`` .. of the volume."""
    for n in tl.static_range(COUNT * ROWS):
        row = line + n % ROWS
        inside = (x < width) & (row < rows) & (start + n // ROWS < classes)
        tl.store(volume + (start + n // ROWS) * (rows.to(tl.int64) * width) + row * width + x, values[n], inside)


@triton.jit
def _load(
    volume: tl.tensor, start: tl.tensor, classes: tl.tensor, line: tl.tensor, rows: tl.tensor, x: tl.tensor,
    width: tl.tensor, COUNT: tl.constexpr, ROWS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """What `_store` wrote."""
    values = ()
    for n in tl.static_range(COUNT * ROWS):
        row = line + n % ROWS
        inside = (x < width) & (row < rows) & (start + n // ROWS < classes)
        values += (tl.load(volume + (start + n // ROWS) * (rows.to(tl.int64) * width) + row * width + x, inside, 0.0),)
    return values


@triton.jit
def accumulate_tiles(
    logits: tl.tensor, windows: tl.tensor, swap: tl.tensor, volume: tl.tensor, classes: tl.tensor,
    coarse_height: tl.tensor, coarse_width: tl.tensor, window_height: tl.tensor, window_width: tl.tensor,
    step_y: tl.tensor, step_x: tl.tensor, plain: tl.tensor, count: tl.tensor, first_row: tl.tensor, rows: tl.tensor,
    width: tl.tensor, softmax: tl.tensor,
    parts: tl.tensor,  # parts of the classes, one a block along z
    TILE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """`accumulate` for more classes than registers hold, in tiles of TILE.

    Three low-resolution rows are always read: the branch of `_scores` spills registers, as do larger tiles on sm_86.
    With softmax each window takes one pass over all classes for the normaliser and one over those of the part, whose
    sums are in the volume: a thread reads only what it has written itself. Without it they are in registers.
    """
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    line = tl.program_id(1) * ROWS
    y = first_row + line
    plane = coarse_height.to(tl.int64) * coarse_width
    pair = coarse_width > 1
    share = tl.cdiv(tl.cdiv(classes, TILE), parts) * TILE
    begin = tl.program_id(2) * share
    end = tl.minimum(begin + share, classes)
    covers = _covers(windows, y, x, window_height, window_width, plain, count, ROWS, BLOCK)
    if softmax == 0:
        for start in range(begin, end, TILE):
            totals = filled(0.0, TILE * ROWS, BLOCK)
            for i in range(count):
                if _touches(windows, i, y, window_height, window_width, ROWS, BLOCK):
                    pointers, across, weights, _, mirrored, shares = _window(
                        logits, windows, i, y, x, classes, coarse_height, coarse_width, window_height, window_width,
                        step_y, step_x, plain, covers, ROWS,
                    )  # fmt: skip
                    scores = _between(
                        pointers, swap, mirrored, start, classes, plane, across, pair, weights, TILE, ROWS, 3
                    )
                    totals = _weighted(totals, scores, shares, TILE, ROWS)
            _store(volume, totals, start, classes, line, rows, x, width, TILE, ROWS)
    else:
        for start in range(begin, end, TILE):
            _store(volume, filled(0.0, TILE * ROWS, BLOCK), start, classes, line, rows, x, width, TILE, ROWS)
        for i in range(count):
            if _touches(windows, i, y, window_height, window_width, ROWS, BLOCK):
                pointers, across, weights, _, mirrored, shares = _window(
                    logits, windows, i, y, x, classes, coarse_height, coarse_width, window_height, window_width,
                    step_y, step_x, plain, covers, ROWS,
                )  # fmt: skip
                tops = filled(float("-inf"), ROWS, BLOCK)
                norms = filled(0.0, ROWS, BLOCK)
                for start in range(0, classes, TILE):
                    scores = _between(
                        pointers, swap, mirrored, start, classes, plane, across, pair, weights, TILE, ROWS, 3
                    )
                    higher = _tops(scores, tops, TILE, ROWS)
                    # What was summed so far, times exp(old top - new top).
                    norms = _weighted(filled(0.0, ROWS, BLOCK), norms, _powers(tops, higher, 1, ROWS), 1, ROWS)
                    powers = _powers(scores, higher, TILE, ROWS)
                    norms = _added(norms, _existing(powers, start, classes, TILE, ROWS), TILE, ROWS)
                    tops = higher
                shares = _divided(shares, norms, ROWS)
                for start in range(begin, end, TILE):
                    scores = _between(
                        pointers, swap, mirrored, start, classes, plane, across, pair, weights, TILE, ROWS, 3
                    )
                    totals = _load(volume, start, classes, line, rows, x, width, TILE, ROWS)
                    totals = _weighted(totals, _powers(scores, tops, TILE, ROWS), shares, TILE, ROWS)
                    _store(volume, totals, start, classes, line, rows, x, width, TILE, ROWS)


@triton.jit
def _existing(
    values: tl.tensor, start: tl.tensor, classes: tl.tensor, TILE: tl.constexpr, ROWS: tl.constexpr
) -> tl.tensor:
    """``values`` of the classes that there are, 0 for those of the last tile beyond the last class."""
    kept = ()
    for n in tl.static_range(TILE * ROWS):
        kept += (tl.where(start + n // ROWS < classes, values[n], 0.0),)
    return kept
