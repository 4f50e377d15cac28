"""Reduce a graph to the smallest part that a TensorRT library cannot build, by polygraphy's ``debug reduce``.

polygraphy cuts the graph in halves, from its outputs and from its inputs, and tries each part
(`isnet_trt.engines.trial`). It infers the shapes at a cut with ONNX Runtime, which must be able to run the graph.
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/polygraphy/index.html
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.parser

import isnet_trt
from isnet_trt import cli
from isnet_trt.engines.table import compiling_kinds, library
from isnet_trt.engines.trial import REFUSED, TIMEOUT
from isnet_trt.errors import BuildError, EngineError, EngineUnavailable, SettingsError, install_hint
from isnet_trt.export.comparison_backends import load_graph
from isnet_trt.export.engines.tensorrt_family import fix_input
from isnet_trt.export.functions import remove_plugin_namespace
from isnet_trt.export.graph import INPUT, with_attention
from isnet_trt.files import write_output
from isnet_trt.telemetry.logs import logged

_log = logging.getLogger(__name__)
_SHAPE = (1, 3, 65, 97)
"""Small and odd: a refusal does not depend on the size."""
_CONTROL = """<ir_version: 8, opset_import: ["" : 17]>
control (float[1, 3, 8, 8] image) => (float[1, 3, 8, 8] logits) { logits = Relu (image) }"""
_TRIAL = [sys.executable, "-m", "isnet_trt.engines.trial"]
_BY_OTHERS = {
    int(getattr(signal, name, 0)) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGXCPU")
}
"""Signals that a library does not send to its own process; some systems lack some."""
# Not the command `polygraphy`, which may not be on PATH or may belong to another interpreter.
_POLYGRAPHY = [sys.executable, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())"]


def reduce_graph(
    one: str, kind: str, out: Path, say: Callable[[str], None], timeout: int = TIMEOUT, device: str = "auto"
) -> int:
    """Write the smallest part of a graph that the library ``kind`` cannot build to ``out``; returns the exit status.

    ``one`` is a bundle's folder or a ``.onnx`` file. A library that ends the process over a graph cannot build it
    either; parts are then counted that end it in the same way. A trial takes at most ``timeout`` seconds. 0: the
    library builds all of the graph, and nothing is written; 1: a part was written.

    Raises:
        SettingsError: ``kind`` is no TensorRT library, or ``one`` no graph.
        EngineUnavailable: polygraphy, onnx-graphsurgeon or the library is not installed.
        EngineError: the library cannot be tried, because it does not start, builds no graph at all, or does not come
            to an end in time.
        BuildError: polygraphy failed, for example because ONNX Runtime cannot run the graph; the message has the end of
            its output.
    """
    say = logged(say, _log)
    if kind not in compiling_kinds():
        raise SettingsError(f"--reduce asks {' or '.join(compiling_kinds())} what it refuses, not {kind!r}")
    library(kind).load()
    if missing := [name for name in ("polygraphy", "onnx_graphsurgeon") if importlib.util.find_spec(name) is None]:
        raise EngineUnavailable(f"--reduce needs {' and '.join(missing)}; {install_hint('build')}")
    # As a build passes it to the parser, which refuses the Scan of the blocked body.
    proto = with_attention(load_graph(one)[0], "plain")
    remove_plugin_namespace(proto)
    shape = _static_shape(proto)
    fix_input(proto, shape)
    with tempfile.TemporaryDirectory() as folder:
        trials = _Trials(kind, folder, timeout, device)
        onnx.save(proto, f"{folder}/whole.onnx")
        status, reason = trials.run("whole.onnx")
        if status == 0:
            say(f"{kind} builds all of {one}")
            return 0
        trials.check_control(reason)
        say(f"{kind} {reason}")
        say("looking for the smallest part that it cannot build …")
        trials.bisect(shape, status)
        # Once more: what polygraphy wrote counts only if it fails as the graph does.
        again, reason = trials.run("part.onnx")
        if again != status:
            raise BuildError(f"polygraphy debug reduce went astray: {kind} {reason}, but not as it did all of {one}")
        part = onnx.load(f"{folder}/part.onnx")
        _write(part, out)
        say(f"this part: {kind} {reason}")
    for node in part.graph.node:
        say(f"  {node.op_type} {node.name}: {', '.join(node.input)} -> {', '.join(node.output)}")
    say(f"written: {out}")
    return cli.FAILED


@dataclass(frozen=True)
class _Trials:
    """Trials of graphs in ``folder``, each in a process of its own, since the library may end it."""

    kind: str
    folder: str
    timeout: int
    device: str = "auto"

    @property
    def command(self) -> list[str]:
        """The command that tries the file whose name follows."""
        return [*_TRIAL, "--timeout", str(self.timeout), "--device", self.device, self.kind]

    def run(self, file: str) -> tuple[int, str]:
        """Exit status of building a graph, and what the library did: 0, `REFUSED`, or negative if it ended the process.

        Raises:
            EngineError: the library could not be tried, or not to the end: whether it builds the graph is not known.
        """
        process = _run([*self.command, file], self.folder)
        status, errors = process.returncode, process.stderr.strip()
        if status == 0:
            return 0, "builds it"
        if status == REFUSED:
            return REFUSED, f"refuses: {process.stdout.strip()[:300]}"
        if status == -signal.SIGALRM:
            raise EngineError(
                f"{self.kind} was still building after {self.timeout} seconds, so whether it refuses the graph is not "
                "known; give it more with --timeout"
            )
        if -status in _BY_OTHERS:
            raise EngineError(
                f"the trial of {self.kind} was ended by {signal.Signals(-status).name}, as the system does when memory "
                f"runs out, so whether it refuses the graph is not known: {errors[-300:]}"
            )
        if status < 0:
            return status, f"ends the process ({signal.Signals(-status).name}): {errors[-300:]}"
        raise EngineError(
            f"{self.kind} could not be tried (exit status {status}), so what it refuses is not known: {errors[-500:]}"
        )

    def check_control(self, reason: str) -> None:
        """Raise EngineError where the library builds not even a single Relu: then the graph is not what it refuses."""
        onnx.save(onnx.parser.parse_model(_CONTROL), f"{self.folder}/control.onnx")
        status, control = self.run("control.onnx")
        if status:
            raise EngineError(
                f"{self.kind} builds no graph here, so what it refuses is not known. A single Relu: it {control}. The "
                f"graph: it {reason}"
            )

    def bisect(self, shape: Sequence[int], status: int) -> None:
        """Let polygraphy write the smallest part of ``whole.onnx`` that ends with ``status`` to ``part.onnx``."""
        command = [*_POLYGRAPHY, "debug", "reduce", "whole.onnx", "-o", "part.onnx", "--quiet", "--mode", "bisect"]
        # --fail-code: a part that fails in another way, such as one that is invalid by itself, must not count.
        command += ["--model-input-shapes", f"{INPUT}:[{','.join(map(str, shape))}]", "--fail-code", str(status)]
        process = _run([*command, "--check", *self.command, "polygraphy_debug.onnx"], self.folder)
        if process.returncode or not Path(self.folder, "part.onnx").is_file():
            raise BuildError(f"polygraphy debug reduce failed: {(process.stdout + process.stderr).strip()[-500:]}")


def _static_shape(proto: onnx.ModelProto) -> tuple[int, int, int, int]:
    """The input's sizes, with those of `_SHAPE` where they are dynamic."""
    dimensions = proto.graph.input[0].type.tensor_type.shape.dim
    if len(dimensions) != len(_SHAPE):
        raise SettingsError(f"the graph's input has {len(dimensions)} axes, not (batch, 3, height, width)")
    batch, channels, height, width = (d.dim_value or s for d, s in zip(dimensions, _SHAPE, strict=True))
    return batch, channels, height, width


def _run(command: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder`` with this package importable, also from a checkout."""
    root = str(Path(isnet_trt.__file__).parents[1])
    path = os.pathsep.join(entry for entry in (root, os.environ.get("PYTHONPATH")) if entry)
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def _write(part: onnx.ModelProto, out: Path) -> None:
    used = {(node.domain, node.op_type) for node in part.graph.node}
    kept = [function for function in part.functions if (function.domain, function.name) in used]
    del part.functions[:]
    part.functions.extend(kept)
    write_output(out, part.SerializeToString(), "--reduce")
