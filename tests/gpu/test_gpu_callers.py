"""The caller's memory and streams, forks and other threads on a GPU: what docs/embedding.md promises.

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
import pytest
import torch
from numpy.typing import NDArray

from isnet_trt import RawImage, RawLabels, Segmenter
from isnet_trt.errors import EngineError
from isnet_trt.pictures.formats import Order
from tests.gpu.comparison import Case, ade, image, on_gpu
from tests.gpu.networks import Strided
from tests.gpu.record import Record
from tests.gpu.target import Target

PADDING, UNTOUCHED = 37, 201
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

    def __init__(self, tensor: torch.Tensor, stream: int) -> None:
        self._tensor = tensor
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__ | {"version": 3, "stream": stream}


class Caller:
    """PyTorch with a stream of its own; on the "cpu" without one."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.stream = torch.cuda.Stream() if device == "cuda" else None
        self.handle = self.stream.cuda_stream if self.stream else None

    def current(self) -> Any:
        """The stream as PyTorch's current one."""
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    def memory(self, height: int, width: int, *channels: int) -> torch.Tensor:
        """A part of a larger tensor: rows with padding."""
        whole = torch.full((height, width + PADDING, *channels), UNTOUCHED, dtype=torch.uint8)
        return whole.to(self.device)[:, :width]

    def write(self, tensor: torch.Tensor, values: Array) -> None:
        """Queue ``values``, late."""
        source = torch.from_numpy(np.ascontiguousarray(values))
        source = source.pin_memory() if self.stream else source
        with self.current():
            if self.stream:
                torch.cuda._sleep(DELAY)
            tensor.copy_(source, non_blocking=True)

    def read(self, tensor: torch.Tensor) -> tuple[Array, Array]:
        """The content and the padding behind it, as work queued on the stream now finds them."""
        with self.current():
            rows = tensor.as_strided((tensor.shape[0] - 1, tensor.stride(0)), (tensor.stride(0), 1)).cpu().numpy()
            return tensor.cpu().numpy(), rows[:, tensor.shape[1] :]

    def pointer(self, tensor: torch.Tensor, kind: type[RawImage] | type[RawLabels], **options: Any) -> Any:
        """A tensor as a bare pointer."""
        height, width = tensor.shape[:2]
        return kind(tensor.data_ptr(), height, width, tensor.stride(0), device=self.device, **options)

    def ways(
        self, tensor: torch.Tensor, kind: type[RawImage] | type[RawLabels], **options: Any
    ) -> Iterator[tuple[str, Call]]:
        """Every way to hand a tensor over while work on it is queued; ``options`` describe a pointer."""
        yield "DLPack, the current stream", (tensor, {})
        if self.stream:
            yield "DLPack, stream given", (tensor, {"stream": self.stream.cuda_stream})
            yield "__cuda_array_interface__", (Interface(tensor, self.stream.cuda_stream), {})
            yield "pointer, its own stream", (self.pointer(tensor, kind, stream=self.handle, **options), {})
        yield "pointer, stream given", (self.pointer(tensor, kind, **options), {"stream": self.handle})


def opened(target: Target, case: Case) -> Segmenter:
    """A whole segmenter on the GPU around a network that computes little."""
    return on_gpu(target, Strided(case.labels.count, case.stride, target.seed), case)


@pytest.mark.gpu("caller.memory", 8, 120)
def test_memory(record: Record, target: Target) -> None:
    """Images and label maps in the caller's memory, still being written, by every protocol: bits of host arrays'."""
    case = target.case or ade()
    with opened(target, case) as segmenter:
        caller, source = Caller(target.device), image(case.size, target.seed)
        expected = segmenter(source).labels
        record.require(len(np.unique(expected)) > 1, "all pixels have one class: nothing was compared")
        for order in ORDERS:
            hand_over_images(record, caller, segmenter, source, expected, order)
        hand_over_label_maps(record, caller, segmenter, source, expected)


def hand_over_images(
    record: Record, caller: Caller, segmenter: Segmenter, source: Array, expected: Array, order: Order
) -> None:
    values = np.dstack([source, source[..., 0]])[:, :, ["rgb".find(channel) for channel in order]]
    tensor = caller.memory(*source.shape[:2], len(order))
    for name, _ in caller.ways(tensor, RawImage, order=order):
        for how in ("first", "again", "once more"):
            tensor.fill_(UNTOUCHED)
            if caller.stream:
                torch.cuda.synchronize()
            caller.write(tensor, values)
            with caller.current():
                item, options = dict(caller.ways(tensor, RawImage, order=order))[name]
                labels = segmenter(item, order=order, **options).labels
            compare(record, f"picture, {order}, {name}, {how}", labels, expected)


def hand_over_label_maps(record: Record, caller: Caller, segmenter: Segmenter, source: Array, expected: Array) -> None:
    tensor = caller.memory(*expected.shape)
    for name, _ in caller.ways(tensor, RawLabels):
        caller.write(tensor, np.full(expected.shape, UNTOUCHED, np.uint8))
        with caller.current():
            item, options = dict(caller.ways(tensor, RawLabels))[name]
            segmenter(source, out=item, **options)
        labels, padding = caller.read(tensor)
        compare(record, f"label map, {name}", labels, expected)
        record.require(bool((padding == UNTOUCHED).all()), f"label map, {name}: written between the rows")


def compare(record: Record, what: str, labels: Array, expected: Array) -> None:
    equal = 100 * float((labels == expected).mean())
    record.row(case=what, **{"equal %": equal})
    record.require(equal == 100, f"{what}: {equal:.3f} % of the labels are those of the host array")


@pytest.mark.gpu("caller.fork", 9, 60)
def test_fork(record: Record, target: Target) -> None:
    """In a forked child every call is refused and closing does nothing; the parent goes on as before."""
    case = target.case or ade()
    with opened(target, case) as segmenter:
        source = image(case.size, target.seed)
        expected = segmenter(source).labels
        message = in_child(segmenter, source)
        record.figure("what the child was told", message)
        record.require("cannot be used in process" in message, f"the child was not refused: {message}")
        same = bool((segmenter(source).labels == expected).all())
        record.require(same, "after the fork the parent's labels differ")


def in_child(segmenter: Segmenter, source: Array, patience: float = 20.0) -> str:
    """What a call in a forked child is told."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            message = "it was not refused"
            try:
                segmenter(source)
            except EngineError as error:
                message = str(error)
            segmenter.close()
            os.write(writer, message.encode())
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


@pytest.mark.gpu("caller.lock", 9, 60)
def test_lock(record: Record, target: Target) -> None:
    """Python runs on in another thread while a call waits for the GPU."""
    case = target.case or ade()
    with opened(target, case) as segmenter:
        caller, source = Caller(target.device), image(case.size, target.seed)
        tensor = caller.memory(*case.size, 3)
        segmenter(source)
        shares = []
        for _ in range(6):
            caller.write(tensor, source)  # late: the call waits for it
            late = caller.pointer(tensor, RawImage)
            shares.append(longest_pause(lambda late=late: segmenter(late, stream=caller.handle)))  # type: ignore[misc]
        record.figure("longest pause of the other thread, % of the call", [100 * share for share in shares])
        least = min(shares[1:])  # the first has memory allocated for it
        record.require(least < MOST_PAUSE, f"for {100 * least:.0f} % of a call no other thread ran: it keeps the lock")


def longest_pause(call: Callable[[], object]) -> float:
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
