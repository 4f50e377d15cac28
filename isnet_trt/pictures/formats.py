"""Check that an array is an image, by element type, shape and channel order; messages say how to convert it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from isnet_trt.errors import ImageError, SettingsError

Order = Literal["rgb", "bgr", "rgba", "bgra"]
"""The channels of a pixel, in memory order; alpha is ignored."""
ORDERS: tuple[Order, ...] = ("rgb", "bgr", "rgba", "bgra")


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
