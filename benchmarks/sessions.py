"""ONNX Runtime sessions of the benchmarks."""

from __future__ import annotations

import os
from typing import Any

import onnx


def open_session(
    model: onnx.ModelProto | str | os.PathLike[str], threads: int, provider: str = "CPUExecutionProvider"
) -> Any:
    """An ``onnxruntime.InferenceSession`` with all optimisations whose idle threads sleep.

    Several sessions wait for their turn in one run: a waiting pool must not spin on the cores of the one that is timed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # failures are raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else os.fspath(model)
    return onnxruntime.InferenceSession(source, options, providers=[provider])
