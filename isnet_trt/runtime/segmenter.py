"""`Segmenter`: an open bundle that turns pictures into label maps."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any, NoReturn

import numpy as np

from isnet_trt.bundle import Bundle, read_bundle
from isnet_trt.cuda.plan import Model
from isnet_trt.engines.base import Engine
from isnet_trt.errors import EngineError, ImageError, InputShapeError
from isnet_trt.forks import OwnerProcess
from isnet_trt.merging.merge import Head, label_type
from isnet_trt.merging.resample import Array
from isnet_trt.pictures.formats import Order
from isnet_trt.pictures.interop import image_from, labels_from
from isnet_trt.pictures.raw import stream_handle
from isnet_trt.runtime.call import Outputs, Request, StageTimer
from isnet_trt.runtime.host import HostRuntime, Runtime
from isnet_trt.runtime.opening import device_name, open_runtime
from isnet_trt.runtime.prefetch import prefetch
from isnet_trt.runtime.segmentation import Segmentation
from isnet_trt.settings import Inference, Labels, NetworkFacts, Preprocess, Size, choose_preset, size_text
from isnet_trt.telemetry import ranges
from isnet_trt.telemetry.stats import About, Recorder, Stats

_log = logging.getLogger(__name__)
Source = Any
"""A picture in any form that `isnet_trt.pictures.interop.image_from` takes: encoded, uint8 (H, W, 3), NV12 or I420."""


class Segmenter:
    """An open engine with its settings.

    One call runs at a time: a second thread that calls meanwhile reads its picture and waits. For parallel work open
    one segmenter per thread or process; after a fork open a new one in the child. Use it as a context manager,
    or call `close`.
    """

    def __init__(
        self,
        engine: Engine,
        labels: Labels,
        preprocess: Preprocess,
        inference: Inference | None = None,
        output_stride: int = 8,
        *,
        network: NetworkFacts | None = None,
        presets: Mapping[str, Inference] | None = None,
        batch: int = 1,
        full_batches: bool = False,
        threads: int | None = None,
        runtime: Runtime | None = None,
        about: About | None = None,
    ) -> None:
        """Around an engine that is already open and now belongs to the segmenter.

        ``output_stride`` is the network's, in pixels, and ``network`` its other properties (default: it gives
        logits, and takes any size); ``batch`` how many windows it sees at once, exactly so many with ``full_batches``
        (what is missing is filled with zeros); ``threads`` how many the merge uses, by default
        all cores that the process may use. ``runtime`` runs the stages around the engine and belongs to the segmenter
        too; by default they run on the host. ``about`` is what `repr` and `stats` say of the segmenter.
        """
        self.engine = engine
        self.labels = labels
        self.preprocess = preprocess
        self.inference = inference or Inference()
        self.output_stride = output_stride
        self.presets = dict(presets or {"default": self.inference})
        self.network = network or NetworkFacts()
        model = Model(Head.of(labels, output_stride, self.network), preprocess, batch, full_batches)
        self.runtime: Runtime = runtime or HostRuntime(engine, model, threads)
        self._palette = np.asarray(labels.palette, np.uint8).reshape(-1, 3)
        self.about = about or About(engine=getattr(engine, "kind", type(engine).__name__), device=device_name(engine))
        ranges.look_for_nvtx()
        self._recorder = Recorder()
        self._owner = OwnerProcess(self)
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        engine: str | None = None,
        preset: str = "default",
        inference: Inference | None = None,
        threads: int | None = None,
        device: object = "auto",
    ) -> Segmenter:
        """Open a bundle (its folder, or as read) with its engine, or with ``engine="onnxruntime"`` on the CPU.

        ``preset`` ("default" or "ms-flip") or ``inference`` say how pictures are shown to the network unless a call
        says otherwise. ``threads`` limits the CPU threads of the engine and of the merge. ``device="cuda"`` with
        ``engine="onnxruntime"`` takes ONNX Runtime's CUDA provider (the package onnxruntime-gpu). Without ``engine``,
        "auto" takes it where it is installed and there is a GPU: for bundles for ONNX Runtime (but those in eight bits)
        and in place of a TensorRT engine that cannot run here. "cuda:N" (or an object with such a text, as
        torch.device) is GPU N as CUDA_VISIBLE_DEVICES counts, for any engine; "cuda" and "auto" take GPU 0. Segmenters
        on several GPUs work side by side, in threads of their own. `description` says what was opened, and why.

        Raises:
            BundleError: the bundle is missing, damaged or too new.
            EngineUnavailable: its engine cannot run here, or there is no such GPU; the message says what can, and
                which GPUs there are.
            SettingsError: the preset or the device is unknown.
        """
        start = time.perf_counter()
        # `open_runtime` checks the content as it reads it.
        opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle, verify=False)
        manifest = opened.manifest
        settings = inference or manifest.preset(preset)
        runtime = open_runtime(opened, engine, threads=threads, device=device)
        model = (manifest.labels, manifest.preprocess, settings, manifest.output_stride)
        about = About(
            engine=runtime.engine.kind,
            device=device_name(runtime.engine),
            bundle=str(opened.folder),
            recipe=manifest.recipe,
            precision=manifest.precision,
            preset=preset if inference is None else inference.describe(),
        )
        presets, network = manifest.presets, manifest.network
        segmenter = cls(runtime.engine, *model, network=network, presets=presets, runtime=runtime, about=about)
        seconds = time.perf_counter() - start
        _log.info("opened %r in %.2f s: %s", segmenter, seconds, segmenter.description, extra={"seconds": seconds})
        return segmenter

    @property
    def batch(self) -> int:
        """How many windows the network sees at once."""
        return self.runtime.batch

    @property
    def description(self) -> str:
        """What runs where, in one line: engine, library, device, and where the stages around the network run."""
        return self.runtime.description

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
            image: an encoded picture: the path of a file, its content (bytes, bytearray, memoryview, any flat uint8
                in host memory), or a binary file object, read from its position to its end. Or uint8 (H, W, 3) in
                any memory layout: a numpy array, an object with the buffer protocol, DLPack or
                ``__cuda_array_interface__``, or a pointer as `isnet_trt.RawImage`. Or the planes that video decoders
                give, as `isnet_trt.NV12` or `isnet_trt.I420`.
            order: channel order of an array: "rgb", "bgr", or with four channels "rgba", "bgra" (alpha is
                ignored); for anything else it has no meaning.
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
        return self._collect(self._submit(image, order, out, stream, inference, probabilities, points))

    def _submit(
        self,
        image: Source,
        order: Order = "rgb",
        out: Any = None,
        stream: Any = None,
        inference: Inference | str | None = None,
        probabilities: bool = False,
        points: Sequence[tuple[int, int]] | None = None,
    ) -> Outputs:
        """Check a call's arguments, read and describe its image, and hand them to the runtime as one request."""
        timer = StageTimer()
        with self._recorded("submit", timer):
            settings = self._inference(inference)
            handle = None if stream is None else stream_handle(stream)
            self._check_open()
            # Not in this call's turn: a file object that stalls would hold up other threads and `close`.
            with timer("read"):
                image = image_from(image, order, stream=handle)
                out_memory = None
                if out is not None:
                    out_memory = labels_from(out, image, label_type(self.labels.count), stream=handle)
            request = Request(image, settings, out, out_memory, handle, probabilities, points, timer)
            try:
                with self._turn():
                    return self.runtime.submit(request)
            except InputShapeError as error:
                raise ImageError(
                    f"an image of {size_text(image.size)} cannot be segmented with {settings.describe()}: {error}. "
                    "Resize the image, use windows and scales whose sizes the engine takes, or build the bundle for "
                    "other sizes"
                ) from None

    def _collect(self, outputs: Outputs) -> Segmentation:
        timer = outputs.timer
        # Without a ticket the outputs are complete: neither the lock nor an open segmenter is needed.
        with self._recorded("collect", timer), self._turn() if outputs.ticket else nullcontext():
            self.runtime.collect(outputs)
        self._recorder.succeeded(timer.elapsed, timer.seconds)
        _log.debug("segmented in %.4f s", timer.elapsed, extra={"stages": timer.seconds})
        # The palette is copied because every array of a result is the caller's own.
        labels, names, palette = outputs.labels, self.labels.names, self._palette.copy()
        return Segmentation(labels, names, palette, outputs.probabilities, outputs.scores, timer.seconds)

    def map(self, images: Iterable[Source], **options: Any) -> Iterator[Segmentation]:
        """Segment one picture after the other, each in any form that a call takes, with the options of a call.

        On a GPU the next picture is read and queued before the label map of one is waited for, so that reading,
        upload, computing and download overlap; not with ``out``, which is written when its picture's turn has come.
        """
        depth = self.runtime.prefetch if options.get("out") is None else 0
        return prefetch(images, lambda image: self._submit(image, **options), self._collect, depth)

    def logits(self, x: Array) -> Array:
        """The network's raw logits (B, K, ceil(H/s), ceil(W/s)) float32 for normalised pictures ``x`` (B, 3, H, W)."""
        with self._turn():
            return self.runtime.infer(np.ascontiguousarray(x, np.float32))

    def score(self, x: Array, output_size: Size, inference: Inference | str | None = None) -> Array:
        """Merged scores (K, *output_size) of an already normalised picture, float32 (1, 3, H, W) or (H, W, 3).

        Means of logits, or of probabilities where the settings say softmax before resize.
        """
        planes = np.ascontiguousarray(x[0] if x.ndim == 4 else x.transpose(2, 0, 1), np.float32)
        scores = np.empty((self.labels.count, *output_size), np.float32)
        settings, head = self._inference(inference), self.runtime.model.head

        def add_tile(rows: slice, columns: slice, tile: Array) -> None:
            scores[:, rows, columns] = head.class_scores(tile, settings)

        with self._turn():
            self.runtime.score(planes, settings, output_size, add_tile, StageTimer())
        return scores

    def stats(self) -> Stats:
        """Calls and failures until now, times as histograms, memory; any thread may ask, also while a call runs.

        Counted are the calls of the segmenter itself and the images of `map`; not `logits` and `score`.

        Raises:
            EngineError: this is a process forked after the segmenter was opened.
        """
        self._owner.check("this segmenter")  # another thread of the parent may hold the recorder's lock for ever
        return self._recorder.stats(self.about, self.runtime.memory)

    @contextmanager
    def _recorded(self, part: str, timer: StageTimer) -> Iterator[None]:
        """Measure a part of a call, and count its failure."""
        start = time.perf_counter()
        try:
            with ranges.annotate(part):
                yield
        except Exception as error:
            if self._owner.is_here:
                self._recorder.failed(error)
            _log.info("call failed: %s", error, extra={"error": type(error).__name__})
            raise
        finally:
            timer.elapsed += time.perf_counter() - start

    def _inference(self, choice: Inference | str | None) -> Inference:
        return choose_preset(self.presets, choice) if isinstance(choice, str) else choice or self.inference

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let one call run at a time, in the process that opened the segmenter, until it is closed."""
        self._check_open()  # before the lock too: in a forked child a thread of the parent may hold it for ever
        with self._lock:
            self._check_open()
            yield

    def _check_open(self) -> None:
        self._owner.check("this segmenter")
        if self._closed:
            raise EngineError("this segmenter was closed; open it again")

    def close(self) -> None:
        """Close the engine and give its memory back, after a running call; closing twice is harmless.

        In a forked child nothing happens: engine and device are the parent's.
        """
        if not self._owner.is_here:
            return
        with self._lock:
            self._closed = True
            self.runtime.close()

    def __repr__(self) -> str:
        values = [f"{name}={value!r}" for name, value in asdict(self.about).items() if value]
        return f"<Segmenter {' '.join(values)}{' closed' * self._closed}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Segmenter cannot be pickled or sent to another process: send the bundle's path and open it there"
        )

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
