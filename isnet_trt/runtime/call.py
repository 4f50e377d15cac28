"""One call of a segmenter: the request, checked; the outputs, filled by a runtime; the time by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda.pipeline import Ticket
from isnet_trt.errors import SettingsError
from isnet_trt.merging.merge import Head, label_type
from isnet_trt.merging.resample import Array
from isnet_trt.merging.volumes import softmax
from isnet_trt.pictures.raw import RawLabels, SourceImage
from isnet_trt.settings import Inference, Size
from isnet_trt.telemetry import ranges


class StageTimer:
    """Sum up seconds by stage, each a range of the profiler. ``elapsed`` is the time that the call took until now."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.elapsed = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        pushed = ranges.push(stage)
        start = time.perf_counter()
        try:
            yield
        finally:
            ranges.pop(pushed)
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Request:
    """What a call asks for: the image, and where the label map is to be written.

    ``out`` is the caller's object, ``out_memory`` its description; ``stream`` the caller's CUDA stream.
    """

    image: SourceImage
    inference: Inference
    out: Any = None
    out_memory: RawLabels | None = None
    stream: int | None = None
    probabilities: bool = False
    points: Sequence[tuple[int, int]] | None = None
    timer: StageTimer = field(default_factory=StageTimer)


@dataclass
class Outputs:
    """What a call computes; with a ``ticket`` complete after `Runtime.collect`, otherwise already.

    ``labels`` is (H, W), or the caller's object in GPU memory; ``probabilities`` (K, H, W) and ``scores`` (P, K) at
    the pixels ``points`` (P, 2) are float32, or None where they were not requested.
    """

    labels: Any
    inference: Inference
    timer: StageTimer
    head: Head | None = None
    probabilities: Array | None = None
    points: NDArray[np.intp] | None = None
    scores: Array | None = None
    ticket: Ticket | None = None

    @classmethod
    def allocate(cls, request: Request, head: Head) -> Outputs:
        """Allocate host memory for what is requested; SettingsError if ``points`` are no (row, column) pixels."""
        size, memory, classes = request.image.size, request.out_memory, head.label_count
        labels = np.empty(size, label_type(classes)) if memory is None else memory.array()
        outputs = cls(labels, request.inference, request.timer, head)
        if request.probabilities:
            outputs.probabilities = np.empty((classes, *size), np.float32)
        if request.points is not None:
            outputs.points = _check_points(request.points, size)
            outputs.scores = np.empty((len(outputs.points), classes), np.float32)
        return outputs

    def add_tile(self, rows: slice, columns: slice, tile: Array) -> None:
        """Take a tile of merged scores, float32 (K, rows, columns). Tiles do not overlap: threads may call at once."""
        assert self.head is not None
        self.labels[rows, columns] = self.head.labels(tile, self.inference)
        if self.scores is None and self.probabilities is None:
            return
        tile = self.head.class_scores(tile, self.inference)
        if self.scores is not None and self.points is not None:
            row, column = self.points.T
            inside = (row >= rows.start) & (row < rows.stop) & (column >= columns.start) & (column < columns.stop)
            self.scores[inside] = tile[:, row[inside] - rows.start, column[inside] - columns.start].T
        if self.probabilities is not None:
            merged = self.head.gives_probabilities(self.inference)
            self.probabilities[:, rows, columns] = tile if merged else softmax(tile)


def _check_points(points: Sequence[tuple[int, int]], size: Size) -> NDArray[np.intp]:
    pixels = np.asarray(points)
    # An empty list becomes float64 in numpy and would fail the check of the type.
    if pixels.size == 0:
        return np.empty((0, 2), np.intp)
    if pixels.ndim != 2 or pixels.shape[1] != 2 or pixels.dtype.kind not in "iu":
        raise SettingsError(f"points must be whole (row, column) pairs, not an array of {pixels.dtype} {pixels.shape}")
    if (pixels < 0).any() or (pixels >= np.asarray(size)).any():
        raise SettingsError(f"points must be (row, column) inside the picture of {size[0]}x{size[1]}")
    return pixels.astype(np.intp)
