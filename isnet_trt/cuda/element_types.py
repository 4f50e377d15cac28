"""The table of element types of tensors and kernel arguments: sizes, and the names that libraries give them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ElementType:
    """One element type.

    Attributes:
        name: Triton's, used in launch.json and throughout this package.
        numpy: the name in numpy, ml_dtypes and torch.
        onnx: the name in ``onnx.TensorProto.DataType``.
        tensorrt: the name in ``tensorrt.DataType``; empty where TensorRT has no such type.
        ctype: the C type; for float16 and bfloat16, which C lacks, the integer that holds their bits.
    """

    name: str
    numpy: str
    onnx: str
    tensorrt: str
    ctype: Any

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return ctypes.sizeof(self.ctype)


ELEMENT_TYPES = {
    element.name: element
    for element in (
        ElementType("fp32", "float32", "FLOAT", "FLOAT", ctypes.c_float),
        ElementType("fp16", "float16", "FLOAT16", "HALF", ctypes.c_uint16),
        ElementType("bf16", "bfloat16", "BFLOAT16", "BF16", ctypes.c_uint16),
        ElementType("i32", "int32", "INT32", "INT32", ctypes.c_int32),
        ElementType("i64", "int64", "INT64", "INT64", ctypes.c_int64),
        ElementType("u8", "uint8", "UINT8", "UINT8", ctypes.c_uint8),
        ElementType("u16", "uint16", "UINT16", "", ctypes.c_uint16),
    )
}
"""Name -> element type."""
FloatType = Literal["fp32", "fp16", "bf16"]
FLOATS: tuple[FloatType, ...] = get_args(FloatType)
"""Types that the tensors inside an engine may have. Plugins serialise a type as its index: append only."""
SCALARS = ("i32", "i64", "fp32")
"""Types that a kernel argument other than a pointer may have."""
FLOAT = ELEMENT_TYPES["fp32"].size
"""Bytes of a float32, the type of an engine's input and of score volumes."""


def as_float32(data: NDArray[Any], kind: str) -> NDArray[np.float32]:
    """A copy of values of type ``kind`` (one of `FLOATS`) in float32; ``data`` is C-contiguous and holds their bytes.

    numpy has no bfloat16, which is the upper half of a float32.
    """
    if kind == "bf16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(ELEMENT_TYPES[kind].numpy).astype(np.float32)
