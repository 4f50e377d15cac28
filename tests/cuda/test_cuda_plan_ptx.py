"""Whole plans with the compiled kernels, PTX of sm_80 in an emulator, each buffer as large as the plan says.

No step may touch a byte outside its buffer, or one that no earlier step has written; the labels are the host form's.
"""

from __future__ import annotations

import sys
from functools import cache

import cuda_host
import numpy as np
import pytest
from ptx_machine import PtxKernels, compile_kernels

from isnet_trt.cuda.element_types import ELEMENT_TYPES, FLOAT
from isnet_trt.cuda.plan import Model, plan
from isnet_trt.cuda.plan_steps import Clear, Copy, Infer, Launch
from isnet_trt.cuda.transfers import _check_finite, split_logits
from isnet_trt.merging.geometry import coarse_size
from isnet_trt.merging.merge import Head, Merger
from isnet_trt.settings import NetworkFacts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform"),
]
CASES = {name: case for name, case in cuda_host.CASES.items() if case[2].get("classes", 7) <= 32}


@pytest.fixture(scope="module")
def folder_for(tmp_path_factory):
    """A function: number of classes, type of the logits -> folder of the kernels that such a bundle has."""

    @cache
    def compiled(classes, logits):
        path = tmp_path_factory.mktemp("kernels")
        options = "--dtype", "fp32", "--logits", logits, "--classes", str(classes), "--padded", "--context"
        compile_kernels(path, *options)
        return path

    return compiled


class Run:
    """A plan's buffers in the emulator's memory, and its steps; the network answers with noise."""

    def __init__(self, folder, planned, head):
        self.kernels, self.head, self.logits = PtxKernels(folder), head, ELEMENT_TYPES[planned.logits]
        self.memory, self.rng = self.kernels.memory, np.random.default_rng(0)
        self.addresses = {name: self.memory.reserve(name, size) for name, size in planned.buffers.items()}
        self.addresses["source"] = self.memory.hold("source", self.rng.bytes(planned.buffers["source"]))
        self.addresses["tables"] = self.memory.hold("tables", planned.tables)

    def at(self, place, count, size=1):
        """Addresses of ``count`` things of ``size`` bytes from a place on."""
        first = self.addresses[place[0]] + place[1]
        return np.uint64(first) + np.arange(count, dtype=np.uint64) * np.uint64(size)

    def step(self, step):
        if isinstance(step, Launch):
            places = {name: int(self.at(place, 1)[0]) for name, place in step.pointers.items()}
            self.kernels.launch(step.kernel, 0, **places, **step.scalars)
            return
        self.memory.begin()
        if isinstance(step, Infer):
            self.memory.load(self.at(step.input, int(np.prod(step.shape)), FLOAT), FLOAT)
            coarse = coarse_size(step.shape[2:], self.head.stride)
            answer = self.rng.standard_normal((step.shape[0] * self.head.classes * coarse[0] * coarse[1], 1))
            values = answer.astype(self.logits.numpy).view(np.uint8)
            self.memory.store(self.at(step.output, len(answer), self.logits.size), values)
        elif isinstance(step, Copy):
            self.memory.store(self.at(step.target, step.size), self.memory.load(self.at(step.source, step.size), 1))
        elif isinstance(step, Clear):
            self.memory.store(self.at(step.target, step.size), np.zeros((step.size, 1), np.uint8))


def host(planned, head, logits):
    """Labels of isnet_trt.merging.merge, and where they are clear."""
    scores = np.empty((head.classes, *planned.size), np.float32)

    def take(rows, columns, tile):
        scores[:, rows, columns] = tile

    merger = Merger(planned.queue, head, planned.size, take)
    for window, answer in zip(planned.queue.windows, logits, strict=True):
        merger.add(window, answer)
    assert merger.work()
    labels = head.labels(scores, planned.inference)
    if head.network.threshold is not None:
        return labels, abs(scores[0] - head.limit(planned.inference)) > cuda_host.MARGIN
    best = np.partition(scores, -2, axis=0)[-2:]
    return labels, best[1] - best[0] > cuda_host.MARGIN


HALF = [*((name, "fp16") for name in CASES), ("whole-scales", "bf16"), ("slide-scales-flip-pairs", "bf16")]


@pytest.mark.parametrize(("name", "logits"), [*((name, "fp32") for name in CASES), *HALF])
def test_plans_keep_to_their_buffers_and_give_the_hosts_labels(name, logits, folder_for):
    size, inference, options = CASES[name]
    head = Head(
        options.get("classes", 7),
        options.get("stride", 8),
        options.get("pairs", ()),
        options.get("network", NetworkFacts()),
    )
    limits = {
        new: options[old]
        for old, new in (("batch", "batch"), ("full", "full_batches"), ("band_bytes",) * 2)
        if old in options
    }
    model = Model(head, options.get("rule", cuda_host.RULE), **limits, logits=logits)
    planned = plan(size, inference, model, "bgra" if inference.flip else "rgb")
    run = Run(folder_for(head.classes, logits), planned, head)
    for step in planned.steps:
        run.step(step)
    result, written = run.memory.look(run.addresses["result"])
    assert written[: planned.label_bytes].all()
    _check_finite(planned, result[planned.flags :])
    window_logits = split_logits(planned, run.memory.look(run.addresses["logits"])[0], head.classes)
    expected, sure = host(planned, head, window_logits)
    assert sure.mean() > 0.98
    np.testing.assert_array_equal(
        result[: planned.label_bytes].view(planned.labels).reshape(size)[sure], expected[sure]
    )
