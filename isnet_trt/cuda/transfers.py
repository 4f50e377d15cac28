"""Pictures to the GPU and label maps back, each on a stream of its own, with what a picture on its way holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda.device import Device
from isnet_trt.cuda.steps import Plan
from isnet_trt.pictures.interop import RawImage, RawLabels

Labels = NDArray[np.unsignedinteger]


@dataclass
class Slot:
    """Page-locked and device memory for one picture with its plan's tables and for its label map, and the events that
    order its work."""

    source: int = 0
    result: int = 0
    up: NDArray[np.uint8] | None = None
    down: NDArray[np.uint8] | None = None
    events: dict[str, int] = field(default_factory=dict)


class Transfers:
    """Copies between the host and the work on ``stream``.

    All methods need the device pushed. `take` a slot for each picture, `bring` it, `deliver` its label map, wait for
    the event "down" of its slot, and `give` the slot back when nothing queued uses it any more.
    """

    def __init__(self, device: Device, stream: int) -> None:
        self._device = device
        self._stream = stream
        self._up, self._down = device.stream(), device.stream()
        self._free: list[Slot] = []

    def take(self, made: Plan, from_host: bool) -> Slot:
        """Memory for a picture of ``made``.

        Raises:
            EngineError: there is not enough.
        """
        slot = self._free.pop() if self._free else Slot()
        try:
            if not slot.events:
                slot.events = {name: self._device.event() for name in ("up", "foreign", "done", "down")}
            size = made.upload_bytes - _begin(made, from_host)
            if slot.up is None or len(slot.up) < size:
                self._drop_source(slot)
                slot.up = self._device.staging(size)
                slot.source = self._device.allocate(size)
            if slot.down is None or len(slot.down) < made.result_bytes:
                self._drop_result(slot)
                slot.down, slot.result = (
                    self._device.staging(made.result_bytes),
                    self._device.allocate(made.result_bytes),
                )
        except BaseException:
            self._drop_source(slot)
            self._drop_result(slot)
            self._free.append(slot)
            raise
        return slot

    def give(self, slot: Slot) -> None:
        """Take the memory back for the next picture."""
        self._free.append(slot)

    def _drop_source(self, slot: Slot) -> None:
        staging, slot.up = slot.up, None
        address, slot.source = slot.source, 0
        self._drop(staging, address)

    def _drop_result(self, slot: Slot) -> None:
        staging, slot.down = slot.down, None
        address, slot.result = slot.result, 0
        self._drop(staging, address)

    def _drop(self, staging: NDArray[np.uint8] | None, address: int) -> None:
        if staging is not None:
            self._device.release(staging)
        if address:
            self._device.free(address)

    def trim(self) -> None:
        """Give the memory of slots that are not in use back."""
        for slot in self._free:
            self._drop_source(slot)
            self._drop_result(slot)

    def bring(self, image: RawImage, made: Plan, slot: Slot, source: int, foreign: Iterable[int]) -> None:
        """Queue picture and tables to ``source``; rows without padding.

        Host memory is read before this returns. Device memory is read after what is queued on the streams ``foreign``,
        and before what is queued there later.
        """
        assert slot.up is not None
        begin = _begin(made, image.on_host)
        size = made.upload_bytes - begin
        if image.on_host:
            rows = slot.up[: made.source_bytes].reshape(image.height, -1)
            np.copyto(rows, image.array().reshape(image.height, -1))
        slot.up[made.tables_at - begin : size] = np.frombuffer(made.tables, np.uint8)
        self._device.copy(slot.source, slot.up.ctypes.data, size, self._up)
        self._order(self._up, self._stream, slot.events["up"])
        self._device.copy(source + begin, slot.source, size, self._stream)
        if not image.on_host:
            self._fetch(image, slot, source, list(foreign))

    def _fetch(self, image: RawImage, slot: Slot, source: int, foreign: list[int]) -> None:
        """The picture from the caller's device memory."""
        for stream in foreign:
            self._order(stream, self._stream, slot.events["foreign"])
        rows = (image.address, image.row_pitch, image.row_bytes, image.height)
        self._device.copy_rows(source, image.row_bytes, *rows, self._stream)
        for stream in foreign:
            self._order(self._stream, stream, slot.events["foreign"])

    def deliver(self, made: Plan, slot: Slot, result: int, out: RawLabels | None, foreign: Iterable[int]) -> None:
        """Queue labels and flags from ``result`` to the slot's page-locked memory, and record the event "down".

        Labels for device memory go there instead, before anything queued later on the streams ``foreign``.
        """
        begin = 0
        if out is not None and not out.on_host:
            begin = made.flags
            self._put(made, slot, result, out, list(foreign))
        size = made.result_bytes - begin
        self._device.copy(slot.result + begin, result + begin, size, self._stream)
        self._order(self._stream, self._down, slot.events["done"])
        assert slot.down is not None
        self._device.copy(slot.down.ctypes.data + begin, slot.result + begin, size, self._down)
        self._device.record(slot.events["down"], self._down)

    def _put(self, made: Plan, slot: Slot, result: int, out: RawLabels, foreign: list[int]) -> None:
        """Labels to the caller's device memory."""
        for stream in foreign:
            self._order(stream, self._stream, slot.events["foreign"])
        rows = (result, out.row_bytes, out.row_bytes, out.height)
        self._device.copy_rows(out.address, out.row_pitch, *rows, self._stream)
        for stream in foreign:
            self._order(self._stream, stream, slot.events["foreign"])

    def _order(self, first: int, then: int, event: int) -> None:
        """What is queued on ``then`` from now on waits for what is queued on ``first``."""
        self._device.record(event, first)
        self._device.wait_for(then, event)

    def wait(self, slot: Slot) -> NDArray[np.uint8]:
        """Until the slot's label map is there: its bytes, and the flags."""
        self._device.reached(slot.events["down"])
        assert slot.down is not None
        return slot.down

    def drain(self) -> None:
        """Until everything queued is done, on the stream of the work too."""
        for stream in (self._up, self._stream, self._down):
            self._device.synchronize(stream)


def labels(made: Plan, down: NDArray[np.uint8], out: RawLabels | None) -> Labels | None:
    """The label map in page-locked memory as a new array, or in ``out``; None where that is device memory."""
    if out is not None and not out.on_host:
        return None
    found: Labels = down[: made.label_bytes].view(made.labels).reshape(made.size)
    if out is None:
        return found.copy()
    target = out.array()
    np.copyto(target, found)
    return target


def _begin(made: Plan, from_host: bool) -> int:
    """Where in what goes up the part begins that comes from the host."""
    return 0 if from_host else made.tables_at
