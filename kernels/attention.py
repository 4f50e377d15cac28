"""One head of attention with an additive bias per key.

    out = softmax(scale · q kᵀ + bias) v

with queries (B, N, D), keys and values (B, M, D), D = 256 in the published models, and bias (B, M) float32; −inf leaves
a key out, and a batch entry without any key gives 0. Sums and softmax are float32. The softmax is online: the keys pass
by in tiles, each row keeps a level near its greatest score and its mass, so nothing of size N × M is ever in memory.
With tensor maps a level is raised only where a score exceeds it by `SLACK`: after the first tiles the sums of weighted
values are seldom multiplied anew (FlashAttention-4 does the same). Both uses are the same kernel: M = N pixels for the
image-level context, M = K class centres with log counts as the bias for the semantic-level one.

One head and one image give few tiles of queries; where these would leave multiprocessors idle, the keys are cut into
parts (`isnet_trt.cuda.launch_grid.splits`), each block writes its part's result and log-sum, and `combine` joins them:

    out = Σ_s 2^(norm_s − top) · part_s / Σ_s 2^(norm_s − top),    norm_s = log2 Σ_{keys of s} 2^score
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from isnet_trt.cuda.kernel_specs import LOG2_E
from isnet_trt.kernels.device import decayed, dot

_LOG2_E = tl.constexpr(LOG2_E)
SLACK = tl.constexpr(8.0)
"""By how much a score, times log2(e), may exceed a row's level before that is raised to it: float16 holds 2^8 well."""


