"""Each augmentation step by its rule."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from isnet_trt.recipes import RECIPES, Augmentation, recipe
from isnet_trt.training.data import augment
from isnet_trt.training.data.augment import (
    IGNORE,
    Augment,
    linear,
    pad,
    padded_size,
    photometric,
    random_crop,
    random_flip,
    random_resize,
    random_rotation,
    rotate_hue,
    saturate,
)

STEPS = ("random_resize", "random_crop", "random_flip", "random_rotation", "photometric", "normalise", "pad")


class Fixed:
    """A generator whose draws are given."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def _next(self, *_: object) -> float:
        return self.values.pop(0)

    random = uniform = integers = _next


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_resize_scales_the_base_before_the_ratio_is_kept() -> None:
    rule = Augmentation((2048, 512))
    image, labels = random_resize(picture(300, 401), np.zeros((300, 401), np.int16), rule, Fixed(1.301))
    factor = min(int(2048 * 1.301) / 401, int(512 * 1.301) / 300)
    assert labels.shape == image.shape[:2] == (int(300 * factor + 0.5), int(401 * factor + 0.5))


def test_resize_takes_labels_from_the_nearest_pixel() -> None:
    labels = np.random.default_rng(1).integers(0, 9, (37, 53)).astype(np.int16)
    _, resized = random_resize(picture(37, 53), labels, Augmentation((60, 90), keep_ratio=False), Fixed(1.0))
    np.testing.assert_array_equal(resized, cv2.resize(labels, (90, 60), interpolation=cv2.INTER_NEAREST))


def test_crop_refuses_one_class_and_three_quarters() -> None:
    labels = np.zeros((4, 40), np.int16)
    labels[:, 20:] = 1
    image = picture(4, 40)
    # One class; 6 of 8 columns, exactly 75 %; 7 of 8; 5 of 8 is taken; never drawn.
    rng = Fixed(0, 0, 0, 14, 0, 13, 0, 15, 0, 30)
    cut, _ = random_crop(image, labels, (4, 8), rng)
    np.testing.assert_array_equal(cut, image[:, 15:23])
    assert rng.values == [0, 30]


def test_crop_takes_the_tenth_draw_when_none_fits() -> None:
    labels = np.arange(40, dtype=np.int16)[None].repeat(8, 0) // 100
    rng = Fixed(*[v for i in range(10) for v in (0, i)])
    image = picture(8, 40)
    cut, _ = random_crop(image, labels, (8, 8), rng)
    np.testing.assert_array_equal(cut, image[:, 9:17])
    assert not rng.values


def test_crop_ignores_ignored_pixels_in_the_share() -> None:
    labels = np.full((4, 4), IGNORE, np.int16)
    labels[0, :2], labels[1, 0] = (0, 1), 0
    rng = Fixed(0, 0)
    random_crop(picture(4, 4), labels, (4, 4), rng)
    assert not rng.values  # 2 of 3 valid pixels is below 75 %: accepted at once


def test_crop_of_nothing_valid_returns_the_sample_whole() -> None:
    labels = np.full((30, 30), IGNORE, np.int16)
    image = picture(30, 30)
    whole, _ = random_crop(image, labels, (8, 8), np.random.default_rng(0))
    np.testing.assert_array_equal(whole, image)


def test_crop_is_clipped_to_the_picture() -> None:
    image, labels = random_crop(picture(5, 90), np.zeros((5, 90), np.int16), (16, 24), np.random.default_rng(0))
    assert labels.shape == image.shape[:2] == (5, 24)


def test_flip_mirrors_and_exchanges_the_pair() -> None:
    image = picture(3, 5)
    labels = np.array([[7, 8, 0, 1, 7]] * 3, np.int16)
    flipped, swapped = random_flip(image, labels, ((7, 8),), Fixed(0.49))
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    assert swapped[0].tolist() == [8, 1, 0, 7, 8]
    kept, same = random_flip(image, labels, ((7, 8),), Fixed(0.5))
    assert kept is image
    assert same is labels


