"""Engines with the context plugins, really built by TensorRT-RTX, each batch of builds in a process of its own."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from children import explained, run_python
from export_models import random_model
from marks import needs_rtx

from isnet_trt.export.engines.profiles import shapes_for
from isnet_trt.export.functions import context_nodes
from isnet_trt.export.lowering import Arithmetic, lower_graph
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.quantise import calibrate
from isnet_trt.export.ranges import measure_ranges
from isnet_trt.export.tracing import export_graph
from isnet_trt.recipes import recipe

pytestmark = [pytest.mark.rtx, needs_rtx]
PROCESS = Path(__file__).parent / "engine_process.py"
ARITHMETICS = [Arithmetic(), Arithmetic("fp16"), Arithmetic("bf16"), Arithmetic("int8", "fp16")]
PUBLISHED = ("isnet_resnet50os8_ade20k", "isnet_resnet101os8_cityscapes", "isnet_resnest101os8_lip")


def build_all(jobs: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What the process saw for each job; it must have come to its end."""
    (folder / "jobs.json").write_text(json.dumps(jobs), "utf-8")
    ran = run_python(PROCESS, folder / "jobs.json", timeout=1800)
    assert ran.returncode == 0, explained(ran)
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(answers) == len(jobs)
    return answers


def job(graph: Path, name: str, arithmetic: Arithmetic, static: tuple[int, int] | None, **more: Any) -> dict[str, Any]:
    shapes = shapes_for(recipe(name), batch=2, static=static)
    options = {"context": more.pop("context", "plugin"), "targets": ["8.6", "12.0"]}
    fields = {"shapes": [shapes.smallest, shapes.usual, shapes.largest], "precision": arithmetic.precision}
    return {"graph": str(graph), "options": options, **fields, **more}


def saved(graph: onnx.ModelProto, arithmetic: Arithmetic, folder: Path) -> Path:
    """The graph in an arithmetic, calibrated on one made-up picture."""
    pixels = np.random.default_rng(1).standard_normal((1, 3, 65, 97)).astype(np.float32)
    table = calibrate(graph, [NetworkInput("noise", pixels)], progress=False) if arithmetic.eight_bits else None
    path = folder / f"{arithmetic}.onnx"
    onnx.save(lower_graph(graph, arithmetic, "tensorrt-rtx", measure_ranges(graph, [pixels]), table).engine, path)
    return path


def assert_plugins(answer: dict[str, Any], graph: onnx.ModelProto, kind: str, what: str) -> None:
    """One layer of a plugin for each context node, reading tensors of type ``kind``, and no other plugins."""
    assert "error" not in answer, (what, answer)
    inputs_of = {node: inputs for _, plugin, inputs, nodes in answer["layers"] if plugin for node in nodes}
    nodes = context_nodes(graph)
    assert sorted(node.op_type for node in nodes) == ["ContextAttention", "ContextAttention", "RegionPool"]
    for node in nodes:
        assert kind in inputs_of[node.name], (what, node.name, inputs_of)
    assert sum(plugin for _, plugin, _, _ in answer["layers"]) == 3, what


def test_every_arithmetic_static_and_free(graph: onnx.ModelProto, tmp_path: Path) -> None:
    cases = [(arithmetic, static) for arithmetic in ARITHMETICS for static in (None, (129, 161))]
    jobs = [job(saved(graph, arithmetic, tmp_path), "isnet_demo", arithmetic, static) for arithmetic, static in cases]
    for (arithmetic, static), answer in zip(cases, build_all(jobs, tmp_path), strict=True):
        kind = arithmetic.rest if arithmetic.eight_bits else arithmetic.precision
        assert_plugins(answer, graph, kind, f"{arithmetic} {static}")


def test_asked_and_built_must_agree(graph: onnx.ModelProto, tmp_path: Path) -> None:
    """A plugin that is missing, native layers where plugins were asked, and the other way round, leave no engine."""
    path, plain = saved(graph, Arithmetic(), tmp_path), Arithmetic()
    missing, asked, native, other, taken = build_all(
        [
            job(path, "isnet_demo", plain, (97, 129), **{"break": "unregistered"}),
            job(path, "isnet_demo", plain, (97, 129), **{"break": "bodies"}),
            job(path, "isnet_demo", plain, (97, 129), context="native"),
            job(path, "isnet_demo", plain, (97, 129), context="native", **{"break": "registered"}),
            job(path, "isnet_demo", plain, (97, 129), context="native", **{"break": "taken"}),
        ],
        tmp_path,
    )
    assert "ContextAttention node node_attention: " in missing["error"]
    assert "Plugin not found" in missing["error"]
    assert not missing["written"]
    assert asked["error"].startswith("plugin asked, native built: ContextAttention node node_attention became ")
    assert not asked["written"]
    assert not any(plugin for _, plugin, _, _ in native["layers"])
    assert not any(plugin for _, plugin, _, _ in other["layers"])  # somebody else's creators are not taken
    assert taken["error"].startswith("native context asked, plugin built: ContextAttention node node_attention")
    assert not taken["written"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_backbones(name: str, tmp_path: Path) -> None:
    """Of free and of one size in turn; both of every arithmetic are above. Engines of ResNeSt take over a minute."""
    graph = export_graph(random_model(name), name)
    sizes = itertools.cycle((None, (129, 161)))
    for arithmetic, static in zip(ARITHMETICS[: 2 if "resnest" in name else None], sizes, strict=False):
        path = saved(graph, arithmetic, tmp_path)
        kind = arithmetic.rest if arithmetic.eight_bits else arithmetic.precision
        (answer,) = build_all([job(path, name, arithmetic, static)], tmp_path)
        assert_plugins(answer, graph, kind, f"{name} {arithmetic}")
        assert answer["bytes"] > 0.2 * graph.ByteSize()
        path.unlink()
