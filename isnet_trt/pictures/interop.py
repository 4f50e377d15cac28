"""Check and describe, once, whatever a caller passes as an image or as memory for a label map.

`image_from` returns a `RawImage` and `labels_from` a `RawLabels`, which keep the caller's object alive as long as they
live themselves. Accepted are these two classes (raw pointers), numpy arrays, DLPack, ``__cuda_array_interface__``,
``__array_interface__`` and the buffer protocol; for images also what is still encoded: the path of a file, its content
as flat bytes, or a binary file object. `isnet_trt.pictures.yuv` has NV12 and I420, which become a `RawYuv`.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.pictures.files import Image, decode_image, max_bytes, read_image, read_stream
from isnet_trt.pictures.formats import Order, check_format, check_order
from isnet_trt.pictures.headers import dimensions
from isnet_trt.pictures.memory import HOST, Memory, Refused, of_array
from isnet_trt.pictures.protocols import memory_of
from isnet_trt.pictures.raw import RawImage, RawLabels, RawYuv, SourceImage
from isnet_trt.pictures.yuv import I420, NV12
from isnet_trt.settings import Size

_TAKEN = (
    "pass a path, encoded bytes, a binary file object, a numpy array, an object with the buffer protocol, DLPack or "
    "__cuda_array_interface__, or describe a pointer with"
)
_FLAT_ADVICE = (
    "a flat buffer of pixels needs height and width: use memoryview(buffer).cast('B', (height, width, 3)) or "
    "numpy.frombuffer(buffer, 'uint8').reshape(height, width, 3)"
)


def image_from(image: Any, order: Order = "rgb", *, stream: int | None = None) -> SourceImage:
    """Any picture as `RawImage`, or `RawYuv` for NV12 and I420: what is encoded is read, memory is described in place.

    Encoded are the path of a file, a binary file object, and flat uint8 in host memory (bytes, a memoryview, a tensor)
    with the content of a picture file. Host arrays of another layout (planes, upside down, every other pixel) are
    copied; GPU memory is not. ``order`` is that of an array; a `RawImage` has its own, and what is encoded needs none.
    ``stream`` is the CUDA stream on which GPU memory will be read, for DLPack's producers.

    Raises:
        ImageError: it is no picture; the message says what to do.
        SettingsError: ``order`` is unknown.
    """
    if isinstance(image, RawImage | RawYuv):
        return image
    if isinstance(image, NV12 | I420):
        return image.raw(stream)
    check_order(order)
    try:
        memory = None if isinstance(image, str | os.PathLike) else memory_of(image, stream)
        if memory is None or len(memory.shape) == 1:
            memory, order = of_array(_decoded(image, memory)), "rgb"
        check_format(memory.shape, memory.dtype, order)
        memory = memory.as_rows()
    except Refused as reason:
        # From the cause: the message of `Refused` is in this one, and the producer's own exception stays visible.
        raise ImageError(f"the image {reason}") from reason.__cause__
    height, width, _ = memory.shape
    origin = {"device": memory.device, "stream": memory.stream, "owner": memory.owner}
    return RawImage(memory.address, height, width, memory.pitch, order, **origin)


def _decoded(image: Any, memory: Memory | None) -> Image:
    """The image of an encoded picture: a path, a file object, or flat ``memory`` with a file's content."""
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if memory is not None:
        return _decoded_bytes(memory, type(image).__name__)
    if callable(getattr(image, "read", None)):
        return read_stream(image)
    kind = type(image).__name__
    raise ImageError(f"an image cannot be {kind}; use numpy.asarray, or {_TAKEN} isnet_trt.RawImage")


def _decoded_bytes(memory: Memory, kind: str) -> Image:
    """The image of a picture file's content; Refused for flat memory that has none."""
    (size,) = memory.shape
    if memory.device != HOST or memory.dtype != np.uint8:
        raise Refused(f"is a flat buffer of {size} values ({memory.dtype}, {memory.device}); {_FLAT_ADVICE}")
    if not size:
        raise ImageError(f"the image ({kind}) is empty: 0 bytes; was the file read to its end before?")
    name = f"the image ({kind}, {size} bytes)"
    if size > max_bytes():
        raise ImageError(f"{name} is too large: the limit is {max_bytes()} bytes")
    content = memory.array().tobytes()
    try:
        return decode_image(content, name)
    except ImageError as error:
        if dimensions(content):  # it is a picture file, and the message says what is wrong with it
            raise
        raise ImageError(f"{error}; {_FLAT_ADVICE}") from None


def labels_from(out: Any, image: SourceImage, dtype: Any, *, stream: int | None = None) -> RawLabels:
    """Memory for the label map of ``image`` as `RawLabels`.

    Checked: (height, width) of the image, ``dtype``, rows, writable, no byte shared with the image. A flat host
    buffer (a bytearray) of exactly the right length is taken too. ``stream`` is the CUDA stream on which GPU memory
    will be written, for DLPack's producers.

    Raises:
        SettingsError: it cannot take the label map; the message says why and what to pass.
    """
    size, dtype = image.size, np.dtype(dtype)
    try:
        labels = out if isinstance(out, RawLabels) else _labels(out, size, dtype, stream)
    except Refused as reason:
        raise SettingsError(f"out {reason}") from reason.__cause__
    if (labels.size, labels.dtype) != (size, dtype.name):
        raise SettingsError(
            f"out is {labels.dtype} {labels.size}, but this label map is {dtype.name} {size}: "
            f"pass numpy.empty({size}, '{dtype.name}') or memory of that form"
        )
    check_apart(image, labels)
    return labels


def _labels(out: Any, size: Size, dtype: np.dtype[Any], stream: int | None) -> RawLabels:
    memory = memory_of(out, stream)
    if memory is None:
        raise Refused(f"cannot be {type(out).__name__}; {_TAKEN} isnet_trt.RawLabels")
    if memory.read_only:
        raise Refused("is read-only, and the label map is written to it; pass a writable array (a copy of this one)")
    # A buffer of exactly the right length (such as a bytearray) can only mean the rows one after the other.
    if _is_flat(memory, math.prod(size) * dtype.itemsize) and memory.address % dtype.itemsize == 0:
        memory = of_array(memory.owner.view(dtype).reshape(size))
    if len(memory.shape) != 2 or memory.dtype != dtype or 0 in memory.shape:
        raise Refused(f"is {memory.dtype} {memory.shape}, but this label map is {dtype} {size}")
    if memory.pitch is None:
        raise Refused(f"must be rows of labels side by side, from the top down; it is {memory}")
    origin = {"device": memory.device, "stream": memory.stream, "owner": memory.owner}
    return RawLabels(memory.address, *memory.shape, memory.pitch, dtype.name, **origin)


def _is_flat(memory: Memory, size: int) -> bool:
    """Whether it is ``size`` bytes of the host, one after the other."""
    flat = (memory.shape, memory.strides, memory.dtype) == ((size,), (1,), np.uint8)
    return flat and memory.device == HOST and isinstance(memory.owner, np.ndarray)


def check_apart(image: SourceImage, out: RawLabels) -> None:
    """Raise SettingsError if the label map would be written over the picture while this is still read."""
    if image.on_host != out.on_host:  # all GPUs of a process share one address space
        return
    for plane in image.planes:
        if plane.address < out.end and out.address < plane.end:
            raise SettingsError(
                f"out ({out.address:#x} to {out.end:#x}) overlaps the image ({plane.address:#x} to {plane.end:#x}); "
                "the label map needs memory of its own"
            )
