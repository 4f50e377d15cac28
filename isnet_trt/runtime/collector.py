"""What a call gathers on its way: the label map and what else was asked for, and the time by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import SettingsError
from isnet_trt.merging.merge import label_type, largest
from isnet_trt.merging.resample import Array
from isnet_trt.merging.volumes import softmax
from isnet_trt.settings import Inference, Size


class Collector:
    """Takes the tiles of merged scores and keeps what was asked for."""

    def __init__(
        self,
        size: Size,
        classes: int,
        probabilities: bool,
        inference: Inference,
        points: Sequence[tuple[int, int]] | None,
        labels: NDArray[np.unsignedinteger] | None = None,
    ) -> None:
        """``labels`` (H, W) is where the label map goes, by default a new array."""
        self.size = (size[0], size[1])
        self.labels = np.empty(self.size, label_type(classes)) if labels is None else labels
        self.probabilities = np.empty((classes, *self.size), np.float32) if probabilities else None
        self._points = None if points is None else _check_points(points, self.size)
        self.scores = None if self._points is None else np.empty((len(self._points), classes), np.float32)
        self._are_probabilities = inference.softmax_before_resize

    def take(self, rows: slice, columns: slice, tile: Array) -> None:
        """A tile of merged scores, float32 (K, rows, columns); tiles do not overlap, so several threads may call."""
        self.labels[rows, columns] = largest(tile)
        if self.scores is not None and self._points is not None:
            row, column = self._points.T
            inside = (row >= rows.start) & (row < rows.stop) & (column >= columns.start) & (column < columns.stop)
            self.scores[inside] = tile[:, row[inside] - rows.start, column[inside] - columns.start].T
        if self.probabilities is not None:
            self.probabilities[:, rows, columns] = tile if self._are_probabilities else softmax(tile)


def _check_points(points: Sequence[tuple[int, int]], size: Size) -> NDArray[np.intp]:
    pixels = np.asarray(points)
    if pixels.size == 0:
        return np.empty((0, 2), np.intp)
    if pixels.ndim != 2 or pixels.shape[1] != 2 or pixels.dtype.kind not in "iu":
        raise SettingsError(f"points must be whole (row, column) pairs, not an array of {pixels.dtype} {pixels.shape}")
    if (pixels < 0).any() or (pixels >= np.asarray(size)).any():
        raise SettingsError(f"points must be (row, column) inside the picture of {size[0]}x{size[1]}")
    return pixels.astype(np.intp)


class Watch:
    """Adds up seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
