"""Descriptions of memory: an image to be read (`RawImage`) and a label map to be written (`RawLabels`).

They check their values once, when they are created. Nothing is copied and no CUDA library is called: addresses and
streams are integers.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import ImageError, IsnetError, SettingsError
from isnet_trt.pictures.files import Image
from isnet_trt.pictures.formats import Order, YuvFormat, check_order
from isnet_trt.pictures.memory import HOST, Memory, of_array
from isnet_trt.pictures.preprocess import to_rgb, yuv_to_rgb
from isnet_trt.settings import Size

LABEL_TYPES = ("uint8", "uint16")


@dataclass(frozen=True)
class Raw:
    """Rows of ``height`` x ``width`` pixels at ``address``, from row to row ``pitch`` bytes.

    Attributes:
        address: a pointer to the first pixel, as an integer.
        height, width: in pixels.
        pitch: bytes from a row to the next, at least a row's own; None: rows follow each other without padding.
        device: where the pointer is valid: "cpu", "cuda" (GPU 0 as CUDA_VISIBLE_DEVICES counts) or "cuda:N". Where
            there are several GPUs, the driver is asked which one has the address.
        stream: a CUDA stream, as `stream_handle` takes it, on which the memory is still being written or read: work
            waits for what is queued there so far. None: nothing is to be waited for.
        owner: any object that has to stay alive while the memory is used.
        size: (height, width).
        row_bytes, row_pitch: bytes of a row without padding, and from a row to the next.
        end: the address after the last pixel.
        on_host, device_index: whether the address is the host's; otherwise the GPU's number.

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

    size: Size = field(init=False, repr=False, compare=False)
    row_bytes: int = field(init=False, repr=False, compare=False)
    row_pitch: int = field(init=False, repr=False, compare=False)
    end: int = field(init=False, repr=False, compare=False)
    on_host: bool = field(init=False, repr=False, compare=False)
    device_index: int = field(init=False, repr=False, compare=False)

    def _complete(self, pixel_bytes: int, item_bytes: int, error: type[IsnetError]) -> None:
        """Check the values and set the attributes that follow from them."""
        for name in ("address", "height", "width", *(() if self.pitch is None else ("pitch",))):
            value = getattr(self, name)
            try:
                self._set(**{name: operator.index(value)})
            except TypeError:
                raise error(f"{self._name}: {name} must be an integer, not {type(value).__name__} {value!r}") from None
        if not re.fullmatch(r"cpu|cuda(:\d+)?", str(self.device)):
            raise error(f"{self._name}: device {self.device!r} is unknown; use 'cpu', 'cuda' or 'cuda:N'")
        row_bytes = self.width * pixel_bytes
        pitch = row_bytes if self.pitch is None else self.pitch
        self._set(size=(self.height, self.width), row_bytes=row_bytes, pitch=pitch, row_pitch=pitch)
        # Padding behind the last row may lie outside the allocation: it does not count.
        self._set(end=self.address + (self.height - 1) * pitch + row_bytes)
        self._set(on_host=self.device == HOST, device_index=int(self.device.partition(":")[2] or 0))
        if problem := self._problem(item_bytes):
            raise error(f"{self._name}: {problem}")
        if self.stream is not None:
            self._set(stream=stream_handle(self.stream))

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def _problem(self, item_bytes: int) -> str:
        """Why no such memory can be, for a message; empty if it can."""
        numbers = f"address {self.address:#x}, pitch {self.pitch}, height {self.height}, width {self.width}"
        if self.address == 0:
            return "the address is a null pointer; was the buffer allocated?"
        if self.address < 0 or min(self.height, self.width) < 1:
            return f"{numbers}; address, height and width must be positive"
        if self.row_pitch < 0:
            return (
                f"the pitch {self.pitch} is negative; rows are taken from the top down, so copy a bottom-up picture, "
                "or on the host wrap it in a numpy array, which may be upside down"
            )
        if self.row_pitch < self.row_bytes:
            row = f"a row of {self.width} pixels, {self.row_bytes} bytes"
            return f"the pitch {self.pitch} is shorter than {row}; pitches count bytes, not pixels"
        if self.row_pitch % item_bytes or self.address % item_bytes:
            return f"{numbers}; address and pitch must be multiples of {item_bytes}"
        return f"{numbers}; no memory lies at addresses of 2**64 and more" if self.end > 2**64 else ""

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _view(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Host memory as an array that keeps the owner alive."""
        if not self.on_host:
            raise ImageError(f"{self._name} is in the memory of {self.device}; copy it to the host to read it there")
        return Memory(self.address, shape, strides, np.dtype(dtype), HOST, False, self.owner).array()


@dataclass(frozen=True)
class RawImage(Raw):
    """A picture in memory: uint8 pixels, the channels of each next to each other in ``order``.

    Orders with alpha have four bytes a pixel; alpha is ignored. See `Raw` for the rest.
    """

    order: Order = "rgb"

    def __post_init__(self) -> None:
        check_order(self.order)
        self._complete(len(self.order), 1, ImageError)

    @property
    def pixel_format(self) -> Order:
        """How a pixel lies in memory."""
        return self.order

    @property
    def planes(self) -> tuple[RawImage, ...]:
        """The rectangles of memory that hold the image: one."""
        return (self,)

    def array(self) -> Image:
        """Host memory as uint8 (H, W, channels), without a copy; ImageError if it is a GPU's."""
        channels = len(self.order)
        return self._view((*self.size, channels), (self.row_pitch, channels, 1), "uint8")

    def rgb(self) -> Image:
        """Host memory as C-contiguous uint8 (H, W, 3) RGB, copied only where it is laid out otherwise."""
        return to_rgb(self.array(), self.order)


@dataclass(frozen=True)
class RawPlane(Raw):
    """A plane of bytes in memory, such as the Y of an image; ``width`` is in bytes. See `Raw` for the rest."""

    def __post_init__(self) -> None:
        self._complete(1, 1, ImageError)

    def array(self) -> NDArray[np.uint8]:
        """Host memory as uint8 (H, W), without a copy; ImageError if it is a GPU's."""
        return self._view(self.size, (self.row_pitch, 1), "uint8")


@dataclass(frozen=True)
class RawYuv:
    """A YUV image in memory: its planes, on one device, in the order of ``pixel_format``."""

    planes: tuple[RawPlane, ...]
    pixel_format: YuvFormat

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.planes[0].size

    @property
    def device(self) -> str:
        """Where the planes are: "cpu" or "cuda:N"."""
        return self.planes[0].device

    @property
    def on_host(self) -> bool:
        """Whether the planes are in host memory."""
        return self.planes[0].on_host

    @property
    def device_index(self) -> int:
        """The GPU's number."""
        return self.planes[0].device_index

    def rgb(self) -> Image:
        """Host memory converted to uint8 (H, W, 3) RGB; ImageError if it is a GPU's."""
        return yuv_to_rgb([plane.array() for plane in self.planes], self.pixel_format)


SourceImage = RawImage | RawYuv


@dataclass(frozen=True)
class RawLabels(Raw):
    """Memory for a label map, to be written: numbers of ``dtype``, "uint8", or "uint16" above 256 classes.

    See `Raw` for the rest.
    """

    dtype: str = "uint8"

    def __post_init__(self) -> None:
        if self.dtype not in LABEL_TYPES:
            raise SettingsError(f"RawLabels: dtype {self.dtype!r} is unknown; use {' or '.join(LABEL_TYPES)}")
        itemsize = np.dtype(self.dtype).itemsize
        self._complete(itemsize, itemsize, SettingsError)

    def array(self) -> NDArray[np.unsignedinteger]:
        """Host memory as (H, W), without a copy: the caller's own array if it is one; ImageError if it is a GPU's."""
        # An array that was passed as ``out`` comes back as itself, not as a view of the same memory.
        if self.on_host and isinstance(self.owner, np.ndarray) and self._is(self.owner):
            return self.owner
        return self._view(self.size, (self.row_pitch, np.dtype(self.dtype).itemsize), self.dtype)

    def _is(self, array: NDArray[Any]) -> bool:
        memory = of_array(array)
        same = (memory.address, memory.shape, memory.dtype.name) == (self.address, self.size, self.dtype)
        return same and memory.pitch == self.pitch and not memory.read_only


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
