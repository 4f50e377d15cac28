"""The families of kernels, and the cases in which each is tried: odd ones, and those of the published models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_check.context_trials import AttentionCase, AttentionTrial, PoolCase, PoolTrial
from benchmarks.gpu_check.forms import DTYPES, Form
from benchmarks.gpu_check.picture_trials import (
    AccumulateTrial,
    FinishCase,
    FinishTrial,
    FiniteCase,
    FiniteTrial,
    GatherCase,
    GatherTrial,
    MergeCase,
    ResizeCase,
    ResizeTrial,
    UpsampleTrial,
)
from benchmarks.gpu_check.trial import Trial
from isnet_trt.settings import Inference

CITY = Inference("slide", (512, 1024), (341, 341))
HALF = Inference("slide", (256, 512), (171, 171))
CITY_MOST = CITY.replace(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True, softmax_before_resize=True)
LIP_PAIRS = ((14, 15), (16, 17), (18, 19))
SMALL = Inference("slide", (29, 37), (17, 23), (1.25,), flip=True, softmax_before_resize=True)
MANY = SMALL.replace(window=(16, 16), stride=(11, 11))
PARTS = SMALL.replace(window=(13, 29), stride=(7, 11))
Make = Callable[[Form, Any, str, int], Trial]


@dataclass(frozen=True)
class Family:
    """A trial with its cases: ``odd`` ones are small enough for the interpreter, ``real`` ones are those of models."""

    name: str
    make: Make
    odd: Sequence[Any]
    real: Sequence[Any]
    dtypes: Sequence[str] = DTYPES


FAMILIES = (
    Family(
        "attention",
        AttentionTrial,
        (
            AttentionCase("45 queries, 71 keys", 2, 45, 71, 1, hidden=True),
            AttentionCase("70 in 3 parts", 1, 70, 70, 3),
            AttentionCase("67 queries, 19 keys", 1, 67, 19),
            AttentionCase("the demo's width, 2 parts", 2, 37, 67, 2, width=32),
        ),
        (
            AttentionCase("ADE, 5,504 keys", 1, 5504, 5504),
            AttentionCase("ADE, 150 keys", 1, 5504, 150),
            AttentionCase("Cityscapes x8, 8,192 keys", 8, 8192, 8192),
            AttentionCase("Cityscapes x8, 19 keys", 8, 8192, 19),
        ),
    ),
    Family(
        "region_pool",
        PoolTrial,
        (
            PoolCase("2 x 19 classes, 101 positions", 2, 19, 101, 70, 1),
            PoolCase("37 classes, ties, 3 parts", 1, 37, 131, 33, 3, ties=True),
        ),
        (
            PoolCase("ADE, 150 classes, 5,504 positions", 1, 150, 5504),
            PoolCase("Cityscapes x8, 19 classes, 8,192 positions", 8, 19, 8192),
            PoolCase("LIP, 20 classes, 14,161 positions", 1, 20, 14161),
        ),
    ),
    Family(
        "resize",
        ResizeTrial,
        (
            ResizeCase("11x33 to 17x57, BGR", (11, 33), (17, 57), bgr=True),
            ResizeCase("30x31 to 13x11, alpha", (30, 31), (13, 11), pixel=4),
        ),
        (
            ResizeCase("480x640 to 512x683", (480, 640), (512, 683)),
            ResizeCase("1200x1600 to 512x683, BGR", (1200, 1600), (512, 683), bgr=True),
            ResizeCase("301x199 to 473x473", (301, 199), (473, 473)),
        ),
        ("fp32",),
    ),
    Family(
        "gather",
        GatherTrial,
        (GatherCase("3 of 4 slots, alpha, flip", (19, 61), PARTS, 4, 1, pixel=4),),
        (
            GatherCase("ADE, whole 512x683", (512, 683), Inference(), 1),
            GatherCase("Cityscapes x8, 512x1024", (1024, 2048), CITY_MOST, 8, bgr=True),
            GatherCase("LIP, whole 473x473, scale 1.25", (473, 473), Inference(scales=(1.25,), flip=True), 2),
        ),
    ),
    Family(
        "accumulate",
        AccumulateTrial,
        (
            MergeCase("19 classes, flip, probabilities", (23, 41), SMALL, 19, pairs=((1, 2), (3, 4)), rows=3),
            MergeCase("300 classes, stride 4", (19, 27), MANY, 300, 4, rows=2),
        ),
        (
            MergeCase("Cityscapes, 15 windows", (1024, 2048), CITY, 19),
            MergeCase(
                "half of Cityscapes, flip, probabilities", (512, 1024),
                HALF.replace(flip=True, softmax_before_resize=True), 19, rows=128,
            ),
            MergeCase(
                "LIP, whole, flip, probabilities", (473, 473),
                Inference(flip=True, softmax_before_resize=True), 20, 4, LIP_PAIRS,
            ),
            MergeCase(
                "ADE, whole, flip, probabilities", (512, 683), Inference(flip=True, softmax_before_resize=True), 150
            ),
        ),
    ),
    Family(
        "finish",
        FinishTrial,
        (
            FinishCase("2 volumes, 11 classes", ((4, 5), (7, 9)), (9, 31), 11),
            FinishCase("300 classes", ((5, 4),), (2, 131), 300),
        ),
        (
            FinishCase("Cityscapes, 1 scale", ((1024, 2048),), (1024, 2048), 19),
            FinishCase("ADE, whole, 3 scales", ((32, 43), (64, 86), (96, 129)), (480, 640), 150),
            FinishCase("LIP, whole, 3 scales", ((60, 60), (119, 119), (178, 178)), (473, 473), 20),
        ),
    ),
    Family(
        "upsample_argmax",
        UpsampleTrial,
        (
            FinishCase("19 classes, 5x9 to 13x140", ((5, 9),), (13, 140), 19),
            FinishCase("300 classes, 4x3 to 3x21", ((4, 3),), (3, 21), 300),
        ),
        (
            FinishCase("ADE, 512x683", ((64, 86),), (512, 683), 150),
            FinishCase("Cityscapes, 1024x2048", ((128, 256),), (1024, 2048), 19),
            FinishCase("LIP, 473x473", ((119, 119),), (473, 473), 20),
        ),
    ),
    Family(
        "finite",
        FiniteTrial,
        (
            FiniteCase("4,999 values", 4999),
            FiniteCase("a NaN at the end", 4999, 4998),
            FiniteCase("minus infinity", 3, 0, -float("inf")),
        ),
        (FiniteCase("Cityscapes x8", 8 * 19 * 64 * 128), FiniteCase("ADE, a NaN", 150 * 64 * 86, 4096)),
    ),
)  # fmt: skip
