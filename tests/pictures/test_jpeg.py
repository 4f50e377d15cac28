"""JPEGs that have their end mark but lack a part of their data; sound ones of all forms are read as they were."""

from __future__ import annotations

import contextlib
import io
import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from isnet_trt.errors import ImageError
from isnet_trt.pictures.files import decode_image

PHOTO = cv2.resize(cv2.imread(str(Path(__file__).parents[2] / "export/pictures/chelsea.jpg")), (240, 176))[..., ::-1]
SMALL = PHOTO[::4, ::4]
RESTARTS = {"none": {}, "by row": {"restart_marker_rows": 1}, "of seven": {"restart_marker_blocks": 7}}


def encoded(mode: str = "RGB", image: np.ndarray = PHOTO, **options) -> bytes:
    stream = io.BytesIO()
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(image).convert(mode).save(stream, "JPEG", **{"quality": 90, "exif": tags, **options})
    return stream.getvalue()


def segments(content: bytes) -> list[bytes]:
    """A JPEG cut at the beginnings of its scans and of what follows each."""
    starts = [0, *(at for at in range(len(content) - 1) if content[at : at + 2] in (b"\xff\xc4", b"\xff\xda"))]
    return [content[start:end] for start, end in itertools.pairwise([*starts, len(content)])]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_sound_ones_decode_as_before_and_nothing_is_printed(capfd, mode: str, progressive: bool) -> None:
    for options, subsampling in itertools.product(RESTARTS.values(), (0, 2)):
        chosen = {} if mode == "L" else {"subsampling": subsampling}
        content = encoded(mode, progressive=progressive, **options, **chosen) + b"\xff\xd8 of a camera"
        expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert (decode_image(content, "photo") == expected).all()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("options", [{}, RESTARTS["by row"], {"progressive": True}])
def test_grey_of_the_photographer_is_no_gap(options: dict) -> None:
    image = np.full((176, 240, 3), 128, np.uint8)
    image[40:100] = PHOTO[40:100]
    content = encoded(image=image, **options)
    assert (decode_image(content, "photo")[:, :20] == 128).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("restarts", RESTARTS)
def test_a_middle_that_is_missing_is_seen(mode: str, restarts: str) -> None:
    content = encoded(mode, **RESTARTS[restarts])
    for start, share in itertools.product((0.3, 0.5, 0.7), (0.05, 0.2)):
        cut = content[: int(len(content) * start)] + content[int(len(content) * (start + share)) :]
        with pytest.raises(ImageError, match=r"photo: the picture is damaged, a part of its data is missing; copy or"):
            decode_image(cut, "photo")


def test_a_gap_between_two_restart_markers_is_seen() -> None:
    content = encoded(restart_marker_rows=3)
    start, end = content.index(b"\xff\xd0"), content.index(b"\xff\xd1")
    with pytest.raises(ImageError, match="a part of its data is missing"):
        decode_image(content[: start + 300] + content[end:], "photo")


def test_scans_of_a_progressive_image_that_are_missing_or_short_are_seen() -> None:
    parts = segments(encoded(progressive=True))
    scans = [number for number, part in enumerate(parts) if part.startswith(b"\xff\xda")]
    assert len(scans) > 5
    for number in scans[1:]:
        last = parts[number][-2:] if number == scans[-1] else b""  # the end mark
        with pytest.raises(ImageError, match="a part of its data is missing"):
            decode_image(b"".join([*parts[:number], last, *parts[number + 1 :]]), "photo")
    means = parts[scans[0]]
    with pytest.raises(ImageError, match="a part of its data is missing"):
        decode_image(b"".join([*parts[: scans[0]], means[: len(means) // 2], *parts[scans[0] + 1 :]]), "photo")


@pytest.mark.parametrize("options", [{}, RESTARTS["by row"], {"progressive": True}])
def test_damaged_headers_are_one_error_or_an_image(options: dict) -> None:
    content = encoded(image=SMALL, **options)
    for at in range(2, content.index(b"\xff\xda") + 14):
        for value in (0, 1, 255):
            changed = content[:at] + bytes([value]) + content[at + 1 :]
            with contextlib.suppress(ImageError):
                assert decode_image(changed, "photo").ndim == 3
