"""The graphs of bundles as ONNX files: their ends, the names of their blocks, and how they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import onnx

from isnet_trt.errors import BuildError
from isnet_trt.export import functions
from isnet_trt.export.functions import AttentionBody
from isnet_trt.export.onnx_edit import MAX_PROTOBUF, copied, save

INPUT, OUTPUT = "image", "logits"
_BLOCKS_KEY = "isnet_trt.borders"
_RECIPE_KEY = "isnet_trt.recipe"


def note_source(proto: onnx.ModelProto, recipe: str, blocks: Mapping[str, str]) -> None:
    """Record, in place, the recipe that a graph was exported from, and its blocks with their output tensors."""
    onnx.helper.set_model_props(proto, {_RECIPE_KEY: recipe, _BLOCKS_KEY: json.dumps(blocks)})


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
