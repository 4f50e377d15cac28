"""Tensor maps (CUtensorMap), the descriptors by which the tensor memory accelerator (TMA) of sm_90 and later reads.

They are encoded on the host by the driver, for one address and shape, and passed to a kernel by value: a launch that is
captured in a CUDA graph keeps its own.

cuTensorMapEncodeTiled: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TENSOR__MEMORY.html
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isnet_trt.cuda import driver
from isnet_trt.cuda.element_types import ELEMENT_TYPES
from isnet_trt.errors import EngineError

BYTES, ALIGNMENT = 128, 128
"""Of a map. cuda.h of CUDA 13 aligns it to 128 bytes; the driver and the kernel parameter demand 64."""
STRIDE = 16
"""Bytes of which the strides between rows must be multiples."""
MOST_BOX, MOST_AXES = 256, 5
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
"""Bytes -> CUtensorMapSwizzle."""
TYPES = {"fp16": 6, "fp32": 7, "bf16": 9}
"""Element type -> CUtensorMapDataType."""
_NAME, _SINCE = "cuTensorMapEncodeTiled", 12000
"""The driver's function, and the version of CUDA that brought it."""
_L2_128B = 2  # CU_TENSOR_MAP_L2_PROMOTION_L2_128B, as Triton's own launcher has it
_ENCODE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, *(ctypes.c_void_p,) * 4,
    *(ctypes.c_int,) * 4,
)  # fmt: skip


class TensorMapError(EngineError):
    """A tensor cannot be described by a map, or the driver makes none."""


@dataclass(frozen=True)
class TensorMap:
    """How a kernel's argument, a pointer to a dense tensor, is passed as a map.

    Attributes:
        shape: sizes, slowest axis first: names of integer arguments, or numbers.
        box: elements along each axis that one copy takes; in a `KernelSpec` the block that the kernel reads, which the
            compiler may split along the last axis.
        swizzle: bytes of the pattern in which the copy lies in shared memory: a key of `SWIZZLES`.
    """

    shape: tuple[str | int, ...]
    box: tuple[int, ...]
    swizzle: int = 0

    def sizes(self, arguments: Mapping[str, Any]) -> tuple[int, ...]:
        """The sizes for a launch."""
        return tuple(int(arguments[size]) if isinstance(size, str) else size for size in self.shape)

    def check(self, arguments: Mapping[str, str], name: str) -> None:
        """Raise ValueError if argument ``name`` of a kernel with ``arguments`` cannot be passed so."""
        integers = [size for size in self.shape if isinstance(size, str)]
        valid = arguments.get(name, "")[1:] in TYPES and arguments[name].startswith("*")
        valid &= all(arguments.get(size) in ("i32", "i64") for size in integers)
        valid &= 0 < len(self.shape) == len(self.box) <= MOST_AXES and self.swizzle in SWIZZLES
        if not valid or not all(0 < size <= MOST_BOX for size in self.box):
            raise ValueError(f"descriptor {name}")


def strides(sizes: Sequence[int]) -> tuple[int, ...]:
    """Elements between neighbours along each axis of a dense tensor."""
    return tuple(itertools.accumulate(reversed(sizes[1:]), operator.mul, initial=1))[::-1]


class Encoder:
    """Encodes maps through the driver library of ``api``, the module ``cuda.bindings.driver``.

    The function is called with ctypes: cuda-bindings 13.5 would encode into an object of its own, whose address is no
    multiple of 64, and pycuda has no such call.
    """

    def __init__(self, api: Any) -> None:
        self._api = api

    @functools.cached_property
    def _function(self) -> int:
        try:
            address, _ = driver.call(self._api, "cuGetProcAddress", _NAME.encode(), _SINCE, 0)
        except EngineError as error:
            raise TensorMapError(f"the driver has no {_NAME}: {error}") from None
        if not int(address):
            raise TensorMapError(f"the driver has no {_NAME}")
        return int(address)

    def parameters(self, tensor: TensorMap, kind: str, address: int, arguments: Mapping[str, Any]) -> list[Any]:
        """The kernel parameters that stand for a tensor of element type ``kind``: its map, sizes and strides.

        Raises:
            TensorMapError: there can be no such map; the message has the value.
        """
        sizes = tensor.sizes(arguments)
        status, encoded = _encode(self._function, tensor.box, tensor.swizzle, kind, address, sizes)
        if status:
            reason = driver.describe(self._api, status)
            raise TensorMapError(f"{_NAME} failed for {kind} {sizes} at {address:#x}: {reason} ({status})")
        return [encoded, *map(ctypes.c_int32, sizes), *map(ctypes.c_int64, strides(sizes))]


@functools.lru_cache(maxsize=128)  # an engine has the same addresses in every run
def _encode(
    function: int, box: tuple[int, ...], swizzle: int, kind: str, address: int, sizes: tuple[int, ...]
) -> tuple[int, Any]:
    """The driver's status and the map; TensorMapError for what the driver would refuse without saying why."""
    item, axes = ELEMENT_TYPES[kind].size, len(sizes)
    steps = [item * step for step in strides(sizes)[:-1]]
    if not math.prod(sizes):
        raise TensorMapError(f"a tensor of {sizes} elements has no descriptor")
    if address % STRIDE or any(step % STRIDE for step in steps):
        raise TensorMapError(f"address {address:#x} and strides of {steps} bytes must be multiples of {STRIDE}")
    memory = (ctypes.c_uint8 * (BYTES + ALIGNMENT))()
    encoded = (ctypes.c_uint8 * BYTES).from_buffer(memory, -ctypes.addressof(memory) % ALIGNMENT)
    # The driver counts axes from the fastest on; the stride of that one is its element's size and is left out.
    status = _ENCODE(function)(
        ctypes.addressof(encoded), TYPES[kind], axes, address, (ctypes.c_uint64 * axes)(*reversed(sizes)),
        (ctypes.c_uint64 * axes)(*reversed(steps)), (ctypes.c_uint32 * axes)(*reversed(box)),
        (ctypes.c_uint32 * axes)(*(1,) * axes), 0, SWIZZLES[swizzle], _L2_128B, 0,
    )  # fmt: skip
    return int(status), encoded
