"""Two graphs tensor by tensor, through the command line and under ONNX Runtime."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
from children import run_python
from export_models import altered
from marks import builds_rtx
from onnx import helper, numpy_helper
from small_bundle import manifest, save_model, write_bundle

from isnet_trt import cli
from isnet_trt.bundle import ONNX, new_bundle
from isnet_trt.engines.library import PRECISIONS
from isnet_trt.errors import BundleError
from isnet_trt.export import compare as command
from isnet_trt.export import comparison, reduce
from isnet_trt.export.comparison import BOUNDS, TensorErrors, compare, default_bound
from isnet_trt.export.comparison_backends import GraphBackend, TensorRTBackend, load_graph
from isnet_trt.export.graph import OUTPUT
from isnet_trt.export.lowering import Arithmetic, lower_graph
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.ranges import measure_ranges
from isnet_trt.training.scenes import draw_scene


def run(*arguments: object) -> int:
    return cli.run(command.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(graph: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one.onnx, its half.onnx, and a picture."""
    root = tmp_path_factory.mktemp("compare")
    pixels = np.random.default_rng(2).standard_normal((1, 3, 65, 97)).astype(np.float32)
    onnx.save(graph, root / "one.onnx")
    onnx.save(
        lower_graph(graph, Arithmetic("fp16"), "onnxruntime", measure_ranges(graph, [pixels])).portable,
        root / "half.onnx",
    )
    cv2.imwrite(str(root / "scene.png"), draw_scene(3, 72, 104).image[..., ::-1])
    return root


def test_half_precision_block_by_block(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder / "one.onnx", folder / "half.onnx", "--images", folder / "scene.png") == 0
    output = capsys.readouterr().out
    for block in ("backbone_net.stem (", "bottleneck (", "slc_net (", "logits "):
        assert block in output
    assert "on 1 pictures" in output
    assert output.startswith("bound 0.05: expected of fp16; the demo model's worst block has 0.001")
    assert output.rstrip().endswith("all within 0.05")


def test_every_tensor_and_a_tight_bound(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--all",
        "--worst",
        3,
        "--bound",
        1e-6,
        "--json",
        tmp_path / "found.json",
        "--images",
        folder / "scene.png",
    )
    assert run(folder / "one.onnx", folder / "half.onnx", *options) == cli.FAILED
    output = capsys.readouterr().out
    assert "the worst 3 of" in output
    assert output.startswith("bound 1e-06: given by --bound")
    assert output.count("<- beyond the bound") == 3
    data = json.loads((tmp_path / "found.json").read_text("utf-8"))
    names = [row["tensor"] for row in data["tensors"]]
    assert len(names) > 100
    assert names[-1] == OUTPUT
    assert all(row["rms"] < 0.05 for row in data["tensors"])
    first = next(row for row in data["tensors"] if not row["rms"] <= 1e-6)
    assert f"first beyond 1e-06: {first['tensor']}, made by {first['operator']}" in output


def test_where_it_begins_to_differ_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = onnx.load(str(folder / "one.onnx"))
    node = [n for n in graph.graph.node if n.op_type == "Conv"][9]
    onnx.save(altered(graph, {node.input[1]: lambda weight: weight * 1.5}), tmp_path / "broken.onnx")
    options = ("--all", "--images", folder / "scene.png")
    assert run(folder / "one.onnx", tmp_path / "broken.onnx", *options) == cli.FAILED
    assert f"first beyond 0.0005: {node.output[0]}, made by Conv" in capsys.readouterr().out
    assert (
        run(folder / "one.onnx", folder / "one.onnx", "--layers", "^conv2d_1$", "--images", folder / "scene.png") == 0
    )
    assert "conv2d_1 " in capsys.readouterr().out


