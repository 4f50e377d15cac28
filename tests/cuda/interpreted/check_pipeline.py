"""The label maps of the pipeline, with the real kernels in the interpreter, against those of the host form."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from cuda_host import CASES, SLIDE, WHOLE, Form, picture

from isnet_trt import NV12, Inference
from isnet_trt.pictures.interop import image_from
from tests.interpreter import use_interpreter
from tests.kernels.variants import TritonKernels

use_interpreter()

QUICK = {"whole", "smaller-than-the-window"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_label_maps_are_those_of_the_host(name, tmp_path):
    size, inference, options = CASES[name]
    with Form(tmp_path, lambda classes: TritonKernels(classes=classes), **options) as form:
        for seed in (0, 1):  # eagerly, then as a graph
            form.run(picture(*size, seed), inference)
        assert form.pipeline.description == "CUDA graphs"
        assert len(form.gpu.graphs) == 1
        assert form.gpu.peak <= form.pipeline.plan(size, inference).bytes


@pytest.mark.slow
@pytest.mark.parametrize("logits", ["fp16", "bf16"])
def test_logits_in_half_precision_are_read_as_they_are(logits, tmp_path):
    def kernels(classes):
        return TritonKernels(classes=classes, logits=logits)

    with Form(tmp_path, kernels, logits=logits) as form:
        for inference in (WHOLE, Inference(scales=(0.5, 1.0)), SLIDE.replace(flip=True)):
            form.run(picture(17, 24), inference)
        launched = {name.partition("_rows")[0] for name in form.kernels.launched}
        assert {f"{name}_{logits}_u8" for name in ("upsample_argmax", "finish")} <= launched
        assert {f"accumulate_{logits}_k5", f"finite_{logits}", "finish_fp32_u8"} <= launched


def test_yuv_is_converted_in_the_resize(tmp_path):
    frame = cv2.cvtColor(picture(32, 46), cv2.COLOR_RGB2YUV_I420)
    u, v = frame[32:].reshape(2, 16, 23)
    image = NV12(frame[:32], np.dstack([u, v]))
    with Form(tmp_path, lambda classes: TritonKernels(classes=classes)) as form:
        form.check(image.rgb(), form.pipeline(image_from(image), WHOLE))
        assert form.kernels.launched[0] == "yuv_resize"
