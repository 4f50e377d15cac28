"""The mark of results, and the origin behind it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from isnet_trt.pictures.files import encode_png
from isnet_trt.pictures.results import ORIGIN_HEAD, mark_png, origin_of

LABELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize("origin", ["", "0123456789abcdef" * 2, "x" * 100])
def test_an_origin_is_read_back_and_the_image_stays(origin: str) -> None:
    content = mark_png(encode_png(LABELS), origin)
    assert origin_of(content[:ORIGIN_HEAD]) == origin
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, LABELS)


@pytest.mark.parametrize("content", [b"", b"mine", encode_png(LABELS), mark_png(encode_png(LABELS), "ab")[:60]])
def test_what_is_not_marked_has_none(content: bytes) -> None:
    assert origin_of(content) is None


def test_a_mark_that_ends_before_its_origin_has_none() -> None:
    """Such a file is a result, and not one of any job."""
    assert origin_of(mark_png(encode_png(LABELS), "ab")[:75]) == ""
