"""Owners of a GPU's context, memory and streams: pycuda where it is installed, cuda-bindings otherwise.

Both work in the device's *primary* context, the one that PyTorch and TensorRT use; ``pycuda.autoinit`` would create
another. cuda.core is not used: version 1.2 has no copies with a pitch, takes each address of a copy as a Buffer object,
and cannot leave a thread without a current context again.

pycuda: https://documen.tician.de/pycuda/driver.html
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from isnet_trt.cuda import driver
from isnet_trt.errors import EngineError, OutOfMemory

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered with the legacy default stream

_backends: dict[int, Backend] = {}
# Held while a backend is opened: two threads must not retain the context twice or choose different owners.
_backends_lock = threading.Lock()


class Backend:
    """The primary context of one GPU, and memory and streams in it, owned through cuda-bindings.

    Addresses and stream handles are integers. Every method but `push` needs the context that `push` makes current. A
    refusal of the driver is an EngineError with its description, `OutOfMemory` where memory is short.

    Attributes:
        name: what `Segmenter.description` calls it.
        api: the module ``cuda.bindings.driver``, for calls that need no owner.
        index: the GPU's number, as CUDA_VISIBLE_DEVICES counts.
    """

    name = "cuda-bindings"

    def __init__(self, api: Any, index: int = 0) -> None:
        self.api, self.index = api, index
        self._call("cuInit", 0)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._call("cuDeviceGet", index))

    def _call(self, name: str, *arguments: Any) -> Any:
        return driver.call(self.api, name, *arguments)

    def push(self) -> None:
        """Make the context current in the calling thread."""
        self._call("cuCtxPushCurrent", self._context)

    def pop(self) -> None:
        """Make current what was current before `push`. Errors of earlier work are left to the calls that wait."""
        driver.ignore_errors(self.api, "cuCtxPopCurrent")

    def allocate(self, size: int) -> int:
        """Allocate ``size`` > 0 bytes of device memory; the address is a multiple of 256."""
        return int(self._call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        """Free device memory."""
        self._call("cuMemFree", address)

    def allocate_host(self, size: int) -> int:
        """Allocate ``size`` > 0 bytes of page-locked host memory."""
        return int(self._call("cuMemHostAlloc", size, 0))

    def free_host(self, address: int) -> None:
        """Free page-locked host memory."""
        self._call("cuMemFreeHost", address)

    def create_stream(self) -> int:
        """Create a stream that is not ordered with the default stream."""
        return int(self._call("cuStreamCreate", _NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream; queued work is still done."""
        self._call("cuStreamDestroy", stream)


class PycudaBackend(Backend):
    """The same with pycuda as the owner."""

    name = "pycuda"

    def __init__(self, cuda: Any, api: Any, index: int = 0) -> None:
        """``cuda`` is the module ``pycuda.driver``."""
        self.api, self.index = api, index
        self._cuda = cuda
        self._objects: dict[int, Any] = {}  # by address or handle; pycuda frees an object with its last reference
        with self._errors():
            cuda.init()
            self._context = cuda.Device(index).retain_primary_context()
        # pycuda 2026.1 releases a context only in the thread that retained it, and when the object dies it takes a
        # primary context for one of its own (cuCtxDetach): with one reference more it never dies.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._context))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Re-raise pycuda's exceptions as EngineError."""
        try:
            yield
        # pycuda's MemoryError is an Error of pycuda too, so it has to come first.
        except self._cuda.MemoryError as error:
            raise OutOfMemory(f"{error}{driver.OUT_OF_MEMORY_HINT}") from None
        except self._cuda.Error as error:
            raise EngineError(str(error)) from None

    def push(self) -> None:
        with self._errors():
            self._context.push()

    def pop(self) -> None:
        # As in `Backend.pop`: errors of earlier work are left to the calls that wait.
        with contextlib.suppress(self._cuda.Error):
            self._context.pop()

    def allocate(self, size: int) -> int:
        with self._errors():
            memory = self._cuda.mem_alloc(size)
        self._objects[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        with self._errors():
            self._objects.pop(address).free()

    def allocate_host(self, size: int) -> int:
        with self._errors():
            array = self._cuda.pagelocked_empty(size, np.uint8)
        # The base owns the memory and can free it; the array is a view.
        self._objects[array.ctypes.data] = array.base
        return int(array.ctypes.data)

    def free_host(self, address: int) -> None:
        self.free(address)

    def create_stream(self) -> int:
        with self._errors():
            stream = self._cuda.Stream(_NON_BLOCKING)
        self._objects[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        del self._objects[stream]


def open_backend(index: int = 0) -> Backend:
    """The backend of GPU ``index``, as CUDA_VISIBLE_DEVICES counts; call `probe_gpu` first.

    The first call chooses it and retains the primary context. Both stay for the life of the process: the CUDA runtime,
    and with it PyTorch and TensorRT, keep the context as well.

    Raises:
        EngineUnavailable: cuda-bindings is not installed.
        EngineError: the driver has no such GPU, or cannot give it a context.
    """
    with _backends_lock:
        if index not in _backends:
            _backends[index] = _choose(index)
        return _backends[index]


@contextlib.contextmanager
def current_gpu(index: int) -> Iterator[None]:
    """While this is open, GPU ``index`` is the calling thread's current one, for libraries that build on that one.

    Raises:
        EngineUnavailable, EngineError: as `open_backend`.
    """
    if index == 0:  # CUDA's own choice in a thread that made none: cuda-bindings need not be installed for it
        yield
        return
    backend = open_backend(index)
    backend.push()
    try:
        yield
    finally:
        backend.pop()


def _choose(index: int) -> Backend:
    api = driver.import_driver()
    try:
        from pycuda import driver as cuda
    except ImportError as error:
        backend = Backend(api, index)
        if error.name != "pycuda":  # it is installed
            backend.name += f" (pycuda cannot be imported: {error})"
        return backend
    return PycudaBackend(cuda, api, index)
