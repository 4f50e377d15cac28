"""Images from files, encoded bytes and streams, read and checked in one place; PNG files written."""

from __future__ import annotations

import inspect
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.files import AnyPath, is_missing, regular_file_bytes, write_file
from isnet_trt.opencv import cv2
from isnet_trt.pictures import jpeg
from isnet_trt.pictures.headers import dimensions, fault, with_plain_colours
from isnet_trt.pictures.results import mark_jpeg, mark_png, mark_webp
from isnet_trt.settings import MOST_PIXELS

Image = NDArray[np.uint8]
"""A picture, (H, W, 3) RGB unless stated otherwise."""
LIMIT_VARIABLE = "ISNET_TRT_MAX_PIXELS"
"""The environment variable with another limit of a picture's pixels."""
_MAX_SIDE = 1_000_000
"""What libpng reads and writes; results are PNGs of the picture's size."""
_MAX_BYTES_PER_PIXEL = 4
_CHUNK = 1 << 20
_JPEG = (65_535, {"IMWRITE_JPEG_QUALITY": 90, "IMWRITE_JPEG_SAMPLING_FACTOR": 0x111111})
"""Longest side, and OpenCV's options: no subsampling of colours, which would smear outlines of a pixel."""
_LOSSY = {".jpg": _JPEG, ".jpeg": _JPEG, ".webp": (16_383, {"IMWRITE_WEBP_QUALITY": 85})}


def read_image(path: AnyPath) -> Image:
    """A picture file as uint8 (H, W, 3) RGB; see `decode_image`.

    Raises:
        ImageError: there is no such file, it is no regular file, cut short, larger than `max_pixels`, or OpenCV cannot
            decode it.
    """
    return _decoded(picture_bytes(path), path)


def decode_image(content: bytes, name: object) -> Image:
    """The content of a picture file as uint8 (H, W, 3) RGB; ``name`` is what messages call it.

    Decoded by OpenCV with its defaults, as the reference does: EXIF orientation applied, grey and palette expanded,
    16 bits reduced to 8, of an animation the first picture. Alpha is dropped and colours are taken as stored, whatever
    the format.

    Raises:
        ImageError: it is cut short, larger than `max_pixels`, or OpenCV cannot decode it.
    """
    _check(content, name)
    return _decoded(content, name)


def _decoded(content: bytes, name: object) -> Image:
    image = _opencv(with_plain_colours(content), name)
    if image is None:
        raise _unreadable(name, dimensions(content))
    if content.startswith(jpeg.MAGIC) and _is_filled_in(content, image, name):
        raise ImageError(f"{name}: the picture is {jpeg.INCOMPLETE}; copy or unpack it again")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), np.uint8)


def _opencv(content: bytes, name: object, eighth: bool = False) -> NDArray[Any] | None:
    """What OpenCV makes of the bytes of a file, BGR, with ``eighth`` in that size; None if it cannot decode them."""
    # The bytes are decoded, not the file by its name: `imread` ends the process on names that are no Unicode, has
    # another code page on Windows, and fails on oblong TIFFs of orientation 5 to 8.
    encoded = np.frombuffer(content, np.uint8)
    flags = cv2.IMREAD_REDUCED_COLOR_8 if eighth else cv2.IMREAD_COLOR
    try:
        return cv2.imdecode(encoded, flags) if encoded.size else None
    except cv2.error as error:
        raise ImageError(f"{name}: OpenCV cannot read it ({error.err}); convert it or make it smaller") from None


def _is_filled_in(content: bytes, image: NDArray[Any], name: object) -> bool:
    """Whether OpenCV filled gaps of a JPEG, decoded as ``image``, with grey: then more data change the image."""
    means = jpeg.mean_values(content)
    decoded = image if means is None else _opencv(means, name, eighth=True)
    if decoded is None or not jpeg.has_grey_area(decoded, 2 if means is None else 1):
        return False
    more = _opencv(jpeg.fed(means or content), name, eighth=means is not None)
    return more is None or bool((more != decoded).any())


def _unreadable(name: object, size: tuple[int, int] | None = None) -> ImageError:
    """The error for what OpenCV does not decode; ``size`` (width, height) where it has the header of a picture."""
    reason = "it is damaged, cut off, empty or no image file; copy or unpack it again"
    if size and all(size):
        reason = (
            f"by its header it has {size[0]}×{size[1]} pixels: it is damaged, cut off, or of a kind that OpenCV does "
            "not know (compression, floating point, more than four bands); convert it to PNG or to a TIFF of 8-bit RGB"
        )
    return ImageError(f"{name}: not a picture that OpenCV can read; {reason}")


def picture_bytes(path: AnyPath) -> bytes:
    """The content of a picture file that is small enough to be decoded and, if it is a JPEG or PNG, whole.

    Raises:
        ImageError: there is no such file, it is no regular file, cut off, damaged, or larger than `max_pixels`.
    """
    if is_missing(path):
        raise ImageError(f"{path}: there is no such picture file{_url_advice(path)}")
    if is_folder(Path(path)):
        raise ImageError(f"{path}: there is no such picture file, it is a folder")
    content = regular_file_bytes(path, max_bytes(), ImageError)
    _check(content, path)
    return content


def _url_advice(path: AnyPath) -> str:
    is_url = ":/" in os.fspath(path)  # pathlib leaves one slash
    return "; of URLs, predict reads http and https; in Python pass the bytes or an open response" if is_url else ""


