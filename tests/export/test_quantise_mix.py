"""The search for a mix of precisions, against graphs whose cost is known, stored and reused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from export_models import altered

from isnet_trt.errors import BuildError
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.quantise import (
    Agreement,
    MeanIoU,
    Mix,
    Table,
    calibrate,
    find_mix,
    open_graph,
    quantisable_layers,
    quantise,
    sensitivity,
)
from isnet_trt.export.quantise.placement import Layer, select_layers
from isnet_trt.export.quantise.plot import draw
from isnet_trt.export.quantise.sensitivity import blocks
from isnet_trt.recipes import recipe


def picture(seed: int) -> NetworkInput:
    pixels = np.random.default_rng(seed).standard_normal((1, 3, 49, 67)).astype(np.float32)
    return NetworkInput(str(seed), pixels)


@pytest.fixture(scope="module")
def table(graph: onnx.ModelProto) -> Table:
    return calibrate(graph, [picture(1), picture(2)], progress=False)


class Planted:
    """Points lost as if each block had a fixed cost: what the search must find is known exactly."""

    unit = "planted points"
    costs: ClassVar = {
        "backbone_net.layer3.1": 3.0,
        "ilc_net.bottleneck": 1.0,
        "bottleneck": 0.4,
        "backbone_net.stem": 0.3,
    }

    def __init__(self, graph: onnx.ModelProto) -> None:
        self.layers, self.calls = quantisable_layers(graph), 0

    def __call__(self, proto: onnx.ModelProto) -> float:
        self.calls += 1
        used = {name for node in proto.graph.node for name in node.input}
        rounded = blocks([layer for layer in self.layers if layer.weight not in used])
        return 70 - sum(cost for name, cost in self.costs.items() if name in rounded)


@pytest.mark.parametrize(("bound", "kept"), [(5.0, 0), (4.0, 1), (1.75, 1), (1.0, 2), (0.35, 3), (0.0, 4)])
def test_search_keeps_the_least(graph: onnx.ModelProto, table: Table, bound: float, kept: int) -> None:
    result = find_mix(graph, table, "tensorrt", bound, Planted(graph), progress=False)
    assert result.skip == tuple(list(Planted.costs)[:kept])
    assert result.baseline == 70
    assert result.drop == pytest.approx(sum(list(Planted.costs.values())[kept:]))
    assert result.drop <= bound + 1e-9
    quantise(graph, table, "tensorrt", result.skip)  # what is stored is what `quantise` takes


def test_result_is_stored_reused_and_drawn(graph: onnx.ModelProto, table: Table, tmp_path: Path) -> None:
    first = Planted(graph)
    result = find_mix(graph, table, "fp8", 1.0, first, folder=tmp_path, progress=False)
    again = Planted(graph)
    assert find_mix(graph, table, "fp8", 1.0, again, folder=tmp_path, progress=False) == result
    assert first.calls > 20
    assert again.calls == 0
    assert find_mix(graph, table, "fp8", 2.0, again, folder=tmp_path, progress=False).max_drop == 2.0
    assert again.calls > 20  # another bound is another search
    draw(result, tmp_path / "mix.png")
    assert (tmp_path / "mix.png").read_bytes().startswith(b"\x89PNG")
    text = result.markdown()
    assert "| backbone_net.layer3.1 |" in text
    assert "Lost: 0.70" in text
    (tmp_path / "mix-fp8.json").write_text("{", "utf-8")
    with pytest.raises(BuildError, match="no stored mix"):
        Mix.load(tmp_path, "fp8")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.update(drop=float("nan")),
        lambda content: content.update(skip=["backbone_net.nothing"]),
        lambda content: content.update(flavour="cpu"),
        lambda content: content.update(steps=[[0, 1, 2]]),
        lambda content: content.pop("ranking"),
        lambda content: content.clear(),
    ],
)
def test_a_damaged_result_is_searched_again(
    graph: onnx.ModelProto, table: Table, tmp_path: Path, spoil: Callable[[dict[str, Any]], object]
) -> None:
    result = find_mix(graph, table, "fp8", 5.0, Planted(graph), folder=tmp_path, progress=False)
    file, warnings = tmp_path / "mix-fp8.json", list[str]()
    content = json.loads(file.read_text("utf-8"))
    spoil(content)
    file.write_text(json.dumps(content), "utf-8")
    again = find_mix(graph, table, "fp8", 5.0, Planted(graph), folder=tmp_path, progress=False, warn=warnings.append)
    assert again == result
    assert "searching again" in warnings[0]
    assert "remove it" in warnings[0]


def test_ranking_may_be_of_other_points(graph: onnx.ModelProto, table: Table) -> None:
    rank = Planted(graph)
    rank.unit = "finer points"
    result = find_mix(graph, table, "tensorrt", 1.0, Planted(graph), rank=rank, progress=False)
    assert (result.unit, result.ranked_by) == ("planted points", "finer points")
    assert "| block alone in eight bits | its multiply-adds, % | finer points lost, points |" in result.markdown()


def test_blocks_hold_every_layer_once(graph: onnx.ModelProto) -> None:
    result = quantisable_layers(graph)
    groups = blocks(result)
    assert [layer for members in groups.values() for layer in members] == result
    assert {"backbone_net.stem", "backbone_net.layer2.1", "ilc_net.bottleneck", "decoder_stage2"} <= set(groups)


def test_agreement_counts_labels(graph: onnx.ModelProto) -> None:
    agreement = Agreement(graph, [picture(3)], threads=2)
    assert agreement(graph) == 100
    # Every position becomes class 4.
    other = altered(graph, {"decoder_stage2.classifier.bias": lambda bias: bias + 1e6 * (np.arange(len(bias)) == 4)})
    with open_graph(graph, threads=2) as engine:
        expected = 100 * float((engine.run(picture(3).pixels).argmax(1) == 4).mean())
    assert agreement(other) == pytest.approx(expected)


def test_search_on_other_pictures_is_another(graph: onnx.ModelProto, table: Table, tmp_path: Path) -> None:
    for fingerprint in ("some pictures", "others"):
        evaluate = Planted(graph)
        evaluate.fingerprint = fingerprint
        find_mix(graph, table, "fp8", 5.0, evaluate, folder=tmp_path, progress=False)
        assert evaluate.calls > 0
    other = dataclasses.replace(table, source="another calibration")
    again = Planted(graph)
    again.fingerprint = "others"
    find_mix(graph, table, "fp8", 5.0, again, folder=tmp_path, progress=False)
    assert again.calls == 0
    find_mix(graph, other, "fp8", 5.0, again, folder=tmp_path, progress=False)
    assert again.calls > 0


def test_evaluations_know_their_pictures(graph: onnx.ModelProto) -> None:
    one, same, other = (Agreement(graph, [picture(seed)], threads=2).fingerprint for seed in (3, 3, 4))
    assert one == same != other
    demo = recipe("isnet_demo")
    image, truth = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    settings = [(image, demo.default), (image, demo.ms_flip), (image + 1, demo.default), (image, demo.default)]
    result = [MeanIoU(demo, [(shown[..., ::-1], truth)], inference, 8).fingerprint for shown, inference in settings]
    assert result[0] == result[3]
    assert len(set(result)) == 3


def test_search_is_summed_up(graph: onnx.ModelProto, table: Table) -> None:
    result = find_mix(graph, table, "tensorrt", 1.75, Planted(graph), progress=False)
    share = next(step.share for step in result.steps if step.kept == 1)
    assert result.summary() == (
        f"blocks kept out of eight bits: 1; in eight bits {100 * share:.1f} % of the multiply-adds; "
        "1.70 points of planted points lost"
    )


def layers_called(*names: str) -> list[Layer]:
    return [Layer(name, name, f"{name}.weight", "x", "y", "y") for name in names]


def test_blocks_of_other_networks_are_scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest block is divided first, none whose name is a layer's; each is a scope of `select_layers`."""
    layers = layers_called("net.enc.0.a", "net.enc.0.b", "net.enc.1.a", "net.dec.a", "net.dec.a.b", "head", "Conv_7")
    monkeypatch.setattr(sensitivity, "MOST_BLOCKS", 4)
    assert {name: len(group) for name, group in blocks(layers).items()} == {
        "net.enc": 3,
        "net.dec": 2,
        "head": 1,
        "Conv_7": 1,
    }
    monkeypatch.setattr(sensitivity, "MOST_BLOCKS", 24)
    result = blocks(layers)
    assert list(result) == ["net.enc.0.a", "net.enc.0.b", "net.enc.1", "net.dec", "head", "Conv_7"]
    for name, group in result.items():
        kept = select_layers(layers, [name])
        assert [layer for layer in layers if layer not in kept] == group
