"""`isnet_trt.embed`, the Python side of the C library, without C."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
import tiny_model

from isnet_trt import Segmenter, embed
from isnet_trt.settings import Preprocess

HEIGHT, WIDTH = 77, 109
PICTURE = np.random.default_rng(7).integers(0, 256, (17, 23, 3), np.uint8).repeat(5, 0).repeat(5, 1)[:77, :109].copy()
ARGUMENT, IMAGE, CLOSED = -2, -3, -8


@pytest.fixture
def handle(tmp_path, monkeypatch):
    """A segmenter of 300 classes."""
    segmenter = Segmenter(tiny_model.open_tiny(tmp_path, 300), tiny_model.labels(300), Preprocess((200, 96)))
    monkeypatch.setattr(embed.Segmenter, "open", lambda *_, **__: segmenter)
    status, _, (number, _) = embed.call("open_segmenter", b"bundle", None, None, None, 0)
    assert status == 0
    yield number
    embed.call("close", number)


def segment(handle, image, out, size=(HEIGHT, WIDTH), pixel_format=b"rgb", **changes):
    """The arguments of `embed.segment` for whole arrays, with ``changes``; (status, message)."""
    arguments = {
        "planes": (image.ctypes.data, 0, 0),
        "pitches": (0, 0, 0),
        "height": size[0],
        "width": size[1],
        "pixel_format": pixel_format,
        "device": None,
        "matrix": None,
        "value_range": None,
        "labels": out.ctypes.data,
        "labels_pitch": out.strides[0],
        "labels_device": None,
        "stream": 0,
        "preset": None,
    }
    assert set(changes) <= set(arguments)
    status, message, _ = embed.call("segment", handle, *(arguments | changes).values())
    return status, message.decode()


def test_labels_of_two_bytes_in_padded_rows(handle):
    labels = np.zeros((HEIGHT, WIDTH + 9), np.uint16)
    assert embed.call("describe", handle)[2][:2] == (2, 300)
    assert segment(handle, PICTURE, labels) == (0, "")
    assert (labels[:, :WIDTH] == embed._open[handle](PICTURE).labels).all()
    assert not labels[:, WIDTH:].any()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("pixel_format", ["i420", "nv12"])
def test_surfaces(handle, pixel_format, apart):
    size = height, width = HEIGHT & ~1, WIDTH & ~1
    surface = cv2.cvtColor(np.ascontiguousarray(PICTURE[:height, :width]), cv2.COLOR_RGB2YUV_I420)
    u, v = surface[height:].reshape(2, -1)
    if pixel_format == "nv12":
        surface = np.vstack([surface[:height], np.stack([u, v], 1).reshape(-1, width)])
    parts = (height * width, height * width // (4 if pixel_format == "i420" else 2))
    ends = itertools.accumulate(parts, initial=surface.ctypes.data)
    planes = (*ends,)[: 3 if pixel_format == "i420" else 2] + (0,) * (pixel_format == "nv12")
    labels = np.zeros(size, np.uint16)
    changes = {"planes": planes} if apart else {}
    assert segment(handle, surface, labels, size, pixel_format.encode(), **changes) == (0, "")
    code = cv2.COLOR_YUV2RGB_I420 if pixel_format == "i420" else cv2.COLOR_YUV2RGB_NV12
    assert (labels == embed._open[handle](cv2.cvtColor(surface, code)).labels).all()


def test_refusals(handle):
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    refused = {
        (IMAGE, "not one and a half times a height"): {"pixel_format": b"i420", "height": 3},
        (IMAGE, "null pointer"): {"planes": (0, 0, 0)},
        (IMAGE, "pixels is larger than ISNET_TRT_MAX_PIXELS"): {"height": 1 << 20, "width": 1 << 20},
        (ARGUMENT, "null pointer"): {"labels": 0},
        (ARGUMENT, "multiples of 2"): {"labels": labels.ctypes.data + 1},
        (ARGUMENT, "memory of cuda:0"): {"labels_device": b"cuda:0"},
        (ARGUMENT, "leave stream out"): {"stream": 1},
        (ARGUMENT, "matrix 'bt2100' is unknown"): {"pixel_format": b"nv12", "height": 2, "matrix": b"bt2100"},
    }
    for (status, part), changes in refused.items():
        answer = segment(handle, PICTURE, labels, **changes)
        assert answer[0] == status, answer
        assert part in answer[1]
    assert segment(handle + 2, PICTURE, labels)[0] == CLOSED


def test_a_call_that_waits_while_its_handle_is_closed(handle, monkeypatch):
    segmenter = embed._open[handle]
    read = embed._source

    def close_meanwhile(*arguments):
        assert embed.call("close", handle)[0] == 0
        return read(*arguments)

    monkeypatch.setattr(embed, "_source", close_meanwhile)
    status, message = segment(handle, PICTURE, np.zeros((HEIGHT, WIDTH), np.uint16))
    assert (status, message.startswith("ClosedHandle")) == (CLOSED, True)
    assert embed.call("close", handle)[0] == CLOSED
    assert repr(segmenter).endswith("closed>")


def test_an_open_engine_that_fails_keeps_its_status(handle, monkeypatch):
    def fail(*_, **__):
        raise embed.EngineError("out of order")

    monkeypatch.setattr(embed._open[handle].runtime, "submit", fail)
    answer = segment(handle, PICTURE, np.zeros((HEIGHT, WIDTH), np.uint16))
    assert answer == (-6, "EngineError: out of order")
