"""Doubles of pycuda and of cuda-bindings' driver API that keep "device" memory on the host.

They are strict: a call without the context pushed, memory that was not allocated or is too small, a stream or graph
that does not exist, allocating while a graph is captured, and what is left at the end are failures. Streams are truly
asynchronous: what is queued runs only when something waits for it, as late as possible (or, with ``eager``, at once),
so that a missing wait gives wrong bytes. A machine has one device or several, each with a primary context of its own:
memory, streams, events, graphs and modules that are used in another context than their own are failures, too. They say
nothing about the libraries themselves.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensor_maps

from isnet_trt.cuda.backends import Backend, PycudaBackend
from isnet_trt.cuda.device import Device

POISON = 0xA5
UNKNOWN = 1, "invalid argument"
ERRORS = {1: b"invalid argument", 2: b"out of memory", 209: b"no kernel image", 700: b"an illegal memory access",
          900: b"operation not permitted when stream is capturing", 901: b"capture was invalidated"}  # fmt: skip


class Gpu:
    """The state that both doubles share. ``fails`` makes a driver function return a status: name -> status."""

    def __init__(self, total: int = 1 << 30, devices: int = 1) -> None:
        self.total = total
        self.primaries = [Context(index) for index in range(devices)]
        self.owners: dict[int, Context] = {}
        self.used = 0
        self.peak = 0
        self.eager = False
        self.retained = 0
        self.memory: dict[int, int] = {}
        self.staging: dict[int, int] = {}
        self.foreign: dict[int, int] = {}
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, Record | None] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.modules: dict[int, bytes] = {}
        self.launched: list[SimpleNamespace] = []
        self.stacks: dict[int, list[Any]] = {}
        self.capturing: Stream | None = None
        self.capturing_thread = 0
        self.fails: dict[str, int] = {}
        self.calls: list[str] = []
        self._keep: dict[int, Any] = {}
        self._next = 1000

    def current(self) -> Context | None:
        """The context that is current in this thread."""
        return next(reversed(self.stacks.get(threading.get_ident(), ())), None)

    def own(self, handle: int) -> int:
        """Note that what ``handle`` stands for belongs to the current context; without one it is a caller's."""
        self.owners.pop(handle, None)  # an address that was freed comes again
        if (context := self.current()) is not None:
            self.owners[handle] = context
        return handle

    def check_own(self, *handles: int) -> None:
        """Nothing of another context is used in the current one."""
        for handle in handles:
            owner, current = self.owners.get(handle), self.current()
            assert owner in (None, current), f"{handle:#x} of {owner} is used in {current}"

    def device_of(self, address: int) -> int | None:
        """The device whose memory ``address`` lies in; None: no device memory of a context."""
        for start, size in self.memory.items():
            if start <= address < start + size and start in self.owners:
                return self.owners[start].device
        return None

    def check_memory(self, *addresses: int) -> None:
        """Device memory at ``addresses`` is that of the current context's device."""
        current = self.current()
        for address in addresses:
            device = self.device_of(address)
            assert device is None or (current is not None and device == current.device), (
                f"memory of device {device} is used in {current}"
            )

    def handle(self) -> int:
        self._next += 8
        return self.own(self._next)

    def block(self, size: int) -> int:
        """Aligned to 256 bytes, poisoned."""
        raw = np.full(size + 256, POISON, np.uint8)
        address = -(-raw.ctypes.data // 256) * 256
        self._keep[address] = raw
        return address

    def drop(self, address: int) -> None:
        """What is left of freed memory is not what anybody expects."""
        self._keep.pop(address).fill(0x5A)

    def check_current(self) -> None:
        assert self.stacks.get(threading.get_ident()), "no context is current in this thread"

    def check_range(self, address: int, size: int) -> None:
        for known in (self.memory, self.staging, self.foreign):
            for start, length in known.items():
                if start <= address and address + size <= start + length:
                    return
        raise AssertionError(f"{size} bytes at {address:#x} are no memory of this GPU or page-locked")

    def check_may_free(self) -> None:
        """Captures are told to forbid it in their own thread alone."""
        self.check_current()
        here = self.capturing is not None and self.capturing_thread == threading.get_ident()
        assert not here, "something is given back while a graph is captured"

    def put(self, stream: int, call: Callable[[], None]) -> None:
        """Queue ``call`` on a stream, or add it to the graph that is being captured there."""
        self.check_current()
        self.check_own(stream)
        queue = self.streams[stream]
        if self.capturing is queue:
            queue.captured.append(call)
            return
        assert self.capturing is None, "work on another stream while a graph is captured"
        queue.waiting.append(call)
        if self.eager:
            queue.run()

    def nothing_is_left(self) -> None:
        assert (self.memory, self.staging, self.streams, self.events, self.graphs, self.modules) == ({},) * 6
        assert all(not stack for stack in self.stacks.values()), "a context is still pushed"
        assert self.used == 0


@dataclass(frozen=True, eq=False)
class Context:
    """The primary context of a device."""

    device: int


class Stream:
    """Work in order, done when somebody waits."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.waiting: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] = []

    def run(self, until: Record | None = None) -> None:
        while self.waiting and not (until and until.reached):
            self.waiting.pop(0)()


class Record:
    """What an event marks."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.reached = False

    def reach(self) -> None:
        self.reached = True


class Error(Exception):
    pass


class MemoryError(Error):  # as pycuda calls it
    pass


class Pycuda:
    """``pycuda.driver``, whose objects own what they stand for."""

    Error = Error
    MemoryError = MemoryError

    def __init__(self, gpu: Gpu) -> None:
        self._api = Driver(gpu)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._api, name)(*arguments)
        if status:
            raise (MemoryError if status == 2 else Error)(f"{name} failed: {ERRORS[status].decode()}")
        return values[0] if values else None

    def init(self) -> None:
        self._call("cuInit", 0)

    def Device(self, index: int) -> Any:
        context = self._call("cuDevicePrimaryCtxRetain", self._call("cuDeviceGet", index))
        pair = {"push": lambda: self._call("cuCtxPushCurrent", context), "pop": lambda: self._call("cuCtxPopCurrent")}
        return SimpleNamespace(retain_primary_context=lambda: SimpleNamespace(**pair))

    def mem_alloc(self, size: int) -> Any:
        return Allocation(self, self._call("cuMemAlloc", size), "cuMemFree")

    def pagelocked_empty(self, size: int, dtype: Any) -> Any:
        """As much of an array as is asked for: its address, and the ``base`` that frees it."""
        assert np.dtype(dtype) == np.uint8
        base = Allocation(self, self._call("cuMemHostAlloc", size, 0), "cuMemFreeHost")
        return SimpleNamespace(ctypes=SimpleNamespace(data=int(base)), base=base)

    def Stream(self, flags: int) -> Any:
        return OwnStream(self, self._call("cuStreamCreate", flags))


