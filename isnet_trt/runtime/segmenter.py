"""`Segmenter`: an open bundle that turns pictures into label maps."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from isnet_trt.bundle import read_bundle
from isnet_trt.cuda.pipeline import Pipeline, Ticket
from isnet_trt.cuda.plan import Model
from isnet_trt.engines.base import Engine
from isnet_trt.engines.cores import usable_cores
from isnet_trt.engines.select import Placement
from isnet_trt.errors import EngineError, SettingsError
from isnet_trt.forks import Home
from isnet_trt.merging import windows
from isnet_trt.merging.geometry import coarse_size
from isnet_trt.merging.merge import Head, Merger, TileSink, label_type
from isnet_trt.pictures.interop import RawImage, RawLabels, check_apart, image_from, labels_from, stream_handle
from isnet_trt.pictures.preprocess import Order, normalise, resize
from isnet_trt.runtime.ahead import in_turn
from isnet_trt.runtime.collector import Collector, Watch
from isnet_trt.runtime.opening import open_runtime
from isnet_trt.runtime.segmentation import Segmentation
from isnet_trt.settings import Inference, Labels, Preprocess, Size

Array = NDArray[np.float32]
Described = TypeVar("Described", RawImage, RawLabels)
Source = Any
"""A picture: the path of a file, uint8 (H, W, 3) in any form that `isnet_trt.pictures.interop.image_from` takes."""


@dataclass
class _Going:
    """A call whose work is queued on the GPU."""

    ticket: Ticket
    out: Any
    watch: Watch


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
        pipeline: Pipeline | None = None,
        host_reason: str = "",
    ) -> None:
        """Around an engine that is already open and now belongs to the segmenter.

        ``output_stride`` is the network's, in pixels; ``batch`` how many windows it sees at once, exactly so many
        with ``full_batches`` (what is missing is filled with zeros); ``threads`` how many the merge uses, by default
        all cores that the process may use. ``pipeline``, which belongs to the segmenter too, does everything around
        the engine on the GPU; without it that runs on the host, for the reason ``host_reason``.
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
        self._pipeline = pipeline
        self._host_reason = host_reason
        self._palette = np.asarray(labels.palette, np.uint8).reshape(-1, 3)
        self._home = Home(self)
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
        device: Placement = "auto",
    ) -> Segmenter:
        """Open a bundle with the engine it was built for, or with ``engine="onnxruntime"`` on the CPU.

        ``preset`` ("default" or "ms-flip") or ``inference`` say how pictures are shown to the network unless a call
        says otherwise. ``threads`` limits the CPU threads of the engine and of the merge. ``device="cuda"`` with
        ``engine="onnxruntime"`` takes ONNX Runtime's CUDA provider (the package onnxruntime-gpu) on a machine without
        TensorRT; "auto" never does. `description` says what was opened.

        Raises:
            BundleError: the bundle is missing, damaged or too new.
            EngineUnavailable: its engine cannot run here; the message says what can.
            SettingsError: the preset is unknown.
        """
        opened = read_bundle(bundle)
        manifest = opened.manifest
        chosen = inference or manifest.preset(preset)
        built_for = manifest.engine.shapes if engine in (None, manifest.engine.kind) else ()
        head = Head(manifest.labels.count, manifest.output_stride, manifest.labels.flip_pairs)
        batch, full = built_for[1][0] if built_for else 1, bool(built_for) and built_for[0][0] > 1
        model = Model(head, manifest.preprocess, batch, full)
        runtime = open_runtime(opened, engine, model, threads=threads, device=device)
        return cls(
            runtime.engine,
            manifest.labels,
            manifest.preprocess,
            chosen,
            manifest.output_stride,
            presets=manifest.presets,
            batch=batch,
            full_batches=full,
            threads=threads,
            pipeline=runtime.pipeline,
            host_reason=runtime.reason,
        )

    @property
    def description(self) -> str:
        """What runs where, in one line: engine, library, device, and where the stages around the network run."""
        if self._pipeline is not None:
            return f"{self.engine.description}; all stages on the GPU, {self._pipeline.description}"
        reason = f" ({self._host_reason})" if self._host_reason else ""
        return f"{self.engine.description}; all other stages on the host{reason}"

    def __call__(
        self,
        image: Source,
        *,
        order: Order = "rgb",
        out: Any = None,
        stream: Any = None,
        inference: Inference | str | None = None,
        probabilities: bool = False,
        points: Sequence[tuple[int, int]] | None = None,
    ) -> Segmentation:
        """Segment one picture.

        Args:
            image: the path of a file, or uint8 (H, W, 3) in any memory layout: a numpy array, an object with the
                buffer protocol, DLPack or ``__cuda_array_interface__``, or a pointer as `isnet_trt.RawImage`.
            order: channel order of an array: "rgb", "bgr", or with four channels "rgba", "bgra" (alpha is passed
                over); for a file or a `RawImage` it has no meaning.
            out: where the label map is to be written, uint8 (uint16 above 256 classes) of the picture's size: any
                of the same objects, or `isnet_trt.RawLabels`. After an error its content is undefined.
            stream: the caller's CUDA stream (a handle, or an object with ``__cuda_stream__``) where the segmenter works
                in GPU memory: what is queued there is waited for, and what is queued there later finds ``out``
                written. The call itself returns when the label map is done.
            inference: settings, or the name of a preset, for this call instead of the segmenter's.
            probabilities: also return (K, H, W) probabilities; they take 4·K·H·W bytes.
            points: (row, column) pixels at which the class scores are wanted. These two are merged on the host,
                wherever the network runs.

        Raises:
            ImageError: the image cannot be segmented; the message says why.
            SettingsError: a setting, ``out`` or ``stream`` cannot be used.
            EngineError: the engine failed, the segmenter was closed, or this is a process forked after it was opened.
        """
        return self._finish(self._begin(image, order, out, stream, inference, probabilities, points))

    def _begin(
        self,
        image: Source,
        order: Order = "rgb",
        out: Any = None,
        stream: Any = None,
        inference: Inference | str | None = None,
        probabilities: bool = False,
        points: Sequence[tuple[int, int]] | None = None,
    ) -> Segmentation | _Going:
        """All of a call on the host; on the GPU everything is queued, and `_finish` waits for it."""
        chosen, watch = self._inference(inference), Watch()
        handle = self._stream_of(stream)
        with self._held():
            with watch("read"):
                described = self._in_reach(image_from(image, order, stream=handle), "the image")
                target = self._target(out, described, handle)
            if self._pipeline is not None and not probabilities and points is None:
                with watch("queue"):
                    return _Going(self._pipeline.submit(described, chosen, target, handle), out, watch)
            labels = None if target is None else self._in_host_memory(target).array()
            result = Collector(described.size, self.labels.count, probabilities, chosen, points, labels)
            if self._pipeline is not None:
                self._merge(self._pipeline, described, chosen, result, watch, handle)
            else:
                with watch("resize"):
                    picture = normalise(resize(described.rgb(), self.preprocess), self.preprocess)
                self._run(picture, chosen, result.size, result.take, watch)
        return self._segmentation(result.labels, watch, result.probabilities, result.scores)

    def _finish(self, begun: Segmentation | _Going) -> Segmentation:
        """The answer of a call that was begun."""
        if isinstance(begun, Segmentation):
            return begun
        with self._held(), begun.watch("gpu"):
            assert self._pipeline is not None
            labels = self._pipeline.collect(begun.ticket)
        return self._segmentation(begun.out if labels is None else labels, begun.watch)

    def _segmentation(
        self, labels: Any, watch: Watch, probabilities: Array | None = None, scores: Array | None = None
    ) -> Segmentation:
        return Segmentation(labels, self.labels.names, self._palette.copy(), probabilities, scores, watch.seconds)

    def _stream_of(self, stream: Any) -> int | None:
        """The caller's stream as a handle, refused where nothing would wait for it."""
        if stream is None:
            return None
        handle = stream_handle(stream)
        if self._pipeline is None:
            raise SettingsError(
                f"stream ({handle:#x}) is for segmenters that work in GPU memory; {self.description}: leave stream out"
            )
        return handle

    def _in_reach(self, described: Described, what: str) -> Described:
        """Refuse memory that the segmenter cannot use."""
        if described.on_host or (self._pipeline is not None and described.device_index == 0):
            return described
        if self._pipeline is not None:
            raise SettingsError(f"{what} is in the memory of {described.device}, but this segmenter works on GPU 0")
        raise SettingsError(
            f"{what} is in the memory of {described.device}, but {self.engine.description} takes its pictures "
            "from the host: copy it there first, or open a bundle whose engine works in GPU memory"
        )

    def _in_host_memory(self, described: RawLabels) -> RawLabels:
        if not described.on_host:
            raise SettingsError(
                "probabilities and points are merged on the host: pass out in host memory, or leave them out"
            )
        return described

    def _target(self, out: Any, image: RawImage, stream: int | None) -> RawLabels | None:
        """The caller's label map, checked against the picture."""
        if out is None:
            return None
        described = labels_from(out, image.size, label_type(self.labels.count), stream=stream)
        check_apart(image, self._in_reach(described, "out"))
        return described

    def map(self, images: Iterable[Source], **options: Any) -> Iterator[Segmentation]:
        """Segment one picture after the other, with the options of a call.

        On a GPU the next picture is read and queued before the answer to one is waited for, so that reading, upload,
        computing and download overlap; not with ``out``, which is written when its picture's answer is given.
        """
        ahead = 1 if self._pipeline is not None and options.get("out") is None else 0
        return in_turn(images, lambda image: self._begin(image, **options), self._finish, ahead)

    def logits(self, x: Array) -> Array:
        """The network's raw logits (B, K, ceil(H/s), ceil(W/s)) float32 for normalised pictures ``x`` (B, 3, H, W)."""
        with self._held():
            return self._infer(np.ascontiguousarray(x, np.float32))

    def score(self, x: Array, output_size: Size, inference: Inference | str | None = None) -> Array:
        """Merged scores (K, *output_size) of an already normalised picture, float32 (1, 3, H, W) or (H, W, 3).

        Means of logits, or of probabilities where the settings say softmax before resize.
        """
        picture = x[0].transpose(1, 2, 0) if x.ndim == 4 else x
        scores = np.empty((self.labels.count, *output_size), np.float32)

        def take(rows: slice, columns: slice, tile: Array) -> None:
            scores[:, rows, columns] = tile

        with self._held():
            self._run(picture, self._inference(inference), output_size, take, Watch())
        return scores

    def _inference(self, choice: Inference | str | None) -> Inference:
        if isinstance(choice, str):
            if choice not in self.presets:
                raise SettingsError(f"preset {choice!r} is unknown; there are: {', '.join(self.presets)}")
            return self.presets[choice]
        return choice or self.inference

    def _run(self, picture: Array, inference: Inference, output: Size, sink: TileSink, watch: Watch) -> None:
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

    def _merge(
        self,
        pipeline: Pipeline,
        image: RawImage,
        inference: Inference,
        result: Collector,
        watch: Watch,
        stream: int | None,
    ) -> None:
        """The network on the GPU, and its answers merged on the host, where their scores are wanted."""
        head = Head(self.labels.count, self.output_stride, self.labels.flip_pairs)
        plan = pipeline.plan(image.size, inference).queue
        merger = Merger(plan, head, result.size, result.take, self._threads)
        with watch("gpu"):
            answers = pipeline.coarse(image, inference, stream)
        with watch("merge"):
            for window, logits in answers:
                merger.add(window, logits)
                merger.work()

    def _filled(self, pixels: Array) -> Array:
        missing = self.batch - len(pixels) if self._full_batches else 0
        return np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.float32)]) if missing else pixels

    def _infer(self, batch: Array) -> Array:
        if self._pipeline is not None:
            self._pipeline.wait()  # the engine's two forms share memory
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

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The turn of one call."""
        self._home.check("this segmenter")  # before the lock: another thread of the parent may hold it for ever
        with self._lock:
            if self._closed:
                raise EngineError("this segmenter was closed; open it again")
            yield

    def close(self) -> None:
        """Close the engine and give its memory back, after a running call; closing twice is harmless.

        In a forked child nothing happens: engine and device are the parent's.
        """
        if not self._home.is_here:
            return
        with self._lock:
            self._closed = True
            try:
                if self._pipeline is not None:
                    self._pipeline.close()
            finally:
                self.engine.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Segmenter cannot be pickled or sent to another process: send the bundle's path and open it there"
        )

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
