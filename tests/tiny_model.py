"""A real engine in miniature: one strided convolution under ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import small_bundle
from onnx import TensorProto, helper
from onnx_networks import save_network

from isnet_trt.bundle import ONNX, new_bundle
from isnet_trt.cuda.element_types import ELEMENT_TYPES
from isnet_trt.engines.base import Engine
from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.settings import Labels, Preprocess

STRIDE = 8


def weights(classes: int) -> np.ndarray:
    """Filters (classes, 3, 7, 7) float32."""
    return np.random.default_rng(classes).standard_normal((classes, 3, 7, 7), dtype=np.float32) / 7


def write_model(
    path: Path,
    classes: int,
    gain: float = 1.0,
    batch: int | str = "batch",
    stride: int = STRIDE,
    activation: str = "none",
    size: tuple[int | str, int | str] = ("height", "width"),
    logits: str = "fp32",
) -> Path:
    """An ONNX file: a 7x7 convolution, and its activation; ``gain`` scales its filters, batch and size may be fixed.

    ``logits`` is the type to which the result is rounded.
    """
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], strides=[stride, stride], pads=[3, 3, 3, 3])]
    if activation != "none":
        options = {"axis": 1} if activation == "softmax" else {}
        nodes.append(helper.make_node(activation.capitalize(), ["y"], ["p"], **options))
    output = TensorProto.DataType.Value(ELEMENT_TYPES[logits].onnx)
    if logits != "fp32":
        nodes.append(helper.make_node("Cast", [nodes[-1].output[0]], ["rounded"], to=output))
    return save_network(path, nodes, classes, {"w": weights(classes) * np.float32(gain)}, size, batch, output)


def open_tiny(folder: Path, classes: int, gain: float = 1.0) -> Engine:
    """The model, written to ``folder`` and opened."""
    return open_onnx(write_model(folder / f"tiny{classes}.onnx", classes, gain), threads=1)


def write_bundle(folder: Path, names: Labels, **changes: object) -> Path:
    """A bundle of the demo's recipe around the model, for pictures resized to 200x64; ``changes`` to its manifest."""
    fields = {"recipe": "isnet_demo", "preprocess": Preprocess((200, 64)), "output_stride": STRIDE, "parity": {}}
    manifest = small_bundle.manifest(labels=names, **(fields | changes))
    network = manifest.network
    with new_bundle(folder) as draft:
        options = {"stride": manifest.output_stride, "activation": network.activation}
        write_model(draft.folder / ONNX, network.channels(names), **options)
        draft.finish(manifest)
    return folder


def labels(classes: int, pairs: tuple[tuple[int, int], ...] = ((1, 2),)) -> Labels:
    """Names and colours for ``classes`` classes."""
    palette = tuple((37 * i % 256, 91 * i % 256, 151 * i % 256) for i in range(classes))
    return Labels(tuple(f"class {i}" for i in range(classes)), palette, pairs)
