"""Objects that present memory as GPU libraries do, to the letter of the protocols; the memory itself is the host's.

So the readers are tested without a GPU: addresses are only described there, never followed.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from isnet_trt.pictures.dlpack import CUDA, Deleter, DLManagedTensor, DLManagedTensorVersioned

_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))

_KEPT: list[Any] = []
"""Content of capsules: it has to outlive the tensor, until the deleter was called."""


class CudaArray:
    """`__cuda_array_interface__` over a numpy array."""

    def __init__(self, array: np.ndarray, **entries: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, not array.flags.writeable),
            "strides": None if array.flags.c_contiguous else array.strides,
            "version": 3,
            "stream": None,
        } | entries


class Tensor:
    """DLPack over a numpy array, as a tensor on ``device``; it counts what a consumer owes it."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (CUDA, 0), *, versioned: bool = True) -> None:
        self.array, self.device, self.versioned = array, device, versioned
        self.offset, self.null_strides, self.major, self.flags = 0, False, 1, 0
        self.code, self.lanes = {"u": 1, "i": 0, "f": 2}[array.dtype.kind], 1
        self.deleted: list[int] = []
        self.streams: list[int | None] = []
        self.capsules: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None) -> Any:
        self.streams.append(stream)
        versioned = self.versioned and max_version is not None and max_version[0] >= 1
        managed = (DLManagedTensorVersioned if versioned else DLManagedTensor)()
        if isinstance(managed, DLManagedTensorVersioned):
            managed.major, managed.flags = self.major, self.flags
        self._fill(managed)
        self.capsules.append(
            _new_capsule(ctypes.addressof(managed), b"dltensor_versioned" if versioned else b"dltensor", None)
        )
        return self.capsules[-1]

    def _fill(self, managed: Any) -> None:
        array, tensor = self.array, managed.tensor
        numbers = ctypes.c_int64 * array.ndim
        shape, strides = numbers(*array.shape), numbers(*(s // array.itemsize for s in array.strides))
        managed.deleter = Deleter(self.deleted.append)
        tensor.data, tensor.byte_offset = array.ctypes.data - self.offset, self.offset
        tensor.device_type, tensor.device_id = self.device
        tensor.ndim, tensor.code, tensor.bits, tensor.lanes = array.ndim, self.code, 8 * array.itemsize, self.lanes
        tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
        if not self.null_strides:
            tensor.strides = ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64))
        _KEPT.extend((managed, shape, strides, array))

    @property
    def names(self) -> list[bytes]:
        """What the capsules are called now."""
        return [_name(capsule) for capsule in self.capsules]


class OldTensor(Tensor):
    """A producer from before DLPack 1.0: it knows no ``max_version``."""

    def __dlpack__(self, *, stream: int | None = None) -> Any:  # type: ignore[override]
        return super().__dlpack__(stream=stream)
