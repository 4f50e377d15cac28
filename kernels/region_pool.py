"""One feature vector per class: the softmax-weighted mean over the positions that the class wins.

With S_k = {n : argmax_j logits[j, n] = k}, where a tie belongs to the first of the equal classes:

    centre_k = Σ_{n in S_k} softmax_{S_k}(logits[k])_n · features_n,    log_count_k = log |S_k|

A class without positions has the centre 0 and the log count −inf; a NaN among a position's logits makes the centre of
its class NaN.

Two kernels. `pool` takes a part of the positions a block, in tiles: it finds each position's class and score, then sums
the features over the positions of one class as a product on the matrix units, whose rows are the classes, or, where
these are more than a tile has positions, the classes that the tile has. So the work does not grow with the classes, and
features are read once. `join` adds the parts of each class up in order; it skips those without one of its positions.
Nothing is atomic and nothing of size K × N is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from isnet_trt.kernels.device import dot


def reference(logits: NDArray[Any], features: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres (B, K, C) and log counts (B, K) of logits (B, K, N) and features (B, N, C), in float64."""
    scores = logits.astype(np.float64)
    mask = scores.argmax(axis=1)[:, None] == np.arange(scores.shape[1])[None, :, None]
    own = np.where(mask, scores, -np.inf)
    top = own.max(axis=2, keepdims=True)
    weights = np.where(mask, np.exp(own - np.where(np.isfinite(top), top, 0)), 0)
    total = weights.sum(axis=2, keepdims=True)
    with np.errstate(divide="ignore"):
        log_counts = np.log(mask.sum(axis=2))
    return (weights / np.where(total > 0, total, 1)) @ features.astype(np.float64), log_counts


@triton.jit
def _assign(
    logits: tl.tensor, n: tl.tensor, classes: tl.tensor, positions: tl.tensor, BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The classes of positions ``n`` and their scores; a NaN among a position's logits becomes its score."""
    best = tl.full((BLOCK_K, BLOCK_N), float("-inf"), tl.float32)
    label = tl.zeros((BLOCK_K, BLOCK_N), tl.int32)
    not_a_number = tl.zeros((BLOCK_K, BLOCK_N), tl.int1)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)[:, None]
        address = logits + k.to(tl.int64) * positions + n[None, :]
        value = tl.load(address, (k < classes) & (n[None, :] < positions), float("-inf")).to(tl.float32)
        # A NaN loses every comparison, and the centres would look sound: it is passed on in the score instead.
        not_a_number |= value != value
        label = tl.where(value > best, k, label)
        best = tl.where(value > best, value, best)
    top = tl.max(best, 0)
    # Each element has the first of its own classes; the least of those that reach the top is the first of all.
    label = tl.min(tl.where(best == top[None, :], label, classes), 0)
    bad = tl.max(not_a_number.to(tl.int32), 0) != 0
    return label, tl.where(bad, float("nan"), top)


@triton.jit
def _row_classes(
    labels: tl.tensor, begin: tl.tensor, end: tl.tensor, classes: tl.tensor, BLOCK_N: tl.constexpr
) -> tl.tensor:
    """The class of each row of a part's sums, −1 for a row that is not used."""
    row = tl.arange(0, BLOCK_N)
    if classes <= BLOCK_N:
        return tl.where(row < classes, row, -1)
    # The part is one tile: the first position of a class gives its row.
    label = tl.load(labels + begin + row, begin + row < end, -1)
    first = tl.min(tl.where(label[:, None] == label[None, :], row[None, :], BLOCK_N), 1)
    return tl.where(first == row, label, -1)


@triton.jit
def _members(labels: tl.tensor, values: tl.tensor, n: tl.tensor, end: tl.tensor, row_class: tl.tensor) -> tl.tensor:
    """Which of the positions ``n`` belong to which row, and their values."""
    label = tl.load(labels + n, n < end, -2)
    value = tl.load(values + n, n < end, 0.0)
    return label[None, :] == row_class[:, None], value[None, :]


