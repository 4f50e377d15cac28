"""A pipeline on host memory: kernels that run on addresses and a real network, queued on the doubles' streams.

The kernels are the real ones in Triton's interpreter (tests/kernels/variants.py) or, where label maps are
not the point, their plain references (`ReferenceKernels`), which are a thousand times faster.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes  # noqa: F401  # numpy's bfloat16
import numpy as np
import tiny_model
from cuda_double import Gpu, open_device

from isnet_trt import Inference, Segmenter
from isnet_trt.cuda.element_types import ELEMENT_TYPES
from isnet_trt.cuda.kernel_specs import bundle_kernels
from isnet_trt.cuda.pipeline import Pipeline
from isnet_trt.cuda.plan import Model
from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.engines.onnxruntime_cpu import SessionEngine
from isnet_trt.errors import EngineError
from isnet_trt.merging.merge import Head
from isnet_trt.pictures.interop import image_from
from isnet_trt.pictures.preprocess import normalise, resize
from isnet_trt.runtime.gpu import GpuRuntime
from isnet_trt.settings import NetworkFacts, Preprocess

RULE = Preprocess((60, 24))
WHOLE = Inference()
MARGIN = 1e-4
"""Lead of the best score, in standard deviations, below which float32 sums in another order may choose the other."""


EXACT = Preprocess((24, 28), keep_ratio=False)
SLIDE = Inference("slide", (16, 24), (11, 16))
BGR = Preprocess(None, channel_order="bgr")
PADDED = NetworkFacts("sigmoid", size_multiple=16, padding_value=(10, 200, 90))
ONE_CLASS = NetworkFacts(threshold=0.45, size_multiple=8)
CASES = {
    "whole": ((33, 47), Inference(), {}),
    "whole-scales": ((21, 33), Inference(scales=(0.5, 1.25)), {}),
    "whole-flip": ((26, 41), Inference(flip=True), {}),
    "whole-scales-flip-probabilities": (
        (26, 41), Inference(scales=(0.75, 1.5), flip=True, softmax_before_resize=True), {"batch": 3}
    ),
    "slide": ((40, 47), SLIDE, {"batch": 3, "band_bytes": 40_000}),
    "slide-scales-flip-pairs": (
        (17, 24), SLIDE.replace(scales=(0.75, 1.25), flip=True), {"batch": 3, "full": True, "band_bytes": 20_000}
    ),
    "slide-probabilities": ((40, 33), SLIDE.replace(softmax_before_resize=True), {"batch": 2}),
    "smaller-than-the-window": ((9, 13), SLIDE.replace(flip=True), {"rule": Preprocess((13, 9)), "batch": 3}),
    "portrait": ((33, 20), SLIDE.replace(scales=(0.5, 1.0)), {"batch": 4}),
    "exact-size-stride-4": (
        (31, 22), Inference(flip=True), {"rule": EXACT, "stride": 4, "classes": 20, "pairs": ((14, 15), (16, 17))}
    ),
    "many-classes": ((9, 13), Inference(), {"classes": 260, "rule": Preprocess((26, 18))}),
    "many-classes-flip": ((6, 11), Inference(flip=True), {"classes": 260, "rule": Preprocess((17, 9))}),
    "bgr-padded-sigmoid": ((23, 31), SLIDE.replace(flip=True), {"rule": BGR, "batch": 3, "network": PADDED}),
    "one-class-padded-probabilities": (
        (21, 30), Inference(scales=(0.75, 1.25), flip=True, softmax_before_resize=True),
        {"rule": BGR, "classes": 1, "stride": 4, "network": ONE_CLASS},
    ),
    "one-class": ((21, 33), Inference(), {"classes": 1, "network": NetworkFacts(threshold=0.4)}),
    "enlarged": ((20, 31), Inference(scales=(0.8, 1.3)), {"network": NetworkFacts(upsampling="half_pixel")}),
    "aligned": ((20, 31), SLIDE, {"network": NetworkFacts(upsampling="align_corners", size_multiple=8)}),
    "full-size-padded": ((13, 22), WHOLE, {"stride": 1, "rule": BGR, "network": NetworkFacts(size_multiple=16)}),
}  # fmt: skip
"""Name -> size of the picture, settings, and options of `Form`."""


class ReferenceKernels:
    """The kernels' plain numpy references on host addresses, by their names."""

    def __init__(self, classes: int, logits: str = "fp32") -> None:
        self.specs = {spec.name: spec for spec in bundle_kernels(86, ("fp32",), classes, padded=True, logits=logits)}

    def launch(self, name: str, stream: int, **arguments: Any) -> None:
        kernel, *kind = re.split("_(fp32|fp16|bf16)", name)
        getattr(self, "_" + kernel)(SimpleNamespace(**arguments, kind=kind[0] if kind else ""))

    @staticmethod
    def _picture(address: int, height: int, width: int, a: Any) -> np.ndarray:
        rows = at(address, np.uint8, (height - 1) * a.pitch + width * a.pixel)
        shape, strides = (height, width, a.pixel), (a.pitch, a.pixel, 1)
        pixels = np.lib.stride_tricks.as_strided(rows, shape, strides)[:, :, :3]
        return np.ascontiguousarray(pixels[:, :, ::-1] if a.bgr else pixels)

    def _resize(self, a: Any) -> None:
        from isnet_trt.kernels import gather_windows

        source = self._picture(a.source, a.source_height, a.source_width, a)
        result = gather_windows.resize_reference(source, a.height, a.width)
        at(a.picture, np.uint8, a.height, a.width, 3)[...] = result

    def _yuv_resize(self, a: Any) -> None:
        from isnet_trt.kernels import yuv_resize

        size = a.source_height // 2, a.source_width // 2
        luma = at(a.source, np.uint8, a.source_height, a.pitch)[:, : a.source_width]
        strides = (a.chroma_pitch, a.chroma_step)
        last = (size[0] - 1) * a.chroma_pitch + (size[1] - 1) * a.chroma_step + 1
        chroma = (at(a.source + offset, np.uint8, last) for offset in (a.u, a.v))
        u, v = (np.lib.stride_tricks.as_strided(plane, size, strides) for plane in chroma)
        factors = (a.offset, a.yy, a.rv, a.gu, a.gv, a.bu)
        rgb = yuv_resize.reference(luma, u, v, factors, a.height, a.width)
        at(a.picture, np.uint8, a.height, a.width, 3)[...] = rgb

    def _gather(self, a: Any) -> None:
        at(a.out, np.float32, a.batch, 3, a.height, a.width)[...] = self._windows(a, a.height, a.width)

    def _gather_padded(self, a: Any) -> None:
        out = at(a.out, np.float32, a.batch, 3, a.height, a.width)
        out[...] = at(a.table + 4 * 768, np.float32, 3)[:, None, None]
        out[:, :, : a.window_height, : a.window_width] = self._windows(a, a.window_height, a.window_width)

    def _windows(self, a: Any, height: int, width: int) -> np.ndarray:
        from isnet_trt.kernels import gather_windows

        picture = self._picture(a.picture, a.picture_height, a.picture_width, a)
        tables = (
            at(a.table, np.float32, 3, 256),
            at(a.windows, np.int32, a.batch, 4),
            at(a.steps, np.float32, a.batch),
        )
        return gather_windows.gather_reference(picture, *tables, height, width)

    def _finite(self, a: Any) -> None:
        from isnet_trt.kernels import finite

        at(a.flag, np.int32, a.at + 1)[a.at] |= finite.reference(numbers(a.kind, a.values, a.count))

    def _accumulate(self, a: Any) -> None:
        from isnet_trt.kernels import accumulate

        windows = at(a.windows, np.int32, a.count, 4)
        slots = int(windows[:, 0].max()) + 1
        logits = numbers(a.kind, a.logits, slots, a.classes, a.coarse_height, a.coarse_width)
        height = max(int(windows[:, 1].max()) + a.window_height, a.first_row + a.rows)
        swap, window = at(a.swap, np.int32, a.classes), (a.window_height, a.window_width)
        size = (height, a.width)
        aligned = min(a.step_y, a.step_x) < 0
        sides = zip((a.coarse_height, a.coarse_width), (a.step_y, a.step_x), window, strict=True)
        # A step of 0 is that of one sample, which is the same at every pixel.
        padded = tuple(round((n - aligned) / abs(step)) + aligned if step else side for n, step, side in sides)
        result = accumulate.reference(logits, windows, swap, a.plain, size, window, bool(a.softmax), padded, aligned)
        volume = at(a.volume, np.float32, a.classes, a.rows, a.width)
        volume[...] = result[:, a.first_row : a.first_row + a.rows]

    _accumulate_tiles = _accumulate

    def _finish(self, a: Any) -> None:
        self._largest(a, *self._volumes(a, a.classes), a.first_row, a.rows, int(a.passes))

    def _threshold(self, a: Any) -> None:
        from isnet_trt.kernels import finish

        volumes, size = self._volumes(a, 1)
        rows = slice(a.first_row, a.first_row + a.rows)
        with np.errstate(invalid="ignore"):
            scores = finish.reference(volumes, size, int(a.passes))[0, rows]
        at(a.labels, np.uint8, rows.stop, a.pitch)[rows, : a.width] = scores > a.limit

    @staticmethod
    def _volumes(a: Any, classes: int) -> tuple[list[np.ndarray], tuple[int, int]]:
        """Whole volumes of a merge, and the size of its label map."""
        volumes = []
        offsets, sizes = at(a.offsets, np.int64, a.count), at(a.sizes, np.int32, a.count, 4)
        for offset, (first, present, height, width) in zip(offsets, sizes, strict=True):
            whole = np.full((classes, height, width), np.nan)  # rows that are not there must not be needed
            begin = a.volumes + ELEMENT_TYPES[a.kind].size * int(offset)
            whole[:, first : first + present] = numbers(a.kind, begin, classes, present, width)
            volumes.append(whole)
        # The height of the label map is that which the steps were made for.
        height = round(float(sizes[0, 2]) / float(at(a.steps, np.float32, 2)[0]))
        return volumes, (height, a.width)

    def _upsample_argmax(self, a: Any) -> None:
        logits = numbers(a.kind, a.logits, a.classes, a.coarse_height, a.coarse_width)
        self._largest(a, [logits], (a.height, a.width), 0, a.height, 1)

    @staticmethod
    def _largest(a: Any, volumes: list[np.ndarray], size: Any, first: int, rows: int, passes: int) -> None:
        from isnet_trt.kernels import finish

        with np.errstate(invalid="ignore"):
            scores = finish.reference(volumes, size, passes)[:, first : first + rows]
        kind = np.uint8 if a.classes <= 256 else np.uint16
        labels = at(a.labels, kind, first + rows, a.pitch)
        labels[first:, : a.width] = scores.argmax(axis=0)


