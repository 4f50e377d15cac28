"""From an array to the network's input: resize, normalise."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import ImageError
from isnet_trt.opencv import cv2
from isnet_trt.pictures.files import Image
from isnet_trt.pictures.formats import YUV_SHIFT, Order, YuvFormat, check_format, check_order
from isnet_trt.settings import NetworkFacts, Preprocess, Size, size_text

# A hundred times as fast as numpy's copy of a view with the channels turned round.
_TO_RGB = {"bgr": "COLOR_BGR2RGB", "rgba": "COLOR_RGBA2RGB", "bgra": "COLOR_BGRA2RGB"}


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
    return to_rgb(image, order)


def to_rgb(image: Image, order: Order) -> Image:
    """Return a checked image as C-contiguous (H, W, 3) RGB; a copy is made only where needed."""
    if order == "rgb":
        return np.ascontiguousarray(image)
    if image.strides[0] < image.shape[1] * image.shape[2]:  # upside down or overlapping rows: no Mat of OpenCV's
        image = np.ascontiguousarray(image)
    return np.asarray(cv2.cvtColor(image, getattr(cv2, _TO_RGB[order])), np.uint8)


_BAND = 128
"""Rows converted at a time: whole numbers of four bytes take more memory than the image."""


def yuv_to_rgb(planes: Sequence[NDArray[np.uint8]], yuv: YuvFormat) -> Image:
    """The planes of an image as uint8 (H, W, 3) RGB; each U and V counts for its two by two pixels, as in OpenCV.

    BT.601 in limited range is OpenCV's own conversion, the others are `YuvFormat.coefficients` in whole numbers.
    """
    luma = planes[0]
    height, width = luma.shape
    chroma = np.ascontiguousarray(planes[1]) if yuv.chroma == "nv12" else cv2.merge(planes[1:])
    chroma = chroma.reshape(height // 2, width // 2, 2)
    if (yuv.matrix, yuv.range) == ("bt601", "limited"):
        return np.asarray(cv2.cvtColorTwoPlane(np.ascontiguousarray(luma), chroma, cv2.COLOR_YUV2RGB_NV12), np.uint8)
    out = np.empty((height, width, 3), np.uint8)
    for first in range(0, height, _BAND):
        rows = slice(first, first + _BAND)
        out[rows] = _converted(luma[rows], chroma[first // 2 : (first + _BAND) // 2], yuv)
    return out


def _converted(luma: NDArray[np.uint8], chroma: NDArray[Any], yuv: YuvFormat) -> NDArray[np.int32]:
    offset, y, rv, gu, gv, bu = yuv.coefficients()
    u, v = np.moveaxis(chroma.astype(np.int32) - 128, 2, 0)
    colour = np.stack([rv * v, gu * u + gv * v, bu * u], axis=2) + (1 << (YUV_SHIFT - 1))
    bright = y * np.maximum(luma.astype(np.int32) - offset, 0)
    return np.clip((bright[:, :, None] + colour.repeat(2, 0).repeat(2, 1)) >> YUV_SHIFT, 0, 255)


def network_input(image: Image, order: Order, preprocess: Preprocess) -> NDArray[np.float32]:
    """Resize and normalise a checked image: float32 (3, H, W), C-contiguous; ImageError as by `test_size`."""
    return normalise(resize(to_rgb(image, order), preprocess), preprocess).transpose(2, 0, 1)


def resize(image: Image, preprocess: Preprocess) -> Image:
    """The test-time resize: OpenCV's fixed-point bilinear on uint8, not antialiased; ImageError as by `test_size`."""
    height, width = test_size((image.shape[0], image.shape[1]), preprocess)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def normalise(image: Image, preprocess: Preprocess) -> NDArray[np.float32]:
    """(image - mean) / std as float32 (H, W, 3) in the network's channel order; ``image`` is uint8 (H, W, 3) RGB.

    In memory the channels come first, so that ``.transpose(2, 0, 1)`` is the network's layout without a copy.
    """
    planes = np.empty((3, *image.shape[:2]), np.float32)
    for plane, channel, table in zip(planes, channels(preprocess), value_tables(preprocess), strict=True):
        cv2.LUT(cv2.extractChannel(image, channel), table, dst=plane)
    return planes.transpose(1, 2, 0)


def denormalised(planes: NDArray[np.float32], preprocess: Preprocess) -> Image:
    """A network input (3, H, W) as the uint8 image (H, W, 3) RGB that it was made from; padding is the mean colour."""
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (preprocess.mean, preprocess.std))
    image = np.clip(np.rint(planes * std + mean), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(image if preprocess.channel_order == "rgb" else image[..., ::-1])


@functools.lru_cache(maxsize=8)
def value_tables(preprocess: Preprocess) -> NDArray[np.float32]:
    """The normalised value of every byte, (3, 256), in the network's channel order; not to be written to.

    As the reference rounds: the mean is subtracted in float32, the product with 1/std is taken in float64.
    """
    return _normalised(np.arange(256), preprocess)


def _normalised(values: NDArray[Any], preprocess: Preprocess) -> NDArray[np.float32]:
    """Pixel values, the same for each channel or (3, n), as the network gets them: (3, n)."""
    values = values.astype(np.float32) - np.asarray(preprocess.mean, np.float32)[:, None]
    return (values.astype(np.float64) * (1.0 / np.asarray(preprocess.std, np.float64))[:, None]).astype(np.float32)


def padding_values(preprocess: Preprocess, network: NetworkFacts) -> NDArray[np.float32]:
    """The normalised value of the padding, (3,), in the network's channel order: 0 where it is the mean."""
    if network.padding_value is None:
        return np.zeros(3, np.float32)
    return _normalised(np.asarray(network.padding_value)[:, None], preprocess)[:, 0]


def channels(preprocess: Preprocess) -> tuple[int, int, int]:
    """The channel of an RGB image that each channel of the network's input is."""
    return (2, 1, 0) if preprocess.channel_order == "bgr" else (0, 1, 2)


def test_size(size: Size, preprocess: Preprocess) -> Size:
    """Size of a picture of ``size`` after the test resize.

    Keeping the ratio: f = min(long / longer side, short / shorter side), each side floor(side * f + 0.5); small
    pictures are enlarged. Otherwise the exact size of ``preprocess``, or the picture's own where that is None.

    Raises:
        ImageError: a side would become 0.
    """
    if preprocess.size is None:
        return size
    if not preprocess.keep_ratio:
        return preprocess.size
    long, short = preprocess.size
    factor = min(long / max(size), short / min(size))
    height, width = (math.floor(side * factor + 0.5) for side in size)
    if min(height, width) < 1:
        raise ImageError(
            f"a picture of {size_text(size)} is too narrow: kept in ratio within {long}x{short} it would shrink to "
            f"{size_text((height, width))} pixels; cut it into parts that are less elongated"
        )
    return height, width


test_size.__test__ = False  # type: ignore[attr-defined]  # pytest would take an imported one for a test
