"""Graphs whose loop does not end are stopped; others are not, and the engine goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from isnet_trt.engines import time_limit
from isnet_trt.engines.library import ModelContent
from isnet_trt.engines.onnxruntime_cpu import OnnxRuntimeEngine
from isnet_trt.errors import SettingsError, TimeLimitExceeded
from isnet_trt.export.intake.graph import take_in
from isnet_trt.settings import Preprocess

_WHILE_DARK = """<ir_version: 9, opset_import: ["" : 17]>
network (float[N, 3, H, W] image) => (float[N, 2, h, w] logits) {
  most = Constant <value: tensor = int64 {9223372036854775807}> ()
  start = Constant <value: tensor = bool {1}> ()
  weight = Constant <value: tensor = float[2, 3, 1, 1] {1, 2, 3, 3, 2, 1}> ()
  last = Loop (most, start, image) <
    body = body (int64 number, bool before, float[N, 3, H, W] x) => (bool again, float[N, 3, H, W] y) {
      bound = Constant <value: tensor = float {BOUND}> ()
      brightest = ReduceMax <keepdims: int = 0> (x)
      again = Less (brightest, bound)
      y = STEP
    }>
  logits = Conv (last, weight)
}"""
"""Repeats STEP until a value reaches BOUND."""


def network(bound: str = "8", step: str = "Add (x, x)") -> onnx.ModelProto:
    return onnx.parser.parse_model(_WHILE_DARK.replace("BOUND", bound).replace("STEP", step))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "time_limit", lambda: 0.2)


@pytest.mark.usefixtures("short")
def test_a_loop_that_does_not_end_is_stopped_and_the_engine_goes_on() -> None:
    content = ModelContent(network().SerializeToString())
    engine = OnnxRuntimeEngine(onnxruntime, Path("model.onnx"), content=content)
    for _ in range(2):
        with pytest.raises(TimeLimitExceeded, match=r"after 0\.2 s and was ended.*set ISNET_TRT_MAX_SECONDS"):
            engine.run(np.zeros((1, 3, 4, 4), np.float32))
        ones = engine.run(np.ones((1, 3, 4, 4), np.float32))
        assert (ones == np.full((1, 2, 4, 4), 6 * 16)).all()  # 2, 4, 8, 16: the condition is that of the value before


@pytest.mark.usefixtures("short")
def test_a_build_names_the_network_whose_loop_does_not_end() -> None:
    preprocess = Preprocess((512, 512))
    with pytest.raises(TimeLimitExceeded, match=r"net\.onnx: the network was still running"):
        take_in(network("1e9", "Identity (x)"), preprocess, 2, "net.onnx")
    assert take_in(network("3"), preprocess, 2, "net.onnx").probed.stride == 1


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "ten", "1000000", "1e3"])
def test_the_limit_is_a_whole_number_of_seconds(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(time_limit.LIMIT_VARIABLE, text)
    with pytest.raises(SettingsError, match=f"ISNET_TRT_MAX_SECONDS is '{text}'"):
        time_limit.time_limit()
    monkeypatch.setenv(time_limit.LIMIT_VARIABLE, "12")
    assert time_limit.time_limit() == 12