class Allocation:
    def __init__(self, cuda: Pycuda, address: int, free: str) -> None:
        self.address = address
        self.free = lambda: cuda._call(free, address)

    def __int__(self) -> int:
        return self.address


class OwnStream:
    """Destroyed with its last reference, under a pushed context."""

    def __init__(self, cuda: Pycuda, handle: int) -> None:
        self.cuda, self.handle = cuda, handle

    def __del__(self) -> None:
        self.cuda._call("cuStreamDestroy", self.handle)


class Driver:
    """``cuda.bindings.driver``.

    With `Backend` itself it owns context, memory and streams too.
    """

    CUmemorytype = SimpleNamespace(CU_MEMORYTYPE_UNIFIED=4)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9)
    CUDA_MEMCPY2D = SimpleNamespace

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.primary = gpu.primaries[0]
        self.ready = False

    def cuInit(self, flags: int) -> tuple[int]:
        self.ready = flags == 0
        return (0,)

    def cuDeviceGet(self, index: int) -> tuple[int, int]:
        return (0, 5 + index) if self.ready and index < len(self.gpu.primaries) else (101, 0)

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, Any]:
        self.gpu.retained += 1
        return self.gpu.fails.get("cuDevicePrimaryCtxRetain", 0), self.gpu.primaries[device - 5]

    def cuPointerGetAttribute(self, attribute: int, address: int) -> tuple[int, int]:
        assert attribute == 9
        device = self.gpu.device_of(address)
        return self._status("cuPointerGetAttribute") or (1 if device is None else 0), device or 0

    def cuMemGetInfo(self) -> tuple[int, int, int]:
        return self._status("cuMemGetInfo"), self.gpu.total - self.gpu.used, self.gpu.total

    def cuMemAlloc(self, size: int) -> tuple[int, int]:
        assert self.gpu.capturing is None, "allocation while a graph is captured"
        assert size > 0
        if status := self._status("cuMemAlloc") or (2 if self.gpu.used + size > self.gpu.total else 0):
            return status, 0
        address = self.gpu.block(size)
        self.gpu.memory[self.gpu.own(address)] = size
        self.gpu.used += size
        self.gpu.peak = max(self.gpu.peak, self.gpu.used)
        return 0, address

    def cuMemFree(self, address: int) -> tuple[int]:
        self.gpu.check_may_free()
        self.gpu.check_own(address)
        self.gpu.used -= self.gpu.memory.pop(address)
        self.gpu.drop(address)
        return (self._status("cuMemFree"),)

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[int, int]:
        assert flags == 0
        address = self.gpu.block(size)
        self.gpu.staging[address] = size
        return self._status("cuMemHostAlloc"), address

    def cuMemFreeHost(self, address: int) -> tuple[int]:
        self.gpu.check_may_free()
        del self.gpu.staging[address]
        self.gpu.drop(address)
        return (self._status("cuMemFreeHost"),)

    def cuStreamCreate(self, flags: int) -> tuple[int, int]:
        assert flags == 1
        handle = self.gpu.handle()
        self.gpu.streams[handle] = Stream(self.gpu)
        return self._status("cuStreamCreate"), handle

    def cuStreamDestroy(self, stream: int) -> tuple[int]:
        self.gpu.check_current()
        self.gpu.check_own(stream)
        del self.gpu.streams[stream]
        return (self._status("cuStreamDestroy"),)

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> tuple[int]:
        return self._copy("cuMemcpyHtoDAsync", to, source, size, stream, on_device=to)

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> tuple[int]:
        return self._copy("cuMemcpyDtoHAsync", to, source, size, stream, on_device=source)

    def _copy(self, name: str, to: int, source: int, size: int, stream: int, on_device: int) -> tuple[int]:
        """The other side is any memory of the host."""
        self.gpu.check_range(on_device, size)
        self.gpu.check_memory(on_device)
        self.gpu.put(stream, lambda: ctypes.memmove(to, source, size) and None)
        return (self._status(name),)

    def _status(self, name: str) -> int:
        self.gpu.check_current()
        self.gpu.calls.append(name)
        return self.gpu.fails.get(name, 0)

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, ERRORS.get(int(status), b"unknown")

    def cuMemcpyAsync(self, to: int, source: int, size: int, stream: int) -> tuple[int]:
        self.gpu.check_memory(to, source)
        if not (status := self._status("cuMemcpyAsync")):
            self.gpu.put(stream, lambda: self._move(to, source, size))
        return (status,)

    def _move(self, to: int, source: int, size: int) -> None:
        self.gpu.check_range(to, size)
        self.gpu.check_range(source, size)
        ctypes.memmove(to, source, size)

    def cuMemcpy2DAsync(self, copy: Any, stream: int) -> tuple[int]:
        status = self._status("cuMemcpy2DAsync")
        assert copy.srcMemoryType == copy.dstMemoryType == 4
        assert copy.WidthInBytes <= min(copy.srcPitch, copy.dstPitch)
        self.gpu.check_memory(copy.dstDevice, copy.srcDevice)

        def rows() -> None:
            for y in range(copy.Height):
                self._move(copy.dstDevice + y * copy.dstPitch, copy.srcDevice + y * copy.srcPitch, copy.WidthInBytes)

        if not status:
            self.gpu.put(stream, rows)
        return (status,)

    def cuMemsetD8Async(self, address: int, value: int, size: int, stream: int) -> tuple[int]:
        def fill() -> None:
            self.gpu.check_range(address, size)
            ctypes.memset(address, value, size)

        self.gpu.check_memory(address)
        self.gpu.put(stream, fill)
        return (self._status("cuMemsetD8Async"),)

    def cuStreamSynchronize(self, stream: int) -> tuple[int]:
        self.gpu.check_own(stream)
        assert self.gpu.capturing is not self.gpu.streams[stream], "waiting while a graph is captured"
        self.gpu.streams[stream].run()
        return (self._status("cuStreamSynchronize"),)

    def cuEventCreate(self, flags: int) -> tuple[int, int]:
        event = self.gpu.handle()
        self.gpu.events[event] = None
        return self._status("cuEventCreate"), event

    def cuEventDestroy(self, event: int) -> tuple[int]:
        self.gpu.check_own(event)
        del self.gpu.events[event]
        return (self._status("cuEventDestroy"),)

    def cuEventRecord(self, event: int, stream: int) -> tuple[int]:
        assert event in self.gpu.events
        self.gpu.check_own(event)
        record = Record(self.gpu.streams[stream])
        self.gpu.events[event] = record
        self.gpu.put(stream, record.reach)
        return (self._status("cuEventRecord"),)

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[int]:
        self.gpu.check_own(event)
        record = self.gpu.events[event]
        if record is not None:
            self.gpu.put(stream, lambda: record.stream.run(record))
        return (self._status("cuStreamWaitEvent"),)

    def cuEventSynchronize(self, event: int) -> tuple[int]:
        assert self.gpu.capturing is None
        record = self.gpu.events[event]
        if record is not None:
            record.stream.run(record)
        return (self._status("cuEventSynchronize"),)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        assert mode == 1
        assert self.gpu.capturing is None
        status = self._status("cuStreamBeginCapture")
        if not status:
            self.gpu.capturing = self.gpu.streams[stream]
            self.gpu.capturing_thread = threading.get_ident()
            self.gpu.capturing.captured = []
        return (status,)

    def cuStreamEndCapture(self, stream: int) -> tuple[int, int]:
        assert self.gpu.capturing is self.gpu.streams[stream]
        self.gpu.capturing = None
        if status := self._status("cuStreamEndCapture"):
            return status, 0
        return 0, self._graph(list(self.gpu.streams[stream].captured))

    def _graph(self, work: list[Callable[[], None]]) -> int:
        graph = self.gpu.handle()
        self.gpu.graphs[graph] = work
        return graph

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:
        assert flags == 0
        if status := self._status("cuGraphInstantiate"):
            return status, 0
        return 0, self._graph(self.gpu.graphs[graph])

    def cuGraphDestroy(self, graph: int) -> tuple[int]:
        del self.gpu.graphs[graph]
        return (self._status("cuGraphDestroy"),)

    def cuGraphExecDestroy(self, graph: int) -> tuple[int]:
        self.gpu.check_may_free()
        self.gpu.check_own(graph)
        del self.gpu.graphs[graph]
        return (self._status("cuGraphExecDestroy"),)

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple[int]:
        self.gpu.check_own(graph)
        for work in self.gpu.graphs[graph]:
            self.gpu.put(stream, work)
        return (self._status("cuGraphLaunch"),)

    def cuGetProcAddress(self, name: bytes, version: int, flags: int) -> tuple[int, int, int]:
        assert (name, flags) == (b"cuTensorMapEncodeTiled", 0)
        assert version >= 12000
        return self._status("cuGetProcAddress"), tensor_maps.ADDRESS, 0

    def cuCtxGetCurrent(self) -> tuple[int, Any]:
        return self._status("cuCtxGetCurrent"), self.gpu.stacks[threading.get_ident()][-1]

    def cuCtxPushCurrent(self, context: Any) -> tuple[int]:
        self.gpu.stacks.setdefault(threading.get_ident(), []).append(context)
        return (0,)

    def cuCtxPopCurrent(self) -> tuple[int, Any]:
        self.gpu.check_current()
        return 0, self.gpu.stacks[threading.get_ident()].pop()

    def cuModuleLoadData(self, code: bytes) -> tuple[int, int]:
        assert self.gpu.capturing is None, "loading code while a graph is captured"
        if status := self._status("cuModuleLoadData"):
            return status, 0
        module = self.gpu.handle()
        self.gpu.modules[module] = code
        return 0, module

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple[int, Any]:
        return self._status("cuModuleGetFunction"), SimpleNamespace(module=module, name=name, shared=None)

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> tuple[int]:
        assert attribute == 8
        function.shared = value
        return (self._status("cuFuncSetAttribute"),)

    def cuModuleUnload(self, module: int) -> tuple[int]:
        self.gpu.check_may_free()
        self.gpu.check_own(module)
        del self.gpu.modules[module]
        return (self._status("cuModuleUnload"),)

    def cuLaunchKernel(self, function: Any, *rest: Any) -> tuple[int]:
        grid, block, (shared, stream, parameters, extra) = rest[:3], rest[3:6], rest[6:]
        assert function.module in self.gpu.modules
        self.gpu.check_own(function.module, stream)
        assert stream in self.gpu.streams
        assert extra == 0
        assert shared <= 49152 or function.shared == shared
        self.gpu.launched.append(SimpleNamespace(function=function, grid=grid, block=block, parameters=parameters))
        return (self._status("cuLaunchKernel"),)


def open_device(gpu: Gpu, backend: str = "pycuda", index: int = 0) -> Device:
    """Device ``index`` of the machine ``gpu``."""
    api = Driver(gpu)
    return Device(PycudaBackend(Pycuda(gpu), api, index) if backend == "pycuda" else Backend(api, index))