def test_the_coarser_precision_of_two_sides_decides(folder: Path, tmp_path: Path) -> None:
    one, half = (GraphBackend(name, onnx.load(str(folder / f"{name}.onnx"))) for name in ("one", "half"))
    assert default_bound((one, one), (None, None)) == ("fp32", BOUNDS["fp32"])
    assert default_bound((one, half), (None, None)) == ("fp16", BOUNDS["fp16"])
    quantised = onnx.ModelProto()
    quantised.CopyFrom(one.proto)
    quantised.graph.node.append(helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"]))
    assert default_bound((GraphBackend("q", quantised), half), (None, None))[0] == "int8"
    bundle = write_bundle(tmp_path / "bundle")
    eight = replace(bundle, manifest=replace(bundle.manifest, precision="int8"))
    assert default_bound((one, one), (bundle, eight)) == ("int8", BOUNDS["int8"])
    assert set(BOUNDS) == set(PRECISIONS)
    assert BOUNDS["fp32"].rms < BOUNDS["fp16"].rms < BOUNDS["bf16"].rms < BOUNDS["int8"].rms < BOUNDS["fp8"].rms


def test_figures() -> None:
    row = TensorErrors("t", "Add", ())
    row.add(np.array([0.0, 2.0]), np.array([0.0, 2.5]))
    row.add(np.array([4.0, -np.inf]), np.array([4.0, -np.inf]))
    assert row.deviation == pytest.approx(np.std([0, 2, 4]))
    assert row.max == pytest.approx(0.5 / np.std([0, 2, 4]))
    assert row.rms == pytest.approx(0.5 / 3**0.5 / np.std([0, 2, 4]))
    row.add(np.array([1.0]), np.array([np.nan]))
    assert row.rms == np.inf
    same = TensorErrors("t", "Add", ())
    same.add(np.full(3, 7.0), np.full(3, 7.0))
    assert (same.rms, same.max) == (0.0, 0.0)


def test_groups_and_sizes_are_no_matter(graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    shapes = ((1, 3, 33, 41), (1, 3, 49, 35), (1, 3, 33, 41))
    pictures = [NetworkInput(str(i), rng.standard_normal(s).astype(np.float32)) for i, s in enumerate(shapes)]
    one, other = GraphBackend("one", graph), GraphBackend("other", graph)
    names = one.tensors[:5] + one.tensors[-2:]
    monkeypatch.setattr(comparison, "GROUP", 3)
    result = compare(one, other, pictures, names)
    assert [row.tensor for row in result.rows] == names
    assert {row.rms for row in result.rows} == {0.0}
    assert (result.agreement, result.pictures) == (1.0, 3)
    assert result.rows[0].count > 3 * 16 * 16 * 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "nowhere"), "nowhere is no bundle and no .onnx file"),
        (("{one}", "{text}"), "text.onnx cannot be read as an ONNX graph"),
        (("{one}", "{half}", "--layers", "("), "is no regular expression"),
        (("{one}", "{half}", "--layers", "nothing"), "have no tensor of one name that was asked for"),
        (("{one}", "{half}", "--images", "nowhere"), "nowhere: there is no such picture"),
        (("{one}", "onnxruntime"), "onnxruntime is no bundle"),
        (("{one}", "onnxruntime", "--reduce", "x"), "--reduce asks tensorrt or tensorrt-rtx what it refuses"),
    ],
)
def test_errors_in_words(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    names = {"one": folder / "one.onnx", "half": folder / "half.onnx", "text": tmp_path / "text.onnx"}
    assert (
        run(*(argument.format(**names) if argument.startswith("{") else argument for argument in arguments))
        == cli.ERROR
    )
    assert message in capsys.readouterr().err


def test_the_engine_of_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "small").folder
    cv2.imwrite(str(tmp_path / "scene.png"), draw_scene(3, 72, 104).image[..., ::-1])
    assert run(bundle, f"{bundle}:engine", "--images", tmp_path / "scene.png") == 0
    assert "labels equal 100.000 %" in capsys.readouterr().out


