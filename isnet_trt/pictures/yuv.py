"""NV12 and I420, as video decoders give them: planes in any form, with pitch, in host or GPU memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isnet_trt.errors import ImageError
from isnet_trt.pictures.files import Image
from isnet_trt.pictures.formats import Matrix, Range, YuvFormat
from isnet_trt.pictures.memory import Refused
from isnet_trt.pictures.protocols import memory_of
from isnet_trt.pictures.raw import RawPlane, RawYuv
from isnet_trt.settings import size_text


@dataclass(frozen=True)
class _Planar(ABC):
    @abstractmethod
    def raw(self, stream: int | None = None) -> RawYuv:
        """The planes, described; ``stream`` is the CUDA stream on which GPU memory will be read.

        Raises:
            ImageError: a plane is no uint8 memory of the right size, or height or width is odd.
            SettingsError: matrix or range is unknown.
        """

    def rgb(self) -> Image:
        """Planes in host memory converted to uint8 (H, W, 3) RGB, such as `Segmentation.overlay` takes.

        Raises:
            ImageError: as `raw`, or the planes are in GPU memory.
        """
        return self.raw().rgb()


@dataclass(frozen=True)
class NV12(_Planar):
    """An image of two planes, eight bits a value: Y, and U and V in turn for every two by two pixels.

    Attributes:
        y: uint8 (H, W), both even: an array, an object with DLPack, ``__cuda_array_interface__`` or the buffer
            protocol, or a pointer as `isnet_trt.RawPlane`; rows may have padding. Without ``uv``: both planes in one,
            (H * 3 / 2, W), with one pitch.
        uv: uint8 (H / 2, W) or (H / 2, W / 2, 2).
        matrix: "bt601", "bt709" or "bt2020".
        range: "limited" or "full".

    `raw` describes the planes, and raises what does not fit.
    """

    y: Any
    uv: Any = None
    matrix: Matrix = "bt601"
    range: Range = "limited"

    def raw(self, stream: int | None = None) -> RawYuv:
        yuv = YuvFormat("nv12", self.matrix, self.range)
        if self.uv is not None:
            return _described(yuv, {"y": self.y, "uv": self.uv}, stream)
        return RawYuv(_split(yuv, self.y, stream), yuv)


@dataclass(frozen=True)
class I420(_Planar):
    """An image of three planes, eight bits a value: Y, U and V, the latter of every two by two pixels.

    Attributes:
        y: uint8 (H, W), both even, in any form that `NV12` takes. Without ``u`` and ``v``: all planes in one,
            (H * 3 / 2, W), without padding, as OpenCV has it.
        u, v: uint8 (H / 2, W / 2).
        matrix: "bt601", "bt709" or "bt2020".
        range: "limited" or "full".

    `raw` describes the planes, and raises what does not fit.
    """

    y: Any
    u: Any = None
    v: Any = None
    matrix: Matrix = "bt601"
    range: Range = "limited"

    def raw(self, stream: int | None = None) -> RawYuv:
        yuv = YuvFormat("i420", self.matrix, self.range)
        if self.u is not None or self.v is not None:
            return _described(yuv, {"y": self.y, "u": self.u, "v": self.v}, stream)
        y, chroma = _split(yuv, self.y, stream)
        if y.row_pitch != y.width:
            raise ImageError(
                f"I420: rows of {y.width} bytes with a pitch of {y.row_pitch}: how U and V are padded is not known; "
                "pass y, u and v"
            )
        u = replace(chroma, width=y.width // 2, pitch=None)
        return RawYuv((y, u, replace(u, address=u.address + u.height * u.width)), yuv)


def _described(yuv: YuvFormat, sources: dict[str, Any], stream: int | None) -> RawYuv:
    """Planes that are passed one by one."""
    planes = {name: _plane(yuv, name, source, stream) for name, source in sources.items()}
    size, place = planes["y"].size, (planes["y"].on_host, planes["y"].device_index)
    _check_even(yuv, size)
    for (name, plane), shape in zip(planes.items(), yuv.shapes(size), strict=True):
        if plane.size != shape:
            raise ImageError(
                f"{yuv.chroma.upper()}: {name} has {size_text(plane.size)} bytes, but with a y of {size_text(size)} "
                f"it must have {size_text(shape)}"
            )
        if (plane.on_host, plane.device_index) != place:
            devices = f"{name} is in the memory of {plane.device}, y in that of {planes['y'].device}"
            raise ImageError(f"{yuv.chroma.upper()}: {devices}; copy it there")
    return RawYuv(tuple(planes.values()), yuv)


def _split(yuv: YuvFormat, source: Any, stream: int | None) -> tuple[RawPlane, RawPlane]:
    """The Y of an image whose planes are in one, and the rows that follow."""
    plane = _plane(yuv, "y", source, stream)
    height = plane.height * 2 // 3
    if plane.height % 3:
        raise ImageError(
            f"{yuv.chroma.upper()}: {plane.height} rows are not one and a half times a height; pass the planes apart"
        )
    _check_even(yuv, (height, plane.width))
    address = plane.address + height * plane.row_pitch
    return replace(plane, height=height), replace(plane, address=address, height=height // 2)


def _check_even(yuv: YuvFormat, size: tuple[int, int]) -> None:
    if size[0] % 2 or size[1] % 2:
        raise ImageError(f"{yuv.chroma.upper()}: {size_text(size)} is odd; height and width must be even: crop it")


def _plane(yuv: YuvFormat, name: str, source: Any, stream: int | None) -> RawPlane:
    if isinstance(source, RawPlane):
        return source
    title = f"{yuv.chroma.upper()}: {name}"
    try:
        memory = memory_of(source, stream)
        if memory is None:
            raise Refused(f"cannot be {type(source).__name__}; pass an array of uint8, or a pointer as RawPlane")
        pairs = name == "uv" and len(memory.shape) == 3 and memory.shape[2] == 2
        if memory.dtype != np.uint8 or 0 in memory.shape or not (len(memory.shape) == 2 or pairs):
            raise Refused(f"must be uint8 (rows, bytes), eight bits a value; it is {memory.dtype} {memory.shape}")
        memory = memory.as_rows()
    except Refused as reason:
        raise ImageError(f"{title} {reason}") from reason.__cause__
    height, width = memory.shape[0], memory.shape[1] * (2 if pairs else 1)
    origin = {"device": memory.device, "stream": memory.stream, "owner": memory.owner}
    return RawPlane(memory.address, height, width, memory.pitch, **origin)
