"""From a file or an array to the network's input: read, check, resize, normalise."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.geometry import test_size
from isnet_trt.settings import Preprocess

Image = NDArray[np.uint8]
Order = Literal["rgb", "bgr", "rgba", "bgra"]
"""The channels of a pixel, in memory order; alpha is passed over."""
ORDERS: tuple[Order, ...] = ("rgb", "bgr", "rgba", "bgra")
# A hundred times as fast as numpy's copy of a view with the channels turned round.
_TO_RGB = {"bgr": cv2.COLOR_BGR2RGB, "rgba": cv2.COLOR_RGBA2RGB, "bgra": cv2.COLOR_BGRA2RGB}


def read_image(path: str | os.PathLike[str]) -> Image:
    """A picture file as uint8 (H, W, 3) RGB.

    Read by OpenCV with its defaults, as the reference does: EXIF orientation applied, grey and palette expanded,
    alpha dropped, 16 bits reduced to 8.

    Raises:
        ImageError: there is no such file, or OpenCV cannot decode it.
    """
    if not Path(path).is_file():
        raise ImageError(f"{path}: there is no such picture file")
    try:
        image = _decoded(os.fspath(path))
    except cv2.error as error:
        raise ImageError(f"{path}: OpenCV cannot read it ({error.err}); convert it or make it smaller") from None
    if image is None:
        raise ImageError(f"{path}: not a picture that OpenCV can read; it is damaged, empty or no image file")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _decoded(path: str) -> Any:
    """What OpenCV makes of a file, None where it cannot.

    Its Python module ends the process on a name that is no Unicode (``caf\\xe9.jpg`` from a Latin-1 system).
    """
    if printable(path) == path:
        return cv2.imread(path, cv2.IMREAD_COLOR)
    try:
        content = np.fromfile(path, np.uint8)
    except OSError:
        return None
    return cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None


def printable(name: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are no Unicode as ``\\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def named(path: os.PathLike[str], error: Exception) -> str:
    """The message of an error with the picture's path in it."""
    return str(error) if os.fspath(path) in str(error) else f"{os.fspath(path)}: {error}"


def check_image(image: Any, order: Order = "rgb") -> Image:
    """``image`` as C-contiguous uint8 (H, W, 3) RGB; any memory layout is taken, a copy is made only where needed.

    Raises:
        ImageError: another type or shape; the message says how to convert it.
        SettingsError: ``order`` is none of "rgb", "bgr", "rgba" and "bgra".
    """
    if not isinstance(image, np.ndarray):
        check_order(order)
        raise ImageError(f"an image must be a numpy array or a path, not {type(image).__name__}; use numpy.asarray")
    check_format(image.shape, image.dtype, order)
    if order == "rgb":
        return np.ascontiguousarray(image)
    if image.strides[0] < image.shape[1] * image.shape[2]:  # upside down or overlapping rows: no Mat of OpenCV's
        image = np.ascontiguousarray(image)
    return np.asarray(cv2.cvtColor(image, _TO_RGB[order]), np.uint8)


def check_order(order: str) -> None:
    """Raise SettingsError for an unknown channel order."""
    if order not in ORDERS:
        raise SettingsError(f"order {order!r} is unknown; use {', '.join(map(repr, ORDERS))}")


def check_format(shape: tuple[int, ...], dtype: np.dtype[Any], order: Order) -> None:
    """Whether an array is a picture of this channel order: uint8 (H, W, channels), not empty.

    Raises:
        ImageError: it is not; the message says how to convert it.
        SettingsError: ``order`` is unknown.
    """
    check_order(order)
    channels = len(order)
    if len(shape) != 3 or shape[2] != channels or dtype != np.uint8 or 0 in shape:
        wanted = f"(height, width, {channels})" + (f" for order {order!r}" if channels != 3 else "")
        advice = _advice(shape, dtype, channels)
        raise ImageError(f"an image must be uint8 of shape {wanted}, this one is {dtype} {shape}: {advice}")


def _advice(shape: tuple[int, ...], dtype: np.dtype[Any], channels: int) -> str:
    if 0 in shape:
        return "it is empty; was it read or cropped rightly?"
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        return "it is grey; use cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)"
    if len(shape) != 3:
        return "pass one picture at a time" if len(shape) == 4 else "pass height, width and three channels"
    if shape[2] != channels:
        return _channel_advice(shape)
    if dtype.kind == "f":
        return "it holds floating-point numbers; for values in 0..1 use (image * 255).round().astype('uint8')"
    if dtype == np.uint16:
        return "it has 16 bits; use (image >> 8).astype('uint8')"
    return "use image.astype('uint8') once its values are within 0..255"


def _channel_advice(shape: tuple[int, ...]) -> str:
    if shape[2] == 4:
        return "it has an alpha channel; use order='rgba' or 'bgra', or image[:, :, :3]"
    if shape[2] == 3:
        return "it has no alpha channel; use order='rgb' or 'bgr'"
    return "its channels come first; use numpy.moveaxis(image, 0, -1)" if shape[0] == 3 else "pass three channels"


def resize(image: Image, preprocess: Preprocess) -> Image:
    """The test-time resize: OpenCV's fixed-point bilinear on uint8, without antialiasing.

    Raises:
        ImageError: the picture is so elongated that a side would become 0.
    """
    height, width = test_size((image.shape[0], image.shape[1]), preprocess)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def normalise(image: Image, preprocess: Preprocess) -> NDArray[np.float32]:
    """(image - mean) / std as float32 (H, W, 3); ``image`` is uint8 (H, W, 3) RGB, C-contiguous.

    In memory the channels come first, so that ``.transpose(2, 0, 1)`` is the network's layout without a copy.
    """
    planes = np.empty((3, *image.shape[:2]), np.float32)
    for channel, table in enumerate(value_tables(preprocess)):
        cv2.LUT(cv2.extractChannel(image, channel), table, dst=planes[channel])
    return planes.transpose(1, 2, 0)


def value_tables(preprocess: Preprocess) -> NDArray[np.float32]:
    """The normalised value of every byte, (3, 256), in R, G, B order; not to be written to."""
    return _tables(preprocess.mean, preprocess.std)


@functools.lru_cache(maxsize=8)
def _tables(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """The normalised value of every byte, (3, 256).

    As the reference rounds: the mean is subtracted in float32, the product with 1/std is taken in float64.
    """
    values = np.arange(256, dtype=np.float32) - np.asarray(mean, np.float32)[:, None]
    return (values.astype(np.float64) * (1.0 / np.asarray(std, np.float64))[:, None]).astype(np.float32)
