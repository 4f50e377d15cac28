"""From a picture to its label map on one GPU: memory, streams and graphs around the steps of a plan.

Pictures go up on one stream, the steps of `isnet_trt.cuda.plan` run on a second, label maps come down on a third, and
events order them: with several pictures on their way the stages overlap. The second time that a kind of picture comes,
its steps are captured as a CUDA graph, and are one launch from then on.

The pipeline speaks to a device, to kernels and to an engine through the few methods below, so that tests run it on host
memory, with the real kernels in Triton's interpreter. Not yet run on a GPU.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda.answers import check_answers, split_answers
from isnet_trt.cuda.device import Device, Graph
from isnet_trt.cuda.plan import Model, kernels_of, plan
from isnet_trt.cuda.protocols import DeviceEngine, Launcher
from isnet_trt.cuda.steps import Clear, Infer, Launch, Move, Place, Plan, Step
from isnet_trt.cuda.transfers import Labels, Slot, Transfers, labels
from isnet_trt.errors import EngineError, EngineUnavailable
from isnet_trt.forks import Home
from isnet_trt.merging.geometry import Window, coarse_size
from isnet_trt.pictures.interop import RawImage, RawLabels
from isnet_trt.pictures.preprocess import Order
from isnet_trt.settings import Inference, Size

PLANS = 4
"""Kinds of picture (size, channel order, settings) whose plan and graph are kept."""
FORGOTTEN = 8
"""So many are forgotten before the engine forgets their input shapes too, which has to wait for the GPU."""
CAPTURES = 3
"""So many fail in a row before none is tried any more: what another thread does, such as waiting for the whole context,
may end one."""

_MIB = 1 << 20


@dataclass
class _Prepared:
    """A plan, and its graph once there is one."""

    plan: Plan
    has_run: bool = False
    graph: Graph | None = None

    def __post_init__(self) -> None:
        self.offsets = self.plan.offsets


@dataclass
class Ticket:
    """A picture on its way; `Pipeline.collect` gives its label map."""

    plan: Plan
    image: RawImage
    out: RawLabels | None
    slot: Slot | None = field(repr=False, default=None)


class Pipeline:
    """Everything between source pictures and label maps on one GPU, around an engine.

    Not safe for two threads at once, but any thread may use it. Closed, it has given all its memory back.
    """

    def __init__(self, device: Device, kernels: Launcher, engine: DeviceEngine, model: Model, stream: int = 0) -> None:
        """``device`` belongs to the pipeline from now on; ``kernels`` and ``engine`` stay the caller's.

        ``stream`` is for an engine that is bound to one, and stays the caller's; by default there will be a new one.

        Raises:
            EngineUnavailable: ``kernels`` lacks one that the model needs.
        """
        missing = [name for name in sorted(kernels_of(model.head.classes)) if name not in kernels]
        if missing:
            raise EngineUnavailable(
                f"the bundle's kernels lack {', '.join(missing)}; build it again with python -m isnet_trt.build"
            )
        self.device, self.kernels, self.engine, self.model = device, kernels, engine, model
        self._prepared: OrderedDict[tuple[Size, Order, Inference], _Prepared] = OrderedDict()
        self._arena = 0
        self._arena_bytes = 0
        self._forgotten = 0
        self._failed_captures = 0
        self._no_graphs = engine.no_graph(frozenset(), stream)
        self._closed = False
        with device:
            self.stream = stream or device.stream()
            self._transfers = Transfers(device, self.stream)
        self._home = Home(self)

    @property
    def description(self) -> str:
        """How the steps run, in a few words."""
        return f"no CUDA graphs: {self._no_graphs}" if self._no_graphs else "CUDA graphs"

    def plan(self, size: Size, inference: Inference, order: Order = "rgb") -> Plan:
        """What a picture of ``size`` takes; ``.bytes`` is the device memory beside the engine's."""
        return plan(size, inference, self.model, order)

    # Pictures

    def __call__(
        self, image: RawImage, inference: Inference, out: RawLabels | None = None, stream: int | None = None
    ) -> Labels | None:
        """The label map of one picture; see `submit` and `collect`."""
        return self.collect(self.submit(image, inference, out, stream))

    def submit(
        self, image: RawImage, inference: Inference, out: RawLabels | None = None, stream: int | None = None
    ) -> Ticket:
        """Queue all work for one picture and return at once.

        ``image`` in host memory has been read when this returns; in device memory it must stay as it is until
        `collect`. For device memory, work waits for what is queued on ``stream`` and on the streams of ``image`` and
        ``out``, and these wait for the label map in ``out``.

        Raises:
            ImageError: the picture does not fit the settings.
            EngineError: memory is short, or the driver or the engine fails. The pipeline stays usable.
        """
        with self._active():
            prepared = self._prepare(image.size, image.order, inference)
            slot = self._take(prepared.plan, image.on_host)
            try:
                self._queue(prepared, slot, image, out, stream)
            except BaseException:
                self._drain()
                self._transfers.give(slot)
                raise
        return Ticket(prepared.plan, image, out, slot)

    def _queue(
        self, prepared: _Prepared, slot: Slot, image: RawImage, out: RawLabels | None, stream: int | None
    ) -> None:
        made = prepared.plan
        source, result = (self._address(prepared, (name, 0)) for name in ("source", "result"))
        self._transfers.bring(image, made, slot, source, _streams(image.stream, stream))
        self._run(prepared)
        self._transfers.deliver(made, slot, result, out, _streams(out.stream if out else None, stream))

    def collect(self, ticket: Ticket) -> Labels | None:
        """Wait for a picture's label map: a new array (H, W), the caller's, or None where that is device memory.

        Raises:
            EngineError: the network's answer has NaN or infinite values, or the driver fails.
        """
        slot, ticket.slot = ticket.slot, None
        if slot is None:
            raise EngineError("the label map of this picture was collected already")
        with self._active():
            try:
                down = self._transfers.wait(slot)
                check_answers(ticket.plan, down[ticket.plan.flags : ticket.plan.result_bytes])
                return labels(ticket.plan, down, ticket.out)
            finally:
                self._transfers.give(slot)

    def coarse(
        self, image: RawImage, inference: Inference, stream: int | None = None
    ) -> list[tuple[Window, NDArray[np.float32]]]:
        """The network's answer (K, h, w) to each window in the order of the queue, to be merged on the host.

        Raises:
            ImageError, EngineError: as `submit` and `collect`.
        """
        with self._active():
            prepared = self._prepare(image.size, image.order, inference)
            slot = self._take(prepared.plan, image.on_host)
            try:
                source = self._address(prepared, ("source", 0))
                self._transfers.bring(image, prepared.plan, slot, source, _streams(image.stream, stream))
                for step in prepared.plan.steps:
                    if step.stage not in ("accumulate", "finish"):
                        self._do(step, prepared)
                answers = self._answers(prepared)
            finally:
                self._drain()
                self._transfers.give(slot)
        return list(zip(prepared.plan.queue.windows, answers, strict=True))

    def wait(self) -> None:
        """Until nothing is queued. Tickets stay to be collected."""
        with self._active():
            self._drain()

    def _answers(self, prepared: _Prepared) -> list[NDArray[np.float32]]:
        """Each window's answer, downloaded and checked."""
        made = prepared.plan
        size = made.buffers["logits"]
        staging = self.device.staging(size + made.result_bytes - made.flags)
        try:
            there, flags = (self._address(prepared, place) for place in (("logits", 0), ("result", made.flags)))
            self.device.copy(staging.ctypes.data, there, size, self.stream)
            self.device.copy(staging.ctypes.data + size, flags, len(staging) - size, self.stream)
            self.device.synchronize(self.stream)
            check_answers(made, staging[size:])
            return split_answers(made, staging[:size], self.model.head.classes)
        finally:
            self.device.release(staging)

    # Steps

    def _run(self, prepared: _Prepared) -> None:
        """All steps: one by one the first time, later as a graph where that can be."""
        if prepared.graph is None and prepared.has_run and not self._no_graphs:
            self._capture(prepared)
        if prepared.graph is not None:
            prepared.graph.launch(self.stream)
            return
        for step in prepared.plan.steps:
            self._do(step, prepared)
        prepared.has_run = True

    def _capture(self, prepared: _Prepared) -> None:
        self._no_graphs = self.engine.no_graph(prepared.plan.shapes, self.stream)
        if self._no_graphs:
            return
        try:
            with self.device.capture(self.stream) as graph:
                for step in prepared.plan.steps:
                    self._do(step, prepared)
        except EngineError as error:
            self._failed_captures += 1
            if self._failed_captures == CAPTURES:
                self._no_graphs = f"capturing failed ({error})"
            return
        self._failed_captures = 0
        prepared.graph = graph

    def steps(self, size: Size, inference: Inference, order: Order = "rgb") -> Iterator[tuple[str, Callable[[], None]]]:
        """(stage, call) of each step for such pictures, for measuring: a call queues the step on `stream`.

        With the device pushed, and right after a picture of this kind: the buffers still hold what it left.
        """
        prepared = self._prepare(size, order, inference)
        for step in prepared.plan.steps:
            yield step.stage, lambda step=step: self._do(step, prepared)  # type: ignore[misc]

    def _do(self, step: Step, prepared: _Prepared) -> None:
        """Queue one step."""
        if isinstance(step, Launch):
            places = {name: self._address(prepared, place) for name, place in step.places.items()}
            self.kernels.launch(step.kernel, self.stream, **places, **step.numbers)
        elif isinstance(step, Infer):
            there, back = self._address(prepared, step.input), self._address(prepared, step.output)
            self.engine.enqueue(there, back, step.shape, self.stream)
        elif isinstance(step, Move):
            to, source = self._address(prepared, step.to), self._address(prepared, step.source)
            self.device.copy(to, source, step.size, self.stream)
        elif isinstance(step, Clear):
            self.device.fill(self._address(prepared, step.place), 0, step.size, self.stream)

    def _address(self, prepared: _Prepared, place: Place) -> int:
        buffer, offset = place
        return self._arena + prepared.offsets[buffer] + offset

    # Memory

    def _take(self, made: Plan, from_host: bool) -> Slot:
        with self._room(made):
            return self._transfers.take(made, from_host)

    def _prepare(self, size: Size, order: Order, inference: Inference) -> _Prepared:
        """The plan for such pictures, with memory for its buffers."""
        key = (size, order, inference)
        found = self._prepared.get(key)
        made = found.plan if found else self.plan(size, inference, order)
        if found is None:
            self._check_answers(made)
        with self._room(made):
            self._reserve(made)
        if found is None:
            found = self._prepared[key] = _Prepared(made)
        self._prepared.move_to_end(key)
        if len(self._prepared) > PLANS:
            self._forget(next(iter(self._prepared)))
        return found

    def _check_answers(self, made: Plan) -> None:
        """Refuse a network whose answers do not have the shape that the label set makes them have."""
        head = self.model.head
        for shape in made.shapes:
            answer = self.engine.output_shape(shape)
            wanted = (shape[0], head.classes, *coarse_size((shape[2], shape[3]), head.stride))
            if answer != wanted:
                raise EngineError(
                    f"the network answers {answer} for an input of {shape}; {head.classes} classes at stride "
                    f"{head.stride} make it {wanted}: the model and the label set do not belong together"
                )

    def _reserve(self, made: Plan) -> None:
        """One block of memory large enough for all buffers; graphs know the addresses of the old one and go."""
        if made.arena_bytes <= self._arena_bytes:
            return
        self._drop_arena()
        self._arena = self.device.allocate(made.arena_bytes)
        self._arena_bytes = made.arena_bytes

    def _drop_arena(self) -> None:
        self._drain()
        for prepared in self._prepared.values():
            if prepared.graph is not None:
                prepared.graph.close()
                prepared.graph = None
        address, self._arena, self._arena_bytes = self._arena, 0, 0
        if address:
            self.device.free(address)

    def _forget(self, key: tuple[Size, Order, Inference]) -> None:
        """Give back what is kept for one kind of picture. A graph that still runs is freed when it is done."""
        prepared = self._prepared.pop(key)
        if prepared.graph is not None:
            prepared.graph.close()
        self._forgotten += 1
        if self._forgotten >= FORGOTTEN:
            self._forgotten = 0
            self._drain()
            self._keep()

    def _keep(self) -> None:
        """Let the engine forget input shapes of no kind of picture that is kept. Nothing may be queued."""
        self.engine.keep(frozenset().union(*(prepared.plan.shapes for prepared in self._prepared.values())))

    @contextlib.contextmanager
    def _room(self, made: Plan) -> Iterator[None]:
        """Failing to allocate, said with what the picture takes, and what is not needed given back."""
        try:
            yield
        except EngineError as error:
            if "out of memory" not in str(error):
                raise
            memory = self.device.memory()
            self._drop_arena()
            self._transfers.trim()
            self._keep()  # what it had prepared for this picture takes memory too
            raise EngineError(_too_large(made, *memory)) from None

    # Its end

    @contextlib.contextmanager
    def _active(self) -> Iterator[None]:
        self._home.check("this pipeline")
        if self._closed:
            raise EngineError("this pipeline was closed; open it again")
        with self.device:
            yield

    def _drain(self) -> None:
        """Until nothing is queued; what fails then has been or will be said by the call that waits for it."""
        with contextlib.suppress(EngineError):
            self._transfers.drain()

    def close(self) -> None:
        """Wait for what is queued and give all memory back; closing twice is harmless.

        In a forked child nothing happens: the device is the parent's.
        """
        if self._closed or not self._home.is_here:
            return
        self._closed = True
        with self.device:
            self._drain()
            for prepared in self._prepared.values():
                if prepared.graph is not None:
                    prepared.graph.close()
            self._prepared.clear()
            self.device.close()

    def __del__(self) -> None:
        if hasattr(self, "_home"):
            with contextlib.suppress(Exception):  # at the end of the process its libraries may be gone already
                self.close()


def _streams(*given: int | None) -> list[int]:
    """The streams given, each once."""
    return list(dict.fromkeys(stream for stream in given if stream is not None))


def _too_large(made: Plan, free: int, total: int) -> str:
    """What a picture takes, what there is, and what helps."""
    sizes = (made.bytes, made.buffers["logits"], free, total)
    needed, answers, left, whole = (f"{size / _MIB:.1f}" for size in sizes)
    return (
        f"not enough GPU memory for a picture of {made.size[0]}x{made.size[1]} ({made.inference.describe()}): it takes "
        f"{needed} MiB beside the engine, {answers} of them for the answers to {len(made.queue.windows)} windows, and "
        f"{left} of {whole} MiB are free; use fewer scales or a smaller picture, or free GPU memory"
    )
