"""`accumulate` against its reference."""

from __future__ import annotations

import numpy as np
import pytest
from interpreter import values
from merging import Head, Scale, answers, plan_of

from isnet_trt.settings import Inference

# Sums of a few products in float32; the logits, up to 12 here, are the engine's and exact in its type.
TOLERANCE = 1e-5

SLIDE = Inference("slide", (12, 17), (7, 11), (1.25,))
CASES = {
    "windows": SLIDE,
    "windows-flip": SLIDE.replace(flip=True),
    "windows-flip-probabilities": SLIDE.replace(flip=True, softmax_before_resize=True),
    "smaller-than-the-window": Inference("slide", (64, 17), (40, 11), (1.25,), flip=True),
    "whole-flip-probabilities": Inference(flip=True, softmax_before_resize=True, scales=(1.25,)),
    "whole-flip": Inference(flip=True, scales=(1.25,)),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "fp32") for name in CASES), ("windows-flip", "fp16"), ("windows-flip", "bf16")]
)
def test_rows_of_the_volume(name, dtype):
    plan = plan_of((15, 29), CASES[name])
    head = Head(5, 8, ((1, 2), (3, 4)))
    scale = Scale(plan, head, answers(plan, head, dtype), 1.25, dtype)
    wanted, middle, height = scale.reference(), scale.size[0] // 2, scale.size[0]
    for first, stop in ((0, 1), (middle, middle + 2), (height - 1, height)):
        np.testing.assert_allclose(values(scale.rows(first, stop)), wanted[:, first:stop], atol=TOLERANCE)


@pytest.mark.parametrize(("classes", "stride"), [(20, 4), (150, 8), (300, 8)])
def test_numbers_of_classes(classes, stride):
    plan = plan_of((19, 27), Inference("slide", (16, 16), (11, 11), flip=True, softmax_before_resize=True))
    head = Head(classes, stride, ((14, 15), (16, 17), (18, 19)))
    scale = Scale(plan, head, answers(plan, head, "fp16"), 1.0, "fp16")
    np.testing.assert_allclose(values(scale.rows(8, 10)), scale.reference()[:, 8:10], atol=TOLERANCE)
