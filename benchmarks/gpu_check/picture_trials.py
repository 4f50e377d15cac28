"""Trials of what lies between the picture and the network, and between the network and the label map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import kernel_cost as cost
from benchmarks.gpu_check.forms import Form, model_of
from benchmarks.gpu_check.trial import SIZES, Deviation, Output, labelled, normal, numbers, tensor
from isnet_trt.cuda import kernel_specs
from isnet_trt.merging import geometry, windows
from isnet_trt.merging.geometry import Window, coarse_size
from isnet_trt.settings import Inference, Preprocess, Size

NORMAL = Preprocess((2048, 512))
ROUNDING = {"fp32": 2e-6, "fp16": 1e-3, "bf16": 1.6e-2}
"""Of normalised values, within -2.2 … 2.7, to the engine's type."""


def _picture(size: Size, pitch: int, pixel: int, bgr: bool, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A random picture as RGB (H, W, 3), and as it lies in memory: rows of ``pitch`` bytes, ``pixel`` bytes a pixel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, pixel), np.uint8)
    memory = np.full((size[0], pitch), 99, np.uint8)
    memory[:, : pixel * size[1]] = pixels.reshape(size[0], -1)
    return np.ascontiguousarray(pixels[:, :, 2::-1] if bgr else pixels[:, :, :3]), memory


@dataclass(frozen=True)
class ResizeCase:
    """From a source with padded rows to ``target``."""

    label: str
    source: Size
    target: Size
    bgr: bool = False
    pixel: int = 3


