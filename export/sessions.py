"""ONNX Runtime sessions that return inner tensors of a graph."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from isnet_trt.engines.cores import usable_cores
from isnet_trt.engines.onnxruntime import LIBRARY
from isnet_trt.engines.time_limit import limited
from isnet_trt.export.onnx_edit import copied, save


@contextmanager
def open_session(
    proto: onnx.ModelProto, outputs: Iterable[str] = (), threads: int | None = None, *, optimised: bool = True
) -> Iterator[Any]:
    """An ``onnxruntime.InferenceSession`` on the CPU that can also return the tensors ``outputs``.

    Without ``optimised`` every node is computed as it stands in the graph.

    Raises:
        EngineUnavailable: ONNX Runtime is not installed.
    """
    onnxruntime = LIBRARY.load()
    graph = copied(proto)
    available = {value.name for value in (*graph.graph.output, *graph.graph.input)}
    # A name is enough: ONNX Runtime infers the type and shape of an output.
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in available)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 3 if optimised else 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        # Through a file: in memory, weights beyond protobuf's 2 GiB cannot be passed.
        path = Path(folder) / "graph.onnx"
        save(graph, path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run = functools.partial(_run, onnxruntime, session.run)
        yield session


def _run(runtime: Any, run: Callable[..., Any], *arguments: Any) -> Any:
    """A session's ``run``, which ends at the time limit."""
    options = runtime.RunOptions()
    options.log_severity_level = 4  # a failure is raised; it need not be on stderr as well
    with limited(options):
        return run(*arguments, options)
