"""A driver's function that encodes tensor maps, and what is read from one: the content is this file's own.

A driver's encoding is not documented; what it refuses is in tests/cuda/fake_driver.c, which encodes in the same way.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from isnet_trt.cuda.tensor_maps import _ENCODE, BYTES, MOST_AXES, SWIZZLES, TYPES

_LAYOUT = struct.Struct(f"<4I Q {MOST_AXES}Q {MOST_AXES}Q {MOST_AXES}I")
MAGIC = 0x54454E53


class EncodedMap(NamedTuple):
    """A tensor map; axes are those of the driver, the fastest first.

    ``strides`` are bytes, of the first axis those of an element; ``swizzle`` is bytes.
    """

    kind: str
    address: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int


def decode(encoded: bytes) -> EncodedMap:
    """The map in the 128 bytes of a kernel parameter."""
    magic, code, axes, swizzle, address, *rest = _LAYOUT.unpack_from(encoded)
    assert magic == MAGIC, "no tensor map was encoded here"
    kind = next(name for name, value in TYPES.items() if value == code)
    sizes, steps, box = (tuple(rest[i * MOST_AXES :][:axes]) for i in range(3))
    span = next(size for size, value in SWIZZLES.items() if value == swizzle)
    return EncodedMap(kind, address, sizes, (2 if code != TYPES["fp32"] else 4, *steps[: axes - 1]), box, span)


def _encode(
    target: int, code: int, axes: int, address: int, sizes: int, strides: int, box: int, steps: int, *rest: int
) -> int:
    def read(kind: Any, at: int, count: int) -> Sequence[int]:
        return [*(kind * count).from_address(at), *(0,) * (MOST_AXES - count)]

    assert target % 64 == 0
    assert read(ctypes.c_uint32, steps, axes)[:axes] == [1] * axes
    values = read(ctypes.c_uint64, sizes, axes), read(ctypes.c_uint64, strides, axes - 1)
    data = _LAYOUT.pack(MAGIC, code, axes, rest[1], address, *values[0], *values[1], *read(ctypes.c_uint32, box, axes))
    ctypes.memmove(target, data.ljust(BYTES, b"\0"), BYTES)
    return 0


_FUNCTION = _ENCODE(_encode)
ADDRESS = ctypes.cast(_FUNCTION, ctypes.c_void_p).value or 0
"""Of the function, as cuGetProcAddress gives it."""
API = SimpleNamespace(cuGetProcAddress=lambda name, version, flags: (0, ADDRESS, 0))
"""In the place of cuda-bindings for an `Encoder`."""
