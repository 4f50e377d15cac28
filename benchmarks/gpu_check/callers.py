"""The caller's memory and streams, a fork, and other threads, on a real GPU: what docs/embedding.md promises.

PyTorch plays the caller: its tensors are presented by every protocol, and what is written to them is held back on its
stream for some milliseconds, so that work that does not wait for it gives another label map.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check import rigs
from benchmarks.gpu_check.check import Answer, Check, Setup
from benchmarks.gpu_check.needs import RUNTIME
from benchmarks.gpu_check.networks import Strided
from benchmarks.gpu_check.rigs import Case, GpuRig, Rig
from isnet_trt import RawImage, RawLabels, Segmenter
from isnet_trt.errors import EngineError
from isnet_trt.pictures.formats import Order
from isnet_trt.runtime.gpu import GpuRuntime

PADDING = 37
UNTOUCHED = 201
ORDERS: tuple[Order, ...] = ("rgb", "bgr", "rgba")
DELAY = 30_000_000
"""Cycles for which the caller's stream is kept busy before it writes: about 20 ms."""
MOST_PAUSE = 0.5
"""Share of a call for which another thread may stand still: Python's lock changes hands every 5 ms at the latest."""
Array = NDArray[Any]
Call = tuple[Any, dict[str, Any]]
"""What is handed over, and the options of the call."""


class Interface:
    """A tensor with ``__cuda_array_interface__`` and its stream, and nothing else."""

    def __init__(self, tensor: Any, stream: int) -> None:
        self._tensor = tensor
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__ | {"version": 3, "stream": stream}


class Caller:
    """PyTorch with a stream of its own; on the "cpu", for tests, without one."""

    def __init__(self, device: str = "cuda") -> None:
        import torch

        self.device = device
        self._torch = torch
        self.stream = torch.cuda.Stream() if device == "cuda" else None
        self.handle = self.stream.cuda_stream if self.stream else None

    def current(self) -> Any:
        """The stream as PyTorch's current one."""
        return self._torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    def memory(self, height: int, width: int, *channels: int) -> Any:
        """A part of a larger tensor: rows with padding."""
        made = self._torch.full((height, width + PADDING, *channels), UNTOUCHED, dtype=self._torch.uint8)
        return made.to(self.device)[:, :width]

    def write(self, tensor: Any, values: Array) -> None:
        """Queue ``values``, late."""
        source = self._torch.from_numpy(np.ascontiguousarray(values))
        source = source.pin_memory() if self.stream else source
        with self.current():
            if self.stream:
                self._torch.cuda._sleep(DELAY)
            tensor.copy_(source, non_blocking=True)

    def read(self, tensor: Any) -> tuple[Array, Array]:
        """The content and the padding behind it, as work queued on the stream now finds them."""
        with self.current():
            rows = tensor.as_strided((tensor.shape[0] - 1, tensor.stride(0)), (tensor.stride(0), 1)).cpu().numpy()
            return tensor.cpu().numpy(), rows[:, tensor.shape[1] :]

    def pointer(self, tensor: Any, kind: type[RawImage] | type[RawLabels], **options: Any) -> Any:
        """A tensor as a bare pointer."""
        height, width = tensor.shape[:2]
        return kind(tensor.data_ptr(), height, width, tensor.stride(0), device=self.device, **options)

    def ways(self, tensor: Any, kind: type[RawImage] | type[RawLabels], **options: Any) -> Iterator[tuple[str, Call]]:
        """Every way to hand a tensor over while work on it is queued; ``options`` describe a pointer."""
        yield "DLPack, the current stream", (tensor, {})
        if self.stream:
            yield "DLPack, stream given", (tensor, {"stream": self.stream.cuda_stream})
            yield "__cuda_array_interface__", (Interface(tensor, self.stream.cuda_stream), {})
            yield "pointer, its own stream", (self.pointer(tensor, kind, stream=self.handle, **options), {})
        yield "pointer, stream given", (self.pointer(tensor, kind, **options), {"stream": self.handle})


def memory(
    answer: Answer, setup: Setup, rig: Rig | None = None, chosen: Case | None = None, device: str = "cuda"
) -> None:
    """Pictures and label maps in the caller's memory, bit for bit those of host arrays."""
    with opened(setup, rig, chosen) as (segmenter, case):
        caller = Caller(device)
        image = rigs.picture(case.size, setup.seed)
        wanted = segmenter(image).labels
        answer.require(len(np.unique(wanted)) > 1, "all pixels have one class: nothing was compared")
        for order in ORDERS:
            _pictures(answer, caller, segmenter, image, wanted, order)
        _label_maps(answer, caller, segmenter, image, wanted)


def _pictures(answer: Answer, caller: Caller, segmenter: Segmenter, image: Array, wanted: Array, order: Order) -> None:
    height, width = image.shape[:2]
    values = np.dstack([image, image[..., 0]])[:, :, ["rgb".find(channel) for channel in order]]
    tensor = caller.memory(height, width, len(order))
    for name, _ in caller.ways(tensor, RawImage, order=order):
        for how in ("first", "again", "once more"):
            tensor.fill_(UNTOUCHED)
            _settled(caller)
            caller.write(tensor, values)
            with caller.current():
                given, options = dict(caller.ways(tensor, RawImage, order=order))[name]
                made = segmenter(given, order=order, **options).labels
            _compare(answer, f"picture, {order}, {name}, {how}", made, wanted)