@triton.jit
def pool(
    logits: tl.tensor,  # (batch, classes, positions)
    features: tl.tensor,  # (batch, positions, channels)
    labels: tl.tensor,  # (batch, positions) int32, written
    scores: tl.tensor,  # (batch, positions) float32, written: the logit of the winning class, NaN if any is NaN
    weights: tl.tensor,  # (batch, positions) float32, written: exp(score − top)
    sums: tl.tensor,  # (batch, parts, min(BLOCK_N, classes), channels) float32, written: Σ exp(score − top) · features
    # Written for each class of each part, the last two only where it has positions:
    rows: tl.tensor,  # (batch, parts, classes) int32: its row in the part's sums, −1 where it has no position
    tops: tl.tensor,  # (batch, parts, classes) float32: the greatest score, −inf where it has no position
    masses: tl.tensor,  # (batch, parts, classes) float32: Σ exp(score − top)
    counts: tl.tensor,  # (batch, parts, classes) int32
    batch: tl.tensor, classes: tl.tensor, positions: tl.tensor, channels: tl.tensor,
    parts: tl.tensor,  # for each image; as many as tiles where classes are more than BLOCK_N
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, UPCAST: tl.constexpr,
) -> None:  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    logits += image * classes * positions
    labels += image * positions
    scores += image * positions
    weights += image * positions
    share = tl.cdiv(tl.cdiv(positions, BLOCK_N), parts) * BLOCK_N
    begin = tl.program_id(0) * share
    end = tl.minimum(begin + share, positions)
    for start in range(begin, end, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        label, score = _assign(logits, n, classes, positions, BLOCK_K, BLOCK_N)
        tl.store(labels + n, label, n < end)
        tl.store(scores + n, score, n < end)
    part = image * parts + tl.program_id(0)
    rows += part * classes
    tops += part * classes
    for start in range(0, classes, 4 * BLOCK_N):
        k = start + tl.arange(0, 4 * BLOCK_N)
        tl.store(rows + k, -1, k < classes)
        tl.store(tops + k, float("-inf"), k < classes)
    tl.debug_barrier()  # threads read, or replace, what others of the block have written

    row = tl.arange(0, BLOCK_N)
    row_class = _row_classes(labels, begin, end, classes, BLOCK_N)
    highest = tl.full((BLOCK_N, BLOCK_N), float("-inf"), tl.float32)
    count = tl.zeros((BLOCK_N, BLOCK_N), tl.int32)
    for start in range(begin, end, BLOCK_N):
        mine, score = _members(labels, scores, start + row, end, row_class)
        highest = tl.where(mine, tl.maximum(highest, score), highest)
        count += mine.to(tl.int32)
    size = tl.sum(count, 1)
    row_class = tl.where(size > 0, row_class, -1)
    tl.store(rows + row_class, row, row_class >= 0)
    tl.store(tops + row_class, tl.max(highest, 1), row_class >= 0)
    tl.store(counts + part * classes + row_class, size, row_class >= 0)
    tl.debug_barrier()
    for start in range(begin, end, BLOCK_N):
        n = start + row
        top = tl.load(tops + tl.load(labels + n, n < end, 0), n < end, 0.0)
        # Of a class without a score above −inf the weights must be exp(−inf) = 0, not exp(−inf − (−inf)).
        top = tl.where(top == float("-inf"), 0.0, top)
        tl.store(weights + n, tl.exp(tl.load(scores + n, n < end, 0.0) - top), n < end)
    tl.debug_barrier()
    mass = tl.zeros((BLOCK_N, BLOCK_N), tl.float32)
    for start in range(begin, end, BLOCK_N):
        mine, weight = _members(labels, weights, start + row, end, row_class)
        mass += tl.where(mine, weight, 0.0)
    tl.store(masses + part * classes + row_class, tl.sum(mass, 1), row_class >= 0)
    part_row = part * tl.minimum(classes, BLOCK_N)
    # Rows of features whose length is known to be a multiple of 16 bytes are read in such pieces.
    if channels % 8 == 0:
        _sum_features(
            features, labels, weights, sums, image * positions, begin, end, row_class, part_row, channels // 8 * 8,
            BLOCK_C, BLOCK_N, UPCAST,
        )  # fmt: skip
    else:
        _sum_features(
            features, labels, weights, sums, image * positions, begin, end, row_class, part_row, channels,
            BLOCK_C // 8, BLOCK_N, UPCAST,
        )  # fmt: skip


@triton.jit
def _sum_features(
    features: tl.tensor, labels: tl.tensor, weights: tl.tensor, sums: tl.tensor, first_position: tl.tensor,
    begin: tl.tensor, end: tl.tensor, row_class: tl.tensor, part_row: tl.tensor, channels: tl.tensor,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, UPCAST: tl.constexpr,
) -> None:  # fmt: skip
    """Write the sums of a part, from row ``part_row`` on."""
    row = tl.arange(0, BLOCK_N)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)[None, :]
        # Offsets from a tile's first row fit 32 bits, and are the same in each.
        offsets = row[:, None] * channels + c
        total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for start in range(begin, end, BLOCK_N):
            mine, weight = _members(labels, weights, start + row, end, row_class)
            inside = (row[:, None] < end - start) & (c < channels)
            feature = tl.load(features + (first_position + start) * channels + offsets, inside, 0.0)
            total = dot(tl.where(mine, weight.to(feature.dtype), 0.0), feature, total, UPCAST)
        tl.store(sums + part_row * channels + offsets, total, (row_class[:, None] >= 0) & (c < channels))


