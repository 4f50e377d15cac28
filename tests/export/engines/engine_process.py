"""Builds engines in a process of its own and tells what it saw: ``python engine_process.py JOB.json``.

A job is a list of builds: {"graph": path, "options": fields of EngineOptions, "shapes": three shapes, "precision":
name, "break": name of a fault to make first, or absent}. One line of JSON comes out for each.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx

from isnet_trt.cuda import plugins
from isnet_trt.engines.tensorrt_rtx import LIBRARY
from isnet_trt.errors import IsnetError
from isnet_trt.export.engines import tensorrt_family as tensorrt
from isnet_trt.export.engines.base import BuildRequest
from isnet_trt.export.engines.profiles import Shapes
from isnet_trt.export.engines.tensorrt_rtx import BUILDER
from isnet_trt.export.options import EngineOptions

KERNELS_FOR = plugins.kernels_for


@contextlib.contextmanager
def unregistered(*arguments: Any) -> Any:
    """`plugins.kernels_for` that registers nothing."""
    yield plugins.Host()


@contextlib.contextmanager
def registered(self: Any, module: Any, *rest: Any) -> Any:
    """A build that has plugins registered whatever was asked."""
    with KERNELS_FOR(module) as host:
        yield host


def run_job(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    graph = onnx.load(job["graph"])
    if job.get("break") in ("unregistered", "bodies"):
        plugins.kernels_for = unregistered
    if job.get("break") == "bodies":
        tensorrt.remove_bodies = lambda graph: None
    if job.get("break") == "registered":
        LIBRARY.allow_plugins(LIBRARY.load())
        tensorrt.TensorRTFamilyBuilder._plugins = registered
    if job.get("break") == "taken":
        tensorrt.remove_plugin_namespace = lambda graph: None
    options, shapes = EngineOptions(**job["options"]), Shapes(*(tuple(shape) for shape in job["shapes"]))
    path = folder / "model.engine"
    try:
        built = BUILDER.serialise(
            BuildRequest(graph, shapes, options, progress=False, precision=job["precision"]), path
        )
    except IsnetError as error:
        return {"error": str(error), "written": path.exists()}
    kinds = [[layer.kind, layer.plugin, list(layer.inputs), list(layer.nodes)] for layer in built.layers]
    return {"layers": kinds, "bytes": built.size}


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text("utf-8")):
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run_job(job, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
