"""Exports of small models, each made once: tracing takes seconds, and few of the tests that need a graph test it."""

from __future__ import annotations

import hashlib

import onnx

from isnet_trt.export.onnx_edit import copied
from isnet_trt.export.tracing import export_graph
from isnet_trt.training.model import ISNet

_graphs: dict[tuple[str, str], onnx.ModelProto] = {}


def export_once(model: ISNet, recipe: str) -> onnx.ModelProto:
    """What `export_graph` wrote for the same weights earlier in this process, or writes now."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    key = recipe, digest.hexdigest()
    if key not in _graphs:
        _graphs[key] = export_graph(model, recipe)
    return copied(_graphs[key])