@triton.jit
def join(
    sums: tl.tensor, rows: tl.tensor, tops: tl.tensor, masses: tl.tensor, counts: tl.tensor,
    centres: tl.tensor,  # (batch, classes, channels), written
    log_counts: tl.tensor,  # (batch, classes) float32, written
    batch: tl.tensor, classes: tl.tensor, channels: tl.tensor, parts: tl.tensor,
    BLOCK_C: tl.constexpr,
    TILES: tl.constexpr,  # of BLOCK_C channels each
    BLOCK_P: tl.constexpr,  # parts whose sums are added at once
    BLOCK_N: tl.constexpr,  # that of `pool`
) -> None:  # fmt: skip
    k = tl.program_id(0) % classes
    first_part = tl.program_id(0) // classes * parts.to(tl.int64)
    rows += first_part * classes + k
    tops += first_part * classes + k
    masses += first_part * classes + k
    counts += first_part * classes + k
    top = tl.full((4 * BLOCK_P,), float("-inf"), tl.float32)
    # Offsets from the first of the parts taken at once fit 32 bits.
    part = tl.arange(0, 4 * BLOCK_P)
    for first in range(0, parts, 4 * BLOCK_P):
        at = classes.to(tl.int64) * first + part * classes
        top = tl.maximum(top, tl.load(tops + at, part < parts - first, float("-inf")))
    top = tl.max(top, 0)
    # As in `pool`: no exp(−inf − (−inf)).
    shift = tl.where(top == float("-inf"), 0.0, top)
    mass = tl.zeros((4 * BLOCK_P,), tl.float32)
    count = tl.zeros((4 * BLOCK_P,), tl.int32)
    for first in range(0, parts, 4 * BLOCK_P):
        at = classes.to(tl.int64) * first + part * classes
        present = tl.load(rows + at, part < parts - first, -1) >= 0
        weight = tl.exp(tl.load(tops + at, present, float("-inf")) - shift)
        mass += weight * tl.load(masses + at, present, 0.0)
        count += tl.load(counts + at, present, 0)
    mass = tl.sum(mass, 0)
    scale = 1.0 / tl.where(mass > 0, mass, 1.0)
    first_row = first_part * tl.minimum(classes, BLOCK_N)
    if channels % 4 == 0:
        _join_sums(
            sums, first_row, rows, tops, centres, parts, classes, channels // 4 * 4, shift, scale,
            BLOCK_C, TILES, BLOCK_P, BLOCK_N,
        )  # fmt: skip
    else:
        _join_sums(
            sums, first_row, rows, tops, centres, parts, classes, channels, shift, scale,
            BLOCK_C, TILES, BLOCK_P, BLOCK_N,
        )  # fmt: skip
    count = tl.sum(count, 0)
    if tl.program_id(1) == 0:
        log_count = tl.where(count > 0, tl.log(tl.maximum(count, 1).to(tl.float32)), float("-inf"))
        tl.store(log_counts + tl.program_id(0), log_count)


@triton.jit
def _join_sums(
    sums: tl.tensor, first_row: tl.tensor, rows: tl.tensor, tops: tl.tensor, centres: tl.tensor, parts: tl.tensor,
    classes: tl.tensor, channels: tl.tensor, shift: tl.tensor, scale: tl.tensor,
    BLOCK_C: tl.constexpr, TILES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """Write TILES tiles of channels of the centre of a class."""
    c = tl.program_id(1) * (TILES * BLOCK_C) + tl.arange(0, BLOCK_C)
    totals = ()
    for _ in tl.static_range(TILES):
        totals += (tl.zeros((BLOCK_P, BLOCK_C), tl.float32),)
    part = tl.arange(0, BLOCK_P)
    height = tl.minimum(classes, BLOCK_N)
    for first in range(0, parts, BLOCK_P):
        at = classes.to(tl.int64) * first + part * classes
        row = tl.load(rows + at, part < parts - first, -1)
        weight = tl.exp(tl.load(tops + at, part < parts - first, float("-inf")) - shift)
        offsets = (part * height + row)[:, None] * channels + c[None, :]
        address = sums + (first_row + first * height) * channels + offsets
        added = ()
        for tile in tl.static_range(TILES):
            inside = (row[:, None] >= 0) & (c[None, :] < channels - tile * BLOCK_C)
            value = tl.load(address + tile * BLOCK_C, inside, 0.0)
            added += (totals[tile] + weight[:, None] * value,)
        totals = added
    centres += tl.program_id(0).to(tl.int64) * channels
    for tile in tl.static_range(TILES):
        at = tile * BLOCK_C + c
        tl.store(centres + at, tl.sum(totals[tile], 0) * scale, at < channels)
