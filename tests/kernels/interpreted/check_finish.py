"""`finish` and `upsample_argmax` against their reference, and the label maps against isnet_trt.merging.merge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interpreter import tensor
from merging import LABELS, Head, answers, clear, host, merge, plan_of

from isnet_trt.cuda.work import label_code
from isnet_trt.kernels import finish
from isnet_trt.settings import Inference

SLIDE = Inference("slide", (12, 17), (7, 11))
CASES = {
    "slide": (SLIDE, Head(7, 8)),
    "slide-scales-flip": (SLIDE.replace(scales=(0.5, 1.75), flip=True), Head(7, 8)),
    "slide-flip-pairs-probabilities": (
        SLIDE.replace(scales=(0.75, 1.0), flip=True, softmax_before_resize=True), Head(6, 8, ((1, 2), (3, 4)))
    ),
    "whole-scales-flip": (Inference(scales=(0.5, 1.5), flip=True), Head(33, 8)),
    "whole-flip-pairs-stride-4": (Inference(flip=True), Head(20, 4, ((14, 15), (16, 17), (18, 19)))),
    "whole-scales-probabilities": (Inference(scales=(1.0, 1.75), softmax_before_resize=True), Head(19, 8)),
    "many-classes": (Inference(flip=True), Head(260, 8)),
}  # fmt: skip


def assert_same_labels(made, wanted, scores):
    """Equal wherever one class leads clearly, which is nearly everywhere."""
    sure = clear(scores)
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(made[sure], wanted[sure])


LONG = {"slide", "slide-scales-flip"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in CASES]
)
def test_label_maps_are_those_of_the_host(name):
    inference, head = CASES[name]
    plan, output = plan_of((15, 29), inference), (7 if head.classes < 256 else 2, 19)
    logits = answers(plan, head, "fp16")
    wanted, scores = host(plan, head, logits, output)
    assert_same_labels(merge(plan, head, logits, output, "fp16", band=5), wanted, scores)


@pytest.mark.slow
def test_bands_do_not_change_the_labels():
    inference, head = CASES["slide-scales-flip"]
    plan = plan_of((15, 29), inference)
    logits = answers(plan, head, "fp32")
    maps = [merge(plan, head, logits, (9, 14), "fp32", band) for band in (2, 5, 9)]
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("classes", "coarse", "output"), [(19, (5, 9), (13, 140)), (300, (4, 3), (3, 21))])
def test_one_whole_pass(classes, coarse, output, dtype):
    logits = tensor(np.random.default_rng(0).standard_normal((classes, *coarse)), dtype)
    scores = finish.reference([logits.float().numpy()], output, 1)
    kind = label_code(classes)
    labels = torch.full((output[0], output[1] + 5), 77, dtype=LABELS[kind])
    steps = [float(np.float32(a) / np.float32(b)) for a, b in zip(coarse, output, strict=True)]
    finish.launch_upsample_argmax(dtype, kind).run(
        logits=logits, labels=labels, pitch=labels.shape[1], classes=classes, coarse_height=coarse[0],
        coarse_width=coarse[1], step_y=steps[0], step_x=steps[1], height=output[0], width=output[1],
    )  # fmt: skip
    made = labels.numpy()
    assert (made[:, output[1] :] == 77).all()
    assert_same_labels(made[:, : output[1]], scores.argmax(axis=0), scores)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_volumes_of_the_engines_own_type(dtype):
    """Whole passes of several scales without softmax or flip need no `accumulate`."""
    rng, output, classes = np.random.default_rng(3), (9, 31), 11
    volumes = [tensor(rng.standard_normal((classes, *size)), dtype) for size in ((4, 5), (7, 9))]
    scores = finish.reference([volume.float().numpy() for volume in volumes], output, 2)
    labels = torch.full(output, 77, dtype=torch.uint8)
    ends = np.cumsum([0, *(volume.numel() for volume in volumes)])
    finish.launch_finish(dtype, "u8").run(
        volumes=torch.cat([volume.flatten() for volume in volumes]), offsets=tensor(ends[:-1].astype(np.int64)),
        sizes=tensor(np.array([(0, 4, 4, 5), (0, 7, 7, 9)], np.int32)),
        steps=tensor(np.array([(4, 5), (7, 9)], np.float32) / np.array(output, np.float32)),
        labels=labels, pitch=31, passes=2.0, count=2, classes=classes, first_row=0, rows=9, width=31,
    )  # fmt: skip
    assert_same_labels(labels.numpy(), scores.argmax(axis=0), scores)


def test_equal_classes_give_the_first():
    logits = np.zeros((40, 3, 4), np.float32)
    logits[[9, 17, 33]] = 2
    labels = torch.full((13, 18), 77, dtype=torch.uint8)
    finish.launch_upsample_argmax("fp32", "u8").run(
        logits=tensor(logits), labels=labels, pitch=18, classes=40, coarse_height=3, coarse_width=4,
        step_y=float(np.float32(3) / np.float32(13)), step_x=float(np.float32(4) / np.float32(18)), height=13, width=18,
    )  # fmt: skip
    assert (labels == 9).all()


def test_more_scores_than_an_int32_can_count():
    """900 classes of a 6000×8000 picture at stride 4; zeros that nobody touches take no memory."""
    logits = np.zeros((900, 1500, 2000), np.float16)
    assert logits.size > 2**31
    logits[890, 749:751] = 1
    labels = torch.full((1, 3), 77, dtype=torch.int16).view(torch.uint16)
    finish.launch_upsample_argmax("fp16", "u16").run(
        logits=torch.from_numpy(logits), labels=labels, pitch=3, classes=900, coarse_height=1500, coarse_width=2000,
        step_y=1500.0, step_x=float(np.float32(2000) / np.float32(3)), height=1, width=3,
    )  # fmt: skip
    assert (labels.numpy() == 890).all()
