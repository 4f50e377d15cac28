"""NV12 and I420: the colours of OpenCV's conversion, planes in any form, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import tiny_model
import torch
from dlpack_producer import CudaArray

from isnet_trt import I420, NV12, ImageError, RawPlane, Segmenter, SettingsError
from isnet_trt.pictures.formats import YuvFormat
from isnet_trt.pictures.preprocess import yuv_to_rgb

HEIGHT, WIDTH = SIZE = 262, 46
RNG = np.random.default_rng(5)
Y = cv2.resize(RNG.integers(0, 256, (20, 6), np.uint8), (WIDTH, HEIGHT))
U, V = (cv2.resize(RNG.integers(0, 256, (9, 4), np.uint8), (WIDTH // 2, HEIGHT // 2)) for _ in range(2))
UV = np.dstack([U, V])
FRAME = np.vstack([Y, UV.reshape(HEIGHT // 2, WIDTH)])
FRAME_I420 = np.concatenate([Y.ravel(), U.ravel(), V.ravel()]).reshape(HEIGHT * 3 // 2, WIDTH)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory):
    with Segmenter.open(tiny_model.write_bundle(tmp_path_factory.mktemp("bundle"), tiny_model.labels(6))) as opened:
        yield opened


def every_value() -> list[np.ndarray]:
    """Planes with every Y for every fourth U and V."""
    chroma = np.arange(0, 256, 4, dtype=np.uint8)
    u, v = (plane.repeat(64, 0) for plane in np.meshgrid(chroma, chroma))
    return [np.tile(np.arange(256, dtype=np.uint8).reshape(-1, 2), (64, 64)), u, v]


def test_opencv_makes_the_same_colours() -> None:
    planes = every_value()
    frame = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, planes[0].shape[1])
    expected = cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_I420)
    assert (yuv_to_rgb(planes, YuvFormat("i420")) == expected).all()
    assert (yuv_to_rgb([planes[0], np.dstack(planes[1:])], YuvFormat("nv12")) == expected).all()


SHARES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


@pytest.mark.parametrize(("matrix", "range"), list(itertools.product(SHARES, ("limited", "full"))))
def test_the_standards_definition(matrix: Any, range: Any) -> None:
    """R', G', B' from Y' = kr·R' + kg·G' + kb·B', Cb = (B' − Y') / (2 − 2·kb), Cr = (R' − Y') / (2 − 2·kr)."""
    planes = every_value()
    rgb = yuv_to_rgb(planes, YuvFormat("i420", matrix, range)).astype(int)
    y, cb, cr = planes[0].astype(float), *(np.kron(p.astype(float) - 128, np.ones((2, 2))) for p in planes[1:])
    if range == "limited":
        y, cb, cr = (np.maximum(y, 16) - 16) / 219 * 255, cb / 224 * 255, cr / 224 * 255
    kr, kb = SHARES[matrix]
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    expected = np.clip(np.dstack([red, green, blue]), 0, 255)
    assert np.abs(rgb - expected).max() < (1.01 if (matrix, range) == ("bt601", "limited") else 0.51)


def padded(plane: np.ndarray) -> np.ndarray:
    rows = np.full((len(plane), plane[0].size + 13), 77, np.uint8)
    rows[:, : plane[0].size] = plane.reshape(len(plane), -1)
    return rows[:, : plane[0].size]


def pointer(plane: np.ndarray) -> RawPlane:
    return RawPlane(plane.ctypes.data, *plane.shape, plane.strides[0], owner=plane)