class QueuedKernels:
    """Kernels on host addresses that run when their stream does, and touch device memory only."""

    def __init__(self, gpu: Gpu, host: Any) -> None:
        self.gpu = gpu
        self.host = host
        self.launched: list[str] = []
        self.missing: set[str] = set()

    def __contains__(self, name: object) -> bool:
        return name in self.host.specs and name not in self.missing

    def launch(self, name: str, stream: int, **arguments: Any) -> None:
        self.launched.append(name)
        types = self.host.specs[name].arguments
        assert set(arguments) == set(types)
        self.gpu.check_memory(*(arguments[argument] for argument, kind in types.items() if kind.startswith("*")))

        def run() -> None:
            for argument, kind in types.items():
                if kind.startswith("*"):
                    self.gpu.check_range(arguments[argument], 1)
            self.host.launch(name, stream, **arguments)

        self.gpu.put(stream, run)


class HostEngine:
    """ONNX Runtime on the addresses it is given, as a device engine."""

    def __init__(self, gpu: Gpu, path: Path, classes: int, stride: int, not_capturable: str = "") -> None:
        self.gpu = gpu
        self.engine = open_onnx(path, threads=1)
        self.output_type = self.engine.output_type
        self.classes, self.stride = classes, stride
        self.not_capturable = not_capturable
        self.shapes: list[tuple[int, ...]] = []
        self.kept: list[frozenset] = []
        self.gain = 1.0

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(self.engine, SessionEngine):
            self.engine._open(shape)  # refuses a shape as ONNX Runtime's engine on a GPU does
        return shape[0], self.classes, -(-shape[2] // self.stride), -(-shape[3] // self.stride)

    def enqueue(self, input_address: int, output_address: int, shape: tuple[int, ...], stream: int) -> None:
        assert input_address % 256 == 0
        assert output_address % 256 == 0
        self.shapes.append(shape)
        self.gpu.check_memory(input_address, output_address)

        def run() -> None:
            out = self.output_shape(shape)
            self.gpu.check_range(input_address, 4 * int(np.prod(shape)))
            kind = ELEMENT_TYPES[self.output_type]
            self.gpu.check_range(output_address, kind.size * int(np.prod(out)))
            logits = self.engine.run(np.ascontiguousarray(at(input_address, np.float32, *shape)))
            at(output_address, np.dtype(kind.numpy), *out)[...] = logits * np.float32(self.gain)

        self.gpu.put(stream, run)

    def no_graph(self, shapes: frozenset, stream: int) -> str:
        assert shapes <= set(self.shapes)
        return self.not_capturable

    def keep(self, shapes: frozenset) -> None:
        self.kept.append(shapes)

    def fail(self, *arguments: Any) -> None:
        raise EngineError("the engine failed")


def numbers(kind: str, address: int, *shape: int) -> np.ndarray:
    """The array of elements of ``kind`` that lies at ``address``, in float32."""
    return at(address, np.dtype(ELEMENT_TYPES[kind].numpy), *shape).astype(np.float32, copy=False)


def at(address: int, kind: Any, *shape: int) -> np.ndarray:
    """The array that lies at ``address``."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), kind).reshape(shape)


def open_pipeline(
    gpu: Gpu, path: Path, model: Model, kernels: Any, not_capturable: str = "", index: int = 0
) -> tuple[Pipeline, QueuedKernels, HostEngine]:
    """Around the network of ``path``; ``kernels`` run on host addresses."""
    queued = QueuedKernels(gpu, kernels)
    engine = HostEngine(gpu, path, model.head.classes, model.head.stride, not_capturable)
    return Pipeline(open_device(gpu, index=index), queued, engine, model), queued, engine


class Form:
    """A network with its host segmenter and its pipeline on a GPU that is host memory."""

    def __init__(
        self,
        folder: Path,
        kernels: Callable[[int], Any],
        classes: int = 5,
        stride: int = 8,
        pairs: tuple[tuple[int, int], ...] = ((1, 2),),
        rule: Preprocess = RULE,
        batch: int = 1,
        full: bool = False,
        network: NetworkFacts | None = None,
        logits: str = "fp32",
        **options: Any,
    ) -> None:
        self.path = folder / f"net{classes}.onnx"
        facts = network or NetworkFacts()
        tiny_model.write_model(self.path, classes, stride=stride, activation=facts.activation, logits=logits)
        self.rule = rule
        labels = tiny_model.labels(max(classes, 2), pairs if classes > 1 else ())
        engine = open_onnx(self.path, threads=1)
        self.host = Segmenter(engine, labels, rule, output_stride=stride, threads=1, network=facts)
        self.model = Model(Head.of(labels, stride, facts), rule, batch, full, **options)
        self.gpu = Gpu()
        self.host_kernels = kernels(classes)

    def open(self, not_capturable: str = "") -> None:
        result = open_pipeline(self.gpu, self.path, self.model, self.host_kernels, not_capturable)
        self.pipeline, self.kernels, self.engine = result

    def __enter__(self) -> Form:
        self.open()
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self.pipeline.close()
        self.pipeline.close()
        if kind is None:
            self.gpu.nothing_is_left()

    def run(self, picture: np.ndarray, inference: Inference = WHOLE) -> None:
        """A picture through the pipeline, and its label map checked."""
        self.check(picture, self.pipeline(image_from(picture), inference), inference)

    def check(self, picture: np.ndarray, result: Any, inference: Inference = WHOLE) -> None:
        """Equal to the host's wherever one class leads clearly, and nearly everywhere."""
        expected = self.host(picture, inference=inference).labels
        scores = self.host.score(normalise(resize(picture, self.rule), self.rule), picture.shape[:2], inference)
        best = np.partition(scores, -2, axis=0)[-2:]
        lead = best[1] - best[0]
        if self.model.head.network.threshold is not None:
            lead = abs(scores[1] - self.model.head.limit(inference))
        clear = lead > MARGIN * scores.std()
        assert result.dtype == expected.dtype
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(result[clear], expected[clear])
        assert (result == expected).mean() >= 0.999
        assert len(np.unique(expected)) > 1


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth enough that its label map is not all noise, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3)).repeat(4, 0).repeat(4, 1)[:height, :width]
    return np.clip(coarse + rng.integers(-40, 40, (height, width, 3)), 0, 255).astype(np.uint8)


