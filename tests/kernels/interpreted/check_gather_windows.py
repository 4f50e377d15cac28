"""`gather_windows` against its references, OpenCV and the host form."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from interpreter import poisoned, tensor, values

from isnet_trt.kernels import gather_windows
from isnet_trt.merging import windows
from isnet_trt.pictures import preprocess
from isnet_trt.pictures.preprocess import _tables
from isnet_trt.settings import Inference, Preprocess

# The roundings of a few float32 operations, then one to the batch's type (the interpreter cuts bfloat16 off instead of
# rounding it); values are within -2.2 .. 2.7.
TOLERANCE = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1.6e-2}
SETTINGS = Preprocess((2048, 512))
TABLE = _tables(SETTINGS.mean, SETTINGS.std)


def picture(height, width, pitch=None, seed=0, pixel=3):
    """A random picture (H, W, 3), and it in rows ``pitch`` apart and ``pixel`` bytes a pixel, poisoned between."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    pitch = pitch or pixel * width
    memory = np.full((height, pitch), 99, np.uint8)
    memory[:, : pixel * width].reshape(height, width, pixel)[:, :, :3] = pixels
    return pixels, memory, pitch


SIZES = [((11, 33), (17, 57)), ((30, 31), (13, 11)), ((16, 44), (8, 22)), ((5, 300), (3, 259)), ((1, 1), (3, 5))]


@pytest.mark.parametrize(("bgr", "pixel"), [(False, 3), (True, 4)])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resize_is_that_of_opencv(source, target, bgr, pixel):
    pixels, memory, pitch = picture(*source, pitch=pixel * source[1] + 7, pixel=pixel)
    out = torch.full((*target, 3), 77, dtype=torch.uint8)
    gather_windows.launch_resize().run(
        source=tensor(memory), picture=out, pitch=pitch, pixel=pixel, bgr=int(bgr),
        source_height=source[0], source_width=source[1], height=target[0], width=target[1],
    )  # fmt: skip
    rgb = np.ascontiguousarray(pixels[:, :, ::-1] if bgr else pixels)
    np.testing.assert_array_equal(out.numpy(), gather_windows.resize_reference(rgb, *target))
    assert_like_opencv(out.numpy(), rgb)


def assert_like_opencv(made, source):
    """Equal on 99.9 % of the values, nowhere more than one level off."""
    wanted = cv2.resize(source, made.shape[1::-1], interpolation=cv2.INTER_LINEAR).reshape(made.shape)
    distance = np.abs(made.astype(int) - wanted)
    assert distance.max() <= 1
    assert (distance == 0).mean() >= 0.999


@pytest.mark.parametrize(
    ("source", "target"), [((375, 500), (512, 683)), ((1200, 1600), (512, 683)), ((301, 199), (473, 473))]
)
def test_the_reference_is_that_of_opencv_on_whole_pictures(source, target):
    pixels = cv2.GaussianBlur(picture(*source)[0], (0, 0), 1.5)
    assert_like_opencv(gather_windows.resize_reference(pixels, *target), pixels)


def run_gather(memory, pitch, size, queue, slots, dtype, bgr=False, pixel=3):
    table = np.zeros((slots, 4), np.int32)
    steps = np.ones(slots, np.float32)
    for i, window in enumerate(queue):
        table[i] = window.top, window.left, window.of.mirrored, 1
        steps[i] = 1 / window.of.scale
    height, width = queue[0].size
    out = poisoned(slots, 3, height, width, dtype=dtype)
    gather_windows.launch_gather(dtype).run(
        picture=tensor(memory), table=tensor(TABLE), windows=tensor(table), steps=tensor(steps), out=out, pitch=pitch,
        pixel=pixel, bgr=int(bgr), picture_height=size[0], picture_width=size[1], batch=slots, height=height,
        width=width,
    )  # fmt: skip
    return values(out), table, steps


@pytest.mark.parametrize(("dtype", "bgr"), [("fp32", False), ("fp16", True), ("bf16", False)])
def test_windows_of_all_scales_and_flips_are_those_of_the_host(dtype, bgr):
    pixel = 4 if bgr else 3
    pixels, memory, pitch = picture(19, 61, pitch=250, pixel=pixel)
    rgb = np.ascontiguousarray(pixels[:, :, ::-1] if bgr else pixels)
    planes = preprocess.normalise(rgb, SETTINGS).transpose(2, 0, 1)
    inference = Inference("slide", (7, 29), (5, 23), (0.5, 0.8, 1.75), flip=True)
    plan = windows.plan((19, 61), inference)
    for group, wanted in list(windows.gather(planes, plan.windows, 3))[:: 6 if dtype == "fp32" else 18]:
        made, table, steps = run_gather(memory, pitch, (19, 61), group, 4, dtype, bgr, pixel)
        np.testing.assert_allclose(made[: len(group)], wanted, atol=TOLERANCE[dtype])
        assert (made[len(group) :] == 0).all()
        own = gather_windows.gather_reference(rgb, TABLE, table, steps, *group[0].size)
        np.testing.assert_allclose(made, own, atol=TOLERANCE[dtype])


def test_scale_one_gives_the_normalised_bytes_themselves():
    pixels, memory, pitch = picture(9, 140)
    group = list(windows.plan((9, 140), Inference()).windows)
    made, _, _ = run_gather(memory, pitch, (9, 140), group, 1, "fp32")
    np.testing.assert_array_equal(made[0], preprocess.normalise(pixels, SETTINGS).transpose(2, 0, 1))
