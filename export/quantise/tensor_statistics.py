"""What calibration keeps of one tensor: exact range, histogram, channel statistics and a sample of positions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import BuildError

BINS = 4096
"""Histogram bins on each side of zero."""
_VALUES = 65536
"""Values of one tensor that one network input adds to the histogram (all values count for range and channels)."""
_SAMPLE = 16384
"""Values of the sample that bias correction takes its means from."""
_FIELDS = ("counts", "channel_max", "channel_sum", "sample")

Array = NDArray[np.float32]


@dataclass
class TensorStatistics:
    """Statistics of a tensor (B, C, H, W) over all inputs so far.

    ``counts`` int64 (2·BINS,) over -reach … reach, with ``reach`` a power of two; ``channel_max`` (C,) of absolute
    values; ``channel_sum`` float64 (C,) over ``total`` values a channel; ``sample`` (P, C): P positions drawn evenly
    from all inputs; ``positions``: H·W of the last input.
    """

    low: float = 0.0
    high: float = 0.0
    reach: float = 2.0**-20
    seen: int = 0
    total: int = 0
    positions: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * BINS, np.int64))
    channel_max: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    channel_sum: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    sample: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def add(self, name: str, x: Array) -> None:
        """Count the tensor ``x`` of one network input.

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
        self._channels(x)
        rows = self._rows(x)
        self._count(rows.ravel())
        self._draw(rows)

    def _channels(self, x: Array) -> None:
        if not len(self.channel_max):
            self.channel_max = np.zeros(x.shape[1], np.float32)
            self.channel_sum = np.zeros(x.shape[1])
        peaks = np.maximum(x.max((0, 2, 3)), -x.min((0, 2, 3)))
        self.channel_max = np.maximum(self.channel_max, peaks)
        self.channel_sum = self.channel_sum + x.sum((0, 2, 3), dtype=np.float64)
        self.total += x.size // x.shape[1]

    def _rows(self, x: Array) -> Array:
        """Positions (P, C), evenly spread from a start that changes with the input."""
        flat = x.reshape(len(x), x.shape[1], -1)
        step = max(1, x.size // _VALUES)
        return np.concatenate([part[:, self.seen % step :: step].T for part in flat])

    def _count(self, values: Array) -> None:
        while max(-self.low, self.high) >= self.reach:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros_like(self.counts)
            self.counts[BINS // 2 : BINS // 2 + BINS] = pairs
            self.reach *= 2
        index = ((values / np.float32(self.reach) + 1) * BINS).astype(np.int64)
        self.counts += np.bincount(np.clip(index, 0, 2 * BINS - 1), minlength=2 * BINS)

    def _draw(self, rows: Array) -> None:
        """After n inputs each row of the sample comes from each of them with the same probability."""
        random = np.random.default_rng(self.seen)
        if self.seen == 1:
            self.sample = np.zeros((max(16, _SAMPLE // rows.shape[1]), rows.shape[1]), np.float32)
        replaced = np.flatnonzero(random.random(len(self.sample)) < 1 / self.seen)
        self.sample[replaced] = rows[random.integers(len(rows), size=len(replaced))]

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin, float64 (2·BINS,)."""
        return ((np.arange(2 * BINS) + 0.5) / BINS - 1) * self.reach

    @property
    def channel_mean(self) -> NDArray[np.float64]:
        """The mean of each channel, float64 (C,)."""
        return self.channel_sum / max(self.total, 1)

    def numbers(self) -> dict[str, float | int]:
        """The single numbers, for JSON."""
        names = ("low", "high", "reach", "seen", "total", "positions")
        return {name: getattr(self, name) for name in names}

    def arrays(self) -> dict[str, NDArray]:
        """The arrays, for an .npz file."""
        return {name: getattr(self, name) for name in _FIELDS}
