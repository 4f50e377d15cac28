"""Trials of the kernels between the picture and the network, and between the network and the label map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import kernel_cost as cost
from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.kernel_specs import class_parts, label_element, rows_per_thread
from isnet_trt.merging import geometry, windows
from isnet_trt.merging.geometry import coarse_size
from isnet_trt.merging.resample import span
from isnet_trt.pictures.formats import YuvFormat
from isnet_trt.pictures.preprocess import value_tables, yuv_to_rgb
from isnet_trt.settings import Inference, Preprocess, Size
from tests.kernels.trials import BYTES, Deviation, Trial, labels, normal, numbers, on_device, step
from tests.kernels.variants import Output, Variant, set_of

TABLE = value_tables(Preprocess((2048, 512))).astype(np.float32)
PADDING = np.array([0.25, -1.5, 2.0], np.float32)
ROUNDING = {"fp32": 2e-6, "fp16": 1e-3, "bf16": 1.6e-2}
"""Of normalised values, within -2.2 … 2.7, to the engine's type (the interpreter cuts bfloat16 off)."""
LIMIT = 0.375
SUMS = 1e-5
"""Of a few products in float32; the logits, up to 12 here, are exact in their type."""


def picture(size: Size, pitch: int, pixel: int, bgr: bool, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Random pixels as RGB (H, W, 3), and as they lie in memory: rows of ``pitch`` bytes, the last without padding."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, pixel), np.uint8)
    memory = np.full((size[0], pitch), 99, np.uint8)
    memory[:, : pixel * size[1]] = pixels.reshape(size[0], -1)
    flat = memory.reshape(-1)[: pitch * (size[0] - 1) + pixel * size[1]]
    return np.ascontiguousarray(pixels[:, :, 2::-1] if bgr else pixels[:, :, :3]), flat


@dataclass(frozen=True)
class ResizeCase:
    """From a source with padded rows to ``target``; ``pixel`` bytes a pixel."""

    label: str
    source: Size
    target: Size
    bgr: bool = False
    pixel: int = 3


def resize(variant: Variant, case: ResizeCase, dtype: str, seed: int) -> Trial:
    """``resize``: the same whole numbers as the reference."""
    pitch = case.pixel * case.source[1] + 7
    rgb, memory = picture(case.source, pitch, case.pixel, case.bgr, seed)
    source, out = on_device(variant, memory), Output(variant.device, (*case.target, 3), "u8")

    def launch() -> None:
        variant.run(
            "19", "resize", source=source, picture=out, pitch=pitch, pixel=case.pixel, bgr=int(case.bgr),
            source_height=case.source[0], source_width=case.source[1], height=case.target[0], width=case.target[1],
        )  # fmt: skip

    def reference() -> tuple[NDArray[Any], NDArray[Any]]:
        from isnet_trt.kernels import gather_windows

        opencv = cv2.resize(rgb, case.target[::-1], interpolation=cv2.INTER_LINEAR).reshape(*case.target, 3)
        return gather_windows.resize_reference(rgb, *case.target), opencv.astype(int)

    def compare(expected: tuple[NDArray[Any], NDArray[Any]]) -> Iterator[Deviation]:
        values = numbers(out)
        yield Deviation("values unlike the reference", float((values != expected[0]).mean()), 0.0)
        yield Deviation("values unlike OpenCV's", float((values != expected[1]).mean()), 1e-3)
        yield Deviation("levels off from OpenCV", float(np.abs(values.astype(int) - expected[1]).max()), 1.0)

    return Trial(launch, (out,), reference, compare, cost.resize(case.source, case.target))


@dataclass(frozen=True)
class YuvCase:
    """From planes with padded rows in one block of memory to RGB of ``target``."""

    label: str
    source: Size
    target: Size
    yuv: YuvFormat


def yuv_resize(variant: Variant, case: YuvCase, dtype: str, seed: int) -> Trial:
    """``yuv_resize``: the same whole numbers as the reference; OpenCV's conversion, then its resize, nearly."""
    (height, width), shapes = case.source, case.yuv.shapes(case.source)
    pitch, chroma_pitch = width + 9, shapes[1][1] + 5
    memory = np.random.default_rng(seed).integers(0, 256, height * pitch + height * chroma_pitch + 64, np.uint8)
    first, step = height * pitch, 2 if case.yuv.chroma == "nv12" else 1
    second = first + (1 if step == 2 else height // 2 * chroma_pitch)
    half = (height // 2, width // 2)
    u, v = (np.lib.stride_tricks.as_strided(memory[at:], half, (chroma_pitch, step)) for at in (first, second))
    luma = memory[:first].reshape(height, pitch)[:, :width]
    source, out = on_device(variant, memory), Output(variant.device, (*case.target, 3), "u8")
    factors = dict(zip(("offset", "yy", "rv", "gu", "gv", "bu"), case.yuv.coefficients(), strict=True))

    def launch() -> None:
        variant.run(
            "19", "yuv_resize", source=source, picture=out, pitch=pitch, u=first, v=second, chroma_pitch=chroma_pitch,
            chroma_step=step, **factors, source_height=height, source_width=width, height=case.target[0],
            width=case.target[1],
        )  # fmt: skip

    def reference() -> tuple[NDArray[Any], NDArray[Any]]:
        from isnet_trt.kernels import yuv_resize

        planes = [luma, np.dstack([u, v])] if step == 2 else [luma, u.copy(), v.copy()]
        opencv = cv2.resize(yuv_to_rgb(planes, case.yuv), case.target[::-1], interpolation=cv2.INTER_LINEAR)
        exact = yuv_resize.reference(luma, u, v, tuple(factors.values()), *case.target)
        return exact, opencv.reshape(*case.target, 3).astype(int)

    def compare(expected: tuple[NDArray[Any], NDArray[Any]]) -> Iterator[Deviation]:
        values = numbers(out)
        yield Deviation("values unlike the reference", float((values != expected[0]).mean()), 0.0)
        yield Deviation("levels off from OpenCV", float(np.abs(values.astype(int) - expected[1]).max()), 1.0)

    return Trial(launch, (out,), reference, compare, cost.yuv_resize(case.source, case.target))


@dataclass(frozen=True)
class GatherCase:
    """Windows of a picture of ``size`` in ``slots``, the last ``empty`` of them unused.

    ``first``: number of the first window in the order of the passes.
    """

    label: str
    size: Size
    inference: Inference
    slots: int
    empty: int = 0
    bgr: bool = False
    pixel: int = 3
    first: int = 0
    multiple: int = 1


def gather(variant: Variant, case: GatherCase, dtype: str, seed: int) -> Trial:
    """``gather``, or with a ``multiple`` ``gather_padded``, into the engine's type."""
    pitch = case.pixel * case.size[1] + 5
    rgb, memory = picture(case.size, pitch, case.pixel, case.bgr, seed)
    queue = windows.plan(case.size, case.inference).windows[case.first :]
    group = next(windows.batches(queue, case.slots - case.empty))
    shown, padded = group[0].size, case.multiple > 1
    height, width = (-(-side // case.multiple) * case.multiple for side in shown)
    table, steps = np.zeros((case.slots, 4), np.int32), np.ones(case.slots, np.float32)
    for i, window in enumerate(group):
        table[i] = window.top, window.left, window.of.mirrored, 1
        steps[i] = 1 / window.of.scale
    values = np.concatenate([TABLE.ravel(), PADDING]) if padded else TABLE
    arrays = {"picture": memory, "table": values, "windows": table, "steps": steps}
    inputs = {name: on_device(variant, array) for name, array in arrays.items()}
    out = Output(variant.device, (case.slots, 3, height, width), dtype)

    def launch() -> None:
        variant.run(
            "1" if padded else "19", f"gather_{'padded_' * padded}{dtype}", **inputs, out=out, pitch=pitch,
            pixel=case.pixel, bgr=int(case.bgr), picture_height=case.size[0], picture_width=case.size[1],
            batch=case.slots, height=height, width=width,
            **({"window_height": shown[0], "window_width": shown[1]} if padded else {}),
        )  # fmt: skip

    def reference() -> NDArray[Any]:
        from isnet_trt.kernels import gather_windows

        result = np.empty((case.slots, 3, height, width), np.float32)
        result[...] = PADDING[:, None, None]
        inside = gather_windows.gather_reference(rgb, TABLE, table, steps, *shown)
        used = case.slots - case.empty if padded else case.slots  # slots that are not used are padding too
        result[:used, :, : shown[0], : shown[1]] = inside[:used]
        return result

    def compare(expected: NDArray[Any]) -> Iterator[Deviation]:
        yield Deviation("worst value", float(np.abs(numbers(out) - expected).max()), ROUNDING[dtype])

    return Trial(launch, (out,), reference, compare, cost.gather(case.size, (height, width), case.slots, BYTES[dtype]))


@dataclass(frozen=True)
class MergeCase:
    """Windows of one scale of a picture of ``size``; the first pass plain, with ``inference.flip`` a mirrored one.

    ``rows``: (first, count) of one launch, else the whole volume. ``parts`` of many classes, else as planned.
    ``aligned``: upsampled with aligned corners.
    """

    label: str
    size: Size
    inference: Inference
    classes: int
    stride: int = 8
    pairs: tuple[tuple[int, int], ...] = ()
    rows: tuple[int, int] | None = None
    parts: int | None = None
    aligned: bool = False


def accumulate(variant: Variant, case: MergeCase, dtype: str, seed: int) -> Trial:
    """``accumulate``: float32 sums of a few products of the engine's values."""
    shown = [w for p in geometry.passes(case.size, case.inference) for w in geometry.windows(p, case.inference)]
    coarse, whole = coarse_size(shown[0].size, case.stride), case.inference.mode == "whole"
    window, size = (coarse, coarse) if whole else (shown[0].size, shown[0].of.size)
    table = [(i, 0 if whole else w.top, 0 if whole else w.left, w.of.mirrored) for i, w in enumerate(shown)]
    table, plain = np.array(table, np.int32), sum(not w.of.mirrored for w in shown)
    swap = np.arange(case.classes, dtype=np.int32)
    for a, b in case.pairs:
        swap[[a, b]] = b, a
    logits = normal(variant, seed, (len(shown), case.classes, *coarse), dtype, 3.0)
    tables = {"windows": on_device(variant, table), "swap": on_device(variant, swap)}
    first, rows = case.rows or (0, size[0])
    first = first % size[0]
    volume = Output(variant.device, (case.classes, rows, size[1]), "fp32")
    softmax = case.inference.softmax_before_resize
    spec = kernel_specs.accumulate(dtype, case.classes)
    steps = [step(a, b) for a, b in zip(coarse, window, strict=True)]
    if case.aligned:
        steps = [-step(a - 1, b - 1) for a, b in zip(coarse, window, strict=True)]
    parts = case.parts or class_parts(spec, rows, size[1], case.classes) if "parts" in spec.arguments else None

    def launch() -> None:
        variant.run(
            set_of("accumulate", case.classes), spec.name, logits=logits, **tables,
            volume=volume, classes=case.classes, coarse_height=coarse[0], coarse_width=coarse[1],
            window_height=window[0], window_width=window[1], step_y=steps[0], step_x=steps[1], plain=plain,
            count=len(table), first_row=first, rows=rows, width=size[1], softmax=int(softmax),
            **({"parts": parts} if parts else {}),
        )  # fmt: skip

    def reference() -> NDArray[Any]:
        from isnet_trt.kernels import accumulate as module

        merged = module.reference(numbers(logits), table, swap, plain, size, window, softmax, None, case.aligned)
        return merged[:, first : first + rows]

    def compare(expected: NDArray[Any]) -> Iterator[Deviation]:
        yield Deviation("worst value", float(np.abs(numbers(volume) - expected).max()), SUMS)

    flops = cost.accumulate(case.size, case.inference, case.classes, case.stride, BYTES[dtype])
    return Trial(launch, (volume,), reference, compare, flops)


@dataclass(frozen=True)
class FinishCase:
    """Volumes of ``sizes`` to labels of ``output``, of which ``band`` (first row, rows) is made, else all.

    ``twice``: every class occurs twice, so that all tie and the first of the two must win.
    """

    label: str
    sizes: tuple[Size, ...]
    output: Size
    classes: int
    band: tuple[int, int] | None = None
    twice: bool = False


def finish(variant: Variant, case: FinishCase, dtype: str, seed: int) -> Trial:
    """``finish``: of every volume the rows that the band is made from; rows of labels are further apart than long."""
    first, rows = case.band or (0, case.output[0])
    distinct = case.classes // 2 if case.twice else case.classes
    volumes = [normal(variant, seed + i, (distinct, *size), dtype) for i, size in enumerate(case.sizes)]
    spans = [span(size[0], case.output[0], (first, first + rows)) for size in case.sizes]
    parts = [
        volume[:, a:b].repeat(case.classes // distinct, 1, 1).flatten()
        for volume, (a, b) in zip(volumes, spans, strict=True)
    ]
    offsets = np.cumsum([0, *(part.numel() for part in parts)])
    sizes = [(a, b - a, *size) for (a, b), size in zip(spans, case.sizes, strict=True)]
    inputs = {
        "volumes": torch.cat(parts), "offsets": on_device(variant, offsets[:-1].astype(np.int64)),
        "sizes": on_device(variant, np.array(sizes, np.int32)),
        "steps": on_device(variant, np.array(case.sizes, np.float32) / np.array(case.output, np.float32)),
    }  # fmt: skip
    single = case.classes == 1
    code, pitch = label_element(case.classes), case.output[1] + 3
    out = Output(variant.device, (rows, pitch), code)
    per_thread = rows_per_thread(float(inputs["steps"][:, 0].max()))
    spec = kernel_specs.threshold(dtype, per_thread) if single else kernel_specs.finish(dtype, case.classes, per_thread)

    def launch() -> None:
        variant.run(
            set_of("finish", case.classes), spec.name, **inputs,
            labels=out.before(first * pitch), pitch=pitch, passes=float(len(case.sizes)), count=len(case.sizes),
            first_row=first, rows=rows, width=case.output[1],
            **({"limit": LIMIT} if single else {"classes": case.classes}),
        )  # fmt: skip

    def reference() -> NDArray[Any]:
        from isnet_trt.kernels import finish as module

        scores = module.reference([numbers(v) for v in volumes], case.output, len(case.sizes))
        scores = np.concatenate([np.full_like(scores, LIMIT), scores]) if single else scores
        return scores[:, first : first + rows]

    pixels = rows * case.output[1]
    flops = (cost.BILINEAR + 1) * case.classes * pixels * len(case.sizes)
    return Trial(
        launch, (out,), reference, lambda scores: labels(out, case.output[1], scores),
        cost.Cost(BYTES[dtype] * float(offsets[-1]) + pixels, flops),
    )  # fmt: skip


def upsample_argmax(variant: Variant, case: FinishCase, dtype: str, seed: int) -> Trial:
    """``upsample_argmax``: a `FinishCase` of one volume, the network's logits."""
    (coarse,), (height, width) = case.sizes, case.output
    distinct = case.classes // 2 if case.twice else case.classes
    logits = normal(variant, seed, (distinct, *coarse), dtype)
    stored = torch.cat([logits, logits]) if case.twice else logits
    code = label_element(case.classes)
    out = Output(variant.device, (height, width + 5), code)
    rows = rows_per_thread(step(coarse[0], height))
    spec = kernel_specs.upsample_argmax(dtype, case.classes, rows)

    def launch() -> None:
        variant.run(
            set_of("upsample_argmax", case.classes), spec.name, logits=stored, labels=out,
            pitch=width + 5, classes=case.classes, coarse_height=coarse[0], coarse_width=coarse[1],
            step_y=step(coarse[0], height), step_x=step(coarse[1], width), height=height, width=width,
        )  # fmt: skip

    def reference() -> NDArray[Any]:
        from isnet_trt.kernels import finish as module

        return module.reference([numbers(logits)], case.output, 1)

    flops = (cost.BILINEAR + 1) * case.classes * height * width
    return Trial(
        launch, (out,), reference, lambda scores: labels(out, width, scores),
        cost.Cost(BYTES[dtype] * float(stored.numel()) + height * width, flops),
    )  # fmt: skip


@dataclass(frozen=True)
class FiniteCase:
    """So many values; the one at ``bad`` is infinite or NaN, or none with ``bad`` None."""

    label: str
    count: int
    bad: int | None = None
    value: float = float("nan")


def finite(variant: Variant, case: FiniteCase, dtype: str, seed: int, at: int = 2) -> Trial:
    """``finite``: one flag of several; values up to the greatest that float16 has, and a NaN behind the last."""
    values = normal(variant, seed, (case.count + 1,), dtype, 100.0).clamp(-6e4, 6e4)
    values[0], values[-1] = 6e4, float("nan")
    if case.bad is not None:
        values[case.bad].fill_(case.value)
    values = values[:-1]
    flags = Output(variant.device, (5,), "i32")

    def launch() -> None:
        flags.tensor[at].zero_()  # as the runtime does
        flags.written[4 * at : 4 * at + 4] = True
        variant.run("19", f"finite_{dtype}", values=values, flag=flags, at=at, count=case.count)

    def reference() -> int:
        from isnet_trt.kernels import finite as module

        return module.reference(numbers(values))

    def compare(expected: int) -> Iterator[Deviation]:
        flag = numbers(flags)
        yield Deviation("flag", float(flag[at] != expected), 0.0)
        yield Deviation("other flags written", float((np.delete(flag, at) != Output.POISON["i32"]).sum()), 0.0)

    return Trial(launch, (flags,), reference, compare, cost.Cost(BYTES[dtype] * float(case.count), case.count))
