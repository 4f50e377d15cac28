"""The segmenter around a pipeline: the same API and the same answers as on the host."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from cuda_double import Gpu, Stream, open_device
from cuda_host import PRESETS, HostEngine, Pair, QueuedKernels, ReferenceKernels, picture
from small_bundle import write_bundle

from isnet_trt import RawImage, RawLabels, Segmenter
from isnet_trt.bundle import new_bundle, read_bundle
from isnet_trt.cuda.device import Device
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.tensorrt_family import TensorRTFamily
from isnet_trt.errors import EngineError, EngineUnavailable, ImageError, SettingsError
from isnet_trt.runtime import opening
from isnet_trt.settings import Inference, Preprocess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform")


@pytest.fixture
def pair(tmp_path: Path):
    made = Pair(tmp_path)
    yield made
    made.segmenter.close()
    made.segmenter.close()
    made.gpu.nothing_is_left()


def equal(made: np.ndarray, wanted: np.ndarray) -> bool:
    return made.dtype == wanted.dtype and made.shape == wanted.shape and (made == wanted).mean() >= 0.999


@pytest.mark.parametrize("preset", PRESETS)
def test_answers_are_those_of_the_host(pair, preset):
    image = picture(31, 44)
    for _ in range(3):
        made, wanted = (one(image, inference=preset) for one in (pair.segmenter, pair.host))
        assert equal(made.labels, wanted.labels)
        assert list(made.seconds) == ["read", "queue", "gpu"]
        assert made.labels.flags.owndata
    assert pair.segmenter.description == "an engine; all stages on the GPU (memory from pycuda), CUDA graphs"
    assert pair.host.description.endswith("; all other stages on the host")


@pytest.mark.parametrize("preset", PRESETS)
def test_probabilities_and_points_are_merged_on_the_host(pair, preset):
    image, points = picture(31, 44), [(0, 0), (30, 43), (7, 9)]
    options = {"inference": preset, "probabilities": True, "points": points}
    made, wanted = (one(image, **options) for one in (pair.segmenter, pair.host))
    assert equal(made.labels, wanted.labels)
    np.testing.assert_allclose(made.probabilities, wanted.probabilities, atol=1e-5)  # float32
    np.testing.assert_allclose(made.scores, wanted.scores, atol=1e-4 * np.abs(wanted.scores).max())
    assert list(made.seconds) == ["read", "gpu", "merge"]


@pytest.mark.parametrize("options", [{}, {"probabilities": True}], ids=["labels", "probabilities"])
def test_images_smaller_than_the_only_size_of_an_oblong_network(tmp_path, options):
    """Refused with the sizes, as on the host, before anything is queued; the next image is segmented."""
    fixed = Pair(tmp_path, rule=Preprocess(None), size=(24, 40))
    windows = Inference("slide", (24, 40), (16, 28), flip=True)
    with fixed.segmenter, fixed.host:
        for size in ((23, 60), (50, 39), (10, 11)):
            messages = []
            for segmenter in (fixed.segmenter, fixed.host):
                with pytest.raises(ImageError, match=rf"image of {size[0]}x{size[1]} .* Resize the image") as error:
                    segmenter(picture(*size), inference=windows, **options)
                messages.append(str(error.value))
            assert messages[0] == messages[1]
            assert not fixed.engine.shapes
        for size in ((24, 40), (24, 55), (61, 40)):
            image = picture(*size)
            pair_of_labels = [one(image, inference=windows, **options).labels for one in (fixed.segmenter, fixed.host)]
            assert equal(*pair_of_labels)
        assert {shape[2:] for shape in fixed.engine.shapes} == {(24, 40)}
    fixed.gpu.nothing_is_left()


def test_files_and_orders(pair, tmp_path):
    image = picture(31, 44)
    cv2.imwrite(str(tmp_path / "a.png"), image[:, :, ::-1])
    wanted = pair.host(image).labels
    assert equal(pair.segmenter(tmp_path / "a.png").labels, wanted)
    assert equal(pair.segmenter(image[:, :, ::-1], order="bgr").labels, wanted)
    alpha = np.dstack([image, np.full(image.shape[:2], 9, np.uint8)])
    assert equal(pair.segmenter(alpha, order="rgba").labels, wanted)


def test_into_host_memory_of_the_caller(pair):
    image, held = picture(31, 44), np.full((31, 60), 77, np.uint8)
    out = held[:, 3:47]
    made = pair.segmenter(image, out=out)
    assert made.labels is out
    assert equal(out, pair.host(image).labels)
    assert (held[:, :3] == 77).all()
    assert (held[:, 47:] == 77).all()


def test_memory_that_it_cannot_use(pair):
    image = picture(31, 44)
    with pytest.raises(
        SettingsError, match=r"the image is in the memory of cuda:1, but this segmenter works on cuda:0"
    ):
        pair.segmenter(RawImage(4096, 31, 44, device="cuda:1"))
    out = RawLabels(4096, 31, 44, device="cuda")
    with pytest.raises(SettingsError, match="merged on the host: pass out in host memory"):
        pair.segmenter(image, out=out, probabilities=True)
    with pytest.raises(SettingsError, match="for segmenters that work in GPU memory"):
        pair.host(image, stream=5)
    with pytest.raises(SettingsError, match="CUDA stream's handle"):
        pair.segmenter(image, stream="main")


def test_map_has_the_next_picture_on_its_way(pair, monkeypatch):
    images, log = [picture(31, 44, seed) for seed in range(4)], []
    submit, collect = pair.pipeline.submit, pair.pipeline.collect
    monkeypatch.setattr(pair.pipeline, "submit", lambda *a: log.append("submit") or submit(*a))
    monkeypatch.setattr(pair.pipeline, "collect", lambda ticket: log.append("collect") or collect(ticket))
    for image, made in zip(images, pair.segmenter.map(iter(images)), strict=True):
        assert equal(made.labels, pair.host(image).labels)
    assert log == ["submit", *["submit", "collect"] * 3, "collect"]
    log.clear()
    held = np.empty((31, 44), np.uint8)
    for image, made in zip(images, pair.segmenter.map(images, out=held), strict=True):
        assert equal(made.labels, pair.host(image).labels)
    assert log == ["submit", "collect"] * 4


def test_map_fails_in_turn_and_can_be_left(pair):
    images = [picture(31, 44), picture(31, 44, 1), np.zeros((3, 3), np.uint8), picture(31, 44)]
    answers = pair.segmenter.map(images)
    assert equal(next(answers).labels, pair.host(images[0]).labels)
    assert equal(next(answers).labels, pair.host(images[1]).labels)
    with pytest.raises(ImageError, match="grey"):
        next(answers)
    left = pair.segmenter.map(images)
    next(left)
    left.close()
    assert equal(pair.segmenter(images[0]).labels, pair.host(images[0]).labels)
    assert len(pair.pipeline._transfers._free) == 2


def test_the_host_form_waits_for_the_gpu(pair):
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 24), dtype=np.float32)
    answers = pair.segmenter.map([picture(31, 44), picture(31, 44, 1)])
    next(answers)
    assert (pair.segmenter.logits(x) == pair.host.logits(x)).all()
    assert not any(stream.waiting for stream in pair.gpu.streams.values())
    next(answers)
    assert np.allclose(pair.segmenter.score(x, (9, 9)), pair.host.score(x, (9, 9)))


def test_a_picture_that_is_too_large(pair):
    image = picture(31, 44)
    pair.gpu.total = 1000
    with pytest.raises(EngineError, match=r"not enough GPU memory for a picture of 31x44"):
        pair.segmenter(image)
    pair.gpu.total = 1 << 30
    assert equal(pair.segmenter(image).labels, pair.host(image).labels)


def test_threads_take_turns(pair):
    images = [picture(31, 44, seed) for seed in range(6)]
    made: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda i=i: made.update({i: pair.segmenter(images[i]).labels})) for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(made[i], pair.host(images[i]).labels) for i in range(6))


def test_closing_in_the_middle(pair):
    answers = pair.segmenter.map([picture(31, 44), picture(31, 44, 1)])
    next(answers)
    pair.segmenter.close()
    pair.gpu.nothing_is_left()
    with pytest.raises(EngineError, match="closed"):
        next(answers)


# Opening


class Opened(HostEngine):
    """An engine on a GPU, with what opening looks at."""

    kind, description, no_kernels = "double", "an engine", "the kernels are for another GPU"

    def __init__(self, gpu: Gpu, path: Path, kernels: bool | str, bound: bool) -> None:
        super().__init__(gpu, path, 3, 8)
        self.kernels = QueuedKernels(gpu, ReferenceKernels(3)) if kernels else None
        if kernels == "old":
            del self.kernels.host.specs["finite_fp32"]
        self.closed = False
        self.stream = gpu.handle() if bound else 0
        if bound:
            gpu.streams[self.stream] = Stream(gpu)

    def check_stream(self) -> None:
        """Whatever it is used for, its stream is there."""
        assert not self.stream or self.stream in self.gpu.streams

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.check_stream()
        return self.engine.run(batch)

    def close(self) -> None:
        if not self.closed and self.stream:
            self.check_stream()
            assert not self.gpu.streams.pop(self.stream).waiting
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


@pytest.fixture
def bundle(tmp_path: Path):
    """A bundle with a folder of kernels."""
    plain = write_bundle(tmp_path / "plain", EngineInfo("tensorrt", "10.13.3", "model.engine", ("8.9",)))
    with new_bundle(tmp_path / "made", False) as draft:
        for name in plain.manifest.files:
            (draft.folder / name).write_bytes((plain.folder / name).read_bytes())
        (draft.folder / "kernels" / "sm_89").mkdir(parents=True)
        (draft.folder / "kernels" / "sm_89" / "launch.json").write_text("{}", "utf-8")
        draft.finish(plain.manifest)
    return read_bundle(tmp_path / "made")


def opened(
    monkeypatch: pytest.MonkeyPatch, bundle, kernels: bool | str = True, device: str = "", bound: bool = False
) -> tuple[Segmenter, Gpu]:
    """A segmenter whose engine is a double, ``bound`` to a stream or not; ``device`` says why there is none."""
    gpu = Gpu()

    def open_gpu(index: int) -> Device:
        if device:
            raise EngineUnavailable(device)
        return open_device(gpu)

    def open_on_gpu(library, source, *, threads, on_device):
        return Opened(gpu, bundle.path("model.onnx"), kernels, bound and on_device)

    monkeypatch.setattr(opening, "check_engine", lambda info, gpu: None)
    monkeypatch.setattr(opening.Device, "open", open_gpu)
    monkeypatch.setattr(TensorRTFamily, "open_on_gpu", open_on_gpu)
    return Segmenter.open(bundle.folder), gpu


@pytest.mark.parametrize("bound", [False, True])
def test_opening_a_bundle_with_kernels(monkeypatch, bundle, bound):
    segmenter, gpu = opened(monkeypatch, bundle, bound=bound)
    with segmenter:
        assert segmenter.description == "an engine; all stages on the GPU (memory from pycuda), CUDA graphs"
        assert (segmenter.runtime.pipeline.stream == segmenter.engine.stream) == bound
        assert len(gpu.streams) == 3
        assert segmenter(picture(31, 44)).labels.shape == (31, 44)
    assert segmenter.engine.closed
    gpu.nothing_is_left()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda-bindings cannot be imported"}, "cuda-bindings cannot be imported"),
        ({"kernels": False}, "the kernels are for another GPU"),
        ({"kernels": False, "bound": True}, "the kernels are for another GPU"),
        ({"kernels": "old"}, "the bundle's kernels lack finite_fp32; build it again with python -m isnet_trt.build"),
    ],
)
def test_what_is_missing_leaves_the_stages_to_the_host_and_is_said(monkeypatch, bundle, options, said):
    segmenter, gpu = opened(monkeypatch, bundle, **options)
    assert segmenter.description == f"an engine; all other stages on the host ({said})"
    assert segmenter(picture(31, 44)).labels.shape == (31, 44)
    segmenter.close()
    gpu.nothing_is_left()


def test_a_bundle_without_kernels(monkeypatch, tmp_path):
    plain = write_bundle(tmp_path / "plain", EngineInfo("tensorrt", "10.13.3", "model.engine", ("8.9",)))
    segmenter, gpu = opened(monkeypatch, plain)
    assert "on the host (the bundle holds no kernels; build it again" in segmenter.description
    gpu.nothing_is_left()


def test_an_engine_that_fails_to_open_leaves_nothing(monkeypatch, bundle):
    gpu = Gpu()

    def refuse(*arguments, **options):
        raise EngineError("damaged")

    monkeypatch.setattr(opening.Device, "open", lambda index: open_device(gpu))
    monkeypatch.setattr(opening, "check_engine", lambda info, gpu: None)
    monkeypatch.setattr(TensorRTFamily, "open_on_gpu", refuse)
    with pytest.raises(EngineError, match="damaged"):
        Segmenter.open(bundle.folder)
    gpu.nothing_is_left()
