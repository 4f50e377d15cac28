"""One GPU: memory, page-locked staging, streams, events, copies and graphs.

What is owned (device memory, page-locked memory, streams) is pycuda's, in the device's *primary* context, the one that
PyTorch and TensorRT use; ``pycuda.autoinit`` would make another. What is queued (copies, fills, events, graphs) goes
through the driver API of cuda-bindings, since pycuda does not take a stream that it did not make. Addresses and
handles of streams are plain integers. Not yet run on a GPU.

pycuda: https://documen.tician.de/pycuda/driver.html; driver API:
https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/driver.html
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda import driver
from isnet_trt.cuda.gpu import Gpu, look_for_gpu
from isnet_trt.errors import EngineError, EngineUnavailable, OutOfMemory

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered with the legacy default stream
NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING

_PYCUDA = (
    "pycuda is built from source: install a C++ compiler and the CUDA toolkit (its nvcc must be on PATH, or give "
    "configure.py --cuda-root), then pip install pycuda; or pip install 'isnet_trt[gpu]'"
)
_OUT_OF_MEMORY = "; use a smaller picture, window or batch, or free GPU memory"

_contexts: dict[int, Any] = {}
_contexts_lock = threading.Lock()


def import_pycuda() -> Any:
    """The module ``pycuda.driver``. To be called where `look_for_gpu` found a GPU.

    Raises:
        EngineUnavailable: pycuda is not installed or cannot be loaded.
    """
    try:
        import pycuda.driver
    except ImportError as error:
        raise EngineUnavailable(f"pycuda cannot be imported ({error}). {_PYCUDA}") from None
    return pycuda.driver


class Device:
    """A GPU and what one pipeline holds on it.

    ``with device:`` makes the primary context current in the calling thread and gives back what was current; every
    other method needs that, in whatever thread. Not safe for two threads at once.

    Errors of the driver are EngineError in its own words.
    """

    def __init__(self, cuda: Any, api: Any, gpu: Gpu, index: int = 0) -> None:
        """``cuda`` is the module ``pycuda.driver``, ``api`` the module ``cuda.bindings.driver``."""
        self.gpu = gpu
        self._cuda = cuda
        self._api = api
        self._context = self._primary(index)
        self._memory: dict[int, Any] = {}
        self._staging: dict[int, NDArray[np.uint8]] = {}
        self._streams: dict[int, Any] = {}
        self._events: dict[int, Any] = {}
        self._next_event = 0

    @classmethod
    def open(cls, index: int = 0) -> Device:
        """GPU number ``index``, as CUDA_VISIBLE_DEVICES counts.

        Raises:
            EngineUnavailable: there is none, or pycuda or cuda-bindings is not installed; the message says what to do.
        """
        gpu, reason = look_for_gpu(index)
        if gpu is None:
            raise EngineUnavailable(f"the CUDA runtime needs an NVIDIA GPU and its driver: {reason}")
        return cls(import_pycuda(), driver.import_driver(), gpu, index)

    def _primary(self, index: int) -> Any:
        """The primary context, retained once a process and never released.

        pycuda 2026.1 releases a context only in the thread that retained it, and when the object dies it takes a
        primary context for one of its own (cuCtxDetach): one reference more, and it never dies. The CUDA runtime, and
        with it PyTorch and TensorRT, keep it for the process as well.
        """
        with _contexts_lock:
            if index not in _contexts:
                with self._words():
                    self._cuda.init()
                    context = self._cuda.Device(index).retain_primary_context()
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(context))
                _contexts[index] = context
            return _contexts[index]

    def __enter__(self) -> Device:
        with self._words():
            self._context.push()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.pop()

    @contextlib.contextmanager
    def _words(self) -> Iterator[None]:
        """pycuda's exceptions as EngineError."""
        try:
            yield
        except self._cuda.MemoryError as error:
            raise OutOfMemory(f"{error}{_OUT_OF_MEMORY}") from None
        except self._cuda.Error as error:
            raise EngineError(str(error)) from None

    # Memory

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes of device memory, a multiple of 256."""
        with self._words():
            made = self._cuda.mem_alloc(max(size, 1))
        self._memory[int(made)] = made
        return int(made)

    def free(self, address: int) -> None:
        """Give back what `allocate` gave; nothing queued may use it."""
        with self._words():
            self._memory.pop(address).free()

    def staging(self, size: int) -> NDArray[np.uint8]:
        """``size`` bytes of page-locked host memory, which the GPU copies to and from while the host goes on."""
        with self._words():
            made: NDArray[np.uint8] = self._cuda.pagelocked_empty(max(size, 1), np.uint8)
        self._staging[made.ctypes.data] = made
        return made

    def release(self, staging: NDArray[np.uint8]) -> None:
        """Give back what `staging` gave; no view of it may be used afterwards."""
        with self._words():
            self._staging.pop(staging.ctypes.data).base.free()  # type: ignore[union-attr]

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory that are free, and all there are."""
        with self._words():
            free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    # Streams and events

    def stream(self) -> int:
        """The handle of a new stream."""
        with self._words():
            made = self._cuda.Stream(NON_BLOCKING)
        self._streams[int(made.handle)] = made
        return int(made.handle)

    def event(self, timing: bool = False) -> int:
        """A number for a new event; with ``timing`` for `milliseconds`."""
        self._events[self._next_event] = self._call("cuEventCreate", 0 if timing else NO_TIMING)
        self._next_event += 1
        return self._next_event - 1

    def record(self, event: int, stream: int) -> None:
        """Let ``event`` mark what has been queued on ``stream``."""
        self._call("cuEventRecord", self._events[event], stream)

    def wait_for(self, stream: int, event: int) -> None:
        """Let ``stream`` wait, on the GPU, for what ``event`` last marked."""
        self._call("cuStreamWaitEvent", stream, self._events[event], 0)

    def synchronize(self, stream: int) -> None:
        """Until everything on ``stream`` is done; other threads run meanwhile.

        cuda-bindings gives up the interpreter's lock in every call since 13.0 (its release notes).
        """
        self._call("cuStreamSynchronize", stream)

    def reached(self, event: int) -> None:
        """Until what ``event`` last marked is done; other threads run meanwhile."""
        self._call("cuEventSynchronize", self._events[event])

    def milliseconds(self, start: int, stop: int) -> float:
        """Between two events with timing that have been reached."""
        return float(self._call("cuEventElapsedTime", self._events[start], self._events[stop]))

    # Queued work

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Queue a copy of ``size`` bytes; each side is device memory or page-locked host memory."""
        self._call("cuMemcpyAsync", to, source, size, stream)

    def copy_rows(
        self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, rows: int, stream: int
    ) -> None:
        """Queue a copy of ``rows`` rows of ``width`` bytes that lie ``to_pitch`` and ``source_pitch`` bytes apart."""
        if to_pitch == source_pitch == width:
            self.copy(to, source, width * rows, stream)
            return
        what = self._api.CUDA_MEMCPY2D()
        what.srcMemoryType = what.dstMemoryType = self._api.CUmemorytype.CU_MEMORYTYPE_UNIFIED
        what.srcDevice, what.srcPitch = source, source_pitch
        what.dstDevice, what.dstPitch = to, to_pitch
        what.WidthInBytes, what.Height = width, rows
        self._call("cuMemcpy2DAsync", what, stream)

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Queue setting ``size`` bytes to ``value`` (0..255)."""
        self._call("cuMemsetD8Async", address, value, size, stream)

    @contextlib.contextmanager
    def capture(self, stream: int) -> Iterator[Graph]:
        """What the block queues on ``stream``, as a graph, instead of running it.

        Afterwards the graph can be launched. The same work must have been run once before: libraries load code and
        settle shapes at their first run, which cannot be captured.

        Raises:
            EngineError: something in the block cannot be captured; the stream is usable again.
        """
        with _collecting_nothing(), self._captured(stream) as graph:
            yield graph

    @contextlib.contextmanager
    def _captured(self, stream: int) -> Iterator[Graph]:
        graph = Graph(self._api)
        # Other threads may call what a capture forbids, such as allocating, meanwhile.
        mode = self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)
        try:
            yield graph
        except BaseException:
            status, captured = self._api.cuStreamEndCapture(stream)
            if not int(status):
                self._api.cuGraphDestroy(captured)
            raise
        captured = self._call("cuStreamEndCapture", stream)
        try:
            graph.made = self._call("cuGraphInstantiate", captured, 0)
        finally:
            self._api.cuGraphDestroy(captured)

    def _call(self, name: str, *arguments: Any) -> Any:
        return driver.call(self._api, name, *arguments)

    def close(self) -> None:
        """Give everything back that is still held; errors of a lost device are passed over. Closing twice is harmless.

        To be called with the context current, after everything queued is done.
        """
        while self._events:
            self._api.cuEventDestroy(self._events.popitem()[1])
        self._streams.clear()
        held = [*self._memory.values(), *(array.base for array in self._staging.values())]
        self._memory.clear()
        self._staging.clear()
        for one in held:
            with contextlib.suppress(self._cuda.Error):
                one.free()


_capture_lock = threading.Lock()


@contextlib.contextmanager
def _collecting_nothing() -> Iterator[None]:
    """Python's garbage collector waits: what it finalises in this thread may free device memory or a graph, which the
    driver refuses while a stream is captured, and which ends the capture (pytorch/pytorch#161037).

    One thread at a time, since there is one collector.
    """
    with _capture_lock:
        was_on = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_on:
                gc.enable()


class Graph:
    """A captured graph, ready to be launched."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.made: Any = None

    def launch(self, stream: int) -> None:
        """Queue all of it on ``stream``."""
        driver.call(self._api, "cuGraphLaunch", self.made, stream)

    def close(self) -> None:
        """Destroy it, when it is not running; closing twice is harmless."""
        if self.made is not None:
            self._api.cuGraphExecDestroy(self.made)
            self.made = None