def reference(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], bias: NDArray[Any], scale: float) -> NDArray[Any]:
    """The formula in float64."""
    scores = scale * (q.astype(np.float64) @ k.astype(np.float64).transpose(0, 2, 1)) + bias[:, None].astype(np.float64)
    top = scores.max(axis=2, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = weights.sum(axis=2, keepdims=True)
    return np.asarray((weights / np.where(total > 0, total, 1)) @ v.astype(np.float64))


@triton.jit
def _rows(
    source: tl.tensor, image: tl.tensor, start: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    MAPS: tl.constexpr, WHOLE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """(BLOCK, WIDTH) rows of an image from ``start`` on, 0 from ``size`` on. WHOLE: there are none of those."""
    if MAPS:  # rows beyond the image are 0: a map has an axis for the images, so that none reads another's
        rows = source.load([image, start, 0]).reshape(BLOCK, WIDTH)
    else:
        row = start + tl.arange(0, BLOCK)[:, None]
        at = source + (row * WIDTH + tl.arange(0, WIDTH)[None, :])
        rows = tl.load(at) if WHOLE else tl.load(at, row < size, 0.0)
    return rows


@triton.jit
def _step(
    state: tl.tensor, query: tl.tensor, k: tl.tensor, v: tl.tensor, bias: tl.tensor, scale: tl.tensor,
    image: tl.tensor, start: tl.tensor, keys: tl.tensor, BLOCK_K: tl.constexpr, WIDTH: tl.constexpr,
    UPCAST: tl.constexpr, MAPS: tl.constexpr, WHOLE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``state`` after the tile of keys at ``start``: of each query the level, the mass and the sum of weighted values.

    A weight is 2^(log2(e) · score − level), since exp2 is one instruction. In a product of warpgroups a thread has many
    keys and few queries, and log2(e) is multiplied in with the level, in other products with scale and bias.
    """
    level, mass, total = state
    key = _rows(k, image, start, keys, BLOCK_K, WIDTH, MAPS, WHOLE).T
    column = start + tl.arange(0, BLOCK_K)
    shift = tl.load(bias + column) if WHOLE else tl.load(bias + column, column < keys, float("-inf"))
    if not MAPS:
        shift *= _LOG2_E
    score = dot(query, key, tl.zeros((query.shape[0], BLOCK_K), tl.float32), UPCAST) * scale + shift[None, :]
    highest = tl.max(score, 1)
    if MAPS:
        highest *= _LOG2_E
        score *= _LOG2_E
    raised = tl.where(highest > level + SLACK, highest, level) if MAPS else tl.maximum(level, highest)
    # Where no key counts yet, −inf − (−inf) would be NaN; with 0 the weights are exp2(−inf) = 0.
    base = tl.where(raised == float("-inf"), 0.0, raised)
    weight = tl.exp2(score - base[:, None])
    decay = tl.exp2(level - base)
    value = _rows(v, image, start, keys, BLOCK_K, WIDTH, MAPS, WHOLE)
    # The interpreter cuts bfloat16 off where a GPU rounds.
    factor = weight if UPCAST else weight.to(value.dtype)
    total = dot(factor, value, decayed(total, decay, MAPS), UPCAST)
    mass = mass * decay + tl.sum(weight, 1)
    return raised, mass, total


@triton.jit
def attention(
    q: tl.tensor,  # (batch, queries, WIDTH); MAPS: tensor descriptors
    k: tl.tensor,  # (batch, keys, WIDTH)
    v: tl.tensor,  # (batch, keys, WIDTH)
    bias: tl.tensor,  # (batch, keys) float32
    out: tl.tensor,  # (batch, queries, WIDTH) of q's type; PARTIAL: (splits, batch, queries, WIDTH) float32; written
    norms: tl.tensor,  # PARTIAL: (splits, batch, queries) float32, written
    scale: tl.tensor,  # times log2(e)
    batch: tl.tensor, queries: tl.tensor, keys: tl.tensor, splits: tl.tensor,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDTH: tl.constexpr, PARTIAL: tl.constexpr, UPCAST: tl.constexpr,
    MAPS: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    image = tl.program_id(1)
    # One 64-bit address per block, 32-bit offsets from it: a thread's registers are what limits the tile.
    if not MAPS:
        q += image.to(tl.int64) * queries * WIDTH
        k += image.to(tl.int64) * keys * WIDTH
        v += image.to(tl.int64) * keys * WIDTH
    bias += image.to(tl.int64) * keys
    # Parts are whole tiles of keys; the last ones may be empty.
    share = tl.cdiv(tl.cdiv(keys, BLOCK_K), splits) * BLOCK_K
    begin = tl.program_id(2) * share
    end = tl.minimum(begin + share, keys)
    query = _rows(q, image, tl.program_id(0) * BLOCK_Q, queries, BLOCK_Q, WIDTH, MAPS, False)
    if MAPS:
        scale /= _LOG2_E
    state = (
        tl.full((BLOCK_Q,), float("-inf"), tl.float32),
        tl.zeros((BLOCK_Q,), tl.float32),
        tl.zeros((BLOCK_Q, WIDTH), tl.float32),
    )
    # A tile that is not whole takes a compare and a select for each key. With maps it has code of its own; with
    # pointers that would take more registers than there are.
    whole = begin + tl.maximum(end - begin, 0) // BLOCK_K * BLOCK_K if MAPS else end
    for start in range(begin, whole, BLOCK_K):
        state = _step(state, query, k, v, bias, scale, image, start, keys, BLOCK_K, WIDTH, UPCAST, MAPS, MAPS)
    if MAPS and whole < end:
        state = _step(state, query, k, v, bias, scale, image, whole, keys, BLOCK_K, WIDTH, UPCAST, MAPS, False)
    level, mass, total = state
    # Without any key the mass is 0 and so is the result.
    total = total / tl.where(mass > 0, mass, 1.0)[:, None]
    at = image.to(tl.int64) * queries
    if PARTIAL:
        at += tl.program_id(2).to(tl.int64) * batch * queries
        norm = tl.where(mass > 0, level + tl.log2(tl.where(mass > 0, mass, 1.0)), float("-inf"))
        tl.store(norms + at + row, norm, row < queries)
    d = tl.arange(0, WIDTH)
    tl.store(out + at * WIDTH + (row[:, None] * WIDTH + d[None, :]), total, row[:, None] < queries)


@triton.jit
def combine(
    parts: tl.tensor,  # (splits, rows, WIDTH) float32
    norms: tl.tensor,  # (splits, rows) float32
    out: tl.tensor,  # (rows, WIDTH), written
    rows: tl.tensor,  # batch * queries
    splits: tl.tensor,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    d = tl.arange(0, WIDTH)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    for part in range(splits):
        top = tl.maximum(top, tl.load(norms + part * rows + row, row < rows, float("-inf")))
    level = tl.where(top == float("-inf"), 0.0, top)
    mass = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    for part in range(splits):
        at = part * rows.to(tl.int64) + row
        # A part's result is already divided by its mass; its norm gives the mass back, relative to the greatest.
        weight = tl.exp2(tl.load(norms + at, row < rows, float("-inf")) - level)
        mass += weight
        total += weight[:, None] * tl.load(parts + at[:, None] * WIDTH + d[None, :], row[:, None] < rows, 0.0)
    total = total / tl.where(mass > 0, mass, 1.0)[:, None]
    tl.store(out + row[:, None] * WIDTH + d[None, :], total, row[:, None] < rows)
