"""Sizes, passes and windows against the documented tables and against their own definition."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isnet_trt.errors import ImageError
from isnet_trt.merging import geometry
from isnet_trt.recipes import recipe
from isnet_trt.settings import Inference

SIX = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
LANDSCAPE = Inference("slide", (512, 1024), (341, 341))
PORTRAIT = Inference("slide", (1024, 512), (341, 341))

side = st.integers(1, 3000)


def test_a_scale_that_leaves_nothing_is_refused():
    with pytest.raises(ImageError, match=r"scale 0\.5 shrinks a picture of 1x9 to 0x4"):
        geometry.passes((1, 9), Inference(scales=(1.0, 0.5)))


@pytest.mark.parametrize(
    ("scale", "landscape", "portrait"),
    [(0.5, (1, 1), (1, 3)), (0.75, (2, 3), (1, 5)), (1.0, (3, 5), (1, 6)), (1.25, (4, 6), (2, 8)),
     (1.5, (5, 8), (3, 9)), (1.75, (5, 9), (4, 11))],
)  # fmt: skip
def test_window_counts_of_cityscapes(scale, landscape, portrait):
    height, width = geometry.scaled_size((1024, 2048), scale)
    for inference, want in ((LANDSCAPE, landscape), (PORTRAIT, portrait)):
        rows, columns = zip(inference.window, inference.stride, strict=True)
        assert (len(geometry.starts(height, *rows)), len(geometry.starts(width, *columns))) == want


def test_window_sums_of_cityscapes():
    six = {"scales": SIX, "flip": False}
    assert geometry.window_count((1024, 2048), LANDSCAPE.replace(**six)) == 131
    assert geometry.window_count((1024, 2048), PORTRAIT.replace(**six)) == 101
    for name, want in (("isnet_resnet50os8_cityscapes", 262), ("isnet_resnet101os8_cityscapes", 202)):
        assert geometry.window_count((1024, 2048), recipe(name).ms_flip) == want


def test_portrait_windows_on_half_scale_are_as_high_as_the_picture():
    one = geometry.passes((1024, 2048), PORTRAIT.replace(scales=(0.5,)))[0]
    assert {window.size for window in geometry.windows(one, PORTRAIT)} == {(512, 512)}


@given(length=side, window=side, stride=st.integers(1, 3000))
def test_windows_cover_a_side_from_end_to_end(length, window, stride):
    stride = min(stride, window)
    spans = geometry.starts(length, window, stride)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert {end - start for start, end in spans} == {min(window, length)}
    assert all(b[0] <= a[1] for a, b in itertools.pairwise(spans))  # no gap
    assert len(spans) == len(set(spans))


@given(height=side, width=side, flip=st.booleans())
def test_mirrored_windows_are_the_mirror_image_of_plain_ones(height, width, flip):
    inference = LANDSCAPE.replace(flip=flip)
    plain, *mirrored = geometry.passes((height, width), inference)
    assert len(mirrored) == flip
    for one in mirrored:
        pairs = zip(geometry.windows(plain, inference), geometry.windows(one, inference), strict=True)
        assert all((b.left, b.right) == (width - a.right, width - a.left) for a, b in pairs)


def test_passes_come_scale_by_scale_plain_then_mirrored():
    passes = geometry.passes((101, 51), Inference(scales=(0.5, 1.5), flip=True))
    assert [(p.scale, p.mirrored, p.size) for p in passes] == [
        (0.5, False, (50, 25)), (0.5, True, (50, 25)), (1.5, False, (151, 76)), (1.5, True, (151, 76)),
    ]  # fmt: skip


def test_whole_mode_ignores_window_and_stride():
    """As ``--preset ms-flip --mode whole`` leaves them set."""
    whole = LANDSCAPE.replace(mode="whole", scales=(1.0, 2.0))
    windows = [window for one in geometry.passes((1024, 2048), whole) for window in geometry.windows(one, whole)]
    assert [window.size for window in windows] == [one.size for one in geometry.passes((1024, 2048), whole)]


@pytest.mark.parametrize(("size", "stride", "want"), [((473, 473), 4, (119, 119)), ((1, 9), 8, (1, 2))])
def test_coarse_size_rounds_up(size, stride, want):
    assert geometry.coarse_size(size, stride) == want
