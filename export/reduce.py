"""The smallest part of a graph that a TensorRT library refuses, by polygraphy's ``debug reduce``.

polygraphy cuts the graph in halves, from its outputs and from its inputs, and asks after each cut
(`isnet_trt.engines.trial`); the shapes at a cut it gets from ONNX Runtime, which must be able to run the graph.
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/polygraphy/index.html
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx

from isnet_trt import cli
from isnet_trt.engines.table import compiling_kinds, library
from isnet_trt.errors import BuildError, EngineUnavailable, SettingsError
from isnet_trt.export.comparison_backends import load_graph
from isnet_trt.export.engines.tensorrt_family import fix_input
from isnet_trt.export.functions import remove_plugin_namespace
from isnet_trt.export.graph import INPUT, with_attention

_SHAPE = (1, 3, 65, 97)
"""Small and odd: what a library refuses, it refuses at any size."""
_POLYGRAPHY = "import sys; from polygraphy.tools import main; sys.exit(main())"


def reduce_graph(one: str, kind: str, out: Path, say: Callable[[str], None]) -> int:
    """Write the smallest part of a graph that the library ``kind`` cannot build to ``out``; returns the exit status.

    ``one`` is a bundle's folder or a ``.onnx`` file. 0: the library builds all of it, and nothing is written; 1: a part
    was found.

    Raises:
        SettingsError: ``kind`` is no TensorRT library, or ``one`` no graph.
        EngineUnavailable: polygraphy, onnx-graphsurgeon or the library is not installed.
        BuildError: polygraphy failed, such as where ONNX Runtime cannot run the graph; its last words are given.
    """
    if kind not in compiling_kinds():
        raise SettingsError(f"--reduce asks {' or '.join(compiling_kinds())} what it refuses, not {kind!r}")
    library(kind).load()
    if missing := [name for name in ("polygraphy", "onnx_graphsurgeon") if importlib.util.find_spec(name) is None]:
        raise EngineUnavailable(f"--reduce needs {' and '.join(missing)}; pip install 'isnet_trt[build]'")
    proto = with_attention(load_graph(one)[0], "plain")
    remove_plugin_namespace(proto)
    with tempfile.TemporaryDirectory() as folder:
        fix_input(proto, _static(proto))
        onnx.save(proto, f"{folder}/whole.onnx")
        ask = [sys.executable, "-m", "isnet_trt.engines.trial", kind]
        answer = _ask([*ask, "whole.onnx"], folder)
        if not answer.returncode:
            say(f"{kind} builds all of {one}")
            return 0
        say(f"{kind} refuses: {answer.stdout.strip()[:300]}")
        say("looking for the smallest part that it refuses …")
        command = [sys.executable, "-c", _POLYGRAPHY, "debug", "reduce", "whole.onnx", "-o", "part.onnx", "--quiet"]
        command += ["--mode", "bisect", "--model-input-shapes", f"{INPUT}:[{','.join(map(str, _static(proto)))}]"]
        ran = _ask([*command, "--check", *ask, "polygraphy_debug.onnx"], folder)
        if ran.returncode or not Path(folder, "part.onnx").is_file():
            raise BuildError(f"polygraphy debug reduce failed: {(ran.stdout + ran.stderr).strip()[-500:]}")
        part = onnx.load(f"{folder}/part.onnx")
        _write(part, out)
        say(f"{kind} refuses this part: {_ask([*ask, 'part.onnx'], folder).stdout.strip()[:300]}")
    for node in part.graph.node:
        say(f"  {node.op_type} {node.name}: {', '.join(node.input)} -> {', '.join(node.output)}")
    say(f"written: {out}")
    return cli.FAILED


def _static(proto: onnx.ModelProto) -> tuple[int, int, int, int]:
    """The input's sizes; those that are free get small ones."""
    dimensions = proto.graph.input[0].type.tensor_type.shape.dim
    if len(dimensions) != len(_SHAPE):
        raise SettingsError(f"the graph's input has {len(dimensions)} axes, not (batch, 3, height, width)")
    batch, channels, height, width = (d.dim_value or s for d, s in zip(dimensions, _SHAPE, strict=True))
    return batch, channels, height, width


def _ask(command: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder``, with this package importable from wherever it is."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in (_root(), os.environ.get("PYTHONPATH")) if p)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def _root() -> str:
    import isnet_trt

    return str(Path(isnet_trt.__file__).parents[1])


def _write(part: onnx.ModelProto, out: Path) -> None:
    used = {(node.domain, node.op_type) for node in part.graph.node}
    kept = [function for function in part.functions if (function.domain, function.name) in used]
    del part.functions[:]
    part.functions.extend(kept)
    try:
        out.write_bytes(part.SerializeToString())
    except OSError as error:
        raise SettingsError(f"--reduce {out} cannot be written: {error.strerror or error}") from None
