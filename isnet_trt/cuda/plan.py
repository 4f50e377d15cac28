"""The plan of what the GPU does for an image: steps, buffers and tables as plain data.

A plan depends on the image's size and channel order and on the settings, not on its pixels or on any address: it can be
computed and checked without a GPU, and serves every image of that size. `isnet_trt.cuda.pipeline` adds the addresses.

Stages (kernels/README.md): resize if the test size differs; gather and the engine for every batch of windows, which are
filled across all scales and mirrored passes; `finite` over all logits; then the merge, in whole mode at once, in slide
mode in bands of rows, so that classes x height x width never exists. The low-resolution logits of all windows stay on
the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.element_types import ELEMENT_TYPES, FLOAT
from isnet_trt.cuda.kernel_specs import KernelSpec, class_parts, rows_per_thread
from isnet_trt.cuda.launch_grid import aligned, cdiv
from isnet_trt.cuda.plan_steps import ALIGNMENT, BufferOffset, Clear, Copy, Infer, Launch, Plan, Region, Step, Tables
from isnet_trt.merging import windows
from isnet_trt.merging.geometry import Window, coarse_size, padded_size
from isnet_trt.merging.merge import Head, label_type
from isnet_trt.merging.resample import Span, span
from isnet_trt.pictures.formats import PixelFormat, YuvFormat, frame_bytes
from isnet_trt.pictures.preprocess import padding_values, test_size, value_tables
from isnet_trt.settings import Inference, NetworkFacts, Preprocess, Size

BAND_BYTES = 64 << 20
"""Most bytes of score volumes at a time, unless a single row of the label map needs more."""


@dataclass(frozen=True)
class Model:
    """What a plan needs to know about the network: its head, its preprocessing, and its batch.

    With ``full_batches`` the engine takes exactly ``batch`` windows at a time, otherwise at most so many. ``logits`` is
    the type of the elements that it gives, one of `isnet_trt.cuda.element_types.FLOATS`.
    """

    head: Head
    preprocess: Preprocess
    batch: int = 1
    full_batches: bool = False
    band_bytes: int = BAND_BYTES
    logits: str = "fp32"

    @property
    def padding(self) -> windows.Padding:
        """How inputs are padded."""
        return windows.Padding(self.head.network, padding_values(self.preprocess, self.head.network))


def plan(size: Size, inference: Inference, model: Model, pixel_format: PixelFormat = "rgb") -> Plan:
    """Return the plan for images of ``size`` (height, width) in ``pixel_format``.

    Raises:
        ImageError: the image is too small or too elongated for the settings.
    """
    return _Planner(size, inference, model, pixel_format).plan()


@dataclass(frozen=True)
class _Batch:
    """Windows that the engine takes at once; their logits begin at slot ``slot`` of ``region``."""

    windows: list[Window]
    region: Region
    slot: int


@dataclass(frozen=True)
class _Volume:
    """Rows ``rows`` of the scores of one scale, whose full size is ``size``, from element ``begin`` of a buffer on."""

    size: Size
    begin: int
    rows: Span


class _Planner:
    """Collects the steps, buffers and tables of one plan."""

    def __init__(self, size: Size, inference: Inference, model: Model, pixel_format: PixelFormat) -> None:
        self.size, self.inference, self.model, self.pixel_format = size, inference, model, pixel_format
        self.head = model.head
        self.logits, self.logit = model.logits, ELEMENT_TYPES[model.logits].size
        self.bgr = model.preprocess.channel_order == "bgr"
        self.softmax = self.head.softmax(inference)
        self.test_size = test_size(size, model.preprocess)
        # Scales apply to the test size: windows are cut from the resized image, as on the host.
        self.queue = windows.plan(self.test_size, inference)
        self.tables = Tables()
        self.buffers: dict[str, int] = {}
        self.steps: list[Step] = []
        self.regions: list[Region] = []
        # Windows of different passes may be equal, so they are told apart by identity.
        self.slot_of: dict[int, tuple[int, int]] = {}
        # The kernel `finite` takes a pointer to the flags, which must be a multiple of 16.
        self.flags = aligned(size[0] * size[1] * np.dtype(label_type(self.head.classes)).itemsize, 16)

    def plan(self) -> Plan:
        """Return the plan."""
        source, layout = self._resize()
        # Gather and engine alternate: the steps run in order on one stream, so one input buffer serves all batches.
        for batch in self._assign_slots():
            self._gather(source, layout, batch)
            self._infer(batch)
        # After all batches: one launch per window size instead of one per batch.
        self._check_finite()
        self._merge()
        self.buffers["tables"] = len(self.tables.data)
        self.buffers["result"] = self.flags + FLOAT * len(self.regions)
        # In the order of the queue, in which the host's merge takes downloaded logits.
        slots = tuple(self.slot_of[id(window)] for window in self.queue.windows)
        return Plan(
            self.size, self.pixel_format, self.inference, label_type(self.head.classes), tuple(self.steps),
            self.buffers, self.tables.data, tuple(self.regions), self.queue, slots, self.flags,
            self.logits,
        )  # fmt: skip

    def _launch(self, stage: str, spec: KernelSpec, **arguments: BufferOffset | int | float) -> None:
        pointers = {name: value for name, value in arguments.items() if isinstance(value, tuple)}
        scalars = {name: value for name, value in arguments.items() if not isinstance(value, tuple)}
        self.steps.append(Launch(stage, spec, pointers, scalars))

    def _reserve(self, buffer: str, size: int) -> None:
        """Make a buffer that several steps use one after the other large enough for each."""
        self.buffers[buffer] = max(self.buffers.get(buffer, 0), size)

    # Windows

    def _resize(self) -> tuple[BufferOffset, dict[str, int]]:
        """Plan the resize; return the image that windows are cut from, and its layout as `gather` takes it."""
        # Source and tables are uploaded together, so they come first; the tables' size is known in the end.
        self.buffers |= {"source": frame_bytes(self.size, self.pixel_format), "tables": 0}
        if isinstance(self.pixel_format, YuvFormat):
            self._yuv_resize(self.pixel_format)
            return self._rgb()
        pixel, bgr = len(self.pixel_format), self.pixel_format.startswith("bgr")
        # The upload drops the caller's row padding: in the buffer a row is exactly its pixels.
        layout = {"pitch": self.size[1] * pixel, "pixel": pixel, "bgr": int(bgr)}
        if self.test_size == self.size:
            # `gather` writes the network's channel order: it reverses the channels of a picture that has the other.
            return ("source", 0), layout | {"bgr": int(bgr != self.bgr)}
        height, width = self.test_size
        self.buffers["picture"] = 3 * height * width
        self._launch(
            "resize", kernel_specs.resize(), source=("source", 0), picture=("picture", 0), **layout,
            source_height=self.size[0], source_width=self.size[1], height=height, width=width,
        )  # fmt: skip
        return self._rgb()

    def _rgb(self) -> tuple[BufferOffset, dict[str, int]]:
        """The image at the test size: RGB without alpha, whatever the format of the source."""
        return ("picture", 0), {"pitch": 3 * self.test_size[1], "pixel": 3, "bgr": int(self.bgr)}

    def _yuv_resize(self, yuv: YuvFormat) -> None:
        """Plan the conversion to RGB with the resize in it; at the same size it is the conversion alone."""
        height, width = self.test_size
        self.buffers["picture"] = 3 * height * width
        rows, row = self.size
        # The upload puts the planes one behind the other, without padding.
        first, second = rows * row, rows * row + (1 if yuv.chroma == "nv12" else rows * row // 4)
        names = ("offset", "yy", "rv", "gu", "gv", "bu")
        self._launch(
            "resize", kernel_specs.yuv_resize(), source=("source", 0), picture=("picture", 0), pitch=row, u=first,
            v=second, chroma_pitch=yuv.shapes(self.size)[1][1], chroma_step=2 if yuv.chroma == "nv12" else 1,
            **dict(zip(names, yuv.coefficients(), strict=True)), source_height=rows, source_width=row, height=height,
            width=width,
        )  # fmt: skip

    def _assign_slots(self) -> list[_Batch]:
        """Divide the queue into batches, filled across passes, and give every window a slot of a region."""
        batches: list[_Batch] = []
        offset = 0
        # An engine run has one input size, so windows of each size have batches and a region of their own.
        for size in dict.fromkeys(window.size for window in self.queue.windows):
            groups = list(windows.batches([w for w in self.queue.windows if w.size == size], self.model.batch))
            lengths = [self._batch_size(group) for group in groups]
            # Unused slots of full batches need memory too: the engine writes logits for them.
            coarse = coarse_size(self._input_size(size), self.head.stride)
            region = Region(size, coarse, sum(lengths), offset, max(lengths))
            slot = 0
            for group, length in zip(groups, lengths, strict=True):
                batches.append(_Batch(group, region, slot))
                self.slot_of |= {id(window): (len(self.regions), slot + i) for i, window in enumerate(group)}
                slot += length
            self.regions.append(region)
            # A region begins aligned, so that the engine can write at least its first batch in place.
            offset += aligned(region.slots * self._logits_bytes(region.coarse), ALIGNMENT)
        self.buffers["logits"] = offset
        return batches

    def _input_size(self, window: Size) -> Size:
        """Size of the engine's input for a window."""
        return padded_size(window, self.head.network)

    def _batch_size(self, group: Sequence[Window]) -> int:
        """Images that the engine takes for ``group``, unused ones included."""
        return self.model.batch if self.model.full_batches else len(group)

    def _logits_bytes(self, coarse: Size) -> int:
        """Bytes of the logits of one window."""
        return self.logit * self.head.classes * coarse[0] * coarse[1]

    def _gather(self, source: BufferOffset, layout: Mapping[str, int], batch: _Batch) -> None:
        """Cut a batch of windows from the image into the engine's input."""
        count, window_size = self._batch_size(batch.windows), batch.region.window
        height, width = self._input_size(window_size)
        table, steps = np.zeros((count, 4), np.int32), np.ones(count, np.float32)
        for i, window in enumerate(batch.windows):
            table[i] = window.top, window.left, window.of.mirrored, 1
            # 1 / scale in float32, as `resample.scale_rows` has it; the ratio of the sizes differs where n * s is no
            # whole number.
            steps[i] = np.float32(1 / window.of.scale)
        self._reserve("input", FLOAT * count * 3 * height * width)
        spec, values, extent = kernel_specs.gather("fp32"), value_tables(self.model.preprocess), {}
        if self.head.network.size_multiple > 1:
            spec = kernel_specs.gather_padded("fp32")
            values = np.concatenate([values.ravel(), self.model.padding.values])
            extent = {"window_height": window_size[0], "window_width": window_size[1]}
        self._launch(
            "gather", spec, picture=source, table=self.tables.add(values), windows=self.tables.add(table),
            steps=self.tables.add(steps), out=("input", 0), **layout, picture_height=self.test_size[0],
            picture_width=self.test_size[1], batch=count, height=height, width=width, **extent,
        )  # fmt: skip

    def _infer(self, batch: _Batch) -> None:
        """Run the engine. It writes to the region where the address is aligned, else to a buffer that is copied."""
        count, size = self._batch_size(batch.windows), self._logits_bytes(batch.region.coarse)
        target = ("logits", batch.region.offset + batch.slot * size)
        direct = target[1] % ALIGNMENT == 0
        output = target if direct else ("output", 0)
        self.steps.append(Infer((count, 3, *self._input_size(batch.region.window)), ("input", 0), output))
        if not direct:
            self._reserve("output", count * size)
            self.steps.append(Copy(target, output, count * size))

    def _check_finite(self) -> None:
        """Set a flag for each region whose logits have NaN or infinity; unused slots count, being computed too."""
        # `finite` only ever sets a flag, and the buffer still has the flags of the last image.
        self.steps.append(Clear(("result", self.flags), FLOAT * len(self.regions)))
        for i, region in enumerate(self.regions):
            count = region.slots * self._logits_bytes(region.coarse) // self.logit
            values, flags = ("logits", region.offset), ("result", self.flags)
            self._launch("finite", kernel_specs.finite(self.logits), values=values, flag=flags, at=i, count=count)

    # Merge

    def _merge(self) -> None:
        inference = self.inference
        sizes = [pass_.size for pass_ in self.queue.passes]
        if inference.mode == "slide" or any(self.head.enlarges(size, self.size, self.softmax) for size in sizes):
            self._merge_windows()
        # Flip adds two passes, and softmax is not linear: both need a volume before the last resampling.
        elif inference.flip or self.softmax:
            self._merge_whole_scores()
        elif len(inference.scales) == 1 and self.head.network.threshold is None:
            self._merge_one_pass()
        else:
            # Sums of plain logits need no volumes of their own: the logits are resampled where the engine left them.
            self._finish(("logits", 0), list(map(self._logits_volume, self._by_scale())), (0, self.size[0]))

    def _logits_volume(self, scale: Sequence[Window]) -> _Volume:
        """The logits of the one window of a whole pass as a volume in the buffer "logits"."""
        index, slot = self.slot_of[id(scale[0])]
        region = self.regions[index]
        begin = (region.offset + slot * self._logits_bytes(region.coarse)) // self.logit
        return _Volume(region.coarse, begin, (0, region.coarse[0]))

    def _merge_one_pass(self) -> None:
        """One whole pass: upsample and take the arg max in one kernel, without a volume in memory."""
        logits = self._logits_volume(self.queue.windows)
        step_y, step_x = _ratios(logits.size, self.size)
        spec = kernel_specs.upsample_argmax(self.logits, self.head.classes, rows_per_thread(step_y))
        self._launch(
            "finish", spec, logits=("logits", self.logit * logits.begin), labels=("result", 0), pitch=self.size[1],
            classes=self.head.classes, coarse_height=logits.size[0], coarse_width=logits.size[1], step_y=step_y,
            step_x=step_x, height=self.size[0], width=self.size[1],
        )  # fmt: skip

    def _merge_whole_scores(self) -> None:
        """Whole passes with softmax or flip: a volume of each scale at the low resolution, then the label map."""
        volumes, end = [], 0
        for scale in self._by_scale():
            # Plain and mirrored pass share a volume: what follows is linear, so that adding at low resolution is exact.
            size = coarse_size(scale[0].size, self.head.stride)
            volumes.append(_Volume(size, end, (0, size[0])))
            self._accumulate(scale, size, volumes[-1], covers_volume=True)
            end = self._end(volumes[-1])
        self._reserve("volumes", FLOAT * end)
        self._finish(("volumes", 0), volumes, (0, self.size[0]))

    def _merge_windows(self) -> None:
        """Band by band: the rows of each scale's volume that the band needs, then the band of the label map."""
        scales = self._by_scale()
        sizes = [scale[0].of.size for scale in scales]
        for band in bands(sizes, self.size, self.head.classes, self.model.band_bytes):
            volumes, end = [], 0
            for scale, size in zip(scales, sizes, strict=True):
                volume = _Volume(size, end, span(size[0], self.size[0], band))
                # The kernel tries every window of its table for every block: those that miss the band are left out.
                near = [w for w in scale if w.top < volume.rows[1] and w.bottom > volume.rows[0]]
                self._accumulate(near, scale[0].size, volume)
                volumes.append(volume)
                end = self._end(volume)
            # Bands run one after the other on one stream: all use the same buffer.
            self._reserve("volumes", FLOAT * end)
            self._finish(("volumes", 0), volumes, band)

    def _end(self, volume: _Volume) -> int:
        """The element where the next volume may begin."""
        scores = self.head.classes * (volume.rows[1] - volume.rows[0]) * volume.size[1]
        return volume.begin + aligned(scores, ALIGNMENT // FLOAT)

    def _by_scale(self) -> list[list[Window]]:
        """The windows of each scale, in the order of the scales; a mirrored pass follows the plain one of its scale."""
        passes = 1 + self.inference.flip
        firsts = range(0, len(self.queue.passes), passes)
        return [[w for w in self.queue.windows if first <= w.of.index < first + passes] for first in firsts]

    def _accumulate(
        self, scale_windows: Sequence[Window], window: Size, volume: _Volume, covers_volume: bool = False
    ) -> None:
        """Sum the logits of windows of one scale into the rows of a volume.

        ``window`` is the size to which their logits are upsampled: their own (of a padded one the part inside it), or
        in whole mode the low resolution itself, where each window ``covers_volume``.
        """
        ordered = sorted(scale_windows, key=lambda w: w.of.mirrored)  # the kernel takes the plain pass first
        # The windows of a scale have one size (`geometry.starts`), so all of them lie in one region.
        region = self.regions[self.slot_of[id(ordered[0])][0]]
        table = np.zeros((len(ordered), 4), np.int32)
        for i, w in enumerate(ordered):
            top, left = (0, 0) if covers_volume else (w.top, w.left)
            table[i] = self.slot_of[id(w)][1], top, left, w.of.mirrored
        # Windows are padded below and on the right after mirroring, so that the step alone gives the positions.
        step_y, step_x = _ratios(region.coarse, window) if covers_volume else self._upsampling(region)
        spec = kernel_specs.accumulate(self.logits, self.head.classes)
        rows, width = volume.rows[1] - volume.rows[0], volume.size[1]
        parts = {"parts": class_parts(spec, rows, width, self.head.classes)} if "parts" in spec.arguments else {}
        self._launch(
            "accumulate", spec, logits=("logits", region.offset),
            windows=self.tables.add(table), swap=self.tables.add(self.head.swapped_classes()),
            volume=("volumes", FLOAT * volume.begin), classes=self.head.classes, coarse_height=region.coarse[0],
            coarse_width=region.coarse[1], window_height=window[0], window_width=window[1], step_y=step_y,
            step_x=step_x, plain=sum(not w.of.mirrored for w in ordered), count=len(ordered),
            first_row=volume.rows[0], rows=rows, width=width, softmax=int(self.softmax),
            **parts,
        )  # fmt: skip

    def _upsampling(self, region: Region) -> tuple[float, float]:
        """Positions in the logits per pixel of the engine's input, negative for aligned corners."""
        size = self._input_size(region.window)
        if self.head.network.upsampling != "align_corners":
            return _ratios(region.coarse, size)
        rows, columns = _ratios(
            (region.coarse[0] - 1, region.coarse[1] - 1), (max(size[0] - 1, 1), max(size[1] - 1, 1))
        )
        return -rows, -columns

    def _finish(self, base: BufferOffset, volumes: Sequence[_Volume], band: Span) -> None:
        """Write the rows ``band`` of the label map from the volumes of all scales."""
        dtype = self.logits if base[0] == "logits" else "fp32"
        offsets = np.array([volume.begin for volume in volumes], np.int64)
        sizes = np.array([(v.rows[0], v.rows[1] - v.rows[0], *v.size) for v in volumes], np.int32)
        steps = np.array([_ratios(volume.size, self.size) for volume in volumes], np.float32)
        rows = rows_per_thread(float(steps[:, 0].max()))
        decision: dict[str, int | float] = {"classes": self.head.classes}
        spec = kernel_specs.finish(dtype, self.head.classes, rows)
        if self.head.network.threshold is not None:
            spec, decision = kernel_specs.threshold(dtype, rows), {"limit": self.head.limit(self.inference)}
        # The mean is over passes, not over volumes: a plain and a mirrored pass share one.
        self._launch(
            "finish", spec, volumes=base, offsets=self.tables.add(offsets),
            sizes=self.tables.add(sizes), steps=self.tables.add(steps), labels=("result", 0), pitch=self.size[1],
            passes=float(len(self.queue.passes)), count=len(volumes), first_row=band[0], rows=band[1] - band[0],
            width=self.size[1], **decision,
        )  # fmt: skip


def _ratios(size: Size, output: Size) -> tuple[float, float]:
    """Input samples per output sample, rounded to float32 where PyTorch rounds."""
    rows, columns = (float(np.float32(a) / np.float32(b)) for a, b in zip(size, output, strict=True))
    return rows, columns


def bands(sizes: Sequence[Size], output: Size, classes: int, most: int) -> Iterator[Span]:
    """Rows of the output in bands whose score volumes over all ``sizes`` take at most ``most`` bytes, if a row can."""
    height = output[0]
    row = FLOAT * classes * sum(h * w / height for h, w in sizes)
    edges = FLOAT * classes * sum(2 * w for _, w in sizes)  # a band needs parts of rows at both ends
    rows = min(height, max(1, int((most - edges) / row)))
    rows = cdiv(height, cdiv(height, rows))  # as many bands, of even height: the last one is not a short remainder
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


def host_only(network: NetworkFacts) -> str:
    """What a network needs and no kernel does, as part of a message; "" where the kernels do all."""
    return "padding on all sides" if network.size_multiple > 1 and network.padding_side != "bottom_right" else ""
