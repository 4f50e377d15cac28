"""Which arithmetic goes with which engine, and what each needs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from isnet_trt.engines.library import PRECISIONS
from isnet_trt.errors import SettingsError
from isnet_trt.export.lowering import Arithmetic, lower_graph
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.options import EngineOptions
from isnet_trt.export.quantise import calibrate
from isnet_trt.export.quantise.observers import OBSERVERS
from isnet_trt.export.ranges import measure_ranges
from isnet_trt.export.sessions import open_session

RMS = {"fp16": 5e-3, "bf16": 4e-2, "int8": 0.25, "fp8": 0.35}
"""Error of the logits over their standard deviation on the picture of the calibration; the weights are made up."""


@pytest.mark.parametrize(
    ("precision", "kind", "targets", "message"),
    [
        ("fp4", "onnxruntime", None, "there is: fp32, fp16, bf16, int8, fp8"),
        (
            "fp8",
            "onnxruntime",
            None,
            "no fp8 convolutions on a CPU or in its CUDA provider; .*--engine tensorrt or",
        ),
        ("fp8", "tensorrt-rtx", ("8.6", "8.9"), r"fp8 needs compute capability 8\.9 or newer, not 8\.6"),
        ("int8", "tensorrt-rtx", ("9.0",), r"does not build for compute capability 9\.0"),
    ],
)
def test_refusals(precision: str, kind: str, targets: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Arithmetic(precision).check(kind, EngineOptions(targets=targets))


def test_what_engines_have() -> None:
    for precision in PRECISIONS:
        Arithmetic(precision).check("tensorrt-rtx")
    for precision in ("fp32", "fp16", "bf16", "int8"):
        Arithmetic(precision).check("onnxruntime")
    with pytest.raises(SettingsError, match="not 'int8'"):
        Arithmetic("int8", "int8").check("tensorrt-rtx")


def test_needs(graph: onnx.ModelProto) -> None:
    with pytest.raises(SettingsError, match="--calib FOLDER"):
        lower_graph(graph, Arithmetic("int8"), "onnxruntime")
    with pytest.raises(SettingsError, match="needs the ranges"):
        lower_graph(graph, Arithmetic("fp16"), "onnxruntime")


@pytest.mark.parametrize(
    ("arithmetic", "kind"),
    [
        (Arithmetic("fp16"), "tensorrt-rtx"),
        (Arithmetic("bf16"), "tensorrt-rtx"),
        (Arithmetic("int8"), "tensorrt-rtx"),
        (Arithmetic("int8", "bf16"), "tensorrt-rtx"),
        (Arithmetic("fp16"), "onnxruntime"),
        (Arithmetic("bf16"), "onnxruntime"),
        (Arithmetic("int8"), "onnxruntime"),
        (Arithmetic("fp8"), "tensorrt-rtx"),
    ],
    ids=lambda value: str(value),
)
def test_portable_graph_runs_everywhere(
    graph: onnx.ModelProto, picture: np.ndarray, arithmetic: Arithmetic, kind: str
) -> None:
    """The graph that every bundle carries runs under ONNX Runtime and is near the float32 one, and not it."""
    table = calibrate(graph, [NetworkInput("noise", picture)], progress=False) if arithmetic.eight_bits else None
    graphs = lower_graph(graph, arithmetic, kind, measure_ranges(graph, [picture]), table)
    logits = []
    for proto in (graph, graphs.portable):
        with open_session(proto) as session:
            logits.append(session.run(None, {"image": picture})[0])
    if arithmetic.eight_bits:
        taken = graphs.about["ranges by observer"]
        assert set(taken) <= set(OBSERVERS)
        assert sum(taken.values()) >= 30
    rms = np.sqrt(((logits[1] - logits[0]) ** 2).mean()) / logits[0].std()
    assert RMS[arithmetic.precision] / 100 <= rms <= RMS[arithmetic.precision]
