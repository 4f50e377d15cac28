"""Statistics of timed rounds: percentiles, the interval of a median, ratios within rounds, and warnings of noise.

Rounds are interleaved, so a ratio is taken within each round, where both contenders met the same machine, and then the
median over the rounds. The *interval* of a median assumes nothing about the distribution: with the n samples in order,
x[k] … x[n-1-k] holds the true median with probability 1 - 2·P(Binomial(n, 1/2) <= k) (W. J. Conover, Practical
Nonparametric Statistics, section 3.2). k is the largest for which that is at least 95 %; with fewer than 6 samples
there is none, and the interval is their range, stated with its coverage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COVERAGE = 0.95
NOISY = 0.10
"""A contender whose middle half of rounds spans more than this share of its median was measured on a busy machine."""
FEW = 3
"""Fewer rounds than this say nothing about the noise."""


@dataclass(frozen=True)
class Spread:
    """Figures of samples: percentiles, and ``low`` … ``high``, the interval of the median with its ``coverage``."""

    n: int
    p50: float
    p90: float
    p99: float
    least: float
    greatest: float
    quartiles: tuple[float, float]
    low: float
    high: float
    coverage: float

    @property
    def width(self) -> float:
        """Span of the middle half of the samples, relative to the median."""
        return (self.quartiles[1] - self.quartiles[0]) / self.p50 if self.p50 else math.inf


def spread(samples: Sequence[float]) -> Spread:
    """The figures of at least one sample.

    Raises:
        ValueError: there is none.
    """
    if not len(samples):
        raise ValueError("no samples: nothing was measured")
    ordered = np.sort(np.asarray(samples, np.float64))
    p25, p50, p75, p90, p99 = (float(v) for v in np.percentile(ordered, (25, 50, 75, 90, 99)))
    depth, coverage = _depth(len(ordered))
    low, high = float(ordered[depth]), float(ordered[-1 - depth])
    return Spread(len(ordered), p50, p90, p99, float(ordered[0]), float(ordered[-1]), (p25, p75), low, high, coverage)


def _depth(n: int) -> tuple[int, float]:
    """How many samples may be left off at each end, and the probability that the rest spans the true median."""
    from scipy.stats import binom  # takes a second; contenders in processes of their own do without

    coverage = 1 - 2 * binom.cdf(np.arange(max(n // 2, 1)), n, 0.5)
    depth = max(int(np.sum(coverage >= COVERAGE)) - 1, 0)
    return depth, max(float(coverage[depth]), 0.0)


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times faster ``fast`` is, from the rounds in which both ran: slow[i] / fast[i].

    Raises:
        ValueError: the two have different numbers of rounds, or none.
    """
    return spread([s / f for s, f in zip(slow, fast, strict=True)])


def noise(seconds: Sequence[float]) -> str:
    """A warning where the rounds differ too much to be compared; empty where they do not."""
    figures = spread(seconds)
    if figures.n < FEW:
        return f"{figures.n} round{'s' * (figures.n > 1)}: too few to tell noise from a difference"
    if figures.width > NOISY:
        return f"the middle half of {figures.n} rounds spans {100 * figures.width:.0f} % of the median: a busy machine"
    return ""
