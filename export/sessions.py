"""ONNX Runtime sessions that show what happens inside a graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from isnet_trt.engines.cores import usable_cores

LARGEST_PROTOBUF = 2**31 - 2**24


@contextmanager
def open_session(proto: onnx.ModelProto, outputs: Iterable[str] = (), threads: int | None = None) -> Iterator[Any]:
    """A session on the CPU of ``proto`` that can also return the tensors called ``outputs``."""
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    there = {value.name for value in (*probe.graph.output, *probe.graph.input)}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in there)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save_model(probe, str(path), save_as_external_data=probe.ByteSize() > LARGEST_PROTOBUF)
        yield onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