FORMS: dict[str, Callable[[], Any]] = {
    "NV12": lambda: NV12(Y, UV),
    "rows of pairs": lambda: NV12(Y, UV.reshape(HEIGHT // 2, WIDTH)),
    "padding": lambda: NV12(padded(Y), padded(UV)),
    "one plane": lambda: NV12(FRAME),
    "one plane with padding": lambda: NV12(padded(FRAME)),
    "pointers": lambda: NV12(pointer(padded(Y)), pointer(padded(UV))),
    "one pointer": lambda: NV12(pointer(padded(FRAME))),
    "tensors": lambda: NV12(torch.from_numpy(Y), torch.from_numpy(UV)),
    "upside down": lambda: NV12(Y[::-1].copy()[::-1], UV[:, ::-1].copy()[:, ::-1]),
    "memoryview": lambda: NV12(memoryview(FRAME)),
    "I420": lambda: I420(Y, U, V),
    "I420, padding": lambda: I420(padded(Y), padded(U), padded(V)),
    "I420, one plane": lambda: I420(FRAME_I420),
    "I420, pointers": lambda: I420(pointer(Y), pointer(padded(U)), pointer(padded(V))),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_labels_are_those_of_the_converted_array(name: str, segmenter: Segmenter) -> None:
    rgb = cv2.cvtColor(FRAME, cv2.COLOR_YUV2RGB_NV12)
    expected = segmenter(rgb).labels
    assert len(np.unique(expected)) > 1
    image = FORMS[name]()
    assert (image.rgb() == rgb).all()
    out = np.empty(SIZE, np.uint8)
    result = segmenter(image, out=out)
    assert (out == expected).all()
    assert (result.overlay(image) == result.overlay(rgb)).all()


def test_other_matrices_reach_the_network(segmenter: Segmenter) -> None:
    full = NV12(Y, UV, matrix="bt709", range="full")
    assert (segmenter(full).labels == segmenter(full.rgb()).labels).all()
    assert (full.rgb() != NV12(Y, UV).rgb()).mean() > 0.5
    (labels,) = (found.labels for found in segmenter.map([full]))
    assert labels.shape == SIZE


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "odd width": (lambda: NV12(Y[:, :-1], UV), "NV12: 262x45 is odd; height and width must be even"),
    "odd height": (lambda: I420(Y[:-1], U, V), "I420: 261x46 is odd"),
    "odd in one": (lambda: NV12(np.zeros((9, 5), np.uint8)), "NV12: 6x5 is odd"),
    "no third": (lambda: NV12(FRAME[:-1]), "NV12: 392 rows are not one and a half times a height"),
    "short UV": (lambda: NV12(Y, UV[:-1]), "NV12: uv has 130x46 bytes, but with a y of 262x46 it must have 131x46"),
    "I420 for NV12": (lambda: NV12(Y, U), "NV12: uv has 131x23 bytes.*131x46"),
    "large U": (lambda: I420(Y, Y, V), "I420: u has 262x46 bytes.*131x23"),
    "no V": (lambda: I420(Y, U), "I420: v cannot be NoneType"),
    "list": (lambda: NV12([[1, 2]], UV), "NV12: y cannot be list"),
    "ten bits": (lambda: NV12(Y.astype(np.uint16), UV), r"NV12: y must be uint8.*uint16 \(262, 46\)"),
    "RGB": (lambda: NV12(np.zeros((4, 4, 3), np.uint8)), r"NV12: y must be uint8 \(rows, bytes\)"),
    "empty": (lambda: NV12(Y[:0], UV), r"NV12: y must be uint8.*\(0, 46\)"),
    "padding of I420 in one": (lambda: I420(padded(FRAME_I420)), "pitch of 59.*pass y, u and v"),
    "two devices": (lambda: NV12(Y, CudaArray(UV)), "NV12: uv is in the memory of cuda:0, y in that of cpu"),
    "null": (lambda: NV12(RawPlane(0, 4, 4), UV), "RawPlane: the address is a null pointer"),
}


@pytest.mark.parametrize("name", BAD)
def test_planes_that_do_not_fit_are_refused(name: str, segmenter: Segmenter) -> None:
    make, message = BAD[name]
    with pytest.raises(ImageError, match=message):
        segmenter(make())


def test_settings_and_memory_that_cannot_be(segmenter: Segmenter) -> None:
    with pytest.raises(SettingsError, match="matrix 'bt470' is unknown; use 'bt601', 'bt709', 'bt2020'"):
        segmenter(NV12(Y, UV, matrix="bt470"))
    with pytest.raises(SettingsError, match="range 'tv' is unknown; use 'limited', 'full'"):
        segmenter(I420(Y, U, V, range="tv"))
    uv = np.vstack([UV.reshape(HEIGHT // 2, WIDTH)] * 2)
    with pytest.raises(SettingsError, match="overlaps the image"):
        segmenter(NV12(Y, uv[: HEIGHT // 2]), out=uv)
    with pytest.raises(SettingsError, match="image is in the memory of cuda:0"):
        segmenter(NV12(CudaArray(Y), CudaArray(UV)))
