"""Observers: the range of a tensor to quantise, from its statistics, and the choice of the best for each tensor.

- max: the range of all values;
- percentile: without a share `OUTSIDE` of the values at each end;
- entropy: the clipping with the smallest Kullback-Leibler divergence between the values' distribution and that of the
  quantised values (Migacz, "8-bit Inference with TensorRT", GTC 2017);
- mse: the clipping with the smallest mean square error on the histogram.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isnet_trt.export.quantise.formats import Format, Scale
from isnet_trt.export.quantise.tensor_statistics import TensorStatistics

OUTSIDE = 1e-4
"""Share of the values that the percentile observer leaves outside at each end that has values."""
CLIPPINGS = np.geomspace(0.05, 1.0, 48)
"""Fractions of the full range that entropy and mse try."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Choice:
    """The observer chosen for a tensor, its range, and each observer's relative error (rms over rms)."""

    observer: str
    low: float
    high: float
    errors: dict[str, float]


def maximum(seen: TensorStatistics, form: Format) -> Range:
    """The whole range."""
    return seen.low, seen.high


def percentile(seen: TensorStatistics, form: Format) -> Range:
    """The range without the outermost `OUTSIDE` of the values at each end."""
    share = np.cumsum(seen.counts) / max(seen.counts.sum(), 1)
    low, high = np.searchsorted(share, (OUTSIDE, 1 - OUTSIDE))
    centres = seen.centres
    return max(seen.low, min(0.0, centres[low])), min(seen.high, max(0.0, centres[min(high, len(centres) - 1)]))


def mse(seen: TensorStatistics, form: Format) -> Range:
    """The clipping of least mean square error."""
    values, counts = _histogram(seen)

    def loss(scale: Scale) -> float:
        return _square_error(values, counts, form, scale)

    return _best_clipping(seen, form, loss)


def entropy(seen: TensorStatistics, form: Format) -> Range:
    """The clipping of least Kullback-Leibler divergence."""
    values, counts = _histogram(seen)
    shares = counts / max(seen.counts.sum(), 1)

    def loss(scale: Scale) -> float:
        return _divergence(values, shares, form, scale)

    return _best_clipping(seen, form, loss)


def _histogram(seen: TensorStatistics) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Centres and counts of the bins that hold values."""
    used = seen.counts > 0
    return seen.centres[used].astype(np.float32), seen.counts[used]


def _square_error(values: NDArray[np.float32], counts: NDArray[np.int64], form: Format, scale: Scale) -> float:
    return float((counts * (form.fake(values, scale) - values).astype(np.float64) ** 2).sum())


def _divergence(values: NDArray[np.float32], shares: NDArray[np.float64], form: Format, scale: Scale) -> float:
    """KL(p ‖ q): p adds the clipped shares to its outermost bins, q spreads each level evenly over its bins."""
    half = scale.scale / 2
    low, high = (scale.scale * (end - scale.zero) for end in (form.lowest, form.highest))
    inside = (values >= low - half) & (values <= high + half)
    if not inside.any():
        return np.inf
    p = shares[inside].copy()
    p[0] += shares[values < low - half].sum()
    p[-1] += shares[values > high + half].sum()
    # q is made from the unclipped shares, so that clipping shows as a difference at the ends.
    _, level, sizes = np.unique(form.fake(values, scale)[inside], return_inverse=True, return_counts=True)
    q = (np.bincount(level, weights=shares[inside]) / sizes)[level]
    q /= q.sum()
    return float((p * np.log(p / q)).sum())


def _best_clipping(seen: TensorStatistics, form: Format, loss: Callable[[Scale], float]) -> Range:
    ranges = [(share * seen.low, share * seen.high) for share in CLIPPINGS]
    return min(ranges, key=lambda limits: loss(form.fit(*limits)))


# The first of equals is chosen: the plain maximum before those that clip.
OBSERVERS: dict[str, Callable[[TensorStatistics, Format], Range]] = {
    "max": maximum,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def choose(seen: TensorStatistics, form: Format) -> Choice:
    """The observer whose range leaves the smallest mean square error on the histogram, the first of equals.

    On the histogram of all inputs: a sample of positions misses the few largest values, on which the next layers depend
    most.
    """
    values, counts = _histogram(seen)
    # A tensor that is always zero has error 0, not 0 / 0.
    energy = max(float((counts * values.astype(np.float64) ** 2).sum()), 1e-30)
    ranges = {name: observe(seen, form) for name, observe in OBSERVERS.items()}
    errors = {
        name: float(np.sqrt(_square_error(values, counts, form, form.fit(*limits)) / energy))
        for name, limits in ranges.items()
    }
    best = min(errors, key=lambda name: errors[name])
    return Choice(best, *ranges[best], errors)
