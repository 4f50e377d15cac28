"""The pipeline's graphs, streams, memory and errors, on host memory with the kernels' plain references.

The same with the real kernels, for the label maps: tests/cuda/interpreted/check_pipeline.py.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from cuda_host import CASES, ONE_CLASS, RULE, SLIDE, WHOLE, Form, ReferenceKernels, picture

from isnet_trt import Inference
from isnet_trt.cuda.element_types import ELEMENT_TYPES
from isnet_trt.cuda.kernel_specs import KernelSpec
from isnet_trt.cuda.pipeline import CAPTURES
from isnet_trt.cuda.plan import plan
from isnet_trt.cuda.plan_steps import ALIGNMENT
from isnet_trt.errors import EngineError, EngineUnavailable
from isnet_trt.merging.merge import Merger
from isnet_trt.pictures.interop import image_from
from isnet_trt.pictures.preprocess import normalise, resize
from isnet_trt.pictures.raw import RawLabels
from isnet_trt.settings import NetworkFacts, Preprocess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform")


def test_what_the_kernels_cannot_do_is_left_to_the_host(tmp_path):
    form = Form(tmp_path, ReferenceKernels, network=NetworkFacts(size_multiple=8, padding_side="centre"))
    with pytest.raises(EngineUnavailable, match="needs padding on all sides, which only the stages on the host do"):
        form.open()
    form.gpu.nothing_is_left()


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_label_maps_are_those_of_the_host(name, eager, tmp_path):
    size, inference, options = CASES[name]
    with Form(tmp_path, ReferenceKernels, **options) as form:
        form.gpu.eager = eager
        for seed in (0, 1, 2):
            form.run(picture(*size, seed), inference)
        assert form.gpu.peak <= form.pipeline.plan(size, inference).bytes


HALF_CASES = ("whole", "whole-scales", "whole-flip", "slide-scales-flip-pairs", "one-class", "many-classes", "enlarged")


@pytest.mark.parametrize("logits", ["fp16", "bf16"])
@pytest.mark.parametrize("name", HALF_CASES)
def test_logits_in_half_precision_are_read_as_they_are(name, logits, tmp_path):
    """The host rounds the same logits; images run step by step and as a graph."""
    size, inference, options = CASES[name]
    with Form(tmp_path, lambda classes: ReferenceKernels(classes, logits), logits=logits, **options) as form:
        assert form.engine.output_type == logits
        for seed in (0, 1):
            form.run(picture(*size, seed), inference)
        assert len(form.gpu.graphs) == 1
        assert f"finite_{logits}" in form.kernels.launched
        planned = form.pipeline.plan(size, inference)
        assert planned.logits == logits
        whole = plan(size, inference, replace(form.pipeline.model, logits="fp32"))
        padding = ALIGNMENT * len(planned.regions)
        assert planned.buffers["logits"] <= whole.buffers["logits"] // 2 + padding
        assert form.gpu.peak <= planned.bytes <= whole.bytes
        for window, values in form.pipeline.window_logits(image_from(picture(*size)), inference):
            assert values.dtype == np.float32, window
            kind = np.dtype(ELEMENT_TYPES[logits].numpy)
            np.testing.assert_array_equal(values, values.astype(kind).astype(np.float32))


@pytest.mark.parametrize("logits", ["fp16", "bf16"])
@pytest.mark.parametrize("gain", [np.inf, np.nan])
def test_logits_in_half_precision_that_are_not_finite_are_refused(logits, gain, tmp_path):
    image = picture(20, 27)
    with Form(tmp_path, lambda classes: ReferenceKernels(classes, logits), logits=logits) as form:
        form.run(image)
        form.engine.gain = gain
        for inference in (WHOLE, SLIDE):
            with pytest.raises(EngineError, match="NaN or infinite"), np.errstate(invalid="ignore"):
                form.pipeline(image_from(image), inference)
        form.engine.gain = 1.0
        form.run(image)


def test_kernels_for_logits_of_another_type_are_named(tmp_path):
    form = Form(tmp_path, ReferenceKernels, logits="fp16")
    with pytest.raises(EngineUnavailable, match=r"lack accumulate_fp16_k5, finish_fp16_u8.*; build it again"):
        form.open()
    form.gpu.nothing_is_left()


def test_a_large_picture_in_many_bands(tmp_path):
    inference = SLIDE.replace(scales=(0.5, 1.0, 1.75), flip=True, softmax_before_resize=True)
    with Form(tmp_path, ReferenceKernels, classes=7, rule=Preprocess((131, 57)), batch=8, band_bytes=60_000) as form:
        form.run(picture(57, 131), inference)
        assert sum(name.startswith("finish_fp32_u8") for name in form.kernels.launched) > 5
        assert {shape[0] for shape in form.engine.shapes[:-1]} == {8}


def test_a_graph_is_captured_once_and_replayed(tmp_path):
    with Form(tmp_path, ReferenceKernels) as form:
        for seed in range(4):
            image = picture(17, 23, seed)
            form.run(image)
        assert form.gpu.calls.count("cuStreamBeginCapture") == 1
        assert form.gpu.calls.count("cuGraphLaunch") == 3
        assert len(form.engine.shapes) == 2  # run once, captured once


def test_one_pipeline_for_many_sizes(tmp_path):
    sizes = [(17, 23), (40, 31), (9, 60), (23, 17), (30, 30), (17, 24), (17, 23)]
    with Form(tmp_path, ReferenceKernels) as form:
        for seed, size in enumerate([*sizes, *sizes]):
            image = picture(*size, seed)
            form.run(image)
        assert len(form.engine.kept) == 1  # after eight that were forgotten
        assert len(form.engine.kept[0]) <= 4
        assert len(form.pipeline._prepared) == 4


@pytest.mark.parametrize("order", ["bgr", "rgba", "bgra"])
def test_any_order_and_pitch_of_host_memory(order, tmp_path):
    image = picture(20, 27)
    channels = ["rgb".index(c) if c != "a" else 3 for c in order]
    held = np.full((20, 40, len(order)), 99, np.uint8)
    held[:, :27] = np.dstack([image, np.full((20, 27), 7)])[:, :, channels]
    with Form(tmp_path, ReferenceKernels) as form:
        made = form.pipeline(image_from(held[:, :27], order), Inference())
        form.check(image, made)


def test_what_the_caller_queues_next_finds_the_label_map(tmp_path):
    """Before anybody has waited for it on the host."""
    image = picture(20, 27)
    with Form(tmp_path, ReferenceKernels) as form:
        device = form.pipeline.device
        with device:
            stream, target, staging = device.create_stream(), device.allocate(20 * 27), device.allocate_staging(20 * 27)
        ticket = form.pipeline.submit(image_from(image), WHOLE, RawLabels(target, 20, 27, device="cuda"), stream)
        with device:
            device.copy(staging.ctypes.data, target, 20 * 27, stream)
            device.synchronize(stream)
        form.check(image, np.array(staging).reshape(20, 27))
        form.pipeline.collect(ticket)


def test_graphs_go_with_the_memory_that_they_know(tmp_path):
    small, large = picture(20, 27), picture(24, 60)
    with Form(tmp_path, ReferenceKernels) as form:
        for _ in range(3):
            form.run(small)
        held = dict(form.gpu.memory)
        form.run(large)
        assert set(held) - set(form.gpu.memory)
        for _ in range(2):
            form.run(small)
            form.run(large)
        assert form.gpu.calls.count("cuStreamBeginCapture") == 3


def test_kinds_of_picture_that_are_forgotten_while_they_are_on_their_way(tmp_path):
    images = [picture(20, 21 + i, i) for i in range(7)]
    with Form(tmp_path, ReferenceKernels) as form:
        form.run(picture(20, 28))
        tickets = [form.pipeline.submit(image_from(image), WHOLE) for image in images]
        for image, ticket in zip(images, tickets, strict=True):
            form.check(image, form.pipeline.collect(ticket))


def test_a_new_kind_of_picture_waits_for_nothing(tmp_path):
    images = [picture(20, 40 - i, i) for i in range(6)]
    with Form(tmp_path, ReferenceKernels) as form:
        tickets, queued = [], [0]
        for image in images:
            tickets.append(form.pipeline.submit(image_from(image), WHOLE))
            queued.append(len(form.gpu.streams[form.pipeline.stream].waiting))
        assert queued == sorted(set(queued))
        for image, ticket in zip(images, tickets, strict=True):
            form.check(image, form.pipeline.collect(ticket))


def test_memory_that_grows_while_pictures_are_on_their_way(tmp_path):
    images = [picture(12, 20 + 4 * i, i) for i in range(4)]
    with Form(tmp_path, ReferenceKernels, rule=Preprocess((400, 12))) as form:
        tickets = [form.pipeline.submit(image_from(image), WHOLE) for image in images]
        for image, ticket in zip(images, tickets, strict=True):
            form.check(image, form.pipeline.collect(ticket))


def test_results_own_their_memory(tmp_path):
    with Form(tmp_path, ReferenceKernels) as form:
        images = [picture(20, 27, seed) for seed in range(3)]
        made = [form.pipeline(image_from(image), Inference()) for image in images]
        for image, labels in zip(images, made, strict=True):
            form.check(image, labels)
            assert labels.flags.owndata
            assert labels.flags.writeable


def test_several_pictures_on_their_way(tmp_path):
    images = [picture(20 + seed % 2, 27, seed) for seed in range(5)]
    with Form(tmp_path, ReferenceKernels) as form:
        waiting = []
        for image in images:
            waiting.append(form.pipeline.submit(image_from(image.copy()), Inference()))
            image_of = {id(ticket): images[i] for i, ticket in enumerate(waiting)}
        for ticket in reversed(waiting):  # in any order
            form.check(image_of[id(ticket)], form.pipeline.collect(ticket))
        with pytest.raises(EngineError, match="was collected already"):
            form.pipeline.collect(waiting[0])
        first = len(form.gpu.staging)
        form.pipeline(image_from(images[0]), Inference())
        assert len(form.gpu.staging) == first  # slots are used again


def test_answers_for_the_host(tmp_path):
    image = picture(40, 33)
    inference = SLIDE.replace(flip=True)
    with Form(tmp_path, ReferenceKernels, batch=4) as form:
        answers = list(form.pipeline.window_logits(image_from(image), inference))
        planes = normalise(resize(image, RULE), RULE).transpose(2, 0, 1)
        assert [window for window, _ in answers] == list(form.pipeline.plan((40, 33), inference).queue.windows)
        for window, answer in answers:
            pixels = planes[:, window.top : window.bottom, window.left : window.right]
            pixels = pixels[:, :, ::-1] if window.of.mirrored else pixels
            wanted = form.host.engine.run(np.ascontiguousarray(pixels[None]))[0]
            np.testing.assert_allclose(answer, wanted, atol=1e-5)  # float32
        assert not any("finish" in name or "accumulate" in name for name in form.kernels.launched)


def test_padded_logits_merged_on_the_host(tmp_path):
    """Probabilities and scores of a network of one class, whose windows are padded on the GPU."""
    image = picture(40, 33)
    inference = SLIDE.replace(flip=True)
    with Form(tmp_path, ReferenceKernels, classes=1, batch=2, network=ONE_CLASS) as form:
        queue, scores = form.pipeline.plan((40, 33), inference).queue, np.empty((1, 40, 33), np.float32)
        merger = Merger(queue, form.model.head, (40, 33), lambda y, x, tile: scores.__setitem__((0, y, x), tile[0]))
        for window, logits in form.pipeline.window_logits(image_from(image), inference):
            assert logits.shape == (1, 2, 3)  # of 16 x 24
            merger.add(window, logits.copy())
        assert merger.work()
        expected = form.host.score(normalise(resize(image, RULE), RULE), (40, 33), inference)
        np.testing.assert_allclose(scores[0], expected[1], atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_an_error(value, tmp_path):
    image = picture(20, 27)
    with Form(tmp_path, ReferenceKernels) as form:
        for _ in range(3):
            form.engine.gain = value
            with pytest.raises(EngineError, match=r"input of \(1, 3, 24, 32\) has NaN or infinite values; if the"):
                form.pipeline(image_from(image), Inference())
            with pytest.raises(EngineError, match="has NaN or infinite values"):
                list(form.pipeline.window_logits(image_from(image), Inference()))
            form.engine.gain = 1.0
            form.run(image)


def test_an_engine_that_cannot_be_captured_runs_step_by_step(tmp_path):
    with Form(tmp_path, ReferenceKernels) as form:
        form.pipeline.close()
        form.open("it waits by itself")
        for seed in range(3):
            image = picture(20, 27, seed)
            form.run(image)
        assert form.pipeline.description == "no CUDA graphs: it waits by itself"
        assert "cuStreamBeginCapture" not in form.gpu.calls


def test_a_capture_that_fails_leaves_a_pipeline_that_works(tmp_path):
    with Form(tmp_path, ReferenceKernels) as form:
        form.gpu.fails["cuStreamEndCapture"] = 901
        for seed in range(6):
            image = picture(20, 27, seed)
            form.run(image)
        assert form.pipeline.description.startswith("no CUDA graphs: capturing failed (cuStreamEndCapture failed: ")
        assert form.gpu.calls.count("cuStreamBeginCapture") == CAPTURES


def test_a_capture_that_another_thread_ended_is_tried_again(tmp_path):
    with Form(tmp_path, ReferenceKernels) as form:
        form.run(picture(20, 27))
        for seed in range(CAPTURES):
            form.gpu.fails = {"cuStreamEndCapture": 901} if seed < CAPTURES - 1 else {}
            form.run(picture(20, 27, seed))
        assert form.gpu.calls.count("cuGraphLaunch") == 1
        form.gpu.fails = {"cuStreamEndCapture": 901}
        for seed in range(CAPTURES):
            form.run(picture(20, 31, seed))
        assert form.pipeline.description == "CUDA graphs"  # those that failed before do not count


@pytest.mark.parametrize("room", [0.3, 0.9, 0.95])
def test_running_out_of_memory_anywhere(tmp_path, room):
    small, large = picture(20, 27), picture(40, 36)
    with Form(tmp_path, ReferenceKernels) as form:
        need = form.pipeline.plan((40, 36), Inference()).bytes
        form.run(small)
        form.gpu.total = int(need * room)
        with pytest.raises(EngineError, match=r"not enough GPU memory for a picture of 40x36 .* use fewer scales"):
            form.pipeline(image_from(large), Inference())
        planned = form.pipeline._prepared.values()
        assert form.engine.kept == [frozenset().union(*(prepared.plan.shapes for prepared in planned))]
        assert len(planned) == (1 if room < 0.5 else 2)  # a plan that found no room is none
        form.gpu.total = 1 << 30
        form.run(large)
        form.run(small)


def test_an_engine_that_fails_leaves_a_pipeline_that_works(tmp_path):
    image = picture(20, 27)
    with Form(tmp_path, ReferenceKernels) as form:
        enqueue, form.engine.enqueue = form.engine.enqueue, form.engine.fail
        with pytest.raises(EngineError, match="the engine failed"):
            form.pipeline(image_from(image), Inference())
        form.engine.enqueue = enqueue
        form.run(image)


def test_a_network_of_another_label_set_is_refused(tmp_path):
    with Form(tmp_path, ReferenceKernels) as form:
        form.engine.classes = 7
        with pytest.raises(EngineError, match="the model and the label set do not belong together"):
            form.pipeline(image_from(picture(20, 27)), Inference())


def test_kernels_that_are_missing_are_named(tmp_path):
    form = Form(tmp_path, ReferenceKernels)
    del form.host_kernels.specs["finite_fp32"]
    with pytest.raises(EngineUnavailable, match="the bundle's kernels lack finite_fp32; build it again"):
        form.open()


class EarlierKernels(ReferenceKernels):
    """The kernels of a bundle from before those of label maps had variants and sums took the number of classes."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        known = [spec for spec in self.specs.values() if not spec.name.endswith(("_rows4", "_rows8"))]
        self.specs = {spec.earlier or spec.name: self._earlier(spec) for spec in known}

    @staticmethod
    def _earlier(spec: KernelSpec) -> KernelSpec:
        arguments = {name: kind for name, kind in spec.arguments.items() if name not in spec.later}
        return replace(spec, name=spec.earlier or spec.name, arguments=arguments)


