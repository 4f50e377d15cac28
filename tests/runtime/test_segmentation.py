"""What a result says about itself, and the pictures made of it."""

from __future__ import annotations

import numpy as np
import pytest

from isnet_trt import Segmentation
from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.recipes import recipe

LABELS = recipe("isnet_resnet50os8_ade20k").labels


def result(labels):
    return Segmentation(labels.astype(np.uint8), LABELS.names, np.asarray(LABELS.palette, np.uint8))


def blocks(height, width, classes):
    """A label map of ``classes`` classes side by side, class i wider than class i + 1."""
    edges = np.linspace(0, 1, classes + 1) ** 0.8
    return np.repeat((np.searchsorted(edges, (np.arange(width) + 0.5) / width) - 1)[None], height, axis=0)


def test_shares_are_sorted_and_add_up():
    shares = result(np.array([[3, 3, 3, 7], [7, 0, 3, 3]])).shares()
    assert list(shares.items()) == [(3, 5 / 8), (7, 2 / 8), (0, 1 / 8)]


def test_colours_are_the_palettes():
    segmentation = result(blocks(4, 150, 20))
    assert segmentation.colours().shape == (4, 150, 3)
    assert (segmentation.colours()[2, 149] == LABELS.palette[19]).all()


@pytest.mark.parametrize(("alpha", "tolerance"), [(0.0, 0), (0.5, 1), (1.0, 0)])
def test_blend_is_the_weighted_mean(alpha, tolerance):
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    segmentation = result(blocks(33, 47, 5))
    blend = segmentation.overlay(image, alpha, legend=False, outlines=False, hatching=False)
    want = (1 - alpha) * image.astype(float) + alpha * segmentation.colours()
    assert blend.dtype == np.uint8
    assert np.abs(blend - want).max() <= tolerance


def test_bgr_pictures_are_blended_as_rgb():
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    segmentation = result(blocks(9, 7, 2))
    assert (segmentation.overlay(image[:, :, ::-1], order="bgr") == segmentation.overlay(image)).all()


def test_another_picture_is_refused():
    with pytest.raises(ImageError, match="30x20, the label map 20x30"):
        result(blocks(20, 30, 3)).overlay(np.zeros((30, 20, 3), np.uint8))


def test_alpha_is_a_share():
    with pytest.raises(SettingsError, match=r"alpha 50"):
        result(blocks(20, 30, 3)).overlay(np.zeros((20, 30, 3), np.uint8), 50)
