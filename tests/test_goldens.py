"""The reference's outputs, met through the whole chain (checkpoint file, bundle, engine, runtime) and in fewer bits.

``pytest tests/test_goldens.py -m slow -s`` prints the figures of docs/precision.md. What float16 gives through bundle
and runtime, with windows, scales and flip, is shown for two of the twelve networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden_model
import numpy as np
import onnx
import pytest
import torch
from golden_files import GOLDEN, NEAR_TIES, load_golden

from isnet_trt import Segmenter
from isnet_trt.bundle import Bundle
from isnet_trt.engines.base import Engine
from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.export import EngineOptions, EvidenceOptions, PrecisionOptions, build
from isnet_trt.export.graph import OUTPUT, block_outputs, save_graph
from isnet_trt.export.lowering import Arithmetic, lower_graph
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.onnx_edit import copied
from isnet_trt.export.quantise import Flavour, calibrate, emulate_qdq, quantise
from isnet_trt.export.ranges import measure_ranges
from isnet_trt.export.sessions import open_session
from isnet_trt.export.tracing import export_graph

CHECK = load_golden("check_example")
WINDOWED = ("isnet_resnet50os8_ade20k", "isnet_resnest101os8_lip")
"""Two of the four fixtures with label maps of windows, scales and flip: in float16 a CPU takes minutes for each. The
logits of all twelve are in `test_logits_in_lower_precision`."""
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "cpu")
LEAST = {
    "isnet_resnet50os8": {"tensorrt": 0.92, "cpu": 0.95},
    "isnet_resnet101os8": {"tensorrt": 0.78, "cpu": 0.86},
    "isnet_resnest101os8": {"tensorrt": 0.93, "cpu": 0.95},
}
"""Cosine of every border and of the logits. Weights are made up, so nothing is redundant and rounding adds up over the
layers: measured were at least 0.948 and 0.972 with ResNet-50, 0.826 and 0.894 with ResNet-101,
0.961 and 0.980 with ResNeSt-101."""


class Candidate:
    """A segmenter as the fixtures' comparison wants to see it."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.logits = segmenter.logits
        self.segmenter = segmenter

    def scores(self, x: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
        return self.segmenter.score(x, tuple(settings["output_size"]), golden_model.inference_of(settings))


def marked(quick: tuple[str, ...]) -> list[Any]:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in golden_model.NAMES]


def missed(recipe: str, folder: Path, precision: str) -> tuple[list[str], Bundle]:
    """The comparisons out of their bounds, of a bundle built from the fixtures' weights."""
    torch.save({"model": golden_model.weights(recipe), "cur_epoch": 1}, folder / "released.pth")
    bundle = build(
        folder / "released.pth",
        folder / "bundle",
        engine=EngineOptions("onnxruntime"),
        precision=PrecisionOptions(precision),
        evidence=EvidenceOptions(gate_inputs=1),  # the gate is not what these tests are about
    )
    with Segmenter.open(folder / "bundle") as segmenter:
        rows = list(CHECK.rows(recipe, str(GOLDEN), lambda *_: Candidate(segmenter), CHECK.BOUNDS[precision]))
    stored = np.load(GOLDEN / f"golden_{recipe}.npz").files
    merged = sum(name.endswith("_settings") for name in stored)
    assert len(rows) == 4 + 3 * merged  # none was left out
    return [f"{compared}: {text}" for compared, within, text in rows if not within], bundle


@pytest.fixture(scope="module", params=marked(("isnet_resnet50os8_ade20k",)))
def exported(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[onnx.ModelProto]]]:
    """A recipe, and the graphs that the exporter, which takes half a minute, wrote of the fixtures' weights."""
    graphs: list[onnx.ModelProto] = []

    def export(*arguments: Any) -> onnx.ModelProto:
        graphs.append(export_graph(*arguments))
        return copied(graphs[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isnet_trt.export.sources.checkpoint.export_graph", export)
        yield request.param, graphs


def test_bundle_meets_the_reference(exported: tuple[str, list[onnx.ModelProto]], tmp_path: Path) -> None:
    recipe, _ = exported
    wrong, bundle = missed(recipe, tmp_path, "fp32")
    assert not wrong
    assert bundle.manifest.recipe == recipe  # found from the file's content


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
def test_logits_in_lower_precision(exported: tuple[str, list[onnx.ModelProto]], tmp_path: Path) -> None:
    name, graphs = exported
    golden = np.load(GOLDEN / f"golden_{name}.npz")
    proto = graphs[0] if graphs else export_graph(golden_model.model(name), name)
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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", WINDOWED)
def test_half_precision_meets_the_reference(recipe: str, tmp_path: Path) -> None:
    """Label maps of the float16 graph under ONNX Runtime, which stores float16, sums in float32, and is slow at it."""
    wrong, bundle = missed(recipe, tmp_path, "fp16")
    assert not [text for text in wrong if not text.startswith(NEAR_TIES.get(recipe, "none"))]
    assert bundle.manifest.precision == "fp16"
    islands = bundle.manifest.parity["graph"]["islands"]
    assert all("ReduceMean" in reason for reason in islands.values())
