"""Copies between the caller's memory and the GPU's work buffers: images up, label maps and logits down.

Uploads and downloads have a stream each beside the stream of the work, and events order the three, so that the copies
of one image overlap with the work for another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda.device import Device
from isnet_trt.cuda.element_types import ELEMENT_TYPES, as_float32
from isnet_trt.cuda.plan_steps import Plan
from isnet_trt.merging.merge import not_finite
from isnet_trt.pictures.raw import RawLabels, SourceImage

Labels = NDArray[np.unsignedinteger]


@dataclass
class _Buffer:
    """Page-locked host memory and device memory of the same size."""

    host: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    address: int = 0

    def reserve(self, device: Device, size: int) -> None:
        """Make room for ``size`` bytes, at least one; the old content is lost."""
        size = max(size, 1)
        if len(self.host) < size:
            # Nothing queued uses the old memory: a slot is free only after its image was collected or drained.
            self.free(device)
            self.host = device.allocate_staging(size)
            self.address = device.allocate(size)

    def free(self, device: Device) -> None:
        """Give the memory back; nothing queued may use it."""
        host, address, self.host, self.address = self.host, self.address, np.empty(0, np.uint8), 0
        if len(host):
            device.free_staging(host)
        if address:
            device.free(address)


@dataclass
class Slot:
    """What one image in flight holds: memory for the image with its plan's tables and for its label map, and the
    events that order its work."""

    source: _Buffer = field(default_factory=_Buffer)
    result: _Buffer = field(default_factory=_Buffer)
    events: dict[str, int] = field(default_factory=dict)


class Transfers:
    """Copies between the host and the work on ``stream``. All methods need the device pushed.

    For each image: `take` a slot, `upload`, `download` once the work is queued, `labels`, and `give` the slot back
    when nothing queued uses it any more.
    """

    def __init__(self, device: Device, stream: int) -> None:
        self._device = device
        self._stream = stream
        self._up, self._down = device.create_stream(), device.create_stream()
        self._free: list[Slot] = []

    # Slots

    def take(self, plan: Plan, from_host: bool) -> Slot:
        """Return a slot with memory for an image of ``plan``; ``from_host``: the image itself has to be staged.

        Raises:
            OutOfMemory: there is not enough.
        """
        slot = self._free.pop() if self._free else Slot()
        try:
            if not slot.events:
                slot.events = {name: self._device.create_event() for name in ("up", "caller", "done", "down")}
            slot.source.reserve(self._device, plan.upload_bytes - _host_start(plan, from_host))
            slot.result.reserve(self._device, plan.result_bytes)
        except BaseException:
            self.give(slot)
            self.trim()  # memory is short: that of the other idle slots goes too
            raise
        return slot

    def give(self, slot: Slot) -> None:
        """Keep the slot's memory for the next image."""
        self._free.append(slot)

    def trim(self) -> None:
        """Free the memory of all slots that are not in use."""
        for slot in self._free:
            slot.source.free(self._device)
            slot.result.free(self._device)

    # Copies

    def upload(self, image: SourceImage, plan: Plan, slot: Slot, source: int, stream: int | None) -> None:
        """Queue image and tables to ``source``; planes one behind the other, rows without padding.

        Host memory is read before this returns. Device memory is read after what is queued on the caller's ``stream``
        and on the image's own, and before what is queued there later.
        """
        start = _host_start(plan, image.on_host)
        size, staging = plan.upload_bytes - start, slot.source.host
        if image.on_host:
            # Page-locked memory lets the upload run while the host goes on; the caller's array is free at once.
            offset = 0
            for plane in image.planes:
                end = offset + plane.height * plane.row_bytes
                np.copyto(staging[offset:end].reshape(plane.height, -1), plane.array().reshape(plane.height, -1))
                offset = end
        staging[plan.tables_offset - start : size] = np.frombuffer(plan.tables, np.uint8)
        # In two steps: the slot's own device memory takes the upload while the work still reads the last image from
        # ``source``; the copy within the device is short.
        self._device.copy(slot.source.address, staging.ctypes.data, size, self._up)
        self._order(self._up, self._stream, slot.events["up"])
        self._device.copy(source + start, slot.source.address, size, self._stream)
        if not image.on_host:
            rows = []
            for plane in image.planes:
                rows.append((source, plane.row_bytes, plane.address, plane.row_pitch, plane.row_bytes, plane.height))
                source += plane.height * plane.row_bytes
            # On the stream of the work: a copy within the device needs no staging.
            self._copy_with_caller(slot, (*(plane.stream for plane in image.planes), stream), rows)

    def download(self, plan: Plan, slot: Slot, result: int, out: RawLabels | None, stream: int | None) -> None:
        """Queue labels and flags from ``result`` to the slot's page-locked memory, and record the event "down".

        Labels for device memory go there instead, before anything queued later on the caller's ``stream``.
        """
        start = 0
        if out is not None and not out.on_host:
            start = plan.flags  # only the flags are needed on the host
            rows = (out.address, out.row_pitch, result, out.row_bytes, out.row_bytes, out.height)
            self._copy_with_caller(slot, (out.stream, stream), [rows])
        size = plan.result_bytes - start
        address, staging = slot.result.address, slot.result.host
        # As for uploads: once ``result`` is copied within the device, the next image's work may overwrite it.
        self._device.copy(address + start, result + start, size, self._stream)
        self._order(self._stream, self._down, slot.events["done"])
        self._device.copy(staging.ctypes.data + start, address + start, size, self._down)
        # An event and not the stream: `labels` waits for this image alone, not for those queued after it.
        self._device.record(slot.events["down"], self._down)

    def _copy_with_caller(
        self, slot: Slot, streams: tuple[int | None, ...], planes: list[tuple[int, int, int, int, int, int]]
    ) -> None:
        """Copy planes from or to the caller's device memory, between what is queued on ``streams`` before and after."""
        # The stream of the memory and that of the call are often the same one: it is waited for once.
        callers = list(dict.fromkeys(stream for stream in streams if stream is not None))
        for stream in callers:
            self._order(stream, self._stream, slot.events["caller"])
        # One event serves every wait here: a wait takes what was recorded when it was queued, so that recording the
        # event again does not change it.
        for rows in planes:
            self._device.copy_rows(*rows, self._stream)
        for stream in callers:
            self._order(self._stream, stream, slot.events["caller"])

    def _order(self, first: int, then: int, event: int) -> None:
        """Let what is queued on ``then`` from now on wait for what is queued on ``first``."""
        self._device.record(event, first)
        self._device.wait_event(then, event)

    # Results

    def labels(self, plan: Plan, slot: Slot, out: RawLabels | None) -> Labels | None:
        """Wait for a label map (H, W): a new array, or the caller's in host memory; None where it is on the device.

        Raises:
            EngineError: the logits have NaN or infinite values, or the driver fails.
        """
        self._device.synchronize_event(slot.events["down"])
        staging = slot.result.host
        # Before the labels are copied: the caller's host memory stays as it was when logits are not finite.
        _check_finite(plan, staging[plan.flags : plan.result_bytes])
        if out is not None and not out.on_host:
            return None
        labels: Labels = staging[: plan.label_bytes].view(plan.labels).reshape(plan.size)
        if out is None:
            return labels.copy()  # the staging memory is the next image's
        target = out.array()
        np.copyto(target, labels)
        return target

    def logits(self, plan: Plan, logits: int, flags: int, classes: int) -> list[NDArray[np.float32]]:
        """Wait for the work, and copy each window's logits (K, h, w) from the buffer "logits", in order of the queue.

        Raises:
            EngineError: the logits have NaN or infinite values, or the driver fails.
        """
        size = plan.buffers["logits"]
        # For this call alone: it is large, and only outputs that are merged on the host need it.
        staging = self._device.allocate_staging(size + plan.result_bytes - plan.flags)
        try:
            # On the stream of the work: the call waits anyway, so that a stream of its own would gain nothing.
            self._device.copy(staging.ctypes.data, logits, size, self._stream)
            self._device.copy(staging.ctypes.data + size, flags, len(staging) - size, self._stream)
            self._device.synchronize(self._stream)
            _check_finite(plan, staging[size:])
            return split_logits(plan, staging[:size], classes)
        finally:
            self._device.free_staging(staging)

    def drain(self) -> None:
        """Wait until everything queued is done, on the stream of the work too."""
        for stream in (self._up, self._stream, self._down):
            self._device.synchronize(stream)


def _host_start(plan: Plan, from_host: bool) -> int:
    """Where the part of an upload starts that comes from the host: the tables where the image is on the device."""
    return 0 if from_host else plan.tables_offset


def _check_finite(plan: Plan, flags: NDArray[np.uint8]) -> None:
    """Raise EngineError where the kernel ``finite`` set the int32 flag of a region."""
    for region, flag in zip(plan.regions, flags.view(np.int32), strict=True):
        if flag:
            # A region has one flag for all of its batches: the shape is that of its largest batch.
            raise not_finite((region.batch, 3, *region.window))


def split_logits(plan: Plan, logits: NDArray[np.uint8], classes: int) -> list[NDArray[np.float32]]:
    """Each window's logits (K, h, w) in float32, in the order of the queue, from the bytes of the buffer "logits"."""
    copies = []
    for index, slot in plan.slots:
        region = plan.regions[index]
        shape = (classes, *region.coarse)
        size = ELEMENT_TYPES[plan.logits].size * shape[0] * shape[1] * shape[2]
        start = region.offset + slot * size
        # Copied: the caller of this function frees the staging memory.
        copies.append(as_float32(logits[start : start + size], plan.logits).reshape(shape))
    return copies
