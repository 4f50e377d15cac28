"""Export of a PyTorch model to the float32 ONNX graph that the lowering of every engine starts from."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.defs import OpSchema
from onnxscript import values
from torch import nn

from isnet_trt._version import __version__
from isnet_trt.errors import BuildError
from isnet_trt.export import functions
from isnet_trt.export.functions import AttentionBody
from isnet_trt.export.onnx_edit import MAX_PROTOBUF, copied, save
from isnet_trt.training.model import ISNet, inference_form

INPUT, OUTPUT = "image", "logits"
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
_BLOCKS_KEY = "isnet_trt.borders"
_RECIPE_KEY = "isnet_trt.recipe"
_SAMPLE = (2, 3, 73, 105)
"""Shape of the traced input. Batch 1 would become a constant; odd sizes keep the rounding of strides general."""


def export_graph(model: ISNet, recipe: str) -> onnx.ModelProto:
    """Export the inference form of ``model``.

    Input ``image`` (batch, 3, height, width) float32, normalised RGB; output ``logits`` (batch, K, h, w). Batch, height
    and width are dynamic. The context operations are nodes of the domain ``isnet_trt`` with function bodies.

    Raises:
        BuildError: the exporter failed; the end of its output is in the message.
    """
    with _quiet() as output:
        try:
            proto = _export(inference_form(model))
        except Exception as error:  # the exporter raises exceptions of many libraries
            raise BuildError(f"the ONNX exporter failed: {error}\n{output.getvalue()[-2000:]}") from error
    functions.attach(proto)
    proto.producer_name, proto.producer_version = "isnet_trt", __version__
    # Before `_strip`: the blocks' borders are read from the metadata that it removes.
    onnx.helper.set_model_props(proto, {_RECIPE_KEY: recipe, _BLOCKS_KEY: json.dumps(_traced_blocks(proto))})
    _strip(proto)
    return proto


def _export(model: nn.Module) -> onnx.ModelProto:
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    program = torch.onnx.export(
        model,
        (torch.zeros(_SAMPLE),),
        # Only this exporter has a table of translations for custom operators.
        dynamo=True,
        opset_version=functions.OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: batch, 2: height, 3: width},),
        custom_translation_table=_translations(),
        verbose=False,
    )
    if program is None:
        raise BuildError("the exporter returned nothing")
    return program.model_proto


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


def block_outputs(proto: onnx.ModelProto) -> dict[str, str]:
    """Block name -> name of its output tensor, in the order of computation, as `export_graph` recorded them."""
    return json.loads(_properties(proto).get(_BLOCKS_KEY, "{}"))


def recipe_name(proto: onnx.ModelProto) -> str | None:
    """The recipe that a graph was exported from, where it is recorded."""
    return _properties(proto).get(_RECIPE_KEY)


def _properties(proto: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in proto.metadata_props}


def with_attention(proto: onnx.ModelProto, body: AttentionBody) -> onnx.ModelProto:
    """A copy of the graph with another body of the attention."""
    copy = copied(proto)
    functions.attach(copy, body)
    return copy


def save_graph(proto: onnx.ModelProto, path: str | os.PathLike[str], max_bytes: int = MAX_PROTOBUF) -> None:
    """Write and check a graph; beyond ``max_bytes`` its weights go into ``<name>.data`` beside it.

    Raises:
        BuildError: ONNX finds the graph invalid.
    """
    save(proto, Path(path), max_bytes)
    try:
        # By path: a model beyond protobuf's 2 GiB can be checked only as a file.
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BuildError(f"the exported graph is not valid ONNX: {error}") from None
