"""Drawn networks, settings and picture sizes: host and pipeline against `network_reference`.

The pipeline runs the kernels' NumPy references; `test_cuda_interpreted` and `test_cuda_plan_ptx` run the kernels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import network_reference
import numpy as np
import pytest
from cuda_host import Form, ReferenceKernels, picture
from hypothesis import given, settings
from hypothesis import strategies as st

from isnet_trt.cuda.plan import host_only
from isnet_trt.pictures.interop import image_from
from isnet_trt.pictures.preprocess import resize
from isnet_trt.settings import Inference, NetworkFacts, Preprocess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform"),
]


@st.composite
def networks(draw: st.DrawFn) -> tuple[int, NetworkFacts]:
    """Output channels, and the facts."""
    channels = draw(st.sampled_from([1, 2, 3, 7]))
    threshold = draw(st.sampled_from([0.3, 0.5, 0.7])) if channels == 1 else None
    facts = NetworkFacts(
        draw(st.sampled_from(["none", "sigmoid"] if channels == 1 else ["none", "sigmoid", "softmax"])),
        threshold,
        draw(st.sampled_from(["none", "half_pixel", "align_corners"])),
        draw(st.sampled_from([1, 7, 8, 32])),
        draw(st.sampled_from(["bottom_right", "centre"])),
        draw(st.sampled_from([None, (0, 128, 255)])),
    )
    return channels, facts


@st.composite
def inferences(draw: st.DrawFn) -> Inference:
    scales = draw(st.sampled_from([(1.0,), (0.5, 1.0, 1.75), (1.3, 0.9)]))
    options = {"scales": scales, "flip": draw(st.booleans()), "softmax_before_resize": draw(st.booleans())}
    if draw(st.booleans()):
        return Inference(**options)
    window = draw(st.tuples(st.integers(8, 50), st.integers(8, 60)))
    stride = draw(st.tuples(st.integers(5, window[0]), st.integers(5, window[1])))
    return Inference("slide", window, stride, **options)


@settings(max_examples=80, deadline=None)
@given(
    networks(), st.sampled_from([1, 2, 4, 8, 16]), inferences(), st.tuples(st.integers(6, 70), st.integers(6, 90)),
    st.sampled_from([None, (50, 40), (64, 48)]), st.booleans(), st.sampled_from(["rgb", "bgr"]), st.integers(1, 4),
    st.booleans(),
)  # fmt: skip
def test_labels_are_those_of_the_rules(
    tmp_path_factory, network, stride, inference, size, test_size, keep_ratio, order, batch, full
):
    channels, facts = network
    rule = Preprocess(test_size, keep_ratio, (100, 120, 140), (50, 60, 70), order)
    pairs = ((1, 2),) if channels > 2 else ()
    folder: Path = tmp_path_factory.mktemp("network")
    image = picture(*size)
    form = Form(folder, ReferenceKernels, channels, stride, pairs, rule, batch, full, network=facts, band_bytes=20_000)
    resized = resize(image, rule)
    pixels = resized[:, :, ::-1] if order == "bgr" else resized
    planes = ((pixels - np.array(rule.mean)) / rule.std).transpose(2, 0, 1)
    padding = (np.asarray(rule.mean if facts.padding_value is None else facts.padding_value) - rule.mean) / rule.std
    scores = network_reference.scores(form.host.engine.run, facts, planes, padding, size, inference, pairs)
    expected, margin = network_reference.labels(scores, facts, inference)
    clear = margin > 1e-4 * max(scores.std(), 0.01)
    assert clear.mean() > 0.9
    with form.host:
        assert (form.host(image, inference=inference).labels == expected)[clear].all()
    if not host_only(facts):
        with form:
            assert (form.pipeline(image_from(image), inference) == expected)[clear].all()
