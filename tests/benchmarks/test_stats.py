"""What is said about samples: percentiles, intervals that hold what they promise, noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bench_samples import OURS, THEIRS, TWIN

from benchmarks import stats


def holds(figures: stats.Spread, value: float) -> bool:
    """Whether ``value`` lies within the interval of the median."""
    return figures.low <= value <= figures.high


def test_spread_of_known_samples() -> None:
    figures = stats.spread([3.0, 1.0, 2.0, 5.0, 4.0, 9.0, 7.0, 6.0, 8.0])
    assert (figures.n, figures.p50, figures.least, figures.greatest) == (9, 5.0, 1.0, 9.0)
    assert figures.p90 == pytest.approx(8.2)
    assert figures.quartiles == (3.0, 7.0)
    assert (figures.low, figures.high) == (2.0, 8.0)
    assert figures.coverage == pytest.approx(1 - 2 * (1 + 9) / 2**9)


@pytest.mark.parametrize(("n", "coverage"), [(1, 0.0), (2, 0.5), (5, 0.9375), (6, 0.96875)])
def test_few_rounds_state_their_range(n: int, coverage: float) -> None:
    figures = stats.spread(list(range(1, n + 1)))
    assert (figures.low, figures.high, figures.coverage) == (1, n, coverage)


@pytest.mark.parametrize("n", [6, 7, 12, 25])
def test_interval_holds_the_true_median_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    draws = rng.lognormal(0.0, 0.5, (4000, n))
    held = [holds(stats.spread(row), 1.0) for row in draws]
    stated = stats.spread(draws[0]).coverage
    # Three standard errors of a share over 4000 draws.
    assert abs(np.mean(held) - stated) < 3 * math.sqrt(stated * (1 - stated) / 4000)
    assert stated >= stats.COVERAGE


def test_a_bundle_against_itself_is_as_fast_as_itself() -> None:
    ratio = stats.ratios(TWIN, OURS)
    assert holds(ratio, 1.0)
    assert not holds(stats.ratios(THEIRS, OURS), 1.0)


def test_planted_slowdown_leaves_the_interval() -> None:
    slowed = [1.1 * s for s in TWIN]
    assert not holds(stats.ratios(slowed, OURS), 1.0)
    assert stats.ratios(slowed, OURS).p50 == pytest.approx(1.1, abs=0.01)


def test_ratios_are_taken_within_rounds() -> None:
    drifting = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    ratio = stats.ratios(2 * drifting, drifting)
    assert (ratio.low, ratio.p50, ratio.high) == (2, 2, 2)
    with pytest.raises(ValueError):
        stats.ratios([1.0, 2.0], [1.0])
    with pytest.raises(ValueError):
        stats.spread([])


def test_noise_is_told() -> None:
    assert stats.noise(OURS) == ""
    assert "busy" in stats.noise([1.0, 1.0, 2.0, 2.0, 3.0])
    assert "too few" in stats.noise([1.0, 1.0])
