"""From the statistics of a tensor to its range: four observers, and the choice of the best for each tensor.

- max: everything that was seen;
- percentile: all but a share `OUTSIDE` at each end;
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
"""Shares of the full range that entropy and mse try."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Choice:
    """The observer that was taken for a tensor, its range, and each observer's relative error (rms over rms)."""

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
    used = seen.counts > 0
    values, counts = seen.centres[used].astype(np.float32), seen.counts[used]

    def loss(scale: Scale) -> float:
        return float((counts * (form.fake(values, scale) - values).astype(np.float64) ** 2).sum())

    return _best(seen, form, loss)


def entropy(seen: TensorStatistics, form: Format) -> Range:
    """The clipping of least Kullback-Leibler divergence."""
    used = seen.counts > 0
    values, counts = seen.centres[used].astype(np.float32), seen.counts[used] / max(seen.counts.sum(), 1)

    def loss(scale: Scale) -> float:
        return _divergence(values, counts, form.fake(values, scale), form, scale)

    return _best(seen, form, loss)


def _divergence(
    values: NDArray[np.float32], shares: NDArray[np.float64], stored: NDArray[np.float32], form: Format, scale: Scale
) -> float:
    """KL(p ‖ q): p has the clipped mass on the outermost bins inside, q spreads each level evenly over its bins."""
    half = scale.scale / 2
    low, high = (scale.scale * (end - scale.zero) for end in (form.lowest, form.highest))
    inside = (values >= low - half) & (values <= high + half)
    if not inside.any():
        return np.inf
    p = shares[inside].copy()
    p[0] += shares[values < low - half].sum()
    p[-1] += shares[values > high + half].sum()
    # The unclipped shares decide q: what is clipped shows as a difference at the ends.
    _, level, sizes = np.unique(stored[inside], return_inverse=True, return_counts=True)
    q = (np.bincount(level, weights=shares[inside]) / sizes)[level]
    q /= q.sum()
    return float((p * np.log(p / q)).sum())


def _best(seen: TensorStatistics, form: Format, loss: Callable[[Scale], float]) -> Range:
    ranges = [(share * seen.low, share * seen.high) for share in CLIPPINGS]
    losses = [loss(form.fit(*one)) for one in ranges]
    return ranges[int(np.argmin(losses))]


OBSERVERS: dict[str, Callable[[TensorStatistics, Format], Range]] = {
    "max": maximum,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def choose(seen: TensorStatistics, form: Format, observers: tuple[str, ...] = ()) -> Choice:
    """The observer whose range leaves the smallest mean square error on the histogram, the first of equals.

    On all values: a sample of positions misses the few largest, which the layers behind depend on most.
    ``observers`` limits the choice; docs/quantisation.md has what each alone gives.
    """
    used = seen.counts > 0
    values, counts = seen.centres[used].astype(np.float32), seen.counts[used]
    energy = float((counts * values.astype(np.float64) ** 2).sum())
    ranges = {name: OBSERVERS[name](seen, form) for name in observers or OBSERVERS}
    errors = {}
    for name, (low, high) in ranges.items():
        rest = (form.fake(values, form.fit(low, high)) - values).astype(np.float64)
        errors[name] = float(np.sqrt((counts * rest**2).sum() / max(energy, 1e-30)))
    best = min(errors, key=lambda name: errors[name])
    return Choice(best, *ranges[best], errors)
