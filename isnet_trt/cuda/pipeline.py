"""From an image to its label map on one GPU: memory, streams and graphs around the steps of a plan.

Images go up on one stream, the steps of `isnet_trt.cuda.plan` run on a second, label maps come down on a third, and
events order them: with several images in flight the stages overlap. The second time that an image with the same input
signature (size, pixel format, settings) comes, its steps are captured as a CUDA graph, and are one launch from then
on.

Device, kernels and engine are used through few methods, so that tests can run the pipeline on host memory, with the
real kernels in Triton's interpreter.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda.device import Device, Graph
from isnet_trt.cuda.kernel_specs import YUV_KERNEL, needed_kernels
from isnet_trt.cuda.plan import Model, host_only, plan
from isnet_trt.cuda.plan_steps import BufferOffset, Clear, Copy, Infer, Launch, Plan, Step
from isnet_trt.cuda.protocols import DeviceEngine, Launcher
from isnet_trt.cuda.transfers import Labels, Slot, Transfers
from isnet_trt.errors import EngineError, EngineUnavailable, OutOfMemory
from isnet_trt.forks import OwnerProcess
from isnet_trt.merging.geometry import Window
from isnet_trt.pictures.formats import PixelFormat
from isnet_trt.pictures.raw import RawLabels, SourceImage
from isnet_trt.settings import Inference, Size
from isnet_trt.telemetry import ranges

_log = logging.getLogger(__name__)
PLANS = 4
"""Input signatures whose plan and graph are kept."""
EVICTIONS = 8
"""Plans evicted before the engine forgets their input shapes too, which has to wait for the GPU."""
CAPTURES = 3
"""Captures that fail in a row before none is tried any more: what another thread does, such as waiting for the whole
context, may end one."""

_MIB = 1 << 20
Signature = tuple[Size, PixelFormat, Inference]


@dataclass
class _Prepared:
    """A plan, and its graph once there is one."""

    plan: Plan
    has_run: bool = False
    graph: Graph | None = None

    def close_graph(self) -> None:
        """Destroy the graph. One that still runs is freed by the driver when it is done."""
        if self.graph is not None:
            self.graph.close()
            self.graph = None


@dataclass
class Ticket:
    """An image in flight, kept alive with its memory; `Pipeline.collect` gives its label map."""

    plan: Plan
    image: SourceImage
    out: RawLabels | None
    slot: Slot | None = field(repr=False, default=None)


class Pipeline:
    """Everything between source images and label maps on one GPU, around an engine.

    Not safe for two threads at once, but any thread may use it. `close` frees all its memory.
    """

    def __init__(self, device: Device, kernels: Launcher, engine: DeviceEngine, model: Model, stream: int = 0) -> None:
        """``device`` belongs to the pipeline from now on; ``kernels`` and ``engine`` stay the caller's.

        ``stream`` is for an engine that is bound to one, and stays the caller's; 0 creates a new one.

        Raises:
            EngineUnavailable: ``kernels`` lacks one that the model needs, or there is none for a fact of the network.
        """
        if reason := host_only(model.head.network):
            raise EngineUnavailable(f"the network needs {reason}, which only the stages on the host do")
        # Checked here: a missing kernel would otherwise show at the first image whose plan launches it.
        needed = needed_kernels(model.head.classes, model.head.network.size_multiple > 1, engine.output_type)
        missing = sorted(spec.name for spec in needed if not spec.available(kernels))
        if missing:
            raise EngineUnavailable(
                f"the bundle's kernels lack {', '.join(missing)}; build it again with python -m isnet_trt.build"
            )
        self.device, self.kernels, self.engine = device, kernels, engine
        self.model = replace(model, logits=engine.output_type)
        self._prepared: OrderedDict[Signature, _Prepared] = OrderedDict()
        self._arena = 0
        self._arena_bytes = 0
        self._evictions = 0
        self._failed_captures = 0
        # Without shapes: an engine that can never be captured (ONNX Runtime) says so before any image.
        self._no_graphs = engine.no_graph(frozenset(), stream)
        self._closed = False
        with device:
            self.stream = stream or device.create_stream()
            self._transfers = Transfers(device, self.stream)
        # Last: `__del__` takes it as the sign that the constructor was completed.
        self._owner = OwnerProcess(self)

    @property
    def takes_yuv(self) -> bool:
        """Whether the kernels convert YUV images; those of older bundles do not."""
        return YUV_KERNEL in self.kernels

    @property
    def description(self) -> str:
        """How the steps run, in a few words."""
        return f"no CUDA graphs: {self._no_graphs}" if self._no_graphs else "CUDA graphs"

    @property
    def arena_bytes(self) -> int:
        """Size of the block of GPU memory that the buffers of all plans share."""
        return self._arena_bytes

    def plan(self, size: Size, inference: Inference, pixel_format: PixelFormat = "rgb") -> Plan:
        """The work for images of ``size``; its ``bytes`` are the device memory that it takes beside the engine's."""
        return plan(size, inference, self.model, pixel_format)

    # Images

    def __call__(
        self, image: SourceImage, inference: Inference, out: RawLabels | None = None, stream: int | None = None
    ) -> Labels | None:
        """The label map of one image; see `submit` and `collect`."""
        return self.collect(self.submit(image, inference, out, stream))

    def submit(
        self, image: SourceImage, inference: Inference, out: RawLabels | None = None, stream: int | None = None
    ) -> Ticket:
        """Queue all work for one image and return at once.

        ``image`` in host memory has been read when this returns; in device memory it must stay as it is until
        `collect`. For device memory, work waits for what is queued on ``stream`` and on the streams of ``image`` and
        ``out``, and these wait for the label map in ``out``.

        Raises:
            ImageError: the image does not fit the settings.
            EngineError: memory is short, or the driver or the engine fails. The pipeline stays usable.
        """
        with self._active():
            prepared, slot = self._take(image, inference)
            plan = prepared.plan
            try:
                self._transfers.upload(image, plan, slot, self._address(plan, ("source", 0)), stream)
                self._run(prepared)
                self._transfers.download(plan, slot, self._address(plan, ("result", 0)), out, stream)
            except BaseException:
                self._drain()  # what was queued before the error uses the slot
                self._transfers.give(slot)
                raise
        return Ticket(plan, image, out, slot)

    def collect(self, ticket: Ticket) -> Labels | None:
        """Wait for an image's label map: a new array (H, W), the caller's, or None where that is device memory.

        Raises:
            EngineError: the logits have NaN or infinite values, or the driver fails.
        """
        # Taken off the ticket first: a second `collect` must not give the slot back twice.
        slot, ticket.slot = ticket.slot, None
        if slot is None:
            raise EngineError("the label map of this picture was collected already")
        with self._active():
            try:
                return self._transfers.labels(ticket.plan, slot, ticket.out)
            finally:
                self._transfers.give(slot)

    def window_logits(
        self, image: SourceImage, inference: Inference, stream: int | None = None
    ) -> list[tuple[Window, NDArray[np.float32]]]:
        """The logits (K, h, w) of each window in the order of the queue, to be merged on the host.

        Raises:
            ImageError, EngineError: as `submit` and `collect`.
        """
        with self._active():
            prepared, slot = self._take(image, inference)
            plan = prepared.plan
            try:
                self._transfers.upload(image, plan, slot, self._address(plan, ("source", 0)), stream)
                # Never as a graph, which holds the merge too.
                for step in plan.steps:
                    if step.stage not in ("accumulate", "finish"):
                        self._queue(step, prepared)
                logits, flags = self._address(plan, ("logits", 0)), self._address(plan, ("result", plan.flags))
                arrays = self._transfers.logits(plan, logits, flags, self.model.head.classes)
            finally:
                self._drain()
                self._transfers.give(slot)
        return list(zip(plan.queue.windows, arrays, strict=True))

    def _take(self, image: SourceImage, inference: Inference) -> tuple[_Prepared, Slot]:
        """Make plan and memory ready for an image."""
        prepared = self._prepare((image.size, image.pixel_format, inference))
        with self._room(prepared.plan):
            return prepared, self._transfers.take(prepared.plan, image.on_host)

    def wait(self) -> None:
        """Wait until nothing is queued. Tickets stay to be collected."""
        with self._active():
            self._drain()

    # Steps

    def _run(self, prepared: _Prepared) -> None:
        """Queue all steps: one by one the first time, later as a graph where that can be."""
        # Not the first time: libraries load code and settle shapes at their first run, which cannot be captured, and a
        # signature that occurs once costs no capture.
        if prepared.graph is None and prepared.has_run and not self._no_graphs:
            self._capture(prepared)
        if prepared.graph is not None:
            with ranges.annotate("graph"):
                prepared.graph.launch(self.stream)
            return
        for step in prepared.plan.steps:
            with ranges.annotate(step.stage):
                self._queue(step, prepared)
        # Only after every step was queued: a run that failed half-way is no preparation for a capture.
        prepared.has_run = True

    def _capture(self, prepared: _Prepared) -> None:
        # An engine may refuse a capture for good: it is asked before each, with the shapes that it has run.
        self._no_graphs = self.engine.no_graph(prepared.plan.shapes, self.stream)
        if self._no_graphs:
            return
        try:
            with self.device.capture(self.stream) as graph:
                for step in prepared.plan.steps:
                    self._queue(step, prepared)
        # `Device.capture` leaves the stream usable, so that this image can still run step by step.
        except EngineError as error:
            self._failed_captures += 1
            _log.info("capture %d failed: %s", self._failed_captures, error)
            if self._failed_captures == CAPTURES:
                self._no_graphs = f"capturing failed ({error})"
            return  # the caller queues the steps one by one
        # Only failures in a row count: another thread may disturb one capture and not the next.
        self._failed_captures = 0
        prepared.graph = graph

    def steps(
        self, size: Size, inference: Inference, pixel_format: PixelFormat = "rgb"
    ) -> Iterator[tuple[str, Callable[[], None]]]:
        """(stage, call) of each step for such images, for measuring: a call queues the step on `stream`.

        With the device pushed, and right after an image of this signature: the buffers still hold what it left.
        """
        prepared = self._prepare((size, pixel_format, inference))
        for step in prepared.plan.steps:
            yield step.stage, lambda step=step: self._queue(step, prepared)  # type: ignore[misc]

    def _queue(self, step: Step, prepared: _Prepared) -> None:
        if isinstance(step, Launch):
            pointers = {name: self._address(prepared.plan, offset) for name, offset in step.pointers.items()}
            step.queue(self.kernels, self.stream, pointers)
        elif isinstance(step, Infer):
            source, target = self._address(prepared.plan, step.input), self._address(prepared.plan, step.output)
            self.engine.enqueue(source, target, step.shape, self.stream)
        elif isinstance(step, Copy):
            target, source = self._address(prepared.plan, step.target), self._address(prepared.plan, step.source)
            self.device.copy(target, source, step.size, self.stream)
        elif isinstance(step, Clear):
            self.device.fill(self._address(prepared.plan, step.target), 0, step.size, self.stream)

    def _address(self, plan: Plan, position: BufferOffset) -> int:
        buffer, offset = position
        return self._arena + plan.offsets[buffer] + offset

    # Memory

    def _prepare(self, signature: Signature) -> _Prepared:
        """Return the plan for images of a signature, with memory for its buffers; the least recently used goes."""
        prepared = self._prepared.get(signature)
        if prepared is None:
            size, pixel_format, inference = signature
            prepared = _Prepared(self.plan(size, inference, pixel_format))
            for shape in prepared.plan.shapes:
                # Before any launch: kernels address the planned shape and would read past a smaller output.
                self.model.head.check_output(shape, self.engine.output_shape(shape))
        # For known plans as well: the block may have been freed since, when memory was short (`_room`).
        with self._room(prepared.plan):
            self._reserve(prepared.plan.arena_bytes)
        # Only now: a plan for which memory was short must not push out one that works.
        self._prepared[signature] = prepared
        self._prepared.move_to_end(signature)
        if len(self._prepared) > PLANS:
            self._evict()
        return prepared

    def _reserve(self, size: int) -> None:
        """Make the one block of memory large enough for all buffers of a plan.

        Graphs have the addresses of the old block in them and go with it.
        """
        if size > self._arena_bytes:
            # Freed before the larger block is allocated: both together might not fit.
            self._drop_arena()
            self._arena = self.device.allocate(size)
            self._arena_bytes = size

    def _drop_arena(self) -> None:
        # Kernels of images in flight still use the block.
        self._drain()
        for prepared in self._prepared.values():
            prepared.close_graph()
        # Forgotten before it is freed: if the driver refuses, the address is not used again.
        address, self._arena, self._arena_bytes = self._arena, 0, 0
        if address:
            self.device.free(address)

    def _evict(self) -> None:
        """Drop the plan and the graph that were not used for the longest time."""
        _, prepared = self._prepared.popitem(last=False)
        prepared.close_graph()
        self._evictions += 1
        if self._evictions >= EVICTIONS:
            self._evictions = 0
            self._drain()
            self._trim_engine()

    def _trim_engine(self) -> None:
        """Let the engine forget input shapes of evicted plans. Nothing may be queued."""
        self.engine.keep(frozenset().union(*(prepared.plan.shapes for prepared in self._prepared.values())))

    @contextlib.contextmanager
    def _room(self, plan: Plan) -> Iterator[None]:
        """Re-raise an allocation failure with the required and free bytes, after freeing what is not needed."""
        try:
            yield
        except OutOfMemory:
            # Read before anything is freed: the message states what was free when the allocation failed.
            free, total = self.device.memory_info()
            self._drop_arena()
            self._transfers.trim()
            self._trim_engine()  # what it had prepared for this image takes memory too
            raise OutOfMemory(_too_large(plan, free, total)) from None

    # Closing

    @contextlib.contextmanager
    def _active(self) -> Iterator[None]:
        self._owner.check("this pipeline")
        if self._closed:
            raise EngineError("this pipeline was closed; open it again")
        with self.device:
            yield

    def _drain(self) -> None:
        """Wait until nothing is queued; a failure is raised by the call that waits for that work."""
        with contextlib.suppress(EngineError):
            self._transfers.drain()

    def close(self) -> None:
        """Wait for what is queued and free all memory; closing twice is harmless.

        In a forked child nothing happens: the device is the parent's.
        """
        if self._closed or not self._owner.is_here:
            return
        # Set first, so that `__del__` does not try again after a failure below.
        self._closed = True
        with self.device:
            self._drain()
            for prepared in self._prepared.values():
                prepared.close_graph()
            self._prepared.clear()
            # Frees arena, slots, streams and events: the device records all that was created on it.
            self.device.close()

    def __del__(self) -> None:
        if hasattr(self, "_owner"):
            with contextlib.suppress(Exception):  # at the end of the process its libraries may be gone already
                self.close()


def _too_large(plan: Plan, free: int, total: int) -> str:
    sizes = (plan.bytes, plan.buffers["logits"], free, total)
    needed, logits, free_mib, total_mib = (f"{size / _MIB:.1f}" for size in sizes)
    return (
        f"not enough GPU memory for a picture of {plan.size[0]}x{plan.size[1]} ({plan.inference.describe()}): it takes "
        f"{needed} MiB beside the engine, {logits} of them for the logits of {len(plan.queue.windows)} windows, and "
        f"{free_mib} of {total_mib} MiB are free; use fewer scales or a smaller picture, or free GPU memory"
    )
