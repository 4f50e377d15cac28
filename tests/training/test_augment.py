"""Each augmentation step by its rule."""

from __future__ import annotations

import cv2
import numpy as np

from isnet_trt.training.data.augment import (
    IGNORE,
    Augment,
    linear,
    pad,
    photometric,
    random_crop,
    random_flip,
    random_resize,
    rotate_hue,
    saturate,
)
from isnet_trt.training.recipes import Augmentation, recipe


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
    image, labels = random_resize(picture(300, 401), np.zeros((300, 401), np.int16), rule, Fixed(1.301))  # type: ignore[arg-type]
    factor = min(int(2048 * 1.301) / 401, int(512 * 1.301) / 300)
    assert labels.shape == image.shape[:2] == (int(300 * factor + 0.5), int(401 * factor + 0.5))


def test_resize_takes_labels_from_the_nearest_pixel() -> None:
    labels = np.random.default_rng(1).integers(0, 9, (37, 53)).astype(np.int16)
    _, resized = random_resize(picture(37, 53), labels, Augmentation((60, 90), keep_ratio=False), Fixed(1.0))  # type: ignore[arg-type]
    np.testing.assert_array_equal(resized, cv2.resize(labels, (90, 60), interpolation=cv2.INTER_NEAREST))


def test_crop_refuses_one_class_and_three_quarters() -> None:
    labels = np.zeros((4, 40), np.int16)
    labels[:, 20:] = 1
    image = picture(4, 40)
    # One class; 6 of 8 columns, exactly 75 %; 7 of 8; 5 of 8 is taken; never drawn.
    rng = Fixed(0, 0, 0, 14, 0, 13, 0, 15, 0, 30)
    cut, _ = random_crop(image, labels, (4, 8), rng)  # type: ignore[arg-type]
    np.testing.assert_array_equal(cut, image[:, 15:23])
    assert rng.values == [0, 30]


def test_crop_takes_the_tenth_draw_when_none_fits() -> None:
    labels = np.arange(40, dtype=np.int16)[None].repeat(8, 0) // 100
    rng = Fixed(*[v for i in range(10) for v in (0, i)])
    image = picture(8, 40)
    cut, _ = random_crop(image, labels, (8, 8), rng)  # type: ignore[arg-type]
    np.testing.assert_array_equal(cut, image[:, 9:17])
    assert not rng.values


def test_crop_ignores_ignored_pixels_in_the_share() -> None:
    labels = np.full((4, 4), IGNORE, np.int16)
    labels[0, :2], labels[1, 0] = (0, 1), 0
    rng = Fixed(0, 0)
    random_crop(picture(4, 4), labels, (4, 4), rng)  # type: ignore[arg-type]
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
    flipped, swapped = random_flip(image, labels, ((7, 8),), Fixed(0.49))  # type: ignore[arg-type]
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    assert swapped[0].tolist() == [8, 1, 0, 7, 8]
    kept, same = random_flip(image, labels, ((7, 8),), Fixed(0.5))  # type: ignore[arg-type]
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
    early = photometric(image, Fixed(0.9, 0.9, 0.1, 1.4, 0.1, 0.5, 0.9))  # type: ignore[arg-type]
    np.testing.assert_array_equal(early, saturate(linear(image, 1.4), 0.5))
    late = photometric(image, Fixed(0.1, 0.9, 0.1, 0.5, 0.9, 0.1, 1.4))  # type: ignore[arg-type]
    np.testing.assert_array_equal(late, linear(saturate(image, 0.5), 1.4))


def test_network_input_is_rgb_normalised() -> None:
    chain = Augment(Augmentation((4, 4), (1.0, 1.0)), (4, 4), (), recipe("isnet_demo").preprocess)
    bgr = np.full((4, 4, 3), (10, 20, 30), np.uint8)
    rng = Fixed(1.0, *[0.0] * 20, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9)  # no resize, the only crop, no flip, no colour step
    x, _ = chain(bgr, np.zeros((4, 4), np.int16), rng)  # type: ignore[arg-type]
    mean, std = np.array(chain.preprocess.mean), np.array(chain.preprocess.std)
    np.testing.assert_allclose(x[:, 0, 0], ([30, 20, 10] - mean) / std, atol=1e-6)  # float32


def test_pad_centres_with_the_smaller_half_first() -> None:
    out, target = pad(np.ones((3, 3, 4), np.float32), np.zeros((3, 4), np.int16), (6, 9))
    assert np.nonzero(target == 0)[0].min() == 1
    assert np.nonzero(target == 0)[1].min() == 2
    assert (target == IGNORE).sum() == 6 * 9 - 12
    assert out[:, target == IGNORE].max() == 0
    assert out[:, target == 0].min() == 1


def test_pad_cuts_a_larger_sample_to_its_centre_and_turns_for_portrait() -> None:
    x = np.arange(10 * 12 * 3, dtype=np.float32).reshape(3, 10, 12)
    out, _ = pad(x, np.zeros((10, 12), np.int16), (4, 6))
    np.testing.assert_array_equal(out, x[:, 3:7, 3:9])
    _, target = pad(np.zeros((3, 12, 5), np.float32), np.zeros((12, 5), np.int16), (8, 16))
    assert target.shape == (16, 8)


def test_whole_chain_gives_the_crop_size_and_repeats() -> None:
    chain = Augment.of(recipe("isnet_demo"))
    labels = np.random.default_rng(2).integers(0, 9, (128, 256)).astype(np.int16)
    first = chain(picture(128, 256), labels, np.random.default_rng(5))
    again = chain(picture(128, 256), labels, np.random.default_rng(5))
    assert first[0].shape == (3, *chain.crop)
    assert first[0].dtype == np.float32
    assert first[1].shape == chain.crop
    assert first[1].dtype == np.int64
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
