"""The pipeline's label maps against those of the host form, on the same network."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_model
from cuda_double import Gpu
from host_gpu import open_pipeline
from strided_model import write_strided

from isnet_trt import Inference, Segmenter
from isnet_trt.cuda.plan import Model
from isnet_trt.engines import open_onnx
from isnet_trt.errors import EngineError
from isnet_trt.interop import RawImage, RawLabels, image_from
from isnet_trt.merge import Head
from isnet_trt.preprocess import normalise, resize
from isnet_trt.settings import Preprocess

RULE = Preprocess((60, 24))
EXACT = Preprocess((24, 28), keep_ratio=False)
SLIDE = Inference("slide", (16, 24), (11, 16))
MARGIN = 1e-4
"""Lead of the best score, in standard deviations, below which float32 sums in another order may choose the other."""


class Form:
    """A network with its host segmenter and its pipeline on a GPU that is host memory."""

    def __init__(self, folder, classes=5, stride=8, pairs=((1, 2),), rule=RULE, batch=1, full=False, **options):
        self.path = folder / f"net{classes}.onnx"
        if stride == tiny_model.STRIDE:
            tiny_model.write_model(self.path, classes)
        else:
            write_strided(self.path, classes, stride)
        self.rule = rule
        labels = tiny_model.labels(classes, pairs)
        self.host = Segmenter(open_onnx(self.path, threads=1), labels, rule, output_stride=stride, threads=1)
        self.model = Model(Head(classes, stride, pairs), rule, batch, full, **options)
        self.gpu = Gpu()

    def __enter__(self):
        self.pipeline, self.kernels, self.engine = open_pipeline(self.gpu, self.path, self.model)
        return self

    def __exit__(self, *error):
        self.pipeline.close()
        self.pipeline.close()
        if error[0] is None:
            self.gpu.nothing_is_left()

    def check(self, picture, inference, made):
        """Equal to the host's wherever one class leads clearly, and nearly everywhere."""
        wanted = self.host(picture, inference=inference).labels
        scores = self.host.score(normalise(resize(picture, self.rule), self.rule), picture.shape[:2], inference)
        best = np.partition(scores, -2, axis=0)[-2:]
        clear = best[1] - best[0] > MARGIN * scores.std()
        assert made.dtype == wanted.dtype
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(made[clear], wanted[clear])
        assert (made == wanted).mean() >= 0.999
        assert len(np.unique(wanted)) > 1


