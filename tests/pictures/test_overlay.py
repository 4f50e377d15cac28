"""Overlays: outlines and hatching keep close colours apart, legends fit the image, files hold what was drawn."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from PIL import Image

from isnet_trt import Segmentation
from isnet_trt.errors import ImageError
from isnet_trt.pictures import contrast
from isnet_trt.pictures.files import decode_image, encode_result
from isnet_trt.pictures.legend import PAPER
from isnet_trt.pictures.overlay import OverlayStyle, draw
from isnet_trt.pictures.results import is_result
from isnet_trt.recipes import recipe

ADE = recipe("isnet_resnet50os8_ade20k").labels
RED, NEARLY, BLUE = (200, 30, 30), (206, 36, 30), (30, 60, 220)
VISIBLE = 0.25
"""OKLab distance that nobody overlooks."""


def segmentation(labels, *palette):
    names = tuple(f"class {i}" for i in range(len(palette)))
    return Segmentation(np.asarray(labels, np.uint8), names, np.array(palette, np.uint8))


def of_ade(labels):
    return Segmentation(labels.astype(np.uint8), ADE.names, np.asarray(ADE.palette, np.uint8))


def halves(height=64, width=96, at=40):
    labels = np.zeros((height, width), np.uint8)
    labels[:, at:] = 1
    return labels


def patches(height, width, classes):
    """Each class a rectangle of a grid."""
    across = int(np.ceil(classes**0.5))
    y, x = np.indices((height, width))
    return np.minimum(y * across // height * across + x * across // width, classes - 1)


# --- colours


def test_oklab_has_the_published_values():
    """The primaries and white, from the article that defines the space."""
    got = contrast.oklab(np.array([(255, 255, 255), (255, 0, 0), (0, 0, 255), (0, 0, 0)], np.uint8))
    want = [(1, 0, 0), (0.628, 0.2249, 0.1258), (0.452, -0.0324, -0.3115), (0, 0, 0)]
    np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_every_class_differs_from_the_larger_ones_in_colour_or_lines(seed):
    palette = np.asarray(ADE.palette, np.uint8)
    present = [int(number) for number in np.random.default_rng(seed).permutation(150)[:12]]
    patterns = contrast.hatching(present, palette, present[:2])
    for first, second in itertools.combinations(present, 2):
        if contrast.distance(palette[first], palette[second]) < contrast.TOO_CLOSE:
            assert patterns[first] != patterns[second]
    assert contrast.PLAIN not in (patterns[present[0]], patterns[present[1]])
    assert sum(pattern == contrast.PLAIN for pattern in patterns.values()) >= 5


def test_where_lines_run_out_the_least_close_share_them():
    palette = np.array([(100 + 3 * i, 50, 50) for i in range(8)], np.uint8)
    patterns = contrast.hatching(range(8), palette, [])
    assert set(patterns.values()) == {contrast.PLAIN, *contrast.PATTERNS}
    assert (patterns[6], patterns[7]) == (patterns[0], patterns[1])


# --- outlines


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
def test_a_line_of_one_pixel_parts_neighbours_of_close_colours(level, alpha):
    image = np.full((64, 96, 3), level, np.uint8)
    drawn = segmentation(halves(), RED, NEARLY).overlay(image, alpha, legend=False, hatching=False)
    row = drawn[30]
    steps = contrast.distance(row[1:], row[:-1])
    assert list(np.flatnonzero(steps > VISIBLE)) == [39, 40]  # in class 1, the larger
    plain = segmentation(halves(), RED, NEARLY).overlay(image, alpha, legend=False, hatching=False, outlines=False)
    assert (np.any(plain != drawn, axis=2).sum(1) == 1).all()


def test_small_things_keep_their_pixels():
    labels = np.zeros((50, 50), np.uint8)
    labels[10:40, 20] = 1  # a pole of one pixel
    labels[5, 5] = 2
    drawn = segmentation(labels, RED, BLUE, NEARLY).overlay(np.zeros((50, 50, 3), np.uint8), 1.0, legend=False)
    assert (drawn[10:40, 20] == BLUE).all()
    assert (drawn[20, [19, 21]] == 255).all()
    assert (drawn[labels == 0] == RED).all(-1).sum() > 2300


def test_noise_has_no_outlines():
    labels = np.random.default_rng(0).integers(0, 150, (80, 90))
    image = np.full((80, 90, 3), 90, np.uint8)
    lined = of_ade(labels).overlay(image, legend=False, hatching=False)
    plain = of_ade(labels).overlay(image, legend=False, hatching=False, outlines=False)
    assert np.any(lined != plain, axis=2).mean() < 0.02


# --- hatching


def test_a_class_whose_colour_is_that_of_the_image_is_hatched():
    image = np.full((64, 96, 3), RED, np.uint8)
    drawn = segmentation(np.zeros((64, 96)), RED).overlay(image, legend=False)
    changed = contrast.distance(drawn, image) > VISIBLE
    assert 0.05 < changed.mean() < 0.4
    blocks = changed[:60, :90].reshape(6, 10, 9, 10).any((1, 3))
    assert blocks.all()  # everywhere
    other = segmentation(np.zeros((64, 96)), BLUE)
    assert (other.overlay(image, legend=False) == other.overlay(image, legend=False, hatching=False)).all()


def test_close_classes_differ_in_their_lines_and_the_palette_stays():
    image = np.full((64, 96, 3), 250, np.uint8)
    result = segmentation(halves(), RED, NEARLY)
    drawn = result.overlay(image, 1.0, legend=False, outlines=False)
    assert (drawn[:, 40:] == NEARLY).all()  # the larger one is plain
    lines = (drawn[:, :40] != RED).any(-1)
    assert 0.05 < lines.mean() < 0.4
    assert (result.colours()[:, :40] == RED).all()


def test_ignored_pixels_are_hatched_where_asked():
    image = np.full((200, 300, 3), 128, np.uint8)
    labels = halves(200, 300)
    labels[:, 60:] = 255
    palette = np.array([RED, BLUE], np.uint8)
    drawn = draw(image, labels, ("a", "b"), palette, OverlayStyle(legend=False, void=True))
    region = drawn[:, 61:].reshape(-1, 3)
    kinds = {tuple(colour) for colour in np.unique(region, axis=0).tolist()}
    assert len(kinds) == 2
    assert (128, 128, 128) in kinds
    with_legend = draw(image, labels, ("a", "b"), palette, OverlayStyle(void=True))
    without = draw(image, labels, ("a", "b"), palette, OverlayStyle())
    assert (panel(with_legend, (200, 300)) != PAPER).any(-1).sum() > (panel(without, (200, 300)) != PAPER).any(-1).sum()


# --- legend


def panel(drawn, size):
    """What was added on the right or below."""
    added = np.ones(drawn.shape[:2], bool)
    added[: size[0], : size[1]] = False
    return drawn[added]


@pytest.mark.parametrize(
    "size", [(1, 1), (20, 30), (170, 256), (256, 170), (300, 200), (2048, 200), (200, 2048), (360, 640)]
)
@pytest.mark.parametrize("classes", [1, 9, 60, 150])
def test_legends_fit_the_image(size, classes):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    result = of_ade(patches(*size, classes))
    drawn = result.overlay(image)
    assert (drawn[: size[0], : size[1]] == result.overlay(image, legend=False)).all()
    assert drawn.shape[0] <= 1.5 * size[0]
    assert drawn.shape[1] <= 1.5 * size[1]
    if min(size) > 160:
        added = panel(drawn, size)
        assert len(added) > 0
        seen = {tuple(colour) for colour in np.unique(added, axis=0).tolist()}
        largest = list(result.shares())[:4]
        assert all(ADE.palette[number] in seen for number in largest)
        assert PAPER in seen


def test_a_class_in_the_legend_has_the_lines_it_has_in_the_image():
    image = np.full((200, 300, 3), 250, np.uint8)
    result = segmentation(halves(200, 300, 100), RED, NEARLY)
    added = panel(result.overlay(image), (200, 300))
    plain = panel(result.overlay(image, hatching=False), (200, 300))
    assert (added == RED).all(-1).sum() < 0.9 * (plain == RED).all(-1).sum()
    assert (added == NEARLY).all(-1).sum() == (plain == NEARLY).all(-1).sum()


def test_side_by_side_has_the_image_on_its_left():
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    result = of_ade(patches(300, 400, 4))
    drawn = result.overlay(image, legend=False, side_by_side=True)
    assert (drawn[:, :400] == image).all()
    assert (drawn[:, -400:] == result.overlay(image, legend=False)).all()
    assert (drawn[:, 400:-400] == PAPER).all()
    assert result.overlay(image, side_by_side=True).shape[1] > drawn.shape[1]


def test_labels_of_sixteen_bits_are_drawn_alike():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    labels, palette = patches(60, 80, 5), np.asarray(ADE.palette, np.uint8)
    narrow, wide = (draw(image, labels.astype(t), ADE.names, palette, OverlayStyle()) for t in (np.uint8, np.uint16))
    assert (narrow == wide).all()


def test_as_many_classes_as_the_type_has_values():
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    labels, image = patches(64, 96, 256).astype(np.uint8), np.zeros((64, 96, 3), np.uint8)
    drawn = draw(image, labels, [str(number) for number in range(256)], palette, OverlayStyle())
    assert (drawn[:64, :96] != 0).any(-1).mean() > 0.5


# --- files


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".jpg", "JPEG"), (".jpeg", "JPEG"), (".webp", "WEBP"), (".png", "PNG"), (".out", "PNG")]
)
def test_the_suffix_is_the_format_and_the_file_is_a_result(tmp_path, suffix, kind):
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (301, 403, 3), np.uint8), (0, 0), 9)
    result, path = of_ade(patches(301, 403, 9)), tmp_path / f"a{suffix}"
    result.save(path, "overlay", image=image, alpha=0.7, side_by_side=True)
    want = result.overlay(image, 0.7, side_by_side=True)
    with Image.open(path) as opened:
        assert opened.format == kind
        pixels = np.asarray(opened.convert("RGB"))
        if kind in ("JPEG", "WEBP"):
            assert opened.getexif()[0x0131] == "isnet_trt result"
    assert pixels.shape == want.shape
    assert np.abs(pixels.astype(int) - want).mean() < (0.01 if kind == "PNG" else 4)
    assert (decode_image(path.read_bytes(), path) == pixels).mean() > 0.5
    assert is_result(path) == (suffix != ".out")


def test_a_picture_too_large_for_its_format_is_refused():
    with pytest.raises(ImageError, match=r"20000×2 pixels are too many for WEBP.*16383.*PNG"):
        encode_result(np.zeros((2, 20000, 3), np.uint8), ".webp")
    assert encode_result(np.zeros((2, 20000, 3), np.uint8), ".JPG")[:2] == b"\xff\xd8"
