"""Picture files: find, read and write them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.files import AnyPath, is_missing, regular_file_bytes, write_file
from isnet_trt.opencv import cv2
from isnet_trt.pictures.headers import dimensions, fault, with_plain_colours

Image = NDArray[np.uint8]
"""A picture, (H, W, 3) RGB unless stated otherwise."""
SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""The files that are taken from a folder; a file given by name is tried whatever its suffix."""


LIMIT_VARIABLE = "ISNET_TRT_MAX_PIXELS"
"""The environment variable with another limit of a picture's pixels."""
_MAX_PIXELS = 2**28
_MAX_SIDE = 1_000_000
"""What libpng reads and writes; results are PNGs of the picture's size."""
_MAX_BYTES_PER_PIXEL = 4


def read_image(path: AnyPath) -> Image:
    """A picture file as uint8 (H, W, 3) RGB.

    Decoded by OpenCV with its defaults, as the reference does: EXIF orientation applied, grey and palette expanded,
    16 bits reduced to 8, of an animation the first picture. Alpha is dropped and colours are taken as stored, whatever
    the format.

    Raises:
        ImageError: there is no such file, it is no regular file, cut short, larger than `max_pixels`, or OpenCV cannot
            decode it.
    """
    # The bytes are decoded, not the file by its name: `imread` ends the process on names that are no Unicode, has
    # another code page on Windows, and fails on oblong TIFFs of orientation 5 to 8.
    encoded = np.frombuffer(with_plain_colours(picture_bytes(path)), np.uint8)
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    except cv2.error as error:
        raise ImageError(f"{path}: OpenCV cannot read it ({error.err}); convert it or make it smaller") from None
    if image is None:
        raise _unreadable(path)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), np.uint8)


def _unreadable(path: AnyPath) -> ImageError:
    reason = "it is damaged, cut off, empty or no image file; copy or unpack it again"
    return ImageError(f"{path}: not a picture that OpenCV can read; {reason}")


def picture_bytes(path: AnyPath) -> bytes:
    """The content of a picture file that is small enough to be decoded and, if it is a JPEG or PNG, whole.

    Raises:
        ImageError: there is no such file, it is no regular file, cut off, damaged, or larger than `max_pixels`.
    """
    if is_missing(path):
        raise ImageError(f"{path}: there is no such picture file")
    if _is_folder(Path(path)):
        raise ImageError(f"{path}: there is no such picture file, it is a folder")
    limit = max_pixels()
    content = regular_file_bytes(path, limit * _MAX_BYTES_PER_PIXEL, ImageError)
    width, height = dimensions(content) or (0, 0)
    if max(width, height) > _MAX_SIDE:
        raise ImageError(f"{path}: {width}×{height} pixels are too many: a side may have {_MAX_SIDE}; make it smaller")
    if width * height > limit:
        raise ImageError(
            f"{path}: {width}×{height} pixels are too many: the limit is {limit}; make it smaller, or set "
            f"{LIMIT_VARIABLE} to a larger number"
        )
    if reason := fault(content):
        if not width:  # nothing of a picture is there
            raise _unreadable(path)
        raise ImageError(f"{path}: the picture is {reason}; copy or unpack it again")
    return content


def max_pixels() -> int:
    """The largest picture that is decoded, width × height: ``ISNET_TRT_MAX_PIXELS``, or 2²⁸ (16384 × 16384).

    Raises SettingsError if the variable is no positive whole number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return _MAX_PIXELS
    if not text.isdecimal() or not (limit := int(text[:20])):
        raise SettingsError(f"{LIMIT_VARIABLE}={text!r} is no positive whole number; give the pixels of a picture")
    return limit


def find_images(arguments: Iterable[str], failures: list[str] | None = None) -> list[Path]:
    """The picture files that ``arguments`` (files, folders, globs) mean, each once, in order, missing files too.

    A folder that cannot be read is noted in ``failures``, one line each, if that is given.

    Raises:
        ImageError: a folder or glob holds no picture, or a folder cannot be read and ``failures`` is None.
    """
    images: dict[Path, None] = {}  # a set that keeps the order
    for argument in arguments:
        try:
            matches = _matches(argument)
        except UnreadableFolder as error:
            if failures is None:
                raise
            failures.append(str(error))
            continue
        if not matches:
            raise ImageError(f"{argument}: no pictures there ({', '.join(sorted(SUFFIXES))} are looked for in folders)")
        images.update(dict.fromkeys(matches))
    return list(images)


class UnreadableFolder(ImageError):
    """The names in a folder of pictures cannot be read."""


def _matches(argument: str) -> list[Path]:
    if _is_folder(Path(argument)):
        return pictures_in(Path(argument))
    if glob.has_magic(argument) and not os.path.lexists(argument):
        names = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
        return [path for path in map(Path, names) if not _is_folder(path)]
    return [Path(argument)]


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder by their suffixes, sorted; not those in its subfolders.

    A link that leads nowhere is one of them: reading it says so.

    Raises:
        UnreadableFolder: its names cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not _is_folder(path))
    except OSError as error:
        raise UnreadableFolder(f"{folder} cannot be read: {error.strerror}") from None


def _is_folder(path: Path) -> bool:
    """`Path.is_dir`, but False where the system refuses to say (no permission, a name too long)."""
    try:
        return path.is_dir()
    except OSError:
        return False


def write_png(path: Path, pixels: NDArray[np.unsignedinteger]) -> None:
    """Write ``pixels``, uint8 or uint16 (H, W) or uint8 (H, W, 3) BGR, as PNG; ImageError if that fails."""
    write_file(path, cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes(), ImageError)
