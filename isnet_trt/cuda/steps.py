"""The steps of a plan as plain data: kernels, engine runs and copies, with places in named buffers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda.element_types import FLOAT
from isnet_trt.cuda.kernel_specs import KernelSpec
from isnet_trt.merging import windows
from isnet_trt.pictures.formats import Order
from isnet_trt.settings import Inference, Size

ALIGNMENT = 256
"""Of every buffer, and of what an engine reads and writes (TensorRT, IExecutionContext::setTensorAddress)."""

Place = tuple[str, int]
"""A buffer and an offset in bytes."""


@dataclass(frozen=True)
class Launch:
    """A kernel and its arguments: a place for each pointer, a number for each scalar.

    Raises:
        TypeError: an argument is missing, unknown, or a pointer where the kernel takes a number or the reverse.
    """

    stage: str
    spec: KernelSpec
    pointers: Mapping[str, Place]
    scalars: Mapping[str, int | float]

    def __post_init__(self) -> None:
        self.spec.check([*self.pointers, *self.scalars])
        if wrong := sorted(self.spec.pointers ^ set(self.pointers)):
            raise TypeError(f"kernel {self.kernel}: {', '.join(wrong)} is a number for a pointer or the reverse")

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return self.spec.name


@dataclass(frozen=True)
class Infer:
    """The engine: ``shape`` (B, 3, h, w) at ``input`` to (B, K, h / s, w / s) at ``output``, both float32."""

    shape: tuple[int, int, int, int]
    input: Place
    output: Place
    stage: str = "engine"


@dataclass(frozen=True)
class Move:
    """A copy on the GPU, of an answer that could not be written to where it belongs."""

    to: Place
    source: Place
    size: int
    stage: str = "engine"


@dataclass(frozen=True)
class Clear:
    """Bytes set to 0."""

    place: Place
    size: int
    stage: str = "finite"


Step = Launch | Infer | Move | Clear


@dataclass(frozen=True)
class Region:
    """The answers to all windows of one size: ``slots`` of them, one after the other from ``offset`` bytes on."""

    window: Size
    coarse: Size
    slots: int
    offset: int
    batch: int


@dataclass(frozen=True)
class Plan:
    """All work for one kind of picture.

    Attributes:
        size, order: the source picture's.
        labels: the type of the labels, uint8 or uint16.
        steps: in order; each needs the ones before it.
        buffers: bytes of every buffer, by name. ``source``, the picture without padding, and ``tables`` come first and
            go up together. ``result`` holds the label map without padding and from ``flags`` on an int32 per region,
            not 0 where an answer has NaN or infinity.
        tables: what belongs into the buffer of that name.
        regions: the answers in the buffer "logits".
        slots: (region, slot) of each window of ``queue``.
        queue: the windows, as isnet_trt.merging.windows plans them.
    """

    size: Size
    order: Order
    inference: Inference
    labels: type[np.unsignedinteger]
    steps: tuple[Step, ...]
    buffers: Mapping[str, int]
    tables: bytes
    regions: tuple[Region, ...]
    queue: windows.Plan
    slots: tuple[tuple[int, int], ...]
    flags: int

    @property
    def source_bytes(self) -> int:
        """Of the picture, without padding."""
        return self.size[0] * self.size[1] * len(self.order)

    @property
    def tables_at(self) -> int:
        """Where the tables begin in what goes up."""
        return aligned(self.source_bytes)

    @property
    def upload_bytes(self) -> int:
        """Of the picture and the tables."""
        return self.tables_at + len(self.tables)

    @property
    def label_bytes(self) -> int:
        """Of the label map, without padding."""
        return self.size[0] * self.size[1] * np.dtype(self.labels).itemsize

    @property
    def result_bytes(self) -> int:
        """Of the label map and the flags."""
        return self.flags + FLOAT * len(self.regions)

    @property
    def arena_bytes(self) -> int:
        """Of all buffers."""
        return sum(map(aligned, self.buffers.values()))

    @property
    def offsets(self) -> dict[str, int]:
        """Where each buffer lies in one block of memory."""
        ends = itertools.accumulate(map(aligned, self.buffers.values()), initial=0)
        return dict(zip(self.buffers, ends, strict=False))

    @property
    def bytes(self) -> int:
        """Device memory that the plan takes while it runs, without the engine's own: its buffers, and what one picture
        on its way holds."""
        return self.arena_bytes + aligned(self.upload_bytes) + aligned(self.result_bytes)

    @property
    def shapes(self) -> frozenset[tuple[int, int, int, int]]:
        """Input shapes that the engine sees."""
        return frozenset(step.shape for step in self.steps if isinstance(step, Infer))


def aligned(size: int, to: int = ALIGNMENT) -> int:
    """``size`` rounded up to a multiple of ``to``."""
    return -(-size // to) * to


class Tables:
    """Constant arrays, each once, one after the other in what will be one buffer."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._known: dict[bytes, int] = {}

    def add(self, array: NDArray[Any]) -> Place:
        """Where the values of ``array`` will lie."""
        content = array.tobytes()
        if content not in self._known:
            self._known[content] = len(self._data)
            self._data += content + b"\0" * (aligned(len(content), 16) - len(content))
        return "tables", self._known[content]

    @property
    def data(self) -> bytes:
        """All of them."""
        return bytes(self._data)
