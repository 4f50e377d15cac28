"""A plan and its steps as plain data: kernels, engine runs and copies, with offsets in named buffers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda.kernel_specs import KernelSpec
from isnet_trt.cuda.launch_grid import aligned
from isnet_trt.cuda.protocols import Launcher
from isnet_trt.merging import windows
from isnet_trt.pictures.formats import PixelFormat, frame_bytes
from isnet_trt.settings import Inference, Size

ALIGNMENT = 256
"""Of every buffer, and of what an engine reads and writes (TensorRT, IExecutionContext::setTensorAddress)."""

BufferOffset = tuple[str, int]
"""The name of a buffer, and an offset in bytes."""


@dataclass(frozen=True)
class Launch:
    """A kernel and its arguments: a buffer offset for each pointer, a number for each scalar.

    Raises:
        TypeError: an argument is missing, unknown, or a pointer where the kernel takes a number or the reverse.
    """

    stage: str
    spec: KernelSpec
    pointers: Mapping[str, BufferOffset]
    scalars: Mapping[str, int | float]

    def __post_init__(self) -> None:
        # A misspelt argument shows when the plan is made, without a GPU, not at the launch.
        self.spec.check([*self.pointers, *self.scalars])
        if wrong := sorted(self.spec.pointers ^ set(self.pointers)):
            raise TypeError(f"kernel {self.kernel}: {', '.join(wrong)} is a number for a pointer or the reverse")

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return self.spec.name

    def queue(self, kernels: Launcher, stream: int, addresses: Mapping[str, int]) -> None:
        """Launch the kernel on ``stream``, or that of an earlier bundle; ``addresses`` are those of the pointers."""
        name = self.spec.available(kernels)
        later = self.spec.later if name != self.kernel else ()
        scalars = {argument: value for argument, value in self.scalars.items() if argument not in later}
        kernels.launch(name, stream, **addresses, **scalars)


@dataclass(frozen=True)
class Infer:
    """The engine: ``shape`` (B, 3, h, w) float32 at ``input`` to (B, K, h / s, w / s) `Plan.logits` at ``output``."""

    shape: tuple[int, int, int, int]
    input: BufferOffset
    output: BufferOffset
    stage: str = "engine"


@dataclass(frozen=True)
class Copy:
    """A copy on the GPU, of logits that the engine could not write to where they belong."""

    target: BufferOffset
    source: BufferOffset
    size: int
    stage: str = "engine"


@dataclass(frozen=True)
class Clear:
    """Bytes set to 0."""

    target: BufferOffset
    size: int
    stage: str = "finite"


Step = Launch | Infer | Copy | Clear


@dataclass(frozen=True)
class Region:
    """The logits of all windows of one size, one slot after the other, in the buffer "logits".

    Attributes:
        window: (height, width) of the windows.
        coarse: (height, width) of their logits.
        slots: number of windows, unused ones in full batches included.
        offset: bytes from the beginning of the buffer.
        batch: most windows that the engine takes at once.
    """

    window: Size
    coarse: Size
    slots: int
    offset: int
    batch: int


@dataclass(frozen=True)
class Plan:
    """All work for the images of one size and pixel format.

    Attributes:
        size, pixel_format: the source image's.
        labels: the type of the labels, uint8 or uint16.
        steps: in order; each needs the ones before it.
        buffers: bytes of every buffer, by name. ``source``, the image without padding, and ``tables`` come first: they
            are uploaded together. ``result`` holds the label map without padding and from ``flags`` on an int32 per
            region, not 0 where logits have NaN or infinity.
        tables: contents of the buffer of that name.
        regions: of the buffer "logits".
        slots: (region, slot) of each window of ``queue``.
        queue: the windows, as isnet_trt.merging.windows plans them.
        logits: the type of the elements of the buffer "logits".
    """

    size: Size
    pixel_format: PixelFormat
    inference: Inference
    labels: type[np.unsignedinteger]
    steps: tuple[Step, ...]
    buffers: Mapping[str, int]
    tables: bytes
    regions: tuple[Region, ...]
    queue: windows.Plan
    slots: tuple[tuple[int, int], ...]
    flags: int
    logits: str

    @property
    def source_bytes(self) -> int:
        """Of the image, without padding."""
        return frame_bytes(self.size, self.pixel_format)

    @property
    def tables_offset(self) -> int:
        """Where the tables begin in the upload, in bytes."""
        # Also the distance of the buffers `source` and `tables` in the arena: one copy fills both.
        return aligned(self.source_bytes, ALIGNMENT)

    @property
    def upload_bytes(self) -> int:
        """Of the image and the tables."""
        return self.tables_offset + len(self.tables)

    @property
    def label_bytes(self) -> int:
        """Of the label map, without padding."""
        return self.size[0] * self.size[1] * np.dtype(self.labels).itemsize

    @property
    def result_bytes(self) -> int:
        """Of the label map and the flags."""
        return self.buffers["result"]

    @property
    def arena_bytes(self) -> int:
        """Of all buffers, each padded to a multiple of `ALIGNMENT`."""
        return sum(aligned(size, ALIGNMENT) for size in self.buffers.values())

    @functools.cached_property
    def offsets(self) -> dict[str, int]:
        """Where each buffer lies in one block of memory."""
        ends = itertools.accumulate((aligned(size, ALIGNMENT) for size in self.buffers.values()), initial=0)
        # Not strict: the last end is that of the block and belongs to no buffer.
        return dict(zip(self.buffers, ends, strict=False))

    @property
    def bytes(self) -> int:
        """Device memory that the plan takes while it runs, without the engine's own: its buffers, and the upload and
        the result of one image in flight."""
        # A slot holds upload and result once more, so that copies of one image overlap with the work on another.
        return self.arena_bytes + aligned(self.upload_bytes, ALIGNMENT) + aligned(self.result_bytes, ALIGNMENT)

    @property
    def shapes(self) -> frozenset[tuple[int, int, int, int]]:
        """Input shapes that the engine sees."""
        return frozenset(step.shape for step in self.steps if isinstance(step, Infer))


class Tables:
    """Constant arrays for one buffer, one after the other; equal arrays are stored once."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._offsets: dict[bytes, int] = {}

    def add(self, array: NDArray[Any]) -> BufferOffset:
        """Store ``array`` unless an equal array is stored already; return where it lies."""
        # The bytes alone are the key: kernels only read tables, so arrays of different types may share them.
        content = array.tobytes()
        if content not in self._offsets:
            # Windows repeat from band to band, and value tables from batch to batch: each is uploaded once.
            self._offsets[content] = len(self._data)
            # Kernels take pointers that are multiples of 16.
            self._data += content + b"\0" * (aligned(len(content), 16) - len(content))
        return "tables", self._offsets[content]

    @property
    def data(self) -> bytes:
        """The contents of the buffer."""
        return bytes(self._data)
