"""Export of a PyTorch model to the float32 ONNX graph that the lowering of every engine starts from."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import torch
from onnx.defs import OpSchema
from onnxscript import values
from torch import nn

from isnet_trt._version import __version__
from isnet_trt.errors import BuildError
from isnet_trt.export import functions
from isnet_trt.export.graph import INPUT, OUTPUT, note_source
from isnet_trt.settings import Size
from isnet_trt.training.model import ISNet, inference_form

BLOCKS = (
    "backbone_net.stem",
    "backbone_net.layer1",
    "backbone_net.layer2",
    "backbone_net.layer3",
    "backbone_net.layer4",
    "bottleneck",
    "ilc_net",
    "decoder_stage1",
    "slc_net",
)
"""Modules whose outputs the parity gate compares, in the order of computation."""
_SAMPLE = (73, 105)
"""Size of the traced input: odd sizes keep the rounding of strides general."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Terminal colours in the exporter's messages."""


def export_graph(model: ISNet, recipe: str) -> onnx.ModelProto:
    """Export the inference form of ``model``.

    Input ``image`` (batch, 3, height, width) float32, normalised RGB; output ``logits`` (batch, K, h, w). Batch, height
    and width are dynamic. The context operations are nodes of the domain ``isnet_trt`` with function bodies.

    Raises:
        BuildError: the exporter failed; the end of its output is in the message.
    """
    proto = traced(inference_form(model))
    functions.attach(proto)
    proto.producer_name, proto.producer_version = "isnet_trt", __version__
    # Before `_strip`: the blocks' borders are read from the metadata that it removes.
    note_source(proto, recipe, _traced_blocks(proto))
    _strip(proto)
    return proto


def traced(model: nn.Module, size: Size = _SAMPLE, multiple: int | None = 1) -> onnx.ModelProto:
    """The graph of a module that maps ``image`` (batch, 3, height, width) to ``logits``, as the exporter writes it.

    It is traced on two images of ``size``, whose sides are multiples of ``multiple``, and takes all other such sizes;
    with ``multiple`` None it takes ``size`` only.

    Raises:
        BuildError: the exporter failed; the end of its output is in the message.
    """
    with _quiet() as output:
        try:
            return _export(model, size, multiple)
        except Exception as error:  # the exporter raises exceptions of many libraries
            message = f"the ONNX exporter failed: {error}\n{output.getvalue()[-2000:]}"
            raise BuildError(_COLOURS.sub("", message)) from error


def _export(model: nn.Module, size: Size, multiple: int | None) -> onnx.ModelProto:
    free: dict[int, Any] = {0: torch.export.Dim("batch")}
    if multiple is not None:
        height, width = torch.export.Dim("height"), torch.export.Dim("width")
        free |= {2: height * multiple, 3: width * multiple} if multiple > 1 else {2: height, 3: width}
    program = torch.onnx.export(
        model,
        # Batch 1 would become a constant.
        (torch.zeros(2, 3, *size),),
        # Only this exporter has a table of translations for custom operators.
        dynamo=True,
        opset_version=functions.OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=(free,),
        custom_translation_table=_translations(),
        verbose=False,
    )
    if program is None:
        raise BuildError("the exporter returned nothing")
    proto = program.model_proto
    if multiple is not None and any(side.dim_value for side in proto.graph.input[0].type.tensor_type.shape.dim[2:]):
        raise BuildError("it fixed the sizes, since the module branches on them or counts with them")
    return proto


def _translations() -> dict[Callable, Callable]:
    """Custom operators of the model -> functions that write them as nodes of the domain ``isnet_trt``."""
    region_pool = _operator("RegionPool", ("logits", "features"), ("centres", "log_counts"))
    attention = _operator("ContextAttention", ("q", "k", "v", "bias"), ("out",), scale=OpSchema.AttrType.FLOAT)

    def translate_region_pool(logits: Any, features: Any) -> Any:
        return region_pool(logits, features)

    def translate_attention(q: Any, k: Any, v: Any, bias: Any, scale: float) -> Any:
        return attention(q, k, v, bias, scale=scale)

    operators = torch.ops.isnet_trt
    return {operators.region_pool.default: translate_region_pool, operators.attention.default: translate_attention}


def _operator(
    name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **attributes: OpSchema.AttrType
) -> values.Op:
    # One type for all tensors: the exported graph is float32. `precision.py` knows which ones stay so.
    schema = OpSchema(
        name,
        functions.DOMAIN,
        functions.DOMAIN_VERSION,
        inputs=[OpSchema.FormalParameter(i, "T") for i in inputs],
        outputs=[OpSchema.FormalParameter(o, "T") for o in outputs],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "any floating type")],
        attributes=[OpSchema.Attribute(key, kind, "", required=True) for key, kind in attributes.items()],
    )
    return values.Op(values.Opset(functions.DOMAIN, functions.DOMAIN_VERSION), name, schema)


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Collect what the exporter prints; silence its warnings and log."""
    output = io.StringIO()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            warnings.simplefilter("ignore")
            yield output
    finally:
        logger.setLevel(level)


def _traced_blocks(proto: onnx.ModelProto) -> dict[str, str]:
    """Module name -> name of its output tensor: the last node that was traced inside the module."""
    last: dict[str, str] = {}
    for node in proto.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
        for scope in ast.literal_eval(scopes):
            if scope in BLOCKS:
                last[scope] = node.output[0]
    return {name: last[name] for name in BLOCKS if name in last}


def _strip(proto: onnx.ModelProto) -> None:
    """Remove the exporter's metadata: it holds stack traces with paths of this machine."""
    for node in proto.graph.node:
        del node.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
