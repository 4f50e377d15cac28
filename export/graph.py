"""From a PyTorch model to the ONNX graph that every engine starts from."""

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
"""Modules whose outputs the parity gate can compare, in the order of computation."""
_BORDERS_KEY = "isnet_trt.borders"
_LARGEST_PROTOBUF = 2**31 - 2**24
"""Protobuf cannot hold 2 GiB in one message; a margin is left for the graph itself."""
_SAMPLE = (2, 3, 73, 105)
"""Batch 1 would be taken for a constant; odd sizes keep the rounding of strides general."""


def export_graph(model: ISNet, recipe: str) -> onnx.ModelProto:
    """The inference form of ``model`` as a checked ONNX graph.

    Input ``image`` (batch, 3, height, width) float32, normalised RGB; output ``logits`` (batch, K, h, w). All three
    sizes are free. The context operations are nodes of the domain ``isnet_trt`` with function bodies.

    Raises:
        BuildError: the exporter failed; its last words are in the message.
    """
    with _quiet() as noise:
        try:
            proto = _export(inference_form(model))
        except Exception as error:
            raise BuildError(f"the ONNX exporter failed: {error}\n{noise.getvalue()[-2000:]}") from error
    functions.attach(proto)
    proto.producer_name, proto.producer_version = "isnet_trt", __version__
    _note(proto, {"isnet_trt.recipe": recipe, _BORDERS_KEY: json.dumps(_borders(proto))})
    _strip(proto)
    return proto


def _export(model: nn.Module) -> onnx.ModelProto:
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    program = torch.onnx.export(
        model,
        (torch.zeros(_SAMPLE),),
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
    """The custom operators of the model as nodes of our own domain."""
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
    """Collect what the exporter prints, warns and logs."""
    noise = io.StringIO()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            warnings.simplefilter("ignore")
            yield noise
    finally:
        logger.setLevel(level)


def _borders(proto: onnx.ModelProto) -> dict[str, str]:
    """Module name -> name of its output tensor: the last node that was traced inside the module."""
    last: dict[str, str] = {}
    for node in proto.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
        for scope in ast.literal_eval(scopes):
            if scope in BLOCKS:
                last[scope] = node.output[0]
    return {name: last[name] for name in BLOCKS if name in last}


def _note(proto: onnx.ModelProto, notes: dict[str, str]) -> None:
    for key, value in notes.items():
        proto.metadata_props.append(onnx.StringStringEntryProto(key=key, value=value))


def _strip(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they hold stack traces with the paths of this machine."""
    for node in proto.graph.node:
        del node.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]


def block_outputs(proto: onnx.ModelProto) -> dict[str, str]:
    """Block name -> tensor name, in the order of computation, as `export_graph` recorded them."""
    notes = {entry.key: entry.value for entry in proto.metadata_props}
    return json.loads(notes.get(_BORDERS_KEY, "{}"))


def with_attention(proto: onnx.ModelProto, body: AttentionBody) -> onnx.ModelProto:
    """A copy of the graph with another body of the attention."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    functions.attach(copy, body)
    return copy


def save_graph(proto: onnx.ModelProto, path: str | os.PathLike[str], largest: int = _LARGEST_PROTOBUF) -> None:
    """Write and check a graph; beyond ``largest`` bytes its weights go into ``<name>.data`` beside it.

    Raises:
        BuildError: ONNX finds the graph invalid.
    """
    target = Path(path)
    external = proto.ByteSize() > largest
    if external:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)  # saving moves the weights out of the message
        onnx.save_model(copy, str(target), save_as_external_data=True, location=f"{target.name}.data")
    else:
        onnx.save_model(proto, str(target))
    try:
        onnx.checker.check_model(str(target), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BuildError(f"the exported graph is not valid ONNX: {error}") from None
