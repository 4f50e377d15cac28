"""One CUDA stream and the device memory of one engine, through cuda-bindings.

They are the engine's own, so that it runs from and to host memory where pycuda is missing and with it
`isnet_trt.cuda.device.Device`. Not yet run on a GPU.
API: https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/driver.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda import driver

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered with the legacy default stream


class Stream:
    """A stream in the primary context of GPU ``index``, and named device buffers that grow as needed.

    ``api`` is the module ``cuda.bindings.driver``. All methods but `active` and `close` need the context that `active`
    makes current, and every one raises EngineError with the driver's own words when a call fails.
    """

    def __init__(self, api: Any, index: int = 0) -> None:
        self._api = api
        self._context = driver.primary_context(api, index)
        self._buffers: dict[str, tuple[int, int]] = {}
        self._stream: Any = None
        with self.active():
            self._stream = self._call("cuStreamCreate", _NON_BLOCKING)

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self._stream)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The primary context as the calling thread's current one; what was current before comes back."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def buffer(self, name: str, size: int) -> int:
        """The device address of at least ``size`` bytes, kept for the next call of the same name."""
        address, capacity = self._buffers.get(name, (0, 0))
        if capacity >= size:
            return address
        if address:
            del self._buffers[name]
            self._call("cuMemFree", address)
        address = int(self._call("cuMemAlloc", size))
        self._buffers[name] = address, size
        return address

    def upload(self, address: int, array: NDArray[np.float32]) -> None:
        """Queue a copy of a C-contiguous array to the device; ``array`` must stay until `wait` returns."""
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self._stream)

    def download(self, array: NDArray[np.float32], address: int) -> None:
        """Queue a copy from the device into a C-contiguous array; it is filled when `wait` returns."""
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self._stream)

    def wait(self) -> None:
        """Until everything queued is done."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free buffers and stream; closing twice is harmless, and errors of a lost device are passed over."""
        if self._stream is None:
            return
        self._api.cuCtxPushCurrent(self._context)
        while self._buffers:
            _, (address, _) = self._buffers.popitem()
            self._api.cuMemFree(address)
        self._api.cuStreamDestroy(self._stream)
        self._stream = None
        self._api.cuCtxPopCurrent()

    def _call(self, name: str, *arguments: Any) -> Any:
        return driver.call(self._api, name, *arguments)
