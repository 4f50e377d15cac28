"""What adding an engine library takes: its two modules and its name in the table."""

from __future__ import annotations

from children import explained, run_python

ADDED = """
import sys, types
from isnet_trt.engines import table
from isnet_trt.engines.library import Library

class Added(Library):
    kind, title, module, packages, install = "added-one", "Added One", "json", ("added",), "added"
    precisions = {"fp32": "float32, by the added library"}

def module(name, **content):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(content)

module("isnet_trt.engines.added_one", LIBRARY=Added())
table.KINDS = (*table.KINDS, "added-one")

from isnet_trt.export.engines.base import EngineBuilder

class Builder(EngineBuilder):
    library, eight_bits = Added(), {}

module("isnet_trt.export.engines.added_one", BUILDER=Builder())

from isnet_trt.commands import build
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.select import check_engine, choose, look
from isnet_trt.errors import SettingsError
from isnet_trt.export.lowering import Arithmetic
from isnet_trt.export.options import EngineOptions

assert choose("added-one").reason == "asked for"
assert "added-one" in look().versions
check_engine(EngineInfo("added-one", "1", "model.onnx"))
Arithmetic().check("added-one")
for arithmetic, options in ((Arithmetic("fp16"), None), (Arithmetic(), EngineOptions(workspace=1))):
    try:
        arithmetic.check("added-one", options)
    except SettingsError as error:
        print(error)
build.main(["--help"])
"""


def test_a_library_that_is_added() -> None:
    """In a process of its own, since the command lines read the table when they are imported."""
    ran = run_python("-c", ADDED)
    assert ran.returncode == 0, explained(ran)
    refused, without, *lines = ran.stdout.splitlines()
    assert refused.startswith("Added One has no fp16 convolutions on a CPU; use fp32, or --engine tensorrt or ")
    assert without == "--workspace is for TensorRT and TensorRT-RTX; added-one has no such setting"
    assert any("{auto,tensorrt,tensorrt-rtx,onnxruntime,added-one}" in line for line in lines)
    assert any("added-one (CPU)" in line for line in lines)
    assert any("float32, by the added library" in line for line in lines)
