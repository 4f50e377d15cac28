"""One CUDA stream and the device memory of one engine, through cuda-bindings.

The runtime API works in the device's primary context, the one that PyTorch and other libraries share; no context of
our own is made. Not yet run on a GPU. API: https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/runtime.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import EngineError, EngineUnavailable

_OUT_OF_MEMORY = 2
_OLD_DRIVER = 35
_HINTS = {
    _OUT_OF_MEMORY: "; use a smaller picture, window or batch, or free GPU memory",
    _OLD_DRIVER: "; upgrade the NVIDIA driver, or install the cuda-bindings of the driver's CUDA version",
}


def import_runtime() -> Any:
    """The module ``cuda.bindings.runtime``.

    Raises:
        EngineUnavailable: cuda-bindings is not installed or cannot be loaded.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineUnavailable(f"cuda-bindings cannot be imported ({error}); pip install cuda-bindings") from None
    return runtime


class Stream:
    """A stream on one device and named device buffers that grow as needed.

    ``api`` is `import_runtime`'s module. Every method raises EngineError with CUDA's own words when a call fails.
    """

    def __init__(self, api: Any, device: int = 0) -> None:
        self._api = api
        self._device = device
        self._buffers: dict[str, tuple[int, int]] = {}
        self._stream: Any = None
        with self.active():
            self._stream = self._call("cudaStreamCreateWithFlags", api.cudaStreamNonBlocking)

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self._stream)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The stream's device as the calling thread's current one; what was current before comes back."""
        before = int(self._call("cudaGetDevice"))
        self._call("cudaSetDevice", self._device)
        try:
            yield
        finally:
            if before != self._device:
                self._call("cudaSetDevice", before)

    def buffer(self, name: str, size: int) -> int:
        """The device address of at least ``size`` bytes, kept for the next call of the same name."""
        address, capacity = self._buffers.get(name, (0, 0))
        if capacity >= size:
            return address
        if address:
            del self._buffers[name]
            self._call("cudaFree", address)
        address = int(self._call("cudaMalloc", size))
        self._buffers[name] = address, size
        return address

    def upload(self, address: int, array: NDArray[np.float32]) -> None:
        """Queue a copy of a C-contiguous array to the device; ``array`` must stay until `wait` returns."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)

    def download(self, array: NDArray[np.float32], address: int) -> None:
        """Queue a copy from the device into a C-contiguous array; it is filled when `wait` returns."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)

    def wait(self) -> None:
        """Until everything queued is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free buffers and stream; closing twice is harmless, and errors of a lost device are passed over."""
        while self._buffers:
            _, (address, _) = self._buffers.popitem()
            self._api.cudaFree(address)
        if self._stream is not None:
            self._api.cudaStreamDestroy(self._stream)
            self._stream = None

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._api, name)(*arguments)
        if int(status):
            _, text = self._api.cudaGetErrorString(status)
            words = text.decode(errors="replace") if isinstance(text, bytes) else text
            raise EngineError(f"{name} failed: {words} ({int(status)}){_HINTS.get(int(status), '')}")
        return values[0] if values else None
