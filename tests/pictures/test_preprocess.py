"""Reading, checking, resizing and normalising pictures."""

from __future__ import annotations

import numpy as np
import pytest
from golden_files import GOLDEN

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.pictures.preprocess import check_image, normalise, resize, test_size
from isnet_trt.settings import Preprocess

TARGETS = {
    "short512": Preprocess((2048, 512)),
    "city": Preprocess((2048, 1024)),
    "lip": Preprocess((473, 473), keep_ratio=False),
}


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)


@pytest.mark.parametrize("name", TARGETS)
def test_test_sizes_are_the_references(name):
    golden = np.load(GOLDEN / "golden_pipeline.npz")
    for size, want in zip(golden["resize_in_hw"].tolist(), golden[f"resize_out_hw_{name}"].tolist(), strict=True):
        assert test_size(tuple(size), TARGETS[name]) == tuple(want)


@pytest.mark.parametrize(("size", "want"), [((20000, 40), (2048, 4)), ((1, 1), (512, 512)), ((40, 20000), (4, 2048))])
def test_extreme_pictures_have_a_test_size(size, want):
    assert test_size(size, TARGETS["short512"]) == want


@pytest.mark.parametrize("size", [(1, 20000), (5000, 1)])
def test_too_narrow_pictures_are_refused(size):
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]} is too narrow"):
        test_size(size, TARGETS["short512"])


@pytest.mark.parametrize("name", TARGETS)
def test_values_are_the_references(name, fill):
    golden = np.load(GOLDEN / "golden_pipeline.npz")
    seed, height, width = (int(v) for v in golden[f"value_{name}_in"])
    resized = resize(fill.image(seed, height, width), TARGETS[name])
    assert resized.shape[:2] == tuple(golden[f"value_{name}_out_hw"])
    places = golden[f"value_{name}_idx_hwc"]
    difference = resized.reshape(-1)[places].astype(int) - golden[f"value_{name}_rgb_u8"]
    assert np.abs(difference).max() <= 1  # OpenCV versions differ in the last bit
    exact = difference == 0
    assert exact.mean() > 0.9
    x = normalise(resized, TARGETS[name])
    assert x.dtype == np.float32
    assert (x.reshape(-1)[places][exact] == golden[f"value_{name}_norm_f32"][exact]).all()


def test_normalisation_rounds_as_the_formula(picture):
    rule = Preprocess((10, 10), mean=(1.5, 100.25, 3.75), std=(2.5, 50.125, 77.7))
    want = (picture.astype(np.float32) - np.float32(rule.mean)).astype(np.float64) * (1 / np.float64(rule.std))
    assert (normalise(picture, rule) == want.astype(np.float32)).all()


def test_networks_layout_of_normalised_pictures_is_no_copy(picture):
    assert normalise(picture, TARGETS["city"]).transpose(2, 0, 1).flags.c_contiguous


LAYOUTS = {
    "plain": lambda image: image,
    "upside down": lambda image: image[::-1].copy()[::-1],
    "negative everywhere": lambda image: image[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
    "fortran": np.asfortranarray,
    "channels first in memory": lambda image: image.transpose(2, 0, 1).copy().transpose(1, 2, 0),
    "every other": lambda image: image.repeat(2, axis=0).repeat(2, axis=1)[::2, ::2],
    "read-only": lambda image: np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_memory_layout_is_taken(name, picture):
    laid_out = LAYOUTS[name](picture)
    checked = check_image(laid_out)
    assert checked.flags.c_contiguous
    assert (checked == picture).all()
    assert (check_image(laid_out, "bgr") == picture[..., ::-1]).all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_alpha_is_passed_over(name, picture):
    laid_out = LAYOUTS[name](np.dstack([picture, picture[..., 0]]))
    assert (check_image(laid_out, "rgba") == picture).all()
    assert (check_image(laid_out, "bgra") == picture[..., ::-1]).all()
    assert check_image(laid_out, "bgra").flags.c_contiguous


def test_overlapping_rows_are_taken():
    line = np.arange(60, dtype=np.uint8)
    for order, stride in (("bgr", 3), ("bgr", 0), ("bgra", 7)):
        channels = len(order)
        overlapping = np.lib.stride_tricks.as_strided(line, (5, 6, channels), (stride, channels, 1))
        assert (check_image(overlapping, order) == overlapping[:, :, 2::-1]).all()


BAD = {
    "empty": (np.zeros((0, 5, 3), np.uint8), "empty"),
    "grey": (np.zeros((4, 5), np.uint8), "COLOR_GRAY2RGB"),
    "one channel": (np.zeros((4, 5, 1), np.uint8), "COLOR_GRAY2RGB"),
    "alpha": (np.zeros((4, 5, 4), np.uint8), r"image\[:, :, :3\]"),
    "float": (np.zeros((4, 5, 3), np.float32), r"\* 255"),
    "16 bits": (np.zeros((4, 5, 3), np.uint16), "image >> 8"),
    "signed": (np.zeros((4, 5, 3), np.int64), "astype"),
    "channels first": (np.zeros((3, 4, 5), np.uint8), "moveaxis"),
    "two channels": (np.zeros((4, 5, 2), np.uint8), "three channels"),
    "batch": (np.zeros((1, 4, 5, 3), np.uint8), "one picture"),
    "line": (np.zeros(5, np.uint8), "three channels"),
    "no array": ([[[1, 2, 3]]], "numpy array or a path, not list"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_with_the_way_out(name):
    image, advice = BAD[name]
    with pytest.raises(ImageError, match=advice):
        check_image(image)


def test_unknown_order_is_refused(picture):
    with pytest.raises(SettingsError, match="gbr"):
        check_image(picture, "gbr")
