"""Pictures and label maps in the caller's memory: host or GPU, by pointer or by any of the array protocols.

`image_from` and `labels_from` turn what a caller passes into one description, `RawImage` or `RawLabels`, which keeps
the caller's object alive as long as it lives itself. Accepted are these two classes (raw pointers), numpy arrays,
DLPack, ``__cuda_array_interface__``, ``__array_interface__`` and the buffer protocol.
"""

from __future__ import annotations

import operator
import os
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import ImageError, IsnetError, SettingsError
from isnet_trt.pictures.dlpack import of_dlpack
from isnet_trt.pictures.files import Image, read_image
from isnet_trt.pictures.formats import Order, check_format, check_order, to_rgb
from isnet_trt.pictures.memory import HOST, Memory, Refused, of_array, of_buffer, of_cuda_interface
from isnet_trt.settings import Size

LABEL_TYPES = ("uint8", "uint16")
_TAKEN = (
    "pass a path, a numpy array, an object with the buffer protocol, DLPack or __cuda_array_interface__, "
    "or describe a pointer with"
)


@dataclass(frozen=True)
class Raw:
    """Rows of ``height`` x ``width`` pixels at ``address``, from row to row ``pitch`` bytes.

    Attributes:
        address: a pointer to the first pixel, as an integer.
        height, width: in pixels.
        pitch: bytes from a row to the next, at least a row's own; None: rows follow each other without padding.
        device: where the pointer is valid: "cpu", "cuda" (GPU 0 as CUDA_VISIBLE_DEVICES counts) or "cuda:N".
        stream: a CUDA stream, as `stream_handle` takes it, on which the memory is still being written or read: work
            waits for what is queued there so far. None: nothing is to be waited for.
        owner: any object that has to stay alive while the memory is used.

    Raises:
        ImageError: for an image, a value that cannot be; the message names it.
        SettingsError: the same for labels; for both, ``stream`` is no stream.
    """

    address: int
    height: int
    width: int
    pitch: int | None = None
    device: str = field(default="cpu", kw_only=True)
    stream: int | None = field(default=None, kw_only=True)
    owner: Any = field(default=None, kw_only=True, repr=False, compare=False)

    def _check(self, error: type[IsnetError]) -> None:
        for name in ("address", "height", "width") + (() if self.pitch is None else ("pitch",)):
            self._make_integer(name, error)
        if self.address == 0:
            raise error(f"{self._name}: the address is a null pointer; was the buffer allocated?")
        if not 0 < self.address < 2**64 or min(self.height, self.width) < 1:
            raise error(f"{self._name}: {self._numbers()}; address, height and width must be positive")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", str(self.device)):
            raise error(f"{self._name}: device {self.device!r} is unknown; use 'cpu', 'cuda' or 'cuda:N'")
        if self.stream is not None:
            object.__setattr__(self, "stream", stream_handle(self.stream))
        self._check_pitch(error)

    def _make_integer(self, name: str, error: type[IsnetError]) -> None:
        value = getattr(self, name)
        try:
            object.__setattr__(self, name, operator.index(value))
        except TypeError:
            raise error(f"{self._name}: {name} must be an integer, not {type(value).__name__} {value!r}") from None

    def _check_pitch(self, error: type[IsnetError]) -> None:
        if self.pitch is None:
            object.__setattr__(self, "pitch", self.row_bytes)
        if self.row_pitch < 0:
            raise error(
                f"{self._name}: the pitch {self.pitch} is negative; rows are taken from the top down, so copy a "
                "bottom-up picture, or on the host wrap it in a numpy array, which may be upside down"
            )
        if self.row_pitch < self.row_bytes:
            raise error(
                f"{self._name}: the pitch {self.pitch} is shorter than a row of {self.width} pixels, "
                f"{self.row_bytes} bytes; pitches count bytes, not pixels"
            )
        if self.row_pitch % self.item_bytes or self.address % self.item_bytes:
            raise error(f"{self._name}: {self._numbers()}; address and pitch must be multiples of {self.item_bytes}")

    def _numbers(self) -> str:
        return f"address {self.address:#x}, pitch {self.pitch}, height {self.height}, width {self.width}"

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def item_bytes(self) -> int:
        """Bytes of one number."""
        raise NotImplementedError

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, without padding."""
        raise NotImplementedError

    @property
    def row_pitch(self) -> int:
        """``pitch``, which is never None in an object that was made."""
        return self.row_bytes if self.pitch is None else self.pitch

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.height, self.width

    @property
    def on_host(self) -> bool:
        """Whether the address is the host's."""
        return self.device == HOST

    @property
    def device_index(self) -> int:
        """The GPU's number; 0 where ``device`` names none."""
        return int(self.device.partition(":")[2] or 0)

    @property
    def end(self) -> int:
        """The address after the last pixel."""
        return self.address + (self.height - 1) * self.row_pitch + self.row_bytes

    def _view(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Host memory as an array that keeps this object, and with it the owner, alive."""
        if not self.on_host:
            raise ImageError(f"{self._name} is in the memory of {self.device}; copy it to the host to read it there")
        return Memory(self.address, shape, strides, np.dtype(dtype), HOST, False, owner=self).array()


@dataclass(frozen=True)
class RawImage(Raw):
    """A picture in memory: uint8 pixels, the channels of each next to each other in ``order``.

    Orders with alpha have four bytes a pixel; alpha is passed over. See `Raw` for the rest.
    """

    order: Order = "rgb"

    def __post_init__(self) -> None:
        check_order(self.order)
        self._check(ImageError)

    @property
    def item_bytes(self) -> int:
        """1."""
        return 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, without padding."""
        return self.width * len(self.order)

    def array(self) -> Image:
        """Host memory as uint8 (H, W, channels), without a copy.

        Raises:
            ImageError: it is a GPU's memory.
        """
        channels = len(self.order)
        return self._view((self.height, self.width, channels), (self.row_pitch, channels, 1), "uint8")

    def rgb(self) -> Image:
        """Host memory as C-contiguous uint8 (H, W, 3) RGB, copied only where it is laid out otherwise."""
        return to_rgb(self.array(), self.order)


@dataclass(frozen=True)
class RawLabels(Raw):
    """Memory for a label map, to be written: numbers of ``dtype``, "uint8", or "uint16" above 256 classes.

    See `Raw` for the rest.
    """

    dtype: str = "uint8"

    def __post_init__(self) -> None:
        if self.dtype not in LABEL_TYPES:
            raise SettingsError(f"RawLabels: dtype {self.dtype!r} is unknown; use {' or '.join(LABEL_TYPES)}")
        self._check(SettingsError)

    @property
    def item_bytes(self) -> int:
        """Bytes of one label."""
        return np.dtype(self.dtype).itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, without padding."""
        return self.width * self.item_bytes

    def array(self) -> NDArray[np.unsignedinteger]:
        """Host memory as (H, W), without a copy; the caller's own array where it was given as one.

        Raises:
            ImageError: it is a GPU's memory.
        """
        if self.on_host and isinstance(self.owner, np.ndarray) and self._is(self.owner):
            return self.owner
        return self._view(self.size, (self.row_pitch, self.item_bytes), self.dtype)

    def _is(self, array: NDArray[Any]) -> bool:
        memory = of_array(array)
        same = (memory.address, memory.shape, memory.dtype.name) == (self.address, self.size, self.dtype)
        return same and memory.rows == (self.row_pitch, True) and not memory.read_only


def image_from(image: Any, order: Order = "rgb", *, stream: int | None = None) -> RawImage:
    """Any picture as `RawImage`: a path is read, memory is described without a copy where it is rows of pixels.

    Host arrays of another layout (planes, upside down, every other pixel) are copied; GPU memory is not.
    ``order`` is that of an array; a `RawImage` has its own, and a file needs none. ``stream`` is the CUDA stream on
    which GPU memory will be read, for DLPack's producers.

    Raises:
        ImageError: it is no picture; the message says what to do.
        SettingsError: ``order`` is unknown.
    """
    if isinstance(image, RawImage):
        return image
    if isinstance(image, str | os.PathLike):
        return image_from(read_image(image))
    check_order(order)
    try:
        memory = _memory(image, stream)
        if memory is None:
            kind = type(image).__name__
            raise ImageError(f"an image cannot be {kind}; use numpy.asarray, or {_TAKEN} isnet_trt.RawImage")
        _check_flat(memory, "picture", "(height, width, 3)")
        check_format(memory.shape, memory.dtype, order)
        memory = _as_rows(memory)
    except Refused as reason:
        raise ImageError(f"the image {reason}") from reason.__cause__
    height, width, _ = memory.shape
    return RawImage(memory.address, height, width, memory.rows[0], order, **_place(memory))


def _place(memory: Memory) -> dict[str, Any]:
    return {"device": memory.device, "stream": memory.stream, "owner": memory.owner}


def labels_from(out: Any, image: RawImage, dtype: Any, *, stream: int | None = None) -> RawLabels | None:
    """Describe memory for the label map of ``image`` as `RawLabels`; None for None.

    Checked: (height, width) of the image, ``dtype``, rows, writable, no byte shared with the image. A flat host
    buffer (a bytearray) of exactly the right length is taken too. ``stream`` is the CUDA stream on which GPU memory
    will be written, for DLPack's producers.

    Raises:
        SettingsError: it cannot take the label map; the message says why and what to pass.
    """
    if out is None:
        return None
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
    memory = _memory(out, stream)
    if memory is None:
        raise Refused(f"cannot be {type(out).__name__}; {_TAKEN} isnet_trt.RawLabels")
    if memory.read_only:
        raise Refused("is read-only, and the label map is written to it; pass a writable array (a copy of this one)")
    if memory.device == HOST and isinstance(memory.owner, np.ndarray):
        memory = _unflattened(memory, size, dtype)
    if len(memory.shape) != 2 or memory.dtype != dtype or 0 in memory.shape:
        raise Refused(f"is {memory.dtype} {memory.shape}, but this label map is {dtype} {size}")
    pitch, dense = memory.rows
    if not dense or pitch < memory.shape[1] * dtype.itemsize:
        raise Refused(f"must be rows of labels side by side, from the top down; it is {memory}")
    height, width = memory.shape
    return RawLabels(memory.address, height, width, pitch, dtype.name, **_place(memory))


def _unflattened(memory: Memory, size: Size, dtype: np.dtype[Any]) -> Memory:
    """A flat buffer of bytes as the label map that exactly fills it."""
    whole = memory.shape == (size[0] * size[1] * dtype.itemsize,) and memory.dtype == np.uint8
    if not whole or not memory.rows[1] or memory.address % dtype.itemsize:
        return memory
    return of_array(memory.owner.view(dtype).reshape(size))


def _memory(source: Any, stream: int | None) -> Memory | None:
    """Whatever protocol the object has; DLPack before the CUDA interface, since it lets the producer wait."""
    if isinstance(source, np.ndarray):
        return of_array(source)
    return of_dlpack(source, stream) or of_cuda_interface(source) or of_buffer(source)


def _check_flat(memory: Memory, what: str, shape: str) -> None:
    if len(memory.shape) == 1:
        raise Refused(
            f"is a flat buffer of {memory.shape[0]} values, without height and width; for a {what} use "
            f"memoryview(buffer).cast('B', {shape}) or numpy.frombuffer(buffer, 'uint8').reshape{shape}"
        )


def _as_rows(memory: Memory) -> Memory:
    """As it is where it is rows of pixels from the top down; else copied on the host, refused on the GPU."""
    pitch, dense = memory.rows
    if dense and pitch >= memory.shape[1] * memory.shape[2]:
        return memory
    if memory.device != HOST:
        raise Refused(f"must be rows of pixels in the GPU's memory, from the top down; it is {memory}; copy it there")
    return of_array(np.ascontiguousarray(memory.array()))


def check_apart(image: RawImage, out: RawLabels) -> None:
    """Refuse a label map that would be written over the picture while this is still read.

    Raises:
        SettingsError: the two share memory.
    """
    same = image.on_host == out.on_host and image.device_index == out.device_index
    if same and image.address < out.end and out.address < image.end:
        raise SettingsError(
            f"out ({out.address:#x} to {out.end:#x}) overlaps the image ({image.address:#x} to {image.end:#x}); "
            "the label map needs memory of its own"
        )


def stream_handle(stream: Any) -> int:
    """A CUDA stream as an integer: a handle, or an object with ``__cuda_stream__``
    (https://nvidia.github.io/cuda-python/cuda-core/latest/interoperability.html).

    Raises:
        SettingsError: it is neither.
    """
    try:
        handle = stream.__cuda_stream__()[1] if hasattr(stream, "__cuda_stream__") else stream
        handle = operator.index(handle)
    except (TypeError, IndexError):
        handle = -1
    if handle < 0:
        raise SettingsError(f"stream must be a CUDA stream's handle (an integer), not {stream!r}")
    return handle