CLASSES, PAIRS = 5, ((1, 2),)
MOST = SLIDE.replace(scales=(0.75, 1.25), flip=True, softmax_before_resize=True)
PRESETS = {"default": Inference(), "ms-flip": MOST}


class Pair:
    """The same network in a segmenter on the host and in one on device ``index`` of a machine that is host memory."""

    def __init__(
        self,
        folder: Path,
        gpu: Gpu | None = None,
        index: int = 0,
        rule: Preprocess = RULE,
        size: tuple[int | str, int | str] = ("height", "width"),
    ) -> None:
        path = folder / "net.onnx"
        tiny_model.write_model(path, CLASSES, size=size)
        labels = tiny_model.labels(CLASSES, PAIRS)
        self.host = Segmenter(open_onnx(path, threads=1), labels, rule, presets=PRESETS, threads=1)
        self.gpu = gpu or Gpu()
        model, kernels = Model(Head(CLASSES, 8, PAIRS), rule), ReferenceKernels(CLASSES)
        self.pipeline, self.kernels, self.engine = open_pipeline(self.gpu, path, model, kernels, index=index)
        self.engine.kind, self.engine.description = "double", "an engine"
        self.engine.run = self.engine.engine.run
        self.engine.close = self.engine.engine.close
        runtime = GpuRuntime(self.engine, self.pipeline, threads=1)
        self.segmenter = Segmenter(self.engine, labels, rule, presets=PRESETS, runtime=runtime)