@builds_rtx
def test_a_graph_under_tensorrt_rtx(graph: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The engine that shows inner tensors is really built; to run it takes a GPU, and that is said."""
    side = TensorRTBackend("demo", graph, "tensorrt-rtx")
    path = side.build(side.tensors[3:6], (1, 3, 65, 97), tmp_path)
    assert path.stat().st_size > 1_000_000
    onnx.save(graph, tmp_path / "one.onnx")
    if importlib.util.find_spec("torch") and not __import__("torch").cuda.is_available():
        assert run(tmp_path / "one.onnx", "tensorrt-rtx") == cli.ERROR
        assert "needs an NVIDIA GPU to run" in capsys.readouterr().err


def strange(path: Path) -> None:
    """A graph with one node that TensorRT-RTX refuses and ONNX Runtime runs: unsigned eight bits."""
    nodes = [
        helper.make_node("Relu", ["image"], ["first"], name="first"),
        helper.make_node("QuantizeLinear", ["first", "scale", "zero"], ["eight"], name="the_strange_one"),
        helper.make_node("DequantizeLinear", ["eight", "scale", "zero"], ["back"], name="back"),
        helper.make_node("Sigmoid", ["back"], ["logits"], name="last"),
    ]
    shape = [1, 3, "height", "width"]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("image", "logits")]
    constants = [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.uint8(3), "zero")]
    graph = helper.make_graph(nodes, "strange", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@builds_rtx
def test_the_smallest_part_that_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    strange(tmp_path / "strange.onnx")
    assert run(tmp_path / "strange.onnx", "tensorrt-rtx", "--reduce", tmp_path / "small.onnx") == cli.FAILED
    output = capsys.readouterr().out
    assert "tensorrt-rtx refuses: QuantizeLinear node the_strange_one" in output
    assert "QuantizeLinear the_strange_one: first" in output
    assert [node.name for node in onnx.load(str(tmp_path / "small.onnx")).graph.node] == ["the_strange_one"]


def trial(monkeypatch: pytest.MonkeyPatch, path: Path, code: str, control: str = "sys.exit(0)") -> None:
    """Let ``code`` run over the graph's nodes, ``nodes``, in place of a library's trial; ``control`` over the Relu."""
    start = "import os, signal, sys, time, onnx\nfile = sys.argv[-1]\n"
    nodes = "nodes = [n.name for n in onnx.load(file).graph.node]\n"
    path.write_text(f"{start}if file == 'control.onnx': {control}\n{nodes}{code}\n")
    monkeypatch.setattr(reduce, "_TRIAL", [sys.executable, str(path)])
    monkeypatch.setattr(reduce, "library", lambda kind: SimpleNamespace(load=lambda: None))


def test_the_smallest_part_that_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts that cannot be tried, as the last node alone, are not taken for such."""
    pytest.importorskip("onnx_graphsurgeon")
    strange(tmp_path / "strange.onnx")
    code = "sys.exit('not tried') if 'first' not in nodes else os.abort() if 'the_strange_one' in nodes else None"
    trial(monkeypatch, tmp_path / "trial.py", code)
    assert run(tmp_path / "strange.onnx", "tensorrt-rtx", "--reduce", tmp_path / "small.onnx") == cli.FAILED
    output = capsys.readouterr().out
    assert "tensorrt-rtx ends the process (SIGABRT)" in output
    assert "this part: tensorrt-rtx ends the process (SIGABRT)" in output
    nodes = [node.name for node in onnx.load(str(tmp_path / "small.onnx")).graph.node]
    assert nodes == ["first", "the_strange_one"]


@pytest.mark.parametrize("code", ["sys.exit('error: CUDA does not start')", "raise OSError('CUDA does not start')"])
def test_a_library_that_cannot_be_tried_refuses_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    trial(monkeypatch, tmp_path / "trial.py", code)
    assert run(folder / "one.onnx", "tensorrt-rtx", "--reduce", tmp_path / "small.onnx") == cli.ERROR
    seen = capsys.readouterr()
    assert "tensorrt-rtx could not be tried (exit status 1)" in seen.err
    assert "CUDA does not start" in seen.err
    assert "refuses:" not in seen.out
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.parametrize(("code", "reason"), [("sys.exit(3)", "refuses"), ("os.abort()", "ends the process (SIGABRT)")])
def test_a_library_that_builds_no_graph_at_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str,
    reason: str,
) -> None:  # fmt: skip
    pytest.importorskip("onnx_graphsurgeon")
    trial(monkeypatch, tmp_path / "trial.py", code, control=code)
    assert run(folder / "one.onnx", "tensorrt-rtx", "--reduce", tmp_path / "small.onnx") == cli.ERROR
    seen = capsys.readouterr()
    assert f"tensorrt-rtx builds no graph here, so what it refuses is not known. A single Relu: it {reason}" in seen.err
    assert seen.out == ""
    assert not (tmp_path / "small.onnx").exists()


