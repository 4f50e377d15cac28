"""The merge of a picture's windows by kernels, band by band."""

from __future__ import annotations

import numpy as np
import torch
from interpreter import poisoned, tensor, values

from isnet_trt.cuda.work import label_code
from isnet_trt.kernels import accumulate, finish
from isnet_trt.merging import windows
from isnet_trt.merging.geometry import coarse_size
from isnet_trt.merging.merge import Head, Merger, label_type, largest
from isnet_trt.merging.resample import taps

LABELS = {"u8": torch.uint8, "u16": torch.uint16}


def answers(plan, head, dtype, seed=0):
    """Smooth random logits of every window as a network of ``dtype`` would give them."""
    rng = np.random.default_rng(seed)
    shapes = [(head.classes, *coarse_size(window.size, head.stride)) for window in plan.windows]
    return [values(tensor(3 * rng.standard_normal(shape), dtype)) for shape in shapes]


def host(plan, head, logits, output):
    """Labels and scores of isnet_trt.merging.merge."""
    scores = np.empty((head.classes, *output), np.float32)

    def take(rows, columns, tile):
        scores[:, rows, columns] = tile

    merger = Merger(plan, head, output, take)
    for window, answer in zip(plan.windows, logits, strict=True):
        merger.add(window, answer.copy())
    assert merger.work()
    return largest(scores), scores


class Scale:
    """The windows of one scale, and the launch of `accumulate` that lays them over each other."""

    def __init__(self, plan, head, logits, scale, dtype):
        self.head, self.dtype = head, dtype
        self.whole = plan.inference.mode == "whole"
        self.softmax = int(plan.inference.softmax_before_resize)
        pairs = list(zip(plan.windows, logits, strict=True))
        mine = sorted((p for p in pairs if p[0].of.scale == scale), key=lambda p: p[0].of.mirrored)
        first = mine[0][0]
        self.plain = sum(not window.of.mirrored for window, _ in mine)
        self.coarse = coarse_size(first.size, head.stride)
        self.window = self.coarse if self.whole else first.size
        self.size = self.coarse if self.whole else first.of.size
        self.logits = np.stack([answer for _, answer in mine])
        places = [(0, 0) if self.whole else (window.top, window.left) for window, _ in mine]
        mirrored = [window.of.mirrored for window, _ in mine]
        self.table = np.array([(i, *places[i], mirrored[i]) for i in range(len(mine))], np.int32)

    @property
    def swap(self):
        order = np.arange(self.head.classes, dtype=np.int32)
        for a, b in self.head.pairs:
            order[[a, b]] = b, a
        return order

    def rows(self, first, stop):
        """Rows ``first:stop`` of the volume, by the kernel."""
        out = poisoned(self.head.classes, stop - first, self.size[1])
        steps = [float(np.float32(a) / np.float32(b)) for a, b in zip(self.coarse, self.window, strict=True)]
        accumulate.launch_accumulate(self.dtype, self.head.classes).run(
            logits=tensor(self.logits, self.dtype), windows=tensor(self.table), swap=tensor(self.swap), volume=out,
            classes=self.head.classes, coarse_height=self.coarse[0], coarse_width=self.coarse[1],
            window_height=self.window[0], window_width=self.window[1], step_y=steps[0], step_x=steps[1],
            plain=self.plain, count=len(self.table), first_row=first, rows=stop - first, width=self.size[1],
            softmax=self.softmax,
        )  # fmt: skip
        return out

    def reference(self):
        return accumulate.reference(
            self.logits, self.table, self.swap, self.plain, self.size, self.window, bool(self.softmax)
        )


def merge(plan, head, logits, output, dtype, band):
    """The label map by `accumulate` and `finish`, ``band`` output rows at a time."""
    scales = [Scale(plan, head, logits, scale, dtype) for scale in plan.inference.scales]
    kind = label_code(head.classes)
    pitch = output[1] + 3
    labels = torch.full((output[0], pitch), 77, dtype=LABELS[kind])
    for first in range(0, output[0], band):
        stop = min(first + band, output[0])
        spans = [taps(scale.size[0], output[0], first, stop).span for scale in scales]
        parts = [scale.rows(*span) for scale, span in zip(scales, spans, strict=True)]
        ends = np.cumsum([0, *(part.numel() for part in parts)])
        sizes = [(a, b - a, *scale.size) for scale, (a, b) in zip(scales, spans, strict=True)]
        steps = np.array([scale.size for scale in scales], np.float32) / np.array(output, np.float32)
        finish.launch_finish("fp32", kind).run(
            volumes=torch.cat([part.flatten() for part in parts]), offsets=tensor(ends[:-1].astype(np.int64)),
            sizes=tensor(np.array(sizes, np.int32)), steps=tensor(steps), labels=labels, pitch=pitch,
            passes=float(len(plan.passes)), count=len(scales), classes=head.classes, first_row=first,
            rows=stop - first, width=output[1],
        )  # fmt: skip
    made = labels.numpy()
    assert (made[:, output[1] :] == 77).all()
    assert made.dtype == label_type(head.classes)
    return made[:, : output[1]]


def plan_of(size, inference):
    return windows.plan(size, inference)


def clear(scores, margin=1e-4):
    """Where the best class leads by more than ``margin``."""
    best = np.partition(scores, -2, axis=0)[-2:]
    return best[1] - best[0] > margin


__all__ = ["Head", "Scale", "answers", "clear", "host", "merge", "plan_of"]