class ResizeTrial:
    """``resize``: the same whole numbers as the reference."""

    def __init__(self, form: Form, case: ResizeCase, dtype: str, seed: int) -> None:

        self._form, self._case = form, case
        self._pitch = case.pixel * case.source[1] + 7
        self._rgb, memory = _picture(case.source, self._pitch, case.pixel, case.bgr, seed)
        self._memory = tensor(form, memory)
        self._out = Output(form.device, (*case.target, 3), "u8")
        self.outputs: Sequence[Output] = (self._out,)
        self.cost = cost.resize(case.source, case.target)
        self._launch = kernel_specs.resize()

    def launch(self) -> None:
        """See `trial.Trial.launch`."""
        (source_height, source_width), (height, width) = self._case.source, self._case.target
        self._form.run(
            self._launch, "150", source=self._memory, picture=self._out.tensor, pitch=self._pitch,
            pixel=self._case.pixel, bgr=int(self._case.bgr), source_height=source_height, source_width=source_width,
            height=height, width=width,
        )  # fmt: skip

    def reference(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """See `trial.Trial.reference`: that of the kernel's module, and OpenCV's own."""
        import cv2

        from isnet_trt.kernels import gather_windows

        opencv = cv2.resize(self._rgb, self._case.target[::-1], interpolation=cv2.INTER_LINEAR)
        return gather_windows.resize_reference(self._rgb, *self._case.target), opencv.astype(int)

    def deviations(self, wanted: tuple[NDArray[Any], NDArray[Any]]) -> Iterator[Deviation]:
        """See `trial.Trial.deviations`."""
        made, (own, opencv) = self._out.values(), wanted
        yield Deviation("values unlike the reference", float((made != own).mean()), 0.0)
        yield Deviation("values unlike OpenCV's", float((made != opencv).mean()), 1e-3)
        yield Deviation("levels off from OpenCV", float(np.abs(made.astype(int) - opencv).max()), 1.0)


@dataclass(frozen=True)
class GatherCase:
    """The first ``slots`` - ``empty`` windows of a picture of ``size`` shown as ``inference`` says."""

    label: str
    size: Size
    inference: Inference
    slots: int
    empty: int = 0
    bgr: bool = False
    pixel: int = 3


class GatherTrial:
    """``gather``, into the engine's type."""

    def __init__(self, form: Form, case: GatherCase, dtype: str, seed: int) -> None:
        from isnet_trt.pictures.preprocess import _tables

        self._form, self._case, self._dtype = form, case, dtype
        self._pitch = case.pixel * case.size[1] + 5
        self._rgb, memory = _picture(case.size, self._pitch, case.pixel, case.bgr, seed)
        plan = windows.plan(case.size, case.inference)
        group = next(windows.batches(plan.windows, case.slots - case.empty))
        self._window = group[0].size
        self._table, self._steps = _queue(group, case.slots)
        self._values = np.ascontiguousarray(_tables(NORMAL.mean, NORMAL.std), np.float32)
        self._held = {
            "picture": tensor(form, memory), "table": tensor(form, self._values),
            "windows": tensor(form, self._table), "steps": tensor(form, self._steps),
        }  # fmt: skip
        self._out = Output(form.device, (case.slots, 3, *self._window), dtype)
        self.outputs: Sequence[Output] = (self._out,)
        self.cost = cost.gather(case.size, self._window, case.slots, SIZES[dtype])
        self._launch = kernel_specs.gather(dtype)

    def launch(self) -> None:
        """See `trial.Trial.launch`."""
        (height, width), (picture_height, picture_width) = self._window, self._case.size
        self._form.run(
            self._launch, "150", **self._held, out=self._out.tensor, pitch=self._pitch, pixel=self._case.pixel,
            bgr=int(self._case.bgr), picture_height=picture_height, picture_width=picture_width,
            batch=self._case.slots, height=height, width=width,
        )  # fmt: skip

    def reference(self) -> NDArray[Any]:
        """See `trial.Trial.reference`."""
        from isnet_trt.kernels import gather_windows

        return gather_windows.gather_reference(self._rgb, self._values, self._table, self._steps, *self._window)

    def deviations(self, wanted: NDArray[Any]) -> Iterator[Deviation]:
        """See `trial.Trial.deviations`."""
        yield Deviation("worst value", float(np.abs(self._out.values() - wanted).max()), ROUNDING[self._dtype])


def _queue(group: list[Window], slots: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    table, steps = np.zeros((slots, 4), np.int32), np.ones(slots, np.float32)
    for i, window in enumerate(group):
        table[i] = window.top, window.left, window.of.mirrored, 1
        steps[i] = 1 / window.of.scale
    return table, steps


@dataclass(frozen=True)
class MergeCase:
    """Windows of one scale of a picture of ``size``; the first pass plain, with ``inference.flip`` a mirrored one.

    ``rows`` None: the whole volume in one launch, else that many in the middle.
    """

    label: str
    size: Size
    inference: Inference
    classes: int
    stride: int = 8
    pairs: tuple[tuple[int, int], ...] = ()
    rows: int | None = None


class AccumulateTrial:
    """``accumulate``: float32 sums of a few products of the engine's values."""

    def __init__(self, form: Form, case: MergeCase, dtype: str, seed: int) -> None:

        self._form, self._case = form, case
        whole = case.inference.mode == "whole"
        passes = geometry.passes(case.size, case.inference)
        shown = [w for one in passes for w in geometry.windows(one, case.inference)]
        self._coarse = coarse_size(shown[0].size, case.stride)
        self._window = self._coarse if whole else shown[0].size
        self._size = self._coarse if whole else shown[0].of.size
        places = [(0, 0) if whole else (w.top, w.left) for w in shown]
        self._table = np.array([(i, *places[i], w.of.mirrored) for i, w in enumerate(shown)], np.int32)
        self._plain = sum(not w.of.mirrored for w in shown)
        self._swap = np.arange(case.classes, dtype=np.int32)
        for a, b in case.pairs:
            self._swap[[a, b]] = b, a
        self.logits = normal(form, seed, (len(shown), case.classes, *self._coarse), dtype, 3.0)
        self._tables = {"windows": tensor(form, self._table), "swap": tensor(form, self._swap)}
        rows = case.rows or self._size[0]
        self._first = (self._size[0] - rows) // 2
        self._out = Output(form.device, (case.classes, rows, self._size[1]), "fp32")
        self.outputs: Sequence[Output] = (self._out,)
        self.cost = cost.accumulate(case.size, case.inference, case.classes, case.stride, SIZES[dtype])
        self._launch = kernel_specs.accumulate(dtype, case.classes)

    def launch(self) -> None:
        """See `trial.Trial.launch`."""
        steps = [float(np.float32(a) / np.float32(b)) for a, b in zip(self._coarse, self._window, strict=True)]
        self._form.run(
            self._launch, model_of(self._case.classes), logits=self.logits, **self._tables, volume=self._out.tensor,
            classes=self._case.classes, coarse_height=self._coarse[0], coarse_width=self._coarse[1],
            window_height=self._window[0], window_width=self._window[1], step_y=steps[0], step_x=steps[1],
            plain=self._plain, count=len(self._table), first_row=self._first, rows=self._out.tensor.shape[1],
            width=self._size[1], softmax=int(self._case.inference.softmax_before_resize),
        )  # fmt: skip

    def reference(self) -> NDArray[Any]:
        """See `trial.Trial.reference`."""
        from isnet_trt.kernels import accumulate

        whole = accumulate.reference(
            numbers(self.logits), self._table, self._swap, self._plain, self._size, self._window,
            self._case.inference.softmax_before_resize,
        )  # fmt: skip
        return whole[:, self._first : self._first + self._out.tensor.shape[1]]

    def deviations(self, wanted: NDArray[Any]) -> Iterator[Deviation]:
        """See `trial.Trial.deviations`."""
        yield Deviation("worst value", float(np.abs(self._out.values() - wanted).max()), 2e-5)


@dataclass(frozen=True)
class FinishCase:
    """Whole volumes of ``sizes`` to labels of ``output``; ``float32`` volumes as `accumulate` makes them."""

    label: str
    sizes: tuple[Size, ...]
    output: Size
    classes: int


class FinishTrial:
    """``finish``, with rows of labels further apart than they are long."""

    def __init__(self, form: Form, case: FinishCase, dtype: str, seed: int) -> None:
        import torch

        self._form, self._case = form, case
        self.volumes = [normal(form, seed + i, (case.classes, *size), dtype) for i, size in enumerate(case.sizes)]
        ends = np.cumsum([0, *(volume.numel() for volume in self.volumes)])
        sizes = np.array([(0, height, height, width) for height, width in case.sizes], np.int32)
        self._held = {
            "volumes": torch.cat([volume.flatten() for volume in self.volumes]),
            "offsets": tensor(form, ends[:-1].astype(np.int64)), "sizes": tensor(form, sizes),
            "steps": tensor(form, np.array(case.sizes, np.float32) / np.array(case.output, np.float32)),
        }  # fmt: skip
        kind = kernel_specs.label_element(case.classes)
        self._out = Output(form.device, (case.output[0], case.output[1] + 3), kind)
        self.outputs: Sequence[Output] = (self._out,)
        pixels = case.output[0] * case.output[1]
        flops = (cost.BILINEAR + 1) * case.classes * pixels * len(case.sizes)
        self.cost = cost.Cost(SIZES[dtype] * float(ends[-1]) + pixels, flops)
        self._launch = kernel_specs.finish(dtype, case.classes)

    def launch(self) -> None:
        """See `trial.Trial.launch`."""
        self._form.run(
            self._launch, model_of(self._case.classes), **self._held, labels=self._out.tensor,
            pitch=self._out.tensor.shape[1], passes=float(len(self._case.sizes)), count=len(self._case.sizes),
            classes=self._case.classes, first_row=0, rows=self._case.output[0], width=self._case.output[1],
        )  # fmt: skip

    def reference(self) -> NDArray[Any]:
        """See `trial.Trial.reference`."""
        from isnet_trt.kernels import finish

        return finish.reference([numbers(v) for v in self.volumes], self._case.output, len(self._case.sizes))

    def deviations(self, wanted: NDArray[Any]) -> Iterator[Deviation]:
        """See `trial.Trial.deviations`."""
        yield from _labels(self._out, self._case.output[1], wanted)


class UpsampleTrial:
    """``upsample_argmax``: a `FinishCase` of one volume, which is the engine's answer."""

    def __init__(self, form: Form, case: FinishCase, dtype: str, seed: int) -> None:

        self._form, self._case = form, case
        self.logits = normal(form, seed, (case.classes, *case.sizes[0]), dtype)
        kind = kernel_specs.label_element(case.classes)
        self._out = Output(form.device, (case.output[0], case.output[1] + 5), kind)
        self.outputs: Sequence[Output] = (self._out,)
        values, pixels = self.logits.numel(), case.output[0] * case.output[1]
        self.cost = cost.Cost(SIZES[dtype] * float(values) + pixels, (cost.BILINEAR + 1) * case.classes * pixels)
        self._launch = kernel_specs.upsample_argmax(dtype, case.classes)

    def launch(self) -> None:
        """See `trial.Trial.launch`."""
        coarse, output = self._case.sizes[0], self._case.output
        steps = [float(np.float32(a) / np.float32(b)) for a, b in zip(coarse, output, strict=True)]
        self._form.run(
            self._launch, model_of(self._case.classes), logits=self.logits, labels=self._out.tensor,
            pitch=self._out.tensor.shape[1], classes=self._case.classes, coarse_height=coarse[0],
            coarse_width=coarse[1], step_y=steps[0], step_x=steps[1], height=output[0], width=output[1],
        )  # fmt: skip

    def reference(self) -> NDArray[Any]:
        """See `trial.Trial.reference`."""
        from isnet_trt.kernels import finish

        return finish.reference([numbers(self.logits)], self._case.output, 1)

    def deviations(self, wanted: NDArray[Any]) -> Iterator[Deviation]:
        """See `trial.Trial.deviations`."""
        yield from _labels(self._out, self._case.output[1], wanted)


def _labels(output: Output, width: int, scores: NDArray[Any]) -> Iterator[Deviation]:
    made = output.values()
    untouched = {"u8": 255, "u16": 65535}[output.dtype]
    yield Deviation("elements written between the rows", float((made[:, width:] != untouched).sum()), 0.0)
    yield from labelled(made[:, :width], scores)


@dataclass(frozen=True)
class FiniteCase:
    """So many values; the one at ``bad`` is infinite or NaN, or none with ``bad`` None."""

    label: str
    count: int
    bad: int | None = None
    value: float = float("nan")


class FiniteTrial:
    """``finite``: one flag among several."""

    AT, FLAGS = 2, 5

    def __init__(self, form: Form, case: FiniteCase, dtype: str, seed: int) -> None:

        self._form, self._case = form, case
        self.values = normal(form, seed, (case.count,), dtype, 100.0)
        if case.bad is not None:
            self.values[case.bad] = case.value
        self._flags = Output(form.device, (self.FLAGS,), "i32")
        self.outputs: Sequence[Output] = (self._flags,)
        self.cost = cost.Cost(SIZES[dtype] * float(case.count), case.count)
        self._launch = kernel_specs.finite(dtype)

    def launch(self) -> None:
        """See `trial.Trial.launch`; the flag is cleared before, as the runtime does."""
        self._flags.tensor[self.AT] = 0
        self._form.run(
            self._launch, "150", values=self.values, flag=self._flags.tensor, at=self.AT, count=self._case.count
        )

    def reference(self) -> int:
        """See `trial.Trial.reference`."""
        from isnet_trt.kernels import finite

        return finite.reference(numbers(self.values))

    def deviations(self, wanted: int) -> Iterator[Deviation]:
        """See `trial.Trial.deviations`."""
        made = self._flags.values()
        others = np.delete(made, self.AT)
        yield Deviation("flag", float(made[self.AT] != wanted), 0.0)
        yield Deviation("other flags written", float((others != -7).sum()), 0.0)
