"""Read DLPack capsules with ctypes: tensors of any library, without importing that library.

Structures and protocol: https://dmlc.github.io/dlpack/latest/c_api.html and
https://dmlc.github.io/dlpack/latest/python_spec.html. Tested with tensors of torch and numpy on the CPU; for GPU
memory with test doubles that present the same capsules.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from isnet_trt.pictures.memory import HOST, Memory, Refused, contiguous

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
"""DLDeviceType: host, GPU, page-locked host and managed memory."""
LEGACY = 1
"""The legacy default stream; in this protocol 0 would be ambiguous."""
READ_ONLY = 1
"""DLPACK_FLAG_BITMASK_READ_ONLY."""
_KINDS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}
"""DLDataTypeCode as numpy's kind."""


class DLTensor(ctypes.Structure):
    """A strided array; ``strides`` are in elements, null where it is C-contiguous."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class DLManagedTensor(ctypes.Structure):
    """What a capsule called "dltensor" holds."""

    _fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", Deleter))


class DLManagedTensorVersioned(ctypes.Structure):
    """What a capsule called "dltensor_versioned" holds (DLPack 1.x)."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


# Name of a capsule, name after it was consumed, structure. A capsule keeps only a pointer to its name.
_CAPSULES = (
    (b"dltensor_versioned", b"used_dltensor_versioned", DLManagedTensorVersioned),
    (b"dltensor", b"used_dltensor", DLManagedTensor),
)


# PYFUNCTYPE and not CFUNCTYPE: these functions need the GIL, and raise Python's exceptions.
def _capi(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_is_valid = _capi("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_pointer = _capi("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_rename = _capi("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)


class _Managed:
    """A tensor taken out of its capsule; its deleter is called with the last reference to this object."""

    def __init__(self, capsule: Any) -> None:
        self._address = 0
        for name, used, structure in _CAPSULES:
            if _is_valid(capsule, name):
                # The name says who owns the tensor: renamed, the capsule's destructor leaves it to this object.
                address = _pointer(capsule, name)
                _rename(capsule, used)
                self._address, self.content = address, structure.from_address(address)
                return
        raise Refused("gave a DLPack capsule that was used before or is none; a capsule can be read once")

    def __del__(self) -> None:
        if self._address and self.content.deleter:
            self.content.deleter(self._address)


def capsule_of(array: np.ndarray) -> Any:
    """A capsule of a numpy array, for a consumer that takes capsules from before DLPack 1.0."""
    return array.__dlpack__()


def mark_consumed(capsule: Any) -> None:
    """Give a capsule the name that tells its destructor that a consumer has its tensor."""
    _rename(capsule, b"used_dltensor")


def of_dlpack(source: Any, stream: int | None = None) -> Memory | None:
    """The memory behind ``__dlpack__``; None where the object has no DLPack.

    ``stream`` is the CUDA stream on which GPU memory will be used (None: the legacy default stream): the producer
    makes it wait for what is still to be written. The result names that stream: work on another one has to wait for
    it.

    Raises:
        Refused: an unsupported device or data type, or the producer refuses.
    """
    if not hasattr(source, "__dlpack__") or not hasattr(source, "__dlpack_device__"):
        return None
    # The device is asked for first: what cannot be used here is refused before the producer exports a capsule.
    kind, index = (int(number) for number in source.__dlpack_device__())
    device = _device(kind, index)
    # Host memory has no stream. For CUDA None means the legacy default stream; 1 states it.
    consumer = None if device == HOST else stream or LEGACY
    managed = _Managed(_capsule(source, consumer))
    # The legacy structure has neither a version nor flags; another major version may have another layout.
    if getattr(managed.content, "major", 0) > 1:
        raise Refused(f"is DLPack {managed.content.major}; up to version 1 is read here")
    read_only = bool(getattr(managed.content, "flags", 0) & READ_ONLY)
    return _memory(managed.content.tensor, device, read_only, managed, consumer)


def _device(kind: int, index: int) -> str:
    # The CPU reads page-locked memory like any other; managed memory is left to the GPU.
    if kind in (CPU, CUDA_HOST):
        return HOST
    if kind in (CUDA, CUDA_MANAGED):
        return f"cuda:{index}"
    raise Refused(f"lies on DLPack device type {kind}, neither the host nor an NVIDIA GPU; copy it to the host first")


def _capsule(source: Any, stream: int | None) -> Any:
    options: dict[str, Any] = {} if stream is None else {"stream": stream}
    try:
        try:
            return source.__dlpack__(**options, max_version=(1, 0))
        except TypeError:  # a producer from before DLPack 1.0 knows no max_version
            return source.__dlpack__(**options)
    except Exception as error:  # each library has exceptions of its own here
        raise Refused(f"cannot be had through DLPack: {type(error).__name__}: {error}") from error


def _memory(tensor: DLTensor, device: str, read_only: bool, managed: _Managed, stream: int | None) -> Memory:
    if tensor.lanes != 1 or tensor.code not in _KINDS or tensor.bits % 8:
        raise Refused(f"has DLPack data type {tensor.code} of {tensor.bits} bits x {tensor.lanes}; pass uint8")
    dtype = np.dtype(f"{_KINDS[tensor.code]}{tensor.bits // 8}")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = contiguous(shape, dtype.itemsize)
    if tensor.strides:
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides[: tensor.ndim])
    # An empty tensor's data may be null; `data` itself is aligned, the first element lies at the offset.
    address = (tensor.data or 0) + tensor.byte_offset
    return Memory(address, shape, strides, dtype, device, read_only, managed, stream)