def test_a_trial_that_does_not_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    trial(monkeypatch, tmp_path / "trial.py", "signal.alarm(1)\ntime.sleep(600)")
    options = ("--reduce", tmp_path / "small.onnx", "--timeout", 1)
    assert run(folder / "one.onnx", "tensorrt-rtx", *options) == cli.ERROR
    assert "tensorrt-rtx was still building after 1 seconds, so whether it refuses" in capsys.readouterr().err
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
def test_a_trial_that_somebody_else_ends_is_no_refusal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    """As the system does where memory runs out."""
    pytest.importorskip("onnx_graphsurgeon")
    trial(monkeypatch, tmp_path / "trial.py", f"os.kill(os.getpid(), signal.{number})")
    assert run(folder / "one.onnx", "tensorrt-rtx", "--reduce", tmp_path / "small.onnx") == cli.ERROR
    seen = capsys.readouterr()
    assert f"the trial of tensorrt-rtx was ended by {number}, as the system does when memory runs out" in seen.err
    assert seen.out == ""
    assert not (tmp_path / "small.onnx").exists()


BUSY = """
import ctypes, sys
from isnet_trt.engines import trial
class Library:
    def refusal(self, path, gpu):
        ctypes.PyDLL(None).sleep(600)  # as a library that keeps the interpreter's lock
trial.library = lambda kind: Library()
trial.main(["--timeout", "1", "tensorrt-rtx", "graph.onnx"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no alarm signal")
def test_a_trial_ends_in_time_though_the_library_keeps_the_interpreters_lock() -> None:
    assert run_python("-c", BUSY).returncode == -signal.SIGALRM


@builds_rtx
def test_nothing_to_reduce(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    assert run(folder / "one.onnx", "tensorrt-rtx", "--reduce", tmp_path / "small.onnx") == 0
    assert "tensorrt-rtx builds all of" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@builds_rtx
def test_without_polygraphy(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    assert run(folder / "one.onnx", folder / "one.onnx", "--images", folder / "scene.png") == 0
    find = importlib.util.find_spec
    missing = {"polygraphy", "onnx_graphsurgeon"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in missing else find(name, *more))
    assert run(folder / "one.onnx", "tensorrt-rtx", "--reduce", folder / "small.onnx") == cli.ERROR
    output = capsys.readouterr().err
    assert "--reduce needs polygraphy and onnx_graphsurgeon; pip install '.[build]'" in output


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    output = capsys.readouterr().out
    for text in ("examples:", "--reduce", "exit status"):
        assert text in output


def test_a_bundles_graph_with_listed_and_with_unlisted_external_data(tmp_path: Path) -> None:
    with new_bundle(tmp_path / "external") as draft:
        save_model(draft.folder / ONNX, external=True)
        draft.finish(manifest())
    proto, bundle = load_graph(str(tmp_path / "external"))
    assert bundle is not None
    inside = onnx.load(save_model(tmp_path / "inside.onnx"))
    weights = [numpy_helper.to_array(graph.graph.initializer[0]) for graph in (proto, inside)]
    np.testing.assert_array_equal(*weights)
    with new_bundle(tmp_path / "unlisted") as draft:
        (draft.folder / ONNX).write_bytes(bundle.read(ONNX))
        draft.finish(manifest())
    (tmp_path / "unlisted" / "model.onnx.data").write_bytes(bundle.read("model.onnx.data"))
    with pytest.raises(BundleError, match=r"holds no model\.onnx\.data"):
        load_graph(str(tmp_path / "unlisted"))