def test_colour_steps_clip_and_truncate() -> None:
    image = np.array([[[0, 101, 255]]], np.uint8)
    assert linear(image, offset=-31.5).tolist() == [[[0, 69, 223]]]
    assert linear(image, factor=1.499).tolist() == [[[0, 151, 255]]]


def test_hue_turns_on_the_exchanged_channels() -> None:
    blue_green_red = np.array([[[255, 0, 0]]], np.uint8)  # blue in B, G, R order, taken for red
    assert rotate_hue(blue_green_red, 60).tolist() == [[[0, 255, 0]]]
    assert rotate_hue(blue_green_red, -60).tolist() == [[[0, 0, 255]]]
    grey = np.full((2, 2, 3), 90, np.uint8)
    np.testing.assert_array_equal(saturate(grey, 1.5), grey)


def test_contrast_comes_before_or_after_the_colours() -> None:
    image = picture(6, 7)
    early = photometric(image, Fixed(0.9, 0.9, 0.1, 1.4, 0.1, 0.5, 0.9))
    np.testing.assert_array_equal(early, saturate(linear(image, 1.4), 0.5))
    late = photometric(image, Fixed(0.1, 0.9, 0.1, 0.5, 0.9, 0.1, 1.4))
    np.testing.assert_array_equal(late, linear(saturate(image, 0.5), 1.4))


def test_network_input_is_rgb_normalised() -> None:
    chain = Augment(Augmentation((4, 4), (1.0, 1.0)), (4, 4), (), recipe("isnet_demo").preprocess)
    bgr = np.full((4, 4, 3), (10, 20, 30), np.uint8)
    rng = Fixed(1.0, *[0.0] * 20, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9)  # no resize, the only crop, no flip, no colour step
    x, _ = chain(bgr, np.zeros((4, 4), np.int16), rng)
    mean, std = np.array(chain.preprocess.mean), np.array(chain.preprocess.std)
    np.testing.assert_allclose(x[:, 0, 0], ([30, 20, 10] - mean) / std, atol=1e-6)  # float32


def test_pad_centres_with_the_smaller_half_first() -> None:
    out, target = pad(np.ones((3, 3, 4), np.float32), np.zeros((3, 4), np.int16), (6, 9))
    assert np.nonzero(target == 0)[0].min() == 1
    assert np.nonzero(target == 0)[1].min() == 2
    assert (target == IGNORE).sum() == 6 * 9 - 12
    assert out[:, target == IGNORE].max() == 0
    assert out[:, target == 0].min() == 1


def test_pad_cuts_a_larger_sample_to_its_centre() -> None:
    x = np.arange(10 * 12 * 3, dtype=np.float32).reshape(3, 10, 12)
    out, _ = pad(x, np.zeros((10, 12), np.int16), (4, 6))
    np.testing.assert_array_equal(out, x[:, 3:7, 3:9])


def test_padding_turns_for_the_other_orientation_where_the_recipe_says_so() -> None:
    assert padded_size((12, 5), (8, 16), True) == (16, 8)
    assert padded_size((5, 12), (16, 8), True) == (8, 16)
    assert padded_size((5, 12), (8, 16), True) == padded_size((7, 7), (8, 16), True) == (8, 16)
    assert padded_size((12, 5), (8, 16), False) == (8, 16)


def test_a_portrait_picture_of_a_landscape_recipe() -> None:
    chain = Augment.of(recipe("isnet_resnet50os8_cityscapes"))
    labels = np.zeros((300, 40), np.int16)
    x, target = chain(picture(300, 40), labels, np.random.default_rng(0))
    assert (x.shape, target.shape) == ((3, 1024, 512), (1024, 512))
    fixed = dataclasses.replace(chain, augmentation=dataclasses.replace(chain.augmentation, pad_turns=False))
    assert fixed(picture(300, 40), labels, np.random.default_rng(0))[1].shape == (512, 1024)


