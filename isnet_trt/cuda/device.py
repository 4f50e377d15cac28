"""One GPU: memory, page-locked staging, streams, events, copies and graphs.

A `Backend` owns context, memory and streams. What is queued (copies, fills, events, graphs) goes through the driver API
of cuda-bindings with either backend, since pycuda takes no stream that it did not create. Addresses and the handles of
streams and events are integers.

Driver API: https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/driver.html
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
from isnet_trt.cuda.backends import Backend, open_backend
from isnet_trt.cuda.gpu import probe_gpu
from isnet_trt.errors import EngineError, EngineUnavailable

_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING


class Device:
    """What one pipeline or engine holds on a GPU.

    ``with device:`` makes the primary context current in the calling thread and restores the previous one at the end;
    all other methods must be called inside it. Not safe for two threads at once. A refusal of the driver is an
    EngineError with its description, `OutOfMemory` where memory is short.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._memory: set[int] = set()
        self._staging: set[int] = set()
        self._streams: set[int] = set()
        self._events: set[int] = set()

    @classmethod
    def open(cls, index: int = 0) -> Device:
        """GPU number ``index``, as CUDA_VISIBLE_DEVICES counts.

        Raises:
            EngineUnavailable: there is none, or cuda-bindings is not installed; the message says what to do.
            EngineError: the driver cannot give it a context.
        """
        gpu, reason = probe_gpu(index)
        if gpu is None:
            raise EngineUnavailable(f"the CUDA runtime needs an NVIDIA GPU and its driver: {reason}")
        return cls(open_backend(index))

    @property
    def backend(self) -> str:
        """The name of what owns memory and streams: pycuda or cuda-bindings."""
        return self._backend.name

    @property
    def index(self) -> int:
        """The GPU's number, as CUDA_VISIBLE_DEVICES counts."""
        return self._backend.index

    def __enter__(self) -> Device:
        self._backend.push()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backend.pop()

    # Memory

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes of device memory; the address is a multiple of 256."""
        # The driver refuses to allocate 0 bytes.
        address = self._backend.allocate(max(size, 1))
        self._memory.add(address)
        return address

    def free(self, address: int) -> None:
        """Free what `allocate` returned; nothing queued may use it."""
        # Off the record first: whatever the driver answers, `close` must not free it again.
        self._memory.remove(address)
        self._backend.free(address)

    def allocate_staging(self, size: int) -> NDArray[np.uint8]:
        """Allocate ``size`` bytes of page-locked host memory, for copies that run while the host goes on."""
        size = max(size, 1)
        address = self._backend.allocate_host(size)
        self._staging.add(address)
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)

    def free_staging(self, staging: NDArray[np.uint8]) -> None:
        """Free what `allocate_staging` returned; no view of it may be used afterwards."""
        self._staging.remove(staging.ctypes.data)
        self._backend.free_host(staging.ctypes.data)

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes of device memory."""
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def gpu_of(self, address: int) -> int | None:
        """The number of the GPU whose memory ``address`` is; None where the driver does not know the address."""
        with contextlib.suppress(EngineError):
            attribute = self._backend.api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
            return int(self._call("cuPointerGetAttribute", attribute, address))
        return None

    # Streams and events

    def create_stream(self) -> int:
        """Create a stream that is not ordered with the default stream."""
        stream = self._backend.create_stream()
        self._streams.add(stream)
        return stream

    def create_event(self) -> int:
        """Create an event that orders work and measures no time."""
        event = int(self._call("cuEventCreate", _NO_TIMING))
        self._events.add(event)
        return event

    def record(self, event: int, stream: int) -> None:
        """Let ``event`` mark what has been queued on ``stream``."""
        self._call("cuEventRecord", event, stream)

    def wait_event(self, stream: int, event: int) -> None:
        """Let ``stream`` wait, on the GPU, for what ``event`` last marked."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def synchronize(self, stream: int) -> None:
        """Wait until everything on ``stream`` is done; other threads run meanwhile.

        cuda-bindings gives up the interpreter's lock in every call since 13.0 (its release notes).
        """
        self._call("cuStreamSynchronize", stream)

    def synchronize_event(self, event: int) -> None:
        """Wait until what ``event`` last marked is done; other threads run meanwhile."""
        self._call("cuEventSynchronize", event)

    # Queued work

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Queue a copy of ``size`` bytes; each side is device memory or page-locked host memory."""
        self._call("cuMemcpyAsync", to, source, size, stream)

    def upload(self, to: int, array: NDArray[Any], stream: int) -> None:
        """Queue a copy of a C-contiguous ``array`` in any host memory, which must stay until ``stream`` is done."""
        self._call("cuMemcpyHtoDAsync", to, array.ctypes.data, array.nbytes, stream)

    def download(self, array: NDArray[Any], source: int, stream: int) -> None:
        """Queue a copy into a C-contiguous ``array`` in any host memory, which is filled when ``stream`` is done."""
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, source, array.nbytes, stream)

    def copy_rows(
        self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, rows: int, stream: int
    ) -> None:
        """Queue a copy of ``rows`` rows of ``width`` bytes that lie ``to_pitch`` and ``source_pitch`` bytes apart."""
        if to_pitch == source_pitch == width:
            self.copy(to, source, width * rows, stream)
            return
        api = self._backend.api
        copy = api.CUDA_MEMCPY2D()
        # UNIFIED: the driver tells from the address whether memory is the host's or the device's.
        copy.srcMemoryType = copy.dstMemoryType = api.CUmemorytype.CU_MEMORYTYPE_UNIFIED
        copy.srcDevice, copy.srcPitch = source, source_pitch
        copy.dstDevice, copy.dstPitch = to, to_pitch
        copy.WidthInBytes, copy.Height = width, rows
        self._call("cuMemcpy2DAsync", copy, stream)

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Queue setting ``size`` bytes to ``value`` (0..255)."""
        self._call("cuMemsetD8Async", address, value, size, stream)

    @contextlib.contextmanager
    def capture(self, stream: int) -> Iterator[Graph]:
        """Capture what the block queues on ``stream`` as a graph, instead of running it.

        Afterwards the graph can be launched. The same work must have been run once before: libraries load code and
        settle shapes at their first run, which cannot be captured.

        Raises:
            EngineError: something in the block cannot be captured; the stream is usable again.
        """
        api = self._backend.api
        graph = Graph(api)
        # Other threads may meanwhile call what a capture forbids, such as allocating.
        mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with no_garbage_collection():
            self._call("cuStreamBeginCapture", stream, mode)
            try:
                yield graph
            except BaseException:
                # Ending an invalidated capture fails too, and the block's own error is the one to raise.
                with contextlib.suppress(EngineError):
                    driver.ignore_errors(api, "cuGraphDestroy", self._call("cuStreamEndCapture", stream))
                raise
            captured = self._call("cuStreamEndCapture", stream)
            try:
                graph.executable = self._call("cuGraphInstantiate", captured, 0)
            finally:
                # An executable graph does not need the graph that it was made from.
                driver.ignore_errors(api, "cuGraphDestroy", captured)

    def _call(self, name: str, *arguments: Any) -> Any:
        return driver.call(self._backend.api, name, *arguments)

    def close(self) -> None:
        """Free everything that was not freed yet; errors of a lost device are ignored, closing twice is harmless.

        To be called with the context current, after everything queued is done.
        """
        for handles, free in (
            (self._events, lambda event: self._call("cuEventDestroy", event)),
            (self._streams, self._backend.destroy_stream),
            (self._memory, self._backend.free),
            (self._staging, self._backend.free_host),
        ):
            while handles:
                # Popped before it is freed: after an error the loop goes on with the next handle.
                with contextlib.suppress(EngineError):
                    free(handles.pop())


_capture_lock = threading.Lock()


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's garbage collector off: what it finalises in this thread may free device memory or a graph, which
    the driver refuses while a stream is captured, and which ends the capture (pytorch/pytorch#161037).

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
        self.executable: Any = None

    def launch(self, stream: int) -> None:
        """Queue all of it on ``stream``."""
        driver.call(self._api, "cuGraphLaunch", self.executable, stream)

    def close(self) -> None:
        """Destroy it, when it is not running; closing twice is harmless."""
        if self.executable is not None:
            driver.ignore_errors(self._api, "cuGraphExecDestroy", self.executable)
            self.executable = None
