"""Operations and bytes of a graph against counts by hand; blocks cut out; floors; fitted exponents; the border band."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from bench_bundles import tiny
from onnx import TensorProto, helper, numpy_helper

from benchmarks import blocks, growth, limit
from benchmarks.accuracy import _truth, boundary
from benchmarks.peers.networks import open_session
from isnet_trt import Segmenter
from isnet_trt.errors import SettingsError

MACHINE = limit.Rates({"slow": 1e9, "fast": 2e9}, {"only": 8e9}, {"copy": 1e8, "add": 2e8})


def graph() -> onnx.ModelProto:
    """A strided 3x3 convolution 3 -> 6 and ReLU, then a matrix product over the channels to 5."""
    w = np.ones((6, 3, 3, 3), np.float32)
    m = np.ones((5, 6), np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Reshape", ["r", "flat"], ["f"]),
        helper.make_node("MatMul", ["m", "f"], ["logits"]),
    ]
    tensors = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, "h", "w"]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 5, "n"]),
    ]
    constants = [
        numpy_helper.from_array(w, "w"),
        numpy_helper.from_array(m, "m"),
        numpy_helper.from_array(np.array([0, 6, -1], np.int64), "flat"),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", tensors[:1], tensors[1:], constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    model.metadata_props.append(onnx.StringStringEntryProto(key="isnet_trt.borders", value='{"stem": "r"}'))
    return model


def test_operations_and_bytes_by_hand() -> None:
    stem, tail = blocks.Network(graph(), (7, 11)).blocks()
    assert (stem.name, tail.name) == ("stem", blocks.TAIL)
    positions = 4 * 6  # ceil(7/2) x ceil(11/2)
    assert stem.operations == 2 * 6 * positions * 3 * 9
    assert tail.operations == 2 * 5 * positions * 6
    # float32: picture, weights and the tensor at the border; there is no traffic for what stays inside.
    assert stem.bytes == 4 * (3 * 7 * 11 + 6 * 27 + 6 * positions)
    assert tail.bytes == 4 * (6 * positions + 30 + 5 * positions) + 3 * 8


def test_context_operations_count_by_their_formula() -> None:
    shapes = {"q": (1, 20, 8), "k": (1, 30, 8), "v": (1, 30, 8), "o": (1, 20, 8), "l": (1, 5, 20), "f": (1, 20, 16)}
    attention = helper.make_node("ContextAttention", ["q", "k", "v", "bias"], ["o"], domain="isnet_trt")
    pool = helper.make_node("RegionPool", ["l", "f"], ["centres", "counts"], domain="isnet_trt")
    assert blocks.operations(attention, shapes) == 2 * 20 * 30 * (8 + 8)
    assert blocks.operations(pool, shapes) == 2 * 5 * 20 * 16
    assert blocks.operations(helper.make_node("Relu", ["q"], ["o"]), shapes) == 0


def test_a_size_that_the_graph_refuses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be run at"):
        blocks.Network(onnx.load(Path(tiny(tmp_path / "threes", batch=3)) / "model.onnx"), (33, 47))


def test_floor_is_the_larger_of_compute_and_memory() -> None:
    heavy = limit.stage("heavy", 4e9, 1e8, 4.0, MACHINE, quantised=False)
    assert (heavy["floor"], heavy["share"], heavy["bound"]) == (2.0, 0.5, "compute")
    light = limit.stage("light", 1e8, 2e8, 2.0, MACHINE, quantised=False)
    assert (light["floor"], light["bound"]) == (1.0, "memory")
    assert limit.stage("int8", 4e9, 1.0, 4.0, MACHINE, quantised=True)["floor"] == 0.5


def test_rates_are_measured_and_positive() -> None:
    machine = limit.measure_rates(threads=1, repeats=1)
    # A machine that runs this at all is somewhere between 10 MFLOP/s and 1 PFLOP/s.
    assert all(1e7 < rate < 1e15 for kind in (machine.fp32, machine.int8, machine.memory) for rate in kind.values())
    assert machine.matrix(False) == max(machine.fp32.values())


def test_the_better_of_two_measurements_counts() -> None:
    again = limit.Rates({"slow": 3e9, "fast": 1e9}, {"only": 7e9}, {"copy": 1e8, "add": 5e8})
    assert MACHINE.best(again) == limit.Rates({"slow": 3e9, "fast": 2e9}, {"only": 8e9}, {"copy": 1e8, "add": 5e8})


def test_blocks_of_a_model_are_timed_one_by_one() -> None:
    each, whole = blocks.Network(graph(), (65, 97)).seconds(threads=1, rounds=3)
    assert len(each) == 2
    assert all(s > 0 for s in (*each, whole))


def test_a_block_alone_computes_what_it_does_in_the_network() -> None:
    """Fed with the values of a run, the parts give the network's own logits, and hold nothing of one another."""
    network = blocks.Network(graph(), (33, 47))
    values = network.border_values(threads=1)
    assert set(values) == {"image", "r"}
    stem, tail = network.parts(values)
    assert [node.op_type for node in stem.graph.node] == ["Conv", "Relu"]
    assert [node.op_type for node in tail.graph.node] == ["Reshape", "MatMul"]
    (border,) = open_session(stem, 1).run(None, {"image": values["image"]})
    (logits,) = open_session(tail, 1).run(None, {"r": border})
    (expected,) = open_session(network.proto, 1).run(None, {"image": values["image"]})
    assert np.array_equal(border, values["r"])
    assert np.array_equal(logits, expected)


