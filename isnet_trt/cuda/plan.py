"""What the GPU does for a picture, planned before it: steps, buffers and tables as plain data.

A plan depends on the picture's size and layout and on the settings, not on its pixels or on any address: it can be
made, checked and measured anywhere, and one plan serves every picture of that size. `isnet_trt.cuda.pipeline` puts
addresses to it.

Stages (kernels/README.md): resize if the test size differs; for every batch of windows, filled across all scales and
mirrored passes, gather and the engine; `finite` over all answers; then the merge, in whole mode at once, in slide mode
in bands of rows, so that classes x height x width never exists. The coarse answers of all windows stay on the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.architectures import PORTABLE
from isnet_trt.cuda.element_types import FLOAT
from isnet_trt.cuda.kernel_specs import KernelSpec
from isnet_trt.cuda.steps import (
    ALIGNMENT,
    Clear,
    Infer,
    Launch,
    Move,
    Place,
    Plan,
    Region,
    Step,
    Tables,
    aligned,
)
from isnet_trt.merging import windows
from isnet_trt.merging.geometry import Window, coarse_size
from isnet_trt.merging.merge import Head, label_type
from isnet_trt.merging.resample import Span, positions
from isnet_trt.pictures.formats import Order
from isnet_trt.pictures.preprocess import test_size, value_tables
from isnet_trt.settings import Inference, Preprocess, Size

BAND_BYTES = 64 << 20
"""Most bytes of score volumes at a time, unless a single row of the label map needs more."""


@dataclass(frozen=True)
class Model:
    """What a plan needs to know about the network: its head, its preprocessing, and how many windows it sees at once.

    With ``full_batches`` it sees exactly ``batch`` of them, otherwise at most so many.
    """

    head: Head
    preprocess: Preprocess
    batch: int = 1
    full_batches: bool = False
    band_bytes: int = BAND_BYTES


def plan(size: Size, inference: Inference, model: Model, order: Order = "rgb") -> Plan:
    """The work for pictures of ``size`` (height, width) with channels in ``order``.

    Raises:
        ImageError: the picture is too small or too elongated for the settings.
    """
    return _Planner(size, inference, model, order).plan()


class _Planner:
    """Steps and buffers of one plan, as they are found."""

    def __init__(self, size: Size, inference: Inference, model: Model, order: Order) -> None:
        self.size, self.inference, self.model, self.order = size, inference, model, order
        self.head = model.head
        self.picture = test_size(size, model.preprocess)
        self.queue = windows.plan(self.picture, inference)
        self.tables = Tables()
        self.buffers: dict[str, int] = {}
        self.steps: list[Step] = []
        self.regions: list[Region] = []
        self.slot_of: dict[int, tuple[int, int]] = {}
        self.flags = aligned(size[0] * size[1] * np.dtype(label_type(self.head.classes)).itemsize, 16)

    def plan(self) -> Plan:
        """All of it."""
        source = self._resize()
        groups = self._place_windows()
        for group, region, slot in groups:
            self._run_windows(source, group, region, slot)
        self._look_through()
        self._merge()
        self.buffers["tables"] = len(self.tables.data)
        self.buffers["result"] = self.flags + FLOAT * len(self.regions)
        slots = tuple(self.slot_of[id(window)] for window in self.queue.windows)
        return Plan(
            self.size, self.order, self.inference, label_type(self.head.classes), tuple(self.steps), self.buffers,
            self.tables.data, tuple(self.regions), self.queue, slots, self.flags,
        )  # fmt: skip

    # Pictures

    def _resize(self) -> tuple[Place, dict[str, int]]:
        """Where the picture is that windows are cut from, and its layout as `gather` takes it."""
        pixel, bgr = len(self.order), int(self.order.startswith("bgr"))
        layout = {"pitch": self.size[1] * pixel, "pixel": pixel, "bgr": bgr}
        self.buffers |= {"source": self.size[0] * layout["pitch"], "tables": 0}
        if self.picture == self.size:
            return ("source", 0), layout
        height, width = self.picture
        self.buffers["picture"] = 3 * height * width
        numbers = {"source_height": self.size[0], "source_width": self.size[1], "height": height, "width": width}
        pointers = {"source": ("source", 0), "picture": ("picture", 0)}
        self._launch("resize", kernel_specs.resize(), pointers, layout | numbers)
        return ("picture", 0), {"pitch": 3 * width, "pixel": 3, "bgr": 0}

    def _launch(
        self, stage: str, spec: KernelSpec, pointers: dict[str, Place], scalars: Mapping[str, int | float]
    ) -> None:
        self.steps.append(Launch(stage, spec, pointers, dict(scalars)))

    # Windows

    def _place_windows(self) -> list[tuple[list[Window], Region, int]]:
        """The queue in batches, each with its region and first slot. Batches of one size are filled across passes."""
        groups: list[tuple[list[Window], Region, int]] = []
        offset = 0
        for window in dict.fromkeys(window.size for window in self.queue.windows):
            mine = [one for one in self.queue.windows if one.size == window]
            made = list(windows.batches(mine, self.model.batch))
            coarse = coarse_size(window, self.head.stride)
            shown = self.model.batch if self.model.full_batches else max(map(len, made))
            slots = sum(self._shown(group) for group in made)
            region = Region(window, coarse, slots, offset, shown)
            self.regions.append(region)
            slot = 0
            for group in made:
                groups.append((group, region, slot))
                for i, one in enumerate(group):
                    self.slot_of[id(one)] = len(self.regions) - 1, slot + i
                slot += self._shown(group)
            offset += aligned(slots * self._answer(coarse))
        self.buffers["logits"] = offset
        return groups

    def _shown(self, group: list[Window]) -> int:
        """Windows that the engine sees for ``group``, used or not."""
        return self.model.batch if self.model.full_batches else len(group)

    def _answer(self, coarse: Size) -> int:
        """Bytes of the answer to one window."""
        return FLOAT * self.head.classes * coarse[0] * coarse[1]

    def _run_windows(
        self, source: tuple[Place, dict[str, int]], group: list[Window], region: Region, slot: int
    ) -> None:
        """Gather a batch and show it to the engine."""
        picture, layout = source
        batch, (height, width) = self._shown(group), region.window
        table, steps = np.zeros((batch, 4), np.int32), np.ones(batch, np.float32)
        for i, window in enumerate(group):
            table[i] = window.top, window.left, window.of.mirrored, 1
            steps[i] = np.float32(1 / window.of.scale)
        self._needs("input", FLOAT * batch * 3 * height * width)
        preprocess = self.model.preprocess
        places = {
            "picture": picture, "table": self.tables.add(value_tables(preprocess)), "windows": self.tables.add(table),
            "steps": self.tables.add(steps), "out": ("input", 0),
        }  # fmt: skip
        numbers = {"picture_height": self.picture[0], "picture_width": self.picture[1], "batch": batch}
        numbers |= layout | {"height": height, "width": width}
        self._launch("gather", kernel_specs.gather("fp32"), places, numbers)
        self._infer((batch, 3, height, width), region, slot)

    def _needs(self, buffer: str, size: int) -> None:
        self.buffers[buffer] = max(self.buffers.get(buffer, 0), size)

    def _infer(self, shape: tuple[int, int, int, int], region: Region, slot: int) -> None:
        """The engine writes to the region where the address is aligned, else beside it."""
        size = self._answer(region.coarse)
        place = ("logits", region.offset + slot * size)
        direct = place[1] % ALIGNMENT == 0
        self.steps.append(Infer(shape, ("input", 0), place if direct else ("output", 0)))
        if not direct:
            self._needs("output", shape[0] * size)
            self.steps.append(Move(place, ("output", 0), shape[0] * size))

    def _look_through(self) -> None:
        """A flag per region."""
        self.steps.append(Clear(("result", self.flags), FLOAT * len(self.regions)))
        for i, region in enumerate(self.regions):
            count = region.slots * self._answer(region.coarse) // FLOAT
            places = {"values": ("logits", region.offset), "flag": ("result", self.flags)}
            self._launch("finite", kernel_specs.finite("fp32"), places, {"at": i, "count": count})

    # Merge

    def _merge(self) -> None:
        inference = self.inference
        scores = inference.flip or inference.softmax_before_resize
        if inference.mode == "slide":
            self._slide()
        elif scores:
            self._whole_scores()
        elif len(inference.scales) == 1:
            self._whole_once()
        else:
            volumes = [self._answer_as_volume(mine[0]) for mine in self._by_scale()]
            self._finish(("logits", 0), volumes, (0, self.size[0]))

    def _answer_as_volume(self, window: Window) -> _Volume:
        """The answer to a whole pass where the engine left it."""
        size = self._coarse(window)
        return _Volume(size, self._logits_of(window), (0, size[0]))

    def _coarse(self, window: Window) -> Size:
        return coarse_size(window.size, self.head.stride)

    def _logits_of(self, window: Window) -> int:
        """Where the answer to ``window`` begins in the buffer "logits", in elements."""
        index, slot = self.slot_of[id(window)]
        region = self.regions[index]
        return (region.offset + slot * self._answer(region.coarse)) // FLOAT

    def _whole_once(self) -> None:
        """One whole pass: enlarge and take the largest in one kernel."""
        (window,) = self.queue.windows
        height, width = self._coarse(window)
        steps = _ratios((height, width), self.size)
        numbers = {"pitch": self.size[1], "classes": self.head.classes, "coarse_height": height, "coarse_width": width}
        numbers |= {"height": self.size[0], "width": self.size[1]}
        places = {"logits": ("logits", FLOAT * self._logits_of(window)), "labels": ("result", 0)}
        kernel = kernel_specs.upsample_argmax("fp32", self.head.classes)
        self._launch("finish", kernel, places, numbers | {"step_y": steps[0], "step_x": steps[1]})

    def _whole_scores(self) -> None:
        """Whole passes whose scores are softmaxed or mirrored on the coarse grid, a volume for each scale."""
        volumes, end = [], 0
        for mine in self._by_scale():
            size = self._coarse(mine[0])
            volumes.append(_Volume(size, end, (0, size[0])))
            self._accumulate(mine, size, size, volumes[-1], whole=True)
            end += aligned(volumes[-1].values(self.head.classes), ALIGNMENT // FLOAT)
        self._needs("volumes", FLOAT * end)
        self._finish(("volumes", 0), volumes, (0, self.size[0]))

    def _slide(self) -> None:
        """Band by band: the rows of every scale that the band needs, then its labels."""
        groups = self._by_scale()
        sizes = [mine[0].of.size for mine in groups]
        for band in bands(sizes, self.size, self.head.classes, self.model.band_bytes):
            volumes, end = [], 0
            for mine, size in zip(groups, sizes, strict=True):
                volume = _Volume(size, end, span(size[0], self.size[0], band))
                near = [w for w in mine if w.top < volume.rows[1] and w.bottom > volume.rows[0]]
                self._accumulate(near, mine[0].size, size, volume, whole=False)
                volumes.append(volume)
                end += aligned(volume.values(self.head.classes), ALIGNMENT // FLOAT)
            self._needs("volumes", FLOAT * end)
            self._finish(("volumes", 0), volumes, band)

    def _by_scale(self) -> list[list[Window]]:
        """The windows of the passes of each scale, in the order of the scales."""
        shows = 1 + self.inference.flip
        passes = range(0, len(self.queue.passes), shows)
        return [[w for w in self.queue.windows if first <= w.of.index < first + shows] for first in passes]

    def _accumulate(self, shown: list[Window], window: Size, size: Size, volume: _Volume, whole: bool) -> None:
        """Lay the answers to ``shown`` over each other into rows of a volume over (height, width) = ``size``.

        ``window`` is the size at which they are laid there: their own, or in whole mode that of the coarse grid.
        """
        ordered = sorted(shown, key=lambda w: w.of.mirrored)
        index, _ = self.slot_of[id(ordered[0])]
        region = self.regions[index]
        table = np.zeros((len(ordered), 4), np.int32)
        for i, one in enumerate(ordered):
            top, left = (0, 0) if whole else (one.top, one.left)
            table[i] = self.slot_of[id(one)][1], top, left, one.of.mirrored
        steps = _ratios(region.coarse, window)
        places = {
            "logits": ("logits", region.offset), "windows": self.tables.add(table),
            "swap": self.tables.add(swap(self.head)), "volume": ("volumes", FLOAT * volume.begin),
        }  # fmt: skip
        numbers = {
            "classes": self.head.classes, "coarse_height": region.coarse[0], "coarse_width": region.coarse[1],
            "window_height": window[0], "window_width": window[1], "step_y": steps[0], "step_x": steps[1],
            "plain": sum(not w.of.mirrored for w in ordered), "count": len(ordered), "first_row": volume.rows[0],
            "rows": volume.rows[1] - volume.rows[0], "width": size[1],
            "softmax": int(self.inference.softmax_before_resize),
        }  # fmt: skip
        self._launch("accumulate", kernel_specs.accumulate("fp32", self.head.classes), places, numbers)

    def _finish(self, base: Place, volumes: Sequence[_Volume], band: Span) -> None:
        """Labels of the rows ``band`` from the volumes of all scales."""
        offsets = np.array([volume.begin for volume in volumes], np.int64)
        sizes = np.array([(v.rows[0], v.rows[1] - v.rows[0], *v.size) for v in volumes], np.int32)
        steps = np.array([_ratios(volume.size, self.size) for volume in volumes], np.float32)
        places = {
            "volumes": base, "offsets": self.tables.add(offsets), "sizes": self.tables.add(sizes),
            "steps": self.tables.add(steps), "labels": ("result", 0),
        }  # fmt: skip
        numbers = {
            "pitch": self.size[1], "passes": float(len(self.queue.passes)), "count": len(volumes),
            "classes": self.head.classes, "first_row": band[0], "rows": band[1] - band[0], "width": self.size[1],
        }  # fmt: skip
        self._launch("finish", kernel_specs.finish("fp32", self.head.classes), places, numbers)


@dataclass(frozen=True)
class _Volume:
    """Rows ``rows`` of the scores of one scale, over (height, width) = ``size``, from element ``begin`` on."""

    size: Size
    begin: int
    rows: Span = field(default=(0, 0))

    def values(self, classes: int) -> int:
        """Number of scores."""
        return classes * (self.rows[1] - self.rows[0]) * self.size[1]


def _ratios(size: Size, output: Size) -> tuple[float, float]:
    """Input samples per output sample, rounded to float32 where PyTorch rounds."""
    rows, columns = (float(np.float32(a) / np.float32(b)) for a, b in zip(size, output, strict=True))
    return rows, columns


def swap(head: Head) -> NDArray[np.int32]:
    """The class that each one is in a mirrored picture, (K,)."""
    order = np.arange(head.classes, dtype=np.int32)
    for a, b in head.pairs:
        order[[a, b]] = order[[b, a]]
    return order


def span(n_in: int, n_out: int, rows: Span) -> Span:
    """The input rows that output rows ``rows`` of ``n_out`` are made from."""
    low, high, _ = positions(n_in, np.float32(n_in) / np.float32(n_out), *rows)
    return int(low[0]), int(high[-1]) + 1


def bands(sizes: Sequence[Size], output: Size, classes: int, most: int) -> Iterator[Span]:
    """Rows of the output in bands whose score volumes over all ``sizes`` take at most ``most`` bytes, if a row can."""
    height = output[0]
    row = FLOAT * classes * sum(h * w / height for h, w in sizes)
    edges = FLOAT * classes * sum(2 * w for _, w in sizes)  # a band needs parts of rows at both ends
    rows = min(height, max(1, int((most - edges) / row)))
    rows = -(-height // -(-height // rows))  # of even height
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


def kernels(plan: Plan) -> frozenset[str]:
    """Names of the kernels that a plan launches."""
    return frozenset(step.kernel for step in plan.steps if isinstance(step, Launch))


def kernels_of(classes: int) -> frozenset[str]:
    """Names of the kernels that plans for a model of ``classes`` classes may launch."""
    specs = kernel_specs.bundle_kernels(PORTABLE, ["fp32"], classes, context=())
    return frozenset(spec.name for spec in specs)
