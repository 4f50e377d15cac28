"""The last Resize of a network: removed where the merge computes the same from smaller logits.

What the merge takes over is a bilinear Resize to the size of the network's own input. Whether it gives the same scores
is checked by running both graphs (`isnet_trt.export.intake.graph`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from isnet_trt.export.graph import OUTPUT
from isnet_trt.merging.resample import taps
from isnet_trt.settings import Size, Upsampling

Enlargement = Literal["half_pixel", "align_corners"]
_MODES: dict[str, Enlargement] = {
    "half_pixel": "half_pixel",
    "pytorch_half_pixel": "half_pixel",
    "align_corners": "align_corners",
}


def last_resize(model: ir.Model) -> tuple[ir.Node, Enlargement] | None:
    """The bilinear Resize that gives the output of ``model``, and its kind; None where the last node is no such one."""
    node = model.graph.outputs[0].producer()
    if node is None or node.op_type != "Resize" or node.domain not in ("", "ai.onnx") or not node.inputs[0]:
        return None
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    kind = _MODES.get(mode or "")
    linear = node.attributes.get_string("mode", "nearest") == "linear"
    return (node, kind) if kind and linear and not node.attributes.get_int("antialias", 0) else None


def without_last_resize(model: ir.Model) -> ir.Model:
    """A copy of ``model``, which ends with a Resize, whose output is that node's input."""
    copy = model.clone()
    node = copy.graph.outputs[0].producer()
    assert node is not None
    assert node.inputs[0] is not None
    copy.graph.outputs[0].name = f"{OUTPUT}_enlarged"
    copy.graph.outputs[:] = [node.inputs[0]]
    passes.RemoveUnusedNodesPass()(copy)
    copy.graph.outputs[0].name = OUTPUT
    return copy


def enlarged(logits: NDArray[np.float32], size: Size, kind: Upsampling) -> NDArray[np.float32]:
    """``logits`` (B, K, h, w) at ``size`` (H, W) by bilinear interpolation, as the merge enlarges them."""
    if logits.shape[2:] == size:
        return logits
    rows, columns = (_weights(old, new, kind) for old, new in zip(logits.shape[2:], size, strict=True))
    return np.matmul(np.matmul(rows, logits), columns.T)


def _weights(old: int, new: int, kind: Upsampling) -> NDArray[np.float32]:
    """(new, old): each sample along one side as a weighted sum."""
    span, matrix = taps(old, new, 0, new, kind == "align_corners")
    return np.pad(matrix, ((0, 0), (span[0], old - span[1])))
