"""What the runtime takes from pycuda, done through cuda-bindings.

pycuda is built on the machine that uses it, which needs a compiler and CUDA's headers. Where that could not be, the
checks that need it are run with this in its place and say so: only pycuda itself is left unanswered.
"""

from __future__ import annotations

import contextlib
import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda import device, driver


class Error(Exception):
    """As ``pycuda.driver.Error``: the driver refused."""


class MemoryError(Error):  # as pycuda calls it
    """As ``pycuda.driver.MemoryError``."""


class Driver:
    """As much of ``pycuda.driver`` as `isnet_trt.cuda.device.Device` takes."""

    Error, MemoryError = Error, MemoryError

    def __init__(self, api: Any) -> None:
        """``api`` is the module ``cuda.bindings.driver``."""
        self._api = api

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._api, name)(*arguments)
        if int(status):
            kind = MemoryError if int(status) == driver.OUT_OF_MEMORY else Error
            raise kind(f"{name} failed: {driver.words(self._api, status)}")
        return values[0] if len(values) == 1 else tuple(values)

    def init(self) -> None:
        """See pycuda."""
        self._call("cuInit", 0)

    def Device(self, index: int) -> Any:
        """See pycuda."""
        return SimpleNamespace(retain_primary_context=lambda: self._retained(index))

    def _retained(self, index: int) -> Any:
        context = self._call("cuDevicePrimaryCtxRetain", self._call("cuDeviceGet", index))
        return SimpleNamespace(
            push=lambda: self._call("cuCtxPushCurrent", context), pop=lambda: self._call("cuCtxPopCurrent")
        )

    def mem_alloc(self, size: int) -> Any:
        """See pycuda."""
        return _Block(int(self._call("cuMemAlloc", size)), lambda at: self._call("cuMemFree", at))

    def pagelocked_empty(self, size: int, kind: Any) -> NDArray[Any]:
        """See pycuda; the array's ``base`` gives it back."""
        block = _Block(int(self._call("cuMemHostAlloc", size, 0)), lambda at: self._call("cuMemFreeHost", at))
        held = type("Staging", (np.ndarray,), {"base": block})
        made: NDArray[Any] = np.frombuffer((ctypes.c_uint8 * size).from_address(int(block)), kind).view(held)
        return made

    def Stream(self, flags: int) -> Any:
        """See pycuda."""
        return _Stream(self._call, int(self._call("cuStreamCreate", flags)))

    def mem_get_info(self) -> tuple[int, int]:
        """See pycuda."""
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)


class _Block:
    """Memory that can be given back."""

    def __init__(self, address: int, free: Any) -> None:
        self._address, self._free = address, free

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        self._free(self._address)


class _Stream:
    """Destroyed with the object, as pycuda's."""

    def __init__(self, call: Any, handle: int) -> None:
        self._call, self.handle = call, handle

    def __del__(self) -> None:
        with contextlib.suppress(Error):  # where nobody closed the device, no context is current either
            self._call("cuStreamDestroy", self.handle)


def use() -> None:
    """In this process `isnet_trt.cuda.device` finds this in the place of pycuda."""
    device.import_pycuda = lambda: Driver(driver.import_driver())
