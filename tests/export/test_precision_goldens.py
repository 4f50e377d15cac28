"""Float16 and eight bits on the reference's fixtures: the logits, and how much of each block's output is left.

``pytest tests/export/test_precision_goldens.py -s`` prints the figures of docs/precision.md. What float16 gives through
bundle and runtime, with windows, scales and flip, is in test_goldens.
"""

from __future__ import annotations

from pathlib import Path

import golden_model
import numpy as np
import onnx
import pytest
from golden_files import GOLDEN, NEAR_TIES, load_golden

from isnet_trt.engines.base import Engine
from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.export.graph import OUTPUT, block_outputs, save_graph
from isnet_trt.export.lowering import Arithmetic, lower_graph
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.quantise import Flavour, calibrate, emulate_qdq, quantise
from isnet_trt.export.ranges import measure_ranges
from isnet_trt.export.sessions import open_session
from isnet_trt.export.tracing import export_graph

CHECK = load_golden("check_example")
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "cpu")
LEAST = {
    "isnet_resnet50os8": {"tensorrt": 0.92, "cpu": 0.95},
    "isnet_resnet101os8": {"tensorrt": 0.78, "cpu": 0.86},
    "isnet_resnest101os8": {"tensorrt": 0.93, "cpu": 0.95},
}
"""Cosine of every border and of the logits. Weights are made up, so nothing is redundant and rounding adds up over the
layers: measured were at least 0.948 and 0.972 with ResNet-50, 0.826 and 0.894 with ResNet-101,
0.961 and 0.980 with ResNeSt-101."""


class Logits:
    """An engine as the fixtures' comparison wants to see it."""

    def __init__(self, engine: Engine) -> None:
        self.logits = engine.run


def half(name: str, proto: onnx.ModelProto, x: np.ndarray, folder: Path) -> list[str]:
    """The comparisons that the float16 graph misses."""
    graph = lower_graph(proto, Arithmetic("fp16"), "tensorrt-rtx", measure_ranges(proto, [x])).portable
    save_graph(graph, folder / "half.onnx")
    with open_onnx(folder / "half.onnx", threads=2) as engine:
        rows = list(CHECK.rows(name, str(GOLDEN), lambda *_: Logits(engine), CHECK.BOUNDS["fp16"]))
    assert len(rows) == 4
    print(f"\n| {name} | " + " | ".join(text.split(" ")[0] for _, _, text in rows[1:]), end=" | ")
    return [f"{compared}: {text}" for compared, within, text in rows if not within]


def cosines(proto: onnx.ModelProto, x: np.ndarray) -> dict[Flavour, dict[str, float]]:
    """Of each flavour: border -> cosine between its output in eight bits and in float32, on the calibration input."""
    table = calibrate(proto, [NetworkInput("golden", x)], progress=False)
    tensors = {**block_outputs(proto), "logits": OUTPUT}

    def outputs(graph: onnx.ModelProto) -> list[np.ndarray]:
        with open_session(graph, tensors.values(), 2) as session:
            return [value.astype(np.float64) for value in session.run(list(tensors.values()), {"image": x})]

    exact = outputs(proto)
    result: dict[Flavour, dict[str, float]] = {}
    for flavour in FLAVOURS:
        pairs = zip(tensors, exact, outputs(emulate_qdq(quantise(proto, table, flavour))), strict=True)
        result[flavour] = {key: float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())) for key, a, b in pairs}
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", golden_model.NAMES)
def test_fixtures_in_lower_precision(name: str, tmp_path: Path) -> None:
    golden = np.load(GOLDEN / f"golden_{name}.npz")
    proto = export_graph(golden_model.model(name), name)
    x = golden_model.picture(golden["seed"], *golden["image_hw"]).numpy()
    wrong = half(name, proto, x, tmp_path)
    assert not [text for text in wrong if not text.startswith(NEAR_TIES.get(name, "none"))]
    result = cosines(proto, x)
    worst = {flavour: min(values, key=lambda key: values[key]) for flavour, values in result.items()}
    for flavour, values in result.items():
        print(f"{values['logits']:.3f} | {values[worst[flavour]]:.3f} ({worst[flavour]})", end=" | ")
    least = LEAST[name.rpartition("_")[0]]
    for flavour, values in result.items():
        assert values[worst[flavour]] > least[flavour], values
