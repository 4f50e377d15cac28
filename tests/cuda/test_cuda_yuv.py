"""NV12 and I420 through a segmenter on a GPU that is host memory: from host and device memory, without the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from cuda_double import Stream
from cuda_host import Pair, picture
from dlpack_producer import CudaArray

from isnet_trt import I420, NV12, RawPlane
from isnet_trt.errors import EngineUnavailable
from tests.cuda.test_cuda_interop import LEGACY, Caller

SIZE = HEIGHT, WIDTH = 32, 44


@pytest.fixture
def pair(tmp_path) -> Iterator[Pair]:
    opened = Pair(tmp_path)
    opened.gpu.streams[LEGACY] = Stream(opened.gpu)
    yield opened
    opened.segmenter.close()
    del opened.gpu.streams[LEGACY]
    opened.gpu.nothing_is_left()


def planes(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    frame = cv2.cvtColor(picture(*SIZE, seed), cv2.COLOR_RGB2YUV_I420)
    u, v = frame[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)
    return frame[:HEIGHT], u, v


def nv12(seed: int = 0, **options: Any) -> NV12:
    y, u, v = planes(seed)
    return NV12(y, np.dstack([u, v]), **options)


def same(labels: np.ndarray, pair: Pair, image: Any) -> bool:
    """Equal to the host's labels of the converted array, but for near ties."""
    expected = pair.host(image.rgb()).labels
    return len(np.unique(expected)) > 1 and bool((labels == expected).mean() > 0.999)


@pytest.mark.parametrize("options", [{}, {"matrix": "bt709"}, {"matrix": "bt601", "range": "full"}])
@pytest.mark.parametrize("chroma", [NV12, I420])
def test_host_memory_is_converted_on_the_gpu(chroma: type, options: dict[str, str], pair: Pair) -> None:
    for seed in range(3):  # step by step, captured, replayed
        image = nv12(seed, **options) if chroma is NV12 else I420(*planes(seed), **options)
        assert same(pair.segmenter(image).labels, pair, image)
    assert pair.kernels.launched.count("yuv_resize") == 2
    assert "resize" not in pair.kernels.launched
    rgb = picture(*SIZE)
    assert (pair.segmenter(rgb).labels == pair.host(rgb).labels).mean() > 0.999  # formats do not share a plan


def test_several_in_flight_and_what_is_merged_on_the_host(pair: Pair) -> None:
    images = [nv12(seed) for seed in range(4)]
    for image, answer in zip(images, pair.segmenter.map(images), strict=True):
        assert same(answer.labels, pair, image)
    probabilities = pair.segmenter(images[0], probabilities=True).probabilities
    expected = pair.host(images[0].rgb(), probabilities=True).probabilities
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def view(memory: np.ndarray, first: int, shape: tuple[int, int]) -> np.ndarray:
    return memory[first : first + shape[0], : shape[1]]


def pointer(array: np.ndarray, **options: Any) -> RawPlane:
    return RawPlane(array.ctypes.data, *array.shape, array.strides[0], device="cuda", **options)


Y, UV, CHROMA = (HEIGHT, WIDTH), (HEIGHT // 2, WIDTH), (HEIGHT // 2, WIDTH // 2)
WAYS: dict[str, Callable[[np.ndarray, Caller], tuple[Any, dict[str, Any]]]] = {
    "NV12 by interface": lambda m, c: (
        NV12(*(CudaArray(view(m, first, shape), stream=c.stream) for first, shape in ((0, Y), (HEIGHT, UV)))),
        {},
    ),
    "NV12 by pointers": lambda m, c: (
        NV12(pointer(view(m, 0, Y)), pointer(view(m, HEIGHT, UV), stream=c.stream)),
        {},
    ),
    "a decoder's surface": lambda m, c: (NV12(pointer(m[:, :WIDTH])), {"stream": c.stream}),
}


@pytest.mark.parametrize("way", WAYS)
def test_device_memory_with_pitch_that_is_still_being_written(way: str, pair: Pair) -> None:
    caller = Caller(pair)
    memory = caller.memory(HEIGHT * 3 // 2, WIDTH + 20)
    for seed in range(3):
        image = nv12(seed)
        caller.write(memory, np.vstack([image.y, image.uv.reshape(UV)]))
        source, options = WAYS[way](memory, caller)
        assert same(pair.segmenter(source, **options).labels, pair, image)


def test_three_planes_of_the_gpu(pair: Pair) -> None:
    caller = Caller(pair)
    image = I420(*planes(1))
    memory = caller.memory(2 * HEIGHT, WIDTH + 4)
    rows = np.zeros((2 * HEIGHT, WIDTH), np.uint8)
    rows[:HEIGHT], rows[HEIGHT:, : WIDTH // 2] = image.y, np.vstack([image.u, image.v])
    caller.write(memory, rows)
    firsts = ((0, Y), (HEIGHT, CHROMA), (HEIGHT + HEIGHT // 2, CHROMA))
    source = I420(*(CudaArray(view(memory, first, shape), stream=caller.stream) for first, shape in firsts))
    assert same(pair.segmenter(source).labels, pair, image)


def test_bundles_without_the_kernel(pair: Pair) -> None:
    """Host memory is converted on the host; for the GPU's the message says what to do."""
    pair.kernels.missing.add("yuv_resize")
    image = nv12()
    result = pair.segmenter(image)
    assert same(result.labels, pair, image)
    assert "convert" in result.seconds
    assert "yuv_resize" not in pair.kernels.launched
    memory = Caller(pair).memory(HEIGHT * 3 // 2, WIDTH)
    with pytest.raises(EngineUnavailable, match="kernels lack yuv_resize, which NV12 and I420 in GPU memory need"):
        pair.segmenter(NV12(pointer(memory)))