def picture(height, width, seed=0):
    """Smooth enough that its label map is not all noise, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3)).repeat(4, 0).repeat(4, 1)[:height, :width]
    return np.clip(coarse + rng.integers(-40, 40, (height, width, 3)), 0, 255).astype(np.uint8)


CASES = {
    "whole": ((33, 47), Inference(), {}),
    "whole-scales": ((26, 41), Inference(scales=(0.5, 1.25)), {}),
    "whole-flip": ((26, 41), Inference(flip=True), {}),
    "whole-scales-flip-probabilities": (
        (26, 41), Inference(scales=(0.75, 1.5), flip=True, softmax_before_resize=True), {"batch": 3}
    ),
    "slide": ((40, 47), SLIDE, {"batch": 3, "band_bytes": 40_000}),
    "slide-scales-flip-pairs": (
        (22, 31), SLIDE.replace(scales=(0.75, 1.25), flip=True), {"batch": 3, "full": True, "band_bytes": 20_000}
    ),
    "slide-probabilities": ((40, 33), SLIDE.replace(softmax_before_resize=True), {"batch": 2}),
    "smaller-than-the-window": ((9, 13), SLIDE.replace(flip=True), {"rule": Preprocess((13, 9)), "batch": 3}),
    "portrait": ((40, 20), SLIDE.replace(scales=(0.5, 1.0)), {"batch": 4}),
    "exact-size-stride-4": (
        (31, 22), Inference(flip=True), {"rule": EXACT, "stride": 4, "classes": 20, "pairs": ((14, 15), (16, 17))}
    ),
    "many-classes": ((17, 21), Inference(), {"classes": 260}),
    "many-classes-flip": ((6, 7), Inference(flip=True), {"classes": 260, "rule": Preprocess((7, 6))}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_label_maps_are_those_of_the_host(name, tmp_path):
    size, inference, options = CASES[name]
    with Form(tmp_path, **options) as form:
        for seed in (0, 1):  # eagerly, then as a graph
            image = picture(*size, seed)
            form.check(image, inference, form.pipeline(image_from(image), inference))
        assert form.pipeline.description == "CUDA graphs"
        assert len(form.gpu.graphs) == 1
        assert form.gpu.peak <= form.pipeline.plan(size, inference).bytes


def test_a_graph_is_captured_once_and_replayed(tmp_path):
    with Form(tmp_path) as form:
        for seed in range(4):
            image = picture(17, 23, seed)
            form.check(image, Inference(), form.pipeline(image_from(image), Inference()))
        assert form.gpu.calls.count("cuStreamBeginCapture") == 1
        assert form.gpu.calls.count("cuGraphLaunch") == 3
        assert len(form.engine.shapes) == 2  # run once, captured once


def test_one_pipeline_for_many_sizes(tmp_path):
    sizes = [(17, 23), (40, 31), (9, 60), (23, 17), (30, 30), (17, 24), (17, 23)]
    with Form(tmp_path) as form:
        for seed, size in enumerate([*sizes, *sizes]):
            image = picture(*size, seed)
            form.check(image, Inference(), form.pipeline(image_from(image), Inference()))
        assert len(form.engine.kept[-1]) <= 4
        assert len(form.pipeline._prepared) == 4


@pytest.mark.parametrize("order", ["bgr", "rgba", "bgra"])
def test_any_order_and_pitch_of_host_memory(order, tmp_path):
    image = picture(20, 27)
    channels = ["rgb".index(c) if c != "a" else 3 for c in order]
    held = np.full((20, 40, len(order)), 99, np.uint8)
    held[:, :27] = np.dstack([image, np.full((20, 27), 7)])[:, :, channels]
    with Form(tmp_path) as form:
        made = form.pipeline(image_from(held[:, :27], order), Inference())
        form.check(image, Inference(), made)


def test_device_memory_on_the_callers_stream(tmp_path):
    image = picture(20, 27)
    with Form(tmp_path) as form:
        gpu = form.gpu
        with form.pipeline.device:
            stream = form.pipeline.device.stream()
            source, target = form.pipeline.device.allocate(20 * 90), form.pipeline.device.allocate(20 * 31)
            staging = form.pipeline.device.staging(20 * 90)
            rows = staging.reshape(20, 90)
            for seed in (0, 1, 2):
                image = picture(20, 27, seed)
                rows[:, :81] = image[:, :, ::-1].reshape(20, 81)
                form.pipeline.device.copy(source, staging.ctypes.data, 20 * 90, stream)  # not waited for
                described = RawImage(source, 20, 27, 90, "bgr", device="cuda")
                out = RawLabels(target, 20, 27, 31, device="cuda")
                assert form.pipeline(described, Inference(), out, stream) is None
                form.pipeline.device.copy(staging.ctypes.data, target, 20 * 31, stream)
                form.pipeline.device.synchronize(stream)
                made = staging[: 20 * 31].reshape(20, 31)
                form.check(image, Inference(), made[:, :27].copy())
                assert (made[:, 27:] == 0xA5).all()
        assert gpu.calls.count("cuStreamBeginCapture") == 1


def test_host_output_of_the_caller(tmp_path):
    image = picture(20, 27)
    with Form(tmp_path) as form:
        held = np.full((20, 40), 77, np.uint8)
        out = RawLabels(held.ctypes.data, 20, 27, 40, owner=held)
        made = form.pipeline(image_from(image), Inference(), out)
        assert np.shares_memory(made, held)
        form.check(image, Inference(), held[:, :27].copy())
        assert (held[:, 27:] == 77).all()


def test_results_own_their_memory(tmp_path):
    with Form(tmp_path) as form:
        images = [picture(20, 27, seed) for seed in range(3)]
        made = [form.pipeline(image_from(image), Inference()) for image in images]
        for image, labels in zip(images, made, strict=True):
            form.check(image, Inference(), labels)
            assert labels.flags.owndata
            assert labels.flags.writeable


def test_several_pictures_on_their_way(tmp_path):
    images = [picture(20 + seed % 2, 27, seed) for seed in range(5)]
    with Form(tmp_path) as form:
        waiting = []
        for image in images:
            waiting.append(form.pipeline.submit(image_from(image.copy()), Inference()))
            image_of = {id(ticket): images[i] for i, ticket in enumerate(waiting)}
        for ticket in reversed(waiting):  # in any order
            form.check(image_of[id(ticket)], Inference(), form.pipeline.collect(ticket))
        with pytest.raises(EngineError, match="was collected already"):
            form.pipeline.collect(waiting[0])
        first = len(form.gpu.staging)
        form.pipeline(image_from(images[0]), Inference())
        assert len(form.gpu.staging) == first  # slots are used again


def test_answers_for_the_host(tmp_path):
    image = picture(40, 33)
    inference = SLIDE.replace(flip=True)
    with Form(tmp_path, batch=4) as form:
        answers = list(form.pipeline.coarse(image_from(image), inference))
        planes = normalise(resize(image, RULE), RULE).transpose(2, 0, 1)
        assert [window for window, _ in answers] == list(form.pipeline.plan((40, 33), inference).queue.windows)
        for window, answer in answers:
            pixels = planes[:, window.top : window.bottom, window.left : window.right]
            pixels = pixels[:, :, ::-1] if window.of.mirrored else pixels
            wanted = form.host.engine.run(np.ascontiguousarray(pixels[None]))[0]
            np.testing.assert_allclose(answer, wanted, atol=1e-5)  # float32
        assert not any("finish" in name or "accumulate" in name for name in form.kernels.launched)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_an_error(value, tmp_path):
    image = picture(20, 27)
    with Form(tmp_path) as form:
        for _ in range(3):
            form.engine.gain = value
            with pytest.raises(EngineError, match=r"input of \(1, 3, 40, 54\) has NaN or infinite values; if the"):
                form.pipeline(image_from(image), Inference())
            with pytest.raises(EngineError, match="has NaN or infinite values"):
                list(form.pipeline.coarse(image_from(image), Inference()))
            form.engine.gain = 1.0
            form.check(image, Inference(), form.pipeline(image_from(image), Inference()))


def test_an_engine_that_cannot_be_captured_runs_step_by_step(tmp_path):
    with Form(tmp_path) as form:
        form.pipeline.close()
        form.pipeline, form.kernels, form.engine = open_pipeline(form.gpu, form.path, form.model, "it waits by itself")
        for seed in range(3):
            image = picture(20, 27, seed)
            form.check(image, Inference(), form.pipeline(image_from(image), Inference()))
        assert form.pipeline.description == "no CUDA graphs: it waits by itself"
        assert "cuStreamBeginCapture" not in form.gpu.calls


def test_a_capture_that_fails_leaves_a_pipeline_that_works(tmp_path):
    with Form(tmp_path) as form:
        form.gpu.fails["cuStreamEndCapture"] = 901
        for seed in range(3):
            image = picture(20, 27, seed)
            form.check(image, Inference(), form.pipeline(image_from(image), Inference()))
        assert form.pipeline.description.startswith("no CUDA graphs: capturing failed (cuStreamEndCapture failed: ")
        assert form.gpu.calls.count("cuStreamBeginCapture") == 1


@pytest.mark.parametrize("room", [0.3, 0.9, 0.99])
def test_running_out_of_memory_anywhere(tmp_path, room):
    small, large = picture(20, 27), picture(40, 36)
    with Form(tmp_path) as form:
        need = form.pipeline.plan((40, 36), Inference()).bytes
        form.check(small, Inference(), form.pipeline(image_from(small), Inference()))
        form.gpu.total = int(need * room)
        with pytest.raises(EngineError, match=r"not enough GPU memory for a picture of 40x36 .* use fewer scales"):
            form.pipeline(image_from(large), Inference())
        form.gpu.total = 1 << 30
        form.check(large, Inference(), form.pipeline(image_from(large), Inference()))
        form.check(small, Inference(), form.pipeline(image_from(small), Inference()))


def test_an_engine_that_fails_leaves_a_pipeline_that_works(tmp_path):
    image = picture(20, 27)
    with Form(tmp_path) as form:
        enqueue, form.engine.enqueue = form.engine.enqueue, form.engine.fail
        with pytest.raises(EngineError, match="the engine failed"):
            form.pipeline(image_from(image), Inference())
        form.engine.enqueue = enqueue
        form.check(image, Inference(), form.pipeline(image_from(image), Inference()))


def test_a_network_of_another_label_set_is_refused(tmp_path):
    with Form(tmp_path) as form:
        form.engine.classes = 7
        with pytest.raises(EngineError, match="the model and the label set do not belong together"):
            form.pipeline(image_from(picture(20, 27)), Inference())


def test_closed_is_closed(tmp_path):
    with Form(tmp_path) as form:
        form.pipeline(image_from(picture(20, 27)), Inference())
        form.pipeline.close()
        form.gpu.nothing_is_left()
        with pytest.raises(EngineError, match="closed"):
            form.pipeline(image_from(picture(20, 27)), Inference())


def test_the_calls_of_the_steps_for_measuring(tmp_path):
    image = picture(20, 27)
    with Form(tmp_path) as form:
        want = form.pipeline(image_from(image), Inference())
        with form.pipeline.device:
            stages = []
            for stage, call in form.pipeline.steps((20, 27), Inference()):
                stages.append(stage)
                call()
            form.pipeline.device.synchronize(form.pipeline.stream)
        assert stages == ["resize", "gather", "engine", "finite", "finite", "finish"]
        assert (form.pipeline(image_from(image), Inference()) == want).all()
