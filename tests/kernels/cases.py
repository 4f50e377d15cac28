"""The families of kernels and every case in which each is tried: odd sizes, and those of the published models.

One list for all ways to run a kernel: Triton's interpreter (tests/kernels/interpreted), the compiled PTX in an emulator
(tests/kernels/test_compiled_ptx.py), a GPU (tests/gpu/test_gpu_kernels.py) and the timings of benchmarks.kernels.
Tolerances stand in the trials' modules, beside what they compare.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from isnet_trt.pictures.formats import YuvFormat
from isnet_trt.settings import Inference
from tests.kernels import context_trials, picture_trials
from tests.kernels.context_trials import AttentionCase, PoolCase
from tests.kernels.picture_trials import FinishCase, FiniteCase, GatherCase, MergeCase, ResizeCase, YuvCase
from tests.kernels.trials import Trial
from tests.kernels.variants import DTYPES, Variant

CITY = Inference("slide", (512, 1024), (341, 341))
HALF = Inference("slide", (256, 512), (171, 171), flip=True, softmax_before_resize=True)
CITY_MOST = CITY.replace(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True, softmax_before_resize=True)
WHOLE_MOST = Inference(flip=True, softmax_before_resize=True)
LIP_PAIRS = ((14, 15), (16, 17), (18, 19))
SMALL = Inference("slide", (12, 17), (7, 11), (1.25,))
MOST = SMALL.replace(flip=True, softmax_before_resize=True)
MANY = Inference("slide", (16, 16), (11, 11), flip=True, softmax_before_resize=True)
PARTS = Inference("slide", (7, 29), (5, 23), (0.5, 0.8, 1.75), flip=True)
PAIRS = ((1, 2), (3, 4))


@dataclass(frozen=True)
class Family:
    """Trials of one kernel: ``odd`` cases are small enough for the interpreter, ``real`` ones are those of models.

    ``dtypes`` are the engine's types that there are kernels for. The first odd case stands for the family where time is
    short.
    """

    name: str
    make: Callable[[Variant, Any, str, int], Trial]
    odd: Sequence[Any]
    real: Sequence[Any]
    dtypes: Sequence[str] = DTYPES

    def trial(self, variant: Variant, case: Any, dtype: str, seed: int) -> Trial:
        """With inputs of their own for every case and type."""
        own = zlib.crc32(f"{self.name} {case.label} {dtype}".encode())
        return self.make(variant, case, dtype, (seed + own) % 2**31)


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "attention",
            context_trials.attention,
            (
                AttentionCase("45 queries, 71 keys", 2, 45, 71, 1, hidden="some"),
                AttentionCase("70 in 3 parts", 1, 70, 70, 3),
                AttentionCase("67 queries, 19 keys", 1, 67, 19),
                AttentionCase("3 queries, 150 keys, 3 parts", 2, 3, 150, 3, hidden="some"),
                AttentionCase("one of each", 1, 1, 1, 1),
                AttentionCase("the demo's width, 2 parts", 2, 37, 67, 2, width=32),
                AttentionCase("the demo's width, 333 keys", 1, 35, 333, width=32),
                AttentionCase("first tiles without keys", 2, 37, 350, hidden="first"),
                AttentionCase("a part without keys", 1, 5, 96, 3, hidden="first"),
                AttentionCase("no key at all", 1, 3, 20, 1, hidden="all"),
                AttentionCase("no key at all, 2 parts", 1, 3, 20, 2, hidden="all"),
                AttentionCase("great scores", 1, 4, 40, 1, gain=60),
                AttentionCase("beside images of NaN", 3, 45, 71, 1, nan=True),
                AttentionCase("maps, beside images of NaN", 3, 150, 71, 1, nan=True, tile=128),
                AttentionCase("maps, 45 queries, 71 keys", 2, 45, 71, 1, hidden="some", tile=64),
                AttentionCase("maps, 3 queries, 150 keys, 3 parts", 2, 3, 150, 3, hidden="some", tile=64),
                AttentionCase("maps, 140 queries, 150 keys, 2 parts", 2, 140, 150, 2, hidden="some", tile=128),
                AttentionCase("maps, one of each", 1, 1, 1, 1, tile=128),
                AttentionCase("maps, the demo's width, 2 parts", 2, 37, 67, 2, width=32, tile=128),
                AttentionCase("maps, the demo's width, 333 keys", 1, 35, 333, 1, width=32, tile=64),
                AttentionCase("maps, first tiles without keys", 1, 37, 350, 1, hidden="first", tile=128),
                AttentionCase("maps, no key at all, 2 parts", 1, 3, 20, 2, hidden="all", tile=128),
                AttentionCase("maps, no key at all", 1, 3, 20, 1, hidden="all", tile=64),
                AttentionCase("maps, great scores", 1, 4, 40, 1, gain=60, tile=64),
                AttentionCase("maps, great scores, 4 tiles", 1, 70, 250, 1, gain=60, tile=128),
                AttentionCase("specialised, beside images of NaN", 3, 150, 71, 1, nan=True, tile=128, specialised=True),
                AttentionCase(
                    "specialised, 140 queries, 450 keys, 2 parts", 2, 140, 450, 2, hidden="some", tile=128,
                    specialised=True,
                ),
                AttentionCase("specialised, no key, 2 parts", 1, 3, 20, 2, hidden="all", tile=128, specialised=True),
                AttentionCase("specialised, the demo's width", 1, 35, 333, 1, width=32, tile=128, specialised=True),
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
            context_trials.region_pool,
            (
                PoolCase("2 x 19 classes, 101 positions", 2, 19, 101, 70, 1),
                PoolCase("37 classes, ties, 3 parts", 1, 37, 131, 33, 3, "ties"),
                PoolCase("one position", 1, 5, 1, 3, 3),
                PoolCase("129 channels, 4 parts", 2, 3, 200, 129, 4),
                PoolCase("37 classes, 331 positions", 1, 37, 331, 33),
                PoolCase("far from zero", 1, 3, 90, 8, 2, "far"),
                PoolCase("logits in float32", 1, 40, 150, 72, mixed=True),
                PoolCase("19 classes, 101 positions in 2 parts", 1, 19, 101, 264, 2),
                PoolCase("one class, 40 positions in 2 parts", 1, 1, 40, 16, 2),
                PoolCase("32 classes, a part without positions", 1, 32, 90, 8, 4),
                PoolCase("300 classes", 1, 300, 130, 8),
                PoolCase("a NaN", 1, 20, 70, 4, 2, "nan"),
                PoolCase("a position of NaN", 1, 20, 70, 4, 2, "all nan"),
            ),
            (
                PoolCase("ADE, 150 classes, 5,504 positions", 1, 150, 5504),
                PoolCase("Cityscapes x8, 19 classes, 8,192 positions", 8, 19, 8192),
                PoolCase("LIP, 20 classes, 14,161 positions", 1, 20, 14161),
            ),
        ),
        Family(
            "resize",
            picture_trials.resize,
            (
                ResizeCase("11x33 to 17x57, BGR", (11, 33), (17, 57), bgr=True),
                ResizeCase("30x31 to 13x11, alpha", (30, 31), (13, 11), pixel=4),
                ResizeCase("16x44 to half", (16, 44), (8, 22)),
                ResizeCase("5x300 to 3x259, BGRA", (5, 300), (3, 259), bgr=True, pixel=4),
                ResizeCase("one pixel to 3x5", (1, 1), (3, 5)),
            ),
            (
                ResizeCase("480x640 to 512x683", (480, 640), (512, 683)),
                ResizeCase("1200x1600 to 512x683, BGR", (1200, 1600), (512, 683), bgr=True),
                ResizeCase("301x199 to 473x473", (301, 199), (473, 473)),
            ),
            ("fp32",),
        ),
        Family(
            "yuv_resize",
            picture_trials.yuv_resize,
            (
                YuvCase("12x34 to 17x57, NV12", (12, 34), (17, 57), YuvFormat("nv12")),
                YuvCase("12x34 to 17x57, I420", (12, 34), (17, 57), YuvFormat("i420")),
                YuvCase("the same size", (10, 132), (10, 132), YuvFormat("nv12")),
                YuvCase("30x32 to 13x11, BT.709, full", (30, 32), (13, 11), YuvFormat("i420", "bt709", "full")),
                YuvCase("2x2 to 3x5, BT.2020", (2, 2), (3, 5), YuvFormat("nv12", "bt2020")),
                YuvCase("16x44 to half, BT.601, full", (16, 44), (8, 22), YuvFormat("nv12", "bt601", "full")),
            ),
            (
                YuvCase("1080x1920 to 512x910, NV12", (1080, 1920), (512, 910), YuvFormat("nv12")),
                YuvCase("1080x1920 as it is, I420, BT.709", (1080, 1920), (1080, 1920), YuvFormat("i420", "bt709")),
            ),
            ("fp32",),
        ),
        Family(
            "gather",
            picture_trials.gather,
            (
                GatherCase("3 of 4 slots, alpha", (19, 61), PARTS, 4, 1, pixel=4),
                GatherCase("flipped, enlarged, BGR", (19, 61), PARTS, 4, bgr=True, first=-4),
                GatherCase("a band of 144 columns, BGRA", (21, 160), Inference("slide", (16, 144), (11, 100)), 4, 2,
                           bgr=True, pixel=4),
                GatherCase("whole", (9, 140), Inference(), 1),
            ),
            (
                GatherCase("ADE, whole 512x683", (512, 683), Inference(), 1),
                GatherCase("Cityscapes x8, 512x1024", (1024, 2048), CITY_MOST, 8, bgr=True),
                GatherCase("LIP, whole 473x473, scale 1.25", (473, 473), Inference(scales=(1.25,), flip=True), 2),
            ),
        ),
        Family(
            "gather_padded",
            picture_trials.gather,
            (
                GatherCase("3 of 4 slots, alpha, to 32", (19, 61), PARTS, 4, 1, pixel=4, multiple=32),
                GatherCase("flipped, enlarged, BGR, to 16", (19, 61), PARTS, 4, bgr=True, first=-4, multiple=16),
                GatherCase("whole, to 8", (9, 140), Inference(), 1, multiple=8),
            ),
            (GatherCase("Cityscapes x8, 512x1024", (1024, 2048), CITY_MOST, 8, bgr=True, multiple=32),),
        ),
        Family(
            "accumulate",
            picture_trials.accumulate,
            (
                MergeCase("19 classes, flip, probabilities", (15, 29), MOST, 19, pairs=PAIRS, rows=(8, 3)),
                MergeCase("one class, flip, probabilities", (15, 29), MOST, 1, rows=(8, 3)),
                MergeCase("aligned corners, flip", (15, 29), SMALL.replace(flip=True), 5, 4, PAIRS, (3, 4),
                          aligned=True),
                MergeCase("the first row", (15, 29), SMALL, 5, rows=(0, 1)),
                MergeCase("the last row, flip", (15, 29), SMALL.replace(flip=True), 5, pairs=PAIRS, rows=(-1, 1)),
                MergeCase("smaller than the window", (15, 29),
                          Inference("slide", (64, 17), (40, 11), (1.25,), flip=True), 5, pairs=PAIRS, rows=(9, 2)),
                MergeCase("whole, flip, probabilities", (15, 29), WHOLE_MOST.replace(scales=(1.25,)), 5, pairs=PAIRS),
                MergeCase("whole, flip", (15, 29), Inference(scales=(1.25,), flip=True), 5, pairs=PAIRS),
                MergeCase("20 classes, stride 4", (19, 27), MANY, 20, 4, LIP_PAIRS, (8, 2)),
                MergeCase("150 classes in 2 parts", (19, 27), MANY, 150, 8, LIP_PAIRS, (8, 2), 2),
                MergeCase("300 classes, stride 4", (19, 27), MANY, 300, 4, LIP_PAIRS, (8, 2), 1),
                MergeCase("35 classes in 3 parts", (9, 12), MOST, 35, 8, LIP_PAIRS, (8, 2), 3),
                MergeCase("35 classes in 2 parts, sums", (15, 29), SMALL, 35, rows=(3, 1), parts=2),
                MergeCase("narrow and low, flip, probabilities", (70, 7), WHOLE_MOST, 5, pairs=PAIRS),
                MergeCase("one low-resolution row", (8, 300), Inference("slide", (8, 150), (8, 100)), 5, rows=(1, 3)),
            ),
            (
                MergeCase("Cityscapes, 15 windows", (1024, 2048), CITY, 19),
                MergeCase("half of Cityscapes, flip, probabilities", (512, 1024), HALF, 19, rows=(192, 128)),
                MergeCase("LIP, whole, flip, probabilities", (473, 473), WHOLE_MOST, 20, 4, LIP_PAIRS),
                MergeCase("ADE, whole, flip, probabilities", (512, 683), WHOLE_MOST, 150),
            ),
        ),
        Family(
            "finish",
            picture_trials.finish,
            (
                FinishCase("2 volumes, 11 classes", ((4, 5), (7, 9)), (9, 31), 11),
                FinishCase("a band of 3 volumes", ((7, 40), (26, 150), (13, 61)), (26, 150), 11, (9, 3)),
                FinishCase("300 classes", ((5, 4),), (2, 131), 300),
                FinishCase("4 rows a thread, a band of 3 volumes", ((3, 5), (4, 90), (5, 1)), (19, 70), 11, (6, 9)),
                FinishCase("4 rows a thread, 300 classes", ((2, 4),), (7, 33), 300),
                FinishCase("4 rows a thread, every class twice", ((3, 4), (3, 5)), (11, 70), 14, twice=True),
                FinishCase("8 rows a thread, a band of 2 volumes", ((2, 3), (3, 70)), (23, 33), 11, (5, 14)),
                FinishCase("8 rows a thread, every class twice", ((2, 4),), (17, 9), 14, twice=True),
                FinishCase("8 rows a thread, 300 classes", ((2, 4),), (17, 9), 300),
            ),
            (
                FinishCase("Cityscapes, 1 scale", ((1024, 2048),), (1024, 2048), 19),
                FinishCase("ADE, whole, 3 scales", ((32, 43), (64, 86), (96, 129)), (480, 640), 150),
                FinishCase("LIP, whole, 3 scales", ((60, 60), (119, 119), (178, 178)), (473, 473), 20),
            ),
        ),
        Family(
            "threshold",
            picture_trials.finish,
            (
                FinishCase("2 volumes", ((4, 5), (7, 9)), (9, 31), 1),
                FinishCase("4 rows a thread, a band of 3 volumes", ((3, 5), (4, 90), (5, 1)), (19, 70), 1, (6, 9)),
                FinishCase("8 rows a thread", ((2, 3), (3, 70)), (23, 33), 1),
            ),
            (FinishCase("512x1024, 1 scale", ((512, 1024),), (512, 1024), 1),),
        ),
        Family(
            "upsample_argmax",
            picture_trials.upsample_argmax,
            (
                FinishCase("19 classes, 5x9 to 13x140", ((5, 9),), (13, 140), 19),
                FinishCase("every class twice", ((5, 9),), (13, 140), 18, twice=True),
                FinishCase("300 classes, 4x3 to 3x21", ((4, 3),), (3, 21), 300),
                FinishCase("8 rows a thread, every class twice", ((3, 9),), (23, 70), 18, twice=True),
                FinishCase("8 rows a thread, one column", ((3, 1),), (25, 9), 7),
                FinishCase("8 rows a thread, one row", ((1, 4),), (9, 67), 5),
                FinishCase("8 rows a thread, 300 classes", ((2, 3),), (15, 9), 300),
                FinishCase("4 rows a thread, 19 classes", ((4, 9),), (17, 70), 19),
                FinishCase("4 rows a thread, 300 classes", ((2, 3),), (9, 9), 300),
            ),
            (
                FinishCase("ADE, 512x683", ((64, 86),), (512, 683), 150),
                FinishCase("Cityscapes, 1024x2048", ((128, 256),), (1024, 2048), 19),
                FinishCase("LIP, 473x473", ((119, 119),), (473, 473), 20),
            ),
        ),
        Family(
            "finite",
            picture_trials.finite,
            (
                FiniteCase("9,001 values", 9001),
                FiniteCase("a NaN at the end", 4999, 4998),
                FiniteCase("a NaN at the beginning", 9001, 0),
                FiniteCase("infinity at the end of a block", 4096, 4095, float("inf")),
                FiniteCase("minus infinity", 3, 0, -float("inf")),
                FiniteCase("one value", 1),
            ),
            (FiniteCase("Cityscapes x8", 8 * 19 * 64 * 128), FiniteCase("ADE, a NaN", 150 * 64 * 86, 4096)),
        ),
    )
}  # fmt: skip