def _label_maps(answer: Answer, caller: Caller, segmenter: Segmenter, image: Array, wanted: Array) -> None:
    tensor = caller.memory(*wanted.shape)
    for name, _ in caller.ways(tensor, RawLabels):
        caller.write(tensor, np.full(wanted.shape, UNTOUCHED, np.uint8))
        with caller.current():
            given, options = dict(caller.ways(tensor, RawLabels))[name]
            segmenter(image, out=given, **options)
        made, padding = caller.read(tensor)
        _compare(answer, f"label map, {name}", made, wanted)
        answer.require(bool((padding == UNTOUCHED).all()), f"label map, {name}: written between the rows")


def _settled(caller: Caller) -> None:
    if caller.stream:
        import torch

        torch.cuda.synchronize()


def _compare(answer: Answer, what: str, made: Array, wanted: Array) -> None:
    equal = 100 * float((made == wanted).mean())
    answer.row(case=what, **{"equal %": equal})
    answer.require(equal == 100, f"{what}: {equal:.3f} % of the labels are those of the host array")


@contextlib.contextmanager
def opened(setup: Setup, rig: Rig | None, chosen: Case | None) -> Iterator[tuple[Segmenter, Case]]:
    """A whole segmenter on the GPU around a network that computes little."""
    from benchmarks.gpu_check.runtime import ade

    rig, case = rig or GpuRig(setup), chosen or ade()
    network = Strided(case.labels.count, case.stride, setup.seed)
    pipeline = rig.pipeline(network, case)
    made = Segmenter(
        network, case.labels, case.preprocess, case.inference, case.stride,
        runtime=GpuRuntime(network, pipeline),
    )  # fmt: skip
    with made:
        yield made, case


def fork(answer: Answer, setup: Setup, rig: Rig | None = None, chosen: Case | None = None) -> None:
    """In a forked child every call is refused and closing does nothing; the parent goes on as before."""
    with opened(setup, rig, chosen) as (segmenter, case):
        image = rigs.picture(case.size, setup.seed)
        wanted = segmenter(image).labels
        said = _in_child(segmenter, image)
        answer.figure("what the child was told", said)
        answer.require("cannot be used in process" in said, f"the child was not refused in words: {said}")
        answer.require(bool((segmenter(image).labels == wanted).all()), "after the fork the parent's labels differ")


def _in_child(segmenter: Segmenter, image: Array, patience: float = 20.0) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = "it was not refused"
            try:
                segmenter(image)
            except EngineError as error:
                said = str(error)
            segmenter.close()
            os.write(writer, said.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if os.waitpid(child, os.WNOHANG)[0]:
                return pipe.read()
            time.sleep(0.01)
        os.kill(child, 9)
        os.waitpid(child, 0)
    return "the child hung and was killed"


def lock(
    answer: Answer, setup: Setup, rig: Rig | None = None, chosen: Case | None = None, device: str = "cuda"
) -> None:
    """While a call waits for the GPU, another thread of Python runs on."""
    with opened(setup, rig, chosen) as (segmenter, case):
        caller, image = Caller(device), rigs.picture(case.size, setup.seed)
        tensor = caller.memory(*case.size, 3)
        segmenter(image)
        shares = []
        for _ in range(6):
            caller.write(tensor, image)  # late: the call waits for it
            late = caller.pointer(tensor, RawImage)
            shares.append(_longest_pause(lambda late=late: segmenter(late, stream=caller.handle)))  # type: ignore[misc]
        answer.figure("longest pause of the other thread, % of the call", [100 * share for share in shares])
        least = min(shares[1:])  # the first has memory made for it
        answer.require(
            least < MOST_PAUSE, f"for {100 * least:.0f} % of a call no other thread ran: it keeps Python's lock"
        )


def _longest_pause(call: Callable[[], object]) -> float:
    """For how long another thread of Python had to stand still while ``call`` ran, as a share of its time."""
    stop, pauses = threading.Event(), [0.0]

    def work() -> None:
        last = time.perf_counter()
        while not stop.is_set():
            time.sleep(0)
            now = time.perf_counter()
            pauses.append(now - last)
            last = now

    thread = threading.Thread(target=work)
    thread.start()
    try:
        pauses[:] = [0.0]
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
    finally:
        stop.set()
        thread.join()
    return max(pauses) / seconds


CHECKS = (
    Check("caller.memory", "tensors that are still being written, by every protocol", memory, RUNTIME, 120, rank=8),
    Check("caller.lock", "Python runs on while a call waits for the GPU", lock, RUNTIME, rank=9),
    Check("caller.fork", "a forked child is refused and harms nobody", fork, (*RUNTIME, "fork"), alone=True, rank=9),
)  # fmt: skip
