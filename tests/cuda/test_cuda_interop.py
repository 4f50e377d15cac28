"""GPU memory of the caller, by every protocol and on any stream, through a segmenter on a GPU that is host memory.

The doubles' streams run as late as they can: what is not waited for is read as poison or overwritten too early.
"""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_double import Stream
from cuda_host import Pair, picture
from dlpack_producer import CudaArray, Tensor
from forked import in_child, needs_fork

from isnet_trt import RawImage, RawLabels, Segmenter, embed
from isnet_trt.errors import EngineError

SIZE = HEIGHT, WIDTH = 31, 44
LEGACY = 1
"""The legacy default stream's handle."""


@pytest.fixture
def pair(tmp_path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    made.gpu.streams[LEGACY] = Stream(made.gpu)
    yield made
    made.segmenter.close()
    del made.gpu.streams[LEGACY]
    made.gpu.nothing_is_left()


class Caller:
    """Somebody else's code on the same GPU: its memory, its stream, its work."""

    def __init__(self, pair: Pair) -> None:
        self.device = pair.pipeline.device
        with self.device:
            self.stream = self.device.create_stream()
            self._event = self.device.create_event()

    def memory(self, rows: int, pitch: int) -> np.ndarray:
        """Device memory, as the array that no CPU could see."""
        with self.device:
            address = self.device.allocate(rows * pitch)
        return np.frombuffer((ctypes.c_uint8 * (rows * pitch)).from_address(address), np.uint8).reshape(rows, pitch)

    def write(self, memory: np.ndarray, pixels: np.ndarray) -> None:
        """Queue the rows of ``pixels`` to ``memory``; nothing is waited for."""
        with self.device:
            staging = self.device.allocate_staging(memory.size)
            staging.reshape(memory.shape)[:, : pixels[0].size] = pixels.reshape(len(pixels), -1)
            self.device.copy(memory.ctypes.data, staging.ctypes.data, memory.size, self.stream)

    def read(self, memory: np.ndarray) -> np.ndarray:
        """What work queued now on the caller's stream finds in ``memory``."""
        with self.device:
            staging = self.device.allocate_staging(memory.size)
            self.device.copy(staging.ctypes.data, memory.ctypes.data, memory.size, self.stream)
            self.device.synchronize(self.stream)
        return staging.reshape(memory.shape).copy()

    def order(self, first: int, then: int) -> None:
        """Let ``then`` wait for ``first``."""
        with self.device:
            self.device.record(self._event, first)
            self.device.wait_event(then, self._event)


class OrderedTensor(Tensor):
    """As a library of tensors does it: the consumer's stream is made to wait for the producer's."""

    def __init__(self, array: np.ndarray, caller: Caller) -> None:
        super().__init__(array)
        self.caller = caller

    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None) -> Any:
        assert stream is not None
        self.caller.order(self.caller.stream, stream)
        return super().__dlpack__(stream=stream, max_version=max_version)


def pixels_of(memory: np.ndarray, channels: int = 3) -> np.ndarray:
    """The picture in rows with padding."""
    return np.lib.stride_tricks.as_strided(memory, (*SIZE, channels), (memory.shape[1], channels, 1))


# How a picture whose writing is queued on the caller's stream is handed over: memory -> image and options of the call.
WAYS: dict[str, Callable[[np.ndarray, Caller], tuple[Any, dict[str, Any]]]] = {
    "DLPack": lambda m, c: (OrderedTensor(pixels_of(m), c), {}),
    "DLPack, a stream": lambda m, c: (OrderedTensor(pixels_of(m), c), {"stream": c.stream}),
    "CUDA array interface": lambda m, c: (CudaArray(pixels_of(m), stream=c.stream), {}),
    "CUDA array interface 2, a stream": lambda m, c: (CudaArray(pixels_of(m), version=2), {"stream": c.stream}),
    "pointer": lambda m, c: (raw(m, stream=c.stream), {}),
    "pointer, an object with a stream": lambda m, c: (
        raw(m),
        {"stream": SimpleNamespace(__cuda_stream__=lambda: (0, c.stream))},
    ),
}


def raw(memory: np.ndarray, **options: Any) -> RawImage:
    return RawImage(memory.ctypes.data, *SIZE, memory.shape[1], device="cuda", **options)


@pytest.mark.parametrize("way", WAYS)
def test_pictures_that_are_still_being_written(way, pair):
    caller = Caller(pair)
    memory = caller.memory(HEIGHT, 3 * WIDTH + 20)
    for seed in range(3):  # step by step, captured, replayed
        image = picture(*SIZE, seed)
        caller.write(memory, image)
        source, options = WAYS[way](memory, caller)
        assert (pair.segmenter(source, **options).labels == pair.host(image).labels).mean() > 0.999


@pytest.mark.parametrize("order", ["bgr", "rgba", "bgra"])
def test_channel_orders_of_the_gpu(order, pair):
    caller, image = Caller(pair), picture(*SIZE)
    channels = ["rgb".find(channel) for channel in order]
    memory = caller.memory(HEIGHT, len(order) * WIDTH + 7)
    caller.write(memory, np.dstack([image, image[..., :1]])[:, :, channels])
    source = CudaArray(pixels_of(memory, len(order)), stream=caller.stream)
    assert (pair.segmenter(source, order=order).labels == pair.host(image).labels).mean() > 0.999