@pytest.mark.parametrize("classes", [5, 40])
def test_kernels_of_an_earlier_bundle_are_launched(tmp_path, classes):
    accumulate = f"accumulate_fp32_{32 if classes == 5 else 64}"
    with Form(tmp_path, EarlierKernels, classes) as form:
        for inference in (Inference(), SLIDE.replace(flip=True), Inference(scales=(1.0, 1.25))):
            form.run(picture(37, 44), inference)
        assert {accumulate, "upsample_argmax_fp32_u8", "finish_fp32_u8"} <= set(form.kernels.launched)
        assert set(form.kernels.launched) <= set(form.host_kernels.specs)


def test_closed_is_closed(tmp_path):
    with Form(tmp_path, ReferenceKernels) as form:
        form.pipeline(image_from(picture(20, 27)), Inference())
        form.pipeline.close()
        form.gpu.nothing_is_left()
        with pytest.raises(EngineError, match="closed"):
            form.pipeline(image_from(picture(20, 27)), Inference())


def test_the_calls_of_the_steps_for_measuring(tmp_path):
    image = picture(20, 27)
    with Form(tmp_path, ReferenceKernels) as form:
        want = form.pipeline(image_from(image), Inference())
        with form.pipeline.device:
            stages = []
            for stage, call in form.pipeline.steps((20, 27), Inference()):
                stages.append(stage)
                call()
            form.pipeline.device.synchronize(form.pipeline.stream)
        assert stages == ["resize", "gather", "engine", "finite", "finite", "finish"]
        assert (form.pipeline(image_from(image), Inference()) == want).all()
