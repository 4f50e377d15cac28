"""`Segmenter`: an open bundle that turns pictures into label maps."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt import windows
from isnet_trt.bundle import read_bundle
from isnet_trt.engines import Engine, open_engine
from isnet_trt.engines.cores import usable_cores
from isnet_trt.errors import EngineError, SettingsError
from isnet_trt.geometry import coarse_size
from isnet_trt.merge import Head, Merger, TileSink, label_type, largest, softmax
from isnet_trt.preprocess import Image, Order, check_image, normalise, read_image, resize
from isnet_trt.segmentation import Segmentation
from isnet_trt.settings import Inference, Labels, Preprocess, Size

Array = NDArray[np.float32]
Source = Image | str | os.PathLike[str]
"""A picture as uint8 (H, W, 3), or the path of a file."""


class Segmenter:
    """An open engine with its settings.

    One call runs at a time: a second thread that calls meanwhile waits. For parallel work open one segmenter per
    thread or process; after a fork open a new one in the child. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        engine: Engine,
        labels: Labels,
        preprocess: Preprocess,
        inference: Inference | None = None,
        output_stride: int = 8,
        *,
        presets: Mapping[str, Inference] | None = None,
        batch: int = 1,
        full_batches: bool = False,
        threads: int | None = None,
    ) -> None:
        """Around an engine that is already open and now belongs to the segmenter.

        ``output_stride`` is the network's, in pixels; ``batch`` how many windows it sees at once, exactly so many
        with ``full_batches`` (what is missing is filled with zeros); ``threads`` how many the merge uses, by default
        all cores that the process may use.
        """
        self.engine = engine
        self.labels = labels
        self.preprocess = preprocess
        self.inference = inference or Inference()
        self.output_stride = output_stride
        self.presets = dict(presets or {"default": self.inference})
        self.batch = batch
        self._full_batches = full_batches
        self._threads = threads or usable_cores()
        self._palette = np.asarray(labels.palette, np.uint8).reshape(-1, 3)
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str],
        *,
        engine: str | None = None,
        preset: str = "default",
        inference: Inference | None = None,
        threads: int | None = None,
    ) -> Segmenter:
        """Open a bundle with the engine it was built for, or with ``engine="onnxruntime"`` on the CPU.

        ``preset`` ("default" or "ms-flip") or ``inference`` say how pictures are shown to the network unless a call
        says otherwise. ``threads`` limits the CPU threads of the engine and of the merge.

        Raises:
            BundleError: the bundle is missing, damaged or too new.
            EngineUnavailable: its engine cannot run here; the message says what can.
            SettingsError: the preset is unknown.
        """
        opened = read_bundle(bundle)
        manifest = opened.manifest
        chosen = inference or manifest.preset(preset)
        built_for = manifest.engine.shapes if engine in (None, manifest.engine.kind) else ()
        return cls(
            open_engine(opened, engine, threads=threads),
            manifest.labels,
            manifest.preprocess,
            chosen,
            manifest.output_stride,
            presets=manifest.presets,
            batch=built_for[1][0] if built_for else 1,
            full_batches=bool(built_for) and built_for[0][0] > 1,
            threads=threads,
        )

    def __call__(
        self,
        image: Source,
        *,
        order: Order = "rgb",
        inference: Inference | str | None = None,
        probabilities: bool = False,
        points: Sequence[tuple[int, int]] | None = None,
    ) -> Segmentation:
        """Segment one picture.

        Args:
            image: uint8 (H, W, 3), any memory layout, or the path of a file.
            order: channel order of an array ("rgb" or "bgr"); for a file it has no meaning.
            inference: settings, or the name of a preset, for this call instead of the segmenter's.
            probabilities: also return (K, H, W) probabilities; they take 4·K·H·W bytes.
            points: (row, column) pixels at which the class scores are wanted.

        Raises:
            ImageError: the image cannot be segmented; the message says why.
            SettingsError: a setting cannot be used.
            EngineError: the engine failed, or the segmenter was closed.
        """
        chosen, watch = self._inference(inference), _Watch()
        with self._lock:
            self._check_open()
            with watch("read"):
                source = read_image(image) if isinstance(image, str | os.PathLike) else check_image(image, order)
            result = _Collector(source.shape[:2], self.labels.count, probabilities, chosen, points)
            with watch("resize"):
                picture = normalise(resize(source, self.preprocess), self.preprocess)
            self._run(picture, chosen, result.size, result.take, watch)
        return Segmentation(
            result.labels, self.labels.names, self._palette.copy(), result.probabilities, result.scores, watch.seconds
        )

    def map(self, images: Iterable[Source], **options: Any) -> Iterator[Segmentation]:
        """Segment one picture after the other, with the options of a call."""
        for image in images:
            yield self(image, **options)

    def logits(self, x: Array) -> Array:
        """The network's raw logits (B, K, ceil(H/s), ceil(W/s)) float32 for normalised pictures ``x`` (B, 3, H, W)."""
        with self._lock:
            return self._infer(np.ascontiguousarray(x, np.float32))

    def score(self, x: Array, output_size: Size, inference: Inference | str | None = None) -> Array:
        """Merged scores (K, *output_size) of an already normalised picture, float32 (1, 3, H, W) or (H, W, 3).

        Means of logits, or of probabilities where the settings say softmax before resize.
        """
        picture = x[0].transpose(1, 2, 0) if x.ndim == 4 else x
        scores = np.empty((self.labels.count, *output_size), np.float32)

        def take(rows: slice, columns: slice, tile: Array) -> None:
            scores[:, rows, columns] = tile

        with self._lock:
            self._run(picture, self._inference(inference), output_size, take, _Watch())
        return scores

    def _inference(self, choice: Inference | str | None) -> Inference:
        if isinstance(choice, str):
            if choice not in self.presets:
                raise SettingsError(f"preset {choice!r} is unknown; there are: {', '.join(self.presets)}")
            return self.presets[choice]
        return choice or self.inference

    def _run(self, picture: Array, inference: Inference, output: Size, sink: TileSink, watch: _Watch) -> None:
        """Show ``picture`` (H, W, 3) to the network window by window; rows are merged as soon as theirs are done."""
        plan = windows.plan((picture.shape[0], picture.shape[1]), inference)
        planes = np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32)
        head = Head(self.labels.count, self.output_stride, self.labels.flip_pairs)
        merger = Merger(plan, head, output, sink, self._threads)
        queue = windows.gather(planes, plan.windows, self.batch)
        while True:
            with watch("gather"):
                group, pixels = next(queue, (None, None))
            if group is None or pixels is None:
                break
            with watch("engine"):
                answers = self._infer(self._filled(pixels))[: len(group)]
            del pixels
            with watch("merge"):
                for window, logits in zip(group, answers, strict=True):
                    merger.add(window, logits)
                del answers, logits
                merger.work()

    def _filled(self, pixels: Array) -> Array:
        missing = self.batch - len(pixels) if self._full_batches else 0
        return np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.float32)]) if missing else pixels

    def _infer(self, batch: Array) -> Array:
        self._check_open()
        answer = self.engine.run(batch)
        wanted = (len(batch), self.labels.count, *coarse_size((batch.shape[2], batch.shape[3]), self.output_stride))
        if answer.shape != wanted:
            raise EngineError(
                f"the network answers {answer.shape} for an input of {batch.shape}; {self.labels.count} classes "
                f"at stride {self.output_stride} make it {wanted}: the model and the label set do not belong together"
            )
        if not (np.isfinite(answer.min()) and np.isfinite(answer.max())):
            raise EngineError(
                f"the network's answer to an input of {batch.shape} has NaN or infinite values; if the engine is of "
                "low precision, build it again with --precision fp32"
            )
        return answer

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("this segmenter was closed; open it again")

    def close(self) -> None:
        """Close the engine and give its memory back, after a running call; closing twice is harmless."""
        with self._lock:
            self._closed = True
            self.engine.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Collector:
    """Takes the tiles of merged scores and keeps what was asked for."""

    def __init__(
        self,
        size: Size,
        classes: int,
        probabilities: bool,
        inference: Inference,
        points: Sequence[tuple[int, int]] | None,
    ) -> None:
        self.size = (size[0], size[1])
        self.labels: NDArray[np.unsignedinteger] = np.empty(self.size, label_type(classes))
        self.probabilities = np.empty((classes, *self.size), np.float32) if probabilities else None
        self._points = None if points is None else _check_points(points, self.size)
        self.scores = None if self._points is None else np.empty((len(self._points), classes), np.float32)
        self._are_probabilities = inference.softmax_before_resize

    def take(self, rows: slice, columns: slice, tile: Array) -> None:
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


class _Watch:
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