def _check(content: bytes, name: object) -> None:
    """Raise ImageError unless the header promises an image within the limits, and the end of a JPEG or PNG is there."""
    limit = max_pixels()
    width, height = dimensions(content) or (0, 0)
    if max(width, height) > _MAX_SIDE:
        raise ImageError(f"{name}: {width}×{height} pixels are too many: a side may have {_MAX_SIDE}; make it smaller")
    if width * height > limit:
        raise ImageError(
            f"{name}: {width}×{height} pixels are too many: the limit is {limit}; make it smaller, or set "
            f"{LIMIT_VARIABLE} to a larger number"
        )
    if reason := fault(content):
        if not width:  # nothing of a picture is there
            raise _unreadable(name)
        raise ImageError(f"{name}: the picture is {reason}; copy or unpack it again")


def read_stream(stream: Any) -> Image:
    """The picture in a binary file object, read from its position to its end, as uint8 (H, W, 3) RGB.

    Raises:
        ImageError: it is closed, empty, in text mode or not readable, breaks off, gives more than `max_bytes`, or
            what it gives cannot be decoded.
    """
    name = _stream_name(stream)
    content = stream_bytes(stream, name, max_bytes())
    if not content:
        raise ImageError(f"{name} gives no bytes: it is empty, or was read already; open it again or use seek(0)")
    return decode_image(content, name)


def _stream_name(stream: Any) -> str:
    name, kind = getattr(stream, "name", None), type(stream).__name__
    return f"file object {name!r}" if isinstance(name, str | bytes) and name else f"file object ({kind})"


def stream_bytes(stream: Any, name: str, limit: int) -> bytes:
    """All that a binary file object still gives, at most ``limit`` bytes; ``name`` is what messages call it.

    Raises:
        ImageError: it cannot be read, breaks off, or gives more.
    """
    if isinstance(stream, io.TextIOBase):
        raise ImageError(f"{name} is in text mode; open it in binary mode: open(path, 'rb')")
    content = bytearray()
    # Sockets, pipes and unbuffered files give what is there, and nothing only at their end.
    while chunk := _chunk(stream, name):
        content += chunk
        if len(content) > limit:
            raise ImageError(f"{name} is too large: more than {limit} bytes, which is the limit")
        if not _takes_size(stream):
            break
    return bytes(content)


def _chunk(stream: Any, name: str) -> bytes | bytearray | memoryview:
    """Up to `_CHUNK` bytes, or all where ``read`` takes no size."""
    try:
        chunk = stream.read(_CHUNK) if _takes_size(stream) else stream.read()
    except io.UnsupportedOperation:
        raise ImageError(f"{name} cannot be read: it is not open for reading") from None
    except Exception as error:  # each library has exceptions of its own here
        raise ImageError(f"{name} cannot be read: {str(error) or type(error).__name__}") from error
    if not isinstance(chunk, bytes | bytearray | memoryview):
        raise ImageError(f"{name}: read() returned {type(chunk).__name__}, not bytes; pass a blocking, binary stream")
    return chunk


def _takes_size(stream: Any) -> bool:
    try:
        inspect.signature(stream.read).bind(_CHUNK)
    except TypeError:
        return False
    except ValueError:  # a function in C without a signature
        return True
    return True


def max_bytes() -> int:
    """The longest encoded picture that is read, in bytes: 4 for each of `max_pixels`."""
    return max_pixels() * _MAX_BYTES_PER_PIXEL


def max_pixels() -> int:
    """The largest picture that is decoded, width × height: ``ISNET_TRT_MAX_PIXELS``, or 2²⁸ (16384 × 16384).

    Raises SettingsError if the variable is no positive whole number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return MOST_PIXELS
    if not text.isdecimal() or not (limit := int(text[:20])):
        raise SettingsError(f"{LIMIT_VARIABLE}={text!r} is no positive whole number; give the pixels of a picture")
    return limit


def is_folder(path: Path) -> bool:
    """`Path.is_dir`, but False where the system refuses to say (no permission, a name too long)."""
    try:
        return path.is_dir()
    except OSError:
        return False


def write_png(path: Path, pixels: NDArray[np.unsignedinteger], *, result: bool = False) -> None:
    """Write ``pixels``, uint8 or uint16 (H, W) or uint8 (H, W, 3) BGR, as PNG; ImageError if that fails.

    With ``result`` the file says that it is one (`isnet_trt.pictures.results`) and no picture to be segmented.
    """
    write_file(path, mark_png(_png(pixels)) if result else _png(pixels), ImageError)


def encode_png(pixels: NDArray[np.unsignedinteger]) -> bytes:
    """A PNG file of uint8 or uint16 (H, W), or uint8 (H, W, 3) RGB or (H, W, 4) RGBA."""
    return _png(pixels if pixels.ndim == 2 else pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]])


def _png(pixels: NDArray[np.unsignedinteger]) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()


def encode_result(pixels: Image, suffix: str) -> bytes:
    """An RGB picture as a result's file in the format of ``suffix``: .jpg, .jpeg, .webp, and PNG for any other.

    Raises:
        ImageError: a side is longer than the format stores.
    """
    height, width = pixels.shape[:2]
    suffix = suffix.lower()
    if suffix not in _LOSSY:
        return mark_png(encode_png(pixels))
    longest, options = _LOSSY[suffix]
    if max(height, width) > longest:
        name = suffix[1:].upper()
        raise ImageError(f"{width}×{height} pixels are too many for {name}, whose sides have {longest}; choose PNG")
    parameters = [number for name, value in options.items() for number in (getattr(cv2, name), value)]
    content = cv2.imencode(suffix, np.ascontiguousarray(pixels[:, :, ::-1]), parameters)[1].tobytes()
    return mark_webp(content, width, height) if suffix == ".webp" else mark_jpeg(content)
