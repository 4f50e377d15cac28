"""ONNX files of others: external data from the file's own folder only, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from foreign_networks import network
from onnx import TensorProto, helper, numpy_helper

from isnet_trt.errors import BuildError
from isnet_trt.export.intake.reading import read_onnx


def saved(folder: Path, location: str = "weights.bin") -> Path:
    path = folder / "model.onnx"
    onnx.save(network(), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def moved(path: Path, location: str) -> None:
    """Let all external data of a graph lie in ``location``."""
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    path.write_bytes(proto.SerializeToString())


def test_external_data_beside_the_file(tmp_path: Path) -> None:
    proto, digest = read_onnx(saved(tmp_path))
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in network().graph.initializer}
    assert all((numpy_helper.to_array(tensor) == expected[tensor.name]).all() for tensor in proto.graph.initializer)
    (tmp_path / "weights.bin").write_bytes((tmp_path / "weights.bin").read_bytes()[:-4] + b"\0\0\0\0")
    assert read_onnx(tmp_path / "model.onnx")[1] != digest


@pytest.mark.parametrize("kind", ["missing", "short", "link"])
def test_external_data_that_cannot_be_used(tmp_path: Path, kind: str) -> None:
    path, data = saved(tmp_path), tmp_path / "weights.bin"
    if kind == "short":
        data.write_bytes(data.read_bytes()[:-7])
    else:
        data.rename(tmp_path / "elsewhere")
        if kind == "link":
            data.symlink_to(tmp_path / "elsewhere")
    message = {"missing": "copy weights.bin into", "short": "incomplete", "link": "symbolic link"}[kind]
    with pytest.raises(BuildError, match=message):
        read_onnx(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret", "c:\\secret"])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(1 << 16))
    path = saved(folder)
    moved(path, location)
    with pytest.raises(BuildError, match="do not trust it"):
        read_onnx(path)


def test_external_data_of_a_constant_inside_a_branch(tmp_path: Path) -> None:
    """Tensors in attributes of subgraphs are read and checked as initializers are."""
    tensor = TensorProto(name="inner", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    inner = helper.make_node("Constant", [], ["value"], value=tensor)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("value", "y")]
    branch = helper.make_graph([inner], "branch", [], ends[:1])
    choice = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    entry = helper.make_tensor_value_info("x", TensorProto.BOOL, [])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([choice], "g", [entry], ends[1:])).SerializeToString())
    with pytest.raises(BuildError, match="do not trust it"):
        read_onnx(path)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x80\x02."])
def test_a_file_that_is_no_graph(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BuildError, match="cannot be read as an ONNX graph"):
        read_onnx(path)
    with pytest.raises(BuildError, match="cannot be read"):
        read_onnx(tmp_path)
