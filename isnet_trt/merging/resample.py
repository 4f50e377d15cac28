"""Bilinear resampling (corners not aligned unless stated), by size ratio or by an exact factor, on parts of an array.

Output sample j along one side lies at p = (j + 0.5) * step - 0.5 of the input, clamped to 0 .. n - 1. By ratio,
step = n_in / n_out; by factor s, step = 1 / s exactly, even where n * s is no whole number. Positions are rounded to
float32 where PyTorch rounds them: a weight is then up to 1e-3 off at the far end of a wide picture, and the network,
whose first prediction has near ties, gives the reference's labels only if it sees the reference's pixels.
With aligned corners, j lies at j * (n_in - 1) / (n_out - 1).
Both sides being linear, any block of the output is ``rows @ block @ columns`` with two small matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Span = tuple[int, int]
"""(start, stop) along one side."""
Positions = tuple[NDArray[np.intp], NDArray[np.intp], Array]
"""The two input samples beside each position, and the weight of the upper one."""

# OpenBLAS hands a product to its own threads above 2**18 multiplications; called from several threads at once that
# is up to twenty times slower than staying below.
PRODUCT = 2**18
CHUNK = 64
"""Columns per product."""
ROWS_AT_ONCE = 128
_ONE = np.float32(1)


class Taps(NamedTuple):
    """Output samples as weighted sums: ``matrix`` (stop - start, span length) over input samples ``span``."""

    span: Span
    matrix: Array


@functools.lru_cache(maxsize=4096)
def taps(n_in: int, n_out: int, start: int, stop: int, aligned: bool = False) -> Taps:
    """The weights that give output samples ``start:stop`` of ``n_out`` from ``n_in`` input samples, by size ratio.

    ``aligned``: the first and last samples of input and output coincide.
    """
    low, high, weight = ratio_positions(n_in, n_out, start, stop, aligned)
    first, last = int(low[0]), int(high[-1]) + 1
    matrix = np.zeros((stop - start, last - first), np.float32)
    rows = np.arange(stop - start)
    matrix[rows, low - first] = 1 - weight
    matrix[rows, high - first] += weight  # += because at the border low and high are the same sample
    matrix.flags.writeable = False  # the cache hands the same array to all callers
    return Taps((first, last), matrix)


def ratio_positions(n_in: int, n_out: int, start: int, stop: int, aligned: bool = False) -> Positions:
    """`positions` by size ratio, or with ``aligned`` those at which the first and last samples coincide."""
    if aligned:
        step = np.float32(n_in - 1) / np.float32(max(n_out - 1, 1))
        return _between_samples(n_in, np.arange(start, stop) * np.float64(step))
    return positions(n_in, np.float32(n_in) / np.float32(n_out), start, stop)


def span(n_in: int, n_out: int, rows: Span) -> Span:
    """The input rows from which the output rows ``rows`` of ``n_out`` are interpolated."""
    low, high, _ = ratio_positions(n_in, n_out, *rows)
    return int(low[0]), int(high[-1]) + 1


def positions(n_in: int, step: np.float32, start: int, stop: int) -> Positions:
    """Lower and upper input sample of outputs ``start:stop`` and the weight of the upper one.

    PyTorch's compilers contract step * (j + 0.5) - 0.5 to one fused multiply-add: float64, rounded once, is the same.
    """
    return _between_samples(n_in, (np.arange(start, stop) + 0.5) * np.float64(step) - 0.5)


def _between_samples(n_in: int, exact: NDArray[np.float64]) -> Positions:
    """The two input samples beside each position and the weight of the upper one."""
    # Rounded before the weight is taken, as in PyTorch: the weight inherits the rounding.
    at = np.clip(exact.astype(np.float32), np.float32(0), np.float32(n_in - 1))
    # Truncation is floor here, since positions are clamped to 0 and above.
    low = at.astype(np.intp)
    return low, np.minimum(low + 1, n_in - 1), at - low.astype(np.float32)


def product(a: Array, b: Array, out: Array) -> Array:
    """``np.matmul(a, b, out=out)`` in pieces small enough to stay on the calling thread."""
    step = max(1, PRODUCT // (a.shape[-1] * b.shape[-1]))
    for i in range(0, a.shape[-2], step):
        np.matmul(a[..., i : i + step, :], b, out=out[..., i : i + step, :])
    return out


class Part(NamedTuple):
    """An input block (K, p, q), and the weights of the output's rows and columns (the latter in chunks)."""

    block: Array
    rows: Array
    columns: tuple[Taps, ...]


@functools.lru_cache(maxsize=1024)
def column_taps(n_in: int, n_out: int, start: int, stop: int, aligned: bool = False) -> tuple[Span, tuple[Taps, ...]]:
    """The input span that output columns ``start:stop`` need, and their weights in chunks of `CHUNK` columns.

    Each column needs two inputs: in small chunks the matrices hold few zeros. Spans of chunks count from the first.
    """
    edges = range(start, stop, CHUNK)
    chunks = [taps(n_in, n_out, left, min(left + CHUNK, stop), aligned) for left in edges]
    first = chunks[0].span[0]
    return (first, chunks[-1].span[1]), tuple(Taps((t.span[0] - first, t.span[1] - first), t.matrix) for t in chunks)


def combine(parts: Sequence[Part], share: np.float32 = _ONE) -> Array:
    """``share`` times the sum over ``parts`` of each block resampled to the same rows and columns: (K, R, C).

    The blocks are stacked after their columns are done, so that one product does the rows of all of them and adds up.
    """
    # The factor goes into the small matrix instead of over all scores.
    rows = np.concatenate([part.rows for part in parts], axis=1) * share
    width = sum(len(chunk.matrix) for chunk in parts[0].columns)
    stack = np.empty((rows.shape[1], len(parts[0].block), width), np.float32)
    row = 0
    for block, _, chunks in parts:
        rows_of_block = stack[row : row + block.shape[1]]
        row += block.shape[1]
        for i, (span, matrix) in enumerate(chunks):
            out = rows_of_block[:, :, i * CHUNK : i * CHUNK + len(matrix)]
            product(block[:, :, slice(*span)].transpose(1, 0, 2), matrix.T, out)
    total = np.empty((stack.shape[1], rows.shape[0], width), np.float32)
    return product(rows[None], stack.transpose(1, 0, 2), total)


def scale_rows(planes: Array, scale: float, width: int, top: int, bottom: int) -> Array:
    """Rows ``top:bottom`` and ``width`` columns of ``planes`` (C, H, W) resampled by the factor ``scale``.

    Returns (C, bottom - top, width) float32, for scale 1 a view.
    """
    # At scale 1 positions are whole numbers and every weight is 0.
    if scale == 1:
        return planes[:, top:bottom, :width]
    channels, height, source = planes.shape
    # Not source / width: the reference resamples by the factor, also where n * s is no whole number.
    step = np.float32(1 / scale)
    left, right, across = positions(source, step, 0, width)
    out = np.empty((channels, bottom - top, width), np.float32)
    # Vertically first, on whole rows, and in groups of rows whose temporary arrays fit the cache.
    for a in range(top, bottom, ROWS_AT_ONCE):
        b = min(a + ROWS_AT_ONCE, bottom)
        low, high, down = positions(height, step, a, b)
        rows = _between(planes[:, low], planes[:, high], down[:, None])
        out[:, a - top : b - top] = _between(rows.take(left, axis=2), rows.take(right, axis=2), across)
    return out


def _between(lower: Array, upper: Array, weight: Array) -> Array:
    """lower + weight * (upper - lower), in the memory of the two."""
    upper -= lower
    upper *= weight
    lower += upper
    return lower
