"""Describe the memory of a foreign object in the same way, whichever protocol presents it.

Host memory comes as a numpy array, through Python's buffer protocol (PEP 3118) or through numpy's
``__array_interface__``; GPU memory through the CUDA array interface
(https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html). DLPack, for both, is in
`isnet_trt.pictures.dlpack`.
Nothing is copied here and no CUDA library is called: addresses are integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

HOST = "cpu"


class Refused(Exception):
    """An object's memory cannot be used; the message continues after "the image" or "out"."""


@dataclass(frozen=True)
class Memory:
    """An array somewhere: ``strides`` are in bytes, ``device`` is "cpu" or "cuda:N".

    ``stream`` is a CUDA stream on which its owner may still be writing, ``owner`` what keeps the memory alive.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    device: str
    read_only: bool
    owner: Any
    stream: int | None = None

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape} with strides of {self.strides} bytes"

    @property
    def pitch(self) -> int | None:
        """Bytes from row to row; None unless each row's elements lie side by side and rows follow from the top down.

        A stride along an axis of length 1 has no meaning and is not looked at.
        """
        row_bytes = self.dtype.itemsize
        for size, stride in zip(self.shape[:0:-1], self.strides[:0:-1], strict=True):
            if size != 1 and stride != row_bytes:
                return None
            row_bytes *= size
        if self.shape[0] == 1:
            return row_bytes
        # A smaller stride means rows that overlap or run from the bottom up: no pitch describes them.
        return self.strides[0] if self.strides[0] >= row_bytes else None

    def as_rows(self) -> Memory:
        """The same in rows from the top down: on the host a copy if need be, Refused for a GPU's memory."""
        if self.pitch is not None:
            return self
        if self.device != HOST:
            raise Refused(f"must be rows of pixels in the GPU's memory, from the top down; it is {self}; copy it there")
        return of_array(np.ascontiguousarray(self.array()))

    def array(self) -> NDArray[Any]:
        """Host memory as a numpy array, without a copy; it keeps the owner alive."""
        # numpy keeps the object with the interface, and that one this description:
        # https://numpy.org/doc/stable/reference/arrays.interface.html
        interface = {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype.str,
            "data": (self.address, self.read_only),
            "version": 3,
        }
        return np.asarray(SimpleNamespace(__array_interface__=interface, memory=self))


def of_array(array: NDArray[Any]) -> Memory:
    """The memory of a numpy array."""
    return Memory(
        array.ctypes.data, array.shape, array.strides, array.dtype, HOST, not array.flags.writeable, owner=array
    )


def of_buffer(source: Any) -> Memory | None:
    """The memory behind ``__array_interface__`` or the buffer protocol; None where the object has neither.

    Elements of C's type ``char`` are taken as uint8. Raises Refused for a format that numpy cannot read.
    """
    if hasattr(source, "__array_interface__"):
        return of_array(np.asarray(source))
    try:
        view = memoryview(source)
    except TypeError:
        return None
    try:
        array = np.asarray(view)
    except (ValueError, TypeError, NotImplementedError, BufferError) as error:
        raise Refused(f"is a buffer of format {view.format!r} that numpy cannot read ({error}); pass uint8") from None
    return of_array(array.view(np.uint8) if array.dtype == np.dtype("S1") else array)


def of_cuda_interface(source: Any) -> Memory | None:
    """The GPU memory behind ``__cuda_array_interface__`` (versions 2 and 3); None where the object has none.

    The interface names no device: the memory is called that of GPU 0, as CUDA_VISIBLE_DEVICES counts. Which GPU has it
    is asked of the driver when it is used.

    Raises:
        Refused: the interface is incomplete or ambiguous.
    """
    interface = getattr(source, "__cuda_array_interface__", None)
    if interface is None:
        return None
    try:
        shape = tuple(int(size) for size in interface["shape"])
        address, read_only = interface["data"]
        dtype = np.dtype(interface["typestr"])
        version = int(interface["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"has a __cuda_array_interface__ without a usable entry: {error!r}") from None
    _check_interface(version, interface)
    # None stands for C-contiguous.
    strides = interface.get("strides") or contiguous(shape, dtype.itemsize)
    if len(strides) != len(shape):
        raise Refused(f"has a __cuda_array_interface__ with {len(shape)} sizes but {len(strides)} strides")
    # Version 2 has no stream entry: its data is complete, or the caller waits for it.
    stream = interface.get("stream") if version >= 3 else None
    owner = (source, interface)  # some producers keep the memory alive through the interface only
    return Memory(int(address), shape, tuple(map(int, strides)), dtype, "cuda:0", bool(read_only), owner, stream)


def _check_interface(version: int, interface: dict[str, Any]) -> None:
    if version < 2:
        raise Refused(f"presents __cuda_array_interface__ version {version}; versions from 2 on are read: update it")
    if interface.get("mask") is not None:
        raise Refused("is a masked array (__cuda_array_interface__ with a mask), which has no meaning here")
    if interface.get("stream") == 0:
        raise Refused(
            "names stream 0 in its __cuda_array_interface__, which the interface forbids as ambiguous: "
            "1 is the legacy default stream, 2 the one per thread"
        )


def contiguous(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The strides in bytes of a C-contiguous array."""
    strides = []
    for size in reversed(shape):
        strides.append(itemsize)
        itemsize *= size
    return tuple(reversed(strides))
