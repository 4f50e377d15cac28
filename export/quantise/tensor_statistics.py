"""What calibration keeps of one tensor: its exact range and a histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import BuildError

BINS = 4096
"""Histogram bins on each side of zero."""
_VALUES = 65536
"""Values of one tensor that one network input adds to the histogram; all values count for the range."""
_NUMBERS = ("low", "high", "reach", "seen", "positions")

Array = NDArray[np.float32]


@dataclass
class TensorStatistics:
    """Statistics of a tensor (B, C, H, W) over ``seen`` network inputs.

    ``counts`` int64 (2·BINS,) over -reach … reach, with ``reach`` a power of two; ``positions``: H·W of the last input.
    """

    low: float = 0.0
    high: float = 0.0
    reach: float = 2.0**-20
    seen: int = 0
    positions: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * BINS, np.int64))

    def add(self, name: str, x: Array) -> None:
        """Add the values ``x`` that the tensor ``name`` has for one network input.

        Raises:
            BuildError: ``x`` has NaN or infinite values; the message names the tensor.
        """
        low, high = float(x.min()), float(x.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BuildError(
                f"calibration: the tensor {name!r} has NaN or infinite values in float32; a model like that cannot be "
                "quantised. Check the checkpoint, or leave the picture out on which it happens"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.seen, self.positions = self.seen + 1, x.shape[2] * x.shape[3]
        self._count(self._sample(x))

    def _sample(self, x: Array) -> Array:
        """All channels of positions that are evenly spread, from a start that changes with the input."""
        step = max(1, x.size // _VALUES)
        return x.reshape(len(x), x.shape[1], -1)[:, :, self.seen % step :: step].ravel()

    def _count(self, values: Array) -> None:
        while max(-self.low, self.high) >= self.reach:  # double the reach: pairs of bins become one, exactly
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros_like(self.counts)
            self.counts[BINS // 2 : BINS // 2 + BINS] = pairs
            self.reach *= 2
        bins = ((values / np.float32(self.reach) + 1) * BINS).astype(np.int64)
        # Clipped: in float32 the largest value below the reach may round up to the bin behind the last.
        self.counts += np.bincount(np.clip(bins, 0, 2 * BINS - 1), minlength=2 * BINS)

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin, float64 (2·BINS,)."""
        return ((np.arange(2 * BINS) + 0.5) / BINS - 1) * self.reach

    def numbers(self) -> dict[str, float | int]:
        """Everything but ``counts``, for JSON."""
        return {name: getattr(self, name) for name in _NUMBERS}

    @classmethod
    def from_numbers(cls, name: str, numbers: dict[str, Any], seen: int, counts: NDArray[Any]) -> TensorStatistics:
        """The inverse of `numbers` for the tensor ``name`` after ``seen`` inputs; keys of earlier versions are ignored.

        Raises:
            KeyError: a number is missing.
            ValueError: the numbers or counts are none that `add` could have left.
        """
        values = {key: numbers[key] for key in _NUMBERS}
        low, high, reach, added, positions = values.values()
        floats = all(type(value) in (int, float) and math.isfinite(value) for value in (low, high, reach))
        whole = type(added) is int and type(positions) is int
        if not (floats and whole and low <= 0 <= high and reach > 0 and added == seen and positions > 0):
            raise ValueError(f"the tensor {name!r} has impossible numbers: {values}")
        if counts.shape != (2 * BINS,) or counts.dtype != np.int64 or counts.min() < 0 or counts.max() < 1:
            raise ValueError(f"the tensor {name!r} has an impossible histogram")
        return cls(counts=counts, **values)