def test_a_quantised_border_belongs_to_the_block_before_it() -> None:
    proto = graph()
    pair = [
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["rq"]),
        helper.make_node("DequantizeLinear", ["rq", "s", "z"], ["rd"]),
    ]
    conv, relu, reshape, product = proto.graph.node
    reshape.input[0] = "rd"
    nodes = [conv, relu, *pair, reshape, product]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "s"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(3, np.uint8), "z"))
    network = blocks.Network(proto, (33, 47))
    assert network.quantised
    assert network.owner == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1}
    values = network.border_values(threads=1)
    assert set(values) == {"image", "rq"}
    stem, tail = network.parts(values)
    assert [output.name for output in stem.graph.output] == ["rq"]
    assert [node.op_type for node in tail.graph.node] == ["DequantizeLinear", "Reshape", "MatMul"]


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_fit_finds_the_exponent(exponent: float) -> None:
    x = [10.0, 20.0, 50.0, 70.0]
    slope, offset, error = growth.fit(x, [3.0 * v**exponent for v in x])
    assert slope == pytest.approx(exponent)
    assert np.exp(offset) == pytest.approx(3.0)
    assert error < 1e-6


def test_a_line_needs_three_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        growth.main([str(tmp_path), "--largest", "2"])
    assert "3, 4, 5" in capsys.readouterr().err


def test_every_axis_of_growth_is_measured(tmp_path: Path) -> None:
    with Segmenter.open(tiny(tmp_path / "tiny"), threads=1) as segmenter:
        for axis in growth.AXES:
            points = dict(itertools.islice(growth.series(axis, segmenter, 1), 3))
            record = growth.measure(axis, points, 1)
            assert len(record["x"]) == len(record["seconds"]) == 3
            assert all(s > 0 for s in record["seconds"])


def test_boundary_is_a_band_of_three_pixels() -> None:
    labels = np.zeros((20, 30), np.int64)
    labels[:, 17:] = 300  # above 8 bits
    band = boundary(labels)
    assert band[:, 14:20].all()
    assert not band[:, :14].any()
    assert not band[:, 20:].any()
    distance = cv2.distanceTransform((labels == 0).astype(np.uint8), cv2.DIST_C, 3)
    np.testing.assert_array_equal(band[labels == 0], distance[labels == 0] <= 3)


def test_labels_of_more_than_eight_bits_are_named(tmp_path: Path) -> None:
    """300 would be read as class 44."""
    image, gaps = np.zeros((4, 6, 3), np.uint8), []
    cv2.imwrite(str(tmp_path / "one.png"), np.full((4, 6), 300, np.uint16))
    assert _truth(tmp_path, "one.jpg", image, gaps) is None
    assert "8-bit grey" in gaps[0]["why"]
    cv2.imwrite(str(tmp_path / "one.png"), np.full((4, 6), 30, np.uint8))
    assert _truth(tmp_path, "one.jpg", image, gaps).tolist() == [[30] * 6] * 4
