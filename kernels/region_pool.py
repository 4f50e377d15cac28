"""One feature vector per class: the softmax-weighted mean over the positions that the class wins.

With S_k = {n : argmax_j logits[j, n] = k}, where a tie belongs to the first of the equal classes:

    centre_k = Σ_{n in S_k} softmax_{S_k}(logits[k])_n · features_n,    log_count_k = log |S_k|

A class without positions has the centre 0 and the log count −inf; a NaN among a position's logits makes the centre of
its class NaN. Three kernels: `assign` finds each position's class and its score; `pool` sums over one part of the
positions, class tile by channel tile, with an online softmax, as a product of the (classes × positions) weights with
the features on the matrix units; `combine` joins the parts. Each position having one class, the weights are made on the
fly and nothing of size K × N is written.
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
def assign(
    logits: tl.tensor,  # (batch, classes, positions)
    labels: tl.tensor,  # (batch, positions) int32, written
    scores: tl.tensor,  # (batch, positions) float32, written: the logit of the winning class, NaN if any is NaN
    batch: tl.tensor, classes: tl.tensor, positions: tl.tensor,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    image = tl.program_id(1).to(tl.int64)
    best = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    label = tl.zeros((BLOCK_N,), tl.int32)
    not_a_number = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(0, classes, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (k[:, None] < classes) & (n[None, :] < positions)
        address = logits + (image * classes + k[:, None]) * positions + n[None, :]
        tile = tl.load(address, inside, float("-inf")).to(tl.float32)
        # A NaN would lose every comparison, and the centres would look sound: it is passed on in the score instead.
        not_a_number = tl.maximum(not_a_number, tl.max((tile != tile).to(tl.int32), 0))
        tile = tl.where(tile != tile, float("-inf"), tile)
        top, at = tl.max(tile, 0, return_indices=True)
        label = tl.where(top > best, start + at, label)
        best = tl.maximum(best, top)
    tl.store(labels + image * positions + n, label, n < positions)
    tl.store(scores + image * positions + n, tl.where(not_a_number != 0, float("nan"), best), n < positions)


@triton.jit
def pool(
    labels: tl.tensor,  # (batch, positions) int32
    scores: tl.tensor,  # (batch, positions) float32
    features: tl.tensor,  # (batch, positions, channels)
    sums: tl.tensor,  # (splits, batch, classes, channels) float32, written: Σ exp(score − top) · features
    tops: tl.tensor,  # (splits, batch, classes) float32, written: greatest score, −inf where the part has no position
    masses: tl.tensor,  # (splits, batch, classes) float32, written: Σ exp(score − top)
    counts: tl.tensor,  # (splits, batch, classes) int32, written
    batch: tl.tensor, classes: tl.tensor, positions: tl.tensor, channels: tl.tensor, splits: tl.tensor,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, UPCAST: tl.constexpr,
) -> None:  # fmt: skip
    # The grid has three axes for four indices: x counts tiles of classes and of channels.
    k = tl.program_id(0) % tl.cdiv(classes, BLOCK_K) * BLOCK_K + tl.arange(0, BLOCK_K)
    first_channel = tl.program_id(0) // tl.cdiv(classes, BLOCK_K) * BLOCK_C
    c = first_channel + tl.arange(0, BLOCK_C)
    image = tl.program_id(1)
    # Parts are whole tiles; the last ones may be empty.
    share = tl.cdiv(tl.cdiv(positions, BLOCK_N), splits) * BLOCK_N
    begin = tl.program_id(2) * share
    top = tl.full((BLOCK_K,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_K,), tl.float32)
    count = tl.zeros((BLOCK_K,), tl.int32)
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    base = image.to(tl.int64) * positions
    for start in range(begin, tl.minimum(begin + share, positions), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        label = tl.load(labels + base + n, n < positions, -1)
        score = tl.load(scores + base + n, n < positions, float("-inf"))
        mine = label[None, :] == k[:, None]
        own = tl.where(mine, score[None, :], float("-inf"))
        higher = tl.maximum(top, tl.max(own, 1))
        # While a class has no position, −inf − (−inf) would be NaN; with 0 its weights are exp(−inf) = 0.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp(own - shift[:, None])
        decay = tl.exp(top - shift)
        inside = (n[:, None] < positions) & (c[None, :] < channels)
        feature = tl.load(features + (base + n[:, None]) * channels + c[None, :], inside, 0.0)
        # What was summed so far is scaled to the new greatest score.
        total = dot(weight.to(feature.dtype), feature, total * decay[:, None], UPCAST)
        mass = mass * decay + tl.sum(weight, 1)
        count += tl.sum(mine.to(tl.int32), 1)
        top = higher
    row = (tl.program_id(2) * batch + image).to(tl.int64) * classes + k
    tl.store(sums + row[:, None] * channels + c[None, :], total, (k[:, None] < classes) & (c[None, :] < channels))
    # Every channel tile has the same tops, masses and counts: one of them writes.
    if first_channel == 0:
        tl.store(tops + row, top, k < classes)
        tl.store(masses + row, mass, k < classes)
        tl.store(counts + row, count, k < classes)


@triton.jit
def combine(
    sums: tl.tensor, tops: tl.tensor, masses: tl.tensor, counts: tl.tensor,
    centres: tl.tensor,  # (batch, classes, channels), written
    log_counts: tl.tensor,  # (batch, classes) float32, written
    batch: tl.tensor, classes: tl.tensor, channels: tl.tensor, splits: tl.tensor,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    rows = batch * classes
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (k[:, None] < rows) & (c[None, :] < channels)
    top = tl.full((BLOCK_K,), float("-inf"), tl.float32)
    for part in range(splits):
        top = tl.maximum(top, tl.load(tops + part * rows + k, k < rows, float("-inf")))
    shift = tl.where(top == float("-inf"), 0.0, top)
    mass = tl.zeros((BLOCK_K,), tl.float32)
    count = tl.zeros((BLOCK_K,), tl.int32)
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for part in range(splits):
        at = part * rows + k
        weight = tl.exp(tl.load(tops + at, k < rows, float("-inf")) - shift)
        mass += weight * tl.load(masses + at, k < rows, 0.0)
        count += tl.load(counts + at, k < rows, 0)
        address = sums + at.to(tl.int64)[:, None] * channels + c[None, :]
        total += weight[:, None] * tl.load(address, inside, 0.0)
    centre = total / tl.where(mass > 0, mass, 1.0)[:, None]
    tl.store(centres + k.to(tl.int64)[:, None] * channels + c[None, :], centre, inside)
    log_count = tl.where(count > 0, tl.log(tl.maximum(count, 1).to(tl.float32)), float("-inf"))
    if tl.program_id(1) == 0:
        tl.store(log_counts + k, log_count, k < rows)