def test_rotation_turns_picture_and_labels_about_the_centre() -> None:
    labels = np.zeros((40, 60), np.int16)
    labels[10:14, 20:26] = 3
    image = np.repeat(labels.astype(np.uint8)[..., None] * 60, 3, 2)
    turned, target = random_rotation(image, labels, (0.6, 30), Fixed(0.59, 28))
    assert turned.shape == image.shape
    assert (target.shape, target.dtype) == (labels.shape, np.int16)
    # By the formula: a pixel's place about (30, 20) turned by 28 degrees, y downwards.
    angle = np.deg2rad(28)
    rows, columns = np.mgrid[:40, :60]
    dx, dy = columns - 30.0, rows - 20.0
    x = np.cos(angle) * dx - np.sin(angle) * dy + 30
    y = np.sin(angle) * dx + np.cos(angle) * dy + 20
    inside = (np.round(x) >= 0) & (np.round(x) < 60) & (np.round(y) >= 0) & (np.round(y) < 40)
    want = np.full(labels.shape, IGNORE, np.int16)
    want[inside] = labels[np.round(y[inside]).astype(int), np.round(x[inside]).astype(int)]
    assert (target != want).mean() < 0.01  # OpenCV rounds places to 1/32 pixel
    assert (target == IGNORE).sum() > 100
    assert turned[target == IGNORE].max() == 0
    shown = turned[..., 0] > 90
    assert (shown != (target == 3)).sum() <= 8  # bicubic and nearest differ on the outline alone
    assert len(np.unique(turned)) > 3  # bicubic: in-between values


def test_rotation_takes_the_neighbours_that_float_labels_have() -> None:
    labels = np.random.default_rng(5).integers(IGNORE, 20, (157, 211)).astype(np.int16)
    _, target = random_rotation(picture(157, 211), labels, (0.6, 30), Fixed(0.0, -17))
    turn = cv2.getRotationMatrix2D((105.5, 78.5), -17, 1)
    values = labels.astype(np.float32)
    want = cv2.warpAffine(values, turn, (211, 157), flags=cv2.INTER_NEAREST, borderValue=IGNORE)
    np.testing.assert_array_equal(target, want)


def test_rotation_is_left_out_by_chance_and_by_recipe() -> None:
    image, labels = picture(9, 7), np.zeros((9, 7), np.int16)
    assert random_rotation(image, labels, (0.6, 30), Fixed(0.6))[0] is image
    assert random_rotation(image, labels, None, Fixed())[0] is image


def test_rotation_angles_are_whole_and_leave_the_largest_out() -> None:
    class Angles(Fixed):
        def integers(self, low: int, high: int) -> float:
            seen.append((low, high))
            return 0

    seen: list[tuple[int, int]] = []
    random_rotation(picture(9, 7), np.zeros((9, 7), np.int16), (0.6, 30), Angles(0.1))
    assert seen == [(-30, 30)]  # of a half-open range


@pytest.mark.parametrize("name", list(RECIPES))
def test_steps_in_the_published_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for step in STEPS:
        real = getattr(augment, step)
        monkeypatch.setattr(augment, step, lambda *a, step=step, real=real: (order.append(step), real(*a))[1])
    chain = Augment.of(recipe(name))
    x, target = chain(picture(61, 83), np.zeros((61, 83), np.int16), np.random.default_rng(0))
    assert order == [step for step in STEPS if step != "photometric" or name != "isnet_demo"]
    assert (x.shape[1:], x.dtype, target.shape, target.dtype) == (chain.crop, np.float32, chain.crop, np.int64)


def test_lip_alone_rotates_and_swaps() -> None:
    chains = {one.dataset: Augment.of(one) for one in RECIPES.values()}
    assert {name for name, chain in chains.items() if chain.augmentation.rotation} == {"lip"}
    assert chains["lip"].augmentation.rotation == (0.6, 30)
    assert {name for name, chain in chains.items() if chain.pairs} == {"lip", "scenes"}
    assert chains["lip"].pairs == ((14, 15), (16, 17), (18, 19))


def test_lip_resize_forgets_the_ratio() -> None:
    rule = recipe("isnet_resnet50os8_lip").augmentation
    _, labels = random_resize(picture(90, 33), np.zeros((90, 33), np.int16), rule, Fixed(1.201))
    assert labels.shape == (int(520 * 1.201), int(520 * 1.201))
