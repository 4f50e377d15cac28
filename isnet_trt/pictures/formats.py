"""Formats of pixels, and the check that an array is an image; messages say how to convert it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.settings import Size

Order = Literal["rgb", "bgr", "rgba", "bgra"]
"""The channels of a pixel, in memory order; alpha is ignored."""
ORDERS: tuple[Order, ...] = ("rgb", "bgr", "rgba", "bgra")

Chroma = Literal["nv12", "i420"]
Matrix = Literal["bt601", "bt709", "bt2020"]
Range = Literal["limited", "full"]
_LUMA: dict[Matrix, tuple[float, float]] = {
    "bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)
}  # fmt: skip
"""Shares of red and of blue in the luma (ITU-R BT.601, BT.709, BT.2020)."""
_OPENCV = (16, 1220542, 1673527, -409993, -852492, 2116026)
"""BT.601, limited range, as OpenCV rounds it: 1.164, 1.596, 0.391, 0.813, 2.018."""
YUV_SHIFT = 20
"""Coefficients are in units of 2**-20."""


@dataclass(frozen=True)
class YuvFormat:
    """Eight-bit YUV 4:2:0 in planes: Y of every pixel, U and V of every two by two.

    Attributes:
        chroma: "nv12", one plane of U and V in turn, or "i420", one of U and one of V.
        matrix: "bt601", "bt709" or "bt2020" (of constant luminance there is none).
        range: "limited", Y within 16..235 and chroma within 16..240, or "full".

    Raises:
        SettingsError: one of them is unknown.
    """

    chroma: Chroma
    matrix: Matrix = "bt601"
    range: Range = "limited"

    def __post_init__(self) -> None:
        for name, choices in (("matrix", tuple(_LUMA)), ("range", ("limited", "full"))):
            if (value := getattr(self, name)) not in choices:
                raise SettingsError(f"{name} {value!r} is unknown; use {', '.join(map(repr, choices))}")

    def shapes(self, size: Size) -> tuple[Size, ...]:
        """(rows, bytes of a row) of the planes of an image of ``size``."""
        height, width = size
        chroma = (height // 2, width) if self.chroma == "nv12" else (height // 2, width // 2)
        return ((height, width), chroma) if self.chroma == "nv12" else ((height, width), chroma, chroma)

    def coefficients(self) -> tuple[int, int, int, int, int, int]:
        """Offset of Y, and factors in units of 2**-20: Y in all, V in red, U and V in green, U in blue.

        red = (y · max(Y − offset, 0) + rv · (V − 128) + 2¹⁹) >> 20, clipped to 0..255; green and blue alike.
        """
        if (self.matrix, self.range) == ("bt601", "limited"):
            return _OPENCV
        red, blue = _LUMA[self.matrix]
        offset, luma, chroma = (16, 255 / 219, 255 / 224) if self.range == "limited" else (0, 1.0, 1.0)
        rv, bu = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
        green = 1 - red - blue
        factors = (luma, rv, -bu * blue / green, -rv * red / green, bu)
        y, *rest = (round(factor * (1 << YUV_SHIFT)) for factor in factors)
        return offset, y, rest[0], rest[1], rest[2], rest[3]


PixelFormat = Order | YuvFormat


def frame_bytes(size: Size, pixel_format: PixelFormat) -> int:
    """Bytes of an image without padding."""
    if isinstance(pixel_format, YuvFormat):
        return sum(rows * width for rows, width in pixel_format.shapes(size))
    return size[0] * size[1] * len(pixel_format)


def check_order(order: str) -> None:
    """Raise SettingsError for an unknown channel order."""
    if order not in ORDERS:
        raise SettingsError(f"order {order!r} is unknown; use {', '.join(map(repr, ORDERS))}")


def check_format(shape: tuple[int, ...], dtype: np.dtype[Any], order: Order) -> None:
    """Raise ImageError, with how to convert it, unless an array is uint8 (H, W, channels of ``order``), not empty."""
    check_order(order)
    channels = len(order)
    if len(shape) != 3 or shape[2] != channels or dtype != np.uint8 or 0 in shape:
        expected = f"(height, width, {channels})" + (f" for order {order!r}" if channels != 3 else "")
        advice = _advice(shape, dtype, channels)
        raise ImageError(f"an image must be uint8 of shape {expected}, this one is {dtype} {shape}: {advice}")


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