OUTPUTS: dict[str, Callable[[np.ndarray, Caller], tuple[Any, dict[str, Any]]]] = {
    "DLPack": lambda m, c: (OrderedTensor(m[:, :WIDTH], c), {}),
    "DLPack, a stream": lambda m, c: (OrderedTensor(m[:, :WIDTH], c), {"stream": c.stream}),
    "CUDA array interface": lambda m, c: (CudaArray(m[:, :WIDTH], stream=c.stream), {}),
    "pointer": lambda m, c: (labels_at(m, stream=c.stream), {}),
    "pointer, a stream": lambda m, c: (labels_at(m), {"stream": c.stream}),
}


def labels_at(memory: np.ndarray, **options: Any) -> RawLabels:
    return RawLabels(memory.ctypes.data, *SIZE, memory.shape[1], device="cuda", **options)


@pytest.mark.parametrize("way", OUTPUTS)
def test_label_maps_in_memory_that_is_still_in_use(way, pair):
    caller, image = Caller(pair), picture(*SIZE)
    memory = caller.memory(HEIGHT, WIDTH + 13)
    wanted = pair.host(image).labels
    for _ in range(3):
        caller.write(memory, np.full((HEIGHT, WIDTH + 13), 222, np.uint8))  # queued before, and not after
        out, options = OUTPUTS[way](memory, caller)
        result = pair.segmenter(image, out=out, **options)
        assert result.labels is out
        found = caller.read(memory)
        assert (found[:, :WIDTH] == wanted).mean() > 0.999
        assert (found[:, WIDTH:] == 222).all()


def test_the_c_librarys_arguments(pair, monkeypatch):
    """`isnet_trt.embed` with an image and a label map in GPU memory, both in use on the caller's stream."""
    caller, image = Caller(pair), picture(*SIZE)
    source, labels = caller.memory(HEIGHT, 3 * WIDTH + 20), caller.memory(HEIGHT, WIDTH + 13)
    monkeypatch.setitem(embed._open, 1, pair.segmenter)
    expected = pair.host(image).labels
    memory = [(source.ctypes.data, 0, 0), (source.shape[1], 0, 0), *SIZE, b"rgb", b"cuda:0", None, None]
    memory += [labels.ctypes.data, labels.shape[1], b"cuda"]
    for _ in range(3):
        caller.write(source, image)
        caller.write(labels, np.full(labels.shape, 222, np.uint8))
        assert embed.call("segment", 1, *memory, caller.stream, None) == (0, b"", None)
        result = caller.read(labels)
        assert (result[:, :WIDTH] == expected).mean() > 0.999
        assert (result[:, WIDTH:] == 222).all()


def test_a_buffer_that_map_finds_overwritten_in_turn(pair):
    """The caller queues its next picture into the same memory while the last one is on its way."""
    caller, images = Caller(pair), [picture(*SIZE, seed) for seed in range(5)]
    memory = caller.memory(HEIGHT, 3 * WIDTH)

    def frames() -> Iterator[RawImage]:
        for image in images:
            caller.write(memory, image)
            with caller.device:
                caller.device.synchronize(caller.stream)  # as early as may be
            yield raw(memory)

    answers = pair.segmenter.map(frames(), stream=caller.stream)
    for image, answer in zip(images, answers, strict=True):
        assert (answer.labels == pair.host(image).labels).mean() > 0.999


def test_tensors_are_given_back_with_the_call(pair):
    caller, image = Caller(pair), picture(*SIZE)
    memory, target = caller.memory(HEIGHT, 3 * WIDTH), caller.memory(HEIGHT, WIDTH)
    caller.write(memory, image)
    source, out = OrderedTensor(pixels_of(memory), caller), OrderedTensor(target, caller)
    result = pair.segmenter(source, out=out)
    assert len(source.deleted) == len(out.deleted) == 1
    assert result.labels is out


def test_a_segmenter_on_the_gpu_is_freed_by_its_last_reference(tmp_path):
    made = Pair(tmp_path)
    gpu, segmenter = made.gpu, made.segmenter
    list(segmenter.map([picture(*SIZE, seed) for seed in range(3)]))
    segmenter(picture(*SIZE), probabilities=True)
    watch = weakref.ref(segmenter)
    gc.collect()
    gc.disable()
    try:
        del made, segmenter
        assert watch() is None
        gpu.nothing_is_left()
    finally:
        gc.enable()


@needs_fork
def test_a_forked_child_leaves_the_gpu_alone(pair):
    image = picture(*SIZE)
    wanted = pair.segmenter(image).labels

    def leave() -> str:
        before = (len(pair.gpu.calls), dict(pair.gpu.memory), dict(pair.gpu.graphs))
        for call in (lambda: pair.segmenter(image), lambda: next(pair.segmenter.map([image]))):
            with pytest.raises(EngineError, match=r"opened in process .* forked"):
                call()
        with pytest.raises(EngineError, match="opened in process"):
            pair.pipeline.submit(raw(np.zeros((HEIGHT, 3 * WIDTH), np.uint8)), pair.segmenter.inference)
        pair.segmenter.close()
        pair.pipeline.close()
        del pair.segmenter, pair.pipeline, pair.engine
        gc.collect()
        return str(before == (len(pair.gpu.calls), dict(pair.gpu.memory), dict(pair.gpu.graphs)))

    assert in_child(leave) == "True"
    assert (pair.segmenter(image).labels == wanted).all()


def test_closing_ends_with_the_engine_closed_whatever_the_gpu_says(pair, monkeypatch):
    segmenter: Segmenter = pair.segmenter
    with monkeypatch.context() as broken:
        broken.setattr(pair.pipeline, "close", lambda: (_ for _ in ()).throw(EngineError("the device is lost")))
        with pytest.raises(EngineError, match="the device is lost"):
            segmenter.close()
    with pytest.raises(EngineError, match="closed"):
        pair.engine.engine.run(np.zeros((1, 3, 16, 16), np.float32))
    pair.pipeline.close()
