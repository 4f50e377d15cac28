"""What the Triton model does with requests, without the server: images in place, errors of one call, parameters."""

from __future__ import annotations

import cv2
import dlpack_producer
import numpy as np
import pytest
from small_bundle import SLIDE

from isnet_trt import Segmenter
from isnet_trt.errors import EngineError, ImageError, SettingsError
from isnet_trt.integrations.calls import Call, inference_of, segment, segment_each
from isnet_trt.integrations.triton import arrays_of, images_of
from isnet_trt.runtime.call import Outputs

IMAGE = np.random.default_rng(5).integers(0, 256, (41, 57, 3), np.uint8)
PNG = cv2.imencode(".png", IMAGE[:, :, ::-1])[1].reshape(1, -1)


def test_images_lie_where_the_tensor_lies() -> None:
    batch = np.stack([IMAGE, IMAGE[::-1]])
    first, second = images_of({"IMAGE": batch}, "bgr")
    assert (first.address, second.address) == (batch.ctypes.data, batch.ctypes.data + IMAGE.size)
    np.testing.assert_array_equal(second.rgb(), IMAGE[::-1, :, ::-1])


def test_images_in_gpu_memory_are_described_and_not_read() -> None:
    tensor = dlpack_producer.Tensor(np.stack([IMAGE, IMAGE]), (dlpack_producer.CUDA, 3), versioned=False)
    first, second = images_of({"IMAGE": tensor}, "rgb")
    assert (first.device, first.size) == ("cuda:3", (41, 57))
    assert second.address - first.address == IMAGE.size
    assert tensor.deleted == []
    del first, second
    assert tensor.deleted


@pytest.mark.parametrize(
    ("tensors", "order", "error", "message"),
    [
        ({}, "rgb", ImageError, "no input"),
        ({"IMAGE": IMAGE[None], "ENCODED": PNG}, "rgb", ImageError, "ENCODED and IMAGE"),
        ({"IMAGE": IMAGE[None, :0]}, "rgb", ImageError, "empty"),
        ({"ENCODED": PNG[:, :0]}, "rgb", ImageError, "empty"),
        ({"IMAGE": IMAGE[None]}, "rgba", SettingsError, "rgb or bgr"),
        ({"IMAGE": IMAGE[None]}, 7, SettingsError, "rgb or bgr"),
        ({"ENCODED": dlpack_producer.Tensor(PNG)}, "rgb", ImageError, "decoded on the host"),
    ],
)
def test_inputs_that_are_no_images(tensors: dict, order: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        images_of(tensors, order)


def test_an_error_is_that_of_its_call_alone(segmenter: Segmenter) -> None:
    damaged = PNG[0, : PNG.size // 2]
    plain, slide = ({"inference": settings} for settings in (segmenter.inference, SLIDE))
    calls = [
        Call([PNG[0]], plain),
        Call([PNG[0], damaged, PNG[0]], plain),
        Call(error=ImageError("no input")),
        Call([IMAGE, IMAGE[:30]], slide),
        Call([damaged], slide),
        Call([IMAGE], plain),
    ]
    segment(segmenter, calls)
    assert [len(call.results) for call in calls] == [1, 1, 0, 2, 0, 1]
    assert ["cut off" in str(call.error) for call in calls] == [False, True, False, False, True, False]
    assert [call.error is None for call in calls] == [True, False, False, True, False, True]
    want = segmenter(IMAGE)
    for call in (calls[0], calls[5]):
        np.testing.assert_array_equal(call.results[0].labels, want.labels)
    np.testing.assert_array_equal(calls[3].results[0].labels, segmenter(IMAGE, inference=SLIDE).labels)


@pytest.mark.parametrize("depth", [0, 3])
def test_images_submitted_behind_one_that_fails_are_segmented(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    """As on a GPU, where images are submitted early and one may fail when its label map is collected."""
    jobs, collect = [10, 11, -1, 12, 13, 14], type(segmenter.runtime).collect

    def failing(self: object, outputs: Outputs) -> None:
        collect(self, outputs)  # type: ignore[arg-type]
        if outputs.labels.shape[1] == 12:
            raise EngineError("12")

    monkeypatch.setattr(type(segmenter.runtime), "prefetch", depth)
    monkeypatch.setattr(type(segmenter.runtime), "collect", failing)
    outcomes = list(segment_each(segmenter, iter(jobs), lambda side: np.zeros((9, side, 3), np.uint8)))
    assert [job for job, _ in outcomes] == jobs
    results = [result if isinstance(result, Exception) else result.labels.shape[1] for _, result in outcomes]
    assert [results[:2], results[4:]] == [[10, 11], [13, 14]]
    assert [type(results[2]), type(results[3])] == [ValueError, EngineError]


def test_outputs_are_those_requested(segmenter: Segmenter) -> None:
    result = segmenter(IMAGE, probabilities=True)
    both = arrays_of(Call(results=[result, result], outputs=frozenset({"LABELS", "PROBABILITIES"})))
    assert {name: array.shape for name, array in both.items()} == {
        "LABELS": (2, 41, 57),
        "PROBABILITIES": (2, 3, 41, 57),
    }
    one = arrays_of(Call(results=[result], outputs=frozenset({"LABELS"})))
    assert list(one) == ["LABELS"]
    assert np.shares_memory(one["LABELS"], result.labels)
    with pytest.raises(ImageError, match=r"different sizes, \[\(30, 57\), \(41, 57\)\]"):
        arrays_of(Call(results=[result, segmenter(IMAGE[:30])], outputs=frozenset({"LABELS"})))


@pytest.mark.parametrize(
    ("parameters", "changes"),
    [
        ({}, {}),
        ({"preset": "default", "flip": True, "scales": "0.5 1"}, {"flip": True, "scales": (0.5, 1.0)}),
        ({"scales": 2}, {"scales": (2.0,)}),
        (
            {"mode": "slide", "window": "40x48", "stride": "20,24", "softmax_before_resize": "True"},
            {"mode": "slide", "window": (40, 48), "stride": (20, 24), "softmax_before_resize": True},
        ),
        ({"mode": "slide"}, {"mode": "slide", "window": SLIDE.window, "stride": SLIDE.stride}),
    ],
)
def test_parameters_change_the_preset(segmenter: Segmenter, parameters: dict, changes: dict) -> None:
    assert inference_of(parameters, segmenter) == segmenter.inference.replace(**changes)


def test_a_preset_is_taken_by_name(segmenter: Segmenter) -> None:
    assert inference_of({"preset": "ms-flip"}, segmenter) == SLIDE


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"preset": "best"}, "there are: default, ms-flip"),
        ({"preset": ""}, "preset '' is unknown"),
        ({"presett": "default"}, "parameter presett is unknown; a request may have: preset, order, mode"),
        ({"window": "40", "mode": "slide"}, "parameter window is '40'"),
        ({"stride": 9, "mode": "slide"}, "parameter stride is 9"),
        ({"scales": "much"}, "parameter scales is 'much'"),
        ({"scales": "nan"}, "scales"),
        ({"flip": 2}, "parameter flip is 2; give true or false"),
        ({"mode": 5}, "mode 5 is unknown"),
        ({"window": "9x9"}, "belong to mode slide"),
        ({"mode": "slide", "window": "8x8", "stride": "9x9"}, "uncovered"),
    ],
)
def test_parameters_that_cannot_be_used(segmenter: Segmenter, parameters: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        inference_of(parameters, segmenter)
